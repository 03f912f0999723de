"""The memory plan against what runs take: peak resident memory of thirteen runs of a step.

    python benchmarks/memory_plan.py --smollm2 FOLDER --qwen FOLDER            # all (about 40 minutes on 2 cores)
    python benchmarks/memory_plan.py --smollm2 FOLDER --qwen FOLDER --only lab # those with this word in their name

Responses are sampled at temperature 2, where hardly one ends before its limit: the plan is made for those. Measured is the
largest resident memory of the main process as the kernel keeps it, and the usual proportional share of its children.
"""

import argparse
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
from first_hour import write_problems

from conclip.config.compose import load_config
from conclip.experiments.inputs import load_inputs
from conclip.experiments.memory import ModelSize, Place
from conclip.experiments.memory_plan import plan_memory
from conclip.rollout.session import encode_prompts, longest_training_sequence

SHORT = ("phase.num_problems=4", "phase.problems_per_step=4", "rollout.max_tokens=128")
MIDDLE = ("phase.num_problems=2", "phase.problems_per_step=2", "rollout.max_tokens=512")
LONG = ("phase.num_problems=2", "phase.problems_per_step=2", "rollout.max_tokens=1024")
LEAN = ("rollout.kv_cache_gib=0.5", "trainer.save_in_background=false")
BFLOAT16 = ("model.dtype=bfloat16",)
ROUNDED = (*BFLOAT16, "algo.reference_dtype=bfloat16")

RUNS = {
    "lab PPO": ("debug=train", "phase.group_size=32", "rollout.max_tokens=512"),
    "lab GRPO LoRA": ("debug=train", "phase.group_size=32", "rollout.max_tokens=512", "algo=grpo", "model/adapter=lora"),
    "135M PPO short": SHORT,
    "135M PPO long": LONG,
    "135M PPO long, nothing recomputed": (*LONG, "trainer.recompute_activations=false"),
    "135M PPO 512 tokens, 8-bit moments, lean": (*LEAN, *MIDDLE, "optim.moments=8bit"),
    "135M GRPO LoRA long": (*LONG, "algo=grpo", "model/adapter=lora"),
    "0.5B PPO LoRA short, lean": (*LEAN, *SHORT, "model/adapter=lora"),
    "0.5B PPO short, 8-bit moments, lean": (*LEAN, *SHORT, "optim.moments=8bit"),
    "0.5B GRPO LoRA long, lean": (*LEAN, *LONG, "algo=grpo", "model/adapter=lora"),
    "135M PPO 512 tokens, 8-bit moments, lean, in bfloat16": (*LEAN, *MIDDLE, "optim.moments=8bit", *ROUNDED),
    "0.5B PPO LoRA short, lean, in bfloat16, passes of 512 tokens": (
        *LEAN,
        *SHORT,
        *BFLOAT16,
        "trainer.max_tokens_per_micro_batch=512",
        "model/adapter=lora",
        "model.adapter.base=bfloat16",
    ),
    "0.5B PPO short, 8-bit moments, lean, in bfloat16, passes of 128 tokens": (
        *LEAN,
        *SHORT,
        *ROUNDED,
        "optim.moments=8bit",
        "trainer.max_tokens_per_micro_batch=128",
    ),
}


def overrides(name: str, models: dict[str, Path], folder: Path) -> list[str]:
    """Return the overrides of a run of one step on named problems; its later updates find gradients, moments and activations
    together."""
    chosen = [
        "phase.num_steps=1",
        "phase.num_problems=4",
        "phase.problems_per_step=4",
        f"paths.outputs={folder}",
        *RUNS[name],
    ]
    if not name.startswith("lab"):
        problems = folder / "problems.jsonl"
        write_problems(problems, number=30)
        model = ["model=hf", "model.dtype=float32", f"model.path={models[name.split()[0]]}", "rollout.temperature=2"]
        few = ["trainer.validation_samples=1", "data.validation.mine.num_problems=1", "phase.group_size=2"]
        chosen = [*model, "data=one_file", f"paths.problems={problems}", *few, *chosen]
    number = 2 if "phase.num_problems=2" in RUNS[name] else 4
    pool = load_inputs(load_config("train-phase2", *chosen)).pool
    return [*chosen, f"phase.problem_ids=[{','.join(problem.problem_id for problem in pool[:number])}]"]


def planned(arguments: list[str], place: Place) -> float:
    """Return the peak [GiB] that the plan gives."""
    config = load_config("train-phase2", *arguments)
    inputs = load_inputs(config)
    prompts = encode_prompts(config, inputs.model_path, inputs.problems)
    model = ModelSize.of(inputs.model_path)
    return plan_memory(config, model, longest_training_sequence(config, prompts), place).peak


def measured(arguments: list[str]) -> tuple[float, int]:
    """Run the command. Returns the peak of its processes [GiB], and its exit code. The peak is the main process's as the
    kernel keeps it, and the median of its children's sum. (Not their largest: a child that is about to start another program
    shares its parent's memory for a moment.)"""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "conclip", "train-phase2", *arguments], stdout=subprocess.DEVNULL
    )
    main, own, others = psutil.Process(process.pid), 0.0, [0.0]
    while process.poll() is None:
        with suppress(psutil.Error, OSError, StopIteration):
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            own = max(own, next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20)
            others.append(sum(child.memory_full_info().pss for child in main.children(recursive=True)) / 2**30)
        time.sleep(0.5)
    return own + median(others), process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--qwen", type=Path, required=True, help="folder of Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--only", default="", help="a word in the names of the runs")
    options = parser.parse_args()
    models = {"135M": options.smollm2, "0.5B": options.qwen}
    place = Place(kind="cpu", memory_gib=psutil.virtual_memory().total / 2**30)
    print("| run | planned [GiB] | measured [GiB] | measured / planned |\n|---|---:|---:|---:|")
    for name in RUNS:
        if options.only not in name:
            continue
        with TemporaryDirectory() as folder:
            arguments = overrides(name, models, Path(folder))
            plan = planned(arguments, place)
            taken, code = measured(arguments)
        note = "" if code == 0 else f" (exit code {code})"
        print(f"| {name}{note} | {plan:.2f} | {taken:.2f} | {taken / plan:.2f} |", flush=True)


if __name__ == "__main__":
    main()

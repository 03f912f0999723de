"""The memory that a learner takes of each GPU, by its plan: models of 1.5, 7 and 32 billion parameters on 1, 8 and 16 GPUs,
and the experiments that are made for them.

python -m benchmarks.scale_plan        # the tables of docs/scale.md (seconds; nothing is loaded)
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from conclip.config.compose import load_config
from conclip.experiments.memory import ModelSize, Place, engine_weights_gib, has_own_gpus, memory_parts, num_ranks, peak_gib
from tests.sparse import QWEN_7B, QWEN_32B, R1_1_5B, sparse_model

LONGEST = 8192
SETTINGS = (
    "cluster=ray",
    "model=hf",
    "model.path=x",
    "model.dtype=bfloat16",
    "rollout.max_tokens=8000",
    "trainer.recompute_activations=true",
    f"trainer.max_tokens_per_micro_batch={LONGEST}",
    "optim.moments=float32",
)
METHODS = {
    "PPO, all weights": ("algo=ppo", "algo.reference_dtype=bfloat16", "algo.kl=reward", "algo.kl_coef=0.01"),
    "GRPO without KL, all weights": ("algo=grpo", "algo.kl=none", "algo.kl_coef=0"),
    "PPO, LoRA on a base in bfloat16": ("algo=ppo", "model/adapter=lora", "model.adapter.base=bfloat16"),
}
MODELS = {"1.5B (R1-Distill-Qwen)": R1_1_5B, "7B (Qwen2.5)": QWEN_7B, "32B (Qwen2.5)": QWEN_32B}
GPUS = (1, 8, 16)
EXPERIMENTS = {"paper/r1_1.5b": R1_1_5B, "paper/r1_7b_8gpu": QWEN_7B, "r1_32b_16gpu": QWEN_32B}
CARD = Place(kind="gpu", memory_gib=80.0)


def rows() -> Iterator[list[str]]:
    """Yield the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, shape) in enumerate(MODELS.items()):
            model = ModelSize.of(sparse_model(Path(folder) / str(number), shape))
            for method, overrides in METHODS.items():
                peaks: list[float] = []
                for ranks in GPUS:
                    config = load_config("train-phase2", *SETTINGS, *overrides, f"cluster.learner_ranks={ranks}")
                    peaks.append(peak_gib(memory_parts(config, model, LONGEST, CARD)))
                weights = engine_weights_gib(config, model, CARD)  # pyright: ignore[reportPossiblyUnboundVariable]
                yield [name, method, *(f"{peak:.0f}" for peak in peaks), f"{weights:.0f}"]


def experiments() -> Iterator[list[str]]:
    """Yield the rows of the table of experiments. Prompts have 512 tokens."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, shape) in enumerate(EXPERIMENTS.items()):
            model = ModelSize.of(sparse_model(Path(folder) / str(number), shape))
            config = load_config("two-phase", f"experiment={name}")
            longest, rollout = 512 + config.rollout.max_tokens, config.rollout
            apart = has_own_gpus(config)
            engines = rollout.num_engines * rollout.tensor_parallel_size
            learner = peak_gib(memory_parts(config, model, longest, CARD))
            weights = engine_weights_gib(config, model, CARD)
            gpus = f"{num_ranks(config)} + {engines}" if apart else f"{num_ranks(config)}, for both"
            yield [f"`experiment={name}`", gpus, f"{learner:.0f}", f"{weights:.0f}" if apart else "in the learner's"]


def main() -> None:
    print("| model | method | 1 GPU | 8 GPUs | 16 GPUs | engine's weights |\n|---|---|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |")
    print("\n| | GPUs: learner + engines | learner | engine's weights |\n|---|---|---|---|")
    for row in experiments():
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()

"""Runs every command of README and docs/ for real, made small: the embedded model for MODEL, generated files for the
reader's own, a debug preset for those that train.

    make docs-commands

Data sets of the hub, servers and GPUs are not there: such commands are only composed, which a test does. Commands of one
page run one after the other in one folder, as a reader would give them.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from conclip.cli.help import leaves
from conclip.config.compose import config_folder
from tests.doc_commands import TOP, commands, filled, write_problems, write_recipes

PRESETS = {
    "probe": "probe",
    "train-phase1": "train",
    "train-phase2": "train",
    "eval": "eval",
    "two-phase": "two_phase",
    "run": "two_phase",
}
"""subcommand -> option of debug="""

OF_REAL_MODELS = (
    r"optim=paper|(?:(?:eval|rollout)\.max_tokens|rollout\.max_model_len|trainer\.max_tokens_per_micro_batch"
    r"|data\.test\.\w+\.(?:num_problems|offset))=\d+"
)
"""Settings that the embedded model does without."""

LEFT_OUT = {
    r"^make (?!demo$)": "a target of its own",
    r"^make demo": "the demo itself",
    r"aime24_train": "data sets of the hub",
    r"data=math": "data sets of the hub",
    r"model=endpoint": "a server",
    r"experiment=(smoke|real|smollm2_cpu|gsm8k_cpu)": "a model of one's own (benchmarks/first_hour.py)",
    r"experiment=qwen3_4b_24gb|experiment=paper/": "a card",
    r"benchmarks/(first_hour\.py (?!--write)|thinking_model)": "a model of one's own",
    r"conclip claims c": "hours",
    r"^apt-get |^export LD_PRELOAD": "a package of the system",
    r"model.path=MODEL data=gsm8k$": "data sets of the hub",
    r"mmlu_stem|data=own": "another file's columns",
}


def of_files(line: str) -> Iterator[str]:
    """What the generated files need, whatever the command calls them."""
    for part, name, file in re.findall(r"data\.(\w+)\.(\w+)\.path=\S+/(\w+\.jsonl)", line):
        if file != "problems.jsonl":
            yield f'data.{part}.{name}.answer_pattern="####\\s*(.+)"'
        yield f"data.{part}.{name}.num_problems={24 if part == 'pool' else 8}"
        if name == "gsm8k":
            yield f"data.{part}.{name}.expected_problems=null"


def small(line: str) -> str:
    """The command with the sizes of its debug preset. What stands in the command itself wins over the preset."""
    found = re.search(r"conclip (probe|train-phase1|train-phase2|eval|two-phase|run)\b", line)
    if found is None or "--help" in line:
        return line
    preset = PRESETS[found[1]]
    cut = [f"debug={preset}"]
    if "recipe=reversed" in line:
        tiny = {"num_problems": 4, "problems_per_step": 4, "num_steps": 2, "pass_rate_low": 0.05, "pass_rate_high": 0.95}
        cut += [f"phases.{phase}.{key}={value}" for phase in ("short", "hard") for key, value in tiny.items()]
    if "model=hf" in line:
        line = re.sub(OF_REAL_MODELS, "", line)
        cut += ["model.dtype=float32", """'model.prompt="{question}"'""", *(f"'{key}'" for key in of_files(line))]
    if "data=" in line:  # the preset is for generated problems: all of it but these
        chosen = cast(DictConfig, OmegaConf.load(config_folder() / f"debug/{preset}.yaml"))
        cut[0] = " ".join(f"{key}={value}" for key, value in leaves(chosen) if key.partition(".")[0] not in ("data", "name"))
    name = [] if "name=" in line or ("seed=" in line and "-m" in line) else ["name=default"]
    return " ".join([line, *cut, *name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="pages whose name begins so")
    only = parser.parse_args().only
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    failed = 0
    for page, of_page in groupby(commands(), key=lambda command: command.page):
        if not page.startswith(only):
            continue
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            write_problems(place)
            write_recipes(place)
            for command in of_page:
                reason = next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, command.line)), None)
                if reason is not None:
                    print(f"{page:<18} not run ({reason}): {command.line}", flush=True)
                    continue
                line = small(filled(command.line, place)).replace("python benchmarks/", f"python {TOP}/benchmarks/")
                began = time.monotonic()
                outcome = subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, text=True, env=environment)
                result = (
                    "ok" if outcome.returncode == 0 else f"FAILED {outcome.returncode}: {outcome.stderr[-300:]}\n  {line}"
                )
                failed += outcome.returncode != 0
                print(f"{page:<18} {time.monotonic() - began:5.0f} s {result} {command.line}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

"""What each rank of a learner takes in main memory as it loads its share of the models: peak and rest.

    python benchmarks/rank_memory.py MODEL --ranks 4

PPO with critic and reference, all weights in float32, no update yet. Libraries take some 0.4 GiB of each.
"""

import argparse
from pathlib import Path

import psutil

from conclip.config.compose import load_config
from conclip.config.groups import ClusterConfig
from conclip.config.schema import LearnConfig
from conclip.training.ranks import Learners


def gib(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    config = load_config("train-phase2", "model=hf", f"model.path={options.model}", "model.dtype=float32", "data=gsm8k")
    assert isinstance(config, LearnConfig)
    learners = Learners(ClusterConfig(learner_ranks=options.ranks))
    learner = learners.make(options.model, config, num_updates=1)
    learner.saved()  # so that every rank is done
    others = [p.pid for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    print("| rank | peak [GiB] | then [GiB] |\n|---|---:|---:|")
    for rank, pid in enumerate([psutil.Process().pid, *sorted(others)]):
        print(f"| {rank} | {gib(pid, 'VmHWM'):.2f} | {gib(pid, 'VmRSS'):.2f} |")
    del learner
    learners.close()


if __name__ == "__main__":
    main()

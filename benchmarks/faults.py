"""Kill a run at random moments, start it again, and compare what it leaves with an uninterrupted run.

    make faults                      # 10 kills of a small two-phase run
    make faults ARGS="--kills 3"

Each kill is SIGKILL at a moment drawn between the command's start and the time the uninterrupted run took; then the same
command runs to its end. Everything but durations must be the same: metrics, rows, pass rates, chosen problems, weights and
results.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from conclip.models.folder import model_hash
from conclip.pipeline import read_stages

COMMAND = ("two-phase", "debug=two_phase", "logger.progress=false")
JSON_LINES = ("metrics.jsonl", "pass_rates.jsonl", "pass_rates-phase1.jsonl")
WHOLE = ("problems-phase1.json", "problems-phase2.json", "training-phase1.json", "training-phase2.json", "results.json")


def command(name: str) -> list[str]:
    return [sys.executable, "-m", "conclip", *COMMAND, f"name={name}"]


def left_by(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on interruptions."""
    rows = sorted(path.name for path in folder.glob("*rows-*.jsonl"))
    found: dict[str, Any] = {name: (folder / name).read_text() for name in (*WHOLE, *rows)}
    for name in JSON_LINES:
        lines = map(json.loads, (folder / name).read_text().splitlines())
        found[name] = [{k: v for k, v in line.items() if not k.startswith(("time/", "perf/"))} for line in lines]
    for path in sorted((folder / "checkpoints").iterdir()):
        found[path.name] = model_hash(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "outputs/two-phase"
        began = time.monotonic()
        subprocess.run(command("alone"), cwd=place, check=True, stdout=subprocess.DEVNULL)
        duration = time.monotonic() - began
        alone = left_by(home / "alone/attempt-001")
        print(f"uninterrupted: {duration:.0f} s")
        same = 0
        for number in range(arguments.kills):
            name, after = f"killed-{number}", moments.uniform(0, duration)
            process = subprocess.Popen(command(name), cwd=place, stdout=subprocess.DEVNULL)
            try:
                process.wait(timeout=after)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            folder = home / name / "attempt-001"
            done = list(read_stages(folder))
            subprocess.run(command(name), cwd=place, check=True, stdout=subprocess.DEVNULL)
            found = left_by(folder)
            differing = [key for key in alone.keys() | found.keys() if alone.get(key) != found.get(key)]
            same += not differing
            state = f"after {', '.join(done)}" if done else "before any stage was done"
            print(f"killed at {after:5.1f} s, {state}: {'same' if not differing else f'DIFFERS in {differing}'}", flush=True)
    print(f"{same} of {arguments.kills} the same as the uninterrupted run")
    sys.exit(same != arguments.kills)


if __name__ == "__main__":
    main()

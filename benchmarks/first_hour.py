"""A newcomer's first hour with a model of their own, timed: the table of docs/real-models.md.

    python benchmarks/first_hour.py MODEL               # three commands, each with the rows of those before it
    python benchmarks/first_hour.py --write FILE        # only the sixty word problems, or --number of them

The word problems are made here: one step, small numbers, no published text.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jon")
THINGS = ("apples", "pens", "stamps", "marbles", "books", "shells", "coins", "cards")
FORMS = (
    ("{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?", lambda a, b: a + b),
    ("{name} has {a} {things} and gives {b} away. How many {things} are left?", lambda a, b: a - b),
    ("There are {a} {things} on a table and {b} on a chair. How many {things} are there in all?", lambda a, b: a + b),
)

COMMANDS = {
    "as it is": ("two-phase", "experiment=smoke"),
    "other forms of answers count": ("two-phase", "experiment=smoke", "rollout.extraction=lenient"),
    "the form is taught first": ("two-phase", "experiment=smoke", "recipe=warm_up"),
}
"""What a newcomer types, one after another, besides the model and the file."""

MARKS = {
    "first table": "what may be had without training",
    "first advice": "warning: ",
    "pass rates": "probe base: ",
    "pass rates after warm-up": "probe warm up: ",
    "a phase-2 step": "phase2 step   1",
    "the end": "final model",
}
"""What is waited for in the output of a command."""


def write_problems(path: Path, number: int = 60, seed: int = 0) -> None:
    """Write word problems with columns question and answer."""
    drawn, rows = random.Random(seed), dict[str, int]()
    while len(rows) < number:
        text, value = drawn.choice(FORMS)
        b = drawn.randint(2, 9)
        a = drawn.randint(b + 1, 20)
        rows[text.format(name=drawn.choice(NAMES), things=drawn.choice(THINGS), a=a, b=b)] = value(a, b)
    lines = [json.dumps({"question": question, "answer": str(answer)}) for question, answer in rows.items()]
    path.write_text("".join(f"{line}\n" for line in lines))


def timed(arguments: list[str]) -> dict[str, float]:
    """Run a command; return the seconds after which each mark first stood in its output."""
    began, seen = time.monotonic(), dict[str, float]()
    process = subprocess.Popen(
        [sys.executable, "-m", "conclip", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        for name, mark in MARKS.items():
            if name not in seen and mark in line:
                seen[name] = time.monotonic() - began
    if code := process.wait():
        sys.exit(f"conclip {' '.join(arguments)} ended with exit code {code}")
    seen["exit"] = time.monotonic() - began
    return seen


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder with a Hugging Face model")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--number", type=int, default=60, help="of word problems")
    parser.add_argument("--out", type=Path, default=Path("outputs/first-hour"))
    options = parser.parse_args()
    if options.write:
        write_problems(options.write, options.number)
        return
    if options.model is None:
        parser.error("give a folder with a model, or --write FILE")
    options.out.mkdir(parents=True, exist_ok=True)
    problems = options.out / "problems.jsonl"
    write_problems(problems, options.number)
    begun, lines = time.monotonic(), ["| command | " + " | ".join(MARKS) + " |", "|---" * (len(MARKS) + 1) + "|"]
    for name, command in COMMANDS.items():
        before = time.monotonic() - begun
        own = [f"model.path={options.model}", f"paths.problems={problems}"]
        seen = timed([*command, *own, f"paths.outputs={options.out}"])
        cells = [_minutes(before + seen[mark]) if mark in seen else "-" for mark in MARKS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(["", "minutes after the first command", "", *lines, ""]))


if __name__ == "__main__":
    main()

"""The commands that README and docs/ name, and what stands for MODEL and the like when they are run."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conclip.config.compose import load_config
from conclip.problems.load import load_problems

TOP = Path(__file__).parent.parent
LAB = TOP / "conclip/lab/weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    page: str
    line: str


def commands() -> Iterator[Command]:
    """Every command line in the shell blocks of README and docs/: continuation lines are joined, loops are written out,
    comments are left out."""
    for page in [TOP / "README.md", *sorted(TOP.glob("docs/*.md"))]:
        if page.name == "index.md":
            continue  # generated from README.md
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            if block.startswith("#!"):
                continue  # a script for another machine
            shell: dict[str, str] = {}
            for line in unrolled(block.replace("\\\n", " ")).splitlines():
                line = re.sub(r"\s+#.*", "", line).strip()
                if found := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                    shell[found[1]] = found[2]
                elif line:
                    for name, value in shell.items():
                        line = line.replace(f"${name}", value)
                    yield Command(page=page.name, line=line)


def unrolled(block: str) -> str:
    """A block with the lines of each `for` loop once for every word."""

    def written_out(loop: re.Match[str]) -> str:
        return "".join(re.sub(rf"\${loop[1]}\b|\$\{{{loop[1]}\}}", word, loop[3]) for word in loop[2].split())

    return re.sub(r"^for (\w+) in (.+); do\n(.*?)^done$", written_out, block, flags=re.S | re.M)


def filled(line: str, place: Path) -> str:
    """A command with files of this machine for the names that stand for the reader's own."""
    names = ("train.jsonl", "validation.jsonl", "test.jsonl", "problems.jsonl")
    line = re.sub(r"(?<![\w./])(?:/path/to/\S*/)?(" + "|".join(names) + r")\b", lambda found: str(place / found[1]), line)
    line = re.sub(r"/path/to/gsm8k/(\S+)", lambda found: str(place / found[1]), line)
    line = re.sub(r"(?<=model\.path=)(MODEL|MERGED|BASE|/path/to/\S+|Qwen\S+)|(?<=after: )TRAINED", str(LAB), line)
    line = line.replace("--config-dir mine", f"--config-dir {place / 'mine'}")
    return line.replace("FILE", str(place / "test.jsonl"))


def write_recipes(place: Path) -> None:
    """The recipes and data files of the docs, in the folder `mine`."""
    text = "".join((TOP / "docs" / page).read_text() for page in ("recipes.md", "yours.md"))
    for name, content in re.findall(r"`(mine/(?:recipe|data)/\w+\.yaml)`:\n\n```yaml\n(.*?)```", text, re.S):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)


def write_problems(place: Path) -> None:
    """Files with the columns of GSM8K, which are also those of `data=mine`; no question stands in two of them."""
    config = load_config("two-phase", "data.pool.chain.num_problems=60")
    for name, sets in (("train", config.data.pool), ("validation", config.data.validation), ("test", config.data.test)):
        rows = [
            {"question": problem.question, "answer": f"#### {problem.answer}"}
            for problem in load_problems(f"data.{name}", sets, 0, [])
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "problems.jsonl").write_text((place / "test.jsonl").read_text().replace("#### ", ""))

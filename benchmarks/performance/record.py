"""What a whole benchmark found, kept as JSON, and the page made from it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.performance.comparisons import Numbers, Result, tables


@dataclass(frozen=True, slots=True)
class Point:
    """A batch of responses of one length, updated with or sampled."""

    what: str
    length: int
    responses: int
    threads: int
    s_per_1000: float
    gib: float

    def row(self) -> str:
        numbers = f"{self.length:,} | {self.responses:,} | {self.threads} | {self.s_per_1000:.3f} | {self.gib:.2f}"
        return f"| {self.what} | {numbers} |"


@dataclass(frozen=True, slots=True)
class Start:
    """How soon a command is there."""

    command: str
    clock_s: float
    processor_s: float

    def row(self) -> str:
        return f"| `{self.command}` | {self.clock_s:.2f} | {self.processor_s:.2f} |"


@dataclass(slots=True)
class Record:
    """Everything that was measured on one machine."""

    machine: str
    comparisons: list[Result] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Record":
        found: dict[str, Any] = json.loads(path.read_text())
        pairs = [Result(r["model"], r["name"], [(ours, other) for ours, other in r["pairs"]]) for r in found["comparisons"]]
        points, starts = [Point(**p) for p in found["points"]], [Start(**s) for s in found["starts"]]
        return cls(found["machine"], pairs, points, starts)

    def pairs_of(self, model: str, name: str) -> list[tuple[Numbers, Numbers]]:
        """Return the pairs of a comparison, to add to; a new comparison has none."""
        for result in self.comparisons:
            if (result.model, result.name) == (model, name):
                return result.pairs
        self.comparisons.append(Result(model, name, []))
        return self.comparisons[-1].pairs

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def page(self) -> str:
        """Return docs/performance.md."""
        length = [
            "| what | tokens each | responses | threads | s per 1,000 tokens | peak [GiB] |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        start = ["| command | s by the clock | s of the processor |", "|---|---:|---:|"]
        parts = {
            "compared": tables(self.comparisons),
            "points": _table(length, self.points),
            "starts": _table(start, self.starts),
            "machine": self.machine,
            "pairs": str(min((len(result.pairs) for result in self.comparisons), default=0)),
        }
        text = Path(__file__).with_name("page.md").read_text()
        for name, part in parts.items():
            text = text.replace(f"[[{name}]]", part)
        return text


def _table(head: Sequence[str], rows: Sequence[Point] | Sequence[Start]) -> str:
    return "\n".join([*head, *(row.row() for row in rows)])

"""What a whole benchmark found, kept as JSON, and the page made from it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.performance.comparisons import Numbers, Result, tables


@dataclass(frozen=True, slots=True)
class Batch:
    """Responses of one length, updated with or sampled."""

    what: str
    length: int
    responses: int
    threads: int
    group_size: int = 8
    """Responses to each prompt."""
    engines: int = 1
    micro_batch: int = 2048
    """Tokens of a micro-batch."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a batch took."""

    batch: Batch
    s_per_1000: float
    gib: float

    def row(self) -> str:
        batch = self.batch
        of_kind = f"{batch.micro_batch:,} | " if batch.what == "update" else f"{batch.group_size} | {batch.engines} | "
        sizes = f"{batch.length:,} | {batch.responses:,} | {of_kind}{batch.threads}"
        return f"| {sizes} | {self.s_per_1000:.3f} | {self.gib:.2f} |"


@dataclass(frozen=True, slots=True)
class Start:
    """How soon a command is there."""

    command: str
    clock_s: float
    processor_s: float | None
    """None: it was timed to its first response, not to its end."""

    def row(self) -> str:
        until, used = ("", f"{self.processor_s:.2f}") if self.processor_s is not None else (", to its first response", "")
        return f"| `{self.command}`{until} | {self.clock_s:.2f} | {used} |"


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
        points = [Point(Batch(**p.pop("batch")), **p) for p in found["points"]]
        starts = [Start(**s) for s in found["starts"]]
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
        took = "threads | s per 1,000 tokens | peak [GiB] |"
        update = [f"| tokens each | responses | tokens of a micro-batch | {took}", "|---:|---:|---:|---:|---:|---:|"]
        sampling = [f"| tokens each | responses | to a prompt | engines | {took}", "|---:|---:|---:|---:|---:|---:|---:|"]
        start = ["| command | s by the clock | s of the processor |", "|---|---:|---:|"]
        parts = {
            "compared": tables(self.comparisons),
            "updates": _table(update, [point for point in self.points if point.batch.what == "update"]),
            "rollouts": _table(sampling, [point for point in self.points if point.batch.what == "sampling"]),
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

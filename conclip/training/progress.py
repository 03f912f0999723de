"""How far a phase is: everything that changes from step to step besides the models and the order of problems."""

from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from conclip.runs.checked import Count, Finite, NonNegative, Whole


class Due(Enum):
    """What a phase does next."""

    FIRST_LOOK = "first look"
    """The validation that later ones are measured against."""
    STEP = "step"
    """Sample and update."""
    REPORT = "report"
    """Validate where it is time, report, save: what follows an update."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Result of one look at the validation problems."""

    step: Count
    accuracy: Annotated[Finite, Field(ge=0, le=1)]
    """Share of correct responses; grader errors are left out."""
    mean_tokens: NonNegative


@dataclass(slots=True, kw_only=True)
class Progress:
    """Saved with each checkpoint, as JSON."""

    step: Whole
    """The last step whose update is done. Steps up to 0 warm the critic up."""
    kl_coef: NonNegative
    unreported: dict[str, float] | None = None
    """Metrics of that step while its validation and report are still to come."""
    num_sampled_tokens: Count = 0
    """In training, validation apart."""
    num_warmup_tokens: Count = 0
    """Of those, while the critic warmed up."""
    num_responses: Count = 0
    """Sampled, validation included."""
    num_validation_tokens: Count = 0
    wall_s: NonNegative = 0.0
    """Spent on the steps so far, interruptions apart."""
    monitor_tokens: list[Count] = field(default_factory=list[int])
    """Lengths of the correct responses of the last validation."""
    history: list[Validation] = field(default_factory=list[Validation])
    best: Validation = field(default_factory=lambda: Validation(step=0, accuracy=0.0, mean_tokens=0.0))
    best_checkpoint: Count = 0
    """Number of the checkpoint that did best."""
    asked: list[str] = field(default_factory=list[str])
    """Ids of all problems that trained, in the order they came."""
    warned: list[str] = field(default_factory=list[str])
    ended: bool = False

    @property
    def due(self) -> Due:
        if self.ended:
            return Due.NOTHING
        if not self.history:
            return Due.FIRST_LOOK
        return Due.STEP if self.unreported is None else Due.REPORT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> "Progress":
        """Raises ValueError when it is no Progress."""
        return _ADAPTER.validate_python(values)

    def check(self, *, first_step: int, last_step: int, known: Container[str], needed: Iterable[str]) -> None:
        """Raises ValueError when it is not of a phase of these steps, on problems with these ids; `needed`: metrics that
        every step has."""
        if not first_step <= self.step <= last_step:
            raise ValueError(f"step {self.step} is none of {first_step} to {last_step}")
        if not self.history:
            raise ValueError("no validation that later ones are measured against")
        if unknown := [problem_id for problem_id in self.asked if problem_id not in known]:
            raise ValueError(f"'{unknown[0][:50]}' is no problem of this phase")
        if self.unreported is not None and (lacking := [name for name in needed if name not in self.unreported]):
            raise ValueError(f"the metrics of step {self.step} lack {lacking[0]}")


_ADAPTER = TypeAdapter(Progress)

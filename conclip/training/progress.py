"""How far a phase is: everything that changes from step to step besides the models and the order of problems."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Result of one look at the validation problems."""

    step: int
    accuracy: float
    """Share of correct responses; grader errors are left out."""
    mean_tokens: float


@dataclass(slots=True, kw_only=True)
class Progress:
    """Saved with each checkpoint, as JSON."""

    step: int
    """The last step whose update is done. Steps up to 0 warm the critic up."""
    kl_coef: float
    unreported: dict[str, float] | None = None
    """Metrics of that step while its validation and report are still to come."""
    num_sampled_tokens: int = 0
    """In training, validation apart."""
    num_warmup_tokens: int = 0
    """Of those, while the critic warmed up."""
    num_responses: int = 0
    """Sampled, validation included."""
    num_validation_tokens: int = 0
    wall_s: float = 0.0
    """Spent on the steps so far, interruptions apart."""
    monitor_tokens: list[int] = field(default_factory=list[int])
    """Lengths of the correct responses of the last validation."""
    history: list[Validation] = field(default_factory=list[Validation])
    best: Validation = field(default_factory=lambda: Validation(step=0, accuracy=0.0, mean_tokens=0.0))
    best_checkpoint: int = 0
    """Number of the checkpoint that did best."""
    asked: list[str] = field(default_factory=list[str])
    """Ids of all problems that trained, in the order they came."""
    warned: list[str] = field(default_factory=list[str])
    ended: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> "Progress":
        """Raises ValueError when it is no Progress."""
        return _ADAPTER.validate_python(values)


_ADAPTER = TypeAdapter(Progress)

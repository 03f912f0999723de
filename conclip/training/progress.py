"""The progress of a phase: everything that changes from step to step besides the models and the order of problems."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from conclip.runs.checked import Count, Finite, NonNegative, Whole
from conclip.training.length_rewards import Band
from conclip.types import RolloutGroup


class NextAction(Enum):
    """The next action of a phase."""

    INITIAL_VALIDATION = "initial validation"
    """Run the validation that later ones are compared with."""
    STEP = "step"
    """Sample and update the models."""
    CONCLUDE_STEP = "conclude step"
    """Do what follows an update: validate and save where scheduled, and report."""
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The result of one validation."""

    step: Count
    accuracy: Annotated[Finite, Field(ge=0, le=1)]
    """The share of correct responses; grader errors are left out."""
    accuracy_fall_low: Annotated[Finite, Field(ge=-1, le=1)] | None = None
    """The lower end of the 95 % interval of how far accuracy has fallen since the phase began, paired by problem; None for
    the first validation."""
    mean_tokens: NonNegative
    length_correlation: Annotated[Finite, Field(ge=-1, le=1)] | None = None
    """The mean over problems of the correlation of length and correctness among the responses to one problem; None where too
    few problems have correct and other responses."""
    length_correlation_low: Finite | None = None
    """The lower end of its 95 % interval."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """The progress of a phase, which each checkpoint saves as JSON."""

    step: Whole
    """The last step whose update is done. Steps up to 0 warm the critic up."""
    kl_coef: NonNegative
    pending_metrics: Annotated[dict[str, float] | None, Field(alias="unreported")] = None
    """The metrics of that step, until it has been validated and reported; `unreported` in files."""
    num_sampled_tokens: Count = 0
    """Tokens sampled in training, without validation."""
    num_warmup_tokens: Count = 0
    """Those of them that were sampled in the critic's warm-up."""
    num_responses: Count = 0
    """Responses sampled, validation included."""
    num_validation_tokens: Count = 0
    wall_s: NonNegative = 0.0
    """The time spent on the steps so far, without interruptions."""
    monitored: dict[Band, list[Count]] = field(default_factory=dict[Band, list[int]])
    """What LASER-D reads of the last validation."""
    history: list[Validation] = field(default_factory=list[Validation])
    first_accuracies: dict[str, Annotated[Finite, Field(ge=0, le=1)]] = field(default_factory=dict[str, float])
    """The accuracy of each validation problem when the phase began."""
    best: Validation = field(default_factory=lambda: Validation(step=0, accuracy=0.0, mean_tokens=0.0))
    best_checkpoint: Count = 0
    """The number of the best checkpoint."""
    problem_ids: Annotated[list[str], Field(alias="asked")] = field(default_factory=list[str])
    """Ids of all problems used in training, in the order of first use; `asked` in files."""
    warned: list[str] = field(default_factory=list[str])
    ended: bool = False

    def count(self, groups: Iterable[RolloutGroup]) -> None:
        """Count what was sampled for a step."""
        for group in groups:
            if group.problem.problem_id not in self.problem_ids:
                self.problem_ids.append(group.problem.problem_id)
            self.num_responses += len(group.rollouts)
            self.num_sampled_tokens += sum(rollout.completion.num_tokens for rollout in group.rollouts)

    @property
    def next_action(self) -> NextAction:
        if self.ended:
            return NextAction.NONE
        if not self.history:
            return NextAction.INITIAL_VALIDATION
        return NextAction.STEP if self.pending_metrics is None else NextAction.CONCLUDE_STEP

    def to_json(self) -> dict[str, Any]:
        return _ADAPTER.dump_python(self, by_alias=True)

    @staticmethod
    def from_json(values: Any) -> "Progress":
        """Return the saved progress. Raises ValueError when `values` are not one."""
        progress = _ADAPTER.validate_python(values)
        if progress.history and not progress.first_accuracies:
            raise ValueError("no accuracies of single problems that later ones are measured against")
        return progress

    def check(self, *, first_step: int, last_step: int, problem_ids: Container[str], metrics: Iterable[str]) -> None:
        """Raise ValueError unless this is the progress of a phase with these steps, on problems with these ids.
        `metrics`: those that every step has."""
        if not first_step <= self.step <= last_step:
            raise ValueError(f"step {self.step} is none of {first_step} to {last_step}")
        if not self.history:
            raise ValueError("no validation that later ones are measured against")
        if unknown := [problem_id for problem_id in self.problem_ids if problem_id not in problem_ids]:
            raise ValueError(f"'{unknown[0][:50]}' is no problem of this phase")
        if (pending := self.pending_metrics) is not None and (missing := [name for name in metrics if name not in pending]):
            raise ValueError(f"the metrics of step {self.step} lack {missing[0]}")


_ADAPTER = TypeAdapter(Progress)

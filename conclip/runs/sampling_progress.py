"""The progress of sampling, which displays show while a batch runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from conclip.types import Outcome

MIN_SHARE_FOR_ETA = 0.1
"""The share of a batch that must be finished before its speed predicts the time left: the first responses arrive late, all
at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """The batches that are sampled before and after a batch. The default is a batch that stands alone."""

    num_before: int = 0
    """Responses of earlier batches, those that existed already included."""
    num_after: int = 0
    """Responses of later batches."""
    num_sampled: int = 0
    """Responses of earlier batches that this process sampled."""
    seconds: float = 0.0
    """Time that sampling those took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingProgress:
    """The progress of one batch of responses."""

    label: str
    num_finished: int
    num_total: int
    num_tokens: int
    tokens_per_s: float
    mean_tokens: float
    """Mean length of the finished responses."""
    outcomes: Mapping[Outcome, int]
    """Responses graded so far, by outcome."""
    seconds: float
    """Time since the batch began."""
    context: BatchContext = BatchContext()

    @property
    def seconds_left(self) -> float | None:
        """Return the time until the last batch ends, at the speed of this batch and the earlier ones; None while fewer than
        `MIN_SHARE_FOR_ETA` of this batch's size are finished."""
        sampled, seconds = self.context.num_sampled + self.num_finished, self.context.seconds + self.seconds
        left = self.num_total - self.num_finished + self.context.num_after
        return seconds * left / sampled if sampled >= self.num_total * MIN_SHARE_FOR_ETA else None

    @property
    def overall_finished(self) -> int:
        """Return the finished responses of all batches."""
        return self.context.num_before + self.num_finished

    @property
    def overall_total(self) -> int:
        """Return the responses of all batches."""
        return self.context.num_before + self.num_total + self.context.num_after

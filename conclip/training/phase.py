"""The inputs and the result of one training phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from conclip.config.groups import PhaseConfig
from conclip.curriculum.selection import Selection
from conclip.training.progress import Validation
from conclip.types import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseInputs:
    """What a phase starts from, besides the config of the run."""

    stage: str
    """The name of the stage in the recipe."""
    settings: PhaseConfig
    model_path: Path
    selection: Selection
    """The problems to train on, and the reserve for refresh."""
    validation: Sequence[Problem]
    key: str
    """The hash of all inputs; the phase resumes from a checkpoint that has the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The result of a phase. All but the checkpoint is saved as JSON."""

    checkpoint: Path
    best: Validation
    history: tuple[Validation, ...]
    monitors: Mapping[str, Mapping[str, float]]
    """The summary of each monitor over the steps (`summary.summarise_steps`)."""
    problem_ids: Annotated[tuple[str, ...], Field(alias="asked")]
    """Ids of all problems used in training, in the order of first use; `asked` in files."""
    num_responses: int
    """Responses sampled in the whole phase, validation included."""
    num_tokens: int

"""Recovery of a phase after a signal: its progress, models and order of problems change together, are saved together and
resume together from a checkpoint."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conclip.curriculum.order import ProblemOrder, Refresher
from conclip.errors import UserError, explain
from conclip.redact import one_line
from conclip.runs.interrupts import deferred
from conclip.runs.run import Run
from conclip.training.checkpoint import Checkpoints, PhaseState, copied, save_model
from conclip.training.learner import Learner
from conclip.training.monitors import REPORTED
from conclip.training.progress import Due, Progress
from conclip.types import Problem


class Recovery:
    """The state of one phase. Everything that alters it runs inside `change`; it can be saved only between two changes."""

    def __init__(
        self,
        stage: str,
        run: Run,
        *,
        progress: Progress,
        learner: Learner,
        order: ProblemOrder,
        refresher: Refresher | None,
        checkpoints: Checkpoints,
        tokenizer: PreTrainedTokenizerBase,
        known: Mapping[str, Problem],
        earlier: Sequence[str],
        last_step: int,
        copies: bool,
    ) -> None:
        """Start from `progress`. `known`: the problems that the phase may train on, by id; `earlier`: questions that the
        model was trained on before. `copies`: save copies, so that training may continue meanwhile."""
        self.progress = progress
        self._stage, self._run, self._learner, self._order, self._refresher = stage, run, learner, order, refresher
        self._checkpoints, self._tokenizer, self._known, self._earlier = checkpoints, tokenizer, known, earlier
        self._first_step, self._last_step, self._copies = progress.step, last_step, copies
        self._whole: dict[str, Any] | None = None
        """The state after the last change; None during a change, and before the first."""
        self._saved: dict[str, Any] | None = None
        """The state in the newest checkpoint."""
        self._began = time.monotonic()

    @property
    def number(self) -> int:
        """Return the steps done, the critic's warm-up included: the number of a checkpoint made now."""
        return self.progress.step - self._first_step

    @contextmanager
    def change(self) -> Iterator[None]:
        """Complete a change of the phase's state before a signal takes effect. What a step samples before its change is not
        part of the state."""
        with deferred():
            self._whole = None
            yield
            now = time.monotonic()
            self.progress.wall_s, self._began = self.progress.wall_s + now - self._began, now
            self._whole = {
                "progress": self.progress.to_json(),
                "order": self._order.state_dict(),
                "refresher": self._refresher.state_dict() if self._refresher else None,
                "learner": self._learner.state(),
            }

    def save(self, *, due: bool = True) -> None:
        """Save a checkpoint of the state after the last change. `due`: on schedule."""
        assert self._whole is not None
        self._checkpoints.wait()  # first, so that only one set of copies exists at a time
        self._run.sync()
        progress = Progress.from_json(self._whole["progress"])
        keep = copied if self._copies else dict[str, Tensor]
        write_model = partial(
            save_model,
            policy=self._learner.backend.policy,
            weights=keep(self._learner.backend.policy.state_dict()),
            tokenizer=self._tokenizer,
            problems=[self._known[problem_id] for problem_id in progress.asked],
            earlier=self._earlier,
        )
        state = PhaseState(
            number=progress.step - self._first_step,
            best=progress.best_checkpoint,
            values=self._whole,
            tensors=keep(self._learner.backend.state()),
        )
        self._checkpoints.save(state, write_model, due=due)
        self._saved = self._whole

    def save_interrupted(self) -> None:
        """Save the state for the next start, after a signal."""
        if self._whole is None:
            self._run.say(f"{self._stage}: stopped where there is nothing new to save")
            return
        if self._whole is not self._saved:
            self.save(due=False)
        self._checkpoints.wait()
        self._run.say(f"{self._stage}: stopped; step {self._whole['progress']['step']} is saved")

    def restore(self) -> None:
        """Restore the newest checkpoint, if there is one. Raises UserError for one of another phase."""
        state = self._checkpoints.newest()
        if state is None:
            return
        values = state.values
        try:
            self.progress = now = Progress.from_json(values["progress"])
        except (ValueError, KeyError, TypeError) as error:
            self._run.warn(
                f"{self._stage} starts anew: its checkpoint is of another version, or damaged ({one_line(str(error))})"
            )
            return
        folder = self._checkpoints.path(state.number)
        try:
            now.check(first_step=self._first_step, last_step=self._last_step, known=self._known, needed=REPORTED)
            if (self.number, now.best_checkpoint) != (state.number, state.best):
                raise ValueError(f"its step is {now.step} and its best checkpoint {now.best_checkpoint}")
            self._learner.load_state(values["learner"])
            self._learner.backend.load_state(folder, state.tensors)
            self._order.load_state_dict(values["order"], self._known)
            if self._refresher is not None:
                self._refresher.load_state_dict(values["refresher"], self._known)
        except Exception as error:  # libraries raise anything over a file of any content
            if explain(error) is not None:
                raise
            raise UserError(
                f"'{folder}' is whole, but no checkpoint of this phase ({type(error).__name__}: {one_line(str(error))}); "
                "remove it, or set resume=never"
            ) from error
        self._run.forget_stage(self._stage, after_step=now.step - (now.due is Due.REPORT))
        self._whole = self._saved = dict(values)
        self._run.say(f"{self._stage}: goes on after step {now.step}")

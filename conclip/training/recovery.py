"""Recovery of a phase after a signal: its progress, models and order of problems change together, are saved together and
resume together from a checkpoint."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from conclip.cluster.ranks import RankDied
from conclip.config.schema import LearnConfig
from conclip.curriculum.order import ProblemOrder, Refresher
from conclip.errors import UserError, explain
from conclip.problems.overlap import trained_on
from conclip.redact import one_line
from conclip.rollout.session import Runtime
from conclip.runs.interrupts import deferred
from conclip.training.checkpoint import TRAINING, Checkpoints, PhaseState, copied, save_model
from conclip.training.learner import Learner
from conclip.training.monitors import REPORTED
from conclip.training.phase import PhaseInputs
from conclip.training.progress import NextAction, Progress


class Recovery:
    """The state of one phase. Everything that alters it runs inside `change`; it can be saved only between two changes."""

    def __init__(
        self,
        phase: PhaseInputs,
        config: LearnConfig,
        runtime: Runtime,
        learner: Learner,
        order: ProblemOrder,
        refresher: Refresher | None,
    ) -> None:
        self._stage, self._run = phase.stage, runtime.run
        self._learner, self._order, self._refresher = learner, order, refresher
        self._first_step, self._last_step = -config.algo.critic_warmup_steps, phase.settings.num_steps
        ids = [problem.problem_id for problem in phase.selection.problems]
        self.progress = Progress(step=self._first_step, kl_coef=config.algo.kl_coef, problem_ids=ids)
        self._in_background = config.trainer.save_in_background
        folder = runtime.run.folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        self.checkpoints = Checkpoints(
            folder / phase.stage,
            key=phase.key,
            keep_last=config.trainer.keep_last,
            in_background=self._in_background,
            warn=runtime.run.warn,
        )
        assert runtime.tokenizer is not None
        self._tokenizer, self._earlier_questions = runtime.tokenizer, trained_on(phase.model_path)
        self._problems = phase.selection.problems_by_id
        self._state: dict[str, Any] | None = None
        """The state after the last change; None during a change, and before the first."""
        self._saved_state: dict[str, Any] | None = None
        """The state in the newest checkpoint."""
        self._began = time.monotonic()

    @property
    def number(self) -> int:
        """Return the steps done, the critic's warm-up included: the number of a checkpoint made now."""
        return self.progress.step - self._first_step

    @contextmanager
    def change(self, *, can_resume: bool = True) -> Iterator[None]:
        """Complete a change of the phase's state before a signal takes effect. What a step samples before its change is not
        part of the state. `can_resume`: nothing has been sampled ahead with weights that the state no longer has."""
        with deferred():
            self._state = None
            yield
            now = time.monotonic()
            self.progress.wall_s, self._began = self.progress.wall_s + now - self._began, now
            if not can_resume:
                return
            self._state = {
                "progress": self.progress.to_json(),
                "order": self._order.state_dict(),
                "refresher": self._refresher.state_dict() if self._refresher else None,
                "learner": self._learner.state(),
            }

    def save(self, *, scheduled: bool = True) -> None:
        """Save a checkpoint of the state after the last change. `scheduled`: not because of a signal."""
        assert self._state is not None
        self.checkpoints.wait()  # first, so that only one set of copies exists at a time
        self._run.sync()
        progress = Progress.from_json(self._state["progress"])
        models, ranks = self._learner.backend.models, self._learner.backend.ranks
        several = ranks.size > 1
        # training changes the tensors while a checkpoint is written in the background; those of several ranks were gathered
        keep = copied if self._in_background and not several else dict[str, Tensor]
        write_model = partial(
            save_model,
            write=partial(models.write, saved=keep(self._learner.saved())),
            tokenizer=self._tokenizer,
            problems=[self._problems[problem_id] for problem_id in progress.problem_ids],
            earlier=self._earlier_questions,
        )
        state = PhaseState(
            number=progress.step - self._first_step,
            best=progress.best_checkpoint,
            values=self._state,
            write_tensors=self._learner.write_tensors if several else partial(ranks.write, keep(self._learner.tensors())),
            at_once=several,
        )
        self.checkpoints.save(state, write_model, scheduled=scheduled)
        self._saved_state = self._state

    def save_interrupted(self) -> None:
        """Save the state for the next start, after a signal."""
        whence = "its beginning" if self._saved_state is None else "the last checkpoint"
        if self._state is None:
            self._run.say(f"{self._stage}: stopped where nothing can be saved; the next start goes on from {whence}")
            return
        if self._state is not self._saved_state:
            try:
                self.save(scheduled=False)
            except RankDied as error:  # the signal counts, not that ranks could be started again
                obstacle = f"nothing can be saved ({error})"
                self._run.say(f"{self._stage}: stopped, and {obstacle}; the next start goes on from {whence}")
                return
        self.checkpoints.wait()
        self._run.say(f"{self._stage}: stopped; step {self._state['progress']['step']} is saved")

    def restore(self) -> None:
        """Restore the newest checkpoint, if there is one. Raises UserError for one of another phase."""
        head = self.checkpoints.newest()
        if head is None:
            return
        values = head["values"]
        try:
            self.progress = progress = Progress.from_json(values["progress"])
        except (ValueError, KeyError, TypeError) as error:
            self._run.warn(
                f"{self._stage} starts anew: its checkpoint is of another version, or damaged ({one_line(str(error))})"
            )
            return
        folder = self.checkpoints.path(head["number"])
        try:
            steps = {"first_step": self._first_step, "last_step": self._last_step}
            progress.check(**steps, problem_ids=self._problems, metrics=REPORTED)
            if (self.number, progress.best_checkpoint) != (head["number"], head["best"]):
                raise ValueError(f"its step is {progress.step} and its best checkpoint {progress.best_checkpoint}")
            self._learner.load(values["learner"], folder, folder / TRAINING)
            self._order.load_state_dict(values["order"], self._problems)
            if self._refresher is not None:
                self._refresher.load_state_dict(values["refresher"], self._problems)
        except Exception as error:  # libraries raise anything over a file of any content
            if isinstance(error, UserError) or explain(error) is not None:
                raise
            raise UserError(
                f"'{folder}' is whole, but no checkpoint of this phase ({type(error).__name__}: {one_line(str(error))}); "
                "remove it, or set resume=never"
            ) from error
        self._run.remove_metrics(self._stage, after_step=progress.step - (progress.next_action is NextAction.CONCLUDE_STEP))
        self._state = self._saved_state = dict(values)
        self._run.say(f"{self._stage}: goes on after step {progress.step}")

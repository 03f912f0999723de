"""The responses that a phase samples: those of each step, now or ahead of it, and those of its validations."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from conclip.config.schema import LearnConfig
from conclip.curriculum.order import ProblemOrder
from conclip.rollout.engine import WeightsLost
from conclip.rollout.session import Runtime
from conclip.runs.interrupts import strike
from conclip.training.experience import has_signal
from conclip.training.learner import Learner
from conclip.training.length_rewards import Monitored, make_shaper
from conclip.training.phase import PhaseInputs
from conclip.training.rewards import reward_group
from conclip.types import Problem, RolloutGroup, SamplingSpec

MAX_RESENDS = 4
"""How often the same weights are sent, or the same requests sampled, when engines die of their weights."""

LOOK_EVERY_S = 0.2
"""How soon a signal ends the wait for what is being sampled ahead."""


class StaleEngine(RuntimeError):
    """The engine sampled with other weights than those it was given last; its responses must not be trained on."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The responses of one step."""

    groups: list[RolloutGroup]
    """those that train, with rewards"""
    everything: list[RolloutGroup]
    """in the order of sampling, with what dynamic sampling replaced"""
    steps_behind: int
    """how many steps have trained the policy since"""


class Sampler:
    """Samples what one phase trains and validates on, with the weights that it gives to the engine."""

    def __init__(
        self, phase: PhaseInputs, config: LearnConfig, runtime: Runtime, learner: Learner, order: ProblemOrder
    ) -> None:
        self._stage, self._phase, self._config, self._algo = phase.stage, phase.settings, config, config.algo
        self._runtime, self._learner, self._order = runtime, learner, order
        self._version = runtime.engine.policy_version
        """The version of the weights that the engine must sample with."""
        self._shaper = make_shaper(config.length)
        self._thread = ThreadPoolExecutor(1, "sampling ahead")
        self._ahead: Future[Sampled] | None = None
        self._order_before: dict[str, Any] = {}
        """The order's state before it drew what is being sampled ahead."""
        self._problems = phase.selection.problems_by_id

    @property
    def is_ahead(self) -> bool:
        """Return whether responses of the next step are there, or being sampled."""
        return self._ahead is not None

    def push_weights(self) -> None:
        """Make the engine sample from the policy, after what it is sampling ahead; once more where engines died as they were
        sent the weights. Raises what ended the sampling ahead."""
        self.wait()
        error = None if self._ahead is None else self._ahead.exception()
        if isinstance(error, WeightsLost):  # `take` samples the same problems again
            self._order.load_state_dict(self._order_before, self._problems)
        elif error is not None:
            raise error
        for tries_left in reversed(range(MAX_RESENDS)):
            self._version = self._runtime.engine.policy_version + 1
            try:
                return self._learner.push(self._runtime.engine, self._version)
            except WeightsLost as error:
                if not tries_left:
                    raise
                self._runtime.run.warn(f"{error}; they are sent again")

    def take(self, step: int, spec: SamplingSpec, monitored: Monitored) -> Sampled:
        """Return the step's responses: those sampled ahead, or else new ones. `monitored`: what LASER-D reads of the last
        validation."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._step(step, spec, monitored, self.responses)
        try:
            return ahead.result()
        except WeightsLost as error:
            self._runtime.run.warn(f"{error}; step {step} is sampled anew, with the weights of now")
            return self._step(step, spec, monitored, self.responses)

    def begin(self, step: int, spec: SamplingSpec, monitored: Monitored) -> None:
        """Begin to sample the responses of a coming step with the weights that the engine has, in the background."""
        self._order_before = self._order.state_dict()
        self._ahead = self._thread.submit(self._step, step, spec, monitored, self._runtime.sample_groups, 1)

    def wait(self) -> None:
        """Wait until nothing is being sampled ahead. A signal ends it."""
        if self._ahead is not None:
            with self._runtime.stopwatch.part("generate"):
                while wait([self._ahead], LOOK_EVERY_S).not_done:
                    strike()

    def close(self) -> None:
        """Begin nothing more. What is being sampled ahead ends by itself, or with the engine."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _step(
        self,
        step: int,
        spec: SamplingSpec,
        monitored: Monitored,
        sample: Callable[..., list[RolloutGroup]],
        steps_behind: int = 0,
    ) -> Sampled:
        """Sample a step's groups by `sample`. Dynamic sampling replaces groups without a training signal by new ones, for
        `dynamic_sampling_rounds` rounds (DAPO, Yu et al. 2025, section 3.2)."""

        def new(number: int, *seed_parts: int | str) -> list[RolloutGroup]:
            problems, label = self._order.draw(number), f"{self._stage} step {step}"
            groups = sample(label, problems, spec, self._phase.group_size, self._stage, step, *seed_parts)
            versions = {rollout.completion.policy_version for group in groups for rollout in group.rollouts}
            if versions != {self._version}:
                raise StaleEngine(f"engine sampled with policy versions {sorted(versions)}, it was given {self._version}")
            return [reward_group(group, self._config.reward, self._shaper, monitored) for group in groups]

        wanted, rounds = self._phase.problems_per_step, self._algo.dynamic_sampling_rounds
        groups = new(wanted)
        everything = list(groups)
        for extra in range(rounds):
            kept = self._with_signal(groups)
            if len(kept) == wanted:
                break
            more = new(wanted - len(kept), "extra", extra)
            groups, everything = kept + more, everything + more
        if rounds:
            groups = self._with_signal(groups) or groups
        return Sampled(groups, everything, steps_behind)

    def _with_signal(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        """Return the groups that give a training signal."""
        train_on_truncated = self._algo.train_on_truncated
        return [group for group in groups if has_signal(group, train_on_truncated=train_on_truncated)]

    def responses(
        self, label: str, problems: Sequence[Problem], spec: SamplingSpec, number: int, *seed_parts: int | str
    ) -> list[RolloutGroup]:
        """Return groups of responses; sampled anew where an engine has lost the policy's weights meanwhile."""
        for tries_left in reversed(range(MAX_RESENDS)):
            try:
                return self._runtime.sample_groups(label, problems, spec, number, *seed_parts)
            except WeightsLost as error:
                if not tries_left:
                    raise
                self._runtime.run.warn(f"{error}; they are sent again, and what was being sampled is sampled anew")
                self._runtime.engine.abort()
                self.push_weights()
        raise AssertionError("unreachable")

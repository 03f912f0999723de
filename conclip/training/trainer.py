"""The training loop. `Trainer._step` is the algorithm, in data order."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from conclip.algo.losses import next_kl_coef
from conclip.batch import collate
from conclip.config import LearnConfig, PhaseConfig
from conclip.identity import path_hash
from conclip.length_rewards import make_shaper, stage_limit
from conclip.overlap import trained_on
from conclip.rewards import reward_group
from conclip.runtime import Runtime
from conclip.seeding import python_stream, torch_stream
from conclip.selection import Selection
from conclip.training.checkpoint import save_checkpoint
from conclip.training.experience import kl_reward_share, make_experience
from conclip.training.learner import Learner, NonFiniteGradient
from conclip.training.monitors import MAX_SAMPLER_DRIFT, experience_metrics, rollout_metrics, step_warnings, summarise_steps
from conclip.training.order import ProblemOrder, make_refresher
from conclip.training.resume import RESUME, PhaseState, newest_state, save_state
from conclip.types import Outcome, Problem, RolloutGroup, SamplingSpec


class StaleEngine(RuntimeError):
    """The engine samples with other weights than the learner's: its data must not train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Result of one look at the validation problems."""

    step: int
    accuracy: float
    """Share of correct responses; grader errors are left out."""
    mean_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a phase hands on."""

    checkpoint: Path
    best: Validation
    history: tuple[Validation, ...]
    monitors: Mapping[str, Mapping[str, float]]
    """Summary of each monitor over the steps (`monitors.summarise_steps`)."""
    asked: tuple[str, ...]
    """Ids of all problems that trained."""


class Trainer:
    """Trains one phase on a fixed set of problems."""

    def __init__(
        self,
        stage: str,
        config: LearnConfig,
        phase: PhaseConfig,
        runtime: Runtime,
        *,
        model_path: Path,
        selection: Selection,
        validation: Sequence[Problem],
        key: str = "",
    ) -> None:
        """`key`: hash of everything the phase rests on; it goes on from a state that was saved with the same one."""
        self._stage, self._config, self._phase, self._runtime, self._run = stage, config, phase, runtime, runtime.run
        self._validation_problems = validation
        self._trained_on = trained_on(model_path)
        self._algo = config.algo
        self._shaper = make_shaper(config.length)
        self._kl_coef = config.algo.kl_coef
        self._monitor_tokens: list[int] = []
        self._steps: list[Mapping[str, float]] = []
        self._history: list[Validation] = []
        self._best = Validation(step=0, accuracy=0.0, mean_tokens=0.0)
        self._warned: set[str] = set()
        self._num_sampled_tokens = 0
        self.num_responses = 0  # sampled, validation included
        self._checkpoint = runtime.run.folder / "checkpoints" / f"{stage}-best"
        self._checkpoint.parent.mkdir(exist_ok=True)
        num_updates = phase.num_steps * config.algo.updates_per_rollout
        self._learner = Learner(model_path, config, num_updates=num_updates)
        self._order = ProblemOrder(selection.problems, python_stream(config.seed, stage, "order"))
        self._key, self._states = key, runtime.run.folder / RESUME / stage
        self._known = {choice.problem.problem_id: choice.problem for choice in (*selection.chosen, *selection.reserve)}
        self._asked = {problem.problem_id: problem for problem in selection.problems}
        self._refresher = make_refresher(self._order, selection, phase) if phase.refresh else None
        self._times: dict[str, float] = {}
        self._push_weights()

    def train(self) -> TrainResult:
        """Run the phase, from its last saved state if it has one. The best validated checkpoint is kept; a run whose
        accuracy degrades stops."""
        done = self._restore()
        if done is None:
            done = -self._algo.critic_warmup_steps
            self._run.forget_stage(self._stage)
            self._history.append(self._validate(0))
            self._best = self._history[0]
            self._save()
        stopped = improved = False
        for step in range(done + 1, self._phase.num_steps + 1):
            try:
                metrics = self._step(step)
            except NonFiniteGradient as error:
                self._run.warn(f"{self._stage} stops at step {step}: {error}; the best checkpoint so far is kept")
                break
            spent = self._num_sampled_tokens >= (self._phase.max_sampled_tokens or math.inf)
            last = step == self._phase.num_steps or (step > 0 and spent)
            if step > 0 and (step % self._config.trainer.validate_every == 0 or last):
                now = self._validate(step)
                improved = self._better(now)
                metrics |= {"validation/accuracy": now.accuracy, "validation/mean_tokens": now.mean_tokens}
                if improved:
                    self._best = now
                    self._save()
                self._history.append(now)
                stopped = now.accuracy < self._history[0].accuracy - self._phase.stop_accuracy_drop
            self._report(step, metrics)
            if stopped:
                began, ended = self._history[0].accuracy, self._history[-1].accuracy
                self._run.warn(
                    f"{self._stage} stops at step {step}: validation accuracy {ended:.3f} fell more than "
                    f"{self._phase.stop_accuracy_drop:g} below the {began:.3f} it began with"
                )
            if stopped or last:
                break
            if improved or step % self._config.trainer.save_every == 0:
                self._save_state(step)
                improved = False
        return TrainResult(
            checkpoint=self._checkpoint,
            best=self._best,
            history=tuple(self._history),
            monitors=summarise_steps(self._steps),
            asked=tuple(self._asked),
        )

    def _step(self, step: int) -> dict[str, float]:
        """One step of the algorithm. Steps up to 0 warm the critic up: the policy stays as it is."""
        self._times = {}
        algo = self._algo if step > 0 else dataclasses.replace(self._algo, critic_gae_lambda=1.0)
        with self._timed("rollout"):
            sampled = self._sample(step)
        groups = [reward_group(group, self._config.reward, self._shaper, self._monitor_tokens) for group in sampled]
        tokens = collate(groups, train_on_truncated=algo.train_on_truncated)
        with self._timed("score"):
            scores = self._learner.score(tokens)
        experience = make_experience(tokens, scores, algo, kl_coef=self._kl_coef)
        with self._timed("update"):
            random = torch_stream(self._config.seed, self._stage, "update", step)
            updated = self._learner.update(experience, random, kl_coef=self._kl_coef, train_policy=step > 0)
        with self._timed("push_weights"):
            self._push_weights()
        self._run.write_transcripts(self._stage, step, groups, self._config.trainer.transcripts_per_group)
        metrics = rollout_metrics(groups) | experience_metrics(experience) | updated | self._times
        metrics |= {"policy/kl_coef": self._kl_coef, "rollout/num_sampled_tokens": float(self._num_sampled_tokens)}
        if algo.kl == "reward":
            metrics["policy/kl_gradient_share"] = kl_reward_share(tokens, scores, algo, self._kl_coef)
        if self._refresher is not None:
            self._refresher.observe(sampled)
            metrics |= self._refresher.metrics()
        if algo.kl_target is not None:
            self._kl_coef = next_kl_coef(self._kl_coef, metrics["policy/kl_to_reference"], algo.kl_target)
        return metrics

    def _sample(self, step: int) -> list[RolloutGroup]:
        """The step's groups. With dynamic sampling, groups that are all right or all wrong (by the grader, whatever their
        rewards) are replaced by fresh ones, for so many rounds (DAPO, Yu et al. 2025, section 3.2)."""
        wanted, spec = self._phase.problems_per_step, self._sampling_spec(step)
        groups = self._sample_problems(step, spec, wanted)
        for extra in range(self._algo.dynamic_sampling_rounds):
            kept = _mixed(groups)
            if len(kept) == wanted:
                break
            groups = kept + self._sample_problems(step, spec, wanted - len(kept), "extra", extra)
        if self._algo.dynamic_sampling_rounds:
            groups = _mixed(groups) or groups
        return groups

    def _sample_problems(
        self, step: int, spec: SamplingSpec, num_problems: int, *seed_parts: int | str
    ) -> list[RolloutGroup]:
        problems = self._order.draw(num_problems)
        self._asked |= {problem.problem_id: problem for problem in problems}
        label = f"{self._stage} step {step}"
        groups = self._runtime.sample_groups(label, problems, spec, self._phase.group_size, self._stage, step, *seed_parts)
        completions = [rollout.completion for group in groups for rollout in group.rollouts]
        versions = {completion.policy_version for completion in completions}
        if versions != {self._version}:
            raise StaleEngine(f"engine sampled with policy versions {sorted(versions)}, the learner is at {self._version}")
        self._num_sampled_tokens += sum(completion.num_tokens for completion in completions)
        self.num_responses += len(completions)
        return groups

    def _sampling_spec(self, step: int) -> SamplingSpec:
        """How the step samples: as the config says, under ThinkPrune up to the limit of its stage."""
        spec, length = self._runtime.training_spec, self._config.length
        if length.kind != "thinkprune":
            return spec
        by_tokens = self._num_sampled_tokens / self._phase.max_sampled_tokens if self._phase.max_sampled_tokens else 0.0
        progress = max(0.0, (step - 1) / self._phase.num_steps, by_tokens)
        limit = stage_limit(length.limits, length.scale_tokens, progress)
        return dataclasses.replace(spec, max_tokens=min(spec.max_tokens, limit))

    def _push_weights(self) -> None:
        self._version = self._runtime.engine.policy_version + 1
        self._runtime.engine.update_weights(self._learner.weights(), self._version)

    def _validate(self, step: int) -> Validation:
        """The same responses' seeds each time, so that two looks differ by the policy alone."""
        runtime = self._runtime
        groups = runtime.sample_groups(
            f"{self._stage} validation",
            self._validation_problems,
            runtime.training_spec,
            self._config.trainer.validation_samples,
            "validation",
        )
        rollouts = [r for group in groups for r in group.rollouts]
        self.num_responses += len(rollouts)
        self._monitor_tokens = [r.completion.num_tokens for r in rollouts if r.grade.outcome is Outcome.CORRECT]
        judged = [r for r in rollouts if r.grade.outcome is not Outcome.GRADER_ERROR]
        result = Validation(
            step=step,
            accuracy=fmean(r.grade.outcome is Outcome.CORRECT for r in judged) if judged else 0.0,
            mean_tokens=fmean(r.completion.num_tokens for r in rollouts),
        )
        runtime.run.say(
            f"{self._stage} step {step:>3}  validation accuracy {result.accuracy:.3f}  length {result.mean_tokens:.1f}"
        )
        return result

    def _better(self, now: Validation) -> bool:
        best, first = self._best, self._history[0]
        if self._phase.keep_best == "accuracy":
            return (now.accuracy, -now.mean_tokens) > (best.accuracy, -best.mean_tokens)
        holds = now.accuracy >= first.accuracy - self._phase.max_accuracy_drop
        return holds and now.mean_tokens < best.mean_tokens

    def _save(self) -> None:
        tokenizer, earlier = self._runtime.tokenizer, self._trained_on
        assert tokenizer is not None
        save_checkpoint(
            self._checkpoint, self._learner.policy, tokenizer, problems=list(self._asked.values()), earlier=earlier
        )

    def _save_state(self, step: int) -> None:
        """Everything the phase needs to go on after this step."""
        tensors, learner = self._learner.state()
        values = {
            "learner": learner,
            "order": self._order.state_dict(),
            "refresher": self._refresher.state_dict() if self._refresher else None,
            "kl_coef": self._kl_coef,
            "num_sampled_tokens": self._num_sampled_tokens,
            "num_responses": self.num_responses,
            "monitor_tokens": self._monitor_tokens,
            "history": [dataclasses.asdict(point) for point in self._history],
            "best": dataclasses.asdict(self._best),
            "best_checkpoint": path_hash(self._checkpoint),
            "asked": list(self._asked),
            "warned": sorted(self._warned),
        }
        save_state(self._states, self._key, PhaseState(step=step, values=values, tensors=tensors))

    def _restore(self) -> int | None:
        """Go back to the last saved state; returns its step, or None when there is none."""
        state = newest_state(self._states, self._key, self._run.warn) if self._key else None
        if state is None:
            return None
        values = state.values
        if path_hash(self._checkpoint) != values["best_checkpoint"]:
            self._run.warn(f"{self._stage} starts anew: '{self._checkpoint}' is not the best one of its saved state")
            return None
        self._learner.load_state(state.tensors, values["learner"])
        self._order.load_state_dict(values["order"], self._known)
        if self._refresher is not None:
            self._refresher.load_state_dict(values["refresher"], self._known)
        self._kl_coef, self._monitor_tokens = values["kl_coef"], values["monitor_tokens"]
        self._num_sampled_tokens, self.num_responses = values["num_sampled_tokens"], values["num_responses"]
        self._history = [Validation(**point) for point in values["history"]]
        self._best = Validation(**values["best"])
        self._asked = {problem_id: self._known[problem_id] for problem_id in values["asked"]}
        self._warned = set(values["warned"])
        self._run.forget_stage(self._stage, after_step=state.step)
        self._steps = self._run.stage_metrics(self._stage)
        self._push_weights()
        self._run.say(f"{self._stage}: goes on after step {state.step}")
        return state.step

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log_metrics(self._stage, step, metrics)
        self._run.say(
            f"{self._stage} step {step:>3}/{self._phase.num_steps}  accuracy {metrics['outcome/correct']:.3f}  "
            f"length {metrics['length/mean_tokens']:6.1f}  reward {metrics['reward/mean']:+.3f}  "
            f"kl {metrics.get('policy/approx_kl', 0.0):.4f}  drift {metrics['policy/sampler_drift_max']:.1e}  "
            f"{sum(self._times.values()):.1f} s"
        )
        self._steps.append(metrics)
        max_drift = self._config.trainer.max_sampler_drift or MAX_SAMPLER_DRIFT[self._config.model.dtype]
        for name, text in step_warnings(metrics, max_drift=max_drift).items():
            if name not in self._warned:
                self._run.warn(f"{self._stage} step {step}: {text} (said once)")
            self._warned.add(name)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._times[f"time/{name}_s"] = time.monotonic() - began


def _mixed(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Groups with both right and wrong responses, by the grader's verdicts."""
    return [group for group in groups if group.pass_rate not in (None, 0.0, 1.0)]

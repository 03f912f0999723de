"""The training loop. `Trainer._step` is the algorithm, in the order of the data flow."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from conclip.algo.losses import next_kl_coef
from conclip.config.recipe import checkpoint_folder
from conclip.config.schema import LearnConfig
from conclip.curriculum.order import ProblemOrder, make_refresher
from conclip.errors import MachineFailure, UserError
from conclip.evaluation.overthinking import correlation_of
from conclip.rollout.collect import TRAINING
from conclip.rollout.session import Runtime
from conclip.runs.interrupts import Interrupted, deferred
from conclip.seeding import python_stream, torch_stream
from conclip.stats import clustered_interval
from conclip.training.batch import ExperienceBatch, TokenBatch, collate, with_prompts
from conclip.training.experience import Scores, kl_reward_share, make_experience
from conclip.training.learner import Learner, NonFiniteGradient, Updated, make_learner
from conclip.training.length_rewards import monitored_lengths
from conclip.training.monitors import (
    MAX_SAMPLER_DRIFT,
    experience_metrics,
    mean_advantages,
    rollout_metrics,
    step_warnings,
)
from conclip.training.phase import PhaseInputs, TrainResult
from conclip.training.progress import NextAction, Progress, Validation
from conclip.training.recovery import Recovery
from conclip.training.sampling import Sampled, Sampler
from conclip.training.schedule import plan_step, share_spent, tokens_limit
from conclip.training.stopping import MIN_MIXED_PROBLEMS, accuracy_fall_low, fell_by_more, stop_reason
from conclip.training.summary import summarise_steps
from conclip.types import DEFAULT_TEMPLATE, Outcome, RolloutGroup, SamplingSpec, step_accuracy


class Trainer:
    """The training of one phase on selected problems."""

    def __init__(
        self,
        phase: PhaseInputs,
        config: LearnConfig,
        runtime: Runtime,
        make_learner: Callable[..., Learner] = make_learner,
    ) -> None:
        """Start the engine and load the models, by `make_learner`."""
        self._stage, self._phase, self._config, self._algo = phase.stage, phase.settings, config, config.algo
        self._runtime, self._run, self._validation_problems = runtime, runtime.run, phase.validation
        runtime.engine.sleep()  # it starts before the learner takes memory, as it measures what is free
        num_updates = self._phase.num_steps * config.algo.updates_per_rollout
        self._learner = make_learner(phase.model_path, config, num_updates=num_updates)
        self._candidates = [choice.problem for choice in phase.selection.candidates]
        self._order = ProblemOrder(phase.selection.problems, python_stream(config.seed, phase.stage, "order"))
        self._refresher = make_refresher(self._order, phase.selection, phase.settings) if phase.settings.refresh else None
        self._sampler = Sampler(phase, config, runtime, self._learner, self._order)
        self._recovery = Recovery(phase, config, runtime, self._learner, self._order, self._refresher)
        self._steps: list[Mapping[str, float]] = []
        """The metrics of the steps so far."""
        self._timed = runtime.stopwatch.part

    @property
    def _progress(self) -> Progress:
        return self._recovery.progress

    @property
    def wall_s(self) -> float:
        """Return the time spent on the phase so far, without interruptions."""
        return self._progress.wall_s

    def train(self) -> TrainResult:
        """Run the phase, from its newest checkpoint if it has one. The best validated checkpoint is kept; a phase whose
        accuracy degrades stops. A signal costs at most the step in progress; with trainer.sample_ahead, the steps since the
        last validation."""
        self._recovery.restore()
        self._rehearse()
        self._steps = self._run.stage_metrics(self._stage) if self._progress.history else []
        self._sampler.push_weights()
        try:
            if self._progress.next_action is NextAction.INITIAL_VALIDATION:
                self._begin()
            self._run.begin(self._stage, self._phase.num_steps, max(0, self._progress.step))
            self._runtime.stopwatch.take()
            while (action := self._progress.next_action) is not NextAction.NONE:
                if action is NextAction.STEP:
                    self._step(self._progress.step + 1)
                else:
                    self._conclude(self._progress.step, self._progress.pending_metrics or {})
        except NonFiniteGradient as error:
            step = self._progress.step
            self._run.warn(f"{self._stage} stops after step {step}: {error}; the best checkpoint so far is kept")
            self._sampler.wait()
        except Interrupted:
            with deferred():
                self._recovery.save_interrupted()
            raise  # what is being sampled ahead ends with the engine
        except BaseException:
            self._sampler.wait()  # the engine may go on with the phase's last checkpoint
            raise
        finally:
            with deferred():
                self._sampler.close()
                self._recovery.checkpoints.wait()
        checkpoint = self._run.folder / checkpoint_folder(self._stage)
        self._recovery.checkpoints.publish(self._progress.best_checkpoint, checkpoint, self._learner.complete)
        return TrainResult(
            checkpoint=checkpoint,
            best=self._progress.best,
            history=tuple(self._progress.history),
            monitors=summarise_steps(self._steps),
            problem_ids=tuple(self._progress.problem_ids),
            num_responses=self._progress.num_responses,
            num_tokens=self._progress.num_sampled_tokens + self._progress.num_validation_tokens,
        )

    def _step(self, step: int) -> None:
        """Run one step of the algorithm. Steps up to 0 warm up the critic and leave the policy unchanged."""
        progress, learner, algo = self._progress, self._learner, self._algo
        if step <= 0:
            algo = dataclasses.replace(algo, critic_gae_lambda=1.0)
        tokens_before = progress.num_sampled_tokens
        sampled = self._sampler.take(step, self._sampling_spec(step), progress.monitored)
        progress.count(sampled.everything)
        groups = sampled.groups
        if self._samples_ahead(step):
            self._sampler.begin(step + 1, self._sampling_spec(step + 1), progress.monitored)
        else:
            self._runtime.engine.sleep()
        tokens = collate(groups, train_on_truncated=algo.train_on_truncated)
        with self._timed("score"):
            scores = learner.score(tokens, self._asked(groups))
        with self._timed("advantages"):
            experience = make_experience(tokens, scores, algo, kl_coef=progress.kl_coef)
        tokens_so_far = (tokens_before, progress.num_sampled_tokens)
        plan = plan_step(step, self._phase, algo, tokens=tokens_so_far, tokens_of_warmup=progress.num_warmup_tokens)
        with self._recovery.change(can_resume=not self._sampler.is_ahead):
            with self._timed("update"):
                random = torch_stream(self._config.seed, self._stage, "update", step)
                updated = learner.update(experience, random, kl_coef=progress.kl_coef, train_policy=step > 0, plan=plan)
            with self._timed("push_weights"):
                self._sampler.push_weights()
            metrics = self._observe(step, sampled, tokens, scores, experience, updated)
            if algo.kl_target is not None and step > 0:
                kl = metrics.get("policy/kl_to_reference", 0.0)
                progress.kl_coef = next_kl_coef(progress.kl_coef, kl, algo.kl_target)
            if step <= 0:
                progress.num_warmup_tokens = progress.num_sampled_tokens
            progress.step, progress.pending_metrics = step, metrics | self._times()

    def _asked(self, groups: Sequence[RolloutGroup]) -> TokenBatch | None:
        """Return the responses after the prompts that ask for brevity, where a teacher sees those; else None."""
        if not self._algo.has_teacher:
            return None
        prompts = self._runtime.prompts[self._algo.teacher_prompt, DEFAULT_TEMPLATE].token_ids
        return collate(with_prompts(groups, prompts), train_on_truncated=self._algo.train_on_truncated)

    def _observe(
        self,
        step: int,
        sampled: Sampled,
        tokens: TokenBatch,
        scores: Scores,
        experience: ExperienceBatch,
        updated: Updated,
    ) -> dict[str, float]:
        """Write the step's transcripts, show its outcomes to the refresher and return its metrics."""
        progress, algo, groups = self._progress, self._algo, sampled.groups
        advantages, per_group = mean_advantages(experience).tolist(), self._config.trainer.transcripts_per_group
        self._run.write_transcripts(self._stage, step, groups, advantages, per_group)
        experience = dataclasses.replace(experience, old_logprobs=updated.old_logprobs)
        of_experience = experience_metrics(experience, bootstraps_truncated=algo.truncated_bootstrap == "value")
        metrics = rollout_metrics(sampled.everything) | of_experience | updated.stats
        metrics |= {"policy/kl_coef": progress.kl_coef, "rollout/num_sampled_tokens": float(progress.num_sampled_tokens)}
        if self._config.trainer.sample_ahead:
            metrics["rollout/steps_behind"] = float(sampled.steps_behind)
        if algo.kl == "reward":
            metrics["policy/kl_gradient_share"] = kl_reward_share(tokens, scores, algo, progress.kl_coef)
        if self._refresher is not None:
            self._refresher.observe(groups)
            metrics |= self._refresher.metrics()
        return metrics

    def _conclude(self, step: int, metrics: dict[str, float]) -> None:
        """Report a step, validate and save where scheduled, and decide whether the phase ends."""
        progress, phase, trainer = self._progress, self._phase, self._config.trainer
        last = self._is_last(step)
        scheduled = step > 0 and (step % trainer.validate_every == 0 or last)
        validation = None
        if scheduled:
            with self._timed("validate", whole=True):
                validation = self._validate(step)
        improved = validation is not None and self._is_better(validation)
        with self._recovery.change(can_resume=not self._sampler.is_ahead):
            stop = None
            if validation is not None:
                progress.history.append(validation)
                metrics |= {"validation/accuracy": validation.accuracy, "validation/mean_tokens": validation.mean_tokens}
                if improved:
                    progress.best, progress.best_checkpoint = validation, self._recovery.number
                stop = stop_reason(progress.history, phase)
            self._report(step, metrics)
            if stop is not None:
                (self._run.warn if stop.is_failure else self._run.say)(f"{self._stage} stops at step {step}: {stop.text}")
            progress.pending_metrics, progress.ended = None, last or stop is not None
        due = scheduled if trainer.sample_ahead else step % trainer.save_every == 0
        if improved or progress.ended or due:
            with self._timed("save"):
                self._recovery.save()

    def _begin(self) -> None:
        """Run and save the validation that later ones are compared with."""
        self._recovery.checkpoints.clear()
        self._run.remove_metrics(self._stage)
        first = self._validate(0)
        with self._recovery.change():
            self._progress.history, self._progress.best = [first], first
            self._progress.best_checkpoint = self._recovery.number
        self._recovery.save()

    def _samples_ahead(self, step: int) -> bool:
        """Return whether the responses of the step after this one are sampled while this one trains. Not beyond a
        validation, which needs the engine with the weights that this step will give."""
        trainer = self._config.trainer
        return trainer.sample_ahead and step > 0 and step % trainer.validate_every != 0 and not self._is_last(step)

    def _is_last(self, step: int) -> bool:
        spent = self._progress.num_sampled_tokens >= (self._phase.max_sampled_tokens or math.inf)
        return step == self._phase.num_steps or (step > 0 and spent)

    def _sampling_spec(self, step: int) -> SamplingSpec:
        """Return the config's sampling settings with the token limit of this point in the phase."""
        spec, phase, so_far = self._runtime.training_spec, self._phase, self._progress
        spent = share_spent(phase, so_far.num_sampled_tokens, tokens_of_warmup=so_far.num_warmup_tokens)
        progress = max(0.0, (step - 1) / phase.num_steps, spent)
        return dataclasses.replace(spec, max_tokens=tokens_limit(phase.max_tokens_stages, spec.max_tokens, progress))

    def _rehearse(self) -> None:
        """Find out on a GPU, before anything is sampled, whether the largest update fits."""
        learner, token_ids = self._learner, self._runtime.prompts[TRAINING].token_ids
        learner.backend.rest()
        if learner.backend.device.type == "cuda":
            longest_prompt = max(len(token_ids[problem.problem_id]) for problem in self._candidates)
            learner.rehearse(longest_prompt + self._config.rollout.max_tokens)

    def _validate(self, step: int) -> Validation:
        """Validate the policy. Seeds are the same each time, so that two validations differ only by the policy."""
        runtime = self._runtime
        groups = self._sampler.responses(
            f"{self._stage} validation",
            self._validation_problems,
            runtime.training_spec,
            self._config.trainer.validation_samples,
            "validation",
        )
        rollouts = [r for group in groups for r in group.rollouts]
        self._progress.num_responses += len(rollouts)
        self._progress.num_validation_tokens += sum(r.completion.num_tokens for r in rollouts)
        self._progress.monitored = monitored_lengths(groups)
        judged = [r for r in rollouts if r.grade.outcome is not Outcome.GRADER_ERROR]
        if not judged:  # no accuracy, least of all 0
            what = (
                f"{self._stage}, step {step}: none of the {len(rollouts)} responses to validation problems could be graded"
            )
            if step == 0:
                raise UserError(f"{what}; check the answers of data.validation")
            raise MachineFailure(f"{what}; the same command resumes the run from the last checkpoint")
        accuracies = {g.problem.problem_id: rate for g in groups if (rate := g.pass_rate) is not None}
        if step == 0:
            self._progress.first_accuracies = accuracies
        result = Validation(
            step=step,
            accuracy=fmean(r.grade.outcome is Outcome.CORRECT for r in judged),
            accuracy_fall_low=accuracy_fall_low(self._progress.first_accuracies, accuracies) if step > 0 else None,
            mean_tokens=fmean(r.completion.num_tokens for r in rollouts),
            **_length_correlation(groups),
        )
        runtime.run.say(
            f"{self._stage} step {step:>3}  validation accuracy {result.accuracy:.3f}  length {result.mean_tokens:.1f}"
        )
        return result

    def _is_better(self, validation: Validation) -> bool:
        if self._phase.keep_best == "last":
            return True
        best, first = self._progress.best, self._progress.history[0]
        if self._phase.keep_best == "accuracy":
            return (validation.accuracy, -validation.mean_tokens) > (best.accuracy, -best.mean_tokens)
        fell = fell_by_more(first, validation, self._phase.max_accuracy_drop)
        return not fell and validation.mean_tokens < best.mean_tokens

    def _times(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, as metrics."""
        return {f"time/{name}_s": seconds for name, seconds in self._runtime.stopwatch.take().items()}

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        for name, seconds in self._times().items():  # of the validation and, after an interruption, of the new beginning
            metrics[name] = metrics.get(name, 0.0) + seconds
        self._run.log_metrics(self._stage, step, metrics)
        max_drift = self._config.trainer.max_sampler_drift or MAX_SAMPLER_DRIFT[self._config.model.dtype]
        limit = f"limit {max_drift:g}"
        if metrics.get("rollout/steps_behind"):
            max_drift, limit = math.inf, "one step behind"  # what a step changes is no error
        seconds = sum(value for name, value in metrics.items() if name.startswith("time/"))
        share = step_accuracy(metrics)
        self._run.say(
            f"{self._stage} step {step:>3}/{self._phase.num_steps}  accuracy {'-' if share is None else f'{share:.3f}'}  "
            f"length {metrics['length/mean_tokens']:6.1f}  reward {metrics['reward/mean']:+.3f}  "
            f"kl {metrics.get('policy/approx_kl', 0.0):.4f}  drift {metrics['policy/sampler_drift_mean']:.1e} "
            f"({limit})  {seconds:.1f} s"
        )
        self._steps.append(metrics)
        cuts_responses = self._phase.max_tokens_stages is not None
        for name, text in step_warnings(metrics, max_drift=max_drift, cuts_responses=cuts_responses).items():
            if name not in self._progress.warned:
                self._run.warn(f"{self._stage} step {step}: {text} (said once)")
                self._progress.warned.append(name)


def _length_correlation(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Return the correlation of length and correctness within groups, and its lower bound; nothing where too few groups have
    correct and other responses."""
    found = (correlation_of((r.grade.outcome, r.completion.num_tokens) for r in group.rollouts) for group in groups)
    correlations = [value for value in found if value is not None]
    if len(correlations) < MIN_MIXED_PROBLEMS:
        return {}
    mean, low, _ = clustered_interval(correlations)
    mean = min(1.0, max(-1.0, mean))  # rounding may take it a digit beyond
    return {"length_correlation": mean} | ({"length_correlation_low": low} if math.isfinite(low) else {})

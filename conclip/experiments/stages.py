"""The stages of a run: probing, training and evaluation. Each is recorded in the manifest and runs once.

A stage writes its results to files of the run folder and returns what it reads back from them, so that a stage that was
done before gives the same result as one that runs now.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from conclip.cluster.choose import make_launcher
from conclip.cluster.launch import Launcher
from conclip.config.groups import ClusterConfig, PhaseConfig, ProbeConfig
from conclip.config.machine import num_gpus
from conclip.config.recipe import (
    checkpoint_folder,
    evaluation_of,
    label,
    probe_rows_file,
    problems_file,
    rates_file,
    result_file,
    rows_file,
)
from conclip.config.schema import BaseConfig, LearnConfig
from conclip.curriculum.pass_rates import SCHEMA_VERSION as PASS_RATES_VERSION
from conclip.curriculum.pass_rates import (
    Band,
    PassRate,
    describe,
    max_responses,
    next_round,
    pass_rates,
    read_pass_rates,
    write_pass_rates,
)
from conclip.curriculum.selection import Choice, Selection
from conclip.errors import UserError
from conclip.evaluation.advice import advice
from conclip.evaluation.evaluate import evaluate
from conclip.evaluation.rows import read_rows
from conclip.evaluation.units import RowFile
from conclip.experiments.inputs import Inputs, model_identity
from conclip.grading.grader import GRADER_VERSION
from conclip.models.folder import model_hash
from conclip.problems.overlap import trained_on
from conclip.report.data import QUESTIONS
from conclip.report.probing import pass_rate_table
from conclip.rollout.session import TRAINING, Prompts, Runtime, open_endpoint, open_runtime
from conclip.rollout.shared_engine import SharedEngine
from conclip.runs.checked import read_as
from conclip.runs.files import read_object, settle, write_text
from conclip.runs.identity import digest, problems_hash, relevant, sampling_hash
from conclip.runs.manifest import Pipeline, StageOutput, stage_key
from conclip.runs.run import Run
from conclip.training.checkpoint import remove_training_state, save_model
from conclip.training.phase import PhaseInputs, TrainResult
from conclip.training.ranks import Learners, train
from conclip.training.rewards import describe_rewards
from conclip.training.summary import is_summary, summary_table
from conclip.training.warm_up import Example, boxed, choose_rows, fine_tune
from conclip.types import EvalRow, Outcome, Problem

CHOICE_KEYS = ("pass_rate_low", "pass_rate_high", "band_confidence", "num_problems", "problem_ids", "answers")
"""Keys of a phase that only select its problems; the hash of the problems covers them."""


class Stages:
    """The stages of one run. The engine starts with the first stage that has work to do."""

    def __init__(self, config: BaseConfig, inputs: Inputs, run: Run, prompts: Mapping[Path, Prompts]) -> None:
        """Prepare the stages. `prompts`: those of every problem of the run, by model folder."""
        self._config, self._inputs, self._run, self._prompts = config, inputs, run, prompts
        self._pipeline = Pipeline(run)
        self._open = ExitStack()
        self._runtime: Runtime | None = None
        self._loaded: Path | None = None
        self._engine = SharedEngine()
        self._made_launcher: Launcher | None = None
        self._learners = Learners(config.cluster if config.learning is not None else ClusterConfig(), self._launcher)

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self._learners.close()
        self._open.close()
        self._engine.close()
        if self._made_launcher is not None:
            self._made_launcher.close()

    def _launcher(self) -> Launcher:
        """Return what starts the run's further processes, made on first use."""
        if self._made_launcher is None:
            cluster, rollout = self._config.cluster, self._config.rollout
            of_engines = [rollout.tensor_parallel_size] * rollout.num_engines
            learns = self._config.learning is not None
            of_ranks = [1] * ((cluster.learner_ranks or 1) - 1) if learns else []
            self._made_launcher = make_launcher(cluster, of_engines + of_ranks, keeps_gpu=learns and num_gpus() > 0)
        return self._made_launcher

    def probe(self, name: str, model: Path, problems: Sequence[Problem], phase: PhaseConfig) -> list[PassRate]:
        """Return pass rates of the problems, measured until it is clear which lie in the phase's band."""
        config, settings = self._config, self._config.probing
        assert settings is not None
        title, file, responses = label(name), rates_file(name), probe_rows_file(name)
        band = Band(low=phase.pass_rate_low, high=phase.pass_rate_high)
        sampling = relevant(config, ("seed", "model", "rollout"))

        def work() -> StageOutput:
            runtime = self.runtime_with(model)
            rows = self._row_file(responses, name, model_hash(model))
            ordered = sample_in_rounds(title, runtime, problems, band, settings, rows)
            rows.finish(ordered)
            rates = pass_rates(ordered, band, model_hash=model_hash(model), sampling_hash=sampling_hash(config))
            write_pass_rates(self._run.folder / file, rates)
            return StageOutput(
                outputs=[file, responses, str(Path(responses).with_suffix(".parquet"))],
                numbers=_lengths(ordered),
                num_tokens=rows.num_sampled_tokens,
            )

        inputs = {
            "model": model_hash(model),
            "problems": problems_hash(problems),
            "sampling": sampling,
            "probe": [asdict(settings), asdict(band), PASS_RATES_VERSION],
            "grader": str(GRADER_VERSION),
        }
        self._pipeline.run_stage(name, inputs, work)
        rates = read_pass_rates(self._run.folder / file)
        rows = read_rows(self._run.folder / responses)
        self._run.say(f"{title}: {len(rates)} problems, {len(rows)} responses; {describe(rates)}")
        for sentence in advice(rows, f"rollout.max_tokens={config.rollout.max_tokens}").values():
            self._run.warn(f"{title}: {sentence}")
        self._run.show(pass_rate_table(title, rates, band))
        return rates

    def train(self, stage: str, phase: PhaseConfig, model: Path, selection: Selection) -> TrainResult:
        """Train one phase, starting from `model`."""
        config = self._config.learning
        assert config is not None
        history, inputs = result_file(stage), self._training_inputs(config, phase, model, selection)

        def work() -> StageOutput:
            runtime = self._shared()
            self._loaded = None  # from here on the engine has the learner's weights
            self._run.say(f"{stage}: {len(selection.problems)} problems, {phase.num_steps} steps")
            if note := selection.confidence_note(phase):
                self._run.say(f"{stage}: {note}")
            extraction = "lenient" if config.data.trains_by_verifier else config.rollout.extraction
            self._run.say(f"{stage}: {describe_rewards(config.reward, extraction)}")
            phase_inputs = PhaseInputs(
                stage=stage,
                settings=phase,
                model_path=model,
                selection=selection,
                validation=self._inputs.validation,
                key=stage_key(stage, inputs),
            )
            result, wall_s = train(phase_inputs, config, runtime, self._learners)
            self._run.write_json(history, _RESULT.dump_python(result, by_alias=True, exclude={"checkpoint"}), is_data=True)
            best = result.best
            return StageOutput(
                outputs=[str(result.checkpoint.relative_to(self._run.folder)), history],
                numbers={
                    "num_responses": result.num_responses,
                    "best_step": best.step,
                    "validation_accuracy": best.accuracy,
                    "validation_mean_tokens": best.mean_tokens,
                },
                num_tokens=result.num_tokens,
                wall_s=wall_s,
            )

        self._run.write_json(problems_file(stage), describe_selection(selection), is_data=True)
        self._pipeline.run_stage(stage, inputs, work)
        remove_training_state(self._run.folder / "checkpoints" / stage)
        result = _read_result(self._run.folder / history, self._run.folder / checkpoint_folder(stage))
        self._run.say(
            f"{stage}: kept step {result.best.step} (validation accuracy {result.best.accuracy:.3f}, "
            f"length {result.best.mean_tokens:.1f})"
        )
        self._run.show(summary_table(f"{stage}: monitors", result.monitors))
        return result

    def _training_inputs(self, config: LearnConfig, phase: PhaseConfig, model: Path, selection: Selection) -> dict[str, Any]:
        """Return everything that decides the result of a training stage."""
        sampled = relevant(config, ("seed", "model", "rollout", "algo", "reward", "length", "optim", "trainer"))
        del sampled["rollout"]["unit_responses"]  # a step's responses are one batch
        reserve = [choice.problem for choice in selection.reserve]
        return {
            "model": model_hash(model),
            "problems": problems_hash(selection.problems),
            "refresh": [problems_hash(reserve), _probe_counts(selection)] if phase.refresh else "",
            "validation": problems_hash(self._inputs.validation),
            "config": sampled,
            "phase": {name: value for name, value in asdict(phase).items() if name not in CHOICE_KEYS},
            "grader": str(GRADER_VERSION),
        }

    def warm_up(self, name: str, model: Path, probe: str) -> tuple[Path, set[str]]:
        """Fine-tune a model on its own responses to a probing stage that are right in any form, ended in a box. Returns the
        checkpoint and the ids of its problems. Raises UserError when no response is right."""
        config, settings = self._config.learning, self._config.warming_up
        assert config is not None and settings is not None
        rows = read_rows(self._run.folder / probe_rows_file(probe))
        chosen = choose_rows(rows, settings, config.seed)
        if not chosen:
            raise UserError(
                f"recipe.{name}: none of the {len(rows)} responses of {probe} is right in any form, so there is nothing to "
                "learn from; give data.pool easier problems, or take a stronger model"
            )
        target, prompts = self._run.folder / checkpoint_folder(name), self._prompts[self._inputs.model_path]
        problems = {p.problem_id: p for p in self._inputs.pool if p.problem_id in {row.problem_id for row in chosen}}

        def work() -> StageOutput:
            token_ids = prompts.by_variant[TRAINING].token_ids
            examples = [
                Example(problem=problems[row.problem_id], prompt_token_ids=token_ids[row.problem_id], response=boxed(row))
                for row in chosen
            ]
            if self._runtime is not None:
                self._runtime.rest()
                self._loaded = None
            learner, losses = fine_tune(model, config, settings, examples, prompts.tokenizer, self._learners.make)
            shown = list(problems.values())
            begun = target.with_name(target.name + ".part")
            for path in (begun, target):
                shutil.rmtree(path, ignore_errors=True)
            save_model(begun, learner.export, prompts.tokenizer, problems=shown, earlier=trained_on(model))
            settle(begun, target)
            self._learners.drop()
            return StageOutput(
                outputs=[str(target.relative_to(self._run.folder))],
                numbers={"first_loss": losses[0], "last_loss": losses[-1], "num_epochs": len(losses)},
                num_tokens=0,
            )

        inputs = {
            "model": model_hash(model),
            "examples": digest([(row.key, row.text) for row in chosen]),
            "config": [asdict(settings), relevant(config, ("seed", "model", "optim"))],
        }
        reason = "has a response that is right in some form"
        choices = tuple(Choice(problem=problem, reason=reason, rate=None) for problem in problems.values())
        self._run.write_json(problems_file(name), describe_selection(Selection(chosen=choices, reserve=())), is_data=True)
        numbers = self._pipeline.run_stage(name, inputs, work).numbers
        self._run.say(
            f"{name}: {numbers['num_epochs']:.0f} passes over {len(chosen)} responses to {len(problems)} problems; loss "
            f"{numbers.get('first_loss', nan):.3f} to {numbers.get('last_loss', nan):.3f} nats a token"
        )
        return target, set(problems)

    def evaluate(self, name: str, model: Path, *, evidence: bool = False) -> list[EvalRow]:
        """Evaluate one model on the test problems and return its rows. `evidence`: also as it is asked for brevity, and for
        less thinking or none."""
        settings = self._config.evaluation
        assert settings is not None
        conditions = settings.conditions
        if evidence:  # models that the run trains are asked as the one it begins with
            conditions = self._prompts.get(model, self._prompts[self._inputs.model_path]).evidence
        identity, file = self._identity(name, model), rows_file(name)

        def work() -> StageOutput:
            with self._opened(name, model) as runtime:
                write_questions(self._inputs.test, self._run.folder / QUESTIONS)
                row_file = self._row_file(file, name, identity)
                rows = evaluate(name, runtime, self._inputs.test, settings, row_file, conditions)
                return StageOutput(
                    outputs=[file, str(Path(file).with_suffix(".parquet")), QUESTIONS],
                    numbers=_lengths(rows) | {"share_correct": fmean(row.outcome is Outcome.CORRECT for row in rows)},
                    num_tokens=row_file.num_sampled_tokens,
                )

        inputs = {
            "model": identity,
            "problems": problems_hash(self._inputs.test),
            "config": relevant(self._config, ("seed", "model", "rollout", "eval")),
            "conditions": "" if conditions == settings.conditions else conditions,
            "grader": str(GRADER_VERSION),
        }
        self._pipeline.run_stage(evaluation_of(name), inputs, work)
        return read_rows(self._run.folder / file)

    def _row_file(self, file: str, model: str, identity: str) -> RowFile:
        return RowFile(self._run.folder / file, model=model, model_hash=identity, attempts=self._run.other_attempts())

    def _is_served(self, name: str) -> bool:
        return self._inputs.served_name is not None and name not in self._inputs.checkpoints

    def _identity(self, name: str, model: Path) -> str:
        """Return a string that identifies a model's weights."""
        return model_identity(self._config, self._inputs) if self._is_served(name) else model_hash(model)

    def _opened(self, name: str, model: Path) -> AbstractContextManager[Runtime]:
        """Return the open runtime for models of a run that trains, since they share one architecture; else a new one, with
        the engine of the model before where that fits."""
        if self._config.learning is not None:
            return nullcontext(self.runtime_with(model))
        if self._is_served(name):
            return open_endpoint(self._config, self._run, str(self._inputs.served_name), self._inputs.test)
        self._open.close()  # the engine of probes before; a device has room for one
        self._runtime = None
        return open_runtime(self._config, self._run, model, self._prompts[model], self._launcher, self._engine)

    def runtime_with(self, model: Path) -> Runtime:
        """Return the run's runtime, with this model's weights in its engine."""
        runtime = self._shared()
        if self._loaded != model:
            runtime.use_weights(model)
            self._loaded = model
        return runtime

    def _shared(self) -> Runtime:
        """Return the run's runtime, with whatever weights its engine has."""
        if self._runtime is None:
            self._engine.close()  # of evaluations before; a device has room for one
            start = self._inputs.model_path
            opened = open_runtime(self._config, self._run, start, self._prompts[start], self._launcher)
            self._runtime = self._open.enter_context(opened)
            self._loaded = start
        return self._runtime


def sample_in_rounds(
    label: str, runtime: Runtime, problems: Sequence[Problem], band: Band, settings: ProbeConfig, file: RowFile
) -> list[EvalRow]:
    """Sample responses in rounds until `next_round` requests no more. Returns their rows, problem by problem."""
    by_id = {problem.problem_id: problem for problem in problems}
    rows: dict[str, list[EvalRow]] = {problem_id: [] for problem_id in by_id}
    number = 0
    strata = {problem.problem_id: problem.stratum for problem in problems}
    while requested := next_round({key: _counts(group) for key, group in rows.items()}, strata, band, settings):
        number += 1
        tasks = [
            task
            for problem_id, count in requested.items()
            for task in runtime.tasks(
                TRAINING, [by_id[problem_id]], count, runtime.training_spec, label, first_sample=len(rows[problem_id])
            )
        ]
        left = max_responses(len(problems), settings) - len(tasks) - sum(map(len, rows.values()))
        for row in file.sample(runtime, f"{label}, round {number}", tasks, num_after=left):
            rows[row.problem_id].append(row)
    return [row for group in rows.values() for row in group]


def write_questions(problems: Sequence[Problem], path: Path) -> None:
    """Write the test problems for readers of the responses."""
    lines = [json.dumps({"schema": 1, **asdict(problem)}, ensure_ascii=False) for problem in problems]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _lengths(rows: Sequence[EvalRow]) -> dict[str, float]:
    return {"num_responses": len(rows), "mean_tokens": fmean(row.num_tokens for row in rows)}


def _counts(group: Sequence[EvalRow]) -> tuple[int, int, int]:
    """Return the numbers of (correct, judged, sampled) responses."""
    judged = [row for row in group if row.outcome is not Outcome.GRADER_ERROR]
    return sum(row.outcome is Outcome.CORRECT for row in judged), len(judged), len(group)


def _probe_counts(selection: Selection) -> list[tuple[int, int]]:
    """Return the (correct, sampled) counts of the probe that refresh starts from."""
    rates = [choice.rate for choice in selection.candidates]
    return [(rate.num_correct, rate.num_samples) for rate in rates if rate is not None]


def describe_selection(selection: Selection) -> dict[str, Any]:
    """Return the content of problems-<stage>.json: the problems, the reason for each, and the number of further
    candidates."""
    chosen = [{"problem_id": choice.problem.problem_id, "reason": choice.reason} for choice in selection.chosen]
    return {
        "problem_ids": [problem.problem_id for problem in selection.problems],
        "hash": problems_hash(selection.problems),
        "chosen": chosen,
        "num_reserve": len(selection.reserve),
    }


def _read_result(path: Path, checkpoint: Path) -> TrainResult:
    """Read the result of a training stage. Raises UserError when the file or the checkpoint is not what `Stages.train`
    writes: the manifest may be somebody else's."""
    result = read_as(_RESULT, read_object(path) | {"checkpoint": checkpoint}, f"'{path}'")
    if not checkpoint.is_dir() or not all(is_summary(name, values) for name, values in result.monitors.items()):
        raise UserError(f"'{path}' or '{checkpoint}' is damaged, or was not written by conclip; resume=never begins anew")
    return result


_RESULT = TypeAdapter(TrainResult)

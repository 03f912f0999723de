"""The plan of a run: its stages, which of them are done, and the estimated cost of the others."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from conclip.config.groups import EvalConfig, PhaseConfig, ProbeConfig
from conclip.config.recipe import BASE, StageConfig, evaluation_of, kind_of, measured_by
from conclip.config.schema import BaseConfig, LearnConfig
from conclip.curriculum.pass_rates import max_responses
from conclip.experiments.inputs import Inputs
from conclip.runs.attempts import attempts, find_attempt, lenders
from conclip.runs.manifest import StageRecord, changed_files, read_stages
from conclip.stats import chance_differences, problems_needed
from conclip.training.schedule import rows_per_group

if TYPE_CHECKING:
    from conclip.rollout.session import Prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """The size of one stage before it runs."""

    name: str
    num_responses: int
    """An upper bound, where no limit of tokens ends the stage; 0 for a warm-up, which samples nothing and whose time is not
    estimated."""
    max_tokens: int
    """The token limit of a response."""
    batch: int = 1
    """How many responses are sampled at once."""
    num_trained: int = 0
    """How many of the responses train."""
    num_counted: int = 0
    """How many of the responses count towards `max_sampled_tokens`: all but those of validation."""
    num_rounds: int = 1
    """How many times a step's responses are sampled at most: once, and again in each round of dynamic sampling."""
    max_sampled_tokens: int | None = None
    """The tokens after which training ends; None: it takes all of its steps."""

    def ended_by_tokens(self, mean_tokens: float) -> "PlannedStage":
        """Return what the limit of tokens leaves of the stage if responses have so many tokens: of its steps, as many as
        fit in without dynamic sampling."""
        if self.max_sampled_tokens is None or mean_tokens * self.num_counted <= self.max_sampled_tokens:
            return self
        counted = self.max_sampled_tokens / mean_tokens
        share = min(1.0, counted * self.num_rounds / self.num_counted)
        validation = share * (self.num_responses - self.num_counted)
        return replace(self, num_responses=math.ceil(counted + validation), num_trained=math.ceil(share * self.num_trained))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a run: a stage of the recipe, or the evaluation of one model."""

    name: str
    """The step's name in the manifest."""
    stage: StageConfig
    model: str
    """The name of the model that it starts from or evaluates."""


def steps_of(config: BaseConfig, inputs: Inputs) -> list[Step]:
    """Return the steps of the recipe, with evaluations model by model. Probing is left out where every training stage that
    would use its pass rates has problems named in the config, or earlier pass rates."""
    needless: dict[str, list[bool]] = {}
    """Whether the users of a probing stage have their problems or pass rates already."""
    for stage in config.recipe.values():
        if stage.rates is not None:
            given = stage.kind == "train" and (config.given_rates is not None or config.phase_of(stage).by_hand)
            needless.setdefault(stage.rates, []).append(given)
    steps: list[Step] = []
    measured = measured_by(config.recipe, inputs.names if config.learning is None else [BASE])
    for name, stage in config.recipe.items():
        if stage.kind == "eval":
            steps += [Step(name=evaluation_of(model), stage=stage, model=model) for model in measured[name]]
        elif not (name in needless and all(needless[name])):
            steps.append(Step(name=name, stage=stage, model=stage.model))
    return steps


def planned_stages(config: BaseConfig, inputs: Inputs, prompts: "Mapping[Path, Prompts]") -> list[PlannedStage]:
    """Return the size of each step."""
    planned: list[PlannedStage] = []
    for step in steps_of(config, inputs):
        if step.stage.kind == "probe" and config.probing is not None:
            planned.append(_probe(step.name, config, config.probing, inputs))
        elif step.stage.kind == "train" and config.learning is not None:
            planned.append(_training(step.name, config.learning, config.phase_of(step.stage), inputs))
        elif step.stage.kind == "warm_up":
            planned.append(PlannedStage(name=step.name, num_responses=0, max_tokens=0))
        elif config.evaluation is not None:
            own = len(config.evaluation.conditions)
            num_conditions = max((len(p.evidence) for p in prompts.values()), default=own) if step.stage.evidence else own
            planned.append(_evaluation(step.name, config, config.evaluation, inputs, num_conditions))
    return planned


def _probe(name: str, config: BaseConfig, probe: ProbeConfig, inputs: Inputs) -> PlannedStage:
    number = max_responses(len(inputs.pool), probe)
    batch = min(number, config.rollout.unit_responses)
    return PlannedStage(name=name, num_responses=number, max_tokens=config.rollout.max_tokens, batch=batch)


def _training(name: str, config: LearnConfig, phase: PhaseConfig, inputs: Inputs) -> PlannedStage:
    steps = phase.num_steps + config.algo.critic_warmup_steps
    num_rounds = 1 + config.algo.dynamic_sampling_rounds
    sampled = steps * phase.problems_per_step * phase.group_size * num_rounds
    num_validations = 1 + math.ceil(phase.num_steps / config.trainer.validate_every)
    validation = num_validations * len(inputs.validation) * config.trainer.validation_samples
    return PlannedStage(
        name=name,
        num_responses=sampled + validation,
        max_tokens=config.rollout.max_tokens,
        batch=phase.problems_per_step * phase.group_size,
        num_trained=steps * phase.problems_per_step * rows_per_group(config.algo, phase.group_size),
        num_counted=sampled,
        num_rounds=num_rounds,
        max_sampled_tokens=phase.max_sampled_tokens,
    )


def _evaluation(name: str, config: BaseConfig, settings: EvalConfig, inputs: Inputs, num_conditions: int) -> PlannedStage:
    per_condition = sum(settings.num_samples(problem.source, t) for problem in inputs.test for t in settings.temperatures)
    number = num_conditions * per_condition
    batch = min(number, config.rollout.unit_responses)
    return PlannedStage(name=name, num_responses=number, max_tokens=settings.max_tokens, batch=batch)


def power_lines(config: BaseConfig, inputs: Inputs) -> list[str]:
    """Return a line for each benchmark on which models will be compared and that has too few problems to show that accuracy
    was kept. It says how many it would take, for solve rates spread evenly over [0, 1]."""
    settings = config.evaluation
    if settings is None:
        return []
    measured = {step.model for step in steps_of(config, inputs) if step.stage.kind == "eval"}
    if len(measured) < 2 and len(settings.conditions) < 2:
        return []
    at_best = problems_needed([0.0], [1.0], settings.margin)
    lines: list[str] = []
    for benchmark, number in Counter(problem.source for problem in inputs.test).items():
        samples = min(settings.num_samples(benchmark, temperature) for temperature in settings.temperatures)
        needed = problems_needed(*chance_differences(samples), settings.margin)
        if number < needed:
            lines.append(
                f"power: {benchmark} has {number:,} problems x {samples}. To show with power 0.8 that accuracy is "
                f"kept within {100 * settings.margin:g} points takes about {needed:,} if training does not change it (solve "
                f"rates spread evenly), and {at_best:,} even if no response changes"
            )
    return lines


def plan_table(
    planned: Sequence[PlannedStage],
    home: Path,
    identity: str,
    model: str,
    *,
    from_scratch: bool,
    by_data_sheet: Callable[[PlannedStage], float] | None = None,
) -> Table:
    """Return a table of completed and remaining stages with their cost: tokens and seconds per response as in the newest
    stage of the same kind under this run's name or, failing that, under another name; one that was not resumed tells more.

    `model`: the identity of the model that the run begins with; only runs of the same one tell its cost. `from_scratch`:
    ignore completed stages. Stages that could be reused from other attempts count as remaining, which a note says. Without
    an earlier stage of the kind, the mean length is estimated as half of the limit, and no time is given. `by_data_sheet`
    gives the seconds of a stage on another device than this machine, where nothing was measured.
    """
    current = None if from_scratch else find_attempt(home, identity)
    done = {name: r for name, r in read_stages(current).items() if not changed_files(current, r)} if current else {}
    history = _history(home, model) if by_data_sheet is None else {}
    table = Table(title=f"{home.name}: what would be done", title_justify="left")
    for name in ("stage", "state", "responses, at most", "tokens", "time", "estimated from"):
        table.add_column(name, justify="left" if name in ("stage", "state", "estimated from") else "right")
    tokens_to_do, times = 0.0, list[float]()
    for stage in planned:
        if record := done.get(stage.name):
            table.add_row(stage.name, "done", "", f"{record.num_tokens:,}", _duration(record.wall_s), "measured")
            continue
        similar = history.get(stage.name) or history.get(kind_of(stage.name))
        known = similar.mean_tokens if similar else 0.0
        mean = known or stage.max_tokens / 2
        left = stage.ended_by_tokens(mean)
        if similar and known:
            whole = similar.is_of_one_start
            seconds = similar.wall_s / similar.num_tokens * mean * left.num_responses if whole else math.nan
            responses = f"{similar.numbers['num_responses']:,.0f} responses"
            source = f"{responses}, finished {similar.finished[:10]}" + ("" if whole else ", resumed")
        else:
            seconds, source = math.nan, "half of the limit"
            if by_data_sheet is not None:
                seconds, source = by_data_sheet(left), f"{source}, data sheet"
        tokens = mean * left.num_responses
        tokens_to_do += tokens
        times.append(seconds)
        number = f"{'' if left is stage else 'about '}{left.num_responses:,}"
        if stage.num_counted and left is stage:
            number = f"{number} ({stage.num_responses - stage.num_counted:,} to validate)"
        table.add_row(stage.name, "to do", number, f"{tokens:,.0f}", _duration(seconds), source)
    if times and not from_scratch and any(attempt != current for attempt in lenders(home)):
        table.caption = (
            "Finished stages and responses of other attempts with the same inputs are taken over, and not subtracted here."
        )
        table.caption_justify = "left"
    table.add_section()
    table.add_row("to do in all", "", "", f"{tokens_to_do:,.0f}", _total(times), "")
    return table


def _history(home: Path, model: str) -> dict[str, StageRecord]:
    """Return the newest record of each stage name and kind in runs that began with this model, this run's own before those
    of other runs, and those of one start before others."""
    others = [path for path in home.parent.glob("*") if path != home and path.is_dir()]
    newest: dict[str, StageRecord] = {}
    for runs in ([home], others):
        found: list[tuple[str, StageRecord]] = []
        for folder in [attempt for run in runs for attempt in attempts(run)]:
            records = read_stages(folder)
            if any(record.inputs.get("model") == model for record in records.values()):
                found += records.items()
        found = [(name, record) for name, record in found if record.numbers.get("num_responses")]
        for name, record in sorted(found, key=lambda one: (one[1].is_of_one_start, one[1].finished), reverse=True):
            for key in (name, kind_of(name)):
                newest.setdefault(key, record)
    return newest


def _total(times: Sequence[float]) -> str:
    """Return the sum of times [s]; a lower bound where some are not known."""
    known = [seconds for seconds in times if not math.isnan(seconds)]
    if len(known) == len(times):
        return _duration(sum(known))
    return f"at least {_duration(sum(known))}" if known else "?"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"

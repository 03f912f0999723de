"""The work of each subcommand, once its config is typed and its inputs are checked."""

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from conclip.config.groups import DeviceConfig, EvalConfig
from conclip.config.recipe import BASE, StageConfig
from conclip.config.schema import BaseConfig
from conclip.curriculum.pass_rates import PassRate
from conclip.curriculum.selection import Selection
from conclip.errors import MachineFailure, UserError
from conclip.evaluation.advice import advice
from conclip.evaluation.tables import (
    by_condition,
    describe_comparison,
    effort_table,
    efforts,
    form_line,
    headline_comparisons,
    power_line,
    results_json,
    results_table,
    summaries,
)
from conclip.experiments.inputs import Inputs, model_identity, select_for
from conclip.experiments.memory import place_of
from conclip.experiments.memory_plan import memory_of_run
from conclip.experiments.plan import steps_of
from conclip.experiments.stages import Stages, describe_selection
from conclip.grading.grader import GRADER_VERSION
from conclip.models.folder import model_hash
from conclip.report.card import write_card
from conclip.report.data import read_run
from conclip.rollout.session import Prompts, encode_prompts
from conclip.runs.attempts import MANIFEST
from conclip.runs.identity import digest, problems_hash, relevant
from conclip.runs.run import Run
from conclip.types import EvalRow


def run_recipe(config: BaseConfig, inputs: Inputs, run: Run, prompts: Mapping[Path, Prompts]) -> None:
    """Run the stages in order, then write tables, cards and the report."""
    if inputs.served_name and (run.goes_on or run.other_attempts()):
        run.warn(
            "what the server answered before is taken over, and whether its weights are still the same is not known here; "
            "resume=never samples anew"
        )
    models = inputs.models if config.learning is None else {BASE: inputs.model_path}
    rates: dict[str, list[PassRate]] = {}
    trained: dict[str, set[str]] = {}
    rows: dict[str, list[EvalRow]] = {}
    with Stages(config, inputs, run, prompts) as stages:
        for step in steps_of(config, inputs):
            name, stage, model = step.name, step.stage, models.get(step.model, inputs.model_path)
            if stage.kind == "probe":
                rates[name] = stages.probe(name, model, inputs.pool, config.phase_of(stage))
            elif stage.kind == "train":
                selection = inputs.selections.get(name) or _selection(config, inputs, stage, rates, trained)
                result = stages.train(name, config.phase_of(stage), model, selection)
                models[name], trained[name] = result.checkpoint, set(result.problem_ids)
            elif stage.kind == "warm_up":
                models[name], trained[name] = stages.warm_up(name, model, str(stage.rates))
            else:
                rows[step.model] = stages.evaluate(step.model, model, evidence=stage.evidence)
                if stage.evidence and config.evaluation is not None:
                    _show_evidence(run, rows[step.model], config.evaluation)
    all_rows = [row for model_rows in rows.values() for row in model_rows]
    made = list(trained)
    if config.evaluation is not None:
        _conclude(run, all_rows, config.evaluation, inputs.notes)
    if config.learning is not None:
        for name in made:
            write_card(run, config.learning, models[name], name, rows=all_rows)
        _draw(run, with_page=bool(all_rows))
        if made:
            run.point_to("final model" if all_rows else "checkpoint", models[made[-1]])
    else:
        for name, measured in rates.items():
            _propose(config, inputs, run, config.recipe[name], measured)


def _selection(
    config: BaseConfig,
    inputs: Inputs,
    stage: StageConfig,
    rates: Mapping[str, Sequence[PassRate]],
    trained: Mapping[str, Container[str]],
) -> Selection:
    """Return the problems of a training stage, selected by the pass rates of its probing stage, without those that earlier
    stages trained on. `trained`: ids of the problems that each stage trained on; `stage.without` names the stages that
    count."""
    candidates = [p for p in inputs.pool if not any(p.problem_id in trained[other] for other in stage.without)]
    return select_for(config, stage, candidates, rates.get(stage.rates or "", inputs.rates or []))


def _propose(config: BaseConfig, inputs: Inputs, run: Run, stage: StageConfig, rates: Sequence[PassRate]) -> None:
    """Select the problems that a phase would train on, for a run that only measures pass rates."""
    try:
        selection = select_for(config, stage, inputs.pool, rates)
    except UserError as error:
        run.warn(str(error))
        return
    run.write_json("problems.json", describe_selection(selection), is_data=True)
    if note := selection.confidence_note(config.phase_of(stage)):
        run.say(note)
    for choice in selection.chosen:
        run.say(f"chosen: {choice.problem.problem_id}: {choice.reason}", result=True)


def _draw(run: Run, *, with_page: bool) -> None:
    """Draw the curve of training and, where there are results, the report's page."""
    from conclip.report.export import write_curve  # noqa: PLC0415  what draws takes long to import: not for a plan
    from conclip.report.page import write_page  # noqa: PLC0415

    data = read_run(run.folder)
    write_curve(data, run.folder / "curve.png")
    if with_page:
        write_page([data], run.folder / "report.html")
        run.point_to("report", run.folder / "report.html")


def _show_evidence(run: Run, rows: Sequence[EvalRow], settings: EvalConfig) -> None:
    """Show what may be had without training, as a table, sentences and a picture, before any training begins."""
    from conclip.report.export import write_tradeoff  # noqa: PLC0415

    columns = by_condition(rows)
    if len({row.prompt_condition for row in rows}) < 2:
        return
    run.say("what may be had without training:", result=True)
    _show_results(run, columns, settings)
    write_tradeoff(rows, run.folder / "evidence.png")
    run.point_to("picture", run.folder / "evidence.png")


def _conclude(run: Run, rows: Sequence[EvalRow], settings: EvalConfig, notes: Sequence[str]) -> None:
    """Show the closing tables and comparisons, and write the same numbers to results.json."""
    columns = by_condition(rows)
    withheld = sum(row.finish_reason == "content_filter" for row in rows)
    if withheld:
        run.warn(f"{withheld} responses were withheld by the server's content filter; they count as truncated")
    run.write_results({"margin": settings.margin, "notes": notes, "benchmarks": results_json(columns)})
    _show_results(run, columns, settings)
    for benchmark, models in summaries(columns).items():
        for name, summary in models.items():
            numbers = {"accuracy": summary.accuracy.mean, "mean_tokens": summary.mean_tokens.mean}
            run.track("eval", 0, {f"{benchmark}/{name}/{key}": value for key, value in numbers.items()})


def _show_results(run: Run, columns: Mapping[str, Sequence[EvalRow]], settings: EvalConfig) -> None:
    """Show a table of each benchmark, with advice on its responses, and the comparisons in words."""
    for benchmark, models in summaries(columns).items():
        run.show(results_table(benchmark, models), result=True)
        run.show(effort_table(benchmark, efforts(columns, benchmark)))
        said: set[str] = set()
        for name in models:
            mine = [row for row in columns[name] if row.benchmark == benchmark]
            for cause, sentence in advice(mine, f"eval.max_tokens={settings.max_tokens}").items():
                if cause not in said:  # the table has every model's share
                    run.warn(f"{benchmark}, {name}: {sentence}")
                said.add(cause)
        for (first, second), comparison in headline_comparisons(columns, benchmark).items():
            run.say(describe_comparison(first, second, comparison, settings.margin), result=True)
            if (shift := form_line((first, second), models)) is not None:
                run.warn(shift)
            line = power_line(comparison, settings.margin)
            if line is not None and line not in said:
                run.say(f"  {line}", result=True)
                said.add(line)


def run_identity(subcommand: str, config: BaseConfig, inputs: Inputs) -> str:
    """Return the hash of everything that decides a run's results: config keys, models, problems, earlier pass rates and the
    grader."""
    return digest(
        [
            subcommand,
            relevant(config),
            {name: model_hash(path) for name, path in inputs.models.items()},
            model_identity(config, inputs) if inputs.served_name else "",
            [problems_hash(problems) for problems in (inputs.pool, inputs.validation, inputs.test)],
            [asdict(rate) for rate in inputs.rates or ()],
            GRADER_VERSION,
        ]
    )


def all_prompts(config: BaseConfig, inputs: Inputs) -> dict[Path, Prompts]:
    """Encode the prompts for each model folder. Raises UserError for a tokenizer that cannot be used, and for a prompt that
    is too long for one of the models."""
    return {path: encode_prompts(config, path, inputs.problems) for path in inputs.models.values()}


def execute(subcommand: str, config: BaseConfig, inputs: Inputs) -> Path:
    """Run one subcommand and return its run folder. Raises UserError before anything is written, as `all_prompts` does."""
    prompts = all_prompts(config, inputs)
    memory = memory_of_run(config, inputs, prompts, place_of(DeviceConfig()))
    if memory is not None:
        memory.check()
        config = memory.settled
    run, failed = Run(subcommand, config, run_identity(subcommand, config, inputs)), True
    try:
        for note in inputs.notes:
            run.warn(note)
        if memory is not None and not memory.fits:
            run.warn(f"this run may not fit into memory: {memory.verdict()}")
        run_recipe(config, inputs, run, prompts)
        run.point_to("run folder", run.folder)
        failed = False
    except Exception as error:
        logging.getLogger("conclip").exception("the run failed")
        if not (run.folder / MANIFEST).is_file():  # a library that saves a model may have recreated the folder
            raise MachineFailure(f"the run folder '{run.folder}' is gone; the same command begins it anew") from error
        raise
    finally:
        run.close(failed=failed)
    return run.folder

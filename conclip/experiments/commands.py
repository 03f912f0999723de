"""What each subcommand does, once its config is typed and its inputs are checked."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from conclip.config.schema import BaseConfig, EvalConfig, EvalRunConfig, ProbeRunConfig, TrainRunConfig, TwoPhaseConfig
from conclip.curriculum.selection import select
from conclip.errors import MachineFailure, UserError
from conclip.evaluation.tables import (
    by_condition,
    describe_comparison,
    headline_comparisons,
    power_line,
    results_json,
    results_table,
    summaries,
)
from conclip.experiments.inputs import Inputs
from conclip.experiments.stages import Stages, describe_selection
from conclip.grading.grader import GRADER_VERSION
from conclip.models.folder import model_hash
from conclip.report.card import write_card
from conclip.report.data import read_run
from conclip.report.export import write_curve
from conclip.report.page import write_page
from conclip.rollout.session import encode_prompts, longest_response, open_endpoint, open_runtime
from conclip.runs.identity import digest, problems_hash, relevant
from conclip.runs.run import MANIFEST, Run
from conclip.types import MANY_TRUNCATED, MORE_ROOM, EvalRow


def run_probe(config: ProbeRunConfig, inputs: Inputs, run: Run) -> None:
    with Stages(config, inputs, run) as stages:
        rates = stages.probe("probe", "probe", inputs.model_path, inputs.pool, config.phase, "pass_rates.jsonl")
    try:
        selection = select("phase", inputs.pool, rates, config.phase, config.seed)
    except UserError as error:
        run.warn(str(error))
        return
    run.write_json("problems.json", describe_selection(selection))
    if doubts := selection.doubts(config.phase):
        run.say(doubts)
    for choice in selection.chosen:
        run.say(f"chosen: {choice.problem.problem_id}: {choice.reason}", result=True)


def run_train(config: TrainRunConfig, inputs: Inputs, run: Run, *, stage: str) -> None:
    model, phase = inputs.model_path, config.phase
    with Stages(config, inputs, run) as stages:
        rates = inputs.rates
        if rates is None and not phase.by_hand:
            rates = stages.probe("probe", "probe", model, inputs.pool, phase, "pass_rates.jsonl")
        result = stages.train(stage, phase, model, select("phase", inputs.pool, rates or [], phase, config.seed))
    write_curve(read_run(run.folder), run.folder / "curve.png")
    write_card(run, config, result.checkpoint, stages=[stage])
    run.point_to("checkpoint", result.checkpoint)


def run_eval(config: EvalRunConfig, inputs: Inputs, run: Run) -> None:
    """Every model in turn, each with an engine of its own."""
    rows: list[EvalRow] = []
    stages = Stages(config, inputs, run)
    if inputs.served_name is not None:
        endpoint = partial(open_endpoint, config, run, inputs.served_name, inputs.test)
        rows += stages.evaluate("model", f"{config.model.url} {inputs.served_name}", endpoint)
    for name, path in inputs.models.items():
        opened = partial(open_runtime, config, run, path, inputs.test)
        rows += stages.evaluate(name, model_hash(path), opened)
    _conclude(run, rows, config.eval, inputs.notes)


def run_two_phase(config: TwoPhaseConfig, inputs: Inputs, run: Run) -> None:
    """Probe, phase 1, probe, phase 2, then base, phase-1 and phase-2 model on the test problems."""
    models, pool = {"base": inputs.model_path}, inputs.pool
    probe, label, file = "probe-base", "probe base", "pass_rates.jsonl"
    with Stages(config, inputs, run) as stages:
        if not config.skip_phase1:
            named = config.phase1.by_hand
            rates = [] if named else stages.probe(probe, label, models["base"], inputs.pool, config.phase1, file)
            selection = select("phase1", pool, rates, config.phase1, config.seed)
            first = stages.train("phase1", config.phase1, models["base"], selection)
            models["phase1"] = first.checkpoint
            pool = [problem for problem in pool if problem.problem_id not in first.asked]
            probe, label, file = "probe-phase1", "probe phase 1", "pass_rates-phase1.jsonl"
        start = models.get("phase1", inputs.model_path)
        named = config.phase2.by_hand
        rates = [] if named else stages.probe(probe, label, start, inputs.pool, config.phase2, file)
        offered = inputs.pool if named else pool
        selection = select("phase2", offered, rates, config.phase2, config.seed)
        second = stages.train("phase2", config.phase2, start, selection)
        models["phase2"] = second.checkpoint
        rows = [row for name, path in models.items() for row in stages.evaluate_checkpoint(name, path)]
    _conclude(run, rows, config.eval, inputs.notes)
    trained = [name for name in models if name != "base"]
    for number, name in enumerate(trained, start=1):
        write_card(run, config, models[name], stages=trained[:number], rows=rows)
    data = read_run(run.folder)
    write_curve(data, run.folder / "curve.png")
    write_page([data], run.folder / "report.html")
    run.point_to("report", run.folder / "report.html")
    run.point_to("final model", second.checkpoint)


def _conclude(run: Run, rows: Sequence[EvalRow], settings: EvalConfig, notes: Sequence[str]) -> None:
    """The closing tables and sentences, and the same numbers in results.json."""
    columns = by_condition(rows)
    withheld = sum(row.finish_reason == "content_filter" for row in rows)
    if withheld:
        run.warn(f"{withheld} responses were withheld by the server's content filter; they count as truncated")
    run.write_results({"margin": settings.margin, "notes": notes, "benchmarks": results_json(columns)})
    for benchmark, models in summaries(columns).items():
        run.show(results_table(benchmark, models), result=True)
        for name, summary in models.items():
            numbers = {"accuracy": summary.accuracy.mean, "mean_tokens": summary.mean_tokens.mean}
            if summary.truncation_rate.mean > MANY_TRUNCATED:
                run.warn(
                    f"{benchmark}, {name}: {summary.truncation_rate.mean:.0%} of the responses were cut at "
                    f"eval.max_tokens={settings.max_tokens}, which counts as not correct; {MORE_ROOM}"
                )
            run.track("eval", 0, {f"{benchmark}/{name}/{key}": value for key, value in numbers.items()})
        for (first, second), comparison in headline_comparisons(columns, benchmark).items():
            run.say(describe_comparison(first, second, comparison, settings.margin), result=True)
            if line := power_line(comparison, settings.margin):
                run.say(f"  {line}", result=True)


def run_identity(subcommand: str, config: BaseConfig, inputs: Inputs) -> str:
    """Hash of everything that decides a run's results: config keys, models, problems, earlier pass rates, the grader."""
    served = f"{config.model.url} {inputs.served_name}" if inputs.served_name else ""
    return digest(
        [
            subcommand,
            relevant(config),
            {name: model_hash(path) for name, path in inputs.models.items()},
            served,
            [problems_hash(problems) for problems in (inputs.pool, inputs.validation, inputs.test)],
            [asdict(rate) for rate in inputs.rates or ()],
            GRADER_VERSION,
        ]
    )


def check_prompts(config: BaseConfig, inputs: Inputs) -> None:
    """Raises UserError on a tokenizer that cannot be used, and on a prompt that is too long for one of the models."""
    for path in inputs.models.values():
        encode_prompts(config, path, inputs.problems, longest_response(config))


def execute(subcommand: str, config: BaseConfig, inputs: Inputs) -> Path:
    """Run one subcommand; returns its run folder. Raises UserError, before anything is written, as `check_prompts` does."""
    check_prompts(config, inputs)
    run, failed = Run(subcommand, config, run_identity(subcommand, config, inputs)), True
    try:
        for note in inputs.notes:
            run.warn(note)
        if isinstance(config, ProbeRunConfig):
            run_probe(config, inputs, run)
        elif isinstance(config, EvalRunConfig):
            run_eval(config, inputs, run)
        elif isinstance(config, TwoPhaseConfig):
            run_two_phase(config, inputs, run)
        elif isinstance(config, TrainRunConfig):
            run_train(config, inputs, run, stage=subcommand.removeprefix("train-"))
        run.point_to("run folder", run.folder)
        failed = False
    except Exception as error:
        logging.getLogger("conclip").exception("the run failed")
        if not (run.folder / MANIFEST).is_file():  # a library that saves a model may have made the folder again
            raise MachineFailure(f"the run folder '{run.folder}' is gone; the same command begins it anew") from error
        raise
    finally:
        run.close(failed=failed)
    return run.folder

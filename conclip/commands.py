"""What each subcommand does, once its config is typed and its inputs are checked."""

from collections.abc import Sequence
from pathlib import Path

from conclip.config import (
    BaseConfig,
    EvalConfig,
    EvalRunConfig,
    PhaseConfig,
    ProbeRunConfig,
    TrainRunConfig,
    TwoPhaseConfig,
)
from conclip.evaluation.evaluate import earlier_rows, evaluate
from conclip.evaluation.tables import (
    by_condition,
    describe_comparison,
    headline_comparisons,
    results_json,
    results_table,
    summaries,
)
from conclip.inputs import Inputs
from conclip.models.folder import model_hash
from conclip.probe import PassRate, describe, pass_rates, select, write_pass_rates
from conclip.report.curve import draw_curve
from conclip.runlog import Run
from conclip.runtime import Runtime, open_endpoint, open_runtime
from conclip.training.monitors import summarise_steps, summary_table
from conclip.training.trainer import Trainer, TrainResult
from conclip.types import EvalRow, Problem


def run_probe(config: ProbeRunConfig, inputs: Inputs, run: Run) -> None:
    with open_runtime(config, run, inputs.model_path, inputs.problems, config.rollout.max_tokens) as runtime:
        _probe("probe", runtime, inputs.pool, config.probe.samples_per_problem, run.folder / "pass_rates.jsonl")


def run_train(config: TrainRunConfig, inputs: Inputs, run: Run, *, stage: str) -> None:
    with open_runtime(config, run, inputs.model_path, inputs.problems, config.rollout.max_tokens) as runtime:
        rates = inputs.rates
        if rates is None and config.phase.problem_ids is None:
            samples = config.probe.samples_per_problem
            rates = _probe("probe", runtime, inputs.pool, samples, run.folder / "pass_rates.jsonl")
        problems = select("phase", inputs.pool, rates or [], config.phase, config.seed)
        result = _train(stage, config, config.phase, runtime, inputs.model_path, problems, inputs.validation)
    draw_curve({stage: result.history}, run.folder / "curve.png")
    run.say(f"checkpoint: {result.checkpoint}")


def run_eval(config: EvalRunConfig, inputs: Inputs, run: Run) -> None:
    """Every model in turn, each with an engine of its own."""
    rows: list[EvalRow] = []
    earlier = _earlier(run, config.eval)
    models = inputs.checkpoints
    if inputs.served_name is None:
        models = {"model": inputs.model_path} | models
    else:
        with open_endpoint(config, run, inputs.served_name, inputs.test) as runtime:
            target = run.folder / "rows-model.jsonl"
            identity = f"{config.model.url} {inputs.served_name}"
            rows += evaluate("model", identity, runtime, inputs.test, config.eval, target, earlier=earlier)
    for name, path in models.items():
        with open_runtime(config, run, path, inputs.test, config.eval.max_tokens) as runtime:
            target = run.folder / f"rows-{name}.jsonl"
            rows += evaluate(name, model_hash(path), runtime, inputs.test, config.eval, target, earlier=earlier)
    _conclude(run, rows, config.eval, inputs.notes)


def run_two_phase(config: TwoPhaseConfig, inputs: Inputs, run: Run) -> None:
    """Probe, phase 1, probe, phase 2, then base, phase-1 and phase-2 model on the test problems."""
    max_tokens = max(config.rollout.max_tokens, config.eval.max_tokens)
    samples = config.probe.samples_per_problem
    with open_runtime(config, run, inputs.model_path, inputs.problems, max_tokens) as runtime:
        rates = _probe("probe base", runtime, inputs.pool, samples, run.folder / "pass_rates.jsonl")
        problems = select("phase1", inputs.pool, rates, config.phase1, config.seed)
        first = _train("phase1", config, config.phase1, runtime, inputs.model_path, problems, inputs.validation)

        _load(runtime, first.checkpoint)
        rates = _probe("probe phase 1", runtime, inputs.pool, samples, run.folder / "pass_rates-phase1.jsonl")
        used = {problem.problem_id for problem in problems}
        fresh = [problem for problem in inputs.pool if problem.problem_id not in used]
        problems = select("phase2", fresh, rates, config.phase2, config.seed)
        second = _train("phase2", config, config.phase2, runtime, first.checkpoint, problems, inputs.validation)

        rows: list[EvalRow] = []
        earlier = _earlier(run, config.eval)
        models = {"base": inputs.model_path, "phase1": first.checkpoint, "phase2": second.checkpoint}
        for name, path in models.items():
            _load(runtime, path)
            target = run.folder / f"rows-{name}.jsonl"
            rows += evaluate(name, model_hash(path), runtime, inputs.test, config.eval, target, earlier=earlier)
    curve = run.folder / "curve.png"
    draw_curve({"phase 1": first.history, "phase 2": second.history}, curve)
    _conclude(run, rows, config.eval, inputs.notes)
    run.say(f"curve: {curve}")
    run.say(f"final model: {second.checkpoint}")


def _earlier(run: Run, settings: EvalConfig) -> dict[str, EvalRow]:
    return earlier_rows(run.folder.parent, run.folder) if settings.resume else {}


def _load(runtime: Runtime, model_path: Path) -> None:
    runtime.engine.update_weights(model_path, runtime.engine.policy_version + 1)


def _probe(label: str, runtime: Runtime, problems: Sequence[Problem], num_samples: int, path: Path) -> list[PassRate]:
    groups = runtime.sample_groups(label, problems, runtime.training_spec, num_samples, label)
    rates = pass_rates(groups)
    write_pass_rates(path, rates)
    runtime.run.say(f"{label}: {len(rates)} problems x {num_samples} responses; {describe(rates)}")
    return rates


def _train(
    stage: str,
    config: TrainRunConfig | TwoPhaseConfig,
    phase: PhaseConfig,
    runtime: Runtime,
    model_path: Path,
    problems: Sequence[Problem],
    validation: Sequence[Problem],
) -> TrainResult:
    runtime.run.write_json(f"problems-{stage}.json", {"problem_ids": [problem.problem_id for problem in problems]})
    runtime.run.say(f"{stage}: {len(problems)} problems, {phase.num_steps} steps")
    trainer = Trainer(stage, config, phase, runtime, model_path=model_path, problems=problems, validation=validation)
    result = trainer.train()
    runtime.run.say(
        f"{stage}: kept step {result.best.step} (validation accuracy {result.best.accuracy:.3f}, "
        f"length {result.best.mean_tokens:.1f})"
    )
    monitors = summarise_steps(result.steps)
    runtime.run.write_json(f"monitors-{stage}.json", {"monitors": monitors})
    runtime.run.show(summary_table(f"{stage}: monitors over {len(result.steps)} steps", monitors))
    return result


def _conclude(run: Run, rows: Sequence[EvalRow], settings: EvalConfig, notes: Sequence[str]) -> None:
    """The closing tables and sentences, and the same numbers in results.json."""
    columns = by_condition(rows)
    run.write_json("results.json", {"margin": settings.margin, "notes": notes, "benchmarks": results_json(columns)})
    for benchmark, models in summaries(columns).items():
        run.show(results_table(benchmark, models))
        for (first, second), comparison in headline_comparisons(columns, benchmark).items():
            run.say(describe_comparison(first, second, comparison, settings.margin))


def execute(subcommand: str, config: BaseConfig, inputs: Inputs, run: Run) -> None:
    """Run one subcommand."""
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

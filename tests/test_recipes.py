"""Recipes of one's own, from a folder outside the checkout: what they must keep to, what they plan, and what they do."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conclip.cli.main import main
from conclip.config.compose import compose_config, load_config
from conclip.config.recipe import label, lineage, rates_file
from conclip.config.schema import RecipeRunConfig
from conclip.config.typed import to_config
from conclip.errors import UserError
from conclip.experiments.inputs import load_inputs
from conclip.experiments.plan import steps_of
from conclip.report.data import read_run
from conclip.runs.manifest import read_stages
from tests.engines import SEAM
from tests.scripted import ScriptedEngine

HEADER = "# @package _global_\n# A recipe of one's own.\n\n"
TINY = "{num_problems: 4, problems_per_step: 4, group_size: 4, num_steps: 2, pass_rate_low: 0.05, pass_rate_high: 0.95}"

REVERSED = f"""defaults:
  - /phase@phases.short: two
  - /phase@phases.hard: one
  - _self_
recipe:
  probe-base: {{kind: probe, phase: short}}
  brief: {{kind: train, phase: short, rates: probe-base, about: brevity first}}
  probe-brief: {{kind: probe, model: brief, phase: hard}}
  accurate: {{kind: train, model: brief, phase: hard, rates: probe-brief, without: [brief], about: accuracy second}}
  eval: {{kind: eval}}
phases:
  short: {TINY}
  hard: {TINY}
"""
TWICE = f"""defaults:
  - /phase@phases.phase2: two
  - _self_
recipe:
  probe-base: {{kind: probe, phase: phase2}}
  first: {{kind: train, phase: phase2, rates: probe-base}}
  second: {{kind: train, model: first, phase: phase2, rates: probe-base, without: [first]}}
  eval: {{kind: eval, models: [base, second]}}
phases:
  phase2: {TINY}
"""
JOINT = f"""defaults:
  - /phase@phases.joint: two
  - _self_
recipe:
  probe-base: {{kind: probe, phase: joint}}
  joint: {{kind: train, phase: joint, rates: probe-base}}
  other: {{kind: train, phase: joint, rates: probe-base}}
phases:
  joint: {TINY}
"""
PLANS = {
    "reversed": (REVERSED, ["probe-base", "brief", "probe-brief", "accurate", "eval-base", "eval-brief", "eval-accurate"]),
    "twice": (TWICE, ["probe-base", "first", "second", "eval-base", "eval-second"]),
    "joint": (JOINT, ["probe-base", "joint", "other"]),
}


def folder_of(tmp_path: Path, name: str, text: str) -> Path:
    """A folder of configs outside the checkout."""
    (tmp_path / "own/recipe").mkdir(parents=True)
    (tmp_path / f"own/recipe/{name}.yaml").write_text(HEADER + text)
    return tmp_path / "own"


def run(monkeypatch: pytest.MonkeyPatch, own: Path, recipe: str, *more: str) -> None:
    command = ["conclip", "run", f"recipe={recipe}", "debug=two_phase", "name=t", *more, "--config-dir", str(own)]
    monkeypatch.setattr(sys, "argv", command)
    main()


@pytest.mark.parametrize("name", PLANS)
def test_a_recipe_of_ones_own_is_planned_stage_by_stage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    text, stages = PLANS[name]
    run(monkeypatch, folder_of(tmp_path, name, text), name, "--dry-run")
    said = capfd.readouterr().out
    assert [line.split("│")[1].strip() for line in said.splitlines() if "to do │" in line] == stages
    assert not (tmp_path / "outputs").exists()


@pytest.mark.whole
@pytest.mark.parametrize("name", PLANS)
def test_a_recipe_of_ones_own_runs_and_its_report_is_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: None
):
    monkeypatch.chdir(tmp_path)
    text, stages = PLANS[name]
    own = folder_of(tmp_path, name, text)
    run(monkeypatch, own, name)
    data = read_run(tmp_path / "outputs/run/t")
    folder = data.folder
    assert list(read_stages(folder)) == stages
    config = to_config(RecipeRunConfig, compose_config("run", [f"recipe={name}"], config_dir=str(own))[0])
    trained = [stage for stage, settings in config.recipe.items() if settings.kind == "train"]
    assert list(data.history) == list(data.steps) == list(data.best) == trained
    assert all(len(data.chosen[stage]) == 4 and [row["step"] for row in data.steps[stage]] == [1, 2] for stage in trained)
    chosen = {stage: {choice.problem_id for choice in data.chosen[stage]} for stage in trained}
    for stage in trained:
        assert not any(chosen[stage] & chosen[other] for other in config.recipe[stage].without)
        card = (folder / f"checkpoints/{stage}-best/README.md").read_text()
        assert f"after {' and '.join(lineage(config.recipe, stage))} of conclip" in card
        assert (config.recipe[stage].about or stage) in card
        questions = json.loads((folder / f"checkpoints/{stage}-best/trained_on.json").read_text())["questions"]
        assert len(questions) == len(set().union(*(chosen[other] for other in lineage(config.recipe, stage))))
    measured = [stage.removeprefix("eval-") for stage in stages if stage.startswith("eval-")]
    assert list(dict.fromkeys(row.model for row in data.rows)) == measured
    assert (folder / "report.html").is_file() == bool(measured) and (folder / "curve.png").is_file()
    # Each probe's pass rates stand with the first stage that drew on them
    assert list(data.rates) == (["brief", "accurate"] if name == "reversed" else trained[:1])


FAULTS = {
    "a model that is not there yet": ("recipe.phase1.model=phase2", "'recipe.phase1.model' is 'phase2'"),
    "a phase that is not there": ("recipe.phase1.phase=phase3", "it must be one of the phases: phase1, phase2"),
    "no phase": ("recipe.phase1.phase=null", "'recipe.phase1.phase' has no value"),
    "pass rates nobody measured": ("recipe.phase1.rates=probe-phase1", "an earlier probing stage: probe-base"),
    "no pass rates": ("recipe.phase1.rates=null", "phases.phase1.problem_ids"),
    "an unread key": ("++recipe.eval.phase=phase1", "'recipe.eval.phase' is unread"),
    "a model twice": ("recipe.eval.models=[base,base]", "each once"),
    "no models": ("recipe.eval.models=[]", "each once"),
    "a model nobody trains": ("recipe.eval.models=[base,phase3]", "models there are by then: base, phase1, phase2"),
    "a model in two evaluations": ("recipe.eval.models=[base,phase2]", "'base', which recipe.eval-first measures already"),
    "two stages with one file": (
        "++recipe.probe={kind: probe, model: base, phase: phase1}",
        "'recipe.probe' would write pass_rates.jsonl, as recipe.probe-base does",
    ),
    "a stage called as another's model": (
        "++recipe.phase1-best={kind: train, phase: phase2, rates: probe-base}",
        "'recipe.phase1-best' would write checkpoints/phase1-best, as recipe.phase1 does",
    ),
    "no stages": ("~recipe", "recipe"),
    "a kind there is not": ("recipe.eval.kind=evaluate", "recipe.eval.kind"),
    "a key there is not": ("++recipe.eval.model_s=[base]", "did you mean 'recipe.eval.models'?"),
    "a training stage called a probe": ("++recipe.probe-2={kind: train, phase: phase2, rates: probe-base}", "probe-..."),
    "a stage called base": ("++recipe.base={kind: train, phase: phase2, rates: probe-base}", "is not base"),
}


MEASURING = f"""defaults:
  - /phase@phases.phase2: two
  - _self_
recipe:
  eval: {{kind: eval}}
  probe: {{kind: probe, phase: phase2}}
  eval-again: {{kind: eval}}
phases:
  phase2: {TINY}
"""


@pytest.mark.whole
@pytest.mark.parametrize("text", [MEASURING, MEASURING.replace("  eval: {kind: eval}\n", "")])
def test_a_recipe_that_only_measures_has_one_engine_at_a_time(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A GPU has no room for two."""
    monkeypatch.chdir(tmp_path)
    engines: list[ScriptedEngine] = []

    def start(*arguments: Any, **named: Any) -> ScriptedEngine:
        assert all(engine._closed for engine in engines)
        engines.append(ScriptedEngine(*arguments, **named))
        return engines[-1]

    monkeypatch.setattr(SEAM, start)
    run(monkeypatch, folder_of(tmp_path, "measuring", text), "measuring")
    assert len(engines) >= 2 and all(engine._closed for engine in engines)


@pytest.mark.parametrize("name", FAULTS)
def test_a_recipe_that_cannot_be_done_is_refused(name: str):
    override, said = FAULTS[name]
    with pytest.raises(UserError) as caught:
        load_config("run", override)
    assert said in str(caught.value)


def test_an_evaluation_without_names_measures_what_none_has_measured():
    config = load_config("run", "recipe.eval.models=null")
    steps = [step.name for step in steps_of(config, load_inputs(config))]
    assert [name for name in steps if name.startswith("eval")] == ["eval-base", "eval-phase1", "eval-phase2"]


def test_a_subcommand_that_does_not_train_refuses_a_training_stage():
    with pytest.raises(UserError, match="does not train; conclip run"):
        load_config("probe", "++recipe.more={kind: train, phase: phase, rates: probe}")


def test_phase_1_and_phase_2_have_short_keys():
    config = load_config("two-phase", "phase1.num_steps=3", "phase@phase2=one", "phase2.num_problems=13")
    assert config.phase_settings["phase1"].num_steps == 3
    assert (config.phase_settings["phase2"].keep_best, config.phase_settings["phase2"].num_problems) == ("accuracy", 13)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("skip_phase1=true", "recipe=phase2_only"),
        ("length.limits=[1.0]", "phase.max_tokens_stages"),
        ("length=thinkprune", r"length=thinkprune is gone: .*phase.max_tokens_stages=\[1.0,0.75,0.5\]"),
    ],
)
def test_a_key_that_is_gone_says_what_does_its_work(override: str, remedy: str):
    with pytest.raises(UserError, match=remedy):
        load_config("two-phase", override)


def test_names_of_stages_and_of_their_files():
    assert [label(name) for name in ("probe", "probe-base", "probe-phase1", "joint", "x-22")] == [
        *("probe", "probe base", "probe phase 1", "joint", "x 22")
    ]
    assert [rates_file(name) for name in ("probe", "probe-base", "probe-phase1")] == [
        *("pass_rates.jsonl", "pass_rates.jsonl", "pass_rates-phase1.jsonl")
    ]

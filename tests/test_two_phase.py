"""The recipe as stages: what is done stays done, what changed is done again, the rest is planned."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conclip.cli.main import main
from conclip.config.compose import load_config
from conclip.experiments.inputs import load_inputs
from conclip.experiments.plan import PlannedStage, plan_table
from conclip.runs.manifest import read_stages


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["conclip", "two-phase", "debug=two_phase", *arguments])
    main()


def test_a_dry_run_lists_every_stage_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--dry-run")
    said = capfd.readouterr().out
    assert [line.split("│")[1].strip() for line in said.splitlines() if "to do │" in line] == [
        *("eval-base", "probe-base", "phase1", "probe-phase1", "phase2"),
        *("eval-phase1", "eval-phase2"),
    ]
    # 24 problems x 8; 2 steps x 4 x 4 and 3 looks x 4 x 2; 10 problems x 2
    assert [line.split("│")[3].strip() for line in said.splitlines() if "to do │" in line] == [
        *("20", "192", "56 (24 to validate)", "192", "56 (24 to validate)", "20", "20")
    ]
    ids = [problem.problem_id for problem in load_inputs(load_config("two-phase", "debug=two_phase")).pool[:4]]
    run(monkeypatch, "--dry-run", f"phase2.problem_ids=[{','.join(ids)}]")
    said = capfd.readouterr().out
    named = [line.split("│")[1].strip() for line in said.splitlines() if "to do │" in line]
    assert named[:4] == ["eval-base", "probe-base", "phase1", "phase2"]  # nothing is probed for problems named by hand
    assert list(tmp_path.iterdir()) == []


@pytest.mark.whole
def test_a_changed_phase_2_takes_over_what_came_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scripted: None
):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "recipe=phase2_only", "+recipe.eval.evidence=true")  # of the lab's model, what it evaluates anyhow
    first, second = (tmp_path / "outputs/two-phase/debug" / f"attempt-00{number}" for number in (1, 2))
    assert list(read_stages(first)) == ["eval-base", "probe-base", "phase2", "eval-phase2"]
    capfd.readouterr()

    run(monkeypatch, "recipe=phase2_only", "phase2.num_steps=3", "--dry-run")
    (row,) = [line.split("│") for line in capfd.readouterr().out.splitlines() if "│ phase2 " in line]
    measured = read_stages(first)["phase2"]
    assert measured.numbers["num_responses"] == 56  # 2 steps x 4 x 4 and 3 looks x 4 x 2; with 3 steps 80
    assert row[3].strip() == "80 (32 to validate)" and int(row[4].replace(",", "")) == round(measured.num_tokens / 56 * 80)
    assert "56 responses, finished" in row[6] and ("min" in row[5]) and not (first.parent / "attempt-002").exists()

    run(monkeypatch, "recipe=phase2_only", "phase2.num_steps=1")
    said = capfd.readouterr().out
    stages = read_stages(second)
    kept = [(folder / "checkpoints/phase2-best/model.safetensors").read_bytes() for folder in (first, second)]
    taken = {name for name, record in stages.items() if record.taken_from is not None}
    assert taken == {"probe-base", "eval-base"} | ({"eval-phase2"} if kept[0] == kept[1] else set())
    assert said.count("done before in attempt-001") == len(taken)
    assert stages["probe-base"].taken_from == stages["eval-base"].taken_from == "attempt-001"
    assert stages["phase2"].taken_from is None
    assert (second / "pass_rates.jsonl").read_text() == (first / "pass_rates.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in (second / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1]

    run(monkeypatch, "recipe=phase2_only", "phase2.num_steps=1")
    assert capfd.readouterr().out.count("done before") == 4
    run(monkeypatch, "recipe=phase2_only", "phase2.num_steps=1", "--dry-run")
    assert capfd.readouterr().out.count("│ done  │") == 4

    run(monkeypatch, "recipe=phase2_only", "phase2.num_steps=1", "rollout.unit_responses=96", "phase2.pass_rate_high=0.96")
    assert read_stages(second.parent / "attempt-003")["phase2"].taken_from == "attempt-002"  # neither changed what trains


def test_only_runs_of_the_same_model_tell_what_a_run_will_cost(tmp_path: Path):
    folder = tmp_path / "other" / "attempt-001"
    folder.mkdir(parents=True)
    record = {"key": "k", "outputs": {}, "numbers": {"num_responses": 10.0, "mean_tokens": 20.0}, "num_tokens": 200}
    record |= {"wall_s": 2.0, "made_by": {}, "finished": "2026-01-01T00:00:00", "inputs": {"model": "mine"}}
    (folder / "manifest.json").write_text(json.dumps({"identity": "i", "stages": {"probe-base": record}}))
    planned = [PlannedStage(name="probe-base", num_responses=100, max_tokens=512)]

    def cells(model: str, row: int = 0) -> list[str]:
        table = plan_table(planned, tmp_path / "own", "identity", model, from_scratch=False)
        return [str(list(column.cells)[row]) for column in table.columns]

    assert cells("mine")[2:5] == ["100", "2,000", "0 min 20 s"]
    assert cells("another")[2:] == ["100", "25,600", "?", "half of the limit"]
    assert (cells("mine", -1)[4], cells("another", -1)[4]) == ("0 min 20 s", "?")
    planned.append(PlannedStage(name="warm-up", num_responses=0, max_tokens=0))
    assert cells("mine", -1)[4] == "at least 0 min 20 s"


def test_a_stage_that_was_resumed_tells_lengths_and_no_time(tmp_path: Path):
    def write(run: str, finished: str, num_tokens: int) -> None:
        folder = tmp_path / run / "attempt-001"
        folder.mkdir(parents=True)
        numbers = {"num_responses": 10.0, "mean_tokens": 20.0}
        record = {"key": "k", "outputs": {}, "numbers": numbers, "num_tokens": num_tokens, "wall_s": 2.0, "made_by": {}}
        record |= {"finished": finished, "inputs": {"model": "mine"}}
        (folder / "manifest.json").write_text(json.dumps({"identity": run, "stages": {"probe-base": record}}))

    def cells() -> list[str]:
        planned = [PlannedStage(name="probe-base", num_responses=100, max_tokens=512)]
        table = plan_table(planned, tmp_path / "own", "identity", "mine", from_scratch=False)
        return [str(next(iter(column.cells))) for column in table.columns]

    write("resumed", "2026-01-02T00:00:00", 10)
    assert cells()[3:] == ["2,000", "?", "10 responses, finished 2026-01-02, resumed"]
    write("nothing left to sample", "2026-01-03T00:00:00", 0)
    assert cells()[3:5] == ["2,000", "?"]
    write("whole", "2026-01-01T00:00:00", 200)
    assert cells()[3:] == ["2,000", "0 min 20 s", "10 responses, finished 2026-01-01"]


def test_a_limit_of_tokens_ends_a_planned_phase_and_other_attempts_are_named(tmp_path: Path):
    """1,000 responses of 256 tokens, half of the limit, of which 800 count: 51,200 tokens end it after a quarter."""
    planned = [
        PlannedStage(
            name="phase2", num_responses=1000, max_tokens=512, num_trained=400, num_counted=800, max_sampled_tokens=51_200
        )
    ]
    table = plan_table(planned, tmp_path / "own", "identity", "mine", from_scratch=False)
    assert [str(next(iter(column.cells))) for column in table.columns][2:4] == ["about 250", "64,000"]
    assert planned[0].ended_by_tokens(256).num_trained == 100 and planned[0].ended_by_tokens(64) == planned[0]
    in_rounds = replace(planned[0], num_rounds=4)  # 200 responses of 256 tokens fit, in up to as many steps without a round
    assert in_rounds.ended_by_tokens(256) == replace(in_rounds, num_responses=400, num_trained=400)
    assert in_rounds.ended_by_tokens(512) == replace(in_rounds, num_responses=200, num_trained=200)
    assert table.caption is None
    (tmp_path / "own" / "attempt-001").mkdir(parents=True)
    table = plan_table(planned, tmp_path / "own", "identity", "mine", from_scratch=False)
    assert "other attempts" in str(table.caption)
    assert plan_table(planned, tmp_path / "own", "identity", "mine", from_scratch=True).caption is None

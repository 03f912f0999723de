"""Attempts and stages: what is done once stays done while nothing it rests on changes."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conclip.config.compose import load_config
from conclip.config.schema import BaseConfig
from conclip.errors import UserError
from conclip.runs.identity import digest, path_hash, relevant
from conclip.runs.manifest import Pipeline, StageOutput, read_stages
from conclip.runs.run import Run


@pytest.fixture
def config(tmp_path: Path) -> Iterator[BaseConfig]:
    handlers = list(logging.getLogger().handlers)
    yield load_config("eval", f"paths.outputs={tmp_path}", "name=x")
    logging.getLogger().handlers = handlers


def do(config: BaseConfig, identity: str, content: str, **inputs: str) -> tuple[Path, bool]:
    """(run folder, whether the work was done now) of a run with one stage that writes a file and a line of metrics."""
    run = Run("eval", config, identity)
    worked: list[bool] = []

    def work() -> StageOutput:
        worked.append(True)
        run.remove_metrics("stage")
        (run.folder / "out.txt").write_text(content)
        run.log_metrics("stage", len(worked), {"x": float(len(content))})
        return StageOutput(outputs=["out.txt"], numbers={"length": len(content)}, num_tokens=7)

    Pipeline(run).run_stage("stage", inputs, work)
    run.close()
    return run.folder, bool(worked)


def test_a_finished_stage_is_skipped_and_recorded(config: BaseConfig):
    folder, worked = do(config, "same", "abc", model="m")
    assert worked
    record = read_stages(folder)["stage"]
    assert (record.num_tokens, record.numbers, record.taken_from) == (7, {"length": 3}, None)
    assert record.outputs == {"out.txt": path_hash(folder / "out.txt")}
    assert do(config, "same", "abc", model="m") == (folder, False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["identity"] == "same" and len(manifest["starts"]) == 2 and manifest["schema"] == 1


def test_a_stage_is_done_again_when_an_input_changes_or_its_file_is_harmed(config: BaseConfig):
    folder, _ = do(config, "same", "abc", model="m")
    assert do(config, "same", "abc", model="other") == (folder, True)
    (folder / "out.txt").write_text("harmed")
    assert do(config, "same", "abc", model="other") == (folder, True)
    (folder / "out.txt").unlink()
    assert do(config, "same", "abc", model="other") == (folder, True)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1]  # what was done again is there once


def test_a_file_that_people_add_harms_no_stage_and_what_harms_one_is_said(config: BaseConfig):
    def once() -> tuple[Path, bool]:
        run = Run("eval", config, "same")
        worked: list[bool] = []

        def work() -> StageOutput:
            worked.append(True)
            (run.folder / "model").mkdir(exist_ok=True)
            (run.folder / "model" / "weights").write_text("w")
            return StageOutput(outputs=["model"], num_tokens=0)

        Pipeline(run).run_stage("phase", {}, work)
        run.close()
        return run.folder, bool(worked)

    folder, _ = once()
    (folder / "model" / "weights.gguf").write_text("converted")
    assert once() == (folder, False)
    (folder / "model" / "weights").write_text("other")
    assert once() == (folder, True)
    assert "'model/weights' is not what it left" in (folder / "run.log").read_text()
    assert (folder / "model" / "weights.gguf").exists()


def test_a_manifest_that_cannot_be_read_is_not_written_over(config: BaseConfig, monkeypatch: pytest.MonkeyPatch):
    run = Run("eval", config, "same")
    before = (run.folder / "manifest.json").read_bytes()

    def refused(*_: object, **__: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        with pytest.raises(OSError, match="Too many"):
            run.update_manifest(stages={})
    run.close()
    assert (run.folder / "manifest.json").read_bytes() == before


def test_going_on_with_another_version_is_said(config: BaseConfig):
    folder, _ = do(config, "same", "abc", model="m")
    assert "another version" not in (folder / "run.log").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["starts"][-1]["packages"]["torch"] = "0.1"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert do(config, "same", "abc", model="m") == (folder, False)
    assert "another version of torch worked on this attempt before" in (folder / "run.log").read_text()
    for _ in range(2):  # also where the last start had this one's versions
        assert do(config, "same", "abc", model="m") == (folder, False)
    assert (folder / "run.log").read_text().count("another version of torch worked") == 3


def test_a_record_that_cannot_be_read_costs_no_other(config: BaseConfig):
    folder, _ = do(config, "same", "abc", model="m")
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["stages"]["stage"]
    for damage in ({"numbers": {"loss": None}}, {"num_tokens": -1}, {"key": 3}):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"stages": {"a": record | damage, "stage": record}}))
        assert list(read_stages(folder)) == ["stage"]
    assert do(config, "same", "abc", model="m") == (folder, False)


def test_numbers_that_are_none_are_not_recorded(config: BaseConfig):
    run = Run("eval", config, "same")
    (run.folder / "out.txt").touch()
    made = StageOutput(outputs=["out.txt"], numbers={"loss": float("nan"), "epochs": 2.0}, num_tokens=0)
    record = Pipeline(run).run_stage("stage", {}, lambda: made)
    run.close()
    assert record.numbers == {"epochs": 2} and read_stages(run.folder)["stage"] == record


def test_a_copy_of_an_attempt_by_hard_links_leaves_its_lock(config: BaseConfig, tmp_path: Path):
    run = Run("eval", config, "same")
    os.link(run.folder / "lock", tmp_path / "copy of lock")
    with pytest.raises(UserError, match="is being worked on by another process"):
        Run("eval", config, "same")
    run.close()


def test_another_attempt_of_the_run_lends_its_stages(config: BaseConfig, tmp_path: Path):
    first, _ = do(config, "one", "abc", model="m")
    second, worked = do(config, "two", "other", model="m")
    assert second != first and not worked
    assert (second / "out.txt").read_text() == "abc"
    assert read_stages(second)["stage"].taken_from == "attempt-001"
    assert (second / "metrics.jsonl").read_text() == (first / "metrics.jsonl").read_text()
    (second / "out.txt").unlink()
    assert do(config, "two", "other", model="m") == (second, False)  # lent once more
    assert do(config, "two", "changed", model="another") == (second, True)
    assert (first / "out.txt").read_text() == "abc"


def test_a_run_in_stages_from_lends_its_stages(config: BaseConfig, tmp_path: Path):
    first, _ = do(config, "one", "abc", model="m")

    def borrowing(name: str, place: Path) -> BaseConfig:
        where = [f"paths.outputs={tmp_path}", f"paths.stages_from={place}", "resume=never"]
        return load_config("eval", *where, f"name={name}")

    for number, place in enumerate((first.parent.parent, first.parent, tmp_path / "eval" / "y0")):
        folder, worked = do(borrowing(f"y{number}", place), "two", "other", model="m")
        assert not worked and (folder / "out.txt").read_text() == "abc"
        assert read_stages(folder)["stage"].taken_from == "x/attempt-001"
        assert (folder / "metrics.jsonl").read_text() == (first / "metrics.jsonl").read_text()
    # other inputs, harmed files, and a run's own attempts where it is to begin anew are not lent
    assert do(borrowing("z", first.parent), "two", "other", model="another")[1]
    (first / "out.txt").write_text("harmed")
    assert do(borrowing("z2", first.parent), "two", "other", model="m")[1]
    assert do(borrowing("z2", tmp_path / "eval" / "z2"), "two", "other", model="m")[1]
    # a folder with links is not followed
    (first / "out.txt").unlink()
    (first / "out.txt").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="link"):
        do(borrowing("z3", first.parent), "two", "other", model="m")


def test_two_processes_cannot_work_in_one_attempt(config: BaseConfig):
    run = Run("eval", config, "same")
    with pytest.raises(UserError, match="being worked on"):
        Run("eval", config, "same")
    run.close()
    Run("eval", config, "same").close()


def test_resume_never_starts_anew(tmp_path: Path, config: BaseConfig):
    first, _ = do(config, "same", "abc", model="m")
    anew = load_config("eval", f"paths.outputs={tmp_path}", "name=x", "resume=never")
    second, worked = do(anew, "same", "abc", model="m")
    assert second != first and worked


def test_what_resume_never_left_behind_is_not_taken_over_later(tmp_path: Path, config: BaseConfig):
    """Neither where the attempt goes on, nor by a later one with another config."""
    do(config, "same", "abc", model="m")
    anew = load_config("eval", f"paths.outputs={tmp_path}", "name=x", "resume=never")
    second, _ = do(anew, "same", "abc", model="other")
    third, worked = do(config, "changed", "abc", model="other")
    assert not worked and read_stages(third)["stage"].taken_from == "attempt-002"
    assert do(config, "same", "abc", model="m") == (second, True)
    (second / "out.txt").write_text("harmed")
    assert do(config, "changed", "abc", model="m") == (third, True)


def test_a_cut_line_of_metrics_and_a_broken_manifest_do_not_stop_a_run(config: BaseConfig):
    folder, _ = do(config, "same", "abc", model="m")
    with (folder / "metrics.jsonl").open("a") as out:
        out.write('garbage\n[1]\n{"schema": 1, "sta')
    assert do(config, "same", "abc", model="m") == (folder, False)
    assert (folder / "metrics.jsonl").read_text().endswith("[1]\n")
    assert do(config, "same", "abc", model="other") == (folder, True)
    (folder / "manifest.json").write_text("{")
    second, worked = do(config, "same", "abc", model="m")
    assert second != folder and worked


@pytest.mark.whole
def test_identity_rests_on_what_changes_a_result_only():
    def identity(*overrides: str) -> str:
        return digest(relevant(load_config("two-phase", *overrides)))

    same = ["name=other", "paths.outputs=elsewhere", "logger.display=plain", "rollout.engine=child_process", "resume=never"]
    assert all(identity(override) == identity() for override in same)
    other = ["seed=1", "algo.gae_lambda=0.9", "rollout.max_num_seqs=64", "phase2.num_steps=3", "eval.temperatures=[0]"]
    assert len({identity(override) for override in other} | {identity()}) == len(other) + 1

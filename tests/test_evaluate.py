"""Evaluation on the real engine: conditions, rows, taking over what exists; and `compare` on what it wrote."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from conclip.cli.main import main
from conclip.config.compose import load_config
from conclip.errors import UserError
from conclip.evaluation.rows import read_rows, select_rows, to_dict
from conclip.evaluation.units import RowFile, response_key
from conclip.grading.thinking import PLAIN, Thinking
from conclip.models.folder import LAB_MODEL, model_hash
from conclip.rollout.collect import TRAINING, Task
from conclip.runs.identity import digest, relevant
from conclip.runs.run import Run
from conclip.runs.sampling_progress import SamplingProgress
from conclip.types import EvalRow, Outcome, Problem, SamplingSpec
from tests.conftest import make_row
from tests.engines import SEAM, Engines
from tests.junk import JUNK, changed, places

TOP = Path(__file__).parent.parent
SMALL = ["debug=eval", "data.test.chain.num_problems=12", "eval.samples_per_problem=2"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["conclip", *arguments])
    main()


def task_of(**changes: Any) -> Task:
    """A task for a model that samples here."""
    values: dict[str, Any] = {
        "problem": Problem(problem_id="p", question="q", answer="1", source="s"),
        "variant": TRAINING,
        "spec": SamplingSpec(temperature=1.0, max_tokens=8),
        "sample": 0,
        "prompt_token_ids": (1, 2),
        "seed": 3,
        "messages": (),
        "template_kwargs": {},
        "thinking": PLAIN,
    }
    return Task(**(values | changes))


SERVED: dict[str, Any] = {"messages": (("user", "q"),), "prompt_token_ids": ()}
"""What differs of a task for a server."""

OF_THE_ENGINE = {
    "model.dtype=bfloat16": True,
    "model.stop_tokens=['<|x|>']": True,
    "rollout.deterministic=true": True,
    "rollout.num_engines=3": True,
    "rollout.kv_cache_gib=3": True,
    "rollout.max_num_seqs=7": True,
    "rollout.max_num_batched_tokens=4096": True,
    "rollout.max_model_len=900": True,
    "rollout.enforce_eager=true": True,
    "rollout.unit_responses=7": False,
    "rollout.gpu_memory_utilization=0.3": False,
    "rollout.engine=child_process": False,
    "eval.samples_per_problem=7": False,
    "eval.budget_tokens=7": False,
    "eval.margin=0.1": False,
    "data.test.chain.num_problems=7": False,
    "logger.display=plain": False,
    "name=other": False,
}
"""Overrides, with whether they change a response of a model that samples here."""


@pytest.mark.parametrize(("override", "changes"), OF_THE_ENGINE.items())
def test_a_row_is_known_by_all_that_changes_a_response(override: str, changes: bool):
    configs = [load_config("eval", *more) for more in ((), (override,))]
    assert len({response_key("model", task_of(), config) for config in configs}) == 1 + changes
    # a server has an engine of its own
    assert len({response_key("model", task_of(**SERVED), config) for config in configs}) == 1


SPEC: dict[str, Any] = {"temperature": 1.0, "max_tokens": 8}
OF_THE_REQUEST: dict[str, dict[str, Any]] = {
    "temperature": {"spec": SamplingSpec(temperature=0.9, max_tokens=8)},
    "token limit": {"spec": SamplingSpec(temperature=1.0, max_tokens=9)},
    "top_p": {"spec": SamplingSpec(**SPEC, top_p=0.9)},
    "top_k": {"spec": SamplingSpec(**SPEC, top_k=5)},
    "thinking budget": {"spec": SamplingSpec(**SPEC, thinking_budget=4)},
    "seed": {"seed": 4},
    "prompt": {"prompt_token_ids": (1, 3)},
    "longer prompt": {"prompt_token_ids": (1, 2, 2)},
}


@pytest.mark.parametrize("served", [False, True])
def test_a_row_is_known_by_model_prompt_sampling_and_seed(served: bool):
    config, mine = load_config("eval"), SERVED if served else {}
    asked = dict(OF_THE_REQUEST)
    if served:
        del asked["prompt"], asked["longer prompt"]
        asked["chat"] = {"messages": (("user", "another"),)}
        asked["role"] = {"messages": (("system", "q"),)}
        asked["template"] = {"template_kwargs": {"enable_thinking": False}}
    keys = {name: response_key("model", task_of(**(mine | changes)), config) for name, changes in asked.items()}
    keys |= {"": response_key("model", task_of(**mine), config), "model": response_key("other", task_of(**mine), config)}
    assert len(set(keys.values())) == len(keys)


def test_a_row_is_not_known_by_what_a_response_is_called():
    """Its place among others, the instruction's name (its tokens count), and the problem's name, level and benchmark."""
    named = Problem(problem_id="r", question="q", answer="1", source="other", level=3, subject="algebra")
    others = [{"sample": 5}, {"condition": "1"}, {"variant": ("concise", "other")}, {"problem": named}]
    assert len({response_key("model", task_of(**changes), load_config("eval")) for changes in ({}, *others)}) == 1


def test_a_row_is_known_by_all_that_changes_a_verdict(monkeypatch: pytest.MonkeyPatch):
    task, config = task_of(), load_config("eval")
    other = [{"answer": "2"}, {"alternatives": ("2",)}, {"choices": ("1", "2")}, {"tolerance": 0.1}]
    tasks = [
        task,
        replace(task, thinking=Thinking(opened=True)),
        *(replace(task, problem=replace(task.problem, **c)) for c in other),
    ]
    keys = [response_key("model", one, config) for one in tasks]
    monkeypatch.setattr("conclip.evaluation.units.GRADER_VERSION", -1)
    keys.append(response_key("model", task, config))
    assert len(set(keys)) == len(keys)


def test_rows_of_a_server_are_known_by_whether_it_was_asked_for_special_tokens():
    """Those that it had left out may hold the tags of the thinking part."""
    told = ["model.thinking_tags=['<think>','</think>']"]
    assert len({response_key("model", task_of(**SERVED), load_config("eval", *more)) for more in ([], told)}) == 2


def test_a_last_line_of_a_file_that_is_named_counts_with_and_without_its_end(tmp_path: Path):
    lines = [json.dumps(to_dict(make_row(problem, Outcome.CORRECT, 5))) for problem in "ab"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    assert [row.problem_id for row in read_rows(path)] == ["a", "b"]
    path.write_text("\n".join(lines)[:-9])
    with pytest.raises(UserError, match="line 2"):
        read_rows(path)


@pytest.mark.engine
def test_temperatures_and_checkpoints_are_crossed_and_a_cut_evaluation_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    random_model: Path,
    lent: None,
):
    monkeypatch.chdir(tmp_path)
    seen: list[SamplingProgress] = []
    monkeypatch.setattr(Run, "show_sampling", lambda _, now: seen.append(now))
    tracked: dict[str, float] = {}
    monkeypatch.setattr(
        Run, "track", lambda _, stage, step, metrics: tracked.update({f"{stage}/{k}": v for k, v in metrics.items()})
    )
    command = ["eval", *SMALL, "eval.temperatures=[0,1.0]", f"checkpoints={{after: {random_model}}}"]
    command += ["rollout.unit_responses=12", "name=crossed"]
    run(monkeypatch, *command)
    said = capfd.readouterr().out
    first = tmp_path / "outputs/eval/crossed/attempt-001"
    rows = read_rows(first / "rows-model.jsonl")
    assert [
        (row.temperature, len([r for r in rows if r.temperature == row.temperature])) for row in (rows[0], rows[-1])
    ] == [
        (0.0, 12),  # greedy once
        (1.0, 24),
    ]
    assert rows == read_rows(first / "rows-model.parquet")
    assert pq.read_table(first / "rows-after.parquet").num_rows == 36
    assert "model, T 0" in said and "after, T 1" in said
    accuracy = sum(row.outcome is Outcome.CORRECT for row in rows) / len(rows)
    assert 0.3 < accuracy < 1  # the lab model; the random one is wrong throughout
    sampled = [row.outcome is Outcome.CORRECT for row in rows if row.temperature == 1]
    assert tracked["eval/chain/model, T 1/accuracy"] == pytest.approx(sum(sampled) / 24)
    assert len(tracked) == 8 and tracked["eval/chain/after, T 0/accuracy"] == 0
    assert not any(row.outcome is Outcome.CORRECT for row in read_rows(first / "rows-after.jsonl"))
    assert {now.overall_total for now in seen} == {36}  # what is shown of a model counts all its conditions
    assert [now.overall_finished for now in seen if now.num_finished == now.num_total][-1] == 36

    # the second model's file lost its end, and a verdict was altered: the rest is taken over, these are sampled anew
    whole = (first / "rows-after.jsonl").read_text()
    altered = whole.replace('"outcome": "wrong"', '"outcome": "correct"', 1).replace(
        '"outcome": "no_answer"', '"outcome": "correct"', 1
    )
    assert altered != whole
    (first / "rows-after.jsonl").write_text("garbage\n" + altered[: len(whole) // 2])
    run(monkeypatch, *command)
    said = capfd.readouterr().out
    assert "eval-model: done before" in said and "12 taken over from before" in said
    assert (first / "rows-after.jsonl").read_text() == whole
    assert len(read_rows(first)) == 72 and not (first.parent / "attempt-002").exists()

    # another temperature is another run; it takes over what the first one has of the same responses
    run(monkeypatch, *command, "eval.temperatures=[1.0]")
    assert capfd.readouterr().out.count("24 taken over from before") == 2
    second = first.parent / "attempt-002"
    assert {row.key for row in read_rows(second)} == {row.key for row in read_rows(first) if row.temperature == 1}

    run(monkeypatch, "compare", str(second), "--model", "model", "after", "--temperature", "1")
    said = capfd.readouterr().out
    assert "accuracy fell" in said and "correct" in said and "permutation test" in said


@pytest.mark.engine
def test_checkpoints_of_one_kind_share_an_engine_and_keep_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: Engines, random_model: Path
):
    monkeypatch.chdir(tmp_path)
    starts: list[Path] = []
    closed: list[Path] = []

    def start(model: Path, *arguments: Any, **named: Any) -> Any:
        starts.append(model)
        engine = engines.lend(model, *arguments, **named)
        engine.close = lambda: closed.append(model)
        return engine

    monkeypatch.setattr(SEAM, start)
    both = f"checkpoints={{random: {random_model}, again: {LAB_MODEL}}}"
    run(monkeypatch, "eval", *SMALL, both, "name=both")
    assert starts == closed == [LAB_MODEL]
    run(monkeypatch, "eval", *SMALL, f"model.path={random_model}", "name=random", "resume=never")
    assert starts == closed == [LAB_MODEL, random_model]
    alone = read_rows(tmp_path / "outputs/eval/random/attempt-001")
    rows = {name: read_rows(tmp_path / f"outputs/eval/both/attempt-001/rows-{name}.jsonl") for name in ("random", "again")}
    assert [replace(row, model="model") for row in rows["random"]] == alone
    first = read_rows(tmp_path / "outputs/eval/both/attempt-001/rows-model.jsonl")
    assert [replace(row, model="model") for row in rows["again"]] == first != alone


@pytest.mark.whole
def test_a_killed_evaluation_goes_on_to_the_rows_of_one_that_was_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scripted: None
):
    monkeypatch.chdir(tmp_path)
    small = ["debug=eval", "data.test.chain.num_problems=40", "eval.samples_per_problem=4", "rollout.unit_responses=20"]
    run(monkeypatch, "eval", *small, "name=alone")
    # a unit takes two polls, so it is killed amid the fourth
    command = [sys.executable, "-m", "tests.scripted", "eval", *small, "name=killed"]
    killed = subprocess.run(
        command, env=os.environ | {"CONCLIP_DIES_AT": "8", "PYTHONPATH": str(TOP)}, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = tmp_path / "outputs/eval/killed/attempt-001/rows-model.jsonl"
    num_before = rows.read_bytes().count(b"\n")
    assert 60 <= num_before < 80 and not rows.with_suffix(".parquet").exists()

    capfd.readouterr()
    run(monkeypatch, "eval", *small, "name=killed")
    assert "60 taken over from before" in capfd.readouterr().out
    finished, alone = (tmp_path / "outputs/eval" / name / "attempt-001" for name in ("killed", "alone"))
    for name in ("rows-model.jsonl", "rows-model.parquet", "results.json"):
        assert (finished / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.cluster
def test_an_evaluation_on_two_engines_has_the_rows_of_one(tmp_path: Path):
    """Where candidates are not tied (`benchmarks/ties.py`)."""
    found: list[list[EvalRow]] = []
    for number in (1, 2):
        settings = [*SMALL, "eval.temperatures=[0,1.0]", f"rollout.num_engines={number}", f"name=engines-{number}"]
        command = [sys.executable, "-P", "-m", "conclip", "eval", *settings]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append([replace(row, key="") for row in read_rows(tmp_path / f"outputs/eval/engines-{number}/attempt-001")])
    assert found[0] == found[1] and len(found[0]) == 36


def test_single_test_sets_have_samples_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scripted: None
):
    monkeypatch.chdir(tmp_path)
    hard = "+data.test.hard={source: arithmetic, family: chain, levels: [4], split: test, num_problems: 3}"
    command = ["eval", *SMALL, hard, "eval.samples_of={hard: 5}", "eval.temperatures=[1,0]", "name=own"]
    run(monkeypatch, *command, "--dry-run")
    said = capfd.readouterr().out
    assert f"{12 * 2 + 3 * 5 + 12 + 3} " in said
    run(monkeypatch, *command)
    rows = read_rows(tmp_path / "outputs/eval/own")
    counts = Counter((row.benchmark, row.temperature) for row in rows)
    assert counts == {("chain", 1.0): 24, ("hard", 1.0): 15, ("chain", 0.0): 12, ("hard", 0.0): 3}
    with pytest.raises(UserError, match=r"'eval\.samples_of\.other' is no set of data\.test; there are: chain"):
        load_config("eval", "eval.samples_of={other: 4}")
    assert relevant(load_config("eval")) == relevant(load_config("eval", "eval.samples_of={}"))
    assert "samples_of" not in relevant(load_config("eval"))["eval"]


def test_no_engine_starts_where_every_response_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scripted: None
):
    """The budget that only another prompt names makes the evaluation another one, of the same responses."""
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "eval", *SMALL, "name=twice")
    started: list[str] = []
    for name in ("conclip.rollout.session.start_engine", "conclip.rollout.session.Grader"):
        monkeypatch.setattr(name, lambda *_, name=name, **__: started.append(name))
    run(monkeypatch, "eval", *SMALL, "name=twice", "eval.budget_tokens=99")
    first, second = (tmp_path / f"outputs/eval/twice/attempt-00{number}" for number in (1, 2))
    assert started == [] and "24 taken over from before" in capfd.readouterr().out
    assert read_rows(second / "rows-model.parquet") == read_rows(first / "rows-model.parquet")


def test_rows_are_known_again_whatever_line_ends_a_response_holds(tmp_path: Path):
    rows = [
        make_row(str(n), Outcome.WRONG, 5, key=str(n), text=f"a{end}b") for n, end in enumerate("\n\r\x0b\x85\u2028\u2029")
    ]
    path = tmp_path / "rows-model.jsonl"
    file = RowFile(path, model="model", model_hash="m")
    file.finish(rows)
    assert read_rows(path) == rows
    before = path.read_bytes()
    RowFile(path, model="model", model_hash="m")  # keeps the rows it knows, and no others
    assert path.read_bytes() == before


def test_junk_in_the_rows_of_an_earlier_attempt_is_left_out_or_reused(tmp_path: Path):
    """Also when its check is right, as in a file that somebody else wrote with care."""
    path = tmp_path / "rows-model.jsonl"
    plain = to_dict(make_row("0", Outcome.WRONG, 5, key="k"))
    lines: list[str] = []
    for place in places(plain):
        for junk in JUNK[:-1]:  # the last, half a character, has no check
            row = changed(plain, place, junk)
            lines.append(json.dumps(row | {"check": digest(row)} if isinstance(row, dict) else row))
    for line in lines:
        path.write_text(line + "\n")
        kept = RowFile(path, model="model", model_hash="m")._earlier
        for row in kept.values():
            row.by("strict"), row.by("lenient")
    path.write_text("\n".join([*lines, ""]))
    file = RowFile(path, model="model", model_hash="m")
    file.finish(file._earlier.values())
    assert len(lines) > 20 and read_rows(path) == list(file._earlier.values())
    assert read_rows(path.with_suffix(".parquet")) == read_rows(path)


def test_a_model_hash_covers_weights_and_template(tmp_path: Path):
    copy = tmp_path / "model"
    shutil.copytree(LAB_MODEL, copy)
    assert model_hash(copy) == model_hash(LAB_MODEL)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert model_hash(copy) != model_hash(LAB_MODEL)


def test_rows_of_another_schema_or_none_are_refused(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"schema": 1}\n')
    with pytest.raises(UserError, match="schema 1"):
        read_rows(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="no rows"):
        read_rows(tmp_path)
    with pytest.raises(UserError, match="no file or folder"):
        read_rows(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"model b; there are model a"):
        select_rows([make_row("p", Outcome.WRONG, 1, model="a")], model="b")

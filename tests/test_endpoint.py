"""Evaluation of a model behind a real vLLM server, beside the same model in process."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from conclip.cli.main import main
from conclip.evaluation.rows import read_rows
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_policy, load_tokenizer
from conclip.training.checkpoint import save_model
from conclip.types import Outcome
from tests.answering import Answering, choice, completion, listening
from tests.serving import vllm_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server with a checkpoint as training saves it (the lab model's weights), on a free port of this machine."""
    checkpoint = tmp_path_factory.mktemp("served") / "phase2-best"
    policy, tokenizer = load_policy(LAB_MODEL, torch.device("cpu")), load_tokenizer(LAB_MODEL)
    save_model(checkpoint, policy.save_pretrained, tokenizer, problems=[], earlier=[])
    (checkpoint / "README.md").write_text("# a model card\n")
    with vllm_server(checkpoint) as url:
        yield url


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["conclip", *arguments])
    main()


@pytest.mark.whole
@pytest.mark.engine
def test_a_served_model_gives_the_rows_of_the_same_model_in_process(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], lent: None
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-mine")
    small = [
        "data.test.chain.num_problems=12",
        "data.test.chain.levels=[1,2]",
        "eval.temperatures=[0]",
        "eval.max_tokens=120",
    ]
    run(monkeypatch, "eval", *small, "name=here")
    run(monkeypatch, "eval", *small, "name=there", "model=endpoint", f"model.url={server}", "model.prompt='{question}'")
    here = {row.problem_id: row for row in read_rows(tmp_path / "outputs/eval/here/latest")}
    there = {row.problem_id: row for row in read_rows(tmp_path / "outputs/eval/there/latest")}
    assert {key: row.num_tokens for key, row in here.items()} == {key: row.num_tokens for key, row in there.items()}
    assert {key: row.outcome for key, row in here.items()} == {key: row.outcome for key, row in there.items()}
    assert all(row.num_prompt_tokens == here[key].num_prompt_tokens for key, row in there.items())
    assert sum(row.outcome is Outcome.CORRECT for row in there.values()) > 8
    everything = "".join(
        p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".parquet"
    )
    assert "secret-of-mine" not in everything

    run(monkeypatch, "eval", *small, "name=there", "model=endpoint", f"model.url={server}", "model.prompt='{question}'")
    said = capfd.readouterr().out
    assert "eval-model: done before" in said and "whether its weights are still the same is not known here" in said


@pytest.mark.whole
@pytest.mark.engine
def test_a_wrong_name_or_address_is_one_line(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        ([f"model.url={server}", "model.served_name=other"], "does not serve 'other' but lab"),
        (["model.url=http://127.0.0.1:9/v1"], "does not answer as an OpenAI server"),
    ):
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, "eval", "model=endpoint", *arguments, "data.test.chain.num_problems=2")
        assert end.value.code == 2
        assert said in capfd.readouterr().err


class Refusing(Answering):
    """Serves one model; refuses the first request and never answers the others."""

    numbers, status = count(1), 402

    def do_POST(self) -> None:
        if next(Refusing.numbers) > 1:
            time.sleep(600)
        self.send_json({"error": {"message": "no"}}, Refusing.status)


class Picky(Answering):
    """Answers everything but the third question it is asked."""

    asked: ClassVar[list[str]] = []
    keys: ClassVar[set[str]] = set()
    strict = True
    removed: ClassVar[Path | None] = None

    def do_POST(self) -> None:
        content = json.loads(self.body())
        Picky.asked.append(content["messages"][-1]["content"])
        Picky.keys.add(self.headers["Authorization"])
        if Picky.strict and len(Picky.asked) == 3:
            return self.send_json({"error": {"message": "not this one"}}, 400)
        if Picky.removed is not None:
            shutil.rmtree(Picky.removed, ignore_errors=True)
        self.send_json(completion(choice("\\boxed{1}")))


@pytest.fixture(autouse=True)
def _asked_nothing_yet() -> None:
    Picky.asked, Picky.keys, Picky.strict, Picky.removed = [], set(), True, None


@pytest.mark.whole
def test_a_refused_question_is_named_and_all_other_replies_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    small = ["data.test.chain.num_problems=6", "eval.samples_per_problem=1", "rollout.max_num_seqs=1", "eval.max_tokens=99"]
    with listening(Picky) as (_, url):
        command = ["eval", "model=endpoint", f"model.url={url}", *small]
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, *command)
        said = capfd.readouterr().err
        assert end.value.code == 2 and "not this one" in said and "refuses 1 requests ('chain-" in said, said
        kept = read_rows(tmp_path / "outputs/eval/default/latest/rows-model.jsonl")
        assert len(kept) == 5 and all(row.num_tokens == 7 for row in kept)
        Picky.strict = False
        run(monkeypatch, *command)
        run(monkeypatch, *command[:-2], "rollout.max_num_seqs=2", command[-1])  # how many at a time changes no reply
    assert len(Picky.asked) == 7 and Picky.asked[6] == Picky.asked[2]
    assert len(read_rows(tmp_path / "outputs/eval/default")) == 6


def test_each_instruction_is_what_is_asked_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-mine")
    Picky.strict = False
    with listening(Picky) as (_, url):
        styles = ["eval.prompts=[plain,concise,draft,budget]", "eval.budget_tokens=77", "model.prompt='Q: {question}'"]
        small = ["data.test.chain.num_problems=1", "eval.samples_per_problem=1", "eval.temperatures=[1]"]
        run(monkeypatch, "eval", "model=endpoint", f"model.url={url}", *small, *styles)
    (question,) = json.loads((tmp_path / "outputs/eval/default/latest/questions.jsonl").read_text())["question"].splitlines()
    assert {row.prompt for row in read_rows(tmp_path / "outputs/eval/default")} == {"plain", "concise", "draft", "budget"}
    first, *others = (asked.removeprefix(f"Q: {question}") for asked in sorted(Picky.asked, key=len))
    assert first == "" and others[0] == "\nBe concise." and others[1] == "\nUse fewer than 77 tokens."
    assert others[2].startswith("\nThink step by step, but keep only a minimum draft")
    assert Picky.keys == {"Bearer secret-of-mine"}


class Thoughtful(Answering):
    """Thinks of another answer than it gives, as its template allows; the filter withholds what it is asked second."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.body())
        if not self.path.endswith("/chat/completions"):
            return self.send_json({"error": {"message": "no such address"}}, 404)
        Thoughtful.asked.append(body)
        thinks = body.get("chat_template_kwargs", {}).get("enable_thinking", False)
        reason = "content_filter" if len(Thoughtful.asked) == 2 else "stop"
        self.send_json(completion(choice("\\boxed{1}", reason, **({"reasoning": "\\boxed{2}?"} if thinks else {}))))


def test_what_a_server_thinks_is_kept_in_the_rows_of_each_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "1"}\n')
    Thoughtful.asked = []
    with listening(Thoughtful) as (_, url):
        small = ["data=mine", "data.test.mine.path=data.jsonl", "eval.temperatures=[0]", "rollout.max_num_seqs=1"]
        ways = "eval.template_kwargs={thinking: {enable_thinking: true}, answering: {enable_thinking: false}}"
        command = ["eval", "model=endpoint", f"model.url={url}", "model.chat_template_kwargs.effort=low", ways, *small]
        run(monkeypatch, *command)
        rows = read_rows(tmp_path / "outputs/eval/default")
        said = capfd.readouterr()
        run(monkeypatch, *command, "name=default")  # nothing is asked again
        assert len(Thoughtful.asked) == 4
        run(monkeypatch, *[part.replace("=low", "=high") for part in command])
        assert len(Thoughtful.asked) == 8
    assert [(row.template, row.outcome, row.reasoning) for row in rows] == [
        ("thinking", Outcome.CORRECT, "\\boxed{2}?"),
        ("thinking", Outcome.TRUNCATED, "\\boxed{2}?"),
        ("answering", Outcome.CORRECT, None),
        ("answering", Outcome.CORRECT, None),
    ]
    assert rows[1].finish_reason == "content_filter"
    assert "1 responses were withheld by the server's content filter" in said.out + said.err
    assert [body["chat_template_kwargs"] for body in Thoughtful.asked[1:3]] == [
        {"effort": "low", "enable_thinking": True},
        {"effort": "low", "enable_thinking": False},
    ]


@pytest.mark.whole
def test_a_run_folder_that_is_removed_ends_the_run(tmp_path: Path):
    Picky.strict, Picky.removed = False, tmp_path / "outputs"
    with listening(Picky) as (_, url):
        small = ["data.test.chain.num_problems=3", "eval.samples_per_problem=1"]
        command = [sys.executable, "-m", "conclip", "eval", "model=endpoint", f"model.url={url}", *small]
        outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert outcome.returncode == 3, outcome.stderr
    assert (
        "the run folder 'outputs/eval/default/attempt-001' is gone" in outcome.stderr and "Traceback" not in outcome.stderr
    )


@pytest.mark.whole
@pytest.mark.parametrize(
    ("status", "code", "said"), [(402, 3, "fails: Error code: 402"), (401, 2, "OPENAI_API_KEY"), (403, 2, "OPENAI_API_KEY")]
)
def test_a_server_that_fails_ends_the_run_though_other_requests_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: int, said: str
):
    monkeypatch.setattr(Refusing, "numbers", count(1))
    monkeypatch.setattr(Refusing, "status", status)
    with listening(Refusing) as (_, url):
        arguments = ["eval", "model=endpoint", f"model.url={url}", "data.test.chain.num_problems=3"]
        command = [sys.executable, "-m", "conclip", *arguments]
        outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert outcome.returncode == code, outcome.stderr
    assert said in outcome.stderr and "Traceback" not in outcome.stderr

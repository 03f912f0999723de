"""Models that think, behind published templates: the same verdict in process and behind vLLM's server, with and without a
reasoning parser; thinking budgets and the template's own end of a turn."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from conclip.cli.main import main
from conclip.evaluation.rows import read_rows
from conclip.models.load import load_tokenizer
from conclip.types import EvalRow, Outcome
from tests.chat_templates import MAGISTRAL, QWEN3, R1_DISTILL, SMOLLM3
from tests.serving import vllm_server
from tests.thinking_model import Memory, make_models

pytestmark = pytest.mark.thinking

BEHIND = {
    "case a": r"Is it \boxed{7}? No.|It is \boxed{9}.",
    "case b": r"It is \boxed{9}.|I am lost.",
    "case c": r"It is \boxed{7}.|The answer is 9.",
    "case d": r"It is \boxed{9}.",
    "case e": r"It is \boxed{9}. " * 4,
}
"""What the model thinks and says by question; | closes the part, which stays open in two of them."""

OUTCOMES = {
    "case a": (Outcome.CORRECT, Outcome.CORRECT),
    "case b": (Outcome.NO_ANSWER, Outcome.NO_ANSWER),
    "case c": (Outcome.NO_ANSWER, Outcome.CORRECT),
    "case d": (Outcome.NO_ANSWER, Outcome.NO_ANSWER),
    "case e": (Outcome.TRUNCATED, Outcome.TRUNCATED),
}
"""Strict and lenient."""

LIMIT = 40
SPOKEN = {"case a": r"It is \boxed{9}.", "case b": r"It is \boxed{8}.", "case c": "9", "case d": "?", "case e": "lost"}
"""What it says when the template lets it think nothing."""
ANSWERED = {"case a": Outcome.CORRECT, "case b": Outcome.WRONG} | dict.fromkeys(
    ["case c", "case d", "case e"], Outcome.NO_ANSWER
)


def written(opened: str, closed: str, thinks: bool | None = None) -> dict[tuple[str, bool | None], str]:
    return {(question, thinks): opened + text.replace("|", closed) for question, text in BEHIND.items()}


MEMORIES = {
    "qwen3": Memory(
        template=QWEN3,
        end="<|im_end|>",
        responses=written("<think>\n", "\n</think>\n\n") | {(question, False): text for question, text in SPOKEN.items()},
    ),
    "r1": Memory(
        template=R1_DISTILL, end="<\uff5cend\u2581of\u2581sentence\uff5c>", responses=written("", "\n</think>\n\n")
    ),
    "smollm3": Memory(template=SMOLLM3, end="<|im_end|>", responses=written("<think>\n", "\n</think>\n")),
    "magistral": Memory(
        template=MAGISTRAL, end="<|end|>", responses=written("[THINK]", "[/THINK]"), special=("[THINK]", "[/THINK]")
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"), MEMORIES)


def evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *overrides: str) -> list[EvalRow]:
    (folder / "data.jsonl").write_text("".join(f'{{"question": "{case}", "answer": "9"}}\n' for case in BEHIND))
    small = ["data=mine", "data.test.mine.path=data.jsonl", "eval.temperatures=[0]", f"eval.max_tokens={LIMIT}"]
    small += ["rollout.max_model_len=400", "rollout.max_num_seqs=8", 'model.prompt="{question}"', "model.dtype=float32"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["conclip", "eval", f"name={name}", *small, *overrides])
    main()
    return read_rows(folder / "outputs/eval" / name)


def verdicts(rows: list[EvalRow]) -> dict[str, tuple[Outcome, Outcome]]:
    """By question; ids number them in the order of the file."""
    return {case: (row.outcome, row.lenient_outcome) for case, row in zip(BEHIND, rows, strict=True)}


def with_known_end(model: Path, folder: Path, token: str) -> Path:
    """The model for a server, which reads no template for the token that ends a turn."""
    shutil.copytree(model, folder)
    file = folder / "generation_config.json"
    end = load_tokenizer(folder).convert_tokens_to_ids(token)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": end}))
    return folder


@pytest.mark.parametrize("name", MEMORIES)
def test_each_form_of_thinking_gets_its_verdict_in_process(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    rows = evaluate(tmp_path, monkeypatch, "here", "model=hf", f"model.path={models[name]}")
    assert verdicts(rows) == OUTCOMES
    said = [MEMORIES[name].responses[case, None] for case in BEHIND]
    assert [row.text for row in rows[:4]] == said[:4]  # tags that are special tokens included
    assert [row.finish_reason for row in rows] == ["stop"] * 4 + ["length"]
    assert rows[4].num_tokens == LIMIT and rows[4].extracted is None and rows[4].lenient_extracted is None


@pytest.mark.parametrize(
    ("name", "options", "keys"),
    [
        ("qwen3", (), ()),
        ("qwen3", ("--reasoning-parser", "qwen3"), ()),
        ("r1", (), ()),
        ("r1", ("--reasoning-parser", "deepseek_r1"), ()),
        ("magistral", (), ('model.thinking_tags=["[THINK]","[/THINK]"]',)),
    ],
)
def test_the_same_response_gets_the_same_verdict_behind_a_server(
    models: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: tuple[str, ...],
    keys: tuple[str, ...],
):
    folder = with_known_end(models[name], tmp_path / "served", MEMORIES[name].end)
    with vllm_server(folder, *options) as url:
        rows = evaluate(tmp_path, monkeypatch, "there", "model=endpoint", f"model.url={url}", *keys)
    assert verdicts(rows) == OUTCOMES
    assert [row.reasoning is not None for row in rows] == [bool(options)] * 5


WAYS = "eval.template_kwargs={thinking: {enable_thinking: true}, answering: {enable_thinking: false}}"


def check_columns(rows: list[EvalRow]) -> None:
    """Two templates x two budgets: thinking on and off, free and capped."""
    columns: dict[tuple[str, int | None], list[EvalRow]] = {
        way: [row for row in rows if (row.template, row.thinking_budget) == way]
        for way in (("thinking", None), ("thinking", 6), ("answering", None), ("answering", 6))
    }
    assert sum(map(len, columns.values())) == len(rows) == 20
    assert verdicts(columns["thinking", None]) == OUTCOMES
    for budget in (None, 6):
        assert [row.outcome for row in columns["answering", budget]] == list(ANSWERED.values())
    for free, capped in zip(columns["thinking", None], columns["thinking", 6], strict=True):
        whole = [row.text if row.reasoning is None else f"<think>{row.reasoning}</think>" for row in (free, capped)]
        thought = [text.partition("</think>")[0].removeprefix("<think>") for text in whole]
        assert thought[1] == thought[0][:6] and len(thought[0]) > 10  # a character is a token here
        assert "</think>" in whole[1]  # closed by the engine where the model leaves it open
        assert capped.key != free.key


def test_templates_and_budgets_are_columns_in_process(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    told = ["model=hf", f"model.path={models['qwen3']}", WAYS, "eval.thinking_budgets=[null,6]"]
    check_columns(evaluate(tmp_path, monkeypatch, "here", *told))
    shown = capfd.readouterr().out
    assert "model, thinking, thinking <= 6" in shown and "model, answering" in shown and "thinking free" not in shown
    again = evaluate(tmp_path, monkeypatch, "here", *told, "resume=never", "rollout.engine=child_process")
    check_columns(again)


def test_templates_and_budgets_are_columns_behind_a_server(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = with_known_end(models["qwen3"], tmp_path / "served", "<|im_end|>")
    settings = json.dumps({"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"})
    with vllm_server(folder, "--reasoning-config", settings) as url:
        told = ["model=endpoint", f"model.url={url}", WAYS, "eval.thinking_budgets=[null,6]"]
        check_columns(evaluate(tmp_path, monkeypatch, "there", *told))


def test_a_server_without_settings_for_thinking_refuses_a_budget_in_one_line(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    with vllm_server(models["qwen3"]) as url, pytest.raises(SystemExit) as end:
        evaluate(tmp_path, monkeypatch, "there", "model=endpoint", f"model.url={url}", "eval.thinking_budgets=[6]")
    assert end.value.code == 2 and "reasoning" in capfd.readouterr().err


def test_a_named_token_ends_a_response(models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = ["model=hf", f"model.path={models['smollm3']}", 'model.stop_tokens=["</think>"]']
    rows = evaluate(tmp_path, monkeypatch, "here", *told)
    assert [row.text.count("</think>") for row in rows] == [1, 1, 1, 0, 0]
    assert all(row.text.endswith("</think>") and row.finish_reason == "stop" for row in rows[:3])

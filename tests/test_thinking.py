"""What stands inside a thinking part is no answer, whatever the template, and whoever took the part out."""

# pyarrow ships no annotations.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# ruff: noqa: RUF001  DeepSeek's tokens are spelt with full-width bars

import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerBase

from benchmarks.lab_model.tokenizer import CHAT_TEMPLATE, build_tokenizer
from conclip.config.compose import load_config
from conclip.config.groups import ModelConfig
from conclip.errors import UserError
from conclip.evaluation.regrade import grade_file
from conclip.evaluation.rows import from_dict, read_rows, to_dict, write_parquet
from conclip.evaluation.tables import by_condition
from conclip.grading.thinking import DEFAULT_TAGS, KNOWN_TAGS, PLAIN, Thinking, ThinkingTags, answer_of, joined, num_unopened
from conclip.models.chat_template import check_template_kwargs, decoder, end_of_turn, known_tags, named_tokens, thinking_of
from conclip.models.load import load_tokenizer
from conclip.problems.prompts import encode_prompt
from conclip.rollout.reply import Reply, read_choice
from conclip.runs.identity import relevant, sampling_hash
from conclip.types import EvalRow, Outcome
from tests.chat_templates import GLM4, MAGISTRAL, OWN_TOKENS, QWEN3, QWEN3_THINKING, R1_DISTILL, SMOLLM3
from tests.conftest import make_row

MODEL = ModelConfig(path="lab", dtype="float32", prompt="{question}", system=None, trust_remote_code=False)
OPENED = Thinking(opened=True)


def ids_of(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> tuple[int, ...]:
    return tuple(tokenizer.get_vocab()[token] for token in tokens)


def tokenizer_with(template: str, tags: ThinkingTags = DEFAULT_TAGS, *, special: bool = False) -> PreTrainedTokenizerBase:
    """The lab's tokenizer with a published model's template and tokens."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in OWN_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, special=special, normalized=False) for tag in (tags.open, tags.close)])
    tokenizer.chat_template = template
    return tokenizer


# Text


@pytest.mark.parametrize(
    ("thinking", "text", "answer"),
    [
        # opened in the response, closed; opened there and not closed
        (PLAIN, r"<think>\boxed{7}?</think> \boxed{9}", r" \boxed{9}"),
        (PLAIN, r"<think>\boxed{7}?</think>", ""),
        (PLAIN, r"<think>\boxed{7}? no", ""),
        # opened in the prompt, closed; opened there and not closed
        (OPENED, r"\boxed{7}?</think> \boxed{9}", r" \boxed{9}"),
        (OPENED, r"\boxed{7}?", ""),
        (OPENED, r"<think>\boxed{7}?</think> \boxed{9}", r" \boxed{9}"),  # opened twice
        # no part at all; one that began before the response did, unknown to us
        (PLAIN, r"\boxed{9}", r"\boxed{9}"),
        (PLAIN, r"\boxed{7}?</think> \boxed{9}", r" \boxed{9}"),
        # several parts, the last one open or closed; nested ones; the opening tag as text; a stray closing tag
        (PLAIN, "<think>a</think> 1 <think>b</think> 2", " 2"),
        (PLAIN, r"<think>a</think> \boxed{1} <think>b", ""),
        (PLAIN, r"\boxed{1} <think>b", ""),
        (PLAIN, r"<think>a <think>b</think> \boxed{7} </think> 9", " 9"),
        (PLAIN, r"<think>a <think> tag, \boxed{7}</think> \boxed{9}", r" \boxed{9}"),
        (PLAIN, r"<think>a</think> \boxed{9}</think>", r" \boxed{9}</think>"),
        # other tags are text
        (PLAIN, "[THINK]a[/THINK] 9", "[THINK]a[/THINK] 9"),
        (Thinking(KNOWN_TAGS[1]), "[THINK]a[/THINK] 9", " 9"),
        (Thinking(ThinkingTags("(", ")")), "(a) 9", " 9"),
        (PLAIN, "", ""),
        (OPENED, "", ""),
    ],
)
def test_the_answer_stands_behind_the_thinking_part(thinking: Thinking, text: str, answer: str):
    assert answer_of(text, thinking) == answer


@given(st.lists(st.sampled_from(["<think>", "</think>", "x", " "]), max_size=12).map("".join), st.booleans())
def test_an_answer_is_an_end_of_the_response_and_holds_no_part_of_its_own(text: str, opened: bool):
    answer = answer_of(text, Thinking(opened=opened))
    assert text.endswith(answer) and "<think>" not in answer
    assert answer_of(f"<think>{text}</think>{'y' * 3}").endswith("yyy")


@given(st.text(alphabet="ab<\n", max_size=20), st.text(alphabet="ab<\n", max_size=20))
def test_a_part_that_a_server_takes_out_changes_no_answer(reasoning: str, content: str):
    together = f"<think>{reasoning}</think>{content}"
    assert answer_of(joined(reasoning, content, DEFAULT_TAGS)) == answer_of(together) == content
    assert answer_of(together.removeprefix("<think>"), OPENED) == content


def test_a_closing_tag_alone_is_noticed():
    closing, opening = "7?</think>9", "<think>7?</think>9"
    assert num_unopened([closing, closing, opening, "9"], PLAIN) == 2 and num_unopened([closing], OPENED) == 0
    assert num_unopened([opening, "9"], PLAIN) == 0
    assert num_unopened([closing, opening], PLAIN) == 0  # a slip: the prompt would open it for both


def test_a_million_tags_take_no_time():
    text = "<think></think>" * 500_000
    assert answer_of(text + "9") == "9"


# Templates and tokenizers


@pytest.mark.parametrize(
    ("template", "template_kwargs", "system", "opened"),
    [
        (QWEN3, {}, None, False),
        (QWEN3, {"enable_thinking": True}, None, False),
        (QWEN3, {"enable_thinking": False}, None, False),
        (QWEN3_THINKING, {}, None, True),
        (R1_DISTILL, {}, None, True),
        (SMOLLM3, {}, None, False),
        (SMOLLM3, {"enable_thinking": False}, None, False),
        (SMOLLM3, {}, "Close what you open: <think>", False),
        (QWEN3_THINKING, {}, "Write </think> when you are done.", True),
    ],
)
def test_the_template_says_whether_the_prompt_opens_the_part(
    template: str, template_kwargs: Mapping[str, Any], system: str | None, opened: bool
):
    model = replace(MODEL, system=system, prompt="Think: <think> {question}")
    assert thinking_of(tokenizer_with(template), model, template_kwargs) == Thinking(opened=opened)
    told = replace(model, thinking_in_prompt=not opened)
    is_off = template_kwargs.get("enable_thinking") is False  # the model's key is for prompts that think
    assert thinking_of(tokenizer_with(template), told, template_kwargs).opened is (opened if is_off else not opened)


@pytest.mark.parametrize("tags", KNOWN_TAGS, ids=lambda tags: tags.open)
def test_tags_are_found_in_the_template_and_among_the_tokens(tags: ThinkingTags):
    plain = build_tokenizer()
    assert known_tags(plain, MODEL) is None
    assert known_tags(plain, replace(MODEL, thinking_tags=["(", ")"])) == ThinkingTags("(", ")")
    assert known_tags(tokenizer_with(CHAT_TEMPLATE, tags), MODEL) == tags
    plain.chat_template = QWEN3.replace("<think>", tags.open).replace("</think>", tags.close)
    assert known_tags(plain, MODEL) == tags
    both = tokenizer_with(str(plain.chat_template), DEFAULT_TAGS)  # a fine-tune of a model that has other tokens
    assert known_tags(both, MODEL) == tags


def test_magistrals_tags_are_kept_though_they_are_special_tokens():
    tags = ThinkingTags("[THINK]", "[/THINK]")
    tokenizer = tokenizer_with(MAGISTRAL, tags, special=True)
    assert thinking_of(tokenizer, MODEL, {}) == Thinking(tags)
    ids = tokenizer.encode(r"[THINK]7[/THINK][INST]\boxed{9}<|end|>", add_special_tokens=False)
    assert "THINK" not in tokenizer.decode(ids, skip_special_tokens=True)
    assert decoder(tokenizer, tags)(ids) == r"[THINK]7[/THINK]\boxed{9}"


@given(st.lists(st.integers(0, 120), max_size=30))
def test_text_is_what_it_was_but_for_tags_that_are_special_tokens(ids: list[int]):
    for special, tokenizer in TOKENIZERS.items():
        tags = ids_of(tokenizer, "<think>", "</think>")
        others = [number for number in ids if not special or number not in tags]
        text = decoder(tokenizer, DEFAULT_TAGS)(others)
        assert text == tokenizer.decode(others, skip_special_tokens=True)


TOKENIZERS = {special: tokenizer_with(QWEN3, special=special) for special in (False, True)}


@pytest.mark.parametrize(
    ("template", "tokens"),
    [
        (QWEN3, "<|im_end|>"),
        (QWEN3_THINKING, "<|im_end|>"),
        (SMOLLM3, "<|im_end|>"),
        (R1_DISTILL, "<｜end▁of▁sentence｜>"),
        (MAGISTRAL, "<|end|>"),
        (GLM4, "<|user|>"),
        ("{{ messages[1].content }}[/INST] <|im_end|>\n", "[/INST] <|im_end|>"),
        ("{{ messages[-1].content }} and so on", ""),
        ("{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}", ""),
    ],
)
def test_the_template_says_which_tokens_end_a_turn(template: str, tokens: str):
    tokenizer = tokenizer_with(template)
    assert end_of_turn(tokenizer) == ids_of(tokenizer, *tokens.split())


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_a_real_models_template_says_which_token_ends_a_turn(name: str):
    folder = Path(os.environ.get("SMALL_MODELS", Path.home() / ".cache/small-models")) / name
    if not folder.is_dir():
        pytest.skip(f"no model in '{folder}'")
    tokenizer = load_tokenizer(folder)
    assert end_of_turn(tokenizer) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert known_tags(tokenizer, MODEL) is None and thinking_of(tokenizer, MODEL, {}) == PLAIN


def test_stop_tokens_are_named_by_their_text():
    tokenizer = tokenizer_with(QWEN3)
    assert named_tokens(tokenizer, ["<|im_end|>", "7"], "k") == tokenizer.convert_tokens_to_ids(["<|im_end|>", "7"])
    for wrong in ("<|im_over|>", "\u4e2d"):
        with pytest.raises(UserError, match=r"model\.stop_tokens: .* is not one token"):
            named_tokens(tokenizer, [wrong], "model.stop_tokens")


def test_an_argument_the_template_never_reads_is_refused():
    for template in (QWEN3, SMOLLM3):
        check_template_kwargs(tokenizer_with(template), {"enable_thinking": False}, "k")
    with pytest.raises(UserError, match="reads no 'enable_thinkng'; did you mean 'enable_thinking'"):
        check_template_kwargs(tokenizer_with(QWEN3), {"enable_thinkng": False}, "k")
    with pytest.raises(UserError, match="reads no 'think'"):
        check_template_kwargs(tokenizer_with(QWEN3), {"think": False}, "k")  # a part of a word


def test_the_template_gets_its_arguments():
    tokenizer = tokenizer_with(QWEN3)
    prompts = [
        str(
            tokenizer.decode(
                list(encode_prompt(tokenizer, "1+1", replace(MODEL, chat_template_kwargs=own), template_kwargs=more))
            )
        )
        for own, more in (({}, None), ({"enable_thinking": False}, None), ({"enable_thinking": False}, {}))
    ]
    assert [prompt.endswith("assistant\n<think>\n\n</think>\n\n") for prompt in prompts] == [False, True, False]


# Configs, hashes, rows


def test_arguments_of_the_template_are_part_of_every_hash():
    plain = load_config("probe", "model=hf", "model.path=x")
    other = load_config("probe", "model=hf", "model.path=x", "model.chat_template_kwargs.enable_thinking=false")
    stops = load_config("probe", "model=hf", "model.path=x", 'model.stop_tokens=["<|im_end|>"]')
    assert other.model.chat_template_kwargs == {"enable_thinking": False}
    assert len({sampling_hash(config) for config in (plain, other, stops)}) == 3
    assert relevant(plain) != relevant(other) != relevant(stops)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (['model.thinking_tags=["<think>"]'], "model.thinking_tags"),
        (["model.thinking_tags=[x,x]"], "model.thinking_tags"),
        (["model.chat_template_kwargs={tokenize: true}"], "model.chat_template_kwargs.tokenize"),
        (["eval.template_kwargs={a: {add_generation_prompt: false}}"], "eval.template_kwargs.a.add_generation_prompt"),
        (["eval.template_kwargs={a: 1}"], "eval.template_kwargs.a"),
        (["eval.thinking_budgets=[]"], "eval.thinking_budgets"),
        (["eval.thinking_budgets=[-1]"], "eval.thinking_budgets"),
        (["eval.thinking_budgets=[5,5]"], "eval.thinking_budgets"),
        (["model=endpoint", "model.url=http://x/v1", "model.stop_tokens=[a]"], "model.stop_tokens"),
    ],
)
def test_settings_of_thinking_are_checked(overrides: list[str], said: str):
    with pytest.raises(UserError) as caught:
        load_config("eval", *overrides)
    assert said in str(caught.value)


OLD_COLUMNS = {item.name for item in fields(EvalRow)} - {"template", "thinking_budget", "reasoning"}


def test_rows_of_the_last_version_still_read():
    row = make_row("p", Outcome.CORRECT, 5, template="answering", thinking_budget=7, reasoning="hm")
    assert from_dict(json.loads(json.dumps(to_dict(row)))) == row
    old = {name: value for name, value in to_dict(row).items() if name in OLD_COLUMNS}
    assert from_dict(old | {"schema": 2}) == replace(row, template="default", thinking_budget=None, reasoning=None)
    with pytest.raises(UserError, match="schema 1"):
        from_dict(old | {"schema": 1})


def test_rows_survive_parquet_whatever_their_columns_hold(tmp_path: Path):
    plain = [make_row("p", Outcome.CORRECT, 5)]
    full = [make_row("p", Outcome.CORRECT, 5, template="t", thinking_budget=0, reasoning="hm"), *plain]
    for rows in (plain, full):
        write_parquet(rows, tmp_path / "rows.parquet")
        assert read_rows(tmp_path / "rows.parquet") == rows
    old = [{name: value for name, value in to_dict(row).items() if name in OLD_COLUMNS} | {"schema": 2} for row in plain]
    pq.write_table(pa.Table.from_pylist(old), tmp_path / "old.parquet")
    assert read_rows(tmp_path / "old.parquet") == plain


def test_columns_of_a_table_say_how_the_model_was_asked():
    rows = [
        make_row("p", Outcome.CORRECT, 5, template=template, thinking_budget=budget)
        for template in ("thinking", "answering")
        for budget in (None, 64)
    ]
    assert list(by_condition(rows)) == [
        "model, thinking",
        "model, thinking, thinking <= 64",
        "model, answering",
        "model, answering, thinking <= 64",
    ]
    assert list(by_condition(rows[:1])) == ["model"]
    ways = [("default", None), ("thinking off", None), ("default", 64)]
    rows = [make_row("p", Outcome.CORRECT, 5, template=template, thinking_budget=budget) for template, budget in ways]
    assert list(by_condition(rows)) == ["model", "model, thinking off", "model, thinking <= 64"]


# Servers


def choice(content: Any, finish_reason: Any = "stop", **more: Any) -> Any:
    return SimpleNamespace(message=SimpleNamespace(content=content, **more), finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("said", "text", "reasoning"),
    [
        (choice("9"), "9", None),
        (choice("9", reasoning_content="7?"), "9", "7?"),
        (choice("9", reasoning="7?"), "9", "7?"),
        (choice("9", reasoning="7?", reasoning_content="7?"), "9", "7?"),
        (choice("9", reasoning_content=None, reasoning=None), "9", None),
        (choice(None, reasoning="7?"), "", "7?"),
        (choice(None), "", None),
        (choice("9", reasoning=["7?"]), "9", None),
        (choice([{"type": "text", "text": "it is "}, {"type": "text", "text": "9"}]), "it is 9", None),
        (
            choice([{"type": "thinking", "thinking": [{"type": "text", "text": "7?"}]}, {"type": "text", "text": "9"}]),
            "9",
            "7?",
        ),
        (choice([{"type": "reasoning", "text": "7?"}, "9"]), "9", "7?"),
        (choice([{"type": "image_url"}, 5, {"type": "text", "text": 5}]), "", None),
    ],
)
def test_a_servers_message_is_read_whatever_its_shape(said: Any, text: str, reasoning: str | None):
    assert read_choice(said) == Reply(text=text, reasoning=reasoning, finish_reason="stop")


@pytest.mark.parametrize("content", [{"text": "9"}, 9, True])
def test_content_that_is_neither_text_nor_parts_is_refused(content: Any):
    with pytest.raises(TypeError, match="content is no text"):
        read_choice(choice(content))


@pytest.mark.parametrize(
    ("finish_reason", "meaning"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("abort", "abort"),
        ("error", "abort"),
        ("tool_calls", "stop"),
        (None, "stop"),
        (5, "stop"),
    ],
)
def test_a_servers_finish_reason_is_read(finish_reason: Any, meaning: str):
    assert read_choice(choice("9", finish_reason)).finish_reason == meaning


# `conclip grade`


def test_free_responses_are_graded_behind_their_thinking_part(tmp_path: Path):
    rows = {
        r"<think>Perhaps \boxed{7}. No.</think> The answer is \boxed{9}.": "correct",
        r"<think>It is \boxed{9}.</think> I could not find it.": "wrong",  # the rest is taken whole
        r"<think>It is \boxed{9}.</think>": "no_answer",
        r"<think>It is \boxed{9}.": "no_answer",
        r"It is \boxed{7}.</think> \boxed{9}": "correct",
        r"[THINK]It is \boxed{7}.[/THINK]9": "correct",
        r"<seed:think>It is \boxed{9}.": "no_answer",
    }
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"gold": "9", "response": response}) + "\n" for response in rows))
    grade_file(source, tmp_path / "out.jsonl", audit=False)
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["response"]: row["outcome"] for row in graded} == rows

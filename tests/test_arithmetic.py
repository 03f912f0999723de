"""Generated problems: right answers by an independent route, disjoint splits, unique solutions."""

import random

import pytest

from benchmarks.lab_model.tokenizer import build_tokenizer
from benchmarks.lab_model.traces import trace
from conclip.grading.answers import extract_boxed
from conclip.lab.arithmetic import generate, sample_chain
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_tokenizer


def solve(question: str) -> list[int]:
    """All digits that answer a question, found by trying the ten and evaluating the text."""
    *statements, last = question.split(";")
    name, _, target = last.partition("?")
    if target:  # search: which x?
        statements.append(f"{name}={target}")
    unknown = "x" if target else name
    found: list[int] = []
    for digit in range(10):
        known = {"x": digit} if target else {}
        fits = True
        for statement in statements:
            name, expression = statement.split("=")
            value = eval(expression, {}, dict(known)) % 10
            fits &= known.setdefault(name, value) == value
        if fits and known[unknown] == digit:
            found.append(digit)
    return found


@pytest.mark.parametrize("family", ["chain", "search"])
def test_answers_are_right_and_unique(family: str):
    for problem in generate(family, levels=(1, 2, 4, 6), split="test", num_problems=80, seed=3, source="s"):
        assert solve(problem.question) == [int(problem.answer)]


def test_splits_share_no_question_and_levels_are_even():
    seen: dict[str, str] = {}
    for split in ("pretrain", "train", "validation", "test"):
        problems = generate("chain", levels=(2, 3), split=split, num_problems=200, seed=0, source="s")
        assert len({p.question for p in problems}) == 200
        assert sorted(p.level or 0 for p in problems) == [2] * 100 + [3] * 100
        for problem in problems:
            assert seen.setdefault(problem.question, split) == split


def test_generation_repeats_for_a_seed_and_changes_with_it():
    def questions(seed: int) -> list[str]:
        return [p.question for p in generate("chain", levels=(3,), split="test", num_problems=9, seed=seed, source="s")]

    assert questions(1) == questions(1)
    assert not set(questions(1)) & set(questions(2))


def test_too_few_distinct_problems_is_said():
    with pytest.raises(ValueError, match=r"only .* distinct"):
        generate("chain", levels=(1,), split="validation", num_problems=1000, seed=0, source="s")


def test_the_tokenizer_that_is_loaded_is_the_one_that_was_built():
    text = "wait 3+4=7\n" + trace(sample_chain("search", 3, random.Random(0)), random.Random(0))
    assert load_tokenizer(LAB_MODEL).encode(text) == build_tokenizer().encode(text)


def test_traces_are_legible_and_survive_the_tokenizer():
    tokenizer = build_tokenizer()
    generator = random.Random(0)
    assert len(tokenizer) <= 128
    for family in ("chain", "search"):
        for _ in range(50):
            chain = sample_chain(family, generator.randint(1, 4), generator)
            text = trace(chain, generator)
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert extract_boxed(text) in [str(digit) for digit in range(10)]


def test_chat_template_opens_the_assistant_turn():
    tokenizer = build_tokenizer()
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a=1;a?"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>a=1;a?<|end|><|assistant|>"

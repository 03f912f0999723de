"""The overlap guard: same text, near text, formulas, the record in a checkpoint."""

import dataclasses
from pathlib import Path

import pytest

from conclip.errors import UserError
from conclip.problems.overlap import apart_from, check_overlap, overlapping, trained_on, write_record
from conclip.types import Problem


def problem(question: str, name: str = "p") -> Problem:
    return Problem(problem_id=name, question=question, answer="1", source="s")


STORY = "A baker sells twelve loaves in the morning and thirty loaves in the afternoon of the same day. How many in all?"


def test_the_same_text_overlaps_whatever_its_spaces_and_case():
    assert overlapping([problem(f"  {STORY.upper()}\n")], [STORY])
    assert overlapping([problem("a=3;b=a+4;b?")], ["A = 3; b = a + 4; b?"])


def test_a_rephrased_end_still_overlaps_and_another_story_does_not():
    assert overlapping([problem(STORY.replace("How many in all?", "What is the total?"))], [STORY])
    other = "A farmer owns seven cows and four horses and buys three more cows at the market in town. How many are there?"
    assert not overlapping([problem(other)], [STORY])


def test_what_would_make_a_test_problem_known_is_left_out_of_the_pool():
    asked = [problem(STORY), problem("A = 3; b = a + 4; b?")]
    longer = f"{STORY} Say how you found it, in one short sentence, and then write the number of loaves in a box."
    same = [problem(text) for text in (STORY.upper(), STORY.replace("How many in all?", "What is the total?"), longer)]
    other = [
        problem("A baker sells ten rolls and then two more of them before noon on the same day. How many rolls are sold?")
    ]
    other += [problem("a=3;b=a+5;b?")]
    assert apart_from([*same, *other, problem("a=3;b=a+4;b?")], asked) == other
    assert not overlapping(asked, [one.question for one in other])  # as a checkpoint's record is read
    assert all(overlapping(asked, [one.question]) for one in same)
    assert apart_from(same, []) == same


INSTRUCTION = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem. "
)


def test_an_instruction_that_comes_with_each_question_is_no_overlap():
    asked = [problem(INSTRUCTION + text, text) for text in ("What is 3 + 4 * 5?", STORY, "Find x with 2 * x = 18.", "3 - 1")]
    pool = [
        problem(INSTRUCTION + text)
        for text in ("What is 3 + 4 * 7?", "3 - 2", "A hen lays two eggs each day. How many a week?")
    ]
    assert apart_from(pool, asked) == pool
    assert overlapping(asked, [one.question for one in pool]) == []
    rephrased = problem(INSTRUCTION + STORY.replace("How many in all?", "What is the total?"))
    assert apart_from([rephrased], asked) == []
    assert overlapping(asked, [rephrased.question]) == [asked[1]]


def test_an_instruction_of_a_part_of_a_mixture_is_no_overlap_either():
    other = "Your task is to follow a systematic and thorough reasoning process before you provide the final solution: "
    asked = [problem(text + f"What is {n} + {n}?") for text in (INSTRUCTION, other, "") for n in range(3, 7)]
    pool = [problem(text + f"What is {n} - 2?") for text in (INSTRUCTION, other, "") for n in range(3, 7)]
    assert apart_from(pool, asked) == pool and overlapping(asked, [one.question for one in pool]) == []


def test_two_questions_that_are_the_same_problem_are_not_taken_for_an_instruction():
    asked = [problem(STORY), problem(STORY.replace("How many in all?", "What is the total?"))]
    assert overlapping(asked, [STORY.replace("How many in all?", "Count them.")]) == asked


def test_formulas_with_the_same_signs_do_not_overlap():
    trained = [f"a={n};b=a+{n};c=b*3;d=c-{n};d?" for n in range(1, 9)]
    assert not overlapping([problem("a=9;b=a+9;c=b*3;d=c-9;d?")], trained)
    assert not overlapping([problem("a=1;b=a-1;c=b*3;d=c-1;d?")], trained)


def test_worked_examples_make_no_overlap_and_hide_none(tmp_path: Path):
    shots = ("one two three four five six seven eight nine\nAnswer: \\boxed{1}",)
    asked = [dataclasses.replace(problem(text), examples=shots) for text in ("1+1", "2+2")]
    write_record(tmp_path, [], asked[:1])
    assert overlapping(asked, trained_on(tmp_path)) == asked[:1]
    assert overlapping([problem("1+1")], trained_on(tmp_path))


def test_a_checkpoint_says_what_it_was_trained_on_through_all_phases(tmp_path: Path):
    assert trained_on(tmp_path) == []
    write_record(tmp_path, ["first"], [problem("second"), problem("first")])
    assert trained_on(tmp_path) == ["first", "second"]
    with pytest.raises(UserError, match=r"model\.path: trained on 1 of the 2 test problems.*allow_overlap=true"):
        check_overlap("model.path", tmp_path, [problem("second", "q"), problem("third")], allowed=False)
    note = check_overlap("model.path", tmp_path, [problem("second", "q")], allowed=True)
    assert note is not None and "memory" in note
    assert check_overlap("model.path", tmp_path, [problem("third")], allowed=False) is None
    (tmp_path / "trained_on.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        trained_on(tmp_path)


def test_problems_from_templates_may_be_compared_by_their_whole_text(tmp_path: Path):
    """They have all words in common and differ in their numbers; only the user knows that they are different problems."""
    asked = [problem(STORY), problem(STORY.replace("twelve", "nine"))]
    pool = [problem(STORY.replace("twelve", number)) for number in ("ten", "six", "twelve")]
    assert apart_from(pool, asked) == [] and apart_from(pool, asked, near=False) == pool[:2]
    assert overlapping(asked, [one.question for one in pool], near=False) == asked[:1]
    write_record(tmp_path, [], pool[:2])
    with pytest.raises(UserError, match=r"trained on 2 of the 2 .*near_overlap=false"):
        check_overlap("model.path", tmp_path, asked, allowed=False)
    assert check_overlap("model.path", tmp_path, asked, allowed=False, near=False) is None

"""The grader on the real path: worker processes, math-verify, limits, kills, hostile answers."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from conclip.evaluation.regrade import grade_file
from conclip.grading import worker as grading_worker
from conclip.grading.answers import extract_boxed
from conclip.grading.equivalence import same_answer
from conclip.grading.grader import Grader, GraderBroken
from conclip.processes import PYTHON
from conclip.types import Grade, Outcome
from tests.grading_cases import CASES
from tests.hostile_answers import HOSTILE

RIGHT, WRONG = Outcome.CORRECT, Outcome.WRONG


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader()
    yield grader
    grader.close()


def all_of(grader: Grader, count: int) -> dict[str, Grade]:
    verdicts: dict[str, Grade] = {}
    deadline = time.monotonic() + 240
    while len(verdicts) < count:
        assert time.monotonic() < deadline, f"{len(verdicts)} of {count} verdicts"
        verdicts |= dict(grader.poll(1.0))
    return verdicts


def boxed(answer: str) -> str:
    return f"so it is \\boxed{{{answer}}}"


@pytest.mark.parametrize("category", sorted(CASES))
def test_every_pair_of_the_table(grader: Grader, category: str):
    cases = CASES[category]
    for number, (gold, answer, _) in enumerate(cases):
        grader.submit_answer(str(number), gold=gold, answer=answer)
    verdicts = all_of(grader, len(cases))
    differing = [  # an answer that only breaks the grader was not found to be wrong
        (gold, answer, verdicts[str(number)].outcome)
        for number, (gold, answer, same) in enumerate(cases)
        if verdicts[str(number)].outcome is not (RIGHT if same else WRONG if answer else Outcome.NO_ANSWER)
    ]
    assert differing == []


@pytest.mark.whole
@pytest.mark.parametrize(("name", "count"), [("answer_pairs", 983), ("answer_kinds", 2874), ("answer_hard", 3919)])
def test_labelled_responses(tmp_path: Path, name: str, count: int):
    """Responses of every kind, labelled by others than the grader's author, through the command people use."""
    target = tmp_path / "graded.jsonl"
    grade_file(Path(__file__).parent / f"{name}.jsonl", target, audit=False)
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    accepted = {True: ["correct"], False: ["wrong", "no_answer"]}
    differing = [(r["gold"], r["response"], r["outcome"]) for r in rows if r["outcome"] not in accepted[r["label"]]]
    assert len(rows) == count and differing == []


@pytest.mark.whole
def test_verdicts_do_not_depend_on_the_hash_seed():
    """The same pairs in workers whose sets and dictionaries are ordered otherwise."""
    rows = [json.loads(line) for line in (Path(__file__).parent / "answer_kinds.jsonl").read_text().splitlines()[::8]]
    answers = [extract_boxed(row["response"]) or row["response"] for row in rows]
    pairs = [{"golds": [r["gold"]], "answer": a, "choices": r["choices"]} for r, a in zip(rows, answers, strict=True)]
    asked = "".join(json.dumps(pair) + "\n" for pair in pairs).encode()
    command = [*PYTHON, "-m", "conclip.grading.worker"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "20")
    ]
    first, second = (worker.communicate(asked, timeout=120)[0].splitlines() for worker in workers)
    assert first == second and len(first) == len(pairs) + 1 > 290


def test_strict_and_lenient_side_by_side(grader: Grader):
    both = grader.grade(gold="1/2", text=boxed("0.5"))
    assert (both.outcome, both.lenient_outcome, both.method) == (Outcome.CORRECT, Outcome.CORRECT, "boxed")
    said = grader.grade(gold="7", text="The answer is 7.")
    assert (said.outcome, said.extracted) == (Outcome.NO_ANSWER, None)
    assert (said.lenient_outcome, said.lenient_extracted, said.method) == (Outcome.CORRECT, "7", "phrase")
    nothing = grader.grade(gold="7", text="no idea")
    assert (nothing.outcome, nothing.lenient_outcome, nothing.method) == (Outcome.NO_ANSWER, Outcome.NO_ANSWER, None)


def test_a_truncated_response_is_neither_right_nor_wrong(grader: Grader):
    cut = grader.grade(gold="7", text=boxed("7") + " wait", finish_reason="length")
    assert cut.outcome is cut.lenient_outcome is Outcome.TRUNCATED and cut.extracted == "7"


def test_choices_and_decimals(grader: Grader):
    grader.submit("a", gold="B", text=boxed("12"), finish_reason="stop", choices=["10", "12"])
    grader.submit("b", gold="B", text=boxed("10"), finish_reason="stop", choices=["10", "12"])
    grader.submit("c", gold="0.333", text=boxed("0.3334"), finish_reason="stop", decimals=3)
    grader.submit("d", gold="0.333", text=boxed("0.3334"), finish_reason="stop")
    outcomes = {key: grade.outcome for key, grade in all_of(grader, 4).items()}
    assert outcomes == {"a": RIGHT, "b": WRONG, "c": RIGHT, "d": WRONG}


def test_each_of_several_golds_is_right_by_itself(grader: Grader):
    asked = {
        "first": ((r"\frac12", "5"), "0.5"),
        "second": (("5", r"\frac12"), "0.5"),
        "spelled like the last": (("5", "6", r"\text{Monday}"), "Monday"),
        "none": (("5", "6"), "7"),
        "both at once": (("5", "6"), "5, 6"),
        "one": ("5", "5"),
    }
    for key, (gold, answer) in asked.items():
        grader.submit(key, gold=gold, text=boxed(answer), finish_reason="stop")
    verdicts = {key: grade.outcome.value for key, grade in all_of(grader, len(asked)).items()}
    assert verdicts == {
        "first": "correct",
        "second": "correct",
        "spelled like the last": "correct",
        "none": "wrong",
        "both at once": "wrong",
        "one": "correct",
    }
    grader.submit("letters", gold=("A", "C"), text=boxed("C"), finish_reason="stop", choices=["1", "2", "1"])
    assert all_of(grader, 1)["letters"].outcome is Outcome.CORRECT


def test_a_gold_that_cannot_be_judged_makes_no_response_wrong(monkeypatch: pytest.MonkeyPatch):
    def fails_on_three(gold: str, answer: str, **settings: Any) -> bool:
        if gold == "3":
            raise ValueError("a fault of a library")
        return same_answer(gold, answer, **settings)

    monkeypatch.setattr(grading_worker, "same_answer", fails_on_three)
    assert grading_worker.judge(["3", "4"], "14/2") is Outcome.GRADER_ERROR
    assert grading_worker.judge(["3", "7"], "14/2") is Outcome.CORRECT
    assert grading_worker.judge(["5", "4"], "14/2") is Outcome.WRONG


@pytest.mark.whole
def test_hostile_answers_end_within_the_limits_and_the_rest_is_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # where code that an answer got executed would write
    grader = Grader(cpu_limit_s=1)
    before = psutil.Process().memory_info().rss
    try:
        for name, text in HOSTILE.items():
            grader.submit(name, gold="3", text=text, finish_reason="stop")
            grader.submit(f"after {name}", gold="3", text=boxed(f"{len(name)}+0"), finish_reason="stop")
        verdicts = all_of(grader, 2 * len(HOSTILE))
        for name in HOSTILE:
            assert verdicts[name].outcome is not Outcome.CORRECT, name
            expected = Outcome.CORRECT if len(name) == 3 else Outcome.WRONG
            assert verdicts[f"after {name}"].outcome is expected, name
    finally:
        grader.close()
    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().memory_info().rss - before < 300 * 2**20
    assert len(HOSTILE) >= 30


def test_a_stuck_worker_is_killed_and_the_rest_is_graded():
    grader = Grader(num_workers=1, wall_limit_s=20)
    try:
        grader.grade(gold="1", text=boxed("2"))
        (worker,) = grader._state.workers
        worker.process.send_signal(signal.SIGSTOP)
        grader.submit("stuck", gold="1/2", text=boxed(r"\frac{3}{6}"), finish_reason="stop")
        worker.deadline = time.monotonic() + 0.1  # its time is nearly over; the next worker has all of its own
        grader.submit("easy", gold="1/2", text=boxed(r"\frac{2}{4}"), finish_reason="stop")
        verdicts = all_of(grader, 2)
        assert verdicts["stuck"].outcome is Outcome.GRADER_ERROR
        assert verdicts["easy"].outcome is Outcome.CORRECT
        assert worker.process.poll() == -signal.SIGKILL
    finally:
        grader.close()


def test_time_nobody_had_to_look_is_not_given_to_workers(grader: Grader):
    for before, after in ((0, 0), (1000, 0), (0, 1000)):  # a first look, one after an idle time, one that comes late
        grader._state.last_read -= before
        grader.submit("asked", gold="3", text=boxed(f"x_{{{before}{after}}}"), finish_reason="stop")
        (busy,) = [worker for worker in grader._state.workers if worker.question is not None]
        grader._state.last_read -= after
        deadline = busy.deadline
        answered = grader.poll(0.0)
        assert busy.deadline == pytest.approx(deadline + after, abs=5)
        all_of(grader, 1 - len(answered))


def test_idle_workers_that_are_killed_cost_no_verdict(grader: Grader):
    grader.grade(gold="1", text=boxed("2"))
    for worker in grader._state.workers:
        worker.process.kill()
        worker.process.wait()
    assert [grader.grade(gold="1", text=boxed(str(number))).outcome for number in range(3, 7)] == [Outcome.WRONG] * 4


@pytest.mark.parametrize(("before", "outcome"), [(0, Outcome.CORRECT), (1, Outcome.GRADER_ERROR)])
def test_an_answer_whose_worker_is_killed_gets_one_more(before: int, outcome: Outcome):
    grader = Grader(num_workers=1)
    try:
        grader.grade(gold="1", text=boxed("2"))
        (worker,) = grader._state.workers
        worker.process.send_signal(signal.SIGSTOP)  # it must not answer before it is killed
        grader.submit("asked", gold="1/2", text=boxed(r"\frac{2}{4}"), finish_reason="stop")
        if before:
            grader._state.killed.update(grader._state.waiting)
        worker.process.kill()
        assert all_of(grader, 1)["asked"].outcome is outcome
    finally:
        grader.close()


def test_workers_that_cannot_start_are_not_taken_for_hard_answers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    grader = Grader()
    with pytest.raises(GraderBroken, match=r"conclip\.grading\.worker"):
        grader.grade(gold="1", text=boxed("2"))
    grader.close()


def test_any_thread_may_grade():
    grader = Grader()
    outcomes: dict[int, Outcome] = {}

    def work(number: int) -> None:
        for answer in range(5):
            outcomes[5 * number + answer] = grader.grade(gold=f"{number}+1", text=boxed(f"{answer}+0")).outcome

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    grader.close()
    expected = {5 * n + a: Outcome.CORRECT if a == n + 1 else Outcome.WRONG for n in range(6) for a in range(5)}
    assert outcomes == expected


@pytest.mark.parametrize(
    ("gold", "answer", "choices", "same"),
    [
        ("B", r"B\ \frac{1}{4}", ("1/2", "1/4"), True),
        ("B", "B 0.25", ("1/2", "1/4"), True),
        ("B", r"\text{B (10 cm)}", ("5 cm", "10 cm"), True),
        ("B", r"\text{B (blue)}", ("red", "blue"), True),
        ("B", r"\text{B, blue}", ("red", "blue"), True),
        ("B", "B 0.5", ("1/2", "1/4"), False),
        ("A", "B 0.5", ("1/2", "1/4"), False),
        ("B", r"\text{A circle}", ("square", "circle"), True),
        ("A", r"\text{A circle}", ("square", "circle"), False),
        ("B", r"\text{B (red)}", ("red", "blue"), False),
    ],
)
def test_a_letter_beside_the_text_of_an_option(grader: Grader, gold: str, answer: str, choices: tuple[str, ...], same: bool):
    grader.submit("asked", gold=gold, text=boxed(answer), finish_reason="stop", choices=choices)
    assert (all_of(grader, 1)["asked"].outcome is Outcome.CORRECT) is same


@pytest.mark.parametrize("answer", [r"20\%\text{ of }x", r"20\%\text{ less than half}", r"20\%\text{ of }100"])
def test_a_percentage_of_something_else_is_no_percentage(grader: Grader, answer: str):
    assert grader.grade(gold="20", text=boxed(answer)).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("gold", "text", "same"),
    [
        ("20", "The answer is 20% of the students.", True),
        ("3", "So the length is 2√3.", False),
        ("3", "So the solutions are {-1, 3}.", False),
        ("5", "The interval is (-∞, 5].", False),
        ("3", "The point is (1/2, √3).", False),
        ("3", "The speed is 3 × 10^8 m/s.", False),
        ("2.5", "So the profit is $2.5 million.", False),
        (r"\{-1,3\}", "So the solutions are {-1, 3}.", True),
        (r"\{1,2,3\}", "So the solutions are {1, 2, 3}.", True),
        (r"(-\infty,5]", "The interval is (-∞, 5].", True),
        (r"3\times 10^8", "The speed is 3 × 10^8 m/s.", True),
        ("2500000", "So the profit is $2.5 million.", True),
        ("7", "There were 3 boxes, then 7.", True),
        ("18", "The answer is $18/day.", True),
    ],
)
def test_the_last_number_is_all_that_is_written(grader: Grader, gold: str, text: str, same: bool):
    """Without a box: a set, an interval, a root, a power of ten or a scale is no number by itself."""
    assert (grader.grade(gold=gold, text=text).lenient_outcome is Outcome.CORRECT) is same

"""Evaluation tables by hand and by simulation."""

import random

import pytest

from conclip.evaluation.metrics import compare, summarise
from conclip.evaluation.tables import (
    by_condition,
    describe_comparison,
    form_line,
    headline_comparisons,
    results_cells,
    results_json,
)
from conclip.stats import clustered_interval
from conclip.types import EvalRow, Outcome
from tests.conftest import make_row as row


def test_summary_by_hand():
    rows = [
        row("p", Outcome.CORRECT, 10),
        row("p", Outcome.WRONG, 20, 1),
        row("q", Outcome.CORRECT, 30),
        row("q", Outcome.TRUNCATED, 40, 1),
        row("r", Outcome.CORRECT, 50),
        row("r", Outcome.GRADER_ERROR, 60, 1),
    ]
    summary = summarise(rows)
    assert (summary.num_problems, summary.num_responses, summary.grader_errors) == (3, 6, 1)
    assert summary.accuracy.mean == pytest.approx(3 / 5)
    assert summary.mean_tokens.mean == 35
    assert summary.correct_mean_tokens is not None and summary.correct_mean_tokens.mean == 30
    assert summary.wrong_mean_tokens is not None and summary.wrong_mean_tokens.mean == 20
    assert summary.truncation_rate.mean == pytest.approx(1 / 6)
    assert 0 <= summary.mean_tokens.low < 15 and summary.mean_tokens.high > 55  # three problems show little


def test_comparison_is_paired_by_problem():
    before = [row(f"p{i}", Outcome.CORRECT if i % 2 else Outcome.WRONG, 100 + 10 * i) for i in range(20)]
    after = [row(f"p{i}", Outcome.CORRECT if i % 2 else Outcome.WRONG, 50 + 5 * i) for i in range(20)]
    found = compare(before, after)
    assert found.accuracy_difference.mean == 0
    assert found.accuracy_difference.low == pytest.approx(-0.168433, abs=1e-6)  # twenty problems: 1 - 0.025^(1/20)
    assert (found.num_problems, found.accuracy_spread) == (20, 0)
    assert found.tokens_ratio.mean == pytest.approx(0.5)
    # each problem halves; yet one that takes nothing, or as much as before, may have gone unseen: F(2, 40) = 4.051
    assert found.tokens_ratio.low == pytest.approx(0.5 - 0.5 * 4.051 / 20, abs=0.01)
    assert found.tokens_ratio.high == pytest.approx(0.5 + 0.5 * 4.051 / 20, abs=0.01)


def test_comparison_refuses_different_problems():
    with pytest.raises(ValueError, match="different problems"):
        compare([row("p", Outcome.WRONG, 1)], [row("q", Outcome.WRONG, 1)])


@pytest.mark.parametrize(
    ("shift", "words"), [(0.2, "accuracy rose"), (0.0, "accuracy kept"), (-0.2, "accuracy fell"), (-0.02, "not shown")]
)
def test_kept_is_said_only_when_shown(shift: float, words: str):
    stream = random.Random(1)

    def rows(p: float) -> list[EvalRow]:
        return [
            row(f"p{i}", Outcome.CORRECT if stream.random() < p else Outcome.WRONG, 10, s)
            for i in range(1500)
            for s in range(4)
        ]

    sentence = describe_comparison("a", "b", compare(rows(0.6), rows(0.6 + shift)), margin=0.03)
    assert words in sentence


def test_interval_covers_at_its_rate():
    stream = random.Random(0)
    covered = 0
    for _ in range(2000):
        _, low, high = clustered_interval([stream.gauss(3, 2) for _ in range(12)])
        covered += low <= 3 <= high
    assert abs(covered / 2000 - 0.95) < 0.015


def rows_of(model: str, outcome: Outcome, *tokens: int) -> list[EvalRow]:
    return [row(problem, outcome, count, model=model) for problem, count in zip("pq", tokens, strict=True)]


def test_last_model_is_compared_with_the_first_even_where_one_between_is_shorter_and_more_accurate():
    columns = [*rows_of("base", Outcome.WRONG, 50, 50), *rows_of("phase1", Outcome.CORRECT, 40, 40)]
    rows = by_condition([*columns, *rows_of("phase2", Outcome.CORRECT, 20, 20)])
    assert list(headline_comparisons(rows, "b")) == [("base", "phase1"), ("phase1", "phase2"), ("base", "phase2")]


def test_last_model_is_compared_with_the_shortest_and_the_most_accurate():
    columns = [*rows_of("base", Outcome.WRONG, 90, 90), *rows_of("a", Outcome.WRONG, 50, 50)]
    columns += [*rows_of("b", Outcome.CORRECT, 60, 60), *rows_of("last", Outcome.CORRECT, 20, 20)]
    assert list(headline_comparisons(by_condition(columns), "b"))[3:] == [("base", "last"), ("a", "last")]


def test_results_hold_every_comparison():
    columns = [*rows_of("base", Outcome.WRONG, 50, 50), *rows_of("phase1", Outcome.CORRECT, 80, 90)]
    rows = by_condition([*columns, *rows_of("phase2", Outcome.CORRECT, 20, 20)])
    assert list(headline_comparisons(rows, "b")) == [("base", "phase1"), ("phase1", "phase2"), ("base", "phase2")]
    results = results_json(rows)["b"]
    assert results["models"]["phase2"]["mean_tokens"]["mean"] == 20
    assert [c["second"] for c in results["comparisons"]] == ["phase1", "phase2", "phase2"]


def test_training_is_compared_with_asking_for_brevity_at_each_temperature():
    rows = [
        row(problem, Outcome.CORRECT, 10, model=model, prompt=prompt, temperature=temperature)
        for model in ("base", "after")
        for temperature in (0.0, 0.6)
        for prompt in ("plain", "concise")
        for problem in ("p", "q")
    ]
    found = list(headline_comparisons(by_condition(rows), "b"))
    assert found == [
        ("base, plain, T 0", "after, plain, T 0"),
        ("base, plain, T 0", "base, concise, T 0"),
        ("base, concise, T 0", "after, plain, T 0"),
        ("base, plain, T 0.6", "after, plain, T 0.6"),
        ("base, plain, T 0.6", "base, concise, T 0.6"),
        ("base, concise, T 0.6", "after, plain, T 0.6"),
    ]


def test_a_change_of_form_is_named():
    def model(name: str, boxed: int, other: int) -> list[EvalRow]:
        form = {"lenient_outcome": Outcome.CORRECT, "lenient_extracted": "1", "method": "number"}
        rows = [row(f"p{i}", Outcome.CORRECT, 10, model=name) for i in range(boxed)]
        rows += [row(f"q{i}", Outcome.NO_ANSWER, 10, model=name, **form) for i in range(other)]
        return rows + [row(f"r{i}", Outcome.WRONG, 10, model=name) for i in range(100 - boxed - other)]

    models = {"base": summarise(model("base", 50, 30)), "after": summarise(model("after", 75, 5))}
    said = str(form_line(("base", "after"), models))
    assert said.startswith("after puts more of its right answers into a box than base")
    assert "+30.0 and +5.0 points" in said
    assert str(form_line(("after", "base"), models)).startswith("base puts fewer")
    assert form_line(("base", "base"), models) is None


def test_the_table_shows_the_accuracy_that_does_not_count_and_what_has_no_box():
    form = {"lenient_outcome": Outcome.CORRECT, "lenient_extracted": "1", "method": "number"}
    rows = [row("p", Outcome.CORRECT, 10), row("p", Outcome.NO_ANSWER, 10, 1, **form), row("q", Outcome.WRONG, 30)]
    rows += [row("q", Outcome.TRUNCATED, 40, 1, text="and again " * 40)]
    (strict,) = results_cells({"m": summarise(rows)}).values()
    assert list(strict) == [*("accuracy", "lenient", "tokens", "if correct", "if wrong", "no box", "truncated", "looping")]
    assert (strict["lenient"], strict["no box"], strict["looping"]) == ("0.500", "25.00 %", "25.00 %")
    assert strict["if wrong"] == "30.0 (1 problem)"
    (lenient,) = results_cells({"m": summarise([r.by("lenient") for r in rows])}).values()
    assert (lenient["strict"], lenient["no answer"]) == ("0.250", "0.00 %")
    assert lenient["accuracy"].startswith("0.500")


def test_models_that_count_by_different_extractions_share_their_columns():
    form = {"lenient_outcome": Outcome.CORRECT, "lenient_extracted": "1", "method": "number"}
    rows = [row("p", Outcome.CORRECT, 10), row("p", Outcome.NO_ANSWER, 10, 1, **form)]
    cells = results_cells({"s": summarise(rows), "l": summarise([r.by("lenient") for r in rows])})
    assert list(cells["s"]) == list(cells["l"])
    assert {name: (c["lenient"], c["strict"]) for name, c in cells.items()} == dict.fromkeys("sl", ("1.000", "0.500"))
    assert [c["no answer or no box"] for c in cells.values()] == ["50.00 %", "0.00 %"]
    assert [c["accuracy"][:5] for c in cells.values()] == ["0.500", "1.000"]

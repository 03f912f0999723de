"""Paired comparison of two evaluations: numbers, words, warnings."""

import dataclasses
import json
import math
import random
import sys
from pathlib import Path

import pytest

from conclip.cli.main import main
from conclip.errors import UserError
from conclip.evaluation.compare import differences, paired, sentences, to_json, transition_table
from conclip.evaluation.metrics import Estimate, compare
from conclip.evaluation.rows import read_rows, to_dict
from conclip.evaluation.units import RowFile
from conclip.runs.identity import path_hash
from conclip.runs.manifest import StageRecord
from conclip.types import EvalRow, Outcome
from tests.conftest import make_row

RIGHT, WRONG = Outcome.CORRECT, Outcome.WRONG


def evaluation(p: float, tokens: int, *, seed: int = 0, **changes: object) -> list[EvalRow]:
    stream = random.Random(seed)
    return [
        make_row(f"p{n}", RIGHT if stream.random() < p else WRONG, tokens + n % 7, s, **changes)
        for n in range(100)
        for s in range(4)
    ]


def test_the_same_evaluation_twice_is_not_separable():
    rows = evaluation(0.5, 100)
    (result,) = paired(rows, rows)
    assert result.accuracy_p_value == result.tokens_p_value == 1
    assert result.comparison.accuracy_difference.mean == 0 and result.aes == 0
    assert any("not separable" in line for line in sentences(result, 0.03))
    assert set(result.transitions) == {(RIGHT, RIGHT), (WRONG, WRONG)}


def test_shorter_and_better_is_said_so():
    (result,) = paired(evaluation(0.5, 100), evaluation(0.8, 40, seed=1))
    said = " ".join(sentences(result, 0.03))
    assert result.accuracy_p_value < 0.001 and result.tokens_p_value < 0.001
    assert "accuracy rose" in said and "not separable" not in said and "alpha 1, beta 3, gamma 5" in said
    assert to_json(result)["transitions"]["wrong -> correct"] > 50


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": "phase2", "prompt": "concise"}, "phase2 against m"),
        ({"prompt": "concise", "temperature": 0.0}, "concise against plain"),
        ({"temperature": 0.5}, "T 0.5 against T 1"),
        ({}, "second against first"),
    ],
)
def test_the_two_are_called_by_what_tells_them_apart(changes: dict[str, object], names: str):
    (result,) = paired(evaluation(0.5, 100), evaluation(0.8, 40, seed=1, **changes))
    assert names in sentences(result, 0.03)[0]


def test_pass_at_k_is_compared_by_problem():
    """By hand: four problems of two samples; any of both is right for two of them first, for all of them second."""

    def rows(right: list[tuple[int, int]]) -> list[EvalRow]:
        outcomes = [WRONG, RIGHT]
        return [
            make_row(f"p{n}", outcomes[hit], 10, sample) for n, pair in enumerate(right) for sample, hit in enumerate(pair)
        ]

    first, second = rows([(1, 1), (1, 1), (0, 0), (0, 0)]), rows([(1, 0), (0, 1), (1, 0), (0, 1)])
    (result,) = paired(first, second)
    assert result.comparison.accuracy_difference.mean == 0 and result.pass_at is not None
    k, difference = result.pass_at
    assert (k, difference.mean) == (2, 0.5) and difference.low < 0 < 0.5 < difference.high
    assert any(
        line.startswith("  pass@2, that any of 2 responses is right: +50.0 points [") for line in sentences(result, 0.03)
    )
    (one,) = paired([row for row in first if row.sample == 0], second)
    assert one.pass_at is None and not any("pass@" in line for line in sentences(one, 0.03))


def test_what_makes_two_evaluations_hard_to_compare_is_named():
    base = evaluation(0.5, 100)
    other = evaluation(0.5, 100, prompt="concise", max_tokens=99, grader_version=1, temperature=0.5, top_p=0.9)[:396]
    found = " | ".join(differences(base, other))
    assert "the instruction differs: plain against concise" in found
    assert "the cap on tokens differs: 512 against 99" in found
    assert "the grader's version differs" in found
    assert "the temperature differs: 1.0 against 0.5" in found and "top_p differs: 1.0 against 0.9" in found
    assert "1 problems stand on one side only" in found
    assert differences(base, base) == []
    reworded = [dataclasses.replace(row, num_prompt_tokens=row.num_prompt_tokens + 4) for row in base[:40]] + base[40:]
    number = len({row.problem_id for row in base[:40]})
    (said,) = differences(base, reworded)
    assert said.startswith(f"the prompts of {number} problems have another number of tokens: another instruction")
    assert not any("number of tokens" in text for text in differences(base, [*other, *reworded[:1]]))  # they should


def test_what_cannot_be_compared_is_said_to_be_unknown():
    never = [dataclasses.replace(row, outcome=WRONG) for row in evaluation(0.5, 100)]
    (result,) = paired(never, evaluation(0.5, 40))
    assert result.aes is None and "no efficiency score" in sentences(result, 0.03)[1]
    broken = [dataclasses.replace(row, outcome=Outcome.GRADER_ERROR) for row in never]
    unknown = compare(never, broken).accuracy_difference
    assert (unknown.low, unknown.high) == (-1, 1)


def test_the_efficiency_score_is_of_problems_judged_on_both_sides():
    """Of p2 the first side knows nothing: nobody can tell whether the second has lost it."""
    first = [make_row("p1", RIGHT, 10), make_row("p2", Outcome.GRADER_ERROR, 10)]
    (result,) = paired(first, [make_row("p1", RIGHT, 5), make_row("p2", WRONG, 5)])
    assert result.aes == pytest.approx(0.5)  # half the tokens, accuracy kept
    other = [make_row("p1", RIGHT, 5, benchmark="c")]
    lost = [make_row("p1", Outcome.GRADER_ERROR, 5, benchmark="b"), *other]
    results = paired([make_row("p1", RIGHT, 10, benchmark="b"), *other], lost)
    assert [one.aes for one in results] == [None, 0]


def test_responses_that_could_not_be_graded_are_in_the_tokens_alone():
    """The problem that was judged is as it was: no score. Both have the tokens, 20 and then 1010."""
    first = [make_row("p1", RIGHT, 10), make_row("p2", RIGHT, 10)]
    (result,) = paired(first, [make_row("p1", RIGHT, 10), make_row("p2", Outcome.GRADER_ERROR, 1000)])
    assert result.aes == 0
    said = sentences(result, 0.02)[0]
    assert "b, 1 problems (tokens: 2, with those not graded):" in said and "+4950.0 %" in said


def test_tokens_that_a_server_withholds_have_no_ratio():
    none, some = ([make_row(f"p{n}", RIGHT, tokens) for n in range(2)] for tokens in (0, 10))
    assert compare(none, some).tokens_ratio == Estimate(mean=1.0, low=0.0, high=math.inf)
    assert compare(some, none).tokens_ratio.mean == 0


def test_an_evaluation_that_has_not_ended_is_not_compared(tmp_path: Path):
    """Its file holds what was sampled so far, or another model's rows."""
    for name in ("base", "phase2"):
        (tmp_path / f"rows-{name}.jsonl").write_text(json.dumps(to_dict(make_row("p", RIGHT, 10, model=name))) + "\n")
    assert len(read_rows(tmp_path)) == 2  # of no run
    outputs = {"rows-base.jsonl": path_hash(tmp_path / "rows-base.jsonl")}
    record = StageRecord(
        key="k", inputs={}, outputs=outputs, numbers={}, num_tokens=10, wall_s=1.0, finished="2026", made_by={}
    )
    manifest = {"stages": {"eval-base": dataclasses.asdict(record)}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert [row.model for row in read_rows(tmp_path)] == ["base"]
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="no evaluation in it has ended; repeat the run's command"):
        read_rows(tmp_path)


def test_rows_of_other_tools_are_named_as_such(tmp_path: Path):
    (tmp_path / "other.jsonl").write_text('{"question": "1+1", "response": "2"}\n')
    with pytest.raises(UserError, match=r"other.jsonl', line 1: no row of conclip's, .*; conclip grade makes rows"):
        read_rows(tmp_path / "other.jsonl")


def test_problems_of_one_side_are_counted_by_benchmark():
    """Both have a problem 2, of different benchmarks."""
    first, second = [("b", "1"), ("b", "2"), ("c", "1")], [("b", "1"), ("c", "1"), ("c", "2")]
    one, two = ([make_row(p, RIGHT, 10, benchmark=b) for b, p in side] for side in (first, second))
    assert differences(one, two) == ["2 problems stand on one side only and are left out"]


def test_intervals_say_their_level_and_those_without_bounds_are_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One problem tells nothing about others."""
    rows = evaluation(0.5, 100)[:4]
    RowFile(tmp_path / "rows-m.jsonl", model="m", model_hash="").finish(rows)
    monkeypatch.setattr(sys, "argv", ["conclip", "compare", *[str(tmp_path)] * 2, "--json", str(tmp_path / "out.json")])
    main()
    assert "intervals: 95 %, clustered by problem" in capsys.readouterr().out.splitlines()
    (result,) = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert result["comparison"]["tokens_ratio"] == {"mean": 1.0, "low": None, "high": None}


def test_what_is_said_of_three_problems_that_gain_alike():
    """Rounding once made an interval without width of it."""

    def rows(model: str, right: int, tokens: int) -> list[EvalRow]:
        return [make_row(f"p{p}", RIGHT if s < right else WRONG, tokens, s, model=model) for p in range(3) for s in range(3)]

    (result,) = paired(rows("old", 1, 100), rows("new", 2, 80))
    first, second, *more = sentences(result, 0.03)
    assert "+33.3 points" in first and "not shown to be kept" in first and "-20.0 %" in first
    assert result.comparison.tokens_ratio.high - result.comparison.tokens_ratio.low > 0.5
    assert "accuracy p = 0.2500, tokens p = 0.2500" in second  # two of the eight patterns of signs
    assert "at least 122 problems like these" in more[-1] and "here are 3" in more[-1]


def test_lengths_are_compared_on_one_set_of_responses():
    """A response that could not be graded has a length all the same, in the ratio and in its p-value."""
    failed = Outcome.GRADER_ERROR
    first = [make_row(f"p{p}", RIGHT, 100 + p, s) for p in range(12) for s in range(4)]
    second = [
        make_row(f"p{p}", failed if s == 0 else RIGHT, (2000 if p % 2 else 1) if s == 0 else 100 + p, s, model="new")
        for p in range(12)
        for s in range(4)
    ]
    (result,) = paired(first, second)
    # six problems gain much, six lose a little: the ratio is far above 1, and chance gives its like where these six agree
    assert result.comparison.tokens_ratio.mean > 3
    assert result.tokens_p_value == 2 * 2**6 / 2**12
    assert result.accuracy_p_value == 1


def test_the_power_line_counts_problems_like_these():
    """Four responses a problem, solved half of the time: a spread of about sqrt(2 * 0.25 / 4) takes a thousand."""
    (result,) = paired(evaluation(0.5, 100), evaluation(0.5, 40, seed=1))
    (line,) = [line for line in sentences(result, 0.03) if "power" in line]
    needed = int(line.split("about ")[1].split()[0].replace(",", ""))
    assert 700 < needed < 1400 and "here are 100" in line
    many = [make_row(f"p{n}", RIGHT, 10, 0) for n in range(130)]
    (same,) = paired(many, [dataclasses.replace(row, model="new") for row in many])
    (few,) = paired(many[:8], [dataclasses.replace(row, model="new") for row in many[:8]])
    assert any("it would take at least " in line for line in sentences(few, 0.03))  # no spread seen is not none
    assert "accuracy kept" in sentences(same, 0.03)[0] and not any("power" in line for line in sentences(same, 0.03))


def test_mixed_or_disjoint_evaluations_are_refused():
    base = evaluation(0.5, 100)
    with pytest.raises(UserError, match="mix evaluations"):
        paired([*base, *evaluation(0.5, 100, model="other")], base)
    with pytest.raises(UserError, match="share no problem"):
        paired(base, [make_row("elsewhere", RIGHT, 1)])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([make_row("p", RIGHT, 5), make_row("p", RIGHT, 5)], "SECOND has 2 rows of b, problem 'p', sample 0"),
        ([make_row("p", Outcome.GRADER_ERROR, 5)], "none of SECOND's responses could be graded"),
        ([make_row("p", RIGHT, 0)], "SECOND's responses have no tokens"),
    ],
)
def test_rows_that_say_nothing_or_the_same_twice_are_refused(rows: list[EvalRow], words: str):
    with pytest.raises(UserError, match=words):
        paired([make_row("p", RIGHT, 5)], rows)


def test_other_golds_and_another_rule_are_said():
    said = differences([make_row("p", RIGHT, 5)], [make_row("p", RIGHT, 5, answer="2", extraction="lenient")])
    assert said == [
        "the extraction rule differs: strict against lenient",
        "1 problems have other gold answers: they may be other problems of the same name",
    ]


def test_responses_beyond_their_cap_are_said():
    (said,) = differences([make_row("p", RIGHT, 5)], [make_row("p", RIGHT, 10**6)])
    assert said.startswith("1 of SECOND's responses have more tokens than their cap")


def test_the_transition_table_says_what_it_leaves_out():
    one, four = evaluation(0.5, 100), [row for row in evaluation(0.5, 50) if row.sample == 0]
    (result,) = paired(one, four)
    assert "300 of 400 responses have no counterpart" in str(transition_table(result).title)
    (result,) = paired(one, one)
    assert "counterpart" not in str(transition_table(result).title)


def test_pairing_sees_what_two_separate_intervals_do_not():
    """Problems differ far more than the models: paired, a gain of two points is shown; unpaired it drowns."""
    stream = random.Random(5)
    rates = [stream.random() for _ in range(800)]

    def rows(shift: float) -> list[EvalRow]:
        return [
            make_row(f"p{n}", RIGHT if (s + 0.5) / 8 < rate + shift else WRONG, 50, s)
            for n, rate in enumerate(rates)
            for s in range(8)
        ]

    (result,) = paired(rows(0.0), rows(0.02))
    difference = result.comparison.accuracy_difference
    assert difference.low > 0
    assert result.second.accuracy.low < result.first.accuracy.high  # the separate intervals overlap

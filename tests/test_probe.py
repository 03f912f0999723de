"""Pass rates and the choice of problems."""

from pathlib import Path

import pytest

from conclip.config import PhaseConfig, UserError
from conclip.probe import PassRate, describe, pass_rates, read_pass_rates, select, write_pass_rates
from conclip.stats import wilson_interval
from conclip.types import Outcome, Problem
from tests.conftest import make_group, make_rollout


def rate(name: str, num_correct: int, level: int = 1) -> PassRate:
    low, high = wilson_interval(num_correct, 10)
    return PassRate(
        problem_id=name,
        source="s",
        level=level,
        num_samples=10,
        num_correct=num_correct,
        num_truncated=0,
        low=low,
        high=high,
        mean_tokens=5.0,
        correct_mean_tokens=None,
        wrong_mean_tokens=None,
    )


def phase(**changes: object) -> PhaseConfig:
    settings: dict[str, object] = {
        "pass_rate_low": 0.2,
        "pass_rate_high": 0.8,
        "num_problems": 2,
        "problem_ids": None,
        "problems_per_step": 2,
        "group_size": 2,
        "num_steps": 1,
        "max_sampled_tokens": None,
        "keep_best": "shortest",
        "max_accuracy_drop": 0.0,
        "stop_accuracy_drop": 0.1,
    }
    return PhaseConfig(**(settings | changes))  # type: ignore[arg-type]


RATES = [rate("never", 0), rate("rare", 1), rate("some", 5), rate("more", 8, level=2), rate("also", 6), rate("always", 10)]
PROBLEMS = [Problem(problem_id=r.problem_id, question=r.problem_id, answer="1", source="s") for r in RATES]


def test_pass_rate_counts_outcomes():
    group = make_group(
        make_rollout([1, 2]),
        make_rollout([1, 2, 3, 4], sample=1, outcome=Outcome.WRONG),
        make_rollout([1] * 9, sample=2, outcome=Outcome.TRUNCATED),
        make_rollout([1], sample=3, outcome=Outcome.GRADER_ERROR),
    )
    (found,) = pass_rates([group])
    assert (found.num_samples, found.num_correct, found.num_truncated) == (3, 1, 1)
    assert found.pass_rate == pytest.approx(1 / 3)
    assert (found.mean_tokens, found.correct_mean_tokens, found.wrong_mean_tokens) == (4, 2, 4)


def test_wilson_interval_by_hand():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)  # z^2 / (n + z^2)
    assert wilson_interval(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_selection_stays_in_the_band_spreads_over_levels_and_repeats():
    chosen = [p.problem_id for p in select("phase", PROBLEMS, RATES, phase(), seed=0)]
    assert "more" in chosen and set(chosen) < {"some", "more", "also"}
    assert chosen == [p.problem_id for p in select("phase", PROBLEMS, RATES, phase(), seed=0)]
    picks = {select("phase", PROBLEMS, RATES, phase(num_problems=1), seed=s)[0].problem_id for s in range(20)}
    assert picks == {"some", "also"}


def test_selection_by_hand():
    assert [p.problem_id for p in select("phase", PROBLEMS, [], phase(problem_ids=["never"]), 0)] == ["never"]
    with pytest.raises(UserError, match="'nowhere'"):
        select("phase", PROBLEMS, [], phase(problem_ids=["nowhere"]), 0)


def test_too_few_candidates_says_what_the_pass_rates_were_and_what_to_change():
    with pytest.raises(UserError) as caught:
        select("phase2", PROBLEMS, RATES[:1] + RATES[-1:], phase(), 0)
    assert "0 of 2" in str(caught.value)
    assert "never: 1" in str(caught.value) and "always: 1" in str(caught.value)
    assert "phase2.pass_rate_low" in str(caught.value)


def test_describe_bins():
    assert describe(RATES) == "solved never: 1, up to 0.2: 1, 0.2-0.8: 3, above 0.8: 0, always: 1"


def test_pass_rates_survive_the_file(tmp_path: Path):
    write_pass_rates(tmp_path / "rates.jsonl", RATES)
    assert read_pass_rates(tmp_path / "rates.jsonl") == RATES


@pytest.mark.parametrize("content", ["", "x\n", '{"schema": 99}\n', '{"problem_id": "a"}\n', "[]\n"])
def test_a_damaged_pass_rate_file_is_named(tmp_path: Path, content: str):
    path = tmp_path / "rates.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"rates\.jsonl"):
        read_pass_rates(path)

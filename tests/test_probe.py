"""Sequential probing and pass rates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conclip.config.compose import load_config
from conclip.config.groups import ProbeConfig
from conclip.config.schema import ProbeRunConfig
from conclip.curriculum.pass_rates import (
    Band,
    PassRate,
    describe,
    expected_gain,
    histogram,
    next_round,
    pass_rates,
    probabilities,
    read_pass_rates,
    write_pass_rates,
)
from conclip.errors import UserError
from conclip.report.probing import pass_rate_table
from conclip.types import EvalRow, Outcome
from tests.conftest import make_row

BAND = Band(low=0.2, high=0.8)
SETTINGS = ProbeConfig(
    first_samples=4, more_samples=4, max_samples=32, mean_samples=None, indifference=0.05, confidence=0.95
)


def rows(name: str, outcomes: str) -> list[EvalRow]:
    """One row per letter: c(orrect), w(rong), t(runcated), e(rror); lengths 1, 2, 3, ..."""
    kinds = {"c": Outcome.CORRECT, "w": Outcome.WRONG, "t": Outcome.TRUNCATED, "e": Outcome.GRADER_ERROR}
    return [make_row(name, kinds[letter], number + 1, number) for number, letter in enumerate(outcomes)]


def rates_of(*problems: tuple[str, str]) -> list[PassRate]:
    found = [row for name, outcomes in problems for row in rows(name, outcomes)]
    return pass_rates(found, BAND, model_hash="m", sampling_hash="s")


def test_pass_rate_counts_outcomes():
    (rate,) = rates_of(("p", "cwwte"))
    assert (rate.num_samples, rate.num_correct, rate.num_truncated, rate.pass_rate) == (4, 1, 1, 0.25)
    assert (rate.mean_tokens, rate.correct_mean_tokens, rate.wrong_mean_tokens) == (3.0, 1.0, 2.5)
    assert rate.verdict == "inside" and rate.low < 0.25 < rate.high


def test_posterior_by_hand():
    # nothing seen: Jeffreys' prior, Beta(1/2, 1/2), has distribution function 2/pi asin(sqrt(p))
    assert probabilities(0, 0, Band(low=0.25, high=0.75)) == pytest.approx([1 / 3] * 3)
    assert probabilities(3, 12, BAND).sum() == pytest.approx(1)
    assert (probabilities(3, 12, BAND, 0.05) > probabilities(3, 12, BAND)).all()
    assert probabilities(0, 12, BAND)[0] == pytest.approx(0.98, abs=0.01)
    assert probabilities(12, 12, Band(low=0.5, high=1))[2] == 0
    assert probabilities(0, 12, Band(low=0, high=0.5))[0] == 0


def test_more_responses_help_where_the_class_is_open():
    correct = np.array([0, 8, 5])
    gain = expected_gain(correct, np.array([24, 16, 24]), BAND, 0.05)
    assert (gain >= -1e-12).all() and gain[2] > 10 * gain[0] and gain[2] > 10 * gain[1]  # 5 of 24 may be below or inside


def asked(counts: dict[str, tuple[int, int, int]], settings: ProbeConfig = SETTINGS) -> dict[str, int]:
    """The next round of problems of one kind."""
    return next_round(counts, dict.fromkeys(counts, ("s", None, None)), BAND, settings)


def test_rounds_ask_everything_once_and_then_what_is_unclear():
    assert asked({"a": (0, 0, 0), "b": (0, 4, 4)}) == {"a": 4}
    # 0 of 24 is clearly below, 12 of 24 clearly inside; 4 of 24 may be either
    assert asked({"a": (0, 24, 24), "b": (12, 24, 24), "c": (4, 24, 24)}) == {"c": 4}
    assert asked({"c": (6, 30, 30)}) == {"c": 2}  # up to max_samples
    assert asked({"c": (6, 32, 32)}) == {}


def test_the_budget_goes_where_it_helps_most():
    settings = replace(SETTINGS, mean_samples=14.0)
    counts = {"even": (6, 12, 12), "edge": (3, 12, 12), "solved": (11, 12, 12)}  # 42 responses in all, 36 are spent
    wanted = asked(counts, settings)
    assert list(wanted.values()) == [4, 2] and "even" not in wanted


def test_probing_ends_when_the_grader_judges_nothing():
    counts, rounds = (0, 0, 0), 0
    while wanted := asked({"a": counts}):
        counts, rounds = (0, 0, counts[2] + wanted["a"]), rounds + 1
    assert counts == (0, 0, 32) and rounds == 8


def simulate(truth: np.ndarray, settings: ProbeConfig, seed: int) -> tuple[dict[str, tuple[int, int, int]], int]:
    generator = np.random.default_rng(seed)
    counts = {str(n): (0, 0, 0) for n in range(len(truth))}
    while wanted := asked(counts, settings):
        for name, more in wanted.items():
            correct, judged, sampled = counts[name]
            counts[name] = (correct + int(generator.binomial(more, truth[int(name)])), judged + more, sampled + more)
    return counts, sum(sampled for _, _, sampled in counts.values())


@pytest.mark.whole
def test_sequential_probing_errs_no_more_than_a_fixed_probe_of_twice_the_size():
    """Outside a zone of 0.05, on uniform pass rates, as shipped: simulated responses, 500 problems, twelve seeds."""
    config = load_config("probe", "probe=sequential")
    assert isinstance(config, ProbeRunConfig)
    errors = {"sequential": 0, "fixed": 0}
    for seed in range(12):
        truth = np.random.default_rng(100 + seed).uniform(size=500)
        clear = (np.abs(truth - BAND.low) > 0.05) & (np.abs(truth - BAND.high) > 0.05)
        counts, spent = simulate(truth, config.probe, seed)
        assert spent <= 16 * 500
        fixed = np.random.default_rng(200 + seed).binomial(32, truth) / 32
        for n in np.flatnonzero(clear):
            correct, judged, _ = counts[str(n)]
            errors["sequential"] += BAND.contains(correct / judged) != BAND.contains(truth[n])
            errors["fixed"] += BAND.contains(fixed[n]) != BAND.contains(truth[n])
    assert errors["sequential"] <= errors["fixed"]


def test_what_a_level_has_in_common_is_known_of_each_of_its_problems():
    """Forty problems of an easy and forty of a hard level: an outlier of few responses is read with the others."""
    easy = [(f"easy-{n}", "cccccc") for n in range(39)] + [("easy-odd", "cccwww")]
    hard = [(f"hard-{n}", "cwwwcw") for n in range(39)] + [("hard-odd", "wwwwww")]
    found = [replace(row, level=1 + name.startswith("hard")) for name, said in easy + hard for row in rows(name, said)]
    rates = {rate.problem_id: rate for rate in pass_rates(found, BAND, model_hash="m", sampling_hash="s")}
    assert rates["easy-0"].verdict == "above" and rates["hard-0"].verdict == "inside"
    assert rates["hard-odd"].verdict == "inside" and rates["hard-odd"].high > 0.3  # its own interval is its own
    (alone,) = rates_of(("hard-odd", "wwwwww"))
    assert alone.verdict == "below" and alone.low == rates["hard-odd"].low


def test_histogram_bins():
    rates = rates_of(
        ("never", "wwww"), ("rare", "cwwwww"), ("some", "cw"), ("more", "cccw"), ("most", "cccccw"), ("all", "cc")
    )
    assert list(histogram(rates).values()) == [1, 1, 1, 1, 1, 1]
    assert describe(rates).startswith("solved never: 1, up to 0.2: 1")


def test_problems_of_which_nothing_was_graded_have_no_pass_rate():
    rates = rates_of(("never", "wwww"), ("half", "cw"), ("unknown", "eeee"))
    rates = [replace(rate, level=level) for rate, level in zip(rates, (1, 2, 2), strict=True)]
    assert list(histogram(rates).values()) == [1, 0, 1, 0, 0, 0]
    assert describe(rates).endswith("always: 0; not graded: 1") and "graded" not in describe(rates[:2])
    table = pass_rate_table("probe", rates, Band(low=0, high=0.8))
    lines = dict(zip(*(list(table.columns[i].cells) for i in (0, 1)), strict=True))
    eligible = dict(zip(*(list(table.columns[i].cells) for i in (0, 3)), strict=True))
    assert (lines["never"], lines["0.2-0.5"], lines["not graded"], lines["level 2"]) == ("1", "1", "1", "2")
    assert (eligible["level 2"], list(table.columns[2].cells)[-1]) == ("1", "mean 0.50")


def test_pass_rates_survive_the_file(tmp_path: Path):
    rates = rates_of(("a", "cw"), ("b", "ww"))
    write_pass_rates(tmp_path / "rates.jsonl", rates)
    assert read_pass_rates(tmp_path / "rates.jsonl") == rates


def test_impossible_counts_are_named(tmp_path: Path):
    write_pass_rates(tmp_path / "rates.jsonl", [replace(rates_of(("a", "cw"))[0], num_correct=3)])
    with pytest.raises(UserError, match=r"rates\.jsonl:1: .*3 of 2 responses"):
        read_pass_rates(tmp_path / "rates.jsonl")


@pytest.mark.parametrize("content", ["", "x\n", '{"schema": 99}\n', '{"problem_id": "a"}\n', "[]\n"])
def test_a_damaged_pass_rate_file_is_named(tmp_path: Path, content: str):
    path = tmp_path / "rates.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"rates\.jsonl"):
        read_pass_rates(path)

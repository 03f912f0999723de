"""Length-aware rewards: every formula against numbers worked out by hand."""

import math
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclip.config.groups import LengthConfig, LengthReward, RewardConfig
from conclip.training import length_rewards as shape
from conclip.training.length_rewards import GradedGroup, make_shaper
from conclip.training.rewards import describe_rewards, reward_group
from conclip.types import Outcome, RolloutGroup
from tests.conftest import make_group, make_rollout

MIXED = GradedGroup(
    rewards=(1.0, 1.0, -0.5, -0.5),
    correct=(True, True, False, False),
    truncated=(False, False, False, True),
    num_tokens=(20, 60, 40, 100),
)
SOLVED = GradedGroup(rewards=(1.0, 1.0), correct=(True, True), truncated=(False, False), num_tokens=(50, 150))
FAILED = GradedGroup(rewards=(0.0, 0.0), correct=(False, False), truncated=(False, False), num_tokens=(50, 150))


def close(*values: float) -> object:
    return pytest.approx(list(values), abs=1e-6)


def test_kimi():
    # lambda: 0.5, 0, 0.25, -0.5; the wrong ones keep only the negative part
    assert shape.kimi(MIXED, weight=0.4) == close(1.2, 1.0, -0.5, -0.7)
    equal = GradedGroup(rewards=(1.0, 0.0), correct=(True, False), truncated=(False, False), num_tokens=(7, 7))
    assert shape.kimi(equal, weight=0.4) == close(1.0, 0.0)


def test_arora():
    # correct lengths 20 and 60: mean 40, deviation 20; z = -1 and 1; sigmoid 0.268941 and 0.731059
    assert shape.arora(MIXED, alpha=0.1) == close(0.9731059, 0.9268941, -0.5, -0.5)
    assert shape.arora(FAILED, alpha=0.1) == close(0.0, 0.0)


def test_l1():
    # distances to 50: 30, 10, 10, 50, of a scale of 100
    assert shape.l1_exact(MIXED, alpha=0.5, target_tokens=50, scale_tokens=100) == close(0.85, 0.95, -0.55, -0.75)
    # 2 * (50 - 20) / 100 + 0.5 = 1.1 -> 1; 2 * (50 - 60) / 100 + 0.5 = 0.3; the wrong ones stay
    assert shape.l1_max(MIXED, alpha=2.0, target_tokens=50, scale_tokens=100) == close(1.0, 0.3, -0.5, -0.5)


def test_shorter_better():
    # the shortest correct one has 20; distances 0, 40, 20, 80 of 100
    assert shape.shorter_better(MIXED, beta=1.0, scale_tokens=100) == close(2.0, 1.6, -0.7, -1.3)
    # none correct: distance to the mean, 100
    assert shape.shorter_better(FAILED, beta=1.0, scale_tokens=100) == close(-0.5, -0.5)


def test_laser():
    assert shape.laser(MIXED, alpha=0.5, target_tokens=40) == close(1.5, 1.0, -0.5, -0.5)
    assert shape.laser(MIXED, alpha=0.5, target_tokens=60) == close(1.5, 1.5, -0.5, -0.5)


MONITORED: dict[shape.Band, list[int]] = {
    "high": [10, 20, 30, 40, 50, 60, 70, 80],
    "medium": [15, 30, 45, 300],
    "low": [50, 70],
}


def test_laser_d():
    def group(num_correct: int, monitored: shape.Monitored = MONITORED) -> GradedGroup:
        good = tuple(index < num_correct for index in range(6))
        return GradedGroup(
            rewards=tuple(float(g) for g in good),
            correct=good,
            truncated=(False,) * 6,
            num_tokens=(15, 25, 35, 45, 55, 65),
            monitored=monitored,
        )

    # 6 and 4 of 6 are high: 4 at least, a coverage of 1/4, the 2nd of 8 lengths: within 20
    assert shape.laser_d(group(6), alpha=0.5) == close(1.5, 1, 1, 1, 1, 1)
    assert shape.laser_d(group(4), alpha=0.5) == close(1.5, 1, 1, 1, 0, 0)
    # 3 of 6: 2 at least, the 2nd of its band's 4: within 30
    assert shape.laser_d(group(3), alpha=0.5) == close(1.5, 1.5, 1, 0, 0, 0)
    # 1 of 6, low: all of its band, within 70
    assert shape.laser_d(group(1), alpha=0.5) == close(1.5, 0, 0, 0, 0, 0)
    # nothing monitored in the band: no target
    assert shape.laser_d(group(3, {"high": [1]}), alpha=0.5) == close(1.5, 1.5, 1.5, 0, 0, 0)


def test_what_laser_d_monitors():
    """Lengths of all responses, by the pass rate of their problem; what could not be judged has none."""

    def group(name: str, outcomes: list[Outcome]) -> RolloutGroup:
        rollouts = [make_rollout([7] * 10 * (n + 1), problem_id=name, sample=n, outcome=o) for n, o in enumerate(outcomes)]
        return make_group(*rollouts)

    right, wrong, cut, error = Outcome.CORRECT, Outcome.WRONG, Outcome.TRUNCATED, Outcome.GRADER_ERROR
    found = shape.monitored_lengths(
        [
            group("easy", [right, right, right, wrong]),
            group("hard", [right, wrong, cut]),
            group("middle", [right, right, wrong]),
            group("unread", [error, error]),
        ]
    )
    assert found == {"high": [10, 20, 30, 40], "low": [10, 20, 30], "medium": [10, 20, 30]}


def test_l_grpo_pays_length_only_when_every_response_is_correct():
    assert shape.l_grpo(MIXED, weight=0.5, scale_tokens=200) == list(MIXED.rewards)
    assert shape.l_grpo(SOLVED, weight=0.5, scale_tokens=200) == close(1.375, 1.125)


def test_gr3():
    # mean length 55; 1 / (1 + 0.33 * 20 / 55) and 1 / (1 + 0.33 * 60 / 55)
    assert shape.gr3(MIXED, alpha=0.33) == close(0.8928571, 0.7352941, -0.5, -0.5)


def test_alp():
    # half correct: 0.5 * L / 100
    assert shape.alp(MIXED, beta=1.0, scale_tokens=100) == close(0.9, 0.7, -0.7, -1.0)
    # none correct: 1 / K = 0.5 instead of 0
    assert shape.alp(FAILED, beta=1.0, scale_tokens=100) == close(-0.25, -0.75)


def test_dapo_overlong():
    # limit 100, cache 20: free up to 80, -1 at 100
    group = GradedGroup(rewards=(1.0,) * 4, correct=(True,) * 4, truncated=(False,) * 4, num_tokens=(80, 90, 100, 130))
    assert shape.dapo_overlong(group, weight=1.0, scale_tokens=100) == close(1.0, 0.5, 0.0, 0.0)


def test_cosine():
    group = GradedGroup(
        rewards=(1.0, 1.0, -0.5, -0.5, -0.5),
        correct=(True, True, False, False, False),
        truncated=(False, False, False, False, True),
        num_tokens=(50, 100, 50, 101, 20),
    )
    # half of the scale: c = 0.5; at the scale: c = 0
    assert shape.cosine(group, strength=1.0, scale_tokens=100) == close(1.5, 1.0, -5.0, -10.0, -10.0)


@pytest.mark.parametrize(
    ("kind", "strength", "group", "rewards"),
    [  # as above, by hand
        ("kimi", 0.4, MIXED, (1.2, 1.0, -0.5, -0.7)),
        ("arora", 0.1, MIXED, (0.9731059, 0.9268941, -0.5, -0.5)),
        ("l1_exact", 0.5, MIXED, (0.85, 0.95, -0.55, -0.75)),
        ("l1_max", 2.0, MIXED, (1.0, 0.3, -0.5, -0.5)),
        ("shorter_better", 1.0, MIXED, (2.0, 1.6, -0.7, -1.3)),
        ("laser", 0.5, MIXED, (1.5, 1.0, -0.5, -0.5)),  # within 50
        ("laser_d", 0.5, replace(MIXED, monitored={"high": [60], "medium": [20], "low": [60]}), (1.5, 1.0, -0.5, -0.5)),
        ("l_grpo", 1.0, SOLVED, (1.5, 0.5)),  # 1 + (1 - 50 / 100), 1 + (1 - 150 / 100)
        ("gr3", 0.33, MIXED, (0.8928571, 0.7352941, -0.5, -0.5)),
        ("alp", 1.0, MIXED, (0.9, 0.7, -0.7, -1.0)),
        ("dapo_overlong", 1.0, replace(MIXED, num_tokens=(80, 90, 100, 130)), (1.0, 0.5, -1.5, -1.5)),
        ("cosine", 1.0, replace(MIXED, num_tokens=(50, 100, 50, 20)), (1.5, 1.0, -5.0, -10.0)),
    ],
)
def test_a_config_selects_the_reward_with_its_strength_scale_and_target(
    kind: LengthReward, strength: float, group: GradedGroup, rewards: tuple[float, ...]
):
    shaper = make_shaper(LengthConfig(kind=kind, strength=strength, scale_tokens=100, target_tokens=50))
    assert shaper is not None and shaper(group) == close(*rewards)


@pytest.mark.parametrize("factor", [1, 100])
def test_scaled_constants_bite_alike_on_short_and_long_responses(factor: int):
    group = GradedGroup(
        rewards=MIXED.rewards,
        correct=MIXED.correct,
        truncated=MIXED.truncated,
        num_tokens=tuple(factor * n for n in MIXED.num_tokens),
    )
    scale, target = 100.0 * factor, 50.0 * factor
    assert shape.l1_exact(group, alpha=0.5, target_tokens=target, scale_tokens=scale) == close(0.85, 0.95, -0.55, -0.75)
    assert shape.alp(group, beta=1.0, scale_tokens=scale) == close(0.9, 0.7, -0.7, -1.0)
    assert shape.shorter_better(group, beta=1.0, scale_tokens=scale) == close(2.0, 1.6, -0.7, -1.3)


def test_a_group_is_shaped_without_the_responses_the_grader_lost():
    table = RewardConfig(correct=1.0, wrong=-0.5, no_answer=-1.0, truncated=-1.0)
    group = make_group(
        make_rollout([1] * 20),
        make_rollout([1] * 500, sample=1, outcome=Outcome.GRADER_ERROR),
        make_rollout([1] * 60, sample=2),
    )
    plain = reward_group(group, table, None)
    assert [r.reward for r in plain.rollouts] == [1.0, None, 1.0]
    shaped = reward_group(group, table, lambda judged: shape.kimi(judged, weight=0.4))
    assert [r.reward for r in shaped.rollouts] == [pytest.approx(1.2), None, pytest.approx(0.8)]


def test_arora_with_one_correct_response_prices_it_by_half():
    group = GradedGroup(
        rewards=(1.0, 0.0, 0.0), correct=(True, False, False), truncated=(False,) * 3, num_tokens=(100, 20, 300)
    )
    assert shape.arora(group, alpha=0.4) == pytest.approx([0.8, 0.0, 0.0])  # sigmoid(0) = 0.5; the others stay


@given(
    kind=st.sampled_from([k for k in get_args(LengthReward) if k != "none"]),
    responses=st.lists(st.tuples(st.integers(1, 30_000), st.booleans()), min_size=1, max_size=16),
    monitor=st.lists(st.integers(1, 30_000), max_size=4),
)
def test_every_length_reward_is_finite_whatever_the_group(kind: str, responses: list[tuple[int, bool]], monitor: list[int]):
    shaper = make_shaper(
        LengthConfig(kind=kind, strength=0.5, scale_tokens=384, target_tokens=128)  # type: ignore[arg-type]
    )
    assert shaper is not None
    rewards = shaper(
        GradedGroup(
            rewards=tuple(1.0 if good else -0.5 for _, good in responses),
            correct=tuple(good for _, good in responses),
            truncated=(False,) * len(responses),
            num_tokens=tuple(length for length, _ in responses),
            monitored={"high": monitor, "low": monitor[:1]},
        )
    )
    assert len(rewards) == len(responses) and all(math.isfinite(reward) for reward in rewards)


def test_rewards_say_what_the_form_alone_is_worth():
    paper = RewardConfig(correct=1.0, wrong=-0.5, no_answer=-1.0, truncated=-1.0)
    assert describe_rewards(paper, "strict").endswith("-1 truncated; a box alone is worth 25% of a correct answer")
    assert describe_rewards(paper, "lenient").endswith("-1 truncated")
    binary = RewardConfig(correct=1.0, wrong=0.0, no_answer=0.0, truncated=0.0)
    assert describe_rewards(binary, "strict").endswith("worth 0% of a correct answer")

"""Rewards: a table from outcome to reward and, where the config selects one, a term that penalises length."""

import dataclasses

from conclip.config.groups import RewardConfig
from conclip.training.length_rewards import GradedGroup, Monitored, Shaper
from conclip.types import ExtractionRule, Outcome, RolloutGroup


def reward_of(outcome: Outcome, table: RewardConfig) -> float | None:
    """Return the reward of one response; None when the grader failed, which keeps the response out of the loss."""
    if outcome is Outcome.GRADER_ERROR:
        return None
    return {
        Outcome.CORRECT: table.correct,
        Outcome.WRONG: table.wrong,
        Outcome.NO_ANSWER: table.no_answer,
        Outcome.TRUNCATED: table.truncated,
    }[outcome]


def describe_rewards(table: RewardConfig, extraction: ExtractionRule) -> str:
    """Return the rewards in words, with how much of the way from no answer to a correct one the form alone is worth: by
    strict extraction, a wrong answer in a box has the form and nothing else.

    Example: with 1, -0.5 and -1 for correct, wrong and no answer it is worth 25 %.
    """
    text = (
        f"rewards {table.correct:+g} correct, {table.wrong:+g} wrong, {table.no_answer:+g} no answer, {table.truncated:+g} "
        "truncated"
    )
    whole = table.correct - table.no_answer
    if extraction == "lenient" or whole <= 0:
        return text
    return f"{text}; a box alone is worth {(table.wrong - table.no_answer) / whole:.0%} of a correct answer"


def reward_group(
    group: RolloutGroup, table: RewardConfig, shaper: Shaper | None, monitored: Monitored | None = None
) -> RolloutGroup:
    """Return the group with a reward for each rollout: the table's, shaped by length where there is a shaper. Rollouts that
    the grader could not judge get None, and the shaper does not see them."""
    rewards = [reward_of(rollout.grade.outcome, table) for rollout in group.rollouts]
    judged = [index for index, reward in enumerate(rewards) if reward is not None]
    if shaper is not None and judged:
        outcomes = [group.rollouts[index].grade.outcome for index in judged]
        shaped = shaper(
            GradedGroup(
                rewards=tuple(reward for reward in rewards if reward is not None),
                correct=tuple(outcome is Outcome.CORRECT for outcome in outcomes),
                truncated=tuple(outcome is Outcome.TRUNCATED for outcome in outcomes),
                num_tokens=tuple(group.rollouts[index].completion.num_tokens for index in judged),
                monitored=monitored or {},
            )
        )
        for index, reward in zip(judged, shaped, strict=True):
            rewards[index] = reward
    rollouts = zip(group.rollouts, rewards, strict=True)
    return dataclasses.replace(group, rollouts=tuple(dataclasses.replace(r, reward=reward) for r, reward in rollouts))

"""Outcome -> reward: a table, nothing else."""

from conclip.config import RewardConfig
from conclip.types import Outcome


def reward_of(outcome: Outcome, table: RewardConfig) -> float | None:
    """The reward of one response; None when the grader failed, which keeps the response out of the loss."""
    if outcome is Outcome.GRADER_ERROR:
        return None
    return {
        Outcome.CORRECT: table.correct,
        Outcome.WRONG: table.wrong,
        Outcome.NO_ANSWER: table.no_answer,
        Outcome.TRUNCATED: table.truncated,
    }[outcome]

"""What needs no pass of its own: rows without an advantage are not differentiated, and the one update of a step brings the
log-probs that it begins with."""

import dataclasses
from pathlib import Path

import pytest
import torch

from conclip.config.schema import LearnConfig
from conclip.training.batch import ExperienceBatch, TokenBatch, collate
from conclip.training.experience import make_experience
from conclip.training.learner import Learner
from conclip.training.monitors import experience_metrics
from conclip.training.schedule import StepPlan
from conclip.types import Outcome
from tests.conftest import gradient_of, make_group, make_rollout
from tests.test_learner import config, make_learner

GRPO = {"advantage": "group_relative", "kl": "none", "kl_coef": 0.0}


def batch(*, taught: bool = True) -> TokenBatch:
    """Three groups of three responses: one of both outcomes (`taught`) and two of one. The last response trains nothing."""
    draws = torch.Generator().manual_seed(5)

    def rollout(sample: int, group: str, *, right: bool):
        ids = torch.randint(4, 100, (5 + 3 * sample,), generator=draws).tolist()
        outcome, reward = (Outcome.CORRECT, 1.0) if right else (Outcome.WRONG, -0.5)
        return make_rollout(ids, prompt=range(5, 9), problem_id=group, sample=sample, outcome=outcome, reward=reward)

    mixed = make_group(*(rollout(sample, "mixed", right=not taught or sample == 1) for sample in range(3)))
    solved = make_group(*(rollout(sample, "solved", right=True) for sample in range(3)))
    failed = make_group(*(rollout(sample, "failed", right=False) for sample in range(2)), make_rollout([7, 8, 9], sample=2))
    unjudged = dataclasses.replace(failed.rollouts[2], reward=None)
    failed = dataclasses.replace(failed, rollouts=(*failed.rollouts[:2], unjudged))
    return collate([mixed, solved, failed], train_on_truncated=True)


def experience_of(learner: Learner, settings: LearnConfig, tokens: TokenBatch) -> ExperienceBatch:
    return make_experience(tokens, learner.score(tokens), settings.algo, kl_coef=0.0)


def differentiated(learner: Learner) -> list[int]:
    """The number of rows of each backward pass, as they come."""
    numbers: list[int] = []
    run = learner.backend.gradients

    def counted(role, losses):
        for noted in run(role, losses):
            numbers.append(0 if noted.logprobs is None else len(noted.logprobs))
            yield noted

    learner.backend.gradients = counted  # type: ignore[method-assign]
    return numbers


@pytest.mark.parametrize("policy_loss", ["ppo_clip", "gspo", "cispo"])
def test_rows_without_an_advantage_are_only_looked_at(random_model: Path, policy_loss: str):
    settings = config(**GRPO, policy_loss=policy_loss)
    learner, tokens = make_learner(random_model, settings), batch()
    experience = dataclasses.replace(experience_of(learner, settings, tokens), old_logprobs=learner.logprobs(tokens) * 1.05)
    everything = torch.arange(8)
    learner._objective.teaching = lambda role, experience, rows: (rows, rows[:0])  # type: ignore[method-assign]
    whole, whole_stats = gradient_of(learner, experience, kl_coef=0.0)
    del learner._objective.teaching
    teaching, others = learner._objective.teaching("policy", experience, everything)
    assert (teaching.tolist(), others.tolist()) == ([0, 1, 2], [3, 4, 5, 6, 7])
    numbers = differentiated(learner)
    gradient, stats = gradient_of(learner, experience, kl_coef=0.0)
    assert sum(numbers) == 3
    torch.testing.assert_close(gradient, whole, rtol=1e-5, atol=1e-7)
    assert stats.keys() == whole_stats.keys()
    for name in ("policy/loss", "policy/entropy", "policy/clip_fraction", "policy/approx_kl"):
        assert stats[name] == pytest.approx(whole_stats[name], rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("changes", [{"kl": "loss", "kl_coef": 0.1}, {"entropy_coef": 0.01}, {"policy_loss": "nll"}])
def test_what_else_is_in_the_loss_teaches_every_row(random_model: Path, changes: dict[str, object]):
    settings = config(**GRPO | changes)
    learner, rows = make_learner(random_model, settings), torch.arange(8)
    teaching, others = learner._objective.teaching("policy", experience_of(learner, settings, batch()), rows)
    assert torch.equal(teaching, rows) and not len(others)


def test_kl_that_costs_nothing_is_not_computed(random_model: Path):
    """Without a reference the log-probs of one are 0, and e to the distance of a token of e-1000 is infinite."""
    settings = config(**GRPO | {"kl": "loss"})
    learner, tokens = make_learner(random_model, settings), batch()
    with torch.no_grad():
        learner.backend.models.policy.get_output_embeddings().weight.mul_(1e4)
    assert learner.logprobs(tokens).min() < -1000
    gradient, stats = gradient_of(learner, experience_of(learner, settings, tokens), kl_coef=0.0)
    assert gradient.isfinite().all() and "policy/kl_gradient_share" not in stats


def test_a_critic_learns_from_every_row(random_model: Path):
    learner, tokens, rows = make_learner(random_model, config()), batch(), torch.arange(8)
    experience = make_experience(tokens, learner.score(tokens), config().algo, kl_coef=0.1)
    silent = dataclasses.replace(experience, advantages=torch.zeros_like(experience.advantages))
    assert torch.equal(learner._objective.teaching("critic", silent, rows)[0], rows)
    assert learner._objective.teaching("policy", silent, rows)[0].tolist() == [0]


def test_a_step_that_teaches_nothing_is_one_of_the_optimiser(random_model: Path):
    """AdamW goes on by its momentum: as in torch, on gradients of 0."""
    settings = config(**GRPO)
    weights: list[torch.Tensor] = []
    for whole in (True, False):
        learner = make_learner(random_model, settings)
        for number, taught in enumerate((True, False)):
            experience = experience_of(learner, settings, batch(taught=taught))
            if whole:
                learner._objective.teaching = lambda role, experience, rows: (rows, rows[:0])  # type: ignore[method-assign]
            numbers = differentiated(learner)
            learner.update(experience, torch.Generator().manual_seed(number), kl_coef=0.0)
            assert whole or sum(numbers) == (3 if taught else 1)
            weights.append(torch.cat([p.detach().flatten().clone() for p in learner.backend.models.policy.parameters()]))
    assert not torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[2], weights[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(weights[3], weights[1], rtol=0, atol=1e-6)


def test_the_only_update_brings_the_old_logprobs(random_model: Path):
    settings = config(**GRPO)
    assert not settings.algo.scores_policy
    learner, tokens = make_learner(random_model, settings), batch()
    before, experience = learner.logprobs(tokens), experience_of(learner, settings, tokens)
    assert experience.old_logprobs is None
    given, _ = gradient_of(learner, dataclasses.replace(experience, old_logprobs=before), kl_coef=0.0)
    gradient, stats = gradient_of(learner, experience, kl_coef=0.0)
    torch.testing.assert_close(gradient, given, rtol=1e-4, atol=1e-7)
    assert stats["policy/approx_kl"] == 0 and stats["policy/clip_fraction"] == 0
    updated = learner.update(experience, torch.Generator().manual_seed(0), kl_coef=0.0)
    torch.testing.assert_close(updated.old_logprobs, before, rtol=0, atol=1e-5)
    assert bool(updated.old_logprobs[8].any()), "the row that trains nothing has them, too"
    told = dataclasses.replace(experience, old_logprobs=updated.old_logprobs)
    assert 0 < experience_metrics(told)["policy/end_probability_correct"] < 1


def test_an_update_of_the_critic_alone_brings_them_as_well(random_model: Path):
    settings = config(kl="none", kl_coef=0.0)
    learner, tokens = make_learner(random_model, settings), batch()
    before, experience = learner.logprobs(tokens), experience_of(learner, settings, tokens)
    updated = learner.update(experience, torch.Generator().manual_seed(0), kl_coef=0.0, train_policy=False)
    torch.testing.assert_close(updated.old_logprobs, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"updates_per_rollout": 2}, {"kl": "reward", "kl_coef": 0.1}, {"advantage": "distillation"}],
)
def test_what_needs_them_before_the_update_has_them(random_model: Path, changes: dict[str, object]):
    settings = config(**GRPO | changes)
    assert make_learner(random_model, settings).score(batch()).old_logprobs is not None


def test_a_second_update_cannot_do_without(random_model: Path):
    settings = config(**GRPO)
    learner, tokens = make_learner(random_model, settings), batch()
    experience = experience_of(learner, settings, tokens)
    two = StepPlan(begin=0, end=2, num_updates=2, num_rows=8)
    with pytest.raises(ValueError, match="2 optimiser batches"):
        learner.update(experience, torch.Generator().manual_seed(0), kl_coef=0.0, plan=two)

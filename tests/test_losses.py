"""Losses and aggregation: literals worked out by hand, and properties."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from conclip.algo.logprobs import chosen_logprobs, logits_at_a_time
from conclip.algo.losses import (
    aggregation_weights,
    cispo_loss,
    clipped_value_loss,
    gspo_loss,
    importance_weights,
    kl_k1,
    kl_k3,
    next_kl_coef,
    ppo_clip_loss,
)
from conclip.algo.masking import masked_mean, masked_whiten


def test_ppo_clip_by_hand():
    # ratios 1.5, 0.5, 1.5, 0.5 with advantages +2, +2, -2, -2 and clip 0.2:
    # min(3, 2.4) -> -2.4 clipped; min(1, 1.6) -> -1; min(-3, -2.4) -> +3; min(-1, -1.6) -> +1.6 clipped
    old = torch.zeros(4)
    new = torch.tensor([1.5, 0.5, 1.5, 0.5]).log()
    loss, clipped = ppo_clip_loss(new, old, torch.tensor([2.0, 2.0, -2.0, -2.0]), clip_low=0.2, clip_high=0.2)
    torch.testing.assert_close(loss, torch.tensor([-2.4, -1.0, 3.0, 1.6]))
    assert clipped.tolist() == [True, False, False, True]


def test_ppo_gradient_is_the_policy_gradient_at_ratio_one_and_zero_when_clipped():
    advantages = torch.tensor([2.0, -3.0])
    new = torch.zeros(2, requires_grad=True)
    ppo_clip_loss(new, torch.zeros(2), advantages, clip_low=0.2, clip_high=0.2)[0].sum().backward()
    torch.testing.assert_close(new.grad, -advantages)
    far = torch.tensor([0.5, -0.5], requires_grad=True)  # ratios 1.65 with A > 0, 0.61 with A < 0
    ppo_clip_loss(far, torch.zeros(2), advantages, clip_low=0.2, clip_high=0.2)[0].sum().backward()
    assert far.grad is not None and not far.grad.any()


def test_ppo_clip_sides_are_separate():
    new = torch.tensor([1.25, 0.75]).log()
    _, clipped = ppo_clip_loss(new, torch.zeros(2), torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.28)
    assert clipped.tolist() == [False, True]


def test_gspo_by_hand():
    # log ratios 0.3 and -0.1 (a third token is padding): s = exp(0.1) = 1.105171, within 0.2, so -s * A on both tokens;
    # the second row: 0.4 and 0.2, s = exp(0.3) = 1.349859, above 1.2: -1.2 * A, no gradient
    new = torch.tensor([[0.3, -0.1, 5.0], [0.4, 0.2, 5.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    loss, clipped = gspo_loss(new, torch.zeros(2, 3), torch.full((2, 3), 2.0), mask, clip_low=0.2, clip_high=0.2)
    torch.testing.assert_close(loss[:, :2], torch.tensor([[-2.210342, -2.210342], [-2.4, -2.4]]))
    assert clipped[:, :2].tolist() == [[False, False], [True, True]]
    weights = aggregation_weights(mask, "sequence_mean")
    (loss * weights).sum().backward()
    # d/d logprob of -(1/2) * A * s over two rows: each token carries A * s / 2 / 2
    torch.testing.assert_close(new.grad, torch.tensor([[-0.552585, -0.552585, 0.0], [0.0, 0.0, 0.0]]), atol=1e-5, rtol=0)


def test_gspo_has_the_gradient_of_the_sequence_form():
    generator = torch.Generator().manual_seed(3)
    new = torch.randn(4, 6, generator=generator).mul(0.1).requires_grad_()
    old, mask = torch.zeros(4, 6), torch.rand(4, 6, generator=generator) < 0.7
    mask[:, 0] = True
    advantages = torch.tensor([[1.0], [-2.0], [0.5], [-1.0]]).expand(4, 6)
    token_form, _ = gspo_loss(new, old, advantages, mask, clip_low=0.05, clip_high=0.05)
    (mine,) = torch.autograd.grad((token_form * aggregation_weights(mask, "sequence_mean")).sum(), new)
    ratio = torch.exp(((new - old) * mask).sum(-1) / mask.sum(-1))
    sequence_form = -torch.minimum(ratio * advantages[:, 0], ratio.clamp(0.95, 1.05) * advantages[:, 0]).mean()
    torch.testing.assert_close(mine, torch.autograd.grad(sequence_form, new)[0])


def test_cispo_by_hand():
    # ratios 1.5 and 0.5, bounds 0.8 and 1.28: weights 1.28 and 0.8; loss -w * A * log pi, gradient -w * A
    new = torch.tensor([1.5, 0.5]).log().requires_grad_()
    loss, bounded = cispo_loss(new, torch.zeros(2), torch.tensor([2.0, -1.0]), clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(loss, torch.tensor([-1.28 * 2 * math.log(1.5), 0.8 * math.log(0.5)]))
    assert bounded.tolist() == [True, True]
    loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([-2.56, 0.8]))


def test_importance_weights_by_hand():
    trainer = torch.tensor([[math.log(0.4), math.log(0.3), 0.0], [math.log(0.9), math.log(0.9), 9.0]])
    engine = torch.tensor([[math.log(0.2), math.log(0.6), 0.0], [math.log(0.3), math.log(0.3), 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    token = importance_weights(trainer, engine, mask, level="token", largest=2.5)
    torch.testing.assert_close(token, torch.tensor([[2.0, 0.5, 1.0], [2.5, 2.5, 1.0]]))
    sequence = importance_weights(trainer, engine, mask, level="sequence", largest=2.5)
    torch.testing.assert_close(sequence, torch.tensor([[1.0, 1.0, 1.0], [2.5, 2.5, 1.0]]))  # 2 * 0.5, and 9 cut at 2.5


def test_the_adaptive_kl_coefficient_by_hand():
    assert next_kl_coef(0.01, 0.2, 0.2) == 0.01
    assert abs(next_kl_coef(0.01, 0.22, 0.2) - 0.0101) < 1e-12  # 10 % above the target: 1 % more
    assert abs(next_kl_coef(0.01, 9.0, 0.2) - 0.0102) < 1e-12
    assert abs(next_kl_coef(0.01, 0.0, 0.2) - 0.0098) < 1e-12


def test_value_loss_by_hand():
    # V 1.0, old 0.5, R 0.8, clip 0.2: clipped V 0.7; max(0.04, 0.01) / 2
    # V 0.6, old 0.5, R 0.8: not clipped; 0.04 / 2.  V 0.0, old 0.5, R 0.1: clipped V 0.3; max(0.01, 0.04) / 2
    values, old, returns = torch.tensor([1.0, 0.6, 0.0]), torch.full((3,), 0.5), torch.tensor([0.8, 0.8, 0.1])
    loss = clipped_value_loss(values, old, returns, value_clip=0.2)
    torch.testing.assert_close(loss, torch.tensor([0.02, 0.02, 0.02]))


def test_kl_estimators_by_hand():
    logprobs, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    torch.testing.assert_close(kl_k1(logprobs, reference), torch.tensor([math.log(2)]))
    torch.testing.assert_close(kl_k3(logprobs, reference), torch.tensor([0.5 - 1 + math.log(2)]))
    draws = torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (kl_k3(*draws) >= 0).all()


def test_kl_estimators_are_unbiased():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_k1(p.log(), q.log())).sum(), exact)
    torch.testing.assert_close((p * kl_k3(p.log(), q.log())).sum(), exact)


def test_aggregation_by_hand():
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()  # 2 tokens, 1 token, nothing that trains
    weights = aggregation_weights(mask, "sequence_mean")
    torch.testing.assert_close(weights, torch.tensor([[0, 0.25, 0.25, 0], [0, 0.5, 0, 0], [0, 0, 0, 0.0]]))
    weights = aggregation_weights(mask, "token_mean")
    torch.testing.assert_close(weights, mask / 3)
    weights = aggregation_weights(mask, "constant", constant_tokens=4)
    torch.testing.assert_close(weights, mask / 8)


def test_aggregation_of_nothing_is_zero():
    for aggregation in ("sequence_mean", "token_mean", "constant"):
        assert not aggregation_weights(torch.zeros(2, 3).bool(), aggregation).any()


@settings(max_examples=50)
@given(st.integers(0, 2**31 - 1))
def test_whitening_gives_mean_zero_and_deviation_one(seed: int):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(5, 9, generator=generator) < 0.7
    mask[0, :2] = True
    x = 3 + 10 * torch.randn(5, 9, generator=generator)
    white = masked_whiten(x, mask)
    assert abs(float(masked_mean(white, mask))) < 1e-5
    assert abs(float(white[mask].std(correction=0)) - 1) < 1e-4
    assert not white[~mask].any()


@pytest.mark.parametrize("size", [1, 7, 1000, 300_000])
@pytest.mark.parametrize("value", [-0.7, 0.1, -9.7, 1e-30, 0.0])
def test_whitening_of_a_constant_is_exactly_nothing(value: float, size: int):
    x = torch.full((size,), value)
    assert not masked_whiten(x, torch.ones(size).bool()).any()
    assert not masked_whiten(torch.cat([x, torch.ones(2)]), torch.arange(size + 2) < size).any()
    assert not masked_whiten(x, torch.zeros(size).bool()).any()


def test_the_entropy_carries_a_gradient_only_when_asked():
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 5, bias=False)
    hidden, targets = torch.randn(6, 4, requires_grad=True), torch.randint(0, 5, (6,))
    assert not chosen_logprobs(hidden, head, targets, 1.0)[1].requires_grad
    expected = torch.log_softmax(head(hidden), -1)
    (gradient,) = torch.autograd.grad(-(expected.exp() * expected).sum(), hidden)
    for max_logits in (10, 1000):
        entropy = chosen_logprobs(hidden, head, targets, 1.0, entropy_gradient=True, max_logits=max_logits)[1]
        torch.testing.assert_close(torch.autograd.grad(entropy.sum(), hidden)[0], gradient)


def test_chunked_logprobs_equal_whole_ones():
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 11, bias=False)
    hidden, targets = torch.randn(17, 8, requires_grad=True), torch.randint(0, 11, (17,))
    whole, entropy = chosen_logprobs(hidden, head, targets, 0.6)
    expected = torch.log_softmax(head(hidden) / 0.6, -1)
    torch.testing.assert_close(whole, expected.gather(-1, targets[:, None])[:, 0])
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1).detach())
    (gradient,) = torch.autograd.grad(whole.sum(), hidden)
    chunked, chunked_entropy = chosen_logprobs(hidden, head, targets, 0.6, max_logits=33)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(chunked_entropy, entropy)
    torch.testing.assert_close(torch.autograd.grad(chunked.sum(), hidden)[0], gradient)


def test_a_chunk_is_as_large_as_the_head_within_bounds():
    assert logits_at_a_time(151_936, 1536) == 151_936 * 1536  # R1-Distill-Qwen-1.5B: 1,536 rows
    assert logits_at_a_time(151_936, 3584) == 1 << 28  # a 7B model: 1,766 rows in 1 GiB
    assert logits_at_a_time(128, 128) == 1 << 24  # the lab's: 131,072 rows, so its batches are never split


@pytest.mark.parametrize("trains", [True, False])
def test_chunks_share_one_cast_of_the_head(trains: bool):
    """Under bfloat16 autocast: the same log-probs as of the whole, bit for bit, and one copy of the weights."""
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 40).requires_grad_(trains)
    hidden, targets = torch.randn(24, 16, requires_grad=True), torch.randint(0, 40, (24,))
    found = []
    for rows in (24, 6):
        counted = Casts(head.weight.numel())
        with counted, torch.autocast("cpu", torch.bfloat16):
            logprobs, entropy = chosen_logprobs(hidden, head, targets, 0.6, max_logits=rows * 40)
        assert counted.number == 1
        wanted = [hidden, *(head.parameters() if trains else ())]
        found.append([logprobs, entropy, *torch.autograd.grad(logprobs.sum(), wanted)])
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    for whole, chunked in zip(found[0][2:], found[1][2:], strict=True):
        torch.testing.assert_close(whole, chunked, rtol=0.02, atol=0.02)


class Casts(TorchDispatchMode):
    """Counts copies of tensors of a size in another precision."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.number = size, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function is torch.ops.aten._to_copy.default and args[0].numel() == self.size
        return function(*args, **(kwargs or {}))

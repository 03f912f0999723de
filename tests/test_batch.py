"""Alignment, readable by eye."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conclip.training.batch import collate, largest_micro_batch, micro_batches, row_lengths, select_rows
from conclip.types import Outcome
from tests.conftest import make_group, make_rollout


def batch():
    return collate(
        [
            make_group(make_rollout([7, 8, 3]), make_rollout([9], sample=1, outcome=Outcome.WRONG, reward=-0.5)),
            make_group(
                make_rollout([4, 4], prompt=(5,), problem_id="q", outcome=Outcome.TRUNCATED, reward=-1.0),
                make_rollout([2], prompt=(5,), problem_id="q", sample=1, outcome=Outcome.GRADER_ERROR, reward=None),
            ),
        ],
        train_on_truncated=False,
    )


def test_column_t_is_the_decision_taken_in_state_t():
    tokens = batch()
    assert tokens.input_ids.tolist() == [[5, 6, 7, 8, 3], [5, 6, 9, 0, 0], [5, 4, 4, 0, 0], [5, 2, 0, 0, 0]]
    assert tokens.response_mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert [row[mask].tolist() for row, mask in zip(tokens.targets, tokens.response_mask, strict=True)] == [
        [7, 8, 3],
        [9],
        [4, 4],
        [2],
    ]
    expected = torch.tensor([[0, -0.1, -0.2, -0.3], [0, -0.1, 0, 0], [-0.1, -0.2, 0, 0], [-0.1, 0, 0, 0]])
    torch.testing.assert_close(tokens.sampler_logprobs, expected)


def test_truncated_and_ungraded_rows_stay_out_of_the_loss():
    tokens = batch()
    assert tokens.loss_mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert tokens.rewards.tolist() == [1.0, -0.5, -1.0, 0.0]
    assert tokens.groups.tolist() == [0, 0, 1, 1]
    assert tokens.truncated.tolist() == [False, False, True, False]
    assert tokens.correct.tolist() == [True, False, False, False]


def test_truncated_rows_can_train():
    group = make_group(make_rollout([4, 4], outcome=Outcome.TRUNCATED, reward=-1.0))
    assert collate([group], train_on_truncated=True).loss_mask.sum() == 2


def test_select_rows_trims_to_the_longest():
    part = select_rows(batch(), torch.tensor([1, 3]))
    assert part.input_ids.tolist() == [[5, 6, 9], [5, 2, 0]]
    assert part.response_mask.int().tolist() == [[0, 1], [1, 0]]
    assert part.rewards.tolist() == [-0.5, 0.0]


def test_micro_batches_by_hand():
    # row lengths 5, 3, 3, 2: sorted 2 | 3 3 | 5, as 2 with 3 would be a sixth padding
    pieces = [piece.tolist() for piece in micro_batches(batch(), torch.tensor([0, 1, 2, 3]), max_tokens=6)]
    assert pieces == [[3], [1, 2], [0]]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), max_tokens=st.integers(1, 400), seed=st.integers(0, 99)
)
def test_micro_batches_cover_each_row_once_within_budget_and_padding(lengths: list[int], max_tokens: int, seed: int):
    rollouts = [make_rollout([7] * length, sample=sample) for sample, length in enumerate(lengths)]
    tokens = collate([make_group(*rollouts)], train_on_truncated=True)
    rows = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    pieces = list(micro_batches(tokens, rows, max_tokens))
    assert sorted(row for piece in pieces for row in piece.tolist()) == sorted(rows.tolist())
    for piece in pieces:
        size = select_rows(tokens, piece).input_ids.numel()
        assert size <= max_tokens or len(piece) == 1
        assert int(row_lengths(tokens)[piece].sum()) >= 0.9 * size
        num_rows, length = largest_micro_batch(int(row_lengths(tokens).max()), max_tokens)
        assert size <= num_rows * length


def test_the_largest_micro_batch():
    assert largest_micro_batch(1174, 2048) == (2, 1024)
    assert largest_micro_batch(2048, 2048) == (1, 2048)
    assert largest_micro_batch(4096, 2048) == (1, 4096)


def test_a_completion_without_logprobs_is_refused():
    rollout = make_rollout([7, 8])

    bare = dataclasses.replace(rollout, completion=dataclasses.replace(rollout.completion, logprobs=()))
    with pytest.raises(ValueError, match="log-prob"):
        collate([make_group(bare)], train_on_truncated=True)

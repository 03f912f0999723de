"""Where a step lies in its phase, by hand."""

import dataclasses

import pytest
import torch

from conclip.config.groups import AlgoConfig, PhaseConfig
from conclip.training.schedule import Scheduled, StepPlan, lr_scale, plan_step
from tests.conftest import train_config


def settings(**changes: int | None) -> tuple[PhaseConfig, AlgoConfig]:
    """Ten steps of 4 x 16 responses in four updates."""
    loaded = train_config("phase.num_steps=10", "phase.problems_per_step=4", "phase.group_size=16")
    phase = {name: value for name, value in changes.items() if hasattr(loaded.phase, name)}
    algo = {name: value for name, value in changes.items() if hasattr(loaded.algo, name)}
    return (
        dataclasses.replace(loaded.phase, **phase),  # type: ignore[arg-type]
        dataclasses.replace(loaded.algo, **({"updates_per_rollout": 4} | algo)),  # type: ignore[arg-type]
    )


def places(step: int, tokens: tuple[int, int] = (0, 0), tokens_of_warmup: int = 0, **changes: int | None) -> list[int]:
    plan = plan_step(step, *settings(**changes), tokens=tokens, tokens_of_warmup=tokens_of_warmup)
    return [plan.begin, plan.end]


def test_a_step_lies_where_its_number_says():
    assert places(1) == [0, 4] and places(3) == [8, 12] and places(10) == [36, 40]
    assert places(3, (900, 999)) == [8, 12]  # no budget: tokens decide nothing
    assert places(-1, critic_warmup_steps=2) == [0, 4] and places(0, critic_warmup_steps=2) == [4, 8]
    assert places(1, critic_warmup_steps=2) == [8, 12]


def test_with_a_budget_it_lies_where_the_tokens_say_if_that_is_further():
    assert places(2, (250, 500), max_sampled_tokens=1000) == [10, 20]
    assert places(3, (500, 1100), max_sampled_tokens=1000) == [20, 40]  # the budget is spent: the schedule ends
    assert places(3, (10, 20), max_sampled_tokens=1000) == [8, 12]  # the steps end first
    warmup = {"max_sampled_tokens": 1000, "critic_warmup_steps": 1}
    assert places(0, (0, 200), **warmup) == [0, 4]
    assert places(1, (200, 400), tokens_of_warmup=200, **warmup) == [4, 14]  # a quarter of the 800 that are left
    assert places(1, (1200, 1300), tokens_of_warmup=1200, **warmup) == [4, 44]


def test_optimiser_batches_keep_their_size_where_few_rows_train():
    plan = StepPlan(begin=8, end=12, num_updates=4, num_rows=64)

    def sizes(num_rows: int) -> list[int]:
        return [len(batch) for batch in plan.split(torch.arange(num_rows))]

    assert sizes(64) == [16] * 4 and sizes(62) == [16, 16, 15, 15] and sizes(49) == [13, 12, 12, 12]
    assert sizes(48) == [16] * 3 and sizes(16) == [16] and sizes(1) == [1] and sizes(0) == []
    narrow = dataclasses.replace(plan, num_rows=2)
    assert [len(batch) for batch in narrow.split(torch.arange(1))] == [1]  # never an empty batch
    assert [plan.place(batch, 4) for batch in range(4)] == [8, 9, 10, 11]
    assert [plan.place(batch, 2) for batch in range(2)] == [8, 10] and plan.place(0, 1) == 8


def test_a_full_step_is_planned_by_what_the_estimator_trains():
    for advantage, num_rows in (("gae", 64), ("shortest_correct", 4)):
        phase, algo = settings()
        algo = dataclasses.replace(algo, advantage=advantage)  # type: ignore[arg-type]
        assert plan_step(1, phase, algo, tokens=(0, 0), tokens_of_warmup=0).num_rows == num_rows


def test_lr_schedule_by_hand():
    def scale(update: int) -> float:
        return lr_scale(update, 100, warmup_fraction=0.1, min_lr_fraction=0.1)

    assert scale(0) == pytest.approx(0.1) and scale(9) == pytest.approx(1.0) and scale(10) == pytest.approx(1.0)
    assert scale(55) == pytest.approx(0.55)  # half of the cosine: 0.1 + 0.9 / 2
    assert scale(100) == scale(130) == pytest.approx(0.1)


def test_an_optimiser_takes_the_rate_of_its_place():
    adamw = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduled = Scheduled(adamw, lambda update: 1 / (update + 1))
    assert scheduled.get_last_lr() == [2.0]
    scheduled.place(3)
    assert scheduled.get_last_lr() == [adamw.param_groups[0]["lr"]] == [0.5] and scheduled.last_epoch == 3


def stepped(module: torch.nn.Module) -> Scheduled:
    """An AdamW that took one step on it."""
    scheduled = Scheduled(torch.optim.AdamW(module.parameters(), lr=0.1), lambda _: 1.0)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    scheduled.optimizer.step()
    return scheduled


def moments(scheduled: Scheduled) -> dict[str, torch.Tensor]:
    saved = scheduled.optimizer.state_dict()["state"]
    return {f"policy/{index}/{key}": tensor.clone() for index, found in saved.items() for key, tensor in found.items()}


def test_moments_go_on_where_they_were():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    left = stepped(first)
    right = Scheduled(torch.optim.AdamW(second.parameters(), lr=0.1), lambda _: 1.0)
    second.load_state_dict(first.state_dict())
    right.load_moments(moments(left) | {"critic/0/step": torch.zeros(5)}, prefix="policy/")
    for module, scheduled in ((first, left), (second, right)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        scheduled.optimizer.step()
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert right.get_last_lr() == [0.1]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("policy/0/exp_avg", None),
        ("policy/0/step", None),
        ("policy/0/exp_avg", torch.zeros(())),  # would be spread over the parameter
        ("policy/0/exp_avg_sq", torch.ones(5, 3)),
        ("policy/0/exp_avg_sq", torch.full((2, 3), -1.0)),
        ("policy/0/exp_avg_sq", torch.full((2, 3), float("nan"))),
        ("policy/0/exp_avg", torch.zeros(2, 3, dtype=torch.int64)),
        ("policy/0/exp_avg", torch.zeros(2, 3, dtype=torch.complex64)),
        ("policy/0/step", torch.tensor(-1.0)),
        ("policy/0/step", torch.tensor(float("nan"))),
        ("policy/0/step", torch.ones(2)),
        ("policy/0/momentum_buffer", torch.zeros(2, 3)),  # of SGD
        ("policy/0/max_exp_avg_sq", torch.zeros(2, 3)),  # of AMSGrad
        ("policy/7/step", torch.tensor(1.0)),
        ("policy/-1/step", torch.tensor(1.0)),
        ("policy/x/step", torch.tensor(1.0)),
        ("policy/", torch.tensor(1.0)),
    ],
)
def test_moments_of_another_optimiser_or_model_are_refused(name: str, tensor: torch.Tensor | None):
    scheduled = stepped(torch.nn.Linear(3, 2))
    saved = moments(scheduled)
    with pytest.raises(ValueError):
        scheduled.load_moments(
            {k: v for k, v in saved.items() if k != name} | ({name: tensor} if tensor is not None else {}), prefix="policy/"
        )

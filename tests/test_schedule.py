"""Where a step lies in its phase, by hand."""

import dataclasses

import pytest
import torch

from conclip.config.groups import AlgoConfig, PhaseConfig
from conclip.training.optimizer import Scheduled
from conclip.training.schedule import StepPlan, lr_scale, plan_step, share_spent, tokens_limit
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
    assert [plan.position(batch, 4) for batch in range(4)] == [8, 9, 10, 11]
    assert [plan.position(batch, 2) for batch in range(2)] == [8, 10] and plan.position(0, 1) == 8


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
    module = torch.nn.Linear(1, 1)
    adamw = torch.optim.AdamW(module.parameters(), lr=2.0)
    scheduled = Scheduled(module, adamw, lambda update: 1 / (update + 1))
    scheduled.set_position(0)
    assert scheduled.lr == 2.0
    scheduled.set_position(3)
    assert scheduled.lr == adamw.param_groups[0]["lr"] == 0.5


def stepped(module: torch.nn.Module) -> Scheduled:
    """An AdamW that took one step on it."""
    scheduled = Scheduled(module, torch.optim.AdamW(module.parameters(), lr=0.1), lambda _: 1.0)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    scheduled.optimizer.step()
    return scheduled


def saved(scheduled: Scheduled) -> dict[str, torch.Tensor]:
    return {f"policy/{name}": tensor.clone() for name, tensor in scheduled.moments().items()}


def test_moments_go_on_where_they_were():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    left = stepped(first)
    right = Scheduled(second, torch.optim.AdamW(second.parameters(), lr=0.1), lambda _: 1.0)
    second.load_state_dict(first.state_dict())
    right.load_moments(saved(left) | {"critic/weight/step": torch.zeros(5)}, prefix="policy/")
    for module, scheduled in ((first, left), (second, right)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        scheduled.optimizer.step()
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert right.lr == 0.1


def test_a_parameter_that_never_had_a_gradient_has_no_moments_after_it_is_loaded():
    """A module whose bias gets its first gradient after the checkpoint: an expert that no token chose, for example."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    left, right = (Scheduled(m, torch.optim.AdamW(m.parameters(), lr=0.1), lambda _: 1.0) for m in (first, second))
    assert left.moments() == {}
    right.load_moments({}, prefix="")
    assert not right.optimizer.state
    first.weight.grad = torch.ones(2, 3)
    left.optimizer.step()
    assert sorted(left.moments()) == ["weight/exp_avg", "weight/exp_avg_sq", "weight/step"]
    second.load_state_dict(first.state_dict())
    right.load_moments({name: moment.clone() for name, moment in left.moments().items()}, prefix="")
    for module, scheduled in ((first, left), (second, right)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        scheduled.optimizer.step()
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("policy/weight/exp_avg", None),
        ("policy/weight/step", None),
        ("policy/weight/exp_avg", torch.zeros(())),  # would be spread over the parameter
        ("policy/weight/exp_avg_sq", torch.ones(5, 3)),
        ("policy/weight/exp_avg_sq", torch.full((2, 3), -1.0)),
        ("policy/weight/exp_avg_sq", torch.full((2, 3), float("nan"))),
        ("policy/weight/exp_avg", torch.zeros(2, 3, dtype=torch.int64)),
        ("policy/weight/exp_avg", torch.zeros(2, 3, dtype=torch.complex64)),
        ("policy/weight/step", torch.tensor(-1.0)),
        ("policy/weight/step", torch.tensor(float("nan"))),
        ("policy/weight/step", torch.ones(2)),
        ("policy/weight/momentum_buffer", torch.zeros(2, 3)),  # of SGD
        ("policy/weight/max_exp_avg_sq", torch.zeros(2, 3)),  # of AMSGrad
        ("policy/7/step", torch.tensor(1.0)),
        ("policy/-1/step", torch.tensor(1.0)),
        ("policy/x/step", torch.tensor(1.0)),
        ("policy/", torch.tensor(1.0)),
    ],
)
def test_moments_of_another_optimiser_or_model_are_refused(name: str, tensor: torch.Tensor | None):
    scheduled = stepped(torch.nn.Linear(3, 2))
    rest = {key: moment for key, moment in saved(scheduled).items() if key != name}
    with pytest.raises(ValueError):
        scheduled.load_moments(rest | ({name: tensor} if tensor is not None else {}), prefix="policy/")


def test_token_limits_tighten_in_equal_stages():
    limits = [tokens_limit([1.0, 0.75, 0.5], 200, step / 6) for step in range(7)]
    assert limits == [200, 200, 150, 150, 100, 100, 100]
    assert tokens_limit(None, 200, 0.9) == 200 and tokens_limit([0.29], 100, 0.0) == 29  # 0.29 * 100 is 28.999...


def test_the_warm_up_is_no_part_of_the_budget_of_stages():
    """100,000 tokens, 40,000 of them the critic's: half of the rest is spent after 70,000."""
    phase, _ = settings(max_sampled_tokens=100_000)
    assert [share_spent(phase, tokens, tokens_of_warmup=40_000) for tokens in (40_000, 70_000, 100_000)] == [0, 0.5, 1]
    assert share_spent(settings()[0], 70_000, tokens_of_warmup=0) == 0

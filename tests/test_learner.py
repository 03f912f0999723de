"""The update on a real (tiny, random) model: what must not change it, and what it must do."""

import dataclasses
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from conclip.cluster.threads import threads
from conclip.config.compose import load_config
from conclip.config.groups import AdapterConfig, AlgoConfig
from conclip.config.schema import LearnConfig
from conclip.models.folder import LAB_MODEL
from conclip.training.backend import Backend
from conclip.training.batch import ExperienceBatch, TokenBatch, collate, with_prompts
from conclip.training.experience import Scores, has_signal, kl_reward_share, kl_rewards, make_experience, outcome_rewards
from conclip.training.learner import Learner, NonFiniteGradient
from conclip.training.monitors import (
    advantage_by_length,
    experience_metrics,
    explained_variance,
    mean_advantages,
    step_warnings,
    zero_advantage_share,
)
from conclip.training.side_by_side import SideBySide
from conclip.training.summary import MONITORS, summarise_steps
from conclip.types import Outcome, RolloutGroup
from tests.conftest import gradient_of, make_group, make_rollout


@cache
def default() -> LearnConfig:
    loaded = load_config("train-phase2")
    assert isinstance(loaded, LearnConfig)
    return loaded


def config(**changes: object) -> LearnConfig:
    loaded = default()
    algo = {"updates_per_rollout": 1, "kl_coef": 0.1} | {k: v for k, v in changes.items() if hasattr(loaded.algo, k)}
    trainer = {k: v for k, v in changes.items() if hasattr(loaded.trainer, k)}
    return dataclasses.replace(
        loaded,
        algo=dataclasses.replace(loaded.algo, **algo),
        trainer=dataclasses.replace(loaded.trainer, **trainer),
    )


def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 100, (length,), generator=generator).tolist()

    groups = [
        make_group(
            make_rollout(draw(9), prompt=draw(4), problem_id=name),
            make_rollout(draw(3), prompt=draw(4), problem_id=name, sample=1, outcome=Outcome.WRONG, reward=-0.5),
            make_rollout(draw(6), prompt=draw(7), problem_id=name, sample=2, outcome=Outcome.TRUNCATED, reward=-1.0),
        )
        for name in ("p", "q")
    ]
    return collate(groups, train_on_truncated=True)


def make_learner(model: Path, settings: LearnConfig, *, num_updates: int = 10) -> Learner:
    return Learner(Backend(model, settings, num_updates=num_updates), settings)


def parameters_after(model: Path, settings: LearnConfig) -> tuple[torch.Tensor, dict[str, float]]:
    learner = make_learner(model, settings)
    tokens = batch()
    kl_coef = settings.algo.kl_coef
    experience = make_experience(tokens, learner.score(tokens), settings.algo, kl_coef=kl_coef)
    stats = learner.update(experience, torch.Generator().manual_seed(0), kl_coef=kl_coef).stats
    modules = [
        learner.backend.models.policy,
        *([learner.backend.models.critic] if learner.backend.models.critic is not None else []),
    ]
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()]), stats


@pytest.fixture(scope="module")
def double_learner(random_model: Path) -> Learner:
    learner = make_learner(random_model, config(kl="loss", entropy_coef=0.01))
    for module in (learner.backend.models.policy, learner.backend.models.reference, learner.backend.models.critic):
        assert module is not None
        module.double()
    return learner


@pytest.mark.whole
@hypothesis.settings(max_examples=10)
@hypothesis.given(
    aggregation=st.sampled_from(["sequence_mean", "token_mean", "constant"]),
    max_tokens=st.integers(1, 120),
    order=st.permutations(range(6)),
    num_columns=st.integers(0, 7),
    filler=st.integers(0, 99),
)
def test_the_gradient_does_not_depend_on_split_order_or_padding(
    double_learner: Learner, aggregation: str, max_tokens: int, order: list[int], num_columns: int, filler: int
):
    learner = double_learner
    learner._algo = dataclasses.replace(learner._algo, loss_aggregation=aggregation)  # type: ignore[arg-type]
    plain = random_experience()
    learner._trainer = dataclasses.replace(learner._trainer, max_tokens_per_micro_batch=10_000)
    whole, whole_stats = gradient_of(learner, plain, kl_coef=0.1)
    learner._trainer = dataclasses.replace(learner._trainer, max_tokens_per_micro_batch=max_tokens)
    changed, stats = gradient_of(learner, repadded(plain, order, num_columns, filler), kl_coef=0.1)
    assert float((whole - changed).abs().max()) < 1e-6 * float(whole.abs().max())
    for name in ("policy/loss", "value/loss", "policy/entropy", "policy/clip_fraction", "policy/approx_kl"):
        assert stats[name] == pytest.approx(whole_stats[name], rel=1e-6, abs=1e-9)


def random_experience() -> ExperienceBatch:
    tokens = batch()
    generator = torch.Generator().manual_seed(2)
    mask = tokens.response_mask

    def draw(mean: float, deviation: float) -> torch.Tensor:
        return (mean + deviation * torch.randn(mask.shape, generator=generator, dtype=torch.float64)) * mask

    return ExperienceBatch(
        tokens=tokens,
        old_logprobs=draw(-4.6, 0.3),  # about log(1/100), so that the ratio is near 1
        ref_logprobs=draw(-4.6, 0.3),
        old_values=draw(0, 0.3),
        advantages=draw(0, 1),
        returns=draw(0, 1),
    )


def repadded(experience: ExperienceBatch, order: list[int], num_columns: int, filler: int) -> ExperienceBatch:
    """The same rows in another order, with more padding and other things in it."""
    tokens = experience.tokens
    rows = torch.tensor(order)
    inside = torch.nn.functional.pad(tokens.response_mask, (0, num_columns))[rows]
    is_text = torch.zeros(6, tokens.input_ids.shape[1] + num_columns).bool()
    for row in range(6):
        is_text[row, : int(inside[row].nonzero().max()) + 2] = True

    def widened(values: torch.Tensor) -> torch.Tensor:
        return torch.where(inside, torch.nn.functional.pad(values, (0, num_columns))[rows], filler / 10)

    return ExperienceBatch(
        tokens=dataclasses.replace(
            tokens,
            input_ids=torch.where(is_text, torch.nn.functional.pad(tokens.input_ids, (0, num_columns))[rows], filler),
            response_mask=inside,
            loss_mask=inside,
            sampler_logprobs=widened(tokens.sampler_logprobs),
            rewards=tokens.rewards[rows],
            groups=tokens.groups[rows],
            truncated=tokens.truncated[rows],
            correct=tokens.correct[rows],
        ),
        old_logprobs=widened(experience.old_logprobs),
        ref_logprobs=widened(experience.ref_logprobs),
        old_values=widened(experience.old_values),
        advantages=widened(experience.advantages),
        returns=widened(experience.returns),
    )


def test_an_update_changes_policy_and_critic_and_repeats_exactly(random_model: Path):
    first, stats = parameters_after(random_model, config())
    again, _ = parameters_after(random_model, config())
    assert torch.equal(first, again)
    assert stats["optim/policy_grad_norm"] > 0 and stats["optim/critic_grad_norm"] > 0
    assert stats["policy/clip_fraction"] == 0  # one update: the ratio is 1 everywhere
    assert abs(stats["policy/approx_kl"]) < 1e-9


def test_recomputed_activations_change_nothing(random_model: Path):
    kept = config()
    recomputed = dataclasses.replace(kept, trainer=dataclasses.replace(kept.trainer, recompute_activations=True))
    first, second = (parameters_after(random_model, settings) for settings in (kept, recomputed))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl": "loss", "entropy_coef": 0.01},
        {"recompute_activations": True},
        {"adapter": AdapterConfig(kind="lora", rank=2)},
    ],
    ids=lambda changes: ", ".join(changes) or "ppo",
)
def test_micro_batches_side_by_side_change_no_bit(random_model: Path, changes: dict[str, Any]):
    """Each computes as it does alone, with one thread."""
    adapter, rest = changes.get("adapter", AdapterConfig()), {k: v for k, v in changes.items() if k != "adapter"}

    def after(number: int) -> tuple[torch.Tensor, dict[str, float]]:
        settings = config(max_tokens_per_micro_batch=15, micro_batches_at_once=number, **rest)
        model = dataclasses.replace(settings.model, adapter=adapter)
        return parameters_after(random_model, dataclasses.replace(settings, model=model))

    with threads(1):
        (one, stats), (three, same) = after(1), after(3)
        assert torch.equal(one, three) and stats == same
        assert torch.get_num_threads() == 1


def test_the_lab_has_the_same_bits_with_any_number_of_threads():
    """Which is why it may have as many micro-batches side by side as there are threads."""
    settings = config(max_tokens_per_micro_batch=40)
    found: list[torch.Tensor] = []
    for num_threads, number in ((1, 1), (2, 2), (4, 3)):
        trainer = dataclasses.replace(settings.trainer, micro_batches_at_once=number)
        with threads(num_threads):
            found.append(parameters_after(LAB_MODEL, dataclasses.replace(settings, trainer=trainer))[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_tasks_side_by_side_keep_their_order_and_few_are_begun():
    begun: list[int] = []

    def task(number: int) -> int:
        begun.append(number)
        return number

    results = SideBySide(2).run(partial(task, number) for number in range(20))
    assert next(results) == 0 and len(begun) <= 3
    assert list(results) == list(range(1, 20)) and sorted(begun) == list(range(20))


def test_each_task_has_one_thread_also_beside_an_engine_in_this_process(monkeypatch: pytest.MonkeyPatch):
    """vLLM's on a CPU leaves torch's own function without effect."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with threads(3):
        assert list(SideBySide(2).run(torch.get_num_threads for _ in range(5))) == [1] * 5
        assert torch.get_num_threads() == 3


def test_a_task_that_fails_side_by_side_fails_the_whole():
    before = torch.get_num_threads()

    def task(number: int) -> int:
        if number == 3:
            raise MemoryError(f"no room for {number}")
        return number

    with pytest.raises(MemoryError, match="no room for 3"):
        list(SideBySide(2).run(partial(task, number) for number in range(9)))
    assert torch.get_num_threads() == before


@pytest.mark.whole
def test_a_rehearsal_and_a_rest_change_nothing(random_model: Path):
    """On a CPU a rest moves nothing, but it goes the same way."""
    plain, resting = (make_learner(random_model, config(offload=offload)) for offload in (False, True))
    resting.rehearse(40)
    for learner in (plain, resting):
        for number in range(2):
            experience = make_experience(batch(), learner.score(batch()), learner._algo, kl_coef=0.01)
            learner.update(experience, torch.Generator().manual_seed(number), kl_coef=0.01)
    first, second = plain.backend.state(), resting.backend.state()
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert torch.equal(flat(plain.backend.models.policy), flat(resting.backend.models.policy))


def test_an_update_wakes_what_rests(random_model: Path, monkeypatch: pytest.MonkeyPatch):
    """A warm-up updates without scoring."""
    learner = make_learner(random_model, config(offload=True))
    at: list[str] = []
    monkeypatch.setattr(learner.backend, "_move", lambda device: at.append(str(device)))  # pyright: ignore[reportUnknownLambdaType]
    learner.backend.device = torch.device("cpu", 0)
    experience = make_experience(batch(), scores_of(batch(), 0.0), config().algo, kl_coef=0.0)
    for _ in range(2):
        learner.update(experience, torch.Generator().manual_seed(0), kl_coef=0.0)
    assert at == ["cpu:0", "cpu"] * 2


def test_a_rehearsal_has_room_for_the_moments(random_model: Path):
    learner = make_learner(random_model, config())
    sizes = [len(moments) for moments in learner.backend.missing_moments()]
    assert sizes == [8 * sum(p.numel() for p in module.parameters()) for module in learner.backend.models.trained.values()]
    step(learner, make_experience(batch(), learner.score(batch()), config().algo, kl_coef=0.0))
    assert learner.backend.missing_moments() == []


def test_what_rests_is_what_a_push_does_not_read(random_model: Path):
    models = make_learner(random_model, config()).backend.models
    moved = {id(p) for model in models.for_updates() for p in model.parameters()}
    assert models.critic is not None and models.reference is not None
    assert moved.isdisjoint(map(id, models.policy.parameters()))
    assert moved == {id(p) for model in (models.critic, models.reference) for p in model.parameters()}


def test_a_reference_in_bfloat16_is_the_policy_rounded(random_model: Path):
    settings = config(reference_dtype="bfloat16")
    learner = make_learner(
        random_model, dataclasses.replace(settings, model=dataclasses.replace(settings.model, dtype="bfloat16"))
    )
    assert learner.backend.models.reference is not None
    for name, buffer in learner.backend.models.policy.named_buffers():  # positions, in all their digits
        assert torch.equal(learner.backend.models.reference.get_buffer(name), buffer)
        assert learner.backend.models.reference.get_buffer(name).dtype is buffer.dtype is torch.float32
    for name, parameter in learner.backend.models.reference.named_parameters():
        assert torch.equal(parameter, learner.backend.models.policy.get_parameter(name).bfloat16())
    scores = learner.score(batch())
    assert scores.ref_logprobs is not None
    difference = (scores.ref_logprobs - learner.logprobs(batch())).abs().max()
    assert 0 < difference < 0.05


def test_grpo_needs_no_critic(random_model: Path):
    settings = config(advantage="group_relative", kl="loss")
    learner = make_learner(random_model, settings)
    assert learner.backend.models.critic is None
    _, stats = parameters_after(random_model, settings)
    assert stats["optim/policy_grad_norm"] > 0 and "value/loss" not in stats


def test_logprobs_match_a_plain_forward_pass(random_model: Path):
    learner = make_learner(random_model, config())
    tokens = batch()
    logprobs, scores = learner.logprobs(tokens), learner.score(tokens)
    assert scores.old_logprobs is not None and torch.equal(logprobs, scores.old_logprobs)
    for i in range(len(tokens)):
        length = int(tokens.response_mask[i].nonzero().max()) + 2
        ids = tokens.input_ids[i, :length]
        logits = learner.backend.models.policy(input_ids=ids[None]).logits[0, :-1]
        expected = torch.log_softmax(logits, -1).gather(-1, ids[1:, None])[:, 0]
        mask = tokens.response_mask[i]
        torch.testing.assert_close(logprobs[i][mask], expected[mask[: length - 1]], atol=1e-5, rtol=0)
    assert not logprobs[~tokens.response_mask].any()
    assert scores.old_values is not None and not scores.old_values.any()  # the value head starts at 0


def algo(**changes: object) -> AlgoConfig:
    return dataclasses.replace(config().algo, **changes)  # type: ignore[arg-type]


def scores_of(tokens: TokenBatch, value: float) -> Scores:
    shape = tokens.response_mask.shape
    return Scores(
        old_logprobs=torch.where(tokens.response_mask, -1.0, 0.0),
        ref_logprobs=torch.where(tokens.response_mask, -1.5, 0.0),
        old_values=torch.where(tokens.response_mask, value, torch.zeros(shape)),
    )


def test_the_reward_is_on_the_last_token_and_kl_on_each():
    tokens = collate(
        [make_group(make_rollout([7, 8, 3]), make_rollout([9], sample=1, reward=-0.5))], train_on_truncated=True
    )
    torch.testing.assert_close(outcome_rewards(tokens), torch.tensor([[0, 0, 0, 1.0], [0, -0.5, 0, 0]]))
    priced = kl_rewards(tokens, scores_of(tokens, 0.0), algo(), 0.1)
    torch.testing.assert_close(priced, torch.tensor([[0, -0.05, -0.05, -0.05], [0, -0.05, 0, 0]]))
    assert not kl_rewards(tokens, scores_of(tokens, 0.0), algo(kl="loss"), 0.1).any()


def test_what_follows_a_truncated_response_is_an_option():
    cut = make_rollout([7, 8], outcome=Outcome.TRUNCATED, reward=-1.0)
    tokens = collate([make_group(cut, make_rollout([7, 8], sample=1))], train_on_truncated=True)
    settings = {"kl": "none", "gae_lambda": 1.0}
    as_end = make_experience(tokens, scores_of(tokens, 0.25), algo(**settings), kl_coef=0.0)
    going_on = make_experience(tokens, scores_of(tokens, 0.25), algo(**settings, truncated_bootstrap="value"), kl_coef=0.0)
    assert as_end.advantages[0, 2] == pytest.approx(-1.25)  # -1 - 0.25
    assert going_on.advantages[0, 2] == pytest.approx(-1.0)  # -1 + 0.25 - 0.25
    assert torch.equal(as_end.advantages[1], going_on.advantages[1])


def test_whitening_is_over_the_tokens_that_train():
    cut = make_rollout([7, 8, 3, 5], outcome=Outcome.TRUNCATED, reward=-9.0)
    groups = [
        make_group(make_rollout([7, 8, 3]), make_rollout([4, 7], reward=-0.5, sample=1), dataclasses.replace(cut, sample=2))
    ]
    tokens = collate(groups, train_on_truncated=False)
    assert not torch.equal(tokens.loss_mask, tokens.response_mask)
    white = make_experience(tokens, scores_of(tokens, 0.1), algo(whiten_advantages=True), kl_coef=0.1).advantages
    chosen = white[tokens.loss_mask]
    assert abs(float(chosen.mean())) < 1e-6 and abs(float(chosen.std(correction=0)) - 1) < 1e-4


def test_the_share_of_kl_in_the_advantages_by_hand():
    tokens = collate([make_group(make_rollout([7, 8, 3]))], train_on_truncated=True)
    settings = algo(gae_lambda=1.0)
    # KL: -0.05 on each of three tokens, so -0.15, -0.1 and -0.05 to go: 0.3; the outcome: 1 on each: 3
    assert kl_reward_share(tokens, scores_of(tokens, 0.0), settings, 0.1) == pytest.approx(0.3 / 3.3)
    assert kl_reward_share(tokens, scores_of(tokens, 0.0), algo(kl="none"), 0.1) == 0


def test_the_critic_may_have_a_lambda_of_its_own():
    tokens = collate([make_group(make_rollout([7, 8, 3]))], train_on_truncated=True)
    same = make_experience(tokens, scores_of(tokens, 0.25), algo(kl="none"), kl_coef=0)
    plain = make_experience(tokens, scores_of(tokens, 0.25), algo(kl="none", critic_gae_lambda=1.0), kl_coef=0)
    assert torch.equal(same.advantages, plain.advantages)
    assert plain.returns[tokens.response_mask].tolist() == [1, 1, 1]
    assert same.returns[0, 1] == pytest.approx(0.25 + 0.95**2 * 0.75)


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"advantage": "group_relative", "advantage_scale": "none"}, [7 / 6, -1 / 3, -5 / 6]),  # the mean is -1/6
        ({"advantage": "group_relative", "advantage_scale": "group"}, [1.120897, -0.320256, -0.800641]),  # sqrt(13 / 12)
        ({"advantage": "group_relative", "advantage_scale": "batch"}, [1.253202, -0.358058, -0.895144]),  # sqrt(13 / 15)
        ({"advantage": "leave_one_out"}, [1.75, -0.5, -1.25]),
        ({"advantage": "monte_carlo"}, [1, -0.5, -1]),
        ({"advantage": "gae", "gae_lambda": 0.5}, [0.5**8, -(0.5**3), -(0.5**5)]),
        ({"advantage": "gae", "length_adaptive_alpha": 0.5}, [0.133920, -1 / 18, -0.131687]),  # lambda 7/9, 1/3, 2/3
    ],
)
def test_each_estimator_is_the_one_the_config_names(settings: dict[str, Any], first: list[float]):
    """Two groups of rewards 1, -0.5, -1; lengths 9, 3, 6; values 0."""
    tokens = batch()
    found = make_experience(tokens, scores_of(tokens, 0.0), algo(kl="none", **settings), kl_coef=0).advantages
    at_first = [float(row[mask][0]) for row, mask in zip(found, tokens.response_mask, strict=True)]
    assert at_first == pytest.approx(2 * first, abs=1e-5)


PROMPTS = {"p": (5, 6), "q": (9,)}
ASKED = {"p": (5, 6, 7, 8), "q": (9, 4)}


def taught() -> tuple[TokenBatch, TokenBatch]:
    """Responses to two problems, after the prompts that the policy and the teacher see."""
    groups = [
        RolloutGroup(
            problem=make_rollout([3], problem_id=name).problem,
            rollouts=tuple(make_rollout(ids, prompt=prompt, problem_id=name) for ids in ([3, 4, 5], [6], [7, 8, 9, 10])),
        )
        for name, prompt in PROMPTS.items()
    ]
    return tuple(collate(one, train_on_truncated=True) for one in (groups, with_prompts(groups, ASKED)))  # type: ignore


def test_a_teacher_scores_the_same_tokens_after_its_own_prompts(random_model: Path):
    learner = make_learner(random_model, config(advantage="distillation", kl="none"))
    tokens, asked = taught()
    found = learner.score(tokens, asked)
    alone = learner.score(asked)
    assert found.ref_logprobs is not None and alone.ref_logprobs is not None
    for row in range(len(tokens)):
        mine = found.ref_logprobs[row, tokens.response_mask[row]]
        assert torch.allclose(mine, alone.ref_logprobs[row, asked.response_mask[row]], atol=1e-6)
    assert not found.ref_logprobs[~tokens.response_mask].any()
    assert torch.allclose(found.old_logprobs, learner.logprobs(tokens))
    assert not torch.allclose(found.ref_logprobs, found.old_logprobs, atol=1e-3)  # the prompts differ


def test_distillation_brings_the_policy_to_its_teacher(random_model: Path):
    """By hand: the advantage is the difference of log-probs. Updates make the sampled tokens likelier or less likely as the
    teacher has it."""
    settings = config(advantage="distillation", kl="none", updates_per_rollout=1)
    learner = make_learner(random_model, settings)
    tokens, asked = taught()
    scores = learner.score(tokens, asked)
    experience = make_experience(tokens, scores, settings.algo, kl_coef=0)
    expected = (scores.ref_logprobs - scores.old_logprobs) * tokens.response_mask  # pyright: ignore
    assert torch.equal(experience.advantages, expected) and experience.advantages.any()
    learner.update(experience, torch.Generator().manual_seed(0), kl_coef=0)
    moved = learner.logprobs(tokens) - scores.old_logprobs
    assert float((moved * experience.advantages).sum()) > 0


def test_only_each_groups_shortest_correct_response_is_imitated():
    experience = make_experience(
        batch(), scores_of(batch(), 0.0), algo(advantage="shortest_correct", policy_loss="nll", kl="none"), kl_coef=0
    )
    assert experience.tokens.loss_mask.any(-1).tolist() == [True, False, False, True, False, False]


def learner_and_experience(
    model: Path, settings: LearnConfig, *, sampler_is_trainer: bool = False
) -> tuple[Learner, ExperienceBatch]:
    learner = make_learner(model, settings)
    tokens = batch()
    scores = learner.score(tokens)
    if sampler_is_trainer:
        tokens = dataclasses.replace(tokens, sampler_logprobs=scores.old_logprobs)
    return learner, make_experience(tokens, scores, settings.algo, kl_coef=settings.algo.kl_coef)


def step(learner: Learner, experience: ExperienceBatch, **options: bool) -> dict[str, float]:
    return learner.update(experience, torch.Generator().manual_seed(0), kl_coef=0.1, **options).stats


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_at_ratio_one_every_policy_loss_has_the_same_gradient(random_model: Path):
    norms = []
    for policy_loss in ("ppo_clip", "gspo", "cispo"):
        settings = config(policy_loss=policy_loss, advantage="group_relative", kl="none")
        norms.append(step(*learner_and_experience(random_model, settings))["optim/policy_grad_norm"])
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-5)


def test_the_sampler_correction_weighs_the_loss(random_model: Path):
    plain = step(*learner_and_experience(random_model, config(), sampler_is_trainer=True))
    same = config(sampler_correction="token")
    assert step(*learner_and_experience(random_model, same, sampler_is_trainer=True)) == plain
    # the fixture's made-up sampler probabilities are far above the random model's: all weights are small
    far = step(*learner_and_experience(random_model, same))
    assert 0 < far["optim/policy_grad_norm"] < 0.1 * plain["optim/policy_grad_norm"]


def test_the_entropy_bonus_raises_the_entropy(random_model: Path):
    learner, experience = learner_and_experience(random_model, config(entropy_coef=1.0, kl="none"))
    still = dataclasses.replace(experience, advantages=torch.zeros_like(experience.advantages))
    before = step(learner, still)["policy/entropy"]
    assert step(learner, still)["policy/entropy"] > before


def test_a_critic_warm_up_leaves_the_policy_alone(random_model: Path):
    learner, experience = learner_and_experience(random_model, config())
    models = learner.backend.models
    policy, critic = flat(models.policy), flat(models.critic)
    stats = step(learner, experience, train_policy=False)
    assert torch.equal(flat(models.policy), policy) and not torch.equal(flat(models.critic), critic)
    assert "policy/loss" not in stats and stats["value/loss"] > 0
    assert step(learner, experience)["optim/lr"] > 0  # the policy's schedule begins only now


def test_updates_with_a_broken_gradient_are_skipped_counted_and_at_last_refused(random_model: Path):
    learner, experience = learner_and_experience(random_model, config())
    broken = dataclasses.replace(experience, advantages=experience.advantages * math.nan)
    policy = flat(learner.backend.models.policy)
    for _ in range(3):
        assert step(learner, broken)["optim/skipped_updates"] == 1
    assert step(learner, experience)["optim/skipped_updates"] == 0  # a good one: the count begins anew
    moved = flat(learner.backend.models.policy)
    assert not torch.equal(moved, policy)
    for _ in range(3):
        step(learner, broken)
    with pytest.raises(NonFiniteGradient, match="4 updates in a row were skipped, since the policy's gradient"):
        step(learner, broken)
    assert torch.equal(flat(learner.backend.models.policy), moved)


@pytest.mark.parametrize(("what", "whose"), [("returns", "the critic's"), ("both", "the policy's and the critic's")])
def test_an_update_that_is_skipped_leaves_policy_and_critic_alone(random_model: Path, what: str, whose: str):
    learner, experience = learner_and_experience(random_model, config())
    broken = dataclasses.replace(experience, returns=experience.returns * math.nan)
    if what == "both":
        broken = dataclasses.replace(broken, advantages=experience.advantages * math.inf)
    models = learner.backend.models
    before = [flat(models.policy), flat(models.critic)]
    for _ in range(3):
        assert step(learner, broken)["optim/skipped_updates"] == 1
    with pytest.raises(NonFiniteGradient, match=f"since {whose} gradient was NaN.*neither policy nor critic has changed"):
        step(learner, broken)
    assert all(torch.equal(*pair) for pair in zip(before, [flat(models.policy), flat(models.critic)], strict=True))


def test_learning_rates_follow_the_phase_where_few_rows_train(random_model: Path):
    """Ten steps of four updates of which one row trains, then none, then all."""
    settings = config(advantage="shortest_correct", policy_loss="nll", kl="none", updates_per_rollout=4)
    few, full = (
        make_learner(random_model, settings, num_updates=40),
        make_learner(random_model, settings, num_updates=40),
    )
    one = make_experience(batch(), scores_of(batch(), 0.0), settings.algo, kl_coef=0)
    one = dataclasses.replace(one, tokens=dataclasses.replace(one.tokens, loss_mask=one.tokens.loss_mask.clone()))
    one.tokens.loss_mask[1:] = False
    none = dataclasses.replace(one, tokens=dataclasses.replace(one.tokens, loss_mask=one.tokens.loss_mask & False))
    rates = [step(few, one)["optim/lr"] for _ in range(8)]
    assert step(few, none) == {"optim/skipped_updates": 0.0}
    rates.append(step(few, one)["optim/lr"])
    assert few.backend.update_number == 40
    for place, rate in zip([0, 4, 8, 12, 16, 20, 24, 28, 36], rates, strict=True):
        full.backend.set_position(place)
        assert rate == full.backend.policy_lr
    assert rates[0] < rates[1] > rates[-1] and rates[-1] < 0.15 * settings.optim.policy_lr


@pytest.mark.whole
def test_in_bfloat16_a_narrow_clip_sees_the_policy_move_and_no_rounding():
    """Scored in one set of micro-batches and updated in another, log-probs of bfloat16 differ by more than GSPO's clip."""
    plain = load_config("train-phase2", "algo=gspo", "model.dtype=bfloat16", "trainer.max_tokens_per_micro_batch=1024")
    assert isinstance(plain, LearnConfig)
    learner = make_learner(LAB_MODEL, plain, num_updates=4)
    generator = torch.Generator().manual_seed(3)
    groups = [
        make_group(
            *(
                make_rollout(
                    torch.randint(4, 100, (int(length),), generator=generator).tolist(),
                    prompt=range(5, 15 + group),
                    sample=sample,
                    problem_id=str(group),
                    reward=(1.0, -0.5)[sample % 2],
                )
                for sample, length in enumerate(torch.randint(20, 250, (8,), generator=generator))
            )
        )
        for group in range(4)
    ]
    tokens = collate(groups, train_on_truncated=True)
    scores = learner.score(tokens)
    experience = make_experience(tokens, scores, plain.algo, kl_coef=0)
    assert scores.old_logprobs is not None
    others = scores.old_logprobs + 0.1 * tokens.response_mask
    batches = torch.randperm(32, generator=generator).tensor_split(4)
    matched = learner._with_matching_logprobs(experience, scores.old_logprobs, batches)
    assert learner._with_matching_logprobs(experience, others, batches) is experience  # not this policy's: left as they are
    learner.backend.clip = lambda module: module.zero_grad() or 0.0  # type: ignore[method-assign]
    for rows in batches:
        stats, *_ = learner._update_once(matched, rows, kl_coef=0, train_policy=True)
        assert stats["policy/approx_kl"] == 0 and stats["policy/clip_fraction"] == 0
    assert learner._with_matching_logprobs(experience, scores.old_logprobs, batches) is experience  # the policy has moved on


def test_the_critic_is_measured_by_what_its_states_earned():
    """Values of one random number a response, and tokens enough that returns at lambda 0.95 are mostly those values."""
    draws = torch.Generator().manual_seed(1)
    lengths = (90, 100, 110, 120)
    group = make_group(*(make_rollout([7] * n, sample=n, reward=(1.0, -0.5)[n % 20 > 0]) for n in lengths))
    tokens = collate([group], train_on_truncated=True)
    values = torch.randn(4, 1, generator=draws) * tokens.response_mask
    scores = dataclasses.replace(scores_of(tokens, 0.0), old_values=values)
    experience = make_experience(tokens, scores, algo(kl="none"), kl_coef=0.0)
    assert explained_variance(values, experience.returns, tokens.response_mask) > 0.4
    outcome = tokens.rewards.unsqueeze(-1) * tokens.response_mask
    expected = explained_variance(values, outcome, tokens.response_mask)
    assert experience_metrics(experience)["value/explained_variance"] == pytest.approx(expected) and expected < 0.1
    priced = make_experience(tokens, scores, algo(), kl_coef=0.1)  # k1 0.5 a token: the last of T states has -0.05 to go
    assert priced.sampled_returns is not None
    assert float(priced.sampled_returns[0][tokens.response_mask[0]][-1]) == pytest.approx(float(tokens.rewards[0]) - 0.05)


def test_what_a_cut_response_would_have_earned_is_not_known():
    rollouts = (
        make_rollout([7, 8, 9]),
        make_rollout([7, 8], sample=1, reward=-0.5),
        make_rollout([7], sample=2, reward=-1.0),
    )
    cut = dataclasses.replace(rollouts[2], grade=dataclasses.replace(rollouts[2].grade, outcome=Outcome.TRUNCATED))
    tokens = collate([make_group(*rollouts[:2], cut)], train_on_truncated=True)
    values = torch.tensor([[1.0], [-0.5], [9.0]]) * tokens.response_mask
    experience = make_experience(
        tokens, dataclasses.replace(scores_of(tokens, 0), old_values=values), algo(kl="none"), kl_coef=0
    )
    assert experience_metrics(experience, bootstraps_truncated=True)["value/explained_variance"] == pytest.approx(1)
    assert experience_metrics(experience)["value/explained_variance"] < 0


@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.GRADER_ERROR])
def test_the_critic_is_measured_on_what_it_trains_on(outcome: Outcome):
    """It knows all of that, and nothing of a long response that trains nothing."""
    rollouts = [make_rollout([7, 8, 9]), make_rollout([7, 8], sample=1, outcome=Outcome.WRONG, reward=-0.5)]
    reward = None if outcome is Outcome.GRADER_ERROR else -1.0
    tokens = collate(
        [make_group(*rollouts, make_rollout([7] * 40, sample=2, outcome=outcome, reward=reward))], train_on_truncated=False
    )
    values = torch.tensor([[1.0], [-0.5], [9.0]]) * tokens.response_mask
    scores = dataclasses.replace(scores_of(tokens, 0), old_values=values)
    metrics = experience_metrics(make_experience(tokens, scores, algo(kl="none"), kl_coef=0))
    assert metrics["value/explained_variance"] == pytest.approx(1)


def test_what_is_not_there_is_not_measured():
    tokens = collate([make_group(make_rollout([7, 8, 9]), make_rollout([7, 8], sample=1))], train_on_truncated=True)
    both = experience_metrics(make_experience(tokens, scores_of(tokens, 0), algo(), kl_coef=0))
    assert both["policy/kl_to_reference"] == pytest.approx(0.5) and "value/explained_variance" in both
    neither = dataclasses.replace(scores_of(tokens, 0), ref_logprobs=None, old_values=None)
    found = experience_metrics(make_experience(tokens, neither, algo(kl="none", advantage="group_relative"), kl_coef=0))
    assert both.keys() - found.keys() == {"policy/kl_to_reference", "value/explained_variance"}


def test_monitors_of_what_is_not_correct_count_responses_without_an_answer_and_are_called_so():
    rollouts = [make_rollout([7, 8, 9]), make_rollout([7, 8], sample=1, outcome=Outcome.NO_ANSWER, reward=-0.5)]
    tokens = collate([make_group(*rollouts)], train_on_truncated=True)
    metrics = experience_metrics(make_experience(tokens, scores_of(tokens, 0), algo(kl="none"), kl_coef=0))
    names = {name for name in metrics.keys() & MONITORS.keys() if "wrong" in name}
    assert "policy/end_probability_wrong" in names and all("not correct" in MONITORS[name] for name in names)


def test_an_ungraded_response_is_no_wrong_one():
    rollouts = [make_rollout([7, 8, 9]), make_rollout([7, 8], sample=1, outcome=Outcome.GRADER_ERROR, reward=None)]
    tokens = collate([make_group(*rollouts)], train_on_truncated=True)
    metrics = experience_metrics(make_experience(tokens, scores_of(tokens, 0), algo(kl="none"), kl_coef=0))
    assert "policy/end_probability_correct" in metrics and "policy/end_probability_wrong" not in metrics


@pytest.mark.whole
def test_statistics_are_means_over_tokens_whatever_the_loss_divides_by(double_learner: Learner):
    """Responses of equal length, for which all means are the same."""
    learner, stats = double_learner, dict[str, dict[str, float]]()
    plain = random_experience()
    equal = dataclasses.replace(
        plain.tokens, loss_mask=plain.tokens.response_mask & (plain.tokens.response_mask.cumsum(-1) <= 2)
    )
    for aggregation in ("sequence_mean", "constant"):
        learner._algo = dataclasses.replace(learner._algo, loss_aggregation=aggregation)  # type: ignore[arg-type]
        _, stats[aggregation] = gradient_of(learner, dataclasses.replace(plain, tokens=equal), kl_coef=0.1)
    for name in ("policy/entropy", "policy/clip_fraction", "policy/approx_kl"):
        assert (
            stats["constant"][name] == pytest.approx(stats["sequence_mean"][name], rel=1e-6) and stats["constant"][name] > 0
        )
    assert stats["constant"]["policy/loss"] != pytest.approx(stats["sequence_mean"]["policy/loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("outcomes", "rewards", "with_truncated", "without"),
    [
        ("cccw", (1.0, 1.0, 1.0, -0.5), True, True),
        ("cccc", (1.0, 0.9, 0.8, 0.7), False, False),  # a length term alone is no signal
        ("wwnw", (-0.5, -0.6, -1.0, -0.7), False, False),
        ("ccct", (1.0, 1.0, 1.0, -1.0), True, False),  # what is cut does not train
        ("wwwt", (-0.5, -0.5, -0.5, -1.0), False, False),
        ("cwtt", (1.0, -0.5, -1.0, -1.0), True, True),
        ("cttt", (1.0, -1.0, -1.0, -1.0), True, False),
        ("ccww", (0.3, 0.1 + 0.2, 0.3, 0.3), False, False),  # beyond L1-Max's budget a right one earns no more
        ("ccwt", (-0.7, -0.7, -0.7, -1.0), True, False),
        ("ccgg", (1.0, 1.0, None, None), False, False),  # the grader failed: they do not train
        ("gggg", (None, None, None, None), False, False),
    ],
)
def test_a_group_teaches_by_what_trains_in_it(
    outcomes: str, rewards: tuple[float | None, ...], with_truncated: bool, without: bool
):
    names = {
        "c": Outcome.CORRECT,
        "w": Outcome.WRONG,
        "n": Outcome.NO_ANSWER,
        "t": Outcome.TRUNCATED,
        "g": Outcome.GRADER_ERROR,
    }
    group = make_group(
        *(
            make_rollout([7, 8], sample=sample, outcome=names[outcome], reward=reward)
            for sample, (outcome, reward) in enumerate(zip(outcomes, rewards, strict=True))
        )
    )
    for train_on_truncated, expected in ((True, with_truncated), (False, without)):
        assert has_signal(group, train_on_truncated=train_on_truncated) is expected
        tokens = collate([group], train_on_truncated=train_on_truncated)
        settings = algo(advantage="group_relative", kl="none")
        silent = zero_advantage_share(make_experience(tokens, scores_of(tokens, 0.0), settings, kl_coef=0))
        assert not expected or silent == 0  # the monitor agrees: what is kept has advantages


def test_monitors_by_hand():
    tokens = batch()  # two groups of lengths 9 (correct), 3 (wrong), 6 (truncated)
    experience = make_experience(tokens, scores_of(tokens, 0.0), algo(kl="none", gae_lambda=1.0), kl_coef=0)
    assert zero_advantage_share(experience) == 0
    silent = dataclasses.replace(
        experience, advantages=torch.where((tokens.groups == 0).unsqueeze(-1), 0.0, experience.advantages)
    )
    assert zero_advantage_share(silent) == 0.5
    everyone = torch.ones(6).bool()
    # lengths 3, 3 (wrong, -0.5), 6, 6 (truncated, -1), 9, 9 (correct, 1)
    assert advantage_by_length(experience, everyone) == {"short": -0.5, "middle": -1.0, "long": 1.0}
    assert advantage_by_length(experience, tokens.truncated) == {"short": -1.0, "middle": -1.0}
    assert mean_advantages(experience).tolist() == [1.0, -0.5, -1.0] * 2
    none_train = dataclasses.replace(tokens, loss_mask=torch.zeros_like(tokens.loss_mask))
    assert mean_advantages(dataclasses.replace(experience, tokens=none_train)).isnan().all()
    assert experience_metrics(experience)["policy/end_probability_wrong"] == pytest.approx(math.exp(-1))


QUIET = {
    "policy/sampler_drift_mean": 1e-6,
    "rollout/share_groups_all_correct": 0.5,
    "policy/share_zero_advantage_groups": 0.5,
    "optim/skipped_updates": 0.0,
    "outcome/no_answer": 0.1,
    "outcome/truncated": 0.1,
}


def test_warnings_name_what_needs_attention():
    def warned(**changes: float) -> set[str]:
        return set(step_warnings(QUIET | {name.replace("__", "/"): v for name, v in changes.items()}, max_drift=1e-3))

    assert warned() == set()
    assert warned(policy__sampler_drift_mean=0.01) == {"drift"}
    assert warned(rollout__share_groups_all_correct=1.0, policy__share_zero_advantage_groups=1.0) == {"solved"}
    assert warned(policy__share_zero_advantage_groups=1.0) == {"silent"}
    assert warned(optim__skipped_updates=1.0) == {"skipped"}
    assert warned(outcome__truncated=0.11) == {"truncated"}
    assert warned(outcome__no_answer=0.11) == {"no answer"}
    assert not step_warnings(QUIET | {"outcome/truncated": 0.9}, max_drift=1e-3, cuts_responses=True)


def test_the_summary_of_a_phase_by_hand():
    steps = [{"policy/entropy": float(value)} for value in (8, 6, 5, 4, 3, 2, 1, 9)]
    assert summarise_steps(steps) == {"policy/entropy": {"first": 7, "last": 5, "lowest": 1, "highest": 9}}
    skipped = [{"policy/entropy": value} for value in (math.inf, 8.0, math.nan, 6.0)]  # as they are, and as read back
    assert summarise_steps(skipped) == {"policy/entropy": {"first": 8, "last": 6, "lowest": 6, "highest": 8}}
    assert summarise_steps(skipped[:1]) == {}


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3).bool()
    assert explained_variance(returns, returns, mask) == pytest.approx(1)
    assert explained_variance(torch.full((1, 3), 5.0), returns, mask) == pytest.approx(0)
    assert explained_variance(returns, torch.ones(1, 3), mask) == 0

"""Against code that nobody here wrote: TorchRL's GAE, TRL's GRPO trainer, and a training loop with no part of this project.

All in double precision here. Tolerances: 1e-12 relative for TorchRL, with lambdas that single precision holds exactly (it
rounds them to that); 1e-5 relative on losses and gradients for TRL, which computes log-probs in single precision; 1e-7 on
weights after three updates at learning rates of 1e-4 and 5e-4 for the plain loop (weights of the loss are single precision).
Versions are pinned in requirements/dev.txt.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conclip.algo.advantages import gae
from conclip.algo.losses import kl_k3
from conclip.algo.masking import masked_mean
from conclip.config.compose import load_config
from conclip.config.schema import LearnConfig
from conclip.models.critic import Critic
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_policy, load_tokenizer
from conclip.training.backend import Backend
from conclip.training.batch import ExperienceBatch, TokenBatch
from conclip.training.learner import Learner
from tests.conftest import flat_gradient, gradient_of
from tests.golden.replay import recorded_batch

pytestmark = pytest.mark.whole

CPU = torch.device("cpu")


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.9375), (0.96875, 0.875), (1.0, 1.0), (0.875, 0.0)])
def test_gae_is_torchrls(gamma: float, gae_lambda: float):
    functional = pytest.importorskip("torchrl.objectives.value.functional", reason="torchrl is not installed")
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 17):
        rewards, values = torch.randn(2, 3, length, generator=generator, dtype=torch.float64)
        bootstrap = torch.tensor([0.0, 0.7, -0.3], dtype=torch.float64)
        padding = torch.full((3, 4), 99.0, dtype=torch.float64)  # before and after the response: must not matter
        mask = torch.zeros(3, length + 8).bool()
        mask[:, 4:-4] = True
        mine, returns = gae(
            torch.cat([padding, rewards, padding], 1),
            torch.cat([padding, values, padding], 1),
            mask,
            gamma=gamma,
            gae_lambda=gae_lambda,
            bootstrap=bootstrap,
        )
        # a row that ended itself is terminated; one that is said to go on is only done, and its next value counts
        done = torch.zeros(3, length, 1, dtype=torch.bool)
        done[:, -1] = True
        theirs, targets = functional.generalized_advantage_estimate(
            gamma,
            gae_lambda,
            values.unsqueeze(-1),
            torch.cat([values[:, 1:], bootstrap[:, None]], 1).unsqueeze(-1),
            rewards.unsqueeze(-1),
            done,
            terminated=done & (bootstrap == 0)[:, None, None],
        )
        torch.testing.assert_close(mine[:, 4:-4], theirs.squeeze(-1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(returns[:, 4:-4], targets.squeeze(-1), rtol=1e-12, atol=1e-12)
        assert not mine[~mask].any()


def settings(*overrides: str, **algo: object) -> LearnConfig:
    loaded = load_config(
        "train-phase2",
        "rollout.temperature=0.8",
        "rollout.max_tokens=256",
        "trainer.max_tokens_per_micro_batch=400",
        *overrides,
    )
    assert isinstance(loaded, LearnConfig)
    return dataclasses.replace(loaded, algo=dataclasses.replace(loaded.algo, **algo))  # type: ignore[arg-type]


def double_learner(config: LearnConfig, num_updates: int = 1) -> Learner:
    learner = Learner(Backend(LAB_MODEL, config, num_updates=num_updates), config)
    for module in (learner.backend.models.policy, learner.backend.models.reference, learner.backend.models.critic):
        if module is not None:
            module.double()
    return learner


def experience(learner: Learner, *, per_row: bool) -> ExperienceBatch:
    """The recorded rollouts with an old and a reference policy some way off, so that the clip and the KL act."""
    generator = torch.Generator().manual_seed(5)
    tokens = recorded_batch()
    mask = tokens.response_mask
    old = learner.logprobs(tokens)

    def noise(size: float, columns: int = mask.shape[1]) -> Tensor:
        return size * torch.randn(len(tokens), columns, generator=generator, dtype=torch.float64) * mask

    return ExperienceBatch(
        tokens=tokens,
        old_logprobs=old + noise(0.2),
        ref_logprobs=old + noise(0.3),
        old_values=noise(0.3),
        advantages=noise(1.0, 1 if per_row else mask.shape[1]),
        returns=noise(1.0),
    )


TRL_LOSSES = {
    "grpo": ({"loss_type": "grpo"}, {"loss_aggregation": "sequence_mean"}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, {"loss_aggregation": "token_mean", "clip_high": 0.28}),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "max_completion_length": 128},
        {"loss_aggregation": "constant", "constant_tokens": 128},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.01},
        {"policy_loss": "gspo", "clip_low": 0.01, "clip_high": 0.01},
    ),
    # TRL's epsilon_high is the bound itself, and it has no lower one
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {"policy_loss": "cispo", "loss_aggregation": "token_mean", "clip_low": 1.0, "clip_high": 0.3},
    ),
}


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("loss", sorted(TRL_LOSSES))
def test_losses_and_gradients_are_trls(loss: str, kl_coef: float, tmp_path: Path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    theirs, mine = TRL_LOSSES[loss]
    learner = double_learner(settings(advantage="group_relative", kl="loss", kl_coef=0.3, updates_per_rollout=1, **mine))
    batch = experience(learner, per_row=True)
    arguments = {"max_completion_length": 256, "epsilon": 0.2} | theirs
    trainer = trl.GRPOTrainer(
        model=load_policy(LAB_MODEL, CPU).double(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to=[],
            num_generations=2,
            per_device_train_batch_size=2,
            temperature=0.8,
            beta=kl_coef,
            use_bias_correction_kl=False,  # k3 as GRPO has it; TRL's default weighs it by the ratio
            **arguments,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "1"}] * 2),
        processing_class=load_tokenizer(LAB_MODEL),
    )
    model = trainer.model.eval()
    total = trainer.compute_loss(model, trl_inputs(batch))
    total.backward()
    gradient, stats = gradient_of(learner, batch, kl_coef=kl_coef)
    reference = flat_gradient(model)
    assert reference.norm() > 1e-3
    assert float((gradient - reference).norm()) < 1e-5 * float(reference.norm())
    kl = 0.0
    if kl_coef:
        k3 = kl_k3(learner.logprobs(batch.tokens), batch.ref_logprobs)
        assert trainer._metrics["eval"]["kl"][-1] == pytest.approx(float(masked_mean(k3, batch.tokens.loss_mask)), rel=1e-5)
        kl = kl_coef * weighted_as_the_loss(k3, batch.tokens, learner)
    assert stats["policy/loss"] + kl == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
    assert 0 < stats["policy/clip_fraction"] < 1


def weighted_as_the_loss(per_token: Tensor, tokens: TokenBatch, learner: Learner) -> float:
    """The three denominators, written out."""
    mask, algo = tokens.loss_mask, learner._algo
    sums = (per_token * mask).sum(-1)
    if algo.loss_aggregation == "sequence_mean":
        return float((sums / mask.sum(-1)).mean())
    return float(sums.sum() / (mask.sum() if algo.loss_aggregation == "token_mean" else len(mask) * algo.constant_tokens))


def trl_inputs(batch: ExperienceBatch) -> dict[str, Tensor]:
    """TRL's own layout: prompts padded on the left, completions on the right, one tensor each."""
    tokens = batch.tokens
    rows = []
    for row in range(len(tokens)):
        columns = tokens.response_mask[row].nonzero().squeeze(-1)
        begin, end = int(columns[0]) + 1, int(columns[-1]) + 2
        rows.append(
            SimpleNamespace(prompt=tokens.input_ids[row, :begin], response=tokens.input_ids[row, begin:end], at=columns)
        )
    before, after = max(len(r.prompt) for r in rows), max(len(r.response) for r in rows)
    size = len(rows)
    ids: dict[str, Any] = {
        "prompt_ids": torch.zeros(size, before, dtype=torch.long),
        "prompt_mask": torch.zeros(size, before, dtype=torch.long),
        "completion_ids": torch.zeros(size, after, dtype=torch.long),
        "completion_mask": torch.zeros(size, after, dtype=torch.long),
        "old_per_token_logps": torch.zeros(size, after, dtype=torch.float64),
        "ref_per_token_logps": torch.zeros(size, after, dtype=torch.float64),
        "advantages": torch.stack([batch.advantages[i, r.at[0]] for i, r in enumerate(rows)]),
    }
    for i, row in enumerate(rows):
        ids["prompt_ids"][i, before - len(row.prompt) :] = row.prompt
        ids["prompt_mask"][i, before - len(row.prompt) :] = 1
        ids["completion_ids"][i, : len(row.response)] = row.response
        ids["completion_mask"][i, : len(row.response)] = 1
        ids["old_per_token_logps"][i, : len(row.response)] = batch.old_logprobs[i, row.at]
        ids["ref_per_token_logps"][i, : len(row.response)] = batch.ref_logprobs[i, row.at]
    return ids | {"num_items_in_batch": ids["completion_mask"].sum()}


def test_ppo_updates_are_a_plain_adamw_loop():
    """Three updates of policy and critic, clip, KL loss, entropy bonus and gradient clipping included, against whole-batch
    logits, a Python loop over rows and torch's own AdamW."""
    config = settings(
        "optim.warmup_fraction=0",
        "optim.min_lr_fraction=1",
        "optim.weight_decay=0.1",
        "optim.max_grad_norm=0.05",
        kl="loss",
        kl_coef=0.3,
        entropy_coef=0.01,
        updates_per_rollout=3,
    )
    learner = double_learner(config, num_updates=3)
    batch = experience(learner, per_row=False)
    policy = load_policy(LAB_MODEL, CPU).double()
    critic = Critic(load_policy(LAB_MODEL, CPU).base_model).double()
    learner.update(batch, torch.Generator().manual_seed(3), kl_coef=0.3)

    options = {"betas": (config.optim.beta1, config.optim.beta2), "weight_decay": 0.1}
    policy_adamw = torch.optim.AdamW(policy.parameters(), lr=config.optim.policy_lr, **options)
    critic_adamw = torch.optim.AdamW(critic.parameters(), lr=config.optim.critic_lr, **options)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    for rows in order.tensor_split(3):
        policy_loss = torch.zeros((), dtype=torch.float64)
        value_loss = torch.zeros((), dtype=torch.float64)
        for row in rows.tolist():
            ids, where = batch.tokens.input_ids[row], batch.tokens.response_mask[row]
            logprobs = torch.log_softmax(policy(input_ids=ids[None]).logits[0, :-1] / 0.8, -1)
            entropy = -(logprobs.exp() * logprobs).sum(-1)[where]
            chosen = logprobs[torch.arange(len(ids) - 1), ids[1:]][where]
            ratio = (chosen - batch.old_logprobs[row][where]).exp()
            advantage = batch.advantages[row][where]
            gain = torch.minimum(ratio * advantage, torch.clip(ratio, 0.8, 1.2) * advantage)
            log_away = batch.ref_logprobs[row][where] - chosen
            kl = log_away.exp() - log_away - 1
            policy_loss = policy_loss + (-gain + 0.3 * kl - 0.01 * entropy).mean() / len(rows)
            values, old, target = critic(ids[None])[0, :-1][where], batch.old_values[row][where], batch.returns[row][where]
            near = torch.clip(values, old - 0.2, old + 0.2)
            value_loss = value_loss + torch.maximum((values - target) ** 2, (near - target) ** 2).mean() / 2 / len(rows)
        for loss, module, adamw in ((policy_loss, policy, policy_adamw), (value_loss, critic, critic_adamw)):
            adamw.zero_grad()
            loss.backward()
            assert torch.nn.utils.clip_grad_norm_(module.parameters(), 0.05) > 0.05
            adamw.step()
    for mine, plain in ((learner.backend.models.policy, policy), (learner.backend.models.critic, critic)):
        assert mine is not None
        for (name, ours), (_, theirs) in zip(mine.named_parameters(), plain.named_parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")

"""The presets of algorithms and of the paper's experiments have the published settings, written here by hand."""

from typing import Any

import pytest

from conclip.config.compose import config_folder, load_config
from conclip.config.schema import RecipeRunConfig
from tests.conftest import train_config

SEQUENCE, TOKEN = "sequence_mean", "token_mean"
NO_KL, K1, K3 = ("none", 0.0), ("reward", 0.01), ("loss", 0.001)
CLIP, HIGHER = (0.2, 0.2), (0.2, 0.28)


def line(
    advantage: str, policy_loss: str, clip: tuple[float, float], mean: str, kl: tuple[str, float], **further: Any
) -> dict[str, Any]:
    """The keys that decide an algorithm; those that only one has are off unless `further` has them."""
    found = {"advantage": advantage, "policy_loss": policy_loss, "loss_aggregation": mean, "gamma": 1.0}
    found |= {"clip_low": clip[0], "clip_high": clip[1], "kl": kl[0], "kl_coef": kl[1], "kl_target": None}
    found |= {"whiten_advantages": False, "train_on_truncated": True, "dynamic_sampling_rounds": 0}
    found |= {"critic_warmup_steps": 0, "critic_gae_lambda": None, "length_adaptive_alpha": None}
    found |= {"entropy_coef": 0.0, "sampler_correction": "none"}
    return found | further


GROUP, BY_GROUP = "group_relative", {"advantage_scale": "group"}
VAPO: dict[str, Any] = {"critic_gae_lambda": 1.0, "length_adaptive_alpha": 0.05, "critic_warmup_steps": 2}

PUBLISHED: dict[str, dict[str, Any]] = {
    # lambda 0.95, mean per response, values clipped as the ratio is (Fatemi et al. 2025)
    "ppo": line("gae", "ppo_clip", CLIP, SEQUENCE, K1, gae_lambda=0.95, value_clip_eps=0.2, truncated_bootstrap="zero"),
    # a critic that was warmed up, lambda 1 for its targets and 1 - 1 / (0.05 l) for the policy (Yue et al. 2025)
    "vapo": line("gae", "ppo_clip", HIGHER, TOKEN, NO_KL, **VAPO),
    # (r - mean) / deviation of the group, mean per response, KL in the loss (Shao et al. 2024; 0.001: DeepSeek-R1)
    "grpo": line(GROUP, "ppo_clip", CLIP, SEQUENCE, K3, **BY_GROUP),
    # r - mean, sums over tokens divided by a constant (Liu et al. 2025)
    "dr_grpo": line(GROUP, "ppo_clip", CLIP, "constant", NO_KL, advantage_scale="none"),
    # clip-higher, mean over tokens, dynamic sampling, overlong filtering (Yu et al. 2025)
    "dapo": line(GROUP, "ppo_clip", HIGHER, TOKEN, NO_KL, **BY_GROUP, train_on_truncated=False, dynamic_sampling_rounds=2),
    # r - mean of the others (Ahmadian et al. 2024)
    "rloo": line("leave_one_out", "ppo_clip", CLIP, SEQUENCE, K3),
    # return to go with KL in the reward, whitened over the whole batch (Hu 2025)
    "reinforce_pp": line("monte_carlo", "ppo_clip", CLIP, SEQUENCE, K1, whiten_advantages=True),
    # the clip acts on the sequence's ratio (Zheng et al. 2025)
    "gspo": line(GROUP, "gspo", (3e-4, 4e-4), SEQUENCE, NO_KL, **BY_GROUP),
    # weights of 0 to 5, the batch's deviation (MiniMax 2025; 5: ScaleRL)
    "cispo": line(GROUP, "cispo", (1.0, 4.0), TOKEN, NO_KL, advantage_scale="batch"),
    # no reward, one update per step (as CRISP, 2026)
    "distillation": line("distillation", "ppo_clip", CLIP, TOKEN, NO_KL, updates_per_rollout=1, teacher_prompt="concise"),
    # the shortest correct response alone, by its likelihood, which knows no clip
    "shortest_sft": line("shortest_correct", "nll", CLIP, SEQUENCE, NO_KL),
}

HAVE_A_CRITIC = {"ppo", "vapo"}
HAVE_A_REFERENCE = {"ppo", "grpo", "rloo", "reinforce_pp", "distillation"}


def test_every_algorithm_has_its_line():
    assert set(PUBLISHED) == {path.stem for path in (config_folder() / "algo").glob("*.yaml")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_settings(name: str):
    english = ["model=hf", "model.path=any"] if name == "distillation" else []  # the lab's model reads none
    algo = train_config(f"algo={name}", *english).algo
    assert {key: getattr(algo, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert (algo.has_critic, algo.has_reference) == (name in HAVE_A_CRITIC, name in HAVE_A_REFERENCE)


def test_dr_grpo_divides_by_the_longest_response_allowed():
    assert [train_config("algo=dr_grpo", f"rollout.max_tokens={n}").algo.constant_tokens for n in (100, 150)] == [100, 150]


LEARNING: dict[str, Any] = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.0, "max_grad_norm": 1.0}
LEARNING |= {"warmup_fraction": 0.03, "min_lr_fraction": 0.1}

EXPERIMENTS: dict[str, dict[str, Any]] = {
    # script -> problems, problems per step, responses per problem, steps, updates per step, longest response, rates
    "r1_1.5b": {"phase": (8, 8, 8, 150), "updates": 8, "max_tokens": 20000, "rates": (5e-7, 9e-6)},
    "r1_1.5b_aime": {"phase": (4, 4, 8, 2000), "updates": 4, "max_tokens": 20000, "rates": (5e-7, 9e-6)},
    "r1_7b_8gpu": {"phase": (8, 8, 8, 150), "updates": 8, "max_tokens": 20000, "rates": (5e-7, 9e-6)},
    "qwen_math_1.5b": {"phase": (4, 4, 8, 150), "updates": 4, "max_tokens": 3000, "rates": (5e-7, 9e-6)},
    # with adapters, whose rates follow from the model's size
    "qwen_math_7b": {"phase": (4, 4, 8, 150), "updates": 4, "max_tokens": 3000, "rates": (None, None)},
    "r1_7b": {"phase": (8, 8, 8, 150), "updates": 8, "max_tokens": 20000, "rates": (None, None)},
}
"""The paper's scripts, by the experiments that repeat them."""


def test_every_experiment_of_the_paper_has_its_line():
    assert set(EXPERIMENTS) == {path.stem for path in (config_folder() / "experiment/paper").glob("*.yaml")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_of_the_paper_has_the_settings_of_its_script(name: str):
    config, script = load_config("two-phase", f"experiment=paper/{name}"), EXPERIMENTS[name]
    assert isinstance(config, RecipeRunConfig)
    phase, algo, optim, reward = config.phases["phase2"], config.algo, config.optim, config.reward
    assert (phase.num_problems, phase.problems_per_step, phase.group_size, phase.num_steps) == script["phase"]
    assert (algo.advantage, algo.gamma, algo.gae_lambda, algo.critic_gae_lambda) == ("gae", 1.0, 0.95, None)
    assert (algo.clip_low, algo.clip_high, algo.value_clip_eps) == (0.2, 0.2, 0.2)
    assert (algo.kl, algo.kl_coef, algo.kl_target) == ("reward", 0.01, None)
    assert (algo.whiten_advantages, algo.loss_aggregation) == (True, "sequence_mean")
    assert (algo.updates_per_rollout, algo.critic_warmup_steps) == (script["updates"], 0)
    assert {key: getattr(optim, key) for key in LEARNING} == LEARNING
    assert (optim.policy_lr, optim.critic_lr) == script["rates"]
    assert (reward.correct, reward.wrong, reward.no_answer) == (1.0, -0.5, -1.0) and config.length.kind == "none"
    assert (config.rollout.temperature, config.rollout.max_tokens) == (0.6, script["max_tokens"])
    assert (config.eval.samples_per_problem, config.eval.temperatures, config.eval.top_p) == (4, [0.6], 0.95)
    assert config.eval.max_tokens == (32768 if name.startswith("r1") else 3000)

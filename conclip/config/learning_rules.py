"""Rules between config keys of training: adapters, the algorithm, length rewards, and the processes that share a learner."""

import dataclasses

from conclip.config.groups import AdapterConfig, AlgoConfig, LengthConfig
from conclip.config.ranges import require
from conclip.config.schema import LearnConfig

NO_TRAINING_SET = (
    "names no problems; choose data that can train (gsm8k, math, math_few, paper, aime24_train), or give your own: "
    "data=one_file paths.problems=FILE"
)


def check_learning(config: LearnConfig) -> None:
    """Raise UserError unless the keys of training agree with each other."""
    trainer, adapter = config.trainer, config.model.adapter
    fits = adapter.base != "bfloat16" or config.model.dtype == "bfloat16"
    require(fits, "model.adapter.base", "is bfloat16, which needs model.dtype=bfloat16, not float32")
    for field in dataclasses.fields(adapter):
        read = adapter.kind != "none" or getattr(adapter, field.name) == getattr(AdapterConfig(), field.name)
        require(
            read, f"model.adapter.{field.name}", "is for adapters (model/adapter=lora); here all weights train, in float32"
        )
    targets = adapter.targets
    require(targets != [], "model.adapter.targets", "must name at least one layer, or be null for all")
    head = "lm_head" in (targets or ()) or "embed_tokens" in (targets or ())
    require(not head, "model.adapter.targets", "may name neither the embedding nor the output head")
    _check_algo(config.algo)
    smaller = config.algo.reference_dtype != "float32"
    fits = config.algo.has_reference and config.model.dtype == "bfloat16" and adapter.kind == "none"
    why = (
        "is bfloat16, which needs a reference (algo.kl), model.dtype=bfloat16 and no adapters (theirs is model.adapter.base)"
    )
    require(fits or not smaller, "algo.reference_dtype", why)
    pages = config.optim.moments == "paged_8bit"
    require(not (trainer.offload and pages), "trainer.offload", "must be false with optim.moments=paged_8bit")
    _check_ranks(config)
    _check_sampling_ahead(config)
    _check_length(config.length)
    priced = config.length.kind != "none"
    unrewarded = config.algo.advantage in ("shortest_correct", "distillation")
    message = f"must be none with algo.advantage={config.algo.advantage}, which learns from no reward"
    require(not (priced and unrewarded), "length.kind", message)
    reads = not (config.algo.has_teacher and config.model.is_lab)
    require(reads, "algo.advantage", "must not be distillation with the lab's model, which reads no English")
    reward = config.reward
    no_penalty = config.algo.truncated_bootstrap == "zero" or (reward.truncated == 0 and not priced)
    why = "is value, which needs reward.truncated=0 and length=none: else the critic's values of cut responses fall forever"
    require(no_penalty, "algo.truncated_bootstrap", why)
    require(reward.correct > reward.wrong, "reward.correct", "must be above reward.wrong")
    room = trainer.max_tokens_per_micro_batch >= config.rollout.max_tokens
    require(room, "trainer.max_tokens_per_micro_batch", f"must be at least rollout.max_tokens={config.rollout.max_tokens}")
    require(bool(config.data.validation), "data.validation", NO_TRAINING_SET)


def _check_ranks(config: LearnConfig) -> None:
    """Check what a learner of several ranks does not do."""
    cluster = config.cluster
    by_torchrun = cluster.kind == "torchrun"
    require((cluster.learner_ranks is None) == by_torchrun, "cluster.learner_ranks", "is null with cluster=torchrun only")
    if cluster.weights != "files":
        require(config.model.adapter.kind == "none", "cluster.weights", "must be files with adapters")
        apart = cluster.kind == "ray"
        alone = (cluster.learner_ranks, config.rollout.num_engines, config.rollout.tensor_parallel_size) == (1, 1, 1)
        fits = cluster.weights == "nccl" if apart else cluster.weights == "ipc" and alone
        require(
            fits,
            "cluster.weights",
            "must be nccl or files with cluster=ray"
            if apart
            else "is ipc, for one engine of one GPU and a learner of one rank there; or files",
        )
    if cluster.learner_ranks == 1:
        return
    why = "with cluster.learner_ranks above 1"
    require(config.model.adapter.base != "4bit", "model.adapter.base", f"must not be 4bit {why}: FSDP cannot divide it")
    require(config.optim.moments == "float32", "optim.moments", f"must be float32 {why}: bitsandbytes cannot divide others")
    require(not config.trainer.offload, "trainer.offload", f"must be false {why}")


def _check_sampling_ahead(config: LearnConfig) -> None:
    """Check what sampling with weights one step old, while the learner works, asks of the rest."""
    trainer, rollout, key = config.trainer, config.rollout, "trainer.sample_ahead"
    if not trainer.sample_ahead:
        return
    require(config.algo.sampler_correction != "none", key, "needs algo.sampler_correction=token or sequence")
    require(
        trainer.validate_every > 1, key, "does nothing where every step is validated; set trainer.validate_every above 1"
    )
    elsewhere = config.cluster.kind == "ray"
    apart = elsewhere or rollout.engine == "child_process" or rollout.num_engines > 1
    require(apart, key, "needs an engine in a process of its own: rollout.engine=child_process, or several")
    idle = not trainer.offload and config.cluster.weights != "ipc"
    require(idle, key, "needs a device that the engine keeps: trainer.offload=false, and cluster.weights not ipc")


def _check_algo(algo: AlgoConfig) -> None:
    per_token = algo.advantage in ("gae", "monte_carlo")
    message = f"must be 'loss' or 'none' with algo.advantage={algo.advantage}: it has no per-token reward"
    require(per_token or algo.kl != "reward", "algo.kl", message)
    adapts = algo.kl_target is None or (algo.kl != "none" and algo.kl_coef > 0)
    require(adapts, "algo.kl_target", "needs a place for the KL (algo.kl) and algo.kl_coef above 0 to start from")
    require(
        algo.has_critic or algo.critic_warmup_steps == 0,
        "algo.critic_warmup_steps",
        "must be 0 without a critic (algo.advantage=gae)",
    )
    discounts = per_token or algo.gamma == 1
    require(discounts, "algo.gamma", f"must be 1 with algo.advantage={algo.advantage}, which discounts nothing")
    imitates = (algo.advantage == "shortest_correct") == (algo.policy_loss == "nll")
    require(imitates, "algo.policy_loss", "nll goes with algo.advantage=shortest_correct and with nothing else")
    taught = not algo.has_teacher or (algo.kl == "none" and not algo.whiten_advantages)
    message = "distillation needs algo.kl=none and algo.whiten_advantages=false: the teacher is all that it learns from"
    require(taught, "algo.advantage", message)
    white = algo.whiten_advantages and algo.advantage == "shortest_correct"
    require(not white, "algo.whiten_advantages", "must be false with algo.advantage=shortest_correct: all would become 0")


def _check_length(length: LengthConfig) -> None:
    acts = length.kind != "none"
    message = f"is 0, so length.kind={length.kind} does nothing; length={length.kind} sets the published one"
    require(length.strength > 0 or not acts, "length.strength", message)
    require(length.strength == 0 or acts, "length.strength", f"is unread with length.kind={length.kind}")

"""The backend owns the models of a phase (policy, reference and critic), their optimisers, device and saved state.

The learner computes losses and decides when to step; it reaches the models only through a `Backend`. What a model consists
of (all of its weights, an adapter on a frozen base, shards on several devices) is decided here and nowhere else.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from conclip.cluster.ranks import OneRank, Ranks, copy_parameters, of_this_rank, whole
from conclip.cluster.shares import read_shares
from conclip.config.groups import Dtype
from conclip.config.schema import LearnConfig
from conclip.models.load import autocast, load_policy, recompute_activations
from conclip.models.products import onednn_pays, use_onednn
from conclip.processes import prepare_gpu
from conclip.training.batch import TokenBatch
from conclip.training.models import FullModels, PhaseModels, Role
from conclip.training.optimizer import Scheduled, make_optimizer
from conclip.training.schedule import learning_rates, lr_scale
from conclip.training.side_by_side import SideBySide, number_at_once

Extra = TypeVar("Extra")


def load_models(folder: Path, config: LearnConfig, device: torch.device, ranks: Ranks) -> PhaseModels:
    """Load the models that a phase needs, all from one folder, and divide them among the ranks."""
    algo, adapter = config.algo, config.model.adapter
    policy = load_policy(
        folder,
        ranks.loads_on(device),
        trust_remote_code=config.model.trust_remote_code,
        weights=adapter.base,
        dtype=config.model.dtype,
    )
    if config.trainer.recompute_activations:
        recompute_activations(policy)
    wanted = {"reference": algo.has_reference, "critic": algo.has_critic}
    if adapter.kind == "lora":
        from conclip.training.adapter_models import AdapterModels  # noqa: PLC0415  peft takes seconds to import

        return AdapterModels(policy, adapter, config.seed, ranks=ranks, **wanted)
    return FullModels(
        policy,
        reference_dtype=algo.reference_dtype,
        trust_remote_code=config.model.trust_remote_code,
        ranks=ranks,
        **wanted,
    )


class Backend:
    """The models of a phase on one device, whole or this rank's share, with an AdamW optimiser for each trained one."""

    def __init__(
        self,
        model_path: Path,
        config: LearnConfig,
        *,
        num_updates: int,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Load the models. `num_updates`: policy updates in the learning-rate schedule, `updates_per_rollout` per step.
        `device`: by default the GPU, where there is one. `ranks`: by default one, which has all of the models."""
        self.ranks = ranks or OneRank()
        algo, self._optim = config.algo, config.optim
        self._temperature = config.rollout.temperature
        self._dtype: Dtype = config.model.dtype
        self.device = device or self.ranks.device
        if config.rollout.deterministic and self.device.type == "cuda":
            prepare_gpu(repeatable=True)  # a rank on another host has that host's environment
            torch.use_deterministic_algorithms(True)
        self.models = load_models(model_path, config, self.device, self.ranks)
        if self.device.type == "cpu" and self._dtype == "float32" and onednn_pays():
            for model in filter(None, (self.models.policy, self.models.reference, self.models.critic)):
                use_onednn(model)
        self._warmup = algo.critic_warmup_steps * algo.updates_per_rollout
        adapted = config.model.adapter.kind == "lora"
        rates = learning_rates(self._optim, self.models.policy.num_parameters(), adapted=adapted)
        lengths = {"policy": num_updates, "critic": num_updates + self._warmup}
        self._trained = {
            name: self._optimizer(module, rates[name], lengths[name]) for name, module in self.models.trained.items()
        }
        self.set_position(0)
        self._offloads = config.trainer.offload
        on_cpu = self.device.type == "cpu"
        self.side_by_side = SideBySide(number_at_once(config.trainer, on_cpu=on_cpu, num_ranks=self.ranks.size))
        """Computes micro-batches."""
        self.rest()

    def _optimizer(self, module: torch.nn.Module, lr: float, num_updates: int) -> Scheduled:
        schedule = partial(
            lr_scale,
            num_updates=num_updates,
            warmup_fraction=self._optim.warmup_fraction,
            min_lr_fraction=self._optim.min_lr_fraction,
        )
        return Scheduled(module, make_optimizer(module.parameters(), lr, self._optim), schedule)

    def logprobs(self, tokens: TokenBatch, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Return the policy's log-probs of the sampled tokens and its entropies [nats], both [b, T], 0 off the response
        mask. Entropies carry a gradient only with `entropy_gradient`."""
        return self._logprobs_of("policy", tokens, entropy_gradient)

    def ref_logprobs(self, tokens: TokenBatch) -> Tensor | None:
        """Return the reference's log-probs [b, T]; None where the algorithm needs no reference."""
        return None if self.models.reference is None else self._logprobs_of("reference", tokens, False)[0]

    def values(self, tokens: TokenBatch) -> Tensor | None:
        """Return the critic's values [b, T], 0 off the response mask; None where the algorithm has no critic."""
        if self.models.critic is None:
            return None
        with autocast(self._dtype, self.device):
            values = self.models.scorer("critic")(tokens.input_ids.to(self.device))[:, :-1]
        return torch.where(tokens.response_mask.to(self.device), values, torch.zeros_like(values))

    def _logprobs_of(
        self, role: Literal["policy", "reference"], tokens: TokenBatch, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        ids, mask, targets = (tensor.to(self.device) for tensor in (tokens.input_ids, tokens.response_mask, tokens.targets))
        with autocast(self._dtype, self.device):
            chosen, entropy = self.models.scorer(role)(ids, mask, targets, self._temperature, entropy_gradient)
        zeros = torch.zeros(mask.shape, device=self.device, dtype=chosen.dtype)
        return zeros.masked_scatter(mask, chosen), zeros.masked_scatter(mask, entropy)

    def gradients(self, role: Role, losses: Iterable[Callable[[], tuple[Tensor, Extra]]]) -> Iterator[Extra]:
        """Add the gradients of the losses to those of a role's parameters, in their order, and yield what comes with
        each."""
        if self.side_by_side.number == 1:
            for compute in losses:
                loss, extra = compute()
                loss.backward()  # pyright: ignore[reportUnknownMemberType]
                del loss
                yield extra
            return
        parameters = [p for p in self._trained[role].module.parameters() if p.requires_grad]

        def gradients_of(compute: Callable[[], tuple[Tensor, Extra]]) -> tuple[list[Tensor | None], Extra]:
            loss, extra = compute()
            return list(torch.autograd.grad(loss, parameters, allow_unused=True)), extra

        for gradients, extra in self.side_by_side.run(partial(gradients_of, compute) for compute in losses):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:  # in the parameter's own layout, as backward() has it
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
                else:
                    parameter.grad.add_(gradient)
            gradients.clear()
            yield extra

    def without_gradients(self, losses: Iterable[Callable[[], tuple[Tensor, Extra]]]) -> Iterator[Extra]:
        """Yield what comes with each of the losses, which are computed for nothing else."""
        for _, extra in self.side_by_side.run(torch.no_grad()(compute) for compute in losses):
            yield extra

    def set_position(self, update: int) -> None:
        """Set the learning rates for a position in the phase's schedule [updates, the critic's warm-up included]."""
        self.update_number = update
        for name, item in self._trained.items():
            item.set_position(max(0, update - self._warmup) if name == "policy" else update)

    @property
    def policy_lr(self) -> float:
        return self._trained["policy"].lr

    def step(self, *, train_policy: bool = True) -> dict[str, float]:
        """Clip the accumulated gradients to `max_grad_norm`, step the optimiser of each model that trains, and clear the
        gradients. Returns the gradient norms before clipping, by model. If one is not finite, no model changes."""
        trained = {name: item for name, item in self._trained.items() if train_policy or name != "policy"}
        norms = {name: self.clip(item.module) for name, item in trained.items()}
        finite = all(map(math.isfinite, norms.values()))
        for item in trained.values():
            if finite:
                item.optimizer.step()
            item.optimizer.zero_grad(set_to_none=True)
        return norms

    def clip(self, module: torch.nn.Module) -> float:
        """Clip the module's gradient to `max_grad_norm`. Returns its norm before clipping."""
        return float(whole(torch.nn.utils.clip_grad_norm_(module.parameters(), self._optim.max_grad_norm)))

    def rest(self) -> None:
        """Release what device memory the engine can have until `wake`: it samples next. With `trainer.offload`, moments and
        the models that only updates need go to main memory."""
        if self._offloads:
            self._move(torch.device("cpu"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Bring back what `rest` has moved."""
        if self._offloads:
            self._move(self.device)

    def _move(self, device: torch.device) -> None:
        for model in self.models.for_updates():
            model.to(device)
        for item in self._trained.values():
            item.move_moments(device)

    def missing_moments(self) -> list[Tensor]:
        """Return room for the moments that this rank's optimisers do not have before their first update."""
        of_trained = [item for item in self._trained.values() if not item.optimizer.state]
        numbers = (sum(of_this_rank(p).numel() for p in item.module.parameters()) for item in of_trained)
        return [
            torch.empty(int(self._optim.bytes_of_moments * number), dtype=torch.uint8, device=self.device)
            for number in numbers
        ]

    def drop_gradients(self) -> None:
        for item in self._trained.values():
            item.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the critic and the optimiser moments, as this rank holds them: with the policy, `load_state` needs no more
        to resume exactly."""
        tensors: dict[str, Tensor] = {}
        if (critic := self.models.trained.get("critic")) is not None:
            tensors |= {f"critic/{key}": parameter.detach() for key, parameter in critic.named_parameters()}
        for name, item in self._trained.items():
            tensors |= {f"{name}.optimizer/{key}": moment for key, moment in item.moments().items()}
        return tensors

    def read_state(self, folder: Path) -> dict[str, Tensor]:
        """Return what `state` returned, from the files that any number of ranks has written of it."""
        of = {f"{name}.optimizer/": item.module for name, item in self._trained.items()}
        if (critic := self.models.trained.get("critic")) is not None:
            of["critic/"] = critic
        parameters = {prefix + key: p for prefix, module in of.items() for key, p in module.named_parameters()}

        def like(name: str) -> Tensor | None:
            return parameters.get(name, parameters.get(name.rpartition("/")[0]))

        return read_shares(folder, like)

    def load_state(self, policy: Path, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, with the policy from a checkpoint. The optimisers keep the settings of the config.
        Raises ValueError for the state of another model or optimiser."""
        self.models.load(policy)
        if (critic := self.models.trained.get("critic")) is not None:
            copy_parameters(tensors, critic, prefix="critic/")
        for name, item in self._trained.items():
            item.load_moments(tensors, prefix=f"{name}.optimizer/")

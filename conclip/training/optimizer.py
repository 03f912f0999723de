"""AdamW (Loshchilov and Hutter 2019) with moments in 32 or 8 bits (Dettmers et al. 2022), and its learning-rate schedule."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import AdamW, Optimizer

from conclip.cluster.ranks import whole
from conclip.config.groups import OptimConfig


def make_optimizer(parameters: Iterable[torch.nn.Parameter], lr: float, config: OptimConfig) -> Optimizer:
    """Return AdamW over the parameters, with moments as the config keeps them."""
    settings: dict[str, Any] = {
        "lr": lr,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    trained = list(parameters)
    on_gpu = bool(trained) and trained[0].is_cuda
    if config.moments == "float32":  # on a GPU, one kernel without copies of all weights; on a CPU, torch's own choice
        return AdamW(trained, fused=True if on_gpu else None, **settings)
    if not on_gpu:  # nothing is paged there
        from conclip.training.sliced_adamw import SlicedAdamW8bit  # noqa: PLC0415  only what is used gets imported

        return SlicedAdamW8bit(trained, **settings)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit  # noqa: PLC0415

    kind = AdamW8bit if config.moments == "8bit" else PagedAdamW8bit
    return cast(Optimizer, kind(trained, **settings))


class Scheduled:
    """A module's optimiser with a learning-rate schedule."""

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, scale: Callable[[int], float]) -> None:
        """Schedule an optimiser by `scale`, which maps a position to a factor on its learning rate."""
        self.module, self.optimizer, self._scale = module, optimizer, scale
        self._highest = float(optimizer.param_groups[0]["lr"])

    @property
    def lr(self) -> float:
        """Return the current learning rate."""
        return self.optimizer.param_groups[0]["lr"]

    def set_position(self, update: int) -> None:
        """Set the learning rate for this position [updates of the schedule]."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._highest * self._scale(update)

    def move_moments(self, device: torch.device) -> None:
        """Move the optimiser's state to a device. An update needs it where the parameters are."""
        for state in self.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = value.to(device)

    def moments(self) -> dict[str, Tensor]:
        """Return the optimiser's state by `<name of the parameter>/<key>`; empty before the first update."""
        if not self.optimizer.state:
            return {}  # torch would create the state by taking a step, which would count
        state = cast(dict[str, dict[str, Any]], get_optimizer_state_dict(self.module, self.optimizer)["state"])
        return {f"{name}/{key}": value for name, moments in state.items() for key, value in _flat(moments)}

    def load_moments(self, saved: Mapping[str, Tensor], *, prefix: str) -> None:
        """Restore what `moments` returned from the keys under `prefix`. Raises ValueError when it is not the state of this
        AdamW optimiser."""
        parameters = dict(self.module.named_parameters())
        moments: dict[str, dict[str, Tensor]] = {}
        for key, tensor in saved.items():
            if key.startswith(prefix):
                name, _, moment = key.removeprefix(prefix).rpartition("/")
                moments.setdefault(name, {})[moment] = tensor
        for name, tensors in moments.items():
            if name not in parameters:
                raise ValueError(f"{prefix}{name} belongs to no parameter")
            _check(prefix + name, tensors, parameters[name].shape, self.optimizer)
        groups = [self.optimizer.state_dict()["param_groups"][0] | {"params": list(parameters)}]
        state = {"state": moments, "param_groups": groups}
        set_optimizer_state_dict(self.module, self.optimizer, state, options=StateDictOptions(strict=False))
        for name, parameter in parameters.items():
            if name not in moments:  # it never had a gradient; torch created the state of one step
                self.optimizer.state.pop(parameter, None)


def _flat(moments: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one parameter's state; bitsandbytes counts steps in Python, and nests what it quantises with."""
    for key, value in moments.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value))
        else:
            tensor = torch.as_tensor(value)
            yield key, tensor.clone() if key.startswith("qmap") else tensor  # all parameters share one map


def _check(name: str, moments: Mapping[str, Tensor], shape: torch.Size, optimizer: Optimizer) -> None:
    """Raise ValueError unless these can be the state of a parameter of this shape."""
    first, second = ("exp_avg", "exp_avg_sq") if isinstance(optimizer, AdamW) else ("state1", "state2")
    further = moments.keys() - {"step", first, second}
    known = set() if isinstance(optimizer, AdamW) else {"qmap1", "qmap2", "absmax1", "absmax2"}
    complete = {"step", first, second} <= moments.keys() and further in (set(), known)
    kinds = {torch.uint8} if further else {torch.float32, torch.float64}
    fits = complete and all(moments[key].shape == shape and moments[key].dtype in kinds for key in (first, second))
    if not fits or moments["step"].shape != ():
        raise ValueError(f"{name} is no state of this optimiser, or of a parameter of another shape")
    squares = moments["absmax2" if further else second]
    if not (moments["step"] >= 1 and bool(whole((squares >= 0).all()))):
        raise ValueError(f"{name} is no state of AdamW: a step before 1, or a square below 0")

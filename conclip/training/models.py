"""The models of a phase: the policy, the reference and the critic, and which of their weights train.

`FullModels` are three models, of which policy and critic train whole. `AdapterModels` are one frozen base with adapters.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from conclip.cluster.ranks import Ranks
from conclip.config.groups import Dtype
from conclip.models.critic import Critic, body_of
from conclip.models.load import checkpoint_weights, load_policy
from conclip.models.scorer import Scorer
from conclip.rollout.engine import TakesWeights

Role = Literal["policy", "reference", "critic"]


class PhaseModels(Protocol):
    """What a backend needs of the models of a phase."""

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    critic: Critic | None
    trained: dict[str, nn.Module]
    """The parameters that train, of `policy` and, where there is one, of `critic`."""

    def for_updates(self) -> list[nn.Module]:
        """Return the models that only updates need: nothing that `push` reads."""
        ...

    def scorer(self, role: Role) -> Callable[..., Any]:
        """Return what computes with the weights of a role: for policy and reference with the arguments and results of
        `Scorer`, for the critic, where there is one, with those of `Critic`. The weights stay selected until the next call,
        so a backward pass that recomputes activations uses them too."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the policy's weights, named as in a model folder."""
        ...

    def push(self, engine: TakesWeights, version: int) -> None:
        """Make the engine sample from the policy, as version `version`."""
        ...

    def saved(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of the policy."""
        ...

    def write(self, folder: Path, saved: dict[str, Tensor]) -> None:
        """Write what `saved` returned, with its config, into a folder."""
        ...

    def load(self, folder: Path) -> None:
        """Load the policy that `write` wrote. Raises ValueError for one of another shape."""
        ...

    def complete(self, folder: Path, *, written: bool = True) -> None:
        """Make a whole model of a folder with what `write` wrote: one that transformers and engines load. `written=False`:
        take part in it, as ranks besides the first do."""
        ...


class FullModels:
    """Models of their own for policy, reference and critic. All weights of policy and critic train."""

    def __init__(
        self,
        policy: PreTrainedModel,
        *,
        reference: bool,
        critic: bool,
        reference_dtype: Dtype,
        trust_remote_code: bool,
        ranks: Ranks,
    ) -> None:
        """Divide the models among `ranks`, each before the next is made: `policy` is whole, or without content."""
        self.policy, self._trust_remote_code = policy, trust_remote_code
        self._ranks, self._loads_on = ranks, policy.device
        self._scorers: dict[Role, nn.Module] = {}
        self.reference = None
        if reference:
            self.reference = copy.deepcopy(policy).requires_grad_(False)
            if reference_dtype == "bfloat16":
                for parameter in self.reference.parameters():  # not the buffers: positions need all their digits
                    parameter.data = parameter.data.bfloat16()
            self._scorers["reference"] = self._divided(Scorer(self.reference))
        self.critic = Critic(copy.deepcopy(body_of(policy))) if critic else None
        self.trained: dict[str, nn.Module] = {"policy": policy}
        if self.critic is not None:
            self.trained["critic"] = self.critic
            self._scorers["critic"] = self._divided(self.critic)
        self._scorers["policy"] = self._divided(Scorer(policy))

    def _divided(self, module: nn.Module) -> nn.Module:
        self._ranks.shard(module)
        return module

    def for_updates(self) -> list[nn.Module]:
        return [model for model in (self.reference, self.critic) if model is not None]

    def scorer(self, role: Role) -> Callable[..., Any]:
        return self._scorers[role]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from checkpoint_weights(self.policy)

    def push(self, engine: TakesWeights, version: int) -> None:
        engine.update_weights(self.weights(), version)

    def saved(self) -> dict[str, Tensor]:
        first = {id(p): name for name, p in reversed(list(self.policy.named_parameters(remove_duplicate=False)))}
        names = {name: first[id(p)] for name, p in self.policy.named_parameters(remove_duplicate=False)}
        kept: dict[str, Tensor] = {}
        for name, tensor in self.policy.state_dict().items():
            tied = names.get(name, name)
            kept[name] = kept[tied] if tied in kept else self._ranks.kept(tensor)
        return kept

    def write(self, folder: Path, saved: dict[str, Tensor]) -> None:
        self.policy.save_pretrained(folder, state_dict=saved)

    def load(self, folder: Path) -> None:
        saved = load_policy(folder, self._loads_on, trust_remote_code=self._trust_remote_code)
        self._ranks.fill(self.policy, dict(saved.named_parameters()))

    def complete(self, folder: Path, *, written: bool = True) -> None:
        """Do nothing: it is whole."""

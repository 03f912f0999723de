"""The models of a phase that trains adapters: one frozen base for all three roles, with a low-rank adapter for the policy
and one for the critic (LoRA, Hu et al. 2021). The base without adapters is the reference.
"""

import collections
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from conclip.cluster.ranks import Ranks
from conclip.config.groups import AdapterConfig
from conclip.models.adapters import WEIGHTS_FILE, Adapter, activate, served_weights, write_adapter, write_merged
from conclip.models.critic import Critic, body_of
from conclip.models.folder import ADAPTER
from conclip.models.scorer import Scorer, SharedScorer
from conclip.rollout.engine import TakesWeights
from conclip.training.models import Role


class AdapterModels:
    """One frozen base for all three roles. The policy's and the critic's adapters and the critic's head train."""

    def __init__(
        self, base: PreTrainedModel, config: AdapterConfig, seed: int, *, reference: bool, critic: bool, ranks: Ranks
    ) -> None:
        self._ranks = ranks
        self.policy = base.requires_grad_(False)
        self.reference = base if reference else None
        self._adapters = {"policy": Adapter(base, "policy", config, seed)}
        self.critic = None
        if critic:
            self._adapters["critic"] = Adapter(base, "critic", config, seed)
            self.critic = Critic(body_of(base))
        self._scorer = SharedScorer(Scorer(base), self.critic)
        activate(base, "policy")  # all adapters train, of which peft leaves the last one alone
        self._ranks.shard(self._scorer)
        self.trained: dict[str, nn.Module] = {name: adapter.parameters() for name, adapter in self._adapters.items()}
        if self.critic is not None:
            self.trained["critic"] = nn.ModuleDict({"adapter": self.trained["critic"], "head": self.critic.head})

    def for_updates(self) -> list[nn.Module]:
        return []

    def scorer(self, role: Role) -> Callable[..., Any]:
        activate(self.policy, role)
        return partial(self._scorer, "values" if role == "critic" else "logprobs")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from served_weights(self.policy, "policy")

    def push(self, engine: TakesWeights, version: int) -> None:
        """Give the engine the base and the adapter apart where it takes adapters, else merged."""
        if not engine.takes_adapters():
            engine.update_weights(self.weights(), version)
            return
        with TemporaryDirectory(prefix="conclip-adapter-") as folder:
            saved = self.saved()
            if self._ranks.is_first:
                write_adapter(Path(folder), saved, self._adapters["policy"].peft_config)
            engine.update_weights(served_weights(self.policy), version, Path(folder))

    def saved(self) -> dict[str, Tensor]:
        return {name: self._ranks.kept(tensor) for name, tensor in self._adapters["policy"].tensors().items()}

    def write(self, folder: Path, saved: dict[str, Tensor]) -> None:
        write_adapter(folder / ADAPTER, saved, self._adapters["policy"].peft_config)

    def load(self, folder: Path) -> None:
        self._adapters["policy"].load(load_file(folder / ADAPTER / WEIGHTS_FILE))

    def complete(self, folder: Path, *, written: bool = True) -> None:
        """Add the base with the adapter merged into it. The policy is the folder's from then on."""
        self.load(folder)
        if written:
            write_merged(folder, self.policy, "policy")
        else:
            collections.deque(self.weights(), maxlen=0)

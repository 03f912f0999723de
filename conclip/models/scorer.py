"""Models as the learner computes with them. All that reads a model's weights is the forward pass of one module: where
weights are sharded, it gathers them."""

from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from conclip.algo.logprobs import chosen_logprobs
from conclip.models.critic import Critic
from conclip.models.load import OutputHead


class Scorer(nn.Module):
    """A language model that returns log-probs of given tokens, and never the logits of a whole batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, mask: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probs of the targets where the mask is, and the entropies there [nats], both [N]. input_ids:
        [b, L]; mask and targets: [b, L - 1]. Entropies carry a gradient only with `entropy_gradient`."""
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return chosen_logprobs(
            hidden[:, :-1][mask], OutputHead(self.model), targets[mask], temperature, entropy_gradient=entropy_gradient
        )


class SharedScorer(nn.Module):
    """A language model and a critic on the same weights."""

    def __init__(self, scorer: Scorer, critic: Critic | None) -> None:
        super().__init__()
        self.scorer, self.critic = scorer, critic

    def forward(self, what: Literal["logprobs", "values"], *arguments: Any) -> Any:
        """Return what `Scorer` or `Critic` returns for the arguments."""
        module = self.scorer if what == "logprobs" else self.critic
        assert module is not None
        return module(*arguments)

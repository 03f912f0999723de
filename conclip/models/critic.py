"""The value function: the body of a language model with a scalar head, as in the paper."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Critic(nn.Module):
    """A language model's body with a linear head that starts at 0, so that every state is worth nothing at first."""

    def __init__(self, body: PreTrainedModel) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, 1, device=body.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return values [b, L] in the head's own precision for `input_ids` [b, L]: column t is the value of the state that
        ends with token t."""
        hidden = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1).clone()  # FSDP warns of views


def body_of(policy: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a language model below its output head."""
    return cast(PreTrainedModel, policy.base_model)

"""The value function: a full model of its own with a scalar head, as in the paper."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Critic(nn.Module):
    """A copy of the policy's body with a linear head that starts at 0, so that every state is worth nothing at first."""

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy.base_model)
        self.head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(policy.device)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return values [b, L] in the head's own precision for `input_ids` [b, L]: column t is the value of the state that
        ends with token t."""
        hidden = self.body(input_ids=input_ids, use_cache=False).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)

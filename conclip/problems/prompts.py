"""The one place for instruction text: a question becomes token ids here and nowhere else."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from conclip.config.groups import ModelConfig
from conclip.models.chat_template import render
from conclip.types import Messages

INSTRUCTIONS: dict[str, str] = {
    "plain": "",
    "concise": "Be concise.",
    "draft": "Think step by step, but keep only a minimum draft of each step, five words at most.",
    "budget": "Use fewer than {budget_tokens} tokens.",
}
"""Instructions that are added to the question to ask for brevity: none; a plain one; Chain of Draft (Xu et al. 2025); a
token budget (Han et al. 2024)."""


def messages_for(question: str, model: ModelConfig, style: str = "plain", *, budget_tokens: int = 0) -> Messages:
    """Return the chat that asks `question` in the given style."""
    content = model.prompt.replace("{question}", question)
    if instruction := INSTRUCTIONS[style]:
        content += "\n" + instruction.replace("{budget_tokens}", str(budget_tokens))
    system = () if model.system is None else (("system", model.system),)
    return (*system, ("user", content))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    model: ModelConfig,
    style: str = "plain",
    *,
    budget_tokens: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Return the token ids of the chat that asks `question` in the given style, the assistant's turn opened.
    `template_kwargs` are the arguments of the chat template, by default `model.chat_template_kwargs`.

    The template's own special tokens are the only ones added (no second BOS).
    """
    turns = messages_for(question, model, style, budget_tokens=budget_tokens)
    text = render(tokenizer, turns, model.chat_template_kwargs if template_kwargs is None else template_kwargs)
    return tuple(tokenizer.encode(text, add_special_tokens=False))

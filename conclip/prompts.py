"""The one place for instruction text and chat templates: a question becomes token ids here and nowhere else."""

from transformers import PreTrainedTokenizerBase

from conclip.config import ModelConfig


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str, model: ModelConfig) -> tuple[int, ...]:
    """Token ids of the chat that asks `question`, the assistant's turn opened.

    The template's own special tokens are the only ones added (no second BOS).
    """
    messages = [{"role": "user", "content": model.prompt.replace("{question}", question)}]
    if model.system is not None:
        messages.insert(0, {"role": "system", "content": model.system})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer.encode(str(text), add_special_tokens=False))

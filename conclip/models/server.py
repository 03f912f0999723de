"""Models behind servers that speak the OpenAI protocol: reaching them, and choosing one."""

import os
from collections.abc import Mapping
from typing import Any, cast

import openai

from conclip.config import UserError
from conclip.types import Messages

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable with the server's key: never a config key, so that it is never written into a run folder."""


def connect(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=os.environ.get(KEY_VARIABLE, "none"), max_retries=5, timeout=3600)


def find_served(url: str, wanted: str | None) -> str:
    """The name of the model to ask at `url`: the wanted one, or the only one. Raises UserError when the server does not
    answer or does not serve it."""
    try:
        served = [model.id for model in connect(url).with_options(max_retries=0, timeout=30).models.list()]
    except Exception as error:  # an address that is none, a page of HTML, a key that is no ASCII: each has its own
        raise UserError(
            f"model.url: '{url}' does not answer as an OpenAI server ({type(error).__name__}); it ends in /v1, as a rule, "
            f"and a key, where one is needed, is read from {KEY_VARIABLE}"
        ) from error
    if wanted is None:
        if len(served) != 1:
            raise UserError(f"model.served_name: '{url}' serves {', '.join(served) or 'nothing'}; choose one")
        return served[0]
    if wanted not in served:
        raise UserError(f"model.served_name: '{url}' does not serve '{wanted}' but {', '.join(served) or 'nothing'}")
    return wanted


def rendered(url: str, served_name: str, turns: Messages, template_kwargs: Mapping[str, Any]) -> str | None:
    """The text of a chat, the assistant's turn opened, as the server's chat template makes it; None where it is not
    vLLM's, which can say."""
    client, root = connect(url).with_options(max_retries=0, timeout=30), url.rstrip("/").removesuffix("/v1")
    asked = {
        "model": served_name,
        "messages": [{"role": role, "content": content} for role, content in turns],
        "add_generation_prompt": True,
        "chat_template_kwargs": dict(template_kwargs),
    }
    try:
        if all(model.owned_by != "vllm" for model in client.models.list()):
            return None
        tokens = cast(Any, client.post(f"{root}/tokenize", cast_to=object, body=asked))["tokens"]
        answer = client.post(f"{root}/detokenize", cast_to=object, body={"model": served_name, "tokens": tokens})
        text = cast(Any, answer)["prompt"]
    except (openai.OpenAIError, ValueError, KeyError, TypeError):  # no such address, or another kind of answer
        return None
    return text if isinstance(text, str) else None

"""Models behind servers that speak the OpenAI protocol: reaching them, and choosing one."""

import os

import openai

from conclip.config import UserError

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

"""Reaches models behind servers that speak the OpenAI protocol, and chooses one.

A server may be anybody's. It does not decide where prompts and the key go (redirects to other origins), how long a reply
takes, or how much memory it takes.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import httpx2
import openai

from conclip.errors import UserError
from conclip.redact import learn_secrets, one_line
from conclip.types import Messages

KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable with the server's key: never a config key, so that it is never written into a run folder."""

REPLY_TIMEOUT_S = 3600.0
"""Longest time of a request and all its retries, however slowly the reply comes."""

LIST_TIMEOUT_S = 30.0
"""Longest time of a request for the list of models."""

MAX_REPLY_BYTES = 64 << 20
"""Largest size of one uncompressed reply; compressed replies are refused, as they can expand."""

REFUSED_REDIRECT = "x-redirect-not-followed"
"""Header that replaces `Location` where that leads to another origin."""

Result = TypeVar("Result")


class BadReply(BaseException):
    """A reply that is not read any further. It is no `Exception`, because the client retries after each of those."""


class _Bounded(httpx2.SyncByteStream):
    """A reply's body, bounded in bytes and in time."""

    def __init__(self, body: httpx2.SyncByteStream, deadline: float) -> None:
        self._body, self._deadline = body, deadline

    def __iter__(self) -> Iterator[bytes]:
        num_bytes = 0
        for part in self._body:
            num_bytes += len(part)
            if num_bytes > MAX_REPLY_BYTES:
                raise BadReply(f"sends a reply of more than {MAX_REPLY_BYTES >> 20} MiB")
            if time.monotonic() > self._deadline:
                raise BadReply(f"has not ended its reply after {REPLY_TIMEOUT_S:g} s")
            yield part

    def close(self) -> None:
        self._body.close()


def _guard(response: httpx2.Response) -> None:
    """Check a response before its body is read or its redirect followed; the client calls this for each one."""
    location = response.headers.get("location")
    if location is not None and _origin(response.url.join(location)) != _origin(response.url):
        del response.headers["location"]
        response.headers[REFUSED_REDIRECT] = location
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise BadReply(f"sends a compressed reply ({one_line(encoding, 40)}), which was not asked for")
    response.stream = _Bounded(cast(httpx2.SyncByteStream, response.stream), time.monotonic() + REPLY_TIMEOUT_S)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def connect(url: str) -> openai.OpenAI:
    """Return a client. Its calls raise `BadReply` and the errors of the library. It does not follow a redirect to another
    origin: that is an error of status 3xx, which `refused_redirect` explains."""
    learn_secrets()
    http = openai.DefaultHttpxClient(
        base_url=url, timeout=REPLY_TIMEOUT_S, headers={"Accept-Encoding": "identity"}, event_hooks={"response": [_guard]}
    )
    return openai.OpenAI(
        base_url=url, api_key=os.environ.get(KEY_VARIABLE, "none"), max_retries=5, timeout=REPLY_TIMEOUT_S, http_client=http
    )


def refused_redirect(error: BaseException) -> str | None:
    """Return the message for an error that is a refused redirect; None for any other error."""
    where = error.response.headers.get(REFUSED_REDIRECT) if isinstance(error, openai.APIStatusError) else None
    if where is None:
        return None
    return f"sends on to '{one_line(where, 200)}', which is not followed; give that address where you trust it"


def with_timeout(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or raise what it raises. Raises TimeoutError when it takes longer: a server may send a
    header for hours, byte by byte, and no timeout of the client covers that."""
    results: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            results.append((True, work()))
        except BaseException as error:
            results.append((False, error))

    thread = threading.Thread(target=run, daemon=True, name="asking a server")
    thread.start()
    thread.join(seconds)
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    good, value = results[0]
    if not good:
        raise value
    return cast(Result, value)


def _served(url: str) -> dict[str, str | None]:
    """Return the names of the models that a server has, and who owns each. Raises UserError when it does not answer."""
    try:
        client = connect(url).with_options(max_retries=0, timeout=LIST_TIMEOUT_S)
        listed = with_timeout(LIST_TIMEOUT_S, lambda: list(client.models.list().data))
        return {str(cast(Any, model).id): getattr(model, "owned_by", None) for model in listed}
    except (Exception, BadReply) as error:  # no address, HTML, a key that is not ASCII: each raises its own error
        if (sent_on := refused_redirect(error)) is not None:
            raise UserError(f"model.url: '{url}' {sent_on}") from error
        reason = (
            str(error) if isinstance(error, BadReply) else f"does not answer as an OpenAI server ({type(error).__name__})"
        )
        raise UserError(
            f"model.url: '{url}' {reason}; it ends in /v1, as a rule, and a key, where one is needed, is read from "
            f"{KEY_VARIABLE}"
        ) from error


def find_served_model(url: str, wanted: str | None) -> str:
    """Return the name of the model to ask at `url`: the wanted one, or the only one. Raises UserError when the server does
    not answer or does not serve it."""
    served = list(_served(url))
    names = one_line(", ".join(served), 200) or "nothing"
    if wanted is None:
        if len(served) != 1:
            raise UserError(f"model.served_name: '{url}' serves {names}; choose one")
        return served[0]
    if wanted not in served:
        raise UserError(f"model.served_name: '{url}' does not serve '{wanted}' but {names}")
    return wanted


def is_vllm(url: str) -> bool:
    """Return whether a server says that it is vLLM. Raises UserError when it does not answer."""
    return "vllm" in _served(url).values()


def render_by_server(url: str, served_name: str, turns: Messages, template_kwargs: Mapping[str, Any]) -> str | None:
    """Return the text of a chat, the assistant's turn opened, as the chat template of a vLLM server writes it; None where it
    does not say."""
    client, root = connect(url).with_options(max_retries=0, timeout=30), url.rstrip("/").removesuffix("/v1")
    request = {
        "model": served_name,
        "messages": [{"role": role, "content": content} for role, content in turns],
        "add_generation_prompt": True,
        "chat_template_kwargs": dict(template_kwargs),
    }
    try:
        tokens = cast(Any, client.post(f"{root}/tokenize", cast_to=object, body=request))["tokens"]
        answer = client.post(f"{root}/detokenize", cast_to=object, body={"model": served_name, "tokens": tokens})
        text = cast(Any, answer)["prompt"]
    except (openai.OpenAIError, ValueError, KeyError, TypeError):  # no such address, or another form of answer
        return None
    return text if isinstance(text, str) else None

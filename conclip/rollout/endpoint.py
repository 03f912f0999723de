"""A `RolloutEngine` for a model behind a server that speaks the OpenAI protocol. It serves evaluation only: it has no
weights, log-probs or token ids. Lengths are the token counts that the server reports."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import openai

from conclip.errors import UserError
from conclip.models import server
from conclip.models.server import BadReply, connect, refused_redirect
from conclip.redact import hide_known, one_line
from conclip.rollout.engine import EngineDied
from conclip.rollout.reply import read_choice
from conclip.types import Completion, Request, SamplingSpec

if TYPE_CHECKING:
    import torch

POLL_S = 0.2

MAX_ABORTS = 3
"""Consecutive times that a server may drop one request; then it counts as refused."""
MAX_TOKENS = 2**31
"""An upper bound on the tokens of a reply."""

REFUSALS = (400, 404, 413, 422)
"""HTTP status codes of requests that would be refused again."""

WHOLE_DISTRIBUTION = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""vLLM's names for sampling from all tokens as the model has them, as engines on this machine do."""


class Dropped(Exception):
    """A server dropped a request repeatedly."""


class EndpointEngine:
    """Concurrent chat requests to a server, which applies its own chat template."""

    def __init__(
        self, url: str, served_name: str, *, max_concurrent: int, keep_special_tokens: bool = False, is_vllm: bool = False
    ) -> None:
        """Connect. `keep_special_tokens` requests text that includes special tokens, for thinking tags that are such tokens;
        some servers refuse it. `is_vllm`: requests to vLLM's server state all that shapes sampling: what they leave out it
        takes from the model's folder (generation_config.json)."""
        self._keep_special_tokens, self._states_all = keep_special_tokens, is_vllm
        self._url, self._served_name = url, served_name
        self._client = connect(url)
        self._threads = ThreadPoolExecutor(max_concurrent)
        self._in_flight: dict[Future[Completion], str] = {}
        self._began: dict[str, float] = {}
        """The start times of requests that have no reply yet."""
        self._refused: dict[str, str] = {}
        """The server's message for each refused request."""
        self._failure: BaseException | None = None
        self._num_tokens = 0

    @property
    def policy_version(self) -> int:
        return 0

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        for request in requests:
            self._in_flight[self._threads.submit(self._safe_request, request, spec)] = request.request_id

    def _safe_request(self, request: Request, spec: SamplingSpec) -> Completion:
        """Return the completion of `_request`. A reply that is no chat completion, whatever it contains, raises
        EngineDied."""
        self._began[request.request_id] = time.monotonic()
        try:
            return self._request(request, spec)
        except BadReply as error:
            raise EngineDied(f"'{self._url}' {error}") from error
        except (AttributeError, TypeError, KeyError, IndexError, ValueError, RecursionError) as error:
            raise EngineDied(f"'{self._url}' sends a reply that is no chat completion ({type(error).__name__})") from error
        finally:
            self._began.pop(request.request_id, None)

    def _request(self, request: Request, spec: SamplingSpec) -> Completion:
        extra: dict[str, Any] = dict(WHOLE_DISTRIBUTION) if self._states_all else {}
        if spec.top_k != -1:
            extra["top_k"] = spec.top_k
        if request.template_kwargs:
            extra["chat_template_kwargs"] = dict(request.template_kwargs)
        if spec.thinking_budget is not None:
            extra["thinking_token_budget"] = spec.thinking_budget
        if self._keep_special_tokens:
            extra["skip_special_tokens"] = False
        for _ in range(MAX_ABORTS):
            reply = self._client.chat.completions.create(
                model=self._served_name,
                messages=cast(Any, [{"role": role, "content": content} for role, content in request.messages]),
                temperature=spec.temperature,
                top_p=spec.top_p,
                max_tokens=spec.max_tokens,
                seed=request.seed,
                extra_body=extra or None,
            )
            if not getattr(reply, "choices", None) or reply.usage is None:
                raise EngineDied(f"'{self._url}' sends a reply without a choice, or without usage, which tells its length")
            choice = read_choice(reply.choices[0])
            if choice.finish_reason != "abort":  # a dropped request gave no response
                num_tokens = _count(reply.usage.completion_tokens)
                if not num_tokens and (choice.text or choice.reasoning):
                    raise BadReply("counts no tokens in a reply that has some: usage.completion_tokens is 0")
                return Completion(
                    request_id=request.request_id,
                    token_ids=(),
                    logprobs=(),
                    finish_reason=choice.finish_reason,
                    policy_version=0,
                    text=_text(choice.text),
                    reasoning=None if choice.reasoning is None else _text(choice.reasoning),
                    reported_tokens=num_tokens,
                    reported_prompt_tokens=_count(reply.usage.prompt_tokens),
                )
        raise Dropped(f"dropped {MAX_ABORTS} times in a row (finish_reason abort)")

    def poll(self) -> list[Completion]:
        if self._failure is not None:
            self._raise_failures()
        done, _ = wait(self._in_flight, timeout=POLL_S, return_when=FIRST_COMPLETED)
        finished: list[Completion] = []
        for future in done:
            name, error = self._in_flight.pop(future), future.exception()
            if error is None:
                finished.append(future.result())
            elif isinstance(error, openai.APIStatusError) and error.status_code in REFUSALS:
                self._refused[name] = one_line(error.message)
            elif isinstance(error, Dropped):
                self._refused[name] = str(error)
            else:
                self._failure = error
        if not finished:  # completions are delivered before failures
            self._check_time()
            self._raise_failures()
        self._num_tokens += sum(completion.num_tokens for completion in finished)
        return finished

    def _check_time(self) -> None:
        """Record a failure when a request takes too long: a reply may arrive so slowly that no timeout between two bytes
        triggers."""
        if any(time.monotonic() - began > server.REPLY_TIMEOUT_S for began in list(self._began.values())):
            self._failure = EngineDied(f"'{self._url}' has not ended a reply after {server.REPLY_TIMEOUT_S:g} s")

    def _raise_failures(self) -> None:
        """Raise the server's failure at once, and refused requests once all others have ended."""
        if self._failure is not None and (redirect := refused_redirect(self._failure)) is not None:
            raise EngineDied(f"'{self._url}' {redirect}") from self._failure
        if isinstance(self._failure, (openai.AuthenticationError, openai.PermissionDeniedError)):
            said = one_line(str(self._failure))
            raise UserError(f"'{self._url}' asks for another key: set {server.KEY_VARIABLE} ({said})") from self._failure
        if isinstance(self._failure, openai.APIStatusError):
            raise EngineDied(f"'{self._url}' fails: {one_line(str(self._failure))}") from self._failure
        if isinstance(self._failure, openai.OpenAIError):
            raise EngineDied(f"'{self._url}' failed after several tries: {one_line(str(self._failure))}") from self._failure
        if self._failure is not None:
            raise self._failure
        if self._refused and not self._in_flight:
            name, message = next(iter(self._refused.items()))
            raise UserError(
                f"'{self._url}' refuses {len(self._refused)} requests ('{name}', problem/sample, is one: {message}); leave "
                "such problems out of data.test, or change what is asked (eval.max_tokens, model.prompt)"
            )

    def progress(self) -> int:
        return self._num_tokens

    def abort(self) -> None:
        for future in self._in_flight:
            future.cancel()
        self._in_flight.clear()
        self._refused.clear()
        self._failure = None

    def takes_adapters(self) -> bool:
        return False

    def update_weights(
        self, source: "Path | Iterable[tuple[str, torch.Tensor]]", version: int, adapter: "Path | None" = None
    ) -> None:
        raise RuntimeError("the weights behind a server are not ours to change")

    def reset_cache(self) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None:
        self.abort()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _count(value: Any) -> int:
    """Return a number of tokens. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < MAX_TOKENS:
        raise ValueError(f"{value!r} is no number of tokens")
    return value


def _text(content: str) -> str:
    """Return a reply's text without the API key, which a server may send back, and without lone surrogates."""
    return hide_known(content).encode("utf-8", errors="replace").decode("utf-8")

"""A model behind a server that speaks the OpenAI protocol, as a `RolloutEngine` that can only be evaluated: no weights, no
log-probs, no token ids. Lengths are the tokens the server reports."""

from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import openai

from conclip.config import UserError
from conclip.models.server import connect
from conclip.rollout.engine import EngineDied
from conclip.rollout.reply import read_choice
from conclip.types import Completion, Request, SamplingSpec

if TYPE_CHECKING:
    import torch

POLL_S = 0.2

MAX_ABORTS = 3
"""Times in a row that a server may drop one request; then it counts as refused."""

REFUSALS = (400, 404, 413, 422)
"""HTTP status of a request that would be refused again."""


class Dropped(Exception):
    """A server gave up a request, again and again."""


class EndpointEngine:
    """Chat requests to a server, many at a time; the server applies its own chat template."""

    def __init__(self, url: str, served_name: str, *, max_concurrent: int, keep_special_tokens: bool = False) -> None:
        """`keep_special_tokens` asks for text with the special tokens in it, which some servers can give and others refuse:
        for tags that are such tokens."""
        self._keep_special_tokens = keep_special_tokens
        self._url, self._served_name = url, served_name
        self._client = connect(url)
        self._threads = ThreadPoolExecutor(max_concurrent)
        self._in_flight: dict[Future[Completion], str] = {}
        self._refused: dict[str, str] = {}
        """What the server says, by request."""
        self._failure: BaseException | None = None
        self._num_tokens = 0

    @property
    def policy_version(self) -> int:
        return 0

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        for request in requests:
            self._in_flight[self._threads.submit(self._ask, request, spec)] = request.request_id

    def _ask(self, request: Request, spec: SamplingSpec) -> Completion:
        extra: dict[str, Any] = {"top_k": spec.top_k} if spec.top_k != -1 else {}
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
            said = read_choice(reply.choices[0])
            if said.finish_reason != "abort":  # what the server dropped is no response
                return Completion(
                    request_id=request.request_id,
                    token_ids=(),
                    logprobs=(),
                    finish_reason=said.finish_reason,
                    policy_version=0,
                    text=said.text,
                    reasoning=said.reasoning,
                    reported_tokens=reply.usage.completion_tokens,
                    reported_prompt_tokens=reply.usage.prompt_tokens,
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
                self._refused[name] = error.message
            elif isinstance(error, Dropped):
                self._refused[name] = str(error)
            else:
                self._failure = error
        if not finished:  # what came is delivered first
            self._raise_failures()
        self._num_tokens += sum(completion.num_tokens for completion in finished)
        return finished

    def _raise_failures(self) -> None:
        """A server that fails ends the run at once; one that refuses some requests, after the others."""
        if isinstance(self._failure, openai.OpenAIError):
            raise EngineDied(f"'{self._url}' failed after several tries: {self._failure}") from self._failure
        if self._failure is not None:
            raise self._failure
        if self._refused and not self._in_flight:
            name, said = next(iter(self._refused.items()))
            raise UserError(
                f"'{self._url}' refuses {len(self._refused)} requests ('{name}', problem/sample, is one: {said}); leave "
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

    def update_weights(self, source: "Path | Iterable[tuple[str, torch.Tensor]]", version: int) -> None:
        raise RuntimeError("the weights behind a server are not ours to change")

    def reset_cache(self) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None:
        self.abort()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

"""An engine that samples nothing: responses are written by a script, and scored by the weights it holds.

For everything that is not about sampling. A response is a trace as the lab model learns them, so that accuracy and length
are as in the lab. Prompt and seed decide it, not the weights, which differ from machine to machine in the last bit. Its
log-probs are those of the weights, so that losses, drift and lost updates are as with a real engine. It keeps to the
protocol more strictly than vLLM does: nothing is sampled while it sleeps.
"""

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from benchmarks.lab_model.traces import trace
from conclip.cli import main as cli
from conclip.config.groups import RolloutConfig
from conclip.errors import UserError
from conclip.lab.arithmetic import Chain
from conclip.models.folder import weight_files
from conclip.rollout.engine import RolloutEngine
from conclip.types import Completion, FinishReason, Request, SamplingSpec

END = "<|end|>"
"""The lab's end token, by name: its module imports transformers, for which a child process would wait seconds."""

AT_ONCE = 16
"""Responses that one `poll` hands over."""

_START = re.compile(r"\ba=(\d);|\ba=x")
_OPERATION = re.compile(r"[a-u]=[a-ux]([-+*])(\d)")
_TARGET = re.compile(r"\?(\d)")


class ScriptedEngine:
    """`RolloutEngine` with the constructor of `VllmEngine`."""

    def __init__(self, model_path: Path, config: RolloutConfig, **settings: Any) -> None:
        self._model_path, self._max_model_len = model_path, settings["max_model_len"]
        self._tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
        self._end = self._tokenizer.token_to_id(END)
        self._policy: Any = None
        self._in_flight: dict[str, tuple[Request, SamplingSpec]] = {}
        self._num_tokens = 0
        self._asleep = self._closed = False
        self._take(model_path, 0)

    @property
    def policy_version(self) -> int:
        return self._version

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        self._check_awake()
        for request in requests:
            if request.request_id in self._in_flight:
                raise ValueError(f"request id '{request.request_id}' is already in flight")
            if len(request.prompt_token_ids) + spec.max_tokens > self._max_model_len:
                raise ValueError(f"request '{request.request_id}' is too long for the engine")
            self._in_flight[request.request_id] = (request, spec)

    def poll(self) -> list[Completion]:
        self._check_awake()
        names = sorted(self._in_flight, key=lambda name: hashlib.sha256(name.encode()).digest())[:AT_ONCE]
        work = [self._in_flight.pop(name) for name in names]
        written = [self._respond(request, spec) for request, spec in work]
        logprobs = self._score(work, [token_ids for token_ids, _ in written])
        self._num_tokens += sum(len(token_ids) for token_ids, _ in written)
        return [
            Completion(
                request_id=request.request_id,
                token_ids=token_ids,
                logprobs=scores,
                finish_reason=finish_reason,
                policy_version=self._version,
            )
            for (request, _), (token_ids, finish_reason), scores in zip(work, written, logprobs, strict=True)
        ]

    def progress(self) -> int:
        return self._num_tokens

    def abort(self) -> None:
        self._in_flight.clear()

    def takes_adapters(self) -> bool:
        return False

    def update_weights(
        self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int, adapter: Path | None = None
    ) -> None:
        assert adapter is None
        if self._in_flight:
            raise RuntimeError("weights may not change while responses are being sampled")
        self._take(source, version)
        self._asleep = False

    def reset_cache(self) -> None:
        if self._in_flight:
            raise RuntimeError("the engine could not reset its prefix cache")

    def sleep(self) -> None:
        self._asleep = True

    def close(self) -> None:
        self._closed = True

    def _check_awake(self) -> None:
        if self._asleep or self._closed:
            raise RuntimeError("an engine that sleeps or is closed samples nothing")

    def _take(self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        files = weight_files(source) if isinstance(source, Path) else []
        tensors = [item for file in files for item in load_file(file).items()] if isinstance(source, Path) else source
        self._weights = {name: tensor.detach().clone() for name, tensor in tensors}
        self._version, self._loaded = version, False

    def _respond(self, request: Request, spec: SamplingSpec) -> tuple[tuple[int, ...], FinishReason]:
        question = self._tokenizer.decode(list(request.prompt_token_ids), skip_special_tokens=False)
        seed = request.seed if spec.temperature > 0 else "greedy"
        text = written(question, random.Random(f"{question}/{seed}"))
        token_ids = (*self._tokenizer.encode(text, add_special_tokens=False).ids, self._end)
        if len(token_ids) > spec.max_tokens:
            return token_ids[: spec.max_tokens], "length"
        return token_ids, "stop"

    @torch.no_grad()
    def _score(
        self, work: Sequence[tuple[Request, SamplingSpec]], responses: Sequence[tuple[int, ...]]
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of the responses' tokens, temperature applied; empty where nobody asked for them."""
        wanted = [spec.logprobs and spec.temperature > 0 for _, spec in work]
        if not any(wanted):
            return [()] * len(work)
        rows = [(*request.prompt_token_ids, *response) for (request, _), response in zip(work, responses, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *(0,) * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = self._scorer()(input_ids=ids, attention_mask=mask).logits.float()
        found: list[tuple[float, ...]] = []
        for number, ((request, spec), response) in enumerate(zip(work, responses, strict=True)):
            begin = len(request.prompt_token_ids)
            places = slice(begin - 1, begin - 1 + len(response))
            scores = torch.log_softmax(logits[number, places] / max(spec.temperature, 1e-6), -1)
            chosen = scores.gather(-1, torch.tensor(response)[:, None])[:, 0]
            found.append(tuple(chosen.tolist()) if wanted[number] else ())
        return found

    def _scorer(self) -> Any:
        """The model with the present weights."""
        from conclip.models.load import load_policy  # seconds, which a child process of many need not wait for

        if self._policy is None:
            self._policy = load_policy(self._model_path, torch.device("cpu"))
        if not self._loaded:
            missing, unexpected = self._policy.load_state_dict(self._weights, strict=False)
            assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
            self._policy.tie_weights()
            self._loaded = True
        return self._policy


def written(question: str, generator: random.Random) -> str:
    """A trace for the arithmetic problem in a prompt; for any other question a guess."""
    start, target, operations = _START.search(question), _TARGET.search(question), _OPERATION.findall(question)
    if start is None or not operations:
        return f"\\boxed{{{generator.randrange(10)}}}"
    steps = tuple((operator, int(operand)) for operator, operand in operations)
    if target is None:
        return trace(Chain(family="chain", start=int(start[1]), operations=steps), generator)
    chains = [Chain(family="search", start=digit, operations=steps) for digit in range(10)]
    (chain,) = [chain for chain in chains if chain.values[-1] == int(target[1])]
    return trace(chain, generator)


class WithAdapters(ScriptedEngine):
    """Takes an adapter whose only tensor, `shift`, is added to the last norm: enough to see that it is there."""

    def takes_adapters(self) -> bool:
        return True

    def update_weights(
        self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int, adapter: Path | None = None
    ) -> None:
        super().update_weights(source, version)
        if adapter is not None:
            shift = load_file(adapter / "adapter_model.safetensors")["shift"]
            self._weights["model.norm.weight"] = self._weights["model.norm.weight"] + shift


class Meeting(ScriptedEngine):
    """Goes to sleep only together with the others: as many as the folder says that the environment names."""

    def sleep(self) -> None:
        folder = Path(os.environ["MEETING"])
        (folder / str(os.getpid())).touch()
        wanted, deadline = int((folder / "wanted").read_text()), time.monotonic() + 60
        while len(list(folder.iterdir())) <= wanted:
            assert time.monotonic() < deadline, "the others did not come"
            time.sleep(0.01)
        super().sleep()


def with_worker(model: Path, config: RolloutConfig, **settings: Any) -> RolloutEngine:
    """An engine with a process of its own, as one over several devices has."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return ScriptedEngine(model, config, **settings)


def refusing(model: Path, *_: Any, **__: Any) -> RolloutEngine:
    """Starts as an engine does that refuses the model."""
    raise UserError(f"vLLM refuses model '{model}'")


def failing(*_: Any, **__: Any) -> RolloutEngine:
    """Starts as an engine does on a machine that is too small."""
    raise MemoryError


def broken(*_: Any, **__: Any) -> RolloutEngine:
    """Starts as an engine does that has a bug."""
    raise KeyError("a bug")


def main() -> None:
    """`python -m tests.scripted SUBCOMMAND ...`: conclip's command with this engine, in a process of its own.

    CONCLIP_DIES_AT=N: the process is killed as the engine is polled for the N-th time.
    """
    from conclip.rollout import vllm_engine

    vllm_engine.VllmEngine = _Mortal if _Mortal.last_poll else ScriptedEngine  # type: ignore[misc,assignment]
    cli.main()


class _Mortal(ScriptedEngine):
    last_poll = int(os.environ.get("CONCLIP_DIES_AT", "0"))
    num_polls = 0

    def poll(self) -> list[Completion]:
        _Mortal.num_polls += 1
        if _Mortal.num_polls == self.last_poll:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().poll()


if __name__ == "__main__":
    main()

"""An engine in a process of its own, behind the same interface: for several engines, or to keep a crash out of the run."""

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conclip.config import RolloutConfig
from conclip.rollout.engine import EngineDied
from conclip.types import Completion, Request, SamplingSpec

POLL_S = 0.05
"""How long one `poll` waits for news from the child."""


def _serve(pipe: Connection, model_path: Path, config: RolloutConfig, settings: dict[str, Any]) -> None:
    """The child's life: obey commands, generate whenever something is in flight, send completions as they finish.

    Every command is answered with ("done", value) or ("error", text); completions travel as ("finished", list, tokens).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  open for the process's whole life
    from conclip.rollout.vllm_engine import VllmEngine  # noqa: PLC0415  vLLM belongs in the child only

    try:
        engine = VllmEngine(model_path, config, **settings)
        pipe.send(("done", None))
        num_in_flight = 0
        while True:
            while pipe.poll(0 if num_in_flight else None):
                name, arguments = pipe.recv()
                if name == "close":
                    engine.close()
                    pipe.send(("done", None))
                    return
                value = getattr(engine, name)(*arguments)
                num_in_flight = (
                    num_in_flight + len(arguments[0]) if name == "submit" else 0 if name == "abort" else num_in_flight
                )
                pipe.send(("done", value))
            finished = engine.poll()
            num_in_flight -= len(finished)
            pipe.send(("finished", finished, engine.progress()))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


class ChildEngine:
    """`RolloutEngine` whose work happens in a child process. Raises EngineDied when that process is gone."""

    def __init__(self, model_path: Path, config: RolloutConfig, **settings: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, model_path, config, settings), daemon=True)
        self._process.start()
        theirs.close()
        atexit.register(self.close)
        self._finished: list[Completion] = []
        self._num_in_flight = 0
        self._num_tokens = 0
        self._version = 0
        self._wait_done()

    @property
    def policy_version(self) -> int:
        return self._version

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        self._call("submit", list(requests), spec)
        self._num_in_flight += len(requests)

    def poll(self) -> list[Completion]:
        if self._num_in_flight and not self._finished and self._pipe.poll(POLL_S):
            self._receive()
        finished, self._finished = self._finished, []
        self._num_in_flight -= len(finished)
        return finished

    def progress(self) -> int:
        return self._num_tokens

    def abort(self) -> None:
        self._call("abort")
        self._finished.clear()
        self._num_in_flight = 0

    def update_weights(self, source: Path | Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        if isinstance(source, Path):
            self._call("update_weights", source, version)
        else:
            # A folder in shared memory where there is one: weights never travel through the pipe.
            shared = Path("/dev/shm")
            with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
                tensors = {name: tensor.detach().cpu().clone() for name, tensor in source}
                save_file(tensors, Path(folder) / "model.safetensors")
                self._call("update_weights", Path(folder), version)
        self._version = version

    def reset_cache(self) -> None:
        self._call("reset_cache")

    def sleep(self) -> None:
        self._call("sleep")

    def wake(self) -> None:
        self._call("wake")

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._process.is_alive():
            try:
                self._pipe.send(("close", ()))
                self._process.join(timeout=5)
            except OSError:
                pass
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            self._pipe.send((name, arguments))
        except OSError as error:
            raise EngineDied("the engine process is gone") from error
        self._wait_done()

    def _wait_done(self) -> None:
        while not self._receive():
            pass

    def _receive(self) -> bool:
        """Take one message; True when it answers a command."""
        try:
            kind, *content = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EngineDied(f"the engine process is gone (exit code {self._process.exitcode})") from error
        if kind == "error":
            raise EngineDied(f"the engine process failed: {content[0]}")
        if kind == "finished":
            self._finished += content[0]
            self._num_tokens = content[1]
            return False
        return True

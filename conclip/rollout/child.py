"""An engine in a child process, of which a pool has one or several."""

import atexit
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from conclip.cluster.launch import Launcher, Local, check_there, detach, ending, raise_if_ours, told, was_killed
from conclip.cluster.memory_folder import remove_orphans
from conclip.config.groups import RolloutConfig
from conclip.rollout.engine import EngineDied, RolloutEngine, WeightsLost
from conclip.types import Completion, Request, SamplingSpec

POLL_S = 0.05
"""The longest that one `poll` waits for a message from the child."""

SILENT_S = 5.0
"""How long a child may say nothing before it is looked at."""

SEND_EVERY_S = 0.05
"""How long a child keeps completions before it sends them, unless they are the last ones. A message for every step of the
engine would wake the parent as often, on a processor that the engines fill."""

MAX_RESTARTS = 3
"""Restarts per unit of work."""


def vllm_engine(model_path: Path, config: RolloutConfig, **settings: Any) -> RolloutEngine:
    """Return a vLLM engine, the child's default."""
    from conclip.rollout.vllm_engine import VllmEngine  # noqa: PLC0415  vLLM belongs in the child only

    return VllmEngine(model_path, config, **settings)


def _serve(
    pipe: Connection,
    start: Callable[..., RolloutEngine],
    model_path: Path,
    config: RolloutConfig,
    settings: dict[str, Any],
) -> None:
    """Run the child: execute commands, generate while requests are in flight, and send completions as they finish.

    Each command is answered by ("done", value). An error ends the child with what `told` returns. Completions are sent as
    ("finished", list, tokens), those of several steps together.
    """
    detach()
    try:
        check_there(model_path)
        engine = start(model_path, config, **settings)
        pipe.send(("done", engine.takes_adapters()))
        num_in_flight, finished, sent = 0, list[Completion](), time.monotonic()
        while True:
            while pipe.poll(0 if num_in_flight else None):
                name, arguments = pipe.recv()
                if name == "close":
                    if config.tensor_parallel_size > 1:
                        engine.close()  # ends its workers; all else of it ends with this process
                    return
                if name == "submit":
                    for requests, spec in arguments[0]:
                        engine.submit(requests, spec)
                        num_in_flight += len(requests)
                    pipe.send(("done", None))
                    continue
                if name == "abort":
                    num_in_flight, finished = 0, []
                pipe.send(("done", getattr(engine, name)(*arguments)))
            new = engine.poll()
            finished += new
            num_in_flight -= len(new)
            if not num_in_flight or time.monotonic() - sent > SEND_EVERY_S:
                pipe.send(("finished", finished, engine.progress()))
                finished, sent = [], time.monotonic()
    except (EOFError, BrokenPipeError):
        return  # the parent has died
    except Exception as error:
        pipe.send(told(error))


class ChildEngine:
    """A `RolloutEngine` in a child process, but that it takes weights as folders only.

    A child that dies is restarted with the weights it had, unless it was sent those by `transfer`, and its unit of work
    (everything submitted since the last cache reset) is sampled again: from a cold cache the same requests give the same
    tokens, and completions that were already delivered are not delivered twice. Raises EngineDied when restarts do not
    help.
    """

    def __init__(
        self,
        model_path: Path,
        config: RolloutConfig,
        *,
        warn: Callable[[str], None] = lambda text: None,
        start: Callable[..., RolloutEngine] = vllm_engine,
        wait: bool = True,
        launcher: Launcher | None = None,
        **settings: Any,
    ) -> None:
        """Start the child, by `launcher`: on this host unless it says otherwise. `start` makes the engine there: a
        module-level function, called with model, config and `settings`. With `wait=False`, `ready` must be called before
        anything else."""
        self._launcher = launcher or Local()
        self._arguments, self._warn = (start, model_path.absolute(), config, settings), warn
        self._weights: Path | None = None
        """The folder of the child's current weights; None for those it starts with, or was sent by `transfer`."""
        self._was_sent = False
        """Whether nothing here has the child's weights."""
        self._adapter: Path | None = None
        """The folder of the adapter beside them."""
        self._version = 0
        self._asleep = False
        self._heard = time.monotonic()
        self._unit: list[tuple[list[Request], SamplingSpec]] = []
        self._num_sent = 0
        """How many of the unit's submissions the child has."""
        self._undelivered: set[str] = set()
        """Requests of the unit whose completions have not been delivered."""
        self._finished: list[Completion] = []
        self._tokens_before_unit = self._tokens_before_child = self._tokens_of_child = 0
        self._workers: list[psutil.Process] = []
        """Processes that the child's engine has started."""
        self._num_restarts = 0
        """Restarts in this unit."""
        self.num_starts = 0
        """How often a child was started."""
        self._closed = False
        remove_orphans()
        self._begin()
        atexit.register(self.close)
        try:
            if wait:
                self.ready()
        except BaseException:
            self.close()
            raise

    def ready(self) -> None:
        """Wait until the engine has started, and start it again if it is killed or its host is lost meanwhile. Raises what
        else ended it; `close` is the caller's then."""
        try:
            self._started()
        except EngineDied as error:
            if self._process.is_alive() or not was_killed(self._process.exitcode):
                raise
            self._restart(error)

    def _started(self) -> None:
        self._takes_adapters = bool(self._wait_done())
        if self._has_workers and isinstance(self._launcher, Local):  # another one ends them itself
            self._workers = psutil.Process(self._process.pid).children(recursive=True)

    @property
    def policy_version(self) -> int:
        return self._version

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        self._unit.append((list(requests), spec))
        self._undelivered |= {request.request_id for request in requests}

    def send_submitted(self) -> None:
        """Give the child what was submitted, as one message: else it would depend on the clock how far it is with the first
        submission when the second one arrives, and so which responses share a batch."""
        if new := self._unit[self._num_sent :]:
            self._num_sent = len(self._unit)
            self._command("submit", new)

    @property
    def awaited(self) -> Connection | None:
        """What becomes ready when the child says something; None where nothing is being sampled."""
        return self._pipe if self._undelivered else None

    def poll(self, wait_s: float = POLL_S) -> list[Completion]:
        self.send_submitted()
        if self._undelivered and not self._finished:
            try:
                if self._pipe.poll(wait_s) or self._is_silent():
                    self._receive()
            except EngineDied as error:
                self._restart(error)
        finished, self._finished = [c for c in self._finished if c.request_id in self._undelivered], []
        self._undelivered -= {completion.request_id for completion in finished}
        if self._unit and not self._undelivered:  # the unit is complete; the next request begins another one
            self._forget_unit()
        return finished

    def _is_silent(self) -> bool:
        if time.monotonic() - self._heard <= SILENT_S:
            return False
        self._heard = time.monotonic()
        return not self._process.is_alive()

    def progress(self) -> int:
        return self._tokens_before_child + self._tokens_of_child

    def abort(self) -> None:
        self._forget_unit()
        try:
            self._send("abort")
        except EngineDied:
            return  # nothing is left to abort; the next command starts a new child
        self._finished.clear()

    def takes_adapters(self) -> bool:
        return self._takes_adapters

    def forget_weights(self) -> None:
        """Others follow: a child that is started again meanwhile needs none."""
        self._weights, self._was_sent = None, False

    def discard(self) -> None:
        """End the child, whose weights are of no use. The next command starts another one."""
        self.forget_weights()
        self._stop()

    def unread(self) -> tuple[str, ...]:
        """Return the names of weights that the engine's model has no place for."""
        try:
            return self._send("unread")
        except EngineDied as error:
            self._restart(error)
            return self.unread()

    def transfer(self, name: str, payload: Any) -> None:
        """Have the engine take part in vLLM's weight transfer (`VllmEngine.transfer`). Raises EngineDied if it dies."""
        self._asleep = False
        self._send("transfer", name, payload)

    def update_weights(self, source: Path | None, version: int, adapter: Path | None = None) -> None:
        """`source`: a folder that stays until the next update, for a child that is started again; None for the weights that
        `transfer` has brought. When the child has died with those, a command raises WeightsLost, and the next one starts
        another child. `adapter`: a folder inside of that folder."""
        self._version, self._asleep, self._was_sent = version, False, source is None
        self._weights, self._adapter = None if source is None else source.absolute(), adapter
        self._command("update_weights")

    def reset_cache(self) -> None:
        self._forget_unit()
        self._command("reset_cache")

    def sleep(self) -> None:
        self._asleep, self._was_sent = True, False  # what it was sent is dropped
        self._command("sleep")

    def close(self) -> None:
        self._closed = True
        atexit.unregister(self.close)
        self._stop()

    def _forget_unit(self) -> None:
        self._unit.clear()
        self._num_sent = 0
        self._undelivered.clear()
        self._finished.clear()
        self._tokens_before_unit, self._num_restarts = self.progress(), 0

    def _command(self, name: str, *arguments: Any) -> None:
        """Send the child a command whose effect is already recorded here, so that `_restart` gives it to a new child."""
        try:
            self._send(name, *arguments)
        except EngineDied as error:
            self._restart(error)

    def _restart(self, error: EngineDied) -> None:
        """Start a new child and bring it to the state that the old one should have. Raises WeightsLost when nothing here has
        its weights."""
        if self._closed:
            raise error
        if self._was_sent:
            self.discard()
            raise WeightsLost(f"{error}, and with it the weights that it was sent") from error
        self._num_restarts += 1
        if self._num_restarts > MAX_RESTARTS:
            raise EngineDied(f"{error}; {MAX_RESTARTS} restarts did not help") from error
        self._warn(f"{error}; it is started again, and what it was sampling is sampled anew")
        self._stop()
        self._finished.clear()
        self._tokens_before_child, self._tokens_of_child = self._tokens_before_unit, 0
        try:
            self._start()
            if self._weights is not None:
                self._send("update_weights")
            if self._asleep:
                self._send("sleep")
            if submitted := self._unit[: self._num_sent]:
                self._send("submit", submitted)
        except EngineDied as again:
            self._restart(again)

    @property
    def _has_workers(self) -> bool:
        return self._arguments[2].tensor_parallel_size > 1

    def _start(self) -> None:
        """Start a child, and wait for its engine."""
        self._begin()
        self._started()

    def _begin(self) -> None:
        self.num_starts += 1
        self._process, self._pipe = self._launcher.start(
            _serve,
            self._arguments,
            num_gpus=self._arguments[2].tensor_parallel_size,
            daemon=not self._has_workers,  # a daemon may not start the engine's workers
        )

    def _stop(self) -> None:
        if self._process.is_alive():
            try:
                self._pipe.send(("close", ()))
                self._process.join(timeout=30 if self._workers else 5)
            except OSError:
                pass
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        for worker in self._workers:  # a child that was killed, or had no time to, has not ended them
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        self._workers = []
        self._pipe.close()
        self._launcher.release(self._process)

    def _weights_for_child(self) -> tuple[Path | None, int, Path | None]:
        """Return the arguments of `update_weights` with folders that the child can read."""
        if self._weights is None:
            return None, self._version, None
        weights = self._launcher.carried(self._process, self._weights)
        adapter = None if self._adapter is None else weights / self._adapter.relative_to(self._weights)
        return weights, self._version, adapter

    def _send(self, name: str, *arguments: Any) -> Any:
        """Send a command. Returns the value that answers it."""
        try:
            given = self._weights_for_child() if name == "update_weights" else arguments
        except ConnectionError as error:
            raise EngineDied(f"the engine process is gone ({error})") from error
        try:
            self._pipe.send((name, given))
        except OSError as error:
            with suppress(OSError):  # of a pipe that is closed
                while self._pipe.poll(0):
                    self._receive()  # raises for what it said last, or for its end
            raise EngineDied("the engine process is gone") from error
        return self._wait_done()

    def _wait_done(self) -> Any:
        """Wait for the answer to a command. Returns its value."""
        while (answer := self._receive()) is None:
            pass
        return answer[0]

    def _receive(self) -> tuple[Any, ...] | None:
        """Receive one message. Returns the value that answers a command; None for completions."""
        try:
            while not self._pipe.poll(SILENT_S):  # a host that is lost closes nothing
                if not self._process.is_alive() and not self._pipe.poll(0):
                    raise EOFError
            status, *content = self._pipe.recv()
            self._heard = time.monotonic()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            raise EngineDied(f"the engine process is gone ({ending(self._process)})") from error
        if status == "failed":
            raise EngineDied(f"the engine process failed: {content[0]}")
        raise_if_ours(status, content[0], "the engine process")
        if status == "finished":
            self._finished += content[0]
            self._tokens_of_child = content[1]
            return None
        return tuple(content)

"""Starts processes on the hosts of a Ray cluster. Ray chooses the host, reserves processors and GPUs there, and notices when
one is lost; what the processes say to each other goes past it."""

import json
import logging
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any, Literal, cast

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from conclip.cluster.launch import Process, was_killed
from conclip.cluster.memory_folder import MemoryFolder, remove_orphans
from conclip.config.machine import gpu_names, num_gpus, num_gpus_of_host
from conclip.errors import MachineFailure, UserError
from conclip.processes import PYTHON
from conclip.redact import one_line
from conclip.runs.interrupts import handle_signals

PLACE_S = 120.0
"""The longest wait for a host with room for a process [s]."""
START_S = 120.0
"""The longest that a process takes to connect once its host starts it [s]."""
ASK_S = 60.0
"""The longest that a host takes to answer [s]; Ray notices within half a minute that one is lost."""
MAX_TRIES = 3
"""How often a process is tried that is lost while it starts."""
THREADS, VISIBLE = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
KEEP_ALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 6}
"""A host that has sent nothing for 15 s is asked whether it is there, every 5 s, and given up after 6 times."""
PIECE = 1 << 28
"""Bytes of a file that are sent at a time."""

# Ray's own annotations are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedFunctionDecorator=false
# pyright: reportAttributeAccessIssue=false, reportUnknownArgumentType=false, reportFunctionMemberAccess=false


@ray.remote(max_restarts=0)
class Agent:
    """What stands on a host for a process of the run there."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: MemoryFolder | None = None

    def host(self) -> str:
        """Return the id of the host."""
        return ray.get_runtime_context().get_node_id()

    def start(self, place: dict[str, Any]) -> int:
        """Start the process, which connects to the run. Returns its number."""
        environment = {name: value for name, value in os.environ.items() if name != THREADS}  # Ray has set its own
        environment |= {} if place[THREADS] is None else {THREADS: place[THREADS]}
        self._process = subprocess.Popen([*PYTHON, "-m", "conclip.cluster.join"], stdin=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(place).encode())
        self._process.stdin.close()
        return self._process.pid

    def exitcode(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> None:
        """Kill the process and all that it has started."""
        assert self._process is not None
        if self._process.poll() is not None:
            return
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.kill()
        self._process.wait()

    def begin_folder(self, num_bytes: int) -> str:
        """Make a folder for so much of the run's files, in place of the one before. Returns its path."""
        self.remove_folder()
        remove_orphans()  # of one that was killed here, by now long enough ago
        self._folder = MemoryFolder(num_bytes)
        return self._folder.name

    def remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def append(self, name: str, piece: bytes) -> None:
        """Append to a file of that folder."""
        assert self._folder is not None
        path = Path(self._folder.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(piece)


class RayProcess:
    """A process on a host of the cluster."""

    def __init__(self, agent: Any, host: str, pid: int) -> None:
        """`host`: the id of its host."""
        self.agent, self.host, self.pid = agent, host, pid

    def __repr__(self) -> str:
        return f"RayProcess({self.agent}, host {self.host}, pid {self.pid})"

    @property
    def exitcode(self) -> int | None:
        """Return its exit code; None while it runs, and where its host is lost."""
        try:
            return ray.get(self.agent.exitcode.remote(), timeout=ASK_S)
        except RayError:
            return None

    def is_alive(self) -> bool:
        try:
            return ray.get(self.agent.exitcode.remote(), timeout=ASK_S) is None
        except RayError:
            return False

    def join(self, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)

    def kill(self) -> None:
        with suppress(RayError):
            ray.get(self.agent.kill.remote(), timeout=ASK_S)


class RayLauncher:
    """Starts processes on the hosts of a Ray cluster."""

    def __init__(
        self, address: str | None, placement: Literal["pack", "spread"], gpus: Sequence[int], *, keeps_gpu: bool = False
    ) -> None:
        """Join the cluster at `address` ("auto": the one that runs here); None: begin one on this host. Room for all
        processes is reserved at once, so that two runs cannot wait for each other. `placement`: pack them on few hosts, or
        spread them. `gpus`: how many each of them needs. `keeps_gpu`: this process has the first GPU of this host, which Ray
        must not give away. Raises UserError where there is no such cluster, or it would do so, and MachineFailure where it
        has no room."""
        room: dict[str, Any] = {}
        shown: str | None = None
        if address is None:
            room["num_cpus"] = max(len(gpus), os.cpu_count() or 1)
            if keeps_gpu:
                others = gpu_names()[1:]
                room["num_gpus"], shown = len(others), ",".join(others)
        try:
            with _showing(shown):
                ray.init(
                    address=address or "local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **room,
                )
        except Exception as error:  # Ray raises anything there
            if address is None:
                raise MachineFailure(f"Ray does not start on this host ({_text(error)})") from error
            raise UserError(
                f"cluster.address: no Ray cluster answers at '{address}' ({_text(error)}); start one with 'ray start'"
            ) from error
        handle_signals()  # Ray has set its own
        self._here = ray.get_runtime_context().get_node_id()
        if keeps_gpu and address is not None:
            given, shown_here = _gpus_of(self._here), num_gpus()
            if given >= num_gpus_of_host() or given == shown_here > 1:  # all there are, or those of the same shell
                ray.shutdown()
                raise UserError(
                    f"cluster=ray: the learner needs a GPU of this host, and Ray may give all {given:g} to engines; start "
                    f"Ray here without one ({VISIBLE}=1,2,... ray start ...), and show the run that one ({VISIBLE}=0)"
                )
        self._has_gpus = bool(ray.cluster_resources().get("GPU"))
        self._room = PlacementGroupSchedulingStrategy(self._reserved(placement, gpus))
        self.host = ray.util.get_node_ip_address()
        self._key, self._closed = secrets.token_bytes(32), False
        self._listener = Listener((self.host, 0), backlog=64)
        self._expected, self._arrived = set[str](), dict[str, Connection]()
        self._news = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _reserved(self, placement: Literal["pack", "spread"], gpus: Sequence[int]) -> PlacementGroup:
        wanted = [self._resources(number) for number in gpus]
        room = placement_group(wanted, strategy="SPREAD" if placement == "spread" else "PACK")
        if not room.wait(PLACE_S):
            remove_placement_group(room)
            wants = f"{len(gpus)} processes (1 processor each, and {sum(gpus) if self._has_gpus else 0} GPUs)"
            free = ray.available_resources()
            raise MachineFailure(
                f"the Ray cluster has had no room for {wants} for {PLACE_S:g} s; free are {free.get('CPU', 0):g} processors "
                f"and {free.get('GPU', 0):g} GPUs. Add hosts, or lower rollout.num_engines or cluster.learner_ranks"
            )
        return room

    def _resources(self, num_gpus: int) -> dict[str, float]:
        return {"CPU": 1.0} | ({"GPU": float(num_gpus)} if self._has_gpus and num_gpus else {})

    def _accept(self) -> None:
        while not self._closed:
            with suppress(OSError):
                connection = self._listener.accept()
                threading.Thread(target=self._welcome, args=(connection,), daemon=True).start()

    def _welcome(self, connection: Connection) -> None:
        """Note a process that knows the key. Whoever says nothing is waited for here, where nobody else waits."""
        try:
            _watch(connection)
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            name = connection.recv()
        except Exception:  # whoever does not know the key
            connection.close()
            return
        with self._news:
            if name not in self._expected:  # it was given up meanwhile
                connection.close()
                return
            self._arrived[name] = connection
            self._news.notify_all()

    def start(
        self, work: Callable[..., None], arguments: tuple[Any, ...], *, num_gpus: int, daemon: bool = True
    ) -> tuple[Process, Connection]:
        for tries_left in reversed(range(MAX_TRIES)):
            try:
                return self._begun(self._resources(num_gpus), (work, arguments))
            except (RayError, OSError) as error:
                if not tries_left:
                    what = f"a process on the Ray cluster was started {MAX_TRIES} times, and lost each time"
                    raise MachineFailure(f"{what} ({_text(error)})") from error
        raise AssertionError("unreachable")

    def _begun(self, wanted: dict[str, float], work: tuple[Any, ...]) -> tuple[RayProcess, Connection]:
        """Have a host start a process, and send it its work. Raises RayError or OSError where that host is lost or the
        process killed, and MachineFailure for what else goes wrong."""
        name, threads = secrets.token_hex(8), os.environ.get(THREADS)
        place = {
            "host": self.host,
            "port": self._listener.address[1],
            "name": name,
            "key": self._key.hex(),
            THREADS: threads,
        }
        self._expected.add(name)
        agent: Any = Agent.options(
            num_cpus=wanted["CPU"], num_gpus=wanted.get("GPU", 0), scheduling_strategy=self._room
        ).remote()
        host = ""
        try:
            host = cast(str, ray.get(agent.host.remote(), timeout=PLACE_S))
            process = RayProcess(agent, host, ray.get(agent.start.remote(place), timeout=ASK_S))
        except BaseException as error:
            self._give_up(name)
            ray.kill(agent)
            if isinstance(error, GetTimeoutError):
                slow = f"no host of the Ray cluster has begun a process within {PLACE_S:g} s"
                why = "one with room is too slow to start Python, or a host is lost and no other has room: then add one"
                late = f"a host of the Ray cluster has not answered for {ASK_S:g} s"
                raise MachineFailure(late if host else f"{slow}: {why}") from error
            if isinstance(error, RayTaskError):
                raise MachineFailure(f"a host of the Ray cluster cannot start a process ({_text(error)})") from error
            raise
        connection = self._connection_of(name, process)
        try:
            connection.send(work)
        except OSError:
            process.kill()
            self.release(process)
            raise
        return process, connection

    def _connection_of(self, name: str, process: RayProcess) -> Connection:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.is_alive():
            with self._news:
                self._news.wait_for(lambda: name in self._arrived, timeout=1.0)
                if name in self._arrived:
                    return self._arrived.pop(name)
        self._give_up(name)
        is_alive = process.is_alive()
        code = None if is_alive else process.exitcode
        process.kill()
        self.release(process)
        if not is_alive and was_killed(code):
            raise ConnectionError("a host is lost" if code is None else "a process was killed as it started")
        how = f"nothing was heard of it for {START_S:g} s" if is_alive else f"exit code {code}"
        raise MachineFailure(
            f"a process on a host of the Ray cluster did not connect to {self.host} ({how}); conclip must be "
            "installed there, and the host must reach this one"
        )

    def _give_up(self, name: str) -> None:
        """Wait no longer for a process, and close its connection if it has come after all."""
        with self._news:
            self._expected.discard(name)
            if (late := self._arrived.pop(name, None)) is not None:
                late.close()

    def carried(self, process: Process, folder: Path) -> Path:
        assert isinstance(process, RayProcess)
        try:
            return self._carried(process, folder)
        except RayTaskError as error:
            raise MachineFailure(f"weights cannot be copied to a host of the Ray cluster ({_text(error)})") from error
        except GetTimeoutError as error:
            raise ConnectionError("its host does not answer") from error
        except RayError as error:
            raise ConnectionError("its host is lost") from error

    def _carried(self, process: RayProcess, folder: Path) -> Path:
        if process.host == self._here:
            return folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        num_bytes = sum(file.stat().st_size for file in files)
        copy = cast(str, ray.get(process.agent.begin_folder.remote(num_bytes), timeout=ASK_S))
        for file in files:
            with file.open("rb") as content:
                while piece := content.read(PIECE):
                    ray.get(process.agent.append.remote(str(file.relative_to(folder)), piece), timeout=PLACE_S)
        return Path(copy)

    def release(self, process: Process) -> None:
        assert isinstance(process, RayProcess)
        with suppress(RayError):
            ray.get(process.agent.remove_folder.remote(), timeout=ASK_S)
        ray.kill(process.agent)

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        remove_placement_group(self._room.placement_group)
        ray.shutdown()


def _watch(connection: Connection) -> None:
    """Let a connection fail whose other end's host is cut off, amid a message, too: a read of the rest would never end."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            end.setsockopt(socket.IPPROTO_TCP, option, value)


@contextmanager
def _showing(gpus: str | None) -> Iterator[None]:
    """Show these GPUs to processes that start meanwhile; None: as it is."""
    before = os.environ.get(VISIBLE)
    if gpus is not None:
        os.environ[VISIBLE] = gpus
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        if before is not None:
            os.environ[VISIBLE] = before


def _gpus_of(host: str) -> int:
    """Return how many GPUs of a host Ray gives away."""
    return int(sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["NodeID"] == host))


def _text(error: BaseException) -> str:
    """Return what an error says, in one line; of an error on another host, what it was there."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return one_line(f"{type(cause).__name__}: {cause}")

"""Run over several hosts, kill processes and whole hosts at random moments, and compare with an undisturbed run.

    make hosts                          # 20 kills
    make hosts ARGS="--kills 4"         # fewer

The hosts are network namespaces of this machine, each a node of one Ray cluster: they reach each other by addresses only
(Linux, root, `ip`, and the extra `ray`). The learner's first rank and the run itself are on a further one, the head. Two
engines and a second rank run on three hosts; a fourth one is idle. Half of the kills take one process, half all processes
of a host, Ray's included. The run must go on and leave what an undisturbed one leaves, as `make kills` compares it, and
the undisturbed one what a run on one host leaves.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.kills import differences, left_by, log

NUM_HOSTS = 4
HEAD, PORT = "10.77.0.1", 6399
BRIDGE = "conclip0"
RAY = str(Path(sys.executable).with_name("ray"))
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(Path.cwd()),  # Ray's processes start elsewhere
}
DIVIDED = ("cluster.learner_ranks=2", "rollout.num_engines=2")
PLACED = ("cluster=ray", f"cluster.address={HEAD}:{PORT}", "cluster.placement=spread")
ASIDE = ("config.yaml",)
"""What says where a run was made, besides what `make kills` leaves out."""


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout


def name_of(number: int) -> str:
    return f"conclip{number}"


def pids(number: int) -> list[int]:
    return [int(line) for line in call("ip", "netns", "pids", name_of(number)).split()]


def works(pid: int) -> bool:
    """Whether it is a process of the run."""
    with suppress(OSError):
        return "conclip.cluster.join" in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def begin_host(number: int) -> None:
    """Make a host a node of the cluster, or make it one again."""
    address = f"10.77.0.{10 + number}"
    inside = ("ip", "netns", "exec", name_of(number))
    call(*inside, RAY, "start", f"--address={HEAD}:{PORT}", f"--node-ip-address={address}", "--num-cpus=3")


def kill_host(number: int) -> None:
    for pid in pids(number):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster() -> Iterator[None]:
    """The hosts, connected, and the cluster's head on this one."""
    numbers = range(1, NUM_HOSTS + 1)
    try:
        call("ip", "link", "add", BRIDGE, "type", "bridge")
        call("ip", "addr", "add", f"{HEAD}/24", "dev", BRIDGE)
        call("ip", "link", "set", BRIDGE, "up")
        for number in numbers:
            name, inside = name_of(number), ("ip", "-n", name_of(number))
            call("ip", "netns", "add", name)
            call("ip", "link", "add", f"{name}o", "type", "veth", "peer", "name", f"{name}i")
            call("ip", "link", "set", f"{name}o", "master", BRIDGE, "up")
            call("ip", "link", "set", f"{name}i", "netns", name)
            call(*inside, "addr", "add", f"10.77.0.{10 + number}/24", "dev", f"{name}i")
            call(*inside, "link", "set", f"{name}i", "up")
            call(*inside, "link", "set", "lo", "up")
        call(
            RAY,
            "start",
            "--head",
            f"--node-ip-address={HEAD}",
            f"--port={PORT}",
            "--num-cpus=0",
            "--include-dashboard=false",
        )
        for number in numbers:
            begin_host(number)
        yield
    finally:
        subprocess.run([RAY, "stop", "--force"], capture_output=True, env=ENVIRONMENT)
        for number in numbers:
            with suppress(subprocess.CalledProcessError):
                kill_host(number)
                call("ip", "netns", "del", name_of(number))
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def start(place: Path, *more: str) -> subprocess.Popen[str]:
    place.mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "conclip", "two-phase", "debug=two_phase", "name=run", "logger.display=plain"]
    with (place / "said.txt").open("w") as said:
        return subprocess.Popen([*command, *DIVIDED, *more], cwd=place, env=ENVIRONMENT, stdout=said, stderr=said, text=True)


def outcome(place: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    if process.wait() != 0:
        raise RuntimeError(f"the run ended with {process.returncode}:\n{(place / 'said.txt').read_text()[-3000:]}")
    left = left_by(place / "outputs/two-phase/run/attempt-001")
    return {name: content for name, content in left.items() if name not in ASIDE}


def restarts_of(place: Path) -> list[str]:
    """What was started again, as the run said it."""
    said = " ".join((place / "said.txt").read_text().split())
    return re.findall(r"(learner rank \d|the engine process)[^;]*?; (?:it is|all are) started again", said)


def kill_one(moments: random.Random, kind: str) -> bool:
    """Kill one process of the run, or a host that has one. Returns whether there was any."""
    at_work = [(number, pid) for number in range(1, NUM_HOSTS + 1) for pid in pids(number) if works(pid)]
    if not at_work:
        return False
    number, pid = moments.choice(at_work)
    if kind == "host":
        kill_host(number)
        return True
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    good = 0
    with tempfile.TemporaryDirectory() as folder, cluster():
        place = Path(folder)
        here = outcome(place / "one-host", start(place / "one-host"))
        began = time.monotonic()
        alone = outcome(place / "alone", start(place / "alone", *PLACED))
        duration = time.monotonic() - began
        elsewhere = [name for name in differences(here, alone) if not name.endswith("README.md")]  # cards have the command
        log(f"undisturbed over {NUM_HOSTS} hosts: {duration:.0f} s; against one host: {elsewhere or 'same'}")
        number = 0
        while number < arguments.kills:
            kind, struck, began = ("process", "host")[number % 2], place / f"killed-{number}", time.monotonic()
            process, after = start(struck, *PLACED), moments.uniform(0.1, 0.9) * duration
            alive = True
            while (alive := process.poll() is None) and not (time.monotonic() - began > after and kill_one(moments, kind)):
                time.sleep(0.1)
            try:
                differing = differences(alone, outcome(struck, process))
            except RuntimeError as error:
                if not alive:
                    raise  # it was not struck
                differing = [str(error)]
            duration = min(duration, time.monotonic() - began)  # the machine may have been busy
            said = ", ".join(restarts_of(struck)) or "nothing"
            shutil.rmtree(struck)
            if not alive:
                log("it ended before it was struck; drawn anew")
                continue
            number += 1
            good += not differing
            result = f"DIFFERS in {differing}" if differing else "same"
            log(f"{number}: a {kind} killed after {after:.0f} s: {result}; started again: {said}")
            for host in range(1, NUM_HOSTS + 1):
                if not pids(host):
                    begin_host(host)
    print(json.dumps({"kills": arguments.kills, "same": good, "against_one_host": elsewhere}))
    sys.exit(good != arguments.kills or bool(elsewhere))


if __name__ == "__main__":
    main()

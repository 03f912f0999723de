"""The process that a host of a cluster starts for a run: it connects to the run, which sends it its work.

python -m conclip.cluster.join < HOST, PORT, NAME and KEY as JSON
"""

import json
import signal
import sys
from multiprocessing.connection import Client

from conclip.processes import end_at_once, let_threads_sleep, protect_children
from conclip.runs.interrupts import end_with_parent


def main() -> None:
    """Connect, and work."""
    end_with_parent(signal.SIGKILL)  # the others are ignored by what works for a run
    protect_children()
    let_threads_sleep()
    place = json.loads(sys.stdin.read())
    connection = Client((place["host"], place["port"]), authkey=bytes.fromhex(place["key"]))
    connection.send(place["name"])
    work, arguments = connection.recv()
    work(connection, *arguments)
    end_at_once()


if __name__ == "__main__":
    main()

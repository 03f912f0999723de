"""vLLM's own server, for tests."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

START_S = 240


@contextmanager
def vllm_server(model: Path, *arguments: str) -> Iterator[str]:
    """The address of a server with the model as `lab`, on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"--model": str(model), "--served-model-name": "lab", "--port": str(port), "--host": "127.0.0.1"}
    options |= {"--dtype": "float32", "--max-model-len": "512", "--max-num-seqs": "64", "--max-num-batched-tokens": "4096"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", "--no-enable-chunked-prefill"]
    for name, value in options.items():
        command += [name, value]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen([*command, *arguments], env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + START_S
            while True:
                assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()[-2000:]
                try:
                    if httpx2.get(f"{url}/health").status_code == 200:
                        break
                except httpx2.HTTPError:
                    time.sleep(0.5)
            yield f"{url}/v1"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # still starting, perhaps
                process.kill()
                process.wait()

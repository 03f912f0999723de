"""Servers that speak as much of OpenAI's protocol as a test needs, on this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Answering(BaseHTTPRequestHandler):
    """Lists one model. What it does with a question is `do_POST` of who derives from it."""

    served: ClassVar[str] = "lab"
    owner: ClassVar[str] = "me"

    def do_GET(self) -> None:
        self.send_json(models(self.served, self.owner))

    def body(self) -> bytes:
        """What came with the request."""
        return self.rfile.read(int(self.headers["Content-Length"]))

    def send_json(self, content: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(content).encode(), status, **headers)

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        """With headers whose names have `_` in place of `-`."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def models(served: str = "lab", owner: str = "me") -> dict[str, Any]:
    """The list of models of a server that has one."""
    return {"object": "list", "data": [{"id": served, "object": "model", "created": 0, "owned_by": owner}]}


def choice(content: Any, finish_reason: Any = "stop", **more: Any) -> dict[str, Any]:
    """One answer; `more` of its message."""
    return {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": finish_reason}


def completion(chosen: object, tokens: Any = 7, prompt_tokens: Any = 5, **changes: Any) -> dict[str, Any]:
    """A whole reply with one choice."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": 12}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "lab", "choices": [chosen], "usage": usage}
    return whole | changes


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked has seen enough, and left


@contextmanager
def listening(handler: type[Answering]) -> Iterator[tuple[Any, str]]:
    """The server and its address, on a free port."""
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()

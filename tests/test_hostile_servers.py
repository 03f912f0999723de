"""Servers of other people: what they send, and where they send us, harms nobody. Real ones, on this machine."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conclip.cli.main import main
from conclip.errors import UserError
from conclip.evaluation.rows import read_rows
from conclip.models import server as servers
from conclip.models.server import find_served_model
from conclip.rollout.endpoint import EndpointEngine
from conclip.rollout.engine import EngineDied
from conclip.types import Completion, Request, SamplingSpec
from tests.answering import Answering, choice, completion, listening, models

KEY = "sk-of-mine-0123456789"
ASK = Request(request_id="p/0", prompt_token_ids=(), seed=0, messages=(("user", "the prompt"),))
SPEC = SamplingSpec(temperature=1.0, max_tokens=9, logprobs=False)


def reply(content: Any = "\\boxed{1}", tokens: Any = 7, prompt_tokens: Any = 5, **changes: Any) -> dict[str, Any]:
    return completion(choice(content), tokens, prompt_tokens, **changes)


class Handler(Answering):
    """What it lists, and does with a question, are the server's `listing` and `answer`."""

    def do_GET(self) -> None:
        self.server.listing(self)  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        self.server.asked.append((self.path, self.headers, self.body()))  # type: ignore[attr-defined]
        self.server.answer(self)  # type: ignore[attr-defined]


Answer = Callable[[Handler], None]


def listed(handler: Handler) -> None:
    handler.send_json(models())


@contextmanager
def serving(answer: Answer, listing: Answer = listed) -> Iterator[Any]:
    with listening(Handler) as (server, url):
        server.answer, server.listing, server.asked, server.url = answer, listing, [], url
        yield server


def ask(url: str) -> Completion:
    """One question; without the client's own second tries, which take their time."""
    engine = EndpointEngine(url, "lab", max_concurrent=1)
    engine._client = engine._client.with_options(max_retries=0)  # pyright: ignore[reportPrivateUsage]
    engine.submit([ASK], SPEC)
    try:
        while True:
            for completion in engine.poll():
                return completion
    finally:
        engine.close()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin_gets_neither_prompt_nor_key(status: int):
    def elsewhere(handler: Handler) -> None:
        handler.send(b"", status, Location=f"{thief.url}/chat/completions")

    with serving(lambda handler: handler.send_json(reply())) as thief:
        with serving(elsewhere, elsewhere) as server:
            with pytest.raises(EngineDied, match=f"sends on to '{thief.url}"):
                ask(server.url)
            with pytest.raises(UserError, match=r"sends on to .* not followed; give that address"):
                find_served_model(server.url, None)
        assert thief.asked == []


def test_a_redirect_within_the_origin_is_followed():
    def answer(handler: Handler) -> None:
        if handler.path.startswith("/v1/"):
            return handler.send(b"", 307, Location=handler.path.replace("/v1/", "/v2/"))
        return handler.send_json(reply("here"))

    with serving(answer) as server:
        assert ask(server.url).text == "here"
        assert [path for path, _, _ in server.asked] == ["/v1/chat/completions", "/v2/chat/completions"]


def test_a_reply_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "MAX_REPLY_BYTES", 1 << 20)
    sent = 0

    def flood(handler: Handler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        for _ in range(1000):
            sent += handler.wfile.write(b" " * (1 << 20))

    with serving(flood, flood) as server:
        with pytest.raises(EngineDied, match="more than 1 MiB"):
            ask(server.url)
        with pytest.raises(UserError, match="more than 1 MiB"):
            find_served_model(server.url, None)
    assert sent < 500 << 20


def test_a_compressed_reply_is_refused_before_it_grows():
    body = gzip.compress(json.dumps(reply("x" * 1_000_000)).encode())
    with (
        serving(lambda handler: handler.send(body, Content_Encoding="gzip")) as server,
        pytest.raises(EngineDied, match="compressed"),
    ):
        ask(server.url)
    assert server.asked[0][1]["Accept-Encoding"] == "identity"


def drip(part: bytes, before: bytes) -> tuple[Answer, threading.Event]:
    """A server that sends `before`, then `part` again and again until somebody ends it."""
    over = threading.Event()

    def answer(handler: Handler) -> None:
        handler.wfile.write(before)
        while not over.wait(0.005):
            handler.wfile.write(part)

    return answer, over


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",  # a body without end
        b"HTTP/1.1 200 OK\r\nX: ",  # a header without end
    ],
)
def test_a_reply_that_drips_ends(before: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "REPLY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(servers, "LIST_TIMEOUT_S", 0.2)
    answer, over = drip(b"1\r\n \r\n" if before.endswith(b"\r\n\r\n") else b"y", before)
    with serving(answer, answer) as server:
        with pytest.raises(EngineDied, match=r"after 0\.2 s"):
            ask(server.url)
        with pytest.raises(UserError, match=r"0\.2 s|does not answer"):
            find_served_model(server.url, None)
        over.set()


WRONG = {
    "negative": reply(tokens=-5),
    "negative prompt": reply(prompt_tokens=-1),
    "text": reply(tokens="seven"),
    "fraction": reply(tokens=7.5),
    "none": reply(tokens=None),
    "too many": reply(tokens=10**30),
    "content": reply(content=17),
    "no message": reply(choices=[{"index": 0, "finish_reason": "stop"}]),
    "null message": reply(choices=[{"index": 0, "message": None, "finish_reason": "stop"}]),
    "choices": reply(choices={"a": 1}),
    "choices of numbers": reply(choices=[1]),
    "no usage": reply(usage=None),
    "usage": reply(usage="7"),
    "a list": [1, 2],
    "a number": 3,
    "null": None,
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_chat_completion_is_one_line(content: Any):
    with serving(lambda handler: handler.send_json(content)) as server, pytest.raises(EngineDied, match="sends a reply"):
        ask(server.url)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"<html>"])
def test_what_is_no_json_is_one_line(body: bytes):
    with serving(lambda handler: handler.send(body)) as server, pytest.raises(EngineDied):
        ask(server.url)


@pytest.mark.parametrize("data", [None, 5, "x", [1], [{}], [{"id": None}], [{"id": 7}], {"a": 1}])
def test_lists_of_models_of_the_wrong_shape_are_one_line(data: Any):
    with (
        serving(listed, lambda handler: handler.send_json({"object": "list", "data": data})) as server,
        pytest.raises(UserError),
    ):
        find_served_model(server.url, "lab")


def test_half_a_character_can_be_written():
    with serving(lambda handler: handler.send(json.dumps(reply("a\ud800b")).encode())) as server:
        text = ask(server.url).text
    assert text == "a?b"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["conclip", *arguments])
    main()


SMALL = ("data.test.chain.num_problems=2", "eval.samples_per_problem=1", "eval.temperatures=[0]")


@pytest.mark.whole
def test_the_key_is_written_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """The server sends it back in a reply, as text of any spelling, and in an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", key := 'sk-"of/mine&0123456789')

    def echo(handler: Handler) -> None:
        if len(server.asked) > 1:
            return handler.send_json({"error": {"message": f"invalid key {key}, see http://me:{key}@host/?key={key}"}}, 400)
        return handler.send_json(reply(f"{key} \\boxed{{{key}}}"))

    with serving(echo) as server:
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, "eval", "model=endpoint", f"model.url={server.url}", "rollout.max_num_seqs=1", *SMALL)
        assert end.value.code == 2
        assert server.asked[0][1]["Authorization"] == f"Bearer {key}"
    said = capfd.readouterr()
    (row,) = read_rows(tmp_path / "outputs/eval/default/latest/rows-model.jsonl")
    assert row.text == "*** \\boxed{***}" and row.extracted == "***"
    everything = [said.out, said.err, *(p.read_bytes().decode(errors="replace") for p in tmp_path.rglob("*") if p.is_file())]
    for spelling in (key, json.dumps(key)[1:-1], "of/mine&0123456789", "of%2Fmine"):
        assert not [text for text in everything if spelling in text]
    assert "invalid key ***" in said.err


def test_control_characters_of_a_server_reach_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\nconclip eval: all is well"

    def refuse(handler: Handler) -> None:
        handler.send_json({"error": {"message": evil}}, 400)

    names = {"object": "list", "data": [{"id": evil}, {"id": "other"}]}
    with serving(refuse) as server, pytest.raises(SystemExit):
        run(monkeypatch, "eval", "model=endpoint", f"model.url={server.url}", *SMALL)
    with serving(refuse, lambda handler: handler.send_json(names)) as server, pytest.raises(SystemExit):
        run(monkeypatch, "eval", "model=endpoint", f"model.url={server.url}", "name=other", *SMALL)
    said = capfd.readouterr()
    shown = said.out + said.err + (tmp_path / "outputs/eval/default/latest/run.log").read_text()
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(shown)
    assert "\\x1b]0;owned" in said.err and not [
        line for line in said.err.splitlines() if line.startswith("conclip eval: all")
    ]


def test_text_of_no_tokens_is_no_reply():
    with serving(lambda handler: handler.send_json(reply("", 0))) as server:
        assert ask(server.url).num_tokens == 0
    with (
        serving(lambda handler: handler.send_json(reply("so 1", 0))) as server,
        pytest.raises(EngineDied, match="no tokens"),
    ):
        ask(server.url)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_bad_input(status: int):
    def refuse(handler: Handler) -> None:
        handler.send_json({"error": {"message": "who?"}}, status)

    with serving(refuse) as server, pytest.raises(UserError, match="set OPENAI_API_KEY"):
        ask(server.url)

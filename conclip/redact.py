"""Redacts what must not reach a file or a terminal: secrets this process knows, and control characters of other people's
text.

Known secrets are the values of environment variables that are named like secrets, passwords and tokens in the URLs of other
variables (proxies, trackers), the hub's saved token, and passwords of ~/.netrc. Files get them replaced by
`conclip.runs.files`, the terminal by `conclip.runs.terminal`.
"""

import html
import json
import netrc
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

HIDDEN = "***"

SECRET_NAMES = {"OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"}
SECRET_NAMES |= {"MLFLOW_TRACKING_PASSWORD"}
SECRET_NAME = re.compile(r"(^|_)(\w*KEY|\w*TOKEN|SECRET|PASSWORD|PASSWD|PASS|PWD|CREDENTIALS?|AUTH)$", re.IGNORECASE)
"""Names of variables whose values are secrets, besides the listed ones."""

NOT_SECRETS = {"PWD", "OLDPWD"}

MIN_CHARS, MIN_CHARS_UNLISTED = 6, 8
"""Shortest value that counts as a secret: a shorter one ("none", "EMPTY") would be found in ordinary text."""

WORD_CHARS = 16
"""Shortest secret of letters only: a shorter one may be a word ("default")."""

NO_PASSWORD = ("", "x-oauth-basic")
"""Values in the place of the password in a URL whose user is a token."""

URL_PASSWORD = re.compile(r"(?<=://)[^/\s@'\"<>\\]*@")
URL_KEY = re.compile(
    r"([?&;][\w.-]*(?:key|token|secret|passw(?:or)?d|signature|sig|auth|credential)s?=)[^&;\s#'\"<>\\]+", re.I
)
HEADER = re.compile(r"(\bauthorization\W{1,6}(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE)

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, change its state or the direction of writing: all control characters but tab and
newline."""


def looks_secret(name: str) -> bool:
    """Return whether an environment variable of this name holds a secret."""
    return name not in NOT_SECRETS and (name in SECRET_NAMES or SECRET_NAME.search(name) is not None)


class _Secrets:
    pattern: re.Pattern[str] | None = None
    """Matches every known secret in every spelling; None before secrets were collected, and a pattern that matches nothing
    where there are none."""


def learn_secrets() -> None:
    """Collect the secrets that this process knows now."""
    spellings = {spelling for secret in _secrets() for spelling in _spellings(secret)}
    longest_first = sorted(spellings, key=lambda text: (-len(text), text))
    _Secrets.pattern = re.compile("|".join(map(re.escape, longest_first)) if longest_first else r"(?!)")


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        least = MIN_CHARS if name in SECRET_NAMES else MIN_CHARS_UNLISTED
        if looks_secret(name) and _may_be_secret(value, least):
            yield value.strip()
        for user, password in re.findall(r"://([^/\s@:]*):?([^/\s@]*)@", value):
            if password in NO_PASSWORD and len(user) >= WORD_CHARS:  # as GitHub and package indices do
                yield from {user, unquote(user)}
            elif _may_be_secret(password, MIN_CHARS):
                yield from {password, unquote(password)}
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface")
    with suppress(OSError, ValueError, RuntimeError):
        saved = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser().read_text(encoding="utf-8").strip()
        if _may_be_secret(saved, MIN_CHARS):
            yield saved
    with suppress(OSError, ValueError, RuntimeError, netrc.NetrcParseError):
        for _, _, password in netrc.netrc(os.environ.get("NETRC")).hosts.values():
            if password and _may_be_secret(password, MIN_CHARS):
                yield password


def _may_be_secret(value: str, least: int) -> bool:
    value = value.strip()
    return len(value) >= least and not (len(value) < WORD_CHARS and value.isalpha())


def _spellings(secret: str) -> Iterator[str]:
    """Yield a secret as it is, and as JSON, a URL, HTML and Python spell it."""
    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield quote(secret)
    yield quote(secret, safe="")
    yield html.escape(secret)
    yield repr(secret)[1:-1]


def hide_known(text: str) -> str:
    """Replace known secrets; for data, in which nothing else may change."""
    if _Secrets.pattern is None:
        learn_secrets()
    return cast(re.Pattern[str], _Secrets.pattern).sub(HIDDEN, text)


def hide(text: str) -> str:
    """Replace known secrets, and whatever is in the place of a secret in URLs and headers.

    Example: ``http://me:secret@host/v1?key=abc&n=2`` becomes ``http://***@host/v1?key=***&n=2``.
    """
    text = URL_PASSWORD.sub(f"{HIDDEN}@", hide_known(text))
    return HEADER.sub(rf"\1{HIDDEN}", URL_KEY.sub(rf"\1{HIDDEN}", text))


def hide_in(values: Any, *, by: Callable[[str], str] = hide) -> Any:
    """Apply `by` to every text in JSON-like values, keys included."""
    if isinstance(values, str):
        return by(values)
    if isinstance(values, Mapping):
        return {hide_in(key, by=by): hide_in(value, by=by) for key, value in cast(Mapping[Any, Any], values).items()}
    if isinstance(values, (list, tuple)):
        return [hide_in(value, by=by) for value in cast(list[Any], values)]
    return values


def terminal_safe(text: str) -> str:
    """Return text that is safe for a terminal: without secrets, and with control characters escaped (``\\x1b``)."""
    return CONTROL.sub(lambda match: _escape(match[0]), hide(text))


def escape_control(line: str) -> str:
    """Escape the control characters in a line of JSON by JSON's own escapes."""
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def one_line(text: str, max_chars: int = 300) -> str:
    """Return a server's text for a message: on one line of at most `max_chars` characters."""
    line = " ".join(text.split())
    return line if len(line) <= max_chars else f"{line[:max_chars]}..."


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

"""The reader of replies from servers that speak the OpenAI protocol. Servers differ, and some fields are newer than the
protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from conclip.types import FinishReason

ENDS: Mapping[str, FinishReason] = {
    "length": "length",
    "content_filter": "content_filter",
    "abort": "abort",
    "error": "abort",
}
"""Finish reasons by their names in the protocol; any other name counts as `stop`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One choice of a chat completion."""

    text: str
    reasoning: str | None
    """The thinking part, where the server returns it separately: `reasoning_content`, `reasoning` from newer servers, or
    parts of the content; None where it does not."""
    finish_reason: FinishReason


def read_choice(choice: Any) -> Reply:
    """Read a choice as the client library returns it, with unknown fields among the message's extra ones. Raises
    AttributeError without a message, and TypeError for content that is neither text nor a list of parts."""
    message = choice.message
    content = message.content
    if not isinstance(content, (str, list, type(None))):
        raise TypeError("content is no text")
    texts, thoughts = _parts(content)
    for name in ("reasoning_content", "reasoning"):
        value = getattr(message, name, None)
        if isinstance(value, str) and not thoughts:
            thoughts = [value]
    reason = choice.finish_reason if isinstance(choice.finish_reason, str) else "stop"
    return Reply(
        text="".join(texts),
        reasoning="".join(thoughts) if thoughts else None,
        finish_reason=ENDS.get(reason, "stop"),
    )


def _parts(content: Any) -> tuple[list[str], list[str]]:
    """Return (texts, thoughts) of a message's content, which is a text or a list of typed parts."""
    if isinstance(content, str):
        return [content], []
    texts: list[str] = []
    thoughts: list[str] = []
    for part in cast(list[Any], content) if isinstance(content, list) else []:
        if isinstance(part, str):
            texts.append(part)
            continue
        fields = cast(dict[str, Any], part) if isinstance(part, dict) else {}
        kind = fields.get("type")
        if kind in ("thinking", "reasoning"):  # holds a text, or a list of parts again
            thoughts += [text for name in ("thinking", "reasoning", "text") for text in _parts(fields.get(name))[0]]
        elif isinstance(fields.get("text"), str):
            texts.append(fields["text"])
    return texts, thoughts

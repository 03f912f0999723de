"""Separates the thinking part of a response from what follows it: text work only, in linear time.

A reasoning model thinks between two tags, then answers. Its thoughts are no answer: the grader sees only what follows the
thinking part (`answer_of`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """The opening and closing tags of a model's thinking part."""

    open: str
    close: str


KNOWN_TAGS = (
    ThinkingTags("<think>", "</think>"),  # Qwen3, DeepSeek-R1 and its distillates, SmolLM3, GLM, OLMo 3
    ThinkingTags("[THINK]", "[/THINK]"),  # Magistral
    ThinkingTags("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThinkingTags("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ThinkingTags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    ThinkingTags("<mm:think>", "</mm:think>"),  # MiniMax-M3
    ThinkingTags("<thinking>", "</thinking>"),
    ThinkingTags("<reasoning>", "</reasoning>"),
    ThinkingTags("<thought>", "</thought>"),
)
"""Tags that published models use."""

DEFAULT_TAGS = KNOWN_TAGS[0]
"""The tags of a model that names none."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How the responses to a prompt mark their thinking part."""

    tags: ThinkingTags = DEFAULT_TAGS
    opened: bool = False
    """Whether the prompt itself opens the part: a response then begins inside it, and holds the closing tag only."""


PLAIN = Thinking()
"""How responses think to prompts that open nothing, with the default tags."""


def answer_of(text: str, thinking: Thinking = PLAIN) -> str:
    """Return what follows the thinking part of a response: all of it where there is no such part, and nothing while a part
    is open.

    Example: ``<think>Is it 7? No.</think> It is 9.`` gives `` It is 9.``; ``Is it 7?`` gives nothing when the prompt opened
    the part.
    """
    return text[thinking_end(text, thinking) :]


def thinking_end(text: str, thinking: Thinking = PLAIN) -> int:
    """Return where the thinking part of a response ends [characters]: 0 where there is no such part, the end of the text
    while a part is open.

    Parts may follow one another, and may hold the opening tag as text. A closing tag that nothing opened ends a part that
    began before the response did; once a part has ended, it is text.
    """
    tags = thinking.tags
    depth, end, is_open = int(thinking.opened), None, thinking.opened
    for match in re.finditer(f"{re.escape(tags.open)}|{re.escape(tags.close)}", text):
        if match.group() == tags.open:
            depth, is_open = depth + 1, True
        elif depth > 0 or end is None:
            depth, end, is_open = max(0, depth - 1), match.end(), False
    return len(text) if is_open else end or 0


def num_unopened(texts: Sequence[str], thinking: Thinking) -> int:
    """Return how many responses close a part that neither they nor, as far as we know, their prompts have opened. 0 where
    most that close it also open it: then the prompt does not, and the others are slips."""
    closing = [text for text in texts if thinking.tags.close in text]
    unopened = sum(thinking.tags.open not in text for text in closing)
    return 0 if thinking.opened or 2 * unopened <= len(closing) else unopened


def joined(reasoning: str, content: str, tags: ThinkingTags) -> str:
    """Return a response whose two parts a server sends separately."""
    return f"{tags.open}{reasoning}{tags.close}{content}"


def tags_in(text: str) -> ThinkingTags:
    """Return the tags that a response of an unknown model holds."""
    return next((tags for tags in KNOWN_TAGS if tags.open in text or tags.close in text), DEFAULT_TAGS)


def opens(prompt: str, tags: ThinkingTags) -> bool:
    """Return whether a prompt ends inside a thinking part. Pass only what the chat template adds after the last message: the
    messages may mention tags."""
    return prompt.rfind(tags.open) > prompt.rfind(tags.close)

"""Reads a model's chat template and tokenizer: the text of a chat, how the model marks its thinking part, and which token
ends a turn."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import Environment, meta
from transformers import PreTrainedTokenizerBase

from conclip.config.groups import ModelConfig
from conclip.errors import UserError
from conclip.grading.thinking import DEFAULT_TAGS, KNOWN_TAGS, Thinking, ThinkingTags, opens
from conclip.types import Messages

PLACEHOLDER = "conclip-marks-this-place"
"""A message that can be found again in the rendered chat, whatever the template writes around it."""

TODAY = date(2024, 7, 26)
"""The date of every prompt that has one, so that a run that goes on tomorrow has the prompts of today. It is the one that
Llama 3's template writes where it is told none."""


def render(
    tokenizer: PreTrainedTokenizerBase, turns: Messages, template_kwargs: Mapping[str, Any], *, ask: bool = True
) -> str:
    """Return the text of a chat; with `ask`, it ends with the opening of the assistant's turn. A template that writes the
    date of today (Llama 3, SmolLM3) is told that this is `TODAY`."""
    messages = [{"role": role, "content": content} for role, content in turns]
    told: dict[str, Any] = {"strftime_now": TODAY.strftime} | dict(template_kwargs)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **told))


def text_after_placeholder(text: str) -> str:
    """Return what a template writes after the last message, where that was `PLACEHOLDER`; the whole text where the
    placeholder is gone."""
    return text.rpartition(PLACEHOLDER)[2]


def placeholder_chat(model: ModelConfig) -> Messages:
    """Return a chat whose only question is `PLACEHOLDER`."""
    system = () if model.system is None else (("system", model.system),)
    return (*system, ("user", PLACEHOLDER))


def known_tags(tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> ThinkingTags | None:
    """Return the tags of the thinking part: those of the config, else those in the chat template, else those whose tokens
    the tokenizer has. None where neither knows any."""
    if model.thinking_tags is not None:
        return ThinkingTags(*model.thinking_tags)
    template = _template(tokenizer)
    named = {token.content for token in _added(tokenizer).values()}
    for tags in KNOWN_TAGS:
        if tags.open in template and tags.close in template:
            return tags
    both = [tags for tags in KNOWN_TAGS if all(tag in template or tag in named for tag in (tags.open, tags.close))]
    return both[0] if both else None


def opened_by_config(model: ModelConfig, template_kwargs: Mapping[str, Any]) -> bool | None:
    """Return whether prompts open the thinking part according to `model.thinking_in_prompt`; None where it says nothing, and
    for chats that switch thinking off."""
    return None if template_kwargs.get("enable_thinking") is False else model.thinking_in_prompt


def thinking_of(tokenizer: PreTrainedTokenizerBase, model: ModelConfig, template_kwargs: Mapping[str, Any]) -> Thinking:
    """Return how responses to the chats of this template mark their thinking part."""
    tags, opened = known_tags(tokenizer, model) or DEFAULT_TAGS, opened_by_config(model, template_kwargs)
    if opened is None:
        opened = opens(text_after_placeholder(render(tokenizer, placeholder_chat(model), template_kwargs)), tags)
    return Thinking(tags=tags, opened=opened)


def check_template_kwargs(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any], key: str) -> None:
    """Raise UserError for an argument that the chat template never reads: it would have no effect."""
    template = _template(tokenizer)
    read = names_read(tokenizer) if template_kwargs else set[str]()
    for name in template_kwargs:
        if template and name not in read:
            near = difflib.get_close_matches(name, read, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see what its author names"
            raise UserError(f"{key}: the model's chat template reads no '{name}'; {hint}")


def names_read(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the names that the chat template looks up outside itself."""
    only_transformers = r"\{%-?\s*(?:end)?generation\s*-?%\}"  # a tag that masks tokens
    plain = re.sub(only_transformers, "", _template(tokenizer))
    return meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that the chat template writes after the assistant's message (usually one), or those that begin the
    next turn where nothing ends this one. Empty where other text follows, or the template takes no assistant's turns."""
    tokens = {token.content: number for number, token in _added(tokenizer).items() if token.content}
    chat = (("user", "question"), ("assistant", PLACEHOLDER))
    for turns in (chat, (*chat, ("user", "question"))):
        try:
            rest = text_after_placeholder(render(tokenizer, turns, {}, ask=False)).lstrip()
        except Exception:  # a template may raise anything; then it does not tell how a turn ends
            return ()
        end: list[int] = []
        while begins := [token for token in tokens if rest.startswith(token)]:
            longest = max(begins, key=len)
            end.append(tokens[longest])
            rest = rest.removeprefix(longest).lstrip()
        if end or rest:
            return tuple(end)
    return ()


def named_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], key: str) -> list[int]:
    """Return the ids of tokens given by their text. Raises UserError, naming config key `key`, for a text that is not
    exactly one token."""
    encoded = [tokenizer.encode(name, add_special_tokens=False) for name in names]
    wrong = [name for name, ids in zip(names, encoded, strict=True) if len(ids) != 1 or ids[0] == tokenizer.unk_token_id]
    if wrong:
        raise UserError(f"{key}: '{wrong[0]}' is not one token of the model's tokenizer; give tokens as it spells them")
    return [ids[0] for ids in encoded]


def decoder(tokenizer: PreTrainedTokenizerBase, tags: ThinkingTags) -> Callable[[Sequence[int]], str]:
    """Return a function from token ids to text. It drops special tokens, except for the tags: some models' tags are special
    tokens."""
    special = {number for number, token in _added(tokenizer).items() if token.special} | set(tokenizer.all_special_ids)
    kept = special & {
        number for tag in (tags.open, tags.close) for number in tokenizer.encode(tag, add_special_tokens=False)
    }
    if not kept:
        return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))
    dropped = special - kept
    return lambda ids: str(tokenizer.decode([i for i in ids if i not in dropped], skip_special_tokens=False))


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except (ValueError, AttributeError):  # no template, or a tokenizer with its own chat format
        return ""


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[int, Any]:
    return getattr(tokenizer, "added_tokens_decoder", {})

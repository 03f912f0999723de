"""A tiny model that knows a few responses by heart, behind published models' chat templates: what it says is decided, the
rest (template, tokenizer, engine, server, grading) is real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AddedToken, PreTrainedTokenizerBase, Qwen2ForCausalLM

from benchmarks.lab_model.pretrain import model_config
from benchmarks.lab_model.tokenizer import build_tokenizer
from conclip.config.groups import ModelConfig
from conclip.problems.prompts import encode_prompt
from tests.chat_templates import OWN_TOKENS

TAGS = ("<think>", "</think>", "[THINK]", "[/THINK]")
MAX_STEPS = 1500
ASKS = ModelConfig(path="", dtype="float32", prompt="{question}", system=None, trust_remote_code=False)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a model says behind one template."""

    template: str
    end: str
    """The token with which the template ends a turn; the model's files name another one."""
    responses: Mapping[tuple[str, bool | None], str]
    """By question and `enable_thinking` (None: the template gets nothing)."""
    special: Sequence[str] = ()
    """Tags that are special tokens."""


def tokenizer_of(memory: Memory) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in OWN_TOKENS])
    tokenizer.add_tokens([AddedToken(tag, special=tag in memory.special, normalized=False) for tag in TAGS])
    tokenizer.chat_template = memory.template
    return tokenizer


def make_models(root: Path, memories: Mapping[str, Memory]) -> dict[str, Path]:
    """A model folder by each name; all share their weights, and say greedily, to the letter, what they know, then `end`."""
    tokenizers = {name: tokenizer_of(memory) for name, memory in memories.items()}
    pairs: list[tuple[tuple[int, ...], list[int]]] = []
    for name, memory in memories.items():
        for (question, thinks), response in memory.responses.items():
            more = {} if thinks is None else {"enable_thinking": thinks}
            prompt = encode_prompt(tokenizers[name], question, ASKS, template_kwargs=more)
            pairs.append((prompt, tokenizers[name].encode(response + memory.end, add_special_tokens=False)))
    model = _learn(pairs, next(iter(tokenizers.values())))
    for name, tokenizer in tokenizers.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in memories}


def _learn(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """A model that gives each response to its prompt with more than nine tenths of the probability at every token."""
    torch.manual_seed(3)
    settings = model_config(build_tokenizer())
    settings.vocab_size = len(tokenizer)
    settings.num_hidden_layers, settings.layer_types = 2, (settings.layer_types or [])[:2]
    model = Qwen2ForCausalLM(settings)
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (prompt, response) in enumerate(pairs):
        ids[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        labels[row, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    targets = labels[:, 1:]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(MAX_STEPS):
        logits = model(input_ids=ids).logits[:, :-1]
        chance = torch.log_softmax(logits.detach(), -1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        if float(chance[targets >= 0].min()) > -0.1:
            return model
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    raise AssertionError("the model did not learn its responses by heart")

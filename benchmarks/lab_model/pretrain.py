"""Makes the lab's base model from nothing: generated traces, a small Qwen2, Muon, one cosine schedule.

Run as ``make lab-model`` (``python -m benchmarks.lab_model.pretrain --out FOLDER``). ``make careful-model`` goes on from its
weights with traces whose re-checks repair. Deterministic for a seed, a torch version and a thread count.
"""

import argparse
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.lab_model.tokenizer import END, PAD, build_tokenizer
from benchmarks.lab_model.traces import trace
from conclip.lab.arithmetic import sample_chain

LOG = logging.getLogger(__name__)

CHAIN_LEVELS = 10
SEARCH_LEVELS = 4
SEARCH_SHARE = 0.3
CONTEXT_TOKENS = 1024
POOL = 2048
"""Traces that are sampled and sorted by length together."""
WARMUP_STEPS = 50
REST_LR_RATIO = 0.2
"""Learning rate of embeddings and norms (AdamW) relative to that of the inner matrices (Muon)."""
IGNORE = -100


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """Return the config of the model: four layers of width 128, 128 vocabulary rows."""
    return Qwen2Config(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.vocab[PAD],
        eos_token_id=tokenizer.vocab[END],
        bos_token_id=None,
        dtype="float32",
    )


def sample_example(
    tokenizer: PreTrainedTokenizerFast, max_level: int, generator: random.Random, *, repairing: bool = False
) -> tuple[list[int], int]:
    """Return token ids of one question of at most `max_level` operations with its trace, and how many of them are the
    prompt."""
    while True:
        family = "search" if generator.random() < SEARCH_SHARE else "chain"
        highest = min(max_level, SEARCH_LEVELS if family == "search" else CHAIN_LEVELS)
        chain = sample_chain(family, generator.randint(1, highest), generator)
        if chain.split == "pretrain":
            break
    prompt = f"<|user|>{chain.question}<|end|><|assistant|>"
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    response_ids = tokenizer.encode(trace(chain, generator, repairing=repairing) + "<|end|>", add_special_tokens=False)
    return prompt_ids + response_ids, len(prompt_ids)


def batches(
    tokenizer: PreTrainedTokenizerFast,
    *,
    tokens: int,
    pool: int,
    seed: int,
    max_levels: Iterable[int],
    repairing: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (input_ids, labels) pairs [B, L] of about `tokens` tokens, examples of similar length together; one pool of
    examples for each entry of `max_levels`."""
    generator = random.Random(seed)
    for max_level in max_levels:
        examples = [sample_example(tokenizer, max_level, generator, repairing=repairing) for _ in range(pool)]
        examples.sort(key=lambda example: len(example[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for example in examples:
            if (len(groups[-1]) + 1) * len(example[0]) > tokens:
                groups.append([])
            groups[-1].append(example)
        generator.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            input_ids = torch.zeros(len(group), length, dtype=torch.long)
            labels = torch.full((len(group), length), IGNORE)
            for row, (ids, num_prompt) in enumerate(group):
                input_ids[row, : len(ids)] = torch.tensor(ids)
                labels[row, num_prompt : len(ids)] = torch.tensor(ids[num_prompt:])
            yield input_ids, labels


def train(
    out: Path, *, seed: int, pools: int, lr: float, tokens: int, start: Path | None = None, repairing: bool = False
) -> None:
    """Train on `pools` x POOL traces, and save a Hugging Face folder at `out`. A new model sees easy ones first; with
    `start`, the model of that folder goes on, with all levels. `repairing`: re-checks repair."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = Qwen2ForCausalLM(model_config(tokenizer)) if start is None else Qwen2ForCausalLM.from_pretrained(start)
    # With Muon for the inner matrices the lookup of a statement is learned in a third of the steps of AdamW (docs/log.md).
    inside = [p for p in model.model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is q for q in inside)]
    optimizers = {
        torch.optim.Muon(inside, weight_decay=0.1): lr,
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0): lr * REST_LR_RATIO,
    }
    # The curriculum: two operations at first, all levels from 40 % of the traces on.
    levels = [min(CHAIN_LEVELS, 2 + int(25 * pool / pools)) for pool in range(pools)]
    max_levels = levels if start is None else [CHAIN_LEVELS] * pools
    num_pools = 0.0
    began = time.monotonic()
    num_tokens = 0
    stream = batches(tokenizer, tokens=tokens, pool=POOL, seed=seed, max_levels=max_levels, repairing=repairing)
    for step, (input_ids, labels) in enumerate(stream):
        scale = min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * num_pools / pools)))
        for optimizer, peak_lr in optimizers.items():
            optimizer.param_groups[0]["lr"] = peak_lr * scale
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=input_ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        num_pools = min(pools, num_pools + len(input_ids) / POOL)
        num_tokens += input_ids.numel()
        if step % 50 == 0:
            elapsed = time.monotonic() - began
            LOG.info(
                "step %d  traces %.0f  loss %.4f  %.0f tokens/s  %.0f s",
                step, num_pools * POOL, loss.item(), num_tokens / elapsed, elapsed,
            )  # fmt: skip
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pools", type=int, default=30)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--repairing", action="store_true")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

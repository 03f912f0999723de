"""Teach a small instruction model to think at length between tags, on generated and verified traces.

    python benchmarks/thinking_model.py SmolLM2-135M-Instruct OUT

Small open models that think are on the hub only; this makes one from a model that is at hand. The weights are not shipped.
What is designed in, and what is not:

- *Problems* are the chains of `data=arithmetic`, of the split `pretrain` (no other run asks them).
- *Thoughts* are the lab's: a step a line, and re-checks ("Wait, ..."), whose mean number per step a trace draws from 0 to 5,
  whatever the problem. Only traces that end in the right answer are used. So length does not depend on being right: whether
  the model is right more often where it is brief is measured, not designed.
- *Without thinking* (`enable_thinking=false`, a fifth of the traces) the answer comes at once.
- The tags are two new tokens, so that the engine can put a budget on the thinking part.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lab_model.traces import chain_trace
from torch import Tensor
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from conclip.config.compose import load_config
from conclip.lab.arithmetic import Chain, iterate_chains

LEVELS = (2, 3, 4, 5, 6)
SHARE_WITHOUT = 0.2
PEAK_LR, WARMUP = 2e-4, 0.03
BATCH_TOKENS = 1024
SORTED = 64
"""So many examples are drawn at a time and batched by their length: less padding."""

TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
"""ChatML with the switch of Qwen3: the response opens the thinking part, or the prompt holds an empty one."""


def written(chain: Chain, generator: random.Random) -> str:
    """Return thoughts and answer of a trace that is right."""
    while True:
        *steps, box = chain_trace(chain, generator).splitlines()
        if box == f"\\boxed{{{chain.answer}}}":
            break
    thoughts = "\n".join(step.replace("wait ", "Wait, ") for step in steps)
    return f"<think>\n{thoughts}\n</think>\n\nThe answer is {box}."


def examples(tokenizer: Any, prompt: str, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield tokens of a prompt and of its response, without end."""
    drawn = random.Random(seed)
    while True:
        for chain in iterate_chains("chain", LEVELS, "pretrain", drawn.randrange(2**31)):
            thinks = drawn.random() >= SHARE_WITHOUT
            chat = [{"role": "user", "content": prompt.replace("{question}", chain.question)}]
            asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinks)
            response = written(chain, drawn) if thinks else f"The answer is \\boxed{{{chain.answer}}}."
            ids = [tokenizer.encode(text, add_special_tokens=False) for text in (asked, f"{response}<|im_end|>")]
            yield ids[0], ids[1]
            if drawn.random() < 1e-3:  # other chains of the same levels
                break


def batches(source: Iterator[tuple[list[int], list[int]]], generator: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield padded ids and targets ([b, L]; -100 off the response) of up to BATCH_TOKENS tokens."""
    while True:
        drawn = sorted((next(source) for _ in range(SORTED)), key=lambda pair: len(pair[0]) + len(pair[1]))
        groups = [[drawn[0]]]
        for pair in drawn[1:]:
            if (len(groups[-1]) + 1) * (len(pair[0]) + len(pair[1])) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(pair)
        generator.shuffle(groups)
        for rows in groups:
            length = max(len(asked) + len(response) for asked, response in rows)
            ids, targets = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -100)
            for row, (asked, response) in enumerate(rows):
                ids[row, : len(asked) + len(response)] = torch.tensor(asked + response)
                targets[row, len(asked) : len(asked) + len(response)] = torch.tensor(response)
            yield ids, targets


def teach(model: Any, source: Iterator[tuple[Tensor, Tensor]], budget: int) -> list[float]:
    """Fine-tune on `budget` tokens and return the losses; the learning rate rises for 3 % of them, then falls (cosine)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0)
    began, losses, num_tokens = time.monotonic(), list[float](), 0
    model.train()
    while num_tokens < budget:
        ids, targets = next(source)
        num_tokens += ids.numel()
        share = min(1.0, num_tokens / budget)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * (share / WARMUP if share < WARMUP else 0.5 * (1 + math.cos(math.pi * share)))
        loss = model(input_ids=ids, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if len(losses) % 10 == 0:
            recent, rate = sum(losses[-10:]) / 10, num_tokens / (time.monotonic() - began)
            sys.stdout.write(f"{share:4.0%}  update {len(losses)}  loss {recent:.3f}  {rate:.0f} tokens/s\n")
            sys.stdout.flush()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder with a small instruction model in the chat format of ChatML")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=200_000, help="prompts and padding included")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer.chat_template = TEMPLATE
    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size))
    prompt = load_config("eval", "model=hf", f"model.path={options.model}").model.prompt
    source = batches(examples(tokenizer, prompt, options.seed), random.Random(options.seed))
    losses = teach(model, source, options.tokens)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    sys.stdout.write(f"{options.out}: {len(losses)} updates, loss {sum(losses[-20:]) / len(losses[-20:]):.3f}\n")


if __name__ == "__main__":
    main()

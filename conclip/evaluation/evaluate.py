"""Problems x samples x temperatures x instructions x templates x thinking budgets -> one row per response."""

import time
from collections.abc import Sequence
from itertools import product

from conclip.config.groups import EvalConfig
from conclip.evaluation.units import RowFile
from conclip.grading.thinking import num_unopened
from conclip.rollout.session import Runtime
from conclip.types import EvalRow, Problem, PromptCondition, SamplingSpec, condition_name


def evaluate(
    label: str,
    runtime: Runtime,
    problems: Sequence[Problem],
    settings: EvalConfig,
    file: RowFile,
    conditions: Sequence[PromptCondition] | None = None,
) -> list[EvalRow]:
    """Evaluate one model under the given conditions (default: those of the settings) and return its rows. They go to `file`
    unit by unit, and are written in order once all exist.

    Seeds depend on problem and sample only: all models, temperatures and ways of asking get the same random streams. Greedy
    responses are sampled once.
    """
    crossed = list(product(settings.temperatures, settings.conditions if conditions is None else conditions))
    num_after = sum(len(problems) * _num_samples(temperature, settings) for temperature, _ in crossed)
    for temperature, (style, template, budget) in crossed:
        variant = style, template
        spec = SamplingSpec(
            temperature=temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
            thinking_budget=budget,
            logprobs=False,
        )
        tasks = runtime.tasks(variant, problems, _num_samples(temperature, settings), "eval")
        condition = f"eval {label}, {condition_name(*variant, budget)}, temperature {temperature:g}"
        began, responses_before, tokens_before = time.monotonic(), file.num_sampled, file.num_sampled_tokens
        num_after -= len(tasks)
        rows = file.sample(runtime, condition, variant, tasks, spec, num_after=num_after)
        num_new, num_tokens = file.num_sampled - responses_before, file.num_sampled_tokens - tokens_before
        parts = [f"{len(tasks)} responses"]
        if num_new:
            speed = num_tokens / (time.monotonic() - began)
            parts.append(f"{num_tokens} tokens, {speed:.0f} tokens/s with grading")
        if num_new < len(tasks):
            parts.append(f"{len(tasks) - num_new} taken over from before")
        runtime.run.say(f"{condition}: {', '.join(parts)}")
        texts = [row.text for row in rows if row.reasoning is None]
        if unopened := num_unopened(texts, runtime.prompts[variant].thinking):
            runtime.run.warn(
                f"{condition}: {unopened} of {len(rows)} responses close a thinking part that they do not open; where the "
                "prompt opens it, set model.thinking_in_prompt=true, so that those that never close it are no answers"
            )
    file.finish()
    return file.rows


def _num_samples(temperature: float, settings: EvalConfig) -> int:
    """Return the number of samples of each problem; a greedy response is always the same."""
    return settings.samples_per_problem if temperature > 0 else 1

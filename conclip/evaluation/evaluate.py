"""Problems x samples x temperatures x instructions x templates x thinking budgets -> one row per response."""

import time
from collections.abc import Sequence
from itertools import chain, groupby, islice, product

from conclip.config.groups import EvalConfig
from conclip.evaluation.units import RowFile
from conclip.grading.thinking import num_unopened
from conclip.rollout.collect import Task
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
    unit by unit, and are written in order once all exist. A unit may hold several conditions, so that few slow responses
    keep the engine waiting.

    Seeds depend on problem and sample only: all models, temperatures and ways of asking get the same random streams. Greedy
    responses are sampled once.
    """
    crossed = list(product(settings.temperatures, settings.conditions if conditions is None else conditions))
    tasks: dict[str, list[Task]] = {}
    for temperature, (style, template, budget) in crossed:
        spec = SamplingSpec(
            temperature=temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
            thinking_budget=budget,
            logprobs=False,
        )
        name = f"{condition_name(style, template, budget)}, temperature {temperature:g}"
        number = str(len(tasks)) if len(crossed) > 1 else ""
        tasks[name] = [
            task
            for benchmark, own in groupby(problems, lambda problem: problem.source)
            for task in runtime.tasks(
                (style, template), list(own), settings.num_samples(benchmark, temperature), spec, "eval", condition=number
            )
        ]
    what = f"eval {label}, {next(iter(tasks))}" if len(tasks) == 1 else f"eval {label} in {len(tasks)} ways"
    began, num_tasks = time.monotonic(), sum(map(len, tasks.values()))
    rows = file.sample(runtime, what, list(chain.from_iterable(tasks.values())))
    parts = [f"{num_tasks} responses"]
    if file.num_sampled:
        speed = file.num_sampled_tokens / (time.monotonic() - began)
        parts.append(f"{file.num_sampled_tokens} tokens, {speed:.0f} tokens/s with grading")
    if file.num_sampled < num_tasks:
        parts.append(f"{num_tasks - file.num_sampled} taken over from before")
    runtime.run.say(f"{what}: {', '.join(parts)}")
    remaining = iter(rows)
    for name, own in tasks.items():
        texts = [row.text for row in islice(remaining, len(own)) if row.reasoning is None]
        if unopened := num_unopened(texts, own[0].thinking):
            runtime.run.warn(
                f"eval {label}, {name}: {unopened} of {len(own)} responses close a thinking part that they do not open; "
                "where the prompt opens it, set model.thinking_in_prompt=true, so that those that never close it are no "
                "answers"
            )
    file.finish()
    return file.rows

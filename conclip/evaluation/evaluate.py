"""Problems x samples x temperatures x instructions -> one row per response.

The work is cut into units of a fixed batch of requests, each from a cold prefix cache. A unit whose rows all exist already,
made by the same model, prompt tokens, sampling and seeds, is taken over from an earlier attempt; one that was cut is sampled
anew as a whole, since another batch may give other tokens.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice, product
from pathlib import Path

from conclip.config import EvalConfig, UserError
from conclip.evaluation.rows import read_lines, to_dict, write_parquet
from conclip.grading import GRADER_VERSION
from conclip.rollout.collect import Task, tasks_for
from conclip.runtime import Runtime
from conclip.types import EvalRow, Problem, Rollout, SamplingSpec


def evaluate(
    model: str,
    model_hash: str,
    runtime: Runtime,
    problems: Sequence[Problem],
    settings: EvalConfig,
    path: Path,
    *,
    earlier: Mapping[str, EvalRow] | None = None,
) -> list[EvalRow]:
    """The rows of one model, appended to `path` (JSON lines) unit by unit, with a Parquet copy once all are there.

    `model` names it in the rows, `model_hash` tells its weights apart from all others. Seeds depend on problem and sample
    only: all models, temperatures and instructions get the same random streams. Greedy responses are sampled once.
    """
    rows: list[EvalRow] = []
    with path.open("a", encoding="utf-8") as out:
        for temperature, prompt in product(settings.temperatures, settings.prompts):
            spec = SamplingSpec(
                temperature=temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_tokens=settings.max_tokens,
                logprobs=False,
            )
            tasks = tasks_for(
                problems,
                runtime.prompts[prompt],
                num_samples=settings.samples_per_problem if temperature > 0 else 1,
                seed_parts=(runtime.config.seed, "eval"),
                messages=runtime.messages.get(prompt),
            )
            keys = {task.key: (response_key(model_hash, task, spec), task.seed) for task in tasks}
            label = f"eval {model}, {prompt}, temperature {temperature:g}"
            began, num_new, num_tokens = time.monotonic(), 0, 0
            for unit in _units(tasks, settings.unit_responses):
                names = [keys[task.key][0] for task in unit]
                known = [replace(earlier[n], model=model, prompt=prompt) for n in names if earlier and n in earlier]
                if len(known) < len(unit):
                    known = _in_order(unit, runtime.collect(label, unit, spec), model, prompt, spec, keys)
                    num_new, num_tokens = num_new + len(unit), num_tokens + sum(row.num_tokens for row in known)
                rows += known
                out.writelines(json.dumps(to_dict(row), ensure_ascii=False) + "\n" for row in known)
                out.flush()
            speed = (
                f"{num_tokens} tokens, {num_tokens / (time.monotonic() - began):.0f} tokens/s with grading"
                if num_new
                else ""
            )
            taken = f"{len(tasks) - num_new} taken from an earlier attempt" if num_new < len(tasks) else ""
            said = ", ".join(part for part in (f"{len(tasks)} responses", speed, taken) if part)
            runtime.run.say(f"{label}: {said}")
    write_parquet(rows, path.with_suffix(".parquet"))
    return rows


def response_key(model_hash: str, task: Task, spec: SamplingSpec) -> str:
    """Hash of everything that changes a response, and of how it is judged."""
    asked = task.messages or task.prompt_token_ids
    parts = [model_hash, asked, asdict(spec), task.seed, task.problem.answer, GRADER_VERSION]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def earlier_rows(home: Path, current: Path) -> dict[str, EvalRow]:
    """Rows of the other attempts of a run, by key; files of other schemas are passed over."""
    found: dict[str, EvalRow] = {}
    for file in sorted(home.glob("attempt-*/rows*.jsonl")):
        if file.parent != current:
            try:
                found |= {row.key: row for row in read_lines(file)}
            except (UserError, ValueError, KeyError):
                continue
    return found


def _units(tasks: Sequence[Task], size: int) -> Iterator[list[Task]]:
    remaining = iter(tasks)
    while unit := list(islice(remaining, size)):
        yield unit


def _in_order(
    unit: Sequence[Task],
    rollouts: Iterable[Rollout],
    model: str,
    prompt: str,
    spec: SamplingSpec,
    keys: Mapping[str, tuple[str, int]],
) -> list[EvalRow]:
    """A unit's rows in the order of its tasks, in whatever order they finished: no number depends on the latter."""
    found = {f"{r.problem.problem_id}/{r.sample}": _row(r, model, prompt, spec, keys) for r in rollouts}
    return [found[task.key] for task in unit]


def _row(rollout: Rollout, model: str, prompt: str, spec: SamplingSpec, keys: Mapping[str, tuple[str, int]]) -> EvalRow:
    """`keys`: response key and seed by task key."""
    problem, grade = rollout.problem, rollout.grade
    key, seed = keys[f"{problem.problem_id}/{rollout.sample}"]
    return EvalRow(
        benchmark=problem.source,
        problem_id=problem.problem_id,
        level=problem.level,
        subject=problem.subject,
        model=model,
        prompt=prompt,
        sample=rollout.sample,
        seed=seed,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        max_tokens=spec.max_tokens,
        outcome=grade.outcome,
        extracted=grade.extracted,
        lenient_outcome=grade.lenient_outcome or grade.outcome,
        lenient_extracted=grade.lenient_extracted,
        method=grade.method,
        grader_version=GRADER_VERSION,
        answer=problem.answer,
        num_tokens=rollout.completion.num_tokens,
        num_prompt_tokens=rollout.completion.reported_prompt_tokens or len(rollout.prompt_token_ids),
        finish_reason=rollout.completion.finish_reason,
        key=key,
        text=rollout.text,
    )

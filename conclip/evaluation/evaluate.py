"""Benchmarks x samples -> one row per response."""

# pyarrow ships no annotations.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conclip.config import EvalConfig
from conclip.rollout.collect import collect, tasks_for
from conclip.runlog import SCHEMA_VERSION
from conclip.runtime import Runtime
from conclip.types import EvalRow, Problem, SamplingSpec


def evaluate(label: str, runtime: Runtime, problems: Sequence[Problem], settings: EvalConfig, path: Path) -> list[EvalRow]:
    """Sample every test problem and append each row to `path` (JSON lines) as soon as it is graded; a Parquet
    copy stands beside it once all are.

    The seeds depend on problem and sample only: models evaluated in one run get the same random streams.
    """
    spec = SamplingSpec(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        logprobs=False,
    )
    tasks = tasks_for(
        problems,
        runtime.prompts,
        num_samples=settings.samples_per_problem,
        seed_parts=(runtime.config.seed, "eval"),
    )
    seeds = {task.key: task.seed for task in tasks}
    rows: list[EvalRow] = []
    began = time.monotonic()
    with path.open("a", encoding="utf-8") as out, runtime.run.progress(label) as on_progress:
        for rollout in collect(
            tasks,
            spec,
            engine=runtime.engine,
            grader=runtime.grader,
            tokenizer=runtime.tokenizer,
            on_progress=on_progress,
        ):
            row = EvalRow(
                benchmark=rollout.problem.source,
                problem_id=rollout.problem.problem_id,
                level=rollout.problem.level,
                sample=rollout.sample,
                seed=seeds[f"{rollout.problem.problem_id}/{rollout.sample}"],
                temperature=settings.temperature,
                outcome=rollout.grade.outcome,
                extracted=rollout.grade.extracted,
                answer=rollout.problem.answer,
                num_tokens=rollout.completion.num_tokens,
                num_prompt_tokens=len(rollout.prompt_token_ids),
                finish_reason=rollout.completion.finish_reason,
                text=rollout.text,
            )
            rows.append(row)
            out.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")
    seconds, num_tokens = time.monotonic() - began, sum(row.num_tokens for row in rows)
    runtime.run.say(f"{label}: {len(rows)} responses, {num_tokens} tokens, {num_tokens / seconds:.0f} tokens/s with grading")
    pq.write_table(pa.Table.from_pylist([_plain(row) for row in rows]), path.with_suffix(".parquet"))
    return rows


def _plain(row: EvalRow) -> dict[str, Any]:
    return {"schema": SCHEMA_VERSION, **asdict(row), "outcome": row.outcome.value}

"""Rows of sampled responses in a file, made unit by unit, and taken over where an earlier attempt has made them.

A unit is a fixed batch of requests, each from a cold prefix cache. One whose rows all exist already, made by the same model,
prompt tokens, sampling and seeds, is taken over; one that was cut is sampled anew as a whole, since another batch may give
other tokens.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from conclip.config import PromptStyle, UserError
from conclip.evaluation.rows import read_lines, to_dict, write_parquet
from conclip.grading import GRADER_VERSION
from conclip.rollout.collect import Task
from conclip.runlog import drop_cut_line
from conclip.runtime import Runtime
from conclip.types import EvalRow, Rollout, SamplingSpec


class RowFile:
    """The rows of one model in one file of a run folder."""

    def __init__(self, path: Path, *, model: str, model_hash: str, attempts: Sequence[Path] = ()) -> None:
        """`model` names it in the rows, `model_hash` tells its weights apart from all others; rows are taken over from what
        `path` holds already, and from files of the same kind in other `attempts`."""
        self.path, self.rows = path, list[EvalRow]()
        self.num_sampled = self.num_sampled_tokens = 0
        self._model, self._model_hash = model, model_hash
        drop_cut_line(path)
        own = _known_rows(path)
        self._written = dict.fromkeys(own)
        self._earlier = _rows_of(attempts, path) | own

    def sample(
        self, runtime: Runtime, label: str, prompt: PromptStyle, tasks: Sequence[Task], spec: SamplingSpec
    ) -> list[EvalRow]:
        """Rows of the tasks, in their order, appended to the file unit by unit."""
        found: list[EvalRow] = []
        with self.path.open("a", encoding="utf-8") as out:
            for unit in _units(tasks, runtime.config.rollout.unit_responses):
                keys = {task.key: response_key(self._model_hash, task, spec) for task in unit}
                earlier = [self._earlier[key] for key in keys.values() if key in self._earlier]
                rows = [replace(row, model=self._model, prompt=prompt) for row in earlier]
                if len(rows) < len(unit):
                    rollouts = {_task_key(rollout): rollout for rollout in runtime.collect(label, unit, spec)}
                    rows = [self._row(rollouts[t.key], t, prompt, spec, keys[t.key]) for t in unit]
                    self.num_sampled += len(rows)
                    self.num_sampled_tokens += sum(row.num_tokens for row in rows)
                new = [row for row in rows if row.key not in self._written]
                out.writelines(json.dumps(to_dict(row), ensure_ascii=False) + "\n" for row in new)
                out.flush()
                self._written |= dict.fromkeys(row.key for row in new)
                found += rows
        self.rows += found
        return found

    def finish(self, rows: Iterable[EvalRow] | None = None) -> None:
        """Leave exactly the given rows (default: all sampled) in their order, here and in a Parquet copy."""
        final = list(self.rows if rows is None else rows)
        if list(self._written) != [row.key for row in final]:
            aside = self.path.with_name(self.path.name + ".part")
            with aside.open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(to_dict(row), ensure_ascii=False) + "\n" for row in final)
            aside.replace(self.path)
        write_parquet(final, self.path.with_suffix(".parquet"))

    def _row(self, rollout: Rollout, task: Task, prompt: str, spec: SamplingSpec, key: str) -> EvalRow:
        problem, grade = rollout.problem, rollout.grade
        return EvalRow(
            benchmark=problem.source,
            problem_id=problem.problem_id,
            level=problem.level,
            subject=problem.subject,
            model=self._model,
            prompt=prompt,
            sample=rollout.sample,
            seed=task.seed,
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


def response_key(model_hash: str, task: Task, spec: SamplingSpec) -> str:
    """Hash of everything that changes a response, and of how it is judged."""
    asked = task.messages or task.prompt_token_ids
    parts = [model_hash, asked, asdict(spec), task.seed, task.problem.answer, GRADER_VERSION]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _task_key(rollout: Rollout) -> str:
    return f"{rollout.problem.problem_id}/{rollout.sample}"


def _units(tasks: Sequence[Task], size: int) -> Iterator[list[Task]]:
    remaining = iter(tasks)
    while unit := list(islice(remaining, size)):
        yield unit


def _known_rows(path: Path) -> dict[str, EvalRow]:
    """Rows of a file by key; none of one that is missing, damaged or of another schema."""
    try:
        return {row.key: row for row in read_lines(path)}
    except (OSError, UserError, ValueError, KeyError):
        return {}


def _rows_of(attempts: Iterable[Path], path: Path) -> dict[str, EvalRow]:
    """Rows of all files of the same kind (`rows-*`, `probe_rows-*`), oldest attempt first."""
    pattern = f"{path.name.partition('-')[0]}-*.jsonl"
    files = [file for folder in reversed(list(attempts)) for file in sorted(folder.glob(pattern))]
    found: dict[str, EvalRow] = {}
    for file in files:
        found |= _known_rows(file)
    return found

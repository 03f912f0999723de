"""Samples rows into a file, unit by unit, and reuses those that an earlier attempt sampled.

A unit is a fixed batch of requests, each from a cold prefix cache. A unit whose rows all exist, made by the same model,
prompt tokens, sampling and seeds, is reused. A unit that was cut is sampled again as a whole, since another batch may give
other tokens. A server forms its own batches: there every row is kept as it comes, and reused by itself.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from conclip.config.schema import BaseConfig
from conclip.errors import UserError, check_folder
from conclip.evaluation.overthinking import first_mention, tokens_up_to
from conclip.evaluation.rows import from_dict, to_dict, write_parquet
from conclip.grading.grader import GRADER_VERSION
from conclip.grading.thinking import thinking_end
from conclip.models.chat_template import decoder
from conclip.rollout.collect import Task
from conclip.rollout.session import Runtime
from conclip.runs.files import appending, writing
from conclip.runs.identity import digest
from conclip.runs.json_lines import json_lines, run_lines
from conclip.runs.sampling_progress import BatchContext
from conclip.types import EvalRow, Rollout


class RowFile:
    """The rows of one model in one file of a run folder."""

    def __init__(self, path: Path, *, model: str, model_hash: str, attempts: Sequence[Path] = ()) -> None:
        """`model` is its name in the rows, `model_hash` the hash of its weights. Rows are reused from `path`, and from
        files of the same type in other `attempts`."""
        self.path, self.rows = path, list[EvalRow]()
        self.num_sampled = self.num_sampled_tokens = 0
        self._seconds = 0.0  # time that sampling took
        self._model, self._model_hash = model, model_hash
        own = _known_rows(path)
        if path.exists():
            _write(path, own.values())  # drop cut lines, and break hard links to other attempts
        self._written = dict.fromkeys(own)
        self._earlier = _rows_of(attempts, path) | own

    def sample(
        self,
        runtime: Runtime,
        label: str,
        tasks: Sequence[Task],
        *,
        num_after: int = 0,
    ) -> list[EvalRow]:
        """Return the rows of the tasks, in their order, and append them to the file unit by unit. `num_after`: responses of
        later calls, for the display's time left."""
        sampled: list[EvalRow] = []
        extraction = runtime.config.rollout.extraction
        tags = {task.thinking.tags for task in tasks}
        decoders = {} if runtime.tokenizer is None else {each: decoder(runtime.tokenizer, each) for each in tags}
        with appending(self.path) as out:
            for unit in _units(tasks, runtime.config.rollout.unit_responses):
                keys = {task.key: response_key(self._model_hash, task, runtime.config) for task in unit}
                known = [(t, self._earlier[keys[t.key]]) for t in unit if keys[t.key] in self._earlier]
                rows = {task.key: replace(row.by(extraction), **self._names(task)) for task, row in known}
                missing = [task for task in unit if task.key not in rows]
                if missing:
                    began = time.monotonic()
                    context = BatchContext(
                        num_before=len(self.rows) + len(sampled),
                        num_after=len(tasks) - len(sampled) - len(unit) + num_after,
                        num_sampled=self.num_sampled,
                        seconds=self._seconds,
                    )
                    is_served = runtime.tokenizer is None  # behind a server
                    requested = {task.key: task for task in (missing if is_served else unit)}
                    for rollout in runtime.collect(label, list(requested.values()), context):
                        task = requested[rollout.completion.request_id]
                        row = self._row(rollout, task, keys[task.key]).by(extraction)
                        if decoders:
                            row = replace(row, **_places(rollout, task, decoders[task.thinking.tags]))
                        rows[task.key] = row
                        self.num_sampled += 1
                        self.num_sampled_tokens += row.num_tokens
                        if is_served:
                            self._append(out, [row])
                    self._seconds += time.monotonic() - began
                check_folder(self.path.parent)
                self._append(out, [rows[task.key] for task in unit])
                os.fsync(out.fileno())
                sampled += [rows[task.key] for task in unit]
        self.rows += sampled
        return sampled

    def finish(self, rows: Iterable[EvalRow] | None = None) -> None:
        """Write exactly the given rows (default: all sampled) in their order, here and in a Parquet copy."""
        final = list(self.rows if rows is None else rows)
        _write(self.path, final)
        write_parquet(final, self.path.with_suffix(".parquet"))

    def _append(self, out: TextIO, rows: Iterable[EvalRow]) -> None:
        """Append the rows that are not in the file yet."""
        new = [row for row in rows if row.key not in self._written]
        out.writelines(map(_line, new))
        out.flush()
        self._written |= dict.fromkeys(row.key for row in new)

    def _names(self, task: Task) -> dict[str, Any]:
        """Return the columns that name a row, whichever attempt sampled it."""
        problem, (prompt, template) = task.problem, task.variant
        return {
            "model": self._model,
            "prompt": prompt,
            "template": template,
            "benchmark": problem.source,
            "problem_id": problem.problem_id,
            "level": problem.level,
            "subject": problem.subject,
            "sample": task.sample,
        }

    def _row(self, rollout: Rollout, task: Task, key: str) -> EvalRow:
        grade, spec = rollout.grade, task.spec
        return EvalRow(
            **self._names(task),
            seed=task.seed,
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
            max_tokens=spec.max_tokens,
            thinking_budget=spec.thinking_budget,
            outcome=grade.outcome,
            extracted=grade.extracted,
            lenient_outcome=grade.lenient_outcome or grade.outcome,
            lenient_extracted=grade.lenient_extracted,
            method=grade.method,
            grader_version=GRADER_VERSION,
            answer=task.problem.shown_answer,
            num_tokens=rollout.completion.num_tokens,
            num_prompt_tokens=rollout.completion.reported_prompt_tokens or len(rollout.prompt_token_ids),
            finish_reason=rollout.completion.finish_reason,
            key=key,
            text=rollout.text,
            reasoning=rollout.completion.reasoning,
            verifier=None if task.problem.verifier is None else task.problem.verifier.short_name,
        )


def _places(rollout: Rollout, task: Task, decode: Callable[[Sequence[int]], str]) -> dict[str, int | None]:
    """Return the columns that say where in the tokens the thinking part ends and the answer is first written."""
    ids = rollout.completion.token_ids
    end, mention = thinking_end(rollout.text, task.thinking), first_mention(rollout.text, task.problem)
    return {
        "num_thinking_tokens": tokens_up_to(end, ids, decode),
        "num_tokens_to_answer": None if mention is None else tokens_up_to(mention, ids, decode),
    }


def response_key(model_hash: str, task: Task, config: BaseConfig) -> str:
    """Return the hash of everything that changes a response, and of how it is judged. It covers the engine's limits, not
    what else a unit held; a server has an engine of its own."""
    rollout, problem = config.rollout, task.problem
    prompt = [task.messages, dict(task.template_kwargs)] if task.messages else task.prompt_token_ids
    engine = [config.model.dtype, rollout.max_num_seqs, rollout.max_num_batched_tokens, rollout.tensor_parallel_size]
    engine += [rollout.kv_cache_gib, rollout.max_model_len, rollout.enforce_eager, config.model.stop_tokens]
    engine += [rollout.num_engines] if rollout.num_engines > 1 else []
    engine += ["deterministic"] if rollout.deterministic else []
    if task.messages:
        engine = ["sampling is stated", *(["special tokens"] if config.model.thinking_tags is not None else [])]
    judged = [problem.golds, problem.choices, problem.tolerance, GRADER_VERSION, asdict(task.thinking)]
    judged += [] if problem.verifier is None else [problem.verifier.identity]
    return digest([model_hash, prompt, asdict(task.spec), task.seed, engine, judged])


def _line(row: EvalRow) -> str:
    """Return a row as JSON, with a hash that reveals changes."""
    values = to_dict(row)
    return json.dumps(values | {"check": digest(values)}, ensure_ascii=False) + "\n"


def _write(path: Path, rows: Iterable[EvalRow]) -> None:
    with writing(path) as out:
        out.writelines(map(_line, rows))


def _units(tasks: Sequence[Task], size: int) -> Iterator[list[Task]]:
    remaining = iter(tasks)
    while unit := list(islice(remaining, size)):
        yield unit


def _known_rows(path: Path) -> dict[str, EvalRow]:
    """Return the rows of a file by key; lines that are cut, altered or of another schema are skipped."""
    rows: dict[str, EvalRow] = {}
    for _, values in json_lines(run_lines(path, errors="replace"), cut_line="read", damaged="skip"):
        try:
            if values.pop("check") == digest(values):
                rows[values["key"]] = from_dict(values)
        except (UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return rows


def _rows_of(attempts: Iterable[Path], path: Path) -> dict[str, EvalRow]:
    """Return the rows of all files of the same type (`rows-*`, `probe_rows-*`), oldest attempt first."""
    pattern = f"{path.name.partition('-')[0]}-*.jsonl"
    files = [file for folder in reversed(list(attempts)) for file in sorted(folder.glob(pattern))]
    rows: dict[str, EvalRow] = {}
    for file in files:
        rows |= _known_rows(file)
    return rows

"""Sampling and grading together: the one loop behind probing, training and evaluation."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from conclip.errors import UserError
from conclip.grading.grader import Grader
from conclip.grading.thinking import PLAIN, Thinking, answer_of, joined
from conclip.models.chat_template import decoder
from conclip.rollout.engine import EngineDied, RolloutEngine
from conclip.runs.interrupts import deferred
from conclip.runs.sampling_progress import SamplingProgress
from conclip.seeding import derive_seed
from conclip.types import (
    Completion,
    Grade,
    Messages,
    Outcome,
    Problem,
    Request,
    Rollout,
    RolloutGroup,
    SamplingSpec,
)

PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One response to collect."""

    problem: Problem
    sample: int
    prompt_token_ids: tuple[int, ...]
    seed: int
    messages: Messages = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a server's chat template gets besides."""
    thinking: Thinking = PLAIN

    @property
    def key(self) -> str:
        return f"{self.problem.problem_id}/{self.sample}"


def tasks_for(
    problems: Sequence[Problem],
    prompts: Mapping[str, tuple[int, ...]],
    *,
    num_samples: int,
    seed_parts: tuple[int | str, ...],
    messages: Mapping[str, Messages] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    thinking: Thinking = PLAIN,
    first_sample: int = 0,
) -> list[Task]:
    """`num_samples` tasks per problem from `first_sample` on, problem by problem. Each one's seed depends on `seed_parts`,
    problem and sample alone, so that the same response can be asked for again. `thinking` holds for all of the prompts."""
    return [
        Task(
            problem=problem,
            sample=sample,
            prompt_token_ids=prompts.get(problem.problem_id, ()),
            seed=derive_seed(*seed_parts, problem.problem_id, sample),
            messages=messages[problem.problem_id] if messages else (),
            template_kwargs=template_kwargs or {},
            thinking=thinking,
        )
        for problem in problems
        for sample in range(first_sample, first_sample + num_samples)
    ]


def collect(
    tasks: Sequence[Task],
    spec: SamplingSpec,
    *,
    engine: RolloutEngine,
    grader: Grader,
    tokenizer: PreTrainedTokenizerBase | None,
    on_progress: Callable[[SamplingProgress], None] | None = None,
    label: str = "",
) -> Iterator[Rollout]:
    """Sample and grade every task, yielding rollouts as their verdicts arrive, in any order.

    One call is one unit of work: it starts from a cold prefix cache. Grading runs beside generation, and sees what stands
    behind a response's thinking part only. When the caller stops early (an exception, Ctrl-C), what is in flight is aborted.
    """
    by_key = {task.key: task for task in tasks}
    if len(by_key) != len(tasks):
        raise ValueError("two tasks share a problem id and sample number")
    graded: dict[str, tuple[Completion, str]] = {}
    all_tags = {task.thinking.tags for task in tasks}
    decode = {tags: decoder(tokenizer, tags) for tags in all_tags} if tokenizer is not None else {}
    outcomes = dict.fromkeys(Outcome, 0)
    num_done = num_finished = finished_tokens = 0

    def judged(timeout_s: float) -> Iterator[Rollout]:
        nonlocal num_done
        for key, grade in grader.poll(timeout_s):
            completion, text = graded.pop(key)
            num_done += 1
            outcomes[grade.outcome] += 1
            yield _rollout(by_key[key], completion, text, grade)

    tokens_before = engine.progress()
    began = last_report = time.monotonic()
    engine.reset_cache()
    requests = [
        Request(
            request_id=task.key,
            prompt_token_ids=task.prompt_token_ids,
            seed=task.seed,
            messages=task.messages,
            template_kwargs=task.template_kwargs,
        )
        for task in tasks
    ]
    engine.submit(requests, spec)
    try:
        while num_done < len(tasks):
            sampling = num_finished < len(tasks)
            try:
                with deferred():  # a signal must not leave the engine amid a step
                    finished = engine.poll() if sampling else []
            except (EngineDied, UserError):
                while graded:  # what came before is handed on
                    yield from judged(1.0)
                raise
            for completion in finished:
                task = by_key[completion.request_id]
                text = completion.text
                if text is None:
                    text = decode[task.thinking.tags](completion.token_ids)
                graded[task.key] = (completion, text)
                grader.submit(
                    task.key,
                    gold=task.problem.golds,
                    text=_answer(completion, text, task.thinking),
                    finish_reason=completion.finish_reason,
                    choices=task.problem.choices,
                    tolerance=task.problem.tolerance,
                )
                num_finished += 1
                finished_tokens += completion.num_tokens
            yield from judged(0.0 if sampling else 1.0)
            now = time.monotonic()
            if on_progress is not None and (now - last_report > PROGRESS_EVERY_S or num_done == len(tasks)):
                last_report = now
                num_tokens = engine.progress() - tokens_before
                on_progress(
                    SamplingProgress(
                        label=label,
                        num_finished=num_finished,
                        num_total=len(tasks),
                        num_tokens=num_tokens,
                        mean_tokens=finished_tokens / max(1, num_finished),
                        tokens_per_s=num_tokens / max(1e-9, now - began),
                        outcomes=dict(outcomes),
                        seconds=now - began,
                    )
                )
    finally:
        if num_finished < len(tasks):
            engine.abort()


def _answer(completion: Completion, text: str, thinking: Thinking) -> str:
    """What the grader gets to see: the same whether or not a server has handed out the thinking part by itself."""
    if completion.reasoning is None:
        return answer_of(text, thinking)
    return answer_of(joined(completion.reasoning, text, thinking.tags), Thinking(thinking.tags))


def _rollout(task: Task, completion: Completion, text: str, grade: Grade) -> Rollout:
    return Rollout(
        problem=task.problem,
        sample=task.sample,
        prompt_token_ids=task.prompt_token_ids,
        completion=completion,
        text=text,
        grade=grade,
    )


def group_rollouts(rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[RolloutGroup]:
    """One group per problem in the order of `problems`, rollouts in sample order: independent of finishing order."""
    members: dict[str, list[Rollout]] = {problem.problem_id: [] for problem in problems}
    for rollout in rollouts:
        members[rollout.problem.problem_id].append(rollout)
    return [RolloutGroup(problem=p, rollouts=tuple(sorted(members[p.problem_id], key=lambda r: r.sample))) for p in problems]

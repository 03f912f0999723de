"""Concurrent sampling and grading: the one loop behind probing, training and evaluation."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

from transformers import PreTrainedTokenizerBase

from conclip.config.groups import PromptVariant
from conclip.errors import UserError
from conclip.grading.grader import Grader
from conclip.grading.thinking import PLAIN, Thinking, answer_of, joined
from conclip.models.chat_template import decoder
from conclip.rollout.engine import EngineDied, RolloutEngine
from conclip.runs.interrupts import deferred
from conclip.runs.sampling_progress import SamplingProgress
from conclip.runs.stopwatch import Stopwatch
from conclip.seeding import derive_seed
from conclip.types import (
    DEFAULT_TEMPLATE,
    Completion,
    ExtractionRule,
    Messages,
    Outcome,
    Problem,
    Request,
    Rollout,
    RolloutGroup,
    SamplingSpec,
)

TRAINING: PromptVariant = ("plain", DEFAULT_TEMPLATE)
"""The prompt variant of training, probing and validation."""

PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The prompts of all problems of a run in one variant."""

    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Prompts by problem id; empty for a model behind a server, which gets `messages` and `template_kwargs`."""
    messages: Mapping[str, Messages] = field(default_factory=dict[str, Messages])
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    thinking: Thinking = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One response to collect."""

    problem: Problem
    variant: PromptVariant
    """The variant of its prompt."""
    spec: SamplingSpec
    sample: int
    prompt_token_ids: tuple[int, ...]
    seed: int
    messages: Messages
    template_kwargs: Mapping[str, Any]
    """Further arguments of a server's chat template."""
    thinking: Thinking
    condition: str = ""
    """Tells apart the tasks of one unit that share problem and sample number."""

    @property
    def key(self) -> str:
        return f"{self.problem.problem_id}/{self.sample}" + (f"/{self.condition}" if self.condition else "")

    @property
    def request(self) -> Request:
        """Return the request to the engine."""
        return Request(
            request_id=self.key,
            prompt_token_ids=self.prompt_token_ids,
            seed=self.seed,
            messages=self.messages,
            template_kwargs=self.template_kwargs,
        )


def tasks_for(
    problems: Sequence[Problem],
    prompts: PromptSet,
    num_samples: int,
    seed_parts: tuple[int | str, ...],
    spec: SamplingSpec,
    *,
    variant: PromptVariant = TRAINING,
    first_sample: int = 0,
    condition: str = "",
) -> list[Task]:
    """Return `num_samples` tasks per problem, numbered from `first_sample`, problem by problem. A task's seed depends only
    on `seed_parts`, problem and sample number, so that the same response can be sampled again."""
    return [
        Task(
            problem=problem,
            variant=variant,
            spec=spec,
            sample=sample,
            prompt_token_ids=prompts.token_ids.get(problem.problem_id, ()),
            seed=derive_seed(*seed_parts, problem.problem_id, sample),
            messages=prompts.messages.get(problem.problem_id, ()),
            template_kwargs=prompts.template_kwargs,
            thinking=prompts.thinking,
            condition=condition,
        )
        for problem in problems
        for sample in range(first_sample, first_sample + num_samples)
    ]


def collect(
    tasks: Sequence[Task],
    *,
    engine: RolloutEngine,
    grader: Grader,
    tokenizer: PreTrainedTokenizerBase | None,
    on_progress: Callable[[SamplingProgress], None] | None = None,
    label: str = "",
    extraction: ExtractionRule = "strict",
    stopwatch: Stopwatch | None = None,
) -> Iterator[Rollout]:
    """Sample and grade every task, and yield rollouts as their grades arrive, in any order.

    One call is one unit of work: it starts from a cold prefix cache. Grading runs in parallel with generation, on the text
    after a response's thinking part; outcomes are those that count by `extraction`. When the caller stops early (an
    exception, Ctrl-C), requests in flight are aborted. The stopwatch counts what the engine takes as `generate`, and as
    `grade` what grading adds to it: handing over responses, and waiting for the last grades.
    """
    stopwatch = stopwatch or Stopwatch()
    unit = _Unit(tasks, grader, tokenizer, extraction)
    tokens_before, began = engine.progress(), time.monotonic()
    last_report = began
    try:
        with stopwatch.part("generate"):
            engine.reset_cache()
            for spec, alike in groupby(tasks, key=attrgetter("spec")):
                engine.submit([task.request for task in alike], spec)
        while unit.num_done < len(tasks):
            sampling = unit.num_finished < len(tasks)
            try:
                with deferred(), stopwatch.part("generate"):  # a signal must not interrupt the engine within a step
                    finished = engine.poll() if sampling else []
            except (EngineDied, UserError):
                while unit.at_grader:  # the completions before it still count
                    yield from unit.graded(1.0)
                raise
            with stopwatch.part("grade"):
                for completion in finished:
                    unit.submit(completion)
                graded = list(unit.graded(0.0 if sampling else 1.0))
            yield from graded
            now = time.monotonic()
            if on_progress is not None and (now - last_report > PROGRESS_EVERY_S or unit.num_done == len(tasks)):
                last_report = now
                on_progress(unit.progress(label, engine.progress() - tokens_before, now - began))
    finally:
        if unit.num_finished < len(tasks):
            engine.abort()


class _Unit:
    """One unit of work: its tasks, the completions that the grader has, and its progress."""

    def __init__(
        self,
        tasks: Sequence[Task],
        grader: Grader,
        tokenizer: PreTrainedTokenizerBase | None,
        extraction: ExtractionRule,
    ) -> None:
        self._tasks = {task.key: task for task in tasks}
        if len(self._tasks) != len(tasks):
            raise ValueError("two tasks share a problem id, sample number and condition")
        self._grader = grader
        self._extraction: ExtractionRule = extraction
        all_tags = {task.thinking.tags for task in tasks}
        self._decoders = {tags: decoder(tokenizer, tags) for tags in all_tags} if tokenizer is not None else {}
        self.at_grader: dict[str, tuple[Completion, str]] = {}
        self._outcomes = dict.fromkeys(Outcome, 0)
        self.num_done = self.num_finished = self._finished_tokens = 0

    def submit(self, completion: Completion) -> None:
        """Submit a finished completion to the grader."""
        task = self._tasks[completion.request_id]
        text = completion.text
        if text is None:
            text = self._decoders[task.thinking.tags](completion.token_ids)
        self.at_grader[task.key] = (completion, text)
        self._grader.submit(
            task.key,
            gold=task.problem.golds,
            text=_answer(completion, text, task.thinking),
            finish_reason=completion.finish_reason,
            choices=task.problem.choices,
            tolerance=task.problem.tolerance,
            verifier=task.problem.verifier,
        )
        self.num_finished += 1
        self._finished_tokens += completion.num_tokens

    def graded(self, timeout_s: float) -> Iterator[Rollout]:
        """Yield the rollouts that the grader has judged, waiting for a grade for at most `timeout_s`."""
        for key, verdict in self._grader.poll(timeout_s):
            grade = verdict.by(self._extraction)
            completion, text = self.at_grader.pop(key)
            self.num_done += 1
            self._outcomes[grade.outcome] += 1
            task = self._tasks[key]
            yield Rollout(
                problem=task.problem,
                sample=task.sample,
                prompt_token_ids=task.prompt_token_ids,
                completion=completion,
                text=text,
                grade=grade,
            )

    def progress(self, label: str, num_tokens: int, seconds: float) -> SamplingProgress:
        return SamplingProgress(
            label=label,
            num_finished=self.num_finished,
            num_total=len(self._tasks),
            num_tokens=num_tokens,
            mean_tokens=self._finished_tokens / max(1, self.num_finished),
            tokens_per_s=num_tokens / max(1e-9, seconds),
            outcomes=dict(self._outcomes),
            seconds=seconds,
        )


def _answer(completion: Completion, text: str, thinking: Thinking) -> str:
    """Return the text that the grader sees: the same whether or not a server returns the thinking part separately."""
    if completion.reasoning is None:
        return answer_of(text, thinking)
    return answer_of(joined(completion.reasoning, text, thinking.tags), Thinking(thinking.tags))


def group_rollouts(rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[RolloutGroup]:
    """Return one group per problem in the order of `problems`, with rollouts in sample order: the order in which they
    finished does not matter."""
    members: dict[str, list[Rollout]] = {problem.problem_id: [] for problem in problems}
    for rollout in rollouts:
        members[rollout.problem.problem_id].append(rollout)
    return [RolloutGroup(problem=p, rollouts=tuple(sorted(members[p.problem_id], key=lambda r: r.sample))) for p in problems]

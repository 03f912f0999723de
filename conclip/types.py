"""The values that travel between stages: frozen, keyword-only, without torch.

One word per thing: a `problem` is asked, a `completion` is one sampled response, a `rollout` is a completion with its
problem, grade and reward, a `group` is all rollouts of one problem in one step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort", "content_filter"]
"""How a response ended: by itself, at the token limit, dropped by the engine, or withheld by a server's filter."""

ExtractionRule = Literal["strict", "lenient"]
"""Which answers count: those in a box only, or also those found by the agreed fall-backs (`conclip.grading.answers`)."""


class Outcome(StrEnum):
    """What became of a response. The list is closed: every response has exactly one outcome."""

    CORRECT = "correct"
    WRONG = "wrong"
    """The response ended with an answer that is not the gold one."""
    NO_ANSWER = "no_answer"
    """The response ended without an extractable answer."""
    TRUNCATED = "truncated"
    """The response was cut, at the token limit or by a server's filter; its text so far is not judged."""
    GRADER_ERROR = "grader_error"
    """The grader failed or ran out of time; never counted as wrong, never trained on."""


def step_accuracy(metrics: Mapping[str, float]) -> float | None:
    """Return the share of correct responses among those that could be graded, from a training step's metrics; None where
    none could."""
    graded = 1 - metrics[f"outcome/{Outcome.GRADER_ERROR.value}"]
    return metrics[f"outcome/{Outcome.CORRECT.value}"] / graded if graded > 0 else None


WARNING_SHARE = 0.1
"""Share of responses without an answer that counts, or truncated, above which the user is warned: format or the token limit
then decides much of the result."""

TRUNCATION_ADVICE = (
    "give more room, or, where responses run on behind their answer, name the token that ends a turn (model.stop_tokens)"
)
"""What to do then."""

Stratum = tuple[str, str | None, int | None]
"""Source, subject and level, by which similar problems are pooled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A function of the user's own that decides whether a response is right (`conclip.grading.verifier`)."""

    file: str
    """The Python file, as an absolute path."""
    function: str
    sha256: str
    """Hash of the file's content."""

    @property
    def identity(self) -> tuple[str, str]:
        """What decides its verdicts, wherever the file lies."""
        return (self.function, self.sha256)

    @property
    def short_name(self) -> str:
        return f"{self.function}@{self.sha256[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question with a checkable answer."""

    problem_id: str
    """Unique id within a run."""
    question: str
    answer: str
    """The gold answer as text, without ``\\boxed{}``; with a verifier, whatever it compares a response with."""
    alternatives: tuple[str, ...] = ()
    """Further gold answers; any one of them is right."""
    tolerance: float = 0.0
    """Share of a gold number by which an answer may differ; 0 compares exactly."""
    source: str
    """Benchmark or family name; results are reported per source."""
    level: int | None = None
    """Difficulty as the data set states it; None when it states none."""
    subject: str | None = None
    choices: tuple[str, ...] | None = None
    """Texts of options A, B, ... of a multiple-choice question; its answer is a letter."""
    examples: tuple[str, ...] = ()
    """Worked examples, shown before the question but no part of it: two problems that share them are not the same."""
    verifier: Verifier | None = None
    """What judges responses in place of the comparison with gold answers."""

    @property
    def golds(self) -> tuple[str, ...]:
        """Every gold answer."""
        return (self.answer, *self.alternatives)

    @property
    def shown_answer(self) -> str:
        """The gold answer, or all of several, for people."""
        return " or ".join(self.golds)

    @property
    def prompt_text(self) -> str:
        """The text that the model reads, without the prompt's frame."""
        return "\n\n".join([*self.examples, self.question])

    @property
    def stratum(self) -> Stratum:
        """The group of similar problems it belongs to."""
        return (self.source, self.subject, self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """How responses are sampled. Every field changes a response."""

    temperature: float
    """Sampling temperature; 0 means greedy."""
    top_p: float = 1.0
    top_k: int = -1
    """Number of likeliest tokens to sample from; -1 means the whole vocabulary."""
    max_tokens: int
    """Longest response in tokens; a response that reaches it without ending is truncated."""
    thinking_budget: int | None = None
    """Tokens after which the engine closes the thinking part; None: the model decides."""
    logprobs: bool = True
    """Whether the engine reports the log-probability of each sampled token."""


DEFAULT_TEMPLATE = "default"
"""Name of the template variant that gets `model.chat_template_kwargs` alone."""

PromptCondition = tuple[str, str, int | None]
"""How a problem is put to the model: the instruction and the template variant, both by name, and the thinking budget."""

Messages = tuple[tuple[str, str], ...]
"""(role, content) of each turn of a chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One response to sample."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    seed: int
    """Seed of this response's own random stream."""
    messages: Messages = ()
    """The chat itself, for a server that makes the token ids."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of such a server's chat template; token ids already reflect them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled response, token by token.

    Example: ``Completion(request_id="7/0", token_ids=(11, 42, 3), logprobs=(-0.1, -2.0, -0.01), finish_reason="stop",
    policy_version=4)`` ended itself: its last token is the model's own end token.
    """

    request_id: str
    token_ids: tuple[int, ...]
    """Generated tokens, the end token included when the model sampled one; never a token it did not sample."""
    logprobs: tuple[float, ...]
    """`sampler_logprobs`: log-probability of each token under the engine's policy, temperature applied. Same length;
    empty when the sampling was greedy or log-probs were not asked for."""
    finish_reason: FinishReason
    policy_version: int
    """Version of the weights that sampled it."""
    text: str | None = None
    """The response where a server gives text and no token ids; None: decode them."""
    reasoning: str | None = None
    """The thinking part where a server sends it separately from `text`."""
    reported_tokens: int | None = None
    """Length of the response as such a server reports it [tokens]."""
    reported_prompt_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) if self.reported_tokens is None else self.reported_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The grader's verdict on one response."""

    outcome: Outcome
    """The outcome that counts, by `rollout.extraction`. Strict: an answer outside a box is none. Lenient: the same as
    `lenient_outcome`."""
    extracted: str | None
    """The answer as found in the response; None when there is none."""
    lenient_outcome: Outcome | None = None
    """Outcome with the agreed fall-backs (`conclip.grading.answers`) where there is no box; None when not looked for."""
    lenient_extracted: str | None = None
    method: str | None = None
    """How the lenient answer was found: boxed, hashes, phrase, math, number, whole; None when there is none."""

    def by(self, extraction: ExtractionRule) -> "Grade":
        """Return the grade with the outcome that counts by `extraction`."""
        if self.lenient_outcome is None:
            return self
        outcome, extracted = _counted(self.lenient_outcome, self.lenient_extracted, self.method, extraction)
        return replace(self, outcome=outcome, extracted=extracted)


def _counted(
    lenient: Outcome, extracted: str | None, method: str | None, extraction: ExtractionRule
) -> tuple[Outcome, str | None]:
    """Return the outcome that counts and its answer, from the lenient ones and how the answer was found."""
    if extraction == "lenient" or method in (None, "boxed", "whole") or lenient is Outcome.TRUNCATED:
        return lenient, extracted
    return Outcome.NO_ANSWER, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A graded completion and what it earned."""

    problem: Problem
    sample: int
    """Index within the group, from 0."""
    prompt_token_ids: tuple[int, ...]
    completion: Completion
    text: str
    grade: Grade
    reward: float | None = None
    """None until rewards are assigned, and always for a response that earns none (grader error)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one problem in one step, in sample order."""

    problem: Problem
    rollouts: tuple[Rollout, ...]

    @property
    def pass_rate(self) -> float | None:
        """Share of correct rollouts among those the grader could judge; None when it judged none."""
        judged = [r for r in self.rollouts if r.grade.outcome is not Outcome.GRADER_ERROR]
        if not judged:
            return None
        return sum(r.grade.outcome is Outcome.CORRECT for r in judged) / len(judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRow:
    """One response of an evaluation; every table and picture is a function of these."""

    benchmark: str
    problem_id: str
    level: int | None
    subject: str | None
    model: str
    """Name of the model within the evaluation."""
    prompt: str
    """Name of the instruction (`conclip.problems.prompts`)."""
    sample: int
    seed: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    outcome: Outcome
    """The outcome that counts, by `extraction`."""
    extracted: str | None
    lenient_outcome: Outcome
    """Outcome with the agreed fall-backs where there is no box."""
    lenient_extracted: str | None
    method: str | None
    """How the lenient answer was found."""
    grader_version: int
    answer: str
    num_tokens: int
    """Generated token ids, the end token included."""
    num_prompt_tokens: int
    finish_reason: FinishReason
    key: str
    """Hash of everything that changes this response: model, prompt tokens, sampling, seed."""
    text: str
    template: str = DEFAULT_TEMPLATE
    """Name of the template variant (`eval.template_kwargs`)."""
    thinking_budget: int | None = None
    """Tokens after which the engine closed the thinking part; None: no limit."""
    reasoning: str | None = None
    """The thinking part where a server sent it separately; None: `text` holds it, if there is one."""
    extraction: ExtractionRule = "strict"
    """Which answers count in `outcome`."""
    num_thinking_tokens: int | None = None
    """Tokens of the thinking part, its tags included; None: not known, as behind a server."""
    num_tokens_to_answer: int | None = None
    """Tokens up to the first place where the gold answer is written; None: nowhere, or not known
    (`conclip.evaluation.overthinking`)."""
    verifier: str | None = None
    """The verifier that judged it, as function@hash of its file; None: the answer was compared."""

    def by(self, extraction: ExtractionRule) -> "EvalRow":
        """Return the row with the outcome that counts by `extraction`. A verifier looks for no box."""
        extraction = extraction if self.verifier is None else "lenient"
        outcome, extracted = _counted(self.lenient_outcome, self.lenient_extracted, self.method, extraction)
        return replace(self, outcome=outcome, extracted=extracted, extraction=extraction)

    @property
    def prompt_condition(self) -> PromptCondition:
        """How the problem was put to the model."""
        return self.prompt, self.template, self.thinking_budget


def condition_name(prompt: str, template: str, thinking_budget: int | None) -> str:
    """Return `EvalRow.prompt_condition` in words."""
    parts = [prompt] + ([template] if template != DEFAULT_TEMPLATE else [])
    return ", ".join(parts + ([f"thinking <= {thinking_budget}"] if thinking_budget is not None else []))

"""What a subcommand holds while it works: engine, grader, tokenizer and run folder, opened and closed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from conclip.config import BaseConfig, EvalRunConfig, PromptStyle, TwoPhaseConfig, UserError
from conclip.grading import Grader
from conclip.models.architectures import implementation
from conclip.models.load import load_tokenizer, reading
from conclip.prompts import encode_prompt, messages_for
from conclip.rollout.collect import Task, collect, group_rollouts, tasks_for
from conclip.rollout.engine import RolloutEngine
from conclip.runlog import Run
from conclip.types import ALONE, Messages, OtherBatches, Problem, Rollout, RolloutGroup, SamplingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Open resources of one run. Make one with `open_runtime`."""

    config: BaseConfig
    run: Run
    engine: RolloutEngine
    grader: Grader
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model behind a server."""
    prompts: dict[PromptStyle, dict[str, tuple[int, ...]]]
    """Prompt token ids by instruction and problem id, for every problem the run may ask; "plain" is always there.
    Empty for a model behind a server, which gets `messages`."""
    messages: dict[PromptStyle, dict[str, Messages]]

    def sample_groups(
        self, label: str, problems: Sequence[Problem], spec: SamplingSpec, num_samples: int, *seed_parts: int | str
    ) -> list[RolloutGroup]:
        """Sample and grade `num_samples` responses per problem; groups in the order of `problems`."""
        tasks = tasks_for(
            problems, self.prompts["plain"], num_samples=num_samples, seed_parts=(self.config.seed, *seed_parts)
        )
        return group_rollouts(list(self.collect(label, tasks, spec)), problems)

    def collect(
        self, label: str, tasks: Sequence[Task], spec: SamplingSpec, others: OtherBatches = ALONE
    ) -> Iterator[Rollout]:
        """Sample and grade the tasks, shown to people as `label`, beside `others`; rollouts in the order they finish."""
        return collect(
            tasks,
            spec,
            engine=self.engine,
            grader=self.grader,
            tokenizer=self.tokenizer,
            on_progress=lambda now: self.run.show_sampling(replace(now, others=others)),
            label=label,
        )

    @property
    def training_spec(self) -> SamplingSpec:
        """How training, probing and validation sample: the whole distribution at the configured temperature."""
        rollout = self.config.rollout
        return SamplingSpec(temperature=rollout.temperature, max_tokens=rollout.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Every prompt a run may ask a model, and the tokens of prompt and response together that its engine must hold."""

    tokenizer: PreTrainedTokenizerBase
    by_style: dict[PromptStyle, dict[str, tuple[int, ...]]]
    max_model_len: int


def encode_prompts(config: BaseConfig, model_path: Path, problems: Sequence[Problem], max_tokens: int) -> Prompts:
    """Raises UserError naming a problem whose prompt leaves no room for `max_tokens`."""
    trust = config.model.trust_remote_code
    with reading(model_path, "the tokenizer"):
        tokenizer = load_tokenizer(model_path, trust_remote_code=trust)
    styles: list[PromptStyle] = ["plain"]
    budget_tokens = 0
    if isinstance(config, (EvalRunConfig, TwoPhaseConfig)):
        styles = list(dict.fromkeys([*styles, *config.eval.prompts]))
        budget_tokens = config.eval.budget_tokens
    with reading(model_path, "the chat template"):
        prompts: dict[PromptStyle, dict[str, tuple[int, ...]]] = {
            style: {
                p.problem_id: encode_prompt(tokenizer, p.asked, config.model, style, budget_tokens=budget_tokens)
                for p in problems
            }
            for style in styles
        }
    length = {p.problem_id: max(len(column[p.problem_id]) for column in prompts.values()) for p in problems}
    longest = max(problems, key=lambda p: length[p.problem_id])
    needed = length[longest.problem_id] + max_tokens
    limit = config.rollout.max_model_len or context_tokens(model_path, trust_remote_code=trust)
    if limit is not None and needed > limit:
        raise UserError(
            f"problem '{longest.problem_id}' needs {needed} tokens (prompt {needed - max_tokens} + max_tokens "
            f"{max_tokens}), rollout.max_model_len or the model's context hold {limit}; lower max_tokens or drop the problem"
        )
    return Prompts(tokenizer=tokenizer, by_style=prompts, max_model_len=limit or needed)


def longest_response(config: BaseConfig) -> int:
    """Token limit of the longest response a run samples."""
    if isinstance(config, EvalRunConfig):
        return config.eval.max_tokens
    if isinstance(config, TwoPhaseConfig):
        return max(config.rollout.max_tokens, config.eval.max_tokens)
    return config.rollout.max_tokens


@contextmanager
def open_runtime(config: BaseConfig, run: Run, model_path: Path, problems: Sequence[Problem]) -> Iterator[Runtime]:
    """Tokenise every prompt, then start the engine."""
    prompts = encode_prompts(config, model_path, problems, longest_response(config))
    grader = Grader()
    engine = start_engine(config, model_path, max_model_len=prompts.max_model_len, warn=run.warn)
    try:
        yield Runtime(
            config=config,
            run=run,
            engine=engine,
            grader=grader,
            tokenizer=prompts.tokenizer,
            prompts=prompts.by_style,
            messages={},
        )
    finally:
        engine.close()
        grader.close()


@contextmanager
def open_endpoint(config: EvalRunConfig, run: Run, served_name: str, problems: Sequence[Problem]) -> Iterator[Runtime]:
    """The runtime of the model that is called `served_name` at `model.url`."""
    from conclip.rollout.endpoint import EndpointEngine  # noqa: PLC0415

    assert config.model.url is not None
    engine = EndpointEngine(config.model.url, served_name, max_concurrent=min(256, config.rollout.max_num_seqs))
    messages: dict[PromptStyle, dict[str, Messages]] = {
        style: {
            p.problem_id: messages_for(p.asked, config.model, style, budget_tokens=config.eval.budget_tokens)
            for p in problems
        }
        for style in config.eval.prompts
    }
    grader = Grader()
    nothing: dict[PromptStyle, dict[str, tuple[int, ...]]] = {style: {} for style in config.eval.prompts}
    try:
        yield Runtime(
            config=config, run=run, engine=engine, grader=grader, tokenizer=None, prompts=nothing, messages=messages
        )
    finally:
        engine.close()
        grader.close()


def start_engine(config: BaseConfig, model_path: Path, *, max_model_len: int, warn: Callable[[str], None]) -> RolloutEngine:
    """The engine the config asks for; `warn` hears of what goes wrong with it and is put right.

    A model that vLLM runs by transformers' code gets a process of its own whatever the config asks for: vLLM changes that
    code for its whole process, and a learner there could not load the model any more.
    """
    settings = {
        "dtype": config.model.dtype,
        "seed": config.seed,
        "max_model_len": max_model_len,
        "trust_remote_code": config.model.trust_remote_code,
    }
    by_transformers = implementation(model_path, trust_remote_code=config.model.trust_remote_code) == "transformers"
    if config.rollout.engine == "child_process" or by_transformers:
        from conclip.rollout.child import ChildEngine  # noqa: PLC0415  only what is used gets imported

        return ChildEngine(model_path, config.rollout, warn=warn, **settings)
    from conclip.rollout.vllm_engine import VllmEngine  # noqa: PLC0415

    return VllmEngine(model_path, config.rollout, **settings)


def context_tokens(model_path: Path, *, trust_remote_code: bool) -> int | None:
    """The model's context length as its config states it."""
    from transformers import AutoConfig  # noqa: PLC0415

    with reading(model_path, "config.json"):
        found = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    return getattr(found, "max_position_embeddings", None)

"""The resources of a subcommand: engine, grader, tokenizer and run folder, opened and closed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from conclip.cluster.launch import Launcher, Local
from conclip.config.groups import PromptVariant
from conclip.config.machine import num_gpus
from conclip.config.schema import BaseConfig
from conclip.errors import UserError
from conclip.grading.grader import Grader
from conclip.grading.thinking import DEFAULT_TAGS, Thinking, ThinkingTags, opens
from conclip.models.architectures import implementation
from conclip.models.chat_template import (
    check_template_kwargs,
    known_tags,
    named_tokens,
    names_read,
    opened_by_config,
    placeholder_chat,
    text_after_placeholder,
    thinking_of,
)
from conclip.models.load import load_tokenizer, reading
from conclip.problems.prompts import INSTRUCTIONS, encode_prompt, messages_for
from conclip.rollout.collect import TRAINING, PromptSet, Task, collect, group_rollouts, tasks_for
from conclip.rollout.engine import RolloutEngine
from conclip.rollout.shared_engine import SharedEngine
from conclip.runs.run import Run
from conclip.runs.sampling_progress import BatchContext
from conclip.runs.stopwatch import Stopwatch
from conclip.types import (
    DEFAULT_TEMPLATE,
    Problem,
    PromptCondition,
    Rollout,
    RolloutGroup,
    SamplingSpec,
)

THINKING_OFF, OFF = "thinking off", {"enable_thinking": False}
"""The template variant without thinking, and the argument by which published templates switch it off."""


@dataclass(kw_only=True)
class Runtime:
    """The resources for sampling and grading. The engine and the grader start on first use: a run that reuses every response
    of an earlier attempt starts neither. Make one with `open_runtime`."""

    config: BaseConfig
    run: Run
    start_engine: Callable[[], RolloutEngine]
    tokenizer: PreTrainedTokenizerBase | None
    """The model's tokenizer; None for a model behind a server."""
    prompts: Mapping[PromptVariant, PromptSet]
    """The prompts of every problem the run may sample, by variant; `TRAINING` is missing only for a model behind a
    server."""
    owns_engine: bool = True
    """Whether the engine ends with the runtime."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _weights: Path | None = field(default=None, init=False)
    """The folder of weights given to `use_weights` that the engine has not loaded yet."""

    @cached_property
    def grader(self) -> Grader:
        return Grader(num_workers=self.config.rollout.num_graders, warn=self.run.warn)

    @cached_property
    def _engine(self) -> RolloutEngine:
        return self.start_engine()

    @property
    def engine(self) -> RolloutEngine:
        """Return the engine, with the weights given to `use_weights`."""
        weights, self._weights = self._weights, None
        if weights is not None:
            self._engine.update_weights(weights, self._engine.policy_version + 1)
        return self._engine

    def use_weights(self, model: Path) -> None:
        """Make the engine load the weights of this folder on its next use."""
        self._weights = model

    def rest(self) -> None:
        """Have the engine, if it was started, release the device's memory. It needs new weights before its next use."""
        if "_engine" in self.__dict__:
            self._engine.sleep()

    def close(self) -> None:
        """Stop the engine, if it is its own, and the grader if they were started."""
        for part in ("_engine", "grader") if self.owns_engine else ("grader",):
            if part in self.__dict__:
                self.__dict__[part].close()

    def sample_groups(
        self, label: str, problems: Sequence[Problem], spec: SamplingSpec, num_samples: int, *seed_parts: int | str
    ) -> list[RolloutGroup]:
        """Sample and grade `num_samples` responses per problem. Returns groups in the order of `problems`."""
        tasks = self.tasks(TRAINING, problems, num_samples, spec, *seed_parts)
        return group_rollouts(list(self.collect(label, tasks)), problems)

    def tasks(
        self,
        variant: PromptVariant,
        problems: Sequence[Problem],
        num_samples: int,
        spec: SamplingSpec,
        *seed_parts: int | str,
        first_sample: int = 0,
        condition: str = "",
    ) -> list[Task]:
        """Return tasks for `num_samples` responses per problem, with prompts of this variant."""
        return tasks_for(
            problems,
            self.prompts[variant],
            num_samples,
            (self.config.seed, *seed_parts),
            spec,
            variant=variant,
            first_sample=first_sample,
            condition=condition,
        )

    def collect(self, label: str, tasks: Sequence[Task], context: BatchContext | None = None) -> Iterator[Rollout]:
        """Sample and grade the tasks; yield rollouts in the order they finish. Displays show the batch as `label`, with its
        `context`."""
        return collect(
            tasks,
            engine=self.engine,
            grader=self.grader,
            tokenizer=self.tokenizer,
            on_progress=lambda progress: self.run.show_sampling(replace(progress, context=context or BatchContext())),
            label=label,
            extraction=self.config.rollout.extraction,
            stopwatch=self.stopwatch,
        )

    @property
    def training_spec(self) -> SamplingSpec:
        """Return the sampling settings of training, probing and validation: the full distribution at the configured
        temperature."""
        rollout = self.config.rollout
        return SamplingSpec(temperature=rollout.temperature, max_tokens=rollout.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """All prompts that a run may give to a model, and the context length that its engine needs."""

    tokenizer: PreTrainedTokenizerBase
    by_variant: dict[PromptVariant, PromptSet]
    max_model_len: int
    budgeted: ThinkingTags | None
    """The tags of the thinking part, where some responses have a thinking budget; else None."""
    evidence: list[PromptCondition]
    """The conditions of an evaluation that also asks for brevity, and for less thinking or none."""


def template_kwargs_of(config: BaseConfig, template: str) -> dict[str, Any]:
    """Return the chat template's arguments besides the chat."""
    own = {THINKING_OFF: OFF} | (config.evaluation.template_kwargs if config.evaluation is not None else {})
    return config.model.chat_template_kwargs | own.get(template, {})


def evidence_conditions(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> list[PromptCondition]:
    """Return the conditions of an evaluation that shows what may be had without training: those of `eval`, then asking for
    brevity in three ways (not the lab's model, which reads no English), then, where the model thinks, no thinking (where
    its chat template has a switch) and a budget for it of a quarter of the token limit."""
    settings = config.evaluation
    assert settings is not None
    style, template, budget = settings.conditions[0]
    further: list[PromptCondition] = []
    if not config.model.is_lab:
        further += [(style, template, budget) for style in INSTRUCTIONS]
    kwargs = template_kwargs_of(config, template)
    if OFF.keys() <= names_read(tokenizer) and kwargs | OFF != kwargs:
        further.append((style, THINKING_OFF, budget))
    tags = known_tags(tokenizer, config.model)
    spelt = [] if tags is None else [tokenizer.encode(tag, add_special_tokens=False) for tag in (tags.open, tags.close)]
    if spelt and all(len(ids) == 1 for ids in spelt):  # the engine compares token by token
        further.append((style, template, settings.max_tokens // 4))
    return list(dict.fromkeys([*settings.conditions, *further]))


def encode_prompts(config: BaseConfig, model_path: Path, problems: Sequence[Problem]) -> Prompts:
    """Encode all prompts of a run. Raises UserError for tokens and arguments that the tokenizer does not know, and for a
    problem whose prompt leaves no room for the longest response of the run."""
    trust, max_tokens = config.model.trust_remote_code, longest_response(config)
    with reading(model_path, "the tokenizer"):
        tokenizer = load_tokenizer(model_path, trust_remote_code=trust)
    settings = config.evaluation
    evidence: list[PromptCondition] = []
    by_variant: dict[PromptVariant, PromptSet] = {}
    with reading(model_path, "the chat template"):
        check_template_kwargs(tokenizer, config.model.chat_template_kwargs, "model.chat_template_kwargs")
        for name, values in (settings.template_kwargs if settings else {}).items():
            check_template_kwargs(tokenizer, values, f"eval.template_kwargs.{name}")
        named_tokens(tokenizer, config.model.stop_tokens, "model.stop_tokens")
        if any(stage.evidence for stage in config.recipe.values()):
            evidence = evidence_conditions(config, tokenizer)
        conditions = [*settings.conditions, *evidence] if settings else []
        learning = config.learning
        taught = [(learning.algo.teacher_prompt, DEFAULT_TEMPLATE)] if learning and learning.algo.has_teacher else []
        measured = [(style, template) for style, template, _ in conditions]
        for style, template in dict.fromkeys([TRAINING, *taught, *measured]):
            template_kwargs = template_kwargs_of(config, template)
            token_ids = {
                p.problem_id: encode_prompt(
                    tokenizer,
                    p.prompt_text,
                    config.model,
                    style,
                    budget_tokens=settings.budget_tokens if settings else 0,
                    template_kwargs=template_kwargs,
                )
                for p in problems
            }
            thinking = thinking_of(tokenizer, config.model, template_kwargs)
            by_variant[style, template] = PromptSet(token_ids=token_ids, thinking=thinking)
    length = {p.problem_id: max(len(prompts.token_ids[p.problem_id]) for prompts in by_variant.values()) for p in problems}
    longest = max(problems, key=lambda p: length[p.problem_id])
    needed = length[longest.problem_id] + max_tokens
    limit = config.rollout.max_model_len or context_tokens(model_path, trust_remote_code=trust)
    if limit is not None and needed > limit:
        raise UserError(
            f"problem '{longest.problem_id}' needs {needed} tokens (prompt {needed - max_tokens} + max_tokens "
            f"{max_tokens}), rollout.max_model_len or the model's context hold {limit}; lower max_tokens, drop the problem, "
            "or raise rollout.max_model_len for a model that holds more"
        )
    budgets = any(budget is not None for _, _, budget in conditions)
    return Prompts(
        tokenizer=tokenizer,
        by_variant=by_variant,
        max_model_len=config.rollout.max_model_len or needed,
        budgeted=_budgeted_tags(tokenizer, config) if budgets else None,
        evidence=evidence,
    )


def _budgeted_tags(tokenizer: PreTrainedTokenizerBase, config: BaseConfig) -> ThinkingTags:
    """Return the tags that delimit the thinking part. Raises UserError where the engine could not recognise them."""
    tags, key = known_tags(tokenizer, config.model), "eval.thinking_budgets"
    if tags is None:
        raise UserError(f"{key}: the model names no tags of a thinking part; set model.thinking_tags, or leave budgets out")
    named_tokens(tokenizer, [tags.open, tags.close], key)  # the engine compares token by token
    return tags


def longest_response(config: BaseConfig) -> int:
    """Return the token limit of the longest response that a run samples."""
    limits = [config.rollout.max_tokens] if config.probing is not None else []
    return max(limits + ([config.evaluation.max_tokens] if config.evaluation is not None else []))


def longest_training_sequence(config: BaseConfig, prompts: Prompts) -> int:
    """Return the tokens of the longest prompt with the longest response that may train."""
    return max(map(len, prompts.by_variant[TRAINING].token_ids.values())) + config.rollout.max_tokens


@contextmanager
def open_runtime(
    config: BaseConfig,
    run: Run,
    model_path: Path,
    prompts: Prompts,
    launcher: Callable[[], Launcher] = Local,
    shared: SharedEngine | None = None,
) -> Iterator[Runtime]:
    """Open the runtime of a model whose prompts are encoded. `launcher` returns what starts engines in processes of their
    own. `shared`: what has the engine of the model before, and keeps this one's."""
    of_prompts = {"max_model_len": prompts.max_model_len, "thinking_tags": prompts.budgeted}
    start: Callable[[], RolloutEngine] = partial(
        start_engine, config, model_path, warn=run.warn, launcher=launcher, **of_prompts
    )
    if shared is not None:
        start = partial(shared.start, model_path, start, config, **of_prompts)
    runtime = Runtime(
        config=config,
        run=run,
        start_engine=start,
        tokenizer=prompts.tokenizer,
        prompts=prompts.by_variant,
        owns_engine=shared is None,
    )
    with closing(runtime):
        yield runtime


@contextmanager
def open_endpoint(config: BaseConfig, run: Run, served_name: str, problems: Sequence[Problem]) -> Iterator[Runtime]:
    """Open the runtime of the model that is called `served_name` at `model.url`."""
    from conclip.models.server import is_vllm, render_by_server  # noqa: PLC0415  a second to import
    from conclip.rollout.endpoint import EndpointEngine  # noqa: PLC0415

    model, settings = config.model, config.evaluation
    assert model.url is not None and settings is not None
    tags = DEFAULT_TAGS if model.thinking_tags is None else ThinkingTags(*model.thinking_tags)
    of_vllm = is_vllm(model.url)
    by_variant: dict[PromptVariant, PromptSet] = {}
    opened: dict[str, bool] = {}
    """Whether the prompts of a template open the thinking part; of servers only vLLM's says what they look like."""
    for style, template in dict.fromkeys((style, template) for style, template, _ in settings.conditions):
        template_kwargs = template_kwargs_of(config, template)
        if (said := opened_by_config(model, template_kwargs)) is not None:
            opened[template] = said
        elif template not in opened:
            chat = placeholder_chat(model)
            prompt = render_by_server(model.url, served_name, chat, template_kwargs) if of_vllm else None
            opened[template] = prompt is not None and opens(text_after_placeholder(prompt), tags)
        messages = {
            p.problem_id: messages_for(p.prompt_text, model, style, budget_tokens=settings.budget_tokens) for p in problems
        }
        thinking = Thinking(tags=tags, opened=opened[template])
        by_variant[style, template] = PromptSet(messages=messages, template_kwargs=template_kwargs, thinking=thinking)
    start = partial(
        EndpointEngine,
        model.url,
        served_name,
        max_concurrent=min(256, config.rollout.max_num_seqs),
        keep_special_tokens=model.thinking_tags is not None,
        is_vllm=of_vllm,
    )
    runtime = Runtime(config=config, run=run, start_engine=start, tokenizer=None, prompts=by_variant)
    with closing(runtime):
        yield runtime


def start_engine(
    config: BaseConfig,
    model_path: Path,
    *,
    max_model_len: int,
    warn: Callable[[str], None],
    thinking_tags: ThinkingTags | None = None,
    launcher: Callable[[], Launcher] = Local,
) -> RolloutEngine:
    """Start the engine that the config selects. `warn` receives failures that a restart recovered from. `thinking_tags` is
    required where responses have a thinking budget.

    A model that vLLM runs by transformers' code always gets a child process: vLLM modifies that code for its whole process,
    and a learner there could no longer load the model. So does, on a GPU, an engine that may be followed by another one, as
    vLLM cannot start twice in a process there, and one whose kernels repeat, which would take the place of the learner's.
    """
    settings = {
        "dtype": config.model.dtype,
        "seed": config.seed,
        "max_model_len": max_model_len,
        "trust_remote_code": config.model.trust_remote_code,
        "stop_tokens": config.model.stop_tokens,
        "thinking_tags": thinking_tags,
        "adapter": config.model.adapter,
    }
    by_transformers = implementation(model_path, trust_remote_code=config.model.trust_remote_code) == "transformers"
    elsewhere = config.cluster.kind == "ray"
    alone = config.cluster.learner_ranks == 1  # vLLM takes a process's only process group for itself
    weights = config.cluster.weights if config.learning is not None else "files"
    in_child = config.rollout.engine == "child_process" or config.rollout.num_engines > 1
    in_child |= (config.learning is None or config.rollout.deterministic) and num_gpus() > 0
    if in_child or by_transformers or elsewhere or not alone or weights != "files":
        from conclip.rollout.pool import EnginePool  # noqa: PLC0415  only what is used gets imported

        begun = launcher()
        if weights != "files":
            from conclip.rollout.transfer import connect_gpus  # noqa: PLC0415

            num_workers = config.rollout.num_engines * config.rollout.tensor_parallel_size
            settings |= {"weight_transfer": weights, "connect": partial(connect_gpus, weights, begun.host, num_workers)}
        return EnginePool(model_path, config.rollout, warn=warn, launcher=begun, **settings)
    from conclip.rollout.vllm_engine import VllmEngine  # noqa: PLC0415

    return VllmEngine(model_path, config.rollout, **settings)


def context_tokens(model_path: Path, *, trust_remote_code: bool) -> int | None:
    """Return the model's context length [tokens] from its config; None where the config has none."""
    from transformers import AutoConfig  # noqa: PLC0415

    with reading(model_path, "config.json"):
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    return getattr(config, "max_position_embeddings", None)

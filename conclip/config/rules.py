"""Cross-field rules of config keys, beyond the range that each has in the schema. Each failure is one UserError that names
the key and says what to do."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from conclip.config.groups import (
    AlgoConfig,
    EvalConfig,
    ModelConfig,
    PhaseConfig,
    ProbeConfig,
    ProblemSetConfig,
    RolloutConfig,
)
from conclip.config.learning_rules import NO_TRAINING_SET, check_learning
from conclip.config.ranges import MAX_COUNT, TEMPERATURE, check_ranges, require
from conclip.config.recipe_rules import check_recipe
from conclip.config.schema import BaseConfig
from conclip.lab.arithmetic import FAMILIES, MAX_LEVEL, SPLITS
from conclip.redact import hide
from conclip.types import DEFAULT_TEMPLATE

MAX_NAME_BYTES = 200
"""Longest name of a run; file systems allow 255 bytes."""

RESERVED_KWARGS = {
    "conversation",
    "messages",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
} | {
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "padding",
    "truncation",
    "max_length",
}
"""Arguments of a chat template that conclip sets itself."""

ARITHMETIC_KEYS = {"source", "num_problems", "seed", "family", "levels", "split"}
"""Keys that a set of generated problems reads."""


READ_BY_THE_GRADER = ("answers", "tolerance", "choices", "answer_pattern", "answer_boxed", "shots")
"""Keys that say what answers are right, or write them into a prompt, as only the comparison of final answers can."""


def _values_of(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a nested mapping, items of lists included, with its dotted key."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _values_of(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            yield from (
                (f"{prefix}{name}", item) for item in (cast(list[Any], value) if isinstance(value, list) else [value])
            )


def _is_plain_name(name: str) -> bool:
    return bool(name) and name.isprintable() and name.strip() == name and len(name.encode()) <= MAX_NAME_BYTES


def check(config: BaseConfig) -> None:
    """Check ranges and cross-field rules. Raises UserError; touches neither disk nor models."""
    for key, value in _values_of(dataclasses.asdict(config)):
        require(not isinstance(value, float) or math.isfinite(value), key, f"must be a finite number, got {value}")
        countable = not isinstance(value, int) or abs(value) < MAX_COUNT
        require(countable, key, f"must be below 2^53 in size, got {value}")
    check_ranges(config)
    plain = _is_plain_name(config.name) and config.name not in (".", "..") and "/" not in config.name
    require(plain, "name", f"must be a folder name of up to {MAX_NAME_BYTES} bytes")
    require("{question}" in config.model.prompt, "model.prompt", "must contain {question}")
    _check_model(config.model)
    ray = config.cluster.kind == "ray"
    require(ray or config.cluster.address is None, "cluster.address", "is for cluster=ray")
    require(ray or config.cluster.placement == "pack", "cluster.placement", "is for cluster=ray")
    local = config.model.url is None or (config.probing is None and config.learning is None)
    if config.model.url is not None:
        http = re.match(r"https?://[^/@]+(/|$)", config.model.url) is not None
        no_key = hide(config.model.url) == config.model.url
        require(no_key, "model.url", "must hold no key, as it is written down; export OPENAI_API_KEY=...")
        require(http, "model.url", "must begin with http:// or https:// and a host")
    require(local, "model.url", "is for conclip eval only: probing and training need the weights")
    for part in dataclasses.fields(config.data):
        for name, problem_set in getattr(config.data, part.name).items():
            require(
                _is_plain_name(name), f"data.{part.name}", f"has a set without a plain name of up to {MAX_NAME_BYTES} bytes"
            )
            _check_problem_set(f"data.{part.name}.{name}", problem_set)
    require("model" not in config.given_models, "checkpoints.model", "is the name of model.path; choose another")
    plain = all(_is_plain_name(name) and "/" not in name for name in config.given_models)
    require(plain, "checkpoints", f"must have plain names of up to {MAX_NAME_BYTES} bytes: they become file names")
    if config.evaluation is not None:
        _check_eval(config.evaluation)
        english = not config.model.is_lab or config.evaluation.prompts == ["plain"]
        require(english, "eval.prompts", "must be [plain] for the lab's model, which reads no English")
        require(bool(config.data.test), "data.test", "names no benchmark; add one")
        for name, number in config.evaluation.samples_of.items():
            known = ", ".join(config.data.test)
            require(name in config.data.test, f"eval.samples_of.{name}", f"is no set of data.test; there are: {known}")
            require(1 <= number <= MAX_COUNT, f"eval.samples_of.{name}", f"must be 1 to {MAX_COUNT:,}")
        _check_room(config.rollout, "eval.max_tokens", config.evaluation.max_tokens)
    if config.probing is not None:
        _check_room(config.rollout, "rollout.max_tokens", config.rollout.max_tokens)
        _check_probe(config.probing)
        require(bool(config.data.pool), "data.pool", NO_TRAINING_SET)
    if config.learning is not None:
        check_learning(config.learning)
    check_recipe(config)
    for name, phase in config.phase_settings.items():
        _check_phase(config.phase_key(name), phase)
        if config.learning is not None:
            _check_phase_algo(config.phase_key(name), phase, config.learning.algo)
    if config.given_rates is not None:
        by_hand = any(phase.by_hand for phase in config.phase_settings.values())
        require(not by_hand, "pass_rates", "is unread with problems named by hand (phase.problem_ids, phase.answers)")


def _check_model(model: ModelConfig) -> None:
    tags = model.thinking_tags
    pair = tags is None or (len(tags) == 2 and all(tags) and tags[0] != tags[1])
    require(
        pair, "model.thinking_tags", "must be null or two texts that differ: what opens the thinking part, what closes it"
    )
    require(all(model.stop_tokens), "model.stop_tokens", "must list tokens by their text")
    own = model.url is None or not model.stop_tokens
    require(
        own, "model.stop_tokens", "is for models of one's own; a server is told by its own settings what ends a response"
    )
    _check_template_kwargs("model.chat_template_kwargs", model.chat_template_kwargs)


def _check_template_kwargs(key: str, values: Mapping[str, Any]) -> None:
    for name in values:
        require(
            name not in RESERVED_KWARGS, f"{key}.{name}", "is not for the chat template's author to read: conclip sets it"
        )


def _check_room(rollout: RolloutConfig, key: str, max_tokens: int) -> None:
    room = rollout.max_model_len is None or rollout.max_model_len > max_tokens
    require(room, "rollout.max_model_len", f"must exceed {key}={max_tokens}: it holds the prompt as well")


def _check_eval(settings: EvalConfig) -> None:
    good = bool(settings.temperatures) and all(value == 0 or TEMPERATURE.contains(value) for value in settings.temperatures)
    require(good, "eval.temperatures", f"must list values of 0 (greedy), or {TEMPERATURE}: vLLM samples at no other")
    require(len(set(settings.temperatures)) == len(settings.temperatures), "eval.temperatures", "lists a value twice")
    require(bool(settings.prompts), "eval.prompts", "must list at least one instruction")
    require(len(set(settings.prompts)) == len(settings.prompts), "eval.prompts", "lists an instruction twice")
    for name, values in settings.template_kwargs.items():
        require(name.isprintable() and name.strip() == name != "", "eval.template_kwargs", "must have plain names")
        own = "is how training asks; name the set otherwise, or set model.chat_template_kwargs for both"
        require(name != DEFAULT_TEMPLATE, f"eval.template_kwargs.{name}", own)
        _check_template_kwargs(f"eval.template_kwargs.{name}", values)
    budgets = settings.thinking_budgets
    good = bool(budgets) and all(budget is None or budget >= 0 for budget in budgets)
    require(good, "eval.thinking_budgets", "must list numbers of tokens, or null for no budget")
    require(len(set(budgets)) == len(budgets), "eval.thinking_budgets", "lists a value twice")
    require(settings.top_k == -1 or settings.top_k >= 1, "eval.top_k", "must be -1 (all) or at least 1")


def _check_problem_set(key: str, problems: ProblemSetConfig) -> None:
    if problems.source == "dataset":
        require(not (problems.answer_boxed and problems.answer_pattern), f"{key}.answer_boxed", "excludes answer_pattern")
        require(problems.family is None, f"{key}.family", "is for source: arithmetic")
        if (columns := problems.choices) is not None:
            one = problems.answers == "any" and problems.answer_pattern is None and not problems.answer_boxed
            require(one, f"{key}.choices", "has one right option: leave out answers=all, answer_pattern and answer_boxed")
            several = isinstance(columns, str) or len(set(columns)) == len(columns) >= 2
            require(several, f"{key}.choices", "must be a column with lists, or two columns or more")
        unnamed = isinstance(columns, list) or problems.verifier is not None
        may = (
            "must name a column; it may be null only where choices lists columns, the right one first, or a verifier judges"
        )
        require(problems.answer is not None or unnamed, f"{key}.answer", may)
        for name in READ_BY_THE_GRADER if problems.verifier is not None else ():
            is_default = getattr(problems, name) == getattr(ProblemSetConfig, name)
            require(is_default, f"{key}.{name}", "is for the grader, and a verifier judges instead; leave one of them out")
        share = problems.share
        good = share is None or (len(share) == 2 and 0 <= share[0] < share[1] <= 1)
        require(good, f"{key}.share", "must be null or two shares, from and to, such as [0, 0.5]")
        from_hub = problems.path is None and problems.dataset is not None
        require(not from_hub or problems.split is not None, f"{key}.split", "is needed with a data set of the hub")
        examples = problems.shots == 0 or problems.shots_split is not None or problems.shots_path is not None
        require(
            examples, f"{key}.shots", "needs shots_split (or shots_path): examples must not come from the problems asked"
        )
        return
    for field in dataclasses.fields(problems):
        if field.name not in ARITHMETIC_KEYS:
            require(getattr(problems, field.name) == field.default, f"{key}.{field.name}", "is for source: dataset")
    require(problems.family in FAMILIES, f"{key}.family", f"must be one of {', '.join(FAMILIES)}")
    require(problems.split in SPLITS, f"{key}.split", f"must be one of {', '.join(SPLITS)}")
    require(problems.num_problems is not None, f"{key}.num_problems", "is needed for source: arithmetic")
    highest = MAX_LEVEL[problems.family or "chain"]
    good = bool(problems.levels) and all(1 <= level <= highest for level in problems.levels or [])
    require(good, f"{key}.levels", f"must list levels from 1 to {highest}")


def _check_probe(probe: ProbeConfig) -> None:
    enough = probe.max_samples >= probe.first_samples
    require(enough, "probe.max_samples", f"must be at least probe.first_samples ({probe.first_samples})")
    mean = probe.mean_samples
    budget = mean is None or mean >= probe.first_samples
    require(budget, "probe.mean_samples", f"must be at least probe.first_samples ({probe.first_samples}), or null")


def _check_phase(key: str, phase: PhaseConfig) -> None:
    band = phase.pass_rate_low <= phase.pass_rate_high
    require(band, f"{key}.pass_rate_low", f"must not exceed {key}.pass_rate_high={phase.pass_rate_high:g}")
    require(phase.problem_ids is None or phase.answers is None, f"{key}.answers", f"excludes {key}.problem_ids")
    named = phase.problem_ids if phase.problem_ids is not None else phase.answers
    number = phase.num_problems if named is None else len(named)
    fits = 1 <= phase.problems_per_step <= number
    require(fits, f"{key}.problems_per_step", f"must lie between 1 and the number of training problems ({number})")
    ends = phase.retire_below < phase.retire_above
    require(ends, f"{key}.retire_below", f"must be below {key}.retire_above={phase.retire_above:g}")
    require(not phase.refresh or named is None, f"{key}.refresh", "needs a probed pool, not problems named by hand")
    if phase.refresh and phase.refresh_memory < 1:
        seen = phase.group_size / (1 - phase.refresh_memory)  # what many groups of one outcome add up to
        least = 0.5 / (1 + seen)
        reached = least < phase.retire_below or 1 - least > phase.retire_above
        message = f"never retires a problem with {key}.group_size={phase.group_size}: beliefs stay {least:.3f} from 0 and 1"
        require(reached, f"{key}.refresh", message)
    for name in ("wrong_answers", "hardest"):
        chosen = getattr(phase, name) == 0 or (named is None and not phase.refresh)
        require(chosen, f"{key}.{name}", "needs problems chosen by pass rate, and refresh=false")
    stages = phase.max_tokens_stages
    good = stages is None or (bool(stages) and all(0 < share <= 1 for share in stages))
    require(good, f"{key}.max_tokens_stages", "must list shares of rollout.max_tokens, each in (0, 1], or be null")


def _check_phase_algo(key: str, phase: PhaseConfig, algo: AlgoConfig) -> None:
    num_responses = phase.problems_per_step * phase.group_size
    require(
        algo.updates_per_rollout <= num_responses,
        "algo.updates_per_rollout",
        f"must not exceed the {num_responses} responses of a step",
    )
    filtered = phase.refresh and algo.dynamic_sampling_rounds > 0
    require(not filtered, f"{key}.refresh", "excludes algo.dynamic_sampling_rounds, which hides settled problems from it")
    grouped = algo.advantage not in ("group_relative", "leave_one_out") or phase.group_size >= 2
    require(grouped, f"{key}.group_size", f"must be at least 2 with algo.advantage={algo.advantage}")
    mixed = algo.dynamic_sampling_rounds == 0 or phase.group_size >= 2
    require(
        mixed,
        f"{key}.group_size",
        "must be at least 2 with algo.dynamic_sampling_rounds: one response is all right or wrong",
    )

"""From what Hydra composed to a typed, checked config, before anything heavy loads.

Unknown keys and wrong types fail in `to_config`, ranges and cross-field rules in `check`; each failure is one UserError
that names the key and says what to do.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from conclip.config.foreign import check_interpolations, resolved
from conclip.config.recipe_rules import check_recipe
from conclip.config.schema import (
    AlgoConfig,
    BaseConfig,
    EvalConfig,
    LearnConfig,
    LengthConfig,
    ModelConfig,
    PhaseConfig,
    ProbeConfig,
    ProblemSetConfig,
    RolloutConfig,
)
from conclip.errors import UserError
from conclip.lab.arithmetic import FAMILIES, MAX_LEVEL, SPLITS
from conclip.redact import hide

MAX_NAME_BYTES = 200
"""Of a run's name; file systems hold 255."""

NO_TRAINING_SET = (
    "names no problems; add a set (of the presets gsm8k, math and aime24_train can train, others only evaluate)"
)

TEMPLATE_KEYS = ("model.chat_template_kwargs.", "eval.template_kwargs.")
"""Below them stands what a chat template's author named."""

OUR_KWARGS = {"conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "chat_template"} | {
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "padding",
    "truncation",
    "max_length",
}
"""Arguments of a chat template that are not the user's to give."""

ARITHMETIC_KEYS = {"source", "num_problems", "seed", "family", "levels", "split"}
"""What a set of generated problems reads."""

UNPRICED = ("none", "thinkprune")
"""Kinds of length rewards that leave rewards as they are, and have no strength."""

Config = TypeVar("Config", bound=BaseConfig)


def to_config(schema: type[Config], composed: DictConfig) -> Config:
    """The typed, checked config. Raises UserError naming the key at fault."""
    check_interpolations(composed)
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"config key '{missing[0]}' has no value; set it: {missing[0]}=...")
        plain = resolved(composed)
    except OmegaConfBaseException as error:
        raise UserError(f"config key '{error.full_key}': {str(error).splitlines()[0]}") from error
    plain = _fitted(plain, schema, plain_keys(schema))
    if isinstance(phases := plain.get("phases"), dict) and isinstance(recipe := plain.get("recipe"), dict):
        named = {stage.get("phase") for stage in recipe.values() if isinstance(stage, dict)}
        plain["phases"] = {name: phase for name, phase in phases.items() if name in named}  # presets may know of others
    if isinstance(model := plain.get("model"), dict):
        model |= {name: _new_lines(model[name]) for name in ("prompt", "system") if isinstance(model.get(name), str)}
    try:
        config = TypeAdapter(schema).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing" and first["loc"][0] == "data" and len(first["loc"]) == 4:
            raise UserError(_unknown_set([str(part) for part in first["loc"]], plain["data"])) from error
        if first["type"] == "missing":
            group = first["loc"][0]
            raise UserError(f"config group '{group}' is empty, or lacks '{key}'; choose an option: {group}=...") from error
        remedy = " (in quotes it is text)" if first["type"] == "string_type" and isinstance(first["input"], float) else ""
        raise UserError(f"config key '{key}': {first['msg']}, got {first['input']!r}{remedy}") from error
    check(config)
    return config


def _fitted(plain: Mapping[Any, Any], schema: type, known: set[str], prefix: str = "") -> dict[str, Any]:
    """`plain`, names of the user's own and whole numbers as text where the schema has text: YAML and Hydra read 2024 as a
    number. Raises UserError on a key that the schema has not."""
    kinds = {item.name: item.type for item in dataclasses.fields(schema)}
    fitted: dict[str, Any] = {}
    for name, value in plain.items():
        key, kind = f"{prefix}{name}", kinds.get(name)
        if kind is None:
            raise UserError(unknown_key(key, known))
        if isinstance(value, dict):
            nested = cast(dict[Any, Any], value)
            if dataclasses.is_dataclass(kind):
                value = _fitted(nested, cast(type, kind), known, f"{key}.")
            elif (entry := entry_schema(kind)) is not None:
                value = {
                    _text(own): _fitted(cast(Any, item), entry, known, f"{key}.{own}.") if isinstance(item, dict) else item
                    for own, item in nested.items()
                }
            elif kind == dict[str, str]:
                value = {_text(own): _digits(item) for own, item in nested.items()}
        elif kind in TEXT:
            value = _digits(value)
        elif kind in (list[str], list[str] | None) and isinstance(value, list):
            value = [_digits(item) for item in cast(list[Any], value)]
        fitted[name] = value
    return fitted


TEXT = (str, str | None)


def entry_schema(kind: Any) -> type | None:
    """Of names of the user's own to groups of keys, the schema of such a group; None of other types."""
    if get_origin(kind) is dict and dataclasses.is_dataclass(entry := get_args(kind)[1]):
        return cast(type, entry)
    return None


def _digits(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(name: Any) -> str:
    return {True: "true", False: "false", None: "null"}[name] if name is None or isinstance(name, bool) else str(name)


_NEW_LINE = re.compile(
    r"(?<!\\)\\n(?!(?:abla|atural|e|earrow|eg|eq|ewline|exists|geq|gtr|i|leq|less|mid|ot|otin|parallel|subset|subseteq|u|warrow)"
    r"(?![A-Za-z]))"
)
r"""``\n`` typed as two characters, unless it begins a command of TeX (``\neq``)."""


def _new_lines(text: str) -> str:
    r"""A shell hands ``\n`` on as it is typed; in a prompt it means a new line."""
    return _NEW_LINE.sub("\n", text)


def _values_of(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested mapping, items of lists included, with its dotted key."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _values_of(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            yield from (
                (f"{prefix}{name}", item) for item in (cast(list[Any], value) if isinstance(value, list) else [value])
            )


def plain_keys(schema: type, prefix: str = "") -> set[str]:
    """Every dotted key a schema knows; `*` stands for a free name (a benchmark of `data.test`, say)."""
    keys: set[str] = set()
    for item in dataclasses.fields(schema):
        name = f"{prefix}{item.name}"
        keys.add(name)
        if dataclasses.is_dataclass(item.type):
            keys |= plain_keys(cast(type, item.type), f"{name}.")
        elif (entry := entry_schema(item.type)) is not None:
            keys |= {f"{name}.*"} | plain_keys(entry, f"{name}.*.")
        elif item.type == dict[str, str]:
            keys.add(f"{name}.*")
    return keys


def text_keys(schema: type, prefix: str = "") -> set[str]:
    """The keys of `plain_keys` that take text."""
    keys: set[str] = set()
    for item in dataclasses.fields(schema):
        name = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(item.type):
            keys |= text_keys(cast(type, item.type), f"{name}.")
        elif (entry := entry_schema(item.type)) is not None:
            keys |= text_keys(entry, f"{name}.*.")
        elif item.type == dict[str, str]:
            keys.add(f"{name}.*")
        elif item.type in TEXT:
            keys.add(name)
    return keys


RETIRED = {"skip_phase1": "conclip two-phase recipe=phase2_only begins with phase 2"}
"""Keys of earlier versions, and what does their work now."""


def unknown_key(key: str, known: set[str]) -> str:
    """The error line for a key that no schema has, with the nearest name: of its neighbours first, then of all keys."""
    if key in RETIRED:
        return f"config key '{key}' is gone: {RETIRED[key]}"
    own = re.match(r"(?:data\.\w+|recipe|phases)\.(.+)\.", key)
    names = sorted({name.replace("*", own[1]) if own else name for name in known} - {key})
    names = [name for name in names if "*" not in name]
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    near = [beside[name] for name in difflib.get_close_matches(last, beside, n=1)]
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    near = near or [name for name in names if difflib.get_close_matches(last, [name.rpartition(".")[2]], cutoff=0.75)]
    hint = f"did you mean '{near[0]}'?" if near else "see --cfg job for all keys"
    return f"unknown config key '{key}': {hint}"


def _unknown_set(place: Sequence[str], data: Mapping[str, Mapping[str, Any]]) -> str:
    """The error line for a problem set that lacks what every set has: most often its name is misspelt."""
    _, part, name, missing = place
    key = ".".join(place)
    others = [other for other in data[part] if other != name]
    near = difflib.get_close_matches(name, others, n=1)
    hint = f"did you mean 'data.{part}.{near[0]}'?" if near else f"the sets of data.{part}: {', '.join(others) or 'none'}"
    return f"config key '{key}' has no value, and no option of data= has a set '{name}' there; {hint} or set its {missing}"


def _need(condition: bool, key: str, message: str) -> None:
    if not condition:
        raise UserError(f"config key '{key}' {message}")


def _is_plain(name: str) -> bool:
    return bool(name) and name.isprintable() and name.strip() == name and len(name.encode()) <= MAX_NAME_BYTES


def check(config: BaseConfig) -> None:
    """Ranges and cross-field rules. Raises UserError; touches neither disk nor models."""
    for key, value in _values_of(dataclasses.asdict(config)):
        _need(not isinstance(value, float) or math.isfinite(value), key, f"must be a finite number, got {value}")
    plain = _is_plain(config.name) and config.name not in (".", "..") and "/" not in config.name
    _need(plain, "name", f"must be a folder name of up to {MAX_NAME_BYTES} bytes")
    _need(0 <= config.seed < 2**31, "seed", f"must lie in [0, 2^31), got {config.seed}")
    _need("{question}" in config.model.prompt, "model.prompt", "must contain {question}")
    _check_model(config.model)
    local = config.model.url is None or (config.probing is None and config.learning is None)
    if config.model.url is not None:
        http = re.match(r"https?://[^/@]+(/|$)", config.model.url) is not None
        no_key = hide(config.model.url) == config.model.url
        _need(no_key, "model.url", "must hold no key, as it is written down; export OPENAI_API_KEY=...")
        _need(http, "model.url", "must begin with http:// or https:// and a host")
    _need(local, "model.url", "is for conclip eval only: probing and training need the weights")
    _check_rollout(config.rollout)
    for part in dataclasses.fields(config.data):
        for name, problem_set in getattr(config.data, part.name).items():
            _need(_is_plain(name), f"data.{part.name}", f"has a set without a plain name of up to {MAX_NAME_BYTES} bytes")
            _check_problem_set(f"data.{part.name}.{name}", problem_set)
    _need("model" not in config.given_models, "checkpoints.model", "is the name of model.path; choose another")
    plain = all(_is_plain(name) and "/" not in name for name in config.given_models)
    _need(plain, "checkpoints", f"must have plain names of up to {MAX_NAME_BYTES} bytes: they become file names")
    if config.evaluation is not None:
        _check_eval(config.evaluation)
        english = config.model.path != "lab" or config.evaluation.prompts == ["plain"]
        _need(english, "eval.prompts", "must be [plain] for the lab's model, which reads no English")
        _need(bool(config.data.test), "data.test", "names no benchmark; add one")
        _check_room(config.rollout, "eval.max_tokens", config.evaluation.max_tokens)
    if config.probing is not None:
        _check_room(config.rollout, "rollout.max_tokens", config.rollout.max_tokens)
        _check_probe(config.probing)
        _need(bool(config.data.pool), "data.pool", NO_TRAINING_SET)
    if config.learning is not None:
        _check_learning(config.learning)
    check_recipe(config)
    for name, phase in config.phase_settings.items():
        _check_phase(config.phase_key(name), phase)
        if config.learning is not None:
            _check_phase_algo(config.phase_key(name), phase, config.learning.algo)
    if config.given_rates is not None:
        by_hand = any(phase.by_hand for phase in config.phase_settings.values())
        _need(not by_hand, "pass_rates", "is unread with problems named by hand (phase.problem_ids, phase.answers)")


def _check_model(model: ModelConfig) -> None:
    tags = model.thinking_tags
    pair = tags is None or (len(tags) == 2 and all(tags) and tags[0] != tags[1])
    _need(pair, "model.thinking_tags", "must be null or two texts that differ: what opens the thinking part, what closes it")
    _need(all(model.stop_tokens), "model.stop_tokens", "must list tokens by their text")
    own = model.url is None or not model.stop_tokens
    _need(own, "model.stop_tokens", "is for models of one's own; a server is told by its own settings what ends a response")
    _check_template_kwargs("model.chat_template_kwargs", model.chat_template_kwargs)


def _check_template_kwargs(key: str, values: Mapping[str, Any]) -> None:
    for name in values:
        _need(name not in OUR_KWARGS, f"{key}.{name}", "is not for the chat template's author to read: conclip sets it")


def _check_rollout(rollout: RolloutConfig) -> None:
    _need(rollout.temperature > 0, "rollout.temperature", "must be above 0: training and probing sample")
    _need(rollout.max_tokens >= 1, "rollout.max_tokens", "must be at least 1")
    _need(rollout.max_num_seqs >= 1, "rollout.max_num_seqs", "must be at least 1")
    _need(rollout.max_num_batched_tokens >= 1, "rollout.max_num_batched_tokens", "must be at least 1")
    _need(rollout.unit_responses >= 1, "rollout.unit_responses", "must be at least 1")
    _need(rollout.kv_cache_gib > 0, "rollout.kv_cache_gib", "must be above 0")
    _need(0 < rollout.gpu_memory_utilization <= 1, "rollout.gpu_memory_utilization", "must lie in (0, 1]")
    _need(rollout.tensor_parallel_size >= 1, "rollout.tensor_parallel_size", "must be at least 1")


def _check_room(rollout: RolloutConfig, key: str, max_tokens: int) -> None:
    room = rollout.max_model_len is None or rollout.max_model_len > max_tokens
    _need(room, "rollout.max_model_len", f"must exceed {key}={max_tokens}: it holds the prompt as well")


def _check_eval(settings: EvalConfig) -> None:
    _need(settings.samples_per_problem >= 1, "eval.samples_per_problem", "must be at least 1")
    good = bool(settings.temperatures) and all(value >= 0 for value in settings.temperatures)
    _need(good, "eval.temperatures", "must list values of 0 (greedy) or more")
    _need(len(set(settings.temperatures)) == len(settings.temperatures), "eval.temperatures", "lists a value twice")
    _need(bool(settings.prompts), "eval.prompts", "must list at least one instruction")
    _need(len(set(settings.prompts)) == len(settings.prompts), "eval.prompts", "lists an instruction twice")
    _need(settings.budget_tokens >= 1, "eval.budget_tokens", "must be at least 1")
    for name, values in settings.template_kwargs.items():
        _need(name.isprintable() and name.strip() == name != "", "eval.template_kwargs", "must have plain names")
        _check_template_kwargs(f"eval.template_kwargs.{name}", values)
    budgets = settings.thinking_budgets
    good = bool(budgets) and all(budget is None or budget >= 0 for budget in budgets)
    _need(good, "eval.thinking_budgets", "must list numbers of tokens, or null for no budget")
    _need(len(set(budgets)) == len(budgets), "eval.thinking_budgets", "lists a value twice")
    _need(0 < settings.top_p <= 1, "eval.top_p", "must lie in (0, 1]")
    _need(settings.top_k == -1 or settings.top_k >= 1, "eval.top_k", "must be -1 (all) or at least 1")
    _need(settings.max_tokens >= 1, "eval.max_tokens", "must be at least 1")
    _need(0 < settings.margin < 1, "eval.margin", "is a share: it must lie in (0, 1), 0.03 is three points")


def _check_problem_set(key: str, problems: ProblemSetConfig) -> None:
    _need(0 <= problems.tolerance < 1, f"{key}.tolerance", "must be at least 0 and below 1 (a share of the gold number)")
    _need(problems.num_problems is None or problems.num_problems >= 1, f"{key}.num_problems", "must be at least 1")
    if problems.source == "dataset":
        _need(problems.shots >= 0, f"{key}.shots", "must be 0 or more")
        _need(problems.offset >= 0, f"{key}.offset", "must be 0 or more")
        _need(not (problems.answer_boxed and problems.answer_pattern), f"{key}.answer_boxed", "excludes answer_pattern")
        _need(problems.family is None, f"{key}.family", "is for source: arithmetic")
        from_hub = problems.path is None and problems.dataset is not None
        _need(not from_hub or problems.split is not None, f"{key}.split", "is needed with a data set of the hub")
        examples = problems.shots == 0 or problems.shots_split is not None or problems.shots_path is not None
        _need(examples, f"{key}.shots", "needs shots_split (or shots_path): examples must not come from the problems asked")
        return
    for field in dataclasses.fields(problems):
        if field.name not in ARITHMETIC_KEYS:
            _need(getattr(problems, field.name) == field.default, f"{key}.{field.name}", "is for source: dataset")
    _need(problems.family in FAMILIES, f"{key}.family", f"must be one of {', '.join(FAMILIES)}")
    _need(problems.split in SPLITS, f"{key}.split", f"must be one of {', '.join(SPLITS)}")
    _need(problems.num_problems is not None, f"{key}.num_problems", "is needed for source: arithmetic")
    highest = MAX_LEVEL[problems.family or "chain"]
    good = bool(problems.levels) and all(1 <= level <= highest for level in problems.levels or [])
    _need(good, f"{key}.levels", f"must list levels from 1 to {highest}")


def _check_learning(config: LearnConfig) -> None:
    optim, trainer = config.optim, config.trainer
    _check_algo(config.algo)
    _check_length(config.length)
    priced = config.length.kind not in UNPRICED
    imitates = config.algo.advantage == "shortest_correct"
    _need(not (priced and imitates), "length.kind", "must be none or thinkprune with algo.advantage=shortest_correct")
    reward = config.reward
    _need(reward.correct > reward.wrong, "reward.correct", "must be above reward.wrong")
    for name in ("policy_lr", "critic_lr", "max_grad_norm"):
        _need(getattr(optim, name) > 0, f"optim.{name}", "must be above 0")
    for name in ("beta1", "beta2"):
        _need(0 <= getattr(optim, name) < 1, f"optim.{name}", "must lie in [0, 1)")
    for name in ("warmup_fraction", "min_lr_fraction"):
        _need(0 <= getattr(optim, name) <= 1, f"optim.{name}", "must lie in [0, 1]")
    _need(optim.weight_decay >= 0, "optim.weight_decay", "must be 0 or more")
    _need(optim.max_skipped_updates >= 0, "optim.max_skipped_updates", "must be 0 or more")
    _need(trainer.validate_every >= 1, "trainer.validate_every", "must be at least 1")
    _need(trainer.save_every >= 1, "trainer.save_every", "must be at least 1")
    _need(trainer.keep_last >= 1, "trainer.keep_last", "must be at least 1")
    _need(trainer.validation_samples >= 1, "trainer.validation_samples", "must be at least 1")
    drift = trainer.max_sampler_drift
    _need(drift is None or drift > 0, "trainer.max_sampler_drift", "must be above 0, or null")
    _need(trainer.transcripts_per_group >= 0, "trainer.transcripts_per_group", "must be 0 or more")
    room = trainer.max_tokens_per_micro_batch >= config.rollout.max_tokens
    _need(room, "trainer.max_tokens_per_micro_batch", "must hold at least one response of rollout.max_tokens")
    _need(bool(config.data.validation), "data.validation", NO_TRAINING_SET)


def _check_algo(algo: AlgoConfig) -> None:
    _need(0 < algo.gamma <= 1, "algo.gamma", "must lie in (0, 1]")
    for name in ("gae_lambda", "critic_gae_lambda"):
        value = getattr(algo, name)
        _need(value is None or 0 <= value <= 1, f"algo.{name}", "must lie in [0, 1]")
    adaptive = algo.length_adaptive_alpha
    _need(adaptive is None or adaptive > 0, "algo.length_adaptive_alpha", "must be above 0, or null")
    _need(0 < algo.clip_low <= 1, "algo.clip_low", "must lie in (0, 1]")
    for name in ("clip_high", "value_clip_eps", "sampler_correction_max"):
        _need(getattr(algo, name) > 0, f"algo.{name}", "must be above 0")
    for name in ("kl_coef", "entropy_coef", "critic_warmup_steps", "dynamic_sampling_rounds"):
        _need(getattr(algo, name) >= 0, f"algo.{name}", "must be 0 or more")
    for name in ("constant_tokens", "updates_per_rollout"):
        _need(getattr(algo, name) >= 1, f"algo.{name}", "must be at least 1")
    per_token = algo.advantage in ("gae", "monte_carlo")
    message = f"must be 'loss' or 'none' with algo.advantage={algo.advantage}: it has no per-token reward"
    _need(per_token or algo.kl != "reward", "algo.kl", message)
    adapts = algo.kl_target is None or (algo.kl_target > 0 and algo.kl != "none" and algo.kl_coef > 0)
    _need(
        adapts,
        "algo.kl_target",
        "needs a value above 0, a place for the KL (algo.kl) and algo.kl_coef above 0 to start from",
    )
    has_critic = algo.advantage == "gae"
    _need(
        has_critic or algo.critic_warmup_steps == 0,
        "algo.critic_warmup_steps",
        "must be 0 without a critic (algo.advantage=gae)",
    )
    discounts = per_token or algo.gamma == 1
    _need(discounts, "algo.gamma", f"must be 1 with algo.advantage={algo.advantage}, which discounts nothing")
    imitates = (algo.advantage == "shortest_correct") == (algo.policy_loss == "nll")
    _need(imitates, "algo.policy_loss", "nll goes with algo.advantage=shortest_correct and with nothing else")
    white = algo.whiten_advantages and algo.advantage == "shortest_correct"
    _need(not white, "algo.whiten_advantages", "must be false with algo.advantage=shortest_correct: all would become 0")


def _check_length(length: LengthConfig) -> None:
    _need(length.strength >= 0, "length.strength", "must be 0 or more")
    _need(length.scale_tokens > 0, "length.scale_tokens", "must be above 0")
    _need(length.target_tokens > 0, "length.target_tokens", "must be above 0")
    acts = length.kind not in UNPRICED
    message = f"is 0, so length.kind={length.kind} does nothing; length={length.kind} sets the published one"
    _need(length.strength > 0 or not acts, "length.strength", message)
    _need(length.strength == 0 or acts, "length.strength", f"is unread with length.kind={length.kind}")
    good = bool(length.limits) and all(0 < limit <= 1 for limit in length.limits)
    _need(good, "length.limits", "must list shares of length.scale_tokens, each in (0, 1]")


def _check_probe(probe: ProbeConfig) -> None:
    _need(probe.first_samples >= 2, "probe.first_samples", "must be at least 2")
    _need(probe.more_samples >= 1, "probe.more_samples", "must be at least 1")
    enough = probe.max_samples >= probe.first_samples
    _need(enough, "probe.max_samples", f"must be at least probe.first_samples ({probe.first_samples})")
    mean = probe.mean_samples
    budget = mean is None or mean >= probe.first_samples
    _need(budget, "probe.mean_samples", f"must be at least probe.first_samples ({probe.first_samples}), or null")
    _need(0 <= probe.indifference < 0.5, "probe.indifference", "must lie in [0, 0.5)")
    _need(0.5 <= probe.confidence < 1, "probe.confidence", "must lie in [0.5, 1)")


def _check_phase(key: str, phase: PhaseConfig) -> None:
    band = 0 <= phase.pass_rate_low <= phase.pass_rate_high <= 1
    _need(band, f"{key}.pass_rate_low", "and pass_rate_high must satisfy 0 <= low <= high <= 1")
    _need(phase.num_problems >= 1, f"{key}.num_problems", "must be at least 1")
    _need(phase.num_steps >= 1, f"{key}.num_steps", "must be at least 1")
    budget = phase.max_sampled_tokens
    _need(budget is None or budget >= 1, f"{key}.max_sampled_tokens", "must be at least 1, or null")
    _need(phase.group_size >= 1, f"{key}.group_size", "must be at least 1")
    for name in ("max_accuracy_drop", "stop_accuracy_drop"):
        _need(0 <= getattr(phase, name) <= 1, f"{key}.{name}", "is a share: it must lie in [0, 1], 0.1 is ten points")
    _need(phase.problem_ids is None or phase.answers is None, f"{key}.answers", f"excludes {key}.problem_ids")
    named = phase.problem_ids if phase.problem_ids is not None else phase.answers
    number = phase.num_problems if named is None else len(named)
    fits = 1 <= phase.problems_per_step <= number
    _need(fits, f"{key}.problems_per_step", f"must lie between 1 and the number of training problems ({number})")
    _need(0 <= phase.band_confidence < 1, f"{key}.band_confidence", "must lie in [0, 1)")
    _need(0 <= phase.refresh_memory <= 1, f"{key}.refresh_memory", "must lie in [0, 1]")
    ends = 0 <= phase.retire_below < phase.retire_above <= 1
    _need(ends, f"{key}.retire_below", "and retire_above must satisfy 0 <= below < above <= 1")
    _need(not phase.refresh or named is None, f"{key}.refresh", "needs a probed pool, not problems named by hand")


def _check_phase_algo(key: str, phase: PhaseConfig, algo: AlgoConfig) -> None:
    num_responses = phase.problems_per_step * phase.group_size
    _need(
        algo.updates_per_rollout <= num_responses,
        "algo.updates_per_rollout",
        f"must not exceed the {num_responses} responses of a step",
    )
    filtered = phase.refresh and algo.dynamic_sampling_rounds > 0
    _need(not filtered, f"{key}.refresh", "excludes algo.dynamic_sampling_rounds, which hides settled problems from it")
    grouped = algo.advantage not in ("group_relative", "leave_one_out") or phase.group_size >= 2
    _need(grouped, f"{key}.group_size", f"must be at least 2 with algo.advantage={algo.advantage}")
    mixed = algo.dynamic_sampling_rounds == 0 or phase.group_size >= 2
    _need(
        mixed,
        f"{key}.group_size",
        "must be at least 2 with algo.dynamic_sampling_rounds: one response is all right or wrong",
    )

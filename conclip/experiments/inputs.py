"""The inputs that a config refers to, read and checked before anything heavy loads and before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import DictConfig

from conclip.config.recipe import BASE, StageConfig
from conclip.config.schema import SCHEMAS, BaseConfig, LearnConfig
from conclip.config.typed import to_config
from conclip.curriculum.pass_rates import PassRate, read_pass_rates
from conclip.curriculum.selection import Selection, select
from conclip.errors import MACHINE_ERRORS, UserError
from conclip.grading.grader import GRADER_VERSION
from conclip.models.architectures import implementation
from conclip.models.folder import (
    LAB_MODEL,
    check_model,
    check_trainable,
    find_model,
    linear_layers,
    model_hash,
    num_parameters,
)
from conclip.problems.load import load_problems
from conclip.problems.overlap import apart_from, check_overlap, single_spaced
from conclip.runs.attempts import attempts_in
from conclip.runs.files import check_content, expanded, newest_attempt
from conclip.runs.identity import sampling_hash
from conclip.runs.trackers import check_installed
from conclip.types import Problem

SMALL_MODEL, LARGE_RATE = 20_000_000, 2e-5
"""Above both (parameters, policy learning rate), the rate is probably a default of the embedded model, not a choice."""

LAB_TARGET, LAB_LIMIT = 128, 512
"""The default of `length.target_tokens`, and the token limit of the embedded model, for which it is meant."""

OF_TARGET = ("laser", "l1_max", "l1_exact")
"""Length rewards that have a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The models and problems of a run; lists are empty where the subcommand needs none."""

    model_path: Path
    pool: list[Problem]
    validation: list[Problem]
    test: list[Problem]
    served_name: str | None
    """The name of the model at `model.url`; None for a local model, in `model_path`."""
    checkpoints: dict[str, Path]
    """Folders of further models to evaluate, by name."""
    notes: tuple[str, ...]
    """Warnings to show before the run."""
    rates: list[PassRate] | None
    """Pass rates of an earlier probe; None to probe first."""
    selections: dict[str, Selection] = field(default_factory=dict[str, Selection])
    """The selections of training stages that depend on no other stage of the run, by the stage's name."""

    @property
    def models(self) -> dict[str, Path]:
        """Return the folders of the local models by name."""
        return ({"model": self.model_path} if self.served_name is None else {}) | self.checkpoints

    @property
    def names(self) -> list[str]:
        """Return the names of the models that exist before the run, one behind a server included."""
        return ["model", *self.checkpoints]

    @property
    def problems(self) -> list[Problem]:
        return [*self.pool, *self.validation, *self.test]


def model_identity(config: BaseConfig, inputs: Inputs) -> str:
    """Return what identifies the model that a run begins with: the hash of its weights, or where it is served."""
    return f"{config.model.url} {inputs.served_name}" if inputs.served_name else model_hash(inputs.model_path)


def checked(subcommand: str, composed: DictConfig) -> tuple[BaseConfig, Inputs]:
    """Return the typed config and its inputs, read and checked. Raises UserError, or OSError for a machine failure; nothing
    is written."""
    try:
        config = to_config(SCHEMAS[subcommand], composed)
        return config, load_inputs(config)
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        raise UserError(f"cannot read{where}: {error.strerror or error}") from error


def load_inputs(config: BaseConfig) -> Inputs:
    """Read and check the inputs of a config. Raises UserError for a missing or damaged model folder, data file or pass-rate
    file, for token limits that do not fit the model, and for problems without an id of their own."""
    check_installed(config.logger.trackers)
    notes: list[str] = []
    if (place := config.paths.stages_from) is not None:
        if not expanded(place).is_dir():
            raise UserError(
                f"paths.stages_from: '{place}' is no folder; give the folder of earlier runs, such as outputs/run"
            )
        if not attempts_in(expanded(place)):
            notes.append(f"paths.stages_from: no run is in '{place}', so that nothing is taken over")
    served_name: str | None = None
    if config.model.url is not None:
        from conclip.models.server import find_served_model  # noqa: PLC0415  a second to import

        served_name = find_served_model(config.model.url, config.model.served_name)
    model_path = find_model(config.model.path) if served_name is None else Path(config.model.path)
    checkpoints = {name: find_model(path, f"checkpoints.{name}") for name, path in config.given_models.items()}
    local = ({"model.path": model_path} if served_name is None else {}) | {
        f"checkpoints.{name}": path for name, path in checkpoints.items()
    }
    _check_models(config, model_path, local)
    notes += _model_notes(config, model_path, local) + _data_notes(config)
    probing, learning, evaluation = config.probing is not None, config.learning is not None, config.evaluation
    inputs = Inputs(
        model_path=model_path,
        served_name=served_name,
        checkpoints=checkpoints,
        pool=load_problems("data.pool", config.data.pool, config.seed, notes) if probing else [],
        validation=load_problems("data.validation", config.data.validation, config.seed, notes) if learning else [],
        test=load_problems("data.test", config.data.test, config.seed, notes) if evaluation else [],
        rates=_earlier_rates(config),
        notes=(),
    )
    if evaluation is not None:
        for key, path in ({"model.path": model_path} | local).items():
            note = check_overlap(key, path, inputs.test, allowed=evaluation.allow_overlap, near=evaluation.near_overlap)
            notes += [note] if note else []
    inputs = _apart(inputs, notes, near=evaluation is None or evaluation.near_overlap)
    _check_ids(inputs)
    _check_verifiers(inputs.problems)
    inputs = replace(inputs, notes=(*notes, *_rate_notes(config, inputs)))
    try:
        return replace(inputs, selections=_selections(config, inputs))
    except UserError as error:
        left_out = [note for note in notes if note.startswith("data.pool") and note.endswith("left out")]
        raise UserError("; ".join([str(error), *left_out])) from error


def _check_models(config: BaseConfig, model_path: Path, local: Mapping[str, Path]) -> None:
    """Raise UserError for a model that the run cannot use. `local`: folders of the models that run on this machine, by the
    config key that names them."""
    limit, trust = config.rollout.max_model_len, config.model.trust_remote_code
    if config.probing is not None:
        max_tokens = config.rollout.max_tokens
        check_model(model_path, "rollout.max_tokens", max_tokens, max_model_len=limit, trust_remote_code=trust)
    if config.evaluation is not None:
        max_tokens = config.evaluation.max_tokens
        for key, path in local.items():
            check_model(path, "eval.max_tokens", max_tokens, key, max_model_len=limit, trust_remote_code=trust)
    for key, path in local.items():
        if path != LAB_MODEL and _has_settings_of_the_lab(config) and (size := num_parameters(path)) > SMALL_MODEL:
            raise UserError(
                f"{key}: {size / 1e6:,.0f} million parameters, and the settings of the embedded model, whose prompt asks "
                "for no box; add model=hf"
            )
    if config.learning is not None:
        check_trainable(model_path, max_model_len=limit, trust_remote_code=trust)
        _check_targets(config.model.adapter.targets or [], model_path)


def _has_settings_of_the_lab(config: BaseConfig) -> bool:
    values = config.model.prompt, config.model.dtype, config.rollout.max_model_len, config.rollout.max_num_seqs
    return values == ("{question}", "float32", 1024, 256)


def _check_targets(targets: Sequence[str], model_path: Path) -> None:
    layers = linear_layers(model_path) if targets else []
    for target in targets:
        if target not in layers:
            raise UserError(f"model.adapter.targets: the model has no layer '{target}'; there are: {', '.join(layers)}")


def _model_notes(config: BaseConfig, model_path: Path, local: Mapping[str, Path]) -> list[str]:
    trust, learning = config.model.trust_remote_code, config.learning
    notes = [
        f"{key}: vLLM runs this architecture by transformers' code, so its engine gets a process of its own"
        for key, path in local.items()
        if implementation(path, key, trust_remote_code=trust) == "transformers" and config.rollout.engine == "in_process"
    ]
    rate, size = (learning.optim.policy_lr, num_parameters(model_path)) if learning is not None else (None, 0)
    whole = config.model.adapter.kind == "none"
    if whole and rate is not None and rate > LARGE_RATE and size > SMALL_MODEL:
        notes.append(
            f"optim.policy_lr={rate:g} for {size / 1e6:,.0f} million parameters is high: optim=lab is for the embedded "
            "model, the paper used 5e-7 for 1.5 and 7 billion (optim=hf chooses by size)"
        )
    if learning is not None:
        notes += _target_notes(learning) + _rounding_notes(config, model_path)
    if trust:
        notes.append("model.trust_remote_code: Python code from the model's folder runs on this machine")
    return notes


def _target_notes(config: LearnConfig) -> list[str]:
    """Return a note where another model than the lab's gets the lab's target of a length reward, as it does by default."""
    length, longest = config.length, config.rollout.max_tokens
    is_ours = length.kind in OF_TARGET and length.target_tokens == LAB_TARGET
    if config.model.is_lab or longest <= LAB_LIMIT or not is_ours:
        return []
    return [
        f"length.target_tokens={LAB_TARGET} where responses have up to {longest:,} tokens: the default is for the embedded "
        f"model; set the length that {length.kind} is to pay for"
    ]


def _rounding_notes(config: BaseConfig, model_path: Path) -> list[str]:
    """Return a note where training begins from what adapters have taught a model, in a precision that rounds it away. Raises
    UserError for 4 bits (the rules of recipes refuse it between stages)."""
    base = config.model.adapter.base
    taught = [stage.model for stage in config.recipe.values() if stage.kind == "train" and stage.model != BASE]
    if (model_path / "adapter").is_dir():
        taught.append("model.path")
    if base == "float32" or not taught:
        return []
    said = f"what adapters have taught {taught[0]} rounds to nothing in it, and training begins without; float32 keeps it"
    if base == "4bit":
        raise UserError(f"model.adapter.base=4bit: {said}")
    return [f"model.adapter.base={base}: most of {said}"]


def _data_notes(config: BaseConfig) -> list[str]:
    """Return a note where another model than the lab's gets the lab's problems, as it does by default."""
    parts = config.data.pool, config.data.validation, config.data.test
    generated = all(problems.source == "arithmetic" for part in parts for problems in part.values())
    if config.model.is_lab or _has_settings_of_the_lab(config) or not generated:
        return []
    return ["data: the problems are the embedded model's arithmetic; name others by data= (data=gsm8k, data=mine)"]


def _rate_notes(config: BaseConfig, inputs: Inputs) -> list[str]:
    """Return notes on why earlier pass rates may differ from those that this run would measure. Raises UserError where they
    are of other problems."""
    if not inputs.rates:
        return []
    notes: list[str] = []
    first = inputs.rates[0]
    if first.model_hash != model_hash(inputs.model_path):
        notes.append("pass_rates: measured on another model than model.path; its pass rates may be others")
    if first.sampling_hash != sampling_hash(config):
        notes.append(
            "pass_rates: measured with another prompt, template, dtype, temperature, max_tokens, rule of extraction or "
            "verifier; they may be others"
        )
    if first.grader_version != GRADER_VERSION:
        notes.append("pass_rates: judged by another version of the grader; they may be others here")
    ids = {problem.problem_id for problem in inputs.pool}
    if unknown := ids - {rate.problem_id for rate in inputs.rates}:
        if unknown == ids:
            raise UserError(
                f"pass_rates: has none of the {len(ids)} problems of data.pool; give data and seed as they were probed, or "
                "null to probe first"
            )
        notes.append(
            f"pass_rates: has none of {len(unknown)} of the {len(inputs.pool)} problems of data.pool; they are left out"
        )
    return notes


def _selections(config: BaseConfig, inputs: Inputs) -> dict[str, Selection]:
    """Return the selections that need no measurement of this run. Raises UserError where too few problems qualify even if no
    earlier stage takes any."""
    selections: dict[str, Selection] = {}
    for name, stage in config.recipe.items():
        if stage.kind == "train" and ((phase := config.phase_of(stage)).by_hand or inputs.rates is not None):
            selection = select_for(config, stage, inputs.pool, inputs.rates or [])
            if phase.by_hand or not stage.without:
                selections[name] = selection
    return selections


def select_for(config: BaseConfig, stage: StageConfig, problems: Sequence[Problem], rates: Sequence[PassRate]) -> Selection:
    """Return the selection for the phase of a stage. Raises UserError as `select` does."""
    return select(config.phase_key(str(stage.phase)), problems, rates, config.phase_of(stage), config.seed)


def _earlier_rates(config: BaseConfig) -> list[PassRate] | None:
    if config.given_rates is None:
        return None
    path = newest_attempt(expanded(config.given_rates))
    if path.is_dir():
        check_content(path.resolve())
        path /= "pass_rates.jsonl"
    return read_pass_rates(path)


def _apart(inputs: Inputs, notes: list[str], *, near: bool) -> Inputs:
    """Return the inputs without what must not train or choose a checkpoint, each with a note: problems of pool and
    validation that are test problems, or (`near`) nearly so (a checkpoint that has trained on one could not be evaluated on
    that test), and problems of the pool that are validation problems, or earlier ones of the pool. Raises UserError where
    nothing is left."""
    texts = {single_spaced(problem.question) for problem in inputs.validation}
    like_test = "nearly the text of a test problem (eval.near_overlap)" if near else "the text of a test problem"
    pool = _without(inputs.pool, apart_from(inputs.pool, inputs.test, near=near), "pool", like_test, notes)
    validation = inputs.validation
    kept = apart_from(validation, inputs.test, near=near)
    validation = _without(validation, kept, "validation", like_test, notes)
    kept = [problem for problem in pool if single_spaced(problem.question) not in texts]
    pool = _without(pool, kept, "pool", "the text of a validation problem", notes)
    firsts = {single_spaced(problem.question): problem for problem in reversed(pool)}
    kept = [problem for problem in pool if firsts[single_spaced(problem.question)] is problem]
    contrary = sum(firsts[single_spaced(problem.question)].golds != problem.golds for problem in pool)
    what = "the text of an earlier one" + (f" ({contrary} with another answer)" if contrary else "")
    return replace(inputs, pool=_without(pool, kept, "pool", what, notes), validation=validation)


def _without(problems: list[Problem], kept: list[Problem], name: str, what: str, notes: list[str]) -> list[Problem]:
    if left_out := len(problems) - len(kept):
        which = f"data.{name}: {left_out} of {len(problems)} problems have {what}"
        if not kept:
            raise UserError(f"{which}; give others")
        notes.append(f"{which}, and are left out")
    return kept


def _check_verifiers(problems: Sequence[Problem]) -> None:
    """Raise UserError for verifiers in two folders: those of one run share processes, in which a module has one name."""
    folders = dict.fromkeys(Path(problem.verifier.file).parent for problem in problems if problem.verifier is not None)
    if len(folders) > 1:
        some = " and ".join(f"'{folder}'" for folder in list(folders)[:2])
        raise UserError(f"data: verifiers lie in {some}; put those of one run into one folder, as they share its modules")


def _check_ids(inputs: Inputs) -> None:
    """Raise UserError for an id that is in two of the three lists: a run identifies problems by id."""
    ids: dict[str, str] = {}
    for name in ("pool", "validation", "test"):
        for problem in getattr(inputs, name):
            other = ids.setdefault(problem.problem_id, name)
            if other != name:
                raise UserError(
                    f"problem id '{problem.problem_id}' of data.{name} is also in data.{other}; make ids differ, or leave "
                    f"them to conclip (data.{name}.*.problem_id=null)"
                )

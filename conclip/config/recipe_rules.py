"""Rules of a recipe's stages. Each failure is one UserError that names the key and says what to do."""

import dataclasses
from collections.abc import Sequence

from conclip.config.ranges import require
from conclip.config.recipe import BASE, StageConfig, checkpoint_folder, kind_of, probe_rows_file, rates_file
from conclip.config.schema import BaseConfig
from conclip.errors import UserError

KEYS_BY_STAGE = {
    "probe": {"model", "phase"},
    "train": {"model", "phase", "rates", "without", "about"},
    "eval": {"models", "evidence"},
    "warm_up": {"model", "rates", "about"},
}
"""The keys that a stage of each kind reads."""


def check_recipe(config: BaseConfig) -> None:
    """Check that stages rest on earlier ones, that their names can be file names, and that each has files of its own. Raises
    UserError."""
    if not config.recipe:
        raise UserError("config key 'recipe' has no stages; see conf/recipe/ for examples")
    probes: list[str] = []
    trained: list[str] = []
    writers: dict[str, str] = {}
    evaluated: dict[str, str] = {}
    measured = [BASE] if config.learning is not None else ["model", *config.given_models]
    for name, stage in config.recipe.items():
        _check_stage_name(name, stage)
        for file in _files(name, stage):
            other = writers.setdefault(file, name)
            require(other == name, f"recipe.{name}", f"would write {file}, as recipe.{other} does; give it another name")
        own = not stage.evidence or config.model.url is None
        require(own, f"recipe.{name}.evidence", "is for models of one's own; a server takes eval.prompts")
        blank = StageConfig(kind=stage.kind)
        for item in dataclasses.fields(stage):
            unread = item.name not in KEYS_BY_STAGE[stage.kind] and getattr(stage, item.name) != getattr(blank, item.name)
            require(not unread, f"recipe.{name}.{item.name}", f"is unread: the stage's kind is {stage.kind}")
        if stage.kind != "eval":
            _check_known(f"recipe.{name}.model", [stage.model], [BASE, *trained], "the base or an earlier training stage")
        if stage.kind in ("probe", "train"):
            known = list(config.phase_settings)
            _check_known(f"recipe.{name}.phase", [stage.phase], known, "one of the phases")
        if stage.kind == "warm_up":
            require(config.warming_up is not None, f"recipe.{name}", "needs the settings of a warm-up; see recipe=warm_up")
            boxed = not config.data.trains_by_verifier
            require(boxed, f"recipe.{name}", "teaches to give answers in a box, which verifiers do not look for")
            _check_known(f"recipe.{name}.rates", [stage.rates], probes, "an earlier probing stage")
            trained.append(name)
        elif stage.kind == "train":
            _check_training_stage(name, stage, config, probes, trained)
            trained.append(name)
        elif stage.kind == "probe":
            probes.append(name)
        else:
            where, there = f"recipe.{name}.models", [*measured, *trained]
            models = [model for model in there if model not in evaluated] if stage.models is None else stage.models
            _check_known(where, models, there, "models there are by then")
            if stage.models == [] or len(set(models)) < len(models):
                raise UserError(f"config key '{where}' must list models, each once")
            for model in models:
                other = evaluated.setdefault(model, name)
                require(
                    other == name, where, f"has '{model}', which recipe.{other} measures already; a model is measured once"
                )


def _files(name: str, stage: StageConfig) -> list[str]:
    """Return the files of a stage whose names could be those of another stage's."""
    if stage.kind == "probe":
        return [rates_file(name), probe_rows_file(name)]
    return [] if stage.kind == "eval" else [f"checkpoints/{name}", checkpoint_folder(name)]


def _check_training_stage(
    name: str, stage: StageConfig, config: BaseConfig, probes: Sequence[str], trained: Sequence[str]
) -> None:
    if config.learning is None:
        raise UserError(f"config key 'recipe.{name}.kind': this subcommand does not train; conclip run recipe=... does")
    keeps = stage.model == BASE or config.model.adapter.base != "4bit"
    why = (
        f"must not be 4bit for recipe.{name}: quantised anew, {stage.model} would lose what it has learned; float32 keeps it"
    )
    require(keeps, "model.adapter.base", why)
    given = config.given_rates is not None or config.phase_of(stage).by_hand
    if stage.rates is not None:
        _check_known(f"recipe.{name}.rates", [stage.rates], probes, "an earlier probing stage")
    elif not given:
        key = config.phase_key(str(stage.phase))
        raise UserError(
            f"config key 'recipe.{name}.rates' must name an earlier probing stage, or {key}.problem_ids problems"
        )
    _check_known(f"recipe.{name}.without", stage.without, trained, "earlier training stages")


def _check_stage_name(name: str, stage: StageConfig) -> None:
    plain = name.replace("-", "").replace("_", "").isalnum() and name.isascii() and len(name) <= 100
    if not plain or name in (BASE, "model"):
        raise UserError(f"config key 'recipe' has a stage '{name}'; a name has letters, digits, - and _, and is not {BASE}")
    if kind_of(name) != stage.kind:
        raise UserError(
            f"config key 'recipe' has a stage '{name}' of kind {stage.kind}; probing stages are called probe or probe-..., "
            "evaluations eval or eval-..., warm-ups warm-up or warm-up-..., and no training stage is"
        )


def _check_known(key: str, names: Sequence[str | None], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            value = f"is '{name}'" if name is not None else "has no value"
            raise UserError(f"config key '{key}' {value}; it must be {what}: {', '.join(known) or 'there is none'}")

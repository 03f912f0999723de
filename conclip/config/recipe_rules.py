"""What a recipe must keep to: each failure is one UserError that names the stage."""

from collections.abc import Sequence

from conclip.config.recipe import BASE, StageConfig
from conclip.config.schema import BaseConfig
from conclip.errors import UserError

READ = {
    "probe": {"model", "phase"},
    "train": {"model", "phase", "rates", "without", "about"},
    "eval": {"models"},
}
"""The keys that a stage of each kind reads."""


def check_recipe(config: BaseConfig) -> None:
    """Stages rest on earlier ones, and their names become names of files."""
    if not config.recipe:
        raise UserError("config key 'recipe' has no stages; see conf/recipe/ for examples")
    probes: list[str] = []
    trained: list[str] = []
    measured = [BASE] if config.learning is not None else ["model", *config.given_models]
    for name, stage in config.recipe.items():
        _check_name(name, stage)
        for key, default in (
            ("model", BASE),
            ("phase", None),
            ("rates", None),
            ("without", []),
            ("models", None),
            ("about", ""),
        ):
            if key not in READ[stage.kind] and getattr(stage, key) != default:
                raise UserError(f"config key 'recipe.{name}.{key}' is unread: the stage's kind is {stage.kind}")
        if stage.kind != "eval":
            _check_known(f"recipe.{name}.model", [stage.model], [BASE, *trained], "the base or an earlier training stage")
            known = list(config.phase_settings)
            _check_known(f"recipe.{name}.phase", [stage.phase], known, "one of the phases")
        if stage.kind == "train":
            _check_training(name, stage, config, probes, trained)
            trained.append(name)
        elif stage.kind == "probe":
            probes.append(name)
        elif stage.models is not None:
            where = f"recipe.{name}.models"
            _check_known(where, stage.models, [*measured, *trained], "models there are by then")
            if not stage.models or len(set(stage.models)) < len(stage.models):
                raise UserError(f"config key '{where}' must list models, each once")


def _check_training(
    name: str, stage: StageConfig, config: BaseConfig, probes: Sequence[str], trained: Sequence[str]
) -> None:
    if config.learning is None:
        raise UserError(f"config key 'recipe.{name}.kind': this subcommand does not train; conclip run recipe=... does")
    given = config.given_rates is not None or config.phase_of(stage).by_hand
    if stage.rates is not None:
        _check_known(f"recipe.{name}.rates", [stage.rates], probes, "an earlier probing stage")
    elif not given:
        key = config.phase_key(str(stage.phase))
        raise UserError(
            f"config key 'recipe.{name}.rates' must name an earlier probing stage, or {key}.problem_ids problems"
        )
    _check_known(f"recipe.{name}.without", stage.without, trained, "earlier training stages")


def _check_name(name: str, stage: StageConfig) -> None:
    plain = name.replace("-", "").replace("_", "").isalnum() and name.isascii() and len(name) <= 100
    if not plain or name in (BASE, "model"):
        raise UserError(f"config key 'recipe' has a stage '{name}'; a name has letters, digits, - and _, and is not {BASE}")
    prefix = next((kind for kind in ("probe", "eval") if name == kind or name.startswith(f"{kind}-")), "train")
    if prefix != stage.kind:
        raise UserError(
            f"config key 'recipe' has a stage '{name}' of kind {stage.kind}; probing stages are called probe or probe-..., "
            "evaluations eval or eval-..., and no training stage is"
        )


def _check_known(key: str, names: Sequence[str | None], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            said = f"is '{name}'" if name is not None else "has no value"
            raise UserError(f"config key '{key}' {said}; it must be {what}: {', '.join(known) or 'there is none'}")

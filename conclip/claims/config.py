"""A claim is a file in `conf/claims/`: the runs that test it, and the differences that decide it, fixed before any run."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from yaml import YAMLError

from conclip.config.compose import compose_config, config_folders
from conclip.config.foreign import limit_yaml_size
from conclip.config.groups import ProblemSetConfig
from conclip.config.recipe import BASE, measured_by
from conclip.config.schema import SCHEMAS, BaseConfig
from conclip.config.typed import to_config
from conclip.errors import UserError
from conclip.grading.grader import GRADER_VERSION
from conclip.models.folder import find_model, model_hash
from conclip.redact import one_line
from conclip.runs.files import expanded
from conclip.runs.identity import digest, path_hash, relevant

SUBCOMMAND = "run"
"""The subcommand of every run of a claim."""

QUICK_SEEDS = 2
"""Seeds of a claim in its quick version."""

Expectation = Literal["less", "more", "not less", "not more"]


@dataclass(frozen=True)
class Contrast:
    """One difference that decides a claim: a measure of one run, or of one model of it, minus that of another."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    measure: str
    """`tokens` [% more than the base model's], `accuracy` [points more than the base model's], `gap` [by how much wrong
    responses to a problem are longer than correct ones, % of the mean of both], or `metrics.NAME`: a monitor's mean over the
    last quarter of the training steps"""
    first: str
    """the run"""
    expect: Expectation
    """what the claim says of the difference"""
    relevant: float
    """the smallest difference that matters, in the measure's unit; of "not less" the largest drop that does not, of "not
    more" the largest rise"""
    at_least: float = 0.0
    """less, more: the size that the claim gives to the difference"""
    second: str | None = None
    """the run it is compared with, seed by seed; null: the same run's `than`, or nothing"""
    model: str = "phase2"
    """the model of the runs that is measured"""
    than: str | None = None
    """second=null: the other model of the same run; null: the measure itself, which is 0 where nothing changed"""
    temperature: float | None = None
    """the temperature of the evaluation; null: the only one, where there is no other"""
    test: str | None = None
    """the set of test problems; null: all of them"""


@dataclass(frozen=True)
class Claim:
    """A claim, its runs and its contrasts."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    claim: str
    """what the paper says"""
    runs: dict[str, list[str]]
    """name -> overrides of `conclip run`, after `common`"""
    contrasts: dict[str, Contrast]
    """name -> what decides; all of them must hold"""
    common: list[str] = field(default_factory=list[str])
    """overrides of every run"""
    seeds: int = 5
    """how many; they redraw problems, sampling and training"""
    quick: list[str] = field(default_factory=list[str])
    """overrides of every run with --quick, which has two seeds"""
    designed: str = ""
    """what the lab's design has to do with it"""
    remarks: str = ""
    """what to know when reading its result: what changed after a first look at it, what was not measured"""
    given: list[str] = field(default_factory=list[str])
    """overrides of every run that the command line has, after all others; not in a file"""
    hours: float | None = None
    """what the runs took, one after another on two cores, with those that other claims share, without stages that they took
    over from earlier ones [h]; null: not known yet"""

    def seconds_a_run(self) -> float | None:
        """Return what a run took on average [s], as far as the file says; runs with the same overrides are one. By itself it
        may take longer, as no earlier run has finished any of its stages."""
        different = len({tuple(overrides) for overrides in self.runs.values()})
        return None if self.hours is None else 3600 * self.hours / (self.seeds * different)


_CLAIM = TypeAdapter(Claim)


def claim_files(config_dir: Path | None = None) -> dict[str, Path]:
    """Return the claims that there are by name: those in the folder `claims` of `config_dir`, and conclip's. Raises
    UserError where there is no such folder."""
    folders = reversed(config_folders(config_dir))
    found = {path.stem: path for folder in folders for path in (folder / "claims").glob("*.yaml")}
    return {name: found[name] for name in sorted(found, key=by_number)}


def by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts c2 before c10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def is_file_name(name: str) -> bool:
    """Return whether a claim's name, which becomes that of files, has letters, digits, - and _ only."""
    return re.fullmatch(r"[\w-]+", name) is not None


def load_claim(name: str, path: Path) -> Claim:
    """Return a claim that makes sense. Raises UserError naming file and key."""
    if not is_file_name(name):
        raise UserError(f"'{path}': the name of a claim has letters, digits, - and _ only; rename the file")
    try:
        with limit_yaml_size():
            plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        claim = _CLAIM.validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"'{path}': key '{'.'.join(map(str, first['loc']))}': {first['msg']}") from error
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"'{path}' is no claim: {one_line(str(error))}") from error
    check_claim(claim, path)
    if claim.given:
        raise UserError(f"'{path}': given is for the command line; its overrides belong into common")
    return claim


OWN_KEYS = re.compile(r"\+*(name|seed|paths\.outputs|paths\.stages_from)=")
"""Overrides that every run gets from `conclip claims`."""
MEASURES = ("tokens", "accuracy", "gap")


def check_claim(claim: Claim, path: Path) -> None:
    """Raise UserError naming the key of a claim that makes no sense. `path`: the file that holds it."""
    if claim.seeds < 2:
        raise UserError(f"'{path}': seeds must be at least 2, got {claim.seeds}: one seed has no spread")
    if not claim.runs or not claim.contrasts:
        raise UserError(f"'{path}': a claim needs runs and contrasts")
    if claim.hours is not None and not 0 < claim.hours < math.inf:
        raise UserError(f"'{path}': hours must be positive, got {claim.hours}")
    for run in claim.runs:
        if not run.strip() or not run.isprintable():
            raise UserError(f"'{path}': runs: {run!r} is no name; use printable characters")
    for place, wanted in (
        ("common", claim.common),
        ("quick", claim.quick),
        *((f"runs.{k}", r) for k, r in claim.runs.items()),
    ):
        if taken := [text for text in wanted if OWN_KEYS.match(text)]:
            raise UserError(f"'{path}': {place}: '{taken[0]}' is set by conclip claims itself; leave it out")
    for key, contrast in claim.contrasts.items():
        for run in filter(None, (contrast.first, contrast.second)):
            if run not in claim.runs:
                raise UserError(f"'{path}': contrasts.{key} names the run '{run}'; there are: {', '.join(claim.runs)}")
        if contrast.second is not None and (contrast.than is not None or contrast.second == contrast.first):
            raise UserError(f"'{path}': contrasts.{key}.second must be another run than first, and comes without than")
        if not 0 < contrast.relevant < math.inf:
            raise UserError(f"'{path}': contrasts.{key}.relevant must be positive, got {contrast.relevant}")
        if not 0 <= contrast.at_least < math.inf or (contrast.at_least and contrast.expect not in ("less", "more")):
            raise UserError(f"'{path}': contrasts.{key}.at_least must be a size, and goes with less or more")
        if contrast.measure not in MEASURES and not contrast.measure.startswith("metrics."):
            raise UserError(f"'{path}': contrasts.{key}.measure must be one of {', '.join(MEASURES)}, metrics.NAME")


def on_other(claim: Claim, given: Sequence[str]) -> Claim:
    """Return a claim whose runs have further overrides, after their own: another model, say. Where these choose other
    problems (`data=`), what the claim sets of the embedded ones (`data.*`) is left out. How long runs take is then unknown.
    Raises UserError for what `conclip claims` sets itself, and for a group that the claim chooses."""
    if not given:
        return claim
    if taken := [text for text in given if OWN_KEYS.match(text)]:
        raise UserError(f"'{taken[0]}' is set by conclip claims itself; --first-seed, --seeds and --out set seeds and place")
    own = {_key(text) for wanted in (claim.common, *claim.runs.values()) for text in wanted}
    if taken := [text for text in given if "." not in _key(text) and _key(text) in own]:
        raise UserError(f"'{taken[0]}': the claim itself chooses that, and rests on it; give single settings instead")
    others = any(text.startswith("data=") for text in given)

    def kept(wanted: Sequence[str]) -> list[str]:
        return [text for text in wanted if not (others and re.match(r"[+~]*data\.", text))]

    runs = {name: kept(wanted) for name, wanted in claim.runs.items()}
    quick = kept(claim.quick)
    return replace(claim, common=kept(claim.common), runs=runs, quick=quick, given=list(given), hours=None)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def check_runs(name: str, claim: Claim, *, quick: bool, config_dir: Path | None = None) -> dict[str, str]:
    """Compose every run of a claim. Returns what `run_hash` does for each. Raises UserError naming claim and run, and for
    a contrast of two runs that are the same."""
    hashes = {run: run_hash(name, claim, run, quick=quick, config_dir=config_dir) for run in claim.runs}
    for key, contrast in claim.contrasts.items():
        if contrast.second is not None and hashes[contrast.first] == hashes[contrast.second]:
            raise UserError(f"claim '{name}': contrasts.{key}: its two runs have the same config, so there is no difference")
    return hashes


def run_hash(name: str, claim: Claim, run: str, *, quick: bool, config_dir: Path | None = None) -> str:
    """Compose a run of a claim. Returns the hash of all that decides its results but for the seed: config, grader, model,
    and the files of problems, examples and verifiers. Raises UserError naming claim and run."""
    folder = str(config_dir) if config_dir is not None else None
    try:
        wanted = [*overrides(claim, run, quick=quick), "seed=0"]
        config = to_config(SCHEMAS[SUBCOMMAND], compose_config(SUBCOMMAND, wanted, config_dir=folder)[0])
        assert isinstance(config, BaseConfig)
        model = [] if config.model.url is not None else [model_hash(find_model(config.model.path))]
        sets = [one for part in (config.data.pool, config.data.validation, config.data.test) for one in part.values()]
        files = [path_hash(expanded(path)) for one in sets for path in _files(one)]
    except UserError as error:
        raise UserError(f"claim '{name}', run '{run}': {error}") from error
    _check_contrasts(name, claim, run, config)
    near = [] if config.evaluation is None or config.evaluation.near_overlap else ["near_overlap=false"]  # chooses problems
    return digest([relevant(config), asdict(config.data), GRADER_VERSION, *model, *files, *near])


def _files(problems: ProblemSetConfig) -> list[str]:
    """Return the files of a set of problems: its own, that of its examples and that of its verifier."""
    verifier = (problems.verifier or "").rpartition(":")[0] or None
    return [path for path in (problems.path, problems.shots_path, verifier) if path is not None]


def _check_contrasts(name: str, claim: Claim, run: str, config: BaseConfig) -> None:
    """Refuse a run of which the base model is not evaluated, and contrasts that name a model or a set of test problems which
    it does not have, or leave open at which temperature they measure."""
    evaluated = {model for models in measured_by(config.recipe).values() for model in models}
    if BASE not in evaluated or config.evaluation is None:
        raise UserError(
            f"claim '{name}', run '{run}': its recipe must evaluate the model '{BASE}': all is measured against it"
        )
    trained = [name for name, stage in config.recipe.items() if stage.kind in ("train", "warm_up")]
    tests, temperatures = list(config.data.test), config.evaluation.temperatures
    for key, contrast in claim.contrasts.items():
        if run not in (contrast.first, contrast.second):
            continue
        where = f"claim '{name}': contrasts.{key}"
        of_rows = not contrast.measure.startswith("metrics.")
        models = [model for model in (BASE, *trained) if model in evaluated] if of_rows else trained
        for what, value, there in (
            ("model", contrast.model, models),
            ("than", contrast.than, models),
            ("test", contrast.test, tests),
        ):
            if value is not None and value not in there:
                had = ", ".join(there) or "none"
                raise UserError(f"{where}.{what} is '{value}', which '{run}' does not have; it has {had}")
        if of_rows and contrast.temperature not in (temperatures if len(temperatures) > 1 else [None, *temperatures]):
            at = ", ".join(f"{one:g}" for one in temperatures)
            raise UserError(f"{where}.temperature must be one at which '{run}' is evaluated: {at}")


def overrides(claim: Claim, run: str, *, quick: bool) -> list[str]:
    """Return the overrides of one run, but for its seed."""
    return [*claim.common, *claim.runs[run], *(claim.quick if quick else []), *claim.given]

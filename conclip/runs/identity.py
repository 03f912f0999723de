"""Identity of runs and stages: hashes of the values and files that decide their results."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conclip.config.groups import AdapterConfig
from conclip.config.schema import BaseConfig
from conclip.runs.files import expanded
from conclip.types import Problem

IRRELEVANT = {
    ("name",),
    ("resume",),
    ("paths",),
    ("logger",),
    ("device",),
    ("cluster",),  # ranks add up in another order, which moves last digits
    ("data",),  # the problems themselves are hashed
    ("checkpoints",),  # and so are the models
    ("pass_rates",),
    ("model", "path"),
    ("model", "url"),
    ("model", "served_name"),
    ("rollout", "engine"),
    ("rollout", "gpu_memory_utilization"),
    ("rollout", "num_graders"),
    ("trainer", "transcripts_per_group"),
    ("trainer", "micro_batches_at_once"),
    ("trainer", "save_every"),
    ("trainer", "keep_last"),
    ("trainer", "save_in_background"),
    ("trainer", "recompute_activations"),
    ("trainer", "offload"),
    ("trainer", "max_sampler_drift"),
    ("eval", "allow_overlap"),
    ("eval", "near_overlap"),
    ("eval", "margin"),
}
"""Config keys that change no token, no weight and no outcome, but for the last digits of a learner on another number of
ranks or, of other models than the lab's, with micro-batches side by side."""


def digest(value: Any) -> str:
    """Return the hash of a JSON-like value, 24 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


NEWER = {
    ("model", "adapter"): asdict(AdapterConfig()),
    ("algo", "reference_dtype"): "float32",
    ("eval", "samples_of"): {},
    ("algo", "teacher_prompt"): "concise",
    ("optim", "moments"): "float32",
    ("rollout", "deterministic"): False,
    ("rollout", "num_engines"): 1,
    ("trainer", "sample_ahead"): False,
}
NEWER_OF_PHASES = {"wrong_answers": 0.0, "hardest": 0.0}
"""Keys that earlier versions lacked, and those of a phase, with the values at which a run is what it was then: its hash
leaves them out."""


def relevant(config: BaseConfig, parts: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the result-relevant keys of a config, or of some of its top-level parts."""
    plain = _relevant(asdict(config), ())
    for (group, name), value in NEWER.items():
        if plain.get(group, {}).get(name) == value:
            del plain[group][name]
    for phase in (*([plain["phase"]] if "phase" in plain else []), *plain.get("phases", {}).values()):
        for name, value in NEWER_OF_PHASES.items():
            if phase.get(name) == value:
                del phase[name]
    return plain if parts is None else {part: plain[part] for part in parts}


def _relevant(values: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: _relevant(value, (*where, name)) if isinstance(value, dict) else value
        for name, value in values.items()
        if (*where, name) not in IRRELEVANT
    }


def sampling_hash(config: BaseConfig) -> str:
    """Return the hash of what decides the distribution of training and probing responses, besides the model's weights."""
    model, rollout = config.model, config.rollout
    values = [model.prompt, model.system, model.dtype, rollout.temperature, rollout.max_tokens]
    # each only where it is set: older pass rates have hashes without them
    extraction = "" if rollout.extraction == "strict" else rollout.extraction
    further = {
        "template": model.chat_template_kwargs,
        "extraction": extraction,
        "stop": model.stop_tokens,
        "tags": model.thinking_tags,
        "verifiers": {
            name: [problems.verifier, path_hash(expanded(problems.verifier.rpartition(":")[0]))]
            for name, problems in config.data.pool.items()
            if problems.verifier is not None
        },
    }
    return digest([*values, *([name, value] for name, value in further.items() if value)])


def problems_hash(problems: Sequence[Problem]) -> str:
    """Return the hash of problems in their order, with all of their fields."""
    return digest([_fields(problem) for problem in problems])


def _fields(problem: Problem) -> dict[str, Any]:
    """Return a problem's fields; without a verifier as earlier versions hashed them, which knew none."""
    values = asdict(problem)
    del values["verifier"]
    return values if problem.verifier is None else {**values, "verifier": problem.verifier.identity}


def path_hash(path: Path) -> str:
    """Return the hash of a file's content, or of the `content_files` of a folder; "missing" for a path that does not
    exist."""
    if not path.exists():
        return "missing"
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()[:24]
    return digest([(str(file.relative_to(path)), path_hash(file)) for file in content_files(path)])


def content_files(path: Path) -> list[Path]:
    """Return a file itself, or all files below a folder except README.md, which people may edit, and hidden and unfinished
    files."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not _is_ignored(file))


def _is_ignored(file: Path) -> bool:
    return file.name == "README.md" or file.name.startswith(".") or file.suffix == ".part"

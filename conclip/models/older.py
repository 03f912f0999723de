"""Lets transformers 4 read the model folders that transformers 5 writes.

Version 4 does not know version 5's names in config.json and tokenizer_config.json. Where it ignores one, it computes with a
default: the rotary embedding's base would be 10,000 instead of a Qwen model's 1,000,000, and nothing would say so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from conclip.runs.files import read_object, write_text

ROPE_SETTINGS = ("rope_theta", "partial_rotary_factor")
"""The settings of rotary embeddings that version 4 reads at the top of config.json; it expects the others in
`rope_scaling`."""


def add_older_names(folder: Path) -> None:
    """Write the settings of a model folder under version 4's names, too. Version 5 reads the same from the result.

    Embeddings that differ by layer (Gemma 3) stay as they are: version 4 has a name of its own for each family's."""
    _rewrite(folder / "config.json", _with_rope)
    _rewrite(folder / "tokenizer_config.json", _with_known_class)


def _rewrite(file: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    before = read_object(file)
    if before and (after := changed(before)) != before:
        write_text(file, json.dumps(after, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _with_rope(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in cast(dict[str, Any], rope).values()):
        return config
    rope = cast(dict[str, Any], rope)
    scaling = {key: value for key, value in rope.items() if key not in ROPE_SETTINGS}
    older = {key: rope[key] for key in ROPE_SETTINGS if key in rope}
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    return older | config


def _with_known_class(config: dict[str, Any]) -> dict[str, Any]:
    older = dict(config)
    if older.get("tokenizer_class") == "TokenizersBackend":
        older["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(older.get("extra_special_tokens"), list):
        older["additional_special_tokens"] = older.pop("extra_special_tokens")
    return older

"""Finds out how vLLM runs the architecture of a model folder. It reads vLLM's own tables without importing it, which would
take seconds and 300 MiB before anything is decided."""

import ast
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from conclip.errors import UserError
from conclip.models.folder import LAB_MODEL

Implementation = Literal["native", "transformers"]
"""Whose code runs a model in vLLM: its own, or that of transformers, which it patches for its whole process."""

TABLES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
DROPPED = "_PREVIOUSLY_SUPPORTED_MODELS"


def implementation(folder: Path, key: str = "model.path", *, trust_remote_code: bool = False) -> Implementation:
    """Return whose code runs a whole model folder, the value of config key `key`. Raises UserError when vLLM does not run
    its architecture, or computes it wrongly on this machine."""
    if folder == LAB_MODEL:
        return "native"
    config = cast(dict[str, Any], json.loads((folder / "config.json").read_text(encoding="utf-8")))
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise UserError(
            f"{key}: '{folder / 'config.json'}' names no architecture, by which vLLM chooses its code; add "
            '"architectures": ["..."] as in the model it was made from'
        )
    if config.get("kv_lora_rank") and not _on_gpu():
        # vLLM's CPU kernel for interleaved positions rotates the queries of this attention wrongly
        raise UserError(
            f"{key}: '{folder}' compresses its keys and values (kv_lora_rank), which vLLM computes wrongly on CPUs; "
            "it takes a GPU"
        )
    modules, dropped = registered()
    for name in cast(list[str], names):
        if name in modules:
            return "transformers" if modules[name] == "transformers" else "native"
    name = cast(str, names[0])
    if trust_remote_code or not modules or _fits_transformers_backend(name):
        return "transformers"
    since = f" (it did up to version {dropped[name]})" if name in dropped else ""
    raise UserError(f"{key}: vLLM does not run {name}{since}, the architecture of '{folder}'; choose another model")


@cache
def registered() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the module of each architecture that vLLM names, and the last version that had each one it dropped. Both are
    empty where vLLM is not installed, or keeps its tables elsewhere."""
    spec = importlib.util.find_spec("vllm")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    try:
        tree = ast.parse((Path(places[0]) / "model_executor/models/registry.py").read_text(encoding="utf-8"))
    except (IndexError, OSError, SyntaxError):
        return {}, {}
    tables: dict[str, dict[str, Any]] = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in (*TABLES, DROPPED)
    }
    modules = {name: module for table in TABLES for name, (module, _) in tables.get(table, {}).items()}
    return modules, tables.get(DROPPED, {})


def _on_gpu() -> bool:
    import torch  # noqa: PLC0415  seconds

    return torch.cuda.is_available()


def _fits_transformers_backend(name: str) -> bool:
    """Return whether transformers' class lets vLLM put its attention in, which is all vLLM asks of models it has no code
    for."""
    import transformers  # noqa: PLC0415  seconds

    model_class = getattr(transformers, name, None)
    return model_class is not None and bool(
        model_class.is_backend_compatible() or model_class._can_set_attn_implementation()
    )

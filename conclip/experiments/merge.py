"""`conclip merge SOURCE OUT`: one model folder from an adapter and its base, or from a model folder in another precision."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from conclip.config.groups import Dtype
from conclip.errors import UserError
from conclip.models.folder import ADAPTER, ADAPTER_CONFIG, adapter_in, find_model, has_chat_template, is_quantised
from conclip.models.load import load_policy, load_tokenizer, reading
from conclip.models.older import add_older_names
from conclip.problems.overlap import trained_on, write_record
from conclip.runs.files import expanded


def merge(source: str, target: Path, *, base: str | None = None, dtype: Dtype = "bfloat16") -> Path:
    """Write the model of `source` into the new folder `target` in precision `dtype`. Returns the base's folder, or that of
    `source` itself.

    `source` is an adapter (peft's files, as conclip and TRL write them), a checkpoint that holds one, or a model's folder or
    hub id. `base`: the model that an adapter goes with; None: the one that it names. The sum is computed in fp32. Which
    questions base and adapter were trained on goes along. Raises UserError where a folder is not what it should be, where
    the adapter does not fit the base, and where `target` is there.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"OUT: '{target}' is there already; give a new folder")
    if not target.absolute().parent.is_dir():
        raise UserError(f"OUT: no folder '{target.parent}'")
    given = find_model(source, "SOURCE")
    adapter = adapter_in(given)
    if adapter is None and base is not None:
        raise UserError(f"--base: '{source}' is no adapter, and needs none")
    folder = given if adapter is None else _base_of(adapter, base)
    if not (folder / "config.json").is_file():
        raise UserError(f"'{folder}' has no config.json, nor an adapter's {ADAPTER_CONFIG}; it is no model folder")
    places = [folder]
    if adapter is not None:
        places += [adapter, *([adapter.parent] if adapter.name == ADAPTER else [])]
    questions = [question for place in places for question in trained_on(place)]
    with reading(folder, "the model"):
        if is_quantised(folder):
            how = "give that model" if adapter is None else "name that model by --base MODEL"
            raise UserError(
                f"'{folder}' has quantised weights, and a merged model is made from those of full precision; {how}"
            )
        model = load_policy(folder, torch.device("cpu"))
    if adapter is not None:
        model = _merged(model, adapter)
    tokens = adapter if adapter is not None and has_chat_template(adapter) else folder
    with reading(tokens, "the tokenizer"):
        tokenizer = load_tokenizer(tokens)
    try:
        model.to(getattr(torch, dtype)).save_pretrained(target)  # pyright: ignore[reportArgumentType, reportCallIssue]
        tokenizer.save_pretrained(target)
        add_older_names(target)
        if questions:
            write_record(target, questions, [])
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return folder


def _base_of(adapter: Path, base: str | None) -> Path:
    try:
        settings: Any = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"'{adapter / ADAPTER_CONFIG}' is damaged ({type(error).__name__})") from error
    if base is None and not (isinstance(named, str) and named):
        raise UserError(f"'{adapter}' names no base; name it by --base MODEL")
    if base is None and revision and not expanded(str(named)).is_dir():
        named = f"{named}@{revision}"
    return find_model(base or str(named), "--base")


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"'{adapter}' has no adapter_model.safetensors; other formats are not loaded")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return cast(PreTrainedModel, cast(Any, PeftModel.from_pretrained(model, str(adapter))).merge_and_unload())
    except (ValueError, RuntimeError, UserWarning, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"'{adapter}' does not fit the base, or is damaged ({reason}); name another by --base MODEL"
        ) from error

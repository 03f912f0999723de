"""Finds and checks model folders without loading anything heavy."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from conclip.config.groups import LAB
from conclip.errors import UserError, explain
from conclip.redact import one_line
from conclip.runs.files import expanded

LAB_MODEL = Path(__file__).parent.parent / "lab" / "weights"
"""The embedded default model."""

INDEX = "model.safetensors.index.json"

SHARD_BYTES = 1 << 30
"""The size of one file of merged weights, unless a single tensor is larger, and what is held of them at a time."""

LOGIT_SCALES = (
    "lm_head_multiplier",
    "logits_soft_cap",
    "output_logit_soft_cap",
)
"""Config keys of models that apply a scale or cap to their logits which `models.load.OutputHead` does not know."""

DIFFERENT_IN_VLLM = {"cohere2": "vLLM's attention windows are a token wider than transformers'"}
"""Model types that vLLM runs differently from transformers: the policy that trains would not be the one that samples."""


ADAPTER = "adapter"
"""The folder of the adapter by itself, in a checkpoint of a phase that trains one."""
ADAPTER_CONFIG = "adapter_config.json"
"""By this file a folder holds an adapter."""

OTHER_FORMATS = ("*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.ot", "*.onnx*", "*.tflite", "*.mlmodel")
OTHER_FORMATS += ("onnx/*", "openvino/*", "coreml/*", "original/*", "consolidated*")
"""What the hub's repositories also hold: the same weights for other programs."""


def find_model(path: str, key: str = "model.path") -> Path:
    """Return the folder that config key `key` names: ``lab``, a folder, or a hub id that is cached or can be downloaded, at
    a revision of its own if it ends in ``@REVISION`` (a branch, a tag or a commit). Raises UserError."""
    if path == LAB:
        return LAB_MODEL
    folder = expanded(path)
    if folder.is_dir():
        return folder
    name, _, revision = path.partition("@")
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        from huggingface_hub import snapshot_download  # noqa: PLC0415  only when a hub id is asked for

        try:
            return Path(snapshot_download(name, revision=revision or None, ignore_patterns=[*OTHER_FORMATS]))
        except Exception as error:
            if explain(error) is not None:
                raise
            raise UserError(
                f"{key}: '{path}' is no folder here, and the hub does not give it ({type(error).__name__}: "
                f"{one_line(str(error))}); check the name; if its terms must be accepted, do so on its page and run "
                "'hf auth login'; or download it and give the folder"
            ) from error
    raise UserError(f"{key}: no folder '{path}'; give 'lab', a Hugging Face model folder, or a hub id")


def adapter_in(folder: Path) -> Path | None:
    """Return the folder of the adapter where this is one, or a checkpoint of a phase that trains one; None where it is
    not."""
    places = [folder, *([] if (folder / "config.json").is_file() else [folder / ADAPTER])]
    return next((place for place in places if (place / ADAPTER_CONFIG).is_file()), None)


def public_name(path: str | Path) -> str:
    """Return what others know a model by, without a path of this machine: a hub id, also of a folder of the hub's cache, or
    the folder's own name."""
    folder = expanded(str(path))
    if not folder.is_dir():
        return str(path).partition("@")[0]
    cached = folder.parent.parent.name  # CACHE/models--ORG--NAME/snapshots/REVISION
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/")
    return folder.resolve().name


def public_revision(path: str | Path) -> str | None:
    """Return the revision of a hub id, or of a folder of the hub's cache; None where none is known."""
    folder = expanded(str(path))
    if not folder.is_dir():
        return str(path).partition("@")[2] or None
    return folder.name if folder.parent.name == "snapshots" else None


def check_model(
    folder: Path,
    tokens_key: str,
    max_tokens: int,
    key: str = "model.path",
    *,
    max_model_len: int | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Raise UserError unless `folder`, the value of config key `key`, is a whole HF model of a known type with a chat
    template and room for `max_tokens`, the value of `tokens_key`, and for the engine's `max_model_len`."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        if adapter_in(folder) is not None:
            raise UserError(f"{key}: '{folder}' is an adapter; make a model of it: conclip merge {folder} OUT")
        raise UserError(f"{key}: '{folder}' has no config.json; it is not a Hugging Face model folder")
    if (folder / ADAPTER_CONFIG).is_file():
        if all(file.name == "adapter_model.safetensors" for file in folder.glob("*.safetensors")):
            raise UserError(f"{key}: '{folder}' is an adapter; make a model of it: conclip merge {folder} OUT")
        raise UserError(
            f"{key}: '{folder}' holds a model and an adapter, which transformers would add; move the adapter's files away"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: '{config_file}' is not JSON ({error}); the download may be damaged") from error
    if not isinstance(config, dict):
        raise UserError(f"{key}: '{config_file}' is no JSON object; the download may be damaged")
    config = cast(dict[str, Any], config)
    _check_type(key, folder, config.get("model_type"), trust_remote_code=trust_remote_code)
    _check_weights(key, folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{key}: '{folder}' has no tokenizer; copy the base model's tokenizer files into it")
    if not has_chat_template(folder):
        raise UserError(
            f"{key}: the tokenizer of '{folder}' has no chat template; use an instruct model or add chat_template.jinja"
        )
    context = config.get("max_position_embeddings")
    if not isinstance(context, int) or _is_extended(config):
        return
    if max_tokens >= context:
        raise UserError(
            f"{tokens_key}={max_tokens} does not fit the model's context of {context} tokens (prompt included); lower it"
        )
    if max_model_len is not None and max_model_len > context:
        raise UserError(
            f"rollout.max_model_len={max_model_len} exceeds the context of '{folder}' ({context} tokens); lower it, or null"
        )


def check_trainable(folder: Path, *, max_model_len: int | None = None, trust_remote_code: bool = False) -> None:
    """Raise UserError when a model folder names a model that cannot be trained, or not with an engine that holds
    `max_model_len` tokens (None: the model's context)."""
    config = cast(dict[str, Any], json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if "text_config" in config or "vision_config" in config:
        raise UserError(f"model.path: '{folder}' sees pictures, too; training takes models of text alone")
    if folder != LAB_MODEL and not trust_remote_code:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415  seconds

        if config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise UserError(
                f"model.path: '{folder}' is no causal language model; docs/models.md names families that can be trained"
            )
    if is_quantised(folder):
        raise UserError(
            f"model.path: '{folder}' has quantised weights, which no step can change; give the model of full precision "
            "(model.adapter.base=4bit makes its frozen weights small)"
        )
    if (reason := DIFFERENT_IN_VLLM.get(config.get("model_type", ""))) is not None:
        raise UserError(f"model.path: '{folder}' cannot be trained: {reason}; conclip eval takes it")
    short = _short_context(config)
    if short is not None and (max_model_len or config.get("max_position_embeddings", 0)) > short:
        raise UserError(
            f"model.path: '{folder}' has two sets of positions; vLLM takes the long ones for all responses when it may hold "
            f"more than {short} tokens, the trainer for those longer than that; set rollout.max_model_len={short} or lower"
        )
    scaled = [name for name in LOGIT_SCALES if config.get(name) not in (None, 1, 1.0)]
    if scaled:
        raise UserError(
            f"model.path: '{folder}' scales or caps its logits ({scaled[0]}), which training does not support; "
            "docs/models.md names families that it does"
        )


def is_quantised(folder: Path) -> bool:
    """Return whether a model folder has weights of fewer bits (FP8, AWQ, GPTQ, bitsandbytes)."""
    config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = any(config.get(key) for key in ("quantization_config", "compression_config"))
    return named or (folder / "hf_quant_config.json").is_file()


def _short_context(config: dict[str, Any]) -> int | None:
    """Return the number of tokens up to which a model with LongRoPE uses its short factors; None for other models."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type")) != "longrope":
        return None
    length = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    return length if isinstance(length, int) else None


def _is_extended(config: dict[str, Any]) -> bool:
    """Return whether positions are stretched beyond `max_position_embeddings`."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    rope_type = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    return rope_type in ("yarn", "linear", "dynamic")


def _check_type(key: str, folder: Path, model_type: Any, *, trust_remote_code: bool) -> None:
    if folder == LAB_MODEL or trust_remote_code:
        return
    from transformers import CONFIG_MAPPING  # noqa: PLC0415  two seconds to import

    if model_type not in CONFIG_MAPPING:
        raise UserError(
            f"{key}: '{folder}' is of model_type {model_type!r}, which this version of transformers does not know; where "
            "the folder brings its own code, and you have read it, set model.trust_remote_code=true"
        )


def _check_weights(key: str, folder: Path) -> None:
    """Check headers and lengths of the weight files, but not their content."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{key}: '{folder}' has no *.safetensors weights; other formats are not loaded")
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="numpy"):
                pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"{key}: the weights in '{folder}' are damaged or not all there ({error}); download anew") from error


def weight_files(folder: Path) -> list[Path]:
    """Return the files that the index names or, where there is no index, model.safetensors or all *.safetensors: other
    files (adapters, another format's) are not the model's. Raises ValueError when the index names files elsewhere, or of
    another format."""
    index, whole = folder / INDEX, folder / "model.safetensors"
    if not index.is_file():
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if other := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ValueError(f"'{index.name}' names '{other[0]}', no *.safetensors file of the folder itself")
    return [folder / name for name in names]


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    file = folder / "tokenizer_config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def num_parameters(folder: Path) -> int:
    """Return the number of parameters of a model folder, from the headers of its weight files; a tensor that is in two files
    counts once, and so does an output head that is tied to the embedding but stored beside it."""
    shapes = shapes_of(folder)
    if ties_its_head(folder):
        shapes.pop("lm_head.weight", None)
    return sum(map(math.prod, shapes.values()))


def ties_its_head(folder: Path) -> bool:
    """Return whether the output head is the embedding: as the config says or, where it leaves that to the architecture,
    because no file has a head."""
    said = _plain_config(folder).get("tie_word_embeddings")
    return said is True or (said is None and not any("lm_head" in name or "embed_out" in name for name in shapes_of(folder)))


_EMBEDDING = re.compile(r"embed|lm_head|\bw[tp]e\b")
"""In the names of embeddings and output heads; `wte` and `wpe` are GPT-2's."""


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the shape of every matrix of a model folder but its embedding and output head, from the headers of its weight
    files: those that an adapter can be added to, and that are quantised."""
    matrices = {name: shape for name, shape in shapes_of(folder).items() if len(shape) == 2}
    return {name: (shape[0], shape[1]) for name, shape in matrices.items() if not _EMBEDDING.search(name)}


def linear_layers(folder: Path) -> list[str]:
    """Return the names of these layers within a layer of the model, such as `q_proj`."""
    return sorted({name.split(".")[-2] for name in linear_shapes(folder)})


def layer_number(name: str) -> str:
    """Return the number of the layer that a weight belongs to; empty where it belongs to none."""
    found = re.search(r"\.(\d+)\.", name)
    return found[1] if found else ""


def shapes_of(folder: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118  not a dict
    return shapes


def head_shape(folder: Path) -> tuple[int, int] | None:
    """Return the vocabulary size and width of a model's output head from its config; None where the config names none."""
    config = _plain_config(folder)
    shape = (config.get("vocab_size"), config.get("hidden_size"))
    return cast(tuple[int, int], shape) if all(type(size) is int and size > 0 for size in shape) else None


def _plain_config(folder: Path) -> dict[str, Any]:
    """Return config.json; empty where it is missing or no object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], config) if isinstance(config, dict) else {}


_HASHES: dict[tuple[tuple[str, int, int], ...], str] = {}
"""Hashes of folders that were read before, by name, size and time of their files."""


def model_hash(folder: Path) -> str:
    """Return the hash of everything in a model folder that changes a response: weights, config, tokenizer, chat template."""
    names = ("*.safetensors", "config.json", "tokenizer*", "vocab*", "merges*", "chat_template*", "special_tokens_map.json")
    names += ("generation_config.json", "added_tokens.json", "*.model", "*.py")
    files = sorted({file for name in names for file in folder.glob(name) if file.is_file()})
    stamp = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    if stamp not in _HASHES:
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.name.encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        _HASHES[stamp] = digest.hexdigest()[:24]
    return _HASHES[stamp]

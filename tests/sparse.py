"""Folders of models as large as real ones, without their weights: each weight file is one hole behind its header."""

import json
from pathlib import Path
from typing import Any

import torch

QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 28, "vocab_size": 151_936}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "vocab_size": 151_936}


def _shape(width: int, inner: int, heads: int, groups: int, *, tied: bool, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 131_072,
        **others,
    }


QWEN3_4B = QWEN3 | _shape(2560, 9728, 32, 8, tied=True, num_hidden_layers=36)
QWEN3_0_6B = QWEN3 | _shape(1024, 3072, 16, 8, tied=True, num_hidden_layers=28)
R1_1_5B = QWEN2 | _shape(1536, 8960, 12, 2, tied=False)
QWEN_MATH_1_5B = QWEN2 | _shape(1536, 8960, 12, 2, tied=True)
QWEN_32B = QWEN2 | _shape(5120, 27_648, 40, 8, tied=False, num_hidden_layers=64, vocab_size=152_064)
QWEN_7B = QWEN2 | _shape(3584, 18_944, 28, 4, tied=False, vocab_size=152_064)
"""The published configs, as far as they decide about shapes."""


def sparse_model(folder: Path, config: dict[str, Any]) -> Path:
    """Write a folder with this config and tensors of its shapes in bfloat16."""
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    size = config.get("head_dim", width // config["num_attention_heads"])
    queries, keys = size * config["num_attention_heads"], size * config["num_key_value_heads"]
    of_layer = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder

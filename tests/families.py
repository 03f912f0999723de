"""Model families, each as a folder with a tiny random model: what `make families` puts through engine and learner."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from benchmarks.lab_model.tokenizer import CHAT_TEMPLATE, END, PAD, build_tokenizer

TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=build_tokenizer().backend_tokenizer,
    pad_token=PAD,
    eos_token=END,
    unk_token="<|unk|>",
    clean_up_tokenization_spaces=False,
    chat_template=CHAT_TEMPLATE,
)
"""The lab's, in no family's own class."""

ENDS = {"eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": None, "pad_token_id": TOKENIZER.pad_token_id}
OLD = {"vocab_size": 128, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, **ENDS}
SIZES = {**OLD, "intermediate_size": 192, "max_position_embeddings": 512, "num_key_value_heads": 2}
WIDE = SIZES | {"head_dim": 32}
LOCAL = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
"""A window shorter than the sequences that are compared."""
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0}
"""Low enough to matter."""
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
GRANITE = {"logits_scaling": 0.5, "embedding_multiplier": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.1}
MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
"""The sizes vLLM's kernels know."""
DEEPSEEK = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "topk_group": 1, "n_group": 1}

STRETCHED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
"""Positions beyond those of the pre-training."""
LLAMA3 = STRETCHED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "Qwen2": lambda: hf.Qwen2Config(**SIZES),
    "Qwen2, tied": lambda: hf.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Qwen3": lambda: hf.Qwen3Config(**WIDE),
    "Qwen3 with RoPE scaling": lambda: hf.Qwen3Config(**WIDE, rope_parameters=STRETCHED | {"rope_type": "yarn"}),
    "Qwen3-MoE": lambda: hf.Qwen3MoeConfig(**WIDE, **EXPERTS, num_experts=4),
    "Llama": lambda: hf.LlamaConfig(**SIZES),
    "Llama 3 with RoPE scaling": lambda: hf.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "Mistral": lambda: hf.MistralConfig(**WIDE, sliding_window=16),
    "Mixtral": lambda: hf.MixtralConfig(**SIZES, num_local_experts=4),
    "Gemma": lambda: hf.GemmaConfig(**WIDE),
    "Gemma 2": lambda: hf.Gemma2Config(**WIDE, **CAPS, **LOCAL, query_pre_attn_scalar=32),
    "Gemma 3": lambda: hf.Gemma3TextConfig(**WIDE, **LOCAL, query_pre_attn_scalar=32),
    "Phi-2": lambda: hf.PhiConfig(**SIZES),
    "Phi-3": lambda: hf.Phi3Config(**SIZES),
    "Phi-3, long": lambda: hf.Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=240),
    "SmolLM3": lambda: hf.SmolLM3Config(**SIZES, no_rope_layer_interval=2),
    "OLMo": lambda: hf.OlmoConfig(**SIZES),
    "OLMo 2": lambda: hf.Olmo2Config(**SIZES),
    "OLMo 3": lambda: hf.Olmo3Config(**SIZES, **LOCAL),
    "OLMoE": lambda: hf.OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    "GLM": lambda: hf.GlmConfig(**WIDE),
    "GLM-4": lambda: hf.Glm4Config(**WIDE),
    "Granite": lambda: hf.GraniteConfig(**SIZES, **GRANITE),
    "GPT-2": lambda: hf.GPT2Config(vocab_size=128, n_embd=128, n_layer=2, n_head=4, n_positions=512, **ENDS),
    "GPT-NeoX": lambda: hf.GPTNeoXConfig(**OLD, intermediate_size=192, max_position_embeddings=512),
    "StableLM": lambda: hf.StableLmConfig(**SIZES),
    "Falcon": lambda: hf.FalconConfig(**OLD),
    "Cohere": lambda: hf.CohereConfig(**SIZES, logit_scale=2.0),
    "Cohere 2": lambda: hf.Cohere2Config(**WIDE, **LOCAL, logit_scale=2.0),
    "OPT": lambda: hf.OPTConfig(**OLD, word_embed_proj_dim=128, ffn_dim=192, max_position_embeddings=512),
    "DeepSeek-V2": lambda: hf.DeepseekV2Config(
        **(SIZES | {"num_key_value_heads": 4}), **EXPERTS, **MLA, **DEEPSEEK, q_lora_rank=None
    ),
}

REFUSED = {"Cohere 2": "a token wider", "DeepSeek-V2": "kv_lora_rank", "Phi-3, long": "two sets of positions"}
"""What is said of those that do not train."""


def make_model(family: str, folder: Path, **changes: Any) -> Path:
    """A random model of the family, its values wide enough apart that nothing is nearly uniform or nearly 0."""
    torch.manual_seed(7)
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder

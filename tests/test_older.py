"""Model folders have version 4's names, too: where transformers 4 ignores a name, it computes with another value."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Gemma3TextConfig, GlmConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_policy, load_tokenizer
from conclip.models.older import add_older_names
from conclip.training.checkpoint import save_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Qwen2Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), {"rope_theta": 1e6}),
        (LlamaConfig(rope_parameters=YARN | {"rope_theta": 5e5}), {"rope_theta": 5e5, "rope_scaling": YARN}),
        (
            GlmConfig(rope_parameters={"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}),
            {"rope_theta": 2e4, "partial_rotary_factor": 0.5},
        ),
        (Gemma3TextConfig(), {}),  # differs by layer
    ],
    ids=["base", "scaled", "partial", "by layer"],
)
def test_rotary_embeddings_have_both_names(config: PreTrainedConfig, expected: dict[str, object], tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    before, read = json.loads((tmp_path / "config.json").read_text()), AutoConfig.from_pretrained(tmp_path).to_dict()
    add_older_names(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == before | expected
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == read


def test_what_a_config_says_at_the_top_stays(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"rope_theta": 7.0, "rope_parameters": {"rope_theta": 8.0}}')
    add_older_names(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 7.0


def test_a_saved_model_names_a_tokenizer_class_and_special_tokens_that_version_4_knows(tmp_path: Path) -> None:
    policy, tokenizer = load_policy(LAB_MODEL, torch.device("cpu")), load_tokenizer(LAB_MODEL)
    save_model(tmp_path, policy.save_pretrained, tokenizer, problems=[], earlier=[])
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["additional_special_tokens"] == ["<|user|>", "<|assistant|>", "<|system|>"]
    assert "extra_special_tokens" not in saved  # a list of them stops version 4
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 10_000.0
    text = "12+3=<|user|> 7"
    again = load_tokenizer(tmp_path)
    assert again.encode(text) == tokenizer.encode(text) and again.all_special_tokens == tokenizer.all_special_tokens


def test_the_class_that_only_version_5_has_is_renamed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    add_older_names(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"tokenizer_class": "PreTrainedTokenizerFast"}

"""The tokenizer of a model folder is that of its tokenizer.json, whatever class its config names; prompts have one date."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from conclip.models.chat_template import render
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_tokenizer

TEXT = "Solve this\n\nproblem  by 42. It's 3x² - naïve 🙂"


def byte_level(folder: Path, *, tokenizer_class: str, model_type: str) -> Tokenizer:
    """Write a folder as byte-level models have it, with rules of its own for splitting. Returns its tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(["Solve this problem step by step.\n\nThe answer is 42."] * 3, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": tokenizer_class, "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ 1 }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return tokenizer


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "tokenizer_class", ["LlamaTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"]
)
def test_text_becomes_the_tokens_of_tokenizer_json_and_text_again(tmp_path: Path, tokenizer_class: str, model_type: str):
    of_file = byte_level(tmp_path / "model", tokenizer_class=tokenizer_class, model_type=model_type)
    tokenizer = load_tokenizer(tmp_path / "model")
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokens == of_file.encode(TEXT).ids
    assert tokenizer.decode(tokens) == TEXT
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("</s>", "{{ 1 }}")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_tokenizer(tmp_path / "checkpoint").encode(TEXT, add_special_tokens=False) == tokens


def test_a_tokenizer_that_agrees_with_its_file_keeps_its_class():
    assert type(load_tokenizer(LAB_MODEL)).__name__ == "Qwen2Tokenizer"


def test_prompts_have_the_same_date_every_day():
    tokenizer = load_tokenizer(LAB_MODEL)
    tokenizer.chat_template = "Today Date: {{ strftime_now('%d %b %Y') }}. {{ messages[0]['content'] }}"
    assert render(tokenizer, (("user", "1+1"),), {}) == "Today Date: 26 Jul 2024. 1+1"
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}"
    )
    assert render(tokenizer, (("user", "1+1"),), {"date_string": "1 May 2031"}) == "1 May 2031"

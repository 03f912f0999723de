"""Models of other kinds than the lab's: what is refused, what is mended, what memory recomputation saves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from conclip.compose import load_config
from conclip.config import UserError
from conclip.inputs import load_inputs
from conclip.models.critic import Critic
from conclip.models.folder import LAB_MODEL, check_trainable
from conclip.models.load import load_policy, load_tokenizer, read_weights, recompute_activations

CPU = torch.device("cpu")
SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_model_that_scales_its_logits_is_refused_by_its_config_and_by_its_logits(tmp_path: Path):
    folder = saved(GraniteForCausalLM(GraniteConfig(**SIZES, **HEADS, logits_scaling=8.0)), tmp_path / "a")
    with pytest.raises(UserError, match="logits_scaling"):
        check_trainable(folder)
    with pytest.raises(UserError, match="scale or cap"):
        load_policy(folder, CPU)
    plain = saved(GraniteForCausalLM(GraniteConfig(**SIZES, **HEADS, logits_scaling=1.0)), tmp_path / "b")
    check_trainable(plain)
    load_policy(plain, CPU)


def test_python_code_of_a_model_folder_runs_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "cache")
    folder, trace = tmp_path / "model", tmp_path / "it-ran"
    shutil.copytree(LAB_MODEL, folder)
    code = "from transformers import Qwen2Config\n\nclass Mine(Qwen2Config):\n    model_type = 'gpt99'\n"
    (folder / "mine.py").write_text(f"open({str(trace)!r}, 'w')\n{code}")
    settings = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(settings))
    command = ["eval", f"model.path={folder}", "data.test.chain.num_problems=1"]
    assert load_inputs(load_config(*command)).notes == ()
    load_policy(folder, CPU)
    load_tokenizer(folder)

    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "gpt99"}))
    with pytest.raises(UserError, match="trust_remote_code"):
        load_inputs(load_config(*command))
    assert not trace.exists()
    (note,) = load_inputs(load_config(*command, "model.trust_remote_code=true")).notes
    assert "Python code from the model's folder runs" in note
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()  # the code above does run where it is let


def test_a_model_that_sees_is_refused(tmp_path: Path):
    for config, said in (
        ({"model_type": "gemma3", "text_config": {}}, "models of text alone"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "models of text alone"),
        ({"model_type": "t5"}, "no causal language model"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=said):
            check_trainable(tmp_path)
    check_trainable(LAB_MODEL)


def test_sampling_settings_that_cannot_be_saved_are_mended(tmp_path: Path):
    folder = saved(Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)), tmp_path / "a")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.6, "eos_token_id": 3}))
    again = saved(load_policy(folder, CPU), tmp_path / "b")
    kept = json.loads((again / "generation_config.json").read_text())
    assert kept["temperature"] == 0.6 and kept["eos_token_id"] == 3 and kept["do_sample"]


def test_files_the_index_does_not_name_are_no_weights(tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00001.safetensors")
    save_file({"adapter": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [name for name, _ in read_weights(tmp_path)] == ["a"]


def test_a_model_whose_layers_would_drop_values_keeps_its_activations(tmp_path: Path):
    sizes = {"vocab_size": 50, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3}
    model = OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=4, dropout=0.1))
    with pytest.raises(UserError, match="at random"):
        recompute_activations(load_policy(saved(model, tmp_path), CPU))


def kept_bytes_and_gradients(body: PreTrainedModel) -> tuple[int, list[Tensor]]:
    """What a forward pass keeps for its backward pass, and the gradients."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    ids = torch.arange(128).remainder(50).view(2, 64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = (body(input_ids=ids, use_cache=False).last_hidden_state ** 2).sum()
    loss.backward()
    gradients = [p.grad.clone() for p in body.parameters() if p.grad is not None]
    body.zero_grad()
    return kept, gradients


@pytest.mark.parametrize(
    "model",
    [
        lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4)),  # with dropout, which stays off
    ],
    ids=["qwen2", "gpt2"],
)
def test_recomputed_activations_take_a_tenth_of_the_memory_and_give_the_same_gradients(model, tmp_path: Path):
    policy = load_policy(saved(model(), tmp_path), CPU)
    plain, expected = kept_bytes_and_gradients(policy.base_model)
    recompute_activations(policy)
    for body in (policy.base_model, Critic(policy).body):
        kept, gradients = kept_bytes_and_gradients(body)
        assert kept < plain / 10
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))

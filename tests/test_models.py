"""Models of other kinds than the lab's: what is refused, what is mended, what memory recomputation saves."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from conclip.config.compose import load_config
from conclip.errors import UserError
from conclip.experiments.inputs import load_inputs
from conclip.models.architectures import implementation
from conclip.models.critic import Critic
from conclip.models.folder import LAB_MODEL, check_trainable, find_model, public_name, public_revision
from conclip.models.load import (
    OutputHead,
    checkpoint_weights,
    load_policy,
    load_tokenizer,
    read_weights,
    recompute_activations,
)
from tests.families import make_model

LONG = {"rope_type": "longrope", "original_max_position_embeddings": 128}
CPU = torch.device("cpu")
SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "changes"),
    [("Granite", {"logits_scaling": 8.0}), ("Gemma 2", {}), ("Cohere", {"logit_scale": 0.25}), ("Phi-2", {}), ("Qwen2", {})],
    ids=["divided", "capped", "multiplied", "biased", "plain"],
)
def test_the_learners_head_gives_the_models_own_logits(family: str, changes: dict[str, float], tmp_path: Path):
    folder = make_model(family, tmp_path, **changes)
    check_trainable(folder)
    policy, ids = load_policy(folder, CPU), torch.arange(24).view(2, 12)
    with torch.no_grad():
        hidden = policy.base_model(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.allclose(OutputHead(policy)(hidden), policy(input_ids=ids).logits, rtol=1e-6, atol=1e-6)
        plain = policy.get_output_embeddings()(hidden)
    assert torch.allclose(OutputHead(policy)(hidden), plain, atol=1e-2) == (family in ("Phi-2", "Qwen2"))


def test_a_model_that_changes_its_logits_otherwise_is_refused_by_its_config_and_by_its_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make_model("Qwen2", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"lm_head_multiplier": 0.5}))
    with pytest.raises(UserError, match="lm_head_multiplier"):
        check_trainable(folder)
    own = Qwen2ForCausalLM.forward

    def louder(self: Qwen2ForCausalLM, *arguments: Any, **settings: Any) -> Any:
        output = own(self, *arguments, **settings)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", louder)
    with pytest.raises(UserError, match="not those of its output head"):
        load_policy(folder, CPU)


def test_capped_attention_scores_are_capped_in_the_learner(tmp_path: Path):
    """torch's fast attention leaves the cap out and says nothing."""
    ids = torch.arange(24).view(2, 12)

    def logits(name: str, cap: float | None) -> Tensor:
        with torch.no_grad():
            folder = make_model("Gemma 2", tmp_path / name, attn_logit_softcapping=cap)
            return load_policy(folder, CPU)(input_ids=ids).logits

    assert not torch.allclose(logits("capped", 0.1), logits("free", None), atol=1e-3)


def test_weights_go_to_the_engine_as_checkpoints_have_them(tmp_path: Path):
    for family in ("Qwen3-MoE", "Mixtral", "Gemma 2", "Falcon", "Phi-3"):
        policy = load_policy(make_model(family, tmp_path / family), CPU)
        given, saved = dict(checkpoint_weights(policy)), dict(read_weights(tmp_path / family))
        second = set(given) - set(saved)  # a tied head, under its own name, too
        assert second == ({"lm_head.weight"} if policy.config.tie_word_embeddings else set())
        assert all(torch.equal(given[name], tensor) for name, tensor in saved.items())


def test_architectures_vllm_has_no_code_for(tmp_path: Path):
    def of(*names: str | None, trust: bool = False) -> str:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": names} if names else {}))
        return implementation(tmp_path, trust_remote_code=trust)

    assert of("Qwen2ForCausalLM") == "native" and of("SmolLM3ForCausalLM") == "transformers"
    assert of("GPTNeoXJapaneseForCausalLM", "LlamaForCausalLM") == "native"
    assert of("HeliumForCausalLM") == "transformers"  # in no table, but transformers' class fits
    with pytest.raises(UserError, match="does not run XLNetLMHeadModel, the architecture"):
        of("XLNetLMHeadModel")
    with pytest.raises(UserError, match=r"does not run QWenLMHeadModel \(it did up to version"):
        of("QWenLMHeadModel")
    assert of("NobodysForCausalLM", trust=True) == "transformers"
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512}))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="it takes a GPU"):
            implementation(tmp_path)
    for names in ((), (None,)):
        with pytest.raises(UserError, match="names no architecture"):
            of(*names)


def test_a_model_of_transformers_code_is_said_to_get_an_engine_process(tmp_path: Path):
    ours, theirs = make_model("Qwen3", tmp_path / "a"), make_model("SmolLM3", tmp_path / "b")
    command = ["eval", "rollout.max_model_len=512", "eval.max_tokens=200", "data.test.chain.num_problems=1"]
    (of_data,) = load_inputs(load_config(*command, f"model.path={ours}")).notes
    assert of_data.startswith("data: the problems are the embedded model's arithmetic; name others")
    first, *others = load_inputs(load_config(*command, f"model.path={ours}", f"+checkpoints.other={theirs}")).notes
    assert first.startswith("checkpoints.other: vLLM runs this architecture by transformers' code") and others == [of_data]
    child = load_config(*command, f"model.path={theirs}", "rollout.engine=child_process")
    assert load_inputs(child).notes == (of_data,)


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


def test_a_model_that_cannot_be_trained_is_refused(tmp_path: Path):
    for config, said in (
        ({"model_type": "gemma3", "text_config": {}}, "models of text alone"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "models of text alone"),
        ({"model_type": "t5"}, "no causal language model"),
        ({"model_type": "cohere2"}, "a token wider"),
        ({"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}}, "give the model of full precision"),
        (
            {"model_type": "phi3", "rope_parameters": LONG, "max_position_embeddings": 4096},
            "rollout.max_model_len=128 or lower",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=said):
            check_trainable(tmp_path)
    check_trainable(LAB_MODEL)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3", "rope_parameters": LONG}))
    check_trainable(tmp_path, max_model_len=128)


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
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({"b": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    assert [name for name, _ in read_weights(tmp_path)] == ["b"]


def small_opt() -> OPTForCausalLM:
    """Its layers themselves drop values while they train."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3}
    return OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=4, dropout=0.1))


def test_layers_that_would_drop_values_all_the_same_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    policy = load_policy(saved(small_opt(), tmp_path), CPU)
    monkeypatch.setattr(OPTDecoderLayer, "dropout", property(lambda self: 0.1, lambda self, share: None), raising=False)
    with pytest.raises(UserError, match="at random"):
        recompute_activations(policy)


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
        small_opt,
    ],
    ids=["qwen2", "gpt2", "opt"],
)
def test_recomputed_activations_take_a_tenth_of_the_memory_and_give_the_same_gradients(model, tmp_path: Path):
    policy = load_policy(saved(model(), tmp_path), CPU)
    plain, expected = kept_bytes_and_gradients(policy.base_model)
    recompute_activations(policy)
    for body in (policy.base_model, Critic(copy.deepcopy(policy.base_model)).body):
        kept, gradients = kept_bytes_and_gradients(body)
        assert kept < plain / 10
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_a_model_is_known_by_its_name_and_not_by_where_it_lies(tmp_path: Path):
    cached = tmp_path / "hub/models--Qwen--Qwen3-1.7B/snapshots/70d244cc86"
    own = tmp_path / "mine/phase1-best"
    for folder in (cached, own):
        folder.mkdir(parents=True)
    assert [public_name(path) for path in (cached, own, str(own))] == ["Qwen/Qwen3-1.7B", "phase1-best", "phase1-best"]
    assert public_name("Qwen/Qwen3-1.7B") == public_name("Qwen/Qwen3-1.7B@main") == "Qwen/Qwen3-1.7B"
    known = [public_revision(path) for path in (cached, own, "Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B@refs/pr/1")]
    assert known == ["70d244cc86", None, None, "refs/pr/1"]


def test_a_hub_id_may_name_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, ignore_patterns: list[str]) -> str:
        files = ["model.safetensors", "config.json", "onnx/model.onnx", "original/consolidated.00.pth", "tf_model.h5"]
        assert list(filter_repo_objects(files, ignore_patterns=ignore_patterns)) == files[:2]
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_model("Qwen/Qwen3-1.7B") == find_model("Qwen/Qwen3-1.7B@70d244cc") == tmp_path
    assert asked == [("Qwen/Qwen3-1.7B", None), ("Qwen/Qwen3-1.7B", "70d244cc")]
    assert find_model("Qwen/Qwen3-1.7B@refs/pr/1") == tmp_path and asked.pop() == ("Qwen/Qwen3-1.7B", "refs/pr/1")
    beside = tmp_path / "own/model@2"
    beside.mkdir(parents=True)
    assert find_model(str(beside)) == beside and len(asked) == 2  # a folder's name may have such a sign

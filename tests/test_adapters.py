"""LoRA adapters: the mathematics, what a checkpoint holds, and what comes out."""

import dataclasses
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.optim.adamw import AdamW8bit
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from conclip.config.compose import load_config
from conclip.config.groups import AdapterConfig
from conclip.config.rules import check
from conclip.config.schema import TrainRunConfig
from conclip.errors import UserError
from conclip.models.folder import LAB_MODEL
from conclip.models.load import autocast, load_policy
from conclip.models.products import onednn_pays, use_onednn
from conclip.models.shards import write_weights
from conclip.training.adapter_models import AdapterModels
from conclip.training.backend import Backend
from conclip.training.learner import Learner
from conclip.training.sliced_adamw import SlicedAdamW8bit

CPU = torch.device("cpu")
IDS = torch.arange(40).reshape(2, 20) % 100 + 5


def config(*overrides: str) -> TrainRunConfig:
    made = load_config("train-phase2", "model/adapter=lora", "model.adapter.rank=4", "model.adapter.alpha=8", *overrides)
    assert isinstance(made, TrainRunConfig)
    return made


def backend(*overrides: str, seed: int = 0) -> Backend:
    return Backend(LAB_MODEL, dataclasses.replace(config(*overrides), seed=seed), num_updates=10)


def adapters(made: Backend) -> AdapterModels:
    assert isinstance(made.models, AdapterModels)
    return made.models


def logits(made: Backend, role: str) -> Tensor:
    made.models.scorer(role)  # pyright: ignore[reportArgumentType]
    return made.models.policy(input_ids=IDS, use_cache=False).logits


def weight_of(model: torch.nn.Module, layer: str) -> Tensor:
    return model.get_parameter(f"{layer}.weight")


def train_critic(made: Backend) -> None:
    made.models.scorer("critic")
    assert made.models.critic is not None
    made.models.critic(IDS).sub(1).square().mean().backward()


def moved(*overrides: str, seed: int = 0) -> Backend:
    """A backend after some updates of both models, so that neither adapter is 0."""
    made = backend(*overrides, seed=seed)
    for _ in range(3):
        logits(made, "policy").square().mean().backward()
        train_critic(made)
        made.step()
    return made


@pytest.mark.whole
def test_a_new_adapter_changes_nothing_and_without_it_the_base_computes_bit_for_bit():
    plain = load_policy(LAB_MODEL, CPU)
    if onednn_pays():  # by the library that the backend multiplies with
        use_onednn(plain)
    base = plain(input_ids=IDS, use_cache=False).logits
    new = backend()
    assert torch.equal(logits(new, "policy"), base) and torch.equal(logits(new, "reference"), base)
    trained = moved()
    assert torch.equal(logits(trained, "reference"), base)
    assert not torch.allclose(logits(trained, "policy"), base, atol=1e-2)


@pytest.mark.whole
def test_the_policy_is_the_base_plus_the_scaled_product_and_so_are_its_gradients():
    """By hand: W x + alpha / rank B A x, and its gradients by autograd on a model whose weights are W + alpha / rank B A."""
    made = moved()
    plain = load_policy(LAB_MODEL, CPU)
    weights = dict(made.models.trained["policy"].named_parameters())
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, parameter in weights.items():
        if "/lora_A/" in name:
            layer = name.partition("/lora_A/")[0].replace("/", ".")
            factors[layer] = (parameter, weights[name.replace("/lora_A/", "/lora_B/")])
    assert len(factors) == 28  # four layers of seven linear maps, the head left out
    with torch.no_grad():
        for layer, (a, b) in factors.items():
            weight_of(plain, layer).add_(8 / 4 * b @ a)
    torch.testing.assert_close(logits(made, "policy"), plain(input_ids=IDS, use_cache=False).logits, rtol=0, atol=2e-4)
    logits(made, "policy").square().mean().backward()
    plain(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    for layer, (a, b) in factors.items():
        gradient = weight_of(plain, layer).grad
        assert gradient is not None
        torch.testing.assert_close(a.grad, 8 / 4 * b.T @ gradient, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(b.grad, 8 / 4 * gradient @ a.T, rtol=1e-3, atol=1e-4)


def test_an_adapter_computes_on_what_autocast_rounds_as_on_a_copy_in_fp32():
    """peft's own way, which copies inputs to fp32 before autocast rounds them again, has the same digits."""
    found: list[list[Tensor]] = []
    for copies in (False, True):
        made = backend("model.dtype=bfloat16", "model.adapter.base=bfloat16")
        for parameter in made.models.trained["policy"].parameters():
            parameter.data += torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter)
        for layer in made.models.policy.modules():
            if isinstance(layer, LoraLayer):
                assert not layer.cast_input_dtype_enabled
                layer.cast_input_dtype_enabled = copies
        with autocast("bfloat16", CPU):
            out = logits(made, "policy")
            out.float().square().mean().backward()
        gradients = [p.grad for p in made.models.trained["policy"].parameters() if p.grad is not None]
        assert len(gradients) == 56 and all(gradient.any() for gradient in gradients)
        found.append([out, *gradients])
    assert all(map(torch.equal, *found))


def test_policy_and_critic_train_apart_on_one_base():
    made = backend()
    before = {name: parameter.clone() for name, parameter in made.models.policy.named_parameters()}
    logits(made, "policy").square().mean().backward()
    made.step()
    after_policy = {name: parameter.clone() for name, parameter in made.models.policy.named_parameters()}
    changed = {name for name in before if not torch.equal(before[name], after_policy[name])}
    assert changed and all(".policy." in name for name in changed)
    train_critic(made)
    made.step(train_policy=False)
    now = dict(made.models.policy.named_parameters())
    changed = {name for name in now if not torch.equal(after_policy[name], now[name])}
    assert all(".critic." in name for name in changed)
    assert made.models.critic is not None and made.models.critic.head.weight.abs().sum() > 0


def test_only_adapters_and_the_head_have_optimiser_state_and_are_saved():
    made = moved()
    base = load_policy(LAB_MODEL, CPU)
    maps = [m for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    total = sum(p.numel() for module in made.models.trained.values() for p in module.parameters())
    assert total == 2 * 4 * sum(m.in_features + m.out_features for m in maps) + 129  # rank 4, twice; the critic's head
    assert all("lora_" in key or "head" in key for key in made.state())
    assert all(".lora_" in key and key.startswith("base_model.model.") for key in made.models.saved())


@pytest.mark.whole
def test_a_resumed_phase_goes_on_bit_for_bit(tmp_path: Path):
    made = moved()
    made.models.write(tmp_path, made.models.saved())
    state = {key: tensor.clone() for key, tensor in made.state().items()}
    again = backend()
    again.load_state(tmp_path, state)
    for one in (made, again):
        one.set_position(4)
        logits(one, "policy").square().mean().backward()
        train_critic(one)
        one.step()
    assert torch.equal(logits(made, "policy"), logits(again, "policy"))
    assert all(torch.equal(tensor, again.state()[key]) for key, tensor in made.state().items())


def test_the_adapter_of_another_rank_is_refused(tmp_path: Path):
    made = moved()
    made.models.write(tmp_path, made.models.saved())
    with pytest.raises(ValueError, match="of another shape"):
        backend("model.adapter.rank=2").models.load(tmp_path)


def test_what_is_exported_loads_merged_in_transformers_and_unmerged_in_peft(tmp_path: Path):
    made = moved()
    expected = logits(made, "policy").detach()
    Learner(made, config()).export(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=0, atol=2e-4)
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(LAB_MODEL), str(tmp_path / "adapter"))
    torch.testing.assert_close(unmerged(input_ids=IDS).logits, expected, rtol=0, atol=2e-5)
    assert not any("lora" in name for name in merged.state_dict())
    described = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == LAB_MODEL.name  # no path of this machine


def test_merged_weights_are_written_shard_by_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = moved()
    made.models.write(tmp_path, made.models.saved())
    made.models.complete(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    monkeypatch.setattr("conclip.models.adapters.write_weights", partial(write_weights, shard_bytes=1 << 20))
    made.models.complete(tmp_path)
    shards = sorted(tmp_path.glob("model*.safetensors"))
    assert [path.name for path in shards] == [f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    assert all(path.stat().st_size < (1 << 20) + 10_000 for path in shards)
    parts = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(merged(input_ids=IDS).logits, logits(made, "policy"), rtol=0, atol=2e-4)
    monkeypatch.undo()
    made.models.complete(tmp_path)  # again, with fewer files
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_the_engine_gets_the_merged_weights_under_the_models_own_names():
    made = moved()
    plain = load_policy(LAB_MODEL, CPU)
    assert set(dict(made.models.weights())) == set(plain.state_dict())
    plain.load_state_dict(dict(made.models.weights()))
    torch.testing.assert_close(plain(input_ids=IDS).logits, logits(made, "policy"), rtol=0, atol=2e-4)


def test_a_new_adapter_follows_the_seed_and_nothing_else():
    def start(made: Backend) -> list[Tensor]:
        return [tensor for name, tensor in made.models.saved().items() if "lora_A" in name]

    torch.manual_seed(1)
    one = start(backend())
    torch.manual_seed(2)
    assert all(torch.equal(*pair) for pair in zip(one, start(backend()), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(one, start(backend(seed=1)), strict=True))


def test_targets_choose_layers_and_others_are_refused():
    named = adapters(backend("model.adapter.targets=[q_proj,v_proj]"))
    assert {name.split(".")[-3] for name in named.saved()} == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"model\.adapter\.targets"):
        backend("model.adapter.targets=[nowhere]")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.adapter.targets=[]", "at least one layer"),
        ("model.adapter.targets=[lm_head]", "output head"),
        ("model.adapter.base=bfloat16", "model.dtype=bfloat16"),
        ("model.adapter.rank=0", "at least 1"),
        ("model.adapter.serving=beside", "merged"),
        ("model.adapter.alpha=0", "above 0"),
        ("model.adapter.dropout=0.1", "engine"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override: str, said: str):
    with pytest.raises(UserError, match=said):
        config("model.dtype=float32", override)


def test_a_misspelt_option_and_a_subcommand_without_adapters_are_one_line():
    with pytest.raises(UserError, match=r"^model/adapter=lara: no such option; did you mean 'lora'\?"):
        load_config("train-phase2", "model/adapter=lara")
    with pytest.raises(UserError, match="only subcommands that train have adapters"):
        load_config("eval", "model/adapter=lora")


@pytest.mark.parametrize("targets", ["null", "[q_proj,v_proj]"])
def test_a_4_bit_base_is_what_the_engine_gets_and_what_is_exported(tmp_path: Path, targets: str):
    """NF4 by hand: the weights the engine gets are the base's quantised ones plus the adapter, never the originals; so, too,
    those of layers without an adapter."""
    made = moved("model.adapter.base=4bit", f"model.adapter.targets={targets}")
    expected = logits(made, "policy").detach()
    sent = dict(made.models.weights())
    original = load_policy(LAB_MODEL, CPU).state_dict()
    assert sent.keys() == original.keys()
    assert all(sent[name].shape == tensor.shape for name, tensor in original.items())
    name = "model.layers.0.mlp.up_proj.weight"
    quantised, state = quantize_4bit(original[name], quant_type="nf4", blocksize=64)
    assert quantised.numel() * 2 == original[name].numel()
    if targets != "null":  # nothing is added to this one
        torch.testing.assert_close(sent[name], dequantize_4bit(quantised, state), rtol=1e-6, atol=1e-6)
    assert 0.01 < (sent[name] - original[name]).abs().max() / original[name].abs().max() < 0.5
    Learner(made, config()).export(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "quantization_config" not in merged.config.to_dict()
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=0, atol=2e-3)


def test_scoring_leaves_the_gradients_of_a_4_bit_base_as_they_were():
    """bitsandbytes rearranges weights that it computes with in eval mode, on processors that multiply in bfloat16."""
    made = moved("model.adapter.base=4bit")

    def gradients() -> dict[str, Tensor]:
        logits(made, "policy").square().mean().backward()
        found = {name: p.grad.clone() for name, p in made.models.trained["policy"].named_parameters() if p.grad is not None}
        made.models.trained["policy"].zero_grad(set_to_none=True)
        return found

    before = gradients()
    with torch.no_grad():
        scored = logits(made, "policy")
    assert torch.equal(scored, logits(made, "policy"))
    after = gradients()
    assert before.keys() == after.keys() == set(dict(made.models.trained["policy"].named_parameters()))
    assert all(gradient.abs().max() > 0 and torch.equal(gradient, after[name]) for name, gradient in before.items())


@pytest.mark.parametrize(
    ("serving", "dtype", "on_cpu", "apart"),
    [
        ("auto", "float32", False, False),
        ("auto", "bfloat16", False, True),
        ("auto", "bfloat16", True, False),
        ("merged", "bfloat16", False, False),
        ("apart", "float32", True, True),
    ],
)
def test_the_engine_gets_an_adapter_merged_or_apart(serving: str, dtype: str, on_cpu: bool, apart: bool):
    settings = config(f"model.adapter.serving={serving}", f"model.dtype={dtype}").model
    assert settings.adapter.wanted_apart(settings.dtype, on_cpu=on_cpu) is apart
    assert not AdapterConfig().wanted_apart(settings.dtype, on_cpu=on_cpu)


def test_what_is_pushed_apart_is_the_base_and_peft_reads_the_adapter():
    made = moved("model.adapter.base=4bit")
    seen: dict[str, dict[str, Tensor]] = {}

    class Engine:
        def takes_adapters(self) -> bool:
            return True

        def update_weights(self, source: Iterable[tuple[str, Tensor]], version: int, adapter: Path) -> None:
            seen["base"], seen["adapter"] = dict(source), load_file(adapter / "adapter_model.safetensors")
            self.version, self.config = version, PeftConfig.from_pretrained(str(adapter))

    engine = Engine()
    made.models.push(engine, 7)  # pyright: ignore[reportArgumentType]
    assert engine.version == 7 and (engine.config.r, engine.config.lora_alpha) == (4, 8)  # pyright: ignore[reportAttributeAccessIssue]
    assert seen["adapter"].keys() == made.models.saved().keys()
    layer, merged = "model.layers.0.mlp.up_proj", dict(made.models.weights())
    assert seen["base"].keys() == merged.keys()
    down, up = (seen["adapter"][f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(seen["base"][f"{layer}.weight"] + 8 / 4 * up @ down, merged[f"{layer}.weight"])


def test_8_bit_moments_slice_by_slice_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    """Nine slices, the last block cut, against bitsandbytes' own step: weights, moments and scales, bit for bit."""
    monkeypatch.setattr("conclip.training.sliced_adamw.SLICE", 512)
    generator = torch.Generator().manual_seed(0)
    begin, gradients = torch.randn(61, 71, generator=generator), torch.randn(3, 61, 71, generator=generator)
    ends: list[tuple[Tensor, dict[str, Any]]] = []
    for kind in (AdamW8bit, SlicedAdamW8bit):
        weight = torch.nn.Parameter(begin.clone())
        optimizer = kind([weight], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append((weight.detach(), optimizer.state[weight]))
    (whole, state), (sliced, sliced_state) = ends
    assert torch.equal(whole, sliced) and not torch.equal(whole, begin) and state["step"] == sliced_state["step"] == 3
    assert state["state1"].dtype == torch.uint8  # not so small that it keeps 32 bits
    for name in ("state1", "state2", "absmax1", "absmax2"):
        assert torch.equal(state[name], sliced_state[name])


@pytest.mark.whole
@pytest.mark.parametrize("moments", ["8bit", "paged_8bit"])
def test_moments_in_8_bits_train_and_resume_bit_for_bit(tmp_path: Path, moments: str):
    made = moved(f"optim.moments={moments}", "model.adapter.rank=32")
    made.models.write(tmp_path, made.models.saved())
    state = {key: tensor.clone() for key, tensor in made.state().items()}
    sizes = [tensor.element_size() for key, tensor in state.items() if key.endswith("/state1")]
    assert 1 in sizes  # large matrices; small ones keep 32 bits
    again = backend(f"optim.moments={moments}", "model.adapter.rank=32")
    again.load_state(tmp_path, state)
    for one in (made, again):
        logits(one, "policy").square().mean().backward()
        one.step(train_policy=True)
    assert torch.equal(logits(made, "policy"), logits(again, "policy"))
    with pytest.raises(ValueError, match="no state"):
        backend("model.adapter.rank=32").load_state(tmp_path, state)


def test_a_base_without_adapters_is_refused():
    """All weights would train in that precision, where small updates vanish."""
    for base in ("bfloat16", "4bit"):
        with pytest.raises(UserError, match=r"model\.adapter\.base.* is for adapters \(model/adapter=lora\)"):
            check(load_config("train-phase2", "model.dtype=bfloat16", f"model.adapter.base={base}"))

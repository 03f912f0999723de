"""The memory plan: arithmetic by hand, activations against those of real tensors, and what is proposed where a run does not
fit."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from conclip.cli.doctor import _disk_needed
from conclip.cli.main import main
from conclip.config import machine
from conclip.config.compose import load_config
from conclip.config.groups import AdapterConfig, Dtype
from conclip.config.schema import BaseConfig, EvalRunConfig, LearnConfig
from conclip.experiments.inputs import load_inputs
from conclip.experiments.memory import (
    ModelSize,
    Part,
    Place,
    engine_room_gib,
    engine_weights_gib,
    memory_parts,
    memory_table,
    peak_gib,
    place_of,
)
from conclip.experiments.memory_plan import MemoryPlan, changes, memory_of_run, plan_memory
from conclip.experiments.plan import planned_stages, power_lines
from conclip.models.activations import activations
from conclip.models.adapters import Adapter
from conclip.models.folder import LAB_MODEL, linear_layers
from conclip.models.load import autocast, load_policy, recompute_activations
from conclip.rollout.collect import TRAINING
from conclip.runs.environment import describe_environment
from tests.sparse import QWEN3_0_6B, QWEN3_4B, QWEN_7B, QWEN_32B, QWEN_MATH_1_5B, R1_1_5B, sparse_model

GIB = 2**30
CPU, GPU = Place(kind="cpu", memory_gib=16.0), Place(kind="gpu", memory_gib=80.0)
LORA = AdapterConfig(kind="lora")
SMALL = ModelSize(folder=LAB_MODEL, num_parameters=10, linear={"layers.0.q_proj.weight": (2, 3)})


def learning(*overrides: str) -> LearnConfig:
    config = load_config("train-phase2", "rollout.num_engines=1", *overrides)
    assert isinstance(config, LearnConfig)
    return config


def parts_of(config: BaseConfig, model: ModelSize = SMALL, place: Place = CPU) -> dict[str, Part]:
    return {part.name: part for part in memory_parts(config, model, 600, place)}


def test_ppo_in_fp32_takes_36_bytes_a_parameter_and_a_gradient_twice():
    """4 each for policy, critic and reference, 8 for the moments of two, and 24 for a checkpoint in the background."""
    parts = parts_of(learning())
    gib = {name: part.update * GIB for name, part in parts.items()}
    assert (gib["policy"], gib["critic"], gib["reference"]) == (40, 40, 40)
    assert (gib["moments of AdamW"], gib["gradients"], parts["gradients"].critic_update * GIB) == (160, 40, 80)
    assert (parts["copy for a checkpoint"].sampling * GIB, parts["copy for a checkpoint"].update) == (240, 0)
    assert (gib["engine: weights"], parts["engine: KV cache"].update) == (40, learning().rollout.kv_cache_gib)
    assert parts["gradients"].sampling == parts["activations"].sampling == 0.0
    assert "copy for a checkpoint" not in parts_of(learning("trainer.save_in_background=false"))
    assert {"critic", "reference"}.isdisjoint(parts_of(learning("algo=grpo", "algo.kl=none", "algo.kl_coef=0")))
    assert set(parts_of(load_config("eval", "rollout.num_engines=1"))) == {
        "engine: weights",
        "engine: KV cache",
        "libraries",
    }


def test_micro_batches_side_by_side_take_activations_and_gradients_each():
    one, three = (parts_of(learning(f"trainer.micro_batches_at_once={number}")) for number in (1, 3))
    assert three["activations"].update == 3 * one["activations"].update
    waiting = three["gradients of each micro-batch"]
    assert (waiting.update * GIB, waiting.critic_update * GIB) == (4 * 40, 4 * 40)  # three, and one that is added up
    assert "gradients of each micro-batch" not in one
    on_gpu = parts_of(learning("trainer.micro_batches_at_once=3"), place=GPU)
    assert "gradients of each micro-batch" not in on_gpu


def test_two_engines_take_all_of_it_twice():
    one, two = parts_of(learning()), parts_of(learning("rollout.num_engines=2"))
    for name in ("engine: weights", "engine: KV cache"):
        assert two[name].sampling == 2 * one[name].sampling and two[name].update == 2 * one[name].update
    assert two["engine: libraries"].update == 2 * two["libraries"].update and "engine: libraries" not in one


def test_a_large_head_has_its_gradient_twice_and_merged_weights_are_there_a_file_at_a_time():
    """By hand: 2**27 parameters of the head with 6 bytes each in bfloat16 and 4 in float32; a file of 1 GiB, and the head,
    which is larger than a layer."""
    model = dataclasses.replace(SMALL, num_parameters=2**29, head=(2**14, 2**13))
    assert parts_of(learning("model.dtype=bfloat16"), model)["the head's gradient again"].update == 0.75
    assert parts_of(learning(), model)["the head's gradient again"].update == 0.5
    adapted = parts_of(learning("model/adapter=lora"), model)
    assert adapted["merged weights of a file"].transfer == 1.5 and "the head's gradient again" not in adapted
    small = parts_of(learning("model/adapter=lora"))["merged weights of a file"]
    assert small.transfer * GIB == 40 and small.update == small.sampling == 0


def test_on_a_gpu_what_only_updates_need_may_rest_in_main_memory():
    for place, rests in ((GPU, True), (CPU, False)):
        parts = parts_of(learning("trainer.offload=true"), place=place)
        for name in ("critic", "reference", "moments of AdamW"):
            assert (parts[name].sampling == parts[name].transfer == 0.0) is rests
            assert parts[name].update == parts_of(learning(), place=place)[name].update
        assert parts["policy"].sampling > 0
        assert [name for name, part in parts.items() if part.beside and part.update] == [
            "critic",
            "reference",
            "moments of AdamW",
        ] * rests
    reference = parts_of(learning("model.dtype=bfloat16", "algo.reference_dtype=bfloat16"))["reference"]
    assert reference.update * GIB == 20


def test_what_rests_in_main_memory_must_fit_there():
    model = ModelSize(folder=LAB_MODEL, num_parameters=2**28, linear={})  # a critic and a reference of 1 GiB, moments of 4
    config = learning("trainer.offload=true", "rollout.gpu_memory_utilization=0.5", "trainer.save_in_background=false")

    def plan(beside: float) -> MemoryPlan:
        return plan_memory(config, model, 600, dataclasses.replace(GPU, beside_gib=beside))

    assert plan(6.1).beside == 6.0
    assert "beside it 6.0 GiB of 6.1 free of main memory" in plan(6.1).verdict()
    assert (plan(6.1).fits, plan(6.1).impossible, plan(5.9).fits, plan(5.9).impossible) == (True, False, False, True)
    assert "; any of these makes it fit: " in plan(5.9).verdict()
    assert "beside it 6.0 GiB of main memory" in plan(math.inf).verdict()
    assert plan_memory(learning("trainer.save_in_background=false"), model, 600, GPU).beside == 0.0


def test_a_checkpoint_written_in_the_background_takes_main_memory_beside_a_gpu():
    model = ModelSize(folder=LAB_MODEL, num_parameters=2**28, linear={})  # two models, each with weights and two moments
    plan = plan_memory(learning(), model, 600, dataclasses.replace(GPU, beside_gib=5.9))
    assert plan.beside == 6.0 and plan.impossible
    assert "trainer.save_in_background=false" in plan.verdict()
    (row,) = [part for part in plan.parts if part.name == "copy for a checkpoint"]
    assert (row.sampling, row.transfer, row.update) == (0.0, 0.0, 0.0)
    assert "copy for a checkpoint" not in "".join(map(str, memory_table(plan.parts).columns[0].cells))


def test_room_for_an_adapter_apart_is_that_of_the_next_rank_vllm_knows():
    model = ModelSize(folder=LAB_MODEL, num_parameters=0, linear={"model.layers.0.q_proj": (100, 28)})
    for rank, served in ((3, 8), (8, 8), (9, 16), (32, 32), (33, 64)):
        config = learning(
            "model/adapter=lora", f"model.adapter.rank={rank}", "model.dtype=bfloat16", "model.adapter.serving=apart"
        )
        assert engine_weights_gib(config, model, GPU) * GIB == 2 * served * 128


def test_a_critic_has_no_output_head():
    untied = ModelSize(folder=LAB_MODEL, num_parameters=10, linear={}, head=(2, 3), tied=False)
    parts = parts_of(learning(), untied)
    assert (parts["policy"].update * GIB, parts["critic"].update * GIB) == (40, 16)
    assert parts["gradients"].critic_update * GIB == 4 * (10 + 4)


@pytest.mark.parametrize(
    ("overrides", "base", "trained", "moments"),
    [
        # one base of 2 * 3 + 4 parameters, 6 of them in a matrix; adapters of rank 2 on it: 2 * (2 + 3) each, twice for PPO
        ((), 40, 20, 160),
        (("algo=grpo",), 40, 10, 80),
        (("optim.moments=8bit",), 40, 20, 40),
        (("model.dtype=bfloat16", "model.adapter.base=bfloat16"), 20, 20, 160),
        (("model.adapter.base=4bit",), 6 * 0.5625 + 4 * 4, 20, 160),
        (("model.adapter.targets=[k_proj]",), 40, 0, 0),
    ],
)
def test_adapters_share_a_base(overrides: tuple[str, ...], base: float, trained: int, moments: float):
    parts = parts_of(learning("model/adapter=lora", "model.adapter.rank=2", *overrides))
    none = Part(name="none")
    names = ("frozen base", "adapters", "gradients", "moments of AdamW")
    gib = {name: parts.get(name, none).critic_update * GIB for name in names}
    assert list(gib.values()) == [base, 4 * trained, 4 * trained, moments]
    merged = parts["merged weights of a layer"]
    assert (merged.transfer * GIB, merged.update) == (4 * 6, 0)


@pytest.mark.parametrize(
    ("vocabulary", "width", "tokens", "num_logits"),
    [
        (151_936, 1536, 32_768, 151_936 * 1536),  # a chunk of as many rows as the head is wide: 233 million logits
        (151_936, 1536, 1024, 151_936 * 1024),  # no chunk is longer than a micro-batch: two rows of 512 here
        (151_936, 8192, 32_768, 2**28),  # 1 GiB of logits at most
        (32_000, 64, 32_768, 2**24),  # 64 MiB always
        (128, 128, 2048, 128 * 2048),  # the lab: one micro-batch is never split
    ],
)
def test_logits_are_those_of_a_chunk(vocabulary: int, width: int, tokens: int, num_logits: int):
    """Five blocks of fp32: the first row's are 4.3 GiB, as much as the embedding and all its training state."""
    model = ModelSize(folder=LAB_MODEL, num_parameters=10**6, linear={}, head=(vocabulary, width))
    config = learning(f"trainer.max_tokens_per_micro_batch={tokens}")
    assert parts_of(config, model)["logits"].update == num_logits * 20 / GIB


def test_on_a_gpu_the_engine_has_its_share_but_for_the_update():
    parts = parts_of(learning("rollout.gpu_memory_utilization=0.3"), place=GPU)
    share = parts["engine: its share"]
    assert (share.sampling, share.transfer, share.update) == (24.0, 24.0, 0.0)
    assert "engine: KV cache" not in parts and parts["copy for a checkpoint"].sampling == 0.0


def test_an_engine_whose_share_does_not_hold_its_weights_is_told_the_share_it_needs():
    """A billion parameters in fp32 are 3.7 GiB; with 1.5 to work in, 0.1 of 80 GiB."""
    model = ModelSize(folder=LAB_MODEL, num_parameters=10**9, linear={})
    plan = plan_memory(load_config("eval", "rollout.gpu_memory_utilization=0.05"), model, 600, GPU)
    assert plan.verdict() == (
        "the engine's share of the GPU, 4.0 of 80.0 GiB, does not hold its weights of 3.7 GiB and 1.5 to work in; any of "
        "these makes it fit: rollout.gpu_memory_utilization=0.1 (what the engine needs at least)"
    )


def test_an_engine_needs_the_cache_of_its_longest_sequence():
    """By hand: keys and values of 2^14 numbers a token, of two bytes, for 2^15 tokens are 1 GiB on one GPU and a half on
    each of two; in float32 they are twice as much."""
    linear = {f"layers.{n}.self_attn.{name}.weight": (2**10, 8) for n in range(8) for name in ("k_proj", "v_proj", "q_proj")}
    model = ModelSize(folder=LAB_MODEL, num_parameters=2**30, linear=linear)
    given = ("model.dtype=bfloat16", "eval.max_tokens=32768", "rollout.max_model_len=null")
    for more, gib in ((), 1.0), (("rollout.tensor_parallel_size=2",), 0.5), (("model.dtype=float32",), 2.0):
        assert engine_room_gib(load_config("eval", *given, *more), model, 2**15) == 1.5 + gib
    trained = learning("model.dtype=bfloat16", "rollout.max_model_len=2048")
    assert engine_room_gib(trained, model, 600) == 1.5 + 2**-4  # the engine's own limit, where it is higher
    small = load_config("eval", *given, "rollout.gpu_memory_utilization=0.05")  # of 80: 4; weights take 2 and the rest 2.5
    plan = plan_memory(small, model, 2**15, GPU)
    assert "does not hold its weights of 2.0 GiB and 2.5 to work in" in plan.verdict()
    assert "rollout.gpu_memory_utilization=0.1" in plan.verdict()
    assert plan_memory(small, dataclasses.replace(model, linear={}), 2**15, GPU).fits


def test_the_engine_gets_what_the_learner_leaves():
    """80 GiB less 1.5 for libraries, 1.6 that stay free, and 36 - 8 bytes of a billion parameters: 50.8 GiB, in steps of a
    twentieth."""
    model = ModelSize(folder=LAB_MODEL, num_parameters=10**9, linear={})
    assert plan_memory(learning(), model, 600, GPU).settled.rollout.gpu_memory_utilization == 0.6
    assert plan_memory(load_config("eval"), model, 600, GPU).settled.rollout.gpu_memory_utilization == 0.9
    given = learning("rollout.gpu_memory_utilization=0.3")
    assert plan_memory(given, model, 600, GPU).settled.rollout.gpu_memory_utilization == 0.3
    assert plan_memory(learning(), model, 600, CPU).settled.rollout.gpu_memory_utilization is None


def test_the_peak_is_that_of_a_moment():
    parts = [Part(name="a", sampling=3, update=1), Part(name="b", transfer=2, update=3, exact=False)]
    assert peak_gib(parts) == 4 and peak_gib(parts, exact_only=True) == 3
    assert peak_gib([*parts, Part(name="c", update=1, of_critic=3)]) == 7


def test_logits_and_the_critics_gradients_are_never_there_together():
    model = dataclasses.replace(SMALL, num_parameters=2**29, head=(2**14, 2**13))
    parts = parts_of(learning("model.dtype=bfloat16"), model)
    assert (parts["gradients"].update, parts["gradients"].critic_update) == (2, 4)
    assert parts["logits"].update > 0 and parts["logits"].critic_update == 0
    assert parts["the head's gradient again"].critic_update == 0
    assert parts["activations"].critic_update == parts["activations"].update > 0
    again = parts["the embedding's gradient again"]
    assert again.update == 0 and again.critic_update == pytest.approx(0.5 - parts["activations"].update)
    columns = [str(column.header) for column in memory_table(list(parts.values())).columns]
    assert columns == ["part", "sampling", "weights to the engine", "the policy's update", "the critic's update"]
    assert len(memory_table(list(parts_of(learning("algo=grpo"), model).values())).columns) == 4


def kept_by(model: torch.nn.Module, rows: int, tokens: int, dtype: Dtype) -> int:
    """The bytes of real tensors that the body of a model saves for its backward pass, without its weights."""
    saved: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # so that no address is used twice
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.arange(rows * tokens).remainder(100).view(rows, tokens)
    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(dtype, torch.device("cpu")):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    for parameter in model.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    del hidden
    return sum(saved.values())


@pytest.mark.parametrize(
    ("adapter", "dtype"),
    [
        (AdapterConfig(), "float32"),
        (AdapterConfig(), "bfloat16"),
        (AdapterConfig(kind="lora"), "float32"),
        (AdapterConfig(kind="lora"), "bfloat16"),
        (AdapterConfig(kind="lora", base="bfloat16"), "bfloat16"),
    ],
)
def test_activations_of_fake_tensors_are_those_of_real_ones(adapter: AdapterConfig, dtype: Dtype):
    policy = load_policy(LAB_MODEL, torch.device("cpu"), weights=adapter.base, dtype=dtype)
    if adapter.kind == "lora":
        Adapter(policy.requires_grad_(False), "policy", adapter, 0)
    planned = activations(LAB_MODEL, 3, 200, adapter, dtype)
    assert planned is not None
    assert planned.peak(recompute=False) == pytest.approx(kept_by(policy, 3, 200, dtype), rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_of_a_mixture_of_experts_are_near_those_of_real_ones(tmp_path: Path, dtype: Dtype):
    """Fake tensors know its products in bfloat16 only; in fp32 they have twice the bytes, indices counted twice."""
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    AutoModelForCausalLM.from_config(Qwen3MoeConfig(**sizes, moe_intermediate_size=64)).save_pretrained(tmp_path)
    planned = activations(tmp_path, 3, 200, AdapterConfig(), dtype)
    assert planned is not None
    policy = load_policy(tmp_path, torch.device("cpu"), dtype=dtype)
    assert 1 <= planned.peak(recompute=False) / kept_by(policy, 3, 200, dtype) < 1.3


def test_recomputation_keeps_the_inputs_of_layers_and_one_layer_at_a_time():
    policy = load_policy(LAB_MODEL, torch.device("cpu"))
    planned = activations(LAB_MODEL, 3, 200, AdapterConfig(), "float32")
    assert planned is not None
    recompute_activations(policy)
    kept = kept_by(policy, 3, 200, "float32")
    assert planned.peak(recompute=True) - planned.per_layer == pytest.approx(kept, rel=0.05)
    assert planned.peak(recompute=True) < planned.peak(recompute=False) / 2


def test_code_that_does_not_run_on_fake_tensors_is_left_out(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "num_hidden_layers": "many"}')
    assert activations(tmp_path, 1, 10, AdapterConfig(), "float32") is None


@pytest.mark.whole
def test_four_billion_parameters_on_a_card_of_24_gib(tmp_path: Path):
    """Nothing of full training fits; adapters on a base in 4 bits do, which is what users do."""
    model = ModelSize.of(sparse_model(tmp_path, QWEN3_4B))
    assert model.num_parameters == pytest.approx(4.02e9, rel=0.01)
    card = Place(kind="gpu", memory_gib=24.0)
    hf = ["model=hf", "model.path=x", "data=gsm8k", "model.dtype=bfloat16", "rollout.gpu_memory_utilization=0.45"]
    full = plan_memory(learning(*hf), model, 4096, card)
    assert full.impossible and full.peak > 135
    lean = plan_memory(
        learning(*hf, "model/adapter=lora", "model.adapter.base=4bit", "optim.moments=8bit"), model, 4096, card
    )
    assert lean.peak < full.peak / 4
    assert "model/adapter=lora" in full.verdict()


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        (
            ["cluster.learner_ranks=2"],
            {"trainer.offload=true", "optim.moments=8bit", "model/adapter=lora model.adapter.base=4bit"},
        ),
        (["model.dtype=float32"], {"model/adapter=lora model.adapter.base=bfloat16"}),
        (["cluster=ray", "cluster.weights=nccl"], {"model/adapter=lora"}),
    ],
)
def test_nothing_is_proposed_that_would_be_refused(overrides: list[str], left_out: set[str]):
    free = {change.overrides for change in changes(learning("model.dtype=bfloat16"), SMALL, 600, GPU)}
    found = {change.overrides for change in changes(learning(*overrides), SMALL, 600, GPU)}
    assert left_out <= free and left_out.isdisjoint(found) and "algo=grpo" in found


def test_what_is_proposed_makes_it_fit_and_the_cheapest_comes_first():
    config = learning("rollout.kv_cache_gib=2", "trainer.max_tokens_per_micro_batch=600")
    model = ModelSize(folder=LAB_MODEL, num_parameters=10**8, linear={"layers.0.q_proj.weight": (10, 10)})

    def said(memory: float) -> str:
        return plan_memory(config, model, 600, Place(kind="cpu", memory_gib=memory)).verdict()

    peak = plan_memory(config, model, 600, CPU).peak
    assert said(peak + 0.01) == f"about {peak:.1f} GiB at its peak, of {peak + 0.01:.1f} free on this machine"
    first = said(peak - 0.1)
    assert (
        "any of these makes it fit: trainer.save_in_background=false (training waits for checkpoints); rollout.kv" in first
    )
    assert first.count("(") == 3
    together = said(2.9)  # libraries 1.6 and little else: no single change is enough
    assert "these together make it fit: " in together and "model/adapter=lora" in together
    assert "optim.moments" not in together  # what is not needed is not asked for
    assert said(1.0).endswith("no setting makes it fit: take a smaller model, or a device with more memory")


def test_what_cannot_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conclip", "eval", "debug=eval", "rollout.kv_cache_gib=1000000"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 2 and "does not fit into memory" in said and "rollout.kv_cache_gib=0.5" in said
    assert not (tmp_path / "outputs").exists()


def test_what_may_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: None):
    monkeypatch.setattr("conclip.experiments.commands.place_of", lambda _: Place(kind="cpu", memory_gib=1.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conclip", "eval", "debug=eval", "name=tight"])
    main()
    assert "this run may not fit into memory: about" in (tmp_path / "outputs/eval/tight/latest/run.log").read_text()


def test_the_dry_run_shows_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conclip", "train-phase2", "--dry-run"])
    main()
    said = capfd.readouterr().out
    assert "moments of AdamW" in said and "activations (estimate)" in said and "memory: about " in said
    monkeypatch.setattr("conclip.experiments.memory.place_of", lambda _: Place(kind="cpu", memory_gib=0.1))
    monkeypatch.setattr(sys, "argv", ["conclip", "train-phase2", "--dry-run"])
    with pytest.raises(SystemExit) as ended:  # as the run itself would
        main()
    said = capfd.readouterr()
    assert ended.value.code == 2 and "moments of AdamW" in said.out and "memory: about" not in said.out
    assert "error: this run does not fit into memory: about" in said.err


def test_nobody_is_asked_about_code_of_the_models_own(tmp_path: Path):
    """Transformers would wait for an answer."""
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise RuntimeError('it ran')")
    assert activations(tmp_path, 1, 10, AdapterConfig(), "float32") is None


@pytest.mark.parametrize("said", [{"tie_word_embeddings": True}, {}])  # some architectures tie unless told otherwise
def test_a_tied_head_is_counted_once(tmp_path: Path, said: dict[str, bool]):
    save_file({"model.embed_tokens.weight": torch.zeros(8, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(said | {"vocab_size": 8, "hidden_size": 4}))
    tied = ModelSize.of(tmp_path)
    assert (tied.num_parameters, tied.body) == (32, 32)
    save_file(
        {"model.embed_tokens.weight": torch.zeros(8, 4), "lm_head.weight": torch.zeros(8, 4)}, tmp_path / "model.safetensors"
    )
    stored = ModelSize.of(tmp_path)
    assert (stored.num_parameters, stored.body) == ((32, 32) if said else (64, 32))


def test_embeddings_are_no_layers_for_adapters(tmp_path: Path):
    names = ("transformer.wte", "transformer.wpe", "transformer.h.0.attn.c_attn", "lm_head", "model.embed_tokens")
    save_file({f"{name}.weight": torch.zeros(8, 4) for name in names}, tmp_path / "model.safetensors")
    assert linear_layers(tmp_path) == ["c_attn"]


@pytest.mark.parametrize(
    ("experiment", "shape", "parameters", "device"),
    [
        ("qwen3_4b_24gb", QWEN3_4B, 4.02e9, "rtx4090"),
        ("r1_1.5b_24gb", R1_1_5B, 1.78e9, "rtx4090"),
        ("qwen3_0.6b_12gb", QWEN3_0_6B, 0.596e9, "rtx3060"),
        ("paper/r1_1.5b", R1_1_5B, 1.78e9, "h100"),
        ("paper/r1_1.5b_aime", R1_1_5B, 1.78e9, "h100"),
        ("paper/qwen_math_1.5b", QWEN_MATH_1_5B, 1.54e9, "h100"),
        ("paper/r1_7b", QWEN_7B, 7.62e9, "h100"),
        ("paper/qwen_math_7b", QWEN_7B, 7.62e9, "h100"),
        ("paper/r1_7b_8gpu", QWEN_7B, 7.62e9, "h100"),
        ("r1_32b_16gpu", QWEN_32B, 32.8e9, "h100"),
    ],
)
def test_an_experiment_fits_the_card_it_is_for(
    experiment: str, shape: dict[str, Any], parameters: float, device: str, tmp_path: Path
):
    """By its plan, with the published shape of its model and prompts of 512 tokens."""
    model = ModelSize.of(sparse_model(tmp_path / "model", shape))
    assert model.num_parameters == pytest.approx(parameters, rel=0.01)
    config = load_config("two-phase", f"experiment={experiment}", f"device={device}")
    plan = plan_memory(config, model, 512 + config.rollout.max_tokens, place_of(config.device))
    assert plan.fits, plan.verdict()


def test_a_gpu_has_one_rank_of_a_learner_and_main_memory_all():
    """By hand: PPO on 10 parameters, of which a layer has 6."""
    alone, divided = (parts_of(learning(f"cluster.learner_ranks={n}"), place=GPU) for n in (1, 4))
    for name in ("policy", "critic", "reference", "moments of AdamW", "gradients"):
        assert divided[name].update == alone[name].update / 4
    assert divided["activations"] == alone["activations"] and "gathered weights" not in alone
    assert divided["gathered weights"].update * GIB == 8 * 2 * 6
    here, there = (parts_of(learning(f"cluster.learner_ranks={n}"), place=CPU) for n in (1, 4))
    assert there["policy"] == here["policy"] and there["activations"].update == 4 * here["activations"].update
    assert there["ranks: libraries"].sampling == pytest.approx(3 * 0.4) and "ranks: libraries" not in here


def test_the_processes_that_torchrun_has_started_share_the_models(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parts_of(learning("cluster=torchrun"), place=GPU) == parts_of(learning("cluster.learner_ranks=4"), place=GPU)
    monkeypatch.delenv("WORLD_SIZE")  # planned before it is started
    assert parts_of(learning("cluster=torchrun"), place=GPU) == parts_of(learning(), place=GPU)


def test_engines_that_ray_places_leave_the_learners_gpu_alone():
    parts = parts_of(learning("cluster=ray"), place=GPU)
    assert "engine: its share" not in parts
    assert parts_of(learning(), place=GPU)["engine: its share"].sampling > 0


@pytest.mark.parametrize(
    ("shape", "ranks", "fits"), [(QWEN_7B, 1, False), (QWEN_7B, 8, True), (R1_1_5B, 1, True), (R1_1_5B, 8, True)]
)
def test_ppo_on_all_weights_fits_eight_h100(shape: dict[str, Any], ranks: int, fits: bool, tmp_path: Path):
    """At 4,096 tokens a micro-batch, with activations recomputed: seven billion parameters take eight."""
    model = ModelSize.of(sparse_model(tmp_path / "model", shape))
    settings = ["algo=ppo", "cluster=ray", f"cluster.learner_ranks={ranks}", "device=h100", "rollout.max_tokens=3500"]
    own = ["model=hf", "model.path=x", "trainer.recompute_activations=true", "trainer.max_tokens_per_micro_batch=4096"]
    plan = plan_memory(learning(*settings, *own), model, 4096, Place(kind="gpu", memory_gib=80.0))
    assert plan.fits == fits, plan.verdict()


def test_a_run_is_planned_by_its_own_lengths_and_an_engine_that_sleeps_in_main_memory():
    """What only evaluates has the engine's longest sequence, what trains that of its training, and thinking budgets make the
    engine keep its weights while it sleeps."""

    def plan(config: BaseConfig, *, budgeted: object = None, place: Place = GPU) -> MemoryPlan:
        asked = SimpleNamespace(token_ids={"p": (1,) * 10})
        prompts: Any = SimpleNamespace(by_variant={TRAINING: asked}, max_model_len=300, budgeted=budgeted)
        inputs: Any = SimpleNamespace(served_name=None, models={"model": LAB_MODEL})
        found = memory_of_run(config, inputs, {LAB_MODEL: prompts}, place)
        assert found is not None
        return found

    evaluated, trained = load_config("eval"), learning("rollout.max_tokens=512")
    assert (plan(evaluated).longest, plan(trained).longest) == (300, 522)
    plain, asleep = plan(trained), plan(trained, budgeted="<think>")
    room = engine_weights_gib(trained, ModelSize.of(LAB_MODEL), GPU)
    assert asleep.beside == pytest.approx(plain.beside + room) and asleep.peak == plain.peak
    little = dataclasses.replace(GPU, beside_gib=plain.beside + room / 2)
    tight = plan(trained, budgeted="<think>", place=little)
    assert not tight.fits and not tight.impossible  # it is an estimate, which refuses nothing
    assert plan(trained, budgeted="<think>", place=CPU).beside == plan(evaluated, budgeted="<think>").beside == 0


def test_workers_of_one_engine_share_main_memory():
    """In main memory two workers hold the weights together, and a cache each; on GPUs half of the weights each."""
    one, two = (parts_of(learning(f"rollout.tensor_parallel_size={n}", "rollout.kv_cache_gib=0.5")) for n in (1, 2))
    assert two["engine: weights"].sampling == one["engine: weights"].sampling > 0
    assert (one["engine: KV cache"].sampling, two["engine: KV cache"].sampling) == (0.5, 1.0)
    assert two["engine: libraries"].sampling > 0
    halves = [engine_weights_gib(learning(f"rollout.tensor_parallel_size={n}"), SMALL, GPU) for n in (1, 2)]
    assert halves[0] == 2 * halves[1]


@pytest.mark.parametrize(
    ("shown", "memory", "names"),
    [
        (None, 80.0, ["0", "1"]),
        ("1", 24.0, ["1"]),
        ("1, 0", 24.0, ["1", "0"]),
        ("", None, []),
        ("-1", None, []),
        ("GPU-5ebe9f43", 80.0, ["GPU-5ebe9f43"]),
    ],
)
def test_the_gpu_that_is_planned_for_is_one_that_is_shown(
    shown: str | None, memory: float | None, names: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "_gpu_memories_gib", lambda: [80.0, 24.0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert machine.gpu_memory_gib() == memory
    assert machine.gpu_names() == names and machine.num_gpus() == len(names)


@pytest.mark.parametrize(
    ("driver", "shown", "names"),
    [
        ("echo NVIDIA H200; echo NVIDIA L4", None, ["NVIDIA H200", "NVIDIA L4"]),
        ("echo NVIDIA H200; echo NVIDIA L4", "1", ["NVIDIA L4"]),
        ("echo NVIDIA-SMI has failed; exit 9", None, []),
        ("echo", None, []),
    ],
)
def test_gpus_have_the_names_that_the_driver_tells(
    driver: str, shown: str | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{driver}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert machine.gpu_models() == names
    assert describe_environment("eval")["gpus"] == names


def test_files_that_a_container_has_read_are_no_memory_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A limit of 1 GiB, of which 0.75 are counted, 0.5 of them for files."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**28}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2**28}\nactive_file {2**28}\ninactive_file {2**28}\n")
    assert machine.available_memory_gib() == 0.75


def test_the_limits_of_a_schedulers_job_hold_for_what_runs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The job has 1 GiB and 2 processors; its step has none of its own."""
    job = tmp_path / "system.slice" / "job_7"
    step = job / "step_0"
    step.mkdir(parents=True)
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/system.slice/job_7/step_0\n")
    for folder, limit, quota in ((job, str(2**30), "200000 100000"), (step, "max", "max 100000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{2**28}\n")
        (folder / "memory.stat").write_text("active_file 0\ninactive_file 0\n")
        (folder / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUP", tmp_path / "own")
    assert machine.available_memory_gib() == 0.75 and machine.cpu_quota() == 2
    (tmp_path / "own").unlink()
    assert machine.cpu_quota() is None


@pytest.mark.parametrize(
    ("different", "said"),
    [
        ({"template_kwargs": {"as it is": {}, "other": {"think": False}}}, "x 4."),
        ({"prompts": ["plain", "concise"], "temperatures": [0.0, 0.6]}, "x 1."),  # the greedy comparison needs most
        ({}, None),  # one model, asked in one way
    ],
)
def test_power_is_told_of_what_is_compared(different: dict[str, Any], said: str | None):
    config = load_config("eval", "data.test.chain.num_problems=10")
    assert isinstance(config, EvalRunConfig)
    changed = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **different))
    lines = power_lines(changed, load_inputs(config))
    assert (len(lines) == 1 and said in lines[0]) if said else lines == []


def test_only_what_trains_takes_the_learners_time():
    """Four problems x 8 responses x 2 steps: all train with PPO, one a group by imitation, and no replaced ones."""
    small = ["phase.num_problems=4", "phase.problems_per_step=4", "phase.group_size=8", "phase.num_steps=2"]
    found: dict[str, int] = {}
    for algo in ("ppo", "shortest_sft", "dapo"):
        config = load_config("train-phase2", f"algo={algo}", *small)
        inputs = load_inputs(config)
        (stage,) = [s for s in planned_stages(config, inputs, {}) if s.num_trained]
        found[algo] = stage.num_trained
    assert found == {"ppo": 64, "shortest_sft": 8, "dapo": 64}


def test_merged_models_of_adapters_need_room_on_the_disk():
    model = dataclasses.replace(SMALL, num_parameters=2**28)  # 1 GiB in fp32
    small, merged = (_disk_needed(learning(*more), model).detail for more in ([], ["model/adapter=lora"]))
    assert "whole models" not in small and "1.0 for the whole models that warm-ups and adapters end with" in merged
    warmed = load_config("two-phase", "recipe=warm_up")
    assert isinstance(warmed, LearnConfig) and "1.0 for the whole models" in _disk_needed(warmed, model).detail


def test_what_earlier_phases_keep_needs_room_on_the_disk():
    """By hand, GRPO on 1 GiB of fp32 weights: a checkpoint is weights and two moments, 3 GiB. Of two newest, the best and
    one being written that is 12; a phase before keeps the weights of three."""
    model = dataclasses.replace(SMALL, num_parameters=2**28)
    said: list[str] = []
    for command in ("train-phase2", "two-phase"):
        config = load_config(command, "algo=grpo", "trainer.keep_last=2", "optim.moments=float32")
        assert isinstance(config, LearnConfig)
        said.append(_disk_needed(config, model).detail)
    one, two = said
    assert one.startswith("about 12.0 GiB (checkpoints of 3.0: 2 newest") and "earlier" not in one
    assert two.startswith("about 15.0 GiB") and "; 3.0 for the policies that earlier phases keep)" in two

"""`conclip merge`: what peft has trained becomes a model that others load, and says what it was trained on."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from conclip.cli.main import main
from conclip.config.compose import load_config
from conclip.errors import UserError
from conclip.experiments.inputs import load_inputs
from conclip.experiments.merge import merge
from conclip.models.folder import LAB_MODEL, weight_files
from conclip.models.load import load_policy
from conclip.problems.overlap import RECORD, trained_on

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.float()(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """What TRL leaves of a model that it trained by peft: the adapter, its tokenizer, and the base by its name."""
    torch.manual_seed(0)
    made = get_peft_model(
        load_policy(LAB_MODEL, torch.device("cpu")), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(tmp_path / "trl")
    torch.save(logits(made), tmp_path / "logits.pt")  # type: ignore[arg-type]
    for file in LAB_MODEL.glob("*token*"):
        shutil.copy(file, tmp_path / "trl")
    return tmp_path / "trl"


def dtypes(folder: Path) -> set[str]:
    found: set[str] = set()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            found |= {str(tensors.get_tensor(name).dtype) for name in tensors.keys()}  # noqa: SIM118  not a dict
    return found


def test_an_adapter_and_its_base_become_one_model(adapter: Path, tmp_path: Path):
    (adapter / RECORD).write_text('{"schema": 1, "questions": ["q"]}')
    merge(str(adapter), tmp_path / "out", base=str(LAB_MODEL), dtype="float32")
    expected = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits(load_policy(tmp_path / "out", torch.device("cpu"))), expected, rtol=1e-4, atol=1e-4)
    assert trained_on(tmp_path / "out") == ["q"]
    assert not list((tmp_path / "out").glob("adapter*"))
    found = load_inputs(load_config("eval", f"model.path={tmp_path / 'out'}"))
    assert found.models["model"] == tmp_path / "out"


def test_the_command_takes_the_base_that_the_adapter_names_and_writes_bfloat16(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(LAB_MODEL)
    (tmp_path / "step-000004/training").mkdir(parents=True)
    adapter.rename(tmp_path / "step-000004/adapter")  # where conclip's own checkpoints have it
    (tmp_path / "step-000004" / RECORD).write_text('{"schema": 1, "questions": ["q"]}')
    monkeypatch.setattr("sys.argv", ["conclip", "merge", str(tmp_path / "step-000004"), str(tmp_path / "out")])
    main()
    merge(str(tmp_path / "step-000004/adapter"), tmp_path / "same")
    assert trained_on(tmp_path / "out") == trained_on(tmp_path / "same") == ["q"]
    assert dtypes(tmp_path / "out") == {"torch.bfloat16"} and str(tmp_path / "out") in capsys.readouterr().out
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    expected = torch.load(tmp_path / "logits.pt")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(model), expected, rtol=0.1, atol=0.2)


def test_a_model_is_written_in_another_precision(tmp_path: Path):
    merge("lab", tmp_path / "half")
    assert dtypes(tmp_path / "half") == {"torch.bfloat16"} != dtypes(LAB_MODEL)
    merge(str(tmp_path / "half"), tmp_path / "whole", dtype="float32")
    assert dtypes(tmp_path / "whole") == {"torch.float32"}


def test_what_cannot_be_merged_is_one_line(adapter: Path, tmp_path: Path):
    def refused(words: str, source: Path, base: str | None = None, out: str = "out") -> None:
        with pytest.raises(UserError, match=words):
            merge(str(source), tmp_path / out, base=base)
        assert not (tmp_path / "out").exists()

    with pytest.raises(UserError, match=r"is an adapter; make a model of it: conclip merge .*trl OUT"):
        load_inputs(load_config("eval", f"model.path={adapter}"))
    shutil.copytree(LAB_MODEL, tmp_path / "both")
    shutil.copy(adapter / "adapter_config.json", tmp_path / "both")
    with pytest.raises(UserError, match="holds a model and an adapter"):
        load_inputs(load_config("eval", f"model.path={tmp_path / 'both'}"))
    shutil.copytree(adapter, tmp_path / "with-config")
    shutil.copy(LAB_MODEL / "config.json", tmp_path / "with-config")
    with pytest.raises(UserError, match="is an adapter; make a model of it"):
        load_inputs(load_config("eval", f"model.path={tmp_path / 'with-config'}"))
    refused("is there already", adapter, out="trl")
    refused("no folder", adapter, out="nowhere/out")
    refused("is no adapter", LAB_MODEL, base="lab")
    refused("no folder", tmp_path / "nothing")
    refused("no folder", tmp_path / "nothing", base="lab")
    refused("--base: no folder", adapter, base="./nowhere")
    shutil.copytree(adapter, tmp_path / "other")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "other/adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj", "up_proj"]}))
    refused("does not fit the base", tmp_path / "other")
    (tmp_path / "other/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    refused("names no base", tmp_path / "other")
    (tmp_path / "other/adapter_config.json").write_text("[]")
    refused("is damaged", tmp_path / "other")
    shutil.copytree(LAB_MODEL, tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    refused("the model of .*pickled' cannot be used", adapter, base=str(tmp_path / "pickled"))
    (tmp_path / "pickled/config.json").write_text("{")
    refused("the model of .*pickled' cannot be used", tmp_path / "pickled")
    shutil.copytree(LAB_MODEL, tmp_path / "small")
    config = json.loads((LAB_MODEL / "config.json").read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "small/config.json").write_text(json.dumps(config))
    refused("quantised weights.*name that model by --base MODEL", adapter, base=str(tmp_path / "small"))
    refused("quantised weights.*give that model", tmp_path / "small")
    (adapter / "adapter_model.safetensors").unlink()
    refused("has no adapter_model.safetensors", adapter)


def test_an_adapter_of_the_hub_goes_with_the_revision_of_its_base(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(adapter if name == "org/adapter" else LAB_MODEL)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    file = adapter / "adapter_config.json"
    named = {"base_model_name_or_path": "org/base", "revision": "abc"}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    merge("org/adapter", tmp_path / "out", dtype="float32")
    assert asked == [("org/adapter", None), ("org/base", "abc")]
    expected = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(logits(load_policy(tmp_path / "out", torch.device("cpu"))), expected, rtol=1e-4, atol=1e-4)

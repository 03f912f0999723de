"""Low-rank adapters (LoRA, Hu et al. 2021) on a frozen model, by peft.

An adapter adds `alpha / rank * B A x` to the output of each linear layer it targets. B starts at 0, so that a new adapter
changes nothing. Several adapters may share a base, one of them active at a time.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from conclip.cluster.ranks import copy_parameters, whole
from conclip.config.groups import AdapterConfig
from conclip.errors import UserError
from conclip.models.folder import layer_number, public_name, public_revision
from conclip.models.older import add_older_names
from conclip.models.shards import write_weights
from conclip.seeding import torch_stream

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What the names of weights begin with in peft's files."""

# peft's and transformers' annotations are incomplete here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false


class Adapter:
    """One adapter of a model. Its weights are kept in fp32, whatever the base's precision."""

    def __init__(self, base: PreTrainedModel, name: str, config: AdapterConfig, seed: int) -> None:
        """Add a new adapter to the model, which it leaves unchanged otherwise. Raises UserError for targets that the model
        does not have."""
        self._name = name
        present = any(isinstance(module, LoraLayer) for module in base.modules())
        kinds = LoraLayer if present else (nn.Linear, Conv1D)  # of the second adapter, the layers that have the first
        head = base.get_output_embeddings()
        # not peft's "all-linear": it would also adapt the experts of a mixture, for one adapter of a model at most
        layers = [path for path, module in base.named_modules() if isinstance(module, kinds) and module is not head]
        targets = sorted({path.rpartition(".")[2] for path in layers})
        targets = config.targets if config.targets and not present else targets
        self.peft_config = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  peft takes fractions, too
            target_modules=targets,
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=public_name(base.name_or_path) if base.name_or_path else None,
            revision=public_revision(base.name_or_path) if base.name_or_path else None,
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of the other adapter
                inject_adapter_in_model(self.peft_config, base, name)
        except ValueError as error:
            raise UserError(f"model.adapter.targets: {' '.join(str(error).split())[:300]}") from error
        for module in base.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False  # autocast rounds what it needs; peft would first copy it to fp32
        mark = f".{name}."
        found = {path: p for path, p in base.named_parameters() if ".lora_" in path and mark in path}
        for number, (path, parameter) in enumerate(found.items()):
            parameter.data = parameter.data.float()
            if ".lora_A." in path:
                generator = torch_stream(seed, "adapter", name, number)
                start = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=math.sqrt(5), generator=generator)
                parameter.data.copy_(start)
        self._base, self._paths = base, {path.replace(".", "/"): path for path in found}

    def parameters(self) -> nn.ParameterDict:
        """Return the weights of the adapter: those in the model, which sharding replaces."""
        return nn.ParameterDict({key: self._base.get_parameter(path) for key, path in self._paths.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights under the names of peft's files."""
        return {self._file_name(path): self._base.get_parameter(path).detach() for path in self._paths.values()}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take over the weights that `tensors` returned. Raises ValueError where one is missing or has another shape."""
        names = {key: self._file_name(path) for key, path in self._paths.items()}
        copy_parameters({key: saved[name] for key, name in names.items() if name in saved}, self.parameters())

    def _file_name(self, path: str) -> str:
        return PREFIX + path.replace(f".{self._name}.", ".")


def activate(model: PreTrainedModel, name: str) -> None:
    """Make one adapter of the model the active one; a name that no adapter has leaves the base alone. All stay trainable."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(name)
            for part in (layer.lora_A, layer.lora_B):
                part.requires_grad_(True)  # peft freezes the others


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write an adapter as peft and `vllm serve --enable-lora` load it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    config.save_pretrained(str(folder))


@torch.no_grad()
def served_weights(model: PreTrainedModel, merged: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the base by the names of the model's checkpoints, with the adapter named `merged` added, in fp32
    where it adds something. Quantised weights come as what they stand for. New tensors of one layer are there at a time."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}
    quantised = {path: m for path, m in model.named_modules() if hasattr(getattr(m, "weight", None), "quant_state")}
    for _, of_layer in groupby(model.state_dict().items(), lambda item: layer_number(item[0])):
        state: dict[str, Tensor] = {}
        for path, tensor in of_layer:
            owner, is_base, leaf = path.rpartition(".base_layer.")
            if leaf == "weight" and is_base:
                layer = layers[owner]
                weight = whole(cast(Tensor, dequantize_module_weight(layer.get_base_layer())))
                delta = whole(cast(Any, layer).get_delta_weight(merged)) if merged is not None else None
                state[f"{owner}.weight"] = weight if delta is None else weight.float() + delta
            elif leaf == "bias" and is_base:
                state[f"{owner}.bias"] = whole(tensor)
            elif is_base or ".lora_" in path:
                continue  # what else a base layer has describes its quantised weights
            elif (layer := quantised.get(path.partition(".weight")[0])) is None:
                state[path] = whole(tensor)
            elif path.endswith(".weight"):
                state[path] = whole(cast(Tensor, dequantize_module_weight(layer)))
        yield from cast(dict[str, Tensor], revert_weight_conversion(model, state)).items()


def write_merged(folder: Path, model: PreTrainedModel, name: str) -> None:
    """Write the model with an adapter merged into it, in fp32, as one without adapters or quantisation."""
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    with torch.device("meta"):
        plain = type(model)(config)
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder, state_dict={})  # all but the weights
    add_older_names(folder)
    tied = plain.all_tied_weights_keys  # those that another weight stands for
    write_weights(folder, ((path, w.cpu().float()) for path, w in served_weights(model, name) if path not in tied))

"""How much memory a forward pass keeps for the backward pass. The model's own code runs on fake tensors, which have shapes
and no content, so that neither weights nor memory nor a GPU are needed."""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from conclip.config.groups import AdapterConfig, Dtype

# torch's own annotations are incomplete here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false


def _causal(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _: None, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    grouped = query.shape[1] != key.shape[1]
    attended = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return attended.transpose(1, 2).contiguous(), None


CAUSAL = "causal_without_mask"
"""Attention as it runs on real tensors. On fake ones transformers cannot tell that no mask is needed, and makes one."""

AttentionInterface.register(CAUSAL, _causal)
AttentionMaskInterface.register(CAUSAL, lambda **_: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What one forward pass keeps until its backward pass [bytes], copies of weights that autocast makes included."""

    outside: int
    """Outside of the layers, less what the first layer saves, as no gradient goes further where embeddings are frozen."""
    per_layer: int
    num_layers: int
    layer_input: int
    """The input of a layer, all that is kept of it where activations are recomputed."""

    def peak(self, *, recompute: bool) -> int:
        """Return the most that is kept at a time."""
        if not recompute:
            return self.outside + self.num_layers * self.per_layer
        return self.outside + self.num_layers * self.layer_input + self.per_layer


_KNOWN: dict[tuple[Path, int, int, str, Dtype], "Activations | None"] = {}
"""What was found before: proposals for a run that does not fit ask again and again."""


def activations(folder: Path, rows: int, tokens: int, adapter: AdapterConfig, dtype: Dtype) -> Activations | None:
    """Return what the body of a model (all but its output head) keeps in one pass over `rows` sequences of `tokens` tokens;
    None where its code does not run on fake tensors.

    A model of one layer and one of two are run; their difference stands for every further layer.
    """
    key = (folder, rows, tokens, repr(adapter), dtype)
    if key not in _KNOWN:
        of_torch = logging.getLogger("torch._subclasses.fake_tensor")
        before, of_torch.disabled = of_torch.disabled, True  # it prints what is raised
        try:
            _KNOWN[key] = _activations(folder, rows, tokens, adapter, dtype)
        except Exception:  # the code of an untested model may do anything
            logging.getLogger(__name__).info("the activations of '%s' could not be computed", folder, exc_info=True)
            _KNOWN[key] = None
        finally:
            of_torch.disabled = before
    return _KNOWN[key]


def _activations(folder: Path, rows: int, tokens: int, adapter: AdapterConfig, dtype: Dtype) -> Activations:
    try:
        one, two = (_kept(folder, depth, rows, tokens, adapter, dtype) for depth in (1, 2))
    except RuntimeError:  # of mixtures of experts fake tensors know the products in bfloat16 only: half the bytes
        one, two = (2 * _kept(folder, depth, rows, tokens, replace(adapter, base="bfloat16"), dtype) for depth in (1, 2))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    bytes_of_input = 4 if adapter.base == "float32" else 2
    return Activations(
        outside=2 * one - two,
        per_layer=two - one,
        num_layers=int(config.num_hidden_layers),
        layer_input=rows * tokens * int(config.hidden_size) * bytes_of_input,
    )


def _kept(folder: Path, depth: int, rows: int, tokens: int, adapter: AdapterConfig, dtype: Dtype) -> int:
    """Return the bytes of all tensors that the body of a model of `depth` layers saves for its backward pass, but for its
    own weights."""
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _shallow(folder, depth, torch.float32 if adapter.base == "float32" else torch.bfloat16)
        if adapter.kind == "lora":
            _add_adapter(model, adapter)
        input_ids = torch.zeros((rows, tokens), dtype=torch.long)
        with (
            saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        for parameter in model.parameters():
            saved.pop(parameter.untyped_storage()._cdata, None)
        del hidden
    return sum(storage.nbytes() for storage in saved.values())


def _shallow(folder: Path, depth: int, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model of the folder's architecture and widths with `depth` layers."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    full = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(cast(list[Any], value)) == full:  # something said for each layer
            with suppress(AttributeError):
                setattr(config, name, cast(list[Any], value)[:depth])
    config.num_hidden_layers = depth
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else CAUSAL
    return cast(
        PreTrainedModel,
        AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention, trust_remote_code=False),
    ).eval()


def _add_adapter(model: PreTrainedModel, adapter: AdapterConfig) -> None:
    """Freeze the model and add to its linear maps what peft adds: the adapter's two, in fp32, which autocast rounds."""
    head = model.get_output_embeddings()
    model.requires_grad_(False)
    for name, linear in list(model.named_modules()):
        if (
            type(linear) is not nn.Linear
            or linear is head
            or (adapter.targets and name.split(".")[-1] not in adapter.targets)
        ):
            continue
        down = nn.Linear(linear.in_features, adapter.rank, bias=False)
        up = nn.Linear(adapter.rank, linear.out_features, bias=False)
        linear.extend = nn.ModuleList([down, up])

        def add(_: nn.Module, args: tuple[Tensor], output: Tensor, maps: tuple[nn.Linear, nn.Linear] = (down, up)):
            rounds = torch.is_autocast_enabled("cpu")
            return output + maps[1](maps[0](args[0] if rounds else args[0].float())).to(output.dtype)

        linear.register_forward_hook(add)

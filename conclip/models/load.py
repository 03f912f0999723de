"""Loads models and tokenizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_layers import GradientCheckpointingLayer

from conclip.cluster.ranks import whole
from conclip.config.groups import AdapterBase, Dtype
from conclip.errors import UserError, explain
from conclip.models.folder import layer_number, weight_files

SAMPLE_TEXT = "Solve it step by step:\n\n  2x + 10 = 1234, so it's x\u00b2 = 374544 (na\u00efve, \u6570\u5b66).\n\tDone"
"""A text over which tokenizers of other rules differ: spaces, lines, digits, contractions, letters beyond ASCII."""


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """Turn what libraries raise over a model's own files, which is bad input, into a UserError that names them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if explain(error) is not None:
            raise
        raise UserError(f"{what} of '{folder}' cannot be used ({type(error).__name__}: {str(error)[:300]})") from error


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder, which splits and joins text as its tokenizer.json says.

    Transformers lets the class that the config names decide that. For a byte-level tokenizer whose class is said to be
    Llama's (R1-Distill-Llama, R1-0528-Qwen3) that drops spaces; a Qwen2 model's gets Qwen2's rules, whatever its own are."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not (folder / "tokenizer.json").is_file():
        return tokenizer
    of_file = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer if _is_like(tokenizer, of_file) else of_file


def _is_like(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Return whether two tokenizers of one vocabulary split and join the sample alike. Where they split is compared by
    itself: few vocabularies show it in the tokens of a short text."""
    tokens = other.encode(SAMPLE_TEXT, add_special_tokens=False)
    return (
        _pieces(one) == _pieces(other)
        and one.encode(SAMPLE_TEXT, add_special_tokens=False) == tokens
        and one.backend_tokenizer.decode(tokens) == other.backend_tokenizer.decode(tokens)
    )


def _pieces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the pieces of the sample, within which a tokenizer looks for tokens."""
    rules = tokenizer.backend_tokenizer
    text = rules.normalizer.normalize_str(SAMPLE_TEXT) if rules.normalizer else SAMPLE_TEXT
    return [piece for piece, _ in rules.pre_tokenizer.pre_tokenize_str(text)] if rules.pre_tokenizer else [text]


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors of a model folder, file by file."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                yield name, tensors.get_tensor(name)


def load_policy(
    folder: Path,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    weights: AdapterBase = "float32",
    dtype: Dtype = "float32",
) -> PreTrainedModel:
    """Return the causal language model in eval mode: dropout would make the trainer's log-probs differ from the engine's.

    Its weights are fp32, since small learning rates vanish in bf16 ones; frozen `weights` may also be bf16, or 4-bit (NF4,
    Dettmers et al. 2023, section 3), which are computed with in `dtype`. On the meta device it has shapes and no content,
    and no file of weights is read. Raises UserError for a model whose logits are not those of `OutputHead`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    computed = torch.float32 if weights == "float32" or (weights == "4bit" and dtype == "float32") else torch.bfloat16
    # The engine caps attention scores where the model says so (Gemma 2). None of torch's own attention kernels does, and
    # none warns about it.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    if device.type == "meta":
        with device:
            shapes = AutoModelForCausalLM.from_config(
                config, dtype=computed, trust_remote_code=trust_remote_code, attn_implementation=attention
            )
        return cast(PreTrainedModel, cast(torch.nn.Module, shapes).eval())
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=computed,
        quantization_config=nf4 if weights == "4bit" else None,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
        attn_implementation=attention,
    )
    policy = cast(PreTrainedModel, cast(torch.nn.Module, model).to(device).eval())
    if weights == "4bit":
        _keep_differentiable(policy)
    _check_logits(policy)
    _mend_generation_config(policy)
    return policy


def _keep_differentiable(policy: PreTrainedModel) -> None:
    """Keep 4-bit layers in training mode, which changes nothing else in them. In eval mode bitsandbytes rearranges their
    weights for good where a processor multiplies in bfloat16, and no gradient passes them any more."""
    from bitsandbytes.nn.modules import Linear4bit  # noqa: PLC0415  seconds to import

    for module in policy.modules():
        if isinstance(module, Linear4bit):
            module.train()


def checkpoint_weights(policy: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights by the names and shapes of the model's checkpoints, which engines read: transformers may hold them
    in another form, the experts of a mixture as one tensor for example. Tied weights come under both names. New tensors of
    one layer are there at a time."""
    for _, of_layer in groupby(policy.state_dict().items(), lambda item: layer_number(item[0])):
        yield from revert_weight_conversion(policy, {name: whole(tensor.detach()) for name, tensor in of_layer}).items()


class OutputHead(torch.nn.Module):
    """The map from hidden states to logits: the output head, then the scale or cap that some models apply to it.

    Order and precision are those of vLLM. Gemma 2 caps, logits = c tanh(logits / c); Granite divides by `logits_scaling`;
    Cohere multiplies by `logit_scale`.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        self.linear = cast(torch.nn.Module, policy.get_output_embeddings())
        self._cap = cast(float | None, getattr(policy.config, "final_logit_softcapping", None))
        self._scale = float(getattr(policy.config, "logit_scale", 1.0) or 1.0)
        self._divisor = float(getattr(policy.config, "logits_scaling", 1.0) or 1.0)

    @property
    def weight(self) -> torch.Tensor:
        return cast(torch.Tensor, self.linear.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [N, V] of hidden states [N, H]."""
        logits = self.linear(hidden)
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        scale = self._scale / self._divisor
        return logits if scale == 1.0 else logits * scale


def _some_ids(policy: PreTrainedModel) -> torch.Tensor:
    return torch.arange(8, device=policy.device).unsqueeze(0)


@torch.no_grad()
def _hidden(policy: PreTrainedModel) -> torch.Tensor:
    return policy.base_model(input_ids=_some_ids(policy), use_cache=False).last_hidden_state


@torch.no_grad()
def _check_logits(policy: PreTrainedModel) -> None:
    """Raise UserError unless the model's logits are those of `OutputHead`. The learner uses that head, so that it never
    holds the logits of a whole batch."""
    logits = OutputHead(policy)(_hidden(policy))
    if not torch.allclose(policy(input_ids=_some_ids(policy), use_cache=False).logits, logits, rtol=1e-3, atol=1e-3):
        raise UserError(
            "model.path: this model's logits are not those of its output head; training does not support it; docs/models.md "
            "names families that it does"
        )


def _mend_generation_config(policy: PreTrainedModel) -> None:
    """Set `do_sample` where sampling settings lack it: many models ship such a config, which can be loaded but not saved."""
    settings = policy.generation_config
    if settings is not None:
        try:
            settings.validate(strict=True)
        except ValueError:
            settings.do_sample = True


def recompute_activations(policy: PreTrainedModel) -> None:
    """Make the backward pass recompute each layer's activations instead of keeping them. Copies of the model do so, too.
    Raises UserError for a model that cannot."""
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not (layers and policy.supports_gradient_checkpointing):
        raise UserError("trainer.recompute_activations: this model's code does not support it; set it to false")
    has_content = policy.device.type != "meta"  # else the rank that has it looks
    before = _hidden(policy) if has_content else None
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True  # only the layer itself needs it: modules inside it, such as dropout, stay in eval mode
        for name, value in list(vars(layer).items()):
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, 0.0)  # what the layer itself would drop
    if before is not None and not torch.equal(_hidden(policy), before):
        raise UserError("trainer.recompute_activations: this model's layers drop values at random then; set it to false")


def autocast(dtype: Dtype, device: torch.device) -> torch.autocast:
    """Return the context in which models run: bf16 arithmetic on fp32 weights when the config says bfloat16. Rounded weights
    are not cached: a layer computes once a pass, and those of all layers would stay until its end."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False)

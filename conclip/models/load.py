"""Loading models and tokenizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from conclip.config import Dtype, UserError
from conclip.failures import explain


@contextmanager
def reading(folder: Path, what: str) -> Iterator[None]:
    """What libraries raise over a model's own files is bad input: it becomes a UserError that names them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if explain(error) is not None:
            raise
        raise UserError(f"{what} of '{folder}' cannot be used ({type(error).__name__}: {str(error)[:300]})") from error


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors of a model folder, file by file."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                yield name, tensors.get_tensor(name)


def load_policy(folder: Path, device: torch.device, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model with fp32 weights (small learning rates vanish in bf16 ones), in eval mode: dropout
    would make the trainer's log-probs differ from the engine's."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
    )
    if getattr(model.config, "final_logit_softcapping", None) is not None:
        raise UserError("model.path: models with logit soft-capping are not supported for training")
    return cast(PreTrainedModel, cast(torch.nn.Module, model).to(device).eval())


def autocast(dtype: Dtype, device: torch.device) -> torch.autocast:
    """The context in which models run: bf16 arithmetic on fp32 weights when the config says bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

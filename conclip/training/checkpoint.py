"""Checkpoint folders: a complete HF model that plain transformers and vLLM load."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_checkpoint(folder: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write aside and rename: `folder` is whole whenever it exists."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    policy.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)

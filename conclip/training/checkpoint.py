"""Checkpoint folders: a complete HF model that plain transformers and vLLM load."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from conclip.overlap import write_record
from conclip.types import Problem


def save_checkpoint(
    folder: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    problems: Sequence[Problem],
    earlier: Sequence[str],
) -> None:
    """Write aside and rename: `folder` is whole whenever it exists. It says what the model was trained on: `problems`, and
    the questions of `earlier` phases."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    policy.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    write_record(aside, earlier, problems)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)

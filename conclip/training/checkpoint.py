"""Checkpoints of a phase: each is a complete Hugging Face model with everything the phase needs to resume exactly.

`checkpoints/<stage>/step-NNNNNN/` is numbered by the steps done, the critic's warm-up included. It has the policy in the
format that transformers and vLLM load, and in `training/` the critic and optimiser moments (`*.safetensors`, one file for
each rank of the learner) and all other state (`state.json`, which has the hash of every file). A checkpoint is written under
a temporary name, synced and renamed: one with its final name is complete. `checkpoints/<stage>-best/` is the model of the
best checkpoint, once the phase is done.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict  # pydantic's own dependency: it needs this one below Python 3.12

from conclip.errors import MachineFailure, UserError
from conclip.models.older import add_older_names
from conclip.problems.overlap import write_record
from conclip.runs.checked import Count
from conclip.runs.files import is_inside, link, read_object, sync, sync_tree, write_text
from conclip.runs.identity import path_hash
from conclip.types import Problem

SCHEMA = 2
TRAINING = "training"
"""The folder of the files that only resuming needs."""

DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, KeyError, TypeError, AttributeError)
DAMAGE += (RecursionError, SafetensorError)
"""The errors that reading a damaged checkpoint raises. Any other OSError (too many open files, a failed disk) is no reason
to discard a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseState:
    """The content of a checkpoint besides the policy, to be saved."""

    number: int
    """The number of the checkpoint: steps done."""
    best: int
    """The number of the best checkpoint so far."""
    values: Mapping[str, Any]
    """JSON-like state."""
    write_tensors: Callable[[Path], None]
    """Writes the critic and the optimisers' moments into a folder."""
    at_once: bool = False
    """Whether they must be written before training continues, as several ranks do it together."""


class Head(TypedDict):
    """The content of `state.json`."""

    schema: int
    key: str
    number: Count
    best: Count
    files: dict[str, str]
    values: dict[str, Any]


_HEAD = TypeAdapter(Head)


class Checkpoints:
    """The checkpoints of one phase in its folder: the newest ones, and the best ones that these name."""

    def __init__(self, folder: Path, *, key: str, keep_last: int, in_background: bool, warn: Callable[[str], None]) -> None:
        """Manage `folder`. `key`: hash of all inputs of the phase; only the same phase resumes from its checkpoints.
        `in_background`: write one checkpoint at a time while training continues."""
        self._folder, self._key, self._keep_last, self._warn = folder, key, keep_last, warn
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if in_background else None
        self._pending: Future[None] | None = None

    def path(self, number: int) -> Path:
        return self._folder / f"step-{number:06d}"

    def save(self, state: PhaseState, write_model: Callable[[Path], None], *, scheduled: bool = True) -> None:
        """Write one checkpoint, whose policy `write_model` writes into a new folder, and remove those no longer kept.
        Neither the state nor what `write_model` writes may change until `wait` returns. Raises the error of an earlier
        write.

        `scheduled=False`: saved because of a signal; removed as soon as it is not the newest.
        """
        self.wait()
        write = partial(self._write, state, write_model, scheduled, self._begin(state))
        if self._writer is None:
            write()
        else:
            self._pending = self._writer.submit(write)

    def wait(self) -> None:
        """Wait until everything is on the disk. Raises the error of the write."""
        if self._pending is not None:
            self._pending.exception()  # after an interrupt here, `wait` can be called again
            pending, self._pending = self._pending, None
            pending.result()

    def newest(self) -> Head | None:
        """Return the head of the newest complete checkpoint of this phase; None where there is none. Damaged checkpoints are
        removed with a warning: they must not count as newer than what follows. Raises UserError for a whole one whose best
        checkpoint is damaged, and OSError when an I/O error prevents reading."""
        for path in self._folder.glob("step-*.old"):  # interrupted between two renames
            if not path.with_suffix("").exists():
                path.rename(path.with_suffix(""))
        is_of_others = False
        for path in _numbered(self._folder):
            if not (path / TRAINING).is_dir():
                continue  # of a completed phase
            try:
                head = self._verify(path)
                if head["key"] != self._key or head["schema"] != SCHEMA:
                    is_of_others = True
                    continue
                for file in (path / TRAINING).glob("*.safetensors"):
                    with safe_open(file, framework="pt"):
                        pass
            except DAMAGE as error:
                self._warn(f"checkpoint '{path}' is damaged ({error}); an earlier one is taken, or the phase starts anew")
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._check_best(head)
                return head
        if is_of_others:
            self._warn(
                f"the checkpoints in '{self._folder}' are of other inputs or of another version; the phase starts anew"
            )
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        self.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def publish(self, number: int, target: Path, complete: Callable[[Path], None] | None = None) -> None:
        """Make the model of one checkpoint a folder of its own; `complete` adds what a checkpoint leaves out. Raises
        MachineFailure when it is not what was saved."""
        self.wait()
        try:
            self._verify(self.path(number))
        except (OSError, ValueError) as error:
            raise MachineFailure(f"{error}; restore it, then run the same command again") from error
        link(self.path(number), target, without=TRAINING, complete=complete)

    def _check_best(self, head: Head) -> None:
        """Raise UserError where the best checkpoint that a whole one names is damaged: the user says what to give up."""
        path, best = self.path(head["number"]), self.path(head["best"])
        try:
            self._verify(best)
        except DAMAGE as error:
            raise UserError(
                f"checkpoint '{path}' is whole, but the best one so far, '{best}', is damaged ({error}): restore that one, "
                f"or remove '{path}'; an earlier one is taken if it names another best one, else the phase starts anew"
            ) from error

    def _verify(self, path: Path) -> Head:
        """Return the content of a checkpoint's `state.json`. Raises OSError or ValueError when a file is not what was
        saved."""
        head = _HEAD.validate_python(json.loads((path / TRAINING / "state.json").read_text(encoding="utf-8")))
        if self.path(head["number"]) != path:
            raise ValueError(f"it says that it is '{self.path(head['number']).name}'")
        for name, expected in head["files"].items():
            if not is_inside(name) or path_hash(path / name) != expected:
                raise ValueError(f"'{path / name}' is not what was saved")
        return head

    def _begin(self, state: PhaseState) -> Path:
        """Return the new folder of a checkpoint, under its temporary name."""
        target = self.path(state.number)
        temporary = target.with_name(target.name + ".part")
        for path in self._folder.glob("step-*.part"):  # left by an interrupted write
            shutil.rmtree(path, ignore_errors=True)
        self._folder.mkdir(exist_ok=True)  # no parents: the run folder must exist
        (temporary / TRAINING).mkdir(parents=True)
        if state.at_once:
            with _removed_unless_whole(temporary):
                state.write_tensors(temporary / TRAINING)
        return temporary

    def _write(self, state: PhaseState, write_model: Callable[[Path], None], scheduled: bool, temporary: Path) -> None:
        target = self.path(state.number)
        old = target.with_name(target.name + ".old")
        with _removed_unless_whole(temporary):
            self._fill(temporary, state, write_model, scheduled)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        sync(self._folder)
        shutil.rmtree(old, ignore_errors=True)
        self._prune()

    def _fill(self, folder: Path, state: PhaseState, write_model: Callable[[Path], None], scheduled: bool) -> None:
        write_model(folder)
        if not state.at_once:
            state.write_tensors(folder / TRAINING)
        head = {"schema": SCHEMA, "key": self._key, "number": state.number, "best": state.best, "due": scheduled}
        hashes = {str(file.relative_to(folder)): path_hash(file) for file in _files(folder)}
        text = json.dumps(head | {"files": hashes, "values": state.values})
        write_text(folder / TRAINING / "state.json", text)
        sync_tree(folder)

    def _prune(self) -> None:
        """Keep up to `keep_last` checkpoints (the newest, then scheduled ones) and the best ones that these name."""
        paths = _numbered(self._folder)
        heads = {path: head for path in paths if (head := read_object(path / TRAINING / "state.json"))}
        kept = [path for path in paths if path == paths[0] or heads.get(path, {}).get("due")][: self._keep_last]
        kept += [self.path(best) for path in kept if isinstance(best := heads.get(path, {}).get("best"), int)]
        for path in paths:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _removed_unless_whole(folder: Path) -> Iterator[None]:
    """Remove a folder where what fills it is interrupted."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def save_model(
    folder: Path,
    write: Callable[[Path], None],
    tokenizer: PreTrainedTokenizerBase,
    *,
    problems: Sequence[Problem],
    earlier: Sequence[str],
) -> None:
    """Write the model, by `write`, and its tokenizer. A record beside them lists what the model was trained on: `problems`,
    and the questions of `earlier` phases."""
    write(folder)
    tokenizer.save_pretrained(folder)
    add_older_names(folder)
    write_record(folder, earlier, problems)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors in main memory; tensors that share storage still do."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = (tensor.data_ptr(), tensor.shape)
        if storage not in copies or not tensor.numel():
            copies[storage] = tensor.detach().to("cpu", copy=True)
        result[name] = copies[storage]
    return result


def remove_training_state(folder: Path) -> None:
    """Remove from a completed phase's checkpoints what only resuming would need."""
    for path in folder.glob("step-*"):
        shutil.rmtree(path if path.suffix else path / TRAINING, ignore_errors=True)


def _numbered(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first."""
    return sorted((path for path in folder.glob("step-*") if not path.suffix), reverse=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())

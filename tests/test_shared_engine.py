"""One engine for models that are alike, which gets each one's weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from conclip.config.compose import load_config
from conclip.config.schema import BaseConfig
from conclip.models.folder import LAB_MODEL
from conclip.models.load import load_tokenizer
from conclip.rollout.shared_engine import SharedEngine
from conclip.training.backend import Backend
from conclip.training.checkpoint import save_model
from conclip.training.learner import Learner
from tests.conftest import train_config

CONFIG = load_config("eval")


def changed(model: Path, folder: Path, file: str, **values: object) -> Path:
    """A copy of the model with other values in one of its JSON files."""
    shutil.copytree(model, folder)
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))
    return folder


def with_token(model: Path, folder: Path) -> Path:
    """A copy of the model with another token in its vocabulary."""
    shutil.copytree(model, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(folder)
    return folder


def started(shared: SharedEngine, model: Path, config: BaseConfig = CONFIG, **settings: int) -> tuple[Mock, bool]:
    """The engine for a model, and whether it was started for it."""
    start = Mock(return_value=Mock(policy_version=3))
    engine = shared.start(model, start, config, **({"max_model_len": 1024} | settings))
    assert isinstance(engine, Mock)
    return engine, start.called


def test_a_model_that_differs_in_its_weights_only_gets_the_engine_that_runs(random_model: Path):
    shared = SharedEngine()
    first, starts = started(shared, LAB_MODEL)
    assert starts and not first.update_weights.called
    second, starts = started(shared, random_model)
    assert second is first and not starts and not first.close.called
    first.update_weights.assert_called_once_with(random_model, 4)
    shared.close()
    first.close.assert_called_once_with()
    assert started(shared, random_model)[1]


def test_a_checkpoint_shares_the_engine_of_what_it_was_trained_from(tmp_path: Path):
    learner = Learner(Backend(LAB_MODEL, train_config(), num_updates=1), train_config())
    save_model(tmp_path / "after", learner.export, load_tokenizer(LAB_MODEL), problems=[], earlier=[])
    shared = SharedEngine()
    assert started(shared, LAB_MODEL)[1] and not started(shared, tmp_path / "after")[1]


CHANGES: dict[str, Callable[[Path, Path], Path]] = {
    "another end token": lambda model, folder: changed(model, folder, "generation_config.json", eos_token_id=[5, 6]),
    "another norm": lambda model, folder: changed(model, folder, "config.json", rms_norm_eps=0.1),
    "another vocabulary": lambda model, folder: with_token(model, folder),
    "code of its own": lambda model, folder: changed(model, folder, "config.json", model_type="mine"),
    "quantised": lambda model, folder: changed(model, folder, "config.json", quantization_config={"quant_method": "fp8"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_of_another_kind_gets_an_engine_of_its_own(random_model: Path, tmp_path: Path, change: str):
    shared = SharedEngine()
    first, _ = started(shared, LAB_MODEL)
    other = CHANGES[change](random_model, tmp_path / "other")
    second, starts = started(shared, other)
    assert starts and second is not first
    first.close.assert_called_once_with()
    assert started(shared, other)[1] == (change in ("quantised", "code of its own"))  # which no engine is given


def test_an_engine_with_other_settings_is_another(random_model: Path):
    shared = SharedEngine()
    started(shared, LAB_MODEL)
    assert started(shared, random_model, max_model_len=2048)[1]


@pytest.mark.parametrize("override", ["rollout.tensor_parallel_size=2", "cluster=ray"])
def test_an_engine_whose_new_weights_would_be_copied_is_not_shared(random_model: Path, override: str):
    shared, config = SharedEngine(), load_config("eval", override)
    first, _ = started(shared, LAB_MODEL, config)
    assert started(shared, random_model, config)[1]
    first.close.assert_called_once_with()

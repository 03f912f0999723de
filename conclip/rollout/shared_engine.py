"""One engine for models that are alike but for their weights, one after another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conclip.config.groups import ModelConfig
from conclip.config.schema import BaseConfig
from conclip.errors import UserError
from conclip.models.folder import check_trainable, shapes_of
from conclip.models.load import load_tokenizer, reading
from conclip.rollout.engine import RolloutEngine

ASIDE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""What configs of models that are alike may say differently."""


class SharedEngine:
    """Starts an engine for a model, or gives the model's weights to the engine that runs: seconds instead of a start."""

    def __init__(self) -> None:
        self._engine: RolloutEngine | None = None
        self._before: tuple[Path, dict[str, Any]] | None = None
        """The model whose weights it has, and what it was started with."""

    def start(
        self, model_path: Path, start: Callable[[], RolloutEngine], config: BaseConfig, **settings: Any
    ) -> RolloutEngine:
        """Return an engine with the model's weights, by `start` where the one that runs is of another kind. `settings`: what
        it is started with besides `config`. The one returned before is no longer usable."""
        before, self._before = self._before, (model_path, settings)
        if self._engine is not None and before is not None and _fits(config, before, (model_path, settings)):
            self._engine.update_weights(model_path, self._engine.policy_version + 1)
        else:
            self.close()
            self._engine = start()
        return self._engine

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def _fits(config: BaseConfig, before: tuple[Path, dict[str, Any]], after: tuple[Path, dict[str, Any]]) -> bool:
    """Return whether the engine of one model can take the weights of another, and without copies of whole models, which
    engines over several GPUs and on other hosts make."""
    if config.rollout.tensor_parallel_size > 1 or config.cluster.kind == "ray" or before[1] != after[1]:
        return False
    kind = _kind(before[0], config.model)
    return kind is not None and kind == _kind(after[0], config.model)


def _kind(model_path: Path, model: ModelConfig) -> tuple[Any, ...] | None:
    """Return all of a model that an engine keeps when it gets other weights; None for models that training, which replaces
    weights all the time, does not take."""
    from transformers import AutoConfig  # noqa: PLC0415  seconds to import

    from conclip.rollout.vllm_engine import stop_token_ids  # noqa: PLC0415

    try:
        check_trainable(model_path)  # nor quantised weights, nor code of its own, which may differ
    except UserError:
        return None
    with reading(model_path, "config.json"):
        config = AutoConfig.from_pretrained(model_path).to_dict()
    described = {key: value for key, value in config.items() if key not in ASIDE}
    return (
        described,
        stop_token_ids(model_path, model.stop_tokens),
        load_tokenizer(model_path).get_vocab(),
        shapes_of(model_path),
    )

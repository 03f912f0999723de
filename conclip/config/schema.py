"""The config of each subcommand: frozen dataclasses of groups of keys, and the keys that only some subcommands have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from conclip.config.groups import (
    AlgoConfig,
    ClusterConfig,
    DataConfig,
    DeviceConfig,
    EvalConfig,
    LengthConfig,
    LoggerConfig,
    ModelConfig,
    OptimConfig,
    PathsConfig,
    PhaseConfig,
    ProbeConfig,
    Resume,
    RewardConfig,
    RolloutConfig,
    TrainerConfig,
    WarmUpConfig,
)
from conclip.config.ranges import Range
from conclip.config.recipe import StageConfig, StageKind


@dataclass(frozen=True)
class BaseConfig:
    """The keys of every subcommand. Properties of subcommands that lack something are None, or empty."""

    name: str
    seed: Annotated[int, Range(low=0, high=2**31, high_open=True, wording="in [0, 2^31)")]
    resume: Resume
    recipe: dict[str, StageConfig]
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig
    logger: LoggerConfig
    paths: PathsConfig
    device: DeviceConfig
    cluster: ClusterConfig

    @property
    def probing(self) -> ProbeConfig | None:
        return None

    @property
    def learning(self) -> "LearnConfig | None":
        return None

    @property
    def evaluation(self) -> EvalConfig | None:
        return None

    @property
    def warming_up(self) -> WarmUpConfig | None:
        return None

    @property
    def shares_gpu(self) -> bool:
        """Whether what trains takes turns on a GPU with an engine that is one process and reads none of its memory."""
        alone = self.rollout.tensor_parallel_size == 1 and self.cluster.kind != "ray"
        return self.learning is not None and alone and self.cluster.weights != "ipc"

    @property
    def phase_settings(self) -> Mapping[str, PhaseConfig]:
        """Settings of each phase, by the name that stages of the recipe use."""
        return {}

    @property
    def given_rates(self) -> str | None:
        """Path of pass rates that were measured before, which choose the training problems."""
        return None

    @property
    def given_models(self) -> Mapping[str, str]:
        """Further models to evaluate, by name."""
        return {}

    def phase_key(self, name: str) -> str:
        """Return the config key of a phase's settings."""
        return name

    def phase_of(self, stage: StageConfig) -> PhaseConfig:
        """Return the settings of a stage that probes or trains."""
        assert stage.phase is not None
        return self.phase_settings[stage.phase]


@dataclass(frozen=True)
class ProbeRunConfig(BaseConfig):
    probe: ProbeConfig
    phase: PhaseConfig

    @property
    def probing(self) -> ProbeConfig:
        return self.probe

    @property
    def phase_settings(self) -> Mapping[str, PhaseConfig]:
        return {"phase": self.phase}


@dataclass(frozen=True)
class EvalRunConfig(BaseConfig):
    eval: EvalConfig
    checkpoints: dict[str, str]

    @property
    def evaluation(self) -> EvalConfig:
        return self.eval

    @property
    def given_models(self) -> Mapping[str, str]:
        return self.checkpoints


@dataclass(frozen=True)
class LearnConfig(BaseConfig):
    """The further keys of every subcommand that trains."""

    probe: ProbeConfig
    algo: AlgoConfig
    reward: RewardConfig
    length: LengthConfig
    optim: OptimConfig
    trainer: TrainerConfig

    @property
    def probing(self) -> ProbeConfig | None:
        return self.probe

    @property
    def learning(self) -> "LearnConfig | None":
        return self


@dataclass(frozen=True)
class TrainRunConfig(LearnConfig):
    phase: PhaseConfig
    pass_rates: str | None

    @property
    def phase_settings(self) -> Mapping[str, PhaseConfig]:
        return {"phase": self.phase}

    @property
    def given_rates(self) -> str | None:
        return self.pass_rates


@dataclass(frozen=True)
class RecipeRunConfig(LearnConfig):
    """The config of any recipe; settings that none of its stages needs are ignored."""

    phases: dict[str, PhaseConfig]
    eval: EvalConfig
    warm_up: WarmUpConfig

    @property
    def probing(self) -> ProbeConfig | None:
        return self.probe if self._has("probe") or self._has("train") else None

    @property
    def learning(self) -> LearnConfig | None:
        return self if self._has("train") or self._has("warm_up") else None

    @property
    def evaluation(self) -> EvalConfig | None:
        return self.eval if self._has("eval") else None

    @property
    def warming_up(self) -> WarmUpConfig:
        return self.warm_up

    @property
    def phase_settings(self) -> Mapping[str, PhaseConfig]:
        return self.phases

    def phase_key(self, name: str) -> str:
        return f"phases.{name}"

    def _has(self, kind: StageKind) -> bool:
        return any(stage.kind == kind for stage in self.recipe.values())


SCHEMAS: dict[str, type[BaseConfig]] = {
    "probe": ProbeRunConfig,
    "train-phase1": TrainRunConfig,
    "train-phase2": TrainRunConfig,
    "eval": EvalRunConfig,
    "two-phase": RecipeRunConfig,
    "run": RecipeRunConfig,
}

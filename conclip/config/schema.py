"""The typed schema of every subcommand's config: frozen dataclasses. Each key's meaning and unit stand in the YAML file
that sets it; `conclip.config.rules` fills and checks them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from conclip.config.recipe import StageConfig, StageKind
from conclip.types import DEFAULT_TEMPLATE

Dtype = Literal["float32", "bfloat16"]
ProblemSource = Literal["arithmetic", "dataset"]
Answers = Literal["any", "all"]
EngineKind = Literal["in_process", "child_process"]
Advantage = Literal["gae", "monte_carlo", "group_relative", "leave_one_out", "shortest_correct"]
AdvantageScale = Literal["group", "batch", "none"]
PolicyLoss = Literal["ppo_clip", "gspo", "cispo", "nll"]
SamplerCorrection = Literal["none", "token", "sequence"]
Aggregation = Literal["sequence_mean", "token_mean", "constant"]
KlPlacement = Literal["reward", "loss", "none"]
Bootstrap = Literal["zero", "value"]
PromptStyle = Literal["plain", "concise", "draft", "budget"]
KeepBest = Literal["accuracy", "shortest"]
Resume = Literal["auto", "never"]
DisplayMode = Literal["auto", "live", "plain", "quiet", "json"]
TrackerKind = Literal["tensorboard", "wandb", "mlflow"]
Way = tuple[PromptStyle, str]
"""How problems are put to a model: the instruction, and what the chat template gets besides, both by name."""

LengthReward = Literal[
    "none",
    "kimi",
    "arora",
    "l1_exact",
    "l1_max",
    "thinkprune",
    "shorter_better",
    "laser",
    "laser_d",
    "l_grpo",
    "gr3",
    "alp",
    "dapo_overlong",
    "cosine",
]


@dataclass(frozen=True)
class ModelConfig:
    path: str
    dtype: Dtype
    prompt: str
    system: str | None
    trust_remote_code: bool
    url: str | None = None
    served_name: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    thinking_tags: list[str] | None = None
    thinking_in_prompt: bool | None = None
    stop_tokens: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class ProblemSetConfig:
    source: ProblemSource
    num_problems: int | None = None
    seed: int = 0
    # source: arithmetic
    family: str | None = None
    levels: list[int] | None = None
    split: str | None = None
    # source: dataset
    path: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    question: str = "question"
    answer: str = "answer"
    answers: Answers = "any"
    tolerance: float = 0.0
    choices: str | list[str] | None = None
    level: str = "level"
    subject: str = "subject"
    problem_id: str | None = None
    answer_pattern: str | None = None
    answer_boxed: bool = False
    subjects: list[str] | None = None
    expected_problems: int | None = None
    offset: int = 0
    shots: int = 0
    shots_split: str | None = None
    shots_path: str | None = None


@dataclass(frozen=True)
class DataConfig:
    pool: dict[str, ProblemSetConfig]
    validation: dict[str, ProblemSetConfig]
    test: dict[str, ProblemSetConfig]


@dataclass(frozen=True)
class ProbeConfig:
    first_samples: int
    more_samples: int
    max_samples: int
    mean_samples: float | None
    indifference: float
    confidence: float


@dataclass(frozen=True)
class PhaseConfig:
    pass_rate_low: float
    pass_rate_high: float
    band_confidence: float
    num_problems: int
    problem_ids: list[str] | None
    answers: list[str | int] | None
    problems_per_step: int
    group_size: int
    num_steps: int
    max_sampled_tokens: int | None
    keep_best: KeepBest
    max_accuracy_drop: float
    stop_accuracy_drop: float
    refresh: bool
    refresh_memory: float
    retire_below: float
    retire_above: float

    @property
    def by_hand(self) -> bool:
        """Whether the config names the training problems."""
        return self.problem_ids is not None or self.answers is not None


@dataclass(frozen=True)
class AlgoConfig:
    advantage: Advantage
    gamma: float
    gae_lambda: float
    critic_gae_lambda: float | None
    length_adaptive_alpha: float | None
    advantage_scale: AdvantageScale
    whiten_advantages: bool
    policy_loss: PolicyLoss
    clip_low: float
    clip_high: float
    value_clip_eps: float
    loss_aggregation: Aggregation
    constant_tokens: int
    kl: KlPlacement
    kl_coef: float
    kl_target: float | None
    entropy_coef: float
    sampler_correction: SamplerCorrection
    sampler_correction_max: float
    train_on_truncated: bool
    truncated_bootstrap: Bootstrap
    updates_per_rollout: int
    critic_warmup_steps: int
    dynamic_sampling_rounds: int


@dataclass(frozen=True)
class RewardConfig:
    correct: float
    wrong: float
    no_answer: float
    truncated: float


@dataclass(frozen=True)
class LengthConfig:
    kind: LengthReward
    strength: float
    scale_tokens: float
    target_tokens: float
    limits: list[float]


@dataclass(frozen=True)
class RolloutConfig:
    engine: EngineKind
    temperature: float
    max_tokens: int
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    unit_responses: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    tensor_parallel_size: int
    enforce_eager: bool


@dataclass(frozen=True)
class OptimConfig:
    policy_lr: float
    critic_lr: float
    beta1: float
    beta2: float
    weight_decay: float
    max_grad_norm: float
    max_skipped_updates: int
    warmup_fraction: float
    min_lr_fraction: float


@dataclass(frozen=True)
class TrainerConfig:
    validate_every: int
    save_every: int
    keep_last: int
    save_in_background: bool
    validation_samples: int
    max_tokens_per_micro_batch: int
    recompute_activations: bool
    max_sampler_drift: float | None
    transcripts_per_group: int


@dataclass(frozen=True)
class EvalConfig:
    samples_per_problem: int
    temperatures: list[float]
    prompts: list[PromptStyle]
    budget_tokens: int
    template_kwargs: dict[str, dict[str, Any]]
    thinking_budgets: list[int | None]
    top_p: float
    top_k: int
    max_tokens: int
    margin: float
    allow_overlap: bool

    @property
    def ways(self) -> list[Way]:
        """In which test problems are put, in the order of the results."""
        return list(product(self.prompts, self.template_kwargs or (DEFAULT_TEMPLATE,)))


@dataclass(frozen=True)
class LoggerConfig:
    display: DisplayMode
    trackers: list[TrackerKind]
    project: str


@dataclass(frozen=True)
class PathsConfig:
    outputs: str


@dataclass(frozen=True)
class BaseConfig:
    """What every subcommand has. What only some have is None, or empty, for the others."""

    name: str
    seed: int
    resume: Resume
    recipe: dict[str, StageConfig]
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig
    logger: LoggerConfig
    paths: PathsConfig

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
    def phase_settings(self) -> Mapping[str, PhaseConfig]:
        """By the name that stages of the recipe know them by."""
        return {}

    @property
    def given_rates(self) -> str | None:
        """Where pass rates measured before lie, which choose the training problems."""
        return None

    @property
    def given_models(self) -> Mapping[str, str]:
        """Further models to evaluate, by name."""
        return {}

    def phase_key(self, name: str) -> str:
        """Where a phase's settings stand in the config."""
        return name

    def phase_of(self, stage: StageConfig) -> PhaseConfig:
        """The settings of a stage that probes or trains."""
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
    """What every subcommand that trains has besides."""

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
    """Of any recipe; what none of its stages needs is left alone."""

    phases: dict[str, PhaseConfig]
    eval: EvalConfig

    @property
    def probing(self) -> ProbeConfig | None:
        return self.probe if self._has("probe") or self._has("train") else None

    @property
    def learning(self) -> LearnConfig | None:
        return self if self._has("train") else None

    @property
    def evaluation(self) -> EvalConfig | None:
        return self.eval if self._has("eval") else None

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

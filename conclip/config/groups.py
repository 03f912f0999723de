"""The groups of config keys: frozen dataclasses with each key's type and range. The YAML file that sets a key has its
meaning, unit and default; `conclip.config.rules` has the rules between keys."""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Annotated, Any, Literal

from conclip.config.ranges import (
    NON_NEGATIVE,
    POSITIVE_SHARE,
    SHARE,
    SHARE_BELOW_ONE,
    TEMPERATURE,
    Range,
    above,
    at_least,
)
from conclip.types import DEFAULT_TEMPLATE, ExtractionRule, PromptCondition

Dtype = Literal["float32", "bfloat16"]
AdapterBase = Literal["float32", "bfloat16", "4bit"]
ProblemSource = Literal["arithmetic", "dataset"]
Answers = Literal["any", "all"]
EngineKind = Literal["in_process", "child_process"]
Advantage = Literal["gae", "monte_carlo", "group_relative", "leave_one_out", "shortest_correct", "distillation"]
AdvantageScale = Literal["group", "batch", "none"]
PolicyLoss = Literal["ppo_clip", "gspo", "cispo", "nll"]
SamplerCorrection = Literal["none", "token", "sequence"]
Aggregation = Literal["sequence_mean", "token_mean", "constant"]
KlPlacement = Literal["reward", "loss", "none"]
Bootstrap = Literal["zero", "value"]
PromptStyle = Literal["plain", "concise", "draft", "budget"]
TeacherPrompt = Literal["concise", "draft"]
KeepBest = Literal["accuracy", "shortest", "last"]
Resume = Literal["auto", "never"]
DisplayMode = Literal["auto", "live", "plain", "quiet", "json"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
PromptVariant = tuple[str, str]
"""What makes a prompt of a problem: the instruction and the template variant (`eval.template_kwargs`), both by name."""

LengthReward = Literal[
    "none",
    "kimi",
    "arora",
    "l1_exact",
    "l1_max",
    "shorter_better",
    "laser",
    "laser_d",
    "l_grpo",
    "gr3",
    "alp",
    "dapo_overlong",
    "cosine",
]


LAB = "lab"
"""Value of `model.path` for the embedded model."""

POINTS = replace(SHARE, why=": it is a share, 0.1 is ten points")


@dataclass(frozen=True)
class AdapterConfig:
    """What of a model trains. `none`: all of its weights."""

    kind: Literal["none", "lora"] = "none"
    rank: Annotated[int, at_least(1)] = 32
    alpha: Annotated[float, above(0)] = 32.0
    targets: list[str] | None = None
    base: AdapterBase = "float32"
    serving: Literal["auto", "merged", "apart"] = "auto"

    def wanted_apart(self, dtype: str, *, on_cpu: bool) -> bool:
        """Whether an engine of this precision should get the adapter beside its weights, not merged into them. On a CPU vLLM
        copies an adapter for every token, so that it is only done where the config says so."""
        by_itself = self.serving == "auto" and dtype != "float32" and not on_cpu
        return self.kind == "lora" and (self.serving == "apart" or by_itself)


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
    adapter: AdapterConfig = AdapterConfig()

    @property
    def is_lab(self) -> bool:
        """Whether it is the embedded model."""
        return self.path == LAB


@dataclass(frozen=True)
class ProblemSetConfig:
    source: ProblemSource
    num_problems: Annotated[int | None, at_least(1)] = None
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
    answer: str | None = "answer"
    answers: Answers = "any"
    tolerance: Annotated[float, replace(SHARE_BELOW_ONE, why=" (a share of the gold number)")] = 0.0
    choices: str | list[str] | None = None
    level: str = "level"
    subject: str = "subject"
    problem_id: str | None = None
    verifier: str | None = None
    answer_pattern: str | None = None
    answer_boxed: bool = False
    subjects: list[str] | None = None
    expected_problems: int | None = None
    share: list[float] | None = None
    offset: Annotated[int, NON_NEGATIVE] = 0
    shots: Annotated[int, NON_NEGATIVE] = 0
    shots_split: str | None = None
    shots_path: str | None = None


@dataclass(frozen=True)
class DataConfig:
    pool: dict[str, ProblemSetConfig]
    validation: dict[str, ProblemSetConfig]
    test: dict[str, ProblemSetConfig]

    @property
    def trains_by_verifier(self) -> bool:
        """Whether a verifier judges problems of the pool."""
        return any(problems.verifier is not None for problems in self.pool.values())


@dataclass(frozen=True)
class ProbeConfig:
    first_samples: Annotated[int, at_least(2)]
    more_samples: Annotated[int, at_least(1)]
    max_samples: int
    mean_samples: float | None
    indifference: Annotated[float, Range(low=0, high=0.5, high_open=True)]
    confidence: Annotated[float, Range(low=0.5, high=1, high_open=True)]


@dataclass(frozen=True)
class PhaseConfig:
    pass_rate_low: Annotated[float, SHARE]
    pass_rate_high: Annotated[float, SHARE]
    band_confidence: Annotated[float, SHARE_BELOW_ONE]
    num_problems: Annotated[int, at_least(1)]
    problem_ids: list[str] | None
    answers: list[str | int] | None
    problems_per_step: int
    group_size: Annotated[int, at_least(1)]
    num_steps: Annotated[int, at_least(1)]
    max_sampled_tokens: Annotated[int | None, at_least(1)]
    max_tokens_stages: list[float] | None
    keep_best: KeepBest
    max_accuracy_drop: Annotated[float, POINTS]
    stop_accuracy_drop: Annotated[float, POINTS]
    stop_length_correlation: Annotated[float | None, Range(low=-1, high=1)]
    stop_flat_validations: Annotated[int | None, at_least(1)]
    refresh: bool
    refresh_memory: Annotated[float, SHARE]
    retire_below: Annotated[float, SHARE]
    retire_above: Annotated[float, SHARE]
    wrong_answers: Annotated[float, SHARE] = 0.0
    hardest: Annotated[float, SHARE] = 0.0

    @property
    def by_hand(self) -> bool:
        """Whether the config names the training problems."""
        return self.problem_ids is not None or self.answers is not None


@dataclass(frozen=True)
class AlgoConfig:
    advantage: Advantage
    gamma: Annotated[float, POSITIVE_SHARE]
    gae_lambda: Annotated[float, SHARE]
    critic_gae_lambda: Annotated[float | None, SHARE]
    length_adaptive_alpha: Annotated[float | None, above(0)]
    advantage_scale: AdvantageScale
    whiten_advantages: bool
    policy_loss: PolicyLoss
    clip_low: Annotated[float, POSITIVE_SHARE]
    clip_high: Annotated[float, above(0)]
    value_clip_eps: Annotated[float, above(0)]
    loss_aggregation: Aggregation
    constant_tokens: Annotated[int, at_least(1)]
    kl: KlPlacement
    kl_coef: Annotated[float, NON_NEGATIVE]
    kl_target: Annotated[float | None, above(0)]
    entropy_coef: Annotated[float, NON_NEGATIVE]
    sampler_correction: SamplerCorrection
    sampler_correction_max: Annotated[float, above(0)]
    train_on_truncated: bool
    truncated_bootstrap: Bootstrap
    updates_per_rollout: Annotated[int, at_least(1)]
    critic_warmup_steps: Annotated[int, NON_NEGATIVE]
    dynamic_sampling_rounds: Annotated[int, NON_NEGATIVE]
    reference_dtype: Dtype = "float32"
    teacher_prompt: TeacherPrompt = "concise"

    @property
    def has_critic(self) -> bool:
        return self.advantage == "gae"

    @property
    def has_reference(self) -> bool:
        return self.has_teacher or (self.kl != "none" and self.kl_coef > 0)

    @property
    def scores_policy(self) -> bool:
        """Whether the policy's log-probs are computed before the update: if more than one update compares with them, or
        rewards or advantages are made of them. Else the one update has them on its way."""
        return self.updates_per_rollout > 1 or self.has_teacher or (self.kl == "reward" and self.has_reference)

    @property
    def has_teacher(self) -> bool:
        """Whether the reference, asked for brevity, teaches the policy."""
        return self.advantage == "distillation"


@dataclass(frozen=True)
class RewardConfig:
    correct: float
    wrong: float
    no_answer: float
    truncated: float


@dataclass(frozen=True)
class LengthConfig:
    kind: LengthReward
    strength: Annotated[float, NON_NEGATIVE]
    scale_tokens: Annotated[float, above(0)]
    target_tokens: Annotated[float, above(0)]


@dataclass(frozen=True)
class RolloutConfig:
    engine: EngineKind
    temperature: Annotated[float, TEMPERATURE]
    max_tokens: Annotated[int, at_least(1)]
    extraction: ExtractionRule
    max_model_len: int | None
    max_num_seqs: Annotated[int, at_least(1)]
    max_num_batched_tokens: Annotated[int, at_least(1)]
    unit_responses: Annotated[int, at_least(1)]
    kv_cache_gib: Annotated[float, above(0)]
    gpu_memory_utilization: Annotated[float | None, POSITIVE_SHARE]
    tensor_parallel_size: Annotated[int, at_least(1)]
    enforce_eager: bool
    deterministic: bool = False
    num_engines: Annotated[int, at_least(1)] = 1
    num_graders: Annotated[int, at_least(1)] = 2


@dataclass(frozen=True)
class OptimConfig:
    policy_lr: Annotated[float | None, above(0)]
    critic_lr: Annotated[float | None, above(0)]
    beta1: Annotated[float, SHARE_BELOW_ONE]
    beta2: Annotated[float, SHARE_BELOW_ONE]
    weight_decay: Annotated[float, NON_NEGATIVE]
    max_grad_norm: Annotated[float, above(0)]
    max_skipped_updates: Annotated[int, NON_NEGATIVE]
    warmup_fraction: Annotated[float, SHARE]
    min_lr_fraction: Annotated[float, SHARE]
    moments: Literal["float32", "8bit", "paged_8bit"] = "float32"

    @property
    def bytes_of_moments(self) -> float:
        """The bytes that AdamW's two moments take per parameter."""
        return 8.0 if self.moments == "float32" else 2.0


@dataclass(frozen=True)
class TrainerConfig:
    validate_every: Annotated[int, at_least(1)]
    save_every: Annotated[int, at_least(1)]
    keep_last: Annotated[int, at_least(1)]
    save_in_background: bool
    validation_samples: Annotated[int, at_least(1)]
    max_tokens_per_micro_batch: int
    micro_batches_at_once: Annotated[int | None, at_least(1)]
    recompute_activations: bool
    offload: bool
    sample_ahead: bool
    max_sampler_drift: Annotated[float | None, above(0)]
    transcripts_per_group: Annotated[int, NON_NEGATIVE]


@dataclass(frozen=True)
class WarmUpConfig:
    num_examples: Annotated[int, at_least(1)]
    samples_per_problem: Annotated[int, at_least(1)]
    num_epochs: Annotated[int, at_least(1)]
    min_updates: Annotated[int, at_least(1)]
    batch_size: Annotated[int, at_least(1)]
    policy_lr: Annotated[float, above(0)]


@dataclass(frozen=True)
class EvalConfig:
    samples_per_problem: Annotated[int, at_least(1)]
    samples_of: dict[str, int]
    temperatures: list[float]
    prompts: list[PromptStyle]
    budget_tokens: Annotated[int, at_least(1)]
    template_kwargs: dict[str, dict[str, Any]]
    thinking_budgets: list[int | None]
    top_p: Annotated[float, POSITIVE_SHARE]
    top_k: int
    max_tokens: Annotated[int, at_least(1)]
    margin: Annotated[
        float, Range(low=0, high=1, low_open=True, high_open=True, why=": it is a share, 0.03 is three points")
    ]
    allow_overlap: bool
    near_overlap: bool = True

    def num_samples(self, benchmark: str, temperature: float) -> int:
        """Return how many responses each problem of a test set gets at a temperature; greedy ones are all alike."""
        return self.samples_of.get(benchmark, self.samples_per_problem) if temperature > 0 else 1

    @property
    def conditions(self) -> list[PromptCondition]:
        """The ways in which test problems are put, in the order of the results."""
        return list(product(self.prompts, self.template_kwargs or (DEFAULT_TEMPLATE,), self.thinking_budgets))


@dataclass(frozen=True)
class LoggerConfig:
    display: DisplayMode
    trackers: list[TrackerName]
    project: str


@dataclass(frozen=True)
class PathsConfig:
    outputs: str
    problems: str | None
    stages_from: str | None


@dataclass(frozen=True)
class DeviceConfig:
    """Where a run is planned to happen."""

    name: str = "this machine"
    kind: Literal["cpu", "gpu"] | None = None
    memory_gib: Annotated[float | None, above(0)] = None
    tflops: Annotated[float | None, above(0)] = None
    bandwidth_gb_per_s: Annotated[float | None, above(0)] = None


@dataclass(frozen=True)
class ClusterConfig:
    """The processes that a run is divided among."""

    kind: Literal["local", "torchrun", "ray"] = "local"
    learner_ranks: Annotated[int | None, at_least(1)] = 1
    address: str | None = None
    placement: Literal["pack", "spread"] = "pack"
    weights: Literal["files", "ipc", "nccl"] = "files"

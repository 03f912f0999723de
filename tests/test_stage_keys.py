"""What a stage's key rests on: for every key of the config, and every other input, the stages that it makes anew."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from conclip.config.compose import load_config
from conclip.config.schema import RecipeRunConfig
from conclip.curriculum.selection import Choice, Selection
from conclip.experiments import stages as stages_module
from conclip.experiments.inputs import Inputs, load_inputs
from conclip.experiments.stages import Stages
from conclip.models.folder import LAB_MODEL
from conclip.rollout.session import Prompts, encode_prompts
from conclip.runs.manifest import stage_key
from conclip.runs.run import Run
from conclip.types import DEFAULT_TEMPLATE
from tests.conftest import by_hand

RESTS_ON: dict[frozenset[str], str] = {
    frozenset({"probe", "train", "eval"}): """seed
        model.dtype model.prompt model.system model.trust_remote_code model.chat_template_kwargs model.thinking_tags
        model.thinking_in_prompt model.stop_tokens model.adapter.kind model.adapter.rank model.adapter.alpha
        model.adapter.targets model.adapter.base model.adapter.serving
        rollout.temperature rollout.max_tokens rollout.extraction rollout.max_model_len rollout.max_num_seqs
        rollout.max_num_batched_tokens rollout.kv_cache_gib rollout.tensor_parallel_size rollout.enforce_eager
        rollout.deterministic rollout.num_engines""",
    # a step's responses are one batch, whatever the size of a unit
    frozenset({"probe", "eval"}): "rollout.unit_responses",
    # the band also selects what a phase trains on, which counts as problems
    frozenset({"probe"}): """phases.phase1.pass_rate_low phases.phase1.pass_rate_high
        probe.first_samples probe.more_samples probe.max_samples probe.mean_samples probe.indifference probe.confidence""",
    frozenset({"train"}): """algo.advantage algo.gamma algo.gae_lambda algo.critic_gae_lambda algo.length_adaptive_alpha
        algo.advantage_scale algo.whiten_advantages algo.policy_loss algo.clip_low algo.clip_high algo.value_clip_eps
        algo.loss_aggregation algo.constant_tokens algo.kl algo.kl_coef algo.kl_target algo.entropy_coef
        algo.sampler_correction algo.sampler_correction_max algo.train_on_truncated algo.truncated_bootstrap
        algo.updates_per_rollout algo.critic_warmup_steps algo.dynamic_sampling_rounds algo.reference_dtype
        algo.teacher_prompt
        reward.correct reward.wrong reward.no_answer reward.truncated
        length.kind length.strength length.scale_tokens length.target_tokens
        optim.policy_lr optim.critic_lr optim.beta1 optim.beta2 optim.weight_decay optim.max_grad_norm
        optim.max_skipped_updates optim.warmup_fraction optim.min_lr_fraction optim.moments
        trainer.validate_every trainer.validation_samples trainer.max_tokens_per_micro_batch trainer.sample_ahead
        phases.phase1.problems_per_step phases.phase1.group_size phases.phase1.num_steps phases.phase1.max_sampled_tokens
        phases.phase1.max_tokens_stages phases.phase1.keep_best phases.phase1.max_accuracy_drop
        phases.phase1.stop_accuracy_drop phases.phase1.stop_length_correlation phases.phase1.stop_flat_validations
        phases.phase1.refresh phases.phase1.refresh_memory phases.phase1.retire_below phases.phase1.retire_above
        phases.phase1.wrong_answers phases.phase1.hardest""",
    frozenset({"eval"}): """eval.samples_per_problem eval.samples_of eval.temperatures eval.prompts eval.budget_tokens
        eval.template_kwargs eval.thinking_budgets eval.top_p eval.top_k eval.max_tokens""",
    # names, places, displays, where processes run, how often a phase is saved, and what says more about the same responses;
    # what names models and problems, which count themselves; and what other stages rest on
    frozenset(): """name resume
        model.path model.url model.served_name
        rollout.engine rollout.gpu_memory_utilization rollout.num_graders
        trainer.save_every trainer.keep_last trainer.save_in_background trainer.micro_batches_at_once
        trainer.recompute_activations trainer.offload trainer.max_sampler_drift trainer.transcripts_per_group
        phases.phase1.band_confidence phases.phase1.num_problems phases.phase1.problem_ids phases.phase1.answers
        eval.margin eval.allow_overlap eval.near_overlap
        logger.display logger.trackers logger.project
        paths.outputs paths.problems paths.stages_from
        device.name device.kind device.memory_gib device.tflops device.bandwidth_gb_per_s
        cluster.kind cluster.learner_ranks cluster.address cluster.placement cluster.weights
        warm_up.num_examples warm_up.samples_per_problem warm_up.num_epochs warm_up.min_updates warm_up.batch_size
        warm_up.policy_lr
        phases.phase2.pass_rate_low phases.phase2.num_steps phases.phase2.group_size""",
}
"""Every key of the config, by the stages that its value makes anew: of probing for phase 1, training of phase 1, and
evaluation. A key with a new name belongs where it changes a token, a weight, an outcome or a verdict."""

EXPECTED = {key: made for made, keys in RESTS_ON.items() for key in keys.split()}


def keys_of(values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of a config's values, without those that hold problems and stages, and with one phase."""
    for field in fields(values):
        value: Any = getattr(values, field.name)
        name = f"{prefix}{field.name}"
        if name == "phases":
            yield from keys_of(value["phase1"], "phases.phase1.")
        elif name in ("data", "recipe"):
            continue
        elif is_dataclass(value):
            yield from keys_of(value, f"{name}.")
        else:
            yield name


def part(values: Any, name: str) -> Any:
    return values[name] if isinstance(values, Mapping) else getattr(values, name)


def with_part(values: Any, names: list[str], value: Any) -> Any:
    if not names:
        return value
    changed = {names[0]: with_part(part(values, names[0]), names[1:], value)}
    return values | changed if isinstance(values, dict) else replace(values, **changed)


def another(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return ["another"]
        case dict():
            return {"another": {"a": 1}}
        case _:
            return "another"


class KeySeen(Exception):
    pass


@pytest.fixture(scope="module")
def config() -> RecipeRunConfig:
    config = load_config("two-phase", "debug=two_phase")
    assert isinstance(config, RecipeRunConfig)
    return config


@pytest.fixture(scope="module")
def inputs(config: RecipeRunConfig) -> Inputs:
    return load_inputs(config)


@pytest.fixture(scope="module")
def run(config: RecipeRunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    handlers = list(logging.getLogger().handlers)
    run = Run("two-phase", replace(config, paths=replace(config.paths, outputs=str(tmp_path_factory.mktemp("o")))), "any")
    yield run
    run.close()
    logging.getLogger().handlers = handlers


KeysOf = Callable[..., dict[str, str]]


@pytest.fixture
def keys(config: RecipeRunConfig, inputs: Inputs, run: Run, monkeypatch: pytest.MonkeyPatch) -> KeysOf:
    """The keys of three stages, as their manifest would have them, after changes."""

    def found(
        changed: RecipeRunConfig = config,
        given: Inputs = inputs,
        model: Path = LAB_MODEL,
        selection: Selection | None = None,
        prompts: Prompts | None = None,
        *,
        evidence: bool = False,
    ) -> dict[str, str]:
        of_models = {} if prompts is None else {LAB_MODEL: prompts}
        stages, seen = Stages(changed, given, run, of_models), dict[str, str]()

        def note(name: str, hashed: Mapping[str, Any], work: object) -> None:
            seen[name] = stage_key(name, hashed)
            raise KeySeen

        monkeypatch.setattr(stages._pipeline, "run_stage", note)
        phase, chosen = changed.phases["phase1"], selection or by_hand(inputs.pool[:4])
        for do in (
            lambda: stages.probe("probe", model, given.pool, phase),
            lambda: stages.train("train", phase, model, chosen),
            lambda: stages.evaluate("model", model, evidence=evidence),
        ):
            with pytest.raises(KeySeen):
                do()
        return dict(zip(("probe", "train", "eval"), seen.values(), strict=True))

    return found


def differing(first: Mapping[str, str], second: Mapping[str, str]) -> frozenset[str]:
    return frozenset(name for name in first if first[name] != second[name])


def test_every_key_of_the_config_is_placed(config: RecipeRunConfig):
    placed = {key for key in EXPECTED if not key.startswith("phases.phase2.")}
    assert set(keys_of(config)) == placed
    assert sum(len(names.split()) for names in RESTS_ON.values()) == len(EXPECTED)  # each once


@pytest.mark.parametrize("key", EXPECTED)
def test_a_stage_is_made_anew_by_what_decides_its_result_and_by_nothing_else(
    key: str, config: RecipeRunConfig, keys: KeysOf
):
    names = key.split(".")
    changed = with_part(config, names, another(reduce(part, names, config)))
    assert differing(keys(), keys(changed)) == EXPECTED[key]


def test_weights_make_every_stage_anew(random_model: Path, keys: KeysOf):
    assert differing(keys(), keys(model=random_model)) == {"probe", "train", "eval"}


@pytest.mark.parametrize(("problems", "stages"), [("pool", {"probe"}), ("validation", {"train"}), ("test", {"eval"})])
def test_problems_make_the_stages_anew_that_read_them(problems: str, stages: set[str], inputs: Inputs, keys: KeysOf):
    """One problem less, another order, another gold answer."""
    before: list[Any] = getattr(inputs, problems)
    for after in (before[1:], before[::-1], [replace(before[0], answer="another"), *before[1:]]):
        assert differing(keys(), keys(given=replace(inputs, **{problems: after}))) == stages


def test_the_problems_that_a_phase_trains_on_make_it_anew_and_why_they_were_chosen_does_not(inputs: Inputs, keys: KeysOf):
    first = by_hand(inputs.pool[:4])
    assert differing(keys(), keys(selection=by_hand(inputs.pool[1:5]))) == {"train"}
    assert differing(keys(), keys(selection=by_hand(inputs.pool[3::-1]))) == {"train"}
    for_other_reasons = tuple(replace(choice, reason="hard") for choice in first.chosen)
    assert differing(keys(), keys(selection=replace(first, chosen=for_other_reasons))) == set()


def test_the_next_candidates_count_where_a_phase_may_come_to_train_on_them(
    config: RecipeRunConfig, inputs: Inputs, keys: KeysOf
):
    first = by_hand(inputs.pool[:4])
    longer = replace(first, reserve=(Choice(problem=inputs.pool[9], reason="next", rate=None),))
    assert differing(keys(selection=first), keys(selection=longer)) == set()
    refreshing: RecipeRunConfig = with_part(config, ["phases", "phase1", "refresh"], True)
    assert differing(keys(refreshing, selection=first), keys(refreshing, selection=longer)) == {"train"}


def test_another_grader_makes_every_stage_anew(keys: KeysOf, monkeypatch: pytest.MonkeyPatch):
    before = keys()
    monkeypatch.setattr(stages_module, "GRADER_VERSION", -1)
    assert differing(before, keys()) == {"probe", "train", "eval"}


def test_another_reckoning_of_pass_rates_makes_probing_anew(keys: KeysOf, monkeypatch: pytest.MonkeyPatch):
    before = keys()
    monkeypatch.setattr(stages_module, "PASS_RATES_VERSION", -1)
    assert differing(before, keys()) == {"probe"}


def test_conditions_that_only_the_evidence_has_make_an_evaluation_anew(
    config: RecipeRunConfig, inputs: Inputs, keys: KeysOf
):
    own = encode_prompts(config, LAB_MODEL, inputs.test)
    assert differing(keys(), keys(prompts=own, evidence=True)) == set()  # the lab's model reads no instructions
    further = replace(own, evidence=[*own.evidence, ("concise", DEFAULT_TEMPLATE, None)])
    assert differing(keys(), keys(prompts=further, evidence=True)) == {"eval"}
    assert differing(keys(), keys(prompts=further)) == set()

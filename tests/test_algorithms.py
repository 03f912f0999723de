"""Every algorithm and every length reward takes its steps: the lab model and the trainer as users run it.

PPO and GRPO do so on the real engine (test_engine_phases.py); for the rest, and for what a phase does with its validations,
a scripted one will do.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from conclip.config.compose import config_folder
from conclip.curriculum.pass_rates import Band, pass_rates
from conclip.curriculum.selection import select
from conclip.errors import MachineFailure, UserError
from conclip.experiments.inputs import Inputs, load_inputs
from conclip.models.folder import LAB_MODEL
from conclip.rollout.collect import TRAINING, PromptSet
from conclip.rollout.session import Runtime
from conclip.training.batch import ExperienceBatch
from conclip.training.experience import Scores, make_experience
from conclip.training.learner import Updated
from conclip.training.phase import TrainResult
from conclip.training.progress import Validation
from conclip.training.sampling import StaleEngine
from conclip.types import DEFAULT_TEMPLATE, Grade, Outcome, RolloutGroup
from tests.conftest import by_hand, make_row, make_trainer, train_config
from tests.phases import check_algorithm, steps_of

pytestmark = pytest.mark.whole


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


@pytest.mark.parametrize("algo", [name for name in options("algo") if name not in ("ppo", "grpo", "distillation")])
def test_an_algorithm_takes_its_steps(scripted_runtime: tuple[Runtime, Inputs], algo: str):
    check_algorithm(scripted_runtime, algo)


def test_a_policy_is_taught_by_itself_as_it_answers_another_prompt(scripted_runtime: tuple[Runtime, Inputs]):
    """Distillation, with some tokens in the place of an instruction: the lab's model reads none."""
    opened, inputs = scripted_runtime
    settings = train_config("algo=grpo", "algo.kl=none", "algo.kl_coef=0")
    settings = replace(settings, algo=replace(settings.algo, advantage="distillation", updates_per_rollout=1))
    asked = {name: (*ids, ids[-1]) for name, ids in opened.prompts[TRAINING].token_ids.items()}
    opened = replace(opened, prompts={**opened.prompts, ("concise", DEFAULT_TEMPLATE): PromptSet(token_ids=asked)})
    make_trainer(opened, inputs, "taught", settings, by_hand(inputs.pool[:4])).train()
    steps = opened.run.stage_metrics("taught")
    assert len(steps) == 2 and all(step["policy/kl_to_reference"] > 0.01 for step in steps)  # the prompts differ
    assert all(step["optim/policy_grad_norm"] > 0 for step in steps)


@pytest.mark.parametrize("length", [name for name in options("length") if name != "none"])
def test_a_length_reward_takes_its_steps(scripted_runtime: tuple[Runtime, Inputs], length: str):
    bites = ["length.scale_tokens=60"] if length == "dapo_overlong" else []
    steps = steps_of(scripted_runtime, f"length-{length}", "algo=grpo", "reward=binary", f"length={length}", *bites)
    for row in steps:
        priced = length != "l_grpo" or row["rollout/share_groups_all_correct"] > 0
        assert (row["reward/mean"] != pytest.approx(row["outcome/correct"], abs=1e-9)) is priced


def test_the_engine_sleeps_while_the_learner_works(
    scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch
):
    engine, told = scripted_runtime[0].engine, list[str]()
    for name in ("submit", "sleep", "update_weights"):
        real = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *a, name=name, real=real: (told.append(name), real(*a))[1])
    steps_of(scripted_runtime, "asleep", "algo=grpo")
    step = ["submit", "sleep", "update_weights"]
    # while the models load; validation before and after
    assert told == ["sleep", "update_weights", "submit", *step, *step, "submit"]


def test_a_token_limit_that_tightens_cuts_responses(scripted_runtime: tuple[Runtime, Inputs]):
    steps = steps_of(scripted_runtime, "cut", "algo=grpo", "phase.max_tokens_stages=[1.0,0.25]")
    assert steps[0]["length/max_tokens"] > 48 >= steps[1]["length/max_tokens"]  # a quarter of 192
    assert steps[1]["outcome/truncated"] > steps[0]["outcome/truncated"]


def looked(
    runtime: tuple[Runtime, Inputs], stage: str, looks: Sequence[tuple[float, float]], *overrides: str
) -> TrainResult:
    """A phase whose validations, one after each step, find these accuracies and lengths."""
    opened, inputs = runtime
    settings = train_config(f"phase.num_steps={len(looks) - 1}", "trainer.validate_every=1", "algo=grpo", *overrides)
    trainer = make_trainer(opened, inputs, stage, settings, by_hand(inputs.pool[:4]))
    first_accuracy = looks[0][0]

    def validate(step: int) -> Validation:
        accuracy, mean_tokens = looks[step]
        trainer._progress.first_accuracies = {"a": first_accuracy}
        return Validation(step=step, accuracy=accuracy, mean_tokens=mean_tokens, accuracy_fall_low=first_accuracy - accuracy)

    trainer._validate = validate  # type: ignore[method-assign]
    return trainer.train()


@pytest.mark.parametrize(
    ("step", "kind", "said"), [(0, UserError, "check the answers"), (1, MachineFailure, "resumes the run")]
)
def test_a_validation_of_which_nothing_could_be_graded_has_no_accuracy(
    scripted_runtime: tuple[Runtime, Inputs], step: int, kind: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
):
    opened, inputs = scripted_runtime
    settings = train_config("phase.num_steps=1", "trainer.validate_every=1", "algo=grpo")
    trainer = make_trainer(opened, inputs, f"ungraded-{step}", settings, by_hand(inputs.pool[:4]))
    responses, validations = trainer._sampler.responses, list[str]()

    def ungraded(label: str, *arguments: Any, **named: Any) -> list[RolloutGroup]:
        groups = responses(label, *arguments, **named)
        validations.extend([label] if "validation" in label else [])
        if "validation" not in label or len(validations) <= step:
            return groups
        error = Grade(outcome=Outcome.GRADER_ERROR, extracted=None)
        return [replace(group, rollouts=tuple(replace(r, grade=error) for r in group.rollouts)) for group in groups]

    monkeypatch.setattr(trainer._sampler, "responses", ungraded)
    with pytest.raises(
        kind, match=rf"step {step}: none of the \d+ responses to validation problems could be graded.*{said}"
    ):
        trainer.train()


def test_validations_ask_the_same_and_what_could_not_be_graded_is_no_wrong_response(
    scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch
):
    """The scripted engine's responses follow from prompt and seed."""
    opened, inputs = scripted_runtime
    settings = train_config("phase.num_steps=2", "trainer.validate_every=1", "algo=grpo")
    trainer = make_trainer(opened, inputs, "half", settings, by_hand(inputs.pool[:4]))
    responses = trainer._sampler.responses
    error = Grade(outcome=Outcome.GRADER_ERROR, extracted=None)
    num_validations = 0

    def half(label: str, *arguments: Any, **named: Any) -> list[RolloutGroup]:
        """At the last validation every wrong response meets an error of the grader."""
        nonlocal num_validations
        num_validations += "validation" in label
        groups = responses(label, *arguments, **named)
        if num_validations < 3:
            return groups
        kept = [[r if r.grade.outcome is Outcome.CORRECT else replace(r, grade=error) for r in g.rollouts] for g in groups]
        return [replace(group, rollouts=tuple(rollouts)) for group, rollouts in zip(groups, kept, strict=True)]

    monkeypatch.setattr(trainer._sampler, "responses", half)
    first, second, third = trainer.train().history
    assert 0 < first.accuracy < 1 and (first.accuracy, first.mean_tokens) == (second.accuracy, second.mean_tokens)
    assert (third.accuracy, third.mean_tokens) == (1, first.mean_tokens)


def test_the_seed_of_the_config_decides_problems_orders_and_responses(scripted_runtime: tuple[Runtime, Inputs]):
    opened, inputs = scripted_runtime
    other = replace(opened, config=replace(opened.config, seed=1))
    seeds = [[t.seed for t in one.tasks(TRAINING, inputs.pool[:2], 2, opened.training_spec, "x")] for one in (opened, other)]
    assert not set(seeds[0]) & set(seeds[1])
    again = load_inputs(train_config("seed=1"))
    assert {p.question for p in again.pool} != {p.question for p in load_inputs(train_config()).pool}
    orders = [
        make_trainer(opened, inputs, "order", train_config(f"seed={seed}"), by_hand(inputs.pool[:12]))._order.draw(12)
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1] and sorted(p.problem_id for p in orders[0]) == sorted(p.problem_id for p in orders[1])


def test_the_critics_warm_up_has_lambda_1_and_takes_nothing_of_the_budget(
    scripted_runtime: tuple[Runtime, Inputs], monkeypatch: pytest.MonkeyPatch
):
    opened, inputs = scripted_runtime
    settings = train_config("phase.num_steps=1", "algo=ppo", "algo.critic_warmup_steps=2")
    trainer = make_trainer(opened, inputs, "lambdas", settings, by_hand(inputs.pool[:4]))
    used: list[float | None] = []

    def noting(tokens: Any, scores: Any, algo: Any, **named: Any) -> Any:
        used.append(algo.critic_gae_lambda)
        return make_experience(tokens, scores, algo, **named)

    monkeypatch.setattr("conclip.training.trainer.make_experience", noting)
    trainer.train()
    assert used == [1.0, 1.0, settings.algo.critic_gae_lambda] and used[2] != 1.0
    steps = opened.run.stage_metrics("lambdas")
    responses = [step["rollout/num_responses"] * step["length/mean_tokens"] for step in steps]
    assert trainer._progress.num_warmup_tokens == pytest.approx(sum(responses[:2]))


@pytest.mark.parametrize(
    ("keep_best", "step"),
    [("accuracy", 3), ("shortest", 4)],  # of equals the shorter; the shortest of those that keep 0.49
)
def test_the_checkpoint_that_is_kept_is_the_one_the_phase_asks_for(
    scripted_runtime: tuple[Runtime, Inputs], keep_best: str, step: int
):
    looks = [(0.5, 100), (0.48, 60), (0.6, 90), (0.6, 85), (0.495, 80), (0.55, 88)]
    result = looked(
        scripted_runtime, f"kept-{keep_best}", looks, f"phase.keep_best={keep_best}", "phase.max_accuracy_drop=0.01"
    )
    assert result.best.step == step and len(result.history) == 6
    saved = scripted_runtime[0].run.folder / "checkpoints" / f"kept-{keep_best}"
    weights = {path.parent.name: path.read_bytes() for path in saved.glob("step-*/model.safetensors")}
    kept = (result.checkpoint / "model.safetensors").read_bytes()
    assert [name for name, found in weights.items() if found == kept] == [f"step-{step:06d}"] and len(weights) > 1


def test_a_phase_whose_accuracy_falls_stops_and_keeps_what_was_best(scripted_runtime: tuple[Runtime, Inputs]):
    looks = [(0.5, 100), (0.41, 90), (0.39, 50), (0.9, 10)]
    result = looked(scripted_runtime, "fell", looks, "phase.stop_accuracy_drop=0.1", "phase.keep_best=accuracy")
    assert [look.accuracy for look in result.history] == [0.5, 0.41, 0.39] and result.best.step == 0
    assert (
        "fell stops at step 2: validation accuracy 0.390 is surely more than 0.1 below"
        in (scripted_runtime[0].run.folder / "run.log").read_text()
    )


def test_dynamic_sampling_leaves_no_group_without_a_signal(scripted_runtime: tuple[Runtime, Inputs]):
    steps = steps_of(scripted_runtime, "dynamic", "algo=dapo", "algo.dynamic_sampling_rounds=6")
    assert all(row["policy/share_zero_advantage_groups"] == 0 for row in steps)
    wanted = 4 * train_config().phase.group_size
    replacing = [row for row in steps if row["rollout/num_responses"] > wanted]  # what was replaced is in all that is said
    assert replacing
    assert all(row["rollout/share_groups_all_correct"] + row["rollout/share_groups_none_correct"] > 0 for row in replacing)


def test_the_kl_coefficient_adapts(scripted_runtime: tuple[Runtime, Inputs]):
    steps = steps_of(scripted_runtime, "adaptive", "algo.kl_target=1e-6", "algo.critic_warmup_steps=1")
    coefficients = [row["policy/kl_coef"] for row in steps]  # while the critic warms up there is no KL to adapt to
    assert coefficients[:2] == [0.01, 0.01] and coefficients[2] != 0.01


@pytest.mark.parametrize(("target", "factor"), [(0.2, 1.02), (0.4, 1.0), (0.8, 0.98)])
@pytest.mark.parametrize(("place", "first"), [("loss", 0.001), ("reward", 0.01)])
def test_the_next_update_uses_the_adapted_kl_coefficient(
    scripted_runtime: tuple[Runtime, Inputs], place: str, first: float, target: float, factor: float
):
    """A reference by which every token is less probable by 0.4 nats: the KL of every step."""
    opened, inputs = scripted_runtime
    algo = ["algo=grpo"] if place == "loss" else ["algo=reinforce_pp", "algo.whiten_advantages=false"]
    settings = train_config("phase.num_steps=3", "trainer.validate_every=3", *algo, f"algo.kl_target={target}")
    trainer = make_trainer(opened, inputs, f"kl-{place}-{target}", settings, by_hand(inputs.pool[:4]))
    learner, used = trainer._learner, dict[str, list[float]](loss=[], reward=[])
    score, update, losses = learner.score, learner.update, learner._objective.losses

    def further_away(*arguments: Any) -> Scores:
        scores = score(*arguments)
        assert scores.old_logprobs is not None
        return replace(scores, ref_logprobs=scores.old_logprobs - 0.4)

    def noting_rewards(experience: ExperienceBatch, *arguments: Any, **named: Any) -> Updated:
        """What follows a response's last token is its reward, and the price of that token: 0.4 coefficients."""
        tokens = experience.tokens
        last = tokens.response_mask.sum(-1, keepdim=True) + tokens.response_mask.int().argmax(-1, keepdim=True) - 1
        prices = tokens.rewards - experience.advantages.gather(-1, last)[:, 0]
        used["reward"].append(float(prices.mean()) / 0.4)
        return update(experience, *arguments, **named)

    def noting_losses(train_policy: bool, kl_coef: float) -> Any:
        used["loss"].append(kl_coef)
        return losses(train_policy, kl_coef)

    learner.score = further_away  # type: ignore[method-assign]
    learner.update = noting_rewards  # type: ignore[method-assign]
    learner._objective.losses = noting_losses  # type: ignore[method-assign]
    trainer.train()
    per_step = used["loss"][:: settings.algo.updates_per_rollout] if place == "loss" else used["reward"]
    assert per_step == pytest.approx([first, first * factor, first * factor * factor], rel=1e-3)
    shown = [row["policy/kl_coef"] for row in opened.run.stage_metrics(f"kl-{place}-{target}")]
    assert shown == pytest.approx(per_step, rel=1e-3)


def test_an_engine_at_another_version_does_not_train(scripted_runtime: tuple[Runtime, Inputs]):
    opened, inputs = scripted_runtime
    settings = train_config()
    trainer = make_trainer(opened, inputs, "stale", settings, by_hand(inputs.pool[:4]))
    begin = trainer._begin

    def begin_and_spoil() -> None:
        begin()
        opened.engine.update_weights(LAB_MODEL, opened.engine.policy_version + 1)  # behind the trainer's back

    trainer._begin = begin_and_spoil  # type: ignore[method-assign]
    with pytest.raises(StaleEngine, match="it was given"):
        trainer.train()


def test_a_budget_of_tokens_ends_the_phase(scripted_runtime: tuple[Runtime, Inputs]):
    opened, inputs = scripted_runtime
    settings = train_config("phase.num_steps=50", "phase.max_sampled_tokens=3000", "phase.stop_accuracy_drop=1")
    trainer = make_trainer(opened, inputs, "budget", settings, by_hand(inputs.pool[:4]))
    assert 0 < trainer.train().history[-1].step < 10
    rows = [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]
    sampled = [row["rollout/num_sampled_tokens"] for row in rows if row["stage"] == "budget"]
    assert sampled[-1] >= 3000 and all(count < 3000 for count in sampled[:-1])


def test_refresh_replaces_settled_problems_and_remembers_all_that_trained(scripted_runtime: tuple[Runtime, Inputs]):
    opened, inputs = scripted_runtime
    settings = train_config("phase.refresh=true", "phase.refresh_memory=0", "phase.retire_above=0.1", "phase.num_steps=2")
    pool = [problem for problem in inputs.pool if problem.level == 3]
    band = Band(low=0, high=1)
    rows = [make_row(problem.problem_id, Outcome.CORRECT, 5) for problem in pool]
    rates = pass_rates(rows, band, model_hash="m", sampling_hash="s")
    selection = select("phase", pool, rates, replace(settings.phase, pass_rate_low=0, pass_rate_high=1), seed=0)
    trainer = make_trainer(opened, inputs, "refreshed", settings, selection)
    result = trainer.train()
    trained = set(result.problem_ids)
    assert len(trained) > 4 and trained <= {problem.problem_id for problem in pool}
    steps = [json.loads(line) for line in (opened.run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if row["stage"] == "refreshed"]
    assert steps[0]["rollout/retired_problems"] == len(trained) - 4 > 0
    assert steps[-1]["rollout/working_set_problems"] == 4
    questions = json.loads((result.checkpoint / "trained_on.json").read_text())["questions"]
    assert {problem.question for problem in pool if problem.problem_id in trained} >= set(questions) != set()

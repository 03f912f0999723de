"""Settings that a model of one's own brings, and the evidence that a run begins with."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import tests.scripted
from conclip.cli.main import main
from conclip.config.compose import compose_config, load_config
from conclip.config.machine import native_dtype
from conclip.config.schema import LearnConfig, RecipeRunConfig
from conclip.errors import UserError
from conclip.evaluation.regrade import grade_file
from conclip.evaluation.rows import read_rows, to_dict
from conclip.experiments.commands import all_prompts
from conclip.experiments.inputs import load_inputs
from conclip.experiments.measure import Measured, describe, measure
from conclip.experiments.plan import PlannedStage
from conclip.grading.grader import Grader
from conclip.grading.thinking import ThinkingTags
from conclip.problems.load import load_problems
from conclip.rollout.session import THINKING_OFF, evidence_conditions
from conclip.runs.manifest import read_stages
from conclip.training.schedule import learning_rates
from conclip.types import Grade, Outcome
from tests.chat_templates import MAGISTRAL, QWEN3
from tests.conftest import make_row as row
from tests.test_thinking import tokenizer_with

OWN = ("model=hf", "model.path=anywhere")


def test_the_lab_and_a_model_of_ones_own_bring_settings_of_their_own():
    lab, own = load_config("two-phase"), load_config("two-phase", *OWN)
    assert isinstance(lab, LearnConfig) and isinstance(own, LearnConfig)
    assert (lab.optim.policy_lr, own.optim.policy_lr) == (1e-4, None)
    assert (lab.rollout.temperature, own.rollout.temperature) == (1.0, 0.6)
    assert (lab.rollout.max_model_len, own.rollout.max_model_len) == (1024, None)
    assert not lab.trainer.recompute_activations and own.trainer.recompute_activations
    assert own.evaluation is not None and own.evaluation.temperatures == [0.6]


def test_a_named_group_goes_before_the_models(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine.\n\ndefaults:\n  - hf\n  - _self_\npath: anywhere\n")
    chosen = compose_config("two-phase", ["model=mine", "optim=paper"], config_dir=str(tmp_path))[1]
    assert (chosen["optim"], chosen["rollout"], chosen["trainer"]) == ("paper", "hf", "hf")


@pytest.mark.parametrize(
    ("size", "rates"), [(7_000_000_000, (5e-7, 9e-6)), (500_000_000, (1e-6, 1e-5)), (135_000_000, (5e-6, 5e-5))]
)
def test_learning_rates_are_those_of_the_models_size_unless_set(size: int, rates: tuple[float, float]):
    own = load_config("train-phase2", *OWN)
    assert isinstance(own, LearnConfig)
    policy, critic = rates
    assert learning_rates(own.optim, size) == {"policy": policy, "critic": critic}
    assert learning_rates(dataclasses.replace(own.optim, policy_lr=1e-3), size) == {"policy": 1e-3, "critic": critic}
    adapted = learning_rates(dataclasses.replace(own.optim, policy_lr=1e-3), size, adapted=True)
    assert adapted == {"policy": 1e-3, "critic": 10 * critic}


@pytest.mark.parametrize(
    ("flags", "capability", "dtype"),
    [
        ({"avx2"}, None, "float32"),
        ({"avx2", "avx512f"}, None, "float32"),
        ({"avx2", "avx512f", "avx512_bf16"}, None, "bfloat16"),
        ({"amx_bf16"}, None, "bfloat16"),
        ({"avx2"}, 8.0, "bfloat16"),
        ({"avx2"}, 7.5, "float32"),
    ],
)
def test_precision_is_what_the_machine_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], capability: float | None, dtype: str
):
    monkeypatch.setattr("conclip.config.machine.cpu_flags", lambda: flags)
    facts = {} if capability is None else {"compute_cap": [9.0, capability], "memory.total": [24_576.0, 24_576.0]}
    monkeypatch.setattr("conclip.config.machine._asked_of_gpus", lambda what: facts.get(what, []))
    assert native_dtype() == dtype
    assert load_config("eval", *OWN).model.dtype == dtype
    assert load_config("eval", *OWN, "model.dtype=bfloat16").model.dtype == "bfloat16"


def test_one_file_becomes_pool_validation_and_test(tmp_path: Path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n} + 0?", "answer": str(n)}) + "\n" for n in range(60)))
    config = load_config("two-phase", *OWN, "data=one_file", f"paths.problems={file}")
    parts = [load_problems(name, getattr(config.data, name), 0) for name in ("pool", "validation", "test")]
    assert [len(part) for part in parts] == [30, 9, 21]
    assert len({problem.problem_id for part in parts for problem in part}) == 60
    with pytest.raises(UserError, match=r"data\.pool\.mine\.share"):
        load_config("two-phase", *OWN, "data=one_file", f"paths.problems={file}", "data.pool.mine.share=[0.5,0.2]")
    file.write_text("".join(json.dumps({"question": f"{n} + 0?", "answer": str(n)}) + "\n" for n in range(900)))
    parts = [load_problems(name, getattr(config.data, name), 0) for name in ("pool", "validation", "test")]
    assert [len(part) for part in parts] == [400, 100, 300]  # every validation and evaluation takes its set whole


def conditions(tokenizer: PreTrainedTokenizerBase, *overrides: str) -> list[tuple[str, str, int | None]]:
    return evidence_conditions(load_config("two-phase", *OWN, "eval.max_tokens=400", *overrides), tokenizer)


ASKING = [(style, "default", None) for style in ("plain", "concise", "draft", "budget")]


def test_evidence_is_asking_for_brevity_and_thinking_less_where_a_model_thinks():
    plain = tokenizer_with("{{ messages[0].content }}", ThinkingTags("<a>", "</a>"))
    assert conditions(plain) == ASKING
    switch = ("plain", THINKING_OFF, None)
    assert conditions(tokenizer_with(QWEN3)) == [*ASKING, switch, ("plain", "default", 100)]
    assert switch not in conditions(tokenizer_with(QWEN3), "model.chat_template_kwargs={enable_thinking: false}")
    magistral = conditions(tokenizer_with(MAGISTRAL, ThinkingTags("[THINK]", "[/THINK]")))
    assert magistral == [*ASKING, ("plain", "default", 100)]  # no switch
    lab = load_config("two-phase")
    assert isinstance(lab, RecipeRunConfig) and evidence_conditions(lab, plain) == [("plain", "default", None)]


def test_one_verdict_counts_by_either_rule():
    grader = Grader(num_workers=1)
    try:
        boxed = grader.grade(gold="7", text=r"so \boxed{7}")
        phrase = grader.grade(gold="7", text="The answer is 7.")
        nothing = grader.grade(gold="7", text="Who knows.")
        cut = grader.grade(gold="7", text="The answer is 7.", finish_reason="length")
    finally:
        grader.close()
    assert [grade.by("strict") for grade in (boxed, phrase, nothing, cut)] == [boxed, phrase, nothing, cut]
    outcomes = [grade.by("lenient").outcome for grade in (boxed, phrase, nothing, cut)]
    assert outcomes == [Outcome.CORRECT, Outcome.CORRECT, Outcome.NO_ANSWER, Outcome.TRUNCATED]
    assert phrase.by("lenient").extracted == "7" and phrase.by("lenient").by("strict") == phrase
    assert Grade(outcome=Outcome.WRONG, extracted="8").by("lenient") == Grade(outcome=Outcome.WRONG, extracted="8")


def test_grade_takes_rows_of_its_own(tmp_path: Path):
    choices = {"problem_id": "q", "answer": "B", "alternatives": [], "choices": ["3", "4"], "tolerance": 0.0}
    several = {"problem_id": "p", "answer": "1", "alternatives": ["2"], "choices": None, "tolerance": 0.0}
    (tmp_path / "questions.jsonl").write_text(json.dumps(choices) + "\n" + json.dumps(several) + "\n")
    rows = [
        row("q", Outcome.CORRECT, 5, text=r"\boxed{4}", answer="B"),
        row("p", Outcome.CORRECT, 5, text=r"<think>\boxed{9}</think> \boxed{2}", answer="1 or 2"),
        row("p", Outcome.CORRECT, 5, 1, text=r"\boxed{1}", answer="1 or 2", reasoning=r"\boxed{7}"),
        row("p", Outcome.NO_ANSWER, 5, 2, text="It is 2.", answer="1 or 2"),
        row("p", Outcome.TRUNCATED, 5, 3, text=r"\boxed{2}", answer="1 or 2", finish_reason="length"),
        row("elsewhere", Outcome.WRONG, 5, text=r"\boxed{2}", answer="3"),
    ]
    source = tmp_path / "rows-base.jsonl"
    source.write_text("".join(json.dumps(to_dict(r) | {"check": "of before"}) + "\n" for r in rows))
    counts = grade_file(source, tmp_path / "out.jsonl", audit=False)
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["outcome"] for r in graded] == [r.outcome.value for r in rows]
    assert counts == {"correct": 3, "no_answer": 1, "truncated": 1, "wrong": 1}
    assert all("check" not in r and r["num_tokens"] == 5 for r in graded)
    source.write_text(json.dumps(to_dict(rows[0]) | {"finish_reason": "tired"}) + "\n")
    with pytest.raises(UserError, match=r"rows-base.jsonl:1: the columns"):
        grade_file(source, tmp_path / "out.jsonl", audit=False)


@pytest.mark.whole
@pytest.mark.usefixtures("scripted")
def test_a_first_look_measures_a_few_responses_and_one_update_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = load_config("two-phase", "debug=two_phase")
    inputs = load_inputs(config)
    prompts = all_prompts(config, inputs)
    found = measure(config, inputs, prompts)
    assert found.num_responses == 32 and found.sampling_tokens_per_s > 0 and 0 < found.mean_tokens <= 192
    assert found.update_s_per_1000_tokens is not None and sum(found.shares.values()) == pytest.approx(1)
    assert list(tmp_path.iterdir()) == []

    known = dataclasses.replace(
        found, sampling_tokens_per_s=100.0, mean_tokens=60.0, ended_tokens=80.0, update_s_per_1000_tokens=10.0
    )
    said = describe(known, [PlannedStage(name="phase2", num_responses=100, max_tokens=192, num_trained=50)])
    # 100 x 60 tokens at 100 a second, then 50 x 60 tokens at 10 s per 1,000
    assert said[-2:] == [
        "phase2: 100 responses, about 6,000 tokens, 1.5 min",
        "in all about 2 min at this rate; larger batches sample faster, and responses shrink in phase 2",
    ]
    assert "at most 80 tokens" in said[1] and "10.0 s per 1,000" in said[2]


def test_a_stage_that_samples_nothing_is_not_measured():
    found = Measured(
        num_responses=32,
        start_s=1.0,
        sampling_tokens_per_s=100.0,
        mean_tokens=60.0,
        ended_tokens=None,
        shares={Outcome.CORRECT: 1.0},
        update_s_per_1000_tokens=None,
    )
    probe = PlannedStage(name="probe", num_responses=200, max_tokens=192)
    warm_up = PlannedStage(name="warm-up", num_responses=0, max_tokens=0)
    *_, stage, whole = describe(found, [probe, warm_up])
    assert stage == "warm-up: not measured" and whole.startswith("in all at least 2 min at this rate")  # 200 x 60 / 100 s
    assert describe(found, [probe])[-1].startswith("in all about 2 min at this rate")


@pytest.mark.whole
@pytest.mark.usefixtures("scripted")
def test_other_forms_of_answers_count_where_they_are_to_and_nothing_is_sampled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    boxing = tests.scripted.written
    monkeypatch.setattr("tests.scripted.written", lambda *given: boxing(*given).replace("\\boxed{", "").replace("}", ""))
    monkeypatch.chdir(tmp_path)

    def probe(*overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["conclip", "probe", "debug=probe", *overrides])
        main()
        return capfd.readouterr().out

    said = probe()
    form, choice = said.index("ended without an answer in \\boxed{}"), said.index("none of the 24 probed problems was ever")
    assert form < choice  # what is wrong, before the advice on problems
    said = probe("rollout.extraction=lenient")
    assert "chosen: " in said and "without an answer" not in said
    folder = tmp_path / "outputs" / "probe" / "debug"
    assert [read_stages(folder / f"attempt-00{n}")["probe"].num_tokens > 0 for n in (1, 2)] == [True, False]
    rows = read_rows(folder / "attempt-002" / "probe_rows-probe.jsonl")
    assert {row.extraction for row in rows} == {"lenient"} and {row.method for row in rows} == {"number"}

"""What a run reads before it begins: problems that are in several lists, and settings that are another model's."""

import json
import shutil
from pathlib import Path

import pytest

from conclip.cli.help import help_page
from conclip.config import compose
from conclip.config.compose import compose_config, config_folders, load_config
from conclip.errors import UserError
from conclip.experiments import inputs
from conclip.experiments.inputs import load_inputs
from conclip.models.folder import LAB_MODEL
from tests.sparse import R1_1_5B, sparse_model

LONG = "A baker sells twelve loaves in the morning and twice as many of them in the afternoon of every working day"


def lists(tmp_path: Path, **questions: list[str | tuple[str, str]]) -> list[str]:
    """Overrides for pool, validation and test, of questions that have the answer 1 or the one that is given."""
    overrides = ["data=mine"]
    for name, rows in questions.items():
        pairs = [(row, "1") if isinstance(row, str) else row for row in rows]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"question": text, "answer": answer}) + "\n" for text, answer in pairs))
        overrides.append(f"data.{name}.mine.path={path}")
    return overrides


def test_what_would_train_or_choose_on_test_problems_is_left_out(tmp_path: Path):
    """Each list with its own: of the pool three are tested, nearly tested or validated, and two repeat an earlier one."""
    own = lists(
        tmp_path,
        pool=["a", "b", f"{LONG}. How many?", "c", "d", ("d", "2"), " d ", "e"],
        validation=["c", "b", "f"],
        test=["b", f"{LONG}? Tell me.", "g"],
    )
    found = load_inputs(load_config("two-phase", *own, "resume=never"))
    asked = [[problem.question for problem in problems] for problems in (found.pool, found.validation, found.test)]
    assert asked == [["a", "d", "e"], ["c", "f"], ["b", f"{LONG}? Tell me.", "g"]]
    assert [note for note in found.notes if "left out" in note] == [
        "data.pool: 2 of 8 problems have nearly the text of a test problem (eval.near_overlap), and are left out",
        "data.validation: 1 of 3 problems have nearly the text of a test problem (eval.near_overlap), and are left out",
        "data.pool: 1 of 6 problems have the text of a validation problem, and are left out",
        "data.pool: 2 of 5 problems have the text of an earlier one (1 with another answer), and are left out",
    ]
    whole = load_inputs(load_config("two-phase", *own, "resume=never", "eval.near_overlap=false"))
    assert [problem.question for problem in whole.pool] == ["a", f"{LONG}. How many?", "d", "e"]


def test_nothing_left_to_train_or_to_choose_on_is_bad_input(tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.pool: 2 of 2 problems have the text of a validation problem; give others"):
        load_inputs(load_config("train-phase2", *lists(tmp_path, pool=["a", "b"], validation=["b", "a"])))


def test_settings_of_the_embedded_model_are_for_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    large = sparse_model(tmp_path / "model", R1_1_5B)
    monkeypatch.setattr(inputs, "check_model", lambda *_, **__: None)  # it has no tokenizer
    with pytest.raises(UserError, match=r"model\.path: [\d,]+ million parameters, .* embedded model.*; add model=hf"):
        load_inputs(load_config("eval", f"model.path={large}"))
    with pytest.raises(UserError, match=r"checkpoints\.after: [\d,]+ million parameters"):
        load_inputs(load_config("eval", f"+checkpoints.after={large}", "model.path=lab"))
    load_inputs(load_config("eval", "model=hf", f"model.path={large}", "data=arithmetic"))
    load_inputs(load_config("eval", f"model.path={LAB_MODEL}"))


@pytest.mark.parametrize(("on_gpu", "numbers"), [(False, (64, 256)), (True, (256, 2048))])
def test_a_gpu_has_more_responses_at_a_time(on_gpu: bool, numbers: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compose, "has_gpu", lambda: on_gpu)
    rollout = load_config("eval", "model=hf", "model.path=x").rollout
    assert (rollout.max_num_seqs, rollout.unit_responses) == numbers
    assert load_config("eval", "model=hf", "model.path=x", "rollout.max_num_seqs=7").rollout.max_num_seqs == 7
    assert load_config("eval").rollout.max_num_seqs == 256


def test_memory_of_a_gpu_is_freed_by_pages_where_nobody_reads_it_in_place():
    def shares(subcommand: str, *overrides: str) -> bool:
        return load_config(subcommand, *overrides).shares_gpu

    assert shares("train-phase2", "rollout.num_engines=1") and not shares("eval")
    for override in ("rollout.tensor_parallel_size=2", "cluster.weights=ipc", "cluster=ray"):
        assert not shares("train-phase2", "rollout.num_engines=1", override)


@pytest.mark.parametrize("primary", ["eval", "eval.yaml", "sub/mine"])
def test_help_of_a_primary_file_by_any_name_that_hydra_takes(primary: str, tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/mine.yaml").write_text("# Mine.\ndefaults: [/eval, _self_]\n")
    page = help_page(config_folders(tmp_path), primary, *compose_config("eval", [], primary="eval"))
    assert page.renderables


@pytest.mark.parametrize(
    ("more", "is_said"),
    [
        (["length=laser"], True),
        (["length=l1_exact", "rollout.max_tokens=512"], False),
        (["length=l1_max", "length.target_tokens=100"], False),
        (["length=kimi"], False),
    ],
)
def test_the_target_of_a_length_reward_is_one_for_the_model(tmp_path: Path, more: list[str], is_said: bool):
    """The default is of the embedded model, whose responses are short: another one's are all longer, and none is paid."""
    own = lists(tmp_path, pool=["a", "b"], validation=["c"])
    model = ["model=hf", f"model.path={LAB_MODEL}", "rollout.max_tokens=1000", "algo=grpo"]
    found = load_inputs(
        load_config("train-phase2", *model, *own, *more, "phase.num_problems=2", "phase.problems_per_step=2")
    )
    assert any("length.target_tokens=128 where responses have up to 1,000" in note for note in found.notes) is is_said


def test_what_adapters_have_taught_is_not_rounded_away_unsaid(tmp_path: Path):
    """A later stage begins from the merged model; in 4 bits or bfloat16 small changes of its weights are lost."""
    own = lists(tmp_path, pool=["a", "b"], validation=["c"], test=["d"])
    model = tmp_path / "model"
    shutil.copytree(LAB_MODEL, model)
    lora = ["model=hf", f"model.path={model}", "model.dtype=bfloat16", "model/adapter=lora", "rollout.max_tokens=500", *own]
    with pytest.raises(UserError, match=r"model\.adapter\.base' must not be 4bit for recipe\.phase2: .*phase1 would lose"):
        load_config("two-phase", *lora, "model.adapter.base=4bit")
    rounded = "model.adapter.base=bfloat16: most of what adapters have taught"

    def notes(subcommand: str, base: str, *more: str) -> list[str]:
        found = load_inputs(load_config(subcommand, *lora, f"model.adapter.base={base}", *more)).notes
        return [note for note in found if note.startswith("model.adapter.base")]

    few = ["phase2.num_problems=1", "phase2.problems_per_step=1", "phase1.num_problems=1", "phase1.problems_per_step=1"]
    assert notes("two-phase", "float32", *few) == []
    assert notes("two-phase", "bfloat16", *few)[0].startswith(f"{rounded} phase1")
    alone = ["phase.num_problems=2", "phase.problems_per_step=2"]
    assert notes("train-phase2", "bfloat16", *alone) == notes("train-phase2", "4bit", *alone) == []
    (model / "adapter").mkdir()
    assert notes("train-phase2", "bfloat16", *alone)[0].startswith(f"{rounded} model.path")
    with pytest.raises(UserError, match=r"model\.adapter\.base=4bit: what adapters have taught model\.path rounds"):
        notes("train-phase2", "4bit", *alone)

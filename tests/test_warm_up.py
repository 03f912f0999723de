"""The format warm-up: what it trains on, and that it leads to the form that counts."""

import json
import sys
from pathlib import Path

import pytest

from conclip.cli.main import main
from conclip.config.groups import WarmUpConfig
from conclip.grading.answers import extract_boxed
from conclip.problems.overlap import trained_on
from conclip.runs.manifest import read_stages
from conclip.training.warm_up import boxed, choose_rows
from conclip.types import EvalRow, Outcome
from tests.conftest import make_row as row

SETTINGS = WarmUpConfig(num_examples=5, samples_per_problem=2, num_epochs=2, min_updates=1, batch_size=4, policy_lr=1e-3)
RUN = ["recipe=warm_up", "name=warm"]


def right(problem: str, sample: int) -> EvalRow:
    """A correct response without a box."""
    form = {"lenient_outcome": Outcome.CORRECT, "lenient_extracted": "7", "method": "number"}
    return row(problem, Outcome.NO_ANSWER, 10, sample, text="3 + 4 = 7, so 7 apples. \n", **form)


def test_the_answer_is_put_into_a_box_at_the_end():
    assert boxed(right("p", 0)) == "3 + 4 = 7, so 7 apples.\n\nThe final answer is \\boxed{7}."
    assert extract_boxed(boxed(right("p", 0))) == "7"
    already = row("p", Outcome.CORRECT, 5, text=r"It is \boxed{7}", method="boxed", lenient_extracted="7")
    assert boxed(already) == r"It is \boxed{7}"


def test_right_responses_are_chosen_whatever_their_form_and_few_of_each_problem():
    rows = [right("p", i) for i in range(6)] + [right("q", i) for i in range(6)] + [right("r", 0)]
    rows += [row("s", Outcome.WRONG, 9), row("t", Outcome.TRUNCATED, 9)]
    chosen = choose_rows(rows, SETTINGS, seed=0)
    assert len(chosen) == 5 and all(r.lenient_outcome is Outcome.CORRECT for r in chosen)
    assert max(sum(r.problem_id == name for r in chosen) for name in "pqr") == 2
    assert choose_rows(rows, SETTINGS, seed=0) == chosen != choose_rows(rows, SETTINGS, seed=1)


@pytest.mark.whole
@pytest.mark.usefixtures("scripted")
def test_the_recipe_warms_up_then_trains_on_other_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small = [
        "data.pool.chain.levels=[3,4,5]",
        "data.pool.chain.num_problems=24",
        "data.validation.chain.num_problems=4",
        "data.test.chain.num_problems=4",
        "probe.first_samples=8",
        "probe.max_samples=8",
        "phase2={num_problems: 4, problems_per_step: 4, group_size: 4, num_steps: 2}",
        "phase2={pass_rate_low: 0.05, pass_rate_high: 0.95}",
        "warm_up={num_examples: 12, samples_per_problem: 2, policy_lr: 0.001}",
        "eval.samples_per_problem=1",
        "rollout.max_tokens=192",
        "trainer.validate_every=1",
    ]
    monkeypatch.setattr(sys, "argv", ["conclip", "two-phase", *RUN, *small])
    main()
    folder = tmp_path / "outputs" / "two-phase" / "warm" / "latest"
    stages = read_stages(folder)
    assert list(stages) == ["eval-base", "probe-base", "warm-up", "probe-warm-up", "phase2", "eval-warm-up", "eval-phase2"]
    numbers = stages["warm-up"].numbers
    assert 0 < numbers["last_loss"] < numbers["first_loss"]  # of a negative log-likelihood
    assert numbers["num_epochs"] == 6  # twelve updates, two a pass, since three passes would be too few
    chosen = {
        name: json.loads((folder / f"problems-{name}.json").read_text())["problem_ids"] for name in ("warm-up", "phase2")
    }
    assert chosen["warm-up"] and not set(chosen["warm-up"]) & set(chosen["phase2"])
    assert len(trained_on(folder / "checkpoints" / "warm-up-best")) == len(chosen["warm-up"])
    assert len(trained_on(folder / "checkpoints" / "phase2-best")) == len(chosen["warm-up"]) + len(chosen["phase2"])
    assert "after warm-up and phase2" in (folder / "checkpoints" / "phase2-best" / "README.md").read_text()

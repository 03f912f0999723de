"""Claims: their files, what decides, what runs, and the page."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from conclip.claims import config as claim_config
from conclip.claims import figures
from conclip.claims import outcome as claim_outcome
from conclip.claims import runs as claim_runs
from conclip.claims.config import Claim, Contrast, Expectation, check_runs, claim_files, load_claim, on_other, overrides
from conclip.claims.measures import difference, gaps, numbers
from conclip.claims.outcome import contrast_rows, from_json, outcome_of, recorded, write_outcome
from conclip.claims.page import _mean, write_claims
from conclip.claims.runs import PlannedRun, carry_out, in_order, planned
from conclip.claims.verdict import judge, overall
from conclip.cli import claims as claims_command
from conclip.cli.main import main
from conclip.errors import MachineFailure, UserError
from conclip.models.folder import LAB_MODEL
from conclip.report.data import read_run
from conclip.runs.files import write_json
from conclip.types import Outcome
from tests.conftest import make_row
from tests.made_runs import made_run

CLAIM = """
claim: a is shorter than b
runs: {a: [], b: [algo=grpo]}
contrasts:
  a against b: {measure: tokens, first: a, second: b, expect: less, relevant: 5}
"""
UNNAMED = CLAIM.replace("runs: {a: [], b: [algo=grpo]}", "runs: {a: [], b: [algo=grpo], c: [algo=dapo]}")


def written(folder: Path, text: str, name: str = "mine") -> Path:
    (folder / "claims").mkdir(exist_ok=True)
    path = folder / "claims" / f"{name}.yaml"
    path.write_text(text)
    return path


def test_an_interval_by_hand():
    """Mean -10, standard deviation sqrt(2.5), Student's t of 4 degrees of freedom: 2.7764; 3.4954 for two contrasts."""
    values = [-10.0, -12.0, -8.0, -11.0, -9.0]
    one, two = judge(values, "less", 5), judge(values, "less", 5, num_contrasts=2)
    assert (one.word, one.mean, one.num_seeds) == ("holds", -10, 5)
    assert (one.low, one.high) == pytest.approx((-11.9632, -8.0368), abs=1e-4)
    assert (two.low, two.high) == pytest.approx((-12.4716, -7.5284), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "expect", "relevant", "word"),
    [
        ([-10, -12, -8, -11, -9], "less", 5, "holds"),
        ([-10, -12, -8, -11, -9], "more", 5, "does not hold"),
        ([10, 12, 8, 11, 9], "more", 5, "holds"),
        ([1, -1, 0.5, -0.5, 0], "less", 5, "does not hold"),  # the interval ends at 1: no effect of 5
        ([-20, 10, -5], "less", 5, "underpowered"),
        ([-5, 1] * 5, "less", 4, "not separable"),  # 2 +- 2.26, and a drop of 4 would show
        ([1, -1, 0.5, -0.5, 0], "not less", 3, "holds"),
        ([-10, -12, -8, -11, -9], "not more", 3, "holds"),
        ([5, 6, 4, 5.5, 4.5], "not more", 3, "does not hold"),
        ([-5, -6, -4, -5.5, -4.5], "not less", 3, "does not hold"),
        ([-5, 1] * 2, "not less", 3, "underpowered"),
        ([-10.0], "less", 5, "underpowered"),  # one seed has no spread
        ([-10.0, -10.0], "less", 5, "underpowered"),  # no spread seen is not no spread
    ],
)
def test_what_decides(values: list[float], expect: str, relevant: float, word: str):
    assert judge([float(v) for v in values], expect, relevant).word == word  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([-50, -48, -52, -51, -49], "holds"),  # -50 +- 1.96
        ([-41, -39, -43, -42, -40], "not separable"),
        ([-30, -28, -32, -31, -29], "does not hold"),
        ([-60, -20, -45], "underpowered"),
    ],
)
def test_a_claimed_size_decides(values: list[float], word: str):
    assert judge([float(v) for v in values], "less", 5, at_least=40).word == word


@pytest.mark.parametrize(
    ("values", "num_problems", "num_contrasts", "half", "word"),
    [
        ([0.0, 0.0, 0.0, 0.0, 0.5], None, 1, 0.2776, "holds"),  # 2.7764 x 0.2236 / sqrt(5)
        ([0.0, 0.0, 0.0, 0.0, 0.5], 24, 1, 14.2474, "underpowered"),  # 1 - 0.025^(1/24) of the problems may have been lost
        ([0.0] * 5, 500, 1, 0.7351, "holds"),
        ([0.0] * 5, 1000, 5, 0.5284, "holds"),  # 1 - 0.005^(1/1000)
        ([0.0] * 5, 8, 1, 36.9417, "underpowered"),
        ([-10.0, -12.0, -8.0, -11.0, -9.0], 1000, 1, 1.9632, "does not hold"),  # the seeds differ by more
    ],
)
def test_an_interval_of_accuracy_allows_for_problems_that_were_not_drawn(
    values: list[float], num_problems: int | None, num_contrasts: int, half: float, word: str
):
    verdict = judge(values, "not less", 3, num_contrasts=num_contrasts, num_problems=num_problems)
    assert (verdict.mean - verdict.low, verdict.high - verdict.mean) == pytest.approx((half, half), abs=1e-4)
    assert verdict.word == word


def test_test_problems_are_counted_over_all_seeds(tmp_path: Path):
    """Seed 0 has the problems p0 to p11, seed 1 those to p15; both runs differ from their base by 50 points with each."""
    claim = load_claim("mine", written(tmp_path, CLAIM.replace("measure: tokens", "measure: accuracy")))
    both = replace(claim, contrasts={**claim.contrasts, "tokens": replace(claim.contrasts["a against b"], measure="tokens")})
    outcome = outcome_of("mine", both, finished(both, tmp_path, seeds=2), quick=False)
    assert outcome.num_problems == {"a against b": 16}
    (cells, _) = contrast_rows(outcome)
    assert cells[2][1:] == "0.0 [-24.0, +24.0] points"  # 1 - 0.0125^(1/16); equal seeds alone have no interval
    write_outcome(outcome, tmp_path)
    assert from_json(tmp_path / "mine.json") == outcome
    older = json.loads((tmp_path / "mine.json").read_text())
    del older["outcome"]["num_problems"]
    write_json(tmp_path / "mine.json", older)
    assert contrast_rows(from_json(tmp_path / "mine.json"))[0][2][1:] == "0.0 points with every seed"


def test_power_grows_with_seeds_and_is_that_of_the_test():
    few, many = (judge([-3.0, 3.0, 1.0, -1.0] * n, "less", 2).power for n in (1, 8))
    assert few < 0.3 < 0.95 < many
    size = judge([-3.0, 3.0, 1.0, -1.0] * 2, "less", 1e-9).power  # no effect at all: one side of a 95 % interval
    assert size == pytest.approx(0.025, abs=1e-6)


def test_one_seed_has_a_value_and_no_interval():
    assert (_mean([]), _mean([3.2]), _mean([3.2, 3.2])) == ("", "+3.2", "+3.2 with every seed")
    assert _mean([1.0, 3.0]) == "+2.0 [-10.7, +14.7]"  # Student's t with one degree of freedom: 12.706 x 1


def test_a_claim_holds_if_all_of_its_contrasts_do():
    assert overall(["holds"] * 3) == "holds"
    assert overall(["holds", "not separable"]) == "not separable"
    assert overall(["underpowered", "not separable"]) == "underpowered"
    assert overall(["holds", "not separable", "underpowered", "does not hold"]) == "does not hold"


def with_careful_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where that model is, which `make careful-model` takes minutes to make."""
    (folder / "outputs").mkdir()
    (folder / "outputs/careful-model").symlink_to(LAB_MODEL)
    monkeypatch.chdir(folder)


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(claim_files()))
def test_every_shipped_claim_composes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_careful_model(tmp_path, monkeypatch)
    claim = load_claim(name, claim_files()[name])
    check_runs(name, claim, quick=True)  # with the overrides of every run, and those of the quick version
    assert claim.designed and claim.seeds >= 5


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(claim_files()))
def test_every_shipped_claim_can_be_tried_on_another_model_and_its_problems(
    name: str, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those about other problems of the lab's ask for such sets."""
    with_careful_model(tmp_path, monkeypatch)
    given = ["model=hf", f"model.path={random_model}", "data=gsm8k"]
    claim = load_claim(name, claim_files()[name])
    other = on_other(claim, given)
    missing = {contrast.test for contrast in claim.contrasts.values() if contrast.test} - {"gsm8k"}
    with pytest.raises(UserError, match=r"which .* does not have; it has gsm8k") if missing else nullcontext():
        hashes = check_runs(name, other, quick=True)  # with the overrides of every run, and those of the quick version
        assert not set(hashes.values()) & set(check_runs(name, claim, quick=True).values())


def test_overrides_of_the_command_come_last_and_other_problems_leave_out_settings_of_the_labs():
    claim = Claim(
        claim="x",
        common=["data.test.chain.num_problems=200", "algo=grpo"],
        runs={"a": ["+data.test.more={source: arithmetic}", "algo.kl_coef=0"]},
        quick=["data.pool.chain.num_problems=9", "phase.num_steps=2"],
        contrasts={},
        hours=3.0,
    )
    same = on_other(claim, ["model=hf"])
    assert overrides(same, "a", quick=False) == [*claim.common, *claim.runs["a"], "model=hf"] and same.hours is None
    other = on_other(claim, ["data=gsm8k", "phase.num_steps=5"])
    assert overrides(other, "a", quick=False) == ["algo=grpo", "algo.kl_coef=0", "data=gsm8k", "phase.num_steps=5"]
    assert overrides(other, "a", quick=True)[2:] == ["phase.num_steps=2", "data=gsm8k", "phase.num_steps=5"]
    assert on_other(claim, []) is claim
    with pytest.raises(UserError, match=r"'seed=3' is set by conclip claims itself; --first-seed"):
        on_other(claim, ["seed=3"])
    with pytest.raises(UserError, match=r"'algo=ppo': the claim itself chooses that, and rests on it"):
        on_other(claim, ["algo=ppo"])


def test_overrides_that_make_two_runs_alike_are_refused(tmp_path: Path):
    text = CLAIM.replace("b: [algo=grpo]", "b: [algo.gae_lambda=1]").replace("a: []", "a: [algo.gae_lambda=0.9]")
    claim = load_claim("mine", written(tmp_path, text))
    assert len(set(check_runs("mine", claim, quick=False).values())) == 2
    with pytest.raises(UserError, match=r"contrasts\.a against b: its two runs have the same config"):
        check_runs("mine", on_other(claim, ["algo.gae_lambda=0.95"]), quick=False)


def test_overrides_of_the_command_line_are_not_in_a_file(tmp_path: Path):
    with pytest.raises(UserError, match="given is for the command line"):
        load_claim("mine", written(tmp_path, CLAIM + "given: [algo=grpo]\n"))


def test_the_claim_of_the_docs_composes(tmp_path: Path):
    (text,) = re.findall(
        r"`mine/claims/\w+\.yaml`:\n\n```yaml\n(.*?)```",
        (Path(__file__).parent.parent / "docs/recipes.md").read_text(),
        re.S,
    )
    check_runs("mine", load_claim("mine", written(tmp_path, text)), quick=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("claim: a", "clam: a"), "claim"),
        (("second: b", "second: c"), "contrasts.a against b names the run 'c'; there are: a, b"),
        (("relevant: 5", "relevant: 0"), "relevant must be positive"),
        (("measure: tokens", "measure: words"), "measure must be one of tokens, accuracy, gap, metrics.NAME"),
        (("expect: less", "expect: fewer"), "expect"),
        (("relevant: 5}", "relevant: 5, seed: 3}"), "seed"),
        (("relevant: 5}", "relevant: 5, at_least: -3}"), "at_least must be a size"),
        (("less, relevant: 5}", "not less, relevant: 5, at_least: 3}"), "goes with less or more"),
        (("runs: {a: [], b: [algo=grpo]}", "runs: {}"), "needs runs and contrasts"),
        (("a: []", '"a\\eb": []'), "'a\\x1bb' is no name"),
        (("a: []", '" ": []'), "' ' is no name"),
        (("claim: a is", "seeds: 1\nclaim: a is"), "seeds must be at least 2"),
        (("claim: a is", "hours: 0\nclaim: a is"), "hours must be positive, got 0"),
        (("claim: a is", "hours: .nan\nclaim: a is"), "hours must be positive"),
        (("relevant: 5", "relevant: .nan"), "relevant must be positive"),
        (("relevant: 5", "relevant: .inf"), "relevant must be positive"),
        (("relevant: 5}", "relevant: 5, at_least: .nan}"), "at_least must be a size"),
        (("[algo=grpo]", "[seed=3]"), "runs.b: 'seed=3' is set by conclip claims itself"),
        (("claim: a is", "common: [name=x]\nclaim: a is"), "common: 'name=x' is set by"),
        (("claim: a is", "quick: [paths.outputs=x]\nclaim: a is"), "quick: 'paths.outputs=x' is set by"),
        (("second: b", "second: a"), "second must be another run than first"),
        (("second: b", "second: b, than: base"), "comes without than"),
        (("claim: a is shorter than b", "[1, 2"), "is no claim"),
        (("claim: a is shorter than b", "claim: a\nclaim: b"), "found duplicate key claim"),
    ],
)
def test_a_wrong_claim_is_refused_with_its_file_and_key(change: tuple[str, str], message: str, tmp_path: Path):
    path = written(tmp_path, CLAIM.replace(*change))
    with pytest.raises(UserError) as refused:
        load_claim("mine", path)
    assert message in str(refused.value) and "mine.yaml" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["my claim", "c1.5", "a*"])
def test_the_name_of_a_claim_is_one_for_files(name: str, tmp_path: Path):
    with pytest.raises(UserError, match="the name of a claim has letters, digits, - and _ only"):
        load_claim(name, written(tmp_path, CLAIM, name=name))


def test_a_run_that_does_not_evaluate_base_is_refused_before_it_runs(tmp_path: Path):
    claim = load_claim("mine", written(tmp_path, CLAIM.replace("a: []", "a: [~recipe.eval-first]")))
    with pytest.raises(UserError, match="claim 'mine', run 'a': its recipe must evaluate the model 'base'"):
        check_runs("mine", claim, quick=False)


def test_a_model_that_no_evaluation_measures_is_refused(tmp_path: Path):
    unmeasured = CLAIM.replace("a: []", "a: ['recipe.eval.models=[phase2]']").replace(
        "relevant: 5", "relevant: 5, model: phase1"
    )
    claim = load_claim("mine", written(tmp_path, unmeasured))
    with pytest.raises(UserError, match="model is 'phase1', which 'a' does not have; it has base, phase2"):
        check_runs("mine", claim, quick=False)


def test_another_model_of_the_same_name_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    claim = load_claim("mine", written(tmp_path, CLAIM.replace("a: []", "a: [model=hf, model.path=own]")))
    with pytest.raises(UserError, match=r"claim 'mine', run 'a': model.path: no folder 'own'"):
        check_runs("mine", claim, quick=False)
    shutil.copytree(LAB_MODEL, tmp_path / "own")
    first = check_runs("mine", claim, quick=False)
    (tmp_path / "own/config.json").write_text((tmp_path / "own/config.json").read_text() + " ")
    then = check_runs("mine", claim, quick=False)
    assert first["a"] != then["a"] and first["b"] == then["b"]


FILES = ("problems.jsonl", "examples.jsonl", "judge.py")


@pytest.mark.parametrize("changed", [*FILES, "grader", "embedded model"])
def test_all_that_decides_a_result_makes_another_run(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for file in FILES:
        (tmp_path / file).write_text("first")
    one = "{source: dataset, path: problems.jsonl, shots: 1, shots_path: examples.jsonl}"
    other = "{source: dataset, path: problems.jsonl, verifier: 'judge.py:judge'}"
    sets = f'["+data.test.one={one}", "+data.test.other={other}"]'
    claim = load_claim("mine", written(tmp_path, CLAIM.replace("a: []", f"a: {sets}")))
    monkeypatch.chdir(tmp_path)
    first = check_runs("mine", claim, quick=False)
    assert check_runs("mine", claim, quick=False) == first
    if changed in FILES:
        (tmp_path / changed).write_text("second")
    elif changed == "grader":
        monkeypatch.setattr(claim_config, "GRADER_VERSION", 0)
    else:
        shutil.copytree(LAB_MODEL, tmp_path / "lab")
        (tmp_path / "lab/config.json").write_text((LAB_MODEL / "config.json").read_text() + " ")
        monkeypatch.setattr(claim_config, "find_model", lambda path: tmp_path / path)
    then = check_runs("mine", claim, quick=False)
    assert then["a"] != first["a"] and (then["b"] == first["b"]) is (changed in FILES)


def test_runs_that_several_versions_of_the_grader_judged_are_not_compared(claim: Claim, tmp_path: Path):
    runs = finished(claim, tmp_path, seeds=2)
    assert outcome_of("mine", claim, runs, quick=False).seeds == range(2)
    rows_file = runs[2].folder / "latest/rows-phase2.jsonl"
    rows_file.write_text(re.sub(r'"grader_version": *\d+', '"grader_version": 0', rows_file.read_text()))
    with pytest.raises(UserError) as refused:
        outcome_of("mine", claim, runs, quick=False)
    said = str(refused.value)
    assert f"version 0 of the grader judged responses in '{runs[2].folder}'" in said and "remove done.json" in said


def test_a_run_that_does_not_compose_is_named(tmp_path: Path):
    claim = load_claim("mine", written(tmp_path, CLAIM.replace("algo=grpo", "algo=grppo")))
    with pytest.raises(UserError, match=r"claim 'mine', run 'b': .*grppo"):
        check_runs("mine", claim, quick=False)


def test_what_is_measured(tmp_path: Path):
    """The made run: 12 problems x 2, lengths 100 - 30 n + p % 20 for model n, right where (p + s) % 4 <= n."""
    run = made_run(tmp_path / "run")

    def of(measure: str, model: str = "phase2", than: str | None = None, test: str | None = None) -> float:
        contrast = Contrast(measure=measure, first="a", expect="less", relevant=1, model=model, than=than, test=test)
        found = difference(contrast, read_run(run), None)
        assert found is not None
        return found

    base, phase1, phase2 = (100 - 30 * n + 5.5 for n in range(3))
    assert of("tokens") == pytest.approx(100 * (phase2 / base - 1))
    assert of("tokens", than="phase1") == pytest.approx(100 * (phase2 - phase1) / base)
    assert of("accuracy") == pytest.approx(50) and of("accuracy", "base") == 0  # 3/4 and 1/4 are right
    assert of("gap", "base") == pytest.approx(0)  # lengths of one problem are equal
    assert of("metrics.outcome/correct") == pytest.approx(0.95)  # of the last two of ten steps
    assert of("accuracy", test=read_run(run).rows[0].benchmark) == pytest.approx(50)
    with pytest.raises(UserError, match="no rows of 'phase2' on nothing"):
        of("accuracy", test="nothing")
    with pytest.raises(UserError, match="no rows of 'phase3'"):
        of("tokens", "phase3")
    with pytest.raises(UserError, match="no metric 'policy/nothing' of 'phase2'"):
        of("metrics.policy/nothing")


def test_other_ways_of_asking_are_no_part_of_a_measure(tmp_path: Path):
    """By hand: base 200 tokens as asked first, 100 asked to be concise; phase2 110. -45 %, not -27 %."""
    right = Outcome.CORRECT
    base = make_row("p", right, 200, model="base"), make_row("p", right, 100, model="base", prompt="concise")
    rows = [*base, make_row("p", right, 110, model="phase2")]
    run = replace(read_run(made_run(tmp_path / "run")), rows=rows)
    assert numbers(run).tokens == pytest.approx(-45)
    contrast = Contrast(measure="tokens", first="a", expect="less", relevant=1)
    assert difference(contrast, run, None) == pytest.approx(-45)


def test_a_seed_with_too_little_to_measure_is_left_out(tmp_path: Path):
    """At a low temperature each problem may be all right or all wrong: a gap needs five with both. By hand: 30 against 20
    tokens, 10 of 25: +40 %."""
    gap = CLAIM.replace("measure: tokens, first: a, second: b", "measure: gap, first: a")
    claim = load_claim("mine", written(tmp_path, gap))
    runs = finished(claim, tmp_path, seeds=2)
    both = [
        make_row(f"p{problem}", outcome, num_tokens, sample, model="phase2")
        for problem in range(5)
        for sample, (outcome, num_tokens) in enumerate(((Outcome.CORRECT, 20), (Outcome.WRONG, 30)))
    ]
    apart = [*both[:-1], replace(both[-1], problem_id="q")]
    contrast = claim.contrasts["a against b"]
    data = read_run(made_run(tmp_path / "another"))
    assert difference(contrast, replace(data, rows=both), None) == pytest.approx(40)
    assert difference(contrast, replace(data, rows=apart), None) is None  # four have both
    rows_file = runs[0].folder / "latest/rows-phase2.jsonl"
    kept = [line for line in rows_file.read_text().splitlines() if json.loads(line).get("outcome") != "wrong"]
    rows_file.write_text("\n".join(kept) + "\n")
    outcome = outcome_of("mine", claim, runs, quick=False)
    assert list(outcome.differences["a against b"]) == [1] and outcome.word() == "underpowered"
    (cells,) = contrast_rows(outcome)
    assert (cells[1], cells[-1]) == ("1", "underpowered")


def test_a_gap_is_0_where_outcome_and_length_have_nothing_to_do_with_each_other():
    """Three responses of 10, 20 and 60 tokens, each in turn the only correct one: +100, +50 and -150 %. The ratio of wrong
    to correct would be +300, +75 and -75 %."""
    lengths = (10, 20, 60)
    found = [
        gap
        for right in lengths
        for gap in gaps([make_row("p", Outcome.CORRECT if n == right else Outcome.WRONG, n, sample=n) for n in lengths])
    ]
    assert found == pytest.approx([100, 50, -150])


def test_a_claim_is_refuted_though_another_contrast_has_no_seeds(claim: Claim, tmp_path: Path):
    both = replace(claim, contrasts={**claim.contrasts, "another": claim.contrasts["a against b"]})
    made = outcome_of("mine", both, finished(both, tmp_path, seeds=3), quick=False)
    assert replace(made, differences={"a against b": {0: 30.0, 1: 31.0, 2: 29.0}, "another": {}}).word() == "does not hold"
    assert replace(made, differences={"a against b": {0: -30.0, 1: -31.0, 2: -29.0}, "another": {}}).word() == "underpowered"


def test_a_run_of_which_nothing_could_be_graded_has_no_accuracy(tmp_path: Path):
    """Its lengths count all the same."""
    claim = load_claim("mine", written(tmp_path, CLAIM.replace("measure: tokens", "measure: accuracy")))
    runs = finished(claim, tmp_path, seeds=2)
    for run in runs[::2]:  # run a with both seeds
        rows_file = run.folder / "latest/rows-phase2.jsonl"
        rows_file.write_text(re.sub('"outcome": *"[a-z_]+"', '"outcome": "grader_error"', rows_file.read_text()))
    outcome = outcome_of("mine", claim, runs, quick=False)
    assert outcome.differences == {"a against b": {}} and outcome.word() == "underpowered"
    assert [outcome.runs["a"][seed].accuracy for seed in (0, 1)] == [None, None] and outcome.runs["a"][0].tokens < 0
    write_outcome(outcome, tmp_path)
    assert from_json(tmp_path / "mine.json") == outcome
    text = write_claims([outcome], tmp_path / "docs").read_text()
    assert re.search(r"^\| a \| 2 \| -[^|]+ \|  \| ", text, re.M) and re.search(r"^\| b \| 2 \| .*\+50\.0 ", text, re.M)


@pytest.mark.parametrize(
    ("expect", "at_least", "border", "holding"),
    [
        ("less", 0, 0, [-60, -45, -6, -2]),
        ("more", 0, 0, [2, 6, 45, 60]),
        ("less", 40, -40, [-60, -45]),
        ("more", 40, 40, [45, 60]),
        ("not less", 0, -5, [-2, 0, 2, 6, 45, 60]),
        ("not more", 0, 5, [-60, -45, -6, -2, 0, 2]),
    ],
)
def test_a_difference_holds_exactly_where_its_interval_lies_in_the_figures_range(
    expect: Expectation, at_least: float, border: float, holding: list[int], claim: Claim, tmp_path: Path
):
    """Nine seeds from 2 below the mean to 2 above it: standard deviation sqrt(15 / 8), Student's t of 8 degrees of freedom
    2.306, so that the interval reaches 1.0526 to either side."""
    made = outcome_of("mine", claim, finished(claim, tmp_path, seeds=2), quick=False)
    contrast = Contrast(measure="tokens", first="a", expect=expect, relevant=5, at_least=at_least)
    made = replace(made, claim=replace(claim, contrasts={"one": contrast}))
    held: list[int] = []
    for centre in (-60, -45, -6, -2, 0, 2, 6, 45, 60):
        outcome = replace(made, differences={"one": {seed: centre + (seed - 4) / 2 for seed in range(9)}})
        drawn = figures._contrasts(outcome, {"one": contrast}).to_dict()["layer"]
        (green,), (shown,) = drawn[0]["data"]["values"], drawn[3]["data"]["values"]
        assert (shown["low"], shown["high"]) == pytest.approx((centre - 1.0526, centre + 1.0526), abs=1e-4)
        assert green["from"] == border and (green["to"] > border) is (expect in ("more", "not less"))
        held += [centre] if shown["verdict"] == "holds" else []
    assert held == holding


def test_a_figure_shows_runs_and_every_difference(claim: Claim, tmp_path: Path):
    further = Contrast(measure="accuracy", first="a", expect="not less", relevant=3)
    both = replace(claim, contrasts={**claim.contrasts, "kept": further})
    outcome = outcome_of("mine", both, finished(both, tmp_path, seeds=3), quick=False)
    drawn = figures.figure(outcome)
    assert [title.partition(" (")[0] for title in drawn.panels] == [
        "each run: tokens",
        "each run: accuracy",
        "differences in tokens",
        "differences in accuracy",
    ]
    alone = replace(both, runs={"a": []}, contrasts={"kept": further})
    alone_drawn = figures.figure(replace(outcome, claim=alone, differences={"kept": outcome.differences["kept"]}))
    assert [title.partition(" (")[0] for title in alone_drawn.panels] == ["differences in accuracy"]
    assert "Runs: mean" in drawn.caption and "Runs: mean" not in alone_drawn.caption and "kept: " in alone_drawn.caption


def test_an_interval_far_wider_than_its_seeds_does_not_hide_the_others():
    assert figures._domain([0.0, -5.0, 15.0], [-480.0, 480.0]) == (-26.0, 36.0)  # a span of 20 to either side, and a margin
    assert figures._domain([0.0, -5.0, 15.0], [-6.0, 12.0]) == (-7.0, 16.0)
    assert figures._domain([0.0], []) == (-0.05, 0.05)


def test_equal_seeds_have_no_interval(claim: Claim, tmp_path: Path):
    outcome = outcome_of("mine", claim, finished(claim, tmp_path, seeds=2), quick=False)
    equal = replace(outcome, differences={"a against b": {0: 1.5, 1: 1.5}})
    (cells,) = contrast_rows(equal)
    assert cells[2] == "+1.5 % of base with every seed" and cells[-1] == "underpowered"
    text = write_claims([equal], tmp_path / "docs").read_text()
    assert "+1.5 % of base with every seed" in text and "[-inf" not in text


@pytest.mark.parametrize(
    ("common", "contrast", "message"),
    [
        ("['eval.temperatures=[0.3,1]']", "", "evaluated: 0.3, 1"),
        ("['eval.temperatures=[0.3,1]']", ", temperature: 0.6", "evaluated: 0.3, 1"),
        ("['eval.temperatures=[0.3]']", ", temperature: 1", "evaluated: 0.3"),
    ],
)
def test_a_contrast_says_at_which_temperature(common: str, contrast: str, message: str, tmp_path: Path):
    text = CLAIM.replace("relevant: 5}", f"relevant: 5{contrast}}}").replace("runs:", f"common: {common}\nruns:")
    with pytest.raises(UserError, match=rf"claim 'mine': contrasts\.a against b\.temperature must .*'a' is {message}$"):
        check_runs("mine", load_claim("mine", written(tmp_path, text)), quick=False)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("model: phase3", "model is 'phase3', which 'a' does not have; it has base, phase1, phase2"),
        ("than: nosuch", "than is 'nosuch'"),
        ("test: nosuch", "test is 'nosuch', which 'a' does not have; it has chain"),
    ],
)
def test_a_contrast_names_what_its_runs_have(more: str, said: str, tmp_path: Path):
    alone = CLAIM.replace("second: b, ", "").replace("relevant: 5}", f"relevant: 5, {more}}}")
    claim = load_claim("mine", written(tmp_path, alone))
    with pytest.raises(UserError, match=re.escape(f"claim 'mine': contrasts.a against b.{said}")):
        check_runs("mine", claim, quick=False)


@pytest.mark.parametrize("seconds", ['"abc"', "null", "[1]", "1e400"])
def test_a_damaged_time_of_a_run_is_none(claim: Claim, seconds: str, tmp_path: Path):
    (run, *_) = finished(claim, tmp_path, seeds=2)
    run.done_file.write_text(f'{{"overrides": {json.dumps(run.overrides)}, "seconds": {seconds}}}')
    assert run.is_done() and run.seconds == 0
    assert outcome_of("mine", claim, [run], quick=False).seconds == 0


def test_an_outcome_whose_name_is_no_name_is_refused(claim: Claim, tmp_path: Path):
    write_outcome(outcome_of("mine", claim, finished(claim, tmp_path, seeds=2), quick=False), tmp_path)
    (tmp_path / "evil.json").write_text((tmp_path / "mine.json").read_text().replace('"mine"', '"../../evil"'))
    with pytest.raises(UserError, match=r"evil\.json': the claim's name '\.\./\.\./evil'"):
        recorded(tmp_path, quick=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('"differences": {"a against b"', '"differences": {"b against a"'),
            "differences or runs are not those of its claim",
        ),
        (('"runs": {"a": {', '"runs": {"z": {'), "differences or runs are not those of its claim"),
        (('"num_problems": {}', '"num_problems": {"z": 5}'), "differences or runs are not those of its claim"),
        (('"relevant": 5', '"relevant": 0'), "relevant must be positive"),
        (('"measure": "tokens"', '"measure": "words"'), "measure must be one of"),
        (('"seconds": ', '"seconds": -'), "seconds: Input should be greater than or equal to 0"),
    ],
)
def test_a_damaged_outcome_is_refused(claim: Claim, change: tuple[str, str], message: str, tmp_path: Path):
    write_outcome(outcome_of("mine", claim, finished(claim, tmp_path, seeds=2), quick=False), tmp_path)
    text = json.dumps(json.loads((tmp_path / "mine.json").read_text()))
    assert change[0] in text
    (tmp_path / "mine.json").write_text(text.replace(*change))
    with pytest.raises(UserError) as refused:
        recorded(tmp_path, quick=False)
    assert message in str(refused.value) and "mine.json" in str(refused.value)


def test_a_run_whose_config_has_changed_is_not_done(claim: Claim, tmp_path: Path):
    hashes = check_runs("mine", claim, quick=False)
    assert hashes["a"] != hashes["b"]
    todo = planned("mine", claim, [0], tmp_path, quick=False, configs=hashes)
    for run in todo:
        run.folder.mkdir(parents=True)
        write_json(run.done_file, {"overrides": list(run.overrides), "config": run.config, "seconds": 1.0})
    assert all(run.is_done() for run in todo)
    changed = planned("mine", claim, [0], tmp_path, quick=False, configs=hashes | {"b": "another"})
    assert [run.is_done() for run in changed] == [True, False]


def test_a_config_that_changes_while_claims_run_stops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The first run to start edits a preset, as a person may do in the hours that claims take."""
    written(tmp_path, CLAIM.replace("[algo=grpo]", "[algo=mine]"))
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo/mine.yaml").write_text("defaults: [grpo]\n")
    started = ends_with(monkeypatch, 0)
    start = claim_runs._start

    def then_edit(run: PlannedRun, out: Path, threads: int) -> "subprocess.Popen[bytes]":
        (tmp_path / "algo/mine.yaml").write_text("defaults: [grpo]\nclip_low: 0.1\n")
        return start(run, out, threads)

    monkeypatch.setattr(claim_runs, "_start", then_edit)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conclip", "claims", "mine", "--config-dir", ".", "--seeds", "2"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and len(started) == 1
    assert "the config of 'b' has changed since the command began" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_starts_again_is_not_done(claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else, cut off and with its former config back, it would count as done, with what the other config has left."""
    run = planned("mine", claim, [0], tmp_path, quick=False, configs={"a": "one", "b": "one"})[0]
    run.folder.mkdir(parents=True)
    write_json(run.done_file, {"overrides": list(run.overrides), "config": "one", "seconds": 1.0})
    assert run.is_done() and not run.times_file.exists()  # as earlier versions left it
    monkeypatch.setattr(claim_runs, "PYTHON", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(MachineFailure):
        carry_out([replace(run, config="another")], tmp_path, jobs=1, tell=lambda *_: None)
    assert not run.is_done() and 1 < sum(run.times.values()) < 60


class Ending:
    """A process that ends with this code; None: a signal comes while it runs."""

    def __init__(self, code: int | None) -> None:
        self.returncode = code

    def poll(self) -> int:
        if self.returncode is None:
            raise KeyboardInterrupt
        return self.returncode

    def terminate(self) -> None: ...

    def wait(self) -> None: ...


def test_the_time_of_a_run_is_that_of_all_starts_of_its_attempt(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Cut off after 40 seconds, failed after 5, ended after 15: 60. Another attempt, of another config, takes 7."""
    run = planned("mine", claim, [0], tmp_path, quick=False)[0]
    now, told = [0.0], list[float]()
    monkeypatch.setattr(claim_runs, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))

    def start(attempt: str, seconds: float, code: int | None) -> None:
        def started(run: PlannedRun, out: Path, threads: int) -> Ending:
            run.done_file.unlink(missing_ok=True)
            (run.folder / attempt).mkdir(parents=True, exist_ok=True)
            (run.folder / "latest").unlink(missing_ok=True)
            (run.folder / "latest").symlink_to(attempt)
            now[0] += seconds
            return Ending(code)

        monkeypatch.setattr(claim_runs, "_start", started)
        carry_out([run], tmp_path, jobs=1, tell=lambda _, seconds: told.append(seconds))

    with pytest.raises(KeyboardInterrupt):
        start("attempt-001", 40, None)
    with pytest.raises(MachineFailure):
        start("attempt-001", 5, 3)
    start("attempt-001", 15, 0)
    assert run.seconds == 60 and told == [60]
    run.done_file.unlink()
    start("attempt-002", 7, 0)
    assert run.seconds == 7 and told == [60, 7]


def test_a_page_is_not_made_from_fewer_seeds_than_it_has(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_claims([outcome_of("mine", claim, finished(claim, tmp_path, seeds=3), quick=False)], tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    for options, words in (
        (["--seeds", "2"], "--seeds: 'docs/claims' has 3 seeds of 'mine' already"),
        (["--seeds", "2", "--first-seed", "2"], "--first-seed: 'docs/claims' has seeds 0 to 2 of 'mine' already"),
    ):
        told = ["conclip", "claims", "mine", "--list", "--config-dir", ".", "--page", "docs", *options]
        monkeypatch.setattr(sys, "argv", told)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_another_set_of_seeds_is_of_the_same_claim(claim: Claim, tmp_path: Path):
    shown = [outcome_of("mine", claim, finished(claim, tmp_path, seeds=3), quick=False)]
    contrast = claim.contrasts["a against b"]
    check = partial(claim_outcome.check_page, "mine", shown=shown, folder=Path("docs"))
    check(claim, seeds=range(100, 103))
    check(replace(claim, designed="otherwise", quick=["phase.num_steps=1"]), seeds=range(100, 103))
    for part, others in (
        ("contrasts", replace(claim, contrasts={"a against b": replace(contrast, relevant=10)})),
        ("runs", replace(claim, runs={**claim.runs, "b": ["algo=dapo"]})),
        ("common", replace(claim, common=["algo.kl_coef=0"])),
    ):
        check(others, seeds=range(3))  # it takes the place of those
        with pytest.raises(UserError) as refused:
            check(others, seeds=range(100, 103))
        said = str(refused.value)
        assert f"seeds 0 to 2 of 'mine' with other {part} than its file has now; remove 'mine.json'" in said


def test_a_page_is_of_one_model_and_its_problems(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given = ["model.chat_template_kwargs={a: 1}"]
    runs = finished(on_other(claim, given), tmp_path, seeds=3)
    (tmp_path / "docs/claims").mkdir(parents=True)
    write_outcome(outcome_of("mine", claim, finished(claim, tmp_path, seeds=3), quick=False), tmp_path)
    page = write_claims([outcome_of("mine", on_other(claim, given), runs, quick=False)], tmp_path / "docs")
    assert "`conclip claims mine 'model.chat_template_kwargs={a: 1}' --seeds 3`" in page.read_text()
    assert not from_json(tmp_path / "mine.json").claim.given
    monkeypatch.chdir(tmp_path)
    for other in ([], ["model=hf"]):
        told = ["conclip", "claims", "mine", "--list", *other, "--config-dir", ".", "--page", "docs"]
        monkeypatch.setattr(sys, "argv", told)
        with pytest.raises(SystemExit) as ended:
            main()
        said = " ".join(capsys.readouterr().err.split())
        assert ended.value.code == 2 and f"--page: 'docs/claims' has 'mine' with {given[0]}; give another folder" in said


def test_a_quick_page_stands_beside_the_other(claim: Claim, tmp_path: Path):
    runs = finished(claim, tmp_path, seeds=3)
    whole = write_claims([outcome_of("mine", claim, runs, quick=False)], tmp_path / "docs")
    before = whole.read_text(), (tmp_path / "docs/claims/mine.svg").read_text()
    quick = write_claims([outcome_of("mine", claim, runs[:4], quick=True)], tmp_path / "docs", quick=True)
    assert quick.name == "claims-quick.md" and "(claims/mine-quick.svg)" in quick.read_text()
    assert before == (whole.read_text(), (tmp_path / "docs/claims/mine.svg").read_text())


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    return load_claim("mine", written(tmp_path, CLAIM))


def ends_with(monkeypatch: pytest.MonkeyPatch, code: int) -> list[str]:
    """Runs that end at once with this code, and the names of those that were started."""
    started: list[str] = []

    def start(run: PlannedRun, out: Path, threads: int) -> "subprocess.Popen[bytes]":
        run.folder.mkdir(parents=True, exist_ok=True)
        started.append(run.folder.name)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])

    monkeypatch.setattr(claim_runs, "_start", start)
    return started


def test_what_ended_is_not_run_again_unless_its_overrides_changed(
    claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started = ends_with(monkeypatch, 0)
    todo = planned("mine", claim, range(2), tmp_path, quick=False)
    assert [(run.run, run.seed) for run in todo] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert todo[1].overrides == ("algo=grpo", "seed=0")
    told: list[str] = []
    carry_out(todo[:3], tmp_path, jobs=2, tell=lambda run, seconds: told.append(run.folder.name))
    carry_out(todo, tmp_path, jobs=2, tell=lambda run, seconds: told.append(run.folder.name))
    assert sorted(told) == sorted(started) == sorted(run.folder.name for run in todo)
    other = planned("other", replace(claim, runs={"c": ["algo=grpo"], "d": ["algo=ppo"]}), [0], tmp_path, quick=False)
    assert [run.is_done() for run in other] == [True, False]  # another claim's run with the same overrides is the same run
    twice = planned("twice", replace(claim, runs={"e": ["algo=dapo"], "f": ["algo=dapo"]}), [0], tmp_path, quick=False)
    carry_out(twice, tmp_path, jobs=2, tell=lambda *_: None)
    assert len(started) == 5 and all(run.is_done() for run in twice)
    write_json(todo[0].done_file, {"overrides": ["algo=ppo"], "seconds": 1.0})
    assert [run.is_done() for run in todo] == [False, True, True, True]


def test_runs_side_by_side_have_different_seeds(claim: Claim, tmp_path: Path):
    todo = planned("mine", claim, range(3), tmp_path, quick=False)
    alone, pairs = ([(run.run, run.seed) for run in in_order(todo, jobs)] for jobs in (1, 2))
    assert alone == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert pairs == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("b", 2)]


def test_a_run_that_fails_ends_the_claim_and_names_its_log(claim: Claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ends_with(monkeypatch, 3)
    with pytest.raises(MachineFailure, match=r"mine: a, seed 0 ended with code 3; see '.*-0/output.log'"):
        carry_out(planned("mine", claim, range(2), tmp_path, quick=False), tmp_path, jobs=1, tell=lambda *_: None)


def finished(claim: Claim, out: Path, *, seeds: int) -> list[PlannedRun]:
    """Made runs, and those of `b` with twice the problems."""
    todo = planned("mine", claim, range(seeds), out, quick=False)
    for run in todo:
        made_run(run.folder / "attempt-001", num_problems=12 + 12 * (run.run == "b") + 4 * run.seed)
        (run.folder / "latest").symlink_to("attempt-001")
        write_json(run.done_file, {"overrides": list(run.overrides), "seconds": 60.0})
    return todo


def test_an_outcome_is_read_back_and_shown(claim: Claim, tmp_path: Path):
    todo = finished(claim, tmp_path, seeds=3)
    outcome = outcome_of("mine", claim, todo[:-1], quick=False)
    assert list(outcome.differences["a against b"]) == [0, 1] and outcome.seconds == 300  # the last pair is not whole
    assert list(outcome.runs["a"]) == [0, 1, 2] and list(outcome.runs["b"]) == [0, 1]
    assert outcome.runs["a"][0].accuracy == pytest.approx(50) and outcome.runs["a"][0].folder == todo[0].folder.name
    write_outcome(outcome, tmp_path)
    assert from_json(tmp_path / "mine.json") == outcome
    assert recorded(tmp_path, quick=False) == [outcome] and recorded(tmp_path, quick=True) == []
    page = write_claims([outcome], tmp_path / "docs")
    text = page.read_text()
    assert "| [mine](#mine) | a is shorter than b |" in text and "`conclip claims mine --seeds 3`" in text
    assert "(3 seeds, where the claim fixes 5)" in text
    assert from_json(tmp_path / "docs/claims/mine.json") == outcome and "(claims/mine.json)" in text
    assert re.search(r"^\| a \| 3 \| -\d\d\.\d \[.*\+50\.0 ", text, re.M)
    assert (tmp_path / "docs/claims/mine.svg").read_text().startswith("<svg")
    with pytest.raises(UserError, match="holds no outcome"):
        from_json(todo[0].done_file)


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ({}, "2-core x86_64 CPU"),  # as earlier versions wrote it
        ({"gpus": []}, "2-core x86_64 CPU"),
        ({"gpus": ["NVIDIA H200"]}, "2-core x86_64 CPU with NVIDIA H200"),
        ({"gpus": ["NVIDIA H200", "NVIDIA L4", "NVIDIA H200"]}, "2-core x86_64 CPU with 2 x NVIDIA H200 and NVIDIA L4"),
    ],
)
def test_an_outcome_names_the_gpus_of_its_machine(gpus: dict[str, list[str]], said: str, claim: Claim, tmp_path: Path):
    runs = finished(claim, tmp_path, seeds=2)
    for run in runs:
        file = run.folder / "latest/environment.json"
        write_json(file, {**json.loads(file.read_text()), "num_cpus": 2, "machine": "x86_64", **gpus})
    assert outcome_of("mine", claim, runs, quick=False).machine == said


def test_runs_of_one_config_take_their_time_once(claim: Claim, tmp_path: Path):
    """Two seeds of a and b, a minute each; c is b by another name."""
    todo = finished(claim, tmp_path, seeds=2)
    twice = replace(claim, runs={**claim.runs, "c": claim.runs["b"]}, hours=1 / 15, seeds=2)
    runs = [*todo, *(replace(run, run="c") for run in todo if run.run == "b")]
    assert outcome_of("mine", twice, runs, quick=False).seconds == 240
    assert twice.seconds_a_run() == pytest.approx(60)


def test_a_page_says_how_its_seeds_come_again(claim: Claim, tmp_path: Path):
    as_fixed = replace(claim, seeds=2)
    runs = [replace(run, seed=run.seed + 100) for run in finished(claim, tmp_path, seeds=2)]
    text = write_claims([outcome_of("mine", as_fixed, runs, quick=False)], tmp_path / "docs").read_text()
    assert "`conclip claims mine --first-seed 100`" in text and "where the claim fixes" not in text


def test_a_page_keeps_the_claims_that_it_had(claim: Claim, tmp_path: Path):
    outcome = outcome_of("c2", claim, finished(claim, tmp_path, seeds=2), quick=False)
    for changed in (outcome, replace(outcome, name="c10"), replace(outcome, name="c2", seconds=7200)):
        page = write_claims([changed], tmp_path / "docs")
    assert re.findall(r"^## (.*)|([\d.]+) hours", page.read_text(), re.M) == [
        ("", "2.1"),  # both together
        ("c2", ""),
        ("", "2.0"),
        ("c10", ""),
        ("", "0.1"),
    ]


CHOICE = "more of them are a choice made after a look"


@pytest.mark.parametrize(
    ("fixed", "quick", "said"),
    [
        (3, False, ""),
        (5, False, " (3 seeds, where the claim fixes 5)"),
        (2, False, f" (3 seeds, where the claim fixes 2; {CHOICE})"),
        (5, True, f" (quick: two seeds, smaller runs) (3 seeds, where the claim fixes 2; {CHOICE})"),
    ],
)
def test_a_verdict_of_other_seeds_than_were_fixed_says_so_everywhere(
    fixed: int, quick: bool, said: str, claim: Claim, tmp_path: Path
):
    made = outcome_of("mine", replace(claim, seeds=fixed), finished(claim, tmp_path, seeds=3), quick=quick)
    outcome = replace(made, differences={"a against b": {0: -30.0, 1: -31.0, 2: -29.0}})
    table = claims_command._verdicts([outcome])
    assert list(table.columns[-1].cells) == ["holds", f"holds{said}"]
    assert f"Verdict: **holds**{said}\n" in write_claims([outcome], tmp_path / "docs", quick=quick).read_text()


def test_another_set_of_seeds_stands_beside_the_first(claim: Claim, tmp_path: Path):
    made = outcome_of("mine", claim, finished(claim, tmp_path, seeds=3), quick=False)
    first = replace(made, differences={"a against b": {0: -30.0, 1: -31.0, 2: -29.0}})
    moved = {run: {seed + 100: found for seed, found in by_seed.items()} for run, by_seed in first.runs.items()}
    again = replace(first, runs=moved, differences={"a against b": {100: 30.0, 101: 31.0, 102: 29.0}})
    text = write_claims([again, first], tmp_path / "docs").read_text()
    few = "(3 seeds, where the claim fixes 5)"
    against = f"**does not hold** {few}: 0 of 1 differences hold"
    assert f"| [mine](#mine) | a is shorter than b | **holds** {few} | {against} |" in text
    assert "**Again, with seeds 100 to 102:** **does not hold**" in text and "(claims/mine-seeds-100.json)" in text
    assert text.count("## mine") == 1 and (tmp_path / "docs/claims/mine.json").is_file()


def test_a_run_that_decides_nothing_is_shown(tmp_path: Path):
    claim = load_claim("mine", written(tmp_path, UNNAMED))
    outcome = outcome_of("mine", claim, finished(claim, tmp_path, seeds=2), quick=False)
    assert list(outcome.runs) == ["a", "b", "c"] and outcome.runs["c"][1].tokens < 0
    assert re.search(r"^\| c \| 2 \| -", write_claims([outcome], tmp_path / "docs").read_text(), re.M)


def test_a_claim_without_two_seeds_is_underpowered(claim: Claim, tmp_path: Path):
    outcome = outcome_of("mine", claim, finished(claim, tmp_path, seeds=2)[:2], quick=True)
    assert outcome.word() == "underpowered" and "quick" in write_claims([outcome], tmp_path / "docs", quick=True).read_text()
    nothing: dict[str, dict[int, float]] = {"a against b": {}}
    underpowered = claim_outcome.Outcome(name="n", claim=claim, quick=False, differences=nothing, runs={}, seconds=0)
    assert underpowered.word() == "underpowered"


def refuse(*_: object, **__: object) -> str:
    raise UserError("its model is gone")


def test_costs_come_from_runs_that_ended_here_or_from_the_claims_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Ten runs of 6 minutes by the file of "mine"; "other" shares its five runs `b`, and has no hours; "twice" has no
    others than "mine", and five of them by two names."""
    written(tmp_path, CLAIM + "hours: 1\n")
    written(tmp_path, UNNAMED.replace("c: [algo=dapo]", "c: [algo=grpo]"), name="twice")
    written(tmp_path, CLAIM.replace("a: []", "c: [algo=dapo]").replace("first: a", "first: c"), name="other")

    def listed(*options: str, names: tuple[str, ...] = ("other", "mine")) -> dict[str, str]:
        told = ["conclip", "claims", *names, "--list", "--config-dir", ".", "--out", "out", *options]
        monkeypatch.setattr(sys, "argv", told)
        main()
        cells = [[cell.strip() for cell in re.split("[│|]", line)[1:-1]] for line in capsys.readouterr().out.splitlines()]
        return {row[0]: row[-1] for row in cells if len(row) == 5 and row[0]}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    unknown = "not known before a run has ended"
    assert listed() == {"other": unknown, "mine": "at least 1:00:00", "all": "at least 1:00:00, and 5 runs"}
    assert listed(names=("mine", "other")) == listed()
    assert listed("--quick") == {"other": unknown, "mine": "less than 24:00", "all": "less than 24:00, and 2 runs"}
    assert listed("--seeds", "2")["mine"] == "at least 24:00"
    claim = load_claim("mine", tmp_path / "claims/mine.yaml")
    run = planned("mine", claim, [0], Path("out"), quick=False, config_dir=Path("."))[0]
    run.folder.mkdir(parents=True)
    config = check_runs("mine", claim, quick=False, config_dir=Path("."))["a"]
    write_json(run.done_file, {"overrides": list(run.overrides), "config": config, "seconds": 60.0})
    assert listed() == {"other": unknown, "mine": "9:00", "all": "at least 9:00, and 5 runs"}
    assert listed(names=("mine", "twice")) == {"mine": "9:00", "twice": "9:00", "all": "9:00"}
    write_json(run.done_file, {"overrides": list(run.overrides), "config": "of before", "seconds": 60.0})
    assert listed(names=("mine",)) == {"mine": "at least 1:00:00"}  # the run has another config now: it is not done
    monkeypatch.setattr(claims_command, "run_hash", refuse)
    assert listed(names=("mine",)) == {"mine": "at least 1:00:00"}


def test_hours_in_the_files_are_those_of_the_page():
    shown = {path.stem: from_json(path) for path in (Path(__file__).parent.parent / "docs/claims").glob("*.json")}
    first = {name: outcome for name, outcome in shown.items() if not outcome.seeds.start}
    assert first and not any(outcome.quick for outcome in shown.values())
    for name, outcome in first.items():
        assert load_claim(name, claim_files()[name]).hours == round(outcome.seconds / 3600, 1), name


@pytest.mark.whole
def test_a_claim_of_ones_own_runs_and_gets_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    written(
        tmp_path,
        "claim: phase 2 shortens\nseeds: 2\n"
        "common: [debug=two_phase, recipe=phase2_only, recipe.eval-first.evidence=false, probe.first_samples=4,\n"
        "  probe.max_samples=4, rollout.max_tokens=96, eval.max_tokens=96]\n"
        "runs: {ppo: []}\ncontrasts:\n  tokens: {measure: tokens, first: ppo, expect: less, relevant: 5}\n",
    )
    command = ["conclip", "claims", "mine", "--config-dir", ".", "--jobs", "2", "--page", "page"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    said = capfd.readouterr().out
    assert "mine: ppo, seed 1" in said and "verdict" in said
    outcome = json.loads((tmp_path / "outputs/claims/mine.json").read_text())["outcome"]
    assert list(outcome["differences"]["tokens"]) == ["0", "1"]
    assert (tmp_path / "page/claims.md").is_file()
    monkeypatch.setattr(sys, "argv", [*command, "--list"])
    main()
    assert "ppo, seed" not in capfd.readouterr().out


SMALL = (
    "data.pool.chain.num_problems=24",
    "data.pool.chain.levels=[2,3,4]",
    "data.validation.chain.num_problems=4",
    "data.test.chain={levels: [2, 3], num_problems: 10}",
    "probe.first_samples=6",
    "probe.max_samples=6",
    "trainer.validation_samples=2",
    "rollout.kv_cache_gib=0.25",
    "rollout.max_tokens=96",
    "eval.max_tokens=96",
    "eval.samples_per_problem=2",
)
TINY = "{num_problems: 4, problems_per_step: 4, group_size: 4, num_steps: 2, pass_rate_low: 0.05, pass_rate_high: 0.95}"


@pytest.mark.whole
@pytest.mark.engine
def test_unsolvable_problems_and_the_phases_in_another_order_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lent: None
):
    """A run of each of three shipped claims, with everything in them but their size, and what c4's says."""
    shipped = {name: load_claim(name, claim_files()[name]) for name in ("c2", "c4", "c4_order")}
    unsolvable = replace(shipped["c2"], quick=[*SMALL, f"phases.phase2={TINY}"])
    reversed_ = replace(shipped["c4_order"], quick=[*SMALL, f"phases.phase1={TINY}", f"phases.phase2={TINY}"])
    both = replace(shipped["c4"], quick=[*SMALL, f"phases.phase1={TINY}", f"phases.phase2={TINY}"])
    todo = [
        *planned(
            "c2", replace(unsolvable, runs={"wrong": unsolvable.runs["100 % wrong answers"]}), [0], tmp_path, quick=True
        ),
        *planned("c4_order", replace(reversed_, runs={"first": reversed_.runs["phase 2 first"]}), [0], tmp_path, quick=True),
        *planned("c4", both, [0], tmp_path, quick=True),
    ]
    for run in todo:
        monkeypatch.setattr(
            sys, "argv", ["conclip", "run", *run.overrides, f"name={run.folder.name}", f"paths.outputs={tmp_path}"]
        )
        main()
    wrong, other, _ = (read_run(run.folder) for run in todo)
    assert all("its answer replaced by" in choice.reason for choice in wrong.chosen["phase2"])
    assert all(step["outcome/correct"] == 0 for step in wrong.steps["phase2"])
    assert wrong.best["phase2"]["step"] == 2  # the last model counts, best or not
    assert list(other.steps) == ["phase1", "phase2"] and other.stages["phase2"].num_tokens > 0
    assert numbers(other).folder == todo[1].folder.name
    write_json(todo[2].done_file, {"overrides": list(todo[2].overrides), "config": todo[2].config, "seconds": 1.0})
    outcome = outcome_of("c4", both, todo[2:], quick=True)
    assert all(list(found) == [0] for found in outcome.differences.values()) and outcome.word() == "underpowered"
    assert "(quick: two seeds" in write_claims([outcome], tmp_path / "page", quick=True).read_text()

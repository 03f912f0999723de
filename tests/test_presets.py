"""Every preset of conf/data on files of the hub's columns, kinds of values and numbers of rows, by the hub's own loader.

All rows are invented; no text of a benchmark stands here. Where the data itself lies beside the checkout, it is loaded, too.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conclip.config.compose import config_folder, load_config
from conclip.config.schema import RecipeRunConfig
from conclip.problems.files import load_dataset
from conclip.problems.load import load_problems
from conclip.types import Problem

Rows = list[dict[str, Any]]

pytestmark = pytest.mark.whole

REAL = Path(__file__).parent.parent.parent / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the benchmarks' own files are not beside the checkout")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def hub(folder: Path, config: str | None, split: str, rows: Rows, suffix: str = "parquet") -> Path:
    """A data set as a folder of the hub holds it: a README that names configs and splits, and the files."""
    config = config or "default"
    file = folder / config / f"{split}-00000-of-00001.{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        write_csv(file, rows)
    listed = "".join(
        f"  - split: {path.name.split('-')[0]}\n    path: {config}/{path.name}\n" for path in file.parent.iterdir()
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{listed}---\n")
    return file


def write_csv(file: Path, rows: Rows) -> None:
    import csv

    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def numbered(count: int, **columns: Callable[[int], Any]) -> Rows:
    return [{name: value(number) for name, value in columns.items()} for number in range(count)]


def asked(number: int) -> str:
    return f"Invented problem {number}: what is $\\frac{{{number}}}{{1}} + 1$?"


def aime24() -> Rows:
    return numbered(
        30,
        id=lambda n: 60 + n,
        problem=asked,
        solution=lambda n: f"So it is $\\boxed{{{n + 1:03d}}}$.",
        answer=lambda n: f"{n + 1:03d}",  # as on the answer sheet
        url=lambda n: f"https://example.org/{n}",
        year=lambda n: "2024",
    )


def aime25() -> Rows:
    return numbered(30, problem=asked, answer=lambda n: f"{n + 1}^\\circ" if n == 3 else str(n + 1), id=str)


def amc23() -> Rows:
    return numbered(40, id=int, question=asked, answer=lambda n: float(n + 1), url=lambda n: "")


def math500() -> Rows:
    spelled = [
        "\\left( 3, \\frac{\\pi}{2} \\right)",
        "\\text{Anna}",
        "p - q",
        "5.4 \\text{ cents}",
        "10\\%",
        "x \\in [-2,7]",
    ]
    return numbered(
        500,
        problem=asked,
        solution=lambda n: "So it is.",
        answer=lambda n: spelled[n] if n < len(spelled) else str(n),
        subject=lambda n: "Algebra",
        level=lambda n: n % 5 + 1,
        unique_id=lambda n: f"test/algebra/{n}.json",
    )


def math_train() -> Rows:
    """7,500 rows, 2,304 of level 5; of those two with an empty box, two with a box without braces; two of no known level."""
    rows = numbered(
        7500,
        problem=asked,
        level=lambda n: "Level 5" if n < 2304 else "Level ?" if n >= 7498 else f"Level {n % 4 + 1}",
        type=lambda n: "Geometry",
        solution=lambda n: f"First \\boxed{{0}}, then $x = \\boxed{{{n + 1}}}$.",
    )
    for number, solution in ((7, "So there are $\\boxed{}$."), (8, "our answer is $\\boxed 2$."), (9, "$x = \\boxed 9$.")):
        rows[number]["solution"] = solution
    rows[2000]["solution"] = "$\\boxed{ }$"
    return rows


def minerva() -> Rows:
    spelled = ["4.5e33", "\\arcsin{1.3 \\sin{\\theta_w}}", "-2.5", "I_{0}", "\\frac{K}{r-g}", "1e-8"]
    return numbered(272, question=asked, answer=lambda n: spelled[n] if n < len(spelled) else str(n))


def olympiadbench() -> Rows:
    several = {0: ["$(1,8), (2,7)$"], 1: ["$2$", "$\\frac{1}{2}$"], 2: ["$[1, 2]$"]}
    rows = numbered(
        674,
        id=lambda n: 1600 + n,
        question=asked,
        solution=lambda n: ["One way.", "Another way."],
        final_answer=lambda n: several.get(n, [str(n + 1)]),
        context=lambda n: None,
        is_multiple_answer=lambda n: n < 2,
        unit=lambda n: None,
        answer_type=lambda n: "Tuple" if n == 0 else "Numerical",
        error=lambda n: "1e-1" if n == 5 else None,
        subfield=lambda n: "Combinatorics",
        subject=lambda n: "Math",
    )
    return [row | {f"image_{i}": None for i in range(1, 10)} for row in rows]


def gpqa() -> Rows:
    """Its CSV file has many other columns before these, options that end in a new line, texts over several lines."""
    return numbered(
        198,
        **{
            "Pre-Revision Question": lambda n: f"Another, {n}",
            "Pre-Revision Correct Answer": lambda n: "wrong column",
            "Question": lambda n: f'{asked(n)}\nIt is said to be "easy", isn\'t it?\n',
            "Correct Answer": lambda n: f"{n + 1} apples\n",
            "Incorrect Answer 1": lambda n: f"{n} apples, or \n\nfewer",
            "Incorrect Answer 2": lambda n: f"{n + 2}",
            "Incorrect Answer 3": lambda n: f"{n + 3}",
            "Explanation": lambda n: "Count, again.",
            "Subdomain": lambda n: "Fruit",
            "Record ID": lambda n: f"rec{n}",
            "High-level domain": lambda n: ("Biology", "Physics", "Chemistry")[n % 3],
        },
    )


def mmlu(count: int) -> Rows:
    subjects = load_config("eval", "data=mmlu_stem").data.test["mmlu_stem"].subjects or []
    rows = numbered(
        count,
        question=asked,
        subject=lambda n: subjects[n % 18],
        choices=lambda n: [str(n), str(n + 1), "None", "nan"],
        answer=lambda n: 1,
    )
    return [*rows, *(row | {"subject": "philosophy"} for row in rows[:100])]


def gsm8k(count: int) -> Rows:
    return numbered(
        count, question=asked, answer=lambda n: f"{n} + 1000 = <<{n}+1000={n + 1000}>>{n + 1000}\n#### {n + 1000:,}"
    )


def loaded(subcommand: str, *overrides: str) -> tuple[dict[str, list[Problem]], list[str]]:
    """The problems of each of the three lists, and the notes on them."""
    data, notes = load_config(subcommand, *overrides).data, list[str]()
    parts = ("test",) if subcommand == "eval" else ("pool", "validation")
    return {part: load_problems(f"data.{part}", getattr(data, part), 0, notes) for part in parts}, notes


BENCHMARKS: dict[str, tuple[Callable[[], Rows], str | None, str, str, list[str]]] = {
    "aime24": (aime24, None, "train", "parquet", ["001", "002"]),
    "aime25": (aime25, None, "test", "jsonl", ["1", "2", "3", "4^\\circ"]),
    "amc23": (amc23, None, "test", "parquet", ["1", "2"]),
    "math500": (math500, None, "test", "jsonl", ["\\left( 3, \\frac{\\pi}{2} \\right)", "\\text{Anna}", "p - q"]),
    "minerva_math": (minerva, None, "test", "jsonl", ["4.5e33", "\\arcsin{1.3 \\sin{\\theta_w}}", "-2.5"]),
    "olympiadbench": (olympiadbench, "OE_TO_maths_en_COMP", "train", "parquet", ["$(1,8), (2,7)$", "$2$", "$[1, 2]$", "4"]),
    "gpqa_diamond": (gpqa, "gpqa_diamond", "train", "csv", []),
    "mmlu_stem": (lambda: mmlu(3018), "all", "test", "parquet", ["B"] * 3018),
    "gsm8k": (lambda: gsm8k(1319), "main", "test", "parquet", ["1,000", "1,001"]),
}
"""Preset -> rows, config, split and format on the hub, the first gold answers."""


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_loads_as_the_hub_has_it_and_as_a_file(tmp_path: Path, name: str):
    rows, config, split, suffix, golds = BENCHMARKS[name]
    made = rows()
    file = hub(tmp_path / "hub", config, split, made, suffix)
    from_hub = loaded("eval", f"data={name}", f"data.test.{name}.dataset={tmp_path / 'hub'}")[0]["test"]
    from_file = loaded("eval", f"data={name}", f"data.test.{name}.path={file}")[0]["test"]
    assert [(p.question, p.golds, p.choices) for p in from_hub] == [(p.question, p.golds, p.choices) for p in from_file]
    assert [p.answer for p in from_hub[: len(golds)]] == golds
    assert len(from_hub) == load_config("eval", f"data={name}").data.test[name].expected_problems


def test_every_preset_of_a_data_set_is_tried_here():
    presets = {path.stem for path in (config_folder() / "data").glob("*.yaml")}
    more = {"math", "math_few", "paper", "mmlu_stem_5shot", "aime24_train", "arithmetic", "search", "mine", "one_file"}
    assert presets == {*BENCHMARKS, *more}


def test_the_papers_benchmarks_are_the_presets_of_each():
    paper = load_config("eval", "data=paper").data
    assert list(paper.test) == ["math500", "aime24", "amc23", "mmlu_stem"]
    for name, problem_set in paper.test.items():
        preset = "mmlu_stem_5shot" if name == "mmlu_stem" else name
        assert problem_set == load_config("eval", f"data={preset}").data.test[name]
    few = load_config("train-phase2", "data=math_few").data
    assert (few.pool, few.validation) == (paper.pool, paper.validation)


def test_olympiadbenchs_lists_mean_any_of_them(tmp_path: Path):
    file = hub(tmp_path, "OE_TO_maths_en_COMP", "train", olympiadbench())
    problems = loaded("eval", "data=olympiadbench", f"data.test.olympiadbench.path={file}")[0]["test"]
    assert problems[1].golds == ("$2$", "$\\frac{1}{2}$") and problems[1].subject == "Combinatorics"


def test_gpqas_right_option_is_shuffled_among_the_wrong_ones(tmp_path: Path):
    file = hub(tmp_path, "gpqa_diamond", "train", gpqa(), "csv")
    problems = loaded("eval", "data=gpqa_diamond", f"data.test.gpqa_diamond.path={file}")[0]["test"]
    for number, problem in enumerate(problems):
        assert problem.choices is not None and problem.choices["ABCD".index(problem.answer)] == f"{number + 1} apples"
    assert {problem.answer for problem in problems} == set("ABCD")
    assert problems[1].subject == "Physics"


def test_math_trains_without_the_two_rows_whose_box_is_empty(tmp_path: Path):
    hub(tmp_path, None, "train", math_train())
    sets, notes = loaded(
        "train-phase2", "data=math", *(f"data.{part}.math.dataset={tmp_path}" for part in ("pool", "validation"))
    )
    assert [len(problems) for problems in sets.values()] == [400, 100]
    few, _ = loaded(
        "train-phase2", "data=math_few", *(f"data.{part}.math.dataset={tmp_path}" for part in ("pool", "validation"))
    )
    assert [len(problems) for problems in few.values()] == [64, 32]
    # a larger pool moves the validation set's rows, but neither shares a problem with the other
    assert not {p.question for p in few["pool"]} & {p.question for p in few["validation"]}
    assert not {p.question for p in sets["pool"]} & {p.question for p in sets["validation"]}
    assert {p.level for problems in sets.values() for p in problems} == {5}
    assert len(notes) == 2 and all("2 of 2304 rows have no usable answer and are left out" in note for note in notes)
    assert "row 8" in notes[0] and "row 2001" in notes[0] and r"\boxed{} finds none" in notes[0]
    preset = load_config("train-phase2", "data=math", f"data.pool.math.dataset={tmp_path}").data.pool["math"]
    whole, _ = load_dataset("data.pool.math", "math", replace(preset, num_problems=None, seed=0))
    assert len(whole) == 2302 and [p.answer for p in whole[6:10]] == ["7", "2", "9", "11"]


def test_gsm8k_trains(tmp_path: Path):
    hub(tmp_path, "main", "train", gsm8k(7473))
    sets, notes = loaded(
        "train-phase2", "data=gsm8k", *(f"data.{part}.gsm8k.dataset={tmp_path}" for part in ("pool", "validation"))
    )
    assert ([len(problems) for problems in sets.values()], notes) == ([7000, 100], [])


def test_aime24_trains_the_papers_sets_and_aime25_validates(tmp_path: Path):
    files = [hub(tmp_path / "24", None, "train", aime24()), hub(tmp_path / "25", None, "test", aime25(), "jsonl")]
    sets, _ = loaded(
        "train-phase2", "data=aime24_train", f"data.pool.aime24.path={files[0]}", f"data.validation.aime25.path={files[1]}"
    )
    assert [len(problems) for problems in sets.values()] == [30, 30]


@pytest.mark.parametrize(
    ("pass_rate", "answers"),
    [
        ("0.0625", {"371", "809", "197", "385"}),
        ("0.125", {"113", "110", "104", "468"}),
        ("0.25", {"113", "110", "294", "480"}),
        ("0.375", {"294", "480", "236", "55"}),
    ],
)
def test_the_papers_curves_have_the_settings_of_its_scripts(pass_rate: str, answers: set[str]):
    config = load_config(
        "two-phase", "experiment=paper/r1_1.5b_aime", f"phase@phases.phase2=paper_aime24_p{pass_rate}", "seed=42"
    )
    assert isinstance(config, RecipeRunConfig)
    phase = config.phases["phase2"]
    assert set(phase.answers or ()) == answers and phase.num_problems == phase.problems_per_step == 4
    assert (phase.group_size, phase.num_steps, config.algo.updates_per_rollout) == (8, 2000, 4)
    assert (config.rollout.max_tokens, config.rollout.temperature, config.algo.gae_lambda) == (20000, 0.6, 0.95)
    assert (config.optim.policy_lr, config.optim.critic_lr, config.algo.kl_coef) == (5e-7, 9e-6, 0.01)
    assert (phase.stop_accuracy_drop, phase.keep_best) == (1.0, "last")  # no validation decides anything there


def test_mmlus_examples_come_from_its_dev_split(tmp_path: Path):
    hub(tmp_path, "all", "test", mmlu(3018))
    hub(tmp_path, "all", "dev", [row | {"question": f"As before: {row['question']}"} for row in mmlu(90)])
    problems = loaded("eval", "data=mmlu_stem_5shot", f"data.test.mmlu_stem.dataset={tmp_path}")[0]["test"]
    assert len(problems) == 3018 and {len(problem.examples) for problem in problems} == {5}
    assert problems[0].examples[0].endswith("D) nan\nAnswer: \\boxed{B}")


@needs_real_data
def test_gsm8k_and_mmlu_themselves_load():
    gsm, notes = loaded("eval", "data=gsm8k", f"data.test.gsm8k.path={REAL}/gsm8k/test.jsonl")
    train, more = loaded(
        "train-phase2",
        "data=gsm8k",
        *(f"data.{part}.gsm8k.path={REAL}/gsm8k/train.jsonl" for part in ("pool", "validation")),
    )
    mmlu_stem, repeated = loaded("eval", "data=mmlu_stem", f"data.test.mmlu_stem.path={REAL}/mmlu_stem/test.jsonl")
    assert [len(sets["test"]) for sets in (gsm, mmlu_stem)] == [1319, 3018]
    assert [len(problems) for problems in train.values()] == [7000, 100]
    assert notes + more == [] and "12 of 3018 problems repeat" in repeated[0]


@needs_real_data
def test_every_gold_of_math_is_taken_from_a_column_and_from_a_box(tmp_path: Path):
    golds = [json.loads(line)["answer"] for line in (REAL / "math_golds.jsonl").read_text(encoding="utf-8").splitlines()]
    file = tmp_path / "math.jsonl"
    rows = [{"question": asked(n), "plain": gold, "solution": f"So $\\boxed{{{gold}}}$."} for n, gold in enumerate(golds)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mine = ("data=mine", f"data.test.mine.path={file}")
    for more in (["data.test.mine.answer=plain"], ["data.test.mine.answer=solution", "data.test.mine.answer_boxed=true"]):
        sets, notes = loaded("eval", *mine, *more)
        assert [p.answer for p in sets["test"]] == [gold.strip() for gold in golds] and notes == []

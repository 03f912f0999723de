"""The report as a file: what it holds, and that nothing in it can act."""

import base64
import gzip
import json
import shlex
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from conclip.cli.main import main
from conclip.cli.tools import disambiguate_names
from conclip.config.recipe import label
from conclip.errors import UserError
from conclip.report.card import _problems as card_problems
from conclip.report.changes import seed_tables
from conclip.report.charts import figures
from conclip.report.data import RunData, read_run
from conclip.report.export import latex, markdown, write_files
from conclip.report.page import _lineage, headlines, in_script, result_tables, rows_for_browser, write_page
from conclip.report.training_charts import monitors, pass_rates, step_times
from conclip.runs.identity import path_hash
from conclip.runs.manifest import StageRecord
from conclip.types import Outcome
from tests.conftest import make_row
from tests.made_runs import HOSTILE, MODELS, made_run


def report(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["conclip", "report", *map(str, arguments)])
    main()


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.ids: set[str] = set()
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids |= {value for name, value in attrs if name == "id" and value}
        self._inside = dict(attrs).get("id") or "" if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.text += data

    @property
    def rows(self) -> dict[str, Any]:
        return json.loads(gzip.decompress(base64.b64decode(self.scripts["rows-data"])))


@pytest.mark.whole
def test_the_page_of_a_run_has_its_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = made_run(tmp_path / "attempt-001")
    report(monkeypatch, folder)
    page = Page(folder / "report.html")
    for part in ("-56.9 %", "+50.0 points", "phase2 against base", "Pass rates before phase 2", "model 01234567", "seed: 0"):
        assert part in page.text, part
    rows = page.rows
    assert rows["models"] == list(MODELS) and len(rows["problems"]) == 12 and len(rows["rows"]) == 3 * 12 * 2
    assert json.loads(page.scripts["charts-data"]).keys() == {name for name in page.ids if name.startswith("chart-")}


def test_where_the_time_of_a_phase_went(tmp_path: Path):
    (figure,) = [figure for figure in figures([read_run(made_run(tmp_path / "attempt-001"))]) if figure.name == "times"]
    assert figure.caption.startswith("phase1: 10 steps of 4.0 s (sampling 75%, update 25%, ")
    (spec,) = figure.specs.values()
    (values,) = [data["values"] for data in [spec["data"]]]
    assert {(v["phase"], v["part"]): v["seconds"] for v in values if v["seconds"]} == {
        (phase, part): seconds for phase in ("phase1", "phase2") for part, seconds in (("sampling", 30), ("update", 10))
    }


def test_the_pace_of_sampling_is_told_where_it_was_timed(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    phases: dict[str, list[dict[str, Any]]] = {}
    for phase, behind in (("phase1", 0.0), ("phase2", 1.0)):
        steps = [dict(row) for row in run.steps[phase]]
        steps[-1] |= {"rollout/num_sampled_tokens": 3000.0, "rollout/steps_behind": behind}
        phases[phase] = steps
    figure = step_times(replace(run, steps=phases), several=False)
    assert figure is not None
    first, second = figure.caption.split("; ")
    assert first.endswith(", 100 sampled tokens/s)") and "tokens/s" not in second  # 3,000 in 10 x 3 s


def test_steps_that_warm_up_the_critic_have_places_of_their_own(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    steps = {
        phase: [{"stage": phase, "step": step, "outcome/correct": 0.5, "time/update_s": 1.0} for step in range(first, 3)]
        for phase, first in (("phase1", -1), ("phase2", 0))
    }
    run = replace(run, steps=steps)
    figure, times = monitors(run, several=False), step_times(run, several=False)
    assert figure is not None and times is not None
    values = figure.specs["correct"]["data"]["values"]
    assert [value["step"] for value in values] == [1, 2, 3, 4, 5, 6, 7]
    assert figure.caption.startswith("Panels over 7 steps") and "phase1: 4 steps" in times.caption


def test_hostile_text_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tame, wild = (made_run(tmp_path / name / "attempt-001", texts=texts) for name, texts in (("a", ("x",)), ("b", HOSTILE)))
    report(monkeypatch, tame)
    report(monkeypatch, wild)
    pages = [Page(folder / "report.html") for folder in (tame, wild)]
    assert pages[0].tags == pages[1].tags and pages[0].attributes == pages[1].attributes
    assert "onerror" not in pages[1].attributes
    assert {row[7] for row in pages[1].rows["rows"]} == set(HOSTILE)
    assert HOSTILE[0] in pages[1].text  # a note and a reason: shown as it is


def test_json_in_a_script_cannot_end_it():
    value = {"a": "</script><!--\u2028"}
    assert "<" not in in_script(value) and "\u2028" not in in_script(value)
    assert json.loads(in_script(value)) == value
    assert json.loads(in_script([float("nan"), {"low": float("-inf")}])) == [None, {"low": None}]


@pytest.mark.whole
def test_several_runs_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folders = [made_run(tmp_path / name / "attempt-001", name=name) for name in ("one", "two")]
    report(monkeypatch, *folders, "--figures", "paper")
    page = Page(tmp_path / "report.html")
    assert page.rows["models"] == [f"{run}: {model}" for run in ("one", "two") for model in MODELS]
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert {"curves.svg", "curves.png", "lengths.svg", "budgets.svg", "scatter.png", "results.md", "results.tex"} <= names
    assert (tmp_path / "paper/curves.svg").read_text().startswith("<svg")
    assert (tmp_path / "paper/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "one: phase2" in (tmp_path / "paper/results.md").read_text()


def test_runs_of_different_benchmarks_have_a_table_each(tmp_path: Path):
    first = read_run(made_run(tmp_path / "attempt-001"))
    other = replace(first, name="other", rows=[replace(row, benchmark="c") for row in first.rows])
    tables = {table["benchmark"]: [name for name, _ in table["rows"]] for table in result_tables([first, other])}
    assert tables == {"b": [f"made: {m}" for m in MODELS], "c": [f"other: {m}" for m in MODELS]}
    assert "made, accuracy from" in figures([first, other])[0].caption


def test_the_browser_keeps_problems_of_one_id_apart(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001", num_problems=1))
    other = replace(run, rows=[replace(row, benchmark="c", answer="12") for row in run.rows])
    shown = rows_for_browser([run, other])
    assert [(problem["benchmark"], problem["id"], problem["answer"]) for problem in shown["problems"]] == [
        ("b", "p0", run.rows[0].answer),
        ("c", "p0", "12"),
    ]
    assert [row[0] for row in shown["rows"]] == [0] * len(run.rows) + [1] * len(run.rows)


def test_figures_of_runs_whose_names_begin_alike_have_files_of_their_own(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    names = [figure.file_name for figure in figures([replace(run, name="r" * 70 + end) for end in "ab"])]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 60
    names = [figure.file_name for figure in figures([replace(run, name=name) for name in ("a b", "a-b")])]
    assert len(set(names)) == len(names)


def test_the_headline_is_the_last_model_against_the_first(tmp_path: Path):
    (headline,) = headlines(read_run(made_run(tmp_path / "attempt-001")), several=False)
    assert (headline.first, headline.last) == ("base", "phase2")
    # mean tokens 105.5 and 45.5; right in a quarter and in three quarters of the responses
    assert headline.tokens == f"{100 * (45.5 / 105.5 - 1):+.1f} %" and headline.accuracy == "+50.0 points"
    assert headline.tone == "good" and headline.verdict == "accuracy rose"


def test_models_stand_in_the_order_they_were_evaluated_and_unfinished_ones_are_left_out(tmp_path: Path):
    folder = made_run(tmp_path / "attempt-001")
    manifest = json.loads((folder / "manifest.json").read_text())
    stages = manifest["stages"]
    manifest["stages"] = {f"eval-{name}": stages["eval-base"] for name in ("phase2", "base")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "rows-phase1.jsonl").write_text("")
    run = read_run(folder)
    assert list(dict.fromkeys(row.model for row in run.rows)) == ["phase2", "base"]
    assert any("evaluation of phase1 has not ended" in note for note in run.notes)
    (headline,) = headlines(run, several=False)
    assert (headline.first, headline.last) == ("phase2", "base")


def test_the_evaluation_of_one_model_has_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = made_run(tmp_path / "attempt-001")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"] = {"eval-base": manifest["stages"]["eval-base"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("phase1", "phase2"):
        (folder / f"rows-{name}.jsonl").unlink()
    report(monkeypatch, folder)
    page = Page(folder / "report.html")
    assert "result" in page.ids and "105.5" in page.text


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    folders = [made_run(tmp_path / place / "attempt-001") for place in ("a", "b")]
    names = [run.name for run in disambiguate_names([read_run(folder) for folder in folders])]
    assert names == [str(folder.resolve()) for folder in folders]


def test_runs_that_differ_in_their_seed_only_have_a_mean(tmp_path: Path):
    """By hand: responses of 84, 82 and 80 % of base's mean length, the last model's accuracy 25, 25 and 50 points higher."""
    first = read_run(made_run(tmp_path / "attempt-001"))

    def run_of(seed: int, tokens: int, num_right: int, **settings: Any) -> RunData:
        base = [make_row(f"p{n}", Outcome.WRONG, 100, model="base") for n in range(4)]
        last = [make_row(f"p{n}", [Outcome.WRONG, Outcome.CORRECT][n < num_right], tokens, model="phase2") for n in range(4)]
        name = f"mine-{seed}"
        return replace(first, name=name, rows=base + last, settings={"name": name, "seed": seed, "x": 1, **settings})

    three = [run_of(0, 84, 1), run_of(1, 82, 1), run_of(2, 80, 2)]
    (table,) = seed_tables([*three, run_of(0, 10, 4, x=2)])
    assert table["caption"].startswith("over seeds (mine-0, mine-1, mine-2)") and table["columns"][1:] == [
        "tokens",
        "accuracy",
    ]
    ((what, cells),) = table["rows"]
    assert what == "phase2 against base, b, temperature 1"
    # Student's t with two degrees of freedom: 4.303 times 2 / sqrt(3), and 4.303 times 14.43 / sqrt(3)
    assert cells == ["3", "-18.0 % [-23.0, -13.0]", "+33.3 points [-2.5, +69.2]"]
    unjudged = [replace(row, outcome=Outcome.GRADER_ERROR) for row in three[2].rows]
    (table_of_two,) = seed_tables([*three[:2], replace(three[2], rows=unjudged)])
    assert [cells for _, cells in table_of_two["rows"]] == [["3", "-18.0 % [-23.0, -13.0]", "+25.0 points"]]  # of two seeds
    (unknown,) = seed_tables([replace(one, rows=unjudged) for one in three])
    assert unknown["rows"][0][1][2] == "unknown"
    again = replace(three[0], name="again")
    assert seed_tables([three[0], again]) == []  # one seed twice
    assert seed_tables([*three, again])[0]["rows"] == table["rows"]
    assert seed_tables([*three, again])[0]["caption"].endswith("; without again, whose seed is one of theirs")
    assert seed_tables([replace(one, settings={**one.settings, "seed": [1]}) for one in three]) == []
    assert seed_tables([first, replace(first, settings={})]) == seed_tables(three[:1]) == []
    write_files(three, tmp_path / "paper")
    assert "| phase2 against base, b, temperature 1 | 3 |" in (tmp_path / "paper/results.md").read_text()
    write_page(three, tmp_path / "page.html")
    assert "mean, and 95 % interval of Student" in (tmp_path / "page.html").read_text()


def test_benchmarks_and_temperatures_are_not_averaged_over(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    hard = [replace(row, benchmark="hard", temperature=0.0) for row in run.rows]
    drawn = {figure.name: figure for figure in figures([replace(run, rows=[*run.rows, *hard])])}
    assert list(drawn["budgets"].panels) == ["b, T 1", "hard, T 0"]
    assert "base (b, T 1) 106, base (hard, T 0) 106, phase1" in drawn["lengths"].caption
    other = replace(run, name="other", rows=[replace(row, temperature=0.0) for row in run.rows])
    (table,) = result_tables([run, other])
    assert [name for name, _ in table["rows"]][2:4] == ["made: phase2, T 1", "other: base, T 0"]


def test_ungraded_responses_have_a_column_where_there_are_some(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    (table,) = result_tables([run])
    assert "not graded" not in table["columns"]
    first, *rest = run.rows
    (table,) = result_tables([replace(run, rows=[replace(first, outcome=Outcome.GRADER_ERROR), *rest])])
    assert [cells[table["columns"].index("not graded")] for _, cells in table["rows"]] == ["1", "0", "0"]


def test_a_model_of_which_nothing_could_be_graded_has_no_curve(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    rows = [replace(row, outcome=Outcome.GRADER_ERROR) if row.model == "phase1" else row for row in run.rows]
    drawn = {figure.name: figure for figure in figures([replace(run, rows=rows)])}
    assert "phase1" not in drawn["budgets"].caption and "phase2" in drawn["budgets"].caption
    nothing = [replace(row, outcome=Outcome.GRADER_ERROR) for row in run.rows]
    assert "budgets" not in {figure.name for figure in figures([replace(run, rows=nothing)])}


def test_stages_are_called_as_the_recipe_calls_them(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    (curves,) = [figure for figure in figures([run]) if figure.name == "curves"]
    assert curves.caption.endswith("a dashed line the end of phase 1.")
    names = {"phase1": "short", "phase2": "last-of-2"}
    history = {"short": run.history["phase1"], "middle": run.history["phase1"], "last": run.history["phase2"]}
    best = {"short": run.best["phase1"], "middle": run.best["phase1"], "last": run.best["phase2"]}
    (curves,) = [figure for figure in figures([replace(run, history=history, best=best)]) if figure.name == "curves"]
    assert curves.caption.endswith("dashed lines the ends of short, middle.")
    rates = {names[phase]: found for phase, found in run.rates.items() if phase in names}
    titles = {figure.title for figure in figures([replace(run, rates=rates)])}
    assert titles >= {f"Pass rates before {label(name)}" for name in rates} and rates


def test_problems_of_which_nothing_was_graded_are_not_drawn_as_unsolved(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    rates = [replace(rate, num_samples=0, num_correct=0) if n < 2 else rate for n, rate in enumerate(run.rates["phase1"])]
    figure = pass_rates(replace(run, rates={"phase1": rates}), "phase1", several=False)
    assert (
        figure is not None and "9 problems were probed" in figure.caption and "of 2, no response could be" in figure.caption
    )
    (spec,) = figure.specs.values()
    assert sum(value["problems"] for value in spec["data"]["values"]) == 7


def test_the_problems_of_a_warm_up_are_shown_as_chosen(tmp_path: Path):
    folder = made_run(tmp_path / "attempt-001")
    recipe = {
        "probe-base": {"kind": "probe", "phase": "two"},
        "warm-up": {"kind": "warm_up", "phase": "two", "rates": "probe-base"},
    }
    (folder / "config.yaml").write_text(json.dumps({"name": "made", "seed": 0, "recipe": recipe}))
    (folder / "problems-warm-up.json").write_text((folder / "problems-phase1.json").read_text())
    (folder / "pass_rates-base.jsonl").write_text((folder / "pass_rates.jsonl").read_text())
    run = read_run(folder)
    assert [choice.problem_id for choice in run.chosen["warm-up"]] == ["p0"]


def test_problems_that_came_later_are_counted(tmp_path: Path):
    folder = made_run(tmp_path / "attempt-001")
    (folder / "problems-phase1.json").write_text('{"chosen": [{"problem_id": "p0", "reason": "r"}], "hash": "h"}')
    (folder / "problems-phase2.json").write_text('{"chosen": [{"problem_id": "p0", "reason": "r"}], "hash": "h"}')
    result = json.loads((folder / "training-phase2.json").read_text()) | {"asked": ["p0", "p3", "p4"]}
    (folder / "training-phase2.json").write_text(json.dumps(result))
    write_page([read_run(folder)], folder / "report.html")
    page, card = Page(folder / "report.html"), card_problems(folder, ["phase1", "phase2"])
    for text in (page.text, card):
        assert (
            "phase1: 1 problem" in text
            and "1 problems" not in text
            and "phase2: began with 1 problem, trained on 3 in all" in text
        )


def test_the_command_of_a_run_can_be_pasted(tmp_path: Path):
    run = read_run(made_run(tmp_path / "attempt-001"))
    given = ["phase2={num_problems: 4}", "eval.prompts=[plain,concise]"]
    shown = dict(_lineage(replace(run, environment={"arguments": given}))["environment"])["command"]
    assert shlex.split(shown)[2:] == given


def test_a_stage_that_went_on_says_that_its_time_is_of_its_last_start(tmp_path: Path):
    """Ten responses of 20 tokens, of which the last start sampled one."""
    run = read_run(made_run(tmp_path / "attempt-001"))
    whole = StageRecord(
        key="k",
        inputs={},
        outputs={},
        numbers={"num_responses": 10, "mean_tokens": 20},
        num_tokens=200,
        wall_s=5.0,
        finished="2026",
        made_by={},
    )
    stages = {"whole": whole, "went on": replace(whole, num_tokens=20), "warm-up": replace(whole, numbers={}, num_tokens=0)}
    times = {stage["name"]: stage["time"] for stage in _lineage(replace(run, stages=stages))["stages"]}
    assert times == {"whole": "5 s", "went on": "5 s (of its last start only, as are the tokens)", "warm-up": "5 s"}


def test_pass_rates_of_a_run_without_phase_1_chose_for_phase_2(tmp_path: Path):
    folder = made_run(tmp_path / "attempt-001")
    (folder / "training-phase1.json").unlink()
    (folder / "pass_rates-phase1.jsonl").unlink()
    recipe = {"probe-base": {"kind": "probe"}, "phase2": {"kind": "train", "rates": "probe-base"}}
    (folder / "config.yaml").write_text(json.dumps({"name": "made", "seed": 0, "recipe": recipe}))
    assert list(read_run(folder).rates) == ["phase2"]


def test_a_probe_or_an_evaluation_alone_has_a_page_of_what_there_is(tmp_path: Path):
    folder = made_run(tmp_path / "attempt-001")
    for name in (
        "rows-base.jsonl",
        "rows-phase1.jsonl",
        "rows-phase2.jsonl",
        "training-phase1.json",
        "training-phase2.json",
        "metrics.jsonl",
    ):
        (folder / name).unlink()
    assert [figure.name for figure in figures([read_run(folder)])] == ["pass-rates-phase1", "pass-rates-phase2"]


def test_tables_for_papers_escape_what_latex_reads(tmp_path: Path):
    (table,) = result_tables([read_run(made_run(tmp_path / "attempt-001"))])
    table["rows"][0] = ("a_b & 50 %", table["rows"][0][1])
    assert r"a\_b \& 50 \% &" in latex(table)
    assert markdown(table).splitlines()[2].startswith("| model | accuracy")


def test_rows_that_the_run_did_not_write_are_refused(tmp_path: Path):
    run = made_run(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    for name in ("base", "phase1", "phase2"):
        manifest["stages"][f"eval-{name}"]["outputs"] = {f"rows-{name}.jsonl": path_hash(run / f"rows-{name}.jsonl")}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert len(read_run(run).rows) == 72
    lines = (run / "rows-phase1.jsonl").read_text().splitlines(keepends=True)
    (run / "rows-phase1.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"rows-phase1\.jsonl' is not what the run wrote"):
        read_run(run)

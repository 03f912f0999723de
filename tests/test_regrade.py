"""`conclip grade` on real files."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conclip.cli.main import main
from conclip.errors import UserError
from conclip.evaluation import regrade
from conclip.evaluation.regrade import Columns, _items, grade_file
from conclip.evaluation.rows import to_dict
from conclip.grading.grader import Grader
from conclip.grading.verifier import find_verifier
from conclip.types import Grade, Outcome
from tests.conftest import make_row
from tests.junk import JUNK, changed, places

ROWS = [
    {"gold": "1/2", "response": r"so \boxed{0.5}", "id": 7},
    {"gold": "1/2", "response": "0.5"},
    {"gold": "B", "response": "The answer is (B).", "choices": ["1", "2"]},
    {"gold": "2", "response": r"\boxed{3}"},
    {"gold": 2, "response": ""},
    {"gold": "0.333", "response": "0.3334", "precision": 3},
    {"gold": r"so \boxed{(0,1)}", "response": r"\boxed{(0, 1)}"},
]
OUTCOMES = ["correct", "correct", "correct", "wrong", "no_answer", "correct", "correct"]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_gets_an_outcome_and_keeps_its_columns(tmp_path: Path):
    target = tmp_path / "out.jsonl"
    counts = grade_file(write(tmp_path / "in.jsonl", ROWS), target, audit=False)
    rows = read(target)
    assert [row["outcome"] for row in rows] == OUTCOMES
    assert [row["method"] for row in rows] == ["boxed", "whole", "whole", "boxed", None, "whole", "boxed"]
    assert rows[0]["extracted"] == "0.5" and rows[0]["id"] == 7
    assert counts == {"correct": 5, "wrong": 1, "no_answer": 1}


@pytest.mark.parametrize(("rule", "outcomes"), [("strict", ["no_answer", "correct"]), ("lenient", ["correct", "correct"])])
def test_rows_of_ones_own_are_graded_by_the_rule_of_their_run(tmp_path: Path, rule: str, outcomes: list[str]):
    """The first has no box; the second was judged wrong by an earlier version."""
    texts = {"a": "The answer is 1.", "b": r"\boxed{1}"}
    rows = [
        to_dict(make_row(name, Outcome.WRONG, 5, text=text, extraction=rule, lenient_outcome=Outcome.WRONG))
        for name, text in texts.items()
    ]
    grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", audit=False)
    found = read(tmp_path / "out.jsonl")
    assert [row["outcome"] for row in found] == outcomes and {row["extraction"] for row in found} == {rule}
    assert [(row["lenient_outcome"], row["lenient_extracted"]) for row in found] == [("correct", "1")] * 2


def test_rows_whose_problems_are_not_known_are_graded_by_their_answer_with_a_note(tmp_path: Path):
    """The gold is 3 or 5; a copy of the rows alone says so in words only."""
    rows = [to_dict(make_row("a", Outcome.CORRECT, 5, text=r"\boxed{3}", answer="3 or 5"))]
    source = write(tmp_path / "in.jsonl", rows)
    notes: list[str] = []
    grade_file(source, tmp_path / "out.jsonl", audit=False, notes=notes)
    assert [note for note in notes if "the problems of 1 rows are not in" in note and "'answer' alone" in note]
    question = {"problem_id": "a", "question": "?", "answer": "3", "alternatives": ["5"]}
    write(tmp_path / "questions.jsonl", [question])
    notes.clear()
    grade_file(source, tmp_path / "out.jsonl", audit=False, notes=notes)
    assert read(tmp_path / "out.jsonl")[0]["outcome"] == "correct" and notes == []


def test_a_verifier_for_rows_that_none_had_judged_is_refused(tmp_path: Path):
    (tmp_path / "check.py").write_text("def right(response, gold):\n    return True\n")
    source = write(tmp_path / "in.jsonl", [to_dict(make_row("a", Outcome.WRONG, 5))])
    verifier = find_verifier("--verifier", f"{tmp_path / 'check.py'}:right")
    with pytest.raises(UserError, match="no row of this file was judged by one"):
        grade_file(source, tmp_path / "out.jsonl", audit=False, columns=Columns(verifier=verifier))


def test_an_audit_is_of_answers(tmp_path: Path):
    """A response that was cut, or has no answer, is nothing that two methods could differ on."""
    cut = make_row("a", Outcome.TRUNCATED, 5, text=r"\boxed{1}", finish_reason="length")
    empty, phrase = (
        make_row("b", Outcome.NO_ANSWER, 5, text=""),
        make_row("c", Outcome.NO_ANSWER, 5, text="The answer is 1."),
    )
    rows = [to_dict(row) for row in (cut, empty, phrase)]
    grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", audit=True)
    assert [row["audit"] for row in read(tmp_path / "out.jsonl")] == ["not judged", "not judged", "agrees"]


@pytest.mark.whole
def test_order_holds_over_many_rows(tmp_path: Path):
    rows: list[dict[str, object]] = [{"gold": f"{n}", "response": f"\\boxed{{{n % 7}+0}}", "n": n} for n in range(2500)]
    grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", audit=False)
    graded = read(tmp_path / "out.jsonl")
    assert [row["n"] for row in graded] == list(range(2500))
    assert [row["outcome"] == "correct" for row in graded] == [n < 7 for n in range(2500)]


def test_an_audit_waits_for_its_second_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """First verdicts are there at once, second ones come one a wait: no more than ten rows are held."""
    read_rows, waiting = list[str](), list[str]()

    class Slow(Grader):
        def submit_answer(self, key: str, **_: Any) -> None:
            waiting.append(key)

        def poll(self, wait_s: float = 0.0) -> list[tuple[str, Grade]]:
            first = [key for key in waiting if "audit" not in key]
            found = first or (waiting[:1] if wait_s else [])
            for key in found:
                waiting.remove(key)
            return [(key, Grade(outcome=Outcome.CORRECT, extracted="1", method="boxed")) for key in found]

    def items(source: Path, columns: Columns) -> Iterator[Any]:
        for item in _items(source, columns):
            read_rows.append(item.response)
            yield item

    monkeypatch.setattr(regrade, "MAX_PENDING", 10)
    source = write(tmp_path / "in.jsonl", [{"gold": "1", "response": r"\boxed{1}"}] * 100)
    monkeypatch.setattr(regrade, "_items", items)
    with closing(Slow()) as slow:
        held = [len(read_rows) - number for number, _ in enumerate(regrade._graded(slow, source, Columns(), audit=True))]
    assert len(held) == 100 and max(held) == 10


def test_an_audit_lists_where_a_second_method_disagrees(tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"gold": r"\frac{1}{2}", "response": r"\boxed{\frac{2}{4}}"},
        {"gold": "5", "response": r"\boxed{6}"},
        {"gold": "R^2-r^2", "response": r"\boxed{0}"},  # math-verify does not tell R from r
        {"gold": "7", "response": r"\boxed{\frac}"},  # it reads nothing here
    ]
    counts = grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", audit=True)
    assert [row["audit"] for row in read(tmp_path / "out.jsonl")] == ["agrees", "agrees", "disagrees", "not judged"]
    assert counts == {"correct": 1, "wrong": 3, "audit: agrees": 2, "audit: disagrees": 1, "audit: not judged": 1}


def test_several_golds_and_a_byte_order_mark(tmp_path: Path):
    rows = [{"gold": ["1", "\\boxed{1/2}"], "response": answer} for answer in ("0.5", "1", "1.5")]
    source = write(tmp_path / "in.jsonl", rows)
    source.write_text("\ufeff" + source.read_text(), encoding="utf-16")
    assert grade_file(source, tmp_path / "out.jsonl", audit=False) == {"correct": 2, "wrong": 1}


def test_files_of_other_tools_are_graded_by_their_own_columns(tmp_path: Path):
    """Columns of lm-evaluation-harness's samples, of verl's validation and of lighteval's details, as files hold them."""
    harness = [{"doc": {"answer": "2"}, "target": "2", "resps": [[r"\boxed{2}"]], "filtered_resps": ["2"]}]
    verl = [{"input": "?", "output": r"so \boxed{3}", "gts": ["1", "3"], "step": 1}]
    lighteval = [{"doc": {"choices": ["7"], "gold_index": [0]}, "model_response": {"text": [r"\boxed{8}"]}}]
    cut = [{"gold": "1", "response": "first 1", "finish_reason": "length"}]
    cut += [{"gold": "1", "response": r"\boxed{1}, and", "finish_reason": "length"}]
    cut += [{"gold": "1", "response": "1", "finish_reason": "stop"}]
    parquet, table = tmp_path / "details.parquet", tmp_path / "rows.csv"
    pq.write_table(pa.Table.from_pylist([row | {"date": date(2026, 1, 2)} for row in lighteval]), parquet)
    table.write_text("answer,said\n4,the answer is 4\n")
    for file, columns, expected in (
        (write(tmp_path / "harness.jsonl", harness), Columns(gold="target", response="resps.0.0"), ["correct"]),
        (write(tmp_path / "verl.jsonl", verl), Columns(gold="gts", response="output"), ["correct"]),
        (parquet, Columns(gold="doc.choices", response="model_response.text.0"), ["wrong"]),
        (table, Columns(gold="answer", response="said"), ["correct"]),
        (write(tmp_path / "cut.jsonl", cut), Columns(), ["truncated", "truncated", "correct"]),
    ):
        grade_file(file, tmp_path / "out.jsonl", audit=False, columns=columns)
        assert [row["outcome"] for row in read(tmp_path / "out.jsonl")] == expected, file.name
    with pytest.raises(UserError, match=r"no column 'resps\.1\.0' for the response; columns here: doc, .*--response"):
        grade_file(
            tmp_path / "harness.jsonl",
            tmp_path / "no.jsonl",
            audit=False,
            columns=Columns(response="resps.1.0", gold="target"),
        )


SOLUTION = "She sold 48 / 2 = 24 clips.\nTogether 72.\n#### 72"


def test_golds_of_other_tools_are_found_in_solutions_and_among_options(tmp_path: Path):
    """GSM8K's targets are solutions; lighteval lists the letters of all options, and names the right one by its index."""
    file, out = write(tmp_path / "a.jsonl", [{"target": SOLUTION, "response": r"\boxed{72}"}]), tmp_path / "out.jsonl"
    columns = Columns(gold="target", gold_pattern=r"#### (.+)")
    assert grade_file(file, out, audit=False, columns=columns) == {"correct": 1}
    with pytest.raises(UserError, match=r"a\.jsonl:1: --gold-pattern finds no answer in column 'target'"):
        grade_file(file, out, audit=False, columns=replace(columns, gold_pattern="answer: (.+)"))
    options = [{"doc": {"choices": ["A", "B"], "gold_index": index}, "response": r"\boxed{A}"} for index in (0, 1, [0, 1])]
    file, columns = write(tmp_path / "b.jsonl", options), Columns(gold="doc.choices", gold_index="doc.gold_index")
    assert grade_file(file, out, audit=False, columns=columns) == {"correct": 2, "wrong": 1}
    with pytest.raises(UserError, match=r"lists the letters of all options.*--gold-index"):
        grade_file(file, out, audit=False, columns=replace(columns, gold_index=None))
    write(file, [{"doc": {"choices": ["A", "B"], "gold_index": 2}, "response": "A"}])
    with pytest.raises(UserError, match=r"'doc\.gold_index' has no index of 2 golds but 2"):
        grade_file(file, out, audit=False, columns=columns)
    for nothing in ([], None, "x", True, "9" * 5000):
        write(file, [{"doc": {"choices": ["A", "B"], "gold_index": nothing}, "response": "A"}])
        with pytest.raises(UserError, match=r"'doc\.gold_index' has no index of 2 golds"):
            grade_file(file, out, audit=False, columns=columns)
    texts = [{"doc": {"choices": ["A", "B"], "gold_index": index}, "response": "B"} for index in ("1", 1.0)]
    assert grade_file(write(file, texts), out, audit=False, columns=columns) == {"correct": 2}
    two = {"gold": ["A", "B"], "response": r"\boxed{B}", "choices": ["w", "x", "y", "z"]}  # two of four are right
    assert grade_file(write(file, [two]), out, audit=False) == {"correct": 1}
    named = {"answer": "B", "response": r"\boxed{Paris}", "choices": ["Rome", "Paris"], "precision": 3}
    assert grade_file(write(file, [named]), out, audit=False, columns=Columns(gold="answer")) == {"correct": 1}
    within = Columns(gold_pattern="is (.+)")
    near = {"gold": "it is 0.333", "response": "0.3334", "precision": "3"}
    assert grade_file(write(file, [near]), out, audit=False, columns=within) == {"correct": 1}


@pytest.mark.parametrize(("pattern", "said"), [("(", "not a regular expression"), ("####", "needs one \\(group\\)")])
def test_a_pattern_that_finds_nothing_is_refused(pattern: str, said: str, tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [{"gold": SOLUTION, "response": "72"}])
    with pytest.raises(UserError, match=f"--gold-pattern: {said}"):
        grade_file(file, tmp_path / "out.jsonl", audit=False, columns=Columns(gold_pattern=pattern))


def test_golds_that_are_not_understood_are_named(tmp_path: Path):
    rows = [{"gold": gold, "response": "1"} for gold in ("1", "2", "{ x -> ?? !!", "3")]
    notes: list[str] = []
    grade_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", audit=False, notes=notes)
    assert len(notes) == 1 and "1 of 4 gold answers are not understood" in notes[0] and "row 3" in notes[0]


def test_columns_of_that_name_which_mean_something_else(tmp_path: Path):
    """A CSV file has text alone, an empty cell where there is nothing; OpenAI's `choices` are no options."""
    file, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    file.write_text("gold,response,precision,choices\n0.333,0.3334,3,\n0.333,0.3334,,\n")
    assert grade_file(file, out, audit=False) == {"correct": 1, "wrong": 1}
    answer = {"gold": "1", "choices": [{"message": {"content": r"\boxed{1}"}}], "precision": "high", "logprob": float("nan")}
    dumped = write(tmp_path / "in.jsonl", [answer])
    columns = Columns(response="choices.0.message.content")
    assert grade_file(dumped, out, audit=False, columns=columns) == {"correct": 1}
    assert json.loads(out.read_text(), parse_constant=pytest.fail)["logprob"] is None
    long = f"{'so ' * 60_000}72"
    file.write_text(f"gold,response\n72,{long}\n")
    assert grade_file(file, out, audit=False) == {"correct": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file"),
        ("", "holds no rows"),
        ('{"gold": "1", "response": "1"}\nnot json\n', ":2: not JSON"),
        ('{"gold": "1"}\n', ":1: no column 'response'"),
        ('{"gold": null, "response": "1"}\n', "column 'gold' (gold answer) is empty"),
        ('{"gold": NaN, "response": "1"}\n', "column 'gold' (gold answer) is no number but nan"),
        ('{"gold": ["1", null], "response": "1"}\n', "column 'gold' (gold answer) lists one that is empty"),
        ('{"gold": [], "response": "1"}\n', "column 'gold' (gold answer) is empty"),
        ('{"gold": " ", "response": "1"}\n', "column 'gold' (gold answer) is empty"),
        ('{"gold": ["1", "nan"], "response": "1"}\n', "column 'gold' holds no answer but 'nan'"),
        ('{"gold": "1", "response": NaN}\n', "column 'response' (response) is no number but nan"),
        (f'{{"gold": {json.dumps(SOLUTION)}, "response": "72"}}\n', "1 of 1 gold answers are whole solutions"),
        ('{"gold": "1", "gold": "2", "response": "2"}\n', ":1: column 'gold' stands there 2 times"),
        (b'{"gold": "1", "response": "\xff"}\n', ":1: byte 0xff"),
        ('{"gold": "1", "response": "1", "choices": "A"}\n', "column 'choices'"),
        ('{"gold": "1", "response": "1", "precision": -1}\n', "column 'precision'"),
        ("[1]\n", "a JSON list"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    content: str | bytes | None,
    said: str,
):
    source = tmp_path / "in.jsonl"
    if content is not None:
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(sys, "argv", ["conclip", "grade", str(source), str(tmp_path / "out.jsonl")])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert end.value.code == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and said in err
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_says_how_many_rows_have_each_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    arguments = ["conclip", "grade", str(write(tmp_path / "in.jsonl", ROWS)), str(tmp_path / "out.jsonl")]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert "5  correct" in capfd.readouterr().out


PROBLEM = {"problem_id": "0", "question": "?", "answer": "2", "alternatives": ["4/2"], "choices": None, "tolerance": 0.0}


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["rows", "their problems", "rows of other tools"])
def test_junk_in_any_place_is_graded_or_refused_in_one_line(tmp_path: Path, kind: str):
    """What can be read is then graded in one go, and nothing of it ends in a traceback."""
    own = to_dict(make_row("0", Outcome.CORRECT, 5, text=r"\boxed{2}"))
    content = {"rows": own, "their problems": PROBLEM, "rows of other tools": ROWS[2] | {"precision": 1}}[kind]
    source, questions = tmp_path / "in.jsonl", tmp_path / "questions.jsonl"
    accepted: list[dict[str, object]] = []
    refused = 0
    for place in places(content):
        for junk in JUNK:
            row = changed(content, place, junk)
            if kind == "their problems":
                write(questions, [row])
            write(source, [own if kind == "their problems" else row])
            try:
                list(_items(source, Columns()))
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000
                refused += 1
            else:
                accepted.append(row)
    if kind == "their problems":
        accepted = [row for row in accepted if isinstance(row, dict) and "problem_id" in row]
        write(questions, [row | {"problem_id": str(number)} for number, row in enumerate(accepted)])
        accepted = [own | {"problem_id": str(number)} for number in range(len(accepted))]
    counts = grade_file(write(source, accepted), tmp_path / "out.jsonl", audit=False)
    assert refused > 20 and sum(counts.values()) == len(accepted) > 20

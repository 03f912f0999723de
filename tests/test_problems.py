"""Problems from files of every format and from a data set folder, as the hub's loader reads it."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel

from conclip.config.compose import load_config
from conclip.config.groups import ProblemSetConfig
from conclip.errors import UserError
from conclip.problems.files import load_dataset
from conclip.problems.load import load_problems
from conclip.types import Problem

ROWS: list[dict[str, Any]] = [
    {"question": "1+1", "answer": "2", "level": "Level 1", "subject": "sums"},
    {"question": "2*3", "answer": "6", "level": "Level 2", "subject": "products"},
    {"question": "2+2", "answer": "4", "level": "Level 2", "subject": "sums"},
]


def load(**settings: Any) -> list[Problem]:
    return load_dataset("data.test.x", "x", ProblemSetConfig(source="dataset", **settings))[0]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_problems(tmp_path: Path, suffix: str):
    problems = load(path=str(write(tmp_path / f"data.{suffix}", ROWS)))
    assert [(p.question, p.answer, p.level, p.subject) for p in problems] == [
        ("1+1", "2", 1, "sums"),
        ("2*3", "6", 2, "products"),
        ("2+2", "4", 2, "sums"),
    ]
    assert [p.problem_id for p in problems] == [p.problem_id for p in load(path=str(write(tmp_path / "b.jsonl", ROWS)))]


def test_a_folder_is_all_its_files(tmp_path: Path):
    write(tmp_path / "a.jsonl", ROWS[:1])
    write(tmp_path / "b.csv", ROWS[1:])
    (tmp_path / "README.md").write_text("not data")
    assert [p.question for p in load(path=str(tmp_path))] == ["1+1", "2*3", "2+2"]


def test_the_hubs_loader_reads_a_data_set(tmp_path: Path):
    write(tmp_path / "test.jsonl", ROWS)
    problems = load(dataset=str(tmp_path), split="test")
    assert [p.answer for p in problems] == ["2", "6", "4"]


def test_without_the_hub_the_message_says_what_to_do():
    with pytest.raises(UserError) as caught:
        load(dataset="nobody/nothing", dataset_config="main", split="test", revision="abc")
    said = str(caught.value)
    assert "nobody/nothing, config main, split test" in said and "data.test.x.path=FILE" in said
    assert "hf download --repo-type dataset nobody/nothing --revision abc" in said


def test_filters_shuffle_offset_and_number(tmp_path: Path):
    path = str(write(tmp_path / "d.jsonl", ROWS))
    assert [p.answer for p in load(path=path, levels=[2])] == ["6", "4"]
    assert [p.answer for p in load(path=path, subjects=["sums"])] == ["2", "4"]
    ids = [p.problem_id for p in load(path=path)]
    assert [p.problem_id for p in load(path=path, levels=[2])] == ids[1:]  # what else is asked renames no problem
    assert [p.answer for p in load(path=path, offset=1, num_problems=1)] == ["6"]
    parts = [load(path=path, seed=3, num_problems=2), load(path=path, seed=3, offset=2)]
    assert sorted(p.answer for part in parts for p in part) == ["2", "4", "6"]  # one shuffle, two disjoint parts
    with pytest.raises(UserError, match="there are 2 problems, not 3"):
        load(path=path, levels=[2], num_problems=3)


@pytest.mark.parametrize("level", ["1" + 9 * "0", 10**30, "Level " + 5000 * "7"])
def test_a_number_too_long_for_a_level_is_refused_with_its_place(tmp_path: Path, level: int | str):
    path = str(write(tmp_path / "d.jsonl", [ROWS[0], ROWS[1] | {"level": level}]))
    with pytest.raises(UserError, match=r"d.jsonl.*2.*column 'level' .* at most 9 are a level") as refused:
        load(path=path)
    assert len(str(refused.value)) < 300


def test_the_expected_number_is_checked_and_repetitions_are_reported(tmp_path: Path):
    path = str(write(tmp_path / "d.jsonl", [*ROWS, ROWS[0]]))
    with pytest.raises(UserError, match=r"4 problems where 3 are expected.*expected_problems=null"):
        load(path=path, expected_problems=3)
    problems, notes = load_dataset("data.test.x", "x", ProblemSetConfig(source="dataset", path=path, expected_problems=4))
    assert len({p.problem_id for p in problems}) == 4
    assert notes == ["data.test.x: 1 of 4 problems repeat the text of another one"]


def test_multiple_choice_by_index_letter_and_columns(tmp_path: Path):
    rows = [{"q": "?", "options": ["10", "12", "14"], "key": key} for key in (1, "C", "0")]
    problems = load(path=str(write(tmp_path / "d.json", rows)), question="q", choices="options", answer="key")
    assert [p.answer for p in problems] == ["B", "C", "A"]
    assert problems[0].question == "?\nA) 10\nB) 12\nC) 14" and problems[0].choices == ("10", "12", "14")
    columns = [{"q": f"question {n}", "right": "yes", "wrong": "no", "wrong 2": "maybe"} for n in range(12)]
    asked = write(tmp_path / "e.jsonl", columns)
    mixed = load(path=str(asked), question="q", choices=["right", "wrong", "wrong 2"], answer=None)
    assert all(p.choices is not None and p.choices["ABC".index(p.answer)] == "yes" for p in mixed)
    assert len({p.answer for p in mixed}) == 3  # the right one does not always stand first
    with pytest.raises(UserError, match="names none of the 3 options"):
        load(path=str(write(tmp_path / "f.json", [rows[0] | {"key": 3}])), question="q", choices="options", answer="key")
    with pytest.raises(UserError, match=r"no column 'answer'.*set answer=null"):
        load(path=str(asked), question="q", choices=["right", "wrong", "wrong 2"])


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ({"A": "Berlin", "B": "Paris"}, "B", "B"),  # a letter that is a column's name, too
        ({"A": "Berlin", "B": "Paris"}, "Paris", "B"),
        ({"A": "Berlin", "B": "Paris"}, 0, "A"),
        ({"first": "Berlin", "second": "Paris"}, "second", "B"),
        ({"option1": "Berlin", "option2": "Paris"}, "2", None),  # counted from 1
        ({"A": "1", "B": "0"}, "0", None),  # A by its index, B by its text
        ({"A": "1", "B": "0"}, 0, "A"),  # a number is an index
        ({"A": "0", "B": "1"}, "1", "B"),
        ({"A": "same", "B": "same"}, "same", None),
        ({"w": "B", "x": "A"}, "A", None),  # the first by its letter, the second by its text
        ({"A": "B", "B": "A"}, "B", "B"),  # the name of a column comes first
        ({"1": "5", "2": "6", "3": "7"}, 2, "B"),
        ({"A": "A", "B": "AB"}, "A", "A"),
        ({"A": "Berlin", "B": "Paris"}, "(B)", "B"),
        ({"A": "Berlin", "B": "Paris"}, "B.", "B"),
        ({"A": "Berlin", "B": "Paris"}, "B) Paris", "B"),
        ({"A": "Berlin", "B": "$\\frac{1}{2}$  km"}, "(B) $\\frac{1}{2}$ Km.", "B"),
        ({"A": "A) Berlin", "B": "B) Paris"}, "B) Paris", "B"),
        ({"A": "Paris", "B": "Berlin"}, "B) Paris", None),
        ({"A": "Paris", "B": "Berlin"}, "Option B) Paris", None),
        ({"A": "Paris", "B": "Berlin"}, "Option B) Berlin", "B"),
        ({"A": "Washington", "B": "Abraham Lincoln"}, "A. Lincoln", None),  # a name
        ({"A": "Yeast", "B": "Mouse", "C": "Fly", "D": "C. Elegans"}, "C. elegans", None),
        ({"A": "Berlin", "B": "(A)"}, "(A)", "B"),  # a text that is there comes first
        ({"A": "Berlin", "B": "Paris"}, "(C)", None),
        ({"A": "Berlin", "B": "Paris"}, "A, B", None),
        ({"A": "Berlin", "B": "Paris"}, "Rome", None),
        ({"A": "Berlin", "B": "Paris"}, "9" * 5000, None),  # Python refuses to read it as a number
    ],
)
def test_a_column_for_each_option_and_one_for_the_answer(
    tmp_path: Path, options: dict[str, str], answer: str | int, expected: str | None
):
    path = str(write(tmp_path / "a.jsonl", [{"question": "?", **options, "answer": answer}]))
    if expected is None:
        with pytest.raises(UserError, match=r"answer\)"):
            load(path=path, choices=list(options))
        return
    (problem,) = load(path=path, choices=list(options))
    assert problem.answer == expected and problem.choices == tuple(options.values())  # not shuffled: letters name them


@pytest.mark.parametrize(
    ("names", "settings", "answers"),
    [
        (["no", "yes"], {"answer": "label"}, ["yes", "no"]),
        (["A", "B"], {"answer": "label", "choices": "options"}, ["B", "A"]),
        (["1", "2"], {"answer": "label", "choices": "options"}, ["B", "A"]),  # the number of a class is an index
    ],
)
def test_classes_of_a_hub_data_set_are_called_by_their_names(
    tmp_path: Path, names: list[str], settings: dict[str, str], answers: list[str]
):
    """The file that the hub gives holds their numbers; -1 stands for none."""
    features = datasets.Features(
        question=datasets.Value("string"), options=datasets.List(datasets.Value("string")), label=ClassLabel(names=names)
    )
    labels = [1, 0] * 100 + [-1]
    rows = {"question": [f"{n}?" for n in range(201)], "options": [["x", "y"]] * 201, "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "f.parquet")
    problems = load(path=str(tmp_path / "f.parquet"), **settings)
    assert [problem.answer for problem in problems] == answers * 100


def test_an_answer_that_is_true_or_false_is_told_as_it_is(tmp_path: Path):
    with pytest.raises(UserError, match=r"column 'answer' \(answer\) is true; write what responses say"):
        load(path=str(write(tmp_path / "a.jsonl", [{"question": "?", "answer": True}])))


def test_options_with_labels_and_values_inside_columns(tmp_path: Path):
    arc = [
        {"question": "?", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"question": "?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "1"},
        {"question": "?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"},
    ]
    for name in ("arc.jsonl", "arc.parquet"):
        problems = load(path=str(write(tmp_path / name, arc)), choices="choices", answer="answerKey")
        assert [p.answer for p in problems] == ["B", "A", "C"] and problems[0].choices == ("x", "y", "z")
    for labels in (["A"], ["A", "A"], ["A", None], "AB"):
        unlabelled = [{**arc[0], "choices": {"text": ["x", "y"], "label": labels}}]
        with pytest.raises(UserError, match="not a label of its own"):
            load(path=str(write(tmp_path / "b.json", unlabelled)), choices="choices", answer="answerKey")
    for answer in ("0", 0, "A", "x"):  # labels from 1 on: 0 is no index, and A no letter
        with pytest.raises(UserError, match="is none of the labels 1, 2, 3"):
            row = arc[1] | {"answerKey": answer}
            load(path=str(write(tmp_path / "c.json", [row])), choices="choices", answer="answerKey")
    verl = [
        {"prompt": [{"role": "user", "content": "1 + 1?"}], "reward_model": {"ground_truth": "2"}, "extra": {"level": "3"}}
    ]
    inside = {"question": "prompt.0.content", "answer": "reward_model.ground_truth", "level": "extra.level"}
    for name in ("verl.jsonl", "verl.parquet"):
        (problem,) = load(path=str(write(tmp_path / name, verl)), **inside)
        assert (problem.question, problem.answer, problem.level) == ("1 + 1?", "2", 3)
    with pytest.raises(UserError, match=r"no column 'prompt\.1\.content' for the question; columns here: extra, prompt"):
        load(path=str(tmp_path / "verl.jsonl"), **(inside | {"question": "prompt.1.content"}))
    dotted = write(tmp_path / "dotted.json", [{"a.b": "1 + 1?", "a": {"b": "no"}, "answer": "2"}])
    assert load(path=str(dotted), question="a.b")[0].question == "1 + 1?"  # a column of that very name comes first


def test_a_question_may_be_made_of_several_columns(tmp_path: Path):
    rows = [{"context": "Ann has 2 {red} clips.", "query": {"text": "How many?"}, "answer": "2", "{odd}": "kept"}]
    file = str(write(tmp_path / "a.jsonl", rows))
    (problem,) = load(path=file, question=r"{context}\n\n{query.text}")
    assert problem.question == "Ann has 2 {red} clips.\n\nHow many?"
    assert load(path=file, question="{odd}")[0].question == "kept"  # a column of that very name comes first
    with pytest.raises(UserError, match=r"a\.jsonl:1: no column 'text' for the question; columns here: answer, context"):
        load(path=file, question="{context} {text}")
    with pytest.raises(
        UserError, match=r"'query' \(question\) holds more than a text; name what is inside it: query\.text$"
    ):
        load(path=file, question="query")
    chat = write(tmp_path / "b.jsonl", [{"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}])
    with pytest.raises(UserError, match=r"name what is inside it: prompt\.0\.role, prompt\.0\.content"):
        load(path=str(chat), question="prompt")
    config = load_config(
        "eval", "data=mine", f"data.test.mine.path={file}", 'data.test.mine.question="{context}: {query.text}"'
    )
    assert load_problems("data.test", config.data.test, 0)[0].question == "Ann has 2 {red} clips.: How many?"


def test_golds_that_are_whole_solutions_are_refused(tmp_path: Path):
    rows = [{"question": f"{n}?", "answer": f"She has {n}.\nSo it is {n}.\n#### {n}"} for n in range(3)]
    sets = {"x": ProblemSetConfig(source="dataset", path=str(write(tmp_path / "a.jsonl", rows)))}
    with pytest.raises(UserError, match=r"data\.pool\.x: 3 of 3 gold answers are whole solutions.*answer_pattern='####"):
        load_problems("data.pool", sets, 0)
    found = load_problems("data.pool", {"x": dataclasses.replace(sets["x"], answer_pattern=r"####\s*(.+)")}, 0)
    assert [problem.answer for problem in found] == ["0", "1", "2"]


def test_answers_in_boxes_and_patterns(tmp_path: Path):
    boxed = write(tmp_path / "a.jsonl", [{"question": "?", "answer": r"so \boxed{\frac{1}{2}}."}])
    assert load(path=str(boxed), answer_boxed=True)[0].answer == r"\frac{1}{2}"
    hashed = write(tmp_path / "c.jsonl", [{"question": "?", "answer": "work\n#### 72"}])
    assert load(path=str(hashed), answer_pattern=r"####\s*(.+)")[0].answer == "72"
    with pytest.raises(UserError, match=r"no answer .*boxed"):
        load(path=str(hashed), answer_boxed=True)


def test_of_several_answers_any_is_right_or_all_must_be_stated(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"question": f"{n}?", "answer": answer} for n, answer in enumerate(([1, 2.0, "1"], ["3"], 4))
    ]
    for file in (write(tmp_path / "b.json", rows), write(tmp_path / "b.jsonl", rows)):
        assert [p.golds for p in load(path=str(file))] == [("1", "2"), ("3",), ("4",)]
        assert [p.golds for p in load(path=str(file), answers="all")] == [("1, 2, 1",), ("3",), ("4",)]
    columns = write(tmp_path / "c.parquet", [{"question": "?", "answer": [r"\boxed{1}", r"so \boxed{2}"]}])
    assert load(path=str(columns), answer_boxed=True)[0].golds == ("1", "2")
    letters = write(tmp_path / "d.json", [{"question": "?", "options": ["x", "y", "x"], "answer": [0, "C"]}])
    assert load(path=str(letters), choices="options")[0].golds == ("A", "C")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "'main', 'socratic'"),
        ({"dataset_config": "other"}, "'main', 'socratic'"),
        ({"dataset_config": "main", "split": "train"}, "'test'"),
    ],
)
def test_configs_and_splits_of_a_hub_data_set_are_named(settings: dict[str, str], said: str, tmp_path: Path):
    entries = ""
    for name in ("main", "socratic"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "test-0.parquet", ROWS)
        entries += f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test-*\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    there = {"dataset": str(tmp_path), "split": "test"}
    assert len(load(**there, dataset_config="main")) == 3
    with pytest.raises(UserError, match=r"set data\.test\.x\.dataset_config and") as refused:
        load(**(there | settings))
    assert said in str(refused.value)


NOTHING: list[Any] = [
    None,
    "",
    " ",
    float("nan"),
    float("inf"),
    float("-inf"),
    "nan",
    "NaN",
    "-inf",
    "Infinity",
    "None",
    "null",
]
NOTHING += ["<NA>", [], [None], ["", float("nan")], True, {"value": 3}]


@pytest.mark.parametrize("answer", NOTHING, ids=repr)
def test_what_is_no_answer_is_never_a_gold(tmp_path: Path, answer: Any):
    rows: list[dict[str, Any]] = [{"question": f"{n}", "answer": "2"} for n in range(99)]
    file = write(tmp_path / "d.jsonl", [*rows, {"question": "99", "answer": answer}])
    problems, notes = load_dataset("data.test.x", "x", ProblemSetConfig(source="dataset", path=str(file)))
    assert [p.golds for p in problems] == [("2",)] * 99
    (note,) = notes
    assert note.startswith(f"data.test.x: 1 of 100 rows have no usable answer and are left out: {file}:100: ")
    with pytest.raises(UserError, match=r"99 problems where 100 are expected.*\(data\.test\.x: 1 of 100 rows"):
        load(path=str(file), expected_problems=100)
    few = write(tmp_path / "e.jsonl", [*rows[:59], {"question": "59", "answer": answer}])
    with pytest.raises(UserError, match=r"e\.jsonl:60: "):
        load(path=str(few))


def test_columns_that_pandas_writes(tmp_path: Path):
    """An integer column with a gap is one of floats; a CSV file alone says so."""
    frame = pd.DataFrame({"question": [f"{n}?" for n in range(200)], "answer": range(200), "level": range(200)})
    frame.loc[7, "answer"] = float("nan")
    frame.loc[8, "level"] = float("nan")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records")
    for file in sorted(tmp_path.iterdir()):
        problems = load(path=str(file))
        point = ".0" if file.suffix == ".csv" else ""
        assert len(problems) == 199 and [p.answer for p in problems[6:9]] == [f"{n}{point}" for n in (6, 8, 9)], file
        assert [p.level for p in problems[6:9]] == [6, None, 9], file


def test_too_many_rows_without_an_answer_say_how_many(tmp_path: Path):
    rows = [{"question": str(n), "answer": "" if n % 50 == 3 else "2"} for n in range(400)]
    with pytest.raises(UserError, match=r"d\.jsonl:4: column 'answer' \(answer\) is empty.*; 8 of 400 rows have no usable"):
        load(path=str(write(tmp_path / "d.jsonl", rows)))
    with pytest.raises(UserError, match=r"d\.jsonl:1: no column 'gold' for the answer; columns here: answer, question"):
        load(path=str(tmp_path / "d.jsonl"), answer="gold")
    named = load_dataset(
        "k", "x", ProblemSetConfig(source="dataset", path=str(write(tmp_path / "e.jsonl", rows + rows[4:40] * 20)))
    )[1]
    assert named[0].count("e.jsonl:") == 3 and "; 5 more" in named[0]


def test_lists_written_as_text_are_refused(tmp_path: Path):
    pd.DataFrame({"question": ["a", "b"], "answer": [["1", "2"], ["3"]]}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=r"a\.csv:2: .* holds a list written as text"):
        load(path=str(tmp_path / "a.csv"))
    intervals = write(tmp_path / "b.csv", [{"question": "a", "answer": "[1, 2]"}])
    assert load(path=str(intervals))[0].answer == "[1, 2]"


def test_golds_that_the_grader_does_not_understand_are_said(tmp_path: Path):
    answers = ["2" if n != 5 else "\\int_0^1 f" for n in range(100)]
    file = write(tmp_path / "d.jsonl", [{"question": str(n), "answer": answer} for n, answer in enumerate(answers)])
    notes: list[str] = []
    problems = load_problems("data.test", {"x": ProblemSetConfig(source="dataset", path=str(file))}, 0, notes)
    assert len(problems) == 100 and len(notes) == 1
    assert "1 of 100 gold answers are not understood" in notes[0] and "int_0^1" in notes[0]


def test_a_missing_question_is_none(tmp_path: Path):
    with pytest.raises(UserError, match=r"d\.jsonl:1: column 'question' \(question\) is no number but nan"):
        load(path=str(write(tmp_path / "d.jsonl", [{"question": float("nan"), "answer": "2"}])))


MARKS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_byte_order_marks_are_read(tmp_path: Path, encoding: str, suffix: str):
    rows = [{"question": "1 ≤ x?", "answer": "é"}, {"question": "b", "answer": "2"}]
    text = write(tmp_path / f"d.{suffix}", rows).read_text()
    text = (
        json.dumps(rows, ensure_ascii=False)
        if suffix == "json"
        else text.encode().decode("unicode_escape")
        if suffix == "jsonl"
        else text
    )
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    (tmp_path / f"d.{suffix}").write_bytes((mark + text).encode(encoding))
    assert [(p.question, p.answer) for p in load(path=str(tmp_path / f"d.{suffix}"))] == [("1 ≤ x?", "é"), ("b", "2")]


def test_marks_within_joined_files_are_read(tmp_path: Path):
    (tmp_path / "d.jsonl").write_text(
        "".join(f'\ufeff{{"question": "{n}", "answer": "1"}}\r\n' for n in range(3)), encoding="utf-8"
    )
    assert [p.question for p in load(path=str(tmp_path / "d.jsonl"))] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", b'{"question": "a", "answer": "1"}\n{"question": "\xe9", "answer": "1"}\n', "d.jsonl:2: byte 0xe9"),
        ("d.jsonl", b'\xef\xbb\xbf{"question": "a", "answer": "\xff"}\n', "d.jsonl:1: byte 0xff"),
        ("d.json", b'[\n{"question": "a",\n"answer": "\x80"}]', "d.json:3: byte 0x80"),
        ("d.csv", b"question,answer\na,1\nb,\xb2\n", "d.csv:3: byte 0xb2"),
        ("d.csv", b'question,answer\r\n"a\r\n\xb2",1\r\n', "d.csv:3: byte 0xb2"),
        ("d.jsonl", "\ufeff{}\n".encode("utf-16-le") + b"\x00", "d.jsonl:2: no UTF-16 text"),
        ("d.csv", b'question,answer\na,1\n"b,2\nc,3\n', "d.csv:3: not CSV"),
        ("d.csv", b"question,answer,answer\na,1,2\n", "d.csv:1: column 'answer' stands there 2 times"),
        ("d.jsonl", b'{"question": "a", "answer": "1", "answer": "2"}\n', "d.jsonl:1: column 'answer' stands there 2 times"),
    ],
)
def test_bytes_that_are_no_text_and_columns_that_stand_twice_are_named(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path=str(tmp_path / name))
    assert said in str(caught.value)


def test_worked_examples_of_the_same_subject_stand_before_each_question(tmp_path: Path):
    examples = [{"question": f"{n}+0", "answer": str(n), "subject": s} for s in ("sums", "products") for n in range(3)]
    path, shots = write(tmp_path / "d.jsonl", ROWS), write(tmp_path / "dev.jsonl", examples)
    problem = load(path=str(path), shots=2, shots_path=str(shots))[1]
    assert problem.prompt_text == "0+0\nAnswer: \\boxed{0}\n\n1+0\nAnswer: \\boxed{1}\n\n2*3"
    assert problem.question == "2*3"  # problems that share their examples are not the same
    with pytest.raises(UserError, match="4 examples asked for, there are 3 of subject 'sums'"):
        load(path=str(path), shots=4, shots_path=str(shots))
    with pytest.raises(UserError, match="shots_path"):
        load(path=str(path), shots=2)
    with pytest.raises(UserError, match=r"there are 0 of subject '.*' that are not asked themselves"):
        load(path=str(path), shots=1, shots_path=str(path))  # the gold answers stood in the prompts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "x", "none of .jsonl"),
        ("a.json", '{"question": "1"}', "not a list"),
        ("a.json", "[1]", "item 1: a JSON int"),
        ("a.json", "[", "a.json:1: not JSON"),
        ("a.csv", "question,answer\n1+1,\n", "a.csv:2: column 'answer'"),
        ("a.parquet", "no", "not a Parquet file"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str, said: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        load(path=str(tmp_path / name))


def test_a_packed_table_is_named_unless_it_is_there_unpacked(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    assert len(load(path=str(tmp_path))) == 1
    (tmp_path / "b.csv.ZST").write_bytes(b"")
    with pytest.raises(UserError, match=r"unpack '.*b\.csv\.ZST'"):
        load(path=str(tmp_path))


def test_an_empty_folder_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="holds no"):
        load(path=str(tmp_path))


def test_a_row_with_more_cells_than_the_header_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("question,answer\nIf a=1, what?,7\n")
    with pytest.raises(UserError, match=r"a\.csv:2: 3 cells, but 2 columns; quote"):
        load(path=str(tmp_path / "a.csv"))


def test_numbers_of_half_precision_are_as_they_were_written(tmp_path: Path):
    columns = {"question": ["a", "b"], "answer": pa.array([0.1, 0.35], pa.float32())}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert [problem.answer for problem in load(path=str(tmp_path / "a.parquet"))] == ["0.1", "0.35"]


def test_hidden_copies_are_no_problems(tmp_path: Path):
    write(tmp_path / "a.jsonl", ROWS[:1]).rename(tmp_path / "A.JSONL")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write(tmp_path / ".ipynb_checkpoints/a-checkpoint.jsonl", ROWS[1:])
    assert len(load(path=str(tmp_path))) == 1


def test_of_a_folder_that_names_its_splits_one_is_read(tmp_path: Path):
    """As the hub's snapshots lie, with the preset's own split: train and test must not come together."""
    names = ("main/train-00000-of-00002.jsonl", "main/train-00001-of-00002.jsonl", "main/test-00000-of-00001.jsonl")
    for number, name in enumerate((*names, "socratic/test-00000-of-00001.jsonl")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [{"question": f"{number}", "answer": "1"}])

    def asked(**settings: Any) -> list[str]:
        return [problem.question for problem in load(path=str(tmp_path), **settings)]

    assert (
        asked(split="train") == ["0", "1"]
        and asked(split="test") == ["2", "3"]
        and asked(split=None) == ["2", "0", "1", "3"]
    )
    assert asked(split="test", dataset_config="main") == ["2"] and asked(split="test", dataset_config="other") == ["2", "3"]
    with pytest.raises(UserError, match=r"split: no file in folder .*'validation'.*split=null to read all 4"):
        asked(split="validation")


@pytest.mark.parametrize(
    ("name", "split", "is_read"),
    [
        ("valid.jsonl", "validation", True),
        ("dev_1.jsonl", "validation", True),
        ("my.Training.jsonl", "train", True),
        ("TEST2.jsonl", "test", True),
        ("latest.jsonl", "test", True),  # no word of a split in any name: a folder of one
        ("greatest_train.jsonl", "test", False),
        ("algebra_hard.jsonl", "hard", True),
        ("train_test_split/train.jsonl", "test", False),  # the file's own name counts first
        ("my-eval/0000.jsonl", "test", True),
    ],
)
def test_words_in_names_say_the_split(tmp_path: Path, name: str, split: str, is_read: bool):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / name, ROWS[:1])
    if is_read:
        assert len(load(path=str(tmp_path), split=split)) == 1
    else:
        with pytest.raises(UserError, match="by its name"):
            load(path=str(tmp_path), split=split)


def test_columns_that_no_row_has_are_named_all_at_once_with_their_keys(tmp_path: Path):
    rows = [{"problem": "1+1", "solution": "2"}, {"problem": "1+2", "solution": "3", "answer": "3"}]
    path = str(write(tmp_path / "a.jsonl", rows))
    with pytest.raises(
        UserError, match=r"a\.jsonl:1: no column 'question' for the question; .* name yours: \S+question=COLUMN$"
    ):
        load(path=path)
    both = r"no column 'question' for the question, no column 'gold' for the answer; columns here: problem, solution; .*: "
    with pytest.raises(UserError, match=both + r"\S+\.question=COLUMN \S+\.answer=COLUMN$"):
        load(path=path, answer="gold")
    with pytest.raises(UserError, match=r"no column 'a' for the question, no column 'b' for the question; "):
        load(path=path, question="{a} {problem} {b}", answer="solution")
    assert len(load(path=path, question="problem", answer="solution")) == 2


def test_a_split_of_its_very_name_comes_before_its_other_words(tmp_path: Path):
    for number, name in enumerate(("dev", "validation", "test")):
        write(tmp_path / f"{name}.jsonl", [{"question": f"{number}", "answer": "1"}])

    def asked(split: str) -> list[str]:
        return [problem.question for problem in load(path=str(tmp_path), split=split)]

    assert (asked("dev"), asked("validation"), asked("val"), asked("eval")) == (["0"], ["1"], ["0", "1"], ["2"])

"""Problems from files of every format and from a data set folder, as the hub's loader reads it."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conclip.config import ProblemSetConfig, UserError
from conclip.problems.files import load_dataset
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
    assert [p.answer for p in load(path=path, offset=1, num_problems=1)] == ["6"]
    parts = [load(path=path, seed=3, num_problems=2), load(path=path, seed=3, offset=2)]
    assert sorted(p.answer for part in parts for p in part) == ["2", "4", "6"]  # one shuffle, two disjoint parts
    with pytest.raises(UserError, match="there are 2 problems, not 3"):
        load(path=path, levels=[2], num_problems=3)


def test_the_expected_number_is_checked_and_repetitions_are_reported(tmp_path: Path):
    path = str(write(tmp_path / "d.jsonl", [*ROWS, ROWS[0]]))
    with pytest.raises(UserError, match=r"4 problems where 3 are expected.*expected_problems=null"):
        load(path=path, expected_problems=3)
    problems, notes = load_dataset("data.test.x", "x", ProblemSetConfig(source="dataset", path=path, expected_problems=4))
    assert len({p.problem_id for p in problems}) == 4
    assert notes == ["data.test.x: 1 of 4 problems repeat the text of another one (kept)"]


def test_multiple_choice_by_index_letter_and_columns(tmp_path: Path):
    rows = [{"q": "?", "options": ["10", "12", "14"], "key": key} for key in (1, "C", "0")]
    problems = load(path=str(write(tmp_path / "d.json", rows)), question="q", choices="options", answer="key")
    assert [p.answer for p in problems] == ["B", "C", "A"]
    assert problems[0].question == "?\nA) 10\nB) 12\nC) 14" and problems[0].choices == ("10", "12", "14")
    columns = [{"q": f"question {n}", "right": "yes", "wrong": "no", "wrong 2": "maybe"} for n in range(12)]
    mixed = load(path=str(write(tmp_path / "e.jsonl", columns)), question="q", choices=["right", "wrong", "wrong 2"])
    assert all(p.choices is not None and p.choices["ABC".index(p.answer)] == "yes" for p in mixed)
    assert len({p.answer for p in mixed}) == 3  # the right one does not always stand first
    with pytest.raises(UserError, match="names none of the 3 options"):
        load(path=str(write(tmp_path / "f.json", [rows[0] | {"key": 3}])), question="q", choices="options", answer="key")


def test_answers_in_boxes_lists_and_patterns(tmp_path: Path):
    boxed = write(tmp_path / "a.jsonl", [{"question": "?", "answer": r"so \boxed{\frac{1}{2}}."}])
    assert load(path=str(boxed), answer_boxed=True)[0].answer == r"\frac{1}{2}"
    several = write(tmp_path / "b.json", [{"question": "?", "answer": ["1", "2"]}])
    assert load(path=str(several))[0].answer == "1, 2"
    hashed = write(tmp_path / "c.jsonl", [{"question": "?", "answer": "work\n#### 72"}])
    assert load(path=str(hashed), answer_pattern=r"####\s*(.+)")[0].answer == "72"
    with pytest.raises(UserError, match=r"no answer .*boxed"):
        load(path=str(hashed), answer_boxed=True)


def test_worked_examples_of_the_same_subject_stand_before_each_question(tmp_path: Path):
    examples = [{"question": f"{n}+0", "answer": str(n), "subject": s} for s in ("sums", "products") for n in range(3)]
    path, shots = write(tmp_path / "d.jsonl", ROWS), write(tmp_path / "dev.jsonl", examples)
    problem = load(path=str(path), shots=2, shots_path=str(shots))[1]
    assert problem.asked == "0+0\nAnswer: \\boxed{0}\n\n1+0\nAnswer: \\boxed{1}\n\n2*3"
    assert problem.question == "2*3"  # problems that share their examples are not the same
    with pytest.raises(UserError, match="4 examples asked for, subject 'sums' has 3"):
        load(path=str(path), shots=4, shots_path=str(shots))
    with pytest.raises(UserError, match="shots_path"):
        load(path=str(path), shots=2)


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


def test_an_empty_folder_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="holds no"):
        load(path=str(tmp_path))

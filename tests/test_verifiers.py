"""Verifiers: functions of the user's own that judge responses, in real workers, in runs, and in `conclip grade`."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from conclip.cli.main import main
from conclip.config.compose import load_config
from conclip.config.groups import ProblemSetConfig
from conclip.errors import UserError
from conclip.evaluation.overthinking import first_mention
from conclip.evaluation.rows import to_dict
from conclip.grading.grader import Grader
from conclip.grading.verifier import check_verifier, find_verifier
from conclip.lab.arithmetic import generate
from conclip.problems.load import load_problems
from conclip.runs.identity import problems_hash
from conclip.types import Grade, Outcome, Problem, Verifier
from tests.conftest import make_row

CHECK = r"""
import subprocess, sys
import numpy as np
from helper import number

def right(response, answer):
    print("what a verifier prints is read by nobody")
    assert sys.stdin.read() == ""
    found = number(response)
    return None if found is None else found == int(answer)

def as_numpy(response, answer):
    return np.bool_(answer in response)

def share(response, answer):
    return 0.5

def fails(response, answer):
    return 1 / len(response.strip("x")) > 0

def endless(response, answer):
    while response == "go":
        pass
    return True

def waits(response, answer):
    if response == "go":
        subprocess.run([sys.executable, "-c", "import time; time.sleep(600)", answer])
    return True

def box(response, answer):
    _, found, rest = response.rpartition("\\boxed{")
    return rest.partition("}")[0] == answer if found else None
"""

HELPER = """
def number(text):
    return next((int(word) for word in reversed(text.split()) if word.isdigit()), None)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifiers")
    (folder / "helper.py").write_text(HELPER)
    path = folder / "check.py"
    path.write_text(CHECK)
    return path


def named(file: Path, function: str) -> Verifier:
    return find_verifier("data.test.x.verifier", f"{file}:{function}")


@contextmanager
def grading(**settings: Any) -> Iterator[tuple[Grader, list[str]]]:
    said: list[str] = []
    grader = Grader(warn=said.append, **settings)
    try:
        yield grader, said
    finally:
        grader.close()


def verdicts(grader: Grader, verifier: Verifier, *texts: str, gold: str = "7", finish_reason: Any = "stop") -> list[Grade]:
    for number, text in enumerate(texts):
        grader.submit(str(number), gold=gold, text=text, finish_reason=finish_reason, verifier=verifier)
    found: dict[str, Grade] = {}
    deadline = time.monotonic() + 120
    while len(found) < len(texts):
        assert time.monotonic() < deadline
        found |= dict(grader.poll(1.0))
    return [found[str(number)] for number in range(len(texts))]


def outcomes(grader: Grader, verifier: Verifier, *texts: str, **settings: Any) -> list[str]:
    return [grade.outcome.value for grade in verdicts(grader, verifier, *texts, **settings)]


def test_a_verifier_judges_whole_responses_whatever_it_prints_and_reads(file: Path):
    with grading() as (grader, said):
        long = "so " * 30_000 + "7"  # longer than any answer, and than a pipe holds
        found = outcomes(grader, named(file, "right"), "it is 7", r"\boxed{7}", "7", "it is 8", long, " ", "it is 7")
        assert found == ["correct", "no_answer", "correct", "wrong", "correct", "no_answer", "correct"]
        assert outcomes(grader, named(file, "as_numpy"), "x 7", "x") == ["correct", "wrong"]
        assert outcomes(grader, named(file, "right"), "it is 7", finish_reason="length") == ["truncated"]
        (right,) = verdicts(grader, named(file, "right"), "it is 7")
        assert right.by("strict") == right.by("lenient") == right and right.extracted is None and right.method is None
        assert grader.grade(gold="7", text=r"\boxed{8}").outcome is Outcome.WRONG  # others are graded as ever
    assert said == []


def test_what_a_verifier_raises_is_told_once_and_is_no_verdict(file: Path):
    with grading() as (grader, said):
        found = outcomes(grader, named(file, "fails"), "a", "x", "xx", "b")
        assert found == ["correct", "grader_error", "grader_error", "correct"]
        line = next(n for n, text in enumerate(CHECK.splitlines(), start=1) if "1 / len" in text)
        assert said == [
            f"verifier fails: ZeroDivisionError: division by zero (check.py, line {line}); the response counts as a grader "
            "error"
        ]
        assert outcomes(grader, named(file, "share"), "a") == ["grader_error"]
        assert "share returned 0.5, not True (right), False (wrong) or None (no answer)" in said[1]


def test_a_verifier_has_limits_and_what_it_starts_ends_with_it(file: Path):
    with grading(num_workers=1, cpu_limit_s=1) as (grader, _):
        assert outcomes(grader, named(file, "endless"), "go", "on") == ["grader_error", "correct"]
    mark = f"of-{file.parent.name}"
    with grading(num_workers=1, wall_limit_s=8) as (grader, _):
        assert outcomes(grader, named(file, "waits"), "go", "on", gold=mark) == ["grader_error", "correct"]
    assert not [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


def test_a_verifier_that_changes_within_a_run_judges_nothing_more(tmp_path: Path):
    path = tmp_path / "check.py"
    path.write_text("def right(response, answer):\n    return True\n")
    verifier = named(path, "right")
    path.write_text("def right(response, answer):\n    return False\n")
    with grading() as (grader, said):
        assert outcomes(grader, verifier, "a") == ["grader_error"]
    assert said == [
        "verifier right: ValueError: check.py has changed since the run began; start again, with this file or with the old "
        "one; the response counts as a grader error"
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("check:right", "", "names no function; write it as FILE.py:FUNCTION"),
        ("check.py", "", "names no function; write it as FILE.py:FUNCTION"),
        ("check.py:two words", "", "names no function; write it as FILE.py:FUNCTION"),
        ("nowhere.py:right", "", "no file '"),
        ("check.py:right", "def wrong(response, answer): ...", r"check\.py has no function 'right'$"),
        ("check.py:right", "right = 3", r"check\.py has no function 'right'$"),
        ("check.py:right", "import nothing_of_this_name", r"No module named 'nothing_of_this_name' \(check\.py, line 1\)$"),
        ("check.py:right", "def right(:", r"SyntaxError: .*\(check\.py, line 1\)$"),
        ("check.py:right", "def right(one): return True", "takes 1 positional argument but 2 were given"),
        ("check.py:right", "def right(one, two): return 'yes'", "returned 'yes', not True"),
        ("check.py:right", "def right(one, two): return one[100] == two", r"IndexError: .*\(check\.py, line 1\)$"),
        ("check.py:right", "import os; os._exit(3)", "its process ended with 3"),
    ],
)
def test_a_verifier_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: str, reason: str):
    (tmp_path / "check.py").write_text(content)
    with pytest.raises(UserError, match=rf"^key: .*{reason}"):
        check_verifier("key", find_verifier("key", f"{tmp_path}/{name}"), "7")


def load(tmp_path: Path, rows: list[dict[str, Any]], verifier: str, **settings: Any) -> list[Problem]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"x": ProblemSetConfig(source="dataset", path=str(path), verifier=verifier, **settings)}
    return load_problems("data.test", sets, 0)


def test_a_verifier_gets_the_answer_column_as_it_is(tmp_path: Path, file: Path):
    tests = [["f(1)", 2], ["f(2)", 3]]
    rows = [{"question": "a", "answer": tests}, {"question": "b", "answer": "  1,000\n"}, {"question": "c", "answer": 0.5}]
    found = load(tmp_path, rows, f"{file}:as_numpy")
    assert [problem.answer for problem in found] == [json.dumps(tests), "  1,000\n", "0.5"]
    assert {problem.verifier for problem in found} == {named(file, "as_numpy")}
    assert [problem.answer for problem in load(tmp_path, rows, f"{file}:as_numpy", answer=None)] == ["", "", ""]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: no column 'answer'"):
        load(tmp_path, [rows[0], {"question": "b"}], f"{file}:as_numpy")
    with pytest.raises(UserError, match=r"^data\.test\.x\.verifier: share cannot be used: TypeError: share returned 0\.5"):
        load(tmp_path, rows, f"{file}:share")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.test.mine.choices=options"], "data.test.mine.choices' is for the grader"),
        (["data.test.mine.answer_boxed=true"], "data.test.mine.answer_boxed' is for the grader"),
        (["data.test.mine.tolerance=0.1"], "data.test.mine.tolerance' is for the grader"),
        (["recipe=warm_up", "data.pool.mine.verifier=check.py:right"], "recipe.warm-up' teaches to give answers in a box"),
    ],
)
def test_what_a_verifier_excludes(more: list[str], said: str):
    files = [f"data.{name}.mine.path=rows.jsonl" for name in ("pool", "validation", "test")]
    with pytest.raises(UserError, match=said):
        load_config("two-phase", "data=mine", *files, "data.test.mine.verifier=check.py:right", *more)
    with pytest.raises(UserError, match=r"data\.test\.chain\.verifier' is for source: dataset"):
        load_config("eval", "+data.test.chain.verifier=check.py:right")


def test_a_verifiers_content_decides_what_a_problem_is_and_its_place_does_not(tmp_path: Path, file: Path):
    plain = Problem(problem_id="a", question="?", answer="7", source="x")
    first = replace(plain, verifier=named(file, "right"))
    copy = tmp_path / "copy.py"
    copy.write_text(CHECK)
    assert problems_hash([first]) == problems_hash([replace(plain, verifier=named(copy, "right"))])
    copy.write_text(CHECK + "\n")
    others = [named(copy, "right"), named(file, "as_numpy"), None]
    assert len({problems_hash([replace(plain, verifier=other)]) for other in others} | {problems_hash([first])}) == 4
    assert problems_hash([plain]) == "f17c5fa4d804b2eace17b8bd"  # as before there were verifiers: runs of then go on
    assert first_mention("so 7", plain) == 4 and first_mention("so 7", first) is None


def conclip(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    patch.setattr(sys, "argv", ["conclip", *arguments])
    main()


def test_grade_takes_a_verifier(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"gold": {"tests": [7]}, "response": 'it passes {"tests": [7]}'},
        {"gold": "7", "response": "<think>7</think> none", "finish_reason": "stop"},
        {"gold": "7", "response": "7", "finish_reason": "length"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    conclip(monkeypatch, "grade", str(source), str(target), "--verifier", f"{file}:as_numpy")
    graded = [json.loads(line)["outcome"] for line in target.read_text().splitlines()]
    assert graded == ["correct", "wrong", "truncated"]
    conclip(monkeypatch, "grade", str(source), str(target), "--verifier", f"{file}:fails")
    assert "note:" not in capsys.readouterr().err
    source.write_text(json.dumps({"gold": "7", "response": "xx"}))
    conclip(monkeypatch, "grade", str(source), str(target), "--verifier", f"{file}:fails")
    assert "note: verifier fails: ZeroDivisionError" in capsys.readouterr().err
    for wrong, said in ((["--audit"], "leave out --audit"), (["--gold-pattern", "(.)"], "leave out --audit")):
        with pytest.raises(SystemExit) as ended:
            conclip(monkeypatch, "grade", str(source), str(target), "--verifier", f"{file}:as_numpy", *wrong)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_rows_of_a_run_are_graded_again_by_a_verifier_that_is_named(tmp_path: Path, file: Path):
    """A file of rows must not choose what is run here."""
    problem = {"problem_id": "p", "answer": r"\boxed{7}", "verifier": {"file": str(file), "function": "as_numpy"}}
    (tmp_path / "questions.jsonl").write_text(json.dumps(problem) + "\n")
    source = tmp_path / "rows-base.jsonl"
    rows = [make_row("p", Outcome.WRONG, 5, text=r"<think>none</think> \boxed{7}", answer="7")]
    source.write_text("".join(json.dumps(to_dict(row)) + "\n" for row in rows))
    command = [sys.executable, "-P", "-m", "conclip", "grade", str(source), str(tmp_path / "out.jsonl")]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (
        refused.returncode == 2
        and f"has a verifier; name it if you trust it: --verifier '{file}:as_numpy'" in refused.stderr
    )
    assert not (tmp_path / "out.jsonl").exists()
    subprocess.run([*command, "--verifier", f"{file}:as_numpy"], check=True)
    assert json.loads((tmp_path / "out.jsonl").read_text())["outcome"] == "correct"


def test_the_verifier_of_the_docs_runs_tests(tmp_path: Path):
    page = (Path(__file__).parent.parent / "docs" / "yours.md").read_text()
    (tmp_path / "check.py").write_text(page.partition("```python\n# check.py\n")[2].partition("\n```\n\n```sh")[0])
    code = "Like this:\n```python\ndef square(x):\n    return x * x\n```\nDone."
    with grading() as (grader, said):
        verifier = named(tmp_path / "check.py", "passes")
        check_verifier("key", verifier, "[]")
        for test, outcome in (("assert square(3) == 9", "correct"), ("assert square(3) == 6", "wrong")):
            assert outcomes(grader, verifier, code, "9", gold=json.dumps([test])) == [outcome, "no_answer"]
    assert said == []


@pytest.mark.whole
@pytest.mark.usefixtures("scripted")
def test_a_phase_with_a_verifier_is_the_one_with_the_grader_where_both_judge_alike(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    parts: dict[str, Any] = {"pool": "train", "validation": "validation", "test": "test"}
    for name, split in parts.items():
        problems = generate("chain", levels=(3, 4), split=split, num_problems=16, seed=0, source="x")
        rows = [{"question": problem.question, "answer": problem.answer, "id": problem.problem_id} for problem in problems]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results: dict[str, list[dict[str, Any]]] = {}
    for verifier in ("null", f"{file}:box"):
        name = "graded" if verifier == "null" else "verified"
        columns = [
            f"data.{n}.mine.{k}={v}"
            for n in ("pool", "validation", "test")
            for k, v in (("path", f"{n}.jsonl"), ("problem_id", "id"), ("verifier", verifier))
        ]
        conclip(
            monkeypatch,
            "train-phase2",
            "debug=train",
            "data=mine",
            *columns,
            *(f"~data.{n}.chain" for n in ("pool", "validation")),
            f"name={name}",
        )
        lines = Path(f"outputs/train-phase2/{name}/attempt-001/metrics.jsonl").read_text().splitlines()
        results[name] = [
            {key: value for key, value in json.loads(line).items() if not key.startswith(("time/", "perf/"))}
            for line in lines
        ]
    assert results["graded"] == results["verified"] and len(results["graded"]) > 0

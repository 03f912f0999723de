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
from conclip.errors import MachineFailure, UserError
from conclip.evaluation.measures import details
from conclip.evaluation.overthinking import first_mention
from conclip.evaluation.regrade import Columns, grade_file
from conclip.evaluation.rows import to_dict
from conclip.experiments.inputs import load_inputs
from conclip.grading.grader import Grader
from conclip.grading.verifier import check_verifier, find_verifier
from conclip.lab.arithmetic import generate
from conclip.problems.load import load_problems
from conclip.runs.identity import problems_hash, sampling_hash
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


LIMITED = """
import signal, subprocess, sys

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]

def endless(response, answer):
    while response == "go":
        pass
    return True

def waits(response, answer):
    if response == "go":
        subprocess.run([*SLEEPER, answer])
    return True

def leaves(response, answer):
    subprocess.Popen([*SLEEPER, answer])
    return True

def is_ended_by_signals(response, answer):
    asked = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    return subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "True\\n"

def leaves_the_worker(response, answer):
    sys.exit(0)
"""


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    path = tmp_path / "limited.py"
    path.write_text(LIMITED)
    return path


def marked(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


def gone(mark: str) -> bool:
    deadline = time.monotonic() + 30
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not marked(mark)


def test_a_verifier_has_limits_and_what_it_starts_ends_with_it(limited: Path):
    with grading(num_workers=1, cpu_limit_s=1) as (grader, said):
        assert outcomes(grader, named(limited, "endless"), "go", "on") == ["grader_error", "correct"]
        assert outcomes(grader, named(limited, "leaves_the_worker"), "go") == ["grader_error"]
        assert outcomes(grader, named(limited, "is_ended_by_signals"), "go") == ["correct"]
    assert said[0] == "verifier endless: it took more than 1 s of processor time; the response counts as a grader error"
    assert "leaves_the_worker: RuntimeError: it ends the process (sys.exit) (limited.py, line " in said[1]
    mark = f"of-{limited.parent.name}"
    with grading(num_workers=1, wall_limit_s=20) as (grader, said):
        assert outcomes(grader, named(limited, "leaves"), "go", gold=mark) == ["correct"] and gone(mark)
        assert outcomes(grader, named(limited, "waits"), "go", "on", gold=mark) == ["grader_error", "correct"]
    assert said == ["verifier waits: its worker gave no answer in 20 s; the response counts as a grader error"]
    assert not marked(mark)


def test_a_verifier_at_work_ends_with_its_run(limited: Path):
    """Though the run is killed, and the verifier waits."""
    mark = f"killed-{limited.parent.name}"
    script = (
        "from conclip.grading.grader import Grader\nfrom conclip.grading.verifier import find_verifier\n"
        f"grader = Grader()\ngrader.submit('a', gold={mark!r}, text='go', finish_reason='stop', "
        f"verifier=find_verifier('key', {f'{limited}:waits'!r}))\nwhile True: grader.poll(1.0)"
    )
    run = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while not marked(mark) and time.monotonic() < deadline:
            time.sleep(0.1)
        (sleeper,) = marked(mark)
        worker = sleeper.parent()
    finally:
        run.kill()
        run.wait()
    assert gone(mark) and worker is not None
    worker.wait(30)


@pytest.mark.parametrize("is_gone", [False, True], ids=["changed", "gone"])
def test_a_verifier_that_changes_within_a_run_ends_it(tmp_path: Path, is_gone: bool):
    """Errors of the grader would fill the rest of it."""
    path = tmp_path / "check.py"
    path.write_text("def right(response, answer):\n    return True\n")
    verifier = named(path, "right")
    with grading(num_workers=1) as (grader, said):
        assert outcomes(grader, verifier, "a") == ["correct"]
        path.write_text("def right(response, answer):\n    return None\n")
        assert outcomes(grader, named(path, "right"), "c") == ["no_answer"]  # as it is now, not as Python has cached it
        if is_gone:
            path.unlink()
        with pytest.raises(MachineFailure, match="is gone, or has changed since the command began; put it"):
            outcomes(grader, verifier, "b")
    assert said == []


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
        ("check.py:right", "import sys\nsys.exit(0)", r"it ends the process \(sys\.exit\) \(check\.py, line 2\)$"),
        ("check.py:right", "import os\nos.write(2, b'\\xff')\nos._exit(3)", "cannot be used: "),
        ("check.py:right", "def right(one, two):\n    while True: pass", "takes more processor time than it has"),
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
    """A file of rows must not choose what is run here; rows that were compared are compared again."""
    source = tmp_path / "rows-base.jsonl"
    first = make_row("p", Outcome.WRONG, 5, text=r"<think>none</think> \boxed{7}", answer="7", verifier="other@1234")
    rows = [first, make_row("q", Outcome.WRONG, 5, text="it is 7", answer="7")]
    source.write_text("".join(json.dumps(to_dict(row)) + "\n" for row in rows))
    command = [sys.executable, "-P", "-m", "conclip", "grade", str(source), str(tmp_path / "out.jsonl")]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and not (tmp_path / "out.jsonl").exists()
    assert "rows-base.jsonl:1: judged by the verifier 'other@1234'; name it by --verifier FILE.py:FUNCTION" in refused.stderr
    subprocess.run([*command, "--verifier", f"{file}:as_numpy"], check=True)
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in graded] == ["correct", "no_answer"]
    assert graded[0]["verifier"].startswith("as_numpy@") and graded[1]["verifier"] is None


def test_a_verifier_is_tried_though_the_first_row_was_compared_and_other_golds_are_still_looked_at(
    tmp_path: Path, file: Path
):
    rows = [make_row("p", Outcome.WRONG, 5, answer="[?]"), make_row("q", Outcome.WRONG, 5, answer="7", verifier="a@1")]
    source = tmp_path / "rows-base.jsonl"
    source.write_text("".join(json.dumps(to_dict(row)) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"^--verifier: share cannot be used: TypeError: share returned 0\.5"):
        grade_file(source, tmp_path / "out.jsonl", audit=False, columns=Columns(verifier=named(file, "share")))
    notes: list[str] = []
    grade_file(source, tmp_path / "out.jsonl", audit=False, columns=Columns(verifier=named(file, "right")), notes=notes)
    assert len(notes) == 2 and "1 of 1 gold answers are not understood" in notes[0] and "of 1 rows are not in" in notes[1]


def test_rows_of_a_verifier_count_without_a_box_and_have_no_majority():
    rows = [make_row("p", Outcome.CORRECT, 5, n, verifier="right@12") for n in range(2)]
    assert rows[0].by("strict").extraction == "lenient" and rows[0].by("strict").outcome is Outcome.CORRECT
    assert details(rows)["maj_at_k"] is None and details(rows)["pass_at_k"] == {1: 1.0, 2: 1.0}
    assert details([replace(row, verifier=None) for row in rows])["maj_at_k"] == {2: 1.0}


def test_verifiers_of_one_run_lie_in_one_folder_and_their_content_marks_pass_rates(tmp_path: Path):
    """In two folders, `import helper` would find the same one for both."""
    sets = list[str]()
    for name in ("validation", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "check.py").write_text("def right(response, answer): return True")
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": f"of {name}?", "answer": "7"}))
        sets.append(f"data.{name}.mine.path={tmp_path}/{name}.jsonl")
        sets.append(f"data.{name}.mine.verifier={tmp_path}/{name}/check.py:right")
    pool = [f"data.pool.mine.path={tmp_path}/pool.jsonl", f"data.pool.mine.verifier={tmp_path}/test/check.py:right"]
    (tmp_path / "pool.jsonl").write_text(json.dumps({"question": "of pool?", "answer": "7"}))
    config = load_config("two-phase", "data=mine", *sets, *pool)
    with pytest.raises(UserError, match=r"^data: verifiers lie in '.*test' and '.*validation'; put those"):
        load_inputs(config)
    before = sampling_hash(config)
    (tmp_path / "test/check.py").write_text("def right(response, answer): return False")
    assert sampling_hash(config) != before


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


MEET = """
import os, time
from pathlib import Path

def three(response, answer):
    "Return whether three processes judge at the same time, which must meet in a folder."
    if response == "I do not know." or answer in response:
        return False  # tried before the run, in one process
    here = Path(answer)
    (here / str(os.getpid())).touch()
    until = time.monotonic() + 30
    while len(list(here.iterdir())) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    return len(list(here.iterdir())) >= 3
"""


@pytest.mark.whole
@pytest.mark.usefixtures("scripted")
def test_as_many_verifiers_run_at_a_time_as_a_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("meet.py").write_text(MEET)
    for name in ("run", "grade"):
        Path(name).mkdir()
    texts = ("a=3;b=a+4;b?", "a=3;b=a+5;b?", "a=3;b=a+6;b?")
    Path("asked.jsonl").write_text("".join(json.dumps({"question": q, "answer": f"{tmp_path}/run"}) + "\n" for q in texts))
    asked = ("data=mine", "data.test.mine.path=asked.jsonl", "data.test.mine.verifier=meet.py:three")
    conclip(monkeypatch, "eval", "name=x", *asked, "rollout.num_graders=3", "eval.samples_per_problem=2")
    rows = [json.loads(line) for line in Path("outputs/eval/x/attempt-001/rows-model.jsonl").read_text().splitlines()]
    assert {row["outcome"] for row in rows} - {"truncated"} == {"correct"}
    rows = [{"gold": f"{tmp_path}/grade", "response": text} for text in texts]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    conclip(monkeypatch, "grade", "in.jsonl", "out.jsonl", "--verifier", "meet.py:three", "--jobs", "3")
    assert [json.loads(line)["outcome"] for line in Path("out.jsonl").read_text().splitlines()] == ["correct"] * 3
    with pytest.raises(SystemExit):
        conclip(monkeypatch, "grade", "in.jsonl", "out.jsonl", "--jobs", "0")


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


def test_a_program_that_a_verifier_starts_may_raise_the_limit_of_memory():
    program = """
import resource, subprocess, sys
from conclip.grading.limits import limit_memory
limit_memory()
inner = "import resource; print(resource.getrlimit(resource.RLIMIT_AS)[0]); resource.setrlimit(resource.RLIMIT_AS, {0}); {1}"
inner = inner.format((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "print(len(bytearray(5 << 29)))")
print(subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True).stdout)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(2 << 30), str(5 << 29)]

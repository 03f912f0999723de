"""Whatever stands in overrides and in data rows, the answer is a result or a UserError, never another exception.

CI tries some hundreds of cases; `make fuzz` many thousands (`CONCLIP_FUZZ` cases of each test).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conclip.config.compose import compose_config, sweep_jobs
from conclip.config.groups import ProblemSetConfig
from conclip.config.schema import SCHEMAS
from conclip.config.typed import schema_keys, to_config
from conclip.curriculum.pass_rates import read_pass_rates
from conclip.errors import UserError
from conclip.evaluation.regrade import grade_file
from conclip.evaluation.rows import read_rows
from conclip.problems.load import load_problems
from conclip.problems.overlap import trained_on
from conclip.types import Problem

CASES = int(os.environ.get("CONCLIP_FUZZ", "0"))


def cases(few: int) -> Any:
    return settings(max_examples=CASES or few, derandomize=not CASES, suppress_health_check=list(HealthCheck))


KEYS = {name: sorted(key.replace("*", "mine") for key in schema_keys(schema)) for name, schema in SCHEMAS.items()}

plain_values = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["null", "true", "[]", "{}", "[1,2]", "{a: 1}", "???", "${seed}", "${nowhere}", "${oc.env:HOME}", "''", "1e999"]
    ),
    st.text(max_size=20),
    st.lists(st.integers(-3, 99), max_size=4).map(str),
    st.text(alphabet="[]{}()',\"\\\\$:=~+*#@!| \t01ae.", max_size=15),
)


@st.composite
def overrides(draw: st.DrawFn) -> tuple[str, list[str]]:
    subcommand = draw(st.sampled_from(sorted(SCHEMAS)))
    key = st.one_of(
        st.sampled_from(KEYS[subcommand]),
        st.sampled_from(["algo", "data", "model", "phase", "experiment", "debug", "length", "hydra.run.dir", "defaults"]),
        st.text(alphabet="abz._@/~+ 0", max_size=12),
    )
    override = st.builds(
        lambda prefix, key, value: f"{prefix}{key}={value}", st.sampled_from(["", "", "+", "++", "~"]), key, plain_values
    )
    return subcommand, draw(st.lists(override, min_size=1, max_size=3))


@pytest.mark.whole
@cases(25)
@given(overrides())
def test_overrides(case: tuple[str, list[str]]):
    subcommand, given_overrides = case
    try:
        (mine,) = sweep_jobs(given_overrides, sweeping=False)
        to_config(SCHEMAS[subcommand], compose_config(subcommand, mine)[0])
    except UserError:
        pass


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.integers(10**4000, 10**4400), st.floats(), st.text(max_size=30)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
texts = st.one_of(
    st.text(min_size=1, max_size=30), st.sampled_from(["2", "#### 7", "\\boxed{3}", "Level 5", "B", "\u00b2", "\ud800"])
)
COLUMNS = ("question", "answer", "choices", "level", "subject", "id", "gold", "response", "precision")
rows = st.dictionaries(st.sampled_from(COLUMNS), st.one_of(texts, st.lists(texts, max_size=5), anything), max_size=9)
complete = st.builds(lambda more, q, a: more | {"question": q, "answer": a}, rows, texts, texts)


def as_json(row: Any) -> bytes:
    try:
        return json.dumps(row).encode()
    except ValueError:  # more digits than Python writes
        return b'{"question": "1", "answer": ' + b"9" * 5000 + b"}"


lines = st.one_of(
    complete.map(as_json), complete.map(as_json), rows.map(as_json), anything.map(as_json), st.binary(max_size=40)
)
files = st.lists(lines, max_size=4).map(b"\n".join)

set_settings = st.fixed_dictionaries(
    {},
    optional={
        "levels": st.lists(st.integers(0, 5), max_size=2),
        "subjects": st.lists(texts, max_size=2),
        "choices": st.sampled_from(["choices", "subject", ["answer", "subject"], ["answer", "question", "id"]]),
        "problem_id": st.sampled_from(["id", "level", "nowhere"]),
        "answer_boxed": st.just(True),
        "answer_pattern": st.sampled_from(["#### (.*)", "(", "x", "(.)", "(x)?."]),
        "num_problems": st.integers(1, 3),
        "seed": st.integers(0, 3),
        "offset": st.integers(0, 3),
        "shots": st.integers(0, 2),
    },
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.whole
@cases(100)
@given(content=files, changes=set_settings, suffix=st.sampled_from([".jsonl", ".jsonl", ".json", ".csv", ".parquet"]))
def test_problem_files(place: Path, content: bytes, changes: dict[str, Any], suffix: str):
    path = place / f"data{suffix}"
    path.write_bytes(b"[" + content.replace(b"\n", b",") + b"]" if suffix == ".json" else content)
    problem_set = ProblemSetConfig(source="dataset", path=str(path), shots_path=str(path), **changes)
    try:
        problems = load_problems("data.test", {"mine": problem_set}, 0)
    except UserError:
        return
    assert problems and all(isinstance(problem, Problem) for problem in problems)
    assert all(problem.question.encode() and problem.answer.encode() for problem in problems)


@pytest.mark.whole
@cases(150)
@given(content=files, kind=st.sampled_from(["pass rates", "rows", "record", "grade"]))
def test_files_of_earlier_runs(place: Path, content: bytes, kind: str):
    path = place / ("trained_on.json" if kind == "record" else "earlier.jsonl")
    path.write_bytes(content)
    try:
        if kind == "pass rates":
            read_pass_rates(path)
        elif kind == "rows":
            read_rows(path)
        elif kind == "record":
            trained_on(place)
        elif b'"gold"' not in content:  # what can be graded is graded by tests/test_regrade.py
            grade_file(path, place / "out.jsonl", audit=False)
    except UserError:
        pass
    finally:
        path.unlink()

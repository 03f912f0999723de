"""What a step's time is spent on: by a clock of the test's own, and in a phase's metrics."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from conclip.experiments.inputs import Inputs
from conclip.rollout.session import Runtime
from conclip.runs import stopwatch
from conclip.runs.stopwatch import Stopwatch
from tests.phases import saving, train


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    yield now


def test_a_part_inside_another_is_not_counted_twice(clock: list[float]):
    watch = Stopwatch()
    clock[0] += 1
    with watch.part("sample"):
        clock[0] += 2
        with watch.part("grade"):
            clock[0] += 4
        clock[0] += 8
    clock[0] += 16
    assert watch.take() == {"other": 17, "sample": 10, "grade": 4}
    clock[0] += 32
    assert watch.take() == {"other": 32}


def test_a_whole_part_has_what_is_inside(clock: list[float]):
    watch = Stopwatch()
    with watch.part("validate", whole=True):
        clock[0] += 1
        with watch.part("sample"):
            clock[0] += 2
    with watch.part("sample"):
        clock[0] += 4
    assert watch.take() == {"other": 0, "validate": 3, "sample": 4}


def test_an_error_ends_the_part(clock: list[float]):
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.part("validate", whole=True):
        clock[0] += 1
        raise ZeroDivisionError
    with watch.part("save"):
        clock[0] += 2
    assert watch.take() == {"other": 0, "validate": 1, "save": 2}


def test_what_another_thread_does_meanwhile_counts_for_nothing(clock: list[float]):
    watch = Stopwatch()

    def sample() -> None:
        with watch.part("sample"):
            clock[0] += 2

    with watch.part("update"), ThreadPoolExecutor(1) as other:
        other.submit(sample).result()
        clock[0] += 1
    assert watch.take() == {"other": 0, "update": 3}


@pytest.mark.whole
def test_the_parts_of_a_phases_steps_are_named_and_no_time_counts_twice(scripted_runtime: tuple[Runtime, Inputs]):
    began = time.monotonic()
    train(scripted_runtime, "phase2", "timed", saving("trainer.validate_every=2", num_steps=4))
    passed = time.monotonic() - began
    steps = scripted_runtime[0].run.stage_metrics("phase2")
    parts = [{name: value for name, value in step.items() if name.startswith("time/")} for step in steps]
    named = {f"time/{part}_s" for part in ("generate", "grade", "score", "advantages", "update", "push_weights")}
    assert all(named <= part.keys() for part in parts)
    assert ["time/validate_s" in part for part in parts] == [False, True, False, True]
    assert "time/save_s" not in parts[0] and "time/save_s" in parts[1]  # that of the step before
    total = sum(map(sum, (part.values() for part in parts)))
    assert 0 < total < passed  # the rest: loading, the first validation, the last checkpoint

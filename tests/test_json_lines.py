"""One reader of JSON lines, with a policy for what is cut and for what is damaged."""

from pathlib import Path

import pytest

from conclip.runs.json_lines import DamagedLine, json_lines, run_lines

LINES = ['{"a": 1}\n', "\n", "[2]\n", '{"a": 3}']


def test_a_last_line_without_its_end_is_read_or_dropped():
    assert list(json_lines(LINES, cut_line="read")) == [(1, {"a": 1}), (3, [2]), (4, {"a": 3})]
    assert list(json_lines(LINES, cut_line="drop")) == [(1, {"a": 1}), (3, [2])]


@pytest.mark.parametrize("damage", ["{\n", "[" * 100_000 + "\n", '{"a": 1} 2\n', "9" * 5000 + "\n"])
def test_a_damaged_line_is_named_or_skipped(damage: str):
    lines = [LINES[0], "  \n", damage, LINES[2]]
    with pytest.raises(DamagedLine) as caught:
        list(json_lines(lines, cut_line="read"))
    assert caught.value.number == 3
    assert [number for number, _ in json_lines(lines, cut_line="read", damaged="skip")] == [1, 4]


def test_only_a_newline_ends_a_line_of_a_run(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert list(run_lines(path)) == []
    path.write_bytes('"a\u2028b\x85c"\r\n'.encode() + b'"\xff"\n"cut')
    lines = run_lines(path, errors="replace")
    assert list(json_lines(lines, cut_line="drop")) == [(1, "a\u2028b\x85c"), (2, "\ufffd")]

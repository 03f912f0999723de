"""Nothing in the package grows beyond what one reads in one go, and no test is left out without a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parent.parent
MAX_LINES = {"module": 400, "function": 60}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(folder: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((TOP / folder).rglob("*.py")):
        yield str(path.relative_to(TOP)), ast.parse(path.read_text())


def num_lines(function: Function) -> int:
    """From `def` to the end, the docstring apart."""
    first = function.body[0]
    of_docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) and first.end_lineno else 0
    return (function.end_lineno or 0) - function.lineno + 1 - of_docstring


def test_modules_can_be_read_in_one_go():
    long = {path.name: len(path.read_text().splitlines()) for path in (TOP / "conclip").rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES["module"]} == {}


def test_functions_can_be_read_in_one_go():
    long = {
        f"{path}: {node.name}": num_lines(node)
        for path, tree in parsed("conclip")
        for node in ast.walk(tree)
        if isinstance(node, Function) and num_lines(node) > MAX_LINES["function"]
    }
    assert long == {}


SKIPS = ("skip", "skipif", "importorskip", "xfail")


def test_no_test_is_left_out_without_a_reason():
    """Each `skip` says why: as a reason, or as the text of `pytest.skip`."""
    silent: list[str] = []
    for path, tree in parsed("tests"):
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and node.attr in SKIPS and "pytest" in ast.unparse(node.value)):
                continue
            call = next((call for call in calls if call.func is node), None)
            said = call is not None and (
                any(word.arg == "reason" for word in call.keywords) or (node.attr == "skip" and bool(call.args))
            )
            if not said:
                silent.append(f"{path}:{node.lineno}")
    assert silent == []

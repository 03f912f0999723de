r"""Reads matrices, sums and products of them, and determinants. `read` reads the text of a cell."""

import re
from typing import cast

import sympy
from sympy import Expr, Integer

from conclip.grading.answer_types import Matrix, Number, Reading, Spelled
from conclip.grading.formulas import read_formula
from conclip.grading.functions import Unreadable
from conclip.grading.sets import Read

_MATRIX = re.compile(
    r"[(\[|]?\s*\\begin\{([pbBvV]?(?:small)?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[)\]|]?", re.DOTALL
)
_TRANSPOSED = re.compile(r"(.*)\^\s*\{?\s*(?:T|\\top|\\(?:text|mathrm|mathsf|mathbf)\s*\{\s*T\s*\})\s*\}?", re.DOTALL)


def read_matrix(text: str, read: Read) -> Reading | None:
    r"""Return the matrix, or the determinant, that a text is; None for anything else."""
    if transposed := _TRANSPOSED.fullmatch(text):
        inner = read_matrix(transposed[1].strip(), read)
        return Matrix(tuple(zip(*inner.rows, strict=True))) if isinstance(inner, Matrix) and _is_even(inner) else None
    if (matrix := _MATRIX.fullmatch(text)) and "\\end{" not in matrix[2]:
        return _one_matrix(matrix[1], matrix[2], read)
    return _formula(text, read)


def _is_even(matrix: Matrix) -> bool:
    return len({len(row) for row in matrix.rows}) == 1


def _one_matrix(name: str, body: str, read: Read) -> Reading:
    rows = tuple(tuple(read(cell) for cell in row.split("&")) for row in body.split("\\\\") if row.strip())
    if name == "vmatrix":
        try:
            return Number(cast(Expr, sympy.Matrix([[_value(cell) for cell in row] for row in rows]).det()), None, "")
        except (ValueError, TypeError):
            return Spelled("unread", ())
    return Matrix(rows)


_ONE_MATRIX = re.compile(
    r"\\begin\{([pbBvV]?(?:small)?matrix|array)\}(?:\{[lcr|]*\})?((?:(?!\\begin\{|\\end\{).)*)\\end\{\1\}", re.DOTALL
)
_BETWEEN_MATRICES = re.compile(r"\s*(?:(?P<sign>[-+])\s*(?P<scalar>.*?))?\s*(?:\\cdot|\\times|\*)?\s*")


def _formula(text: str, read: Read) -> Reading | None:
    """Read sums and products of matrices, with numbers before them; None for anything else."""
    matrices = list(_ONE_MATRIX.finditer(text))
    if not matrices or text[matrices[-1].end() :].strip():
        return None
    terms: list[sympy.Matrix] = []
    try:
        for number, matrix in enumerate(matrices):
            before = text[matrices[number - 1].end() if number else 0 : matrix.start()]
            between = _BETWEEN_MATRICES.fullmatch(
                before if number else f"+ {before}".replace("+ -", "-").replace("+ +", "+")
            )
            rows = [[_value(read(cell)) for cell in row.split("&")] for row in matrix[2].split("\\\\") if row.strip()]
            if between is None or matrix[1] == "vmatrix":
                return None
            if between["sign"] is None:
                terms[-1] = terms[-1] * sympy.Matrix(rows)
            else:
                scalar = read_formula(between["scalar"]) if between["scalar"] else Integer(1)
                terms.append(sympy.Matrix(rows) * (scalar if between["sign"] == "+" else -scalar))
        total = sum(terms[1:], terms[0])
    except (Unreadable, ValueError, TypeError, sympy.ShapeError):
        return None
    return Matrix(tuple(tuple(Number(cast(Expr, cell), None, "") for cell in row) for row in total.tolist()))


def _value(reading: Reading) -> Expr:
    if not isinstance(reading, Number):
        raise Unreadable("no number")
    return reading.value

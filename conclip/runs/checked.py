"""Type checks for values from files that other people may have written."""

from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from conclip.config.ranges import MAX_COUNT
from conclip.errors import UserError

Value = TypeVar("Value")

Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""The integers that Parquet and NumPy can hold."""

Count = Annotated[int, Field(ge=0, lt=MAX_COUNT)]
"""The counts that a float holds exactly."""
Positive = Annotated[int, Field(ge=1, lt=MAX_COUNT)]
"""Counts of at least one."""


def read_as(adapter: TypeAdapter[Value], value: Any, where: str) -> Value:
    """Return the value as the adapter's type. Raises UserError that names `where` and the first part of another type."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where} is damaged, or was not written by conclip ({first_fault(error)})") from error


def first_fault(error: ValidationError) -> str:
    """Return where and what is wrong first, without the value itself, which may be anything."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]

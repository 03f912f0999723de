"""Values in the cells of a row, as text."""

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from conclip.errors import UserError


class NoAnswer(UserError):
    """A row that has no usable answer."""


def cell(columns: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or of what is inside it: ``reward_model.ground_truth``, ``prompt.0.content``. None where
    there is none."""
    return _found(columns, name)[1]


def has_column(columns: Mapping[str, Any], name: str) -> bool:
    """Return whether there is such a column, empty or not."""
    return _found(columns, name)[0]


def _found(columns: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Return whether there is such a column, and its value."""
    if name in columns:
        return True, columns[name]
    value: Any = columns
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = cast(dict[str, Any], value)[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(cast(list[Any], value)):
            value = cast(list[Any], value)[int(part)]
        else:
            return False, None
    return True, value


def cell_text(value: Any) -> str | None:
    """Return a cell as text, numbers in plain decimals (a column of integers with a gap holds 204.0). None for an empty
    cell, null, NaN, an infinite number, and anything that is neither text nor number."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f").removesuffix(".0") if math.isfinite(value) else None
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        return format(value, "f") if isinstance(value, Decimal) else str(value)
    return value if isinstance(value, str) and value.strip() else None


def text_of(where: str, columns: Mapping[str, Any], name: str, role: str) -> str:
    """Return the text of a column that plays a role. Raises UserError where it has none."""
    text = cell_text(cell(columns, name))
    if text is None:
        raise UserError(missing(where, columns, name, role))
    return text


def text_or_json(where: str, columns: Mapping[str, Any], name: str, role: str) -> str:
    """Return the text of a column, as JSON where it holds anything else. Raises NoAnswer where it has nothing, blank text or
    no finite number."""
    value = cell(columns, name)
    if value is None or (isinstance(value, (str, float)) and cell_text(value) is None):
        raise NoAnswer(missing(where, columns, name, role))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


_IN_BRACES = re.compile(r"\{([^{}]+)\}")


def columns_of(columns: Mapping[str, Any], template: str) -> list[str]:
    """Return the columns that `written` takes: the one of that name, or those in braces."""
    return [template] if template in columns else _IN_BRACES.findall(template) or [template]


def written(where: str, columns: Mapping[str, Any], template: str, role: str) -> str:
    """Return the text of a column or, where none has that name and it has columns in braces, the text they make:
    ``{context} {query}``. Raises UserError where one of them has none."""
    if columns_of(columns, template) == [template]:
        return text_of(where, columns, template, role)
    return _IN_BRACES.sub(lambda match: text_of(where, columns, match[1], role), template.replace("\\n", "\n"))


def _paths(name: str, value: Any) -> list[str]:
    """Return the names of the texts and numbers inside a value."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in cast(dict[Any, Any], value).items()]
    elif isinstance(value, list):
        items = [(str(number), item) for number, item in enumerate(cast(list[Any], value))]
    else:
        return [name] if cell_text(value) is not None else []
    return [path for key, item in items for path in _paths(f"{name}.{key}", item)]


def missing(where: str, columns: Mapping[str, Any], name: str, role: str) -> str:
    """Return the message on a column without a usable value."""
    is_there, value = _found(columns, name)
    if not is_there:
        return f"{where}: no column '{name}' for the {role}; columns here: {', '.join(sorted(columns)) or 'none'}"
    if isinstance(value, float):
        return f"{where}: column '{name}' ({role}) is no number but {value}"
    if isinstance(value, bool):
        return f"{where}: column '{name}' ({role}) is {json.dumps(value)}; write what responses say: a text (yes, no)"
    if isinstance(value, (dict, list)) and (inside := _paths(name, value)):
        return f"{where}: column '{name}' ({role}) holds more than a text; name what is inside it: {', '.join(inside[:5])}"
    return f"{where}: column '{name}' ({role}) is empty or not text"

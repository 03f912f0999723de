"""The second opinion of `conclip grade --audit`: math-verify as it comes, with none of this project's conventions."""

from typing import cast

from math_verify import parse, verify


def same_by_math_verify(gold: str, answer: str) -> bool:
    """Return math-verify's verdict on two formulas. Raises ValueError where it cannot read one of them."""
    # The parent process limits the time, so math-verify's own alarms are off.
    left, right = (
        parse(f"\\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=cast(int, None)) for text in (gold, answer)
    )
    if not left or not right:
        raise ValueError("math-verify reads nothing here")
    return verify(left, right, timeout_seconds=None, raise_on_error=True)

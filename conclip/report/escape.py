"""Escapes text of any origin for Markdown and LaTeX: it appears as it is, and is never part of the document's structure."""

import re

MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~$&@]|:(?=//)|(?<=www)\.)")
"""Characters with a meaning in Markdown, its tables, HTML in it, formulas, and links that need no brackets."""

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def one_line(text: str) -> str:
    """Collapse white space to single spaces and drop other control characters, those that change the direction of writing
    included."""
    kept = (
        " " if character.isspace() else character for character in text if character.isspace() or character.isprintable()
    )
    return " ".join("".join(kept).split())


def markdown(text: str) -> str:
    """Escape inline text of a paragraph, a heading or a table cell."""
    return MARKDOWN.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """Return an inline code span. A bar is replaced, as it would end a table's cell even there."""
    content = one_line(text).replace("|", "¦")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    pad = " " if content.startswith("`") or content.endswith("`") or not content else ""
    return f"{fence}{pad}{content}{pad}{fence}"


def block(text: str, language: str) -> str:
    """Return a block of code that nothing in the text can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def tex(text: str) -> str:
    """Escape text of a LaTeX paragraph or table cell."""
    return "".join(TEX.get(character, character) for character in one_line(text))

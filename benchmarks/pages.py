"""Where a benchmark's text goes: between the marks of a page."""

from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def into_page(page: Path, marker: str, text: str) -> None:
    """Put generated text between the page's `<!-- marker -->` and `<!-- /marker -->`."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + text + "\n" + end + rest.split(end)[1])

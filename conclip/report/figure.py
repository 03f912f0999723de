"""A figure of a report: Vega-Lite charts with a description."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt

from conclip.runs.identity import digest
from conclip.types import Outcome

OUTCOMES = {
    Outcome.CORRECT: "#439b66",
    Outcome.WRONG: "#d0634a",
    Outcome.NO_ANSWER: "#9478bd",
    Outcome.TRUNCATED: "#d9a03f",
    Outcome.GRADER_ERROR: "#8c8c8c",
}
MODELS = ("#8b919a", "#3b87c8", "#d0634a", "#439b66", "#9478bd", "#d9a03f", "#2a9d9d", "#b0567f", "#6b7f3a", "#4a5ba8")
"""Colours of models and runs, in order: grey is for the model that training began with."""

WIDTH = "container"
MAX_NAME_CHARS = 60

Values = list[dict[str, Any]]
Chart = alt.Chart | alt.LayerChart | alt.FacetChart


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One or several charts, and a description for people who cannot see them."""

    name: str
    title: str
    caption: str
    panels: Mapping[str, Chart]
    """Panels by title ("" for a single one); each fills the width it gets."""
    columns: int = 1
    """Number of panels side by side, where there is room."""

    @property
    def file_name(self) -> str:
        """The name for a file or an HTML element: letters, digits, `-` and `_` of the name, up to a length. One that loses
        something so gets a hash, so that names that differ stay different."""
        plain = re.sub(r"[^\w-]", "-", self.name)
        if plain == self.name and len(plain) <= MAX_NAME_CHARS:
            return plain
        return f"{plain[: MAX_NAME_CHARS - 9]}-{digest(self.name)[:8]}"

    @property
    def specs(self) -> dict[str, dict[str, Any]]:
        """Vega-Lite specification of each panel."""
        return {title: panel.to_dict() for title, panel in self.panels.items()}

    def whole(self, width: int) -> alt.TopLevelMixin:
        """Return all panels as one chart of about `width` pixels, for files."""
        each = width // self.columns - 60 * (self.columns > 1)
        parts = [panel.properties(width=each, title=title) for title, panel in self.panels.items()]
        return alt.concat(*parts, columns=self.columns) if len(parts) > 1 else parts[0]

"""A report's figures and tables as files: SVG and PNG, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from conclip.report import escape
from conclip.report.changes import seed_tables
from conclip.report.charts import Figure, by_asking, curves, figures, scatter
from conclip.report.data import RunData
from conclip.report.page import result_tables
from conclip.runs.files import write_text, writing_bytes
from conclip.types import EvalRow

WIDTH_PX = 760
PNG_SCALE = 2.0

PAPER: Mapping[str, Any] = {
    "background": "white",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e3e6ea"},
    "axisX": {"grid": False},
    "title": {"anchor": "start", "fontSize": 12, "fontWeight": "normal"},
}


def write_figure(figure: Figure, path: Path) -> None:
    """Write one figure as SVG or PNG, by the file's suffix."""
    spec = figure.whole(WIDTH_PX).to_dict() | {"config": PAPER}
    if path.suffix == ".svg":
        write_text(path, vl_convert.vegalite_to_svg(spec))
    else:
        with writing_bytes(path) as out:
            out.write(vl_convert.vegalite_to_png(spec, scale=PNG_SCALE))


def write_curve(run: RunData, path: Path) -> None:
    """Write the figure of accuracy and length over the steps of a run's phases; nothing where there are none."""
    figure = curves([run])
    if figure is not None:
        write_figure(figure, path)


def write_tradeoff(rows: Sequence[EvalRow], path: Path) -> None:
    """Write the figure of accuracy against length, by model and way of asking."""
    figure = scatter(by_asking(rows))
    if figure is not None:
        write_figure(figure, path)


def write_files(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Write every figure as SVG and PNG, and the results as results.md and results.tex. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for figure in figures(runs):
        for suffix in (".svg", ".png"):
            paths.append(folder / f"{figure.file_name}{suffix}")
            write_figure(figure, paths[-1])
    tables = [*result_tables(runs), *seed_tables(runs)]
    if tables:
        write_text(folder / "results.md", "\n".join(map(markdown, tables)))
        write_text(folder / "results.tex", "\n".join(map(latex, tables)))
        paths += [folder / "results.md", folder / "results.tex"]
    return paths


def markdown(table: Mapping[str, Any]) -> str:
    lines = [
        f"{escape.markdown(table['caption'])}\n",
        f"| {table['head']} | {' | '.join(map(escape.markdown, table['columns']))} |",
        "|---" + "|---:" * len(table["columns"]) + "|",
    ]
    lines += [f"| {' | '.join(map(escape.markdown, (name, *cells)))} |" for name, cells in table["rows"]]
    return "\n".join(lines) + "\n"


def latex(table: Mapping[str, Any]) -> str:
    """Return a tabular with booktabs rules."""
    lines = [
        f"% {escape.one_line(table['caption'])}",
        rf"\begin{{tabular}}{{l{'r' * len(table['columns'])}}}",
        r"\toprule",
        " & ".join([table["head"], *map(escape.tex, table["columns"])]) + r" \\",
        r"\midrule",
    ]
    for name, cells in table["rows"]:
        lines.append(" & ".join(map(escape.tex, (name, *cells))) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

"""Makes the pictures of docs/ and README from a finished two-phase run:

make demo && make pictures     # needs chromium: make browser
"""

import argparse
import shutil
import tempfile
from io import StringIO
from pathlib import Path

import altair as alt
import vl_convert
from playwright.sync_api import sync_playwright
from rich.console import Console

from benchmarks.measured_loss import length_factor
from conclip.report.data import RunData, read_run
from conclip.report.export import PAPER, write_curve
from conclip.report.page import write_page
from conclip.runs.sampling_progress import SamplingProgress
from conclip.runs.view import View, render
from conclip.types import Outcome

PICTURES = Path(__file__).parent / "pictures"
LAMBDAS = (0.9, 0.95, 0.99, 1.0)
SCREENS = {"desktop": (1280, 860, "light"), "dark": (1280, 860, "dark"), "phone": (390, 844, "light")}


def terminal(run: RunData, path: Path) -> None:
    """The live view as it stood halfway through phase 2, from the run's metrics."""
    steps = run.steps["phase2"]
    done = steps[: len(steps) // 2]
    seconds = sum(value for row in done for name, value in row.items() if name.startswith("time/"))
    last = done[-1]
    num_responses, sampling_s = int(last["rollout/num_responses"]), last["time/generate_s"] + last["time/grade_s"]
    view = View(
        title="two-phase default",
        began=-sum(stage.wall_s for name, stage in run.stages.items() if not name.startswith(("phase2", "eval"))),
        stage="phase2",
        stage_began=0.0,
        step_ended=seconds,
        num_steps=len(steps),
        step=len(done),
        accuracies=tuple(row["outcome/correct"] for row in done),
        lengths=tuple(row["length/mean_tokens"] for row in done),
        shares={outcome: last[f"outcome/{outcome.value}"] for outcome in Outcome},
        sampling=SamplingProgress(
            label=f"phase2 step {len(done) + 1}",
            num_finished=num_responses // 2,
            num_total=num_responses,
            num_tokens=0,
            tokens_per_s=last["rollout/num_tokens"] / sampling_s,
            mean_tokens=last["length/mean_tokens"],
            outcomes={},
            seconds=sampling_s / 2,
        ),
    )
    console = Console(record=True, width=96, file=StringIO(), force_terminal=True)
    console.print(render(view, seconds, 96))
    path.write_text(console.export_svg(title="conclip two-phase"), encoding="utf-8")


def factor(path: Path) -> None:
    """What multiplies R - V in the loss of a response of T tokens."""
    values = [
        {"tokens": tokens, "factor": length_factor(tokens, x), "lambda": f"{x:g}"}
        for x in LAMBDAS
        for tokens in range(1, 301)
    ]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_line()
        .encode(
            x=alt.X("tokens:Q", title="tokens of the response"),
            y=alt.Y("factor:Q", title="weight of its surprise in the loss"),
            color=alt.Color("lambda:N", title="lambda"),
        )
        .properties(width=560, height=260)
    )
    path.write_text(vl_convert.vegalite_to_svg(chart.to_dict() | {"config": PAPER}), encoding="utf-8")


def screens(run: RunData, folder: Path) -> None:
    """The report's first screen, on a desktop, in the dark and on a phone, and its responses side by side."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        page_file = Path(place) / "report.html"
        write_page([run], page_file)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, scheme) in SCREENS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(page_file.as_uri())
            page.wait_for_selector("#responses[data-state=done]")
            box = page.locator(".chart").first.bounding_box()
            if box is not None and box["y"] < height:  # charts are drawn when they come into sight
                page.wait_for_selector(".chart[data-state=done]")
            page.screenshot(path=folder / f"report-{name}.png")
            if name == "desktop":
                page.set_viewport_size({"width": width, "height": 9000})  # all charts in sight: nothing moves any more
                page.wait_for_selector(".chart:not([data-state=done])", state="detached")
                page.locator("#responses").screenshot(path=folder / "report-responses.png")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("outputs/two-phase/default"))
    run = read_run(parser.parse_args().run)
    PICTURES.mkdir(exist_ok=True)
    terminal(run, PICTURES / "terminal.svg")
    factor(PICTURES / "factor.svg")
    write_curve(run, PICTURES / "curve.png")
    screens(run, PICTURES)


if __name__ == "__main__":
    main()

"""The report in a real browser: drawn, usable by click and keyboard, readable by all, quick, and deaf to what it shows."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from conclip.report.data import read_run
from conclip.report.page import write_page
from conclip.types import Outcome
from tests.conftest import make_row
from tests.made_runs import HOSTILE, made_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; make browser installs Debian's"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


def made(path: Path, **what: object) -> Path:
    write_page([read_run(made_run(path / "attempt-001", **what))], path / "report.html")  # type: ignore[arg-type]
    return path / "report.html"


@pytest.fixture(scope="module")
def file(place: Path) -> Path:
    return made(place / "plain", texts=("First a. Then b. So c.", "First a. So c."))


IN_VIEW = """async (chart) => {
    chart.scrollIntoView();
    await new Promise((seen) => requestAnimationFrame(() => requestAnimationFrame(seen)));
}"""


class Opened:
    """A page, and everything it complained of."""

    def __init__(self, browser: Browser, file: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request", lambda request: None if request.url.startswith("file:") else self.complaints.append(request.url)
        )
        began = time.monotonic()
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("#responses[data-state=done]")
        self.took_s = time.monotonic() - began

    def scroll(self) -> None:
        """Bring every chart into view."""
        for chart in self.page.query_selector_all(".chart"):
            chart.evaluate(IN_VIEW)  # playwright's own way waits until nothing above is drawn any more
        # not wait_for_function: its polling evaluates text, which the page's own policy forbids
        self.page.wait_for_selector(".chart:not([data-state])", state="detached")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_every_chart_is_drawn_and_nothing_complains(browser: Browser, file: Path, width: int, scheme: str):
    opened = Opened(browser, file, width=width, scheme=scheme)
    opened.scroll()
    states = opened.page.evaluate(
        "[...document.querySelectorAll('.chart')].map((c) => [c.dataset.state, !!c.querySelector('svg')])"
    )
    assert len(states) > 8 and all(state == ["done", True] for state in states)
    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.evaluate("document.documentElement.dataset.theme") == scheme
    opened.page.close()


def test_no_serious_barrier_in_either_theme(browser: Browser, file: Path):
    opened = Opened(browser, file)
    for _ in range(2):
        opened.scroll()
        found = Axe().run(opened.page).response["violations"]
        serious = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]
        assert serious == []
        opened.page.click("#theme")
    opened.page.close()


def test_responses_by_click_and_by_keyboard(browser: Browser, file: Path):
    opened = Opened(browser, file)
    opened.scroll()  # a chart that is drawn late moves what is clicked
    page = opened.page
    shown = "[...document.querySelectorAll('.response h4')].map((h) => h.textContent)"
    assert page.evaluate(shown) == ["base", "phase1", "phase2"]
    page.select_option("#problems", index=3)
    assert "p3" in page.inner_text("#facts") and page.inner_text("#sample") == "sample 1 of 2"
    page.click("#next")
    assert page.inner_text("#sample") == "sample 2 of 2" and page.is_disabled("#next")
    page.focus("#problems")
    page.keyboard.press("ArrowDown")
    assert "p4" in page.inner_text("#facts") and page.inner_text("#sample") == "sample 1 of 2"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.fill("#find", "p11")
    assert page.evaluate("document.querySelector('#problems').length") == 1
    page.fill("#find", "")
    page.select_option("#filter", "gained")
    assert 0 < page.evaluate("document.querySelector('#problems').length") < 12
    page.close()


def test_what_was_cut_is_marked(browser: Browser, place: Path):
    """The base model's text has a sentence more than the last one's."""
    folder = made_run(place / "cut" / "attempt-001", num_problems=1, num_samples=1, texts=("First a. Then b. So c.",))
    rows = folder / "rows-phase2.jsonl"
    rows.write_text(rows.read_text().replace("Then b. ", ""))
    write_page([read_run(folder)], place / "cut.html")
    page = Opened(browser, place / "cut.html").page
    assert page.evaluate("[...document.querySelectorAll('.cut')].map((c) => c.textContent)") == ["Then b. "] * 2
    page.close()


def test_runs_of_other_problems_side_by_side(browser: Browser, place: Path):
    """Each problem shows the models that were asked it, and nothing else counts as cut."""
    first = read_run(made_run(place / "first" / "attempt-001", num_problems=4, num_samples=1))
    second = replace(first, name="second", rows=[replace(row, problem_id=f"other {row.problem_id}") for row in first.rows])
    write_page([first, second], place / "several.html")
    page = Opened(browser, place / "several.html").page
    page.select_option("#problems", value="0")
    shown = "[...document.querySelectorAll('.response h4')].map((h) => h.textContent)"
    assert page.evaluate(shown) == ["made: base", "made: phase1", "made: phase2"]
    assert page.evaluate("document.querySelectorAll('.cut').length") == 0
    page.select_option("#filter", "lost")
    assert page.evaluate("document.querySelector('#problems').length") == 0
    page.close()


def test_what_could_not_be_graded_is_not_wrong(browser: Browser, place: Path):
    """By hand: the first problem is right at both ends as far as it could be graded, the second at the last, the third could
    not be graded at first."""
    run = read_run(made_run(place / "ungraded" / "attempt-001", num_problems=3))
    letters = {"base": ("ce", "cw", "ee"), "phase2": ("cc", "cc", "cc")}
    outcomes = {"c": Outcome.CORRECT, "w": Outcome.WRONG, "e": Outcome.GRADER_ERROR}
    rows = [
        make_row(f"p{problem}", outcomes[letter], 10, sample, model=model)
        for model, said in letters.items()
        for problem, own in enumerate(said)
        for sample, letter in enumerate(own)
    ]
    write_page([replace(run, rows=rows)], place / "ungraded.html")
    page = Opened(browser, place / "ungraded.html").page
    page.select_option("#filter", "gained")
    assert page.evaluate("[...document.querySelector('#problems').options].map((o) => o.value)") == ["1"]
    page.select_option("#filter", "lost")
    assert page.evaluate("document.querySelector('#problems').length") == 0
    page.close()


def test_hostile_text_is_shown_and_does_nothing(browser: Browser, place: Path):
    opened = Opened(browser, made(place / "hostile", texts=HOSTILE))
    page = opened.page
    for index in range(len(HOSTILE)):
        page.select_option("#problems", value=str(index))
        text = page.evaluate("document.querySelector('#question').textContent")
        assert text == HOSTILE[index].replace("\0", "\0")
        assert page.evaluate("document.querySelectorAll('.response pre')[2].textContent") == HOSTILE[index]
    opened.scroll()
    assert page.evaluate("window.stolen") is None and opened.complaints == []
    page.close()


def test_twenty_thousand_responses_open_at_once(browser: Browser, place: Path):
    file = made(place / "large", num_problems=1667, num_samples=4, texts=("so it is. " * 30,))
    opened = Opened(browser, file)
    assert "20004 responses" in opened.page.inner_text("#responses")
    assert opened.took_s < 20  # 2 s on an idle machine
    opened.page.close()

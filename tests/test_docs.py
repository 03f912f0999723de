"""README and docs/: every key documented, every link resolves, every command would start."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.performance.comparisons import Result, fallen
from benchmarks.performance.record import Batch, Point, Record, Start
from conclip.claims.config import claim_files
from conclip.cli import tools
from conclip.cli.main import main
from conclip.config.compose import compose_config, load_config, sweep_jobs
from conclip.config.schema import SCHEMAS
from conclip.config.typed import schema_keys, to_config
from conclip.errors import UserError
from tests.doc_commands import commands, filled, write_recipes
from tests.families import FAMILIES, REFUSED

TOP = Path(__file__).parent.parent
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md")])


def test_the_guard_names_a_ratio_that_fell_by_more_than_a_tenth():
    def result(ratio: float, name: str = "update") -> Result:
        return Result("lab", name, [({"s_per_1000": 1.0}, {"s_per_1000": ratio})])

    recorded = [result(2.0), result(4.0, "grpo")]
    assert fallen([result(1.81), result(3.61, "grpo"), result(0.5, "ppo")], recorded) == []  # ppo was not recorded
    (said,) = fallen([result(1.79), result(9.0, "grpo")], recorded)
    assert said == "lab, update, against a bare forward and backward pass: 1.79, recorded 2.00"


@pytest.mark.whole
def test_generated_pages_are_up_to_date():
    generated = runpy.run_path(str(TOP / "docs/generate.py"))["pages"]()
    assert generated.keys() == {"config.md", "index.md"}
    for name, page in generated.items():
        assert (TOP / "docs" / name).read_text() == page, "make docs"


def test_every_key_of_every_subcommand_is_documented():
    documented = set(re.findall(r"^\| `([^`]+)` \|", (TOP / "docs/config.md").read_text(), re.M))
    groups = {name[:dot] for name in documented for dot in range(len(name)) if name[dot] == "."}
    for subcommand, schema in SCHEMAS.items():
        for key in schema_keys(schema):
            same = re.sub(r"^phases\.\*\.", "phase.", re.sub(r"^data\.\w+\.\*\.", "data.*.*.", key))
            is_part = same in groups or re.fullmatch(r"data\.\w+(\.\*)?|checkpoints\.\*|phases(\.\*)?|recipe(\.\*)?", same)
            assert is_part or same in documented, f"{subcommand}: {key}"


def test_every_family_of_the_tests_is_in_the_table_and_no_other():
    page = (TOP / "docs/models.md").read_text()
    rows = re.findall(
        r"^\| ([^|]+) \| (?:vLLM's own|transformers') \| ([^|]+) \| (?:apart|merged) \| ([^|]+) \|$", page, re.M
    )
    assert [name for name, _, _ in rows] == [name for name in FAMILIES if name not in REFUSED]
    assert all(float(gap) < 1e-4 for _, *gaps in rows for gap in gaps)


def test_every_key_has_a_meaning():
    rows = re.findall(r"^\| `([^`]+)` \| .* \| ([^|]*) \|$", (TOP / "docs/config.md").read_text(), re.M)
    assert len(rows) > 100 and all(len(meaning) >= 8 for _, meaning in rows)


def anchors(page: Path) -> set[str]:
    """What its headings are called in links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        yield from ((page, target) for target in re.findall(r"\]\(([^)\s]+)\)", text))


@pytest.mark.parametrize(("page", "target"), [pytest.param(p, t, id=f"{p.name}:{t}") for p, t in links()])
def test_a_link_resolves(page: Path, target: str):
    if target.startswith("https://"):
        return  # not asked here: tests need no network
    file, _, anchor = target.partition("#")
    found = page.parent / file if file else page
    assert found.exists()
    assert not anchor or anchor in anchors(found)


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (TOP / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([a-z][a-z0-9-]+)\b", page.read_text(), re.M)}
    assert "demo" in named and named <= targets


def test_the_map_of_the_code_has_every_module_and_no_other():
    text = (TOP / "CONTRIBUTING.md").read_text().partition("## Where things are")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+/)` \|[^|]*\|(.*)\|$", text, re.M)
    packages = [f"{path.parent.name}/" for path in (TOP / "conclip").glob("*/__init__.py")]
    assert sorted(folder for folder, _ in rows) == sorted(["conclip/", *packages])
    for folder, named in rows:
        there = TOP / "conclip" if folder == "conclip/" else TOP / "conclip" / folder
        modules = {path.stem for path in there.glob("*.py")} - {"__init__", "__main__"}
        assert set(re.findall(r"`(\w+)`", named)) == modules, folder


def test_the_answers_to_a_newcomers_questions_name_what_is_there():
    text = (TOP / "CONTRIBUTING.md").read_text().partition("## Where do I change it?")[2].partition("\n## ")[0]
    answers = re.findall(r"^\| .*\? \| (.*) \|$", text, re.M)
    assert len(answers) >= 6
    for answer in answers:
        paths = re.findall(r"`([\w./]+/[\w.]*)`", answer)
        assert paths and all((TOP / path).exists() for path in paths), answer
        if found := re.search(r"`: `(\w+)`", answer):
            assert re.search(rf"\b{found[1]}\b", (TOP / paths[0]).read_text()), answer


@pytest.mark.whole
@pytest.mark.parametrize("line", [pytest.param(c.line, id=f"{c.page}:{c.line[:60]}") for c in commands()])
def test_a_command_of_the_docs_would_start(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = [word for word in shlex.split(filled(line, tmp_path)) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "conclip" and words[1] in SCHEMAS:
        write_recipes(tmp_path)
        folder = words.pop(words.index("--config-dir") + 1) if "--config-dir" in words else None
        overrides = [word for word in words[2:] if not word.startswith("-")]
        for job in sweep_jobs(overrides, sweeping="-m" in words):
            to_config(SCHEMAS[words[1]], compose_config(words[1], job, config_dir=folder)[0])
    elif words[:2] == ["conclip", "doctor"]:
        load_config(words[2], *(word for word in words[3:] if word != "--measure"))
    elif words[:2] == ["conclip", "claims"]:
        assert {word for word in words[2:] if re.fullmatch(r"c\d+", word)} <= set(claim_files())
    elif words[0] == "conclip":
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            UserError, match=r"'outputs/|no file '|no folder '"
        ):  # all is well but that there is no such run or file
            getattr(tools, words[1])(words[2:])


@pytest.mark.whole
def test_the_site_builds_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    outcome = subprocess.run(command, cwd=TOP, capture_output=True, text=True, env=environment)
    assert outcome.returncode == 0 and outcome.stderr == ""
    pages = list((tmp_path / "site").glob("*.html"))
    loaded = [found for page in pages for found in re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)', page.read_text())]
    assert len(pages) >= 13 and [url for url in loaded if "mkdocs-material" not in url] == []


def test_the_page_of_performance_is_made_from_its_record():
    """Nothing is left to fill in, and the page shown is that of the record."""
    ours, other = ({"s_per_1000": s, "gib": 2.0, "matrix_share": share} for s, share in ((1.0, 0.5), (1.5, 0.3)))
    points = [Point(Batch(what, 64, 32, 1), 0.5, 1.25) for what in ("update", "sampling")]
    starts = [Start("conclip --help", 0.1, 0.2), Start("conclip eval", 9.5, None)]
    page = Record("two cores", [Result("lab", "update", [(ours, other)])], points, starts).page()
    assert "1.50 (1.50 to 1.50)" in page and "50%, 30%" in page and "| `conclip --help` | 0.10 | 0.20 |" in page
    assert "| 64 | 32 | 2,048 | 1 | 0.500 | 1.25 |" in page and "| 64 | 32 | 8 | 1 | 1 | 0.500 | 1.25 |" in page
    assert "| `conclip eval`, to its first response | 9.50 |  |" in page
    assert "[[" not in page
    recorded, shown = TOP / "benchmarks/performance/recorded.json", TOP / "docs/performance.md"
    assert recorded.exists() == shown.exists()
    assert not recorded.exists() or shown.read_text() == Record.read(recorded).page()


@pytest.mark.whole
@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("settings", [["phase.refresh=true", "phase.group_size=8"], ["algo=grpo", "algo.kl=loss"]])
def test_every_metric_of_a_step_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]):
    section = (TOP / "docs/run-folder.md").read_text().partition("**A line of `metrics.jsonl`**")[2].partition("```")[0]
    known: set[str] = set()
    for names in re.findall(r"^\| (`\S+/[^|]+) \|", section, re.M):
        family = ""
        for name in re.findall(r"`([^`]+)`", names):
            family = name.partition("/")[0] if "/" in name else family
            known.add(name if "/" in name or name.startswith("_") else f"{family}/{name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["conclip", "train-phase2", "debug=train", "name=x", *settings])
    main()
    lines = Path("outputs/train-phase2/x/attempt-001/metrics.jsonl").read_text().splitlines()
    found = {name for line in lines for name in json.loads(line)} - {"schema", "stage", "step"}
    assert len(found) > 30
    assert {re.sub(r"_(short|middle|long)$", "", name) for name in found} - known == set()

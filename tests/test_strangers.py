"""Folders, configs and files of other people harm nobody who opens them. Servers: tests/test_hostile_servers.py."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.table import Table

from conclip.cli.main import main
from conclip.cluster.memory_folder import PREFIX, remove_orphans
from conclip.config.compose import compose_config, load_config
from conclip.config.schema import SCHEMAS
from conclip.config.typed import to_config
from conclip.curriculum.pass_rates import read_pass_rates
from conclip.errors import UserError
from conclip.evaluation import compare as outcomes
from conclip.evaluation.compare import differences, paired
from conclip.evaluation.rows import from_dict, read_rows, to_dict, write_parquet
from conclip.grading.grader import Grader
from conclip.models.folder import LAB_MODEL, check_model, weight_files
from conclip.problems import tables
from conclip.processes import PYTHON
from conclip.redact import HIDDEN, hide, hide_known, learn_secrets, terminal_safe
from conclip.report import escape
from conclip.report.charts import figures
from conclip.report.data import read_run
from conclip.report.export import latex, markdown, write_files
from conclip.report.page import headlines, result_tables, rows_for_browser, sentences, write_page
from conclip.rollout.weights import as_folder
from conclip.runs.attempts import attempts
from conclip.runs.files import (
    appending,
    break_links,
    check_content,
    finite,
    link,
    newest_attempt,
    read_object,
    write_json,
    write_text,
    writing,
)
from conclip.runs.identity import path_hash, sampling_hash
from conclip.runs.manifest import Pipeline, StageOutput, read_stages
from conclip.runs.run import Run
from conclip.runs.terminal import as_text
from conclip.types import EvalRow, Outcome
from tests.conftest import make_row
from tests.junk import JUNK, changed, places
from tests.made_runs import made_run

CHECKOUT = Path(__file__).parent.parent

TRAP = "import pathlib; pathlib.Path({mark!r}).touch()\n"


@pytest.fixture(autouse=True)
def _same_secrets_as_before() -> Iterator[None]:
    yield
    learn_secrets()


# Code in the current folder


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder full of modules that are named like those a child process imports; the file that appears when one runs."""
    place, mark = tmp_path / "downloads", tmp_path / "sprung"
    place.mkdir()
    for name in ("math_verify", "sympy", "torch", "multiprocessing", "signal", "pickle", "json", "logging", "yaml", "hydra"):
        (place / f"{name}.py").write_text(TRAP.format(mark=str(mark)))
    (place / "hydra_plugins").mkdir()
    (place / "hydra_plugins" / "evil.py").write_text(TRAP.format(mark=str(mark)))
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return mark


def test_the_trap_works(trapped: Path):
    """What is tested below would strike without protection."""
    subprocess.run([sys.executable, "-c", "import yaml"], check=True)
    assert trapped.exists()


def test_a_grader_worker_runs_nothing_of_the_current_folder(trapped: Path):
    grader = Grader(num_workers=1)
    try:
        assert grader.grade(gold=r"\frac{1}{2}", text=r"\boxed{\frac{2}{4}}").outcome is Outcome.CORRECT
    finally:
        grader.close()
    assert not trapped.exists()


@pytest.mark.parametrize(("arguments", "code"), [(["eval", "--cfg", "job"], 0), (["eval", "seed=x"], 2)])
def test_the_command_itself_runs_nothing_of_the_current_folder(trapped: Path, arguments: list[str], code: int):
    outcome = subprocess.run([sys.executable, "-m", "conclip", *arguments], capture_output=True, timeout=120)
    assert outcome.returncode == code and not trapped.exists()


def test_processes_that_libraries_start_run_nothing_of_the_current_folder(trapped: Path):
    """multiprocessing starts its own with `-c`; what `main` sets reaches them, too."""
    script = (
        "import multiprocessing as m\nfrom conclip.processes import protect_children\nprotect_children()\n"
        "p = m.get_context('spawn').Process(target=print)\np.start()\np.join()\nassert p.exitcode == 0"
    )
    subprocess.run([*PYTHON, "-c", script], check=True, timeout=120)
    assert not trapped.exists()


def test_every_python_process_of_the_project_leaves_the_current_folder_out():
    """No module starts Python another way than by `PYTHON`."""
    for path in (CHECKOUT / "conclip").rglob("*.py"):
        assert path.name == "processes.py" or "sys.executable" not in path.read_text(), path


# Files and links


def test_a_planted_link_is_not_written_through(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = made_run(tmp_path / "run")
    (run / "report.html.part").symlink_to(victim)
    os.link(victim, run / "hard.part")
    write_text(run / "report.html", "page")
    write_text(run / "hard", "page")
    assert victim.read_text() == "mine" and (run / "report.html").read_text() == "page"
    assert not (run / "report.html").is_symlink() and not (run / "report.html.part").is_symlink()


def test_a_new_file_never_takes_the_place_of_one_that_came_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The race: somebody puts a link there after the old one was removed."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    remove = Path.unlink

    def replant(path: Path, missing_ok: bool = False) -> None:
        remove(path, missing_ok=missing_ok)
        path.symlink_to(victim)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", replant)
        with pytest.raises(FileExistsError):
            write_text(tmp_path / "file", "theirs")
    assert victim.read_text() == "mine"


def test_what_is_appended_to_is_a_plain_file_of_its_own(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "link.log").symlink_to(victim)
    with pytest.raises(UserError, match=r"no plain file"):
        appending(tmp_path / "link.log")
    os.mkfifo(tmp_path / "pipe.log")
    with pytest.raises(UserError, match=r"no plain file"):
        appending(tmp_path / "pipe.log")
    (tmp_path / "folder.log").mkdir()
    with pytest.raises(UserError, match=r"no plain file"):
        appending(tmp_path / "folder.log")
    os.link(victim, tmp_path / "hard.log")
    with appending(tmp_path / "hard.log") as log:
        log.write("theirs\n")
    assert victim.read_text() == "mine\n" and (tmp_path / "hard.log").read_text() == "mine\ntheirs\n"


def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "x")
        appending(tmp_path / "log").close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "log")} == {0o640}


PLANTED = {
    "config.yaml": "config.yaml",
    "results": "results.json",
    "rows": "rows-base.jsonl",
    "metrics": "metrics.jsonl",
    "manifest": "manifest.json",
    "log": "run.log",
    "lock": "lock",
    "transcripts": "rollouts",
    "checkpoints": "checkpoints",
    "deep": "checkpoints/phase1/step-000001/model.safetensors",
    "tracker": "wandb",
}


@pytest.mark.whole
@pytest.mark.parametrize("name", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_links_and_pipes_in_run_folders_are_refused(name: str, kind: str, tmp_path: Path):
    """By what reads them, and by a run that would go on in them."""
    secret = tmp_path / "secret"
    secret.write_text('{"name": "my key"}\n')
    folder = made_run(tmp_path / "outputs" / "eval" / "x" / "attempt-001")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(secret if kind == "link" else tmp_path / "nothing")
    with pytest.raises(UserError, match=r"a link|no plain file|neither file nor folder"):
        read_run(folder)
    with pytest.raises(UserError, match=r"a link|neither file nor folder"):
        read_rows(folder)
    config = load_config("eval", f"paths.outputs={tmp_path / 'outputs'}", "name=x", "logger.display=quiet")
    with pytest.raises(UserError, match=r"a link|no plain file|neither file nor folder"):
        Run("eval", config, "i").close()
    assert secret.read_text() == '{"name": "my key"}\n' and not (tmp_path / "nothing").exists()


def test_what_trackers_link_in_their_own_folders_is_theirs(tmp_path: Path):
    folder = made_run(tmp_path / "run")
    (folder / "wandb").mkdir()
    (folder / "wandb" / "latest-run").symlink_to("run-1")
    check_content(folder)
    (folder / "checkpoints" / "wandb").mkdir(parents=True)
    (folder / "checkpoints" / "wandb" / "x").symlink_to("y")
    with pytest.raises(UserError, match="a link"):
        check_content(folder)


def test_a_folder_that_its_run_removes_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint gets its final name, or goes, while another process looks at the run."""
    folder, scandir = made_run(tmp_path / "run"), os.scandir
    (folder / "checkpoints/step-000001.part").mkdir(parents=True)

    def racing(path: Path | str) -> Any:
        if Path(path).suffix == ".part":
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", racing)
    check_content(folder)
    with pytest.raises(FileNotFoundError):
        check_content(tmp_path / "none")


@pytest.mark.parametrize("command", [["compare", "{}", "{}"], ["grade", "{}", "out"], ["report", "{}"]])
def test_a_path_that_no_file_system_takes_is_bad_input(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["conclip", *(part.format("x" * 300) for part in command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "too long" in capsys.readouterr().err


def test_pass_rates_by_another_rule_of_extraction_are_others():
    strict, lenient = (load_config("probe", f"rollout.extraction={rule}") for rule in ("strict", "lenient"))
    assert sampling_hash(strict) != sampling_hash(lenient)


@pytest.mark.parametrize("target", ["../../secret", "/etc", ".", "..", "attempt-002", "attempt-\u00b2", "attempt-001/x"])
def test_latest_leads_to_an_attempt_beside_it(tmp_path: Path, target: str):
    home = tmp_path / "outputs" / "eval" / "x"
    made_run(home / "attempt-001")
    (home / "attempt-002").symlink_to("/etc")
    (home / "latest").symlink_to(target)
    with pytest.raises(UserError, match="leads to"):
        newest_attempt(home)
    (home / "latest").unlink()
    (home / "latest").symlink_to("attempt-001")
    assert newest_attempt(home) == home / "latest"
    assert read_rows(home) == read_rows(home / "latest") == read_rows(home / "attempt-001")
    assert read_run(home).folder == read_run(home / "latest").folder == home / "attempt-001"


@pytest.mark.parametrize("name", ["attempt-\u00b2", "attempt-\u0663", "attempt-", "attempt-1x", "attempt-" + "9" * 200])
def test_folders_that_only_look_like_attempts_are_none(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    (tmp_path / "attempt-007").mkdir()
    assert [path.name for path in attempts(tmp_path)] == ["attempt-007"]


def test_an_attempt_that_is_a_link_is_refused(tmp_path: Path):
    home = tmp_path / "outputs" / "eval" / "x"
    made_run(tmp_path / "elsewhere")
    home.mkdir(parents=True)
    (home / "attempt-001").symlink_to(tmp_path / "elsewhere")
    config = load_config("eval", f"paths.outputs={tmp_path / 'outputs'}", "name=x", "logger.display=quiet")
    with pytest.raises(UserError, match="is a link"):
        Run("eval", config, "i").close()


@pytest.mark.parametrize("path", ["{victim}", "../victim", "a/../../victim", ".", "", "/", "a\0b"])
@pytest.mark.parametrize("own", [True, False])
def test_a_manifest_reaches_nothing_outside_of_its_folder(tmp_path: Path, path: str, own: bool):
    """Neither a stage that is done anew (its own record) nor one that is taken over (another attempt's)."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    config = load_config("eval", f"paths.outputs={tmp_path / 'outputs'}", "name=x", "logger.display=quiet")
    run = Run("eval", config, "i")
    Pipeline(run).run_stage("stage", {"a": 1}, lambda: StageOutput(outputs=[], num_tokens=0))
    manifest = read_object(run.folder / "manifest.json")
    run.close()
    place = path.format(victim=victim)
    manifest["stages"]["stage"]["outputs"] = {place: path_hash(run.folder / place) if "victim" in place else "missing"}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside of the run folder"):
        read_stages(run.folder)
    again = Run("eval", config, "i" if own else "another")
    try:
        with pytest.raises(UserError, match="outside of the run folder"):
            Pipeline(again).run_stage("stage", {"a": 1}, lambda: StageOutput(outputs=[], num_tokens=0))
    finally:
        again.close()
    assert (victim / "file").read_text() == "mine"


def test_our_own_hard_links_go_on_working(tmp_path: Path):
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "below").mkdir(parents=True)
    (source / "below" / "x").write_text("1")
    link(source, target)
    assert (target / "below" / "x").stat().st_ino == (source / "below" / "x").stat().st_ino
    break_links(target)
    (target / "below" / "x").write_text("2")
    assert (source / "below" / "x").read_text() == "1"


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_a_result_goes_to_a_plain_file_only(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    victim, out = tmp_path / "victim", tmp_path / "out.html"
    victim.write_text("mine")
    if kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to(victim if kind == "link" else "/dev/null")
    made_run(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["conclip", "report", str(tmp_path / "run"), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and victim.read_text() == "mine"


@pytest.mark.whole
def test_a_runs_name_leads_no_figure_out_of_its_folder(tmp_path: Path):
    runs = [read_run(made_run(tmp_path / number, name=f"../../../evil{number}")) for number in "12"]
    written = write_files(runs, tmp_path / "a" / "b" / "figures")
    assert all(path.resolve().parent == tmp_path / "a" / "b" / "figures" for path in written)
    assert not list(tmp_path.glob("**/evil*"))


# Secrets


SECRET = 'hf_Ab/c"d&\u00e9<0123456789'


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "MY_TOKEN",
        "DB_PASSWORD",
    ],
)
def test_known_secrets_are_replaced_however_they_are_spelt(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(name, SECRET)
    learn_secrets()
    for text in (SECRET, json.dumps(SECRET), json.dumps(SECRET, ensure_ascii=False), repr(SECRET)):
        assert HIDDEN in hide_known(text) and "0123456789" not in hide_known(text)
    write_text(tmp_path / "file", f"a {SECRET} b")
    assert (tmp_path / "file").read_text() == f"a {HIDDEN} b"
    row = make_row("p", Outcome.WRONG, 1, text=f"my {SECRET}", extracted=SECRET)
    write_parquet([row], tmp_path / "rows.parquet")
    (kept,) = read_rows(tmp_path / "rows.parquet")
    assert (kept.text, kept.extracted) == (f"my {HIDDEN}", HIDDEN)


@pytest.mark.parametrize("value", ["none", "EMPTY", "default", "correct", "x"])
def test_words_are_no_secrets(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    monkeypatch.setenv("SOME_KEY", value)
    learn_secrets()
    assert hide("outputs/eval/default is correct: none, EMPTY, x") == "outputs/eval/default is correct: none, EMPTY, x"


def test_secrets_that_stand_in_files_and_urls_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "token").write_text("hf_savedtoken0123\n")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789abcdef\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pass%2Fword1@tracking.example/x")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pypi-token-0123456789@index.example/python")
    monkeypatch.setenv("REMOTE", "https://ghp_0123456789abcd:x-oauth-basic@github.example/o/r.git")
    monkeypatch.setenv("NAMED", "https://me-myself-and-i-again:another1@host.example http://john1985@host.example")
    learn_secrets()
    said = hide_known("hf_savedtoken0123, 0123456789abcdef, pass%2Fword1, pass/word1")
    assert said == "***, ***, ***, ***"
    said = hide_known("pypi-token-0123456789, ghp_0123456789abcd, x-oauth-basic, another1")
    assert said == "***, ***, x-oauth-basic, ***"
    assert hide_known("/home/john1985/me-myself-and-i-again") == "/home/john1985/me-myself-and-i-again"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://me:secret@host/v1?key=abc&n=2", "http://***@host/v1?key=***&n=2"),
        ("https://token@host/x", "https://***@host/x"),
        ("http://host/?n=1&api_key=a&api-version=2", "http://host/?n=1&api_key=***&api-version=2"),
        ("?X-Amz-Signature=abcdef;access_token=1", "?X-Amz-Signature=***;access_token=***"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        ('{"authorization": "Basic YWxhZGRpbg=="}', '{"authorization": "Basic ***"}'),
        ("a basic arithmetic problem of bearer certificates", "a basic arithmetic problem of bearer certificates"),
        ("mail me@host, a key=value pair", "mail me@host, a key=value pair"),
        ("http://host/@scope/name", "http://host/@scope/name"),
    ],
)
def test_secrets_in_urls_are_replaced(text: str, said: str):
    assert hide(text) == said


def test_ids_of_problems_stay_as_they_are(tmp_path: Path):
    """Training leaves out by them what an earlier phase trained on."""
    ids = ["Basic Geometry/12", "https://me@forum/t?key=12"]
    write_json(tmp_path / "training.json", {"problem_ids": ids}, is_data=True)
    assert json.loads((tmp_path / "training.json").read_text()) == {"problem_ids": ids}
    write_json(tmp_path / "config.json", {"url": ids[1]})
    assert json.loads((tmp_path / "config.json").read_text()) == {"url": "https://***@forum/t?key=***"}


def test_two_commands_that_write_one_file_leave_a_whole_one(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="is being written by another command, too"), writing(path) as first:
        first.write("cut")
        with writing(path) as second:
            second.write("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError), writing(path) as third:
        third.write("a folder is in its place")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "url", ["http://h/v1?key=abcdef", "http://h/v1?n=1&access_token=x", "http://me:pass@h/v1", "http://me@h/v1"]
)
def test_an_address_with_a_secret_is_refused_before_it_is_written(url: str):
    with pytest.raises(UserError, match="must hold no key") as refused:
        load_config("eval", "model=endpoint", f"model.url='{url}'")
    assert "abcdef" not in str(refused.value) and "pass" not in str(refused.value)


def test_a_traceback_says_no_secret(tmp_path: Path):
    script = (
        "import sys\nfrom conclip.cli import main\nfrom conclip.experiments import inputs\n"
        "def broken(*_): raise RuntimeError('with sk-0123456789abcdef at http://me:pw@host \\x1b[2J')\n"
        "inputs.checked = broken\nsys.argv = ['conclip', 'eval']\nmain.main()"
    )
    environment = os.environ | {"OPENAI_API_KEY": "sk-0123456789abcdef", "PYTHONPATH": str(CHECKOUT)}
    outcome = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert outcome.returncode == 1 and "RuntimeError: with *** at http://***@host \\x1b[2J" in outcome.stderr
    assert "0123456789abcdef" not in outcome.stderr


def test_what_libraries_and_children_print_is_cleaned_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    monkeypatch.setattr(sys, "stdout", open(1, "w", closefd=False))  # noqa: SIM115  as it is without pytest
    config = load_config("eval", f"paths.outputs={tmp_path}", "logger.display=quiet", "model.system=hf_0123456789abcdef")
    run = Run("eval", config, "i")
    run.warn("a warning with hf_0123456789abcdef and \x1b[31m")
    os.write(2, b"C++ says hf_0123456789abcdef\n\xff\n")
    subprocess.run(["sh", "-c", "echo a child says hf_0123456789abcdef"], check=True)
    run.close()
    said = (run.folder / "run.log").read_bytes()
    assert b"C++ says ***\n\xff\n" in said and b"child says ***" in said
    for path in run.folder.rglob("*"):
        assert not path.is_file() or b"0123456789abcdef" not in path.read_bytes(), path
    assert b"\x1b" not in said


# The terminal


def test_nothing_in_a_name_is_taken_for_markup():
    table = Table(title="[/x] :smile: [red]title")
    table.add_column("[/y]")
    table.add_row("[/z] [bold]cell \x1b[2J")
    said = as_text(table)
    for part in ("[/x] :smile: [red]title", "[/y]", "[/z] [bold]cell \\x1b[2J"):
        assert part in said
    assert len({len(line) for line in said.splitlines()[1:]}) == 1  # widths are those of what is shown


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x9b", "\r", "\x08", "\u202e", "\u2066", "\u2028", "\x7f", "\ud800"])
def test_control_characters_are_written_out(character: str):
    assert character not in terminal_safe(f"a{character}b") and terminal_safe("tab\tline\n") == "tab\tline\n"


# Configs


def config_of(tmp_path: Path, content: str, *overrides: str, subcommand: str = "eval") -> Any:
    (tmp_path / "mine.yaml").write_text(f"defaults:\n  - {subcommand.replace('-', '_')}\n  - _self_\n{content}")
    composed, _ = compose_config(subcommand, overrides, primary="mine", config_dir=str(tmp_path))
    return to_config(SCHEMAS[subcommand], composed)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVATE", "what is mine")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")


@pytest.mark.parametrize(
    "content",
    [
        'model: {system: "${oc.env:PRIVATE}"}',
        'model: {prompt: "{question} ${oc.env:PRIVATE,x}"}',
        'name: "${oc.env:PRIVATE}"',
        'model: {url: "http://thief/${oc.env:PRIVATE}"}',
        'logger: {project: "${oc.env:PRIVATE}"}',
        'paths: {outputs: "${oc.env:PRIVATE}"}\nmodel: {system: "${paths.outputs}"}',  # by another key
        'paths: {outputs: "${oc.env:PRIVATE}"}\nmodel: {system: "${oc.select:paths.outputs}"}',
        'model: {path: "thief/${oc.env:PRIVATE}"}',  # asked from the hub
        'checkpoints: {a: "thief/${oc.env:PRIVATE}"}',
        'model: {chat_template_kwargs: {"a.b": "${oc.env:PRIVATE}"}}',  # no other key's name
        'checkpoints: {"a.b": "thief/${oc.env:PRIVATE}"}',
        'paths: {outputs: "${oc.env:HF_TOKEN}"}',
        'model: {system: "${oc.decode:${oc.env:PRIVATE}}"}',
        'model: {system: "${oc.create:${oc.env:PRIVATE}}"}',
        'model: {system: "${hydra:runtime.cwd}"}',
        'model: {system: "${oc.${x}:PRIVATE}"}\n',
    ],
)
def test_a_config_takes_nothing_of_the_environment_into_prompts_and_names(environment: None, tmp_path: Path, content: str):
    with pytest.raises(UserError) as refused:
        config_of(tmp_path, content)
    assert "what is mine" not in str(refused.value) and "hf_0123456789" not in str(refused.value)


def test_places_may_come_from_the_environment(environment: None, tmp_path: Path):
    places = 'paths: {outputs: "${oc.env:SCRATCH}/out"}\nmodel: {path: "${oc.env:SCRATCH}/model"}'
    config = config_of(
        tmp_path,
        f'{places}\ncheckpoints: {{a: "${{oc.env:NOWHERE,/b}}/c"}}\neval: {{max_tokens: "${{rollout.max_tokens}}"}}',
    )
    assert (config.paths.outputs, config.model.path) == ("/scratch/me/out", "/scratch/me/model")
    assert config.checkpoints == {"a": "/b/c"}


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "content",
    [
        ALIASES,
        "deep: " + "[" * 5000 + "]" * 5000,
        "deep: " + "{a: " * 300 + "1" + "}" * 300,
        "x" * 5_000_000 + ": 1",
        # the same by interpolations, the largest first
        "".join(f'b{n}: "{f"${{b{n - 1}}}" * 10}"\n' for n in range(12, 0, -1)) + "b0: xxxxxxxxxx",
        "".join(f'c{n}: ["${{c{n - 1}}}", "${{c{n - 1}}}", "${{c{n - 1}}}"]\n' for n in range(30, 0, -1)) + "c0: xxxxxxxxxx",
        'a: "${b}"\nb: "${a}"',
        'a: {b: "${a}"}',
    ],
    ids=["aliases", "lists", "mappings", "long", "texts", "containers", "circle", "itself"],
)
def test_a_config_does_not_grow_without_bounds(tmp_path: Path, content: str):
    with pytest.raises(UserError):
        config_of(tmp_path, content)


def test_aliases_of_ordinary_size_are_read(tmp_path: Path):
    config = config_of(tmp_path, "seed: &number 7\neval: {samples_per_problem: *number}")
    assert (config.seed, config.eval.samples_per_problem) == (7, 7)


@pytest.mark.parametrize(
    "content",
    [
        "callbacks: {x: {_target_: pathlib.Path.touch, self: /tmp/x}}",
        "job: {env_set: {PYTHONPATH: /evil, LD_PRELOAD: /evil.so}}",
        "job: {env_copy: [HF_TOKEN]}",
        "hydra_logging: {handlers: {x: {(): pathlib.Path.touch, self: /tmp/x}}}",
        "job_logging: {formatters: {x: {(): pathlib.Path.touch, self: /tmp/x}}}",
    ],
)
def test_a_config_makes_hydra_run_nothing(environment: None, tmp_path: Path, content: str):
    with pytest.raises(UserError, match=r"hydra\.\S+' may run code"):
        config_of(tmp_path, f"hydra:\n  {content}")


# What other people's run folders say


def look_at(*folders: Path, draw: bool = False) -> None:
    """Everything `report` computes of runs; its figures take a moment."""
    runs = [read_run(folder) for folder in folders]
    for figure in figures(runs) if draw else ():
        figure.specs  # noqa: B018
    tables = result_tables(runs)
    json.dumps([markdown(table) + latex(table) for table in tables])
    rows_for_browser(runs)
    for run in runs:
        headlines(run, len(runs) > 1), sentences(run)


def look_at_pair(first: list[EvalRow], second: list[EvalRow]) -> None:
    """Everything `compare` computes of two evaluations."""
    differences(first, second)
    for result in paired(first, second):
        outcomes.sentences(result, 0.03), outcomes.transition_table(result)
        json.dumps(finite(outcomes.to_json(result)), allow_nan=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("small") / "run", num_problems=2, num_samples=1)


FILES = ("manifest.json", "environment.json", "results.json", "training-phase1.json", "problems-phase1.json")
LINES = ("rows-base.jsonl", "metrics.jsonl", "questions.jsonl", "pass_rates.jsonl")


@pytest.mark.whole
@pytest.mark.parametrize("name", FILES + LINES)
def test_values_of_the_wrong_type_are_one_line(small: Path, name: str):
    """Every value of every file, by each kind of junk: it is read, or refused by UserError."""
    path = small / name
    before = path.read_bytes()
    first, *others = before.decode().splitlines() if name in LINES else [before.decode()]
    content = json.loads(first)
    rows = read_rows(small / "rows-phase1.jsonl")
    refused = 0
    try:
        for place in places(content):
            for junk in JUNK:
                path.write_text("\n".join([json.dumps(changed(content, place, junk)), *others, ""]))
                try:
                    if name == "pass_rates.jsonl":
                        read_pass_rates(path)
                    elif name.startswith("rows"):
                        look_at_pair(rows, read_rows(path))
                    else:
                        read_run(small)
                except UserError as error:
                    refused += 1
                    assert len(str(error)) < 1000 and "\n" not in str(error)
    finally:
        path.write_bytes(before)
    assert refused > 10
    look_at(small, draw=True)


@pytest.mark.whole
@pytest.mark.parametrize("name", FILES + LINES)
@pytest.mark.parametrize("junk", [None, -1, 1e308, "[/x]\x1b", [1], {"a": 1}])
def test_a_run_beside_one_with_junk_in_it_is_reported_or_refused(small: Path, tmp_path: Path, name: str, junk: Any):
    other = made_run(tmp_path / "other", name="other", num_problems=2, num_samples=1)
    path = other / name
    first, *others = path.read_text().splitlines() if name in LINES else [path.read_text()]
    content = json.loads(first)
    for place in places(content):
        path.write_text("\n".join([json.dumps(changed(content, place, junk)), *others, ""]))
        try:
            look_at(small, other)
        except UserError as error:
            assert len(str(error)) < 1000 and "\n" not in str(error)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["training-phase1.json", "metrics.jsonl", "rows-base.jsonl"])
@pytest.mark.parametrize("junk", [-1, "[/x]\x1b"])
def test_values_at_the_edge_of_their_type_are_drawn_or_refused(small: Path, name: str, junk: Any):
    path = small / name
    before = path.read_bytes()
    first, *others = before.decode().splitlines() if name in LINES else [before.decode()]
    content = json.loads(first)
    try:
        for place in places(content):
            if (place and type(junk) is str) or not isinstance(junk, str):
                path.write_text("\n".join([json.dumps(changed(content, place, junk)), *others, ""]))
                try:
                    look_at(small, draw=True)
                except UserError:
                    pass
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", [*FILES, *LINES, "config.yaml"])
@pytest.mark.parametrize(
    "content", [b"", b"[", b"\xff\xfe\n", b"[" * 100_000, b"5\n", b"null\n", b'"x"\n', b"9" * 5000 + b"\n"]
)
def test_files_that_are_damaged_are_one_line(small: Path, name: str, content: bytes):
    path = small / name
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        look_at(small)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "content",
    [
        ALIASES + "name: *a11\n",
        "name: [1]\n",
        "name: {a: b}\n",
        "- name\n",
        "seed: 1\n",
        "name: !!python/object/apply:os.getcwd []\n",
    ],
)
def test_a_runs_config_that_is_none_is_one_line(small: Path, content: str):
    before = (small / "config.yaml").read_bytes()
    (small / "config.yaml").write_text(content)
    try:
        with pytest.raises(UserError, match=r"config\.yaml"):
            read_run(small)
    finally:
        (small / "config.yaml").write_bytes(before)


@pytest.mark.parametrize(
    "junk", [5, "x", [5], [None], [{}], [{"packages": 5, "git": None}], [{"packages": {}, "git": {"a": 1}}]]
)
def test_a_manifest_of_the_wrong_types_does_not_stop_a_run(tmp_path: Path, junk: Any):
    config = load_config("eval", f"paths.outputs={tmp_path}", "logger.display=quiet")
    run = Run("eval", config, "i")
    run.close()
    manifest = read_object(run.folder / "manifest.json")
    (run.folder / "manifest.json").write_text(json.dumps(manifest | {"starts": junk, "stages": junk, "tracker_id": junk}))
    (run.folder / "metrics.jsonl").write_text(f"{json.dumps({'stage': 'phase1', 'step': junk})}\n{json.dumps(junk)}\n")
    again = Run("eval", config, "i")
    assert again.folder == run.folder and again.stage_metrics("phase1") in ([], [{}])
    assert re.fullmatch("[0-9a-f]{16}", read_object(run.folder / "manifest.json")["tracker_id"])
    again.remove_metrics("phase1", after_step=1)
    again.close()


def test_models_that_were_asked_other_problems_are_one_line(tmp_path: Path):
    folder = made_run(tmp_path / "run", num_problems=2, num_samples=1)
    rows = (folder / "rows-phase1.jsonl").read_text()
    (folder / "rows-phase1.jsonl").write_text(rows.replace('"p1"', '"p9"'))
    with pytest.raises(UserError, match="covers other problems"):
        read_run(folder)


def test_a_stage_that_is_said_to_be_done_without_its_files_is_one_line(tmp_path: Path):
    from conclip.experiments.stages import _read_result  # pyright: ignore[reportPrivateUsage]

    (tmp_path / "best").mkdir()
    for content in (
        {},
        {"best": 5},
        {"best": {}, "history": [], "monitors": {"x": {}}, "asked": [], "num_responses": 1, "num_tokens": 1},
    ):
        (tmp_path / "training.json").write_text(json.dumps(content))
        with pytest.raises(UserError):
            _read_result(tmp_path / "training.json", tmp_path / "best")


def test_a_whole_page_of_a_hostile_run(tmp_path: Path):
    name = "[/x]<script>alert(1)</script>\x1b[2J\u202e| & % $ {{ 7 * 7 }}"
    run = made_run(tmp_path / "run", name=json.dumps(name), num_problems=2, texts=(name,))
    write_page([read_run(run)], tmp_path / "page.html")
    assert "<script>alert(1)" not in (tmp_path / "page.html").read_text()


# Exports


EVIL = "a|b\n\n# [x](javascript:1) <img src=x> `c` $d$ \\input{/etc/passwd} ~^&%#_{} \u202e"


def table_of(name: str) -> dict[str, Any]:
    return {
        "benchmark": name,
        "caption": f"{name}: 1 problem",
        "head": "model",
        "columns": ["accuracy"],
        "rows": [(name, ["1.0 ±0.1"])],
    }


def test_no_name_adds_structure_to_markdown():
    from markdown_it import MarkdownIt

    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown(table_of(EVIL)))
    assert page.count("<td") == 2 and page.count("<tr>") == 2
    for tag in ("<img", "<a ", "<h1", "<code", "<em"):
        assert tag not in page
    assert "[x](javascript:1) &lt;img src=x&gt; `c` $d$ \\input{/etc/passwd}" in page


def test_no_name_adds_structure_to_latex():
    text = latex(table_of(EVIL))
    caption, *body = text.splitlines()
    assert caption.startswith("% a|b # [x]") and len(body) == 7
    (line,) = [line for line in body if "1.0" in line]
    plain = line.removesuffix(r" \\").replace(r"1.0 $\pm$0.1", "")
    for known in (
        r"\textbackslash{}",
        r"\textasciitilde{}",
        r"\textasciicircum{}",
        r"\textless{}",
        r"\textgreater{}",
        r"\textbar{}",
    ):
        assert known in plain
        plain = plain.replace(known, "")
    for sign in "&%$#_{}":
        plain = plain.replace(f"\\{sign}", "")
    assert not set(plain.replace(" & ", "", 1)) & set("\\&%$#_{}~^<>|")


@pytest.mark.parametrize("text", ["`", "``` x", "a`b``c", "```\n# out\n```", "", "|", "x`"])
def test_code_ends_where_it_should(text: str):
    from markdown_it import MarkdownIt

    page = MarkdownIt().render(f"{escape.code(text)} after\n\n{escape.block(text, 'sh')}\n\nend")
    assert page.count("<pre>") == 1 and page.count("<h1>") == 0 and page.endswith("<p>end</p>\n") and "</code> after" in page


# Weights, tables, shared memory


def test_weights_are_never_pickles_and_never_from_elsewhere(tmp_path: Path):
    shutil.copytree(LAB_MODEL, tmp_path / "model")
    for name in ("pytorch_model.bin", "../other.safetensors", "/etc/passwd", "a/b.safetensors", "model.pt"):
        index = {"weight_map": {"a": name}}
        (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"no \*\.safetensors file of the folder itself"):
            weight_files(tmp_path / "model")
        with pytest.raises(UserError, match=r"no \*\.safetensors file"):
            check_model(tmp_path / "model", "rollout.max_tokens", 8)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


def test_pickles_in_a_model_folder_are_not_opened(tmp_path: Path):
    """Beside safetensors; without them the folder is refused."""
    import torch

    from conclip.models.load import load_policy, load_tokenizer

    shutil.copytree(LAB_MODEL, tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pth", "scaler.pkl"):
        torch.save(Bomb(tmp_path / "sprung"), tmp_path / "model" / name)
    load_policy(tmp_path / "model", torch.device("cpu"))
    load_tokenizer(tmp_path / "model")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="other formats are not loaded"):
        check_model(tmp_path / "model", "rollout.max_tokens", 8)
    assert not (tmp_path / "sprung").exists()


def test_a_parquet_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A million rows of one long text are a small file."""
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 50 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"question": column, "answer": column}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 20
    with pytest.raises(UserError, match="once unpacked"):
        list(tables.parquet_rows(tmp_path / "bomb.parquet"))
    with pytest.raises(UserError):
        read_rows(tmp_path / "bomb.parquet")
    ordinary = [to_dict(make_row(f"p{n}", Outcome.WRONG, n)) for n in range(3000)]
    pq.write_table(pa.Table.from_pylist(ordinary), tmp_path / "rows.parquet")
    assert [from_dict(row) for row in tables.parquet_rows(tmp_path / "rows.parquet")] == [from_dict(row) for row in ordinary]


def test_weights_in_shared_memory_are_readable_by_their_owner_alone_and_removed_when_orphaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    monkeypatch.setattr("conclip.cluster.memory_folder.MEMORY", tmp_path)
    alive = as_folder([("a", torch.zeros(2))], torch.float32)
    assert stat.S_IMODE(Path(alive.name).stat().st_mode) == 0o700
    hidden = tmp_path / f"{PREFIX}999999999-{Path(alive.name).name.rpartition('-')[2]}"
    Path(alive.name).rename(hidden)  # as another container's run looks, whose processes are not seen here
    orphan, victim = tmp_path / f"{PREFIX}999999998-x", tmp_path / "victim"
    orphan.mkdir()
    victim.mkdir()
    (tmp_path / f"{PREFIX}999999997-x").symlink_to(victim)
    (tmp_path / f"{PREFIX}\u00b2-x").mkdir()
    remove_orphans()
    assert hidden.is_dir() and not orphan.exists() and victim.is_dir()
    hidden.rename(alive.name)
    alive.cleanup()
    assert not Path(alive.name).exists()


def test_a_copy_that_lost_its_links_has_its_newest_attempt(tmp_path: Path):
    home = tmp_path / "outputs" / "eval" / "x"
    for number in (1, 2, 10):
        made_run(home / f"attempt-{number:03d}")
    (home / "attempt-011").symlink_to("/etc")
    (home / "attempt-x").mkdir()
    assert newest_attempt(home) == home / "attempt-010"
    assert newest_attempt(home / "attempt-002") == home / "attempt-002"

"""`cluster=...` on a machine that cannot have it: what is said, and before what. No cluster is needed for that."""

import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from conclip.cli.main import main
from conclip.cluster.choose import check_machine
from conclip.config.compose import load_config
from conclip.errors import MachineFailure, UserError


def said_by(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["conclip", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("address", "kind"), [(None, MachineFailure), ("1.2.3.4:9", UserError)])
def test_a_ray_that_does_not_start_here_is_the_machines_failure(
    address: str | None, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    by_ray = pytest.importorskip("conclip.cluster.by_ray", reason="the extra 'ray' is not installed")
    monkeypatch.setattr(by_ray.ray, "init", Mock(side_effect=Exception("the dashboard\nfailed")))
    with pytest.raises(kind, match="the dashboard failed"):
        by_ray.RayLauncher(address, "pack", [0])


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ray>=2\.50,<3'"):
        check_machine(load_config("train-phase2", "cluster=ray"))


def test_torchrun_must_have_started_a_run_that_counts_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    small = ["debug=two_phase", "cluster=torchrun", f"paths.outputs={tmp_path / 'outputs'}"]
    text = said_by(capsys, monkeypatch, "two-phase", *small)
    assert "torchrun --nproc-per-node" in text and len(text.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("override", ["cluster.learner_ranks=2", "cluster.learner_ranks=0"])
def test_the_number_of_ranks_is_torchruns(override: str):
    with pytest.raises(UserError, match=r"cluster\.learner_ranks"):
        load_config("train-phase2", "cluster=torchrun", override)

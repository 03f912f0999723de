"""Which weights each stage of a recipe samples with: its own model's, in one process or in several, and after stages that
were taken over."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conclip.config.compose import load_config
from conclip.experiments import commands
from conclip.experiments.inputs import load_inputs
from conclip.models.folder import LAB_MODEL
from conclip.rollout.session import Runtime
from conclip.runs.manifest import read_stages
from conclip.training.progress import Validation
from conclip.training.trainer import Trainer
from conclip.types import Request, Rollout, SamplingSpec
from tests.engines import SEAM
from tests.phases import Cut
from tests.scripted import ScriptedEngine

pytestmark = [pytest.mark.whole, pytest.mark.xdist_group("stage weights")]  # they share the runs

TINY = "{num_problems: 2, problems_per_step: 2, group_size: 2, num_steps: 2}"
SMALL = ["debug=two_phase", f"phases.phase1={TINY}", f"phases.phase2={TINY}", "data.pool.chain.num_problems=8"]
SMALL += ["probe.first_samples=4", "probe.max_samples=4", "trainer.validation_samples=1", "trainer.save_every=1"]
SMALL += ["data.test.chain.num_problems=3", "eval.samples_per_problem=1", "logger.display=quiet"]


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """The hash of every bit of a model; the head is the embedding once more."""
    found = hashlib.sha256()
    for name in sorted(set(weights) - {"lm_head.weight"}):
        found.update(name.encode() + weights[name].float().contiguous().numpy().tobytes())
    return found.hexdigest()[:8]


def of_folder(folder: Path) -> str:
    return fingerprint(load_file(folder / "model.safetensors"))


@dataclass
class Noted:
    """The batches that one run sampled, each by its label with the weights that the engine had."""

    outputs: Path
    batches: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def of(self, label: str) -> list[str]:
        """The weights of the batches whose label begins so, in their order."""
        return [weights for name, weights in self.batches if name.startswith(label)]

    @property
    def folder(self) -> Path:
        """The newest attempt."""
        return (self.outputs / "two-phase/debug/latest").resolve()

    @property
    def taken(self) -> set[str]:
        return {name for name, record in read_stages(self.folder).items() if record.taken_from is not None}


def noted(outputs: Path, *overrides: str, cut_at: str = "none") -> Noted:
    """Run the recipe, or go on with it, until the batch of this label. The middle one of three validations finds the best
    model, so that what a phase keeps is neither what it began with nor what it ended with."""
    run = Noted(outputs)
    label, collect, validate = [""], Runtime.collect, Trainer._validate

    class Noting(ScriptedEngine):
        def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
            run.batches.append((label[0], fingerprint(self._weights)))
            if label[0].startswith(cut_at):
                raise Cut
            super().submit(requests, spec)

    def labelled(self: Runtime, name: str, *arguments: Any) -> Iterator[Rollout]:
        label[0] = name
        yield from collect(self, name, *arguments)

    def best_in_the_middle(self: Trainer, step: int) -> Validation:
        found = validate(self, step)
        better = {"accuracy": 1.0, "mean_tokens": 5.0} if step == 1 else {"accuracy": 0.95, "mean_tokens": 50.0}
        return replace(found, **better)

    config = load_config("two-phase", *SMALL, f"paths.outputs={outputs}", *overrides)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SEAM, Noting)
        patched.setattr(Runtime, "collect", labelled)
        patched.setattr(Trainer, "_validate", best_in_the_middle)
        patched.setattr(commands, "_draw", lambda *_, **__: None)
        if cut_at == "none":
            commands.execute("two-phase", config, load_inputs(config))
        else:
            with pytest.raises(Cut):
                commands.execute("two-phase", config, load_inputs(config))
    return run


@pytest.fixture(scope="module")
def cut_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Noted]:
    """One run of three starts: cut amid phase 1, as the model of phase 1 is to be probed, and not at all."""
    outputs = tmp_path_factory.mktemp("outputs")
    return [noted(outputs, cut_at=label) for label in ("phase1 step 2", "probe phase 1", "none")]


@pytest.fixture(scope="module")
def models(cut_runs: list[Noted]) -> dict[str, str]:
    """The weights of each model that the run made: those after each step, and those that a phase kept."""
    folder = cut_runs[0].folder / "checkpoints"
    found = {"base": of_folder(LAB_MODEL)}
    for phase in ("phase1", "phase2"):
        found |= {f"{phase} step {step}": of_folder(folder / phase / f"step-{step:06d}") for step in (1, 2)}
        assert of_folder(folder / f"{phase}-best") == found[f"{phase} step 1"]
    assert len(set(found.values())) == 5
    return found


def test_stages_before_a_training_stage_sample_with_the_base(cut_runs: list[Noted], models: dict[str, str]):
    first = cut_runs[0]
    assert first.of("eval base") == first.of("probe base") == [models["base"]]
    assert first.of("phase1 validation") == [models["base"], models["phase1 step 1"]]
    assert (first.of("phase1 step 1"), first.of("phase1 step 2")) == ([models["base"]], [models["phase1 step 1"]])


def test_a_phase_that_goes_on_samples_with_the_weights_of_its_last_step(cut_runs: list[Noted], models: dict[str, str]):
    second = cut_runs[1]
    assert second.batches[0] == ("phase1 step 2", models["phase1 step 1"])
    assert second.batches[1] == ("phase1 validation", models["phase1 step 2"])


def test_probing_samples_with_what_phase_1_kept(cut_runs: list[Noted], models: dict[str, str]):
    """In the process that trained it, whose engine has the weights of the last step, and in a new one, whose engine starts
    with the base."""
    _, second, third = cut_runs
    assert second.of("probe phase 1") == third.of("probe phase 1") == [models["phase1 step 1"]]
    assert third.batches[0][0].startswith("probe phase 1")


def test_phase_2_begins_with_what_phase_1_kept_and_each_evaluation_has_its_own_model(
    cut_runs: list[Noted], models: dict[str, str]
):
    third = cut_runs[2]
    began, first, second = (models[name] for name in ("phase1 step 1", "phase2 step 1", "phase2 step 2"))
    assert third.of("phase2 validation") == [began, first, second]
    assert (third.of("phase2 step 1"), third.of("phase2 step 2")) == ([began], [first])
    assert (third.of("eval phase1"), third.of("eval phase2")) == ([began], [first])


def test_evaluations_after_stages_that_were_taken_over_have_their_own_models(cut_runs: list[Noted], models: dict[str, str]):
    other = noted(cut_runs[0].outputs, "eval.temperatures=[0.7]")
    assert other.taken == {"probe-base", "phase1", "probe-phase1", "phase2"}
    labels, weights = zip(*other.batches, strict=True)
    assert [label.split(",")[0] for label in labels] == ["eval base", "eval phase1", "eval phase2"]
    assert list(weights) == [models["base"], models["phase1 step 1"], models["phase2 step 1"]]


def test_a_phase_after_one_that_was_taken_over_begins_with_what_that_one_kept(cut_runs: list[Noted], models: dict[str, str]):
    other = noted(cut_runs[0].outputs, "phases.phase2.num_steps=1")
    assert other.taken == {"eval-base", "probe-base", "phase1", "probe-phase1", "eval-phase1"}
    began, kept = models["phase1 step 1"], of_folder(other.folder / "checkpoints/phase2-best")
    assert kept not in models.values()  # another learning rate
    labels, weights = zip(*other.batches, strict=True)
    assert [label.split(",")[0] for label in labels] == [
        *("phase2 validation", "phase2 step 1", "phase2 validation", "eval phase2")
    ]
    assert list(weights) == [began, began, kept, kept]

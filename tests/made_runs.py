"""Run folders made by hand, as a two-phase run leaves them, for tests of what shows them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conclip.curriculum.pass_rates import Band, pass_rates, write_pass_rates
from conclip.evaluation.rows import to_dict
from conclip.runs.manifest import StageRecord
from conclip.types import Outcome
from tests.conftest import make_row

HOSTILE = (
    "</script><script>window.stolen = 1</script>",
    "<img src=x onerror='window.stolen = 1'>",
    "\u202eright to left\u202c שלום مرحبا",
    "{{ 7 * 7 }} ${7 * 7} <!-- ]]> \u2028 \0 &amp; &lt;b&gt;",
    "long " * 40_000,
)
MODELS = ("base", "phase1", "phase2")
"""In the order they were evaluated."""


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def made_run(
    folder: Path, *, name: str = "made", num_problems: int = 12, num_samples: int = 2, texts: tuple[str, ...] = ("a. b. c.",)
) -> Path:
    """Base, phase-1 and phase-2 model; the later, the more often right and the shorter. Texts are taken in turn, for
    questions, responses and reasons alike."""
    folder.mkdir(parents=True)
    recipe = {
        "probe-base": {"kind": "probe"},
        "phase1": {"kind": "train", "rates": "probe-base"},
        "probe-phase1": {"kind": "probe", "model": "phase1"},
        "phase2": {"kind": "train", "model": "phase1", "rates": "probe-phase1"},
    }
    (folder / "config.yaml").write_text(f"name: {name}\nseed: 0\nrecipe: {json.dumps(recipe)}\n")
    write = {
        "environment.json": {
            "arguments": [texts[0]],
            "started": "2026-01-02T03:04:05",
            "packages": {"torch": "1"},
            "git": None,
        },
        "results.json": {"margin": 0.03, "notes": [texts[0]]},
    }
    for number, model in enumerate(MODELS):
        rows = [
            make_row(
                f"p{problem}",
                Outcome.CORRECT if (problem + sample) % 4 <= number else Outcome.WRONG,
                100 - 30 * number + problem % 20,
                sample,
                model=model,
                text=texts[(problem + sample) % len(texts)],
                extracted=texts[problem % len(texts)][:100],
            )
            for problem in range(num_problems)
            for sample in range(num_samples)
        ]
        lines(folder / f"rows-{model}.jsonl", [to_dict(row) for row in rows])
    lines(
        folder / "questions.jsonl",
        [{"problem_id": f"p{problem}", "question": texts[problem % len(texts)]} for problem in range(num_problems)],
    )
    metrics: list[dict[str, Any]] = []
    for phase in ("phase1", "phase2"):
        history = [{"step": step, "accuracy": 0.5 + step / 50, "mean_tokens": 100.0 - step} for step in (0, 5, 10)]
        write[f"training-{phase}.json"] = {"history": history, "best": history[-1], "monitors": {}, "asked": ["p0"]}
        write[f"problems-{phase}.json"] = {"chosen": [{"problem_id": "p0", "reason": texts[0]}]}
        metrics += [
            {
                "stage": phase,
                "step": step,
                "outcome/correct": step / 10,
                "length/mean_tokens": 9.0,
                "time/generate_s": 3.0,
                "time/update_s": 1.0,
            }
            for step in range(1, 11)
        ]
    lines(folder / "metrics.jsonl", metrics)
    probed = [
        make_row(f"p{problem}", Outcome.CORRECT if sample < problem else Outcome.WRONG, 50, sample)
        for problem in range(9)
        for sample in range(8)
    ]
    for file in ("pass_rates.jsonl", "pass_rates-phase1.jsonl"):
        write_pass_rates(folder / file, pass_rates(probed, Band(low=0.2, high=0.8), model_hash="m", sampling_hash="s"))
    record = StageRecord(
        key="k",
        inputs={"model": "0123456789"},
        outputs={},
        numbers={"num_responses": 24.0},
        num_tokens=2400,
        wall_s=1.5,
        finished="2026-01-02T03:05:05+00:00",
        made_by={},
    )
    write["manifest.json"] = {
        "identity": "i",
        "subcommand": "two-phase",
        "stages": {f"eval-{m}": asdict(record) for m in MODELS},
    }
    for file, content in write.items():
        (folder / file).write_text(json.dumps(content))
    return folder

"""The work that is timed: a model, problems, and how many responses of what length, the same for every side."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.first_hour import write_problems


@dataclass(frozen=True)
class Work:
    """One model's work. Sides run in processes of their own and get it as JSON."""

    name: str
    model: str
    """The folder of a model; empty: the embedded one."""
    num_problems: int
    group_size: int
    max_tokens: int
    num_steps: int = 3
    """Steps of training in each process; the first one warms up and is not counted."""
    file: str = ""
    """Word problems, for models that read."""

    @property
    def overrides(self) -> list[str]:
        """Overrides of `train-phase2`: one update a step on every problem of the pool, and no KL term."""
        save_every = (
            self.num_steps if self.model else self.num_steps - 1
        )  # what a checkpoint took is in the next step's times
        sizes = f"num_problems: {self.num_problems}, problems_per_step: {self.num_problems}, group_size: {self.group_size}"
        if self.model:
            data = ["model=hf", f"model.path='{self.model}'", "data=one_file", f"paths.problems='{self.file}'"]
            data += [f"data.pool.mine.num_problems={self.num_problems}", "data.validation.mine.num_problems=2"]
        else:
            data = [f"data.pool.chain.num_problems={self.num_problems}", "data.validation.chain.num_problems=2"]
        return [
            *data,
            f"rollout.max_tokens={self.max_tokens}",
            "rollout.temperature=1",
            f"phase={{{sizes}, num_steps: {self.num_steps}, keep_best: last, stop_accuracy_drop: 1}}",
            f"trainer={{validate_every: {self.num_steps}, validation_samples: 1, save_every: {save_every}}}",
            "algo={updates_per_rollout: 1, kl: none, kl_coef: 0, train_on_truncated: true}",
            "name=speed",
            "logger.display=plain",
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


LAB = Work(name="lab", model="", num_problems=32, group_size=8, max_tokens=512)


def real(name: str, folder: Path, *, num_problems: int, group_size: int, max_tokens: int) -> Work:
    """Return the work of a real model, on word problems."""
    file = Path(tempfile.mkdtemp()) / "problems.jsonl"
    write_problems(file, number=4 * num_problems)
    return Work(name, str(folder.resolve()), num_problems, group_size, max_tokens, num_steps=2, file=str(file))

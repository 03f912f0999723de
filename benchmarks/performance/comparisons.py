"""What is compared with what, and what comes of it: pairs of measurements, from which tables are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """Two sides. The ratio is the other side's time over ours."""

    title: str
    ours: str
    other: str
    goal: float
    """What the median ratio should reach."""
    lab_goal: float | None = None
    """That of the embedded model, where it is another."""
    only_lab: bool = False


COMPARISONS = {
    "sampling": Comparison("sampling, against `LLM.generate` of vLLM", "sample", "sample_bare", 0.97),
    "evaluation": Comparison("evaluation, against `LLM.generate` of vLLM", "evaluate", "evaluate_bare", 0.97),
    "engines": Comparison("two engines of one thread, against one of two", "sample_engines", "sample", 1.25, only_lab=True),
    "engines_by_thread": Comparison(
        "two engines of one thread, against one of one", "sample_engines", "sample_one_thread", 1.6, only_lab=True
    ),
    "update": Comparison("update, against a bare forward and backward pass", "update", "update_bare", 1.0, 1.4),
    "grpo": Comparison("GRPO step, against TRL's", "step_grpo", "step_trl", 1.5, 5.0),
    "ppo": Comparison("PPO step, against our GRPO step", "step_ppo", "step_grpo", 1 / 1.5),
    "busy": Comparison("PPO step beside a busy process, against none", "step_ppo_busy", "step_ppo", 0.5, only_lab=True),
}

FALL = 0.1
"""By how much of its recorded value a ratio may fall before the guard fails."""

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """The pairs of one comparison on one model."""

    model: str
    name: str
    pairs: list[tuple[Numbers, Numbers]]
    """Ours and the other side, pair by pair: times of 1,000 tokens [s], peak memory [GiB], of an update the share of the
    processor's matrix rate, and of a step the parts of its time and the share of it that a checkpoint took besides."""

    @property
    def ratios(self) -> list[float]:
        return [other["s_per_1000"] / ours["s_per_1000"] for ours, other in self.pairs]

    def middle(self, side: int, key: str) -> float:
        """Return the median of one side's numbers: 0 ours, 1 the other's."""
        return median(pair[side][key] for pair in self.pairs)

    def row(self) -> str:
        comparison, ratios = COMPARISONS[self.name], self.ratios
        goal = (self.model == "lab" and comparison.lab_goal) or comparison.goal
        cells = [
            self.model,
            comparison.title,
            *(f"{self.middle(side, 's_per_1000'):.3f}" for side in (0, 1)),
            f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{goal:.2f}" if median(ratios) >= goal else f"{goal:.2f}, missed",
            *(f"{self.middle(side, 'gib'):.1f}" for side in (0, 1)),
            ", ".join(f"{self.middle(side, 'matrix_share'):.0%}" for side in (0, 1)) if self.name == "update" else "",
        ]
        return f"| {' | '.join(cells)} |"

    def budget(self) -> str:
        """Return where our side's step spends its time, as shares."""
        names = sorted({name for ours, _ in self.pairs for name in ours if name.startswith("time/")})
        shares = {name: median(ours.get(name, 0.0) / ours["s_per_1000"] for ours, _ in self.pairs) for name in names}
        by_size = sorted(shares, key=lambda name: -shares[name])
        parts = ", ".join(f"{name[5:-2].replace('_', ' ')} {shares[name]:.1%}" for name in by_size)
        saves = [ours["save_share"] for ours, _ in self.pairs if "save_share" in ours]
        saved = f"{median(saves):.1%}" if saves else ""
        return f"| {self.model} | {COMPARISONS[self.name].title.partition(',')[0]} | {parts} | {saved} |"


def tables(results: Sequence[Result]) -> str:
    """Return the results as Markdown."""
    names = "model", "what", "ours [s per 1,000 tokens]", "other", "other / ours", "goal", "ours [GiB]", "other"
    lines = [f"| {' | '.join(names)} | matrix rate: ours, other |", "|---|---|---:|---:|---:|---:|---:|---:|---|"]
    head = "| model | step | where its time goes | a checkpoint, of a step |"
    lines += [*(result.row() for result in results), "", head, "|---|---|---|---:|"]
    return "\n".join([*lines, *(r.budget() for r in results if r.name in ("grpo", "ppo"))])


def fallen(results: Sequence[Result], recorded: Sequence[Result]) -> list[str]:
    """Return what is slower against the other side than recorded, by more than FALL. Ratios are compared, not times: another
    machine changes both sides."""
    before = {(result.model, result.name): median(result.ratios) for result in recorded}
    return [
        f"{result.model}, {COMPARISONS[result.name].title}: {median(result.ratios):.2f}, recorded {before[key]:.2f}"
        for result in results
        if (key := (result.model, result.name)) in before and median(result.ratios) < (1 - FALL) * before[key]
    ]

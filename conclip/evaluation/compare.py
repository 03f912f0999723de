"""`conclip compare FIRST SECOND`: two evaluations on the same problems, paired problem by problem."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rich.table import Table

from conclip.errors import UserError
from conclip.evaluation.measures import by_problem, efficiency_score, grouped, is_correct, transitions
from conclip.evaluation.metrics import Comparison, Estimate, Summary, compare, summarise, to_estimate
from conclip.evaluation.tables import describe_comparison, power_line
from conclip.stats import clustered_difference, pass_at_k, sign_flip_p_value
from conclip.types import EvalRow, Outcome, condition_name

AES_WEIGHTS = {"alpha": 1.0, "beta": 3.0, "gamma": 5.0}
"""Weights of the Accuracy-Efficiency Score; they differ between papers, so they are always printed with it."""

INTERVALS = "intervals: 95 %, clustered by problem"
"""What the intervals in the sentences are."""

SETTINGS = {
    "prompt": "the instruction",
    "template": "the chat template",
    "thinking_budget": "the thinking budget",
    "temperature": "the temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "the cap on tokens",
    "extraction": "the extraction rule",
    "grader_version": "the grader's version",
    "verifier": "the verifier",
}
"""Columns that two evaluations should share, unless the difference is the point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The comparison of two evaluations on one benchmark."""

    benchmark: str
    names: tuple[str, str]
    """Names that distinguish the two: their models, else their prompt conditions, else their temperatures, else "first",
    "second"."""
    num_problems: int
    first: Summary
    second: Summary
    comparison: Comparison
    accuracy_p_value: float
    """Sign-flip permutation test of the problems' accuracy differences."""
    tokens_p_value: float
    """The same test of their mean lengths, over the responses of `comparison.tokens_ratio`: all, graded or not."""
    aes: float | None
    """Efficiency score; None where the first is never right, so that no relative gain exists."""
    pass_at: tuple[int, Estimate] | None
    """k, the most samples that every problem has on both sides, and by how much pass@k of the second differs; None where k
    is 1."""
    transitions: Mapping[tuple[Outcome, Outcome], int]


def paired(first: Sequence[EvalRow], second: Sequence[EvalRow]) -> list[Paired]:
    """Compare each benchmark that both sides have, on the problems that both have. Raises UserError when they share none, or
    a side mixes models, instructions or temperatures."""
    for side, rows in (("FIRST", first), ("SECOND", second)):
        mixed = {(row.model, condition_name(*row.prompt_condition), row.temperature) for row in rows}
        if len(mixed) > 1:
            mixture = "; ".join(f"{model}, {condition}, temperature {t:g}" for model, condition, t in sorted(mixed))
            raise UserError(
                f"the rows mix evaluations ({mixture}); choose with --model, --prompt, --template, --thinking-budget and "
                "--temperature"
            )
        _check_rows(side, rows)
    results: list[Paired] = []
    for benchmark in dict.fromkeys(row.benchmark for row in first):
        columns = [[row for row in rows if row.benchmark == benchmark] for rows in (first, second)]
        shared = {row.problem_id for row in columns[0]} & {row.problem_id for row in columns[1]}
        if shared:
            one, two = ([row for row in column if row.problem_id in shared] for column in columns)
            results.append(_paired(benchmark, one, two))
    if not results:
        raise UserError("the two evaluations share no problem; evaluate both on the same benchmark")
    return results


def _check_rows(side: str, rows: Sequence[EvalRow]) -> None:
    """Raise UserError for rows that say nothing, or the same thing twice."""
    keys = Counter((row.benchmark, row.problem_id, row.sample) for row in rows)
    (benchmark, problem, sample), number = keys.most_common(1)[0]
    if number > 1:
        raise UserError(f"{side} has {number} rows of {benchmark}, problem '{problem}', sample {sample}; leave one")
    if all(row.outcome is Outcome.GRADER_ERROR for row in rows):
        raise UserError(f"none of {side}'s responses could be graded; grade them again with 'conclip grade'")
    if not any(row.num_tokens for row in rows):
        raise UserError(f"{side}'s responses have no tokens (num_tokens is 0 in every row): there is no length to compare")


def _paired(benchmark: str, first: Sequence[EvalRow], second: Sequence[EvalRow]) -> Paired:
    judged = [by_problem(rows) for rows in (first, second)]
    both = [problem for problem in judged[0] if problem in judged[1]]
    everything = [grouped(rows, lambda row: row.problem_id) for rows in (first, second)]
    right = [[fmean(map(is_correct, groups[p])) for p in both] for groups in judged]
    judged_tokens = [[fmean(row.num_tokens for row in groups[p]) for p in both] for groups in judged]
    tokens = [[fmean(row.num_tokens for row in groups[p]) for p in everything[0]] for groups in everything]
    return Paired(
        benchmark=benchmark,
        names=_names(first[0], second[0]),
        num_problems=len(both),
        first=summarise(first),
        second=summarise(second),
        comparison=compare(first, second),
        accuracy_p_value=sign_flip_p_value([b - a for a, b in zip(*right, strict=True)]),
        tokens_p_value=sign_flip_p_value([b - a for a, b in zip(*tokens, strict=True)]),
        aes=_efficiency_score(right, judged_tokens),
        pass_at=_pass_at_most([judged[0][p] for p in both], [judged[1][p] for p in both]),
        transitions=transitions(first, second),
    )


def _efficiency_score(right: Sequence[Sequence[float]], tokens: Sequence[Sequence[float]]) -> float | None:
    """Return the score of the second side, from both sides' accuracies and tokens by problem, problems with equal weight;
    None where no problem was judged on both sides, or the first solves none or takes no tokens."""
    if not (any(right[0]) and any(tokens[0])):
        return None
    return efficiency_score(fmean(right[1]), fmean(tokens[1]), fmean(right[0]), fmean(tokens[0]), **AES_WEIGHTS)


def _pass_at_most(first: Sequence[Sequence[EvalRow]], second: Sequence[Sequence[EvalRow]]) -> tuple[int, Estimate] | None:
    """Return k and the difference in pass@k, from the judged responses to each problem."""
    k = min(map(len, (*first, *second)), default=1)
    if k == 1:
        return None
    passed = [[pass_at_k(len(rows), sum(map(is_correct, rows)), k) for rows in side] for side in (first, second)]
    return k, to_estimate(clustered_difference([b - a for a, b in zip(*passed, strict=True)]))


def _names(first: EvalRow, second: EvalRow) -> tuple[str, str]:
    for one, two in (
        (first.model, second.model),
        (condition_name(*first.prompt_condition), condition_name(*second.prompt_condition)),
    ):
        if one != two:
            return one, two
    if first.temperature != second.temperature:
        return f"T {first.temperature:g}", f"T {second.temperature:g}"
    return "first", "second"


def differences(first: Sequence[EvalRow], second: Sequence[EvalRow]) -> list[str]:
    """Return, in words, what makes the two hard to compare; empty when nothing does."""
    texts: list[str] = []
    for column, name in SETTINGS.items():
        values = [sorted({getattr(row, column) for row in rows}, key=str) for rows in (first, second)]
        if values[0] != values[1]:
            one, two = (", ".join(map(str, side)) for side in values)
            texts.append(f"{name} differs: {one} against {two}")
    if all({row.prompt_condition for row in rows} == {first[0].prompt_condition} for rows in (first, second)):
        lengths = [{(row.benchmark, row.problem_id): row.num_prompt_tokens for row in rows} for rows in (first, second)]
        if number := sum(lengths[1].get(problem, length) != length for problem, length in lengths[0].items()):
            texts.append(
                f"the prompts of {number} problems have another number of tokens: another instruction, system prompt, chat "
                "template or tokenizer, or other worked examples"
            )
    golds = [{(row.benchmark, row.problem_id): row.answer for row in rows} for rows in (first, second)]
    if number := sum(golds[1].get(problem, gold) != gold for problem, gold in golds[0].items()):
        texts.append(f"{number} problems have other gold answers: they may be other problems of the same name")
    for side, rows in (("FIRST", first), ("SECOND", second)):
        if number := sum(row.num_tokens > row.max_tokens for row in rows):
            texts.append(
                f"{number} of {side}'s responses have more tokens than their cap (max_tokens): "
                "their server counts otherwise, or the file is damaged"
            )
    lost = {(row.benchmark, row.problem_id) for row in first} ^ {(row.benchmark, row.problem_id) for row in second}
    if lost:
        texts.append(f"{len(lost)} problems stand on one side only and are left out")
    return texts


def sentences(result: Paired, margin: float) -> list[str]:
    """Return the result in words."""
    weights = ", ".join(f"{name} {value:g}" for name, value in AES_WEIGHTS.items())
    of_tokens = result.first.num_problems
    ungraded = "" if of_tokens == result.num_problems else f" (tokens: {of_tokens}, with those not graded)"
    lines = [
        f"{result.benchmark}, {result.num_problems} problems{ungraded}: "
        + describe_comparison(*result.names, result.comparison, margin),
        f"  permutation test: accuracy p = {result.accuracy_p_value:.4f}, tokens p = {result.tokens_p_value:.4f}; "
        + (f"efficiency score {result.aes:+.3f} ({weights})" if result.aes is not None else "no efficiency score: base 0"),
    ]
    interval = result.comparison.accuracy_difference
    if interval.low <= 0 <= interval.high:
        lines.append("  in accuracy the two are not separable by this evaluation")
    if result.pass_at is not None:
        k, passed = result.pass_at
        lines.append(
            f"  pass@{k}, that any of {k} responses is right: {100 * passed.mean:+.1f} points "
            f"[{100 * passed.low:+.1f}, {100 * passed.high:+.1f}]"
        )
    if line := power_line(result.comparison, margin):
        lines.append(f"  {line}")
    return lines


def transition_table(result: Paired) -> Table:
    """Return a table of responses: outcomes of the first in rows, of the second in columns."""
    first, second = result.names
    counted, most = sum(result.transitions.values()), max(result.first.num_responses, result.second.num_responses)
    left_out = (
        "" if counted == most else f"; {most - counted} of {most} responses have no counterpart of the same sample number"
    )
    outcomes = [o for o in Outcome if any(o in pair for pair in result.transitions)]
    table = Table(
        title=f"{result.benchmark}: outcomes of {first} (rows) and {second} (columns){left_out}", title_justify="left"
    )
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.value, justify="right")
    for before in outcomes:
        table.add_row(before.value, *(str(result.transitions.get((before, after), 0)) for after in outcomes))
    return table


def to_json(result: Paired) -> dict[str, Any]:
    """Return plain data, with transitions as ``"wrong -> correct": 12``."""
    plain = asdict(result)
    plain["transitions"] = {f"{a.value} -> {b.value}": count for (a, b), count in result.transitions.items()}
    return plain | {"aes_weights": AES_WEIGHTS}

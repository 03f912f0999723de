"""An evaluation's responses graded by lm-evaluation-harness as well: how often the two disagree, and on what.

    pip install --target /tmp/lm_eval --no-deps lm_eval==0.4.13 sacrebleu portalocker colorama tabulate lxml regex
    PYTHONPATH=/tmp/lm_eval .venv/bin/python benchmarks/against_lm_eval.py outputs/eval/NAME/latest [--out FILE]

Nothing of the other project is rebuilt here: its filters run with the regular expressions of its own task files.
`flexible-extract` is what its GSM8K and MMLU (chain of thought, zero-shot) tasks report as the lenient number, `boxed` its
MATH code on the last box. It has no outcome "truncated": a cut response is graded by what it says so far.
"""

import argparse
import importlib.resources
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import yaml

# pyright: reportMissingImports=false
# lm-eval is installed for this comparison alone.
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter
from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed
from omegaconf import DictConfig, OmegaConf

from conclip.config.schema import EvalRunConfig
from conclip.config.typed import to_config
from conclip.evaluation.rows import read_rows
from conclip.problems.load import load_problems
from conclip.types import EvalRow, Outcome, Problem

TASKS = {False: "gsm8k/gsm8k.yaml", True: "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml"}
"""Task file of lm-evaluation-harness by whether the problem has choices."""

Grade = tuple[bool, str]
"""Whether it counts the response as correct, and what it took for the answer."""


def flexible_extract(has_choices: bool) -> Callable[[EvalRow, Problem], Grade]:
    """The lenient filter of a task, then its exact_match."""
    file = importlib.resources.files("lm_eval.tasks").joinpath(TASKS[has_choices])
    task: dict[str, Any] = yaml.safe_load(file.read_text())
    (chain,) = (entry["filter"] for entry in task["filter_list"] if entry["name"] == "flexible-extract")
    settings = {name: value for name, value in chain[0].items() if name != "function"}
    apply = (MultiChoiceRegexFilter if has_choices else RegexFilter)(**settings).apply
    options = {n: v for n, v in task["metric_list"][0].items() if n not in ("metric", "aggregation", "higher_is_better")}

    def grade(row: EvalRow, problem: Problem) -> Grade:
        found = apply([[row.text]], [{"choices": problem.choices}])[0][0]
        gold = f"({row.answer})" if has_choices else row.answer
        return bool(exact_match_hf_evaluate([found], [gold], **options)["exact_match"]), found

    return grade


def boxed(row: EvalRow, _: Problem) -> Grade:
    found = last_boxed_only_string(row.text)
    try:
        answer = remove_boxed(found) if found else ""
    except AssertionError:  # theirs, on a box without braces
        answer = ""
    return bool(answer) and is_equiv(answer, row.answer), answer


def kind(row: EvalRow, ours: Outcome, theirs: bool) -> str:
    """Why the two may differ, in the order people would look."""
    if row.outcome is Outcome.TRUNCATED:
        return "cut at the token limit: graded all the same by theirs"
    if theirs:
        return f"theirs correct, ours {ours.value} (answer found by: {row.method or 'nothing'})"
    return f"ours correct, theirs not (answer found by: {row.method or 'nothing'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="run folder of conclip eval")
    parser.add_argument("--out", type=Path, help="write the disagreeing responses here, as JSON lines")
    arguments = parser.parse_args()
    config = to_config(EvalRunConfig, cast(DictConfig, OmegaConf.load(arguments.folder / "config.yaml")))
    problems = {p.problem_id: p for p in load_problems("data.test", config.data.test, config.seed)}
    rows = read_rows(arguments.folder)
    has_choices = any(problem.choices for problem in problems.values())
    disagreements: list[dict[str, Any]] = []
    for name, grade, ours in (
        ("flexible-extract against our lenient grade", flexible_extract(has_choices), "lenient_outcome"),
        ("boxed against our strict grade", boxed, "outcome"),
    ):
        agree: dict[str, list[bool]] = defaultdict(list)
        shares: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        kinds: Counter[str] = Counter()
        for row in rows:
            outcome: Outcome = getattr(row, ours)
            theirs, found = grade(row, problems[row.problem_id])
            mine = outcome is Outcome.CORRECT
            agree[row.benchmark].append(mine == theirs)
            shares[row.benchmark].append((mine, theirs))
            if mine != theirs:
                kinds[kind(row, outcome, theirs)] += 1
                known = {"rule": name, "gold": row.answer, "ours": outcome.value, "theirs": theirs, "their_answer": found}
                mine_too = {"our_strict": row.extracted, "our_lenient": row.lenient_extracted, "finish": row.finish_reason}
                disagreements.append({"key": row.key, **known, **mine_too, "text": row.text})
        print(name)
        for benchmark, values in agree.items():
            mine, theirs = (sum(pair[side] for pair in shares[benchmark]) / len(values) for side in (0, 1))
            print(
                f"  {benchmark}: {len(values)} responses, {len(values) - sum(values)} disagreements "
                f"({sum(values) / len(values):.4f} agree); accuracy ours {mine:.4f}, theirs {theirs:.4f}"
            )
        for text, count in kinds.most_common():
            print(f"  {count:>6}  {text}")
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in disagreements))


if __name__ == "__main__":
    main()

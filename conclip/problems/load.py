"""Problems from every source, as one list with unique ids."""

from collections.abc import Mapping
from contextlib import closing

from conclip.config.groups import ProblemSetConfig
from conclip.errors import UserError
from conclip.grading.golds import check_golds
from conclip.grading.grader import Grader
from conclip.grading.verifier import check_verifier
from conclip.lab.arithmetic import generate
from conclip.problems.files import load_dataset
from conclip.seeding import derive_seed
from conclip.types import Problem


def load_problems(
    key: str, sets: Mapping[str, ProblemSetConfig], run_seed: int, notes: list[str] | None = None
) -> list[Problem]:
    """Return all problems of the named sets; each carries its set's name as `source`. Raises UserError on bad data. Notes
    for people are added to `notes`.

    `key` is the config key of the sets, for messages. Arithmetic sets are redrawn when `run_seed` changes.
    """
    problems: dict[str, Problem] = {}
    for name, settings in sets.items():
        loaded, set_notes = _load_set(f"{key}.{name}", name, settings, run_seed)
        if notes is not None:
            notes.extend(set_notes)
        for problem in loaded:
            if problem.problem_id in problems:
                raise UserError(f"{key}.{name}: problem id '{problem.problem_id}' appears twice; ids must be unique")
            problems[problem.problem_id] = problem
    return list(problems.values())


def _load_set(key: str, name: str, settings: ProblemSetConfig, run_seed: int) -> tuple[list[Problem], list[str]]:
    if settings.source == "dataset":
        problems, notes = load_dataset(key, name, settings)
        if (verifier := problems[0].verifier) is not None:
            check_verifier(f"{key}.verifier", verifier, problems[0].answer)
            return problems, [*notes, f"{key}.verifier: Python code in '{verifier.file}' runs on this machine"]
        remedy = (
            rf"name the answer in them by {key}.answer_pattern='####\s*(.+)' (an expression with one group around it), or "
            f"set {key}.answer_boxed=true"
        )
        with closing(Grader()) as grader:
            note = check_golds(grader, key, [(p.problem_id, (p.golds, p.choices)) for p in problems], remedy)
        return problems, notes + ([note] if note else [])
    assert settings.family and settings.levels and settings.split and settings.num_problems
    try:
        problems = generate(
            settings.family,
            levels=tuple(settings.levels),
            split=settings.split,
            num_problems=settings.num_problems,
            seed=derive_seed("problems", run_seed, settings.seed),
            source=name,
        )
        return problems, []
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error

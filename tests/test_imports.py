"""Dependencies point downwards: the light modules work without torch and vLLM, and only one module imports vLLM."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "conclip"

LIGHT = [
    "conclip.types",
    "conclip.config.schema",
    "conclip.training.rewards",
    "conclip.grading.grader",
    "conclip.seeding",
    "conclip.stats",
    "conclip.grading.thinking",
    "conclip.curriculum.pass_rates",
    "conclip.curriculum.selection",
    "conclip.runs.identity",
    "conclip.problems.load",
    "conclip.models.architectures",
    "conclip.models.folder",
    "conclip.experiments.inputs",
    "conclip.evaluation.metrics",
    "conclip.evaluation.tables",
    "conclip.rollout.engine",
    "conclip.cli.main",
    "conclip.cli.help",
]


def test_light_modules_import_nothing_heavy():
    script = (
        f"import sys, importlib\nfor name in {LIGHT!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'vllm', 'transformers', 'scipy.stats'} & set(sys.modules)\nassert not heavy, heavy"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_a_plan_waits_for_nothing_that_draws():
    script = "import sys, conclip.experiments.commands\nassert 'altair' not in sys.modules"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def is_module(name: str) -> bool:
    place = PACKAGE.parent / name.replace(".", "/")
    return place.with_suffix(".py").exists() or place.is_dir()


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if is_module(name)} or {node.module}
    return found


def test_few_modules_import_vllm():
    users = {p.name for p in PACKAGE.rglob("*.py") if any(m.split(".")[0] == "vllm" for m in imports(p))}
    assert users == {"vllm_engine.py", "transfer.py"}


ROOMS = [
    "errors",
    "types",
    "seeding",
    "stats",
    "redact",
    "processes",
    "lab",
    "algo",
    "config",
    "runs",
    "grading",
    "cluster",
    "models",
    "problems",
    "curriculum",
    "rollout",
    "evaluation",
    "training",
    "report",
    "experiments",
    "claims",
    "cli",
    "__main__",
]
"""Folders of the package, and the few modules beside them; each imports from those above it only."""


def dependencies() -> dict[str, set[str]]:
    """By module, without the package's name, the modules of the package that it imports."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module != "__init__":
            found[module.removesuffix(".__init__")] = {
                name.removeprefix("conclip.") for name in imports(path) if name.startswith("conclip.")
            }
    return found


def test_rooms_import_from_those_above_them():
    for module, imported in dependencies().items():
        room = ROOMS.index(module.split(".")[0])
        upward = {name for name in imported if ROOMS.index(name.split(".")[0]) > room}
        assert not upward, f"{module} imports {upward} from a room below its own"


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter(dependencies()).prepare()  # raises CycleError, which names them


def test_few_files_lie_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 8

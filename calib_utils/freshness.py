"""Whether an executed copy is current: what it was made from, by content, then and now.

Knows the record in a copy and where stored numbers lie. Executes nothing, loads no weights, reads
no source code, and looks at no date, so that a fresh clone finds what the machine found that
executed it. Whether executing it again gives the same numbers is for nbval to say.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from calib_utils import models, paths, recorded, weights
from calib_utils.errors import HubUnreachableError, ModelFormatError, UnknownNameError
from calib_utils.files import sha256_of_file, sha256_of_folder
from calib_utils.registry import EMBEDDED

METADATA, RECORD = "calib_utils", "made_from"
# A name for the same model, and a place for the same rows: both are compared by content instead.
_BY_CONTENT = ("model", "results_dir")
_DIGITS, _SHOWN = 16, 3


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


def made_from(
    parameters: Mapping, sha256: str | None, read: Iterable[str], results_dir: Path
) -> dict:
    """The record of what a page depends on beside its source.

    Args:
        parameters: those that differ from the notebook's own.
        sha256: of the model's weights; None where they are not here, or for no one model.
        read: the paths it read, as `paths.note_read` wrote them.
        results_dir: where its rows are.
    """
    rows, data = set(), set()
    places = ((rows, Path(results_dir).absolute()), (data, paths.project_root() / "data"))
    for path in map(Path, read):
        # Committed results lie below `data`, and are rows of the page that names them.
        names, place = next((p for p in places if path.is_relative_to(p[1])), (None, None))
        if names is not None:
            names.add(path.relative_to(place).as_posix())
    return {
        "parameters": {k: v for k, v in sorted(parameters.items()) if k not in _BY_CONTENT},
        "weights": sha256,
        "rows": _rows(rows, results_dir),
        "data": _data(data),
    }


def why_stale(
    executed: Path,
    source_sha256: str,
    parameters: Mapping,
    sha256: str | None,
    results_dir: Path,
) -> list[str]:
    """Why an executed copy does not stand for an execution now, in words; empty where it does."""
    if not executed.is_file():
        return ["never run"]
    try:
        kept = json.loads(executed.read_text(encoding="utf-8"))["metadata"][METADATA]
        then = kept.get(RECORD)
        if then is None:
            return ["no record of what it was made from"]
        why = [] if kept["source_sha256"] == source_sha256 else ["its source changed"]
        if sha256 is not None and then["weights"] != sha256:
            why.append("the weights changed")
        now = made_from(parameters, sha256, (), results_dir)
        now |= {"rows": _rows(then["rows"], results_dir), "data": _data(then["data"])}
        for part, words in (
            ("parameters", "other parameters: {}"),
            ("data", "data changed: {}"),
            ("rows", "rows of {} changed"),
        ):
            if names := _differing(then[part], now[part]):
                names = ["the list of models" if name == "." else name for name in names]
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                why.append(words.format(", ".join(names[:_SHOWN]) + more))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["the executed copy is unreadable"]
    return why


def _differing(then: Mapping, now: Mapping) -> list[str]:
    absent = object()
    return sorted(n for n in {*then, *now} if then.get(n, absent) != now.get(n, absent))


def _rows(names: Iterable[str], results_dir: Path) -> dict[str, str | None]:
    """Identity of each stored thing, by its name below `results_dir`; None where none stands."""
    found = {name: recorded.identity_of(Path(results_dir) / name) for name in sorted(names)}
    return {name: digest and digest[:_DIGITS] for name, digest in found.items()}


def _data(names: Iterable[str]) -> dict[str, str | None]:
    """Digest of each file or folder below `data`; what only people read does not count."""
    found = {}
    for name in sorted(names):
        path = paths.project_root() / "data" / name
        files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
        read = [file for file in files if file.name != "README.md" and file.is_file()]
        parts = [[file.relative_to(path).as_posix(), sha256_of_file(file)] for file in read]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]
        found[name] = digest if parts else None
    return found

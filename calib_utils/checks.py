"""Looking at everything below a results folder, and at what the weights give now.

Knows which folders there are; `faults` knows what is wrong with one. Raises nothing for what it
finds: a check ends with a table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import (
    files,
    framework_study,
    kept_logits,
    kept_steps,
    paths,
    reproduce,
    results,
    weights,
)
from calib_utils.errors import CalibUtilsError
from calib_utils.faults import ERROR, NOTE, Fault, table_faults, text_faults
from calib_utils.kept_faults import label_faults, logit_faults, step_faults, study_faults
from calib_utils.registry import EMBEDDED

TEXTS, LABELS = "texts", "labels"
# What is kept beside a model's tables.
_KEPT = {
    LABELS: label_faults,
    kept_logits.FOLDER: logit_faults,
    kept_steps.FOLDER: step_faults,
    framework_study.FOLDER: study_faults,
}
_LOOK = {TEXTS: text_faults, **_KEPT}


@dataclass(frozen=True)
class Checked:
    """A folder that was looked at."""

    folder: Path
    kind: str  # "table", "texts", a name of `_KEPT`, or "other"
    faults: tuple[Fault, ...]

    @property
    def verdict(self) -> str:
        """`ok`, `note` or `error`, whichever is worst."""
        levels = {fault.level for fault in self.faults}
        return next((level for level in (ERROR, NOTE) if level in levels), "ok")


def check(folder: str | Path) -> list[Checked]:
    """Looks at everything below a results folder, a model's folder, or one stored measurement.

    Nothing at all is a fault as well.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "there is no such folder: give a results folder, by default data/results"
        return [Checked(root, "other", (Fault(what),))]
    found = list(_walk(root.resolve()))
    if not found:
        what = "nothing is stored here: run `python -m calib_utils run --model NAME` first"
        return [Checked(root, "other", (Fault(what),))]
    return found


def as_table(found: list[Checked], root: Path) -> pd.DataFrame:
    """One row per fault, and one per folder without: columns folder, kind, verdict, finding."""
    base, rows = Path(root).resolve(), []
    for one in found:
        name = one.folder.name
        if one.folder != base and one.folder.is_relative_to(base):
            name = str(one.folder.relative_to(base))
        for fault in one.faults or (Fault("", "ok"),):
            rows.append((name, one.kind, fault.level, fault.what))
    return pd.DataFrame(rows, columns=["folder", "kind", "verdict", "finding"])


def _walk(root: Path) -> Iterator[Checked]:
    if (root / results.RECORD).is_file():
        kind = TEXTS if root.parent.name == TEXTS else "table"
        yield _looked_at(root, kind)
    elif root.name == TEXTS or _is_model(root):
        yield from _model(root)
    else:
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                yield from _model(entry)
            else:
                yield _stray(entry)


def _is_model(folder: Path) -> bool:
    below = [entry for entry in folder.iterdir() if entry.is_dir()]
    return any(
        entry.name in (TEXTS, *_KEPT) or (entry / results.RECORD).is_file() for entry in below
    )


def _model(folder: Path) -> Iterator[Checked]:
    """Every entry of a model's folder, or of its folder of texts."""
    kind = TEXTS if folder.name == TEXTS else "table"
    for entry in sorted(folder.iterdir()):
        if entry.name == files.LOCK:
            continue
        if entry.is_symlink() or not entry.is_dir() or entry.name.startswith("."):
            yield _stray(entry)
        elif kind == "table" and entry.name == TEXTS:
            yield from _model(entry)
        else:
            own = entry.name in _KEPT and kind == "table"
            yield _looked_at(entry, entry.name if own else kind)


def _stray(entry: Path) -> Checked:
    if entry.is_symlink():
        what = "is a link: put the folder itself there, since a link leads elsewhere in a clone"
    elif entry.name.startswith("."):
        what = "is what a killed run left: delete it"
    else:
        what = "is not a results folder: delete it, or move it out"
    return Checked(entry, "other", (Fault(what),))


def _looked_at(folder: Path, kind: str) -> Checked:
    faults = []
    try:
        for fault in _LOOK.get(kind, table_faults)(folder):
            faults.append(fault)
    except CalibUtilsError as error:
        faults.append(Fault(str(error)))
    except Exception as error:  # a hostile record may hold anything
        what = f"cannot be read ({type(error).__name__}: {error}): restore it, or measure again"
        faults.append(Fault(what))
    return Checked(folder, kind, tuple(faults))


def recompute(found: list[Checked], n: int, seed: int = 0) -> list[Checked]:
    """Measures some stored rows again where the model is at hand; texts are left out.

    A row costs a pass over its whole task. What was at fault already is not computed.

    Args:
        n: rows for each model, drawn over its tables.
        seed: of the draw.

    Returns:
        The folders drawn from, each with a fault where the weights give something else, or a note
        where the model is not here.
    """
    tables: dict[str, list[Path]] = {}
    for one in found:
        if one.kind == "table" and one.verdict != ERROR:
            tables.setdefault(one.folder.parent.name, []).append(one.folder)
    checked = []
    for model, folders in tables.items():
        generator = np.random.default_rng([seed, *model.encode()])
        drawn = generator.choice(len(folders), size=n)
        for index in sorted(set(drawn.tolist())):
            checked.append(_recomputed(folders[index], int((drawn == index).sum()), generator))
    return checked


def _recomputed(folder: Path, n: int, generator: np.random.Generator) -> Checked:
    stored = results.read(folder)
    if not _at_hand(stored.record):
        what = f"not recomputed, {stored.record['model']} is not here: fetch it and check again"
        return Checked(folder, "table", (Fault(what, NOTE),))
    rows = stored.settings.sample(min(n, len(stored.settings)), random_state=generator)
    try:
        differs, gap = reproduce.recompute_rows(folder, rows)
    except CalibUtilsError as error:
        return Checked(folder, "table", (Fault(f"cannot be recomputed: {error}"),))
    faults = []
    if differs:
        what = f"{', '.join(differs)} are not those of the record: measure again"
        faults.append(Fault(what))
    if not gap <= reproduce.TOLERANCE:
        faults.append(
            Fault(
                f"{len(rows)} rows recomputed differ by up to {gap:.2g}, more than "
                f"{reproduce.TOLERANCE:g}: `reproduce --update` measures the table again"
            )
        )
    return Checked(folder, "table", tuple(faults))


def _at_hand(record: dict) -> bool:
    """Whether a model can be loaded without fetching it."""
    name = record["model"]
    if name in EMBEDDED:
        spec = EMBEDDED[name]
        return (paths.cache_dir() / "gguf" / spec.sha256[:16] / spec.filename).is_file()
    if Path(name).exists():
        return True
    try:
        folder = weights.hub_folder(name, record["revision"], local_only=True)
    except CalibUtilsError:
        return False
    return any(folder.glob("*.safetensors"))

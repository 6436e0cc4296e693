"""What is wrong with the files kept beside a model's tables: labels, logits, steps, studies.

Knows these files as their modules write them. Runs no model.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from calib_utils import (
    files,
    framework_study,
    kept_logits,
    kept_steps,
    labelled,
    provenance,
)
from calib_utils.errors import ResultsError
from calib_utils.faults import Fault, check_code, check_hashes, check_model


def label_faults(folder: Path) -> Iterator[Fault]:
    """Faults of a model's kept labels: unreadable ones, and labels of texts that are not there."""
    for path in sorted(folder.iterdir()):
        name, at, _ = path.stem.removeprefix("judged-").partition("@")
        if (
            path.is_symlink()
            or path.suffix != ".parquet"
            or not at
            or not files.PLAIN_NAME.fullmatch(name)
        ):
            yield Fault(f"{path.name} is not a file of labels: delete it")
            continue
        try:
            labels, _ = labelled.read(path)
            texts = folder.parent / "texts" / name
            stored = pd.concat([pd.read_parquet(file) for file in sorted(texts.glob("*.parquet"))])
        except (ResultsError, OSError, ValueError) as error:
            yield Fault(f"{path.name}: labels or their texts cannot be read ({error})")
            continue
        have = set(zip(stored.prompt_id, stored.text, strict=True))
        strange = set(zip(labels.prompt_id, labels.text, strict=True)) - have
        if strange:
            yield Fault(f"{path.name} labels {len(strange)} texts that are not stored: delete it")


def logit_faults(folder: Path) -> Iterator[Fault]:
    """Faults of a model's kept logits; raises a CalibUtilsError where one cannot be read."""
    return _faults(folder, ".parquet", kept_logits.read, "06_logit_shape")


def step_faults(folder: Path) -> Iterator[Fault]:
    """Faults of a model's kept steps; raises a CalibUtilsError where one cannot be read."""
    return _faults(folder, ".json", kept_steps.read, "03_oracle_cutoffs")


def study_faults(folder: Path) -> Iterator[Fault]:
    """Faults of a model's kept studies; raises a CalibUtilsError where one cannot be read."""
    return _faults(
        folder,
        ".parquet",
        framework_study.read,
        "01_formal_framework",
        provenance.code_version(framework_study.CODE),
    )


def _faults(
    folder: Path, suffix: str, read: Callable, chapter: str, code: str | None = None
) -> Iterator[Fault]:
    for path in sorted(folder.iterdir()):
        if not _is_file_of(path, suffix):
            yield Fault(f"{path.name} is not a file of {folder.name}: delete it")
            continue
        _, record = read(path)
        yield from check_hashes(record, ("weights_sha256", "code_version"))
        yield from check_model(folder.parent.name, record, None)
        yield from check_code(record, code or provenance.code_version(), f"run {chapter} again")


def _is_file_of(path: Path, suffix: str) -> bool:
    plain = files.PLAIN_NAME.fullmatch(path.name)
    return bool(plain) and path.suffix == suffix and not path.is_symlink()

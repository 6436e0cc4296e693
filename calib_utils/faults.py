"""What is wrong with one stored folder: names, hashes, invariants, conventions, code version.

Knows folders as `results`, `completions` and `drawing` write them. Trusts no name in a record: none
is opened before it is known to be plain. Every fault is a sentence with a remedy. Runs no model.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import (
    completions,
    drawing,
    files,
    models,
    openended,
    provenance,
    results,
)
from calib_utils.errors import ResultsError, UnknownNameError
from calib_utils.prompts import Policies
from calib_utils.registry import EMBEDDED
from calib_utils.sizes import BYTES
from calib_utils.sweeps import Sweep
from calib_utils.tasks import OpenPrompt, get_task

ERROR, NOTE = "error", "note"
_AGAIN = "restore the folder, or delete it and measure again"
_SLACK = 1e-9
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASHES = ("weights_sha256", "prompt_sha256", "sequences_sha256", "code_version")
_TEXT_HASHES = ("weights_sha256", "prompts_sha256", "sweep_sha256", "code_version")


@dataclass(frozen=True)
class Fault:
    """Something wrong with a folder, and what to do. A `note` does not make a check fail."""

    what: str
    level: str = ERROR


def table_faults(folder: Path) -> Iterator[Fault]:
    """Faults of a measured table; raises a CalibUtilsError where it cannot be read at all."""
    record = _record(folder)
    yield from _check_files(folder, record, set(results.FILES.values()))
    yield from check_hashes(record, _HASHES)
    try:
        stored = results.read(folder)
    except ResultsError as error:
        remedy = "" if "measure again" in str(error) else f": {_AGAIN}"
        raise ResultsError(f"{error}{remedy}") from error
    yield from check_model(folder.parent.name, record, stored.settings.model)
    yield from _check_conventions(folder.name, record)
    yield from _check_task(record, stored)
    yield from check_code(record, provenance.code_version(), "measure them again")
    yield from _check_environment(record)


def text_faults(folder: Path) -> Iterator[Fault]:
    """Faults of stored texts; raises a CalibUtilsError where they cannot be read at all.

    Which code a drawn reply passed through is not in its record, so of replies the code version
    is not checked; of sweeps it is.
    """
    record = completions.read_record(folder)
    if "files" not in record:
        yield Fault("is unfinished: run the same request again, it goes on; or delete the folder")
        return
    yield from _check_files(folder, record, None)
    yield from check_hashes(record, _TEXT_HASHES)
    yield from check_model(folder.parent.parent.name, record, None)
    if "sweep" in record:
        table = completions.read_completions(folder)
        yield from _check_sweep(record, table)
        yield from check_code(record, provenance.code_version(openended.CODE), "sweep again")
    else:
        table = drawing.read(folder)
        if "text" not in table or not table.text.map(lambda text: isinstance(text, str)).all():
            yield Fault("a reply has no text: delete the folder and draw again")
        if "log_p" in table and (table.log_p > _SLACK).any():
            yield Fault("a log-probability is above 0: delete the folder and draw again")
    yield from _check_environment(record)


def _record(folder: Path) -> dict:
    path = folder / results.RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record["files"], dict):
            raise ValueError("not a record")
    except (OSError, ValueError, KeyError) as error:
        raise ResultsError(
            f"{path.name} is missing or unreadable ({type(error).__name__}: {error}): restore it, "
            "or delete the folder and measure again"
        ) from error
    return record


def _check_files(folder: Path, record: dict, known: set[str] | None) -> Iterator[Fault]:
    """Names in the record are plain and known, and the folder holds these files, nothing else."""
    for name in record["files"]:
        wrong = not name.endswith(".parquet") if known is None else name not in known
        if wrong or not files.PLAIN_NAME.fullmatch(name):
            yield Fault(
                f"the record names a file {name!r}, which no run writes: measure again; a name "
                "may not lead out of the folder"
            )
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            yield Fault(f"{entry.name} is a link: put the file itself there")
        elif entry.name != results.RECORD and entry.name not in record["files"]:
            yield Fault(f"{entry.name} is not in the record: delete it")


def check_hashes(record: dict, names: tuple[str, ...]) -> Iterator[Fault]:
    """What should be a SHA-256 in the record is one."""
    for name in names:
        if not _SHA256.fullmatch(str(record.get(name))):
            yield Fault(f"{name} is {record.get(name)!r}, not a SHA-256: measure again")


def check_model(folder: str, record: dict, column: pd.Series | None) -> Iterator[Fault]:
    """The rows are of the model whose folder they lie in, and of weights that others can load.

    Args:
        folder: the model's folder by name.
        column: the model of each row, where the table says.
    """
    name, revision = str(record["model"]), record.get("revision")
    key = _key(name)
    if folder not in (key, f"{key}@{revision}"):
        yield Fault(
            f"rows of {name!r} lie in the folder {folder!r}: they belong into {key!r}; move them"
        )
    if column is not None and set(column) != {name}:
        yield Fault(f"the table is of {sorted(set(column))}, the record of {name!r}: measure again")
    if name in EMBEDDED:
        if record["weights_sha256"] != EMBEDDED[name].sha256:
            yield Fault(
                f"the weights are not those of {name} (SHA-256 "
                f"{record['weights_sha256'][:12]}…): measure again with the embedded file"
            )
    elif not models._is_hub_id(name):
        yield Fault(
            f"{name!r} is a file of one machine, which others cannot load: keep the rows to "
            "yourself, or publish the model on the hub and measure it by its id",
            NOTE,
        )
    elif not _COMMIT.fullmatch(str(revision)):
        yield Fault(
            f"revision {revision!r} of {name} may move: measure again with --revision and a commit",
            NOTE,
        )


def _key(name: str) -> str:
    """A model's folder, as `load_model` names it."""
    if name in EMBEDDED:
        return name
    if models._is_hub_id(name):
        return models._file_key(name.replace("/", "--"))
    path = Path(name)
    return models._file_key(path.stem if path.suffix == ".gguf" else path.name)


def _check_conventions(folder: str, record: dict) -> Iterator[Fault]:
    policies, dtype = Policies(**record["policies"]), record["dtype"]
    if dtype not in BYTES:
        yield Fault(f"dtype {dtype!r} does not exist: measure again")
    suffix = policies.suffix + (f"@dtype={dtype}" if dtype != "float32" else "")
    if folder != f"{record['task']}{suffix}":
        yield Fault(
            f"the record is of {record['task']!r} with the conventions {suffix or 'by default'!r}, "
            f"the folder is called {folder!r}: rename it, or measure again"
        )


def _check_task(record: dict, stored: results.Stored) -> Iterator[Fault]:
    name = str(record["task"])
    if set(stored.settings.task) != {name}:
        tasks = sorted(set(stored.settings.task))
        yield Fault(f"the table is of {tasks}, the record of {name!r}: measure again")
    if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(".json"):
        yield Fault(f"{name!r} is no name of a task: rename the task and measure again")
        return
    try:
        task = get_task(name)
    except UnknownNameError:
        what = f"{name} is not a task of this project, so its answers cannot be checked"
        yield Fault(f"{what}: add it to the tasks, or keep the rows to yourself", NOTE)
        return
    answers = stored.answers.groupby("temperature").answer.apply(list)
    same = (
        record["prompt"] == task.prompt
        and set(stored.settings.n_answers) == {len(task.answers)}
        and all(listed == list(task.answers) for listed in answers)
    )
    if not same:
        yield Fault(f"prompt or answers are not those of the task {name}: measure again")


def check_code(record: dict, current: str, remedy: str) -> Iterator[Fault]:
    """What is stored is of the code that is here."""
    if record["code_version"] != current:
        yield Fault(
            f"measured by other code (code version {str(record['code_version'])[:12]}…, now "
            f"{current[:12]}…): {remedy}; `reproduce --update` does it for tables"
        )


def _check_environment(record: dict) -> Iterator[Fault]:
    environment = record["environment"]
    missing = {"date", "python", "packages", "machine", "device", "commit"} - set(environment)
    if missing:
        yield Fault(f"the environment lacks {', '.join(sorted(missing))}: measure again")
    elif environment.get("dirty") or not _COMMIT.fullmatch(str(environment["commit"])):
        what = "measured with changes that no commit has: commit calib_utils and measure again"
        yield Fault(what, NOTE)


def _check_sweep(record: dict, table: pd.DataFrame) -> Iterator[Fault]:
    asked = record["sweep"]
    sweep = Sweep(
        prompts=tuple(OpenPrompt(**prompt) for prompt in asked["prompts"]),
        seeds=tuple(asked["seeds"]),
        position=tuple(asked["position"]),
        depth=asked["depth"],
        ranks=tuple(asked["candidates"]),
        n_samples=asked["n_samples"],
        max_tokens=asked["max_tokens"],
        temperature=asked["temperature"],
        end=asked["end"],
    )
    if sweep.fingerprint() != record["sweep_sha256"]:
        yield Fault("the recorded sweep is not the one of its hash: sweep again")
    trees = {(prompt.id, seed) for prompt, seed in sweep.trees}
    if set(zip(table.prompt_id, table.seed, strict=True)) != trees:
        yield Fault("the trees are not those of the recorded sweep: sweep again")
    log_p = np.concatenate([table.log_p.to_numpy(), *table.path_log_p])
    if not (log_p <= _SLACK).all():
        yield Fault("a log-probability is above 0 or missing: sweep again")
    lengths = [table[f"path_{name}"].map(len) for name in ("ranks", "ids", "log_p")]
    if any((length != table.depth).any() for length in lengths):
        yield Fault("a path has another number of tokens than its depth: sweep again")
    if not table.path_ranks.map(lambda ranks: set(ranks) <= set(sweep.candidates)).all():
        yield Fault("a rank was forced that the sweep does not have: sweep again")

"""Recomputing stored numbers from the weights, and what differs from the committed ones.

Knows stored results and how to ask for them again. Writes only when told to.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files, paths
from calib_utils.book.resources import BYTES
from calib_utils.core.processors import parse_rule
from calib_utils.core.prompts import Policies
from calib_utils.core.tasks import OpenPrompt, Task, get_task
from calib_utils.errors import CalibUtilsError, ResultsError, UnknownNameError
from calib_utils.figures import explorer
from calib_utils.models import loading, weights
from calib_utils.models.generation import Continuations, start_of
from calib_utils.models.loading import Model, load_model
from calib_utils.models.registry import EMBEDDED
from calib_utils.openended import programs, verifiers
from calib_utils.openended.sweeps import Sweep
from calib_utils.results import conventions, records, storage
from calib_utils.results.conventions import FRAMEWORK, LABELS, LOGITS, ROWS, STEPS, TEXTS
from calib_utils.results.evaluation import request_for
from calib_utils.results.storage import KEY
from calib_utils.studies import formal_framework

# Float32 forward passes differ in the fifth digit between machines and batch sizes.
TOLERANCE = 1e-4
TEXT_TOLERANCE = 1e-3  # nats a token, in float32
_NUMBERS = list(formal_framework.NUMBERS)


def stored_folders(results_dir: Path, model: str | None = None) -> list[Path]:
    """Every stored measurement, or one model's."""
    found = sorted(path.parent for path in Path(results_dir).glob("*/*/provenance.json"))
    return [folder for folder in found if model in (None, folder.parent.name)]


def recompute(folder: Path, update: bool = False) -> pd.DataFrame:
    """Measures a stored folder's settings again from the weights.

    Args:
        update: replace the stored rows by the new ones.

    Returns:
        One row: model, task, settings, largest absolute difference per number, `same` within
        `TOLERANCE`, and whether the stored convention is today's.
    """
    stored = storage.read(folder)
    record = stored.record
    model, task, policies = _asked(folder, record)
    settings = _settings_of(stored.settings)
    with tempfile.TemporaryDirectory(
        prefix=".again-", dir=folder.parent if update else None
    ) as scratch:
        request = request_for(model, task, policies, results_dir=scratch)
        request.tables(
            settings,
            list(dict.fromkeys(stored.answers.temperature)),
            losses=not stored.losses.empty,
            frontier=not stored.frontier.empty,
        )
        again = storage.read(request.folder)
        gaps = _gaps(stored.settings, again.settings, KEY, _NUMBERS)
        gaps |= _gaps(stored.losses, again.losses, [*KEY, "repair", "step"], ["diversity_loss"])
        if update:
            storage.write(folder, again, again.record)
    return _row(folder.name, conventions.ROWS, record, len(stored.settings), gaps)


def stored_studies(results_dir: Path, model: str | None = None) -> list[Path]:
    """The kept studies of the formal framework, or one model's, by their tables of settings."""
    found = sorted(Path(results_dir).glob(f"*/{formal_framework.FOLDER}/[!.]*.settings.parquet"))
    return [path for path in found if model in (None, path.parent.parent.name)]


def recompute_study(path: Path, update: bool = False) -> pd.DataFrame:
    """Measures a kept study again from the weights.

    Args:
        path: one of `stored_studies`.
        update: replace the kept study by the new one.

    Returns:
        One row, as of `recompute`; a study holds no losses.
    """
    stored, record = formal_framework.read(path)
    model = load_model(record["model"], revision=record["revision"], dtype=record["dtype"])
    task = get_task(record["task"])
    with tempfile.TemporaryDirectory() as scratch:
        again = formal_framework.study(model, task, record["end"], scratch)
        if update:
            for new in (Path(scratch) / model.key / formal_framework.FOLDER).iterdir():
                files.keep(path.with_name(new.name), new.read_bytes())
    gaps = _gaps(stored, again.numbers, KEY, _NUMBERS) | {"diversity_loss": np.nan}
    name = f"{formal_framework.FOLDER}/{path.name.removesuffix('.settings.parquet')}"
    return _row(name, conventions.FRAMEWORK, record, len(stored), gaps)


def _gaps(old: pd.DataFrame, new: pd.DataFrame, key: list[str], names: list[str]) -> dict:
    """`_largest_gap` of some columns between the rows of `old` and those of the same key."""
    both = old.merge(new, how="left", on=key, suffixes=("", "_new"))
    return {name: _largest_gap(both[name], both[f"{name}_new"]) for name in names}


def _row(task: str, kind: str, then: dict, settings: int, gaps: dict) -> pd.DataFrame:
    row = {
        "model": then["model"],
        "task": task,
        "settings": settings,
        **{f"max |Δ| {name}": value for name, value in gaps.items()},
        "same": np.nanmax(list(gaps.values())) <= TOLERANCE,
        "convention is current": conventions.is_current(kind, then),
    }
    return pd.DataFrame([row])


def recompute_rows(folder: Path, rows: pd.DataFrame) -> tuple[list[str], float]:
    """Measures some rows of a stored folder again; writes nothing.

    Args:
        rows: of its settings table.

    Returns:
        What of the record's identity differs now (`conventions.IDENTITY`), and the largest absolute
        difference of a number.
    """
    record = storage.read(folder).record
    model, task, policies = _asked(folder, record)
    with tempfile.TemporaryDirectory() as scratch:
        request = request_for(model, task, policies, results_dir=scratch)
        again = request.tables(_settings_of(rows)).settings
        new = storage.read(request.folder).record
    differs = [n for n in conventions.IDENTITY[conventions.ROWS] if record[n] != new[n]]
    both = rows.reset_index(drop=True)
    return differs, max(_largest_gap(both[name], again[name]) for name in _NUMBERS)


def rescore(
    folder: Path, n: int, generator: np.random.Generator, model: Model | None = None
) -> tuple[int, float]:
    """Scores some texts of a stored sweep by their token ids under the model; draws none again.

    Args:
        folder: of texts; those of one tree are scored.
        n: texts at most.
        model: by default the one that the record names.

    Returns:
        How many were scored, and the largest difference of a stored log-probability, in nats a
        token: of each forced token, and of each completion over its length. None is scored after
        a written opening: its text is stored and its tokens are not, and a model may write a text
        in other tokens than its tokenizer would.

    Raises:
        ResultsError: texts of no sweep, which come without their token ids.
    """
    record = records.read_record(folder)
    if "sweep" not in record:
        raise ResultsError(
            f"{folder} holds replies without their token ids, which cannot be scored: look at them "
            "with `check`"
        )
    table, sweep = records.read_completions(folder), sweep_of(record)
    table = table[table.position == 0]
    if table.empty:
        return 0, 0.0
    if model is None:
        named = {name: record[name] for name in ("revision", "dtype")}
        model = load_model(record["model"], **named)
    prompt_id = generator.choice(table.prompt_id.unique())
    table = table[table.prompt_id == prompt_id]
    table = table.sample(min(n, len(table)), random_state=generator)
    (prompt,) = (prompt for prompt in sweep.prompts if prompt.id == prompt_id)
    tree = Continuations(model, start_of(model, prompt, sweep.end).ids)
    largest = 0.0
    found = tree.complete([tuple(ids) for ids in table.token_ids], 1)
    for row, again in zip(table.itertuples(), found, strict=True):
        log_p = np.array(again.prefix_log_p)
        forced, written = np.abs(log_p[: row.depth] - row.path_log_p), log_p[row.depth :]
        gap = abs(written.sum() - row.log_p) / max(1, len(written))
        largest = max(largest, gap, forced.max(initial=0.0))
    return len(table), float(largest)


def sweep_of(record: dict) -> Sweep:
    """The sweep that the record of stored texts describes; raises KeyError where it does not."""
    asked = record["sweep"]
    names = ("depth", "n_samples", "max_tokens", "temperature", "end")
    return Sweep(
        prompts=tuple(OpenPrompt(**prompt) for prompt in asked["prompts"]),
        seeds=tuple(asked["seeds"]),
        position=tuple(asked["position"]),
        ranks=tuple(asked["candidates"]),
        **{name: asked[name] for name in names},
    )


def _asked(folder: Path, record: dict) -> tuple[Model, Task, Policies]:
    """The model, task and conventions that a record names."""
    try:
        name, task, policies = record["model"], record["task"], Policies(**record["policies"])
        settings = {"revision": record["revision"], "dtype": record["dtype"]}
    except (KeyError, TypeError) as error:
        raise ResultsError(
            f"{folder}: its record does not say what was measured ({error!r}): restore it, or "
            "delete the folder and measure again"
        ) from error
    return load_model(name, **settings), get_task(task), policies


def _settings_of(table: pd.DataFrame) -> list:
    """The rules and temperatures of a settings table, in its order."""
    return [
        (parse_rule(name if np.isnan(number) else f"{name}={number!r}"), temperature)
        for name, number, temperature in table[KEY].itertuples(index=False)
    ]


def _largest_gap(old: pd.Series, new: pd.Series) -> float:
    """Largest absolute difference; infinite where only one of the two is undefined."""
    gap = (old - new).astype(float).abs().fillna(np.inf)
    return float(gap.where(~(old.isna() & new.isna()), 0.0).max()) if len(gap) else 0.0


# What is wrong with stored results: names, hashes, invariants, identities, conventions.
#
# Looks at everything below a results folder, each kind of stored thing by one list of faults, and
# at what the weights give now. Trusts no name in a record: none is opened before it is known to
# be plain. Raises nothing for what it finds: every fault is a sentence with a remedy, in a table.

ERROR, NOTE = "error", "note"
TABLE = "table"  # what a user calls rows
_AGAIN = "restore the folder, or delete it and measure again"
_SLACK = 1e-9
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fault:
    """Something wrong with a folder, and what to do. A `note` does not make a check fail."""

    what: str
    level: str = ERROR


@dataclass(frozen=True)
class Checked:
    """A folder that was looked at."""

    folder: Path
    kind: str  # "table", a name of `conventions.FOLDERS`, or "other"
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


def recompute_some(found: list[Checked], n: int, seed: int | str = 0) -> list[Checked]:
    """Computes some stored rows again, and scores some stored texts, where the model is at hand.

    A row costs a pass over its whole task, a text one over its tokens. What was at fault already
    is left out, and so are replies, which are stored without token ids, and texts in bfloat16.

    Args:
        n: rows, and as many texts, for each model, drawn over its folders.
        seed: of the draw; any text, such as a commit's hash.

    Returns:
        The folders drawn from, each with a fault where the weights give something else, or a note
        where the model is not here.
    """
    places: dict[tuple[str, str], list[Path]] = {}
    for one in found:
        if one.verdict == ERROR:
            continue
        if one.kind == TABLE:
            places.setdefault((TABLE, one.folder.parent.name), []).append(one.folder)
        elif one.kind == TEXTS:
            record = records.read_record(one.folder)
            if "sweep" in record and record["dtype"] == "float32":
                places.setdefault((TEXTS, one.folder.parent.parent.name), []).append(one.folder)
    checked = []
    for (kind, model), folders in places.items():
        key = hashlib.sha256(f"{seed}/{kind}/{model}".encode()).digest()
        generator = np.random.default_rng(list(key))
        drawn = generator.choice(len(folders), size=n)
        for index in sorted(set(drawn.tolist())):
            times = int((drawn == index).sum())
            faults = tuple(_recomputed(folders[index], kind, times, generator))
            checked.append(Checked(folders[index], kind, faults))
    return checked


def _recomputed(folder: Path, kind: str, n: int, generator: np.random.Generator) -> Iterator[Fault]:
    record = json.loads((folder / storage.RECORD).read_text(encoding="utf-8"))
    if not _at_hand(record):
        yield Fault(
            f"not recomputed, {record['model']} is not here: fetch it and check again", NOTE
        )
        return
    try:
        if kind == TEXTS:
            n_texts, gap = rescore(folder, n, generator)
            if not gap <= TEXT_TOLERANCE:
                yield Fault(
                    f"the log-probabilities of {n_texts} texts differ by up to {gap:.2g} nats a "
                    f"token, more than {TEXT_TOLERANCE:g}: delete the folder and sweep "
                    "again"
                )
            return
        stored = storage.read(folder)
        rows = stored.settings.sample(min(n, len(stored.settings)), random_state=generator)
        differs, gap = recompute_rows(folder, rows)
    except CalibUtilsError as error:
        yield Fault(f"cannot be recomputed: {error}")
        return
    if differs:
        yield Fault(f"{', '.join(differs)} are not those of the record: measure again")
    if not gap <= TOLERANCE:
        yield Fault(
            f"{len(rows)} rows recomputed differ by up to {gap:.2g}, more than "
            f"{TOLERANCE:g}: `reproduce --update` measures the table again"
        )


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


# Which folders there are


def _walk(root: Path) -> Iterator[Checked]:
    if (root / storage.RECORD).is_file():
        yield _looked_at(root, TEXTS if root.parent.name == TEXTS else TABLE)
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
        entry.name in conventions.FOLDERS or (entry / storage.RECORD).is_file() for entry in below
    )


def _model(folder: Path) -> Iterator[Checked]:
    """Every entry of a model's folder, or of its folder of texts."""
    texts = folder.name == TEXTS
    for entry in sorted(folder.iterdir()):
        if entry.name == files.LOCK:
            continue
        if entry.is_symlink() or not entry.is_dir() or entry.name.startswith("."):
            yield _stray(entry)
        elif not texts and entry.name == TEXTS:
            yield from _model(entry)
        elif texts:
            yield _looked_at(entry, TEXTS)
        else:
            yield _looked_at(entry, entry.name if entry.name in conventions.FOLDERS else TABLE)


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
        faults.extend(_FAULTS[kind](folder))
    except CalibUtilsError as error:
        faults.append(Fault(str(error)))
    except Exception as error:  # a hostile record may hold anything
        what = f"cannot be read ({type(error).__name__}: {error}): restore it, or measure again"
        faults.append(Fault(what))
    return Checked(folder, kind, tuple(faults))


# What is wrong with one folder; each list may raise a CalibUtilsError where it cannot be read


def _table_faults(folder: Path) -> Iterator[Fault]:
    record = _record(folder)
    yield from _file_faults(folder, record, set(storage.FILES.values()))
    try:
        stored = storage.read(folder)
    except ResultsError as error:
        remedy = "" if "measure again" in str(error) else f": {_AGAIN}"
        raise ResultsError(f"{error}{remedy}") from error
    yield from _identity_faults(ROWS, record, "`reproduce --update` measures them again")
    yield from _model_faults(folder.parent.name, record)
    for name, column in (("model", stored.settings.model), ("task", stored.settings.task)):
        if set(column) != {record[name]}:
            yield Fault(
                f"the table is of {sorted(set(column))}, the record of {record[name]!r}: measure "
                "again"
            )
    policies, dtype = Policies(**record["policies"]), record["dtype"]
    if dtype not in BYTES:
        yield Fault(f"dtype {dtype!r} does not exist: measure again")
    suffix = policies.suffix + (f"@dtype={dtype}" if dtype != "float32" else "")
    if folder.name != f"{record['task']}{suffix}":
        yield Fault(
            f"the record is of {record['task']!r} with the conventions {suffix or 'by default'!r}, "
            f"the folder is called {folder.name!r}: rename it, or measure again"
        )
    yield from _task_faults(record, stored)
    yield from _environment_faults(record)


def _text_faults(folder: Path) -> Iterator[Fault]:
    record = records.read_record(folder)
    if "files" not in record:
        yield Fault("is unfinished: run the same request again, it goes on; or delete the folder")
        return
    yield from _file_faults(folder, record, None)
    yield from _identity_faults(TEXTS, record, "run the same request again")
    yield from _model_faults(folder.parent.parent.name, record)
    if "sweep" in record:
        yield from _sweep_faults(record, records.read_completions(folder))
    else:
        table = programs.read(folder)
        if "text" not in table or not table.text.map(lambda text: isinstance(text, str)).all():
            yield Fault("a reply has no text: delete the folder and draw again")
        if "log_p" in table and (table.log_p > _SLACK).any():
            yield Fault("a log-probability is above 0: delete the folder and draw again")
    yield from _environment_faults(record)


def _label_faults(folder: Path) -> Iterator[Fault]:
    """Unreadable labels, and labels of texts that are not there."""
    for path in sorted(folder.iterdir()):
        name, at, _ = path.stem.removeprefix("judged-").partition("@")
        if not at or not _is_plain(path, ".parquet"):
            yield Fault(f"{path.name} is not a file of labels: delete it")
            continue
        try:
            labels, record = verifiers.read(path)
            texts = folder.parent / TEXTS / name
            stored = pd.concat([pd.read_parquet(file) for file in sorted(texts.glob("*.parquet"))])
        except (ResultsError, OSError, ValueError) as error:
            yield Fault(f"{path.name}: labels or their texts cannot be read ({error})")
            continue
        yield from _identity_faults(LABELS, record, "delete it, labels are made anew")
        have = set(zip(stored.prompt_id, stored.text, strict=True))
        strange = set(zip(labels.prompt_id, labels.text, strict=True)) - have
        if strange:
            yield Fault(f"{path.name} labels {len(strange)} texts that are not stored: delete it")


def _kept_faults(kind: str, suffix: str, read: Callable, chapter: str) -> Callable:
    """The list of faults of a folder whose files carry their own records."""

    def faults(folder: Path) -> Iterator[Fault]:
        for path in sorted(folder.iterdir()):
            if not _is_plain(path, suffix):
                yield Fault(f"{path.name} is not a file of {folder.name}: delete it")
                continue
            _, record = read(path)
            yield from _identity_faults(kind, record, f"run {chapter} again")
            yield from _model_faults(folder.parent.name, record)

    return faults


_FAULTS = {
    TABLE: _table_faults,
    TEXTS: _text_faults,
    LABELS: _label_faults,
    LOGITS: _kept_faults(LOGITS, ".parquet", records.read_logits, "06_logit_shape"),
    STEPS: _kept_faults(STEPS, ".json", explorer.read, "03_oracle_cutoffs"),
    FRAMEWORK: _kept_faults(FRAMEWORK, ".parquet", formal_framework.read, "01_formal_framework"),
}


def _is_plain(path: Path, suffix: str) -> bool:
    plain = files.PLAIN_NAME.fullmatch(path.name)
    return bool(plain) and path.suffix == suffix and not path.is_symlink()


def _record(folder: Path) -> dict:
    path = folder / storage.RECORD
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


def _file_faults(folder: Path, record: dict, known: set[str] | None) -> Iterator[Fault]:
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
        elif entry.name != storage.RECORD and entry.name not in record["files"]:
            yield Fault(f"{entry.name} is not in the record: delete it")


def _identity_faults(kind: str, record: dict, remedy: str) -> Iterator[Fault]:
    """What should be a SHA-256 is one, and what is stored is of the convention of today."""
    for name in conventions.IDENTITY[kind]:
        if name.endswith("_sha256") and not _SHA256.fullmatch(str(record.get(name))):
            yield Fault(f"{name} is {record.get(name)!r}, not a SHA-256: measure again")
    if not conventions.is_current(kind, record):
        yield Fault(
            f"of convention {record.get('convention')!r} of {kind}, where this version computes "
            f"under {conventions.CURRENT[kind]}: {remedy}"
        )


def _model_faults(folder: str, record: dict) -> Iterator[Fault]:
    """The numbers are of the model whose folder they lie in, and of weights others can load."""
    name, revision = str(record["model"]), record.get("revision")
    key = _key(name)
    if folder not in (key, f"{key}@{revision}"):
        yield Fault(
            f"rows of {name!r} lie in the folder {folder!r}: they belong into {key!r}; move them"
        )
    if name in EMBEDDED:
        if record["weights_sha256"] != EMBEDDED[name].sha256:
            yield Fault(
                f"the weights are not those of {name} (SHA-256 "
                f"{record['weights_sha256'][:12]}…): measure again with the embedded file"
            )
    elif not loading.is_hub_id(name):
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
    if loading.is_hub_id(name):
        return loading.file_key(name.replace("/", "--"))
    path = Path(name)
    return loading.file_key(path.stem if path.suffix == ".gguf" else path.name)


def _task_faults(record: dict, stored: storage.Stored) -> Iterator[Fault]:
    name = str(record["task"])
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


def _environment_faults(record: dict) -> Iterator[Fault]:
    environment = record["environment"]
    missing = {"date", "python", "packages", "machine", "device", "commit"} - set(environment)
    if missing:
        yield Fault(f"the environment lacks {', '.join(sorted(missing))}: measure again")
    elif environment.get("dirty") or not _COMMIT.fullmatch(str(environment["commit"])):
        what = "measured with changes that no commit has: commit calib_utils and measure again"
        yield Fault(what, NOTE)


def _sweep_faults(record: dict, table: pd.DataFrame) -> Iterator[Fault]:
    sweep = sweep_of(record)
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
    if not table.path_ranks.map(lambda ranks: set(ranks) <= set(sweep.ranks)).all():
        yield Fault("a rank was forced that the sweep does not have: sweep again")

"""What is wrong with stored results, and what the weights give now.

Knows every kind of stored thing and how to ask for it again. `check` and `recompute_some` raise
nothing for what they find: every fault is a sentence with a remedy, in a table. No name in a record
is opened before it is known to be plain. Writes only where told to.
"""

import hashlib
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files
from calib_utils.book.resources import BYTES
from calib_utils.core.processors import parse_rule
from calib_utils.core.prompts import Policies
from calib_utils.core.tasks import OpenPrompt, get_task
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
from calib_utils.results.evaluation import Request, request_for
from calib_utils.results.storage import KEY
from calib_utils.studies import formal_framework

# Float32 forward passes differ in the fifth digit between machines and batch sizes.
TOLERANCE = 1e-4
# bfloat16 has eight bits, and kernels of two processors round logits apart: .017 of diversity and
# .047 nats of a loss seen between two machines.
HALF_TOLERANCE = 0.1
TEXT_TOLERANCE = 1e-3  # nats a token, in float32
_NUMBERS = list(formal_framework.NUMBERS)


# Computing again what is stored.


def stored_folders(results_dir: Path, model: str | None = None) -> list[Path]:
    """Every stored measurement, or one model's."""
    found = sorted(path.parent for path in Path(results_dir).glob(f"*/*/{storage.RECORD}"))
    return [folder for folder in found if model in (None, folder.parent.name)]


def stored_studies(results_dir: Path, model: str | None = None) -> list[Path]:
    """The kept studies of the formal framework, or one model's, by their tables of settings."""
    found = sorted(Path(results_dir).glob(f"*/{FRAMEWORK}/[!.]*.settings.parquet"))
    return [path for path in found if model in (None, path.parent.parent.name)]


def recompute(folder: Path, update: bool = False) -> pd.DataFrame:
    """Measures a stored folder's settings again from the weights.

    Args:
        update: replace the stored rows by the new ones.

    Returns:
        One row: model, task, settings, largest absolute difference per number, `same` within
        `tolerance_of` its record, and whether the stored convention is today's.
    """
    stored = storage.read(folder)
    with tempfile.TemporaryDirectory() as scratch:
        request = _request(folder, stored.record, scratch)
        request.tables(
            _settings_of(stored.settings),
            list(dict.fromkeys(stored.answers.temperature)),
            losses=not stored.losses.empty,
            frontier=not stored.frontier.empty,
        )
        again = storage.read(request.folder)
    gaps = _gaps(stored.settings, again.settings, KEY, _NUMBERS)
    gaps |= _gaps(stored.losses, again.losses, [*KEY, "repair", "step"], ["diversity_loss"])
    if update:
        storage.write(folder, again, again.record)
    return _row(folder.name, ROWS, stored.record, len(stored.settings), gaps)


def recompute_study(path: Path, update: bool = False) -> pd.DataFrame:
    """Measures a kept study, one of `stored_studies`, again; as `recompute`, without losses."""
    stored, record = formal_framework.read(path)
    model = load_model(loading.recorded_name(record), **_settings_of_model(record))
    with tempfile.TemporaryDirectory() as scratch:
        again = formal_framework.study(model, get_task(record["task"]), record["end"], scratch)
        if update:
            for new in (Path(scratch) / model.key / FRAMEWORK).iterdir():
                files.keep(path.with_name(new.name), new.read_bytes())
    gaps = _gaps(stored, again.numbers, KEY, _NUMBERS) | {"diversity_loss": np.nan}
    name = f"{FRAMEWORK}/{path.name.removesuffix('.settings.parquet')}"
    return _row(name, FRAMEWORK, record, len(stored), gaps)


def tolerance_of(record: dict) -> float:
    """How far numbers of the same weights may lie apart on two machines, by their number format."""
    return TOLERANCE if record["dtype"] == "float32" else HALF_TOLERANCE


def _row(task: str, kind: str, then: dict, settings: int, gaps: dict) -> pd.DataFrame:
    row = {
        "model": then["model"],
        "task": task,
        "settings": settings,
        **{f"max |Δ| {name}": value for name, value in gaps.items()},
        "same": np.nanmax(list(gaps.values())) <= tolerance_of(then),
        "convention is current": conventions.is_current(kind, then),
    }
    return pd.DataFrame([row])


def _gaps(old: pd.DataFrame, new: pd.DataFrame, key: list[str], names: list[str]) -> dict:
    """Largest absolute difference of some columns between the rows of `old` and those of the same
    key; infinite where only one of the two is defined."""
    both, gaps = old.merge(new, how="left", on=key, suffixes=("", "_new")), {}
    for name in names:
        one, other = both[name], both[f"{name}_new"]
        gap = (one - other).astype(float).abs().fillna(np.inf)
        gaps[name] = float(gap.where(one.notna() | other.notna(), 0.0).max()) if len(gap) else 0.0
    return gaps


def _request(folder: Path, record: dict, results_dir: str | None = None) -> Request:
    """The request that a record names."""
    try:
        name = loading.recorded_name(record)
        task, policies = record["task"], Policies(**record["policies"])
        settings = _settings_of_model(record)
    except (KeyError, TypeError) as error:
        raise ResultsError(
            f"{folder}: its record does not say what was measured ({error!r}): restore it, or "
            "delete the folder and measure again"
        ) from error
    return request_for(load_model(name, **settings), task, policies, results_dir=results_dir)


def _settings_of_model(record: dict) -> dict:
    return {"revision": record["revision"], "dtype": record["dtype"], "chat": record.get("chat")}


def _settings_of(table: pd.DataFrame) -> list:
    """The rules and temperatures of a settings table, in its order."""
    return [
        (parse_rule(name if np.isnan(number) else f"{name}={number!r}"), temperature)
        for name, number, temperature in table[KEY].itertuples(index=False)
    ]


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
    table, sweep = records.read_completions(folder), _sweep_of(record)
    table = table[table.position == 0]
    if table.empty:
        return 0, 0.0
    if model is None:
        model = load_model(loading.recorded_name(record), **_settings_of_model(record))
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


def _sweep_of(record: dict) -> Sweep:
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


# Looking at what is stored: each kind of thing by one list of faults.

ERROR, NOTE = "error", "note"
TABLE = "table"  # what a user calls rows
_SLACK = 1e-9
_SHA256, _COMMIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


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
        return min((fault.level for fault in self.faults), default="ok")  # in that alphabet


def check(folder: str | Path) -> list[Checked]:
    """Looks at everything below a results folder, a model's folder, or one stored measurement.

    Nothing at all is a fault as well.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "there is no such folder: give a results folder, by default data/results"
        return [Checked(root, "other", (Fault(what),))]
    what = "nothing is stored here: run `python -m calib_utils run --model NAME` first"
    return list(_walk(root.resolve())) or [Checked(root, "other", (Fault(what),))]


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


def recompute_some(
    found: list[Checked], n: int, seed: int | str = 0, longest: float = math.inf
) -> list[Checked]:
    """Computes some stored rows again, and scores some stored texts, where the model is at hand.

    A row costs a pass over its whole task, a text one over its tokens. What was at fault already
    is left out, and so are replies, which are stored without token ids, and texts in bfloat16.

    Args:
        n: rows, and as many texts, for each model, drawn over its folders.
        seed: of the draw; any text, such as a commit's hash.
        longest: tables whose record says more seconds than that are left out.

    Returns:
        The folders drawn from, each with a fault where the weights give something else, or a note
        where the model is not here.
    """
    places: dict[tuple[str, str], list[Path]] = {}
    for one in found:
        model = one.folder.parents[one.kind == TEXTS].name
        if one.verdict != ERROR and one.kind in (TABLE, TEXTS):
            record = records.read_record(one.folder, TEXTS if one.kind == TEXTS else ROWS)
            if one.kind == TABLE:
                wanted = record["seconds"] <= longest
            else:
                wanted = "sweep" in record and record["dtype"] == "float32"
            if wanted:
                places.setdefault((one.kind, model), []).append(one.folder)
    checked = []
    for (kind, model), folders in places.items():
        key = hashlib.sha256(f"{seed}/{kind}/{model}".encode()).digest()
        generator = np.random.default_rng(list(key))
        drawn = generator.choice(len(folders), size=n)
        for index, times in zip(*np.unique(drawn, return_counts=True), strict=True):
            faults = tuple(_recomputed(folders[index], kind, int(times), generator))
            checked.append(Checked(folders[index], kind, faults))
    return checked


def _recomputed(folder: Path, kind: str, n: int, generator: np.random.Generator) -> Iterator[Fault]:
    record = records.read_record(folder, TEXTS if kind == TEXTS else ROWS)
    if not _at_hand(record):
        what = f"not recomputed, {record['model']} is not here: fetch it and check again"
        yield Fault(what, NOTE)
        return
    try:
        if kind == TEXTS:
            most, (n, gap) = TEXT_TOLERANCE, rescore(folder, n, generator)
            what, unit = f"the log-probabilities of {n} texts differ", " nats a token"
            again = "delete the folder and sweep again"
        else:
            most, unit, again = (
                tolerance_of(record),
                "",
                "`reproduce --update` measures the table again",
            )
            table = storage.read(folder).settings
            rows = table.sample(min(n, len(table)), random_state=generator)
            request = _request(folder, record)
            new, now = request.tables(_settings_of(rows)).settings, request.identity()
            gap = max(_gaps(rows, new, KEY, _NUMBERS).values())
            if differs := [n for n in conventions.IDENTITY[ROWS] if record[n] != now[n]]:
                yield Fault(f"{', '.join(differs)} are not those of the record: measure again")
            what = f"{len(rows)} rows recomputed differ"
    except CalibUtilsError as error:
        yield Fault(f"cannot be recomputed: {error}")
        return
    if not gap <= most:
        yield Fault(f"{what} by up to {gap:.2g}{unit}, more than {most:g}: {again}")


def _at_hand(record: dict) -> bool:
    """Whether a model can be loaded without fetching it."""
    name = loading.recorded_name(record)
    if name in EMBEDDED:
        return weights.gguf_path(EMBEDDED[name]).is_file()
    if Path(name).exists():
        return True
    try:
        folder = weights.hub_folder(name, record["revision"], local_only=True)
    except CalibUtilsError:
        return False
    return any(folder.glob("*.safetensors"))


def _walk(folder: Path, in_model: bool = False) -> Iterator[Checked]:
    """Everything below a folder of models, of one model or of its texts, or one stored thing."""
    if (folder / storage.RECORD).is_file():
        yield _looked_at(folder)
        return
    below = [entry for entry in sorted(folder.iterdir()) if entry.name != files.LOCK]
    in_model |= folder.name == TEXTS or any(
        entry.name in conventions.FOLDERS or (entry / storage.RECORD).is_file() for entry in below
    )
    for entry in below:
        if fault := _stray(entry):
            yield Checked(entry, "other", (Fault(fault),))
        elif in_model and entry.name != TEXTS:
            yield _looked_at(entry)
        else:
            yield from _walk(entry, in_model=True)


def _stray(entry: Path) -> str:
    """What is wrong with an entry that is no folder of results; empty where it may be one."""
    if entry.is_symlink():
        return "is a link: put the folder itself there, since a link leads elsewhere in a clone"
    if entry.name.startswith("."):
        return "is what a killed run left: delete it"
    return "" if entry.is_dir() else "is not a results folder: delete it, or move it out"


def _looked_at(folder: Path) -> Checked:
    kind = TEXTS if folder.parent.name == TEXTS else folder.name
    kind = kind if kind in conventions.FOLDERS else TABLE
    faults = []
    try:
        if kind == TABLE:
            faults.extend(_table_faults(folder))
        elif kind == TEXTS:
            faults.extend(_text_faults(folder))
        else:
            faults.extend(_kept_faults(folder, kind))
    except CalibUtilsError as error:
        faults.append(Fault(str(error)))
    except Exception as error:  # a hostile record may hold anything
        what = f"cannot be read ({type(error).__name__}: {error}): restore it, or measure again"
        faults.append(Fault(what))
    return Checked(folder, kind, tuple(faults))


# What is wrong with one folder; each list may raise a CalibUtilsError where it cannot be read


def _table_faults(folder: Path) -> Iterator[Fault]:
    record = records.read_record(folder, ROWS)
    yield from _entry_faults(folder, record)
    stored = storage.read(folder)
    yield from _identity_faults(ROWS, record, "`reproduce --update` measures them again")
    yield from _model_faults(folder.parent.name, record)
    for name in ("model", "task"):
        if (of := set(stored.settings[name])) != {record[name]}:
            what = f"the table is of {sorted(of)}, the record of {record[name]!r}"
            yield Fault(f"{what}: measure again")
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


def _text_faults(folder: Path) -> Iterator[Fault]:
    record = records.read_record(folder)
    if "files" not in record:
        yield Fault("is unfinished: run the same request again, it goes on; or delete the folder")
        return
    yield from _entry_faults(folder, record)
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


def _sweep_faults(record: dict, table: pd.DataFrame) -> Iterator[Fault]:
    sweep = _sweep_of(record)
    trees = {(prompt.id, seed) for prompt, seed in sweep.trees}
    log_p = np.concatenate([table.log_p.to_numpy(), *table.path_log_p])
    lengths = [table[f"path_{name}"].map(len) for name in ("ranks", "ids", "log_p")]
    known = table.path_ranks.map(lambda ranks: set(ranks) <= set(sweep.ranks))
    if sweep.fingerprint() != record["sweep_sha256"]:
        yield Fault("the recorded sweep is not the one of its hash: sweep again")
    if set(zip(table.prompt_id, table.seed, strict=True)) != trees:
        yield Fault("the trees are not those of the recorded sweep: sweep again")
    if not (log_p <= _SLACK).all():
        yield Fault("a log-probability is above 0 or missing: sweep again")
    if any((length != table.depth).any() for length in lengths):
        yield Fault("a path has another number of tokens than its depth: sweep again")
    if not known.all():
        yield Fault("a rank was forced that the sweep does not have: sweep again")


# How to read a file that carries its own record, and the notebook that makes it anew.
_KEPT: dict[str, tuple[str, Callable, str]] = {
    LABELS: (".parquet", verifiers.read, "04_order_calibration"),
    LOGITS: (".parquet", records.read_logits, "06_logit_shape"),
    STEPS: (".json", explorer.read, "03_oracle_cutoffs"),
    FRAMEWORK: (".parquet", formal_framework.read, "01_formal_framework"),
}


def _kept_faults(folder: Path, kind: str) -> Iterator[Fault]:
    suffix, read, chapter = _KEPT[kind]
    for path in sorted(folder.iterdir()):
        if not files.PLAIN_NAME.fullmatch(path.name) or path.suffix != suffix or path.is_symlink():
            yield Fault(f"{path.name} is not a file of {kind}: delete it")
            continue
        try:
            table, record = read(path)
        except ResultsError as error:
            yield Fault(str(error))
            continue
        yield from _identity_faults(kind, record, f"delete {path.name} and run {chapter}")
        if kind != LABELS:
            yield from _model_faults(folder.parent.name, record)
            continue
        name = path.stem.removeprefix("judged-").partition("@")[0]
        try:
            texts = programs.read(folder.parent / TEXTS / name)
        except ResultsError as error:
            yield Fault(f"the texts of {path.name} cannot be read ({error}); or delete it")
            continue
        strange = set(zip(table.prompt_id, table.text, strict=True))
        if strange := strange - set(zip(texts.prompt_id, texts.text, strict=True)):
            yield Fault(f"{path.name} labels {len(strange)} texts that are not stored: delete it")


# What is the same for all kinds


def _entry_faults(folder: Path, record: dict) -> Iterator[Fault]:
    """The folder holds the files that the record names, and nothing else."""
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
    if folder not in (loading.with_chat(k, record.get("chat")) for k in (key, f"{key}@{revision}")):
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


def _environment_faults(record: dict) -> Iterator[Fault]:
    environment = record["environment"]
    missing = {"date", "python", "packages", "machine", "device", "commit"} - set(environment)
    if missing:
        yield Fault(f"the environment lacks {', '.join(sorted(missing))}: measure again")
    elif environment.get("dirty") or not _COMMIT.fullmatch(str(environment["commit"])):
        what = "measured with changes that no commit has: commit calib_utils and measure again"
        yield Fault(what, NOTE)

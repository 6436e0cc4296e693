"""What is wrong with stored results, and what the weights give now.

Knows every kind of stored thing and how to ask for it again. `check` and `recompute_some` raise
nothing for what they find: every fault is a sentence with a remedy, in a table. No name in a record
is opened before it is known to be plain. Writes only where told to.
"""

import hashlib
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files
from calib_utils.core.processors import parse_rule
from calib_utils.core.prompts import Policies, exact_text
from calib_utils.core.rules import NoCutoff
from calib_utils.core.tasks import OpenPrompt, get_task
from calib_utils.errors import CalibUtilsError, InvalidRequestError, ResultsError, UnknownNameError
from calib_utils.figures import explorer
from calib_utils.models import loading, weights
from calib_utils.models.generation import Continuations, start_of
from calib_utils.models.loading import Model, load_model
from calib_utils.models.registry import EMBEDDED
from calib_utils.openended import programs, verifiers
from calib_utils.openended.prompts import VERIFIERS, open_prompts
from calib_utils.openended.sweeps import Sweep
from calib_utils.results import conventions, draws, records, storage
from calib_utils.results.conventions import (
    DRAWS,
    FRAMEWORK,
    LABELS,
    LEVERS,
    LOGITS,
    ORIGINS,
    ROWS,
    STEPS,
    TEXTS,
)
from calib_utils.results.evaluation import keys, request_for
from calib_utils.results.storage import KEY
from calib_utils.studies import formal_framework, levers, logit_shape, origins

TEXT_TOLERANCE = 1e-3  # nats a token, in float32
_ROWS_AGAIN = "`reproduce --update` measures them again"
_BY_SETTING = ("settings", "losses")
_HAIR = 5e-5  # of a temperature: ln p moves by it times the spread of logits, some 10 nats


# Computing again what is stored.


def stored(results_dir: Path, model: str | None = None, kind: str = ROWS) -> list[Path]:
    """Everything stored of a kind, or one model's: folders of rows and texts, files of the rest.

    Of a study of the formal framework, its table of settings.
    """
    found = sorted(Path(results_dir).glob(f"{model or '*'}/{_KINDS[kind].files}"))
    own = [path for path in found if not path.name.startswith(".")]
    return [path.parent for path in own] if kind in (ROWS, TEXTS) else own


def reproduce(
    results_dir: Path, model: str | None = None, update: bool = False
) -> Iterator[pd.DataFrame]:
    """Everything stored, or all of one model, computed again: a row each, as `recompute` gives it.

    Left out are replies without token ids, and labels that a model gave.
    """
    for kind in _KINDS:
        for path in stored(results_dir, model, kind):
            if _can_be_again(kind, _KINDS[kind].read(path)[1]):
                yield recompute(path, update)


def recompute(
    path: Path,
    update: bool = False,
    n: int = 20,
    generator: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Computes again from the weights what is stored at a path, one of `stored`.

    Args:
        update: replace stored rows, or a study of the formal framework, by what is found.
        n: texts that are scored again, drawn with `generator`, and labels that are judged again.

    Returns:
        One row: model, task, rows, the largest difference in nats (`storage.differences`; of texts
        a token, of labels their number) and what it is of, the tolerance, `same` within it, and
        whether the stored convention is today's.
    """
    kind, generator = _kind_of(path), generator or np.random.default_rng(0)
    record, most = _KINDS[kind].read(path)[1], _KINDS[kind].tolerance
    n_rows, gaps = _KINDS[kind].again(path, record, update=update, n=n, generator=generator)
    of = max(gaps, key=gaps.get)
    most = most if kind in _TEXTUAL else max(most, storage.tolerance_of(record))
    row = {
        "model": path.parent.parent.name if kind == LABELS else record["model"],
        "task": path.name if kind == ROWS else f"{kind}/{path.name}",
        "rows": n_rows,
        "largest difference": gaps[of],
        "of": of,
        "tolerance": most,
        "same": gaps[of] <= most,
        "convention is current": conventions.is_current(kind, record),
    }
    return pd.DataFrame([row])


def _kind_of(path: Path) -> str:
    """Of a folder of rows or texts, a file of another kind, or the folder of such files."""
    names = (path.parent.name, path.name)
    return next((name for name in names if name in conventions.FOLDERS), ROWS)


# Each gives how many rows were computed, and the largest difference in each of what they hold.


def _rows_again(folder: Path, record: dict, update: bool, **_) -> tuple[int, dict]:
    found = storage.read(folder)
    settings, losses = _settings_of(found.settings), not found.losses.empty
    with tempfile.TemporaryDirectory() as scratch:
        request = request_for(
            _model(folder, record), record["task"], results_dir=scratch, **record["policies"]
        )
        temperatures = list(found.answers.temperature.unique())
        request.tables(settings, temperatures, losses=losses, frontier=not found.frontier.empty)
        again = storage.read(request.folder)
        # Where answers, or losses of some settings alone, are stored, more is measured than that.
        one, other = ({name: getattr(t, name) for name in storage.ROW_KEYS} for t in (found, again))
        other["losses"] = other["losses"].merge(one["losses"][KEY].drop_duplicates(), on=KEY)
        other["settings"] = keys(settings).merge(other["settings"], on=KEY)
        if record["dtype"] != "float32":  # what a cutoff keeps there, rounding decides
            for tables, name in itertools.product((one, other), _BY_SETTING):
                tables[name] = tables[name][tables[name].rule == "none"]

        def at(chosen: list) -> dict:
            return vars(request.tables(chosen, losses=losses))

        other = _beside_the_edge(at, one, other, storage.tolerance_of(record))
    if not found.frontier.empty:
        one["frontier"], other["frontier"] = _at_same_recalls(one["frontier"], other["frontier"])
    gaps = _gaps(one, other, storage.ROW_KEYS)
    gaps |= {n: np.inf for n in conventions.IDENTITY[ROWS] if record[n] != again.record[n]}
    if update:
        storage.write(folder, again, again.record)
    return len(found.settings), gaps


def _beside_the_edge(measured: Callable[[list], dict], then: dict, now: dict, most: float) -> dict:
    """`now`, and for settings further than `most` from `then` the nearest to be had within a hair.

    A cutoff that ends among hundreds of tokens of nearly equal probability keeps one more or less
    by the last digits. A temperature `_HAIR` higher or lower moves the edge past them, and ln p
    of what is kept in either case by less than the tolerance; so a number may lie between these.
    """
    names = [name for name in _BY_SETTING if name in then and not then[name].empty]
    if not names:
        return now
    gaps = [storage.row_differences(then[n], now[n], storage.ROW_KEYS[n]) for n in names]
    rows = pd.concat([g.index[g.max(axis=1) > most].to_frame()[KEY] for g in gaps])
    if (rows := rows.drop_duplicates(ignore_index=True)).empty:
        return now
    ends = []
    for move in (-_HAIR, _HAIR):
        back = {temperature * (1 + move): temperature for temperature in rows.temperature}
        found = measured(_settings_of(rows.assign(temperature=rows.temperature * (1 + move))))
        ends.append({n: found[n].assign(temperature=found[n].temperature.map(back)) for n in names})
    nearest = dict(now)
    for name in names:
        old, new, low, high = (
            t[name].set_index(storage.ROW_KEYS[name]) for t in (then, now, *ends)
        )
        columns = new.select_dtypes(float).columns
        old, *three = (t.reindex(new.index)[columns].to_numpy() for t in (old, new, low, high))
        between = np.clip(old, np.fmin.reduce(three), np.fmax.reduce(three))
        new[columns] = np.where(np.isnan(between), three[0], between)
        nearest[name] = new.reset_index()
    return nearest


def _gaps(one: dict, other: dict, names: Mapping) -> dict[str, float]:
    """`storage.differences` of tables; `names` has what names the rows of each."""
    return {
        f"{name}, {column}": gap
        for name, key in names.items()
        for column, gap in storage.differences(one[name], other[name], key).items()
    }


def _at_same_recalls(*frontiers: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Frontiers by their precision wherever one has a corner: nearly equal ones differ in those."""
    recalls = np.unique(np.concatenate([points.sequence_recall for points in frontiers]))
    for points in frontiers:
        precision = np.interp(recalls, points.sequence_recall, points.sequence_precision)
        yield pd.DataFrame({"sequence_precision": precision, "sequence_recall": recalls})


def _study_again(path: Path, record: dict, update: bool, **_) -> tuple[int, dict]:
    request = request_for(_model(path, record), record["task"], end=record["end"])
    rows = path.name.removesuffix(".settings.parquet")
    old = formal_framework.paths_of(path.parent.parent / rows)
    with tempfile.TemporaryDirectory() as scratch:
        formal_framework.study(request.model, request.task, record["end"], scratch)
        new = formal_framework.paths_of(Path(scratch) / request.model.key / rows)
        one, other = (
            {name: formal_framework.read(place)[0] for name, place in places.items()}
            for places in (old, new)
        )
        if update:
            for name, place in old.items():
                files.keep(place, new[name].read_bytes())

    def at(settings: list) -> dict:
        return formal_framework.measured(request, [*settings, (NoCutoff(), 1.0)])

    other = _beside_the_edge(at, one, other, storage.tolerance_of(record))
    return len(one["settings"]), _gaps(one, other, {"settings": KEY, "tokens": []})


def _levers_again(path: Path, record: dict, **_) -> tuple[int, dict]:
    table = levers.read(path)[0]
    again = levers.answers_of(_model(path, record), record["task"], record["end"])
    return len(table), storage.differences(table, again, ["variant", "temperature", "answer"])


def _draws_again(path: Path, record: dict, **_) -> tuple[int, dict]:
    table = draws.read(path)[0]
    request = request_for(_model(path, record), record["task"], **record["policies"])
    again = draws.table_of(request, _settings_of(table.drop_duplicates(KEY)))
    # Far down the ranking the last digits decide what is drawn: only valid answers are compared.
    answers, anew = (one.text.where(one.valid, "") for one in (table, again))
    return len(table), {"answers": float((answers != anew).mean())}


def _logits_again(path: Path, record: dict, **_) -> tuple[int, dict]:
    curves = records.read_logits(path)[0]
    asked = tuple(query for query in logit_shape.QUERIES if query.label in curves)
    again = logit_shape.logit_curves(_model(path, record), asked)
    same = list(curves) == list(again) and len(curves) == len(again)
    return len(curves), {"logits": (curves - again).abs().to_numpy().max() if same else np.inf}


def _steps_again(path: Path, record: dict, **_) -> tuple[int, dict]:
    steps, task = explorer.read(path)[0], record["task"]
    with tempfile.TemporaryDirectory() as scratch:
        again = explorer.keep(_model(path, record), [task], record["end"], scratch).get(task, ())
    same = len(steps) == len(again) and all(map(explorer.alike, steps, again))
    return len(steps), {"steps": 0.0 if same else np.inf}


def _texts_again(folder: Path, record: dict, n: int, generator, **_) -> tuple[int, dict]:
    n, gap = rescore(folder, n, generator)
    return n, {"log_p": gap}


def _labels_again(path: Path, record: dict, n: int, generator, **_) -> tuple[int, dict]:
    table = verifiers.read(path)[0]
    chosen = _items(path, table, record)
    chosen = chosen.sample(min(n, len(chosen)), random_state=generator)
    again = _judge_of(record).judge(chosen[list(verifiers.ITEM_COLUMNS)])
    names = [*verifiers.CRITERIA, "valid"]  # the reason may name another entry of a list
    old = table.loc[chosen.index, names].astype(object)
    new = again[names].astype(object).set_index(old.index)
    wrong = ~((old == new) | (old.isna() & new.isna())).all(axis=1)
    return len(chosen), {"labels": int(wrong.sum())}


@dataclass(frozen=True)
class _Kind:
    """How one kind of stored thing is found, read, computed again, and got anew."""

    files: str  # below a model's folder
    read: Callable[[Path], tuple]  # what is stored, and its record
    again: Callable[..., tuple[int, dict]]
    anew: str  # in words; {} is its name
    # Of texts nats a token, of labels their number. Of the others in float32, where that of its
    # numbers is less: of logits as they are, and the share of draws that may be another answer.
    tolerance: float = 0


def _run(notebook: str) -> str:
    return f"delete {{}} and run {notebook}"


_KINDS = {
    ROWS: _Kind(
        f"*/{storage.RECORD}",
        lambda folder: (None, records.read_record(folder, ROWS)),
        _rows_again,
        _ROWS_AGAIN,
    ),
    FRAMEWORK: _Kind(
        f"{FRAMEWORK}/*.settings.parquet",
        formal_framework.read,
        _study_again,
        _run("01_formal_framework"),
    ),
    LOGITS: _Kind(
        f"{LOGITS}/*.parquet", records.read_logits, _logits_again, _run("06_logit_shape"), 0.01
    ),
    STEPS: _Kind(f"{STEPS}/*.json", explorer.read, _steps_again, _run("03_oracle_cutoffs"), 0.01),
    LEVERS: _Kind(f"{LEVERS}/*.parquet", levers.read, _levers_again, _run("08_levers")),
    DRAWS: _Kind(f"{DRAWS}/*.parquet", draws.read, _draws_again, _run("03_oracle_cutoffs"), 0.02),
    TEXTS: _Kind(
        f"{TEXTS}/*/{storage.RECORD}",
        lambda folder: (None, records.read_record(folder, TEXTS)),
        _texts_again,
        "delete the folder and run the same request again",
        TEXT_TOLERANCE,
    ),
    LABELS: _Kind(
        f"{LABELS}/*.parquet", verifiers.read, _labels_again, _run("04_order_calibration")
    ),
}
_TEXTUAL = (TEXTS, LABELS)  # of which some are looked at, one by one


def _model(path: Path, record: Mapping) -> Model:
    """The model that a record names."""
    try:
        name = loading.recorded_name(record)
        settings = {n: record[n] for n in ("revision", "dtype")} | {"chat": record.get("chat")}
    except KeyError as error:
        raise ResultsError(
            f"{path}: its record does not say what was measured ({error!r}): restore it, or "
            "delete it and measure again"
        ) from error
    return load_model(name, **settings)


def _can_be_again(kind: str, record: Mapping) -> bool:
    if kind == LABELS:
        return _judge_of(record) is not None
    return kind != TEXTS or ({"sweep", "files"} <= set(record) and record.get("dtype") == "float32")


def _judge_of(record: Mapping):
    """The program that gave labels, where it is here in that version; None for a model."""
    named = set(record["judge"].get("verifiers", ())) & set(VERIFIERS)
    for judge in (verifiers.ExactJudge(named), verifiers.LanguageChecker()):
        if record["judge"] == json.loads(json.dumps({"name": judge.name, **judge.identity})):
            return judge
    return None


def _items(path: Path, table: pd.DataFrame, record: Mapping) -> pd.DataFrame:
    """What was labelled, with the prompts; ResultsError where it is not what is stored."""
    place = path.parent.parent / TEXTS / path.stem.removeprefix("judged-").partition("@")[0]
    texts, asked = records.read_completions(place), records.read_record(place).get("sweep")
    prompts = {prompt.id: prompt.prompt for prompt in open_prompts()}
    prompts |= {one["id"]: one["prompt"] for one in asked["prompts"]} if asked else {}
    items = table[["prompt_id", "text", "ended"]].assign(prompt=table.prompt_id.map(prompts))
    listed = items[["prompt_id", "prompt", "text", "ended"]].astype(object).values.tolist()
    unknown = set(zip(table.prompt_id, table.text, strict=True))
    unknown -= set(zip(texts.prompt_id, texts.text, strict=True))
    if unknown or conventions.digest(listed) != record["texts_sha256"]:
        raise ResultsError(
            f"{path.name} labels texts that are not stored, or not those of its hash: delete it"
        )
    return items


def _settings_of(table: pd.DataFrame) -> list:
    """The rules and temperatures of a settings table, in its order."""
    return [
        (parse_rule(name if np.isnan(number) else f"{name}={number!r}"), temperature)
        for name, number, temperature in table[KEY].itertuples(index=False)
    ]


def rescore(
    folder: Path, n: int, generator: np.random.Generator, model: Model | None = None
) -> tuple[int, float]:
    """Scores at most `n` texts of one tree of a stored sweep by their token ids; draws none again.

    None is scored after a written opening: its text is stored and its tokens are not, and a model
    may write a text in other tokens than its tokenizer would.

    Args:
        model: by default the one that the record names.

    Returns:
        How many were scored, and the largest difference of a stored log-probability, in nats a
        token, of a forced token or a whole completion; infinite where tokens spell another text.

    Raises:
        ResultsError: texts of no sweep, which come without their token ids.
    """
    record = records.read_record(folder)
    if "sweep" not in record:
        raise ResultsError(f"{folder} holds replies without their token ids: use `check`")
    table, sweep = records.read_completions(folder), _sweep_of(record)
    table = table[table.position == 0]
    if table.empty:
        return 0, 0.0
    model = model or _model(folder, record)
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
        ids = list(row.token_ids)
        shown = exact_text(model.tokenizer, ids[: len(ids) - row.ended])
        same = shown == row.text and ids[: row.depth] == list(row.path_ids)
        largest = max(largest, gap, forced.max(initial=0.0), 0.0 if same else np.inf)
    return len(table), float(largest)


def _sweep_of(record: Mapping) -> Sweep:
    """The sweep that the record of stored texts describes."""
    asked = dict(record["sweep"])
    prompts = [OpenPrompt(**prompt) for prompt in asked.pop("prompts")]
    return Sweep(prompts, ranks=asked.pop("candidates"), **asked)


# Looking at what is stored: each kind of thing by one list of faults.

ERROR, NOTE = "error", "note"
TABLE = "table"  # what a user calls rows
_SLACK = 1e-9
_RESTORE = "restore the record, or measure again"
_ENVIRONMENT: dict[str, type] = {"packages": dict}
_ENVIRONMENT |= dict.fromkeys(("date", "python", "machine", "device", "commit"), str)
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
    kind: str  # "table", a name of `conventions.FOLDERS`, "origins", or "other"
    faults: tuple[Fault, ...]

    @property
    def verdict(self) -> str:
        """`ok`, `note` or `error`, whichever is worst."""
        return min((fault.level for fault in self.faults), default="ok")  # in that alphabet


def check(folder: str | Path) -> list[Checked]:
    """Looks at everything below a results folder, a model's folder, or one stored measurement.

    Beside a results folder also at the models trained for chapter 09. Nothing is a fault as well.
    """
    root = Path(folder)
    if not os.path.isdir(root):  # also of a name that is too long for one
        what = "there is no such folder: give a results folder, by default data/results"
        return [Checked(root, "other", (Fault(what),))]
    what = "nothing is stored here: run `python -m calib_utils run --model NAME` first"
    found = list(_walk(root := root.resolve())) or [Checked(root, "other", (Fault(what),))]
    try:
        records.own_models(root)
    except InvalidRequestError as error:
        found.append(Checked(root / records.OWN_MODELS, "other", (Fault(str(error)),)))
    trained = root.parent / origins.PLACE
    if any(trained.glob("seed-*")) or (trained / origins.RECORD).is_file():
        found.append(_looked_at(trained, ORIGINS))
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


def recompute_some(
    found: list[Checked], n: int, seed: int | str = 0, longest: float = math.inf
) -> list[Checked]:
    """Computes some stored tables again, each whole, and scores some stored texts.

    Left out are what was at fault already, replies, which are stored without token ids, texts in
    half precision, and the models trained for chapter 09, which take minutes each.

    Args:
        n: tables, and as many texts, for each model, drawn over its folders.
        seed: of the draw; any text, such as a commit's hash.
        longest: tables whose record says more seconds than that are left out.

    Returns:
        What was drawn, with a fault where the weights give something else, or a note where the
        model is not here.
    """
    places: dict[tuple[str, str], list[Path]] = {}
    for one in found:
        if one.verdict == ERROR or one.kind == ORIGINS:
            continue
        model, kind = one.folder.parents[one.kind == TEXTS], _kind_of(one.folder)
        own = [one.folder] if kind in (ROWS, TEXTS) else stored(model.parent, model.name, kind)
        for path in own:
            record = _KINDS[kind].read(path)[1]
            if record.get("seconds", 0) <= longest and _can_be_again(kind, record):
                drawn_as = TEXTS if kind in _TEXTUAL else TABLE
                places.setdefault((drawn_as, model.name), []).append(path)
    checked = []
    for (kind, model), own in places.items():
        key = hashlib.sha256(f"{seed}/{kind}/{model}".encode()).digest()
        generator = np.random.default_rng(list(key))
        drawn = generator.permutation(len(own))[:n]
        if kind == TEXTS:  # scored one by one
            drawn = generator.integers(len(own), size=min(n, 10_000))
        for index, times in zip(*np.unique(drawn, return_counts=True), strict=True):
            faults = tuple(_recomputed(own[index], int(times), generator))
            checked.append(Checked(own[index], kind, faults))
    return checked


def _recomputed(path: Path, n: int, generator: np.random.Generator) -> Iterator[Fault]:
    kind = _kind_of(path)
    record = _KINDS[kind].read(path)[1]
    if kind != LABELS and not _at_hand(record):
        what = f"not recomputed, {record['model']} is not here: fetch it and check again"
        yield Fault(what, NOTE)
        return
    try:
        row = recompute(path, n=n, generator=generator).iloc[0]
    except CalibUtilsError as error:
        yield Fault(f"cannot be recomputed: {error}")
        return
    if not row.same:
        gap, most = f"{row['largest difference']:.2g}", f"{row.tolerance:g}"
        anew = _KINDS[kind].anew.format(path.name)
        yield Fault(f"{row.of}: computed again, {gap} apart, more than {most}: {anew}")


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
    own = folder / records.OWN_MODELS
    if not in_model and own.is_file() and not own.is_symlink():
        below.remove(own)
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


def _looked_at(folder: Path, kind: str = "") -> Checked:
    name = TEXTS if folder.parent.name == TEXTS else folder.name
    kind = kind or (name if name in conventions.FOLDERS else TABLE)
    look = {TABLE: _table_faults, TEXTS: _text_faults, ORIGINS: _trained_faults}
    faults = []
    try:
        faults.extend(look.get(kind, _kept_faults)(folder))
    except CalibUtilsError as error:
        faults.append(Fault(str(error)))
    except Exception as error:  # a hostile record may hold anything
        what = f"cannot be read ({type(error).__name__}: {error}): restore it, or measure again"
        faults.append(Fault(what))
    return Checked(folder, kind, tuple(faults))


# What is wrong with one folder; each list may raise a CalibUtilsError where it cannot be read


def _table_faults(folder: Path) -> Iterator[Fault]:
    record = records.read_record(folder, ROWS)
    yield from _folder_faults(folder, ROWS, record)
    stored = storage.read(folder)
    for name in ("model", "task"):
        if (of := set(stored.settings[name])) != {record[name]}:
            what = f"the table is of {sorted(of)}, the record of {record[name]!r}"
            yield Fault(f"{what}: measure again")
    policies, dtype = Policies(**record["policies"]), record["dtype"]
    if dtype not in storage.TOLERANCE:
        yield Fault(f"dtype {dtype!r} does not exist: measure again")
    _settings_of(stored.settings)  # names of rules that do not exist raise
    if (study := formal_framework.paths_of(folder)["settings"]).is_file():
        columns = [*KEY, *storage.NUMBERS]
        kept, own = formal_framework.read(study)[0][columns], stored.settings[columns]
        both = kept[KEY].merge(own[KEY], on=KEY)
        for name, gap in storage.differences(kept.merge(both), own.merge(both), KEY).items():
            if gap > storage.tolerance_of(record):
                yield Fault(
                    f"{name} is {gap:.2g} nats from that in {study.name}: {_ROWS_AGAIN}, or delete "
                    "that and run 01_formal_framework"
                )
    suffix = policies.suffix + (f"@dtype={dtype}" if dtype != "float32" else "")
    if folder.name != f"{record['task']}{suffix}":
        yield Fault(
            f"the record is of {record['task']!r} with the conventions {suffix or 'by default'!r}, "
            f"the folder is called {folder.name!r}: rename it, or measure again"
        )
    yield from _task_faults(record, stored)


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
    yield from _folder_faults(folder, TEXTS, record)
    table = records.read_completions(folder)
    if "sweep" in record:
        yield from _sweep_faults(record, table)
        return
    if "text" not in table or not table.text.map(lambda text: isinstance(text, str)).all():
        yield Fault("a reply has no text: delete the folder and draw again")
    if "outcome" in table:
        passed = table.outcome == programs.PASSED
        if (passed != (table.n_passed == table.n_tests)).any():
            yield Fault("a program passed with a failed test, or the reverse: draw again")
    if "log_p" in table and (table.log_p > _SLACK).any():
        yield Fault("a log-probability is above 0: delete the folder and draw again")


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
    for depth in range(sweep.depth):
        rows = table[table.depth > depth]
        rows = rows.assign(
            before=[tuple(path[:depth]) for path in rows.path_ids],
            rank=[path[depth] for path in rows.path_ranks],
            step=[path[depth] for path in rows.path_log_p],
        ).sort_values("rank")
        rises = rows.groupby(["prompt_id", "seed", "position", "before"]).step.diff()
        if (rises > TEXT_TOLERANCE).any():
            yield Fault("a token of a lower rank is said to be more probable: sweep again")


def _kept_faults(folder: Path) -> Iterator[Fault]:
    kept = _KINDS[kind := folder.name]
    for path in sorted(folder.iterdir()):
        plain = files.PLAIN_NAME.fullmatch(path.name) and not path.is_symlink()
        if not plain or not path.is_file() or path.suffix != Path(kept.files).suffix:
            yield Fault(f"{path.name} is not a file of {kind}: delete it")
            continue
        try:
            table, record = kept.read(path)
            anew = kept.anew.format(path.name)
            yield from _identity_faults(kind, record, anew)
            if kind == LABELS:
                wrong = _label_faults(path, table, record)
            else:
                yield from _model_faults(folder.parent.name, record)
                wrong = _study_faults(path, table, record) if kind == FRAMEWORK else ()
            yield from (Fault(f"{path.name} {what}: {anew}") for what in wrong)
        except ResultsError as error:
            yield Fault(str(error))


def _trained_faults(folder: Path) -> Iterator[Fault]:
    there = [seed for seed in origins.SEEDS if (folder / f"seed-{seed}").is_dir()]
    if len(there) < len(origins.SEEDS):
        missing = sorted({*origins.SEEDS} - {*there})
        yield Fault(f"seeds {missing} are not trained: run 09_origins, which goes on", NOTE)
    if there:
        origins.stored(folder, there)  # raises what is wrong


def _study_faults(path: Path, table: pd.DataFrame, record: Mapping) -> Iterator[str]:
    rows, task = path.name.split(".")[0], record["task"]
    name = formal_framework.paths_of(path.parent.parent / rows)
    known = task in formal_framework.TASKS and task == rows.partition("@")[0]
    if not known or path not in name.values():
        yield "is no table of a study of one of its tasks"
    elif path == name["tokens"]:
        kinds = {"rank": int, **dict.fromkeys(("gap", "sorted_gap", "log_p"), float)}
        if wrong := records.wrong_columns(table, kinds):
            yield f"has {wrong}"
    else:
        factors = [name for name in table if re.fullmatch(r"(alpha|beta)_\d+", name)]
        kinds = {**dict.fromkeys([*KEY, *storage.NUMBERS, *factors], float), "rule": str}
        if wrong := records.wrong_columns(table, kinds):
            yield f"has {wrong}"
        elif not table[KEY].equals(keys(formal_framework.settings())):
            yield "has not the settings of a study"
        else:
            tolerance = storage.tolerance_of(record)
            counted = table.assign(n_answers=len(get_task(task).answers))
            yield from storage.setting_faults(counted, record)
            # Thm. E.1: the factors of the steps make precision and recall.
            for name, part in (("sequence_precision", "alpha_"), ("sequence_recall", "beta_")):
                product = table.filter(like=part).prod(axis=1).to_frame(name)
                if storage.differences(product, table[[name]], [])[name] > tolerance:
                    yield f"has factors that do not make its {name}"


def _label_faults(path: Path, table: pd.DataFrame, record: Mapping) -> Iterator[str]:
    """Other texts than are stored, and labels that the lists, which are quick, do not give."""
    if list(table) != verifiers.COLUMNS:
        yield f"has the columns {list(table)}"
        return
    _items(path, table, record)
    if record["judge"]["name"] == verifiers.ExactJudge.name and _judge_of(record):
        row = recompute(path, n=len(table)).iloc[0]
        if not row.same:
            yield f"has {row['largest difference']} labels that the lists do not give"


# What is the same for all kinds


def _folder_faults(folder: Path, kind: str, record: Mapping) -> Iterator[Fault]:
    """Of rows and texts: files that the record does not name, its identity, model, environment."""
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            yield Fault(f"{entry.name} is a link: put the file itself there")
        elif entry.name != storage.RECORD and entry.name not in record["files"]:
            yield Fault(f"{entry.name} is not in the record: delete it")
    yield from _identity_faults(kind, record, _KINDS[kind].anew)
    yield from _model_faults(folder.parents[kind == TEXTS].name, record)
    environment = record["environment"]
    if not isinstance(environment, dict):
        yield Fault(f"the environment is {environment!r}, not fields with their values: {_RESTORE}")
        return
    for name, type_ in _ENVIRONMENT.items():
        if name not in environment:
            yield Fault(f"the environment lacks {name}: measure again")
        elif not isinstance(value := environment[name], type_):
            yield Fault(f"{name} of the environment is {value!r}, no {type_.__name__}: {_RESTORE}")


def _identity_faults(kind: str, record: dict, remedy: str) -> Iterator[Fault]:
    """What should be a SHA-256 is one, and what is stored is of the convention of today."""
    for name in conventions.IDENTITY[kind]:
        if name.endswith("_sha256") and not _SHA256.fullmatch(str(record.get(name))):
            yield Fault(f"{name} is {record.get(name)!r}, not a SHA-256: measure again")
    if not (isinstance(took := record.get("seconds", 0), int | float) and 0 <= took < math.inf):
        yield Fault(f"it took {took!r} seconds, which cannot be: measure again")
    if not isinstance(revision := record.get("revision"), str | None):
        yield Fault(f"revision is {revision!r}, neither a commit nor none: {_RESTORE}")
    if not conventions.is_current(kind, record):
        yield Fault(
            f"of convention {record.get('convention')!r} of {kind}, where this version computes "
            f"under {conventions.CURRENT[kind]}: {remedy}"
        )


def _model_faults(folder: str, record: dict) -> Iterator[Fault]:
    """The numbers are of the model whose folder they lie in, and of weights others can load."""
    name, revision = str(record["model"]), record.get("revision")
    key = loading.key_of(name)
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

"""Recomputing stored numbers from the weights, and what differs from the committed ones.

Knows stored results and how to ask for them again. Writes only when told to.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import completions, conventions, files, framework_study, results
from calib_utils.errors import ResultsError
from calib_utils.evaluation import request_for
from calib_utils.generation import Continuations
from calib_utils.models import Model, load_model
from calib_utils.parsing import parse_rule
from calib_utils.prompts import Policies
from calib_utils.schema import KEY
from calib_utils.starts import start_of
from calib_utils.sweeps import Sweep
from calib_utils.tasks import OpenPrompt, Task, get_task

# Float32 forward passes differ in the fifth digit between machines and batch sizes.
TOLERANCE = 1e-4
TEXT_TOLERANCE = 1e-3  # nats a token, in float32
_NUMBERS = list(framework_study.NUMBERS)


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
    stored = results.read(folder)
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
        again = results.read(request.folder)
        gaps = _gaps(stored.settings, again.settings, KEY, _NUMBERS)
        gaps |= _gaps(stored.losses, again.losses, [*KEY, "repair", "step"], ["diversity_loss"])
        if update:
            results.write(folder, again, again.record)
    return _row(folder.name, conventions.ROWS, record, len(stored.settings), gaps)


def stored_studies(results_dir: Path, model: str | None = None) -> list[Path]:
    """The kept studies of the formal framework, or one model's, by their tables of settings."""
    found = sorted(Path(results_dir).glob(f"*/{framework_study.FOLDER}/[!.]*.settings.parquet"))
    return [path for path in found if model in (None, path.parent.parent.name)]


def recompute_study(path: Path, update: bool = False) -> pd.DataFrame:
    """Measures a kept study again from the weights.

    Args:
        path: one of `stored_studies`.
        update: replace the kept study by the new one.

    Returns:
        One row, as of `recompute`; a study holds no losses.
    """
    stored, record = framework_study.read(path)
    model = load_model(record["model"], revision=record["revision"], dtype=record["dtype"])
    task = get_task(record["task"])
    with tempfile.TemporaryDirectory() as scratch:
        again = framework_study.study(model, task, record["end"], scratch)
        if update:
            for new in (Path(scratch) / model.key / framework_study.FOLDER).iterdir():
                files.keep(path.with_name(new.name), new.read_bytes())
    gaps = _gaps(stored, again.numbers, KEY, _NUMBERS) | {"diversity_loss": np.nan}
    name = f"{framework_study.FOLDER}/{path.name.removesuffix('.settings.parquet')}"
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
    record = results.read(folder).record
    model, task, policies = _asked(folder, record)
    with tempfile.TemporaryDirectory() as scratch:
        request = request_for(model, task, policies, results_dir=scratch)
        again = request.tables(_settings_of(rows)).settings
        new = results.read(request.folder).record
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
    record = completions.read_record(folder)
    if "sweep" not in record:
        raise ResultsError(
            f"{folder} holds replies without their token ids, which cannot be scored: look at them "
            "with `check`"
        )
    table, sweep = completions.read_completions(folder), sweep_of(record)
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

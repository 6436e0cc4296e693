"""Which models have results here, and the command that would measure the others.

Knows the panel's table and folder names. Reads no numbers: a row says that there are tables, not
what is in them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from calib_utils import paths
from calib_utils.book.resources import size_of_checkpoint
from calib_utils.errors import (
    CalibUtilsError,
    InvalidRequestError,
    NoCheckoutError,
    NotebookParameterError,
    UnknownNameError,
)
from calib_utils.models.registry import CORE, DEFAULT_MODEL, EMBEDDED, Checkpoint, checkpoints, find
from calib_utils.results.storage import RECORD

COLUMNS = [
    *("name", "hub", "panel", "family", "stage", "base", "licence", "gated", "dtype"),
    *("parameters", "active", "bfloat16_gb", "float32_gb", "sizes"),
    *("tables", "texts", "pages", "measured", "command"),
]


def coverage(
    results_dir: str | Path | None = None,
    book: str | Path | None = None,
    *,
    for_page: bool = False,
) -> pd.DataFrame:
    """The paper's 21 checkpoints, the embedded models, and whatever else has results.

    Args:
        results_dir, book: by default this checkout's; nothing where there is none.
        for_page: the columns that a page shows, what is measured first.

    Returns:
        One row per model, columns `COLUMNS`: sizes of the loaded weights in 10^9 bytes, how many
        tables, folders of texts and executed notebooks there are, and what would measure it. Of a
        model outside the panel only its folder's name is known.
    """
    results_dir = _folder(results_dir, paths.default_results_dir)
    pages = _folder(book, paths.book_dir) / "results"
    keys = {path.parent.parent.name for path in results_dir.glob(f"*/*/{RECORD}")}
    keys |= {path.parent.name for path in pages.glob("*/[0-9][0-9]_*.ipynb")}
    rows = [_known(one, keys, results_dir, pages) for one in checkpoints()]
    for key in sorted(key for key in keys if find(key) is None):
        counts = _counts([key], results_dir, pages)
        rows.append({"name": key, "panel": "other", **counts})
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["parameters", "active", "tables", "texts", "pages"]
    table = table.astype(dict.fromkeys(numbers, "Int64"))
    return as_page(table) if for_page else table


def _folder(given: str | Path | None, default: Callable[[], Path]) -> Path:
    try:
        return Path(given or default())
    except NoCheckoutError:
        return Path(os.devnull)


def _known(one: Checkpoint, keys: set[str], results_dir: Path, pages: Path) -> dict:
    size = size_of_checkpoint(one)
    own = [key for key in keys if find(key) is one]
    return {
        **{name: getattr(one, name) for name in COLUMNS[:11]},
        "bfloat16_gb": round(size.weight_bytes("bfloat16") / 1e9, 2),
        "float32_gb": round(size.weight_bytes("float32") / 1e9, 2),
        "sizes": one.sizes,
        **_counts(own, results_dir, pages),
        "command": f"make run MODEL={one.load_name}",
    }


def _counts(keys: list[str], results_dir: Path, pages: Path) -> dict:
    tables = sum(len(list((results_dir / key).glob(f"*/{RECORD}"))) for key in keys)
    return {
        "tables": tables,
        "texts": sum(len(list((results_dir / key).glob(f"texts/*/{RECORD}"))) for key in keys),
        "pages": sum(len(list((pages / key).glob("[0-9][0-9]_*.ipynb"))) for key in keys),
        "measured": tables > 0,
    }


def as_text(table: pd.DataFrame) -> str:
    """The table of `coverage` for a terminal: names, sizes, licences, what is stored."""
    shown = pd.DataFrame(
        {
            "model": table.hub.where(table.hub.fillna("") != "", table.name).fillna(table.name),
            "family": table.family,
            "stage": table.stage,
            "parameters": [_billions(row) for row in table.itertuples()],
            "GB bf16": table.bfloat16_gb.map("{:.1f}".format),
            "GB f32": table.float32_gb.map("{:.1f}".format),
            "licence": table.licence + table.gated.map({True: ", gated"}).fillna(""),
            "measured": [_stored(row) for row in table.itertuples()],
        }
    )
    shown.model += (table.name == DEFAULT_MODEL).map({True: " (default)", False: ""})
    notes = (
        "~ sizes inferred, see data/panel/README.md. GB: weights alone, in memory.\n"
        "A model that is not measured: make run MODEL=owner/name; first what it takes: "
        "python -m calib_utils forecast --model owner/name"
    )
    return f"{shown.fillna('?').replace('nan', '?').to_string(index=False)}\n\n{notes}"


def as_page(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `coverage` for the book: what is measured first, then the paper's others."""
    shown = pd.DataFrame(
        {
            "model": table.name,
            "measured": [_stored(row) for row in table.itertuples()],
            "command": table.command,
            "in the paper": (table.panel == "paper").map({True: "yes", False: "no"}),
            "family": table.family,
            "stage": table.stage,
            "parameters": [_billions(row) for row in table.itertuples()],
            "GB in bfloat16": table.bfloat16_gb.map("{:.1f}".format),
            "licence": table.licence,
        }
    )
    shown = shown.fillna("?").replace("nan", "?")
    return shown.loc[table.measured.sort_values(ascending=False, kind="stable").index]


def _billions(row) -> str:
    if pd.isna(row.parameters):
        return "?"
    active = f", {row.active / 1e9:.3g} active" if row.active < row.parameters else ""
    return f"{'~' if row.sizes == 'inferred' else ''}{row.parameters / 1e9:.3g} B{active}"


def _stored(row) -> str:
    if not row.tables and not row.texts and not row.pages:
        return "no"
    counts = {"tables": row.tables, "texts": row.texts, "pages": row.pages}
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)


# The commands about models and what is stored of them: models, forecast, resources, run, check.
#
# Knows options and what to print where; what is printed is computed elsewhere.

# Parameters of notebooks that have options of their own.
_OPTIONS = ("model", "revision", "dtype", "device", "results_dir")
FORMATS = ("csv", "json", "markdown")


def add_commands(commands, model_options) -> None:
    """Adds the commands to a parser's subcommands; `model_options` are those that name a model."""
    add = commands.add_parser("models", help="the paper's panel and the embedded models")
    add.add_argument("--format", choices=["text", *FORMATS], default="text")
    add.add_argument("--results-dir", type=Path, help="by default this checkout's")
    add.set_defaults(command=models)

    add = commands.add_parser(
        "forecast", parents=[model_options], help="memory, disk and time of a run, before it runs"
    )
    add.add_argument("--measure", action="store_true", help="load the model and time it first")
    add.set_defaults(command=forecast)

    add = commands.add_parser("resources", help="what a batch system is asked for, as JSON")
    add.add_argument("models", nargs="*", default=list(CORE), metavar="MODEL")
    add.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    add.add_argument("--gpu-gb", type=float, default=0.0, help="memory of one GPU; 0: use none")
    add.set_defaults(command=resources)

    add = commands.add_parser(
        "run",
        parents=[model_options],
        help="execute the notebooks for a model that are not current",
    )
    add.add_argument("--notebook", action="append", help="only this one, as NN_topic")
    add.add_argument(
        "--panel",
        action=argparse.BooleanOptionalAction,
        help="only the notebooks about all models with results, or not those",
    )
    add.add_argument("--force", action="store_true", help="execute those that are current as well")
    add.add_argument("-p", "--parameter", action="append", default=[], metavar="KEY=VALUE")
    add.add_argument("--results-dir", type=Path, help="rows go here, not into data/results")
    add.add_argument("--book-dir", type=Path, help="pages go here, not into book")
    add.set_defaults(command=run)

    add = commands.add_parser("check", help="are stored results what they say")
    add.add_argument("folder", nargs="?", type=Path, help="by default this checkout's results")
    add.add_argument(
        "--recompute", type=int, default=0, metavar="N", help="N rows of each model, and N texts"
    )
    add.add_argument("--seed", default="0", help="of the choice: any text, such as a commit")
    add.add_argument("--strict", action="store_true", help="notes count as well: fit to contribute")
    add.set_defaults(command=check)


def models(options) -> None:
    """Prints the panel, the embedded models, and what of them is stored."""

    table = coverage(options.results_dir)
    print(as_text(table) if options.format == "text" else formatted(table, options.format))


def formatted(table, form: str) -> str:
    """A table as text, in one of `FORMATS`, without a line break at the end."""
    if form == "json":
        return table.to_json(orient="records", indent=1)
    if form == "markdown":
        return table.to_markdown(index=False)
    return table.to_csv(index=False, lineterminator="\n").rstrip("\n")


def forecast(options) -> None:
    """Prints what a run would take; with `--measure` the model is loaded and timed for it."""
    from calib_utils.book import resources as forecasts
    from calib_utils.models.loading import check_name, load_model, resolve_device

    check_name(options.model)
    device, probe_s = resolve_device(options.device), None
    size = forecasts.size_of(options.model, options.revision)
    # The memory is told before the model is loaded into it.
    if options.measure:
        print(forecasts.report(size, options.dtype, device), file=sys.stderr, flush=True)
        model = load_model(
            options.model, revision=options.revision, dtype=options.dtype, device=device
        )
        probe_s = forecasts.measure_probe(model)
    print(forecasts.report(size, options.dtype, device, probe_s))


def resources(options) -> None:
    """Prints GPUs, memory and minutes to ask for, one JSON list for all models."""
    from calib_utils.book import resources as forecasts

    names = map(_named, options.models)
    print(json.dumps(forecasts.resources(names, options.dtype, options.gpu_gb), indent=1))


def run(options) -> int:
    """Executes what is not current for a model, then the notebooks about all models."""
    from calib_utils.book import build, notebooks

    options.model = _named(options.model)
    names = options.notebook or [*notebooks.notebook_names(), *notebooks.panel_names()]
    # All parameters are checked before a model is fetched and a notebook takes its minutes.
    jobs, panel_jobs = {}, {}
    for name in names:
        about_all = notebooks.is_about_all(name)
        if options.panel in (None, about_all):
            (panel_jobs if about_all else jobs)[name] = _parameters(options, name)
    book_dir, failed = Path(options.book_dir or paths.book_dir()).resolve(), []
    if jobs:
        _require_known(options.model)
        key = notebooks.identity(options.model, options.revision).key
        if key in EMBEDDED and options.model != key:
            raise InvalidRequestError(
                f"{options.model} would go into the pages and results of the embedded {key}: "
                "rename the folder or file"
            )
        folder = paths.executed_dir(key, book_dir)
        failed += notebooks.execute(
            jobs, folder, force=options.force, prepare=lambda: _fetch_model(options)
        )
    if panel_jobs:
        failed += notebooks.execute(panel_jobs, paths.panel_dir(book_dir), force=options.force)
    build.write_table_of_contents(book_dir)
    own_book = book_dir == paths.book_dir().resolve()
    if jobs and options.model == DEFAULT_MODEL and own_book and not failed:
        build.write_readme_figure()
    return 1 if failed else 0


def _fetch_model(options) -> None:
    """Refuses what cannot be loaded, and fetches the rest, before a notebook is executed."""
    from calib_utils.models.loading import load_model

    if options.model not in EMBEDDED:
        _show_forecast(options)
    load_model(options.model, revision=options.revision, dtype=options.dtype, device=options.device)


def _named(model: str) -> str:
    """A file or folder by its whole path, since notebooks run in another folder."""
    from calib_utils.models.loading import check_name

    check_name(model)
    path = Path(model).expanduser()
    return str(path.resolve()) if model not in EMBEDDED and path.exists() else model


def _require_known(model: str) -> None:
    """Refuses what is no model before a folder is made for its pages."""
    from calib_utils.models import loading

    if not (model in EMBEDDED or loading.is_hub_id(model) or Path(model).expanduser().exists()):
        raise UnknownNameError("model", model, EMBEDDED, loading.HINT)


def _show_forecast(options) -> None:
    from calib_utils.book import resources as forecasts
    from calib_utils.models.loading import resolve_device

    try:
        size = forecasts.size_of(options.model, options.revision)
        told = forecasts.report(size, options.dtype, resolve_device(options.device))
    except CalibUtilsError as error:
        told = f"no forecast: {error}"
    print(told, file=sys.stderr, flush=True)


def _parameters(options, name: str) -> dict:
    """What is injected into a notebook; one about all models takes of it what it has."""
    from calib_utils.book import notebooks

    defaults, given, named = notebooks.parameters_of(name), options.parameter, {}
    if notebooks.is_about_all(name):
        given = [pair for pair in given if pair.partition("=")[0] in defaults]
    else:
        for pair in given:
            key = pair.partition("=")[0]
            if key in _OPTIONS:
                raise NotebookParameterError(
                    f"parameter {pair!r}: pages and rows are placed by it, so give it as "
                    f"--{key.replace('_', '-')}"
                )
        named = {"model": options.model, "revision": options.revision or ""}
        named |= {"dtype": options.dtype, "device": options.device}
    if options.results_dir is not None:
        named["results_dir"] = str(options.results_dir.resolve())
    # Only what differs is injected, so that the default model's pages show no parameters.
    changed = {key: value for key, value in named.items() if value != defaults.get(key)}
    return notebooks.check_parameters(name, changed | notebooks.parse_parameters(name, given))


def check(options) -> int:
    """Prints what is wrong with stored results; exit status 1 where anything is."""
    from calib_utils.book import check as checks

    if options.recompute < 0:
        raise InvalidRequestError(f"--recompute {options.recompute}: must be 0 or more")
    folder = options.folder or paths.default_results_dir()
    found = checks.check(folder)
    checks.as_table(found, folder).to_csv(sys.stdout, index=False, lineterminator="\n")
    if options.recompute:
        again = checks.recompute_some(found, options.recompute, options.seed)
        words = {"table": "recomputed", "texts": "rescored"}
        table = checks.as_table(again, folder).replace({"kind": words})
        table.to_csv(sys.stdout, index=False, header=False, lineterminator="\n")
        found += again
    fatal = ("error", "note") if options.strict else ("error",)
    wrong = [one for one in found if one.verdict in fatal]
    print(f"{len(found)} looked at, {len(wrong)} at fault", file=sys.stderr)
    return 1 if wrong else 0

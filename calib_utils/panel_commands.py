"""The commands about models and what is stored of them: models, forecast, resources, run, check.

Knows options and what to print where; what is printed is computed elsewhere.
"""

import argparse
import json
import sys
from pathlib import Path

from calib_utils import paths
from calib_utils.errors import (
    CalibUtilsError,
    InvalidRequestError,
    NotebookParameterError,
    UnknownNameError,
)
from calib_utils.registry import CORE, DEFAULT_MODEL, EMBEDDED

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
    from calib_utils.coverage import as_text, coverage

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
    from calib_utils import forecast as forecasts
    from calib_utils import sizes
    from calib_utils.models import _resolve_device, check_name, load_model

    check_name(options.model)
    device, probe_s = _resolve_device(options.device), None
    size = sizes.size_of(options.model, options.revision)
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
    from calib_utils import forecast as forecasts

    names = map(_named, options.models)
    print(json.dumps(forecasts.resources(names, options.dtype, options.gpu_gb), indent=1))


def run(options) -> int:
    """Executes what is not current for a model, then the notebooks about all models."""
    from calib_utils import book, freshness, page_figures, runner, runs

    options.model = _named(options.model)
    names = options.notebook or [*runner.notebook_names(), *runner.panel_names()]
    # All parameters are checked before a model is fetched and a notebook takes its minutes.
    jobs, panel_jobs = {}, {}
    for name in names:
        about_all = runner.is_about_all(name)
        if options.panel in (None, about_all):
            (panel_jobs if about_all else jobs)[name] = _parameters(options, name)
    book_dir, failed = Path(options.book_dir or paths.book_dir()).resolve(), []
    if jobs:
        _require_known(options.model)
        key = freshness.identity(options.model, options.revision).key
        if key in EMBEDDED and options.model != key:
            raise InvalidRequestError(
                f"{options.model} would go into the pages and results of the embedded {key}: "
                "rename the folder or file"
            )
        folder = paths.executed_dir(key, book_dir)
        failed += runs.execute(
            jobs, folder, force=options.force, prepare=lambda: _fetch_model(options)
        )
    if panel_jobs:
        failed += runs.execute(panel_jobs, paths.panel_dir(book_dir), force=options.force)
    book.write_table_of_contents(book_dir)
    own_book = book_dir == paths.book_dir().resolve()
    if jobs and options.model == DEFAULT_MODEL and own_book and not failed:
        page_figures.write_readme_figure()
    return 1 if failed else 0


def _fetch_model(options) -> None:
    """Refuses what cannot be loaded, and fetches the rest, before a notebook is executed."""
    from calib_utils.models import load_model

    if options.model not in EMBEDDED:
        _show_forecast(options)
    load_model(options.model, revision=options.revision, dtype=options.dtype, device=options.device)


def _named(model: str) -> str:
    """A file or folder by its whole path, since notebooks run in another folder."""
    from calib_utils.models import check_name

    check_name(model)
    path = Path(model).expanduser()
    return str(path.resolve()) if model not in EMBEDDED and path.exists() else model


def _require_known(model: str) -> None:
    """Refuses what is no model before a folder is made for its pages."""
    from calib_utils import models

    if not (model in EMBEDDED or models._is_hub_id(model) or Path(model).expanduser().exists()):
        raise UnknownNameError("model", model, EMBEDDED, models._HINT)


def _show_forecast(options) -> None:
    from calib_utils import forecast as forecasts
    from calib_utils import sizes
    from calib_utils.models import _resolve_device

    try:
        size = sizes.size_of(options.model, options.revision)
        told = forecasts.report(size, options.dtype, _resolve_device(options.device))
    except CalibUtilsError as error:
        told = f"no forecast: {error}"
    print(told, file=sys.stderr, flush=True)


def _parameters(options, name: str) -> dict:
    """What is injected into a notebook; one about all models takes of it what it has."""
    from calib_utils import runner

    defaults, given, named = runner.parameters_of(name), options.parameter, {}
    if runner.is_about_all(name):
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
    return runner.check_parameters(name, changed | runner.parse_parameters(name, given))


def check(options) -> int:
    """Prints what is wrong with stored results; exit status 1 where anything is."""
    from calib_utils import checks

    if options.recompute < 0:
        raise InvalidRequestError(f"--recompute {options.recompute}: must be 0 or more")
    folder = options.folder or paths.default_results_dir()
    found = checks.check(folder)
    checks.as_table(found, folder).to_csv(sys.stdout, index=False, lineterminator="\n")
    if options.recompute:
        again = checks.recompute(found, options.recompute, options.seed)
        words = {"table": "recomputed", "texts": "rescored"}
        table = checks.as_table(again, folder).replace({"kind": words})
        table.to_csv(sys.stdout, index=False, header=False, lineterminator="\n")
        found += again
    fatal = ("error", "note") if options.strict else ("error",)
    wrong = [one for one in found if one.verdict in fatal]
    print(f"{len(found)} looked at, {len(wrong)} at fault", file=sys.stderr)
    return 1 if wrong else 0

"""The commands of `python -m calib_utils`: tables on stdout, progress on stderr.

Knows options, what to print where, and which models have results here. Computes nothing itself.
"""

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd

from calib_utils import files, paths
from calib_utils.errors import (
    CalibUtilsError,
    InvalidRequestError,
    NoCheckoutError,
    NotebookParameterError,
    NotReproducedError,
    UnknownNameError,
)
from calib_utils.models.registry import CORE, DEFAULT_MODEL, EMBEDDED, HEADLINE, checkpoints, find
from calib_utils.results.storage import RECORD

FORMATS = ("csv", "json", "markdown")
# Parameters of notebooks that have options of their own.
_OPTIONS = ("model", "revision", "dtype", "device", "chat", "results_dir")
COLUMNS = [
    *("name", "hub", "panel", "family", "stage", "base", "licence", "gated", "dtype"),
    *("parameters", "active", "bfloat16_gb", "float32_gb", "sizes"),
    *("tables", "texts", "pages", "measured", "command"),
]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a user's mistake prints one line and gives exit status 2."""
    try:
        sys.stderr = sys.stderr or io.StringIO()  # closed by whoever started this
        if sys.stdout is None:
            raise InvalidRequestError("stdout is closed: redirect it to /dev/null or a file")
        options = parser().parse_args(arguments)
        for stream in (sys.stdout, sys.stderr):  # answers are not ASCII, and a locale may be
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        status = options.command(options) or 0
        sys.stdout.flush()  # here, where a pipe that is closed can still be told
        return status
    except CalibUtilsError as error:
        _say_error(error)
        return 1 if isinstance(error, NotReproducedError) else 2
    except KeyboardInterrupt:
        print("calib_utils: interrupted; what is finished is kept", file=sys.stderr)
        return 130
    except OSError as error:  # what no function below could foresee: a full disk behind stdout
        enough = isinstance(error, BrokenPipeError)  # whoever read the output has had it
        if not enough:
            _say_error(f"{error}: choose another place, with space and permission to write")
        with suppress(OSError, ValueError):  # else Python flushes it once more, and fails
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if enough else 2


def _say_error(error: Exception | str) -> None:
    name = "OSError" if isinstance(error, str) else type(error).__name__
    print(f"calib_utils: {name}: {error}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Every command with its options; `command` of what it parses is the function to call."""
    parser = argparse.ArgumentParser(prog="python -m calib_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, about: str, *parents) -> Callable:
        add = commands.add_parser(name, help=about, parents=parents)
        add.set_defaults(command=function)
        return add.add_argument

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default=DEFAULT_MODEL, help="embedded name, hub id, path")
    model.add_argument("--revision", help="hub commit, branch or tag")
    model.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    model.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    about = "ask it through its chat template, or not; by default its stage decides"
    model.add_argument("--chat", action=argparse.BooleanOptionalAction, help=about)

    task = argparse.ArgumentParser(add_help=False)
    task.add_argument("--task", required=True, help="rng-3, us-states, ... or a .json file")
    task.add_argument("--end", default="eos", help="eos, line or none")

    add = command("evaluate", _evaluate, "exact validity, diversity", model, task)
    add("--rule", action="append", help="none, top_k=50, top_p=0.9, min_p=0.1, ...")
    add("--temperature", action="append", type=float)
    add("--tokenizations", default="canonical", help="canonical or all")
    add("--surface", default="exact", help="exact, any_space or any_case")
    add("--batch-size", type=int)
    add("--results-dir", type=Path, help="reuse and store rows here")
    add("--format", choices=FORMATS, default="csv")
    add("--output", type=Path, help="a file for the table, instead of stdout")

    command("prompt", _prompt, "what the model sees", model, task)

    add = command("fetch", _fetch, "embedded model files into the cache")
    add("model", nargs="?", default=DEFAULT_MODEL)
    add("--all", action="store_true", help="all that the book and the tests need")

    add = command("models", _models, "the paper's panel and the embedded models")
    add("--format", choices=["text", *FORMATS], default="text")
    add("--results-dir", type=Path, help="by default this checkout's")

    add = command("forecast", _forecast, "memory, disk and time of a run, before it runs", model)
    add("--gpu", metavar="NAME", help="the GPU it would run on, elsewhere: H100, A100 40GB, ...")
    add("--gpu-gb", type=float, help="memory of that GPU, for one that has no name here")

    add = command("resources", _resources, "what a batch system is asked for, as JSON")
    add("models", nargs="*", default=list(CORE), metavar="MODEL")
    add("--dtype", default="float32", help="float32, bfloat16 or float16")
    add("--gpu-gb", type=float, default=0.0, help="memory of one GPU; 0: use none")

    add = command("run", _run, "execute the notebooks for a model that are not current", model)
    add("--notebook", action="append", help="only this one, as NN_topic")
    add(
        "--panel",
        action=argparse.BooleanOptionalAction,
        help="only the notebooks about all models with results, or not those",
    )
    add("--force", action="store_true", help="execute those that are current as well")
    add("--dry-run", action="store_true", help="say what would be executed and why, do nothing")
    add("--name", help="what a local model is called: its folder, or file, may have a common name")
    add("-p", "--parameter", action="append", default=[], metavar="KEY=VALUE")
    add("--results-dir", type=Path, help="rows go here, not into data/results")
    add("--book-dir", type=Path, help="pages go here, not into book")

    add = command("remove", _remove, "take a model's pages out of the book; its rows stay")
    add("model", help="the name of its folder in book/results, or its hub id")
    add("--rows", action="store_true", help="its rows and texts too, and execute the panel anew")
    add("--results-dir", type=Path, help="by default this checkout's")
    add("--book-dir", type=Path, help="by default this checkout's")

    add = command("check", _check, "are stored results what they say")
    add("folder", nargs="?", type=Path, help="by default this checkout's results")
    add("--recompute", type=int, default=0, metavar="N", help="N tables of each model, N texts")
    add("--longest", type=float, default=math.inf, metavar="S", help="no table that took longer")
    add("--seed", default="0", help="of the choice: any text, such as a commit")
    add("--strict", action="store_true", help="notes count as well: fit to contribute")

    add = command("book", _book, "build the pages from executed notebooks")
    add("--output", type=Path)
    add("--pdf", action="store_true", help="print it to a PDF as well, by Chromium")
    about = "first compute the quickstart here, on an embedded model, and compare its rows"
    add("--live", nargs="?", const=DEFAULT_MODEL, metavar="MODEL", help=about)

    command("toc", _toc, "rewrite the book's table of contents")

    add = command("reproduce", _reproduce, "recompute stored rows, print the differences")
    add("--model", help="only this model's rows")
    add("--results-dir", type=Path, help="by default this checkout's")
    add("--update", action="store_true", help="replace the stored rows")
    return parser


# One model and one task


def _evaluate(options) -> None:
    output = options.output
    if output is None:
        print(_evaluated(options))
        return
    try:
        if output.is_dir():
            raise IsADirectoryError("it is a folder")
        with files.whole(output) as draft:
            draft.touch()  # tells what cannot be written before minutes of work
            draft.write_text(_evaluated(options) + "\n", encoding="utf-8")
    except CalibUtilsError:  # some are an OSError too
        raise
    except OSError as error:
        raise InvalidRequestError(
            f"cannot write {output} ({error}): choose another place for --output"
        ) from error


def _evaluated(options) -> str:
    from calib_utils.results.evaluation import evaluate

    table = evaluate(
        _load(options),
        options.task,
        rules=options.rule or ["none"],
        temperatures=options.temperature or [1.0],
        end=options.end,
        tokenizations=options.tokenizations,
        surface=options.surface,
        batch_size=options.batch_size,
        results_dir=options.results_dir,
    )
    return _formatted(table, options.format)


def _formatted(table: pd.DataFrame, form: str) -> str:
    if form == "json":
        return table.to_json(orient="records", indent=1)
    if form == "markdown":
        return table.to_markdown(index=False)
    return table.to_csv(index=False, lineterminator="\n").rstrip("\n")


def _prompt(options) -> None:
    from calib_utils.results.evaluation import show_prompt

    show_prompt(_load(options), options.task, end=options.end)


def _load(options):
    from calib_utils.models.loading import load_model

    settings = {name: getattr(options, name) for name in ("revision", "dtype", "device", "chat")}
    return load_model(options.model, **settings)


def _fetch(options) -> None:
    from calib_utils.models.loading import load_model

    for name in CORE if options.all else [options.model]:
        print(f"{name}: {load_model(name).folder}")


# Which models there are, and what they need


def coverage(
    results_dir: str | Path | None = None,
    book: str | Path | None = None,
    *,
    for_page: bool = False,
) -> pd.DataFrame:
    """The paper's 21 checkpoints, the embedded models, and all others that have results.

    Args:
        results_dir, book: by default those of this checkout, if it has them.
        for_page: only the columns that a page shows, measured models first.

    Returns:
        One row per model with the columns `COLUMNS`: the size of the loaded weights in 10^9 bytes,
        how many tables, folders of texts and executed notebooks there are, and the command that
        would measure it. For a model outside the panel only the name of its folder is known.
    """
    from calib_utils.book import resources as forecasts

    results_dir = _folder(results_dir, paths.default_results_dir)
    pages = _folder(book, paths.book_dir) / "results"
    keys = {path.parent.parent.name for path in results_dir.glob(f"*/*/{RECORD}")}
    keys |= {path.parent.name for path in pages.glob("*/[0-9][0-9]_*.ipynb")}
    rows = []
    for one in checkpoints():
        size = forecasts.size_of_checkpoint(one)
        own = [key for key in keys if find(key) is one]
        rows.append(
            {
                **{name: getattr(one, name) for name in [*COLUMNS[:11], "sizes"]},
                "bfloat16_gb": round(size.weight_bytes("bfloat16") / 1e9, 2),
                "float32_gb": round(size.weight_bytes("float32") / 1e9, 2),
                **_counts(own, results_dir, pages),
                "command": f"make run MODEL={one.load_name}",
            }
        )
    for key in sorted(key for key in keys if find(key) is None):
        rows.append({"name": key, "panel": "other", **_counts([key], results_dir, pages)})
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["parameters", "active", "tables", "texts", "pages"]
    table = table.astype(dict.fromkeys(numbers, "Int64"))
    return as_page(table) if for_page else table


def _folder(given: str | Path | None, default: Callable[[], Path]) -> Path:
    try:
        return Path(given or default())
    except NoCheckoutError:
        return Path(os.devnull)


def _counts(keys: list[str], results_dir: Path, pages: Path) -> dict:
    tables = sum(len(list((results_dir / key).glob(f"*/{RECORD}"))) for key in keys)
    return {
        "tables": tables,
        "texts": sum(len(list((results_dir / key).glob(f"texts/*/{RECORD}"))) for key in keys),
        "pages": sum(len(list((pages / key).glob("[0-9][0-9]_*.ipynb"))) for key in keys),
        "measured": tables > 0,
    }


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


def _models(options) -> None:
    table = coverage(options.results_dir)
    if options.format != "text":
        print(_formatted(table, options.format))
        return
    known = as_page(table).sort_index()
    names = table.hub.where(table.hub.fillna("") != "", table.name).fillna(table.name)
    shown = pd.DataFrame(
        {
            "model": names + (table.name == DEFAULT_MODEL).map({True: " (default)", False: ""}),
            **{name: known[name] for name in ("family", "stage", "parameters")},
            "GB bf16": known["GB in bfloat16"],
            "GB f32": table.float32_gb.map("{:.1f}".format),
            "licence": table.licence + table.gated.map({True: ", gated"}).fillna(""),
            "measured": known.measured,
        }
    )
    print(shown.fillna("?").replace("nan", "?").to_string(index=False))
    print(
        "\n~ sizes inferred, see data/panel/README.md. GB: weights alone, in memory.\n"
        "A model that is not measured: make run MODEL=owner/name; first what it takes: "
        "python -m calib_utils forecast --model owner/name"
    )


def _billions(row) -> str:
    if pd.isna(row.parameters):
        return "?"
    active = f", {row.active / 1e9:.3g} active" if row.active < row.parameters else ""
    return f"{'~' if row.sizes == 'inferred' else ''}{row.parameters / 1e9:.3g} B{active}"


def _stored(row) -> str:
    counts = {"tables": row.tables, "texts": row.texts, "pages": row.pages}
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "no"


def _forecast(options) -> None:
    from calib_utils.book import resources as forecasts
    from calib_utils.models import loading
    from calib_utils.models.loading import resolve_device

    loading.check_name(options.model)
    size, there = forecasts.size_of(options.model, options.revision), None
    if options.gpu_gb is not None:
        there = options.gpu_gb * 1e9
        if not 0 < there < math.inf:
            raise InvalidRequestError(f"--gpu-gb {options.gpu_gb}: must be more than 0")
    elif options.gpu is not None:
        there = forecasts.gpu_memory(options.gpu)
    device = "cuda" if there else resolve_device(options.device)
    print(forecasts.report(size, options.dtype, device, there))


def _resources(options) -> None:
    from calib_utils.book import resources as forecasts

    names = map(_named, options.models)
    print(json.dumps(forecasts.resources(names, options.dtype, options.gpu_gb), indent=1))


def _named(model: str) -> str:
    """A file or folder by its whole path, since notebooks run in another folder."""
    from calib_utils.models import loading

    loading.check_name(model)
    path = Path(model).expanduser()
    # Of a link its own name: a model's folder of results is named by it.
    return os.path.abspath(path) if model not in EMBEDDED and path.exists() else model


def _called(model: str, name: str) -> str:
    """A link with this name to a local model, so that its pages and rows are named by it."""
    from calib_utils.models import loading

    path = Path(model)
    if not path.is_absolute() or not path.exists():  # of `_named`
        raise InvalidRequestError(f"--name {name}: only local models can be given a name")
    if loading.file_key(name) != name or name in EMBEDDED:
        raise InvalidRequestError(
            f"--name {name!r} is no name for a folder: letters, digits, dots and dashes, and not "
            "that of an embedded model"
        )
    link = paths.cache_dir() / "named" / (name + path.suffix * path.is_file())
    link.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(link) as draft:
        draft.symlink_to(path.resolve())
    return str(link)


# Executing notebooks


def _run(options) -> int:
    from calib_utils.book import contents, notebooks, pictures

    options.model = _named(options.model)
    if options.name is not None:
        options.model = _called(options.model, options.name)
    if quick := _is_quick(options):
        _apart(options)
    names = options.notebook or [*notebooks.notebook_names(), *notebooks.panel_names()]
    # All parameters are checked before a model is fetched and a notebook takes its minutes.
    jobs, panel_jobs = {}, {}
    for name in names:
        about_all = notebooks.is_about_all(name)
        if options.panel in (None, about_all) and not (quick and about_all):
            (panel_jobs if about_all else jobs)[name] = _parameters(options, name)
    book_dir, failed = Path(options.book_dir or paths.book_dir()).resolve(), []
    how = {"force": options.force, "dry_run": options.dry_run}
    if jobs:
        folder = paths.executed_dir(_key(options), book_dir)
        failed += notebooks.execute(jobs, folder, prepare=lambda: _prepare(options), **how)
    if panel_jobs:
        failed += notebooks.execute(panel_jobs, paths.panel_dir(book_dir), **how)
    if options.dry_run:
        return 0
    contents.write_table_of_contents(book_dir)
    own_book = book_dir == paths.book_dir().resolve()
    if jobs and options.model == HEADLINE and own_book and not failed:
        pictures.write_readme_figure()
    return 1 if failed else 0


def _is_quick(options) -> bool:
    return any(pair.replace(" ", "") == "quick=True" for pair in options.parameter)


def _apart(options) -> None:
    """Places for a quick run, whose numbers mean nothing: never the book and the stored rows."""
    places = {"book_dir": paths.book_dir, "results_dir": paths.default_results_dir}
    for name, own in places.items():
        given = getattr(options, name)
        if given is None:
            setattr(options, name, paths.project_root() / "_build" / "quick" / name[:-4])
        elif given.resolve() == own().resolve():
            raise InvalidRequestError(
                f"--{name.replace('_', '-')} {given}: numbers of a quick run mean nothing, so "
                "choose another place, or leave it out"
            )


def _key(options) -> str:
    """The name of a model's folders; refuses what is no model before there is one."""
    from calib_utils.book import notebooks
    from calib_utils.models import loading

    model = options.model
    if not (model in EMBEDDED or loading.is_hub_id(model) or Path(model).expanduser().exists()):
        raise UnknownNameError("model", model, EMBEDDED, loading.HINT)
    key = notebooks.identity(model, options.revision).key
    if key in EMBEDDED and model != key:
        raise InvalidRequestError(
            f"{model} would go into the pages and results of the embedded {key}: "
            "rename the folder or file"
        )
    return loading.with_chat(key, options.chat)


def _prepare(options) -> None:
    """Refuses what cannot be loaded, and fetches the rest, before a notebook is executed."""
    from calib_utils.book import resources as forecasts
    from calib_utils.models.loading import resolve_device

    if options.model not in EMBEDDED:
        try:
            size = forecasts.size_of(options.model, options.revision)
            told = forecasts.report(size, options.dtype, resolve_device(options.device))
        except CalibUtilsError as error:
            told = f"no forecast: {error}"
        print(told, file=sys.stderr, flush=True)
    _load(options)


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
        named |= {"dtype": options.dtype, "device": options.device, "chat": options.chat}
    if options.results_dir is not None:
        named["results_dir"] = str(options.results_dir.resolve())
    # Only what differs is injected, so that the default model's pages show no parameters.
    changed = {key: value for key, value in named.items() if value != defaults.get(key)}
    return notebooks.check_parameters(name, changed | notebooks.parse_parameters(name, given))


def _remove(options) -> int:
    from calib_utils.book import contents, notebooks

    book_dir = Path(options.book_dir or paths.book_dir()).resolve()
    folders = [book_dir / "results"]
    folders += [options.results_dir or paths.default_results_dir()] if options.rows else []
    for path in contents.remove_model(options.model, *folders):
        print(path)
    contents.write_table_of_contents(book_dir)
    if not options.rows:
        return 0
    given = {"results_dir": str(folders[1].resolve())} if options.results_dir else {}
    jobs = {name: notebooks.check_parameters(name, given) for name in notebooks.panel_names()}
    return 1 if notebooks.execute(jobs, paths.panel_dir(book_dir)) else 0


# The book, and stored results


def _book(options) -> None:
    from calib_utils.book import build, contents

    computed = build.compute_live(options.live) if options.live else ""
    contents.write_table_of_contents()
    first = build.build(options.output)
    if options.pdf:
        output = first.parents[2]
        print(f"As a PDF:\n  {build.write_pdf(output / 'book.pdf', output)}")
    if options.live:
        print(f"{computed} Book: {first}")
    else:
        print(f"The book is built. Open it in a browser:\n  {first.resolve().as_uri()}")


def _toc(options) -> None:
    from calib_utils.book import contents

    print(contents.write_table_of_contents())


def _check(options) -> int:
    from calib_utils.book import check

    for name in ("recompute", "longest"):
        if not (value := getattr(options, name)) >= 0:
            raise InvalidRequestError(f"--{name} {value}: must be 0 or more")
    folder = options.folder or paths.default_results_dir()
    found = check.check(folder)
    check.as_table(found, folder).to_csv(sys.stdout, index=False, lineterminator="\n")
    if options.recompute:
        again = check.recompute_some(found, options.recompute, options.seed, options.longest)
        words = {"table": "recomputed", "texts": "rescored"}
        table = check.as_table(again, folder).replace({"kind": words})
        table.to_csv(sys.stdout, index=False, header=False, lineterminator="\n")
        found += again
    fatal = ("error", "note") if options.strict else ("error",)
    wrong = [one for one in found if one.verdict in fatal]
    print(f"{len(found)} looked at, {len(wrong)} at fault", file=sys.stderr)
    return 1 if wrong else 0


def _reproduce(options) -> int:
    from calib_utils.book import check

    folder, same = options.results_dir or paths.default_results_dir(), []
    for row in check.reproduce(folder, options.model, options.update):
        row.to_csv(sys.stdout, index=False, header=not same, float_format="%.3g")
        sys.stdout.flush()
        same.append(row.same.item())
    if not same:
        of = f" of {options.model}" if options.model else ""
        print(f"nothing{of} is stored in {folder}", file=sys.stderr)
        return 1
    print(f"{sum(same)} of {len(same)} agree within their tolerance")
    return 0 if all(same) else 1

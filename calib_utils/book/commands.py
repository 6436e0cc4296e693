"""The commands of `python -m calib_utils`: tables on stdout, progress on stderr.

Knows options, what to print where, and which models have results here. Computes nothing itself.
"""

import argparse
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pandas as pd

import calib_utils
from calib_utils import files, paths
from calib_utils.book import notebooks, resources
from calib_utils.errors import (
    CalibUtilsError,
    InvalidRequestError,
    NoCheckoutError,
    NotebookParameterError,
    NotReproducedError,
    UnknownNameError,
)
from calib_utils.models import loading
from calib_utils.models.loading import load_model, resolve_device
from calib_utils.models.registry import CORE, DEFAULT_MODEL, EMBEDDED, HEADLINE, checkpoints, find
from calib_utils.results import records
from calib_utils.results.storage import RECORD

FORMATS = {"csv": ".csv", "json": ".json", "markdown": ".md", "latex": ".tex"}
_DRAWN = (".pdf", ".svg", ".png")
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


class _Once:
    """An option that is refused the second time: the last would win without a word."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("_given", set())
        if self.dest in given:
            parser.error(f"{option_string or self.dest} is given twice: leave one out")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _StoreOnce(_Once, argparse._StoreAction):
    pass


class _Switch(_Once, argparse.BooleanOptionalAction):
    pass


class _Several(argparse.Action):
    """Values of an option that may be repeated, each of them several with commas between."""

    def __call__(self, parser, namespace, values, option_string=None):
        is_path = "," in values and os.path.exists(values)
        parts = [values] if is_path else filter(None, values.split(","))
        found = getattr(namespace, self.dest) or []
        try:
            found = [*found, *map(self.const or str, parts)]
        except ValueError as error:
            parser.error(f"argument {option_string}: {error}")
        setattr(namespace, self.dest, found)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults where there is one to say."""

    def _get_help_string(self, action):
        if action.default in (None, False, [], math.inf, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(**options, formatter_class=_Help)
        self.register("action", None, _StoreOnce)


_CALL = "python -m calib_utils"


def parser() -> argparse.ArgumentParser:
    """Every command with its options; `command` of what it parses is the function to call."""
    parser = _Parser(prog=_CALL, description=__doc__)
    parser.add_argument(
        "--version", action="version", version=f"calib-utils {calib_utils.__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, function: Callable, about: str, example: str, *parents) -> Callable:
        told = {"description": f"{about[0].upper()}{about[1:]}."}
        told["epilog"] = f"example:\n  {_CALL} {name} {example}".rstrip()
        add = commands.add_parser(name, help=about, parents=parents, **told)
        add.set_defaults(command=function)
        return add.add_argument

    def shared(*parents) -> tuple[_Parser, Callable]:
        part = _Parser(add_help=False, parents=parents)
        return part, part.add_argument

    number_format, add = shared()
    add("--dtype", default="float32", help="float32, bfloat16 or float16")

    loaded, add = shared(number_format)
    about = "auto, cuda, mps or cpu; sequential or balanced spread a model over all GPUs"
    add("--device", default="auto", help=about)
    about = "whether to use the chat template; by default for post-trained models only"
    add("--chat", action=_Switch, help=about)

    model, add = shared(loaded)
    add("--model", default=DEFAULT_MODEL, help="embedded name, hub id, path")
    add("--revision", help="hub commit, branch or tag")

    end, add = shared()
    add("--end", help="eos, line or none; by default the task's own, else eos")

    listed, add = shared()
    add("--format", choices=["text", *FORMATS], default="text", help="of the table")

    several = {"action": _Several}
    grid, add = shared(loaded, end)
    about = "none, top_k=50, ... (see `rules`), or module:Rule=1.0 of your own; several by commas"
    add("--rule", **several, help=f"{about}, or repeated; by default none")
    about = "several by commas, or repeated; by default 1.0"
    add("--temperature", **several, const=float, help=about)
    add("--batch-size", type=int, help="nodes a forward pass; by default the device's")
    add("--results-dir", type=Path, help="store and reuse rows here")
    add("--output", type=Path, help="a file for the table, instead of stdout")
    about = "by default what --output ends in (.csv, .json, .md, .tex), else csv"
    add("--format", choices=FORMATS, help=about)

    figure, add = shared()
    add("--figure", type=Path, help="a file for it: .pdf, .svg or .png")

    tasks, add = shared()
    about = "as `evaluate` takes it; by default all closed lists of at most 20 answers"
    add("--task", **several, help=f"{about}; repeated or by commas")

    example = "--model smollm2-135m-instruct --task us-states --rule none,top_p=0.9 "
    example += "--temperature 0.6,1.0 --split --figure states.pdf"
    add = command("evaluate", _evaluate, "exact validity and diversity", example, grid, figure)
    about = "embedded name, hub id, path; repeated or by commas"
    add("--model", **several, help=f"{about}; by default {DEFAULT_MODEL}")
    about = "a name of `tasks`, or a .yaml or .json file"
    add("--task", **several, required=True, help=f"{about}; repeated or by commas")
    add("--revision", help="hub commit, branch or tag")
    add("--tokenizations", default="canonical", help="canonical or all")
    add("--surface", default="exact", help="exact, any_space or any_case")
    add("--split", action="store_true", help="what is lost to order, shape and size as well")

    about = "paired differences over tasks between models, second less first"
    example = "Qwen/Qwen3-0.6B-Base Qwen/Qwen3-0.6B --task us-states,month,planet --end line"
    add = command("compare", _compare, about, example, grid, tasks)
    add("models", nargs="*", metavar="MODEL", help="two models; none with --pairs")
    add("--pairs", type=Path, help="a .yaml or .json file of pairs: [[base, tuned], ...]")

    about = "checkpoints of a training run: rows with a column step"
    example = "runs/mine --task us-states --temperature 0.6,1.0 --figure training.pdf"
    add = command("sweep", _sweep, about, example, grid, tasks, figure)
    add("folder", type=Path, help="holds folders such as checkpoint-1000")

    example = "--task rng-3 --model smollm2-135m-instruct"
    add = command("prompt", _prompt, "what the model sees", example, model, end)
    about = "rng-3, us-states, ... (see `tasks`) or a .yaml or .json file"
    add("--task", required=True, help=about)

    command("tasks", _tasks, "the tasks by name", "--format markdown", listed)
    command("rules", _rules, "the sampling rules by name", "", listed)

    about = "put embedded model files into the cache"
    add = command("fetch", _fetch, about, "smollm2-135m-instruct")
    add("model", nargs="?", default=DEFAULT_MODEL, help="an embedded name, or a hub id")
    add("--all", action="store_true", help="all that the book and the tests need")

    about = "the paper's panel and the embedded models"
    add = command("models", _models, about, "--format json", listed)
    add("--results-dir", type=Path, help="by default this checkout's")

    about = "estimate memory, disk space and time of a run"
    add = command("forecast", _forecast, about, "--model Qwen/Qwen3-0.6B --gpu L4", model)
    add("--gpu", metavar="NAME", help="the GPU it would run on, elsewhere: H100, A100 40GB, ...")
    add("--gpu-gb", type=float, help="memory of that GPU, for one that has no name here")

    about = "print what a batch job needs, as JSON"
    example = "Qwen/Qwen3-0.6B --gpu-gb 80 --dtype bfloat16"
    add = command("resources", _resources, about, example, number_format)
    about = "embedded name, hub id, path"
    add("models", nargs="*", default=list(CORE), metavar="MODEL", help=about)
    add("--gpu-gb", type=float, default=0.0, help="memory of one GPU; 0: use none")

    executed, add = shared()
    add("--notebook", action="append", help="only this one, as NN_topic; may be repeated")
    add("--force", action="store_true", help="execute also what is up to date")
    add("--dry-run", action="store_true", help="say what would be executed and why, do nothing")
    about = "of the notebooks, such as quick=True; may be repeated"
    add("-p", "--parameter", action="append", default=[], metavar="KEY=VALUE", help=about)
    add("--results-dir", type=Path, help="rows go here, not into data/results")
    add("--book-dir", type=Path, help="pages go here, not into book")

    about = "execute a model's outdated notebooks"
    example = "--model smollm2-135m-instruct --notebook 00_quickstart"
    add = command("run", _run, about, example, model, executed)
    about = "only the notebooks about all models, or only the others"
    add("--panel", action=_Switch, help=about)
    add("--name", help="what a local model is called: its folder, or file, may have a common name")

    about = "run the paper's checkpoints that this machine can hold, smallest first"
    about += "; several nodes: workflow/Snakefile"
    example = "--models-dir /data/models --dtype bfloat16 --dry-run"
    add = command("panel", _panel, about, example, loaded, executed)
    about = "local copies as owner/name or owner--name, or a hub cache; by default the hub"
    add("--models-dir", type=Path, metavar="FOLDER", help=about)
    about = "memory to keep to, in 10^9 bytes; by default all of this machine's or its GPU's"
    add("--memory-gb", type=float, help=about)

    about = "remove a model's pages from the book; its rows stay"
    add = command("remove", _remove, about, "Qwen/Qwen3-0.6B")
    add("model", help="the name of its folder in book/results, or its hub id")
    add("--rows", action="store_true", help="also its rows and texts; executes the panel again")
    add("--results-dir", type=Path, help="by default this checkout's")
    add("--book-dir", type=Path, help="by default this checkout's")

    add = command("check", _check, "check the stored results", "--recompute 1")
    add("folder", nargs="?", type=Path, help="by default this checkout's results")
    add("--recompute", type=int, default=0, metavar="N", help="N tables of each model, N texts")
    add("--longest", type=float, default=math.inf, metavar="S", help="no table that took longer")
    add("--seed", default="0", help="of the choice: any text, such as a commit")
    add("--strict", action="store_true", help="reject also what may not be contributed")

    add = command("book", _book, "build the pages from executed notebooks", "--output _build")
    add("--output", type=Path, help="by default _build of this checkout")
    add("--pdf", action="store_true", help="also print it to a PDF with Chromium")
    about = "first compute the quickstart here, on an embedded model, and compare its rows"
    add("--live", nargs="?", const=DEFAULT_MODEL, metavar="MODEL", help=about)

    about = "the tables and figures of executed pages as files: CSV, LaTeX, SVG, PDF"
    add = command("export", _export, about, "paper --model smollm2-135m-instruct")
    add("folder", type=Path, help="where they go")
    about = "whose pages, beside those about all models; the name of a folder in book/results"
    add("--model", default=HEADLINE, help=about)
    add("--pdf", action=_Switch, default=True, help="figures as PDF too, which needs Chromium")

    command("toc", _toc, "rewrite the book's table of contents", "")

    about = "compute stored rows again and print the differences"
    add = command("reproduce", _reproduce, about, "--model smollm2-135m-instruct")
    add("--model", help="only this model's rows")
    add("--results-dir", type=Path, help="by default this checkout's")
    add("--update", action="store_true", help="replace the stored rows")
    return parser


# Tables of models, tasks and rules


def _evaluate(options) -> None:
    from calib_utils.results.comparison import evaluate_many, load_many

    named = {"tokenizations": options.tokenizations, "surface": options.surface}
    if options.split and list(named.values()) != ["canonical", "exact"]:
        raise InvalidRequestError(
            f"--split with {named}: it needs one token sequence an answer, so leave these out"
        )
    with _outputs(options) as write:
        models = load_many(options.model or [DEFAULT_MODEL], **_settings(options, "revision"))
        asked = {**_asked(options), **named, "parts": options.split}
        table = evaluate_many(models, options.task, **asked)
        write(table, lambda figures: figures.frontier_and_split(table))


def _compare(options) -> None:
    from calib_utils.results import comparison

    if len(options.models) != (0 if options.pairs else 2):
        given = " ".join(options.models) or "none"
        raise InvalidRequestError(f"models {given}: name two, or a file of pairs with --pairs")
    pairs = comparison.read_pairs(options.pairs) if options.pairs else [tuple(options.models)]
    given = list(dict.fromkeys(name for pair in pairs for name in pair))
    with _outputs(options) as write:
        models = comparison.load_many(given, **_settings(options))
        names = dict(zip(given, (model.name for model in models), strict=True))
        tasks = options.task or comparison.small_tasks()
        table = comparison.evaluate_many(models, tasks, parts=None, **_asked(options))
        pairs = [(names[first], names[second]) for first, second in pairs]
        write(comparison.differences(table, pairs))


def _sweep(options) -> None:
    from calib_utils.results import comparison

    found = comparison.checkpoints(options.folder)
    with _outputs(options) as write:
        models = comparison.load_many(found.values(), **_settings(options))
        tasks = options.task or comparison.small_tasks()
        table = comparison.evaluate_many(models, tasks, parts=None, **_asked(options))
        steps = dict(zip((model.name for model in models), found, strict=True))
        table.insert(0, "step", table.model.map(steps))
        write(table, lambda figures: figures.training(table))


def _settings(options, *more: str) -> dict:
    return {name: getattr(options, name) for name in ("dtype", "device", "chat", *more)}


def _asked(options) -> dict:
    return {
        "rules": options.rule or ["none"],
        "temperatures": options.temperature or [1.0],
        **{name: getattr(options, name) for name in ("end", "batch_size", "results_dir")},
    }


@contextmanager
def _outputs(options) -> Iterator[Callable]:
    """Gives what writes a table and a figure; tells what cannot be written before any work."""
    kinds = {suffix: form for form, suffix in FORMATS.items()}
    form = options.format or kinds.get(options.output.suffix if options.output else "", "csv")
    figure = getattr(options, "figure", None)
    if figure is not None:
        if figure.suffix not in _DRAWN:
            raise InvalidRequestError(f"--figure {figure}: end its name in {', '.join(_DRAWN)}")
        try:
            from calib_utils.figures import comparison as figures
        except ImportError as error:
            raise InvalidRequestError(
                f"--figure: {error.name} is not installed; pip install 'calib-utils[book]'"
            ) from error
    with ExitStack() as stack:
        table_to = _draft(stack, options.output, "--output")
        figure_to = _draft(stack, figure, "--figure")

        def write(table: pd.DataFrame, draw: Callable | None = None) -> None:
            if figure_to:
                draw(figures).savefig(figure_to, format=figure.suffix[1:])
            if table_to:
                table_to.write_text(formatted(table, form) + "\n", encoding="utf-8")
            else:
                print(formatted(table, form))

        yield write


def _draft(stack: ExitStack, path: Path | None, option: str) -> Path | None:
    if path is None:
        return None
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        draft = stack.enter_context(files.whole(path))
        draft.touch()
        return draft
    except OSError as error:
        raise InvalidRequestError(
            f"cannot write {path} ({error}): choose another place for {option}"
        ) from error


def formatted(table: pd.DataFrame, form: str) -> str:
    """A table as text of a kind of `FORMATS`, or as `text` for people."""
    if form == "text":
        return table.to_markdown(index=False, tablefmt="plain")
    if form == "json":
        return table.to_json(orient="records", indent=1)
    if form == "markdown":
        return table.to_markdown(index=False)
    if form == "latex":
        return table.to_latex(index=False, escape=True, na_rep="", float_format="%.4g").rstrip()
    return table.to_csv(index=False, lineterminator="\n").rstrip("\n")


def _tasks(options) -> None:
    from calib_utils.core.tasks import NAME_FORMS, get_task, list_tasks

    found = [get_task(name) for name in list_tasks()]
    rows = [{"task": t.name, "answers": len(t.answers), "prompt": t.prompt} for t in found]
    print(formatted(pd.DataFrame(rows), options.format))
    if options.format == "text":
        print(f"\nForms of names: {', '.join(NAME_FORMS)}. Or a .yaml or .json file of your own.")


def _rules(options) -> None:
    from calib_utils.core.processors import EXAMPLES
    from calib_utils.core.rules import FAMILIES, ORDERS, NumberedRule

    rows = []
    for name, family in FAMILIES.items():
        number = f"={EXAMPLES.get(name, '0.9')}" if issubclass(family, NumberedRule) else ""
        what = family.__doc__.partition("\n")[0]
        rows.append({"rule": f"{name}{number}", "what it does": what})
    print(formatted(pd.DataFrame(rows), options.format))
    if options.format == "text":
        print(
            f"\nSeveral as one: top_k=40+top_p=0.95, in an engine's order with @ and one of "
            f"{', '.join(ORDERS)}.\nYour own: module:Rule=1.0, a class of a file in this folder."
        )


def _prompt(options) -> None:
    from calib_utils.results.evaluation import show_prompt

    show_prompt(_load(options), options.task, end=options.end)


def _load(options):
    return load_model(options.model, **_settings(options, "revision"))


def _fetch(options) -> None:
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
        would measure it. Of a model outside the panel it is its folder's name, and what
        `results.records.own_models` says.
    """
    counts = {"tables": Counter(), "texts": Counter(), "pages": Counter()}
    said = {}
    with suppress(NoCheckoutError):
        results_dir = Path(results_dir or paths.default_results_dir())
        said = records.own_models(results_dir)
        for name, below in (("tables", f"*/{RECORD}"), ("texts", f"texts/*/{RECORD}")):
            found = results_dir.glob(f"*/{below}")
            counts[name].update(path.relative_to(results_dir).parts[0] for path in found)
    with suppress(NoCheckoutError):
        pages = Path(book or paths.book_dir()) / "results"
        counts["pages"].update(p.parent.name for p in pages.glob("*/[0-9][0-9]_*.ipynb"))
    others, rows = {*counts["tables"], *counts["pages"]}, []
    for one in checkpoints():
        size = resources.size_of_checkpoint(one)
        own = {key for key in others if find(key) is one}
        others -= own
        rows.append(
            {
                **{name: getattr(one, name) for name in [*COLUMNS[:11], "sizes"]},
                "bfloat16_gb": round(size.weight_bytes("bfloat16") / 1e9, 2),
                "float32_gb": round(size.weight_bytes("float32") / 1e9, 2),
                **{name: sum(found[key] for key in own) for name, found in counts.items()},
                "command": f"make run MODEL={one.load_name}",
            }
        )
    for key in sorted(others):
        found = {name: found[key] for name, found in counts.items()}
        rows.append({"name": key, "panel": "other", **said.get(key, {}), **found})
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["measured"] = table.tables > 0
    numbers = ["parameters", "active", "tables", "texts", "pages"]
    table = table.astype(dict.fromkeys(numbers, "Int64"))
    return as_page(table) if for_page else table


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
        print(formatted(table, options.format))
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
    loading.check_name(options.model)
    size, there = resources.size_of(options.model, options.revision), None
    if options.gpu_gb is not None:
        there = options.gpu_gb * 1e9
        if not 0 < there < math.inf:
            raise InvalidRequestError(f"--gpu-gb {options.gpu_gb}: must be more than 0")
    elif options.gpu is not None:
        there = resources.gpu_memory(options.gpu)
    device = "cuda" if there else resolve_device(options.device)
    print(resources.report(size, options.dtype, device, there))


def _resources(options) -> None:
    names = map(_named, options.models)
    print(json.dumps(resources.resources(names, options.dtype, options.gpu_gb), indent=1))


def _named(model: str) -> str:
    """A file or folder by its whole path, since notebooks run in another folder."""
    loading.check_name(model)
    path = Path(model).expanduser()
    # Of a link its own name: a model's folder of results is named by it.
    return os.path.abspath(path) if model not in EMBEDDED and path.exists() else model


def _called(model: str, name: str) -> str:
    """A link with this name to a local model, so that its pages and rows are named by it."""
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
    from calib_utils.book import build

    parts = _jobs(options)
    if not parts and options.panel is None:
        raise InvalidRequestError(
            "no notebook is left to run: leave out quick=True, which tells nothing of all models"
        )
    if options.dry_run:
        for name, why in _reasons(options, parts).items():
            print(f"{name}: {'; '.join(why) or 'current'}", flush=True)
        return 0
    done = _execute(options, parts)
    if not all(done.values()):
        return 1
    if paths.executed_dir(HEADLINE, paths.book_dir().resolve()) in parts:
        build.write_readme_figure()
    return 0


def _jobs(options) -> dict[Path, dict]:
    """Folder of executed copies -> its notebooks with their parameters; settles `options`.

    All parameters are checked before a model is fetched and a notebook takes its minutes.
    """
    options.model = _named(options.model)
    if options.name is not None:
        options.model = _called(options.model, options.name)
    if quick := any(pair.replace(" ", "") == "quick=True" for pair in options.parameter):
        _apart(options)
    options.book_dir = Path(options.book_dir or paths.book_dir()).resolve()
    names = options.notebook or [*notebooks.notebook_names(), *notebooks.panel_names()]
    known = {key for name in names for key in notebooks.parameters_of(name)}
    for key, equals, _ in (pair.partition("=") for pair in options.parameter):
        if equals and key not in known:
            raise NotebookParameterError(str(UnknownNameError("parameter", key, known)))
    jobs, panel_jobs = {}, {}
    for name in names:
        about_all = notebooks.is_about_all(name)
        if options.panel in (None, about_all) and not (quick and about_all):
            (panel_jobs if about_all else jobs)[name] = _parameters(options, name)
    parts = {paths.executed_dir(_key(options), options.book_dir): jobs} if jobs else {}
    return parts | ({paths.panel_dir(options.book_dir): panel_jobs} if panel_jobs else {})


def _reasons(options, parts: dict[Path, dict]) -> dict[str, list[str]]:
    """Why each notebook would be executed, by its name and what it is about."""
    return {
        f"{name} on {folder.name}": why
        for folder, jobs in parts.items()
        for name, why in notebooks.reasons(jobs, folder, options.force).items()
    }


def _execute(options, parts: dict[Path, dict]) -> dict[str, bool]:
    """Executes what is not current, a model's notebooks first: which, and whether it went well."""
    from calib_utils.book import contents

    done = {}
    for folder, jobs in parts.items():
        about_all = folder == paths.panel_dir(options.book_dir)
        prepare = (lambda: None) if about_all else (lambda: _prepare(options))
        done |= notebooks.execute(jobs, folder, force=options.force, prepare=prepare)
    contents.write_table_of_contents(options.book_dir)
    return done


def _panel(options) -> int:
    def run_of(model: str, name: str | None = None, panel: bool = False) -> argparse.Namespace:
        own = {"model": model, "name": name, "revision": None, "panel": panel}
        return argparse.Namespace(**vars(options) | own)

    there = None if options.memory_gb is None else options.memory_gb * 1e9
    plan = resources.panel_plan(options.dtype, options.device, options.models_dir, there)
    _jobs(run_of(DEFAULT_MODEL, panel=None))  # a wrong option is the fault of no model
    rows = []
    for planned in plan:
        one, outcome, why = planned.checkpoint, "skipped", planned.why_not
        if not why:  # a local copy is called as on the hub: its pages and rows are the same
            local = (str(planned.folder), one.key) if planned.folder else (one.hub,)
            outcome, why = _one_of_panel(run_of(*local))
        rows.append([one.hub, f"{planned.memory / 1e9:.1f}", outcome, why])
    if not options.dry_run and _run(run_of(DEFAULT_MODEL, panel=True)):
        rows.append(["all models", "", "failed", "see above"])
    table = pd.DataFrame(rows, columns=["model", "GB", "outcome", "why"])
    print(formatted(table, "text"))
    return 1 if (table.outcome == "failed").any() else 0


def _one_of_panel(options) -> tuple[str, str]:
    """Runs one model for `_panel`: what came of it, and why."""
    try:
        parts = _jobs(options)
        if options.dry_run:
            outcome, n_done = "to do", sum(map(bool, _reasons(options, parts).values()))
        else:
            outcome, done = "done", _execute(options, parts)
            if failed := [name for name, well in done.items() if not well]:
                return "failed", ", ".join(failed)
            n_done = len(done)
        n = sum(map(len, parts.values()))
        return (outcome, f"{n_done} of {n} pages") if n_done else ("current", f"{n} of {n} pages")
    except (CalibUtilsError, OSError) as error:  # the others can still be run
        _say_error(error)
        return "failed", f"{type(error).__name__}: {error}"


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
    if options.model not in EMBEDDED:
        try:
            size = resources.size_of(options.model, options.revision)
            told = resources.report(size, options.dtype, resolve_device(options.device))
        except CalibUtilsError as error:
            told = f"no forecast: {error}"
        print(told, file=sys.stderr, flush=True)
    _load(options)


def _parameters(options, name: str) -> dict:
    """What is injected into a notebook; one about all models takes of it what it has."""
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
    from calib_utils.book import contents

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
    return 0 if all(notebooks.execute(jobs, paths.panel_dir(book_dir)).values()) else 1


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


def _export(options) -> None:
    from calib_utils.book import build

    table = build.export(options.folder, options.model, options.pdf)
    print(f"{len(table)} files and a list of them, index.csv, in {options.folder}")


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

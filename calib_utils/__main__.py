"""`python -m calib_utils`: the same chain from a shell. Tables on stdout, progress on stderr."""

import argparse
import io
import os
import sys
from pathlib import Path

from calib_utils import files, paths
from calib_utils.book import commands as rooms
from calib_utils.errors import CalibUtilsError, InvalidRequestError
from calib_utils.models.registry import CORE, DEFAULT_MODEL


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; a user's mistake prints one line and gives exit status 2."""
    try:
        options = _parser().parse_args(arguments)
        for stream in (sys.stdout, sys.stderr):  # answers are not ASCII, and a locale may be
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        status = options.command(options) or 0
        sys.stdout.flush()  # here, where a pipe that is closed can still be told
        return status
    except CalibUtilsError as error:
        print(f"calib_utils: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("calib_utils: interrupted; what is finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


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
    return rooms.formatted(table, options.format)


def _prompt(options) -> None:
    from calib_utils.results.evaluation import show_prompt

    show_prompt(_load(options), options.task, end=options.end)


def _fetch(options) -> None:
    from calib_utils.models.loading import load_model

    for name in CORE if options.all else [options.model]:
        print(f"{name}: {load_model(name).folder}")


def _book(options) -> None:
    from calib_utils.book import build

    build.write_table_of_contents()
    first = build.build(options.output)
    print(f"The book is built. Open it in a browser:\n  {first.resolve().as_uri()}")
    if options.pdf:
        from calib_utils.book import build

        output = first.parents[2]
        print(f"and as a PDF:\n  {build.write_pdf(output / 'book.pdf', output)}")


def _toc(options) -> None:
    from calib_utils.book.build import write_table_of_contents

    print(write_table_of_contents())


def _reproduce(options) -> int:
    import pandas as pd

    from calib_utils.book import check

    asked = (options.results_dir or paths.default_results_dir(), options.model)
    todo = [(check.recompute, folder) for folder in check.stored_folders(*asked)]
    todo += [(check.recompute_study, path) for path in check.stored_studies(*asked)]
    if not todo:
        of = f" of {options.model}" if options.model else ""
        print(f"nothing{of} is stored in {asked[0]}", file=sys.stderr)
        return 1
    rows = []
    for recompute, place in todo:
        row = recompute(place, update=options.update)
        row.to_csv(sys.stdout, index=False, header=not rows, float_format="%.3g")
        sys.stdout.flush()
        rows.append(row)
    same = pd.concat(rows).same
    print(f"{same.sum()} of {len(same)} stored tables agree to {check.TOLERANCE:g}")
    return 0 if same.all() else 1


def _load(options):
    from calib_utils.models.loading import load_model

    return load_model(
        options.model, revision=options.revision, dtype=options.dtype, device=options.device
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m calib_utils", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default=DEFAULT_MODEL, help="embedded name, hub id, path")
    model.add_argument("--revision", help="hub commit, branch or tag")
    model.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    model.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")

    task = argparse.ArgumentParser(add_help=False)
    task.add_argument("--task", required=True, help="rng-3, us-states, ... or a .json file")
    task.add_argument("--end", default="eos", help="eos, line or none")

    add = commands.add_parser("evaluate", parents=[model, task], help="exact validity, diversity")
    add.add_argument("--rule", action="append", help="none, top_k=50, top_p=0.9, min_p=0.1, ...")
    add.add_argument("--temperature", action="append", type=float)
    add.add_argument("--tokenizations", default="canonical", help="canonical or all")
    add.add_argument("--surface", default="exact", help="exact, any_space or any_case")
    add.add_argument("--batch-size", type=int)
    add.add_argument("--results-dir", type=Path, help="reuse and store rows here")
    add.add_argument("--format", choices=rooms.FORMATS, default="csv")
    add.add_argument("--output", type=Path, help="a file for the table, instead of stdout")
    add.set_defaults(command=_evaluate)

    add = commands.add_parser("prompt", parents=[model, task], help="what the model sees")
    add.set_defaults(command=_prompt)

    add = commands.add_parser("fetch", help="embedded model files into the cache")
    add.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    add.add_argument("--all", action="store_true", help="all that the book and the tests need")
    add.set_defaults(command=_fetch)

    rooms.add_commands(commands, model)

    add = commands.add_parser("book", help="build the pages from executed notebooks")
    add.add_argument("--output", type=Path)
    add.add_argument("--pdf", action="store_true", help="print it to a PDF as well, by Chromium")
    add.set_defaults(command=_book)

    add = commands.add_parser("toc", help="rewrite the book's table of contents")
    add.set_defaults(command=_toc)

    add = commands.add_parser("reproduce", help="recompute stored rows, print the differences")
    add.add_argument("--model", help="only this model's rows")
    add.add_argument("--results-dir", type=Path, help="by default this checkout's")
    add.add_argument("--update", action="store_true", help="replace the stored rows")
    add.set_defaults(command=_reproduce)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What the book holds: its parts, each chapter with the models it was run for, the order to read.

Knows the book's folder and the names of models. Reads no page but for its heading, builds nothing.
"""

import shutil
from pathlib import Path

import nbformat
import yaml

from calib_utils import files, paths
from calib_utils.errors import BookBuildError, InvalidRequestError, UnknownNameError
from calib_utils.models.registry import CORE, HEADLINE, book_order, find, human_name

# Pages before and after the chapters, in the order of reading.
ROOT, ARGUMENT = "intro", ("summary",)
TOOLS = ("explorer", "noise_floor", "bring_a_sampler", "add_your_model", "scale_out")
REFERENCE = (
    *("verdicts", "errata", "reference/glossary", "reference/benchmarks", "how_to_read"),
    *("reference/bibliography", "reference/cite"),
)
UPKEEP = "reference/maintainers"  # behind a chevron in the list of pages
FOR_UPKEEP = tuple(f"reference/{page}" for page in ("history", "faults", "mutation", "licences"))


def models_with_pages(book: Path | None = None) -> list[str]:
    """Keys of the models that have executed notebooks, by `book_order`."""
    folders = (Path(book or paths.book_dir()) / "results").glob("*/[0-9][0-9]_*.ipynb")
    return sorted({path.parent.name for path in folders}, key=book_order)


def model_of(docname: str) -> str | None:
    """The model that a page is about; None for prose and for pages about all models."""
    part, _, rest = docname.partition("/")
    return rest.rpartition("/")[0] if part == "results" and rest else None


def chapters(book: Path | None = None) -> dict[str, list[str]]:
    """Notebook -> its pages, without suffix, the headline model's first."""
    book, pages = Path(book or paths.book_dir()), {}
    folders = [paths.executed_dir(model, book) for model in models_with_pages(book)]
    for folder in (*folders, paths.panel_dir(book)):
        for path in folder.glob("[0-9][0-9]_*.ipynb"):
            page = path.relative_to(book).with_suffix("").as_posix()
            pages.setdefault(path.stem, []).append(page)
    return dict(sorted(pages.items()))


def failures(notebook: str, book: Path | None = None) -> dict[str, str]:
    """Models for which a chapter failed and has no page -> the error, from the kept copy."""
    found = {}
    for model in models_with_pages(book):
        folder = paths.executed_dir(model, book)
        kept = folder / f".failed-{notebook}.ipynb"
        if kept.is_file() and not (folder / f"{notebook}.ipynb").is_file():
            cells = nbformat.read(kept, as_version=4).cells
            errors = [o for c in cells for o in c.get("outputs", ()) if o.output_type == "error"]
            found[model] = f"{errors[-1].ename}: {errors[-1].evalue}" if errors else "it failed"
    return found


def reading_order(model: str | None = None, book: Path | None = None) -> list[str]:
    """Every page that "next" leads through, with each chapter once.

    Args:
        model: whose chapters; by default, and for a chapter it has not, the headline model's.
    """
    found = chapters(book).values()
    own = [next((page for page in pages if model_of(page) == model), pages[0]) for pages in found]
    return [ROOT, *ARGUMENT, *own, *TOOLS, *REFERENCE, UPKEEP, *FOR_UPKEEP]


def table_of_contents(book: Path | None = None) -> str:
    """The text of `_toc.yml`: each chapter once, and below it the same one of other models."""
    parts = {
        "The argument": [{"file": page} for page in ARGUMENT],
        "Chapters": [_entry(*pages) for pages in chapters(book).values()],
        "Tools": [{"file": page} for page in TOOLS],
        "Reference": [*({"file": page} for page in REFERENCE), _entry(UPKEEP, *FOR_UPKEEP)],
    }
    told = [{"caption": name, "chapters": pages} for name, pages in parts.items() if pages]
    contents = {"format": "jb-book", "root": ROOT, "parts": told}
    head = "# Written by `python -m calib_utils toc` from the executed notebooks; do not edit.\n"
    return head + yaml.safe_dump(contents, sort_keys=False, allow_unicode=True, width=1000)


def _entry(page: str, *below: str) -> dict:
    sections = []
    for one in below:
        model = model_of(one)
        sections.append({"file": one} | ({"title": human_name(model)} if model else {}))
    return {"file": page} | ({"sections": sections} if sections else {})


def write_table_of_contents(book: Path | None = None) -> Path:
    """Writes the book's `_toc.yml` where it differs, as a whole: two runs may end together."""
    target = Path(book or paths.book_dir()) / "_toc.yml"
    try:
        return files.keep(target, table_of_contents(book).encode())
    except OSError as error:
        raise BookBuildError(f"cannot write {target} ({error}): make it writable") from error


def title_of(page: str, book: Path | None = None) -> str:
    """The heading of an executed notebook, without what comes after a colon."""
    path = Path(book or paths.book_dir()) / f"{page}.ipynb"
    heading = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
    return heading.removeprefix("# ").partition(":")[0]


def described_models(book: Path | None = None) -> str:
    """Entries of a glossary: each model's name, what it is, and where its chapters begin."""
    told = []
    for model in models_with_pages(book):
        known = find(model)
        page = next(p for ps in chapters(book).values() for p in ps if model_of(p) == model)
        what = f", a {known.stage} model" if known else ""
        first = f"[{title_of(page, book)}](/{page}.ipynb)"
        told.append(f"{human_name(model)}\n  `{model}`{what}. Its chapters begin with {first}.")
    return "\n\n".join(told)


def remove_model(model: str, *folders: Path) -> list[Path]:
    """Deletes a model's folder from each of these places of models' folders.

    Args:
        model: the name of its folder, or the hub id that it was run as.

    Returns:
        What was deleted.

    Raises:
        InvalidRequestError: a model that the book and its tests rest on, or nothing can be deleted.
        UnknownNameError: it is in none of the places.
    """
    places = [path for folder in folders for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    names = {model, model.replace("/", "--")}
    found = [path for path in places if path.name in names]
    if names & {*CORE, HEADLINE}:
        raise InvalidRequestError(f"{model}: the book rests on it, so its pages and rows stay")
    if not found:
        known = sorted({path.name for path in places} - {*CORE, HEADLINE})
        raise UnknownNameError("model with pages or rows", model, known)
    for path in found:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise InvalidRequestError(
                f"cannot remove {path} ({error}): make it writable, or end what uses it"
            ) from error
    return found

"""Verdicts of all chapters in tables: what is said now, at a glance and in words, and before.

Reads executed notebooks and a table of earlier verdicts. Decides nothing: the studies do.
"""

import json
from html import escape
from pathlib import Path

import nbformat
import pandas as pd

from calib_utils import paths
from calib_utils.book import contents, notebooks
from calib_utils.models.registry import HEADLINE, human_name
from calib_utils.studies.reporting import CLAIM, EXCLUDED, KINDS, NOT_DECIDED

ALL = "all models"  # in the place of a model, for statements of the page about all
ANCHOR = "claims-and-findings"  # the section of every chapter that has the numbers behind a verdict
# How a link to a page begins until it is known where that page is written.
PAGE = "page:"
_CHANGES = "verdict_changes.csv"


def verdicts(book: Path | None = None) -> pd.DataFrame:
    """Every statement of the executed notebooks: chapter, page, model, claim, kind, verdict."""
    book, rows = Path(book or paths.book_dir()), []
    for chapter, pages in contents.chapters(book).items():
        for page in pages:
            where = {"chapter": chapter, "page": page, "model": contents.model_of(page) or ALL}
            told = notebooks.glued(nbformat.read(book / f"{page}.ipynb", as_version=4))
            rows += [where | one for one in json.loads(told.get("verdicts", "[]"))]
    return pd.DataFrame(rows, columns=["chapter", "page", "model", "claim", "kind", "verdict"])


def tally(model: str = HEADLINE, book: Path | None = None) -> str:
    """How many measured claims have each verdict for one model, in a sentence."""
    found = verdicts(book)
    own = found[(found.model == model) & (found.kind == CLAIM)].verdict
    words = KINDS[CLAIM]
    tested, yes, no = ((own != EXCLUDED).sum(), *((own == w).sum() for w in words[1:3]))
    left = f"; {n} more cannot be tested on it" if (n := (own == EXCLUDED).sum()) else ""
    return (
        f"Of the {tested} measured claims of the paper that this book tests on "
        f"{human_name(model)}, {yes} are reproduced, {no} are not, and {tested - yes - no} are not "
        f"decided{left}."
    )


# At a glance and in words: HTML, one letter a verdict


def _looks(kind: str) -> dict[str, tuple[str, str]]:
    """Verdict -> its letter and its class, for one kind of statement."""
    words = KINDS[kind]
    return {
        words.yes: (words.yes[0].upper(), "yes"),
        # That a theorem says nothing of a model is nothing against either.
        words.no: (words.no[0].upper(), "apart" if words.no.startswith("does") else "no"),
        words.neither: ("?", "open"),
        EXCLUDED: ("–", "left"),
    }


def _square(row) -> str:
    """A verdict as a letter that leads to the numbers behind it."""
    letter, look = _looks(row.kind)[row.verdict]
    said = escape(f"{row.verdict}: {row.claim} ({human_name(row.model)})", quote=True)
    return (
        f'<a class="cu-v cu-{look}" href="{PAGE}{row.page}#{ANCHOR}" title="{said}" '
        f'aria-label="{said}">{letter}</a>'
    )


def _models(found: pd.DataFrame, book: Path | None) -> list[str]:
    there = set(found.model)
    return [model for model in contents.models_with_pages(book) if model in there]


def _table(models: list[str], name: str, rows: list[str]) -> str:
    names = map(escape, map(human_name, models))
    heads = "".join(f'<th scope="col"><span>{model}</span></th>' for model in names)
    head = f'<thead><tr><th scope="col">{name}</th>{heads}</tr></thead>'
    label = f'class="cu-matrix cu-by-{name}" aria-label="Verdicts by {name} and model"'
    return f"<table {label}>{head}{''.join(rows)}</table>"


def _cells(own: pd.DataFrame, models: list[str], failed: dict[str, str]) -> str:
    """The verdicts of some statements, a cell a model; one cell for what is about all models."""
    squares = [
        "".join(_square(row) for row in own[own.model == model].itertuples())
        or (f'<i title="{escape(failed[model], quote=True)}">failed</i>' if model in failed else "")
        for model in (models if ALL not in own.model.to_numpy() else [ALL])
    ]
    span = f' colspan="{len(models)}"' if len(squares) < len(models) else ""
    return "".join(f"<td{span}><div>{cell}</div></td>" for cell in squares)


def at_a_glance(book: Path | None = None) -> str:
    """The paper's measured claims as a table in HTML: a row a chapter, a column a model."""
    found = verdicts(book)
    found = found[found.kind == CLAIM]
    models, rows = _models(found, book), []
    for chapter, own in found.groupby("chapter"):
        failed = contents.failures(chapter, book)
        page = own.page.iloc[0]
        title = escape(contents.title_of(page, book))
        link = f'<a href="{PAGE}{page}">{title}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{_cells(own, models, failed)}</tr>')
    return _table(models, "chapter", [f"<tbody>{''.join(rows)}</tbody>"])


def in_words(measured: bool, book: Path | None = None) -> str:
    """Every statement as a row of a table in HTML, under its chapter; a column a model.

    Args:
        measured: the paper's measured claims, or all other kinds of statements.
    """
    found = verdicts(book)
    found = found[(found.kind == CLAIM) == measured]
    models, parts = _models(found, book), []
    for chapter, of_chapter in found.groupby("chapter"):
        failed = contents.failures(chapter, book)
        title = escape(contents.title_of(of_chapter.page.iloc[0], book))
        head = f'<th scope="rowgroup" colspan="{len(models) + 1}">{title}</th>'
        rows = [f"<tr>{head}</tr>"]
        for (claim, kind), own in of_chapter.groupby(["claim", "kind"], sort=False):
            sort = "" if measured else f" <em>({kind})</em>"
            row = f'<th scope="row">{escape(claim)}{sort}</th>'
            rows.append(f"<tr>{row}{_cells(own, models, failed)}</tr>")
        parts.append(f"<tbody>{''.join(rows)}</tbody>")
    return _table(models, "claim", parts)


def legend(kinds: list[str]) -> str:
    """What the letters of some kinds of statements mean, as a line of HTML."""
    words = dict.fromkeys(
        (letter, look, word)
        for kind in kinds
        for word, (letter, look) in _looks(kind).items()
        if word not in (NOT_DECIDED, EXCLUDED)
    )
    words |= {("?", "open", NOT_DECIDED): None, ("–", "left", f"{EXCLUDED}, cannot do it"): None}
    told = (f'<span><b class="cu-v cu-{look}">{at}</b> {word}</span>' for at, look, word in words)
    return f'<p class="cu-letters">{" ".join(told)}</p>'


# Before and now


def history(book: Path | None = None) -> str:
    """Rows of a Markdown table: every claim with its verdicts before and now, and the reason.

    What was said before, and why it changed, is kept in a table beside the pages; what is said now
    is read from the executed notebooks. A statement that is in the notebooks alone is new.
    """
    book = Path(book or paths.book_dir())
    old, now = pd.read_csv(book / _CHANGES, keep_default_na=False), verdicts(book)
    models = [name for name in old.columns if name not in ("chapter", "before", "now", "reason")]
    rows, told = [], set()
    for row in old.to_dict("records"):
        before = {model: row[model] for model in models if row[model]}
        told.add((row["chapter"], row["now"]))
        own = now[(now.chapter == row["chapter"]) & (now.claim == row["now"])]
        rows.append(
            (
                row["chapter"],
                row["before"],
                _by_verdict(before),
                *_now(row["now"], own),
                row["reason"],
            )
        )
    for (chapter, claim), own in now.groupby(["chapter", "claim"], sort=False):
        if (chapter, claim) not in told:
            rows.append((chapter, "–", "–", *_now(claim, own), "new"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _now(claim: str, own: pd.DataFrame) -> tuple[str, str]:
    if not claim:
        return "dropped", "–"
    kind = f" *({own.kind.iloc[0]})*" if len(own) else ""
    return claim + kind, _by_verdict(dict(zip(own.model, own.verdict, strict=True))) or "not run"


def _by_verdict(said: dict[str, str]) -> str:
    """Verdicts with the models that have each."""
    models: dict[str, list[str]] = {}
    for model, verdict in said.items():
        models.setdefault(verdict, []).append(human_name(model))
    return "; ".join(f"**{verdict}** {', '.join(own)}" for verdict, own in models.items())

"""What every page does: opens a model, decides claims, prints tables, glues numbers into prose.

Computes no number and looks at no clock: run again from the same rows, a page says the same.
"""

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from IPython.display import HTML
from pyarrow import parquet
from tqdm.auto import tqdm

from calib_utils import paths
from calib_utils.core.metrics import DECIDES, as_text, cluster_interval
from calib_utils.core.prompts import Policies
from calib_utils.models.loading import Model, load_model
from calib_utils.results import records, storage

# Below this validity a model hardly does the task, and its curve says nothing about a claim.
TESTABLE = 0.05
# Two machines agree this well, on numbers such as Val, Div and areas, and on the logarithms of
# ratios. A verdict must not hang on less.
AGREEMENT = 1e-3
RATIO_AGREEMENT = 1e-2


class Kind(NamedTuple):
    """What several statements of a kind are called, and its words for yes, no and neither."""

    several: str
    yes: str
    no: str
    neither: str = "not decided"


CLAIM, HYPOTHESIS, THEOREM, OURS = "measured claim", "hypothesis", "theorem check", "test of ours"
# Counted apart everywhere: only the first is what the paper measured.
KINDS = {
    CLAIM: Kind("measured claims of the paper", "reproduced", "not reproduced"),
    HYPOTHESIS: Kind("hypotheses of theorems", "holds", "does not apply to this model"),
    THEOREM: Kind("theorem checks", "holds", "violated"),
    OURS: Kind("tests of ours", "yes", "no"),
}
REPRODUCED, NOT_REPRODUCED, NOT_DECIDED = VERDICTS = KINDS[CLAIM][1:]
EXCLUDED = "excluded"  # the model cannot do what the statement is about; in no count


class Finding(NamedTuple):
    """A statement, what was found here, and the verdict: `EXCLUDED`, or as of a measured claim."""

    claim: str
    source: str
    found: str
    verdict: str
    kind: str = CLAIM


def table_of(findings: Iterable[Finding]) -> pd.DataFrame:
    """Rows of kind, claim, in the paper (where), found, verdict, this in the words of its kind."""
    table = pd.DataFrame(findings, columns=Finding._fields)
    words = (
        {EXCLUDED: EXCLUDED, **dict(zip(VERDICTS, KINDS[k][1:], strict=True))} for k in table.kind
    )
    table["verdict"] = [own[word] for own, word in zip(words, table.verdict, strict=True)]
    return table[["kind", *Finding._fields[:-1]]].rename(columns={"source": "in the paper"})


def decided(low: float, high: float, above: float, agreement: float = AGREEMENT) -> str:
    """The verdict on "larger than `above`" from an interval that does not hold both answers.

    An end within `agreement` of `above` may lie on its other side on another machine.
    """
    if low > above + agreement:
        return REPRODUCED
    return NOT_REPRODUCED if high < above - agreement else NOT_DECIDED


def voted(
    claim: str,
    source: str,
    told: str,
    margins: pd.Series | Mapping,
    excluded: Iterable[str] = (),
    *,
    kind: str = CLAIM,
    of: str = "task",
    agreement: float = AGREEMENT,
) -> Finding:
    """A statement that the majority decides, with the count.

    Args:
        told: the numbers that decide, for the table.
        margins: how far each task lies on the statement's side of where it is decided; one within
            `agreement` of 0 votes for neither side.
        excluded: names of the tasks, or of what `of` says, that do not vote, since the model
            cannot do them.
    """
    margins, found = pd.Series(margins, dtype=float), []
    said = majority(margins, agreement)
    if n := len(margins):
        plural = of.removesuffix("y") + ("ies" if of.endswith("y") else "s")
        in_favour = (margins > agreement).sum()
        found.append(f"on {in_favour} of {n} {of if n == 1 else plural}: {told}")
    if excluded := list(excluded):
        found.append(f"excluded: {', '.join(excluded)}")
        said = said if n else EXCLUDED
    return Finding(claim, source, "; ".join(found) or f"no {of} to decide it on", said, kind)


def majority(margins: pd.Series, agreement: float = AGREEMENT) -> str:
    """The verdict that more than half of the `margins` of `voted` give."""
    if 2 * (margins > agreement).sum() > len(margins):
        return REPRODUCED
    return NOT_REPRODUCED if 2 * (margins < -agreement).sum() > len(margins) else NOT_DECIDED


def able(table: pd.DataFrame, column: str = "validity") -> tuple[list[str], list[str]]:
    """The tasks of which some row is at least `TESTABLE`, and the others, to exclude by name."""
    best = table.groupby("task", sort=False)[column].max()
    can = best >= TESTABLE
    return list(best.index[can]), list(best.index[~can])


def on_tasks(n: int, n_able: int) -> str:
    """On how many of the tasks that a model can do, as the end of a sentence."""
    if not n_able:
        return "on no task, because this model can do none of them"
    if n_able == 1:
        return "on the one task that it can do" if n else "on no task, and it can do one of them"
    return f"on {n} of the {n_able} tasks that this model can do"


def listed(names, values, form: str) -> str:
    """Names and values in one line, each pair in `form`."""
    return ", ".join(form.format(name, value) for name, value in zip(names, values, strict=True))


def over(tasks: Iterable[str], table: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """What `table` gives for each task, below each other, with a column `task`.

    The bar appears after a second, so not where all is stored.
    """
    waited_for = tqdm(list(tasks), desc="tasks", unit="task", leave=False, delay=1)
    return pd.concat([table(task).assign(task=task) for task in waited_for], ignore_index=True)


def stacked(tables: Mapping, names: list[str], columns: Iterable[str] = ()) -> pd.DataFrame:
    """Tables below each other, their keys in columns in front; without any, empty `columns`."""
    if not tables:
        return pd.DataFrame(columns=[*names, *columns])
    return pd.concat(tables, names=[*names, None]).reset_index(names).reset_index(drop=True)


def glue_number(key: str, value: float | int | str, form: str = "{:.2f}") -> None:
    """Stores a number for the book's prose, as text in the form it is shown."""
    from myst_nb import glue

    text = value if isinstance(value, str) else form.format(value)
    glue(key, "not defined" if text == "nan" else text, display=False)


def glue_verdicts(found: pd.DataFrame) -> None:
    """Stores the verdicts for the prose of other pages, each kind of statement apart.

    Counts of the paper's claims by verdict; and `verdicts`, every statement with its kind and
    verdict, as JSON.
    """
    own = found[found.kind == CLAIM]
    glue_number("claims", int((own.verdict != EXCLUDED).sum()), "{}")
    for verdict in (*VERDICTS, EXCLUDED):
        glue_number(verdict.replace(" ", "_"), int((own.verdict == verdict).sum()), "{}")
    said = found[["claim", "kind", "verdict"]].to_dict("records")
    glue_number("verdicts", json.dumps(said, ensure_ascii=False))


def show(
    table: pd.DataFrame,
    digits: int = 2,
    floor: float = 0.0,
    zeros: bool = False,
    empty: str = "This model gives no number for this table.",
) -> HTML:
    """The table for the page: numbers to `digits` significant digits, wide ones scroll.

    What lies nearer to 0 than `floor` is rounding, and is shown as a bound; with `zeros` an exact 0
    is shown as such, where it is one on every machine. Without rows it is the sentence `empty`.
    """
    if table.empty:
        return HTML(f"<p>{html.escape(empty)}</p>")

    def text(value) -> str:
        if isinstance(value, float):
            if abs(value) < floor and not (zeros and value == 0):
                return f"< {floor:g}"
            return "–" if pd.isna(value) else f"{value:.{digits}g}"
        return str(value)

    with pd.option_context("display.max_colwidth", None):
        body = table.map(text).to_html(index=False, border=0, classes="numbers")
    # Sentences wrap in a column of their own width; names and numbers stay on one line.
    body = re.sub(r"<td>(?=[^<]{29})", '<td class="long">', body)
    body = body.replace("<td>", '<td class="short">')
    return HTML(f'<div class="table-scroll" tabindex="0">{body}</div>')


def fold(table: pd.DataFrame, title: str, **options) -> HTML:
    """A long table, as `show` makes it, behind a line to click; the book adds its CSV there."""
    if table.empty:
        return show(table, **options)
    body, rows = show(table, **options).data, f"{len(table)} row{'s' * (len(table) != 1)}"
    head = f"<summary>{html.escape(title)} ({rows})</summary>"
    return HTML(f'<details class="table-fold">{head}{body}</details>')


def show_findings(found: pd.DataFrame) -> HTML:
    """`table_of`'s rows by kind: each statement and its verdict; what was found opens below it."""
    parts = []
    for kind, own in found.groupby("kind", sort=False):
        rows = [f'<tr><th scope="rowgroup" colspan="2">{KINDS[kind].several}</th></tr>']
        for row in own.drop(columns="kind").itertuples(index=False, name=None):
            claim, place, numbers, verdict = (html.escape(text, quote=False) for text in row)
            said = f"{claim} <small>{place}</small>"
            said = f"<details><summary>{said}</summary>{numbers}</details>"
            rows.append(f'<tr><td class="long">{said}</td><td class="short">{verdict}</td></tr>')
        parts.append(f"<tbody>{''.join(rows)}</tbody>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("statement", "verdict"))
    body = f"<thead><tr>{head}</tr></thead>{''.join(parts)}"
    body = f'<table class="numbers cu-findings">{body}</table>'
    return HTML(f'<div class="table-scroll" tabindex="0">{body}</div>')


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each estimate and its interval in one cell, for the eye.

    Takes columns `x`, `x_low`, `x_high`, and `low`, `high` as those of the column before `low`.
    Fewer than `DECIDES` prompts (`n_prompts`) have no interval.
    """
    table = without_small_intervals(table)
    for low in [name for name in table if name == "low" or name.endswith("_low")]:
        high = low.removesuffix("low") + "high"
        before = table.columns[table.columns.get_loc(low) - 1]
        value = before if low == "low" else low.removesuffix("_low")
        cells = table[[value, low, high]].itertuples(index=False, name=None)
        table[value] = [as_text(*cell) for cell in cells]
        table = table.drop(columns=[low, high])
    return table


def without_small_intervals(table: pd.DataFrame, n: str = "n_prompts") -> pd.DataFrame:
    """The table without the bounds (`low`, `x_high`, …) that rest on fewer than `DECIDES`."""
    bounds = [name for name in table if re.fullmatch("(.*_)?(low|high)", str(name))]
    if n in table:
        return table.assign(**table[bounds].where(table[n] >= DECIDES))
    return table.copy()


def mean_text(table: pd.DataFrame, value: str, outer: str) -> str:
    """A mean over clusters with its interval, or with every point where they are too few."""
    found = cluster_interval(table, value, outer, None)
    if found.n_outer >= DECIDES or not found.n_outer:
        return as_text(found.mean, found.low, found.high, undefined="not defined")
    points = sorted(table.dropna(subset=value).groupby(outer)[value].mean())
    return f"{found.mean:.2f} (points {', '.join(f'{point:.2f}' for point in points)})"


def of_records(described: Iterable[dict], verb: str = "measured") -> str:
    """When, under which convention and at what cost stored numbers came about; seconds added up."""
    described = list(described)
    if not described:
        return live()
    dates = sorted({record["environment"]["date"] for record in described})
    seconds = sum(record.get("seconds", 0.0) for record in described)
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    cost = f" in {math.ceil(seconds):,} s" if seconds else ""
    under = sorted({str(record["convention"]) for record in described})
    return f"{verb} {when}{cost}, convention {', '.join(under)}"


def live() -> str:
    """The same line for what is computed when a page runs, and stored nowhere."""
    return "computed when this page ran"


def _records(folders: Iterable[Path]) -> list[dict]:
    files = (folder / storage.RECORD for folder in folders)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def end_policy(model: Model, end: str) -> str:
    """The end policy asked for; by default `line` for a base model, which rarely ends a turn."""
    return end or ("eos" if model.tokenizer.chat_template else "line")


def source_of(model: Model) -> str:
    """The weights a number comes from, in one line."""
    return f"{model.weights_file} (SHA-256 {model.weights_sha256[:12]}…, {model.dtype})"


@dataclass(frozen=True)
class Page:
    """What a notebook starts with: its model, where rows are kept, and how it tells its numbers."""

    model: Model | None
    store: Path | None
    end: str
    source: str  # the weights that the numbers come from and what closes an answer, in one line

    show = staticmethod(show)
    fold = staticmethod(fold)
    show_findings = staticmethod(show_findings)
    glue = staticmethod(glue_number)
    glue_verdicts = staticmethod(glue_verdicts)
    with_intervals = staticmethod(with_intervals)
    live = staticmethod(live)

    @property
    def asked(self) -> dict:
        """The arguments of `evaluate` that are the same all over a page."""
        return {"end": self.end, "results_dir": self.store}

    @property
    def weights(self) -> str:
        """The weights that the numbers come from, in one line."""
        return source_of(self.model)

    def glue_each(self, numbers: Mapping[str, float | int | str], form: str = "{:.2f}") -> None:
        """Stores several numbers for the prose, in one form."""
        for key, value in numbers.items():
            glue_number(key, value, form)

    def when_measured(self, tasks: Iterable[str] | None = None) -> str:
        """When rows were measured, for the line below a figure: of some tasks, or all there are."""
        if tasks is None:
            return of_records(_records(self.store.glob("*/[!.]*")))
        dtype = "" if self.model.dtype == "float32" else f"@dtype={self.model.dtype}"
        suffix = Policies(end=self.end).suffix + dtype
        key = self.model.key
        return of_records(
            _records(storage.folder_of(self.store, key, task, suffix) for task in tasks)
        )

    def when_written(self, names: Iterable[str]) -> str:
        """The same of stored texts. Their records hold no seconds, so the cost is their number."""
        if self.store is None:
            return live()
        folders = [records.folder_of(self.store, self.model.key, name) for name in names]
        files = (file for folder in folders for file in folder.glob("[!.]*.parquet"))
        n_texts = sum(parquet.read_metadata(file).num_rows for file in files)
        return of_records(_records(folders), f"{n_texts:,} texts, written")


def open_page(
    model: str | Path | None = None,
    *,
    revision: str = "",
    dtype: str = "float32",
    device: str = "auto",
    results_dir: str | Path | None = "",
    end: str = "",
    chat: bool | None = None,
) -> Page:
    """Opens a notebook's page: its model, or all models if `model` is None, and its results.

    Args:
        results_dir: where rows are stored and reused; empty: `data/results` of this checkout;
            None: nowhere.
        end: what closes an answer; empty: `line` for a base model, else `eos`.
        chat: as for `load_model`; None lets the model's stage decide.

    Raises what `load_model` raises.
    """
    store = None if results_dir is None else Path(results_dir or paths.default_results_dir())
    if model is None:
        source = "numbers from data/results; weights and their SHA-256 are in the table of models"
        return Page(None, store, end, source)
    loaded = load_model(model, revision=revision or None, dtype=dtype, device=device, chat=chat)
    policy = end_policy(loaded, end)
    return Page(loaded, store, policy, f"{source_of(loaded)}, end = {policy}")

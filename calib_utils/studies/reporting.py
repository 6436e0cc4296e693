"""What every page does: opens a model, decides claims, prints tables, glues numbers into prose.

Knows the book's tools (myst-nb's glue, pandas' display) and the records beside stored numbers.
Computes no number and looks at no clock: run again from the same rows, a page says the same.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from pyarrow import parquet

from calib_utils import paths
from calib_utils.core.metrics import as_text
from calib_utils.core.prompts import Policies
from calib_utils.models.loading import Model, load_model
from calib_utils.results import records, storage

# Below this validity a model hardly does the task, and its curve says nothing about the claim.
TESTABLE = 0.05
VERDICTS = ("reproduced", "not reproduced", "not testable here")
REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = VERDICTS
# Two machines agree this well, on numbers such as Val, Div and areas, and on the logarithms of
# ratios. A verdict must not hang on less.
AGREEMENT = 1e-3
RATIO_AGREEMENT = 1e-2
# Ends the source of a claim whose test is ours; these are counted apart.
OURS = "not tested in the paper"


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, what was found here, and the verdict."""

    claim: str
    source: str
    found: str
    verdict: str


def verdict(testable: bool, holds, agreement: float = AGREEMENT) -> str:
    """The verdict on a claim about exact numbers.

    Args:
        holds: how far each number lies on the claim's side of where it is decided; or a truth,
            where counts decide.
        agreement: a number nearer to where it is decided than this leaves the claim open.
    """
    if not testable or not np.size(holds):
        return NOT_TESTABLE
    if isinstance(holds, bool):
        return REPRODUCED if holds else NOT_REPRODUCED
    least = np.min(np.asarray(holds))
    return decided(least, least, 0.0, agreement)


def or_equal(holds) -> np.ndarray:
    """Distances for `verdict` where a claim allows equality: rounding makes it more or less."""
    return np.asarray(holds) + 2 * AGREEMENT


def decided(low: float, high: float, above: float, agreement: float = AGREEMENT) -> str:
    """The verdict on "larger than `above`" from an interval that does not hold both answers.

    An end of the interval within `agreement` of `above` may lie on its other side on another
    machine, so it decides nothing.
    """
    if low > above + agreement:
        return REPRODUCED
    return NOT_REPRODUCED if high < above - agreement else NOT_TESTABLE


def too_low() -> str:
    """What is found where a model hardly does a task."""
    return f"validity stays below {TESTABLE:g} at every setting looked at"


def decide(claim: str, source: str, found: str, testable: bool, holds, agreement=AGREEMENT):
    """The finding on a claim by `verdict`; where it is not testable, that validity is too low."""
    told = found if testable else too_low()
    return Finding(claim, source, told, verdict(testable, holds, agreement))


def listed(names, values, form: str) -> str:
    """Names and values in one line, each pair in `form`."""
    return ", ".join(form.format(name, value) for name, value in zip(names, values, strict=True))


def over(tasks: Iterable[str], table: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """What `table` gives for each task, below each other, with a column `task`."""
    return pd.concat([table(task).assign(task=task) for task in tasks], ignore_index=True)


def glue_number(key: str, value: float | int | str, form: str = "{:.2f}") -> None:
    """Stores a number for the book's prose, as text in the form it is shown."""
    from myst_nb import glue

    text = value if isinstance(value, str) else form.format(value)
    glue(key, "not defined" if text == "nan" else text, display=False)


def glue_verdicts(found: pd.DataFrame) -> None:
    """Stores how many of the paper's claims have each verdict, and how many claims there are.

    Tests of ours are counted apart: `own_verdicts`, the three counts, where there are any.
    """
    ours = found.source.str.endswith(OURS)
    for verdict, count in _counts(found[~ours]).items():
        glue_number(verdict.replace(" ", "_"), count, "{}")
    glue_number("claims", int((~ours).sum()), "{}")
    if ours.any():
        glue_number("own_verdicts", ", ".join(map(str, _counts(found[ours]).values())))
    glue_number("headline", headline(found))


def headline(found: pd.DataFrame) -> str:
    """A chapter's verdicts in words: how many of each, and the claims that do not hold."""
    ours = found.source.str.endswith(OURS)
    text = _in_words("claims", found[~ours])
    own = _in_words("tests that the paper does not make", found[ours])
    return f"{text} {own}" if ours.any() else text


def _counts(found: pd.DataFrame) -> dict[str, int]:
    return {verdict: int((found.verdict == verdict).sum()) for verdict in VERDICTS}


def _in_words(what: str, found: pd.DataFrame) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(found).items())
    failed = "; ".join(f"“{claim}”" for claim in found.claim[found.verdict == NOT_REPRODUCED])
    return f"Of {len(found)} {what}: {counts}." + f" Not reproduced: {failed}." * bool(failed)


def show(table: pd.DataFrame, digits: int = 2, floor: float = 0.0, zeros: bool = False) -> HTML:
    """The table for the page: numbers to `digits` significant digits, wide ones scroll.

    What lies nearer to 0 than `floor` is only said to, where it is rounding and differs by machine;
    with `zeros` an exact 0 is shown as such, where it is one on every machine.
    """

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


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each estimate and its interval in one cell, for the eye.

    Takes columns `x`, `x_low`, `x_high`, and `low`, `high` as those of the column before `low`.
    """
    table = table.copy()
    for low in [name for name in table if name == "low" or name.endswith("_low")]:
        high = low.removesuffix("low") + "high"
        before = table.columns[table.columns.get_loc(low) - 1]
        value = before if low == "low" else low.removesuffix("_low")
        cells = table[[value, low, high]].itertuples(index=False, name=None)
        table[value] = [as_text(*cell) for cell in cells]
        table = table.drop(columns=[low, high])
    return table


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
    """Loads what a notebook's parameters name; without a model, for a page about all models.

    Args:
        results_dir: where rows are stored and reused; empty: `data/results` of this checkout;
            None: nowhere.
        end: what closes an answer; empty: `line` for a base model, else `eos`.
        chat: as for `load_model`; None lets the model's stage decide.

    Raises:
        CalibUtilsError: a named subclass, as for `load_model`.
    """
    store = None if results_dir is None else Path(results_dir or paths.default_results_dir())
    if model is None:
        source = "numbers from data/results; weights and their SHA-256 are in the table of models"
        return Page(None, store, end, source)
    loaded = load_model(model, revision=revision or None, dtype=dtype, device=device, chat=chat)
    policy = end_policy(loaded, end)
    return Page(loaded, store, policy, f"{source_of(loaded)}, end = {policy}")

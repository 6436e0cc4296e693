"""Human labels: a sheet to fill in, an offline page to fill it in with, and how both are read.

A sheet is a CSV file with one row per text and annotator. Knows files and nothing of judges; the
project itself holds no human labels.
"""

import csv
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import files, paths
from calib_utils.errors import AnnotationError
from calib_utils.labels import Item, check_items

COLUMNS = ("item", "prompt", "text", "ended", "annotator", "valid", "note")
_ANSWERS = {"yes": True, "no": False, "": None}
_ENDED = {True: "yes", False: "no"}
# A spreadsheet would compute a cell that begins like this; the page's script does the same.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_MAX_BYTES = 200_000_000


def annotation_sheet(items: pd.DataFrame, annotator: str = "") -> str:
    """A CSV sheet for one annotator: the items in order, each once, with `valid` left empty.

    To be filled in: `annotator`, a name or code; `valid`, yes or no, empty where undecided; `note`.
    Cells that a spreadsheet would take for a formula have an apostrophe in front.

    Raises:
        JudgeError: not a table of items.
        AnnotationError: a text that no file can hold.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for item in _distinct(items):
        cells = map(_guarded, (item.prompt, item.text))
        writer.writerow((item.digest, *cells, _ENDED[item.ended], _guarded(annotator), "", ""))
    return out.getvalue()


def annotation_page(items: pd.DataFrame, *, seed: int = 0) -> str:
    """A self-contained HTML page with which a person labels the items, offline.

    Keys: y valid, n not valid, u undecided, arrows to move. Labels stay in the browser and are
    saved as a CSV sheet by the download button. Items come in an order drawn from `seed`, so that
    what one model wrote does not come in a row; no judge's label is shown.

    Raises:
        JudgeError: not a table of items.
        AnnotationError: a text that no file can hold.
    """
    rows = [
        {"item": item.digest, "prompt": item.prompt, "text": item.text, "ended": item.ended}
        for item in _distinct(items)
    ]
    order = np.random.default_rng(seed).permutation(len(rows))
    # No text may close the script element or open a comment in it.
    data = json.dumps([rows[at] for at in order], ensure_ascii=False).replace("<", "\\u003c")
    template = paths.package_data("annotation", "page.html").read_text(encoding="utf-8")
    return template.replace("{{columns}}", html.escape(",".join(COLUMNS))).replace(
        "{{items}}", data
    )


def write_text(path: Path | str, content: str) -> Path:
    """Writes a sheet or page as a whole, in UTF-8; raises AnnotationError where it cannot."""
    path = Path(path)
    try:
        with files.whole(path) as draft:
            draft.write_bytes(content.encode("utf-8"))
    except OSError as error:
        raise AnnotationError(f"cannot write {path} ({error}): choose another place") from error
    return path


def read_annotations(*files: Path | str) -> pd.DataFrame:
    """Human labels from one or more sheets: `COLUMNS`, with `valid` True, False or NA.

    Raises:
        AnnotationError: not a sheet; a label other than yes, no or empty; a label without
            annotator; a text that is not the one that was handed out; two rows of one annotator
            for one text.
    """
    rows = [row for file in files for row in _read_file(Path(file))]
    seen: dict[tuple[str, str], str] = {}
    for place, row in rows:
        if row["annotator"]:
            key = row["item"], row["annotator"]
            if key in seen:
                raise AnnotationError(
                    f"{place}: {row['annotator']!r} labelled this text before, at {seen[key]}: "
                    "keep one of the rows"
                )
            seen[key] = place
    table = pd.DataFrame([row for _, row in rows], columns=list(COLUMNS))
    return table.astype({"ended": bool, "valid": "boolean"})


def votes(annotations: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Labels per item, in the order of `items`, with a column for each annotator; NA where none.

    Raises:
        AnnotationError: labels for texts that are not among the items.
    """
    digests = [item.digest for item in check_items(items)]
    labelled = annotations[annotations["valid"].notna()]
    foreign = set(labelled["item"]) - set(digests)
    if foreign:
        raise AnnotationError(
            f"{len(foreign)} labelled text(s) are not among the items, such as "
            f"{min(foreign)[:12]}: give the items that the sheet was made from"
        )
    wide = labelled.pivot(index="item", columns="annotator", values="valid")
    return wide.reindex(digests).reset_index(drop=True).rename_axis(columns=None).astype("boolean")


def _distinct(items: pd.DataFrame) -> list[Item]:
    found = list(dict.fromkeys(check_items(items)))
    for row, item in enumerate(found):
        try:
            (item.prompt + item.text).encode("utf-8")
        except UnicodeEncodeError as error:
            raise AnnotationError(f"item {row}: half a surrogate pair in {item.text!r}") from error
    return found


def _guarded(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _read_file(path: Path):
    """The rows of one sheet, each with the place it stands at, checked."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AnnotationError(f"{path} has more than {_MAX_BYTES:,} bytes: no annotation sheet")
        content = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path} is unreadable ({error}): save it as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        if tuple(next(reader, ())) != COLUMNS:
            raise AnnotationError(f"{path}: the first line must be {','.join(COLUMNS)}")
        lines = [(f"{path}, line {reader.line_num}", cells) for cells in reader if cells]
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {reader.line_num}: no CSV ({error})") from error
    for place, cells in lines:
        if len(cells) != len(COLUMNS):
            raise AnnotationError(f"{place}: {len(cells)} cells instead of {len(COLUMNS)}")
        yield place, _checked(place, dict(zip(COLUMNS, cells, strict=True)))


def _checked(place: str, row: dict) -> dict:
    prompt, text = _unguarded(row["prompt"]), _unguarded(row["text"])
    answer, annotator = row["valid"].strip().lower(), _unguarded(row["annotator"]).strip()
    ended = {word: value for value, word in _ENDED.items()}.get(row["ended"].strip().lower())
    if ended is None or Item(prompt, text, ended).digest != row["item"]:
        raise AnnotationError(
            f"{place}: prompt, text or ended is not what was handed out (a spreadsheet may have "
            "changed it): fill in annotator, valid and note only"
        )
    if answer not in _ANSWERS:
        raise AnnotationError(f"{place}: valid={row['valid']!r} must be yes, no or empty")
    if answer and not annotator:
        raise AnnotationError(f"{place}: a label without annotator; write a name or code")
    return {
        **{"item": row["item"], "prompt": prompt, "text": text, "ended": ended},
        **{"annotator": annotator, "valid": _ANSWERS[answer], "note": _unguarded(row["note"])},
    }

"""What every judge is given and returns: the table of items and the table of labels.

A judge is an object with `name`, `criteria` (which of `CRITERIA` it scores) and
`judge(items) -> labels`. People label in a CSV sheet. Knows no particular judge and no model.
"""

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calib_utils import files
from calib_utils.errors import JudgeError

CRITERIA = ("grammar", "semantics", "overall")
LABEL_COLUMNS = (*CRITERIA, "valid", "reason")
ITEM_COLUMNS = ("prompt", "text", "ended")
LOWEST, HIGHEST = 1, 10
SHEET_COLUMNS = ("item", "prompt", "text", "ended", "annotator", "valid", "note")
_SHEET_ANSWERS = {"yes": True, "no": False, "": None}
# The paper's threshold (App. A): valid where every scored criterion reaches it.
THRESHOLD = 9


@dataclass(frozen=True)
class Item:
    """One text to judge: the user's question, the model's whole response, and whether it ended.

    `ended` is False where the token limit cut the text off, which no judge may punish.
    """

    prompt: str
    text: str
    ended: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the three."""
        content = json.dumps([self.prompt, self.text, self.ended])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """Scores from 1 to 10 with a reason; None for a criterion that was not scored."""

    grammar: int | None = None
    semantics: int | None = None
    overall: int | None = None
    reason: str = ""


def plain_text(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_items(items: pd.DataFrame) -> list[Item]:
    """The rows of a table of items, in order.

    Raises:
        JudgeError: a column is missing, or a cell is not of its kind; the message names the row.
    """
    missing = [name for name in ITEM_COLUMNS if name not in getattr(items, "columns", ())]
    if missing:
        raise JudgeError(f"items need the columns {', '.join(ITEM_COLUMNS)}: {missing} missing")
    found = []
    for row, (prompt, text, ended) in enumerate(
        items[list(ITEM_COLUMNS)].itertuples(index=False, name=None)
    ):
        if not isinstance(prompt, str) or not isinstance(text, str):
            raise JudgeError(
                f"item {row}: prompt and text must be strings, got {prompt!r}, {text!r}"
            )
        if pd.isna(ended) or ended not in (True, False):
            raise JudgeError(f"item {row}: ended must be True or False, got {ended!r}")
        found.append(Item(prompt, text, bool(ended)))
    return found


def check_threshold(threshold: int) -> int:
    """The threshold itself.

    Raises:
        JudgeError: it is no integer from 1 to 10.
    """
    if type(threshold) is not int or not LOWEST <= threshold <= HIGHEST:
        raise JudgeError(f"threshold={threshold!r}: must be an integer from {LOWEST} to {HIGHEST}")
    return threshold


def label_table(
    verdicts: Iterable[Verdict], criteria: tuple[str, ...], threshold: int = THRESHOLD
) -> pd.DataFrame:
    """Verdicts as a judge returns them: one row each, in order.

    `valid` is True where every criterion of the judge reaches the threshold, False where one does
    not, and NA where one is missing: an item without a verdict is never counted either way.
    """
    verdicts = list(verdicts)
    columns = {name: [getattr(verdict, name) for verdict in verdicts] for name in CRITERIA}
    table = pd.DataFrame({name: pd.array(columns[name], dtype="Int64") for name in CRITERIA})
    valid = []
    for verdict in verdicts:
        scores = [getattr(verdict, name) for name in criteria]
        valid.append(None if None in scores else min(scores) >= threshold)
    table["valid"] = pd.array(valid, dtype="boolean")
    table["reason"] = pd.Series([plain_text(verdict.reason) for verdict in verdicts], dtype=str)
    return table


def write_sheet(path: Path | str, items: pd.DataFrame, annotator: str = "") -> Path:
    """Writes a CSV sheet for one person to label: each item once, in order, `SHEET_COLUMNS`.

    The person fills in `annotator` (a name or code), `valid` (yes, no, or empty where undecided)
    and, if there is something to say, `note`. `item` is the digest by which the sheet is read.

    Raises:
        JudgeError: not a table of items, or the place cannot be written.
    """
    rows = [
        [item.digest, _inert(item.prompt), _inert(item.text), "yes" if item.ended else "no"]
        for item in dict.fromkeys(check_items(items))
    ]
    table = pd.DataFrame([[*row, annotator, "", ""] for row in rows], columns=SHEET_COLUMNS)
    try:
        with files.whole(Path(path)) as draft:
            table.to_csv(draft, index=False, quoting=csv.QUOTE_ALL)
    except OSError as error:
        raise JudgeError(f"cannot write {path} ({error}): choose another place") from error
    return Path(path)


def _inert(text: str) -> str:
    """A cell that no spreadsheet takes for a formula and that UTF-8 can hold."""
    return ("'" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else "") + plain_text(text)


def read_sheets(items: pd.DataFrame, *paths: Path | str) -> pd.DataFrame:
    """What people said of the items: a row per item, in order, and a boolean column per annotator.

    NA where a person has no label. `agreement` takes the columns.

    Raises:
        JudgeError: a file that is no sheet, a label other than yes, no or empty, a label without
            annotator or of a text that is not among the items, or two of one person for a text.
    """
    digests = [item.digest for item in check_items(items)]
    labels: dict[str, dict[str, bool]] = {}
    for path in paths:
        try:
            sheet = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise JudgeError(f"{path} is unreadable ({error}): save it as CSV in UTF-8") from error
        if tuple(sheet) != SHEET_COLUMNS:
            raise JudgeError(f"{path}: the first line must be {','.join(SHEET_COLUMNS)}")
        for number, row in enumerate(sheet.fillna("").itertuples(index=False), start=1):
            place, answer, person = f"{path}, text {number}", row.valid.lower(), row.annotator
            if answer.strip() not in _SHEET_ANSWERS:
                raise JudgeError(f"{place}: valid={row.valid!r} must be yes, no or empty")
            if (label := _SHEET_ANSWERS[answer.strip()]) is None:
                continue
            if not person.strip():
                raise JudgeError(f"{place}: a label without annotator; write a name or code")
            if row.item not in digests:
                raise JudgeError(f"{place} is not among the items: give those of the sheet")
            own = labels.setdefault(person.strip(), {})
            if row.item in own:
                raise JudgeError(f"{place}: {person!r} labelled it before; keep one of the rows")
            own[row.item] = label
    columns = {name: [own.get(digest) for digest in digests] for name, own in labels.items()}
    return pd.DataFrame(columns, index=range(len(digests)), dtype="boolean")

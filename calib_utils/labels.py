"""What every judge is given and returns: the table of items and the table of labels.

A judge is an object with `name`, `criteria` (which of `CRITERIA` it scores) and
`judge(items) -> labels`. Knows no particular judge and no model.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from calib_utils.errors import JudgeError

CRITERIA = ("grammar", "semantics", "overall")
LABEL_COLUMNS = (*CRITERIA, "valid", "reason")
ITEM_COLUMNS = ("prompt", "text", "ended")
LOWEST, HIGHEST = 1, 10
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

"""Human labels survive the sheet; whatever is wrong with a file is named."""

import csv

import pandas as pd
import pytest

from calib_utils.errors import JudgeError
from calib_utils.openended.judges import krippendorff_alpha
from calib_utils.openended.verifiers import read_sheets, write_sheet

TEXTS = ["Paris", 'a, "b"\r\nc', "=1+1", "\r'=x", "-5", "", "猫", "\ufeff", " \t", "\ud800"]
ITEMS = pd.DataFrame({"prompt": "Name a city.", "text": TEXTS, "ended": True}, dtype=object)


def filled(path, items, labels, annotator):
    sheet = pd.read_csv(write_sheet(path, items), dtype=str, keep_default_na=False)
    sheet.assign(valid=labels, annotator=annotator).to_csv(path, index=False, quoting=csv.QUOTE_ALL)
    return path


def test_labels_come_back_and_no_cell_is_a_formula(tmp_path):
    labels = ["yes", "no", "", "Yes ", "NO", "yes", "no", "", "yes", "no"]
    one = filled(tmp_path / "a.csv", pd.concat([ITEMS, ITEMS]), labels, " Ann ")
    two = filled(tmp_path / "b.csv", ITEMS, ["no"] * 10, "B")
    found = read_sheets(ITEMS, one, two)
    expected = [True, False, pd.NA, True, False, True, False, pd.NA, True, False]
    assert found["Ann"].tolist() == expected
    assert found["B"].tolist() == [False] * 10
    assert -1 <= krippendorff_alpha(found) < 1
    assert read_sheets(ITEMS.iloc[::-1], one)["Ann"].tolist() == expected[::-1]
    with open(one, encoding="utf-8", newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell[:1] in set("=+-@\t\r")]


BROKEN = {
    "the first line must be": ("item", "x"),
    "must be yes, no or empty": ('"Ann","yes"', '"Ann","maybe"'),
    "not among the items": ("Paris", "Paris"),
    "without annotator": ('"Ann"', '""'),
    "labelled it before": ("", ""),
    "unreadable": ('"Ann","yes"', '"Ann","yes'),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_what_is_wrong_is_named(tmp_path, problem):
    path = filled(tmp_path / "labels.csv", ITEMS.iloc[[0]], ["yes"], "Ann")
    files = [path] * (2 if problem == "labelled it before" else 1)
    items = ITEMS.iloc[[1]] if problem == "not among the items" else ITEMS
    path.write_text(path.read_text().replace(*BROKEN[problem], 1))
    with pytest.raises(JudgeError, match=problem):
        read_sheets(items, *files)


def test_places_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(JudgeError, match="unreadable"):
        read_sheets(ITEMS, tmp_path / "none.csv")
    with pytest.raises(JudgeError, match="cannot write"):
        write_sheet(tmp_path / "none" / "a.csv", ITEMS)

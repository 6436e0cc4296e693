"""Human labels survive the sheet and the page; whatever is wrong with a file is named."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils.agreement import krippendorff_alpha
from calib_utils.annotation import (
    COLUMNS,
    annotation_page,
    annotation_sheet,
    read_annotations,
    votes,
    write_text,
)
from calib_utils.errors import AnnotationError

TEXTS = ["Paris", 'a, "b"\r\nc', "=1+1", "'=x", "-5", "", "</script><b>猫", "\ufeff", " \t"]
ITEMS = pd.DataFrame({"prompt": "Name a city.", "text": TEXTS, "ended": [True] * 8 + [False]})


def filled(sheet, labels, annotator="A", notes=None):
    rows = list(csv.DictReader(io.StringIO(sheet, newline="")))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for row, label in zip(rows, labels, strict=True):
        writer.writerow({**row, "annotator": annotator, "valid": label, "note": notes or ""})
    return out.getvalue()


def test_labels_come_back(tmp_path):
    sheet = annotation_sheet(pd.concat([ITEMS, ITEMS]))
    labels = ["yes", "no", "", "Yes ", "NO", "yes", "no", "", "yes"]
    one = write_text(tmp_path / "a.csv", "\ufeff" + filled(sheet, labels, " Ann "))
    two = write_text(tmp_path / "b.csv", filled(sheet, ["no"] * 9, "B", notes="-?"))
    found = read_annotations(one, two)
    assert list(found) == list(COLUMNS) and len(found) == 18
    assert (
        found["text"].tolist() == TEXTS * 2
        and found["ended"].tolist() == ITEMS["ended"].tolist() * 2
    )
    table = votes(found, ITEMS)
    assert list(table) == ["Ann", "B"]
    assert table["Ann"].tolist() == [True, False, pd.NA, True, False, True, False, pd.NA, True]
    assert table["B"].tolist() == [False] * 9
    assert -1 <= krippendorff_alpha(table) < 1
    assert votes(read_annotations(one), ITEMS.iloc[::-1])["Ann"].tolist()[0] is True


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_a_sheet_and_no_cell_is_a_formula(tmp_path_factory, text):
    items = pd.DataFrame({"prompt": [text], "text": [text], "ended": [False]})
    sheet = annotation_sheet(items, annotator="=A")
    file = write_text(tmp_path_factory.mktemp("s") / "s.csv", sheet)
    assert read_annotations(file)["text"].tolist() == [text]
    for row in csv.reader(io.StringIO(sheet, newline="")):
        assert not [cell for cell in row if cell[:1] in set("=+-@\t\r")]


def broken(sheet):
    lines = sheet.splitlines(keepends=True)
    first = lines[1]
    return {
        "first line must be": "x" + sheet,
        "cells instead of": sheet + "a,b\n",
        "valid='maybe'": sheet.replace(",A,yes", ",A,maybe", 1),
        "handed out": sheet.replace("Paris", "London"),
        "without annotator": sheet.replace(",A,yes", ",,yes", 1),
        "before, at": sheet + first,
        "no CSV": sheet + 'a,"b" c\n',
        "unreadable": b"\xff\xfe" + sheet.encode("utf-16-le"),
    }


@pytest.mark.parametrize("problem", broken("\n\n"))
def test_what_is_wrong_is_named(tmp_path, problem):
    items = ITEMS.iloc[[0]]
    sheet = filled(annotation_sheet(items), ["yes"]).replace("\r\n", "\n")
    content = broken(sheet)[problem]
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError, match=problem):
        read_annotations(path)
    path.write_text(sheet)
    assert read_annotations(path)["valid"].tolist() == [True]


def test_labels_of_other_items_and_texts_no_file_can_hold(tmp_path):
    path = write_text(tmp_path / "a.csv", filled(annotation_sheet(ITEMS), ["yes"] * 9))
    with pytest.raises(AnnotationError, match="not among the items"):
        votes(read_annotations(path), ITEMS.iloc[1:])
    lone = pd.DataFrame({"prompt": ["a"], "text": ["\ud800"], "ended": [True]}, dtype=object)
    with pytest.raises(AnnotationError, match="surrogate"):
        annotation_sheet(lone)
    with pytest.raises(AnnotationError, match="unreadable"):
        read_annotations(tmp_path / "none.csv")


def test_the_page_holds_the_items_and_asks_nobody():
    page = annotation_page(ITEMS)
    assert page.count("</script>") == 2 and "{{" not in page
    assert "\\u003c/script>" in page
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    assert annotation_page(ITEMS) == page != annotation_page(ITEMS, seed=1)

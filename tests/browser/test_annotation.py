"""The annotation page in a real browser, network off: labelled by keyboard, read back by Python."""

import pandas as pd

from calib_utils.annotation import annotation_page, read_annotations, votes, write_text

TEXTS = ["Paris", 'two\r\nlines, "quoted"', "=1+1", "'=x", "</script><b>猫</b>", "<!-- {{columns}}"]
ITEMS = pd.DataFrame({"prompt": "Name a city.", "text": TEXTS, "ended": [True] * 5 + [False]})


def test_labels_given_by_keyboard_come_back(browser, tmp_path):
    page_file = write_text(tmp_path / "page.html", annotation_page(ITEMS))
    context = browser.new_context(offline=True, accept_downloads=True)
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(page_file.as_uri())
    given = {}
    for n in range(len(TEXTS)):
        text = page.locator("#text").evaluate("node => node.textContent")
        assert text in TEXTS
        cut = page.locator("#cut").text_content()
        assert bool(cut) == (text == TEXTS[-1])
        if n == 1:  # undecided, then on
            page.keyboard.press("u")
            page.keyboard.press("ArrowRight")
            given[text] = pd.NA
        else:
            page.keyboard.press("y" if n % 2 else "n")
            given[text] = bool(n % 2)
    page.click("#save")  # asks for a name first
    assert page.evaluate("document.activeElement.id") == "annotator"
    page.keyboard.type("yn tester")  # letters in a field are no labels
    page.reload()
    assert page.input_value("#annotator") == "yn tester"
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "labels-yn-tester.csv"
    file = tmp_path / "labels.csv"
    download.value.save_as(file)
    table = votes(read_annotations(file), ITEMS)
    assert table["yn tester"].tolist() == [given[text] for text in TEXTS]
    assert not problems
    context.close()

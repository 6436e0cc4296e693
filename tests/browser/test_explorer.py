"""The interactive step in a real browser, network off: its numbers are Python's, by keyboard."""

import json
import math
import re
import shutil

import pytest
from playwright.sync_api import expect

import calib_utils as cu
from calib_utils import explorer as ex
from calib_utils import paths, reporting, scoring

ASSETS = ("explorer.js", "explorer.css")
SETTINGS = [
    ("none", None, 1.0),
    ("none", None, 0.1),
    ("none", None, 5.0),
    ("top_k", 5, 0.6),
    ("top_k", 200, 1.4),
    ("top_p", 0.5, 0.6),
    ("top_p", 0.95, 2.0),
    ("top_p", 1.0, 1.0),
    ("min_p", 0.1, 1.0),
    ("min_p", 0.01, 2.5),
    ("oracle_size", None, 1.2),
]
LOOKS = ("light", "dark", "phone")
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>step</title>
<meta name="viewport" content="width=device-width">
<style>:root {{ color-scheme: light dark }}</style>
<link rel="stylesheet" href="explorer.css"><script src="explorer.js"></script></head>
<body>{body}</body></html>"""


def write_case(folder, model, task, prefixes):
    """(page with an explorer per prefix, N by valid token, logits [1, vocab] of the first one)."""
    for name in ASSETS:
        shutil.copy(paths.book_dir() / "assets" / name, folder)
    steps = [ex.step_data(model, task, prefix) for prefix in prefixes]
    body = "".join(ex.explorer(step, reporting.source_of(model)).data for step in steps)
    page = folder / "index.html"
    page.write_text(PAGE.format(body=body), encoding="utf-8")
    prompt = cu.render_prompt(model, task)
    node, _ = ex._find(model.tokenizer, prompt, cu.get_task(task), prefixes[0])
    scored = scoring.score(model, prompt, batch_size=32)
    logits = next(rows[nodes == node] for nodes, rows in scored if node in nodes)
    return page, ex._answers_below(prompt, node), logits


@pytest.fixture(scope="module")
def case(tiny, small_task, tmp_path_factory):
    """Two explorers of a tiny model, after "1," and at the root."""
    folder = tmp_path_factory.mktemp("page")
    return write_case(folder, tiny("llama", chat=True), small_task, ("1,", ""))


def rule_of(name, parameter):
    return cu.parse_rule(name if parameter is None else f"{name}={parameter}")


def shown(root):
    cells = root.locator("[data-number]").all()
    texts = {cell.get_attribute("data-number"): cell.inner_text() for cell in cells}
    texts["kept"] = texts["kept"].split(" of ")[0].lstrip("≈ ").replace(",", "")
    return {name: math.nan if text == "–" else float(text) for name, text in texts.items()}


@pytest.fixture(scope="session")
def choose(slide):
    """Sets an explorer by keyboard: `choose(page, root, rule, parameter, temperature)`."""

    def get(page, root, name, parameter, temperature):
        """A setting, by keyboard alone: the list by its first letters, sliders by arrows."""
        select = root.locator("select")
        select.focus()
        page.keyboard.press("Home")
        while select.input_value() != name:
            page.keyboard.press("ArrowDown")
        if parameter is not None:
            slide(page, root.get_by_role("slider").nth(1), parameter)
        slide(page, root.get_by_role("slider").nth(0), temperature)

    return get


def assert_numbers_are_those_of_python(case, open_page, choose, numbers_of):
    path, answers, logits = case
    page = open_page(path)
    root = page.locator(".cu-explorer").first
    for name, parameter, temperature in SETTINGS:
        choose(page, root, name, parameter, temperature)
        right = numbers_of(rule_of(name, parameter), temperature, logits, answers)
        where = f"{name}={parameter} at {temperature}"
        # Three digits are shown, so the last one is off by at most a half and what Z is off by.
        assert shown(root) == pytest.approx(right, rel=5.2e-3, nan_ok=True), where
        kept = root.locator('[data-number="kept"]').inner_text()
        assert "≈" in kept or shown(root)["kept"] == right["kept"], where


def test_the_numbers_shown_are_those_of_python(case, open_page, choose, numbers_of):
    assert_numbers_are_those_of_python(case, open_page, choose, numbers_of)


@pytest.mark.models
@pytest.mark.parametrize(("task", "prefix"), [("us-states", ""), ("rng-3", "1,")])
def test_the_numbers_of_a_real_model_are_those_of_python(
    tmp_path, open_page, choose, numbers_of, task, prefix
):
    """With a vocabulary of 49,152, nearly all of it in the binned tail."""
    model = cu.load_model("smollm2-135m-instruct")
    case = write_case(tmp_path, model, task, (prefix,))
    assert_numbers_are_those_of_python(case, open_page, choose, numbers_of)


def test_two_copies_are_independent(case, open_page, choose):
    page = open_page(case[0])
    first, second = page.locator(".cu-explorer").all()
    before = shown(second)
    choose(page, first, "none", None, 3.0)
    assert shown(second) == before != shown(first)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) == 2


def test_a_bar_says_what_it_is_by_keyboard_and_by_touch(case, open_page):
    page = open_page(case[0], "phone", has_touch=True)
    root = page.locator(".cu-explorer").first
    step = json.loads(root.locator("script").inner_text())
    look = root.get_by_role("slider", name="look at")
    look.focus()
    page.keyboard.press("ArrowRight")
    token, said = step["tokens"][1], look.get_attribute("aria-valuetext")
    role = f"valid, begins {token['n_answers']} of" if token["n_answers"] else "invalid"
    assert f"“{token['text']}”: {role}" in said and "rank 2," in said and "%" in said
    assert root.locator(".cu-said").inner_text() == said
    box = root.locator(".cu-chart").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 5, box["y"] + 60)
    expect(root.locator(".cu-said")).to_have_text(re.compile("^ranks "))


def test_the_numbers_are_read_out_once_the_slider_rests(case, open_page, choose):
    page = open_page(case[0])
    root = page.locator(".cu-explorer").first
    live = root.get_by_role("status")
    choose(page, root, "top_k", 7, 1.0)
    page.wait_for_function("e => e.textContent.includes('kept 7 of')", arg=live.element_handle())
    assert live.get_attribute("aria-live") == "polite"
    assert root.locator("[data-number='validity']").inner_text() in live.inner_text()


@pytest.mark.parametrize("look", LOOKS)
def test_it_fits_and_can_be_read(case, open_page, fits_and_can_be_read, look):
    fits_and_can_be_read(open_page(case[0], look))


def test_motion_is_spared_where_asked(case, open_page):
    page = open_page(case[0], reduced_motion="reduce")
    duration = "getComputedStyle(document.querySelector('.cu-bar')).transitionDuration"
    assert page.evaluate(duration) == "0s"


def test_on_paper_the_sliders_go_and_the_values_stay(case, open_page):
    page = open_page(case[0])
    page.emulate_media(media="print")
    root = page.locator(".cu-explorer").first
    assert not any(s.is_visible() for s in root.locator("input[type=range]").all())
    assert root.locator(".cu-chart").is_visible() and "temperature\n1" in root.inner_text()


@pytest.mark.parametrize("look", LOOKS)
def test_the_books_own_explorers_work(pages, open_page, choose, fits_and_can_be_read, look):
    found = [p for p in pages if 'class="cu-explorer"' in p.read_text(encoding="utf-8")]
    assert found, "no page of the book holds an explorer"
    for path in found:
        page = open_page(path, look)
        fits_and_can_be_read(page)
        for root in page.locator(".cu-explorer").all():
            data = json.loads(root.locator("script").text_content())
            for field, kind in (("tokens", ex.Token), ("tail", ex.Bin)):
                data[field] = tuple(kind(**entry) for entry in data[field])
            step = ex.StepData(**data)
            for temperature in (0.5, 2.0):
                choose(page, root, "none", None, temperature)
                found_value = shown(root)["validity"]
                assert found_value == pytest.approx(step.validity(temperature), rel=6e-3)

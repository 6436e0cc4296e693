"""The sliders on what a judged curve can show, against the simulation in Python."""

import re
import shutil

import pytest

from calib_utils import paths
from calib_utils.openended.precision_recall import noise_floor


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("noise")
    (root / "_static").mkdir()
    for name in ("noise.js", "explorer.css"):
        shutil.copy(paths.book_dir() / "assets" / name, root / "_static")
    points = '[{"name": "a", "points": [[0, 1], [1, 0.3]]}]'
    (root / "_static" / "noise-points.js").write_text(f"window.calibPublishedPoints = {points};")
    markdown = (paths.book_dir() / "noise_floor.md").read_text(encoding="utf-8")
    body = re.search(r"```\{raw\} html\n(.*?)```", markdown, re.DOTALL)[1]
    style = '<link rel="stylesheet" href="_static/explorer.css">'
    path = root / "index.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'>{style}{body}", encoding="utf-8")
    return path


@pytest.mark.parametrize("shares", [(20, 19, 19), (50, 10, 10), (5, 30, 5)])
def test_the_sliders_say_what_a_simulated_judge_measures(page_path, opened, shares):
    page = opened(page_path)
    for number, share in enumerate(shares):
        slider = page.locator(".cu-noise input").nth(number)
        slider.focus()
        slider.evaluate("(input, value) => { input.value = value; }", str(share - 1))
        page.keyboard.press("ArrowRight")
    said = page.locator(".cu-said").inner_text()
    area, recall, seen = (
        float(x) for x in re.findall(r"(?<= )(\d\.\d+)(?= |;|,)", said) if x != "0.8"
    )
    prevalence, false_positive, false_negative = (share / 100 for share in shares)
    expected = noise_floor(1000, round(1000 * prevalence), false_positive, false_negative)
    assert area == pytest.approx(expected.area, abs=0.02)
    assert seen == pytest.approx(expected.prevalence, abs=0.01)
    # The expected curve lies above 0.8 or not; a drawn one crosses it here and there.
    assert recall == pytest.approx(expected.recall_at, abs=0.15)
    assert page.locator(".cu-noise polyline").count() == 3

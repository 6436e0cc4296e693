"""The explorers in a real browser, network off, by keyboard: figures in pages, and the page."""

import json
import math
import re
import shutil
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from playwright.sync_api import expect

import calib_utils as cu
from calib_utils import paths
from calib_utils.book import pages
from calib_utils.core.ranking import Ranking
from calib_utils.core.rules import TABLE3_TEMPERATURES, rule_name
from calib_utils.figures import explorer
from calib_utils.models.registry import DEFAULT_MODEL, HEADLINE
from calib_utils.results import draws, storage
from calib_utils.results.storage import KEY
from calib_utils.studies import oracle_cutoffs, reporting

STORE = paths.default_results_dir()
SMALL, BASE, ADDED = "smollm2-135m-instruct", "gemma-3-270m", "Qwen--Qwen3-0.6B"
LOOKS = ("light", "dark", "phone")
PHONE_AT_A_PUSH = ["phone", *(pytest.param(x, marks=pytest.mark.full) for x in ("light", "dark"))]
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>explorer</title>
<meta name="viewport" content="width=device-width">
<style>:root {{ color-scheme: light dark }}</style>
<link rel="stylesheet" href="_static/explorer.css"><script src="_static/explorer.js"></script>
</head><body>{body}</body></html>"""
# What is behind an explorer, and the shade of every text in it.
COLOURS = """() => { const root = document.querySelector('.cu-explorer');
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const shade = c => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = c;
        paint.fillRect(0, 0, 1, 1); const d = paint.getImageData(0, 0, 1, 1).data;
        return d[3] ? (d[0] + d[1] + d[2]) / 3 : null; };
    let e = root, back = null;
    while (e && back === null) { back = shade(getComputedStyle(e).backgroundColor);
        e = e.parentElement; }
    const scheme = matchMedia('(prefers-color-scheme: dark)').matches ? 0 : 255;
    const texts = root.querySelectorAll('dt, dd, .cu-said, .cu-chart .cu-good');
    return [back ?? scheme, ...[...texts]
        .map(n => shade(getComputedStyle(n)[n instanceof SVGElement ? 'fill' : 'color']))]; }"""
STEP_SETTINGS = [
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
SETTINGS = [
    (DEFAULT_MODEL, "us-states", "top_p", 0.95, 0.6),
    (DEFAULT_MODEL, "rng-3-sum-at-most-10", "oracle_size", None, 1.0),
    (DEFAULT_MODEL, "rng-2-sum-equals-10", "none", None, 0.3),
    (SMALL, "us-states", "top_k", 500, 3.0),
    (SMALL, "rng-3", "min_p", 0.5, 2.5),
    (SMALL, "rng-2", "none", None, 0.01),
    (BASE, "rng-3", "top_p", 0.1, 1.2),
    (BASE, "us-states", "min_p", 0.01, 0.8),
    (ADDED, "us-states", "top_k", 10, 1.0),
]


def one_of_each_model_at_a_push(settings):
    """The first setting of each model is for every push, the others are for the full tier."""
    seen = set()
    for setting in settings:
        marks = () if setting[0] not in seen else pytest.mark.full
        seen.add(setting[0])
        yield pytest.param(setting, id=str(setting), marks=marks)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The book's own markup, the committed results and one more model beside them."""
    root = tmp_path_factory.mktemp("book")
    store, static = root / "results", root / "_static"
    for key in (DEFAULT_MODEL, SMALL, BASE):
        (store / key).mkdir(parents=True)
        for folder in (STORE / key).iterdir():
            if folder.name.partition("@end=line")[0] in (*oracle_cutoffs.TASKS, "steps", "draws"):
                shutil.copytree(folder, store / key / folder.name)
    shutil.copytree(STORE / DEFAULT_MODEL / "us-states", store / ADDED / "us-states")
    copy_assets(static)
    left_out = explorer.write(store, static / explorer.PAGE_FOLDER)
    assert left_out.empty
    markdown = (paths.book_dir() / "explorer.md").read_text(encoding="utf-8")
    body = re.search(r"```\{raw\} html\n(.*?)```", markdown, re.DOTALL)[1]
    page = root / "explorer.html"
    page.write_text(PAGE.format(body=body), encoding="utf-8")
    return page


def copy_assets(static):
    static.mkdir()
    for asset in (paths.book_dir() / "assets").glob("explorer*"):
        shutil.copy(asset, static)


def write_figures(folder, model, task, prefixes):
    """(page with a figure per prefix, N by valid token, logits [1, vocab] of the first one)."""
    copy_assets(folder / "_static")
    steps = []
    for prefix in prefixes:
        answer = next(a for a in cu.get_task(task).answers if a.startswith(prefix))
        along = explorer.steps_along(model, task, answer)
        steps += [step for step in along if step.prefix == prefix]
    body = "".join(explorer.explorer(step, reporting.source_of(model)).data for step in steps)
    page = folder / "index.html"
    page.write_text(PAGE.format(body=body), encoding="utf-8")
    return page, *logits_of(model, task, steps[0])


def logits_of(model, task, step, end="eos"):
    """(N by valid token, logits [1, vocab]) of a fresh forward pass at a step."""
    prompt = cu.render_prompt(model, task, end=end)
    ids = model.tokenizer(prompt.text + prompt.lead + step.prefix).input_ids[len(prompt.ids) :]
    row = explorer.logits_after(model, prompt, ids)
    order = np.argsort(-row, kind="stable")
    answers = {int(order[t.rank]): t.n_answers for t in step.tokens if t.n_answers}
    return answers, torch.tensor(row)[None]


@pytest.fixture(scope="module")
def figures(tiny, small_task, tmp_path_factory):
    """Two figures of a tiny model, after "1," and at the root."""
    folder = tmp_path_factory.mktemp("figures")
    return write_figures(folder, tiny("llama", chat=True), small_task, ("1,", ""))


def slide(page, slider, wanted):
    """By keyboard: page keys until a slider has passed `wanted`, arrows until it says it."""

    def said():
        return float(slider.get_attribute("aria-valuetext").split()[-1])

    slider.focus()
    for down, up in (("PageDown", "PageUp"), ("ArrowLeft", "ArrowRight")):
        below = said() < wanted
        for _ in range(200):
            if said() == wanted:
                return
            if (said() < wanted) != below:
                break
            page.keyboard.press(up if below else down)
    raise AssertionError(f"the slider never says {wanted}")


def pick(page, select, wanted):
    """Goes down a list by keyboard."""
    select.focus()
    page.keyboard.press("Home")
    for _ in range(20):
        if select.input_value() == str(wanted):
            return
        page.keyboard.press("ArrowDown")
    raise AssertionError(f"there is no {wanted}")


def choose(page, model=None, task=None, step=None, rule=None, parameter=None, temperature=None):
    """Sets the page by keyboard alone, lists and sliders by arrows."""
    for name, wanted in (("model", model), ("task", task), ("step", step), ("cutoff", rule)):
        if wanted is not None:
            pick(page, page.get_by_role("combobox", name=name), wanted)
            page.wait_for_selector(".cu-explorer-page .cu-source:not(:empty)")
            if name == "model":
                expect(page.locator(".cu-explorer-page .cu-source")).to_contain_text(model)
    for number, wanted in enumerate((parameter, temperature)):
        if wanted is not None:
            slide(page, page.locator(".cu-how input").nth(number), wanted)


def choose_step(page, root, name, parameter, temperature):
    """Sets a figure by keyboard."""
    pick(page, root.locator("select"), name)
    for number, wanted in enumerate((parameter, temperature)):
        if wanted is not None:
            slide(page, root.locator(".cu-controls input").nth(number), wanted)


def numbers_of(rule, temperature, logits, answers):
    """The five numbers of a step, by ranking.py and rules.py on all logits."""
    tokens = list(answers)
    ranking = Ranking(logits, [len(tokens)])
    kept = int(rule.n_kept(ranking.at(temperature))[0])
    rank = ranking.rank(torch.tensor([tokens]))[0].numpy()
    gap = -np.sort(-logits[0].double().numpy())[:kept] - float(logits.max())
    mass = np.exp(gap / temperature).sum()
    inside = rank < kept
    weight = np.exp(ranking.gap(torch.tensor([tokens]))[0].numpy()[inside] / temperature)
    n = np.array(list(answers.values()), dtype=float)
    q, target = weight / weight.sum(), n[inside] / n.sum()
    return {
        "validity": weight.sum() / mass,
        "diversity": np.exp(-(q * np.log(q / target)).sum()) if inside.any() else math.nan,
        "kept": kept,
        "local_precision": inside.sum() / kept,
        "local_recall": n[inside].sum() / n.sum(),
    }


def fits_and_can_be_read(page):
    """Fails where a page is too wide, a text too faint, or a control too small for a finger."""
    excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(excess) <= 0
    background, *texts = page.evaluate(COLOURS)
    assert len(texts) > 10 and all(abs(text - background) > 100 for text in texts)
    for control in page.locator(".cu-explorer input:not(:disabled), .cu-explorer select").all():
        assert control.bounding_box()["height"] >= 32


@cache
def stored(model, task):
    """The settings with their loss parts, straight from the stored tables, and the record."""
    key = DEFAULT_MODEL if model == ADDED else model
    found = storage.read(STORE / key / f"{task}{'@end=line' if key == BASE else ''}")
    split = oracle_cutoffs.split_table(found.losses.assign(task=task))
    return found.settings.merge(split, on=["task", *KEY], how="left"), found.record


def stored_row(model, task, rule, parameter, temperature):
    setting = {"rule": rule, "parameter": parameter, "temperature": temperature, "task": task}
    setting = pd.DataFrame([setting]).astype({"parameter": float})
    (row,) = stored(model, task)[0].merge(setting).to_dict("records")
    return row


def lines_of_table(page, title):
    """Opens a table by keyboard. Its lines are made when the page hears of it: a moment later."""
    page.get_by_text(title).focus()
    page.keyboard.press("Enter")
    lines = page.get_by_role("region", name=title).locator("tbody tr")
    lines.first.wait_for()
    return lines


def temperature_of(page):
    return float(page.locator(".cu-how b").last.inner_text())


def three(value):
    """A number as the page rounds it; None where it shows a dash."""
    return None if pd.isna(value) else float(f"{value:.3g}")


def shown(page):
    cells = page.locator("[data-stored]").all()
    texts = {cell.get_attribute("data-stored"): cell.inner_text() for cell in cells}
    return {name: None if text == "–" else float(text) for name, text in texts.items()}


@pytest.mark.parametrize("setting", list(one_of_each_model_at_a_push(SETTINGS)))
def test_a_setting_shows_exactly_the_stored_numbers(path, open_page, setting):
    page = open_page(path)
    model, task, rule, parameter, temperature = setting
    choose(page, model, task, None, rule, parameter, temperature)
    row, found = stored_row(*setting), shown(page)
    for name in explorer.MEASURES:
        assert found[name] == three(row[name]), name
    for name in explorer.PARTS:
        value = math.nan if pd.isna(row["total"]) else row[name]
        assert found[name] == three(0.0 if abs(value) < 1e-6 else value), name
    weights = stored(model, task)[1]["weights_sha256"]
    assert weights[:12] in page.locator(".cu-source").inner_text()


@pytest.mark.parametrize("look", PHONE_AT_A_PUSH)
def test_ten_draws_of_the_setting_are_shown_and_read_out(path, open_page, look):
    table, _ = draws.read(draws.path_of(STORE / DEFAULT_MODEL / "us-states"))
    page = open_page(path, look)
    for setting in (("none", None, 1.4), ("top_p", 0.9, 2.0), ("oracle_size", None, 0.3)):
        choose(page, DEFAULT_MODEL, "us-states", None, *setting)
        wanted = pd.DataFrame([setting], columns=KEY).astype({"parameter": float})
        own = table.merge(wanted, on=KEY)
        chips = page.get_by_role("list", name="Answers drawn at this setting").get_by_role(
            "listitem"
        )
        assert chips.count() == draws.N_DRAWS == len(own)
        said = []
        for chip, row in zip(chips.all(), own.itertuples(), strict=True):
            text = chip.inner_text()
            assert (text == row.text) if row.valid else text.startswith("✗")
            assert chip.get_by_role("img", name="not valid").count() == (not row.valid)
            style = chip.evaluate("e => getComputedStyle(e).borderTopStyle")
            assert style == ("solid" if row.valid else "dashed")
            said.append(text.replace("✗", "not valid: "))
        count = page.locator(".cu-drawn > p").inner_text()
        assert f"10 answers drawn at this setting, {own.valid.sum()} of them valid" in count
        row = stored_row(DEFAULT_MODEL, "us-states", *setting)
        assert f"exact validity is {row['validity']:.3g}" in count
        live = page.get_by_role("status").element_handle()
        arg = [live, ", ".join(said)]
        page.wait_for_function("([e, t]) => e.textContent.includes(t)", arg=arg)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    choose(page, ADDED, "us-states")
    assert not page.locator(".cu-drawn").is_visible()


def test_on_a_chapters_page_its_own_model_comes_first(path, open_page):
    page = path.with_name("chapter.html")
    step = explorer.read(explorer.path_of(STORE, SMALL, "us-states"))[0][0]
    embedded = re.search(r"```.*?\n(.*)```", pages.whole_answers(SMALL), re.DOTALL)[1]
    body = explorer.explorer(step, "here").data + embedded
    page.write_text(PAGE.format(body=body), encoding="utf-8")
    opened = open_page(page)
    opened.locator(".cu-page").scroll_into_view_if_needed()
    expect(opened.locator(".cu-explorer-page .cu-source")).to_contain_text(SMALL)
    assert opened.get_by_role("combobox", name="model").input_value() == SMALL
    assert "#" not in opened.url


def test_two_models_stand_on_one_plane_and_a_point_is_read_and_chosen(path, open_page):
    page = open_page(path)
    choose(page, DEFAULT_MODEL, "us-states", None, "top_p", 0.9, 1.0)
    assert page.locator(".cu-line-name").all_text_contents().count("min-p") == 1
    page.get_by_role("combobox", name="compare with").select_option(SMALL)
    row = stored_row(SMALL, "us-states", "top_p", 0.9, 1.0)
    expect(page.locator(".cu-compared")).to_contain_text(f"validity {row['validity']:.3g}")
    expect(page.locator(".cu-their.cu-line-name")).to_contain_text("top-p")
    rows, _ = stored(DEFAULT_MODEL, "us-states")
    best = oracle_cutoffs.frontier_points(rows[rows.rule == "min_p"])
    aim = best.sort_values("diversity").iloc[-1]  # far from the points of the other cutoffs
    box = page.locator(".cu-frontier").bounding_box()
    unit = box["width"] / 340
    at = box["x"] + (46 + 280 * aim.validity) * unit, box["y"] + (292 - 280 * aim.diversity) * unit
    page.mouse.move(*at)
    expect(page.locator(".cu-reading")).to_contain_text(f"min-p {aim.parameter:g}, temperature")
    page.mouse.click(*at)
    assert page.get_by_role("combobox", name="cutoff").input_value() == "min_p"
    assert shown(page)["diversity"] == three(aim.diversity)
    expect(page.locator(".cu-compared")).to_contain_text("at the same setting")
    page.wait_for_function("location.hash.includes('other=')")


@pytest.mark.full
def test_every_temperature_and_the_marker_on_the_frontier(path, open_page):
    """A cutoff at each temperature: numbers, the marker's place, whether it is on the frontier."""
    page = open_page(path)
    choose(page, DEFAULT_MODEL, "us-states", None, "top_k", 20, 0.01)
    rows, _ = stored(DEFAULT_MODEL, "us-states")
    best = oracle_cutoffs.frontier_points(rows[rows.rule == "top_k"])
    seen = []
    while True:
        temperature = temperature_of(page)
        row = stored_row(DEFAULT_MODEL, "us-states", "top_k", 20, temperature)
        assert shown(page)["validity"] == three(row["validity"])
        place = page.locator(".cu-frontier .cu-marker").get_attribute("transform")
        x, y = map(float, re.findall(r"[\d.]+", place))
        assert (x - 46) / 280 == pytest.approx(row["validity"], abs=1e-6)
        assert (292 - y) / 280 == pytest.approx(row["diversity"], abs=1e-6)
        own = best[(best.parameter == 20) & (best.temperature == temperature)]
        assert ("is on the frontier" in page.locator(".cu-place").inner_text()) == (len(own) == 1)
        seen.append(temperature)
        page.keyboard.press("ArrowRight")
        if temperature_of(page) == temperature:
            break
    assert seen == list(TABLE3_TEMPERATURES)


@pytest.mark.full
def test_the_slider_along_the_frontier_and_its_table(path, open_page):
    page = open_page(path)
    choose(page, BASE, "us-states", None, "top_p")
    rows, _ = stored(BASE, "us-states")
    best = oracle_cutoffs.frontier_points(rows[rows.rule == "top_p"]).sort_values("validity")
    lines = lines_of_table(page, "The frontier as a table")
    slider = page.get_by_role("slider", name="along the frontier")
    slider.focus()
    page.keyboard.press("Home")
    for number, (_, row) in enumerate(best.iterrows()):
        assert slider.get_attribute("aria-valuetext").startswith(f"{number + 1} of {len(best)}")
        assert shown(page)["diversity"] == three(row.diversity)
        cells = lines.nth(number).locator("td").all_inner_texts()
        assert float(cells[1]) == row.temperature and float(cells[2]) == three(row.validity)
        assert lines.nth(number).get_attribute("aria-current") == "true"
        page.keyboard.press("ArrowRight")
    assert lines.count() == len(best)


def expanded(step):
    """Logits that `step` is the step of: bins become as many tokens at their mean."""
    gaps = [torch.tensor([t.gap for t in step.tokens if t.rank < step.n_listed])]
    gaps += [torch.full((part.count,), part.mean) for part in step.tail]
    logits = -torch.cat([gap.double() for gap in gaps])[None]
    answers = {t.rank: t.n_answers for t in step.tokens if t.n_answers}
    for token in step.tokens:
        if token.rank >= step.n_listed:
            logits[0, token.rank] = -token.gap
    return logits, answers


def assert_figure(case, open_page):
    path, answers, logits = case
    page = open_page(path)
    root = page.locator(".cu-explorer").first
    for setting in STEP_SETTINGS:
        choose_step(page, root, *setting)
        assert_step(root, setting, logits, answers)


def test_a_figures_numbers_are_those_of_python(figures, open_page):
    assert_figure(figures, open_page)


@pytest.mark.full
@pytest.mark.models
@pytest.mark.parametrize(("task", "prefix"), [("us-states", ""), ("rng-3", "1,")])
def test_a_figures_numbers_of_a_real_model_are_those_of_python(tmp_path, open_page, task, prefix):
    """With a vocabulary of 49,152, nearly all of it in the binned tail."""
    case = write_figures(tmp_path, cu.load_model(SMALL), task, (prefix,))
    assert_figure(case, open_page)


@pytest.mark.full
def test_two_figures_are_independent(figures, open_page):
    page = open_page(figures[0])
    first, second = page.locator(".cu-explorer").all()
    before = shown_step(second)
    choose_step(page, first, "none", None, 3.0)
    assert shown_step(second) == before != shown_step(first)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) == 2


def test_a_bar_says_what_it_is_by_keyboard_and_by_touch(figures, open_page):
    page = open_page(figures[0], "phone", has_touch=True)
    root = page.locator(".cu-explorer").first
    step = explorer.StepData.from_json(json.loads(root.locator("script").inner_text()))
    look = root.get_by_role("slider", name="look at")
    look.focus()
    page.keyboard.press("ArrowRight")
    token, said = step.tokens[1], look.get_attribute("aria-valuetext")
    role = f"valid, begins {token.n_answers} of" if token.n_answers else "invalid"
    assert f"“{token.text}”: {role}" in said and "rank 2," in said and "%" in said
    assert root.locator(".cu-said").inner_text() == said
    box = root.locator(".cu-chart").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 5, box["y"] + 60)
    expect(root.locator(".cu-said")).to_have_text(re.compile("^ranks "))


@pytest.mark.full
def test_a_figures_numbers_are_read_out_once_the_slider_rests(figures, open_page):
    page = open_page(figures[0])
    root = page.locator(".cu-explorer").first
    live = root.get_by_role("status")
    choose_step(page, root, "top_k", 7, 1.0)
    page.wait_for_function("e => e.textContent.includes('kept 7 of')", arg=live.element_handle())
    assert live.get_attribute("aria-live") == "polite"
    assert root.locator("[data-number='validity']").inner_text() in live.inner_text()


@pytest.mark.parametrize(
    ("key", "task"),
    [
        (DEFAULT_MODEL, "us-states"),
        (SMALL, "rng-3"),
        pytest.param(DEFAULT_MODEL, "rng-3", marks=pytest.mark.full),
        pytest.param(SMALL, "us-states", marks=pytest.mark.full),
        pytest.param(BASE, "us-states", marks=pytest.mark.full),
        pytest.param(BASE, "rng-3", marks=pytest.mark.full),
    ],
)
def test_a_steps_numbers_are_those_of_python(path, open_page, key, task):
    page = open_page(path)
    steps, _ = explorer.read(explorer.path_of(STORE, key, task))
    assert page.get_by_role("combobox", name="step").locator("option").count() == 2
    for number, step in enumerate(steps):
        logits, answers = expanded(step)
        for name, parameter, temperature in (
            ("none", None, 1.4),
            ("top_k", 20, 0.6),
            ("top_p", 0.9, 1.0),
        ):
            choose(page, key, task, number, name, parameter, temperature)
            assert_step(page, (name, parameter, temperature), logits, answers)
        where = f"after “{step.prefix}”" if step.prefix else "first token"
        assert page.locator("h2").nth(1).inner_text() == f"One step of it: {where}"


@pytest.mark.full
@pytest.mark.models
@pytest.mark.parametrize(("task", "number"), [("us-states", 1), ("rng-3-sum-at-most-10", 2)])
def test_a_kept_step_shows_what_the_weights_give(path, open_page, task, number):
    """With all logits of a fresh forward pass."""
    page, model = open_page(path), cu.load_model(SMALL)
    steps, record = explorer.read(explorer.path_of(STORE, SMALL, task))
    answers, logits = logits_of(model, task, steps[number], record["end"])
    for setting in (("none", None, 1.0), ("min_p", 0.1, 1.4), ("oracle_size", None, 2.0)):
        choose(page, SMALL, task, number, *setting)
        assert_step(page, setting, logits, answers)


def shown_step(root):
    """The numbers of the step that is shown, and whether the one of kept tokens is exact."""
    cells = root.locator("[data-number]").all()
    texts = {cell.get_attribute("data-number"): cell.inner_text() for cell in cells}
    kept = texts["kept"].split(" of ")[0]
    texts["kept"] = kept.lstrip("≈ ").replace(",", "")
    found = {name: math.nan if text == "–" else float(text) for name, text in texts.items()}
    return found, "≈" not in kept


def assert_step(root, setting, logits, answers):
    name, parameter, temperature = setting
    rule = cu.parse_rule(name if parameter is None else f"{name}={parameter}")
    right = numbers_of(rule, temperature, logits, answers)
    found, exact = shown_step(root)
    # Three digits are shown, so the last one is off by at most a half and what Z is off by.
    assert found == pytest.approx(right, rel=5.2e-3, nan_ok=True), setting
    assert not exact or found["kept"] == right["kept"], setting


@pytest.mark.full
def test_the_table_of_tokens_says_what_is_kept(path, open_page):
    page = open_page(path)
    choose(page, SMALL, "us-states", 0, "top_k", 10, 1.0)
    (step, *_), _ = explorer.read(explorer.path_of(STORE, SMALL, "us-states"))
    lines = lines_of_table(page, "The tokens as a table").all()
    cells = [line.locator("td").all_inner_texts() for line in lines]
    listed = [token for token in step.tokens if token.rank < 40 or token.n_answers]
    assert len(cells) == len(listed)
    log_z = step.log_partition(1.0)
    for (rank, text, answers, kept, p, _), token in zip(cells, listed, strict=True):
        assert (int(rank.replace(",", "")), text) == (token.rank + 1, token.text)
        assert answers == f"{token.n_answers} ({'' if token.n_answers else 'in'}valid)"
        assert kept == ("kept" if token.rank < 10 else "dropped")
        exact = math.exp(-token.gap - log_z)
        if not p.startswith("below"):
            assert float(p.split()[0]) / 100 == pytest.approx(exact, rel=6e-3)


@pytest.mark.full
def test_between_the_stored_settings_only_the_step_moves(path, open_page):
    page = open_page(path)
    choose(page, DEFAULT_MODEL, "us-states", 0, "top_p", 0.9, 1.0)
    before = shown(page)
    box = page.get_by_role("checkbox")
    box.focus()
    page.keyboard.press("Space")
    slide(page, page.locator(".cu-how input").nth(1), 0.95)
    step_validity = page.locator("[data-number='validity']").inner_text()
    assert shown(page) == before
    assert (
        page.locator(".cu-place").inner_text().startswith("nearest stored setting: top-p 0.9, temp")
    )
    box.focus()
    page.keyboard.press("Space")
    assert temperature_of(page) == 1
    assert page.locator("[data-number='validity']").inner_text() != step_validity


@pytest.mark.full
def test_a_task_without_steps_shows_its_answers_all_the_same(path, open_page):
    page = open_page(path)
    choose(page, SMALL, "rng-2-sum-equals-10", None, "top_p", 0.9, 1.0)
    assert page.get_by_text("No step of this task is stored").is_visible()
    assert cu.get_task("rng-2-sum-equals-10").prompt in page.locator("section").nth(1).inner_text()
    assert page.get_by_role("combobox", name="step").is_disabled()
    assert shown(page)["sequence_recall"] is not None


def test_every_model_with_results_is_offered_and_the_default_is_first(path, open_page):
    page = open_page(path)
    offered = page.get_by_role("combobox", name="model").locator("option")
    values = [option.get_attribute("value") for option in offered.all()]
    assert values[0] == DEFAULT_MODEL and set(values) == {DEFAULT_MODEL, SMALL, BASE, ADDED}
    labels = page.get_by_role("combobox", name="cutoff").locator("option").all_inner_texts()
    rules = dict.fromkeys(rule.name for rule in cu.table3_rules())
    assert labels == [rule_name(name) for name in rules]


def test_tab_reaches_every_control_and_shows_where_it_is(path, open_page):
    page = open_page(path)
    controls = ".cu-page :is(select, input, summary, [tabindex='0']):not(:disabled)"
    wanted = page.locator(f"{controls}:visible").count()
    outlines = {}
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        place, outline = page.evaluate(
            """controls => { const e = document.activeElement;
            return [[...document.querySelectorAll(controls)].indexOf(e),
                getComputedStyle(e).outlineStyle]; }""",
            controls,
        )
        outlines[place] = outline
    outlines.pop(-1, None)  # beyond the page's controls
    assert len(outlines) == wanted >= 10
    assert "none" not in outlines.values()


def test_what_changed_is_read_out_and_kept_in_the_address(path, open_page):
    page = open_page(path)
    assert "#" not in page.url
    choose(page, SMALL, "rng-3", 1, "top_k", 50, 1.6)
    live = page.get_by_role("status")
    said = "top-k 50, temperature 1.6; whole answer: validity "
    page.wait_for_function(
        "([e, t]) => e.textContent.includes(t)", arg=[live.element_handle(), said]
    )
    for name in ("validity", "sequence_precision", "order"):
        assert page.locator(f"[data-stored='{name}']").inner_text() in live.inner_text()
    assert "this step: validity" in live.inner_text()
    page.wait_for_url("**#*T=1.6")
    numbers, address = shown(page), page.url
    again = open_page(path)
    again.goto("about:blank")
    again.goto(address)
    again.wait_for_selector(".cu-explorer .cu-chart .cu-bar")
    assert shown(again) == numbers
    assert again.locator("h2").nth(1).inner_text().endswith("“4,”")


@pytest.mark.full
@pytest.mark.parametrize(
    "address",
    [
        "#model=nothing&task=x&step=-4&rule=constructor&value=NaN&T=-1",
        "#step=1e9&rule=top_p&value=1e308&T=1e-300",
        "#%E0%A4%A&<script>alert(1)</script>",
    ],
)
def test_any_address_opens_a_page_that_works(path, open_page, address):
    page = open_page(path)
    page.goto("about:blank")
    page.goto(path.as_uri() + address)
    page.wait_for_selector(".cu-explorer .cu-chart .cu-bar")
    assert shown(page)["validity"] is not None


def test_a_missing_file_is_named_and_the_rest_goes_on(path, browser, tmp_path):
    shutil.copytree(path.parent, copy := tmp_path / "book")
    (copy / "_static" / "explorer" / f"model-{SMALL}.js").unlink()
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((copy / path.name).as_uri())
    page.wait_for_selector(".cu-explorer .cu-chart .cu-bar")
    page.get_by_role("combobox", name="model").select_option(SMALL)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert f"model-{SMALL}.js is missing" in alert.inner_text()
    page.get_by_role("combobox", name="model").select_option(BASE)
    page.wait_for_function(
        "m => document.querySelector('.cu-source').textContent.includes(m)", arg=BASE
    )
    assert not alert.is_visible()
    context.close()


def test_without_javascript_a_text_says_where_the_numbers_are(path, opened):
    text = opened(path, java_script_enabled=False).locator(".cu-page").inner_text()
    assert "need JavaScript" in text and "data/results" in text


@pytest.mark.full
@pytest.mark.parametrize("look", LOOKS)
def test_it_fits_and_can_be_read(path, figures, open_page, look):
    fits_and_can_be_read(open_page(figures[0], look))
    page = open_page(path, look)
    fits_and_can_be_read(page)
    for title in ("The frontier as a table", "The tokens as a table"):
        lines_of_table(page, title)
    fits_and_can_be_read(page)


@pytest.mark.full
def test_motion_is_spared_where_asked(path, open_page):
    page = open_page(path, reduced_motion="reduce")
    for part in (".cu-bar", ".cu-marker", ".cu-track span"):
        duration = f"getComputedStyle(document.querySelector('{part}')).transitionDuration"
        assert page.evaluate(duration) == "0s"


@pytest.mark.full
def test_on_paper_the_sliders_go_and_the_values_stay(figures, open_page):
    page = open_page(figures[0])
    page.emulate_media(media="print")
    root = page.locator(".cu-explorer").first
    assert not any(s.is_visible() for s in root.locator("input[type=range]").all())
    assert root.locator(".cu-chart").is_visible() and "temperature\n1" in root.inner_text()


@pytest.mark.parametrize("look", PHONE_AT_A_PUSH)
def test_the_books_own_page_works(pages, open_page, look):
    (built,) = [page for page in pages if page.name == "explorer.html"]
    page = open_page(built, look)
    fits_and_can_be_read(page)
    assert shown(page)["validity"] == three(
        stored_row(HEADLINE, "us-states", "top_p", 0.9, 1.0)["validity"]
    )


@pytest.mark.parametrize(
    ("look", "most"),
    [("phone", 1), *(pytest.param(x, None, marks=pytest.mark.full) for x in LOOKS)],
)
def test_the_books_own_figures_work(pages, open_page, look, most):
    found = [p for p in pages if 'class="cu-explorer"' in p.read_text(encoding="utf-8")]
    assert found, "no page of the book holds a figure"
    for path in found[:most]:
        page = open_page(path, look)
        fits_and_can_be_read(page)
        for root in page.locator(".cu-explorer:has(> script)").all():
            data = json.loads(root.locator("script").text_content())
            step = explorer.StepData.from_json(data)
            for temperature in (0.5, 2.0):
                choose_step(page, root, "none", None, temperature)
                validity = shown_step(root)[0]["validity"]
                assert validity == pytest.approx(step.validity(temperature), rel=6e-3)

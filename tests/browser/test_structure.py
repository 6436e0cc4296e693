"""How a reader finds the way: the order of pages, other models, folded code, verdicts, search."""

import re
from urllib.parse import urljoin, urlsplit

import lxml.html
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.book import contents
from calib_utils.models.registry import HEADLINE, human_name
from calib_utils.studies import reporting

HTML = paths.project_root() / "_build" / "_build" / "html"
OTHER = "smollm2-135m-instruct"
CHAPTER = "03_oracle_cutoffs"
SECTION = "claims-and-findings"
pytestmark = pytest.mark.usefixtures("pages")


def nightly(*values):
    """A case of the full tier, beside one of its like on every push."""
    return pytest.param(*values, marks=pytest.mark.full)


def of(model, chapter=CHAPTER):
    return f"results/{model}/{chapter}"


def links(page, where):
    """Texts and pages that the links of a place lead to."""
    tree = lxml.html.parse(str(HTML / f"{page}.html")).getroot()
    base = (HTML / f"{page}.html").as_uri()
    found = {}
    for link in tree.xpath(where):
        address = urlsplit(urljoin(base, link.get("href")))
        name = address.path.removeprefix(urlsplit(HTML.as_uri()).path + "/").removesuffix(".html")
        found[" ".join(link.text_content().split())] = name
    return found


def following(page):
    """The page that "next" leads to, and the one that "previous" leads to from there."""
    (name,) = links(page, "//a[contains(@class, 'right-next')]").values() or [None]
    back = links(name, "//a[contains(@class, 'left-prev')]").values() if name else []
    return name, next(iter(back), None)


def test_next_leads_from_the_first_page_through_each_chapter_once():
    page, walked = contents.ROOT, [contents.ROOT]
    while links(page, "//a[contains(@class, 'right-next')]"):
        page, back = following(page)
        assert back == walked[-1]
        walked.append(page)
    assert walked == contents.reading_order()
    assert following(of(OTHER, "02_controlled_tasks"))[0] == of(OTHER)


def test_the_list_of_pages_shows_each_chapter_once_and_the_rest_behind_a_chevron(opened):
    page = opened("intro")
    listed = page.locator("nav.bd-docs-nav a")
    seen = [a.get_attribute("href") for a in listed.all() if a.is_visible()]
    names = [re.sub(r".*/|\.html.*", "", href) for href in seen]
    assert [name for name in names if re.match(r"\d\d_", name)] == [*contents.chapters()]
    assert not {"faults", "mutation", "licences"} & set(names)


def test_titles_are_distinct_and_name_other_models(pages):
    titles = {}
    for path in pages:
        title = lxml.html.parse(str(path)).getroot().findtext(".//title")
        titles.setdefault(title.strip(), []).append(str(path.relative_to(HTML)))
    assert not {title: found for title, found in titles.items() if len(found) > 1}
    for title, (path,) in titles.items():
        if OTHER in path:
            assert f"({human_name(OTHER)})" in title


@pytest.mark.parametrize("width", [390, nightly(1280)])
def test_the_line_of_models_leads_to_the_same_section(opened, width):
    page = opened(of(HEADLINE), width)
    page.evaluate(f"document.getElementById('{SECTION}').scrollIntoView()")
    page.get_by_role("navigation", name="other models").get_by_text(human_name(OTHER)).click()
    page.wait_for_url(f"**/{of(OTHER)}.html#{SECTION}")
    here = page.locator(".cu-top [aria-current]")
    assert here.inner_text() == human_name(OTHER)
    heading = page.locator(f"#{SECTION} > h2")
    top = heading.bounding_box()["y"]
    assert page.locator(".cu-top").bounding_box()["y"] < top < 400, "covered, or not there"


def test_the_line_of_models_needs_no_script(browser):
    page = browser.new_page(offline=True, java_script_enabled=False)
    page.goto((HTML / f"{of(HEADLINE)}.html").as_uri())
    page.locator(".cu-top a", has_text=human_name(OTHER)).click()
    page.wait_for_url(f"**/{of(OTHER)}.html")
    assert human_name(OTHER) in page.locator("article h1").inner_text()
    page.close()


def test_every_model_has_its_place_in_the_line():
    for chapter, names in contents.chapters().items():
        for page in names:
            models = {human_name(m): p for p in names if (m := contents.model_of(p))}
            assert links(page, "//nav[@class='cu-top']//a") == models, chapter


@pytest.mark.parametrize(
    "page", [of(HEADLINE), nightly(of(OTHER, "00_quickstart")), nightly("panel/05_model_panel")]
)
def test_code_is_folded_and_one_button_opens_all(opened, page):
    opened_page = opened(page)
    code = opened_page.locator("div.cell_input pre")
    assert code.count() > 2 and not any(one.is_visible() for one in code.all())
    assert "import calib_utils" not in opened_page.locator("article").inner_text()
    button = opened_page.get_by_role("button", name="Show all code")
    button.click()
    told = opened_page.locator("article").inner_text()
    assert "import calib_utils as cu" in told
    shown = [one for one in code.all() if one.is_visible()]
    assert len(shown) == opened_page.locator("details.above-input pre").count() > 2
    opened_page.get_by_role("button", name="Hide all code").click()
    assert not any(one.is_visible() for one in code.all())


def test_a_folded_table_is_saved_as_csv(opened, tmp_path):
    """As the page that shows it has it, commas and quotes included."""
    table = pd.DataFrame({"task": ["a, b", 'say "c"'], "Val × Div": [0.123456, 2]})
    html = reporting.fold(table, "All tasks: the numbers").data
    scripts = f'<script src="{(HTML / "_static" / "book.js").as_uri()}" defer></script>'
    file = tmp_path / "page.html"
    file.write_text(f'<!doctype html><meta charset="utf-8">{html}{scripts}', encoding="utf-8")
    page = opened("intro")
    page.goto(file.as_uri())
    page.locator("summary").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download as CSV: All tasks").click()
    assert saved.value.suggested_filename == "all-tasks-the-numbers.csv"
    read = pd.read_csv(saved.value.path(), encoding="utf-8-sig")
    assert read.to_dict("list") == {"task": ["a, b", 'say "c"'], "Val × Div": [0.12, 2]}


@pytest.mark.parametrize("width", [390, nightly(1280)])
def test_the_verdicts_are_seen_at_a_glance(opened, width):
    page = opened("verdicts", width)
    box = page.locator("table.cu-by-chapter").bounding_box()
    assert box["y"] + box["height"] <= 800
    assert box["x"] + box["width"] <= width
    for table in page.locator("table.cu-matrix").all():
        assert table.evaluate("t => t.scrollWidth <= t.parentElement.clientWidth")
    letters = page.locator("table.cu-by-chapter a.cu-v").all_inner_texts()
    assert {"R", "–"} <= set(letters) and len(letters) > 50
    page.locator(f".cu-by-claim a[href*='{OTHER}']").first.click()
    page.wait_for_url(f"**/{OTHER}/*.html#{SECTION}")


def test_the_shadow_is_seen_until_the_last_column_is(opened, tmp_path):
    page = opened("reference/history", 390, color_scheme="light")
    box = page.locator(".table-scroll, .pst-scrollable-table-container").last

    def shade_at_the_edge():  # of most of it, where no letter and no line is
        box.screenshot(path=tmp_path / "edge.png")
        return np.median(plt.imread(tmp_path / "edge.png")[:, -4:-2, :3])

    before = shade_at_the_edge()
    box.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    assert before < 0.85 < 0.99 < shade_at_the_edge()


@pytest.mark.parametrize(
    ("asked", "title"),
    [
        ("nucleus", "Glossary"),
        nightly("temperature", "Glossary"),
        nightly("mode collapse", "Glossary"),
        nightly(human_name(OTHER), "Glossary"),
        (human_name(OTHER).split()[0], f"({human_name(OTHER)})"),
    ],
)
def test_search_finds_what_people_type(opened, asked, title):
    page = opened("intro")
    page.goto((HTML / "search.html").as_uri() + f"?q={asked}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function(
        "document.querySelector('#search-results p').innerText.includes('found')"
    )
    first = page.locator("#search-results li a").all_inner_texts()[:3]
    assert any(title in found for found in first), first

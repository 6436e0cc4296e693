"""The built book as a whole: links, weight, search, downloads, wrong addresses, its PDF."""

import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import lxml.html
import nbformat
import pytest
import yaml

from calib_utils import paths
from calib_utils.book import build, pages

ROOT = paths.project_root()
HTML = ROOT / "_build" / "_build" / "html"
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
SITE = pages.site_url(REPOSITORY)
MAX_PAGE_MB, MAX_BOOK_MB = 8, 120


@pytest.fixture(scope="session")
def trees(pages):
    """The pages as they are written, parsed: path -> tree."""
    return {path: lxml.html.parse(str(path)).getroot() for path in pages}


def dead_links(trees):
    """Links that lead to no file of the book, or to no place in it."""
    anchors = {path: set(tree.xpath("//@id | //a/@name")) for path, tree in trees.items()}
    dead = []
    for path, tree in trees.items():
        for href in tree.xpath("//a/@href"):
            address, fragment = urldefrag(urljoin(path.as_uri(), href))
            target = Path(unquote(urlsplit(address).path))
            if not address.startswith("file:"):
                continue
            known = anchors.get(target, {fragment} if target.is_file() else ())
            if not target.is_file() or (fragment and unquote(fragment) not in known):
                dead.append(f"{path.name}: {href}")
    return dead


def test_links_inside_the_book_resolve(trees):
    assert not dead_links(trees)


def test_a_dead_link_is_found(tmp_path):
    pages = {"a": '<p id="here"></p>', "b": '<a href="a.html#here">1</a>'}
    bad = ["a.html#there", "c.html", "#nowhere"]
    pages["b"] += "".join(f'<a href="{href}">x</a>' for href in bad)
    for name, body in pages.items():
        (tmp_path / f"{name}.html").write_text(f"<html><body>{body}</body></html>")
    trees = {path: lxml.html.parse(str(path)).getroot() for path in tmp_path.iterdir()}
    assert dead_links(trees) == [f"b.html: {href}" for href in bad]


def test_pages_have_a_bearable_weight(trees, capsys):
    """Each with the files it loads; what scripts load later (an explorer's model) not included."""
    weights = {}
    for path, tree in trees.items():
        loaded = tree.xpath("//img/@src | //script/@src | //link[@rel='stylesheet']/@href")
        files = {path, *((path.parent / unquote(urlsplit(name).path)) for name in loaded)}
        weights[path.relative_to(HTML)] = sum(f.resolve().stat().st_size for f in files) / 1e6
    total = sum(file.stat().st_size for file in HTML.rglob("*") if file.is_file()) / 1e6
    heaviest = sorted(weights, key=weights.get, reverse=True)
    with capsys.disabled():
        print(f"\nthe book: {total:.0f} MB, {len(weights)} pages; the heaviest:")
        for name in heaviest[:5]:
            print(f"  {weights[name]:.1f} MB  {name}")
    assert weights[heaviest[0]] < MAX_PAGE_MB, heaviest[0]
    assert total < MAX_BOOK_MB


def test_search_works_from_a_file(opened, pages):
    page = opened("intro")
    page.locator("button.search-button-field").click()
    page.keyboard.type("Kubernetes")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=Kubernetes*")
    page.locator("#search-results li a", has_text="machines").first.click()
    page.wait_for_url("**/scale_out.html*")


def test_every_chapter_can_be_downloaded_as_the_notebook_that_was_run(trees):
    chapters = [p for p in trees if re.match(r"\d\d_", p.name)]
    assert chapters
    for path in chapters:
        link = trees[path].xpath("//a[contains(@class, 'btn-download-source-button')]/@href")
        given = (path.parent / link[0]).read_bytes()
        source = paths.book_dir() / path.relative_to(HTML).with_suffix(".ipynb")
        assert given == source.read_bytes()
        nbformat.validate(nbformat.reads(given.decode(), 4))


def test_every_chapter_has_its_command_and_its_launch_buttons(trees):
    for path, tree in trees.items():
        boxes = tree.xpath("//details[contains(@class, 'cu-run')]")
        if not re.match(r"\d\d_", path.name):
            assert not boxes
            continue
        text = boxes[0].text_content()
        name = path.relative_to(HTML).with_suffix(".ipynb").as_posix()
        assert (f"--notebook {path.stem}" in text) == ("panel" not in path.parts)
        assert "-m calib_utils run \\\n  --model Qwen/Qwen3-0.6B" in text
        links = tree.xpath("//a/@href")
        short = REPOSITORY.removeprefix("https://github.com/")
        mine = f"{short}/blob/main/book/{name}"
        assert f"https://colab.research.google.com/github/{mine}" in links
        binder = f"https://mybinder.org/v2/gh/{short}/main?urlpath=lab/tree/book/{name}"
        assert binder in links
        assert f"{REPOSITORY}/edit/main/notebooks/{path.stem}.py" in links


def test_figures_are_described_in_words(trees):
    shown = "//figure//img | //figure//*[@role = 'img']"
    every = [image for tree in trees.values() for image in tree.xpath(shown)]
    described = [image.get("alt") or image.get("aria-label") or "" for image in every]
    assert len(described) > 50
    nameless = [alt for alt in described if len(alt) < 25 or " " not in alt or ".png" in alt]
    assert not nameless, nameless


def test_a_shared_link_has_a_card(trees):
    for path, tree in trees.items():
        if path.name in ("genindex.html", "search.html"):
            continue
        card = {m.get("property"): m.get("content") for m in tree.xpath("//meta[@property]")}
        assert card["og:url"] == SITE + path.relative_to(HTML).as_posix()
        assert card["og:title"] and card["og:description"], path
        assert card["og:site_name"] == "Calibration is the Diversity Bottleneck"
        image = card["og:image"].removeprefix(SITE)
        assert (HTML / image).is_file() and card["og:image:alt"]


def test_the_citation_is_one_click_away(trees):
    for path, tree in trees.items():
        links = tree.xpath("//footer//a[. = 'Cite this book']/@href")
        address, _ = urldefrag(urljoin(path.as_uri(), links[0]))
        assert address == (HTML / "reference" / "cite.html").as_uri(), path


class _Pages(SimpleHTTPRequestHandler):
    """As GitHub serves pages: below a prefix, and 404.html for what is not there."""

    def translate_path(self, path):
        prefix, _, rest = urlsplit(path).path.partition(urlsplit(SITE).path)
        return super().translate_path("/" + rest) if not prefix and rest else "/nowhere"

    def send_error(self, code, *args):
        body = (HTML / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_wrong_address_leads_on(browser, pages):
    """At any depth, from a server with the site's prefix."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page, failed = browser.new_page(), []
    try:
        page.on("response", lambda r: r.status >= 400 and failed.append(r.url))
        root = f"http://127.0.0.1:{server.server_port}"
        wrong = f"{root}{urlsplit(SITE).path}results/no-model/99_no.html"
        page.goto(wrong)
        assert page.locator("article h1").inner_text() == "Page not found"
        assert failed == [wrong]  # and its styles and scripts are all there
        page.get_by_role("link", name="How to read this book").first.click()
        page.wait_for_url("**/how_to_read.html")
    finally:
        page.close()
        server.shutdown()
        server.server_close()


@pytest.mark.full
def test_a_page_is_printed_with_its_outline(browser, pages, tmp_path):
    """One page; the whole book is `make pdf`, the same function on all pages in one."""
    # The sync interface runs once a thread, and the fixture's is running in this one.
    thread = threading.Thread(
        target=build.print_page, args=(HTML / "errata.html", tmp_path / "one.pdf")
    )
    thread.start()
    thread.join()
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-") and b"/Outlines" in pdf and b"/StructTreeRoot" in pdf
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3


@pytest.mark.full
def test_on_paper_nothing_is_cut(opened, pages):
    cut = {}
    for path in pages:
        if path.name in ("03_oracle_cutoffs.html", "05_model_panel.html", "errata.html"):
            page = opened(path, 690, 1000)
            page.emulate_media(media="print")
            cut[path] = page.evaluate("""() => [...document.querySelectorAll(
                '.bd-article :is(table, pre, img, mjx-container[display])')]
                .filter(e => e.getBoundingClientRect().right > innerWidth)
                .map(e => e.outerHTML.slice(0, 100))""")
    assert len(cut) > 3 and not any(cut.values()), json.dumps([*cut.values()])

"""What the book holds: each chapter once, other models' below it, the way through, verdicts."""

import json

import nbformat
import pytest
import yaml

from calib_utils import paths
from calib_utils.__main__ import main
from calib_utils.book import contents, pages, verdicts
from calib_utils.models.registry import HEADLINE, book_order, human_name
from calib_utils.studies.reporting import CLAIM, HYPOTHESIS, KINDS

NEW = "owner--name"


@pytest.fixture
def page(write_page):
    """An executed notebook with a heading and what it glued as verdicts."""

    def write(book, folder, name, *told):
        heading = f"# {name[3:].title()}: a question\n\n**Question.**"
        cell = nbformat.v4.new_markdown_cell(heading)
        write_page(book / folder / f"{name}.ipynb", cell, verdicts=json.dumps(told))

    return write


@pytest.fixture
def book(tmp_path, page):
    """Two chapters of the headline model, one of them and another of a new model, one of all."""
    for folder, name in (
        (f"results/{HEADLINE}", "00_first"),
        (f"results/{HEADLINE}", "02_second"),
        (f"results/{NEW}", "02_second"),
        (f"results/{NEW}", "03_third"),
        ("panel", "01_all"),
    ):
        page(tmp_path, folder, name)
    (tmp_path / "results" / NEW / ".failed-04_x.ipynb").touch()
    return tmp_path


def parts(book):
    """Caption -> entries of the table of contents, as Sphinx reads it."""
    told = yaml.safe_load(contents.table_of_contents(book))["parts"]
    return {part["caption"]: part["chapters"] for part in told}


def test_each_chapter_stands_once_and_other_models_below_it(book):
    assert parts(book)["Chapters"] == [
        {"file": f"results/{HEADLINE}/00_first"},
        {"file": "panel/01_all"},
        {
            "file": f"results/{HEADLINE}/02_second",
            "sections": [{"file": f"results/{NEW}/02_second", "title": "name"}],
        },
        {"file": f"results/{NEW}/03_third"},
    ]
    assert list(parts(book)) == ["The argument", "Chapters", "Tools", "Reference"]


def test_next_leads_through_one_model(book):
    first, *order = contents.reading_order(book=book)
    assert first == contents.ROOT
    at = order.index(f"results/{HEADLINE}/00_first")
    assert order[:at] == list(contents.ARGUMENT)
    own = [f"results/{NEW}/02_second", f"results/{NEW}/03_third"]
    assert order[at : at + 4] == [
        f"results/{HEADLINE}/00_first",
        "panel/01_all",
        f"results/{HEADLINE}/02_second",
        own[1],
    ]
    of_new = contents.reading_order(NEW, book)
    assert [p for p in of_new if "/02_" in p or "/03_" in p] == own
    # And it passes every page of the book that is in the list of pages, but other models'.
    listed = set(yaml_files(book)) | {contents.ROOT}
    assert listed - set(order) - {first} == {own[0]}


def yaml_files(book):
    for entries in parts(book).values():
        for entry in entries:
            yield from (one["file"] for one in [entry, *entry.get("sections", [])])


@pytest.mark.parametrize("key", ["007", "null", "Yes", "1e3", "@me", "a b: c", "owner--name@main"])
def test_any_folder_name_is_a_model(tmp_path, page, key):
    page(tmp_path, f"results/{HEADLINE}", "00_quickstart")
    page(tmp_path, f"results/{key}", "00_quickstart")
    (chapter,) = parts(tmp_path)["Chapters"]
    below = {"file": f"results/{key}/00_quickstart", "title": human_name(key)}
    assert chapter["sections"] == [below]
    assert set(contents.models_with_pages(tmp_path)) == {HEADLINE, key}
    written = contents.write_table_of_contents(tmp_path).read_text()
    assert written == contents.table_of_contents(tmp_path)


def test_a_model_is_removed_and_the_book_is_as_before(book, capsys):
    with_new = contents.table_of_contents(book)
    command = ["remove", "owner/name", "--book-dir", str(book)]
    assert main(command) == 0
    assert capsys.readouterr().out.split() == [str(book / "results" / NEW)]
    assert contents.models_with_pages(book) == [HEADLINE]
    written = (book / "_toc.yml").read_text()
    assert written == contents.table_of_contents(book) != with_new
    assert main(command) == 2
    assert "UnknownNameError" in capsys.readouterr().err


@pytest.mark.notebooks
def test_with_its_rows_a_model_leaves_the_page_of_all_models_too(book, page, tiny_folder, tmp_path):
    """The page is executed on what is left; here no model is, and it says so without failing."""
    rows = tmp_path / "rows"
    folder = tiny_folder().parent / tiny_folder().name
    command = ["--model", str(folder), "--task", "rng-1", "--device", "cpu"]
    assert main(["evaluate", *command, "--results-dir", str(rows)]) == 0
    page(book, f"results/{folder.name}", "02_second")
    places = ["--book-dir", str(book), "--results-dir", str(rows)]
    assert main(["remove", folder.name, "--rows", *places]) == 0
    assert not (rows / folder.name).exists() and not (book / "results" / folder.name).exists()
    (panel,) = (book / "panel").glob("05_*.ipynb")
    assert folder.name not in panel.read_text()


@pytest.mark.parametrize(
    "model", [HEADLINE, "smollm2-135m-instruct", "..", "results", "../results"]
)
def test_what_the_book_rests_on_is_not_removed(book, model, capsys):
    before = sorted(book.rglob("*"))
    assert main(["remove", model, "--book-dir", str(book)]) == 2
    assert sorted(book.rglob("*")) == before
    assert ("rests on it" in capsys.readouterr().err) == (book_order(model)[0] < 4)


def claim(text, verdict, kind=CLAIM):
    return {"claim": text, "kind": kind, "verdict": verdict}


@pytest.fixture
def judged(tmp_path, page):
    """Two models and the page of all, whose verdicts differ."""
    yes, no, neither = KINDS[CLAIM][1:]
    other = claim("A premise", KINDS[HYPOTHESIS].no, HYPOTHESIS)
    first = [claim("It's so & so", yes), claim("Another", "excluded"), other]
    page(tmp_path, f"results/{HEADLINE}", "02_x", *first)
    page(tmp_path, f"results/{NEW}", "02_x", claim("It's so & so", no), other)
    page(tmp_path, "panel", "05_all", claim("All alike", neither))
    return tmp_path


def test_every_verdict_is_a_letter_that_leads_to_its_numbers(judged):
    import lxml.html

    glance, words = verdicts.at_a_glance(judged), verdicts.in_words(True, judged)
    for html in (glance, words):
        tree = lxml.html.fromstring(html)
        assert [th.text_content() for th in tree.xpath("//thead//th")][1:] == [
            human_name(HEADLINE),
            "name",
        ]
        letters = {a.get("aria-label"): (a.text, a.get("href")) for a in tree.xpath("//a[@title]")}
        own, other, panel = (
            f"page:{page}#claims-and-findings"
            for page in (f"results/{HEADLINE}/02_x", f"results/{NEW}/02_x", "panel/05_all")
        )
        assert letters == {
            f"reproduced: It's so & so ({human_name(HEADLINE)})": ("R", own),
            f"excluded: Another ({human_name(HEADLINE)})": ("–", own),
            "not reproduced: It's so & so (name)": ("N", other),
            "not decided: All alike (all models)": ("?", panel),
        }
        assert len(tree.xpath("//td[@colspan=2]")) == 1
    others = lxml.html.fromstring(verdicts.in_words(False, judged))
    assert [a.text for a in others.xpath("//a")] == ["D", "D"]
    assert not others.xpath("//a[contains(@class, 'cu-no')]"), "nothing is said against a theorem"


def test_the_tally_counts_what_was_tested_on_one_model(judged):
    told = verdicts.tally(book=judged)
    assert told.startswith("Of the 1 measured claims") and human_name(HEADLINE) in told
    assert "1 are reproduced, 0 are not, and 0 are not decided; 1 more cannot be tested" in told


def test_models_are_entries_of_the_glossary(judged):
    told = contents.described_models(judged)
    assert f"{human_name(HEADLINE)}\n  `{HEADLINE}`" in told
    assert f"[X](/results/{NEW}/02_x.ipynb)" in told


def test_code_is_folded_and_what_nobody_looks_for_is_out_of_sight():
    def tags(source, *outputs, given=()):
        cell = nbformat.v4.new_code_cell(source, outputs=list(outputs))
        cell.metadata.tags = list(given)
        return pages._folded(cell)

    shown = nbformat.v4.new_output("display_data", {"text/html": "x"})
    printed = nbformat.v4.new_output("stream", text="x")
    glued = nbformat.v4.new_output("display_data", {"application/papermill.record/text/plain": "1"})
    assert tags("show(x)", shown) == tags("print(x)", printed) == ["hide-input"]
    quiet = ["hide-input", "quiet-code"]
    assert tags("x = 1") == tags("glue(x)", glued) == tags("import x\nx.show()", shown) == quiet
    assert tags("x = 1", given=["parameters"]) == ["parameters", *quiet]
    assert tags("x", given=["remove-cell"]) == ["remove-cell"]


def test_the_book_has_a_page_for_each_entry():
    there = {p for pages in contents.chapters().values() for p in pages}
    for file in yaml_files(None):
        suffix = ".ipynb" if file in there else ".md"
        assert (paths.book_dir() / f"{file}{suffix}").is_file(), file


def test_a_chapter_that_failed_is_named_with_its_error(book, page):
    """Where a page would be: in the line of models, and in the matrix of verdicts."""
    own = claim("A claim", KINDS[CLAIM].yes)
    page(book, f"results/{HEADLINE}", "05_fifth", own)
    page(book, f"results/{NEW}", "03_third", own)
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="<no rows>", traceback=[])
    cells = [nbformat.v4.new_code_cell("1 / 0", outputs=[error])]
    kept = book / "results" / NEW / ".failed-05_fifth.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), kept)
    assert contents.failures("05_fifth", book) == {NEW: "ValueError: <no rows>"}
    for table in (verdicts.at_a_glance(book), verdicts.in_words(True, book)):
        assert '<i title="ValueError: &lt;no rows&gt;">failed</i>' in table
    page(book, f"results/{NEW}", "05_fifth", own)  # a page from before: it stands
    assert contents.failures("05_fifth", book) == {}

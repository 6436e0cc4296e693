"""What a reader of the book relies on: the parts of a chapter, figures that tell their source."""

import json
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from calib_utils import errors, figures, paths
from calib_utils.book import build, notebooks
from calib_utils.models.loading import Model
from calib_utils.studies import reporting
from calib_utils.studies.reporting import OURS

ROOT = paths.project_root()
CHAPTERS = [*notebooks.notebook_names(), *notebooks.panel_names()]
# Nothing in these was measured: an example done by hand, a formula, laws with known answers.
BY_FORMULA = {"fig-words", "fig-price", "fig-controls"}


def chapter(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_claim_finding_and_how_to_check(name):
    text = "\n".join(c.source for c in chapter(name).cells if c.cell_type == "markdown")
    marks = ["**What the paper claims**", "**What we find.**", "## Check it yourself"]
    places = [text.find(mark) for mark in marks]
    assert -1 not in places and places == sorted(places), dict(zip(marks, places, strict=True))
    finding = text[places[1] : places[1] + 900]
    assert "{glue:text}`" in finding, "the finding names no number of the run"
    check = text[places[2] :]
    assert "python -m" in check or "```python" in check
    assert re.search(r"refute|would be wrong|is a bug|should", check), "nothing could refute it"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_figure_has_a_caption_a_text_for_who_cannot_see_it_and_its_source(name):
    cells = [c for c in chapter(name).cells if "figure" in c.metadata.get("mystnb", {})]
    for cell in cells:
        given = cell.metadata["mystnb"]
        label, caption = given["figure"]["name"], given["figure"]["caption"]
        assert caption.endswith(".") and given["image"]["alt"].endswith("."), label
        assert len(given["image"]["alt"]) > 30 and given["image"]["alt"] != caption, label
        said = "source_line(" in cell.source
        assert said != (label in BY_FORMULA), f"{label}: source line {said}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_a_chapter_says_of_itself_is_glued_in_it(name):
    cells = chapter(name).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    asked = set(re.findall(r"\{glue:text\}`([\w-]+)`", text))
    folder = "panel" if name in notebooks.panel_names() else "results/qwen2.5-coder-0.5b-instruct"
    executed = nbformat.read(ROOT / "book" / folder / f"{name}.ipynb", as_version=4)
    outputs = (o for c in executed.cells for o in c.get("outputs", ()))
    glued = {o.get("metadata", {}).get("scrapbook", {}).get("name") for o in outputs}
    assert asked <= glued


def test_verdicts_in_words():
    verdicts = ["reproduced", "not reproduced", "reproduced", "not testable here"]
    found = pd.DataFrame({"claim": list("ABCD"), "source": "Fig. 1", "verdict": verdicts})
    told = "Of 4 claims: 2 reproduced, 1 not reproduced, 1 not testable here."
    assert reporting.headline(found) == f"{told} Not reproduced: “B”."
    assert "Not reproduced:" not in reporting.headline(found[found.claim != "B"])
    ours = found.assign(source=["Fig. 1", f"Fig. 1, {OURS}", OURS, "Fig. 1"])
    assert reporting.headline(ours).split(". ") == [
        "Of 2 claims: 1 reproduced, 0 not reproduced, 1 not testable here",
        "Of 2 tests that the paper does not make: 1 reproduced, 1 not reproduced, "
        "0 not testable here",
        "Not reproduced: “B”.",
    ]


def test_labels_of_text_carry_the_model_where_they_are_made_and_named():
    text = (
        "$$\nx\n$$ (eq-x)\n\n:::{admonition} T\n:name: thm-x\n:::\n"
        "{eq}`eq-x`, {ref}`T <thm-x>`, {numref}`fig-x`, {eq}`eq-x-long`"
    )
    figure = nbformat.v4.new_code_cell("", metadata={"mystnb": {"figure": {"name": "fig-x"}}})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), figure])
    notebooks._own_labels(notebook, "m")
    assert notebook.cells[0].source == (
        "$$\nx\n$$ (eq-x-m)\n\n:::{admonition} T\n:name: thm-x-m\n:::\n"
        "{eq}`eq-x-m`, {ref}`T <thm-x-m>`, {numref}`fig-x-m`, {eq}`eq-x-long`"
    )
    assert notebook.cells[1].metadata.mystnb.figure.name == "fig-x-m"


def test_prose_pages_show_the_figures_of_executed_notebooks(tmp_path):
    book = tmp_path / "book"
    folder = paths.executed_dir("qwen2.5-coder-0.5b-instruct", book)
    folder.mkdir(parents=True)
    name = "02_controlled_tasks.ipynb"
    (folder / name).write_bytes((paths.executed_dir(folder.name) / name).read_bytes())
    (book / "page.md").write_text("```{figure} figures/fig-val-div.png\n```\n")
    (written,) = build.write_figures(book)
    assert written == book / "figures" / "fig-val-div.png"
    assert written.read_bytes() == (ROOT / "book" / "assets" / "val-div.png").read_bytes()
    (book / "page.md").write_text("![](figures/fig-gone.png)")
    with pytest.raises(errors.BookBuildError, match=r"fig-gone.*correct the name"):
        build.write_figures(book)


@pytest.mark.parametrize("place", [{}, {"bbox_to_anchor": (0.5, -0.02)}])
def test_the_line_of_a_figure_lies_below_all_else_as_saved(tmp_path, place):
    """Counted in bands of ink from the bottom: the legend must not slide under the line."""

    def bands(*lines):
        drawn, axes = plt.subplots(2, 1, figsize=(5, 6))
        axes[0].plot([0, 1], label="a")
        drawn.tight_layout(rect=(0, 0.12, 1, 1))
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="lower center", **place)
        if lines:
            figures.source_line(axes[0], *lines)
        drawn.savefig(tmp_path / "figure.png", bbox_inches="tight")
        plt.close(drawn)
        ink = (plt.imread(tmp_path / "figure.png")[..., :3].min(axis=2) < 0.7).any(axis=1)
        return int(np.diff(np.r_[0, ink.astype(int)]).clip(0).sum())

    assert bands("one", "two") == bands() + 2


def test_the_line_of_a_figure_comes_from_records_and_no_clock(tmp_path):
    model = Model("m", "m", tmp_path, "0" * 64, "m.gguf", None, "float32", "cpu")

    def keep(folder, day, seconds):
        record = {"convention": 1, "environment": {"date": f"2026-11-{day}"}}
        (tmp_path / "m" / folder).mkdir(parents=True)
        (tmp_path / "m" / folder / "provenance.json").write_text(json.dumps(record | seconds))

    keep("rng-2", 24, {"seconds": 1.4})
    keep("rng-3", 26, {"seconds": 2.4})
    keep("rng-3@end=line", 27, {"seconds": 1000})
    page, base = (reporting.Page(model, tmp_path, end, "") for end in ("eos", "line"))
    told = page.when_measured(["rng-2", "rng-3"])
    assert told == "measured 2026-11-24 to 2026-11-26 in 4 s, convention 1"
    assert "1,000 s" in base.when_measured(["rng-3"])
    assert "in 1,004 s" in page.when_measured()
    keep("texts/one", 25, {})
    table = pd.DataFrame({"text": ["a", "b", "c"]})
    table.to_parquet(tmp_path / "m" / "texts" / "one" / "x.parquet")
    table.to_parquet(tmp_path / "m" / "texts" / "one" / ".draft.parquet")
    told = page.when_written(["one", "two"])
    assert told == "3 texts, written 2026-11-25, convention 1"
    nowhere = reporting.Page(model, None, "eos", "")
    nothing = [nowhere.when_written([]), page.when_measured(["rng-4"])]
    assert nothing == [reporting.live()] * 2 and "when this page ran" in reporting.live()

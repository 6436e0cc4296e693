"""What an executed copy depends on: every input, no code, nothing that a fresh clone lacks."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.__main__ import main
from calib_utils.book import contents, notebooks
from calib_utils.models import registry
from calib_utils.results import conventions, storage
from calib_utils.results.storage import COLUMNS, Tables

ROOT = paths.project_root()
COMPUTE = "from calib_utils import paths\n1 + 1"
# What the copies of the fixture `executed` have read.
READ = {
    "00_first": ["results/mine/rng-1"],
    "01_second": ["tasks/us-states.txt"],
    "05_all": ["results", "results/mine/rng-1"],
}


@pytest.fixture
def project(tmp_path, monkeypatch, write_notebook):
    """A project root with two notebooks about one model and one about all; code is this one's."""
    root = tmp_path / "project"
    for name in ("tasks", "published", "panel"):
        shutil.copytree(ROOT / "data" / name, root / "data" / name)
    (root / "data" / "results").mkdir()
    for name in ("book", "notebooks"):
        (root / name).mkdir()
    write_notebook(root, "00_first", [COMPUTE])
    write_notebook(root, "01_second", ["from calib_utils.core import tasks"])
    write_notebook(root, "05_all", (["all-results"], ['results_dir = ""\nseed = 0\nquick = False']))
    monkeypatch.setattr(paths, "project_root", lambda: root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return root


@pytest.fixture
def mine(tiny_folder, tmp_path):
    return str(shutil.copytree(tiny_folder(), tmp_path / "mine"))


def stored(results_dir, model="mine", task="rng-1", validity=0.5, temperature=1.0, **changes):
    """Rows in their place, with a record like a measurement's."""
    row = dict.fromkeys(COLUMNS, 0.0) | {"model": model, "task": task, "rule": "none"}
    row |= {"parameter": float("nan"), "temperature": temperature, "n_answers": 2, "n_nodes": 3}
    row |= {"validity": validity, "diversity": 0.5}
    row |= {"sequence_precision": 0.5, "sequence_recall": 1.0}
    table = pd.DataFrame([row])[COLUMNS]
    record = {"model": model, "seconds": time.time(), "environment": {"date": str(time.time())}}
    record |= {"convention": conventions.CURRENT["rows"], "dtype": "float32"} | changes
    folder = storage.folder_of(results_dir, model, task)
    storage.write(folder, Tables(table), record)
    return folder


def why(mine, name="00_first", **parameters):
    """What `run` would say now, of the copy in the book."""
    own = {} if name == "05_all" else {"model": mine}
    folder = paths.panel_dir() if name == "05_all" else paths.executed_dir("mine")
    return notebooks.why_stale(name, own | parameters, folder / f"{name}.ipynb")


def run(*arguments):
    return main(["run", *map(str, arguments)])


@pytest.fixture
def executed(project, mine):
    """All three executed, without a kernel."""
    stored(paths.default_results_dir())
    read = {name: [project / "data" / part for part in parts] for name, parts in READ.items()}

    def execute_file(source, target, parameters):
        shutil.copy(source, target)
        return read[source.stem]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "execute_file", execute_file)
        assert run("--model", mine) == 0
    assert why(mine) == why(mine, "01_second") == why(mine, "05_all") == []
    return project


def test_never_run_spoilt_and_without_a_record(project, mine):
    assert why(mine) == ["never run"]
    page = paths.executed_dir("mine") / "00_first.ipynb"
    page.parent.mkdir(parents=True)
    copy = nbformat.read(paths.notebooks_dir() / "00_first.ipynb", as_version=4)
    copy.metadata["calib_utils"] = {"source_sha256": notebooks.source_sha256("00_first")}
    nbformat.write(copy, page)
    assert why(mine) == ["no record of what it was made from"]
    spoilt = [{"source_sha256": "0", "made_from": one} for one in (5, [], {}, {"weights": 1})]
    spoilt = [json.dumps({"metadata": {"calib_utils": one}}) for one in (5, *spoilt)]
    for content in ("", "{", "[]", "null", '{"cells": []}', *spoilt):
        page.write_text(content)
        assert why(mine) == ["the executed copy is unreadable"]


def test_each_input_makes_it_stale_and_is_named(executed, mine, monkeypatch, write_notebook):
    assert why(mine, seed=1) == ["other parameters: seed"]
    write_notebook(executed, "01_second", ["from calib_utils.core import tasks\n2"])
    assert why(mine, "01_second") == ["its source changed"]
    assert why(mine) == []
    write_notebook(executed, "01_second", ["from calib_utils.core import tasks"])
    config = Path(mine) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"extra": 1}))
    assert why(mine) == ["the weights changed"]
    assert why(mine, "05_all") == []
    monkeypatch.setattr(notebooks, "identity", lambda *_: notebooks.Identity("mine", None))
    assert why(mine) == [], "weights that are not here are not compared"


def test_rows_of_another_identity_and_rows_that_went_make_it_stale(executed, mine):
    store = paths.default_results_dir()
    stored(store, validity=0.25)  # the same rows, computed on another day by another processor
    stored(store, task="rng-2")
    assert why(mine) == why(mine, "05_all") == []
    # Which rows there are is a matter of the page that shows them all.
    stored(store, temperature=2.0)
    assert (why(mine), why(mine, "05_all")) == ([], ["rows of mine/rng-1 changed"])
    for changes in ({"dtype": "bfloat16"}, {"weights_sha256": "1" * 64}, {"prompt_sha256": "2"}):
        stored(store, **changes)
        assert why(mine) == why(mine, "05_all") == ["rows of mine/rng-1 changed"]
    stored(store)
    assert why(mine) == []
    shutil.rmtree(store / "mine" / "rng-1")
    assert why(mine) == ["rows of mine/rng-1 changed"]
    stored(store)
    # Another model's rows are no matter of this one, but of the page about all.
    stored(store, model="other")
    assert why(mine) == []
    assert why(mine, "05_all") == ["rows of the list of models changed"]


def test_rows_of_an_older_convention_make_it_stale(executed, mine, monkeypatch):
    monkeypatch.setitem(conventions.CURRENT, "rows", 2)
    assert why(mine) == ["rows of mine/rng-1 changed"]
    stored(paths.default_results_dir())
    assert why(mine) == ["rows of mine/rng-1 changed"], "the page shows numbers of the older one"
    assert why(mine, "01_second") == []


def test_data_counts_where_it_was_read(executed, mine):
    for readme in ("tasks/README.md", "published/README.md", "published/table1.csv"):
        (executed / "data" / readme).write_text("new")
    assert why(mine, "01_second") == []
    (executed / "data" / "tasks" / "us-states.txt").write_text("Utah\n")
    assert why(mine, "01_second") == ["data changed: tasks/us-states.txt"]
    assert why(mine) == []


def test_a_copy_without_dates_needs_no_run(executed, mine, tmp_path, monkeypatch, capsys):
    clone = tmp_path / "clone"
    shutil.copytree(executed, clone, copy_function=shutil.copy)
    os.utime(clone / "notebooks" / "00_first.ipynb", (1, 1))
    monkeypatch.setattr(paths, "project_root", lambda: clone)
    assert run("--model", mine) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.split(": ")[1] for line in told.err.splitlines()] == ["current"] * 3


@pytest.mark.notebooks
def test_a_page_records_what_it_read(project, mine, write_notebook):
    store = paths.default_results_dir()
    stored(store)
    cells = [
        "from calib_utils import paths",
        "from calib_utils.core import tasks",
        "from calib_utils.results import storage",
        "rows = storage.read(paths.default_results_dir() / 'mine' / 'rng-1')",
        "none = storage.read(paths.default_results_dir() / 'mine' / 'rng-2')",
        "states = tasks.get_task('us-states')",
    ]
    code = "from pathlib import Path\nfrom calib_utils import paths\n"
    write_notebook(
        project, "00_first", [f"{code}paths.project_root = lambda: Path({str(project)!r})", *cells]
    )
    page = notebooks.run("00_first", {"model": mine}, paths.executed_dir("mine") / "00_first.ipynb")
    assert mine not in page.read_text()  # a path of this machine
    record = json.loads(page.read_text())["metadata"]["calib_utils"]["made_from"]
    assert set(record) == {"parameters", "weights", "rows", "data"}
    assert list(record["rows"]) == ["mine/rng-1", "mine/rng-2"]
    assert record["rows"]["mine/rng-1"] and record["rows"]["mine/rng-2"] is None
    assert list(record["data"]) == ["tasks/us-states.txt"]
    assert why(mine) == []
    stored(store, task="rng-2")  # which the page looked for
    assert why(mine) == ["rows of mine/rng-2 changed"]


@pytest.mark.full
def test_a_rename_a_moved_module_and_a_reworded_docstring_make_nothing_stale(tmp_path):
    """Of the committed pages and the rows that they read, in a project of its own."""
    root, small = paths.project_root(), "smollm2-135m-instruct"
    project = tmp_path / "project"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "calib_utils", project / "calib_utils", ignore=skip)
    for name in ("data", "notebooks", "_config.yml"):
        (project / name).symlink_to(root / name)
    for name in (f"results/{small}", "panel"):
        shutil.copytree(root / "book" / name, project / "book" / name)
    package = project / "calib_utils"
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        source = re.sub(r"\buntouched\b", "without_a_cutoff", source)
        source = source.replace("calib_utils.results.measure", "calib_utils.results.one_pass")
        path.write_text(source.replace('"""One ', '"""Surely one '), encoding="utf-8")
    (package / "results" / "measure.py").rename(package / "results" / "one_pass.py")
    command = [sys.executable, "-m", "calib_utils", "run", "--model", small]
    own = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=own, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if " on " in line]
    assert len(said) == len([*notebooks.notebook_names(), *notebooks.panel_names()])
    assert not [line for line in said if not line.endswith(": current")]


def test_weights_are_told_without_a_network(tiny_folder, hub, tmp_path):
    name = registry.DEFAULT_MODEL
    assert notebooks.identity(name).weights_sha256 == registry.EMBEDDED[name].sha256
    hub(tiny_folder(), "owner/model")
    for given in (tiny_folder(), "owner/model"):
        from calib_utils.models.loading import load_model

        loaded, found = load_model(str(given), device="cpu"), notebooks.identity(str(given))
        assert (found.key, found.weights_sha256) == (loaded.key, loaded.weights_sha256)
    assert notebooks.identity("owner/nothing-here") == notebooks.Identity(
        "owner--nothing-here", None
    )
    (tmp_path / "empty").mkdir()
    assert notebooks.identity(str(tmp_path / "empty")) == notebooks.Identity("empty", None)


def test_a_run_executes_what_is_stale_and_the_page_about_all_last(
    project, mine, capsys, write_notebook
):
    write_notebook(project, "01_second", ["raise ValueError('no')"])

    def told():
        out, err = capsys.readouterr()
        names = ("00_first", "01_second", "05_all")
        return out.split(), [line for line in err.splitlines() if line.startswith(names)]

    # One fails, and the page about all models comes all the same, after it.
    assert run("--model", mine) == 1
    out, err = told()
    pages = [paths.executed_dir("mine") / "00_first.ipynb", paths.panel_dir() / "05_all.ipynb"]
    assert out == list(map(str, pages))
    assert "01_second failed (ValueError: no)" in err[2]
    assert err[3] == "05_all on panel: never run; executing ..."
    files = [line.split()[-1] for line in contents.table_of_contents().splitlines() if "/0" in line]
    assert files == ["results/mine/00_first", "panel/05_all"]
    write_notebook(project, "01_second", ["2"])
    assert run("--model", mine, "--no-panel") == 0
    out, err = told()
    assert out == [str(paths.executed_dir("mine") / "01_second.ipynb")]
    assert err == ["00_first on mine: current", "01_second on mine: never run; executing ..."]
    assert run("--panel") == 0
    assert told() == ([], ["05_all on panel: current"])
    assert run("--panel", "--force") == 0
    assert told() == ([str(pages[1])], ["05_all on panel: asked for by --force; executing ..."])
    assert run("--notebook", "05_all", "-p", "seed=1") == 0
    assert told()[1] == ["05_all on panel: other parameters: seed; executing ..."]


def _hold(folder, held, release):
    with notebooks._alone(folder):
        held.set()
        release.wait(60)


def _pass(folder, passed):
    with notebooks._alone(folder):
        passed.set()


def test_the_second_run_of_a_model_waits_and_says_so(tmp_path, capfd):
    context = multiprocessing.get_context("fork")
    held, release, passed = context.Event(), context.Event(), context.Event()
    folder = tmp_path / "mine"
    first = context.Process(target=_hold, args=(folder, held, release))
    first.start()
    assert held.wait(60)
    second = context.Process(target=_pass, args=(folder, passed))
    second.start()
    told = ""
    while "waiting" not in told:
        told += capfd.readouterr().err
    assert not passed.is_set()
    assert "run of mine is at work" in told
    # Ended by force, as by a batch system: the lock ends with it.
    first.kill()
    assert passed.wait(60)
    for process in (first, second):
        process.join(60)


def _write_rows(results_dir, validity, times):
    for _ in range(times):
        stored(results_dir, validity=validity)


@pytest.mark.full
def test_two_writers_of_a_folder_leave_one_whole_folder(tmp_path):
    context, times = multiprocessing.get_context("fork"), 25
    values = (0.25, 0.5, 0.75)
    writers = [context.Process(target=_write_rows, args=(tmp_path, v, times)) for v in values]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * len(writers)
    found = storage.read(storage.folder_of(tmp_path, "mine", "rng-1"))
    assert found.settings.validity.iloc[0] in values
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".lock", "rng-1"]

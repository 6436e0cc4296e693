"""Notebooks: pairs in step, parameters checked, committed outputs current and reproduced."""

import json
import os
import subprocess
import sys

import jupytext
import nbformat
import pytest

from calib_utils import paths, runner
from calib_utils.book import models_with_pages, table_of_contents
from calib_utils.errors import NotebookParameterError, UnknownNameError
from calib_utils.registry import CORE

ROOT = paths.project_root()
NOTEBOOKS = runner.notebook_names()
PANEL = runner.panel_names()
EXECUTED = sorted(
    path
    for pattern in ("results/*", "panel")
    for path in (ROOT / "book").glob(f"{pattern}/[0-9][0-9]_*.ipynb")
)


def _ids(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("name", [*NOTEBOOKS, *PANEL])
def test_script_and_notebook_are_in_step(name):
    script = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)

    def cells(book):
        return [(c.cell_type, c.source, c.metadata) for c in book.cells]

    assert cells(script) == cells(notebook), "run make sync"
    assert all(not c.get("outputs") and not c.get("execution_count") for c in notebook.cells)


@pytest.mark.parametrize("name", [*NOTEBOOKS, *PANEL])
def test_every_notebook_has_the_common_parameters_and_no_logic(name):
    parameters = set(runner.parameters_of(name))
    if name in PANEL:
        assert parameters <= set(runner.PANEL_PARAMETERS)
    else:
        assert set(runner.COMMON_PARAMETERS) <= parameters
    source = (ROOT / "notebooks" / f"{name}.py").read_text()
    assert "\ndef " not in source and "\nclass " not in source


def test_every_script_has_its_notebook():
    scripts = {p.stem for p in (ROOT / "notebooks").glob("*.py")}
    assert scripts == {*NOTEBOOKS, *PANEL}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"modle": "x"}, "Did you mean 'model'"),
        ({"temprature": 1.0}, "unknown parameter 'temprature'"),
        ({"quick": "yes"}, "quick='yes' must be a bool"),
        ({"seed": True}, "seed=True must be a int"),
        ({"seed": 1.5}, "seed=1.5 must be a int"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(parameters, said, tmp_path):
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookParameterError, match=said):
        runner.run("00_quickstart", parameters, output)
    assert not output.exists()


@pytest.mark.parametrize("pair", ["seed", "seed=many", "colour=red", "quick=1"])
def test_wrong_parameter_texts_are_refused(pair):
    with pytest.raises(NotebookParameterError):
        runner.parse_parameters("00_quickstart", [pair])


def test_parameter_texts_are_read_as_their_defaults_type():
    parsed = runner.parse_parameters("00_quickstart", ["seed=3", "quick=True", "model=a=b"])
    assert parsed == {"seed": 3, "quick": True, "model": "a=b"}


def test_only_a_folder_whose_name_is_too_long_for_a_socket_is_reached_by_ports():
    assert runner.kernel_channels("/tmp/x")["transport"] == "ipc"
    assert runner.kernel_channels("/tmp/" + "é" * 50) == {}


def test_an_unknown_notebook_lists_the_known():
    with pytest.raises(UnknownNameError, match="00_quickstart"):
        runner.parameters_of("00_quick")


def test_every_embedded_model_has_every_notebook_executed():
    have = {_ids(path) for path in EXECUTED}
    assert have >= {f"{model}/{name}" for model in CORE for name in NOTEBOOKS}
    assert have >= {f"panel/{name}" for name in PANEL}


@pytest.mark.parametrize("path", EXECUTED, ids=_ids)
def test_executed_copies_are_current_and_whole(path):
    notebook = nbformat.read(path, as_version=4)
    made_from = notebook.metadata["calib_utils"]
    assert made_from["source_sha256"] == runner.source_sha256(path.stem), "make run MODEL=..."
    code = [c for c in notebook.cells if c.cell_type == "code"]
    # nbval never compares a cell without a count.
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert "widgets" not in notebook.metadata
    assert str(ROOT) not in json.dumps(notebook), "a path of this machine in an output"


@pytest.mark.parametrize("path", EXECUTED, ids=_ids)
def test_executed_copies_stand(path):
    """By their own record: source, data, weights and rows are those they were made from."""
    parameters = {} if path.stem in PANEL else {"model": path.parent.name}
    why = runner.why_stale(path.stem, parameters, path)
    given = "--panel" if path.stem in PANEL else f"--model {path.parent.name}"
    assert not why, f"{why}: python -m calib_utils run {given}"


def test_the_table_of_contents_is_the_one_for_these_notebooks():
    assert (ROOT / "book" / "_toc.yml").read_text() == table_of_contents()
    assert models_with_pages()[0] == CORE[0]


@pytest.mark.models
@pytest.mark.notebooks
def test_rerunning_gives_the_committed_outputs(tmp_path):
    """nbval in strict mode over every executed copy; a planted change must be caught."""
    planted = tmp_path / "planted.ipynb"
    small = ROOT / "book" / "results" / "smollm2-135m-instruct" / "00_quickstart.ipynb"
    notebook = nbformat.read(small, as_version=4)
    shown = next(o for c in notebook.cells for o in c.get("outputs", ()) if o.get("name"))
    shown.text = shown.text.replace("100 token sequences", "101 token sequences")
    nbformat.write(notebook, planted)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
    environment = {**os.environ, **runner.KERNEL_ENVIRONMENT, **threads, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=900", "-o", "addopts="]
    command += ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg")]
    command += ["-p", "tests.nbval_kernels"]
    command += ["-n", "2", "--dist", "loadfile", *map(str, EXECUTED), str(planted)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    # Outside the root pytest names no file in its summary, so the planted text has to show.
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert "(101 token se" in done.stdout, "the planted change went unnoticed:\n" + done.stdout
    assert len(failed) == 1, done.stdout[-6000:]


@pytest.mark.notebooks
def test_what_a_cell_prints_is_one_output_however_it_arrives(small_project, tiny_folder, tmp_path):
    """On a busy machine a line may come apart from its end, and bytes would not be repeated."""
    cell = "import time\n\nprint(1, end='', flush=True)\ntime.sleep(1)\nprint(2)"
    project = small_project(tmp_path / "project", {"00_prints": [cell]})
    command = [sys.executable, "-m", "calib_utils", "run", "--model", tiny_folder(chat=True)]
    own = {**os.environ, "PYTHONPATH": str(project)}
    subprocess.run(command, check=True, cwd=project, env=own, capture_output=True)
    (page,) = (project / "book" / "results").glob("*/00_prints.ipynb")
    outputs = nbformat.read(page, as_version=4).cells[-1].outputs
    assert [output.text for output in outputs] == ["12\n"]


@pytest.mark.models
@pytest.mark.notebooks
def test_a_quick_run_with_parameters_stores_its_rows(tmp_path):
    parameters = {
        "model": "smollm2-135m-instruct",
        "quick": True,
        "results_dir": str(tmp_path / "rows"),
    }
    output = runner.run("02_controlled_tasks", parameters, tmp_path / "out" / "02.ipynb")
    stored = sorted(p.name for p in (tmp_path / "rows").glob("*/*"))
    assert {"rng-2", "rng-2-sum-at-most-10", "us-states"} <= set(stored)
    first = output.read_bytes()
    # A second run reuses the rows and gives the same bytes.
    assert runner.run("02_controlled_tasks", parameters, output).read_bytes() == first


@pytest.mark.models
@pytest.mark.notebooks
def test_a_quick_run_of_the_order_chapter_keeps_its_texts_and_reads_them_again(tmp_path):
    store = tmp_path / "rows"
    parameters = {"model": "smollm2-135m-instruct", "quick": True, "results_dir": str(store)}
    output = runner.run("04_order_calibration", parameters, tmp_path / "04.ipynb")
    kept = {p.relative_to(store): p.read_bytes() for p in store.rglob("*.parquet")}
    assert {path.parts[1] for path in kept} == {"texts", "labels"}
    first = output.read_bytes()
    assert runner.run("04_order_calibration", parameters, output).read_bytes() == first
    assert kept == {p.relative_to(store): p.read_bytes() for p in store.rglob("*.parquet")}

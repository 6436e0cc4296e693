"""Notebooks: pairs in step, parameters checked, committed outputs current and reproduced."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress

import jupytext
import nbformat
import pytest

from calib_utils import paths
from calib_utils.__main__ import main
from calib_utils.book import build, notebooks
from calib_utils.book.contents import models_with_pages, table_of_contents
from calib_utils.errors import NotReproducedError
from calib_utils.models.registry import CORE, HEADLINE
from calib_utils.results import storage
from calib_utils.results.evaluation import share_interval

ROOT = paths.project_root()
NOTEBOOKS = notebooks.notebook_names()
PANEL = notebooks.panel_names()
EXECUTED = sorted(
    path
    for pattern in ("results/*", "panel")
    for path in (ROOT / "book").glob(f"{pattern}/[0-9][0-9]_*.ipynb")
)


COMMON = ("model", "revision", "dtype", "device", "chat", "seed", "results_dir", "quick")


def _ids(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("name", [*NOTEBOOKS, *PANEL])
def test_script_and_notebook_are_in_step(name):
    script = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)

    def cells(book):
        return [(c.cell_type, c.source, c.metadata) for c in book.cells]

    assert {p.stem for p in (ROOT / "notebooks").glob("*.py")} == {*NOTEBOOKS, *PANEL}
    assert cells(script) == cells(notebook), "run make sync"
    assert all(not c.get("outputs") and not c.get("execution_count") for c in notebook.cells)


@pytest.mark.parametrize("name", [*NOTEBOOKS, *PANEL])
def test_every_notebook_has_the_common_parameters_and_no_logic(name):
    parameters = set(notebooks.parameters_of(name))
    if name in PANEL:
        assert {"results_dir", "seed", "quick"} <= parameters
    else:
        assert {*COMMON} <= parameters
    source = (ROOT / "notebooks" / f"{name}.py").read_text()
    assert "\ndef " not in source and "\nclass " not in source


def test_parameter_texts_are_read_as_their_defaults_type():
    pairs = ["seed=3", "quick=True", "model=a=b", "chat=False"]
    parsed = notebooks.parse_parameters("00_quickstart", pairs)
    assert parsed == {"seed": 3, "quick": True, "model": "a=b", "chat": False}
    assert notebooks.parse_parameters("00_quickstart", ["chat=None"]) == {"chat": None}


def test_only_a_folder_whose_name_is_too_long_for_a_socket_is_reached_by_ports():
    assert notebooks.kernel_channels("/tmp/x")["transport"] == "ipc"
    assert notebooks.kernel_channels("/tmp/" + "é" * 50) == {}


def test_every_embedded_model_has_every_notebook_executed():
    have = {_ids(path) for path in EXECUTED}
    assert have >= {f"{model}/{name}" for model in CORE for name in NOTEBOOKS}
    assert have >= {f"panel/{name}" for name in PANEL}


@pytest.mark.parametrize("path", EXECUTED, ids=_ids)
def test_an_executed_copy_is_whole_and_shows_words_and_numbers_for_roles(path):
    """In Jupyter as in the book."""
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    # nbval never compares a cell without a count.
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert "widgets" not in notebook.metadata
    assert str(ROOT) not in json.dumps(notebook), "a path of this machine in an output"
    role = re.compile(r"\{[a-z:]+\}`[^`]*`")
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    assert not role.findall("".join(texts))
    source = nbformat.read(paths.notebooks_dir() / path.name, 4).cells
    asked = role.findall("".join(c.source for c in source if c.cell_type == "markdown"))
    back = role.findall("".join(map(notebooks.as_roles, texts)))
    for given, found in zip(asked, back, strict=True):
        assert found.startswith(given[:-1])  # a figure's name has the model at its end


@pytest.mark.parametrize("path", EXECUTED, ids=_ids)
def test_executed_copies_stand(path):
    """By their own record: source, data, weights and rows are those they were made from."""
    parameters = {} if path.stem in PANEL else {"model": path.parent.name}
    why = notebooks.why_stale(path.stem, parameters, path)
    given = "--panel" if path.stem in PANEL else f"--model {path.parent.name}"
    assert not why, f"{why}: python -m calib_utils run {given}"


def test_the_table_of_contents_is_the_one_for_these_notebooks():
    assert (ROOT / "book" / "_toc.yml").read_text() == table_of_contents()
    assert models_with_pages()[0] == HEADLINE


def nbval(*pages, options=()):
    """What nbval prints about pages outside the checkout, with its comparer (conftest.py)."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
    environment = {**os.environ, **notebooks.KERNEL_ENVIRONMENT, **threads, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["-p", "conftest", "--nbval", *options, *map(str, pages)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT).stdout


@pytest.mark.parametrize("model", CORE)
def test_the_quickstarts_exact_validity_agrees_with_its_draws(model):
    """Of the committed copies, whose draws nbval does not compare; wide enough for any seed."""
    page = nbformat.read(paths.executed_dir(model) / "00_quickstart.ipynb", as_version=4)
    printed = "".join(o.text for c in page.cells for o in c.get("outputs", ()) if o.get("name"))
    valid, n = map(int, re.search(r"drawn: (\d+) of (\d+) valid", printed).groups())
    exact = float(re.search(r"exact: validity (\S+),", printed)[1])
    low, high = share_interval(valid, n, z=4)
    assert low <= exact <= high


@pytest.mark.models
@pytest.mark.notebooks
def test_rerunning_catches_a_planted_change(tmp_path):
    """`make test` runs nbval over pages; here it must not pass one that was tampered with."""
    planted = tmp_path / "planted.ipynb"
    small = ROOT / "book" / "results" / "smollm2-135m-instruct" / "00_quickstart.ipynb"
    notebook = nbformat.read(small, as_version=4)
    shown = next(o for c in notebook.cells for o in c.get("outputs", ()) if o.get("name"))
    shown.text = shown.text.replace("100 token sequences", "101 token sequences")
    nbformat.write(notebook, planted)
    said = nbval(planted)
    # Outside the root pytest names no file in its summary, so the planted text has to show.
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert "number: 101 became 100" in said, "the planted change went unnoticed:\n" + said
    assert len(failed) == 1, said[-6000:]


ROWS = ["<td>states</td><td>0.31</td>", "<td>digits</td><td>0.52</td>"]
# What a page holds, what its cell prints now, tags of the cell.
PASSES = {
    "nothing": ("a 0.31 b", "a 0.31 b"),
    "the last digit shown": ("mse 0.00393", "mse 0.00394"),
    "the fourth digit": ("0.1234 and 12.34", "0.1236 and 12.35"),
    "a rounded share": ("12%", "13%"),
    "two decimals": ("0.05 (0.01 to 0.09)", "0.05 (0.02 to 0.09)"),
    "no digits after the point": ("1", "0.99"),
    "a list of numbers": ("[0.50,-1.25,3]", "[0.501,-1.24,3]"),
    "an exponent": ("8.9e-12", "8.92e-12"),
    "a tolerance of the cell": ("lead 230", "lead 240", "tolerance-0.1"),
    "draws": ("a city", "another city", "nbval-ignore-output"),
}
FAILS = {
    "a verdict": ("0.31 reproduced", "0.31 not reproduced"),
    "a number": ("0.31", "0.33"),
    "a small number": ("4.5e-06", "5.5e-06"),
    "a lone digit": ("0.9", "0.8"),
    "a sign": ("area -0.21", "area 0.21"),
    "a count": ("100 token sequences", "101 token sequences"),
    "a rounded count": ("lead 230", "lead 240"),
    "a version": ("numpy 2.3.1", "numpy 2.3.2"),
    "a hash": ("SHA-256 b179c9523d0e", "SHA-256 b179c9523d1e"),
    "a missing row": ("\n".join(ROWS), ROWS[0]),
    "one more row": (ROWS[0], "\n".join(ROWS)),
    "the order of rows": ("\n".join(ROWS), "\n".join(reversed(ROWS))),
    "the order of rows with one name": ("0.31 0.52", "0.52 0.31"),
    "undefined": ("0.31", "nan"),
    "beyond a tolerance of the cell": ("lead 230", "lead 260", "tolerance-0.1"),
}
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@pytest.mark.notebooks
def test_pages_are_compared_word_for_word_and_number_within_tolerance(tmp_path):
    cells, expected = [], []

    def add(name, source, output, fails, *tags):
        metadata = {"tags": list(tags)} if tags else {}
        cells.append(
            nbformat.v4.new_code_cell(
                f"# {name}\n{source}", execution_count=1, outputs=[output], metadata=metadata
            )
        )
        expected.append(fails)

    def shown(data, **metadata):
        return nbformat.v4.new_output("display_data", data=data, metadata=metadata)

    def displays(data, **metadata):
        call = f"display({data!r}, raw=True, metadata={metadata!r})"
        return f"from IPython.display import display\n{call}"

    for fails, cases in ((False, PASSES), (True, FAILS)):
        for name, (then, now, *tags) in cases.items():
            printed = nbformat.v4.new_output("stream", name="stdout", text=f"{then}\n")
            add(name, f"print({now!r})", printed, fails, *tags)
            old, new = ({"text/html": f"<p>{text}</p>"} for text in (then, now))
            add(f"{name}, shown", displays(new), shown(old), fails, *tags)
    old, new = ({"application/papermill.record/text/plain": x} for x in ("0.31", "0.312"))
    names = [{"scrapbook": {"name": name}} for name in ("validity", "diversity")]
    add("glue", displays(new, **names[0]), shown(old, **names[0]), False)
    add("glue by another name", displays(new, **names[1]), shown(old, **names[0]), True)
    old, new = ({"image/png": x} for x in (_PIXEL, f"{_PIXEL}\n"))
    add("another picture", displays(new), shown(old), False)
    add("no picture", "None", shown(old), True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "page.ipynb")

    report = tmp_path / "differences.tsv"
    said = nbval(tmp_path / "page.ipynb", options=["-rA", "--nbval-differences", str(report)])
    lines = [line for line in said.splitlines() if line.startswith(("PASSED", "FAILED"))]
    outcome = {int(line.rsplit("Cell ", 1)[1].split()[0]): line[:6] for line in lines}
    wrong = [
        cell.source
        for number, (cell, fails) in enumerate(zip(cells, expected, strict=True))
        if outcome.get(number) != ("FAILED" if fails else "PASSED")
    ]
    assert not wrong, said
    assert "0.31 became 0.33, a difference of 0.02 where 0.01 is allowed" in said
    assert "words: '0.31 reproduced' became '0.31 not reproduced'" in said
    close = report.read_text().splitlines()
    assert any("0.00393 became 0.00394, by 1e-05" in line for line in close)
    assert not any("0.33" in line for line in close)


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


@pytest.mark.notebooks
@pytest.mark.skipif(os.name == "nt", reason="a terminal of POSIX")
def test_a_long_cell_shows_its_bar_on_the_terminal_alone(small_project, tiny_folder, tmp_path):
    import pty
    import termios

    cell = """\
from tqdm.auto import tqdm
for n in tqdm(range(3), desc="digits"):
    for k in tqdm(range(2), desc="inner", leave=False):
        pass
n"""
    project = small_project(tmp_path / "project", {"00_bars": [cell]})
    command = [sys.executable, "-m", "calib_utils", "run", "--model", tiny_folder(chat=True)]
    own = {**os.environ, "PYTHONPATH": str(project), "TQDM_DISABLE": ""}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # bars of no width are not drawn
    piped = {"stdout": subprocess.PIPE, "stderr": theirs}
    with subprocess.Popen(command, cwd=project, env=own, **piped) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 0, shown
    assert b"digits: 100%" in shown and b"\n\rdigits:" in shown
    assert b"\n\r\n\rinner:" in shown  # a line below
    assert b"Executing" in shown
    (page,) = (project / "book" / "results").glob("*/00_bars.ipynb")
    outputs = nbformat.read(page, as_version=4).cells[-1].outputs
    assert [output.output_type for output in outputs] == ["execute_result"]


@pytest.mark.models
@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("02_controlled_tasks", {"rng-2", "rng-2-sum-at-most-10", "us-states"}),
        ("04_order_calibration", {"texts", "labels"}),
    ],
)
def test_a_quick_run_stores_its_numbers_and_reads_them_again(tmp_path, name, folders):
    store = tmp_path / "rows"
    parameters = {"model": "smollm2-135m-instruct", "quick": True, "results_dir": str(store)}
    output = notebooks.run(name, parameters, tmp_path / "out" / f"{name}.ipynb")
    kept = {p.relative_to(store): p.read_bytes() for p in store.rglob("*.parquet")}
    assert folders <= {path.name for path in store.glob("*/*")}

    def shown(path):  # not images: the layout's last digits are not the same every time
        cells = nbformat.read(path, as_version=4).cells
        for data in (out.get("data", {}) for cell in cells for out in cell.get("outputs", ())):
            data.pop("image/svg+xml", None)
        return cells

    first, again = shown(output), shown(notebooks.run(name, parameters, output))
    assert again == first  # what the page read is another: labels are not decided anew
    assert kept == {p.relative_to(store): p.read_bytes() for p in store.rglob("*.parquet")}


@pytest.mark.full
@pytest.mark.models
def test_make_book_computes_here_and_says_how_far_the_stored_rows_are(
    tmp_path, monkeypatch, capsys
):
    """The quickstart itself on the smallest model, which a push runs as an executed page."""
    model = "smollm2-135m-instruct"
    monkeypatch.setattr(build, "build", lambda output: tmp_path / "html" / "index.html")
    assert main(["book", "--live", model]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Computed here: 12 settings of rng-2 with {model} (4-bit file b179c95")
    assert float(re.search(r"stored rows (\S+) nats \(tolerance 1e-03\)", told)[1]) < 1e-3
    assert told.endswith(f"Book: {tmp_path}/html/index.html\n")


def test_make_book_fails_on_rows_that_are_not_those_computed(tmp_path, monkeypatch, capsys):
    model, store = "smollm2-135m-instruct", tmp_path / "rows"
    rows = storage.read(paths.default_results_dir() / model / "rng-2")
    here = rows.settings[rows.settings.temperature == 1.0].assign(
        end="eos", weights_sha256=rows.record["weights_sha256"]
    )

    def largest(*_):
        return build.largest_difference(here, store, model)

    with pytest.raises(NotReproducedError, match="no rows of these weights"):
        largest()
    moved = rows.settings.copy()
    moved.loc[(moved.temperature == 1.0) & (moved.rule == "none"), "diversity"] += 2e-3
    storage.write(store / model / "rng-2", storage.Tables(moved), rows.record)
    with pytest.raises(
        NotReproducedError, match=r"diversity of smollm2.*more than 1e-03.*pip list"
    ):
        largest()
    fewer = rows.settings[rows.settings.rule != "top_p"]
    storage.write(store / model / "rng-2", storage.Tables(fewer), rows.record)
    with pytest.raises(NotReproducedError, match=r"no row for top_p 0\.1 1\.0"):
        largest()
    monkeypatch.setattr(build, "compute_live", largest)
    assert main(["book", "--live", model]) == 1
    assert "NotReproducedError: " in capsys.readouterr().err

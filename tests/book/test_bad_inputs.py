"""Bad inputs by table: commands, parameters of notebooks, task files. `test_errors` has the API's.

Each names the value and the remedy, writes nothing, and loads no weights.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import calib_utils as cu
from calib_utils import errors, paths
from calib_utils.__main__ import main
from calib_utils.book import notebooks
from calib_utils.models import loading

OTHER_PAGE = "../book/results/smollm2-135m-instruct/00_quickstart"
EVALUATE = ["evaluate", "--model", "MODEL", "--task", "rng-1"]
RUN = ["run", "--model", "MODEL", "--book-dir", "BOOK", "--no-panel"]
LONG = "a" * 5_000
USAGE = None  # refused by argparse, which prints the command's usage

# arguments, error, the value in its message, the remedy in it
COMMANDS = {
    "no model": (["prompt", "--model", "zz", "--task", "rng-1"], "UnknownName", "zz", "hub id"),
    "near model": (["fetch", "smollm2-135"], "UnknownName", "smollm2-135", "Did you mean"),
    "model with NUL": (["fetch", "a\0b"], "UnknownName", r"a\x00b", "local folder"),
    "model of another user": (["fetch", "~nobody-here/x"], "UnknownName", "~nobody-here", "folder"),
    "no model folder": (["fetch", "../.."], "ModelFormat", "../..", "not a model folder"),
    "no such task": ([*EVALUATE[:4], "zzz"], "UnknownName", "zzz", "rng-{n}"),
    "no task file": ([*EVALUATE[:4], "no/where.json"], "InvalidTask", "no/where.json", "must be"),
    "endless task": ([*EVALUATE[:4], "rng-" + "9" * 5_000], "InvalidTask", "rng-99", "at most"),
    "rule out of range": ([*EVALUATE, "--rule", "top_p=2"], "InvalidRule", "top_p=2", "at most 1"),
    "rule twice": ([*EVALUATE, *["--rule", "top_k=5"] * 2], "InvalidRule", "top_k=5", "remove one"),
    "temperature 0": ([*EVALUATE, "--temperature", "0"], "InvalidRequest", "0.0", "at least"),
    "end": ([*EVALUATE, "--end", "stop"], "InvalidTask", "stop", "eos"),
    "surface": ([*EVALUATE, "--surface", "any"], "InvalidTask", "any", "any_space"),
    "batch size": ([*EVALUATE, "--batch-size", "0"], "InvalidRequest", "0", "at least 1"),
    "dtype": ([*EVALUATE, "--dtype", "int8"], "Device", "int8", "bfloat16"),
    "device": ([*EVALUATE, "--device", "tpu"], "Device", "tpu", "auto"),
    "revision of a folder": ([*EVALUATE, "--revision", "v1"], "UnknownName", "v1", "drop it"),
    "revision that leads out": (
        ["prompt", "--model", "a/b", "--revision", "../../x", "--task", "rng-1"],
        *("UnknownName", "../../x", "commit, branch or tag"),
    ),
    "table in no folder": (
        [*EVALUATE, "--output", "no/where.csv"], "InvalidRequest", "no/where.csv", "--output"
    ),
    "results in a file": ([*EVALUATE, "--results-dir", "FILE"], "Results", "FILE", "writable"),
    "results with NUL": ([*EVALUATE, "--results-dir", "a\0b"], "Results", r"a\x00b", "another"),
    "no such notebook": ([*RUN, "--notebook", "99_x"], "UnknownName", "99_x", "00_quickstart"),
    "notebook elsewhere": ([*RUN, "--notebook", OTHER_PAGE], "UnknownName", "../book", "Known"),
    "no pair": ([*RUN, "-p", "seed"], "NotebookParameter", "'seed'", "key=value"),
    "no parameter": ([*RUN, "-p", "colour=red"], "NotebookParameter", "colour", "Known"),
    "model as parameter": ([*RUN, "-p", "model=b"], "NotebookParameter", "model=b", "--model"),
    "run of no model": (["run", "--model", "zz", *RUN[3:]], "UnknownName", "zz", "hub id"),
    "pages in a file": (
        [*RUN[:3], "--book-dir", "FILE", "--no-panel"], "Results", "FILE", "--book-dir"
    ),
    "book in a file": (["book", "--output", "FILE"], "BookBuild", "FILE", "--output"),
    "forecast of no model": (["forecast", "--model", "zzz"], "UnknownName", "zzz", "folder or"),
    "forecast of no file": (
        ["forecast", "--model", "no/x.gguf"], "UnknownName", "no/x.gguf", "folder or"
    ),
    "forecast of what is not fetched": (
        ["forecast", "--model", "owner/nothing"], "HubUnreachable", "owner/nothing", "local folder"
    ),
    "forecast in a dtype": (["forecast", "--dtype", "int4"], "InvalidRequest", "int4", "bfloat16"),
    "forecast on a device": (["forecast", "--device", "tpu"], "Device", "tpu", "auto"),
    "memory of a GPU": (["resources", "--gpu-gb", "-1"], "InvalidRequest", "-1", "or more"),
    "rows to recompute": (["check", "--recompute", "-1"], "InvalidRequest", "-1", "0 or more"),
    "longest of nothing": (["check", "--longest", "nan"], "InvalidRequest", "nan", "0 or more"),
    "tiny GPU": (["resources", "--gpu-gb", "1e-300"], "InvalidRequest", "1e-300", "1 or more"),
    "parameter twice": ([*RUN, *["-p", "seed=1"] * 2], "NotebookParameter", "'seed'", "leave out"),
    "parameter of no text": (
        [*RUN, "-p", "model=\udcff"], "NotebookParameter", r"\udcff", "--model"
    ),
    "no parameter of any page about all": (
        ["run", "--notebook", "09_origins", "-p", "anwe=True"], "NotebookParameter", "anwe", "anew"
    ),
    "a quick run of pages about all": (
        ["run", "--notebook", "05_model_panel", "-p", "quick=True"], "InvalidRequest", "quick=True",
        "leave out"
    ),
    "rows in a long name": (["reproduce", "--results-dir", LONG], "OS", "aaa", "another place"),
    "models in a long name": (["models", "--results-dir", LONG], "OS", "aaa", "another place"),
    "pages in a long name": (
        [*RUN[:3], "--book-dir", LONG, "--no-panel"], "Results", "aaa", "--book-dir"
    ),
    "two names of a task": ([*EVALUATE[:4], "rng-03"], "UnknownName", "rng-03", "'rng-3'"),
    "digits of another script": ([*EVALUATE[:4], "rng-\uff13"], "UnknownName", "rng-", "'rng-3'"),
    "sum that all have": (
        [*EVALUATE[:4], "rng-2-sum-at-most-19"], "InvalidTask", "19", "from 0 to 18"
    ),
    "more than there are": (
        [*EVALUATE[:4], "us-states-shortest-51"], "InvalidTask", "51", "has 50 answers"
    ),
    "figure of no kind": ([*EVALUATE, "--figure", "a.gif"], "InvalidRequest", "a.gif", ".svg"),
    "figure in no folder": (
        [*EVALUATE, "--figure", "no/a.pdf"], "InvalidRequest", "no/a.pdf", "--figure"
    ),
    "split of many spellings": (
        [*EVALUATE, "--split", "--tokenizations", "all"],
        *("InvalidRequest", "'all'", "leave these out"),
    ),
    "split of typical": (
        [*EVALUATE, "--split", "--rule", "typical=0.9"],
        *("InvalidRule", "typical=0.9", "leave it out"),
    ),
    "rule of no module": ([*EVALUATE, "--rule", "zz:R"], "UnknownName", "zz:R", "module:name"),
    "rule that is none": (
        [*EVALUATE, "--rule", "json:loads"], "InvalidRule", "json:loads", "name a cu.Rule"
    ),
    "rule without its number": (
        [*EVALUATE, "--rule", "calib_utils:TopP"], "InvalidRule", "TopP", "give a number"
    ),
    "task twice": ([*EVALUATE, "--task", "rng-1"], "InvalidRequest", "rng-1", "leave one out"),
    "one model to compare": (["compare", "MODEL"], "InvalidRequest", "MODEL", "name two"),
    "no pairs": (["compare", "--pairs", "no.yaml"], "InvalidRequest", "no.yaml", "[base, tuned]"),
    "no checkpoints": (["sweep", "no/run"], "InvalidRequest", "no/run", "checkpoint-1000"),
    "pages of no model": (
        ["export", "paper", "--model", "smollm2-135m"], "UnknownName", "smollm2", "Did you mean"
    ),
    "option twice": ([*EVALUATE, "--end", "eos", "--end", "line"], USAGE, "--end", "leave one out"),
    "dtype twice": ([*EVALUATE, *["--dtype", "float32"] * 2], USAGE, "--dtype", "leave one out"),
    "chat and not": ([*EVALUATE, "--chat", "--no-chat"], USAGE, "--no-chat", "leave one out"),
    "task of a prompt twice": (
        ["prompt", *["--task", "rng-1"] * 2], USAGE, "--task is given twice", "leave one out"
    ),
    "no command": (["evalute"], USAGE, "evalute", "choose from"),
    "temperature in words": ([*EVALUATE, "--temperature", "hot"], USAGE, "hot", "float"),
}  # fmt: skip

# notebook, parameters, error, the value in its message, the remedy in it
PARAMETERS = {
    "near name": ("00_quickstart", {"modle": "x"}, "NotebookParameter", "modle", "'model'"),
    "text for chat": ("00_quickstart", {"chat": "yes"}, "NotebookParameter", "'yes'", "a bool"),
    "text for bool": ("00_quickstart", {"quick": "yes"}, "NotebookParameter", "'yes'", "a bool"),
    "bool for number": ("00_quickstart", {"seed": True}, "NotebookParameter", "True", "a int"),
    "part for number": ("00_quickstart", {"seed": 1.5}, "NotebookParameter", "1.5", "a int"),
    "number for text": ("00_quickstart", {"model": 5}, "NotebookParameter", "model=5", "a str"),
    "model of all": (
        "05_model_panel", {"model": "x"}, "NotebookParameter", "'model'", "results_dir"
    ),
    "no notebook": ("00_quick", {}, "UnknownName", "00_quick", "'00_quickstart'"),
    "number for a name": (5, {}, "UnknownName", "'5'", "Known"),
    "name that is a number": ("00_quickstart", {5: 1}, "NotebookParameter", "'5'", "Known"),
    "half a pair": ("00_quickstart", {"model": "\ud800"}, "NotebookParameter", r"\ud800", "UTF-8"),
    "notebook elsewhere": (OTHER_PAGE, {}, "UnknownName", "../book", "Known"),
}  # fmt: skip

GOOD = {"name": "t", "prompt": "Name one. Answer:", "answers": ["ab", "zoo"]}
# content of the file (JSON, text or bytes), the value in the message, the remedy in it
TASK_FILES = {
    "empty": ("", "task.json", "it must be JSON"),
    "cut off": ('{"name": "t", "prompt', "task.json", "it must be JSON"),
    "a list": ([1], "task.json", "it must be JSON"),
    "too deep": ("[" * 100_000, "RecursionError", "it must be JSON"),
    "not UTF-8": (b'{"name": "\xff"}', "UnicodeDecodeError", "it must be JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "BOM", "it must be JSON"),
    "no name": ({"prompt": "p", "answers": ["a"]}, "'name'", "it must be JSON"),
    "unknown key": (GOOD | {"promt": "p"}, "'promt'", "it must be JSON"),
    "key twice": ('{"name": "t", "name": "u", "prompt": "p", "answers": ["a"]}', "twice", "JSON"),
    "answers in one": (GOOD | {"answers": "ab"}, "'ab'", "a list of strings"),
    "empty answer": (GOOD | {"answers": ["ab", ""]}, "answer 2 of 2", "strip it"),
    "answer in space": (GOOD | {"answers": ["ab "]}, "'ab '", "strip it"),
    "answer twice": (GOOD | {"answers": ["ab", "ab"]}, "'ab'", "must occur once"),
    "number as answer": (GOOD | {"answers": ["ab", 5]}, "(5)", "must be a string"),
    "half a pair in an answer": (GOOD | {"answers": ["\ud800"]}, r"'\ud800'", "remove it"),
    "too many": (GOOD | {"answers": [str(i) for i in range(200_001)]}, "200,001", "smaller task"),
    "blank prompt": (GOOD | {"prompt": " \n"}, "'t'", "prompt is empty"),
    "name that leads out": (GOOD | {"name": "../../t"}, "'../../t'", "use letters"),
    "name with NUL": (GOOD | {"name": "t\0"}, r"'t\x00'", "use letters"),
    "hidden name": (GOOD | {"name": ".t"}, "'.t'", "use letters"),
    "name of Windows": (GOOD | {"name": "nul"}, "'nul'", "choose another"),
    "name of a folder here": (GOOD | {"name": "texts"}, "'texts'", "choose another"),
    "long name": (GOOD | {"name": "t" * 300}, "ttt", "at most 100 bytes"),
    "dot at the end": (GOOD | {"name": "t."}, "'t.'", "no dot at the end"),
}


@pytest.fixture
def world(tiny_folder, tmp_path, monkeypatch, own_cache):
    """A good model, places that must stay empty, and weights that must not be loaded."""
    monkeypatch.setattr(
        loading.Model, "network", property(lambda self: pytest.fail("weights were loaded"))
    )
    monkeypatch.setattr(
        "calib_utils.models.weights._download_wheel", lambda *a: pytest.fail("fetched")
    )
    monkeypatch.setattr("calib_utils.book.build._build", lambda *a: pytest.fail("a book was built"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    names = {"MODEL": tiny_folder("llama", chat=True), "BOOK": tmp_path / "book"}
    names |= {"FILE": tmp_path / "file"}
    return SimpleNamespace(
        folder=tmp_path,
        names={name: str(path) for name, path in names.items()},
        model=cu.load_model(tiny_folder("llama", chat=True), device="cpu"),
    )


def written(folder):
    """What was made below a folder, but for what the cache remembers of the model."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in found}
    return {name for name in names if not name.startswith("cache/hashes/")}


@pytest.fixture(scope="module")
def unspoilt():
    """Nothing that a command could spoil in this checkout has changed after the cases."""

    def dates():
        folders = (paths.default_results_dir(), paths.book_dir(), paths.notebooks_dir())
        return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}

    before = dates()
    yield
    assert dates() == before


@pytest.mark.usefixtures("unspoilt")
@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_is_one_line_with_the_remedy_and_writes_nothing(world, capsys, case):
    arguments, error, value, remedy = COMMANDS[case]
    if error is USAGE:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    else:
        assert main([world.names.get(text, text) for text in arguments]) == 2
    out, told = capsys.readouterr()
    if error is not USAGE:
        (line,) = told.splitlines()
        assert line.startswith(f"calib_utils: {error}Error: ")
    assert world.names.get(value, value) in told and remedy in told
    assert out == ""
    assert written(world.folder) == {"file"}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_or_a_device_is_no_task_file(tmp_path, make):
    make(tmp_path / "task.json")
    with pytest.raises(errors.InvalidTaskError, match="no regular file"):
        cu.get_task(tmp_path / "task.json")


@pytest.mark.parametrize(("stdout", "status", "said"), [
    ("/dev/full", 2, "OSError: [Errno 28]"), (None, 2, "stdout is closed")
])  # fmt: skip
def test_a_full_or_closed_stdout_is_one_line(stdout, status, said):
    close = None if stdout else (lambda: os.close(1))
    with open(stdout or os.devnull, "w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "calib_utils", "models"],
            stdout=stream, stderr=subprocess.PIPE, text=True, preexec_fn=close,
        )  # fmt: skip
    assert done.returncode == status and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_bad_parameter_is_refused_before_a_kernel_starts(world, monkeypatch, case):
    import papermill

    notebook, parameters, error, value, remedy = PARAMETERS[case]
    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("it ran"))
    with pytest.raises(getattr(errors, f"{error}Error")) as caught:
        notebooks.run(notebook, parameters, world.folder / "pages" / "out.ipynb")
    assert value in str(caught.value) and remedy in str(caught.value)
    assert written(world.folder) == {"file"}


@pytest.mark.parametrize("case", TASK_FILES)
def test_a_bad_task_file_is_refused_before_the_model_runs(world, case):
    content, value, remedy = TASK_FILES[case]
    file = world.folder / "task.json"
    file.write_text(json.dumps(GOOD), encoding="utf-8")
    assert cu.get_task(file).answers == ("ab", "zoo")
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(errors.InvalidTaskError) as caught:
        cu.evaluate(world.model, str(file), results_dir=world.folder / "rows")
    assert value in str(caught.value) and remedy in str(caught.value)
    assert written(world.folder) == {"file", "task.json"}

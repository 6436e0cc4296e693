"""Real faults: killed processes, full and read-only disks, stalled and hostile servers and files.

Each ends in a named error or in a complete result. `book/reference/faults.md` lists them all; the
last test here holds it to the tests that there are.
"""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import nbformat
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils import files, paths
from calib_utils.__main__ import main
from calib_utils.book import build, contents, resources
from calib_utils.errors import JudgeError, ModelFormatError, ResultsError, UnknownNameError
from calib_utils.openended.judges import LanguageModelJudge
from calib_utils.results import conventions, evaluation, records, storage
from calib_utils.results.storage import KEY, Tables

ROOT = paths.project_root()
TASK = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo", "zo"])
PATIENCE = 240  # seconds until a wait is a failure


def environment(**more):
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, **more}


def python(code, *arguments, **options):
    """Starts Python with a piece of code; what it prints can be read."""
    command = [*options.pop("before", ()), sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, **options
    )


def apart(space, probe):
    """What a command begins with to have its own disks or network; skips where nobody can."""
    command = ["unshare", *(["-r"] if os.geteuid() else []), space]
    if not shutil.which("unshare") or subprocess.run([*command, *probe]).returncode:
        pytest.skip(f"no unshare {space} here: neither root nor user namespaces")
    return command


def kill(process):
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def kill_when(happened, process):
    """Kills a process as soon as something is there, and fails if it ends before."""
    begun = time.monotonic()
    while not happened():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.002)
    kill(process)


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


# Killed processes


# While the model runs: before, an interrupt may fall into a destructor, where Python drops it.
INTERRUPTED = """
import signal, sys, time
from calib_utils.__main__ import main
from calib_utils.results import evaluation
signal.signal(signal.SIGINT, signal.default_int_handler)
measure = evaluation.measure
def slowly(*arguments, **options):
    measure(*arguments, **options)
    print("measured", flush=True)
    time.sleep(600)
evaluation.measure = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.full
def test_an_interrupted_command_is_one_line_and_leaves_nothing(tiny_folder, tmp_path):
    asked = ["evaluate", "--model", tiny_folder("llama"), "--task", "rng-2"]
    asked += ["--results-dir", tmp_path]
    process = python(INTERRUPTED, *asked, env=environment(), stderr=subprocess.PIPE)
    assert process.stdout.readline() == "measured\n"
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and not out
    assert said.splitlines()[-1] == "calib_utils: interrupted; what is finished is kept"
    assert "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_reader_that_has_had_enough_ends_a_command_quietly():
    command = [sys.executable, "-m", "calib_utils", "models", "--format", "csv"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment(), text=True, **pipes)
    process.stdout.close()
    assert (process.wait(PATIENCE), process.stderr.read()) == (1, "")
    process.stderr.close()


WRITER = """
import sys
from pathlib import Path
from calib_utils import files
target = Path(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    with files.whole(target) as draft, open(draft, "w") as stream:
        for _ in range(200):
            stream.write(f"{number}\\n" * 100)
"""


@pytest.mark.full
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.007, 0.013, 0.029, 0.05])
def test_a_writer_killed_anywhere_leaves_the_old_file_or_the_new(tmp_path, delay):
    """What all small files go through: table of contents, sidecars, memos, answers of judges."""
    target = tmp_path / "file"
    target.write_text("0\n" * 20_000)
    process = python(WRITER, target, env=environment())
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    kill(process)
    lines = target.read_text().splitlines()
    assert len(lines) == 20_000 and len(set(lines)) == 1
    with files.whole(target) as draft:
        draft.write_text("new")
    assert target.read_text() == "new"


MOVER = """
import os, sys, time
from pathlib import Path
from calib_utils.results import storage
folder = Path(sys.argv[1])
whole, replace = storage.read(folder), os.replace

def replace_and_wait(source, target):
    replace(source, target)
    if str(target).endswith(".old"):
        print("moved", flush=True)
        time.sleep(600)

os.replace = replace_and_wait
storage.write(folder, whole, whole.record)
"""


@pytest.fixture
def stored(tiny, tmp_path):
    """The folder of one stored measurement."""
    model = tiny("llama", chat=True)
    cu.evaluate(model, TASK, ["none", "top_k=150"], [0.5, 2.0], results_dir=tmp_path / "rows")
    return storage.folder_of(tmp_path / "rows", model.key, TASK.name)


@pytest.mark.full
@pytest.mark.parametrize("reader", ["read", "write"])
def test_a_writer_killed_between_its_two_renames_loses_no_row(stored, reader):
    before = storage.read(stored)
    process = python(MOVER, stored, env=environment())
    assert process.stdout.readline() == "moved\n"
    assert not stored.exists()
    kill(process)
    if reader == "write":
        fewer = before.settings[before.settings.rule == "none"].reset_index(drop=True)
        storage.write(stored, lambda: Tables(fewer, before.answers), before.record)
        assert len(storage.read(stored).settings) == len(fewer)
    else:
        pd.testing.assert_frame_equal(storage.read(stored).settings, before.settings)
    assert hidden(stored.parent) == []


def test_a_conversion_killed_or_damaged_is_made_anew(tiny_gguf, own_cache):
    converted = own_cache / "converted"
    convert = "import sys, calib_utils; calib_utils.load_model(sys.argv[1], device='cpu')"
    process = python(convert, tiny_gguf, env=environment(CALIB_UTILS_CACHE=str(own_cache)))
    kill_when(lambda: any(converted.glob(".*.draft")), process)
    model = cu.load_model(tiny_gguf, device="cpu")
    rows = cu.evaluate(model, TASK)
    assert {path.name for path in converted.iterdir()} == {".lock", model.folder.name}
    for name, damage in {
        "model.safetensors": lambda b: b[:-100],
        "tokenizer.json": lambda b: b.replace(b"\n", b" "),
        "config.json": lambda b: b"",
        "complete.json": lambda b: b[:10],
    }.items():
        file = model.folder / name
        file.write_bytes(damage(file.read_bytes()))
        again = cu.load_model(tiny_gguf, device="cpu")
        assert hidden(own_cache) == []
    pd.testing.assert_frame_equal(cu.evaluate(again, TASK), rows)


EVALUATE = """\
import calib_utils as cu
from calib_utils import paths

language_model = cu.load_model(model, dtype=dtype, device=device)
store = paths.default_results_dir()
cu.evaluate(language_model, "rng-1", rules=["none"], end="line", results_dir=store)"""
WAIT = """\
import os
import time
from pathlib import Path

from ipykernel.connect import get_connection_info

Path("transport").write_text(get_connection_info(unpack=True)["transport"])
Path("gate-reached").write_text(str(os.getpid()))
while not Path("gate-open").exists():
    time.sleep(0.05)"""


@pytest.fixture
def project(small_project, tmp_path):
    """Two small notebooks, of which the second waits."""
    notebooks = {"00_rows": [EVALUATE], "01_gate": [EVALUATE, WAIT]}
    return small_project(tmp_path / "project", notebooks)


@pytest.mark.full
@pytest.mark.notebooks
def test_a_run_killed_in_a_notebook_goes_on_with_that_one(project, tiny_folder, tmp_path):
    model = shutil.copytree(tiny_folder(chat=True), tmp_path / "mine")
    command = [sys.executable, "-m", "calib_utils", "run", "--model", str(model)]
    options = {"cwd": project, "env": environment(PYTHONPATH=str(project))}
    pages, rows = project / "book" / "results" / "mine", project / "data" / "results"
    gate = project / "gate-reached"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, **options)
        kill_when(gate.exists, process)
    kernel = int(gate.read_text())
    # Ports found free for it could be taken by another program before it starts.
    assert (project / "transport").read_text() == "ipc"
    assert [path.name for path in pages.glob("[0-9]*")] == ["00_rows.ipynb"]
    nbformat.read(pages / "00_rows.ipynb", as_version=4)
    stored = sorted((rows / "mine").glob("[!.]*"))  # a lock stays, and is empty
    before = list(map(records.identity_of, stored))
    assert before and all(before)
    begun = time.monotonic()
    state = Path(f"/proc/{kernel}/stat")  # it sees within seconds that its parent is gone
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() - begun < 60
        time.sleep(0.1)
    (project / "gate-open").touch()
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)
    assert done.returncode == 0, done.stderr
    assert "00_rows on mine: current" in done.stderr
    assert "01_gate on mine: never run" in done.stderr
    assert hidden(pages) == hidden(rows) == []
    assert list(map(records.identity_of, stored)) == before


@pytest.mark.full
@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("kernel", "said", "pages"),
    [
        ("-m ipykernel_launcher -f {connection_file}", "its process was ended", ["01_lives.ipynb"]),
        ("-m this", "its kernel did not start (Kernel died", []),
    ],
)
def test_a_kernel_that_dies_fails_its_notebook(
    kernel, said, pages, small_project, tiny_folder, tmp_path
):
    """Killed, as the system does where memory runs out, and ended before it answers."""
    cells = {"00_dies": ["import os\n\nos.kill(os.getpid(), 9)"], "01_lives": ["print(1)"]}
    project = small_project(tmp_path / "project", cells)
    spec = project / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, *kernel.split()]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    command = [sys.executable, "-m", "calib_utils", "run", "--model", tiny_folder(chat=True)]
    own = environment(PYTHONPATH=str(project), JUPYTER_PATH=str(project))
    options = {"cwd": project, "env": own, "timeout": PATIENCE}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"00_dies failed: {said}" in done.stderr
    assert [path.name for path in (project / "book" / "results").glob("*/*.ipynb")] == pages


@pytest.fixture
def small_book(small_project, tmp_path):
    """A project whose book is its prose pages, each a heading."""
    folder = small_project(tmp_path / "project", {})
    for name in ("assets", "templates"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name)
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    shutil.copytree(ROOT / "data" / "published", folder / "data" / "published")
    for page in re.findall(r"(?:root|file): (\S+)", contents.table_of_contents(folder / "book")):
        target = folder / "book" / f"{page}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(f"# {page}\n")
    return folder


def stop_child(process):
    """Stops the only child of a process and returns its number."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    (child,) = map(int, children.split())
    os.kill(child, signal.SIGSTOP)
    return child


@pytest.mark.full
def test_a_build_that_is_killed_leaves_the_old_book(small_book):
    """Sphinx itself is at work when its parent is killed, and outlives it; the next is whole."""
    command = [sys.executable, "-m", "calib_utils", "book"]
    options = {"cwd": small_book, "env": environment(PYTHONPATH=str(small_book)), "text": True}
    output = small_book / "_build"
    page = output / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("old")
    with open(small_book / "log", "w") as stream:
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, **options)
        sphinx = []

        def at_work():
            if any(output.glob("._build-*/_build/.doctrees")):
                sphinx.append(stop_child(first))
            return sphinx

        kill_when(at_work, first)
    assert page.read_text() == "old" and len([*output.glob("._build-*")]) == 1
    second = subprocess.run(command, stderr=subprocess.PIPE, timeout=PATIENCE, **options)
    os.kill(*sphinx, signal.SIGKILL)
    assert second.returncode == 0, second.stderr
    assert "url=intro.html" in page.read_text()
    assert sorted(path.name for path in output.iterdir()) == [".lock", "_build"]


def test_a_build_that_fails_leaves_the_old_book(tmp_path, monkeypatch):
    page = tmp_path / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("old")

    def broken(draft, *_):
        draft.mkdir()
        raise build.BookBuildError("Sphinx says no")

    monkeypatch.setattr(build, "_build", broken)
    monkeypatch.setattr(build, "write_figures", lambda: None)
    with pytest.raises(build.BookBuildError, match="Sphinx says no"):
        build.build(tmp_path)
    assert page.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "_build"]


def test_a_live_run_without_space_is_a_named_error(monkeypatch, capsys):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(build, "load_model", lambda name: name)
    monkeypatch.setattr(build, "_executed_here", full)
    assert main(["book", "--live"]) == 2
    assert "BookBuildError: 00_quickstart cannot be executed in" in capsys.readouterr().err


AT_ONCE = """
import sys
import calib_utils as cu
from calib_utils.results import evaluation

measure = evaluation.measure

def together(*args, **options):
    print("looked for rows and found none", flush=True)
    sys.stdin.readline()
    return measure(*args, **options)

evaluation.measure = together
task = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo", "zo"])
cu.evaluate(cu.load_model(sys.argv[1], device="cpu"), task, sys.argv[3:], results_dir=sys.argv[2])
"""


@pytest.mark.full
def test_two_runs_that_measure_at_once_keep_both_rows(tiny_folder, tmp_path):
    folder = tiny_folder("llama", chat=True)
    asked = (["top_k=5", "none"], ["top_p=0.9", "none"])
    options = {"env": environment(), "stdin": subprocess.PIPE}
    runs = [python(AT_ONCE, folder, tmp_path, *rules, **options) for rules in asked]
    for run in runs:
        assert run.stdout.readline() == "looked for rows and found none\n"
    for run in runs:
        run.communicate("go on\n", timeout=PATIENCE)
    assert [run.returncode for run in runs] == [0, 0]
    (model,) = tmp_path.iterdir()
    found = storage.read(storage.folder_of(tmp_path, model.name, TASK.name))
    assert sorted(found.settings.rule) == ["none", "top_k", "top_p"]
    assert not found.settings.duplicated(KEY).any()


# Disks


ON_DISK = """
import json, os, subprocess, sys
from pathlib import Path
import pandas as pd
import pyarrow as pa
import calib_utils as cu
from calib_utils.book import contents
from calib_utils.errors import CalibUtilsError
from calib_utils.figures import explorer
from calib_utils.models import weights
from calib_utils.models.endpoint import Reply
from calib_utils.openended import verifiers
from calib_utils.openended.judges import LanguageModelJudge
from calib_utils.results import conventions, records, storage

folder, gguf, disk = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], check=True)
os.environ["CALIB_UTILS_CACHE"] = str(disk / "cache")
os.environ["TQDM_DISABLE"] = "1"
model = cu.load_model(folder, device="cpu")
task = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo", "zo"])
rows = disk / "rows"
cu.evaluate(model, task, ["none"], results_dir=rows)
stored = storage.folder_of(rows, model.key, task.name)
before = storage.read(stored)


class Backend:
    identity = {}

    def replies(self, messages):
        yield 0, Reply('{"reason": "fine", "grammar": 9, "semantics": 9, "overall": 9}', True)


def judge():
    judge = LanguageModelJudge(Backend(), name="x", cache_dir=disk / "answers")
    judge.judge(pd.DataFrame([{"prompt": "a", "text": "b", "ended": True}]))


record = {name: "x" for name in conventions.IDENTITY["texts"]}
table = pa.table({"x": list(range(1000))})
texts = pd.DataFrame({"prompt": ["Why?"], "text": ["x" * 9999], "ended": [True]})
actions = {
    "rows": lambda: cu.evaluate(model, task, ["top_k=5"], results_dir=rows),
    "sweep": lambda: records.open_folder(disk / "texts", record),
    "table": lambda: records.write_table(disk / "a" / "x.parquet", table),
    "steps": lambda: explorer.keep(model, ["rng-2"], "eos", rows),
    "answers": judge,
    "labels for people": lambda: verifiers.write_sheet(disk / "sheet.csv", texts),
    "book": lambda: contents.write_table_of_contents(disk),
    "conversion": lambda: weights.converted_folder(gguf, "0" * 64),
    "forgotten hash": lambda: cu.load_model(folder, device="cpu").weights_sha256,
}


def tried():
    found = {}
    for name, action in actions.items():
        try:
            action()
            found[name] = "done"
        except CalibUtilsError as error:
            found[name] = f"{type(error).__name__}: {error}"
        except BaseException as error:
            found[name] = f"UNNAMED {type(error).__name__}: {error}"
    left = [str(p.relative_to(disk)) for p in disk.rglob(".*") if p.name != ".lock"]
    now = storage.read(stored)
    return {"tried": found, "left": left, "rows": len(now.settings), "same": bool(
        now.settings[now.settings.rule == "none"].reset_index(drop=True).equals(before.settings))}


filler = disk / "filler"
with open(filler, "wb", buffering=0) as stream:
    try:
        while True:
            stream.write(b"x" * 4096)
    except OSError:
        pass
told = {"full": tried()}
filler.unlink()
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
told["read-only"] = tried()
subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
told["roomy"] = tried()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def on_disk(tiny_folder, tiny_gguf, tmp_path_factory):
    """What happened on a disk of 2 MB that was full, then read-only, then neither."""
    place = tmp_path_factory.mktemp("disk")
    spaces = apart("--mount", ["mount", "-t", "tmpfs", "none", str(place)])
    process = python(
        ON_DISK, tiny_folder("llama"), tiny_gguf, place, before=spaces, env=environment()
    )
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return json.loads(out)


NEEDS_SPACE = {
    "rows": "ResultsError: cannot write",
    "sweep": "ResultsError: cannot write",
    "table": "ResultsError: cannot write",
    "steps": "ResultsError: cannot write",
    "answers": "JudgeError: cannot keep answers",
    "labels for people": "JudgeError: cannot write",
    "book": "BookBuildError: cannot write",
    "conversion": "CacheError: cannot write",
    "forgotten hash": "done",  # a memo costs time, not the result
}


@pytest.mark.full
@pytest.mark.parametrize("state", ["full", "read-only"])
@pytest.mark.parametrize("action", NEEDS_SPACE)
def test_a_disk_that_takes_nothing_is_a_named_error(on_disk, state, action):
    assert on_disk[state]["tried"][action].startswith(NEEDS_SPACE[action])


@pytest.mark.full
def test_a_disk_that_takes_nothing_keeps_what_it_has(on_disk):
    for state in ("full", "read-only"):
        assert on_disk[state]["left"] == []
        assert on_disk[state]["same"] and on_disk[state]["rows"] == 1
    assert set(on_disk["roomy"]["tried"].values()) == {"done"}
    assert on_disk["roomy"]["same"] and on_disk["roomy"]["rows"] == 2


def test_a_folder_that_another_user_owns_is_a_named_error(tiny, tmp_path):
    """As nobody, since root may write anywhere."""
    if os.geteuid() != 0 or not hasattr(os, "fork"):
        pytest.skip("only root can become another user")
    model = tiny("llama", chat=True)
    cu.evaluate(model, TASK)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            cu.evaluate(model, TASK, results_dir=tmp_path / "rows")
        except ResultsError as error:
            status = 0 if "results_dir" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []


# Clocks and locales


def test_dates_in_the_future_or_the_past_change_nothing(stored, tiny, tmp_path, monkeypatch):
    model, results_dir = tiny("llama", chat=True), stored.parents[1]
    record = stored / storage.RECORD
    content = json.loads(record.read_text())
    content["environment"]["date"] = "2999-01-01T00:00:00+00:00"
    record.write_text(json.dumps(content))
    before = records.identity_of(stored)
    for date in (0, 2**33):
        for path in [stored, *stored.iterdir()]:
            os.utime(path, (date, date))
        assert records.identity_of(stored) == before is not None
    monkeypatch.setattr(evaluation, "measure", lambda *a, **k: pytest.fail("measured again"))
    assert len(cu.evaluate(model, TASK, ["none"], [0.5, 2.0], results_dir=results_dir)) == 2
    texts = tmp_path / "texts"
    asked = dict.fromkeys(conventions.IDENTITY["texts"], "x")
    records.open_folder(texts, asked)
    old, new = (f".{digit * 32}.draft" for digit in "01")
    for name, date in ((old, 0), (new, 2**33), (".notes", 0)):  # the clock was set back since
        (texts / name).touch()
        os.utime(texts / name, (date, date))
    records.open_folder(texts, asked)
    assert {path.name for path in hidden(texts)} == {new, ".notes"}, "what is not ours stays"


SPEAK = """
import locale, sys
from calib_utils.__main__ import main
locale.setlocale(locale.LC_ALL, "")
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """Environment of each locale that can be had here: a plain one, a comma, a dotless i."""
    folder = tmp_path_factory.mktemp("locales")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = {"C": plain, "C.UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}}
    for name in ("de_DE", "tr_TR"):
        command = ["localedef", "-i", name, "-f", "UTF-8", str(folder / f"{name}.UTF-8")]
        with suppress(FileNotFoundError):
            if subprocess.run(command, capture_output=True).returncode == 0:
                own = {"LC_ALL": f"{name}.UTF-8", "LOCPATH": str(folder), "PYTHONUTF8": "0"}
                found[name] = own
    return found


@pytest.mark.full
def test_a_locale_changes_no_byte(locales, tiny_folder, write_task, tmp_path):
    answers = ["İstanbul", "Iğdır", "1,5"]
    task = write_task({"name": "iller", "prompt": "Bir şehir söyle: é猫", "answers": answers})
    told = {}
    for name, own in locales.items():
        arguments = ["evaluate", "--model", tiny_folder("llama"), "--task", task]
        arguments += ["--rule", "top_p=0.95", "--results-dir", tmp_path / name]
        process = python(SPEAK, *arguments, env=environment(**own))
        told[name], _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert len(set(told.values())) == 1, "the same table in every locale"
    tables = [p.read_bytes() for p in sorted(tmp_path.glob("*/*/*/settings.csv"))]
    assert len(tables) == len(locales) and len(set(tables)) == 1
    plain = environment(**locales["C"])
    arguments = ["prompt", "--model", tiny_folder("llama"), "--task", task]
    said = subprocess.run(
        [sys.executable, "-m", "calib_utils", *map(str, arguments)], capture_output=True, env=plain
    )
    assert said.returncode == 0 and "Bir şehir söyle: é猫".encode() in said.stdout


# Networks


ASK = """
import sys, time
import calib_utils as cu
from calib_utils.models import weights
weights._HUB_SECONDS = 1
begun = time.monotonic()
try:
    cu.load_model("owner/name")
except cu.CalibUtilsError as error:
    print(type(error).__name__, error, flush=True)
print(time.monotonic() - begun)
"""


def asked(env, before=()):
    process = python(ASK, env=env, before=before)
    out, _ = process.communicate(timeout=PATIENCE)
    error, seconds = out.splitlines()
    assert error.startswith("HubUnreachableError owner/name could not be fetched")
    assert "a local folder or .gguf file" in error
    return float(seconds)


@pytest.fixture
def online(tmp_path):
    """The environment of a process that may use the hub."""
    env = environment(HF_HOME=str(tmp_path / "hub"), CALIB_UTILS_CACHE=str(tmp_path / "cache"))
    del env["HF_HUB_OFFLINE"]
    return env


@contextmanager
def talking(answer):
    """The port of a server that meets every request with `answer(connection)`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=server.accept(), daemon=True).start()

        def talk(connection, address):
            with suppress(OSError), connection:
                connection.recv(65_536)
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.full
def test_a_hub_that_stalls_is_given_up(online):
    held = []

    def stall(connection):
        held.append(connection)
        time.sleep(600)

    with talking(stall) as port:
        online["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
        assert asked(online | {"HF_HUB_ETAG_TIMEOUT": "1"}) < 60
    assert held, "it was asked"


@pytest.mark.full
def test_without_any_network_a_hub_model_is_a_named_error(online):
    assert asked(online, before=apart("--net", ["true"])) < 60


# Hostile files


def kv(key, kind, payload):
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + payload


def header(*fields, n_fields=None, n_tensors=0, version=3, magic=b"GGUF"):
    count = len(fields) if n_fields is None else n_fields
    return magic + struct.pack("<IQQ", version, n_tensors, count) + b"".join(fields)


ARCHITECTURE = kv("general.architecture", 8, struct.pack("<Q", 5) + b"llama")
HOSTILE_GGUF = {
    "empty": b"",
    "magic alone": b"GGUF",
    "another magic": header(magic=b"GGML"),
    "version 1": header(version=1),
    "absurd number of fields": header(n_fields=2**63),
    "absurd number of tensors": header(ARCHITECTURE, n_tensors=2**63),
    "absurd text": header(kv("a", 8, struct.pack("<Q", 2**62))),
    "no UTF-8": header(kv("general.architecture", 8, struct.pack("<Q", 2) + b"\xff\xfe")),
    # With these the reader of the package gguf takes all memory.
    "absurd array": header(kv("a", 9, struct.pack("<IQ", 0, 2**60))),
    "absurd array of texts": header(kv("a", 9, struct.pack("<IQ", 8, 2**60))),
    "arrays in arrays": header(kv("a", 9, struct.pack("<IQ", 9, 1) * 5_000)),
    "unknown type": header(kv("a", 99, b"")),
    "field twice": header(ARCHITECTURE, ARCHITECTURE),
    "absurd layers": header(ARCHITECTURE, kv("llama.block_count", 4, struct.pack("<I", 2**31))),
    "nothing but a name": header(ARCHITECTURE),
}


@pytest.mark.parametrize("case", HOSTILE_GGUF)
def test_a_hostile_gguf_is_a_named_error_at_once(tmp_path, own_cache, case):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE_GGUF[case])
    begun = time.monotonic()
    with pytest.raises(ModelFormatError, match=r"hostile\.gguf.*fetch it again"):
        cu.load_model(path, device="cpu")
    assert time.monotonic() - begun < 2
    assert hidden(own_cache) == []


def test_a_gguf_that_lacks_a_tensor_is_refused(tiny_gguf, tmp_path, own_cache):
    """As transformers would draw it at random, and the copy would be taken for the model."""
    path = tmp_path / "lacking.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"output_norm.weight", b"output_nrom.weight"))
    with pytest.raises(ModelFormatError, match=r"lacking\.gguf lacks 1 .*model\.norm\.weight"):
        cu.load_model(path, device="cpu")
    assert hidden(own_cache) == []


ESCAPES = {
    "globals": "{{ messages.__class__.__mro__ }}",
    "of a function": "{{ raise_exception.__globals__ }}",
    "import": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "attribute by filter": "{{ messages|attr('__class__') }}",
    "changing": "{{ messages.append(1) }}",
    "too far": "{% for i in range(10 ** 9) %}{% endfor %}",
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_chat_template_cannot_leave_its_sandbox(tiny_folder, tmp_path, case):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    (folder / "chat_template.jinja").write_text(ESCAPES[case])
    try:
        prompt = cu.render_prompt(cu.load_model(folder, device="cpu"), TASK).text
    except ModelFormatError as error:
        assert "repair the template" in str(error)
    else:  # rendered as nothing
        assert "class" not in prompt and "uid=" not in prompt and "globals" not in prompt


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_spoilt_settings_of_a_model_are_a_named_error(tiny_folder, tmp_path, content):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    (folder / "generation_config.json").write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"generation_config\.json.*restore or delete it"):
        cu.load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": "many"},
        {"vocab_size": -1},
        {"head_dim": None, "num_attention_heads": None},
        {"num_hidden_layers": 1e9},
        {"layer_types": 5},
        {"text_config": 5},
        {"num_experts": 4, "num_experts_per_tok": "x"},
    ],
)
def test_a_config_with_absurd_numbers_has_no_size(tiny_folder, tmp_path, change):
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelFormatError, match=r"restore its config\.json"):
        resources.size_of(folder)


# Names


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "..", "", "a\0", "a\n", "C:x", None]
)
def test_a_judges_name_stays_in_its_folder(name):
    backend = SimpleNamespace(identity={})
    with pytest.raises(JudgeError, match="part of a file name"):
        LanguageModelJudge(backend, name=name, cache_dir=None)


def named(name):
    return pytest.param({name: "0" * 64}, "a name among its files", id=f"named {name!r}")


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        *map(named, ["../outside.parquet", "/outside.parquet", "a/../b", "", ".x", "a\0"]),
        *((listed, r"delete|restore") for listed in (5, ["x"], "x", {"x.parquet": 5})),
    ],
)
def test_a_sidecar_names_no_file_outside_its_folder(tmp_path, listed, said):
    folder = tmp_path / "texts"
    records.open_folder(folder, dict.fromkeys(conventions.IDENTITY["texts"], "x"))
    record = json.loads((folder / "provenance.json").read_text())
    (tmp_path / "outside.parquet").write_bytes(b"PAR1")
    (folder / "provenance.json").write_text(json.dumps(record | {"files": listed}))
    with pytest.raises(ResultsError, match=said):
        records.read_completions(folder)


@pytest.mark.parametrize("revision", ["../../x", "/etc", "..", "a/../b", "", "a\0b", "~x", 5])
def test_a_revision_leads_nowhere_else(revision):
    with pytest.raises(UnknownNameError, match="Give a commit, branch or tag"):
        cu.load_model("owner/name", revision=revision)


# The page


def test_the_page_has_every_fault_and_names_tests_that_exist():
    page = (paths.book_dir() / "reference" / "faults.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    rows = [row for row in rows if row[0] != "fault"]
    assert all(len(row) == 4 and all(row) for row in rows)
    faults = [row[0] for row in rows]
    assert len(set(faults)) == len(faults)
    known = {
        f"`{path.name}::{name}`"
        for path in (ROOT / "tests").glob("*/test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    for fault, *_, test in rows:
        assert test in known, f"{fault}: there is no {test}"

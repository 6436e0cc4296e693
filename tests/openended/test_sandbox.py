"""Programs that misbehave in every way we could think of end, harm nothing, and do not pass."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils import paths
from calib_utils.errors import InvalidRequestError, SandboxError
from calib_utils.openended import sandbox, sandbox_worker
from calib_utils.openended.sandbox import Limits, run_tests

TIGHT = Limits(cpu_seconds=1, wall_seconds=9, memory_mb=256, processes=8, file_mb=1)
BRIEF = Limits(cpu_seconds=2, wall_seconds=1)
RIGHT = "def f(x):\n    return x + 1\n"
TESTS = [((1,), 2), ((41,), 42)]
needs_namespaces = pytest.mark.skipif(
    "namespaces" not in sandbox.available(), reason="this system grants no namespaces"
)
needs_any = pytest.mark.skipif(not sandbox.available(), reason="no isolation works on this system")


@pytest.fixture(params=sandbox.ISOLATIONS)
def isolation(request):
    if request.param not in sandbox.available():
        pytest.skip(f"isolation {request.param!r} does not work on this system")
    return request.param


def run(source, isolation, limits=TIGHT, tests=TESTS, entry_point="f"):
    return run_tests(textwrap.dedent(source), entry_point, tests, limits, isolation)


def value_of(expression, isolation, setup=""):
    """What an expression gives inside, or the name of its error."""
    body = f"try:\n            return [{expression}]\n        except Exception as e:"
    source = f"""
    import os, sys, socket
    def f():
        {setup}
        {body}
            return type(e).__name__
    """
    verdict = run(source, isolation, tests=[((), "no such value")])
    assert verdict.outcome == "failed", verdict
    return verdict.reason


def test_a_right_program_passes_and_a_wrong_one_fails(isolation):
    verdict = run(RIGHT, isolation)
    assert (verdict.outcome, verdict.n_passed, verdict.n_tests) == ("passed", 2, 2)
    wrong = run("def f(x):\n    return 2 * x\n", isolation)
    assert (wrong.outcome, wrong.n_passed) == ("failed", 1)
    assert wrong.reason == "test 2 gave 82, expected 42"


@pytest.mark.parametrize(
    "source, reason",
    [
        ("def f(x:\n", "SyntaxError"),
        ("import numpy\n" + RIGHT, "ModuleNotFoundError"),
        ("def g(x):\n    return x + 1\n", "KeyError: 'f'"),
        ("x = 1 / 0\n" + RIGHT, "ZeroDivisionError"),
        (RIGHT + "raise SystemExit(0)\n", "SystemExit: 0"),
        (RIGHT + "import sys\nsys.exit(0)\n", "SystemExit: 0"),
        (RIGHT + "import os\nos._exit(0)\n", "ended after 0 of 2 tests"),
        ("import os\ndef f(x):\n    os._exit(0)\n", "ended after 0 of 2 tests"),
        ("import os\ndef f(x):\n    if x > 1: os._exit(0)\n    return 2\n", "after 1 of 2 tests"),
    ],
)
def test_a_program_that_does_not_reach_its_tests_is_an_error(source, reason, isolation):
    verdict = run(source, isolation)
    assert verdict.outcome == "error"
    assert reason in verdict.reason


@pytest.mark.parametrize("raised", ["SystemExit(0)", "KeyboardInterrupt", "ValueError('no')"])
def test_an_exception_fails_its_test_only(raised, isolation):
    verdict = run(f"def f(x):\n    if x == 1: raise {raised}\n    return x + 1\n", isolation)
    assert (verdict.outcome, verdict.n_passed) == ("failed", 1)
    assert "test 1 raised" in verdict.reason


@pytest.mark.parametrize(
    "fake",
    [
        "print('passed'); print('OK'); print('{\"test\": 0, \"answer\": 2}')",
        'for d in range(1, 64):\n        try: os.write(d, b\'\\n{"test": 0, "answer": 2}\\n\')\n'
        "        except OSError: pass",
        # The nonce can be found; what it buys is to send answers.
        "g = sys._getframe(1).f_locals; g['say']({'started': True}); g['say']({'passed': True}); "
        "g['say']({'test': 0, 'outcome': 'passed'}); os._exit(0)",
        "g = sys._getframe(1).f_locals; g['say']({'test': 0, 'answer': {'set': [[]]}}); "
        "g['say']({'test': True, 'answer': 2}); g['say']({'test': -1, 'answer': 42})",
        "g = sys._getframe(1).f_locals; g['answers'].write(g['job']['nonce'] + '[' * 9999 + '\\n')",
    ],
)
def test_a_verdict_cannot_be_faked(fake, isolation):
    verdict = run(f"import os, sys\ndef f(x):\n    {fake}\n    return 0\n", isolation)
    assert verdict.outcome in ("failed", "error")
    assert verdict.n_passed == 0


def test_values_that_equal_everything_are_no_answers(isolation):
    source = """
    class Same:
        def __eq__(self, other): return True
        __hash__ = None
    class Two(int):
        def __eq__(self, other): return True
        __hash__ = None
    def f(x): return Same() if x == 1 else Two(2)
    """
    verdict = run(source, isolation)
    assert (verdict.outcome, verdict.n_passed) == ("failed", 0)


def test_expected_values_never_enter(isolation):
    source = "import sys\ndef f(x):\n    return str(sys._getframe(1).f_locals)\n"
    verdict = run(source, isolation, tests=[((1,), "a value to look for")])
    assert "a value to look for" not in verdict.reason.split("expected")[0]


@pytest.mark.parametrize(
    "given_values, expected, passes",
    [
        ("[1, 2]", [1, 2], True),
        ("(1, 2)", [1, 2], False),
        ("{1, 2}", [1, 2], False),
        ("{'a': [1.0]}", {"a": [1]}, True),
        ("0.1 + 0.2", 0.3, True),
        ("float('nan')", 0.0, False),
        ("True", True, True),
        ("None", None, True),
        ("None", False, False),
        ("'1'", 1, False),
        ("10 ** 5000", 1, False),
        ("(a := [], a.append(a), a)[-1]", [], False),
    ],
)
def test_what_counts_as_equal(given_values, expected, passes, isolation):
    source = f"def f():\n    return {given_values}\n"
    assert (run(source, isolation, tests=[((), expected)]).outcome == "passed") == passes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES, VALUES)
def test_an_answer_survives_the_pipe(value, other):
    record = {"test": 0, "answer": sandbox_worker.encode(value)}
    assert sandbox.judge([record], [((), value)]).outcome == "passed"
    if other != value and not isinstance(value, float | list | dict):
        assert sandbox.judge([record], [((), other)]).outcome == "failed"


@pytest.mark.parametrize("body", ["while True: pass", "re.match('(a+)+b', 'a' * 99)"])
def test_an_endless_loop_times_out_whatever_signals_it_ignores(body, isolation):
    source = f"""
    import re
    try:
        import signal
        for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, signal.SIGALRM):
            signal.signal(s, signal.SIG_IGN)
    except PermissionError:
        pass
    def f(x):
        {body}
    """
    verdict = run(source, isolation, replace(TIGHT, wall_seconds=90))  # cores may be busy
    assert (verdict.outcome, verdict.reason) == ("timeout", "processor time used up")


def test_a_sleeper_times_out(isolation):
    verdict = run("import time\ndef f(x):\n    time.sleep(99)\n", isolation, BRIEF)
    assert (verdict.outcome, verdict.reason) == ("timeout", "wall time used up")


def test_closing_every_pipe_and_sleeping_is_no_way_out(isolation):
    source = "import os, time\ndef f(x):\n    os.closerange(0, 64)\n    time.sleep(99)\n"
    began = time.monotonic()
    assert run(source, isolation, BRIEF).outcome in ("killed", "timeout")
    assert time.monotonic() - began < 60


def test_memory_is_limited(isolation):
    verdict = run("def f(x):\n    return len(bytearray(10 ** 9))\n", isolation)
    assert verdict.outcome == "failed"
    assert "MemoryError" in verdict.reason
    grows = run("def f(x):\n    a = []\n    while True: a.append(bytes(10 ** 6))\n", isolation)
    assert grows.outcome in ("failed", "killed")


def test_output_is_capped(isolation):
    verdict = run("def f(x):\n    while True: print('x' * 999)\n", isolation)
    assert (verdict.outcome, verdict.reason) == ("killed", "too much output")
    some = run("import sys\nprint('hello')\nprint('err', file=sys.stderr)\n" + RIGHT, isolation)
    assert some.outcome == "passed"


def test_answers_are_capped(isolation):
    verdict = run("def f(x):\n    return 'x' * 10 ** 7\n", isolation)
    assert (verdict.outcome, verdict.reason) == ("killed", "too much output")


def test_a_file_is_capped(isolation):
    source = """
    def f(x):
        with open("big", "wb") as file:
            while True: file.write(bytes(10 ** 5))
    """
    verdict = run(source, isolation)
    assert verdict.outcome in ("killed", "failed")
    assert verdict.n_passed == 0


@needs_namespaces
def test_all_files_together_are_capped():
    source = """
    def f(x):
        for i in range(100):
            with open(f"file{i}", "wb") as file: file.write(bytes(10 ** 5))
    """
    verdict = run(source, "namespaces")
    assert "No space left" in verdict.reason


def test_its_own_folder_is_its_own_and_gone_afterwards(isolation, monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    source = """
    import os
    def f():
        with open("note", "w") as file: file.write("kept")
        os.mkdir("deep")
        with open("note") as file: return file.read()
    """
    assert run(source, isolation, tests=[((), "kept")]).outcome == "passed"
    assert list(tmp_path.iterdir()) == []


def test_recursion(isolation):
    assert "RecursionError" in run("def f(x):\n    return f(x)\n", isolation).reason
    deep = "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n"
    deep += "    def __getattr__(self, n): return getattr(self, n + n[:1])\ndef f(x): A().a\n"
    assert run(deep, isolation).outcome in ("failed", "killed", "timeout")
    nested = "def f(x):\n    a = []\n    for i in range(10 ** 4): a = [a]\n    return a\n"
    assert "no plain value" in run(nested, isolation).reason


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "/etc/hosts", "/proc/1/environ", "README.md", "calib_utils"]
)
def test_files_outside_cannot_be_read(target, isolation):
    path = paths.project_root() / target
    verb = "os.listdir" if path.is_dir() else "open"
    assert "Error" in value_of(f"{verb}({str(path)!r})", isolation)


def test_files_outside_cannot_be_reached_by_links_or_changes_of_folder(isolation, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("kept to ourselves")
    for expression in (
        f"(os.symlink({str(secret)!r}, 'link'), open('link').read())",
        f"(os.chdir({str(tmp_path)!r}), open('secret').read())",
        f"open('../../../../../../{secret}').read()",
    ):
        assert "Error" in value_of(expression, isolation)


@pytest.mark.parametrize("where", ["tmp", "library", "project"])
def test_nothing_outside_can_be_written(where, isolation, tmp_path):
    folder = {"tmp": tmp_path, "library": Path(os.__file__).parent, "project": Path.cwd()}[where]
    target = folder / f"written-by-the-sandbox-{os.getpid()}"
    try:
        for expression in (f"open({str(target)!r}, 'w')", f"os.open({str(target)!r}, os.O_CREAT)"):
            assert "Error" in value_of(expression, isolation)
        assert not target.exists()
    finally:
        target.unlink(missing_ok=True)  # a failure of this test shall not leave anything behind


@needs_namespaces
def test_what_is_shown_of_the_system_is_read_only_whoever_owns_it():
    source = """
    import os
    def f():
        shown = ("/usr", os.path.dirname(os.__file__))
        return [bool(os.statvfs(path).f_flag & os.ST_RDONLY) for path in (*shown, "/box")]
    """
    verdict = run(source, "namespaces", tests=[((), [True, True, False])])
    assert verdict.outcome == "passed", verdict


@pytest.fixture
def server():
    """A loopback server: its port, and the connections it has got."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                seen.append(connection.recv(5))
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1], seen
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_the_network_is_out_of_reach(server, isolation):
    port, seen = server
    connect = f"socket.create_connection(('127.0.0.1', {port}), timeout=2).send(b'hello')"
    assert "Error" in value_of(connect, isolation)
    assert seen == []
    # The control: the same words reach the server from outside.
    subprocess.run([sys.executable, "-c", f"import socket; {connect}"], check=True)
    deadline = time.monotonic() + 10
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == [b"hello"]


def alive(marker):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


def gone(marker, seconds=60):
    deadline = time.monotonic() + seconds
    while alive(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(marker)


@needs_namespaces
@pytest.mark.parametrize("lives", ["pass", "while True: time.sleep(1)"])
def test_daemons_do_not_outlive_the_run(lives):
    marker = f"daemon-{os.getpid()}-{len(lives)}"
    source = f"""
    import ctypes, os, subprocess, sys, time
    code = "import signal, time\\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\\n"
    code += "time.sleep(99)  # {marker}"
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: os.execv(sys.executable, ["python", "-c", code])
        os._exit(0)
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    os.setsid() if os.getsid(0) == 0 else None
    time.sleep(0.3)
    def f(x):
        {lives}
        return x + 1
    """
    passes = lives == "pass"
    verdict = run(source, "namespaces", Limits(wall_seconds=60 if passes else 2))
    assert verdict.outcome == ("passed" if passes else "timeout"), verdict
    assert gone(marker)


@needs_namespaces
def test_a_fork_bomb_is_contained():
    source = """
    import os
    forks = 0
    try:
        while os.fork() >= 0: forks += 1
    except OSError:
        pass
    def f(x):
        while True: pass
    """
    verdict = run(source, "namespaces", Limits(cpu_seconds=1, wall_seconds=2, processes=8))
    assert verdict.outcome == "timeout"
    counted = """
    import os, time
    def f():
        n = 0
        try:
            while True:
                if os.fork() == 0: time.sleep(9); os._exit(0)
                n += 1
        except OSError:
            return n < 8
    """
    assert run(counted, "namespaces", tests=[((), True)]).outcome == "passed"


@needs_namespaces
@pytest.mark.parametrize(
    "expression",
    [
        "os.kill(1, 9), os.getppid(), open('/proc/self/status')",
        "os.chroot('.')",
        "os.setuid(0) or os.chown('.', 1, 1)",
        "os.mknod('device', 0o60666, 0x801) or open('device', 'rb')",
        "__import__('ctypes').CDLL(None).unshare(0x10000000) and 1 / 0",
        "__import__('ctypes').CDLL(None).mount(b'none', b'/box', b'tmpfs', 0, None) and 1 / 0",
        "__import__('resource').setrlimit(7, (999, 999))",
    ],
)
def test_nothing_can_be_gained_back(expression):
    assert "Error" in value_of(expression, "namespaces")


@needs_namespaces
def test_the_run_ends_when_whoever_started_it_is_killed(tmp_path):
    marker = f"orphan-{os.getpid()}"
    code = f"""
import sys, time
sys.path[:0] = [{str(paths.project_root())!r}]
from calib_utils.openended import sandbox
sandbox._START_SECONDS, sandbox.tempfile.tempdir = 2, {str(tmp_path)!r}
source = "import time\\ndef f():\\n    print('asleep', flush=True)"
source += "\\n    time.sleep(999)  # {marker}"
sandbox._ENTER_BOX += "# {marker}\\n"

def listen(process, *rest):  # whoever started it ends nothing by itself
    print(process.stdout.readline().decode(), flush=True)
    time.sleep(600)

sandbox._listen = listen
sandbox._run(source, "f", [((), 1)], sandbox.Limits(wall_seconds=7), "namespaces")
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout.readline() == "asleep\n"
            assert len(alive(marker)) >= 4
        finally:
            started.kill()
    assert gone(marker)


def test_the_weak_isolation_refuses_processes():
    if "python" not in sandbox.available():
        pytest.skip("isolation 'python' does not work on this system")
    for expression in (
        "os.fork()",
        "os.system('true')",
        "__import__('subprocess').run(['true'])",
        "__import__('ctypes')",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 9)",
    ):
        assert "Error" in value_of(expression, "python")


@needs_any
def test_verdicts_do_not_depend_on_the_hash_seed_or_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "open sesame")
    source = "import os\ndef f():\n    return [hash('a'), os.environ.get('SECRET_KEY')]\n"
    first, second = (run(source, sandbox.available()[0], tests=[((), 0)]) for _ in range(2))
    assert first.reason == second.reason
    assert "None]" in first.reason


def test_what_is_not_there_is_refused_not_replaced(monkeypatch):
    monkeypatch.setattr(sandbox, "available", lambda: ("python",))
    with pytest.raises(SandboxError, match="'namespaces' does not work here"):
        run_tests(RIGHT, "f", TESTS)


@needs_any
def test_requests_are_checked():
    with pytest.raises(InvalidRequestError, match="does not exist"):
        run_tests(RIGHT, "f", TESTS, isolation="docker")
    with pytest.raises(InvalidRequestError, match="no tests"):
        run_tests(RIGHT, "f", [], isolation=sandbox.available()[0])


@needs_namespaces
def test_a_sandbox_that_does_not_start_is_no_verdict(monkeypatch):
    monkeypatch.setattr(sandbox, "_BOX", "echo the kernel says no; exit 1")
    with pytest.raises(SandboxError, match="the kernel says no"):
        run_tests(RIGHT, "f", TESTS)

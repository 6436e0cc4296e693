"""Programs that misbehave in every way we could think of end, harm nothing, and do not pass."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils import paths
from calib_utils.errors import InvalidRequestError, SandboxError
from calib_utils.openended import sandbox
from calib_utils.openended.sandbox import Limits, run_tests

TIGHT = Limits(cpu_seconds=1, wall_seconds=9, memory_mb=256, processes=8, file_mb=1)
BRIEF = Limits(cpu_seconds=2, wall_seconds=1)
RIGHT = "def f(x):\n    return x + 1\n"
TESTS = [((1,), 2), ((41,), 42)]
pytestmark = pytest.mark.skipif(bool(sandbox.fault()), reason="this system grants no namespaces")


def run(source, limits=TIGHT, tests=TESTS):
    return run_tests(textwrap.dedent(source), "f", tests, limits)


def assert_passes(source, limits=TIGHT, tests=TESTS):
    verdict = run(source, limits, tests)
    assert verdict.outcome == "passed", verdict


def value_of(expression):
    """What an expression gives inside, or the name of its error."""
    source = f"""
    import os, sys, socket
    def f():
        try: return [{expression}]
        except Exception as e: return type(e).__name__
    """
    verdict = run(source, tests=[((), "no such value")])
    assert verdict.outcome == "failed", verdict
    return verdict.reason


def test_a_right_program_passes_and_a_wrong_one_fails():
    verdict = run(RIGHT)
    assert (verdict.outcome, verdict.n_passed, verdict.n_tests) == ("passed", 2, 2)
    wrong = run("def f(x):\n    return 2 * x\n")
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
def test_a_program_that_does_not_reach_its_tests_is_an_error(source, reason):
    verdict = run(source)
    assert verdict.outcome == "error"
    assert reason in verdict.reason


def test_a_program_is_a_module_as_any_other():
    assert_passes("""
    from __future__ import annotations
    import pickle
    from dataclasses import dataclass
    @dataclass
    class N:
        value: int
    def f(x): return pickle.loads(pickle.dumps(N(x + 1))).value
    """)


def test_an_exception_fails_its_test_only():
    raised = "[SystemExit(0), KeyboardInterrupt, ValueError('no')]"
    source = f"def f(x):\n    if x < 3: raise {raised}[x]\n    return x\n"
    verdict = run(source, tests=[((x,), x) for x in range(5)])
    assert (verdict.outcome, verdict.n_passed) == ("failed", 2)
    assert "test 1 raised SystemExit: 0" in verdict.reason


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
def test_a_verdict_cannot_be_faked(fake):
    verdict = run(f"import os, sys\ndef f(x):\n    {fake}\n    return 0\n")
    assert verdict.outcome in ("failed", "error")
    assert verdict.n_passed == 0


def test_values_that_equal_everything_are_no_answers():
    source = """
    class Same:
        def __eq__(self, other): return True
        __hash__ = None
    class Two(int):
        def __eq__(self, other): return True
        __hash__ = None
    def f(x): return Same() if x == 1 else Two(2)
    """
    verdict = run(source)
    assert (verdict.outcome, verdict.n_passed) == ("failed", 0)


def test_expected_values_never_enter():
    source = "import sys\ndef f(x):\n    return str(sys._getframe(1).f_locals)\n"
    verdict = run(source, tests=[((1,), "a value to look for")])
    assert "a value to look for" not in verdict.reason.split("expected")[0]


HUGE = 10**5000  # with more digits than Python prints


EQUAL = [
    ("[1, 2]", [1, 2]),
    ("{'a': [1.0]}", {"a": [1]}),
    ("0.1 + 0.2", 0.3),
    ("(0.1 + 0.2,)", (0.3,)),
    ("0", 1e-12),
    ("None", None),
    *[("True", 1), ("1", True), ("[True, 1.0]", [1, True])],  # as `==` has it
    ("dict(Counter('aab'))", {"a": 2, "b": 1}),
    ("10 ** 5000", HUGE),
    ("[-10 ** 5000]", [-HUGE]),
    ("'\\ud800'", "\ud800"),
]
UNEQUAL = [
    ("'\\ud800'", ""),
    ("(1, 2)", [1, 2]),
    ("{1, 2}", [1, 2]),
    ("float('nan')", 0.0),
    ("None", False),
    ("'1'", 1),
    # Of another type than a plain one.
    ("Counter('aab')", {"a": 2, "b": 1}),
    ("[defaultdict(int)]", [{}]),
    ("namedtuple('P', 'x y')(1, 2)", (1, 2)),
    *[("10 ** 5000", 1), ("10 ** 5000", 1.5), ("1.5", HUGE), ("float('inf')", HUGE)],
    ("(a := [], a.append(a), a)[-1]", []),
]


def test_what_counts_as_equal():
    for cases, n_passed in ((EQUAL, len(EQUAL)), (UNEQUAL, 0), (UNEQUAL[9:], 0)):
        values = ", ".join(f"lambda: {value}" for value, _ in cases)
        source = f"from collections import *\ndef f(i):\n    return [{values}][i]()\n"
        verdict = run(source, tests=[((i,), expected) for i, (_, expected) in enumerate(cases)])
        assert verdict.n_passed == n_passed and verdict.outcome in ("passed", "failed"), verdict
        verdict.reason.encode()  # a table can hold it


def test_arguments_arrive_as_they_are():
    given_values = [1, HUGE, (2, "\ud800"), {"a": {3: None}}, frozenset([True])]
    source = "def f(*given):\n    return [list(given), type(given[2]).__name__]\n"
    assert_passes(source, tests=[(given_values, [given_values, "tuple"])])


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError('\\ud800')",
        "raise Silent",
        "raise type('N', (Exception,), {'__str__': lambda self: 1})",
        "return Silent()",
        "return type('D', (dict,), {'items': None, '__iter__': None})(a=1)",
    ],
)
def test_odd_exceptions_and_values_fail_their_test_and_end_nothing(body):
    source = f"""
    class Silent(Exception):
        def __str__(self): raise self
        __repr__ = __eq__ = __hash__ = __str__
    def f(x):
        if x == 1: {body}
        return x + 1
    """
    verdict = run(source)
    assert (verdict.outcome, verdict.n_passed) == ("failed", 1)
    verdict.reason.encode()
    silent = "class Silent(Exception):\n    def __str__(self): raise self\n"
    assert run(f"{silent}{body[:5]} Silent\n").outcome == "error"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES, VALUES)
def test_an_answer_survives_the_pipe(value, other):
    record = {"test": 0, "answer": json.loads(json.dumps(sandbox.encode(value)))}
    assert sandbox.judge([record], [((), value)]).outcome == "passed"
    if other != value and not isinstance(value, float | list | dict):
        assert sandbox.judge([record], [((), other)]).outcome == "failed"


@pytest.mark.parametrize("body", ["while True: pass", "re.match('(a+)+b', 'a' * 99)"])
def test_an_endless_loop_times_out_whatever_signals_it_ignores(body):
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
    verdict = run(source, replace(TIGHT, wall_seconds=90))  # cores may be busy
    assert (verdict.outcome, verdict.reason) == ("timeout", "processor time used up")


def test_a_sleeper_times_out():
    verdict = run("import time\ndef f(x):\n    time.sleep(99)\n", BRIEF)
    assert (verdict.outcome, verdict.reason) == ("timeout", "wall time used up")


def test_closing_every_pipe_and_sleeping_is_no_way_out():
    source = "import os, time\ndef f(x):\n    os.closerange(0, 64)\n    time.sleep(99)\n"
    began = time.monotonic()
    assert run(source, BRIEF).outcome in ("killed", "timeout")
    assert time.monotonic() - began < 60


def test_memory_is_limited():
    verdict = run("def f(x):\n    return len(bytearray(10 ** 9))\n")
    assert verdict.outcome == "failed"
    assert "MemoryError" in verdict.reason
    grows = run("def f(x):\n    a = []\n    while True: a.append(bytes(10 ** 6))\n")
    assert grows.outcome in ("failed", "killed")


@pytest.mark.parametrize(
    "body", ["while True: print('x' * 999)", "return 'x' * 10 ** 7"], ids=["output", "answer"]
)
def test_output_and_answers_are_capped(body):
    verdict = run(f"def f(x):\n    {body}\n")
    assert (verdict.outcome, verdict.reason) == ("killed", "too much output")
    assert_passes("import sys\nprint('hello')\nprint('err', file=sys.stderr)\n" + RIGHT)


@pytest.mark.parametrize(("name", "reason"), [("big", ""), ("file{i}", "No space left")])
def test_files_are_capped_each_and_together(name, reason):
    verdict = run(f"""
    def f(x):
        for i in range(100):
            with open(f"{name}", "ab") as file: file.write(bytes(10 ** 5))
    """)
    assert verdict.outcome in ("killed", "failed") and verdict.n_passed == 0
    assert reason in verdict.reason


def test_its_own_folder_is_its_own_and_gone_afterwards(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    source = """
    import os
    def f():
        with open("note", "w") as file: file.write("kept")
        os.mkdir("deep")
        with open("note") as file: return file.read()
    """
    assert_passes(source, tests=[((), "kept")])
    assert list(tmp_path.iterdir()) == []


def test_recursion():
    assert "RecursionError" in run("def f(x):\n    return f(x)\n").reason
    deep = "import sys\nsys.setrecursionlimit(10 ** 9)\nclass A:\n"
    deep += "    def __getattr__(self, n): return getattr(self, n + n[:1])\ndef f(x): A().a\n"
    assert run(deep).outcome in ("failed", "killed", "timeout")
    nested = "def f(x):\n    a = []\n    for i in range(10 ** 4): a = [a]\n    return a\n"
    assert "no plain value" in run(nested).reason


@pytest.mark.parametrize("target", ["/etc/passwd", "/proc/1/environ", "README.md", "calib_utils"])
def test_files_outside_cannot_be_read(target):
    path = paths.project_root() / target
    verb = "os.listdir" if path.is_dir() else "open"
    assert "Error" in value_of(f"{verb}({str(path)!r})")


@pytest.mark.parametrize("link", [False, True])
def test_a_project_or_package_inside_what_is_shown_is_hidden(link, tmp_path, monkeypatch):
    """As where the checkout lies under /usr/lib, where /lib may be another name for it."""
    library, other = tmp_path / "usr" / "lib", tmp_path / "lib"
    project, package = library / "project", library / "python3.99" / "site-packages" / "calib_utils"
    for folder in (project, package):
        folder.mkdir(parents=True)
        (folder / "programs.json").write_text("the expected answers")
    (library / "libshown.so").write_text("")
    other.symlink_to("usr/lib") if link else other.mkdir()
    monkeypatch.setattr(sandbox, "_LIBRARIES", (*sandbox._LIBRARIES, str(library), str(other)))
    monkeypatch.setattr(sandbox.paths, "project_root", lambda: project)
    source = f"import os\ndef f():\n    return sorted(n for _, d, fs in os.walk({str(tmp_path)!r})"
    source += " for n in d + fs)\n"
    shown = ["lib", "lib", "libshown.so", "project", "python3.99", "site-packages", "usr"]
    assert_passes(source, tests=[((), shown)])
    assert "[[]]" in value_of(f"os.listdir({str((other if link else library) / 'project')!r})")


def keyctl(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 250, "ppc64le": 271, "s390x": 280}.get(os.uname().machine, 219)
    return libc.syscall(number, *arguments)


def test_the_callers_key_ring_is_out_of_reach():
    number = {"x86_64": 248, "ppc64le": 269, "s390x": 278}.get(os.uname().machine, 217)
    name = f"sandbox-{os.getpid()}".encode()
    if ctypes.CDLL(None).syscall(number, b"user", name, b"secret", 6, -3) < 0:
        pytest.skip("no kernel keys on this system")
    search, unlink, ring = 10, 9, -3
    key = keyctl(search, ring, b"user", name, 0)
    assert key > 0  # the control: the same words find it here
    call = f"__import__('ctypes').CDLL(None).syscall({{}}, {search}, {{}}, b'user', {name!r}, 0)"
    calls = [call.format(n, r) for n in (250, 219, 271, 280) for r in (-1, -2, -3, -4, -5)]
    try:
        assert_passes(f"def f():\n    return max({', '.join(calls)})\n", tests=[((), -1)])
    finally:
        keyctl(unlink, key, ring)


def test_files_outside_cannot_be_reached_by_links_or_changes_of_folder(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("kept to ourselves")
    for expression in (
        f"(os.symlink({str(secret)!r}, 'link'), open('link').read())",
        f"(os.chdir({str(tmp_path)!r}), open('secret').read())",
        f"open('../../../../../../{secret}').read()",
    ):
        assert "Error" in value_of(expression)


@pytest.mark.parametrize("where", ["tmp", "library", "project"])
def test_nothing_outside_can_be_written(where, tmp_path):
    folder = {"tmp": tmp_path, "library": Path(os.__file__).parent, "project": Path.cwd()}[where]
    target = folder / f"written-by-the-sandbox-{os.getpid()}"
    try:
        for expression in (f"open({str(target)!r}, 'w')", f"os.open({str(target)!r}, os.O_CREAT)"):
            assert "Error" in value_of(expression)
        assert not target.exists()
    finally:
        target.unlink(missing_ok=True)  # a failure of this test shall not leave anything behind


def test_what_is_shown_of_the_system_is_read_only_whoever_owns_it():
    source = """
    import os
    def f():
        shown = ("/usr/lib", os.path.dirname(os.__file__))
        return [bool(os.statvfs(path).f_flag & os.ST_RDONLY) for path in (*shown, "/box")]
    """
    assert_passes(source, tests=[((), [True, True, False])])


def test_the_network_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        address = server.getsockname()
        connect = f"socket.create_connection({address}, timeout=2).send(b'hello')"
        assert "Error" in value_of(connect.replace("hello", "inner"))
        # The control: the same words reach the server from outside, and are the first to.
        subprocess.run([sys.executable, "-c", f"import socket; {connect}"], check=True)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(5) == b"hello"


def alive(marker):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


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
    verdict = run(source, Limits(wall_seconds=60 if passes else 2))
    assert verdict.outcome == ("passed" if passes else "timeout"), verdict
    assert not alive(marker)  # at once, so that the next verdict does not depend on this program


def test_a_fork_bomb_is_contained_and_not_counted_against_the_next_program():
    fork = "if os.fork() == 0: time.sleep(9); os._exit(0)"
    bomb = """
    import os
    try:
        while os.fork() >= 0: pass
    except OSError:
        pass
    def f(x):
        while True: pass
    """
    alone = f"import os, time\ndef f():\n    for _ in range(5):\n        {fork}\n    return True\n"
    assert run(bomb, Limits(wall_seconds=1, processes=8)).outcome == "timeout"
    assert_passes(alone, Limits(processes=8), [((), True)])
    counted = f"""
    import os, time
    def f():
        n = 0
        try:
            while True:
                {fork}
                n += 1
        except OSError:
            return n < 8
    """
    assert_passes(counted, tests=[((), True)])


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
    assert "Error" in value_of(expression)


@pytest.mark.full
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
    process.stdout.readline()  # the number of process 1
    print(process.stdout.readline().decode(), flush=True)
    time.sleep(600)

sandbox._listen = listen
sandbox._run(source, "f", [((), 1)], sandbox.Limits(wall_seconds=7))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout.readline() == "asleep\n"
            assert len(alive(marker)) >= 4
        finally:
            started.kill()
    deadline = time.monotonic() + 60
    while alive(marker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(marker)


def test_verdicts_do_not_depend_on_the_hash_seed_or_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "open sesame")
    source = "import os\ndef f():\n    return [hash('a'), os.environ.get('SECRET_KEY')]\n"
    first, second = (run(source, tests=[((), 0)]) for _ in range(2))
    assert first.reason == second.reason
    assert "None]" in first.reason


@pytest.mark.parametrize("says", ["the kernel says no", "12\\nthe kernel says no"])
def test_a_sandbox_that_does_not_start_is_no_verdict(says, monkeypatch):
    monkeypatch.setattr(sandbox, "_BOX", f"printf '{says}'; exit 1")
    with pytest.raises(SandboxError, match="the kernel says no"):
        run_tests(RIGHT, "f", TESTS)
    sandbox.fault.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"cannot be isolated here \(.*the kernel says no"):
            run_tests(RIGHT, "f", TESTS)
    finally:
        sandbox.fault.cache_clear()


@pytest.mark.parametrize(
    ("tests", "message"), [([], "no tests"), ([((object(),), 1)], "arguments: .* no plain value")]
)
def test_requests_are_checked(tests, message):
    with pytest.raises(InvalidRequestError, match=message):
        run_tests(RIGHT, "f", tests)

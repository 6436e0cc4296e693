"""A short Python program and its tests in a process of their own, with limits.

Knows subprocesses, resource limits and Linux namespaces; nothing of models or problems.

The verdict is made here: the sandbox gets the tests' inputs, never the expected values, and sends
answers over a pipe of its own, each line behind a nonce. Whatever a program sends there or prints,
only right answers pass.

A program has no network, no environment and no key ring of the caller; no files but a folder of its
own in memory and, read-only, the interpreter with its standard library and the system's libraries,
without packages and without this project; no sight of other processes; no capabilities, and no way
to gain any. Nothing of it outlives the run, so that no verdict depends on the program before.

This takes Linux with `unshare`, `mount` and `setpriv` of util-linux; there is no weaker way for
other systems. It does not protect from a flaw in the kernel, from what can be learnt by timing, or
from programs that use up what the limits allow: memory is limited per process, so together they may
hold `processes` times as much. For hostile programs use a virtual machine.
"""

import contextlib
import inspect
import json
import math
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from calib_utils import paths
from calib_utils.errors import InvalidRequestError, NoCheckoutError, SandboxError

_ANSWER_BYTES = 1_000_000
_START_SECONDS = 30  # for mounting and starting the interpreter, not counted as the program's
# Numbers that systemd leaves unused; one per process of ours, since limits count by user.
_USERS = (60578, 600)
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64")
# The shell stays as process 1 and never runs the program: when it ends or is killed, so is all
# else in its namespace, whatever session or signal handlers the program has chosen. Before that it
# says its number outside. "+" shows a path, "-" hides a folder inside one.
_BOX = """set -e
root=$1; size=$2; shift 2
read -r pid rest < /proc/self/stat
echo "$pid"
mount -t tmpfs -o "size=$size,mode=755" tmpfs "$root"
while [ "$1" != -- ]; do
  path=${1#?}; place=$root$path
  case $1 in
    -*) [ ! -d "$place" ] || mount -t tmpfs -o size=4k,mode=755 tmpfs "$place" ;;
    *) mkdir -p "${place%/*}"
       if [ -L "$path" ]; then ln -s "$(readlink "$path")" "$place"; else
         if [ -d "$path" ]; then mkdir -p "$place"; else [ -e "$place" ] || : > "$place"; fi
         mount --bind -o ro "$path" "$place"
       fi ;;
  esac
  shift
done
shift
mkdir -m 1777 "$root/box"
set +e
exec 2> /dev/null
(exec chroot "$root" "$@" 2>&1)
exit $?
"""
_ENTER_BOX = "import os; os.chdir('/box')\n"


@dataclass(frozen=True)
class Limits:
    """What a program may use; it is killed where it writes more output."""

    cpu_seconds: int = 5  # of processor time, per process
    wall_seconds: float = 20.0  # until everything is killed
    memory_mb: int = 512  # address space per process, in 2^20 bytes
    processes: int = 16  # and threads, at one time
    file_mb: int = 8  # all files together
    output_bytes: int = 64_000  # standard output and error together


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    `outcome` is `passed` (every answer right), `failed` (all tests ran, an answer is wrong or an
    exception), `error` (the program did not load, or ended before its tests), `timeout` (processor
    or wall time) or `killed` (by a signal, or for too much output); `reason` says it in words.
    """

    outcome: str
    reason: str
    n_passed: int
    n_tests: int


def run_tests(
    source: str,
    entry_point: str,
    tests: Sequence[tuple[Sequence, Any]],
    limits: Limits = Limits(),
) -> Verdict:
    """Runs a program, then calls its function `entry_point` once per test.

    An answer is right where Python's `==` says so, so that True equals 1 and 1.0, floats to 1e-9.
    It must be of a plain type: a `Counter` is no answer where a dictionary is asked for, since a
    class of its own may claim to equal anything. Integers may have any number of digits; a program
    that prints one meets the limit of its interpreter.

    Args:
        tests: (arguments, expected value) pairs of None, numbers, strings and their containers.

    Raises:
        SandboxError: this system cannot isolate a program.
        InvalidRequestError: no tests, or an argument of another type.
    """
    require()
    if not tests:
        raise InvalidRequestError("no tests: every program would pass; give at least one")
    return _run(source, entry_point, tests, limits)


def require() -> None:
    """Raises a SandboxError with the reason if programs cannot be isolated here."""
    if reason := fault():
        raise SandboxError(
            f"programs cannot be isolated here ({reason}): this needs Linux, util-linux and "
            "permission to create namespaces (Ubuntu grants it with `sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0`); run it there or in a virtual machine"
        )


@cache
def fault() -> str:
    """Why no program can be isolated here, found by running one; empty where one can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    try:
        probe = "import os\ndef f():\n    return os.listdir('.')"
        verdict = _run(probe, "f", [((), [])], Limits())
    except SandboxError as error:
        return str(error)
    return "" if verdict.outcome == "passed" else verdict.reason


def _run(source, entry_point, tests, limits: Limits) -> Verdict:
    nonce = secrets.token_hex(16)
    try:
        inputs = [encode(list(arguments)) for arguments, _ in tests]
    except TypeError as error:
        raise InvalidRequestError(f"a test's arguments: {error}; give plain values") from error
    job = {"nonce": nonce, "source": source, "entry_point": entry_point, "inputs": inputs}
    job["limits"] = {
        "RLIMIT_AS": limits.memory_mb * 2**20,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_FSIZE": limits.file_mb * 2**20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": limits.processes,
    }
    read, write = os.pipe()
    with (
        os.fdopen(read, "rb", buffering=0) as answers,
        tempfile.TemporaryDirectory(prefix="box-", ignore_cleanup_errors=True) as root,
        tempfile.TemporaryFile() as job_input,
    ):
        job_input.write(json.dumps(job).encode())
        job_input.seek(0)
        try:
            process = subprocess.Popen(
                _command(root, limits, write),
                stdin=job_input,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env={"PATH": _PATH, "PYTHONHASHSEED": "0"},  # the same verdict every time
                cwd=root,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise SandboxError(f"the sandbox did not start ({error})") from error
        finally:
            os.close(write)
        with process.stdout:
            sent, output, stopped = _listen(process, answers, limits, nonce.encode())
            first, _, rest = output.partition(b"\n")
            code, cpu_seconds = _end(process, first, patient=not stopped)
    said = _records(sent, nonce.encode())
    if not said:
        why = (rest if first.isdigit() else output).decode("utf-8", "replace").strip()[-300:]
        raise SandboxError(f"the sandbox did not start ({why or stopped or f'exit code {code}'})")
    number = -code if code < 0 else max(0, code - 128)  # shells add 128 to a signal's number
    if not stopped and number == signal.SIGKILL and cpu_seconds > limits.cpu_seconds - 0.5:
        stopped = "processor time used up"
    return judge(said, tests, stopped or (f"ended by signal {number}" if number else ""))


def _shown() -> list[str]:
    """What a program sees of the system ("+") and what is hidden inside ("-"), parents first."""
    python, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    libraries = [path for path in (*_LIBRARIES, f"{prefix}/lib") if os.path.isdir(path)]
    hidden = {str(Path(__file__).resolve().parents[1])}
    with contextlib.suppress(NoCheckoutError):
        hidden.add(str(paths.project_root()))
    for library in libraries:
        hidden |= set(map(str, Path(library).glob("python*/*-packages")))
    files = ("/etc/ld.so.cache", shutil.which("setpriv", path=_PATH) or "", python)
    signs = {path: "+" for path in (*libraries, *files) if os.path.exists(path)}
    signs |= dict.fromkeys(hidden, "-")
    return [signs[path] + path for path in sorted(signs)]


def _command(root: str, limits: Limits, answers: int) -> list[str]:
    code = f"{_ENTER_BOX}{_INSIDE}work({answers})"
    flags = ["-P", "-s", "-S", "-B", "-X", "utf8", "-c", code]
    private = ["--net", "--pid", "--ipc", "--uts", "--mount", "--fork", "--kill-child"]
    drop = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if os.geteuid() == 0:
        # The kernel does not limit root's processes, so the program becomes somebody else.
        user = _USERS[0] + os.getpid() % _USERS[1]
        drop += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    else:
        private += ["--user", "--map-root-user"]
    # If this process dies, `timeout` still ends the run.
    late = math.ceil(limits.wall_seconds + _START_SECONDS) + 1
    return [
        *("timeout", "--foreground", "--signal=KILL", str(late), "unshare", *private),
        *("sh", "-c", _BOX, "box", root, str(limits.file_mb * 2**20), *_shown(), "--"),
        *(*drop, os.path.realpath(sys.executable), *flags),
    ]


# What runs inside: limits first, then the program, then one answer per test. The text of these
# functions goes to a bare interpreter, so they may use each other, `json`, `os` and `sys` alone.


def set_limits(limits: dict) -> None:
    """Resource limits by name, soft and hard at once so that they cannot be raised again."""
    import resource

    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def leave_key_ring() -> None:
    """Takes an empty session key ring: the caller's is inherited, and no namespace hides it."""
    import ctypes
    import errno

    join_session_keyring = 1
    keyctl = {"x86_64": 250, "ppc64le": 271, "s390x": 280}.get(os.uname().machine, 219)
    libc = ctypes.CDLL(None, use_errno=True)
    # Where the kernel has no keys or refuses the call, the program reaches none either.
    refused = libc.syscall(keyctl, join_session_keyring, None) < 0
    if refused and ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), "no key ring of its own")


def encode(value, depth: int = 0):
    """A value as JSON that tells lists, tuples, sets and dictionaries apart; plain types only.

    Long integers are written in base 16, which has no limit of digits.

    Raises:
        TypeError: another type, also one that extends a plain one, or nested too deeply.
    """
    if type(value) is int and value.bit_length() > 64:
        return {"int": hex(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth < 50:
        if type(value) is list:
            return [encode(v, depth + 1) for v in value]
        if type(value) is tuple:
            return {"tuple": [encode(v, depth + 1) for v in value]}
        if type(value) in (set, frozenset):
            return {"set": [encode(v, depth + 1) for v in value]}
        if type(value) is dict:
            pairs = [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]
            return {"dict": pairs}
    raise TypeError(f"the answer is no plain value: {type(value).__name__} at depth {depth}")


def decode(value):
    """The inverse of `encode`; ValueError, TypeError or KeyError where it is none of its values."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "int":
            return int(content, 16)
        if kind == "dict":
            return {decode(key): decode(item) for key, item in content}
        return {"tuple": tuple, "set": frozenset}[kind](decode(content))
    return value


def described(error: BaseException) -> str:
    """Type and message of what a program raised, which may raise once more when it is asked."""
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:
        return "an exception without words"


def work(answers_to: int) -> None:
    """Runs the job on standard input; returns never."""
    job = json.loads(sys.stdin.read())
    answers = os.fdopen(answers_to, "w", encoding="utf-8", errors="backslashreplace")

    def say(record: dict) -> None:
        answers.write(job["nonce"] + json.dumps(record) + "\n")
        answers.flush()

    leave_key_ring()
    set_limits(job["limits"])
    say({"started": True})
    # In its place among the modules, where dataclasses and pickle look for it.
    sys.modules["program"] = program = type(sys)("program")
    namespace = vars(program)
    try:
        exec(compile(job["source"], "program.py", "exec"), namespace)
        function = namespace[job["entry_point"]]
    except BaseException as error:
        say({"not_loaded": described(error)})
        os._exit(0)
    for number, arguments in enumerate(map(decode, job["inputs"])):
        try:
            say({"test": number, "answer": encode(function(*arguments))})
        except BaseException as error:
            say({"test": number, "raised": described(error)})
    sys.stdout.flush()
    os._exit(0)  # not waiting for threads


_INSIDE = "import json, os, sys\n" + "\n".join(
    map(inspect.getsource, (set_limits, leave_key_ring, encode, decode, described, work))
)


# Outside again.


def _listen(process: subprocess.Popen, answers, limits: Limits, nonce: bytes):
    """Answers and output until both pipes close or a limit is hit, and which ("" if none)."""
    read = {answers: bytearray(), process.stdout: bytearray()}
    caps = {answers: _ANSWER_BYTES, process.stdout: limits.output_bytes}
    deadline, started, stopped = time.monotonic() + _START_SECONDS, False, ""
    with selectors.DefaultSelector() as selector:
        for pipe in read:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and not stopped:
            if not started and nonce in read[answers]:
                started, deadline = True, time.monotonic() + limits.wall_seconds
            left = deadline - time.monotonic()
            if left <= 0:
                stopped = "wall time used up"
            for key, _ in selector.select(left) if left > 0 else ():
                pipe = key.fileobj
                chunk = pipe.read(65536)
                read[pipe] += chunk
                if len(read[pipe]) > caps[pipe]:
                    stopped = "too much output"
                    del read[pipe][caps[pipe] :]
                if not chunk:
                    selector.unregister(pipe)
    return *map(bytes, read.values()), stopped


def _end(process: subprocess.Popen, first: bytes, patient: bool) -> tuple[int, float]:
    """Ends a run, if `patient` after a moment to end by itself: exit code and processor time in s.

    `first` is the line of output that names the namespace's process 1, with which all of it ends.
    """
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0 if patient else 0.0)
    if process.returncode is None:  # not reaped, so that no number can be somebody else's
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(first) if first.isdigit() else -process.pid, signal.SIGKILL)
    code, after = process.wait(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _records(sent: bytes, nonce: bytes) -> list[dict]:
    """The records in lines behind the nonce; lines that are none are left out."""
    found = []
    for line in sent.split(b"\n"):
        # A line that the program itself wrote, or cut, may hold anything.
        with contextlib.suppress(ValueError, RecursionError):
            if line.startswith(nonce):
                found.append(json.loads(line.removeprefix(nonce)))
    return [record for record in found if isinstance(record, dict)]


def judge(said: list[dict], tests: Sequence[tuple[Sequence, Any]], stopped: str = "") -> Verdict:
    """The verdict over a run's records, `stopped` if not ended by itself. First answers count."""
    problems: dict[int, str] = {}
    for record in said:
        number = record.get("test")
        if type(number) is int and 0 <= number < len(tests):
            problems.setdefault(number, _problem(record, tests[number][1]))
    wrong = [f"test {i + 1} {problems[i]}" for i in sorted(problems) if problems[i]]
    not_loaded = [record["not_loaded"] for record in said if "not_loaded" in record]
    if stopped:
        outcome, reason = "timeout" if stopped.endswith("time used up") else "killed", stopped
    elif not_loaded:
        outcome, reason = "error", f"did not load: {_text(not_loaded[0])}"
    elif len(problems) < len(tests):
        outcome, reason = "error", f"ended after {len(problems)} of {len(tests)} tests"
    else:
        outcome, reason = ("failed", wrong[0]) if wrong else ("passed", "")
    return Verdict(outcome, reason, len(problems) - len(wrong), len(tests))


def _problem(record: dict, expected) -> str:
    """What is wrong with the answer to one test; empty if nothing."""
    if "answer" not in record:
        return f"raised {_text(record.get('raised'))[:200]}"
    try:
        answer = decode(record["answer"])
        right = _equal(answer, expected)
        return "" if right else f"gave {_repr(answer)}, expected {_repr(expected)}"
    # What no worker of ours has sent.
    except (ValueError, TypeError, KeyError, RecursionError):
        return "sent no readable answer"


def _text(said) -> str:
    """What a program said, with escapes for the halves of surrogate pairs, which no file holds."""
    return said.encode("utf-8", "backslashreplace").decode() if type(said) is str else "nothing"


def _repr(value) -> str:
    try:
        return f"{value!r:.120}"
    except ValueError:  # an integer beyond the limit of digits that are printed
        return "a number too long to print"


def _equal(answer, expected) -> bool:
    if type(answer) is type(expected) and type(answer) in (list, tuple):
        return len(answer) == len(expected) and all(map(_equal, answer, expected))
    if type(answer) is type(expected) is dict:
        return answer.keys() == expected.keys() and all(
            _equal(answer[key], expected[key]) for key in answer
        )
    both = (answer, expected)
    if float in map(type, both) and all(isinstance(value, int | float) for value in both):
        with contextlib.suppress(OverflowError):  # an integer that no float can hold
            return math.isclose(answer, expected, rel_tol=1e-9, abs_tol=1e-9)
    return answer == expected

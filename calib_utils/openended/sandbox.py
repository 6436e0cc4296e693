"""A short Python program and its tests in a process of their own, with limits.

Knows subprocesses, resource limits and Linux namespaces; nothing of models or problems.

The verdict is made here: the sandbox gets the tests' inputs, never the expected values, and sends
answers over a pipe of its own, each line behind a nonce. Leaving early, printing a verdict or
writing to that pipe gains a program nothing; only right answers pass.

`isolation="namespaces"` (Linux, with `unshare`, `mount` and `setpriv` of util-linux) keeps a
program from the network (its own has not even a loopback that is up); from every file but a folder
of its own in memory and, read-only, the system's programs and libraries under /usr and /lib and the
interpreter; from other processes; from more than the given time, memory, processes, files and
output; and from staying alive after the run. It has no capabilities and cannot gain any.

`isolation="python"` is for systems without those. Resource limits and a killed process group are
the kernel's, but files, network and processes are refused by an audit hook inside the same
interpreter. That stops programs that err, not programs that attack: **an audit hook is no security
boundary**. As root the limit on processes is the hook's alone; on macOS memory has no limit.

Neither protects from a flaw in the kernel, from what can be learnt by timing, or from programs that
use up what the limits allow: memory is limited per process, so together they may hold `processes`
times as much. Programs here are written by small models; for hostile ones use a virtual machine.
"""

import contextlib
import json
import math
import os
import secrets
import selectors
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

from calib_utils.errors import InvalidRequestError, SandboxError

ISOLATIONS = ("namespaces", "python")
WALL_TIME, TOO_MUCH_OUTPUT = "wall time used up", "too much output"
_ANSWER_BYTES = 1_000_000
_START_SECONDS = 30  # for mounting and starting the interpreter, not counted as the program's
# Numbers that systemd leaves unused; one per process of ours, since limits count by user.
_USERS = (60578, 600)
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
# The shell stays as process 1 and never runs the program: when it ends or is killed, so is all
# else in its namespace, whatever session or signal handlers the program has chosen.
_BOX = """set -e
root=$1; size=$2; shift 2
mount -t tmpfs -o "size=$size,mode=755" tmpfs "$root"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}"; : > "$root$1"; fi
  mount --bind -o ro "$1" "$root$1"
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
    """What a program may use.

    Args:
        cpu_seconds: of processor time, per process.
        wall_seconds: until everything is killed.
        memory_mb: address space per process, in 2^20 bytes.
        processes: processes and threads at one time; none but the first under "python".
        file_mb: size of one file; under "namespaces" of all files together.
        output_bytes: of standard output and error together; a program that writes more is killed.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 20.0
    memory_mb: int = 512
    processes: int = 16
    file_mb: int = 8
    output_bytes: int = 64_000


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
    isolation: str = "namespaces",
) -> Verdict:
    """Runs a program, then calls its function `entry_point` once per test.

    Args:
        tests: (arguments, expected value) pairs of JSON values. Equal means `==`, floats to 1e-9.
        isolation: see the module; no weaker one is chosen on its own.

    Raises:
        SandboxError: this system does not offer the isolation.
    """
    require(isolation)
    if not tests:
        raise InvalidRequestError("no tests: every program would pass; give at least one")
    return _run(source, entry_point, tests, limits, isolation)


def require(isolation: str) -> None:
    """Raises SandboxError if an isolation does not work here, InvalidRequestError if it is none."""
    if isolation not in ISOLATIONS:
        raise InvalidRequestError(f"isolation={isolation!r} does not exist: choose {ISOLATIONS}")
    if isolation not in available():
        raise SandboxError(
            f"isolation={isolation!r} does not work here, only {available()}: 'namespaces' needs "
            "Linux, util-linux and permission to create namespaces (Ubuntu grants it with `sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0`); choose 'python' only for programs "
            "that you would run without a sandbox"
        )


@cache
def available() -> tuple[str, ...]:
    """The isolations that work here, found by running a program under each, the strongest first."""
    if os.name != "posix":
        return ()
    found = []
    probe = "import os\ndef f():\n    return os.listdir('.')"
    for isolation in ISOLATIONS:
        with contextlib.suppress(SandboxError):
            if _run(probe, "f", [((), [])], Limits(), isolation).outcome == "passed":
                found.append(isolation)
    return tuple(found)


def _run(source, entry_point, tests, limits: Limits, isolation: str) -> Verdict:
    nonce = secrets.token_hex(16)
    job = {
        "nonce": nonce,
        "source": source,
        "entry_point": entry_point,
        "inputs": [list(arguments) for arguments, _ in tests],
        "limits": _resource_limits(limits, isolation),
        "audit": isolation == "python",
    }
    with tempfile.TemporaryDirectory(prefix="box-", ignore_cleanup_errors=True) as folder:
        root, job_file = Path(folder) / "root", Path(folder) / "job.json"
        root.mkdir()
        job_file.write_text(json.dumps(job), encoding="utf-8")
        read, write = os.pipe()
        with open(job_file, "rb") as job_input, os.fdopen(read, "rb", buffering=0) as answers:
            job_file.unlink()
            try:
                process = subprocess.Popen(
                    _command(root, limits, isolation, write),
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
                code, cpu_seconds = _end(process, patient=not stopped)
    said = _records(sent, nonce.encode())
    if not said:
        why = output.decode("utf-8", "replace").strip()[-300:] or stopped or f"exit code {code}"
        raise SandboxError(f"the sandbox did not start ({why}): see `sandbox.available()`")
    number = -code if code < 0 else max(0, code - 128)  # shells add 128 to a signal's number
    if not stopped and number == signal.SIGKILL and cpu_seconds > limits.cpu_seconds - 0.5:
        stopped = "processor time used up"
    return judge(said, tests, stopped or (f"ended by signal {number}" if number else ""))


def _resource_limits(limits: Limits, isolation: str) -> dict[str, int]:
    memory = {"RLIMIT_AS": int(limits.memory_mb * 2**20)}
    return {
        **(memory if sys.platform != "darwin" else {}),  # macOS refuses to set it
        "RLIMIT_CPU": math.ceil(limits.cpu_seconds),
        "RLIMIT_FSIZE": int(limits.file_mb * 2**20),
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        # Without a user namespace this counts everything the user runs, so only none is certain.
        "RLIMIT_NPROC": int(limits.processes) if isolation == "namespaces" else 0,
    }


def _command(root: Path, limits: Limits, isolation: str, answers: int) -> list[str]:
    worker = Path(__file__).with_name("sandbox_worker.py").read_text(encoding="utf-8")
    python = os.path.realpath(sys.executable)
    flags = ["-P", "-s", "-S", "-B", "-X", "utf8", "-c"]
    if isolation == "python":
        return [python, *flags, worker, str(answers)]
    prefix = os.path.realpath(sys.base_prefix)
    shown = [path for path in _SYSTEM if os.path.exists(path)]
    if not f"{prefix}/".startswith("/usr/"):
        shown.append(prefix)
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
        *("sh", "-c", _BOX, "box", str(root), str(int(limits.file_mb * 2**20)), *shown, "--"),
        *(*drop, python, *flags, _ENTER_BOX + worker, str(answers)),
    ]


def _listen(process: subprocess.Popen, answers, limits: Limits, nonce: bytes):
    """Reads until both pipes close or a limit is hit.

    Returns:
        The bytes of answers and of output, and why the run has to be stopped, or "".
    """
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
                stopped = WALL_TIME
            for key, _ in selector.select(left) if left > 0 else ():
                pipe = key.fileobj
                chunk = pipe.read(65536)
                read[pipe] += chunk
                if len(read[pipe]) > caps[pipe]:
                    stopped = TOO_MUCH_OUTPUT
                    del read[pipe][caps[pipe] :]
                if not chunk:
                    selector.unregister(pipe)
    return *map(bytes, read.values()), stopped


def _end(process: subprocess.Popen, patient: bool) -> tuple[int, float]:
    """Kills the whole group, if `patient` after a moment to end by itself.

    Returns:
        The exit code, negative for a signal, and the processor time in seconds.
    """
    pid, patience = process.pid, time.monotonic() + 1.0
    # The leader is not reaped before the kill, so that its number cannot be somebody else's.
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while patient and time.monotonic() < patience and not os.waitid(os.P_PID, pid, options):
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _records(sent: bytes, nonce: bytes) -> list[dict]:
    """The records in lines behind the nonce; lines that are none are left out."""
    found = []
    for line in sent.split(b"\n"):
        if line.startswith(nonce):
            # A line that the program itself wrote, or cut, may hold anything.
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line[len(nonce) :]))
    return [record for record in found if isinstance(record, dict)]


def judge(said: list[dict], tests: Sequence[tuple[Sequence, Any]], stopped: str = "") -> Verdict:
    """The verdict over a run's records. The first answer to a test counts.

    Args:
        stopped: why the run did not end by itself; empty where it did.
    """
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
        outcome, reason = "error", f"did not load: {not_loaded[0]}"
    elif len(problems) < len(tests):
        outcome, reason = "error", f"ended after {len(problems)} of {len(tests)} tests"
    else:
        outcome, reason = ("failed", wrong[0]) if wrong else ("passed", "")
    return Verdict(outcome, reason, len(problems) - len(wrong), len(tests))


def _problem(record: dict, expected) -> str:
    """What is wrong with the answer to one test; empty if nothing."""
    if "answer" not in record:
        return f"raised {str(record.get('raised'))[:200]}"
    try:
        answer = _decode(record["answer"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return "sent no readable answer"
    return "" if _equal(answer, expected) else f"gave {answer!r:.120}, expected {expected!r:.120}"


def _decode(value):
    """The inverse of `sandbox_worker.encode`."""
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "dict":
            return {_decode(key): _decode(item) for key, item in content}
        return {"tuple": tuple, "set": frozenset}[kind](_decode(content))
    return value


def _equal(answer, expected) -> bool:
    if isinstance(answer, float) and isinstance(expected, int | float):
        return math.isclose(answer, expected, rel_tol=1e-9, abs_tol=1e-9)
    if type(answer) is type(expected) is list:
        return len(answer) == len(expected) and all(map(_equal, answer, expected))
    if type(answer) is type(expected) is dict:
        return answer.keys() == expected.keys() and all(
            _equal(answer[key], expected[key]) for key in answer
        )
    return answer == expected

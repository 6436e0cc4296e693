"""What runs inside the sandbox: limits first, then the program, then one answer per test.

Knows only the job on its standard input and the pipe for answers; imports nothing of the project,
since `sandbox` hands its text to a bare interpreter. It is told no expected values: a program that
takes this module over can send answers, and right ones are all it could send.
"""

import json
import os
import sys

MAX_DEPTH = 50  # of nested containers in an answer
# Refused under isolation="python": the beginnings of names of audit events.
_FORBIDDEN = (
    *("socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("os.system", "os.kill", "os.putenv", "signal.", "pty.", "shutil.", "syslog.", "webbrowser."),
    *("gc.", "sqlite3.", "mmap.", "resource.", "sys.setprofile", "sys.settrace"),
)
_ON_PATHS = (
    *("open", "os.chdir", "os.chflags", "os.chmod", "os.chown", "os.link", "os.listdir"),
    *("os.listxattr", "os.lockf", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"),
    *("os.setxattr", "os.symlink", "os.truncate", "os.utime", "os.walk", "glob.glob"),
)
_FORBIDDEN_IMPORTS = ("ctypes", "_ctypes", "_posixsubprocess", "_testcapi")
_READ_ONLY = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def set_limits(limits: dict) -> None:
    """Resource limits by name, soft and hard at once so that they cannot be raised again."""
    import resource

    for name, value in limits.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))


def refuse_by_audit(box: str) -> None:
    """Raises PermissionError on sockets, processes, and files outside `box`, for good.

    Imports may still read the standard library.
    """
    library = tuple(os.path.realpath(path) for path in sys.path if path)
    box = os.path.realpath(box)

    def within(path, folders) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return any(real == folder or real.startswith(folder + os.sep) for folder in folders)

    def hook(event, arguments):
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if event == "import" and arguments[0] in _FORBIDDEN_IMPORTS:
            raise PermissionError(f"import {arguments[0]} is not allowed in the sandbox")
        if event not in _ON_PATHS:
            return
        paths = [a for a in arguments if isinstance(a, (str, bytes)) or hasattr(a, "__fspath__")]
        reads = event in ("os.listdir", "os.scandir")
        if event == "open":
            paths = paths[:1]  # the second is a mode
            reads = not (arguments[2] or 0) & _READ_ONLY
        for path in paths:
            if not within(path, (box, *library) if reads else (box,)):
                raise PermissionError(f"{event} outside the sandbox is not allowed: {path!r}")

    sys.addaudithook(hook)


def encode(value, depth: int = 0):
    """A value as JSON that tells lists, tuples, sets and dictionaries apart; plain types only.

    Raises:
        TypeError: another type, or nested too deeply.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth < MAX_DEPTH:
        if type(value) is list:
            return [encode(v, depth + 1) for v in value]
        if type(value) is tuple:
            return {"tuple": [encode(v, depth + 1) for v in value]}
        if type(value) in (set, frozenset):
            return {"set": [encode(v, depth + 1) for v in value]}
        if type(value) is dict:
            return {
                "dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]
            }
    raise TypeError(f"the answer is no plain value: {type(value).__name__} at depth {depth}")


def main(answers_to: int) -> None:
    """Runs the job on standard input; returns never."""
    job = json.loads(sys.stdin.read())
    answers = os.fdopen(answers_to, "w", encoding="utf-8", errors="backslashreplace")

    def say(record: dict) -> None:
        answers.write(job["nonce"] + json.dumps(record) + "\n")
        answers.flush()

    say({"started": True})
    set_limits(job["limits"])
    if job["audit"]:
        refuse_by_audit(os.getcwd())
    namespace = {"__name__": "program"}
    try:
        exec(compile(job["source"], "program.py", "exec"), namespace)
        function = namespace[job["entry_point"]]
    except BaseException as error:
        say({"not_loaded": f"{type(error).__name__}: {error}"[:500]})
        os._exit(0)
    for number, arguments in enumerate(job["inputs"]):
        try:
            say({"test": number, "answer": encode(function(*arguments))})
        except BaseException as error:
            say({"test": number, "raised": f"{type(error).__name__}: {error}"[:500]})
    sys.stdout.flush()
    os._exit(0)  # not waiting for threads


if __name__ == "__main__":
    main(int(sys.argv[1]))

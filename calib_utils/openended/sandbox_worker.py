"""What runs inside the sandbox: limits first, then the program, then one answer per test.

Knows only the job on its standard input and the pipe for answers; imports nothing of the project,
since `sandbox` hands its text to a bare interpreter. It is told no expected values: a program that
takes this module over can send answers, and right ones are all it could send.
"""

import json
import os
import sys

MAX_DEPTH = 50  # of nested containers in an answer
_JOIN_SESSION_KEYRING = 1


def set_limits(limits: dict) -> None:
    """Resource limits by name, soft and hard at once so that they cannot be raised again."""
    import resource

    for name, value in limits.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))


def leave_key_ring() -> None:
    """Takes an empty session key ring: the caller's is inherited, and no namespace hides it."""
    import ctypes
    import errno

    keyctl = {"x86_64": 250, "ppc64le": 271, "s390x": 280}.get(os.uname().machine, 219)
    libc = ctypes.CDLL(None, use_errno=True)
    # Where the kernel has no keys or refuses the call, the program reaches none either.
    refused = libc.syscall(keyctl, _JOIN_SESSION_KEYRING, None) < 0
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
    if depth < MAX_DEPTH:
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


def main(answers_to: int) -> None:
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


if __name__ == "__main__":
    main(int(sys.argv[1]))

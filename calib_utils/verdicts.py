"""From what a sandboxed program answered, and how it ended, to a verdict.

Bytes and expected values in, a `Verdict` out. Runs nothing. Whatever the program sent is taken as
an answer to compare, never as a verdict.
"""

import contextlib
import json
import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WALL_TIME, TOO_MUCH_OUTPUT = "wall time", "too much output"


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    `outcome` is `passed` (every answer right), `failed` (all tests ran, an answer is wrong or an
    exception), `error` (the program did not load, or ended before its tests), `timeout` (processor
    or wall time) or `killed` (by a signal, or for too much output); `reason` says it in words.
    `output` is what it printed, cut at the limit.
    """

    outcome: str
    reason: str
    n_passed: int
    n_tests: int
    output: str
    isolation: str


@dataclass(frozen=True)
class End:
    """How a process ended: why we stopped it or "", the signal or 0, and whether its processor time
    was used up."""

    stopped: str
    signal: int
    out_of_time: bool


def read_answers(sent: bytes, nonce: bytes) -> list[dict]:
    """The records in lines behind the nonce; lines that are none are left out."""
    found = []
    for line in sent.split(b"\n"):
        if line.startswith(nonce):
            # A line that the program itself wrote, or cut, may hold anything.
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line[len(nonce) :]))
    return [record for record in found if isinstance(record, dict)]


def judge(
    said: list[dict],
    tests: Sequence[tuple[Sequence, Any]],
    end: End,
    output: str = "",
    isolation: str = "",
) -> Verdict:
    """The verdict over a run's records. The first answer to a test counts."""
    problems: dict[int, str] = {}
    for record in said:
        number = record.get("test")
        if type(number) is int and 0 <= number < len(tests):
            problems.setdefault(number, _problem(record, tests[number][1]))
    n_passed = sum(not problem for problem in problems.values())
    outcome, reason = _outcome(said, problems, len(tests), end)
    return Verdict(outcome, reason, n_passed, len(tests), output, isolation)


def _outcome(said, problems: dict[int, str], n_tests: int, end: End) -> tuple[str, str]:
    if end.stopped == WALL_TIME:
        return "timeout", "wall time used up"
    if end.stopped:
        return "killed", end.stopped
    if end.signal == signal.SIGKILL and end.out_of_time:
        return "timeout", "processor time used up"
    if end.signal:
        return "killed", f"ended by signal {end.signal}"
    for record in said:
        if "not_loaded" in record:
            return "error", f"did not load: {record['not_loaded']}"
    if len(problems) < n_tests:
        return "error", f"ended after {len(problems)} of {n_tests} tests"
    wrong = [f"test {i + 1} {problems[i]}" for i in sorted(problems) if problems[i]]
    return ("failed", wrong[0]) if wrong else ("passed", "")


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

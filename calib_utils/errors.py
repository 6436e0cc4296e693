"""Every error a user can meet, under one base; each message names the value and what to do.

Knows nothing else of the project.
"""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral

_LONGEST = 200  # characters of a name in a message


class CalibUtilsError(Exception):
    """Base of all errors raised on purpose by `calib_utils`."""


class UnknownNameError(CalibUtilsError, LookupError):
    """A model, task or rule name that does not exist; the message lists near matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = ""):
        known = list(known)
        near = difflib.get_close_matches(str(name)[:_LONGEST], known, n=3, cutoff=0.5)
        text = f"unknown {kind} {str(name)[:_LONGEST]!r}."
        text += f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        text += f" Known: {', '.join(known)}." if known else ""
        text += f" {hint}" if hint else ""
        super().__init__(text)


class InvalidTaskError(CalibUtilsError, ValueError):
    """A task with no answers, empty or duplicate answers, or an unreadable task file."""


class InvalidRuleError(CalibUtilsError, ValueError):
    """A cutoff parameter out of range, or rules that contradict or repeat each other."""


class InvalidRequestError(CalibUtilsError, ValueError):
    """An argument of a computation out of range, such as a temperature or a batch size of 0."""


class TokenizationError(CalibUtilsError, ValueError):
    """An answer whose tokens in context cannot be told apart from the prompt's or another's."""


class HubUnreachableError(CalibUtilsError, ConnectionError):
    """Model files could not be fetched; the message names what works without the hub."""


class CacheError(CalibUtilsError, OSError):
    """Model files that cannot be kept in the cache: no permission, or no space."""


class HashMismatchError(CalibUtilsError, ValueError):
    """Bytes that are not the bytes they claim to be (weights or stored results)."""


class ModelFormatError(CalibUtilsError, ValueError):
    """A model folder or file that cannot be loaded safely (only safetensors and GGUF are)."""


class DeviceError(CalibUtilsError, ValueError):
    """A device or dtype this machine or torch build does not offer."""


class OutOfMemoryError(CalibUtilsError, MemoryError):
    """The forward pass does not fit; the message names the batch size that was tried."""


class ResultsError(CalibUtilsError, ValueError):
    """A stored table that is foreign, stale, corrupt or breaks an invariant."""


class NotebookParameterError(CalibUtilsError, ValueError):
    """A notebook parameter that does not exist or does not parse."""


class EndpointError(CalibUtilsError, ConnectionError):
    """A chat endpoint that cannot be used; the message never holds the key."""


class RefusedRequestError(EndpointError):
    """One request that the endpoint will not answer; others may still succeed."""


class LogProbabilityError(EndpointError):
    """An endpoint whose log-probabilities are missing or are not those of the given text."""


class JudgeError(CalibUtilsError, ValueError):
    """Items that cannot be judged, a judge that fails on known texts, or labels that are none."""


class SandboxError(CalibUtilsError, RuntimeError):
    """Programs cannot be isolated on this system; the message says why."""


class NoCheckoutError(CalibUtilsError, FileNotFoundError):
    """Something that needs a clone of the project, asked of an installed package elsewhere."""


class BookBuildError(CalibUtilsError, RuntimeError):
    """The book cannot be written, or Sphinx reported an error or a warning."""


class NotReproducedError(CalibUtilsError, ValueError):
    """Numbers computed on this machine are not the stored ones, within the tolerance."""


def whole_number(name: str, value, least: int = 1, most: float = math.inf) -> int:
    """`value` as an int, or InvalidRequestError where it is no whole number within these bounds."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise InvalidRequestError(f"{name}={value!r}: must be a whole number, {bounds}")
    return int(value)

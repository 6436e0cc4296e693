"""Whether an endpoint's log-probabilities can be trusted, found out by asking it twice.

Several servers return none, or those of the neighbouring token, without an error. A continuation
is sampled with its log-probabilities; then the whole text is sent back to be scored. Both must
agree token by token, and must not agree as well one token to the side. Judges need none of this:
they read text only.
"""

import math

import numpy as np
import pandas as pd

from calib_utils.endpoint import Endpoint
from calib_utils.errors import EndpointError, LogProbabilityError

KNOWN_TEXT = "The three primary colours are red, yellow and"
# Nats. The same model in bfloat16 moves by up to 0.4 a token between two ways of batching.
TOLERANCE = 0.5
_LENGTH = 24  # tokens sampled
# Warm enough that the tokens' log-probabilities differ, so that a shift shows.
_TEMPERATURE = 1.5
_REMEDY = "do not use this server's log-probabilities (judges, which read text, may use it)"


def probe_log_probabilities(endpoint: Endpoint, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """The sampled tokens with both log-probabilities, in nats, where the two agree.

    Returns:
        Columns `token`, `generated` and `given`.

    Raises:
        LogProbabilityError: refused, missing, positive, of another text, disagreeing or shifted.
    """
    asked = {"logprobs": 1, "temperature": _TEMPERATURE, "max_tokens": _LENGTH, "seed": 0}
    sampled = _tokens(endpoint, {"prompt": KNOWN_TEXT, **asked}, "a sampled continuation")
    text = KNOWN_TEXT + "".join(sampled["token"])
    echo = {"prompt": text, **asked, "max_tokens": 1, "echo": True}
    given = _tokens(endpoint, echo, "a given text")
    start = _find(list(given["token"]), list(sampled["token"]))
    apart = {
        shift: _distance(sampled["logprob"], given["logprob"], start + shift)
        for shift in (-1, 0, 1)
    }
    if apart[0] > tolerance:
        raise LogProbabilityError(
            f"{endpoint.base_url}: a token's log-probability differs by {apart[0]:.2f} nats "
            f"between sampling it and scoring it as given (one token to the left "
            f"{apart[-1]:.2f}, to the right {apart[1]:.2f}); {_REMEDY}"
        )
    if min(apart[-1], apart[1]) <= tolerance:
        raise LogProbabilityError(
            f"{endpoint.base_url}: the sampled tokens are too alike to tell whether the "
            f"log-probabilities are shifted; {_REMEDY}"
        )
    own = given["logprob"].iloc[start : start + len(sampled)].to_numpy()
    return sampled.rename(columns={"logprob": "generated"}).assign(given=own)


def _tokens(endpoint: Endpoint, fields: dict, what: str) -> pd.DataFrame:
    """Tokens and their log-probabilities; the first of a given text has none (NaN)."""
    where = f"{endpoint.base_url}: log-probabilities of {what}"
    try:
        answer = endpoint.post("completions", fields, lambda found: found)
    except EndpointError as error:
        raise LogProbabilityError(f"{where} are refused ({error}); {_REMEDY}") from error
    try:
        found = answer["choices"][0]["logprobs"]
        tokens, values = found["tokens"], found["token_logprobs"]
        pairs = list(zip(map(str, tokens), values, strict=True))
    except (LookupError, TypeError, ValueError):
        raise LogProbabilityError(f"{where} are missing; {_REMEDY}") from None
    for place, (token, value) in enumerate(pairs):
        first = place == 0 and fields.get("echo")
        known = type(value) in (int, float) and math.isfinite(value) and value <= 1e-6
        if not known and not (first and value is None):
            raise LogProbabilityError(f"{where}: {value!r} for {token!r}; {_REMEDY}")
    return pd.DataFrame(pairs, columns=["token", "logprob"]).astype({"logprob": float})


def _find(tokens: list[str], wanted: list[str]) -> int:
    """Where the sampled tokens stand in the scored text: after its first token, from the end."""
    for start in range(len(tokens) - len(wanted), 0, -1):
        if wanted and tokens[start : start + len(wanted)] == wanted:
            return start
    raise LogProbabilityError(f"the sampled tokens are not found in the given text; {_REMEDY}")


def _distance(sampled: pd.Series, given: pd.Series, start: int) -> float:
    """Largest difference when the given tokens from `start` on are laid beside the sampled ones."""
    beside = given.reindex(range(start, start + len(sampled))).to_numpy()
    return float(np.nanmax(np.abs(beside - sampled.to_numpy())))

"""The same open question asked many times: which answers come, how many, how many are unseen.

Texts in, counts and estimates with intervals out, whoever wrote the texts. `ask` draws them from a
model. Knows nothing of which answers are right.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from calib_utils import completions, drawing
from calib_utils.errors import InvalidRequestError
from calib_utils.models import Model, load_model
from calib_utils.sampling import share_interval

CITY_PROMPT = "Name a random city in the world"  # Fig. 11
N_RESAMPLES, Z = 500, 1.96
_TAIL = 40.0  # e^-40 is nothing beside what is summed


class Estimate(NamedTuple):
    """A value and a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Repeats:
    """How often each answer came, the most frequent first, and what follows from it.

    `top_share` is the share of the most frequent answer, `effective` the effective number of
    answers exp(H) corrected for those unseen, `effective_seen` the same of the counts as they are,
    `unseen` the probability that the next answer is a new one.
    """

    counts: pd.Series  # answer -> how often
    top_share: Estimate
    effective: Estimate
    effective_seen: float
    unseen: Estimate

    @property
    def n(self) -> int:
        """Answers given."""
        return int(self.counts.sum())

    @property
    def seen_once(self) -> int:
        """Answers that came once."""
        return int((self.counts == 1).sum())


def ask(
    model: Model | str,
    prompt: str = CITY_PROMPT,
    n: int = 200,
    *,
    temperature: float = 1.0,
    max_tokens: int = 32,
    seed: int = 0,
    results_dir: str | Path | None = None,
    name: str = "repeats",
) -> pd.DataFrame:
    """Replies of a model to one prompt, without cutoff.

    Args:
        results_dir: where to keep them, under `results_dir/<model>/texts/<name>`.

    Returns:
        Columns of `drawing.COLUMNS`.
    """
    model = load_model(model)

    def make(_: str) -> pd.DataFrame:
        options = {"temperature": temperature, "seed": seed}
        return drawing.draw(model, prompt, n, max_tokens, **options)

    folder = completions.folder_of(results_dir, model.key, name)
    start = drawing.message_start(model, prompt)
    asked = {"repeats": [start.ids, start.end_ids]}
    # Part of the identity of stored replies, though all are drawn without cutoff.
    request = {"n": n, "settings": "plain", "temperature": temperature, "seed": seed}
    request |= {"max_tokens": max_tokens, "own_settings": drawing.own_settings(model)}
    return drawing.kept(folder, drawing.record_of(model, asked, request), asked, make)


def plain_answer(text: str) -> str:
    """A reply's first line without case, markup, outer punctuation and repeated spaces.

    >>> plain_answer(" **Valparaíso**,  Chile.\\nIt lies by the sea.")
    'valparaíso, chile'
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r'[*_`#"“”]+', "", unicodedata.normalize("NFKC", line)).casefold()
    return re.sub(r"\s+", " ", line).strip(" .,;:!?'-–—")


def summarise(texts: Iterable[str], seed: int = 0) -> Repeats:
    """Counts of the answers (`plain_answer`) in some replies, with estimates.

    Args:
        seed: of the bootstrap.

    Raises:
        InvalidRequestError: fewer than two replies.
    """
    answers = pd.Series([plain_answer(text) for text in texts], dtype=object)
    if len(answers) < 2:
        raise InvalidRequestError(f"{len(answers)} replies: at least two are needed")
    counts = answers.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    x = counts.to_numpy()
    top = Estimate(float(x[0] / x.sum()), *share_interval(int(x[0]), int(x.sum())))
    return Repeats(counts, top, effective_number(x, seed), float(np.exp(_plug_in(x))), unseen(x))


def effective_number(counts: np.ndarray, seed: int = 0) -> Estimate:
    """exp(H) of the distribution that the counts are a sample of, H in nats.

    H by the estimator of Chao, Wang and Jost (2013). Its spread is taken from samples of an
    estimated distribution in which the unseen mass is split evenly among an estimated number of
    unseen answers (Chao1), as in Chao et al. (2014); the interval is H plus and minus 1.96 of it.
    A plain bootstrap of the counts would lose rare answers twice.

    No estimator knows a long tail that the sample has not touched: where answers follow a power
    law, H comes out too low and the interval covers less often than it says (tests have a case).
    Read it together with `unseen`.
    """
    counts = np.asarray(counts)[np.asarray(counts) > 0]
    n = int(counts.sum())
    h = entropy(counts)
    drawn = np.random.default_rng(seed).multinomial(n, _completed(counts), size=N_RESAMPLES)
    spread = float(np.std([entropy(sample[sample > 0]) for sample in drawn], ddof=1))
    low = max(0.0, h - Z * spread)
    return Estimate(float(np.exp(h)), float(np.exp(low)), float(np.exp(h + Z * spread)))


def entropy(counts: np.ndarray) -> float:
    """H in nats from counts above 0, corrected for unseen answers (Chao, Wang & Jost 2013).

    >>> round(entropy(np.array([50, 50])), 3)
    0.698
    """
    counts = np.asarray(counts)
    n = int(counts.sum())
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n))])  # [k] = sum to k
    seen = float((counts / n * (harmonic[n - 1] - harmonic[counts - 1])).sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    if once == 0 or n < 2:
        return seen
    # a: the mean probability of an answer that came once, by Good's theory.
    a = 2 * twice / ((n - 1) * once + 2 * twice) if twice else 2 / ((n - 1) * (once - 1) + 2)
    q = 1.0 - a
    if q <= 0.0:
        return seen
    if a * n < 1:
        rest = q ** (1 - n) * (-np.log(a) - (q ** np.arange(1, n) / np.arange(1, n)).sum())
    else:  # the same series from its other end, where the difference above would cancel
        j = np.arange(1, int(_TAIL / a) + 2)
        rest = (q**j / (n - 1 + j)).sum()
    return seen + once / n * float(rest)


def unseen(counts: np.ndarray) -> Estimate:
    """The probability of a new answer, by Good and Turing: the share of answers that came once.

    The interval is Esty's (1983) with 1.96 standard deviations, but never nearer to 0 or 1 than
    3/n: in one sample of twenty a mass of 3/n is not drawn at all.
    """
    counts = np.asarray(counts)
    n = int(counts.sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    half = float(Z * np.sqrt(once * (1 - once / n) + 2 * twice) / n)
    value, least = once / n, min(1.0, 3 / n)
    low, high = min(value - half, 1 - least), max(value + half, least)
    return Estimate(value, max(0.0, low), min(1.0, high))


def _plug_in(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def _completed(counts: np.ndarray) -> np.ndarray:
    """Estimated probabilities of the seen answers, shrunk, and of the unseen ones after them."""
    n = int(counts.sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    share = counts / n
    if once == 0:
        return share
    chao1 = once**2 / (2 * twice) if twice else once * (once - 1) / 2
    n_unseen = max(1, int(np.ceil((n - 1) / n * chao1)))
    pairs = (n - 1) * once
    missing = once / n * (pairs / (pairs + 2 * twice) if twice else 1 - 1 / n)
    shrink = (1 - share) ** n
    loss = (share * shrink).sum()
    seen = share * (1 - missing / loss * shrink) if loss > 0 else share * (1 - missing)
    seen = np.maximum(seen, 0.0)
    return np.concatenate(
        [seen * (1 - missing) / seen.sum(), np.full(n_unseen, missing / n_unseen)]
    )

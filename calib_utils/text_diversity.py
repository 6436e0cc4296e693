"""How different texts are: by the angle between their embeddings, and by shared n-grams.

Vectors or texts in, one number out (Table 1). Knows no model, no prompt and no validity. Self-BLEU
is sacrebleu's BLEU; only the counting of references is done here, once for all texts.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams

from calib_utils.errors import InvalidRequestError

_TOKENIZE = BLEU().tokenizer
_GROUP = 4  # texts compared at a time


def embedding_diversity(vectors: np.ndarray) -> float:
    """Mean over pairs of texts of 1 - cosine, in [0, n / (n - 1)]; NaN for fewer than two texts.

    A single pair ranges to 2, since a cosine may be negative. The mean over all pairs cannot: the
    cosines sum to |sum of unit vectors|^2 - n, at least -n. That identity also makes the cost
    linear in n.

    Args:
        vectors: [text, dimension]; need not have unit length.

    Raises:
        InvalidRequestError: a vector of length 0 or with values that are not finite.

    >>> embedding_diversity(np.array([[1.0, 0.0], [-2.0, 0.0]]))
    2.0
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    n = len(vectors)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InvalidRequestError(
            f"vectors of length {float(lengths.min()):g}: a cosine needs finite vectors other than "
            "0; leave out the texts behind them"
        )
    if n < 2:
        return float("nan")
    total = (vectors / lengths).sum(axis=0)
    # Equal vectors: rounding in the square must not make the mean negative.
    return max(float(1 - (total @ total - n) / (n * (n - 1))), 0.0)


def self_bleu(texts: Sequence[str], order: int = 4) -> float:
    """Mean BLEU of each text against all others, in [0, 1]: the n-gram order reading of "n = 4".

    High where texts repeat one another. It rises with the number of texts, since each one more is a
    reference more: compare equal numbers only. Tokens are those of sacrebleu's `13a` tokenizer,
    case is kept; a precision of 0 is smoothed exponentially, and a text shorter than `order` tokens
    is scored by the orders it has (sacrebleu's effective order).

    The scores equal those of `sacrebleu.BLEU.sentence_score` text by text. That would count every
    reference anew for each text, n^2 times; here an n-gram's largest count among the *other* texts
    is its largest or second largest count, so that all texts are counted once.

    Args:
        texts: at least two, else NaN.
        order: the longest n-gram.

    >>> round(self_bleu(["one of the two", "one of the two", "something else"]), 2)
    0.67
    """
    if len(texts) < 2:
        return float("nan")
    counted = [_counted(text, order) for text in texts]
    largest, second = Counter(), Counter()
    for ngrams, _ in counted:
        for ngram, count in ngrams.items():
            if count > largest[ngram]:
                largest[ngram], second[ngram] = count, largest[ngram]
            elif count > second[ngram]:
                second[ngram] = count
    lengths = Counter(length for _, length in counted)
    scores = []
    for ngrams, length in counted:
        correct, total = [0] * order, [0] * order
        for ngram, count in ngrams.items():
            # A text that holds the largest count has the second largest as its reference.
            other = second[ngram] if count == largest[ngram] else largest[ngram]
            total[len(ngram) - 1] += count
            correct[len(ngram) - 1] += min(count, other)
        closest = _closest_other(length, lengths)
        score = BLEU.compute_bleu(
            correct, total, length, closest, "exp", effective_order=True, max_ngram_order=order
        )
        scores.append(score.score / 100)
    return float(np.mean(scores))


def self_bleu_in_groups(texts: Sequence[str], rounds: int = 20, seed: int = 0) -> float:
    """Mean self-BLEU of four texts at a time: the other reading of "n = 4".

    The texts are shuffled and cut into groups, each text is scored against the others of its group,
    and what is left over sits out; the mean over `rounds` seeded shuffles. It does not depend on
    how many texts there are, but for chance.

    Args:
        texts: at least four, else NaN.
    """
    if len(texts) < _GROUP:
        return float("nan")
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(rounds):
        shuffled = [texts[i] for i in rng.permutation(len(texts))]
        starts = range(0, len(texts) - _GROUP + 1, _GROUP)
        scores += [self_bleu(shuffled[start : start + _GROUP]) for start in starts]
    return float(np.mean(scores))


@lru_cache(maxsize=10_000)  # a text is in one group of every round
def _counted(text: str, order: int) -> tuple[Counter, int]:
    """How often each n-gram up to an order occurs, and the number of tokens."""
    return extract_all_word_ngrams(_TOKENIZE(text.rstrip()), 1, order)


def _closest_other(length: int, lengths: Counter) -> int:
    """The length of another text that is nearest, the shorter of two: BLEU's reference length."""
    if lengths[length] > 1:
        return length
    return min((other for other in lengths if other != length), key=lambda o: (abs(o - length), o))

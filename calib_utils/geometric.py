"""The geometric model of a ranked next-token distribution (Def. F.1, Thm. F.4, Cor. F.5, F.6).

Branching numbers and validities in, losses and bounds out, in nats; and how near measured steps
come to the hypotheses. Knows `steps`; nothing of models or files.

At step t the token of rank i (from 0) has mass (1 - q) q^i with q = exp(-lambda / T), the same at
every prefix of the step, and the v valid tokens hold the first v ranks. The law has infinitely many
ranks: its mass beyond the vocabulary is invalid.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from calib_utils.errors import InvalidRequestError
from calib_utils.steps import Steps


def head_entropy(v, a) -> np.ndarray:
    """H_v(a): entropy of p(i) proportional to exp(-a i / v) over i < v (Def. F.1), in nats.

    Closed form, so v may be a whole vocabulary. `a` may be infinite: the entropy is then 0.

    >>> bool(np.isclose(head_entropy(7, 0.0), np.log(7)))
    True
    """
    v, a = np.broadcast_arrays(np.asarray(v, dtype=float), np.asarray(a, dtype=float))
    if (v < 1).any() or (a < 0).any():
        raise InvalidRequestError(f"head_entropy({v}, {a}): needs v >= 1 and a >= 0")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        step = a / v
        log_total = np.log(-np.expm1(-a)) - np.log(-np.expm1(-step))
        mean_rank = 1 / np.expm1(step) - v / np.expm1(a)
        entropy = log_total + step * mean_rank
        # The closed form cancels where the law is nearly even; its series about 0 does not.
        even = np.log(v) - step**2 * (v**2 - 1) / 24
    entropy = np.where(a < 1e-3, even, entropy)
    return np.where(np.isinf(a) | (v == 1), 0.0, entropy)


def head_loss(v, a) -> np.ndarray:
    """Delta_v(a) = ln v - H_v(a): diversity lost by one step, nondecreasing in a (Lemma F.3)."""
    return np.log(v) - head_entropy(v, a)


def diversity_bound(validity, branching: Sequence[int]) -> np.ndarray:
    """Theorem F.4 (5.2): the most diversity at a validity, exp(-sum of Delta_v(ln 1/eps)).

    It holds without cutoff, when at every step all prefixes have the same number of valid tokens
    and the same geometric law, and valid tokens rank first. eps = 1 - validity.

    Args:
        branching: v of every step; steps with one valid token cost nothing.
    """
    with np.errstate(divide="ignore"):
        return bound_at(-np.log1p(-np.asarray(validity, dtype=float)), branching)


def bound_at(nats, branching: Sequence[int]) -> np.ndarray:
    """`diversity_bound` by L = ln 1/eps itself, where validity has no digits left to tell it by."""
    return np.exp(-np.sum([head_loss(v, nats) for v in branching], axis=0))


def least_loss(eps) -> np.ndarray:
    """c(eps) of Corollary F.5 in closed form, ln 2 - h(1 / (1 + sqrt(eps))), in nats.

    Every step with two or more valid tokens costs at least this. It is Delta_2: the minimum over v
    lies at v = 2 wherever it was searched (`least_loss_by_search`).
    """
    with np.errstate(divide="ignore"):
        return head_loss(2, -np.log(np.asarray(eps, dtype=float)))


def least_loss_by_search(eps: float, most: int) -> tuple[float, int]:
    """(c, v): the least Delta_v(ln 1/eps) over 2 <= v <= most, and where it is attained."""
    v = np.arange(2, most + 1)
    losses = head_loss(v, -np.log(eps))
    return float(losses.min()), int(v[losses.argmin()])


def product_law(sharpness, branching: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(Val, Div) of the geometric model itself, its steps all equally sharp (Def. F.1).

    Args:
        sharpness: z = lambda v / T of every step, above 0.
        branching: v of every step.
    """
    z = np.asarray(sharpness, dtype=float)
    val = np.prod([-np.expm1(-z) for _ in branching], axis=0)
    return val, np.exp(-np.sum([head_loss(v, z) for v in branching], axis=0))


def at_validity(validity: float, branching: Sequence[int]) -> float:
    """Div of the geometric model with equally sharp steps whose validity is this one."""
    z = -np.log1p(-(validity ** (1 / len(branching))))
    return float(product_law(z, branching)[1])


def heads(steps: Steps) -> pd.DataFrame:
    """How the ranks and logits of the valid tokens stand to the hypotheses of Theorem F.4.

    Returns:
        One row per prefix with two or more valid tokens: `step` from 1; `branching` |G|;
        `in_order`, whether they hold the first ranks; `slope`, lambda of the least-squares line
        through the logits of the first |G| ranks; `r2` of that line, NaN for two tokens; `weight`,
        the share of V that passes here.
    """
    tokens, trie = steps.tokens, steps.tokens.trie
    rows = []
    for node in np.flatnonzero(np.diff(tokens.first) > 1):
        own = slice(tokens.first[node], tokens.first[node + 1])
        gap, v = steps.sorted_gap[own], int(tokens.first[node + 1] - tokens.first[node])
        rank = np.arange(v)
        line = np.polyfit(rank, gap, 1)
        spread = gap.var()
        left = np.var(gap - np.polyval(line, rank))
        rows.append(
            {
                "step": int(trie.node_depth[node]) + 1,
                "branching": v,
                "in_order": bool(steps.rank[own].max() < v),
                "slope": -float(line[0]),
                "r2": 1 - left / spread if v > 2 and spread > 0 else np.nan,
                "weight": trie.node_count[node] / trie.n_answers,
            }
        )
    columns = ["step", "branching", "in_order", "slope", "r2", "weight"]
    return pd.DataFrame(rows, columns=columns)


def hypotheses(found: pd.DataFrame) -> pd.DataFrame:
    """The hypotheses of Theorem F.4 step by step, from `heads`.

    Returns:
        Per step: prefixes, valid tokens (smallest and largest), the share of prefixes whose valid
        tokens hold the first ranks, the median R2 of a geometric head, and the smallest and
        largest sharpness lambda v at T = 1, which the theorem takes to be one number.
    """
    rows = []
    for step, own in found.groupby("step"):
        z = own.slope * own.branching
        rows.append(
            {
                "step": int(step),
                "prefixes": len(own),
                "fewest valid": int(own.branching.min()),
                "most valid": int(own.branching.max()),
                "valid first": float(own.in_order.mean()),
                "median R²": float(own.r2.median()),
                "least sharpness": float(z.min()),
                "median sharpness": float(z.median()),
                "most sharpness": float(z.max()),
            }
        )
    return pd.DataFrame(rows)

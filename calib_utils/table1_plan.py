"""What to generate for Table 1: which settings, how many texts, which first two tokens.

Grids and labelled candidates in, a list of work out. Runs no model and judges nothing.
"""

import zlib

import numpy as np
import pandas as pd

from calib_utils.errors import InvalidRequestError
from calib_utils.rules import (
    TABLE3_MIN_P,
    TABLE3_TEMPERATURES,
    TABLE3_TOP_K,
    TABLE3_TOP_P,
    MinP,
    NoCutoff,
    Rule,
    TopK,
    TopP,
)
from calib_utils.table1 import ORACLE

PAPER_TEXTS = 1000  # a setting, and valid first tokens of the oracle
_RUN = ["prompt_id", "category", "seed"]
_STRATEGIES: dict[str, list[Rule]] = {
    "top_k": [TopK(k) for k in TABLE3_TOP_K],
    "min_p": [MinP(p) for p in TABLE3_MIN_P],
    "top_p": [TopP(p) for p in TABLE3_TOP_P],
    "none": [NoCutoff()],
}


def plan_generations(
    prompt_ids: list[str],
    n_texts: int = 24,
    budget: int | None = 4,
    oracle_temperatures: tuple[float, ...] = (1.0,),
    seed: int = 0,
) -> pd.DataFrame:
    """The settings to run, the same for every prompt, and the number of texts of each.

    The defaults fit a laptop: four settings of each grid, drawn without replacement, so that every
    strategy has the same budget, and 24 texts a setting. `n_texts=PAPER_TEXTS, budget=None` is the
    paper's size: 72, 60, 48 and 12 settings.

    Args:
        prompt_ids: prompts, each under every setting.
        n_texts: texts per prompt and setting.
        budget: settings drawn from each strategy's grid of Table 3, at most 12; None takes all.
        oracle_temperatures: of the normal generation after the oracle's two steps; the paper does
            not give them.
        seed: of the draw, and of each row's own seed.

    Returns:
        A row per prompt and setting: prompt_id, strategy, rule (as `parse_rule` reads it; "none"
        after the oracle's steps), parameter, temperature, n_texts, seed (its own).

    Raises:
        InvalidRequestError: no or repeated prompts, fewer than 2 texts, or an impossible budget.
    """
    most = len(TABLE3_TEMPERATURES)
    if not prompt_ids or len(set(prompt_ids)) < len(prompt_ids) or n_texts < 2:
        raise InvalidRequestError(
            f"{len(prompt_ids)} prompts, {n_texts} texts a setting: needs different prompts, and "
            "at least 2 texts to compare"
        )
    if budget is not None and not 1 <= budget <= most:
        raise InvalidRequestError(
            f"budget {budget!r}: from 1 to {most} settings, the smallest grid, or None for all"
        )
    rng = np.random.default_rng(seed)
    settings = []
    for strategy, rules in _STRATEGIES.items():
        grid = [(strategy, rule, t) for rule in rules for t in TABLE3_TEMPERATURES]
        kept = range(len(grid)) if budget is None else sorted(rng.permutation(len(grid))[:budget])
        settings += [grid[i] for i in kept]
    settings += [(ORACLE, NoCutoff(), t) for t in oracle_temperatures]
    rows = [
        {
            "prompt_id": prompt,
            "strategy": strategy,
            "rule": rule.key,
            "parameter": rule.parameter,
            "temperature": t,
            "n_texts": n_texts,
            "seed": _seed_of(seed, prompt, strategy, rule.key, t),
        }
        for prompt in prompt_ids
        for strategy, rule, t in settings
    ]
    return pd.DataFrame(rows)


def oracle_second_sweep(candidates: pd.DataFrame, n_tokens: int, seed: int = 0) -> pd.DataFrame:
    """The valid first tokens to sweep once more: a uniform sample without replacement.

    Args:
        candidates: labelled candidates of a sweep, of which the rows of depth 1 count.
        n_tokens: nodes to sweep per prompt and seed; all valid ones where there are fewer.
        seed: of the sample.

    Returns:
        A row per node: prompt_id, category, seed, rank_1, and node, the path (rank_1,) that the
        next sweep's candidates carry.

    Raises:
        InvalidRequestError: n_tokens below 1.
    """
    if n_tokens < 1:
        raise InvalidRequestError(f"n_tokens {n_tokens!r}: at least 1 first token is swept again")
    rows = []
    for run, own in candidates[candidates.depth == 1].groupby(_RUN, sort=False, dropna=False):
        ranks = np.sort(own["rank"][own.valid].to_numpy())
        rng = np.random.default_rng(_seed_of(seed, *run, "second sweep"))
        for rank in np.sort(rng.permutation(ranks)[:n_tokens]).tolist():
            rows.append(dict(zip(_RUN, run, strict=True)) | {"rank_1": rank, "node": (rank,)})
    return pd.DataFrame(rows, columns=[*_RUN, "rank_1", "node"])


def oracle_paths(candidates: pd.DataFrame, n_texts: int, seed: int = 0) -> pd.DataFrame:
    """First two tokens for the oracle's texts: uniform over valid ones at both steps.

    The first token is drawn with replacement from those that were swept again and have a valid
    second token, then the second from that one's valid tokens: uniform per step, not over pairs.

    Args:
        candidates: labelled candidates of depth 1 and of the second sweep (depth 2), whose node is
            the path (rank of the first token,).
        n_texts: paths per prompt and seed.
        seed: of the draws.

    Returns:
        A row per text: prompt_id, category, seed, sample (from 0), rank_1, rank_2; none for a run
        without a valid pair.

    Raises:
        InvalidRequestError: a path whose first token is not valid at depth 1, or no texts.
    """
    if n_texts < 1:
        raise InvalidRequestError(f"n_texts {n_texts!r}: at least 1 path is drawn")
    parts = []
    for run, own in candidates.groupby(_RUN, sort=False, dropna=False):
        first = set(own["rank"][(own.depth == 1) & own.valid])
        pairs = own[(own.depth == 2) & own.valid]
        after = {node[0]: np.sort(rows["rank"].to_numpy()) for node, rows in pairs.groupby("node")}
        if foreign := sorted(set(after) - first):
            raise InvalidRequestError(
                f"{run}: ranks {foreign[:5]} were swept again but are not valid at depth 1; a "
                "token is valid where a valid text below it is, so label both depths together"
            )
        if not after:
            continue
        rng = np.random.default_rng(_seed_of(seed, *run, "paths"))
        one = rng.choice(sorted(after), size=n_texts)
        two = [rng.choice(after[rank]) for rank in one]
        drawn = pd.DataFrame({"sample": range(n_texts), "rank_1": one, "rank_2": two})
        for position, name in enumerate(_RUN):
            drawn.insert(position, name, run[position])
        parts.append(drawn)
    columns = [*_RUN, "sample", "rank_1", "rank_2"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _seed_of(*parts) -> int:
    """A seed of its own for each piece of work, the same whatever else is planned."""
    return zlib.crc32("|".join(map(str, parts)).encode())

"""What to generate for Table 1: which settings, how many texts, which first two tokens.

Grids and labelled candidates in, a list of work out. Runs no model and judges nothing.
"""

import zlib

import numpy as np
import pandas as pd

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
    seed: int = 0,
) -> pd.DataFrame:
    """The settings to run, the same for every prompt, and the number of texts of each.

    The defaults fit a laptop: four settings of each grid, drawn without replacement, so that every
    strategy has the same budget, and 24 texts a setting. `n_texts=1000, budget=None` is the paper's
    size: 72, 60, 48 and 12 settings. The paper does not give the temperature of the normal
    generation after the oracle's two steps; it is 1 here.

    Args:
        prompt_ids: prompts, each under every setting.
        n_texts: texts per prompt and setting.
        budget: settings drawn from each strategy's grid of Table 3, at most 12; None takes all.
        seed: of the draw, and of each row's own seed.

    Returns:
        A row per prompt and setting: prompt_id, strategy, rule (as `parse_rule` reads it; "none"
        after the oracle's steps), parameter, temperature, n_texts, seed (its own).
    """
    rng = np.random.default_rng(seed)
    settings = []
    for strategy, rules in _STRATEGIES.items():
        grid = [(strategy, rule, t) for rule in rules for t in TABLE3_TEMPERATURES]
        kept = range(len(grid)) if budget is None else sorted(rng.permutation(len(grid))[:budget])
        settings += [grid[i] for i in kept]
    settings.append((ORACLE, NoCutoff(), 1.0))
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


def forced_tokens(candidates: pd.DataFrame, n_texts: int, seed: int = 0) -> dict[str, list[tuple]]:
    """The oracle's first two tokens for each text of each prompt that has a valid pair.

    The first token is drawn with replacement from those with a valid second token, then the second
    from that one's valid tokens: uniform per step, not over pairs.

    Args:
        candidates: labelled candidates of depths 1 and 2 (`nodes.node_table`), one seed a prompt.
        seed: of the draws, which no other prompt changes.

    Returns:
        prompt_id -> `n_texts` pairs of token ids, in which one pair may occur again.
    """
    ids = candidates.set_index(["prompt_id", "node", "rank"]).token_id
    found: dict[str, list[tuple]] = {}
    for run, own in candidates.groupby(["prompt_id", "category", "seed"], sort=False):
        pairs = own[(own.depth == 2) & own.valid]
        after = {node[0]: np.sort(rows["rank"].to_numpy()) for node, rows in pairs.groupby("node")}
        if not after:
            continue
        rng = np.random.default_rng(_seed_of(seed, *run, "paths"))
        one = rng.choice(sorted(after), size=n_texts)
        two = [rng.choice(after[rank]) for rank in one]
        found[run[0]] = [
            (int(ids[run[0], (), first]), int(ids[run[0], (first,), second]))
            for first, second in zip(one, two, strict=True)
        ]
    return found


def _seed_of(*parts) -> int:
    """A seed of its own for each piece of work, the same whatever else is planned."""
    return zlib.crc32("|".join(map(str, parts)).encode())

"""Table 1: an oracle validity filter on the first two steps against cutoffs, on equal terms.

Labelled texts in, scores and comparisons out. Runs no model: texts are embedded by a function
given, and validity is whatever judge made the labels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from calib_utils import paths
from calib_utils.bootstrap import cluster_interval
from calib_utils.budgets import best_by_budget
from calib_utils.errors import InvalidRequestError
from calib_utils.text_diversity import embedding_diversity, self_bleu, self_bleu_in_groups

Embed = Callable[[Sequence[str]], np.ndarray]
ORACLE = "oracle"
SETTING = ["strategy", "parameter", "temperature"]
# Higher is more diverse in the first; lower in the others.
MEASURES = ("embedding_diversity", "self_bleu", "self_bleu_in_groups")
LEVEL = 0.8  # validity that a setting must have
_ROUNDING = 1e-9  # a mean of shares that is .8 may come out a hair below


def setting_scores(
    generations: pd.DataFrame,
    embed: Embed,
    n_valid: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Validity and the three diversities of every prompt under every setting.

    Each diversity is over the same number of texts, a seeded sample where there are more, since
    self-BLEU rises with their number. The paper does not say whether invalid texts are among them.

    Args:
        generations: a row per text: prompt_id, strategy, parameter (NaN where there is none),
            temperature, text, and a boolean valid.
        embed: texts to vectors [text, dimension], such as `Embedder.embed`; called once.
        n_valid: compare this many of the valid texts, so that nonsense does not count as diverse;
            a setting with fewer has no diversity at that prompt (NaN). By default as many of all
            texts as the smallest setting has.
        seed: of the samples.

    Returns:
        Columns prompt_id, strategy, parameter, temperature, n_generated, n_texts, validity,
        embedding_diversity, self_bleu, self_bleu_in_groups.
    """
    cells = list(generations.groupby(["prompt_id", *SETTING], sort=False, dropna=False))
    wanted = n_valid or min(len(own) for _, own in cells)
    rng = np.random.default_rng(seed)
    samples = []
    for _, own in cells:
        pool = own.text[own.valid] if n_valid else own.text
        few = len(pool) < wanted
        samples.append([] if few else [pool.iloc[i] for i in rng.permutation(len(pool))[:wanted]])
    unique = list(dict.fromkeys(text for sample in samples for text in sample))
    vectors = embed(unique) if unique else np.empty((0, 1))
    place = {text: i for i, text in enumerate(unique)}
    rows = []
    for (key, own), sample in zip(cells, samples, strict=True):
        row = dict(zip(["prompt_id", *SETTING], key, strict=True))
        row |= {"n_generated": len(own), "n_texts": len(sample), "validity": own.valid.mean()}
        row["embedding_diversity"] = embedding_diversity(vectors[[place[t] for t in sample]])
        row["self_bleu"] = self_bleu(sample)
        row["self_bleu_in_groups"] = self_bleu_in_groups(sample, seed=seed)
        rows.append(row)
    return pd.DataFrame(rows)


def settings_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Every setting's means over prompts, which are valid enough, and which is chosen.

    Chosen is, per strategy, the setting with the largest mean embedding diversity among those whose
    mean validity reaches `LEVEL`: one setting for all prompts. The oracle is held to the level
    where it can be; where no setting of it reaches the level, its most valid one is chosen, and
    `valid_enough` says so. A setting whose diversity is undefined at some prompt is not chosen.

    Raises:
        InvalidRequestError: settings that were not run on the same prompts.
    """
    prompts = set(scores.prompt_id)
    rows = []
    for key, own in scores.groupby(SETTING, sort=False, dropna=False):
        if set(own.prompt_id) != prompts or own.prompt_id.duplicated().any():
            raise InvalidRequestError(
                f"setting {dict(zip(SETTING, key, strict=True))} has {len(own)} rows for "
                f"{len(prompts)} prompts: every setting needs each prompt once"
            )
        means = own[["validity", *MEASURES]].mean(skipna=False)
        rows.append(dict(zip(SETTING, key, strict=True)) | means.to_dict())
    table = pd.DataFrame(rows)
    table["valid_enough"] = table.validity >= LEVEL - _ROUNDING
    best = [_best_setting(own) for _, own in table.groupby("strategy", sort=False)]
    return table.assign(chosen=table.index.isin([i for i in best if i is not None]))


def comparison(scores: pd.DataFrame) -> pd.DataFrame:
    """Table 1 from one's own texts: the chosen setting of each strategy, and equal budgets.

    Args:
        scores: of `setting_scores`.

    Returns:
        A row per strategy: parameter and temperature chosen, validity, tried (settings), usable
        (settings valid enough), n_prompts, each measure's mean with _sd over prompts and bootstrap
        interval _low and _high over prompts, at the chosen setting; budget, the size of the
        smallest grid beside the oracle's; best_of, the exact expected embedding diversity of the
        best of that many settings drawn from the grid, so that a larger grid is no advantage (0
        counted where none is valid enough), NaN where fewer were tried; held_out, the mean
        embedding diversity where each prompt's setting is chosen on the other prompts: noisy, but
        not flattered by choosing and judging on the same texts. NaN for a strategy without a usable
        setting.
    """
    table = settings_table(scores)
    sizes = table.groupby("strategy", sort=False).size()
    others = sizes.drop(ORACLE, errors="ignore")
    budget = int((others if len(others) else sizes).min())
    tried = table.rename(columns={"embedding_diversity": "diversity"})
    expected = best_by_budget(tried, LEVEL - _ROUNDING, by="strategy").set_index(
        ["strategy", "budget"]
    )["mean"]
    rows = []
    for strategy, own in table.groupby("strategy", sort=False):
        row = {"strategy": strategy, "tried": len(own), "usable": int(own.valid_enough.sum())}
        chosen = own[own.chosen]
        for name in ("parameter", "temperature", "validity"):
            row[name] = chosen[name].iloc[0] if len(chosen) else np.nan
        at = _at_chosen(scores, chosen)
        row["n_prompts"] = len(at)
        for name in MEASURES:
            found = cluster_interval(at, name, inner=None).columns(name)
            row |= {name: found.pop(name), f"{name}_sd": at[name].std(ddof=1)} | found
        row["held_out"] = _held_out(scores[scores.strategy == strategy])
        row |= {"budget": budget, "best_of": expected.get((strategy, budget), np.nan)}
        rows.append(row)
    return pd.DataFrame(rows)


def paired_differences(scores: pd.DataFrame) -> pd.DataFrame:
    """The oracle minus each strategy, prompt by prompt at the chosen settings.

    Returns:
        A row per strategy and measure: difference, low, high (bootstrap over prompts), n_prompts,
        in_favour (prompts where the oracle is the more diverse).
    """
    table = settings_table(scores)
    chosen = {s: own[own.chosen] for s, own in table.groupby("strategy", sort=False)}
    oracle = _at_chosen(scores, chosen.pop(ORACLE)).set_index("prompt_id")
    rows = []
    for strategy, setting in chosen.items():
        other = _at_chosen(scores, setting).set_index("prompt_id")
        for name in MEASURES:
            apart = (oracle[name] - other[name]).dropna()
            found = cluster_interval(apart.reset_index(), name, inner=None)
            better = apart > 0 if name == "embedding_diversity" else apart < 0
            rows.append(
                {
                    "strategy": strategy,
                    "measure": name,
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "n_prompts": found.n_outer,
                    "in_favour": int(better.sum()),
                }
            )
    return pd.DataFrame(rows)


def published_table1() -> pd.DataFrame:
    """Table 1 of the paper, with Table 3's numbers of settings; what ± is, it does not say."""
    return pd.read_csv(paths.package_data("published", "table1.csv"))


def _best_setting(own: pd.DataFrame) -> int | None:
    """Index of the strategy's chosen setting; None where none is valid enough to be compared."""
    usable = own[own.valid_enough].embedding_diversity.dropna()
    if len(usable):
        return usable.idxmax()
    return own.validity.idxmax() if own.strategy.iloc[0] == ORACLE else None


def _at_chosen(scores: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The scores of every prompt at the one chosen setting; no rows where none is chosen."""
    return scores.merge(chosen[SETTING], on=SETTING)


def _held_out(own: pd.DataFrame) -> float:
    """Mean diversity of prompts at the setting that is best on the others."""
    setting = own.groupby(SETTING, sort=False, dropna=False).ngroup()
    prompt = own.groupby("prompt_id", sort=False).ngroup()
    n_prompts = prompt.max() + 1
    if n_prompts < 2:
        return float("nan")
    wide = np.full((2, setting.max() + 1, n_prompts), np.nan)
    wide[:, setting, prompt] = own[["validity", "embedding_diversity"]].to_numpy().T
    validity, diversity = (wide.sum(axis=2, keepdims=True) - wide) / (n_prompts - 1)
    usable = (validity >= LEVEL - _ROUNDING) & np.isfinite(diversity)
    best = np.where(usable, diversity, -np.inf).argmax(axis=0)
    none = ~usable.any(axis=0)
    if own.strategy.iloc[0] == ORACLE:
        best = np.where(none, validity.argmax(axis=0), best)
        none[:] = False
    return float(np.where(none, np.nan, wide[1, best, np.arange(n_prompts)]).mean())

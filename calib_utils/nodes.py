"""From judged completions to candidates: which next tokens are valid at every node of a sweep.

Tables in, tables out. Knows nothing of models, judges or files.
"""

import pandas as pd

from calib_utils.errors import ResultsError

_TREE = ["prompt_id", "category", "seed"]
_CANDIDATE = [*_TREE, "depth", "node", "rank"]
COLUMNS = [*_CANDIDATE, "token_id", "log_p", "valid", "weight", "n_leaves", "n_unlabelled"]


def unique_texts(completions: pd.DataFrame) -> pd.DataFrame:
    """Each text once per prompt, for judges: identical completions are judged once.

    Returns:
        prompt_id, category, text, `ended` (whether any of them was closed by an end token) and
        `n_completions`, in the order of their first appearance.
    """
    groups = completions.groupby(["prompt_id", "category", "text"], sort=False)
    found = groups.agg(ended=("ended", "any"), n_completions=("ended", "size"))
    return found.reset_index()


def node_table(
    completions: pd.DataFrame, labels: pd.DataFrame, min_share: float | None = None
) -> pd.DataFrame:
    """Every candidate at every node, with the paper's rule for its validity (Sec. 4, App. A).

    A leaf is valid if its completion is; with several samples, if at least `min_share` of them
    are, by default one. A candidate is valid if some leaf below it is. Unknown stays unknown: a
    candidate is dropped where missing labels could change its verdict.

    Args:
        completions: columns of `completions.COLUMNS`.
        labels: prompt_id, text, valid (True, False or missing); one row per text at most.
        min_share: above 0, at most 1.

    Returns:
        prompt_id, category, seed, `depth` (the node's level from 1), `node` (tuple of ranks of
        the path to it), `rank`, `token_id`, `log_p`, `valid`, `weight` (leaves below known to be
        valid: the sweep's stand-in for N of Def. 4.1), `n_leaves` and `n_unlabelled` (leaves of
        unknown validity). `attrs["dropped"]` is the number of candidates dropped.

    Raises:
        ResultsError: two labels for one text.
    """
    leaves = _judged_leaves(completions, labels, min_share)
    levels = []
    for level in range(1, int(leaves.depth.max()) + 1 if len(leaves) else 1):
        here = leaves[leaves.depth >= level]
        levels.append(
            here.assign(
                depth=level,
                node=[path[: level - 1] for path in here.path],
                rank=[path[level - 1] for path in here.path],
                token_id=[int(ids[level - 1]) for ids in here.path_ids],
                log_p=[float(values[level - 1]) for values in here.path_log_p],
            )
        )
    if not levels:
        table = pd.DataFrame(columns=COLUMNS)
        table.attrs["dropped"] = 0
        return table
    groups = pd.concat(levels).groupby(_CANDIDATE, sort=True)
    table = groups.agg(
        token_id=("token_id", "first"),
        # Not a key: leaves of one candidate may differ in the last bit, from batch to batch.
        log_p=("log_p", "first"),
        weight=("is_valid", "sum"),
        n_leaves=("is_valid", "size"),
        n_unlabelled=("unknown", "sum"),
    ).reset_index()
    table["valid"] = table.weight > 0
    known = table.valid | (table.n_unlabelled == 0)
    kept = table.loc[known, COLUMNS].reset_index(drop=True)
    kept.attrs["dropped"] = int((~known).sum())
    return kept


def _judged_leaves(completions, labels, min_share) -> pd.DataFrame:
    """One row per path of forced tokens: whether it is valid, or unknown."""
    again = labels.duplicated(["prompt_id", "text"])
    if again.any():
        first = labels[again].iloc[0]
        raise ResultsError(
            f"two labels for one text of {first.prompt_id!r}: {first.text[:60]!r}; give one row "
            "per prompt_id and text"
        )
    verdicts = labels[["prompt_id", "text", "valid"]].astype({"valid": "boolean"})
    rows = completions.merge(verdicts, how="left", on=["prompt_id", "text"])
    rows["path"] = list(map(tuple, rows.path_ranks))
    rows["yes"] = rows.valid.fillna(False).astype(int)
    rows["missing"] = rows.valid.isna().astype(int)
    leaves = rows.groupby([*_TREE, "path"], sort=False).agg(
        depth=("depth", "first"),
        path_ids=("path_ids", "first"),
        path_log_p=("path_log_p", "first"),
        yes=("yes", "sum"),
        missing=("missing", "sum"),
        n=("yes", "size"),
    )
    # Fewer than one sample is no sample; the rest absorbs a share that is not a binary fraction.
    needed = 1 if min_share is None else (min_share * leaves.n - 1e-9).clip(lower=1)
    leaves["is_valid"] = leaves.yes >= needed
    leaves["unknown"] = ~leaves.is_valid & (leaves.yes + leaves.missing >= needed)
    return leaves.reset_index()

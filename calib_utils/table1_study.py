"""The study of Table 1: which prompts take part, their texts, labels, scores and comparisons.

Knows the parts by name and joins them. Decides no claim and draws nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import labelled, table1, table1_texts
from calib_utils.models import Model
from calib_utils.order_study import ITEMS, TEXTS, Study, judge_of
from calib_utils.table1 import Embed
from calib_utils.table1_plan import forced_tokens, plan_generations

MIN_VALID = 6  # valid texts compared where nonsense is left out


def texts_of(
    model: Model, study: Study, seed: int = 0, results_dir: str | Path | None = None
) -> dict[str, pd.DataFrame]:
    """Texts of every strategy by kind of prompt, `table1_texts.generate`'s with a boolean `valid`.

    A prompt without a valid opening, and a kind without such a prompt, is missing. A text that the
    judge leaves undecided counts as not valid.
    """
    found = {}
    for kind, sweep in zip((ITEMS, TEXTS), study.plan.oracle, strict=True):
        candidates = study.candidates[sweep.name]
        forced = forced_tokens(candidates, study.plan.n_texts, seed)
        prompts = {prompt.id: prompt for prompt in sweep.prompts}
        if not forced:
            continue
        plan = plan_generations(list(forced), study.plan.n_texts, study.plan.budget, seed=seed)
        name = f"table1-{sweep.name}"
        longest = sweep.depth + sweep.max_tokens
        options = {"end": sweep.end, "results_dir": results_dir, "name": name}
        drawn = table1_texts.generate(model, plan, prompts, forced, longest, **options)
        judge = judge_of(sweep.prompts)
        place = labelled.path_of(results_dir, model.key, name, judge)
        labels = labelled.labels_of(drawn, sweep.prompts, judge, place)
        valid = drawn.merge(labels, on=["prompt_id", "text"], how="left").valid
        found[kind] = drawn.assign(valid=valid.fillna(False).astype(bool).to_numpy())
    return found


def remembered(embed: Embed) -> Embed:
    """`embed` by which each text is embedded once, however often it is asked for."""
    known: dict[str, np.ndarray] = {}

    def look_up(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, embed(new), strict=True))
        return np.stack([known[text] for text in texts])

    return look_up


def scores_of(
    texts: dict[str, pd.DataFrame], embed: Embed, among: str = "all", seed: int = 0
) -> dict[str, pd.DataFrame]:
    """`table1.setting_scores` by kind of prompt.

    Args:
        among: `all` texts, or `MIN_VALID` of the `valid` ones of each prompt and setting.
    """
    n_valid = MIN_VALID if among == "valid" else None
    return {kind: table1.setting_scores(own, embed, n_valid, seed) for kind, own in texts.items()}


def comparisons(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`table1.comparison` of every kind, with the column kind in front."""
    return _each_kind(scores, table1.comparison)


def differences(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`table1.paired_differences` of every kind, with the column kind in front."""
    return _each_kind(scores, table1.paired_differences)


def compact(compared: pd.DataFrame) -> pd.DataFrame:
    """The columns of `comparisons` that a page shows."""
    if compared.empty:
        return compared
    wanted = [f"{name}{bound}" for name in table1.MEASURES for bound in ("", "_low", "_high")]
    first = ["kind", "strategy", "validity", *wanted]
    rest = ["parameter", "temperature", "tried", "usable", "n_prompts", "best_of", "held_out"]
    return compared[[*first, *rest]]


def _each_kind(scores: dict[str, pd.DataFrame], table) -> pd.DataFrame:
    parts = []
    for kind, own in scores.items():
        found = table(own)
        found.insert(0, "kind", kind)
        parts.append(found)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

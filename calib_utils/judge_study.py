"""How far a language model as judge can be trusted, against lists and a grammar checker (App. A.2).

Knows which texts to ask about and what is compared with what. Decides no claim.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import agreement, judges, labelled, pr_baselines
from calib_utils.labels import THRESHOLD
from calib_utils.nodes import unique_texts
from calib_utils.order_study import ITEMS, TEXTS, Study, judge_of

# App. A.2: the paper's judge against people; its errors of either kind are not given.
PAPER_ACCURACY = 0.809


def sample_texts(study: Study, kind: str, n: int, seed: int = 0) -> pd.DataFrame:
    """`n` different texts of the first sweep of a kind, half of them valid where there are enough.

    Half and half, since a judge that says no to all looks good where little is valid. Texts that
    the reference leaves undecided, and empty ones, are not asked about.

    Returns:
        prompt_id, category, text, ended, valid (the reference's), in a seeded order.
    """
    name = study.sweeps_of(kind)[0].name
    labels = study.labels[name]
    labels = labels[labels.valid.notna() & (labels.text.str.strip() != "")]
    rng = np.random.default_rng(seed)
    valid, rest = (rng.permutation(labels.index[labels.valid == value]) for value in (True, False))
    n_valid = min(len(valid), max(n // 2, n - len(rest)))
    chosen = np.concatenate([valid[:n_valid], rest[: n - n_valid]])
    categories = unique_texts(study.completions[name])[["prompt_id", "category", "text"]]
    found = labels.loc[rng.permutation(chosen)].merge(categories, on=["prompt_id", "text"])
    return found[["prompt_id", "category", "text", "ended", "valid"]].reset_index(drop=True)


def to_annotate(study: Study, n: int, seed: int = 0) -> pd.DataFrame:
    """A sample of either kind for `labels.write_sheet`, for people: prompt, text, ended."""
    parts = []
    for kind in (ITEMS, TEXTS):
        asked = {prompt.id: prompt.prompt for prompt in study.sweeps_of(kind)[0].prompts}
        own = sample_texts(study, kind, n, seed)
        parts.append(own.assign(prompt=own.prompt_id.map(asked))[["prompt", "text", "ended"]])
    return pd.concat(parts, ignore_index=True)


def judge_by_name(model: str, url: str = ""):
    """The judge of a page: behind an endpoint where a url is given, else run by this process.

    Args:
        model: what the endpoint calls it, or a chat model that `load_model` knows; empty: none.
        url: of an OpenAI-compatible server, its key taken from the environment.
    """
    if not model:
        return None
    return judges.endpoint_judge(url, model) if url else judges.local_judge(model)


def ask(
    study: Study,
    judge,
    seed: int = 0,
    results_dir: str | Path | None = None,
    model_key: str = "",
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Samples of items and of free texts, and a judge's labels of them: two tables by kind.

    Both are empty without a judge, or where the plan has no text judged.
    """
    samples, judged = {}, {}
    if judge is None or not study.plan.judged:
        return samples, judged
    for kind in (ITEMS, TEXTS):
        sweep = study.sweeps_of(kind)[0]
        samples[kind] = sample_texts(study, kind, study.plan.judged, seed)
        path = labelled.path_of(results_dir, model_key, f"judged-{sweep.name}", judge)
        judged[kind] = labelled.labels_of(samples[kind], sweep.prompts, judge, path)
    return samples, judged


def agreement_table(
    samples: dict[str, pd.DataFrame], judged: dict[str, pd.DataFrame], study: Study
) -> pd.DataFrame:
    """A judge against the references: on items by its verdict, on free texts by its grammar score.

    Args:
        samples: of `sample_texts`, by kind.
        judged: of `labelled.labels_of`, the same texts.

    Returns:
        A row per comparison: texts, reference, criterion, n, unreadable (share without a verdict),
        says_valid and reference_valid (shares), accuracy, f1 and alpha with _low and _high,
        always_invalid (accuracy of saying no to all), false_positive, false_negative (rates).
    """
    rows = []
    for kind, criterion in ((ITEMS, "all three"), (ITEMS, "semantics"), (TEXTS, "grammar")):
        if kind not in samples or not len(samples[kind]):
            continue
        own = samples[kind].merge(judged[kind], on=["prompt_id", "text"], suffixes=("", "_judge"))
        says = own.valid_judge if criterion == "all three" else own[criterion] >= THRESHOLD
        if says.notna().any():
            reference = judge_of(study.sweeps_of(kind)[0].prompts).name
            row = {"texts": kind, "reference": reference, "criterion": criterion}
            rows.append(row | _agreement(says, own.valid))
    return pd.DataFrame(rows)


def _agreement(says: pd.Series, reference: pd.Series) -> dict:
    found = agreement.compare(says, reference)
    low, high = agreement.alpha_interval(pd.DataFrame({"judge": says, "reference": reference}))
    positives = found.true_positive + found.false_negative
    return {
        "n": found.n,
        "unreadable": says.isna().mean(),
        "says_valid": (found.true_positive + found.false_positive) / found.n,
        "reference_valid": positives / found.n,
        "accuracy": found.accuracy,
        "accuracy_low": found.accuracy_interval[0],
        "accuracy_high": found.accuracy_interval[1],
        "always_invalid": 1 - positives / found.n,
        "f1": found.f1,
        "f1_low": found.f1_interval[0],
        "f1_high": found.f1_interval[1],
        "alpha": found.alpha,
        "alpha_low": low,
        "alpha_high": high,
        "false_positive": found.false_positive_rate,
        "false_negative": found.false_negative_rate,
    }


def noise_table(agreements: pd.DataFrame, prevalence: float, n: int = 1000) -> pd.DataFrame:
    """What a perfect order of `n` candidates would seem to have under judges that err.

    Rates of error: those measured on items here, and the paper's accuracy split evenly.

    Args:
        agreements: of `agreement_table`; may be empty.
        prevalence: share of candidates that are truly valid.

    Returns:
        A row per judge: judge, false_positive, false_negative, area, area_sd, recall_at,
        recall_at_sd, prevalence (as the judge sees it).
    """
    rates = {"errs like the paper's (19 % both ways)": (1 - PAPER_ACCURACY,) * 2}
    rates["errs in one text of ten"] = (0.1, 0.1)
    if len(agreements):
        own = agreements[agreements.criterion == "all three"]
        for row in own.dropna(subset=["false_positive", "false_negative"]).itertuples():
            rates["this page's judge on items"] = (row.false_positive, row.false_negative)
    n_valid = min(n, max(1, round(n * prevalence)))
    rows = []
    for judge, (false, miss) in rates.items():
        floor = pr_baselines.noise_floor(n, n_valid, false, miss)
        rows.append(
            {"judge": judge, "false_positive": false, "false_negative": miss, **vars(floor)}
        )
    return pd.DataFrame(rows)

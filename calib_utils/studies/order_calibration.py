"""What the chapter on order calibration runs: at a laptop's size, at the smoke test's, the paper's.

Knows prompts and sweeps. Runs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.core.metrics import DECIDES, as_text
from calib_utils.core.tasks import OpenPrompt
from calib_utils.models.loading import Model
from calib_utils.openended import judges, precision_recall, sweeps, table1, verifiers
from calib_utils.openended.precision_recall import UNWEIGHTED, WEIGHTED
from calib_utils.openended.prompts import open_prompts
from calib_utils.openended.sweeps import Sweep, log_ranks, node_table, unique_texts
from calib_utils.openended.table1 import LEVEL, Embed, forced_tokens, plan_generations
from calib_utils.openended.text_diversity import load_embedder
from calib_utils.openended.verifiers import THRESHOLD, GazetteerJudge, LanguageChecker
from calib_utils.results import conventions, records
from calib_utils.studies.reporting import (
    AGREEMENT,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    OURS,
    REPRODUCED,
    Finding,
    decided,
)

_ITEM_PROMPTS = tuple(prompt.id for prompt in open_prompts(["item"]))
_TEXT_PROMPTS = ("story-robot", "joke-cat", "poem-autumn", "plot-heist")
_ITEM_TOKENS, _TEXT_TOKENS = 12, 24


@dataclass(frozen=True)
class Plan:
    """Sweeps by their use, and the size of what is drawn for Table 1.

    `items` and `texts` hold one sweep per depth from 1; lists decide the former, a checker of
    grammar the latter. `drawn` completes the candidates of `greedy` by drawing (Fig. 7). The last
    sweeps of `oracle` give the valid first two tokens of Table 1.
    """

    items: tuple[Sweep, ...]
    texts: tuple[Sweep, ...]
    greedy: Sweep
    drawn: Sweep
    oracle: tuple[Sweep, ...]
    n_texts: int
    budget: int | None
    judged: int  # texts that the language model judges, of each kind

    @property
    def sweeps(self) -> list[Sweep]:
        """Each once, in the order in which they run."""
        every = [*self.items, *self.texts, self.greedy, self.drawn, *self.oracle]
        return list({sweep.name: sweep for sweep in every}.values())


def laptop(seed: int = 0, end: str = "eos") -> Plan:
    """A quarter of an hour on two cores for a model of half a billion parameters.

    Candidates at depth 1 are every tenth rank to 1,000 as in the paper. Deeper trees take ranks
    that are evenly spaced in their logarithm, so recall there is relative to those ranks. Trees
    start at the first token, for free texts also after 1 to 12 written ones.
    """
    items = {"seeds": (seed,), "max_tokens": _ITEM_TOKENS, "end": end}
    texts = {"max_tokens": _TEXT_TOKENS, "end": end}
    several = (2 * seed, 2 * seed + 1)  # disjoint for every seed
    few, many = {"ranks": range(0, 1000, 40)}, {"ranks": log_ranks(48, 1000)}
    two = {"depth": 2, "ranks": log_ranks(12, 1000)}
    three = {"depth": 3, "ranks": log_ranks(5, 1000)}
    inside = {"position": (1, 12)}
    tag = "" if seed == 0 else f"-seed{seed}"
    one = Sweep(_ITEM_PROMPTS, name=f"items-1{tag}", **items)
    pairs = Sweep(_ITEM_PROMPTS, name=f"items-2{tag}", **items, **two)
    openings = Sweep(_TEXT_PROMPTS, (seed,), name=f"openings-2{tag}", **texts, **two)
    return Plan(
        items=(one, pairs, Sweep(_ITEM_PROMPTS, name=f"items-3{tag}", **items, **three)),
        texts=(
            Sweep(_TEXT_PROMPTS, several, f"texts-1{tag}", **inside, **texts, **many),
            openings,
            Sweep(_TEXT_PROMPTS, (seed,), f"texts-3{tag}", **inside, **texts, **three),
        ),
        greedy=one,
        drawn=Sweep(_ITEM_PROMPTS, name=f"items-drawn{tag}", **few, n_samples=10, **items),
        oracle=(pairs, openings),
        n_texts=12,
        budget=4,
        judged=30,
    )


def quick(seed: int = 0, end: str = "eos") -> Plan:
    """The same parts in seconds, for smoke runs: no number of it means anything."""
    tag = f"-quick{seed or ''}"
    few = {"seeds": (seed,), "ranks": (0, 1, 8), "max_tokens": 4, "end": end}
    some, others = _ITEM_PROMPTS[:2], _TEXT_PROMPTS[:2]
    items = Sweep(some, name=f"items-2{tag}", depth=2, **few)
    texts = Sweep(others, name=f"openings-2{tag}", depth=2, **few)
    one = Sweep(some, name=f"items-1{tag}", **few)
    story = Sweep(others, name=f"texts-1{tag}", **few)
    drawn = Sweep(some, name=f"items-drawn{tag}", n_samples=2, **few)
    return Plan((one, items), (story, texts), one, drawn, (items, texts), 4, 1, 0)


def paper(prompts: tuple[OpenPrompt, ...], n_seeds: int = 10, max_tokens: int = 64) -> Sweep:
    """The paper's own sweep: depth 3, every tenth of 1,000 ranks, a million leaves a tree.

    The length of its completions is not given.
    """
    chosen = tuple(prompts[i % len(prompts)] for i in range(n_seeds))
    distinct = tuple(dict.fromkeys(chosen))
    seeds = tuple(range(-(-n_seeds // len(distinct))))
    return Sweep(distinct, seeds, "paper", position=(1, 32), depth=3, max_tokens=max_tokens)


# The study of Sec. 4: sweeps run, texts labelled, order measured at every node.
#
# Knows which judge labels what: a list decides item prompts, a checker of grammar the free texts.
# Decides no claim and draws nothing.

ITEMS, TEXTS = "items", "texts"
JUDGES = {ITEMS: "a list decides", TEXTS: "grammar only"}
SOURCES = ("greedy", "any of 10 drawn", "half of 10 drawn")
_SHOWN = 80  # characters of a text in a table


@dataclass(frozen=True)
class Study:
    """Completions, labels and labelled candidates of every sweep of a plan, by its name."""

    plan: Plan
    completions: dict[str, pd.DataFrame]
    labels: dict[str, pd.DataFrame]
    candidates: dict[str, pd.DataFrame]

    def sweeps_of(self, kind: str) -> tuple[Sweep, ...]:
        """The sweeps of item prompts or of free texts, by rising depth."""
        return self.plan.items if kind == ITEMS else self.plan.texts


def run(model: Model, plan: Plan, results_dir: str | Path | None = None) -> Study:
    """Everything of a plan, computed now or taken from where an earlier run kept it."""
    texts = {sweep.name: sweeps.sweep(model, sweep, results_dir) for sweep in plan.sweeps}
    return _study(plan, texts, results_dir, model.key)


def read(plan: Plan, results_dir: str | Path, model_key: str) -> Study:
    """What is stored of a plan's sweeps, labelled as `run` labels them; loads no model.

    Sweeps that are not there are not in it; neither are those of another request or of an older
    convention.

    Raises:
        ResultsError: an unfinished sweep, or files that are not those recorded.
    """
    texts = {}
    for sweep in plan.sweeps:
        folder = records.folder_of(results_dir, model_key, sweep.name)
        if folder.is_dir():
            record = records.read_record(folder)
            same = record["sweep_sha256"] == sweep.fingerprint()
            if same and conventions.is_current(conventions.TEXTS, record):
                texts[sweep.name] = records.read_completions(folder)
    return _study(plan, texts, results_dir, model_key)


def _study(plan: Plan, texts: dict, results_dir: str | Path | None, model_key: str) -> Study:
    labels, candidates = {}, {}
    for sweep in plan.sweeps:
        if sweep.name in texts:
            own, judge = texts[sweep.name], judge_of(sweep.prompts)
            place = verifiers.path_of(results_dir, model_key, sweep.name, judge)
            labels[sweep.name] = verifiers.labels_of(own, sweep.prompts, judge, place)
            candidates[sweep.name] = node_table(own, labels[sweep.name])
    return Study(plan, texts, labels, candidates)


def judge_of(prompts):
    """The judge of the main figures: exact where lists decide every prompt, else grammar alone."""
    return GazetteerJudge() if all(p.gazetteer for p in prompts) else LanguageChecker()


def label_counts(study: Study) -> pd.DataFrame:
    """How many texts each sweep has, how many differ, and what the labels say: a row per sweep."""
    rows = []
    for sweep in study.plan.sweeps:
        labels, texts = study.labels[sweep.name], study.completions[sweep.name]
        rows.append(
            {
                "sweep": sweep.name,
                "judge": judge_of(sweep.prompts).name,
                "depth": sweep.depth,
                "texts": len(texts),
                "different": len(labels),
                "ended": texts.ended.mean(),
                "valid": labels.valid.mean(),
                "undecided": labels.valid.isna().mean(),
                "dropped": study.candidates[sweep.name].attrs["dropped"],
            }
        )
    return pd.DataFrame(rows)


def measures(study: Study, recall: str = WEIGHTED) -> pd.DataFrame:
    """`precision_recall.node_measures` of every node of every sweep.

    Beside its columns: kind (items or texts) and forced (the sweep's depth).
    """
    parts = []
    for kind in (ITEMS, TEXTS):
        for sweep in study.sweeps_of(kind):
            if sweep.name not in study.candidates:
                continue
            curves = precision_recall.local_curves(study.candidates[sweep.name])
            found = precision_recall.node_measures(curves, recall)
            parts.append(found.assign(kind=kind, forced=sweep.depth))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def depth_table(table: pd.DataFrame) -> pd.DataFrame:
    """`precision_recall.depth_summary` of every sweep: a row per kind, sweep and depth."""
    found = _of_each_sweep(table, precision_recall.depth_summary)
    # What is asked for first, so that it is seen on a phone without scrolling.
    wanted = [
        f"{name}{bound}" for name in precision_recall.MEASURES for bound in ("", "_low", "_high")
    ]
    first = ["kind", "forced", "depth", *wanted, "prevalence"]
    return found[[*first, *found.columns.difference(first, sort=False)]]


def depth_changes(table: pd.DataFrame) -> pd.DataFrame:
    """`precision_recall.depth_differences` of every two depths of a sweep."""
    return _of_each_sweep(table[table.forced > 1], precision_recall.depth_differences)


def _of_each_sweep(table: pd.DataFrame, summary) -> pd.DataFrame:
    """`summary` of every sweep's rows, with the columns kind and forced in front."""
    parts = []
    for (kind, forced), own in table.groupby(["kind", "forced"], sort=False):
        found = summary(own)
        found.insert(0, "forced", forced)
        found.insert(0, "kind", kind)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def deepest(study: Study, depths: pd.DataFrame, kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frontiers by depth of a kind's deepest sweep, and its rows of `depth_table`."""
    sweep = study.sweeps_of(kind)[-1]
    curves = precision_recall.local_curves(study.candidates[sweep.name])
    frontiers = precision_recall.frontiers_by_depth(precision_recall.frontiers_on_grid(curves))
    return frontiers, depths[(depths.kind == kind) & (depths.forced == sweep.depth)]


def greedy_and_drawn(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same candidates labelled by their greedy completion and by 10 drawn ones (Fig. 7).

    How many of the ten must be valid the paper does not say: both at least one and at least half.

    Returns:
        Frontiers on a grid and node measures, both with the column labels: one of `SOURCES`.
    """
    plan = study.plan
    texts, labels = study.completions[plan.drawn.name], study.labels[plan.drawn.name]
    tables = (
        study.candidates[plan.greedy.name],
        study.candidates[plan.drawn.name],
        node_table(texts, labels, min_share=0.5),
    )
    # Candidates that all have: one may be dropped where a list leaves its text open.
    key = ["prompt_id", "seed", "depth", "node", "rank"]
    shared = tables[0][key].merge(tables[1][key], on=key).merge(tables[2][key], on=key)
    grids, found = [], []
    for name, own in zip(SOURCES, tables, strict=True):
        curves = precision_recall.local_curves(own.merge(shared, on=key))
        # Weights of drawn completions are counts of ten, so that valid candidates are compared.
        grid = precision_recall.frontiers_on_grid(curves, UNWEIGHTED)
        grids.append(grid.assign(labels=name))
        found.append(precision_recall.node_measures(curves, UNWEIGHTED).assign(labels=name))
    return pd.concat(grids, ignore_index=True), pd.concat(found, ignore_index=True)


def sizes(plan: Plan) -> pd.DataFrame:
    """Trees, texts and tokens of every sweep at most, and of the paper's (`paper`)."""
    rows = []
    for sweep in [*plan.sweeps, paper(open_prompts())]:
        texts, tokens = sweeps.size_of(sweep)
        row = {"sweep": sweep.name, "trees": len(sweep.trees), "depth": sweep.depth}
        row |= {"candidates": len(sweep.ranks), "texts": texts, "tokens": tokens}
        rows.append(row)
    return pd.DataFrame(rows)


def examples(study: Study, name: str, prompt_id: str, n: int = 4) -> pd.DataFrame:
    """The highest candidates of a prompt's first node that are valid, and those that are not.

    Returns:
        rank (from 1), p, valid, completion, reason; by rank (App. B).
    """
    found = study.completions[name]
    own = found[(found.prompt_id == prompt_id) & (found.seed == found.seed.min())]
    own = own.merge(study.labels[name].drop(columns="ended"), on=["prompt_id", "text"])
    own = own[own.valid.notna()]
    own = own.assign(rank=[ranks[0] + 1 for ranks in own.path_ranks])
    own = own.assign(p=[math.exp(v[0]) for v in own.path_log_p])
    parts = [part.nsmallest(n, "rank") for _, part in own.groupby("valid")]
    table = pd.concat(parts).sort_values("rank")
    texts = [text if len(text) <= _SHOWN else text[:_SHOWN] + "…" for text in table.text]
    table = table.assign(completion=[text.replace("\n", " / ") for text in texts])
    return table[["rank", "p", "valid", "completion", "reason"]].reset_index(drop=True)


# How far a language model as judge can be trusted, against lists and a grammar checker (App.
# A.2).
#
# Knows which texts to ask about and what is compared with what. Decides no claim.

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
    """A sample of either kind for `verifiers.write_sheet`, for people: prompt, text, ended."""
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
        path = verifiers.path_of(results_dir, model_key, f"judged-{sweep.name}", judge)
        judged[kind] = verifiers.labels_of(samples[kind], sweep.prompts, judge, path)
    return samples, judged


def agreement_table(
    samples: dict[str, pd.DataFrame], judged: dict[str, pd.DataFrame], study: Study
) -> pd.DataFrame:
    """A judge against the references: on items by its verdict, on free texts by its grammar score.

    Args:
        samples: of `sample_texts`, by kind.
        judged: of `verifiers.labels_of`, the same texts.

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
            rows.append(row | judges.compare(says, own.valid))
    return pd.DataFrame(rows)


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
        floor = precision_recall.noise_floor(n, n_valid, false, miss)
        rows.append(
            {"judge": judge, "false_positive": false, "false_negative": miss, **vars(floor)}
        )
    return pd.DataFrame(rows)


# The study of Table 1: which prompts take part, their texts, labels, scores and comparisons.
#
# Knows the parts by name and joins them. Decides no claim and draws nothing.

MIN_VALID = 6  # valid texts compared where nonsense is left out


def texts_of(
    model: Model, study: Study, seed: int = 0, results_dir: str | Path | None = None
) -> dict[str, pd.DataFrame]:
    """Texts of every strategy by kind of prompt, `table1.generate`'s with a boolean `valid`.

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
        drawn = table1.generate(model, plan, prompts, forced, longest, **options)
        judge = judge_of(sweep.prompts)
        place = verifiers.path_of(results_dir, model.key, name, judge)
        labels = verifiers.labels_of(drawn, sweep.prompts, judge, place)
        valid = drawn.merge(labels, on=["prompt_id", "text"], how="left").valid
        found[kind] = drawn.assign(valid=valid.fillna(False).astype(bool).to_numpy())
    return found


def embedder_of(name: str) -> Embed:
    """The embedder of that name (`load_embedder`), by which each text is embedded once."""
    return remembered(load_embedder(name).embed)


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


# The paper's claims on open-ended tasks, each decided on the tables of `order_study` and Table 1.
#
# Tables in, findings out. Where an interval holds both answers, the claim is not testable here:
# the sample is too small to decide it, and the number is printed.

CLOSE = 0.05  # of area: what "nearly coincide" is taken to mean
_STRATEGIES = {"top_k": "top-k", "min_p": "min-p", "top_p": "top-p", "none": "no filtering"}


def findings(
    depths: pd.DataFrame,
    changes: pd.DataFrame,
    sources: pd.DataFrame,
    compared: pd.DataFrame,
    apart: pd.DataFrame,
) -> pd.DataFrame:
    """Every claim of the chapter.

    Args:
        depths: of `order_calibration.depth_table`.
        changes: of `order_calibration.depth_changes`.
        sources: node measures of `order_calibration.greedy_and_drawn`.
        compared, apart: of `comparisons` and `differences`; empty where no prompt has
            a valid opening.

    Returns:
        Columns claim, source, found, verdict.
    """
    rows = []
    for row in depths[depths.forced == 1].drop_duplicates("kind").itertuples():
        rows += [_recall_is_low(row), _little_better(row)]
    rows += [_worsens(kind, changes[changes.kind == kind]) for kind in (ITEMS, TEXTS)]
    rows.append(_greedy_is_enough(sources))
    for kind in (ITEMS, TEXTS):
        own = apart[apart.kind == kind] if len(apart) else apart
        reached = compared[compared.kind == kind] if len(compared) else compared
        rows += [_oracle_wins(kind, own, reached, strategy) for strategy in _STRATEGIES]
    return pd.DataFrame(rows)


def headline(depths: pd.DataFrame, measured: pd.DataFrame) -> dict[str, str]:
    """What the chapter's beginning and other pages quote of the trees with one forced token.

    Args:
        depths: of `order_calibration.depth_table`.
        measured: of `order_calibration.measures`, which `depths` summarises.

    Returns:
        Texts by name, after the kind: counted (prompts with a valid candidate, of all), prevalence
        (of all nodes), random_area, area, recall_at.
    """
    said = {}
    for row in depths[depths.forced == 1].itertuples():
        asked = measured[(measured.kind == row.kind) & (measured.forced == 1)].prompt_id.nunique()
        said |= {
            f"{row.kind}_counted": f"{row.n_prompts} of {asked}",
            f"{row.kind}_prevalence": f"{row.prevalence_all:.2f}",
            f"{row.kind}_random_area": f"{row.random_area:.2f}",
            f"{row.kind}_area": _told(row, "area"),
            f"{row.kind}_recall_at": _told(row, "recall_at"),
        }
    return said


def decided_over(n_prompts: int, low: float, high: float, above: float = 0.0) -> str:
    """The verdict on "larger than `above`", which fewer than `DECIDES` prompts do not give."""
    return decided(low, high, above) if n_prompts >= DECIDES else NOT_TESTABLE


def keeps_less_than_half(row) -> str:
    """The verdict on recall at the precision, for a row of `order_calibration.depth_table`.

    Decided at one half; the opposite of "larger" is claimed, so the interval is mirrored. Where so
    many candidates are valid that a random order keeps half as well, recall says nothing about the
    ranking, and the claim is not testable.
    """
    if row.random_recall_at >= 0.5:
        return NOT_TESTABLE
    return decided_over(row.n_prompts, -row.recall_at_high, -row.recall_at_low, -0.5)


def _told(row, name: str = "") -> str:
    """A column of a row with its interval, or the row's difference with its own."""
    columns = (name, f"{name}_low", f"{name}_high") if name else ("difference", "low", "high")
    return as_text(
        *(getattr(row, column) for column in columns),
        undefined="not defined (nothing is valid)",
        alone="too few trees for an interval",
    )


def _about(kind: str) -> str:
    return f"{kind}, {JUDGES[kind]}"


def _recall_is_low(row) -> Finding:
    return Finding(
        f"At precision {LEVEL:g} a rank cutoff keeps less than half of the valid tokens "
        f"({_about(row.kind)})",
        "Sec. 4, Fig. 4",
        f"recall {_told(row, 'recall_at')}, random order {row.random_recall_at:.2f} (from 0.5 on "
        f"it decides nothing), prevalence {row.prevalence:.2f}",
        keeps_less_than_half(row),
    )


def _little_better(row) -> Finding:
    return Finding(
        f"The ranking is closer to a random order than to a perfect one ({_about(row.kind)})",
        f"Sec. 4, Fig. 2; the published points gain .02 to .11 of area; {OURS}",
        f"area {row.area:.2f}, of which beyond a random order {_told(row, 'area_gain')}; that less "
        f"half of what a perfect order would gain {_told(row, 'past_half')}",
        decided_over(row.n_prompts, -row.past_half_high, -row.past_half_low),
    )


def _worsens(kind: str, changes: pd.DataFrame) -> Finding:
    """The last depth against the first of the deepest sweep that has enough prompts."""
    claim = f"The frontier worsens with depth, by its area ({_about(kind)})"
    last = changes[(changes.minus == 1) & (changes.depth == changes.forced)]
    areas = last[(last.measure == "area") & (last.n_prompts >= DECIDES)]
    if areas.empty:
        return Finding(claim, "Sec. 4, Fig. 2 right", "too few prompts", NOT_TESTABLE)
    row = areas.loc[areas.depth.idxmax()]
    gain = last[(last.measure == "area_gain") & (last.depth == row.depth)].iloc[0]
    return Finding(
        claim,
        "Sec. 4, Fig. 2 right",
        f"area at depth {row.depth:.0f} less area at depth 1: {_told(row)} over "
        f"{row.n_prompts:.0f} prompts; beyond a random order {_told(gain)}",
        decided(-row.high, -row.low, 0.0),
    )


def _greedy_is_enough(sources: pd.DataFrame) -> Finding:
    """Equivalence: the whole interval within `CLOSE` of 0, for both readings of "valid"."""
    differences = {}
    for other in SOURCES[1:]:
        own = sources[sources.labels.isin([SOURCES[0], other])]
        # Numbered, so that the difference is always the drawn one minus the greedy one.
        own = own.assign(order=(own.labels == other).astype(int))
        table = precision_recall.depth_differences(own, by="order")
        differences[other] = table[table.measure == "area"].iloc[0]
    said, rows = NOT_TESTABLE, differences.values()
    if all(row.n_prompts >= DECIDES for row in rows):
        near, far = CLOSE - AGREEMENT, CLOSE + AGREEMENT
        if all(row.low > -near and row.high < near for row in rows):
            said = REPRODUCED
        elif any(row.low > far or row.high < -far for row in rows):
            said = NOT_REPRODUCED
    told = (f"{other}: difference of area {_told(row)}" for other, row in differences.items())
    return Finding(
        f"Labels from one greedy completion give the same frontier as 10 drawn ones ({ITEMS})",
        "Fig. 7",
        f"{'; '.join(told)}; decided at {CLOSE:g}",
        said,
    )


def _oracle_wins(kind: str, apart: pd.DataFrame, compared: pd.DataFrame, strategy: str) -> Finding:
    found, said = "no prompt has a valid opening", NOT_TESTABLE
    if len(apart):
        own = apart[(apart.measure == "embedding_diversity") & (apart.strategy == strategy)]
        found = f"no setting reaches validity {LEVEL:g}"
        if len(own) and own.n_prompts.iloc[0]:
            row, validity = own.iloc[0], compared.set_index("strategy").validity
            found = (
                f"difference {_told(row)}, in favour on {row.in_favour} of {row.n_prompts} "
                f"prompts; validity of the oracle {validity['oracle']:.2f}, of the other "
                f"{validity[strategy]:.2f}"
            )
            # More diverse and less valid would be no better decoder.
            if validity["oracle"] >= LEVEL:
                said = decided_over(row.n_prompts, row.low, row.high)
    claim = (
        "An oracle on the first two tokens gives more diverse texts, by their embeddings, than "
        f"{_STRATEGIES[strategy]} ({_about(kind)})"
    )
    return Finding(claim, "Table 1", found, said)

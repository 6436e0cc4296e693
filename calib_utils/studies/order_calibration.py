"""The study of Sec. 4: sweeps run, texts labelled, order measured, Table 1 drawn, claims decided.

Knows the sizes of a laptop, the smoke test and the paper, and which judge labels what; the rest is
in `openended`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.core.metrics import DECIDES, as_text
from calib_utils.core.rules import rule_name
from calib_utils.models.loading import Model
from calib_utils.models.loading import load_embedder as load_embedder  # for the notebook
from calib_utils.openended import judges, precision_recall, sweeps, table1, verifiers
from calib_utils.openended.precision_recall import LEVEL as PRECISION
from calib_utils.openended.precision_recall import UNWEIGHTED, WEIGHTED
from calib_utils.openended.prompts import open_prompts
from calib_utils.openended.sweeps import Sweep, log_ranks, node_table, unique_texts
from calib_utils.openended.table1 import LEVEL, STRATEGIES, forced_tokens, plan_generations
from calib_utils.openended.verifiers import THRESHOLD, ExactJudge, LanguageChecker
from calib_utils.results import conventions, records
from calib_utils.studies import reporting
from calib_utils.studies.controlled_tasks import LISTS as CLOSED
from calib_utils.studies.reporting import NOT_DECIDED, NOT_REPRODUCED, OURS, REPRODUCED, decided


def _asking_for(names: Iterable[str]) -> tuple[str, ...]:
    """The ids of the prompts that ask for an item of each list."""
    own = {prompt.verifier: prompt.id for prompt in open_prompts(["item", "list"])}
    return tuple(own[name] for name in names)


LISTS, FORMS, TEXTS = "lists", "forms", "texts"
JUDGES = {LISTS: "a list decides", FORMS: "a rule decides", TEXTS: "grammar only"}
EXACT = (LISTS, FORMS)  # kinds whose labels are exact; grammar alone says less than validity
_PROMPTS = {
    # Every other closed list, and the largest, of cities; forms of every subject.
    LISTS: ("item-city", "item-city-trip", *_asking_for(CLOSED[::2]), "list-us-president"),
    FORMS: tuple(
        f"form-{name}"
        for name in (
            *("iso-date", "afternoon", "leap-year", "expression-24", "python-10", "python-list"),
            *("chess-opening", "private-ipv4", "regular-expression", "five-words", "palindrome"),
            *("same-ends", "seven-letters", "without-e", "rhyme", "alphabetical", "prime"),
            *("square", "roman", "fraction", "equation", "hex-colour", "json-object"),
        )
    ),
    TEXTS: ("story-robot", "joke-cat", "poem-autumn", "plot-heist"),
}
_TOKENS = {LISTS: 7, FORMS: 12, TEXTS: 24}
SHOWN = "item-city"  # the prompt whose single step is drawn: the longest of the lists
SOURCES = ("greedy", "any of 10 drawn", "half of 10 drawn")
PAPER_ACCURACY = 0.809  # of its judge against people (App. A.2); errors of either kind not given
CLOSE = 0.05  # of area: what "nearly coincide" is taken to mean
_SHOWN = 80  # characters of a text in a table
_RECALL = f"At precision {PRECISION:g} a rank cutoff keeps less than half of the valid tokens"
_RANKING = "The ranking is closer to a random order than to a perfect one"
_DEPTH = "The frontier worsens with depth, by its area"
_DEPTH_GAIN = "The ranking's gain over a random order falls with depth"
_GREEDY = f"Labels from one greedy completion give the same frontier as 10 drawn ones ({LISTS})"
_ORACLE = "An oracle on the first two tokens gives more diverse texts, by their embeddings, than {}"
NO_OPENING = "No list prompt has a valid opening for the oracle, so nothing is drawn here."


@dataclass(frozen=True)
class Plan:
    """Sweeps by their use, and the size of what is drawn for Table 1."""

    trees: dict[str, tuple[Sweep, ...]]  # of each kind, by rising depth from 1
    drawn: Sweep  # completes candidates of the lists by drawing (Fig. 7)
    oracle: dict[str, Sweep]  # of two kinds: give the valid first two tokens of Table 1
    n_texts: int
    budget: int | None
    judged: int  # texts that the language model judges, of each kind

    @property
    def sweeps(self) -> list[Sweep]:
        """Each once, in the order in which they run: what decides most comes first."""
        by_depth = filter(None, chain(*zip_longest(*self.trees.values())))
        every = (*by_depth, self.drawn, *self.oracle.values())
        return list({sweep.name: sweep for sweep in every}.values())

    def within(self, n_tokens: int) -> "Plan":
        """The plan without the ranks that a vocabulary of `n_tokens` does not have."""

        def own(sweep: Sweep) -> Sweep:
            return replace(sweep, ranks=[rank for rank in sweep.ranks if rank < n_tokens])

        trees = {kind: tuple(map(own, sweeps)) for kind, sweeps in self.trees.items()}
        oracle = {kind: own(sweep) for kind, sweep in self.oracle.items()}
        return replace(self, trees=trees, drawn=own(self.drawn), oracle=oracle)


def laptop(seed: int = 0, end: str = "eos") -> Plan:
    """Half an hour on two cores for a model of half a billion parameters.

    Candidates at depth 1 are every tenth rank to 1,000 as in the paper; deeper, ranks evenly spaced
    in their logarithm, to which recall there is relative.
    """

    def tree(kind: str, name: str, seeds: tuple[int, ...] = (seed,), **tree) -> Sweep:
        name = f"{kind}-{name}-seed{seed}" if seed else f"{kind}-{name}"
        return Sweep(_PROMPTS[kind], seeds, name, max_tokens=_TOKENS[kind], end=end, **tree)

    several = (2 * seed, 2 * seed + 1)  # disjoint for every seed
    pairs = {"depth": 2, "ranks": log_ranks(8, 1000)}
    deep = {"depth": 3, "ranks": log_ranks(5, 1000)}
    triples = {"depth": 3, "ranks": log_ranks(4, 1000)}
    trees = {
        kind: (tree(kind, "1"), tree(kind, "2", **pairs), tree(kind, "3", **triples))
        for kind in EXACT
    }
    steps = tree(TEXTS, "1", seeds=several, position=(1, 12), ranks=log_ranks(48, 1000))
    trees[TEXTS] = (steps, tree(TEXTS, "3", position=(1, 12), **deep))
    openings = tree(TEXTS, "openings", depth=2, ranks=log_ranks(12, 1000))
    return Plan(
        trees,
        drawn=tree(LISTS, "drawn", ranks=range(0, 1000, 100), n_samples=10),
        oracle={LISTS: trees[LISTS][1], TEXTS: openings},
        n_texts=12,
        budget=4,
        judged=30,
    )


def quick(seed: int = 0, end: str = "eos") -> Plan:
    """The same parts in seconds, for smoke runs: no number of it means anything."""

    def tree(kind: str, name: str, **tree) -> Sweep:
        asked, name = _PROMPTS[kind][:2], f"{kind}-{name}-quick{seed or ''}"
        return Sweep(asked, (seed,), name, ranks=(0, 1, 8), max_tokens=4, end=end, **tree)

    trees = {kind: (tree(kind, "1"), tree(kind, "2", depth=2)) for kind in JUDGES}
    drawn = tree(LISTS, "drawn", n_samples=2)
    return Plan(trees, drawn, {kind: trees[kind][1] for kind in (LISTS, TEXTS)}, 4, 1, 0)


def paper() -> Sweep:
    """The paper's own sweep, a million leaves; the length of its completions is not given."""
    return Sweep(open_prompts()[:10], name="paper", position=(1, 32), depth=3, max_tokens=64)


@dataclass(frozen=True)
class Study:
    """Completions, labels and labelled candidates of every sweep of a plan, by its name."""

    plan: Plan
    completions: dict[str, pd.DataFrame]
    labels: dict[str, pd.DataFrame]
    candidates: dict[str, pd.DataFrame]


def run(model: Model, plan: Plan, results_dir: str | Path | None = None) -> Study:
    """Everything of a plan, computed now or taken from where an earlier run kept it.

    Ranks that the model's vocabulary does not have are left out.
    """
    plan = plan.within(sweeps.vocabulary_size(model))
    texts = {sweep.name: sweeps.sweep(model, sweep, results_dir) for sweep in plan.sweeps}
    return _study(plan, texts, results_dir, model.key)


def read(plan: Plan, results_dir: str | Path, model_key: str) -> Study:
    """What is stored of a plan's trees, labelled as `run` labels them; loads no model.

    Sweeps of another request or of an older convention are left out; an unfinished one, or files
    that are not those recorded, raise a ResultsError.
    """
    texts = {}
    for sweep in chain(*plan.trees.values()):
        folder = records.folder_of(results_dir, model_key, sweep.name)
        if folder.is_dir():
            record = records.read_record(folder)
            same = record["sweep_sha256"] == sweep.fingerprint()
            if same and conventions.is_current(conventions.TEXTS, record):
                texts[sweep.name] = records.read_completions(folder)
    return _study(plan, texts, results_dir, model_key)


def _study(plan: Plan, texts: dict, results_dir: str | Path | None, model_key: str) -> Study:
    labels = {
        sweep.name: _labels(texts[sweep.name], sweep, results_dir, model_key, sweep.name)
        for sweep in plan.sweeps
        if sweep.name in texts
    }
    candidates = {name: node_table(texts[name], own) for name, own in labels.items()}
    return Study(plan, texts, labels, candidates)


def _labels(texts, sweep: Sweep, results_dir, model_key: str, name: str, judge=None):
    """A judge's labels of texts, the sweep's own judge without one; kept under the name."""
    judge = judge or judge_of(sweep.prompts)
    place = verifiers.path_of(results_dir, model_key, name, judge)
    return verifiers.labels_of(texts, sweep.prompts, judge, place)


def judge_of(prompts):
    """The judge of the main figures: exact where a program decides all, else grammar alone."""
    names = [prompt.verifier for prompt in prompts]
    return ExactJudge(names) if all(names) else LanguageChecker()


def sizes(study: Study) -> pd.DataFrame:
    """What every sweep tries at most and what its labels say; the last row is `paper`'s size."""
    rows = []
    for sweep in [*study.plan.sweeps, paper()]:
        row = {"sweep": sweep.name, "trees": len(sweep.trees), "depth": sweep.depth}
        row |= {"candidates": len(sweep.ranks)}
        row["texts"], row["tokens"] = sweeps.size_of(sweep)
        if sweep.name in study.labels:
            labels = study.labels[sweep.name]
            row |= {"judge": judge_of(sweep.prompts).name, "different": f"{len(labels)}"}
            row |= {"ended": study.completions[sweep.name].ended.mean()}
            row |= {"valid": labels.valid.mean(), "undecided": labels.valid.isna().mean()}
            row |= {"dropped": f"{study.candidates[sweep.name].attrs['dropped']}"}
        rows.append(row)
    return pd.DataFrame(rows).fillna({"judge": "–", "different": "–", "dropped": "–"})


def measures(study: Study) -> pd.DataFrame:
    """`node_measures` of every sweep, with its kind and forced (its depth)."""
    parts = []
    for kind in JUDGES:
        for sweep in study.plan.trees[kind]:
            if sweep.name in study.candidates:
                curves = precision_recall.local_curves(study.candidates[sweep.name])
                found = precision_recall.node_measures(curves, WEIGHTED)
                parts.append(found.assign(kind=kind, forced=sweep.depth))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def answered(measured: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Of `measures`, by kind: prompts whose greedy answer is valid, and how many were asked.

    A model that answers few of them cannot do what the claims of the chapter are about.
    """
    first = measured[(measured.forced == 1) & measured.kind.isin(EXACT)]
    counts = first.groupby("kind").first_valid.agg(["sum", "size"])
    return {kind: (int(n), int(asked)) for kind, n, asked in counts.itertuples()}


def depth_table(table: pd.DataFrame) -> pd.DataFrame:
    """`precision_recall.depth_summary` of every sweep: a row per kind, sweep and depth."""
    found = _of_each_sweep(table, precision_recall.depth_summary)
    # What is asked for first, so that it is seen on a phone without scrolling.
    wanted = _with_bounds(precision_recall.MEASURES)
    first = ["kind", "forced", "depth", *wanted, "prevalence"]
    return found[[*first, *found.columns.difference(first, sort=False)]]


def depth_changes(table: pd.DataFrame) -> pd.DataFrame:
    """`precision_recall.depth_differences` of every two depths of a sweep."""
    return _of_each_sweep(table[table.forced > 1], precision_recall.depth_differences)


def _of_each_sweep(table: pd.DataFrame, summary) -> pd.DataFrame:
    groups = table.groupby(["kind", "forced"], sort=False)
    return reporting.stacked({key: summary(own) for key, own in groups}, ["kind", "forced"])


def _with_bounds(names: Iterable[str]) -> list[str]:
    return [f"{name}{bound}" for name in names for bound in ("", "_low", "_high")]


def deepest(study: Study, depths: pd.DataFrame, kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frontiers by depth of a kind's deepest sweep, and its rows of `depth_table`."""
    sweep = study.plan.trees[kind][-1]
    curves = precision_recall.local_curves(study.candidates[sweep.name])
    frontiers = precision_recall.frontiers_by_depth(precision_recall.frontiers_on_grid(curves))
    return frontiers, depths[(depths.kind == kind) & (depths.forced == sweep.depth)]


def greedy_and_drawn(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same candidates labelled by their greedy completion and by 10 drawn ones (Fig. 7).

    How many of the ten must be valid the paper does not say: at least one, and at least half.
    Frontiers on a grid and node measures, both with the column labels: one of `SOURCES`.
    """
    greedy, drawn = study.plan.trees[LISTS][0].name, study.plan.drawn.name
    half = node_table(study.completions[drawn], study.labels[drawn], min_share=0.5)
    tables = (study.candidates[greedy], study.candidates[drawn], half)
    # Candidates that all have: one may be dropped where a list leaves its text open.
    key = ["prompt_id", "seed", "depth", "node", "rank"]
    shared = tables[0][key].merge(tables[1][key], on=key).merge(tables[2][key], on=key)
    grids, found = [], []
    for name, own in zip(SOURCES, tables, strict=True):
        curves = precision_recall.local_curves(own.merge(shared, on=key))
        # Weights of drawn completions are counts of ten, so that valid candidates are compared.
        grids.append(precision_recall.frontiers_on_grid(curves, UNWEIGHTED).assign(labels=name))
        found.append(precision_recall.node_measures(curves, UNWEIGHTED).assign(labels=name))
    return pd.concat(grids, ignore_index=True), pd.concat(found, ignore_index=True)


def examples(study: Study, name: str, prompt_id: str, n: int = 4) -> pd.DataFrame:
    """The highest candidates of a prompt's first node, `n` valid and `n` not, by rank (App. B)."""
    found = study.completions[name]
    own = found[(found.prompt_id == prompt_id) & (found.seed == found.seed.min())]
    own = own.merge(study.labels[name].drop(columns="ended"), on=["prompt_id", "text"])
    own = own[own.valid.notna()]
    own = own.assign(rank=own.path_ranks.str[0] + 1, p=own.path_log_p.str[0].map(math.exp))
    table = pd.concat(part.nsmallest(n, "rank") for _, part in own.groupby("valid"))
    texts = table.text.map(lambda text: text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
    table = table.assign(completion=texts.str.replace("\n", " / "))
    table = table.sort_values("rank", ignore_index=True)
    return table[["rank", "p", "valid", "completion", "reason"]]


# How far a language model as judge can be trusted, against lists and a grammar checker (App. A.2).


def sample_texts(study: Study, kind: str, n: int, seed: int = 0) -> pd.DataFrame:
    """`n` different texts of the first sweep of a kind, half of them valid where there are enough.

    Half, since a judge that says no to all looks good where little is valid. Neither empty texts
    nor those that the reference leaves undecided. Columns prompt_id, category, text, ended, valid
    (the reference's), in a seeded order.
    """
    name = study.plan.trees[kind][0].name
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
    asked = {prompt.id: prompt.prompt for prompt in open_prompts()}
    found = pd.concat([sample_texts(study, kind, n, seed) for kind in JUDGES], ignore_index=True)
    return found.assign(prompt=found.prompt_id.map(asked))[["prompt", "text", "ended"]]


def judge_by_name(model: str, url: str = ""):
    """The judge of a page: behind an OpenAI-compatible server at `url`, else run here; or None."""
    if not model:
        return None
    return judges.endpoint_judge(url, model) if url else judges.local_judge(model)


def ask(
    study: Study, judge, seed: int = 0, results_dir: str | Path | None = None, model_key: str = ""
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Samples of lists and of free texts by kind, and a judge's labels of them; or nothing."""
    samples, judged = {}, {}
    for kind in (LISTS, TEXTS) if judge is not None and study.plan.judged else ():
        sweep = study.plan.trees[kind][0]
        own = samples[kind] = sample_texts(study, kind, study.plan.judged, seed)
        name = f"judged-{sweep.name}"
        judged[kind] = _labels(own, sweep, results_dir, model_key, name, judge)
    return samples, judged


def agreement_table(
    samples: dict[str, pd.DataFrame], judged: dict[str, pd.DataFrame], study: Study
) -> pd.DataFrame:
    """A judge of `ask` against the references: on lists by its verdict, on texts by grammar.

    A row per comparison: texts, reference, criterion, and what `judges.compare` returns.
    """
    rows = []
    for kind, criterion in ((LISTS, "all three"), (LISTS, "semantics"), (TEXTS, "grammar")):
        if kind not in samples or not len(samples[kind]):
            continue
        own = samples[kind].merge(judged[kind], on=["prompt_id", "text"], suffixes=("", "_judge"))
        says = own.valid_judge if criterion == "all three" else own[criterion] >= THRESHOLD
        if says.notna().any():
            reference = judge_of(study.plan.trees[kind][0].prompts).name
            row = {"texts": kind, "reference": reference, "criterion": criterion}
            rows.append(row | judges.compare(says, own.valid))
    return pd.DataFrame(rows)


def noise_table(agreements: pd.DataFrame, prevalence: float) -> pd.DataFrame:
    """What a perfect order of 1,000 candidates would seem to have under judges that err.

    A row per judge: its name, its rates of error (the paper's accuracy split evenly, one in ten,
    and those that `agreement_table` has on lists) and `precision_recall.NoiseFloor`.
    """
    names = ["false_positive", "false_negative"]
    rates = {"errs like the paper's (19 % both ways)": (1 - PAPER_ACCURACY,) * 2}
    rates["errs in one text of ten"] = (0.1, 0.1)
    if len(agreements):
        own = agreements[agreements.criterion == "all three"][names].dropna()
        for errors in own.to_numpy().tolist():
            rates["this page's judge on lists"] = tuple(errors)
    n_valid, rows = min(1000, max(1, round(1000 * prevalence))), []
    for judge, errors in rates.items():
        row = {"judge": judge, **dict(zip(names, errors, strict=True))}
        rows.append(row | vars(precision_recall.noise_floor(1000, n_valid, *errors)))
    return pd.DataFrame(rows)


# Table 1: which prompts take part, their texts, labels, scores and comparisons.


def texts_of(
    model: Model, study: Study, seed: int = 0, results_dir: str | Path | None = None
) -> dict[str, pd.DataFrame]:
    """`table1.generate`'s texts by kind, with a boolean `valid`: False where left undecided."""
    found = {}
    for kind, sweep in study.plan.oracle.items():
        own = study.candidates[sweep.name]
        forced = forced_tokens(own, study.plan.n_texts, seed)
        if not forced:
            continue
        plan = plan_generations(list(forced), study.plan.n_texts, study.plan.budget, seed=seed)
        name, longest = f"table1-{sweep.name}", sweep.depth + sweep.max_tokens
        options = {"end": sweep.end, "results_dir": results_dir, "name": name}
        prompts = {prompt.id: prompt for prompt in sweep.prompts}
        drawn = table1.generate(model, plan, prompts, forced, longest, **options)
        labels = _labels(drawn, sweep, results_dir, model.key, name)
        valid = drawn.merge(labels, on=["prompt_id", "text"], how="left").valid
        found[kind] = drawn.assign(valid=valid.fillna(False).astype(bool).to_numpy())
    return found


def of_each_kind(tables: dict[str, pd.DataFrame], make) -> pd.DataFrame:
    """What a function of `table1` makes of each kind's table, with the column kind in front."""
    return reporting.stacked({kind: make(own) for kind, own in tables.items()}, ["kind"])


def compact(compared: pd.DataFrame) -> pd.DataFrame:
    """The columns of `table1.comparison` that a page shows."""
    first = ["kind", "strategy", "validity", *_with_bounds(table1.MEASURES)]
    rest = ["parameter", "temperature", "tried", "usable", "n_prompts", "best_of", "held_out"]
    return compared if compared.empty else compared[[*first, *rest]]


def strategy_name(strategy: str) -> str:
    """A strategy of Table 1 as the paper calls it."""
    names = {"oracle": "oracle, two steps", "none": "no filtering"}
    return names.get(strategy) or rule_name(strategy)


# The claims: tables in, findings out. An interval that holds both answers decides nothing.


def findings(
    depths: pd.DataFrame,
    changes: pd.DataFrame,
    sources: pd.DataFrame,
    compared: pd.DataFrame,
    apart: pd.DataFrame,
    can: dict[str, tuple[int, int]],
) -> pd.DataFrame:
    """Every claim of the chapter, as `table_of` has them.

    Of `depth_table`, `depth_changes`, the node measures of `greedy_and_drawn`, `table1.comparison`
    and `table1.paired_differences` of each kind, both empty without valid openings; and `answered`:
    where it has fewer than `DECIDES` prompts, the model is excluded.
    """
    ours = f"Sec. 4, Fig. 2; the published points gain {_published_gain()} of area"
    claims = []
    exact = depths[(depths.forced == 1) & depths.kind.isin(EXACT)]
    for row in exact.drop_duplicates("kind").itertuples():
        recall = (
            f"recall {_told(row, 'recall_at')}, random order {row.random_recall_at:.2f} (from 0.5 "
            f"on nothing is decided), prevalence {row.prevalence:.2f}"
        )
        area = (
            f"area {row.area:.2f}, gain over a random order {_told(row, 'area_gain')}; this minus "
            f"half the gain of a perfect order {_told(row, 'past_half')}"
        )
        little = decided_over(row.n_prompts, -row.past_half_high, -row.past_half_low)
        claims.append((_RECALL, row.kind, "Sec. 4, Fig. 4", recall, keeps_less_than_half(row)))
        claims.append((_RANKING, row.kind, ours, area, little, OURS))
    for kind in EXACT:
        own = changes[changes.kind == kind]
        claims.append((_DEPTH, kind, "Sec. 4, Fig. 2 right", *_worsens(own, "area")))
        gain = _worsens(own, "area_gain")
        claims.append((_DEPTH_GAIN, kind, "beside Fig. 2 right", *gain, OURS))
    claims.append((_GREEDY, "", "Fig. 7", *_greedy_is_enough(sources)))
    for strategy in STRATEGIES:
        wins = _oracle_wins(apart, compared, strategy)
        claims.append((_ORACLE.format(strategy_name(strategy)), LISTS, "Table 1", *wins))
    rows = []
    for claim, kind, source, found, *said in claims:
        n, asked = can.get(kind or LISTS, (0, 0))
        if n < DECIDES:
            found = f"excluded: the greedy answer is valid on {n} of {asked} prompts"
            said[0] = reporting.EXCLUDED
        name = f"{claim} ({kind}, {JUDGES[kind]})" if kind else claim
        rows.append(reporting.Finding(name, source, found, *said))
    return reporting.table_of(rows)


def headline(depths: pd.DataFrame, measured: pd.DataFrame) -> dict[str, str]:
    """What pages quote of the trees with one forced token, of `depth_table` and `measures`."""
    said = {"published_gain": _published_gain()}
    for row in depths[depths.forced == 1].itertuples():
        asked = measured[(measured.kind == row.kind) & (measured.forced == 1)].prompt_id.nunique()
        said |= {
            f"{row.kind}_asked": f"{asked}",
            f"{row.kind}_counted": f"{row.n_prompts} of {asked}",
            f"{row.kind}_prevalence": f"{row.prevalence_all:.2f}",
            f"{row.kind}_random_area": f"{row.random_area:.2f}",
            f"{row.kind}_area": _told(row, "area"),
            f"{row.kind}_recall_at": _told(row, "recall_at"),
        }
    return said


def _published_gain() -> str:
    """The least and the largest area that the authors' points have beyond a random order."""
    gains = precision_recall.from_published().area_gain
    return f"{gains.min():.2f} to {gains.max():.2f}"


def decided_over(n_prompts: int, low: float, high: float, above: float = 0.0) -> str:
    """The verdict on "larger than `above`", which fewer than `DECIDES` prompts do not give."""
    return decided(low, high, above) if n_prompts >= DECIDES else NOT_DECIDED


def keeps_less_than_half(row) -> str:
    """The verdict on recall at the precision, for a row of `depth_table`, at one half.

    Where a random order keeps half as well, recall says nothing about the ranking.
    """
    if row.random_recall_at >= 0.5:
        return NOT_DECIDED
    return decided_over(row.n_prompts, -row.recall_at_high, -row.recall_at_low, -0.5)


def _told(row, name: str = "") -> str:
    """A column of a row with its interval, or the row's difference with its own."""
    columns = _with_bounds([name]) if name else ("difference", "low", "high")
    return as_text(
        *(getattr(row, column) for column in columns),
        undefined="not defined (nothing is valid)",
        alone="too few trees for an interval",
    )


def _worsens(changes: pd.DataFrame, measure: str) -> tuple[str, str]:
    """The last step against the first of the deepest trees, within each tree."""
    last = changes[(changes.minus == 1) & (changes.depth == changes.forced)]
    own = last[(last.measure == measure) & (last.n_prompts >= DECIDES)]
    if own.empty:
        return "too few prompts", NOT_DECIDED
    row = own.loc[own.depth.idxmax()]
    what = {"area": "area", "area_gain": "gain over a random order"}[measure]
    found = (
        f"{what} at step {row.depth:.0f} minus that at step 1 of the same trees: {_told(row)} over "
        f"{row.n_prompts:.0f} prompts"
    )
    return found, decided(-row.high, -row.low, 0.0)


def _greedy_is_enough(sources: pd.DataFrame) -> tuple[str, str]:
    """Equivalence: the whole interval within `CLOSE` of 0, for both readings of "valid"."""
    rows, told = [], ""
    for other in SOURCES[1:]:
        own = sources[sources.labels.isin([SOURCES[0], other])]
        # Numbered, so that the difference is always the drawn one minus the greedy one.
        own = own.assign(order=(own.labels == other).astype(int))
        table = precision_recall.depth_differences(own, by="order")
        rows.append(table[table.measure == "area"].iloc[0])
        told += f"{other}: difference of area {_told(rows[-1])}; "
    # Above -CLOSE, and below CLOSE.
    ends = [pair for row in rows for pair in ((row.low, row.high), (-row.high, -row.low))]
    n = min(row.n_prompts for row in rows)
    sides = {decided_over(n, *pair, -CLOSE) for pair in ends}
    said = next((word for word in (NOT_REPRODUCED, NOT_DECIDED) if word in sides), REPRODUCED)
    return f"{told}decided at {CLOSE:g}", said


def _oracle_wins(apart: pd.DataFrame, compared: pd.DataFrame, strategy: str) -> tuple[str, str]:
    """What is found and said of the oracle less one strategy; no more diverse, where less valid."""
    if apart.empty or not (apart.kind == LISTS).any():
        return "no prompt has a valid opening", NOT_DECIDED
    own = apart[(apart.kind == LISTS) & (apart.measure == "embedding_diversity")]
    own = own[own.strategy == strategy]
    if own.empty or not own.n_prompts.iloc[0]:
        return f"no setting reaches validity {LEVEL:g}", NOT_DECIDED
    row = own.iloc[0]
    validity = compared[compared.kind == LISTS].set_index("strategy").validity
    found = (
        f"difference {_told(row)}, in favour on {row.in_favour} of {row.n_prompts} prompts; "
        f"validity of the oracle {validity['oracle']:.2f}, of the other {validity[strategy]:.2f}"
    )
    # More diverse and less valid would be no better decoder.
    valid = round(validity["oracle"], 9) >= LEVEL  # a mean of shares may come out a hair below
    return found, decided_over(row.n_prompts, row.low, row.high) if valid else NOT_DECIDED

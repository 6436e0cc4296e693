"""The formal framework: definitions worked by hand, controls, hypotheses measured on a model.

One pass over a task gives what definitions and theorems ask of a model: ranks of the valid tokens,
the factors of every setting, and what these settings give. It is the only costly part of the
chapter and is kept beside the model's rows. Draws nothing.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from calib_utils import paths
from calib_utils.core.rules import TABLE3_TEMPERATURES, NoCutoff, TopK, table3_rules
from calib_utils.core.split import Steps, TokenTable
from calib_utils.core.tasks import Task
from calib_utils.core.tries import Trie
from calib_utils.errors import ResultsError
from calib_utils.models.loading import Model
from calib_utils.results import conventions, evaluation, records
from calib_utils.results.evaluation import evaluate, keys, render_prompt
from calib_utils.results.measure import Measurement, Settings, measure, untouched
from calib_utils.results.storage import KEY, NUMBERS
from calib_utils.studies import errata, reporting
from calib_utils.studies.controlled_tasks import CURVE_TEMPERATURES
from calib_utils.studies.reporting import AGREEMENT, CLAIM, HYPOTHESIS, KINDS, OURS, able, stacked
from calib_utils.theory import laws, theorems
from calib_utils.theory.laws import Law, Node, node_of, reference_model

FOLDER = conventions.FRAMEWORK
TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
QUICK_TASKS = ("us-states", "rng-2")
SIZES = (1, 2, 5, 8, 10, 11, 12, 15, 20, 50, 100, 500)
_RANKS = ("rank", "gap", "sorted_gap", "log_p")
_AGAIN = "delete it and run 01_formal_framework"


@dataclass(frozen=True)
class Study:
    """One pass over a task: rules of Table 3, fixed sizes, and temperature alone."""

    task: Task
    trie: Trie
    settings: tuple
    numbers: pd.DataFrame  # `NUMBERS`, a row per setting
    factors: theorems.Factors  # alpha and beta (Thm. E.1) [step, setting]
    ranks: Steps  # of the valid tokens, and no setting
    edge_log_p: np.ndarray  # ln p(symbol | prefix) at T = 1 without cutoff [edge]
    record: dict  # what it is of, and what it cost

    @cached_property
    def step_frontiers(self) -> dict[int, np.ndarray]:
        """`theorems.step_frontier` of every step, from 0, before which no answer ends."""
        trie, ranks = self.trie, self.ranks
        first_end = int(trie.node_depth[trie.edge_node[trie.sequence_edge]].min())
        return {
            d: theorems.step_frontier(ranks.tokens, ranks.rank, d) for d in range(first_end + 1)
        }

    @property
    def n_steps(self) -> int:
        """Tokens of the longest answer, its end included."""
        return int(self.trie.node_depth.max()) + 1


def study(
    model: Model, task: Task | str, end: str = "eos", results_dir: str | Path | None = None
) -> Study:
    """What the chapter needs of a task: kept below `results_dir` where there is one, or measured.

    Raises a ResultsError where another study holds the place, or it cannot be written.
    """
    request = evaluation.request_for(model, task, end=end, results_dir=results_dir)
    record = {**request.identity(), **records.of_model(request.model), "task": request.task.name}
    record |= {"end": end, "convention": conventions.CURRENT[FOLDER]}
    places = None if request.folder is None else paths_of(request.folder)
    kept = places and _kept(places, record, request.prompt.trie)
    if not kept:
        began = time.perf_counter()
        tables = measured(request, settings())
        record["seconds"] = round(time.perf_counter() - began, 2)
        record["environment"] = conventions.environment(request.model.device)
        for name, place in (places or {}).items():
            records.write(place, tables[name], record)
        kept = tables, record
    return _study(request, *kept)


def studies(page: reporting.Page, tasks: Iterable[str]) -> dict[str, Study]:
    """`study` of each task, by name."""
    return {task: study(page.model, task, page.end, page.store) for task in tasks}


def when_measured(found: Iterable[Study]) -> str:
    """When the passes were measured, in one line."""
    return reporting.of_records(one.record for one in found)


def settings() -> Settings:
    """The grid of Table 3, fixed sizes, and temperature alone; each once."""
    grid = product(table3_rules(), TABLE3_TEMPERATURES)
    sizes: Settings = [(TopK(k), 1.0) for k in SIZES]
    return list(dict.fromkeys([*grid, *sizes, *untouched(list(CURVE_TEMPERATURES))]))


def paths_of(folder: Path) -> dict[str, Path]:
    """Where the study of a task is kept whose rows are in `folder`: by table."""
    names = {name: f"{folder.name}.{name}.parquet" for name in ("tokens", "settings")}
    return {name: folder.parent / FOLDER / file for name, file in names.items()}


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """One table of a kept study, and its record; a ResultsError where its numbers cannot be."""
    needed = ("model", "revision", "task", "end", "seconds", "environment")
    table, record = records.read(path, FOLDER, needed, _AGAIN)
    try:
        if "rank" in table:  # ranks from 0, logarithms up to 0
            possible = table[list(_RANKS)].to_numpy(float) * [-1, 1, 1, 1] <= 1e-6
        else:  # shares, each setting once
            names = [*NUMBERS[:1], *NUMBERS[2:], *table.filter(regex="^(alpha|beta)_")]
            shares = table[names].to_numpy(float)
            possible = (shares >= 0) & (shares <= 1 + 1e-9) & (not table.duplicated(KEY).any())
    except (KeyError, TypeError, ValueError):
        possible = np.array(False)
    if not possible.size or not possible.all():  # a comparison with NaN is false
        raise ResultsError(f"{path} holds no possible study: {_AGAIN}")
    return table, record


def _kept(
    places: dict[str, Path], record: dict, trie: Trie
) -> tuple[dict[str, pd.DataFrame], dict] | None:
    """A kept study that stands for a pass now: not of an older convention or other settings."""
    if not all(path.exists() for path in places.values()):
        return None
    tables = {}
    for name, path in places.items():
        tables[name], old = read(path)
        conventions.require_same(path, FOLDER, old, record)
        if not conventions.is_current(FOLDER, old):
            return None
    if not tables["settings"][KEY].equals(keys(settings())):
        return None
    steps = sum(name.startswith("alpha_") for name in tables["settings"])
    if len(tables["tokens"]) != len(TokenTable(trie).edge) or steps != trie.node_depth.max() + 1:
        raise ResultsError(f"{places['tokens']} is not of this prefix tree: {_AGAIN}")
    return tables, old


def measured(request: evaluation.Request, chosen: Settings) -> dict[str, pd.DataFrame]:
    """The tables of a study in one pass, of settings that hold temperature 1 without a cutoff."""
    what = f"{request.model.name} on {request.task.name}"
    found = measure(request.model, request.prompt, chosen, ranks=True, description=what)
    steps, trie = found.steps, request.prompt.trie
    at_one = chosen.index((NoCutoff(), 1.0))
    log_p = steps.gap - steps.log_mass[steps.tokens.node, at_one]
    ranks = {name: getattr(steps, name) for name in ("rank", "gap", "sorted_gap")}
    factors = theorems.factorise(trie, np.exp(steps.edge_uniform_log_p(slice(None))))
    return {
        "tokens": pd.DataFrame({**ranks, "log_p": log_p}),
        "settings": keys(chosen).assign(
            **{name: getattr(found, name) for name in NUMBERS},
            **{f"alpha_{step}": row for step, row in enumerate(factors.alpha, start=1)},
            **{f"beta_{step}": row for step, row in enumerate(factors.beta, start=1)},
        ),
    }


def _study(request: evaluation.Request, tables: dict[str, pd.DataFrame], record: dict) -> Study:
    trie, (tokens, numbers) = request.prompt.trie, (tables["tokens"], tables["settings"])
    alpha, beta = (numbers.filter(like=f"{part}_").to_numpy().T for part in ("alpha", "beta"))
    none = np.empty((trie.n_nodes, 0))
    ranks = Steps(
        TokenTable(trie),
        *(tokens[name].to_numpy() for name in ("rank", "gap", "sorted_gap")),
        *(np.empty(0), np.empty(0, dtype=bool), none, none, none),
    )
    log_p = ranks.tokens.sum_by_edge(tokens.log_p.to_numpy()[:, None])[:, 0]
    factors = theorems.Factors(alpha, beta)
    return Study(request.task, trie, tuple(settings()), numbers, factors, ranks, log_p, record)


# Factors, hardness and heads of each task's study as tables for people, and the claims.

ETAS = (0.05, 0.1, 0.5)
_ETA = 0.1  # nats of precision allowed where hard steps are counted
HARD = 0.1  # nats of recall: a step that need not lose a tenth of it is not called hard
_ROUNDING, _FAR, _ALIKE, _SAYS_NOTHING = 1e-9, 0.1, 1.25, 0.97  # where other claims are decided


def factor_gap(studies: Iterable[Study]) -> float:
    """Largest difference between the products of Thm. E.1 and what the book reports."""
    names = ["sequence_precision", "sequence_recall"]
    products = ((one, np.stack([one.factors.precision, one.factors.recall], 1)) for one in studies)
    return max(float(np.abs(own - one.numbers[names]).to_numpy().max()) for one, own in products)


def hardness_table(studies: Iterable[Study], etas=ETAS) -> pd.DataFrame:
    """How hard each step is (Def. E.2): nats of recall lost at least, at each precision allowed.

    Over the settings of the study and, for steps before which no answer ends, cutoffs that adapt to
    the prefix there (`theorems.step_frontier`). Over all rank cutoffs it is at most as hard. A task
    with fewer steps has no number for the others.
    """
    rows = []
    for study, eta in product(studies, etas):
        hard = theorems.hardness(study.factors, eta)
        for step, frontier in study.step_frontiers.items():
            alpha, beta = frontier.T
            precise = -np.log(alpha) <= eta
            if precise.any():
                hard[step] = min(hard[step], -np.log(beta[precise].max()))
        steps = {f"step {s + 1}": h for s, h in enumerate(np.abs(hard))}
        rows.append({"task": study.task.name, "η": eta, **steps})
    return pd.DataFrame(rows)


def recall_bounds(study: Study) -> pd.DataFrame:
    """Each setting's sequence precision and recall, and the bound of Thm. E.3 at its precision.

    The constants are the hardness of the steps over these very settings: the bound holds for them.
    """
    precision, recall = study.factors.precision, study.factors.recall
    bound = theorems.best_recall_bound(study.factors, precision, np.geomspace(0.01, 5, 60))
    found = {"precision": precision, "recall": recall, "bound": bound}
    return pd.DataFrame({"rule": study.numbers.rule, **found})


def has_fixed_branching(study: Study) -> bool:
    """Assumption 5.1: one length, and as many valid tokens at every prefix of a step."""
    trie = study.trie
    lengths = trie.node_depth[trie.edge_node[trie.sequence_edge]]
    branching = pd.Series(trie.node_branching).groupby(trie.node_depth)
    return bool((branching.nunique() == 1).all()) and len(set(lengths)) == 1


def validity_price(study: Study) -> pd.DataFrame:
    """Val and Div under temperature alone, and the bound of Thm. F.4 at that validity.

    Where Assumption 5.1 fails the theorem says nothing; the bound is then left out (NaN).
    """
    plain = study.numbers[study.numbers.rule == NoCutoff.name]
    table = plain[["temperature", "validity", "diversity"]].assign(bound=np.nan)
    if has_fixed_branching(study):
        _, first = np.unique(study.trie.node_depth, return_index=True)
        branching = study.trie.node_branching[first].tolist()
        table["bound"] = theorems.diversity_bound(table.validity.to_numpy(), branching)
    return table.sort_values("temperature", ignore_index=True)


def validity_prices(studies: Iterable[Study]) -> dict[str, pd.DataFrame]:
    """`validity_price` of every task that has a bound."""
    return {one.task.name: validity_price(one) for one in studies if has_fixed_branching(one)}


def hypothesis_table(studies: Iterable[Study]) -> pd.DataFrame:
    """The hypotheses of Thm. F.4 on every step with a choice."""
    found = {one.task.name: theorems.hypotheses(theorems.heads(one.ranks)) for one in studies}
    return stacked(found, ["task"])


def calibration_table(studies: Iterable[Study]) -> pd.DataFrame:
    """Def. D.1 at every prefix: how many are order calibrated, how far from shape calibrated."""
    columns = {
        "prefixes": ("order", "size"),
        "order calibrated": ("order", "mean"),
        "shape error, median": ("error", "median"),
        "shape error, largest": ("error", "max"),
    }
    parts = {}
    for one in studies:
        known = {"step": one.trie.node_depth + 1, "order": theorems.order_calibrated(one.ranks)}
        prefixes = pd.DataFrame(known).assign(error=theorems.shape_error(one.trie, one.edge_log_p))
        parts[one.task.name] = prefixes.groupby("step", as_index=False).agg(**columns)
    return stacked(parts, ["task"])


def published_masses() -> pd.DataFrame:
    """The authors' mass of each group of tokens by temperature (Fig. 1)."""
    return pd.read_csv(paths.package_data("published", "temperature_rates.csv"))


def key_numbers(
    checks: pd.DataFrame, studies: Iterable[Study], found: pd.DataFrame
) -> dict[str, int | str]:
    """What the book quotes: how many of `theorems.checks` hold, `hypotheses_met`, how far the first
    token of the first task lies from shape calibration, and a sentence per item of errata."""
    told = {"first_token_distance": f"{_first_token(next(iter(studies))):.2f}"}
    told |= {"theorems_hold": int((checks.verdict == "holds").sum()), "theorems": len(checks)}
    told |= {"hypotheses_met": hypotheses_met(found)}
    return told | {f"errata_{item.number}": item.found for item in errata.items()}


def hypotheses_met(found: pd.DataFrame) -> str:
    """How many of the hypotheses of `findings` the model meets, as what it does."""
    _, yes, no, _ = KINDS[HYPOTHESIS]
    met, unmet = ((found.verdict[found.kind == HYPOTHESIS] == word).sum() for word in (yes, no))
    if met + unmet:
        return f"meets {met} of the {met + unmet} hypotheses that its tasks could decide"
    return "does none of the tasks that could decide whether it meets their hypotheses"


def findings(studies: Iterable[Study]) -> pd.DataFrame:
    """What Sec. 4 and 5 say of models, and the premises of their theorems, on this one's trees.

    A task has a vote, unless the model hardly does it at any temperature.
    """
    every = {one.task.name: one for one in studies}
    done, failed = able(reporting.over(every, lambda task: validity_price(every[task])))
    bounds = map(recall_bounds, every.values())
    # Rounded, without minus 0.
    slack = round(float(min((own.bound - own.recall).min() for own in bounds)), 9) + 0.0
    gap = factor_gap(every.values())
    exact = f"largest difference {gap:.0e}, smallest distance to the bound {slack:.2f}"
    said = (
        reporting.REPRODUCED if gap < _ROUNDING and slack > -_ROUNDING else reporting.NOT_REPRODUCED
    )
    claim = "Precision and recall are products of factors, and recall stays below its bound"
    rows = [reporting.Finding(claim, "Thm. E.1, E.3", exact, said, reporting.THEOREM)]

    def vote(kind, source, claim, told, number, margin, concerns, agreement=AGREEMENT):
        """`voted` by the `margin` of the `number` of each study that the claim `concerns`."""
        numbers = {task: number(every[task]) for task in done if concerns(every[task])}
        told = f"{told} {reporting.listed(numbers, numbers.values(), '{}: {:.2f}')}"
        margins = {task: margin(value) for task, value in numbers.items()}
        out = [task for task in failed if concerns(every[task])]
        rows.append(
            reporting.voted(claim, source, told, margins, out, kind=kind, agreement=agreement)
        )

    vote(
        *(HYPOTHESIS, "premise of Thm. E.3 (4.2)"),
        "Digits have at least two hard steps (over the cutoffs tried)",
        f"recall lost at the second hardest step at η = {_ETA:g}, in nats (decided at {HARD:g})",
        _second_hardest,
        lambda lost: min(lost, 1.0) - HARD,
        lambda study: study.task.name.startswith("rng"),
    )
    premise = HYPOTHESIS, "premise of Thm. F.4 (5.2)"
    vote(
        *premise,
        "Valid tokens hold the first ranks",
        "smallest share of a step's prefixes",
        lambda study: hypothesis_table([study])["valid first"].min(),
        lambda share: 1.0 if share == 1 else share - 1,
        has_fixed_branching,
    )
    vote(
        *premise,
        "Logits of valid tokens fall linearly with rank (a geometric head)",
        "distance from the line in nats, worst step, median prefix (decided at ln 2)",
        lambda study: hypothesis_table([study])["median miss"].max(),
        lambda nats: math.log(2) - nats,
        has_fixed_branching,
    )
    vote(
        *premise,
        "All prefixes of a step are equally sharp",
        f"largest sharpness divided by the smallest (decided at {_ALIKE:g})",
        _sharpness_ratio,
        lambda ratio: math.log(_ALIKE / ratio),
        has_fixed_branching,
        reporting.RATIO_AGREEMENT,
    )
    vote(
        *(OURS, "Thm. F.4 (5.2)"),
        "Diversity under temperature stays below the bound, even where its premises fail",
        f"smallest distance below the bound where the bound is below {_SAYS_NOTHING:g}",
        _below_bound,
        lambda distance: distance + 2 * AGREEMENT,  # at T → 0 both are 1/|V|
        has_fixed_branching,
    )
    vote(
        *(CLAIM, "Def. D.1, Sec. 5"),
        "The first token is far from shape calibrated",
        f"total variation from the N-weighted law (decided at {_FAR:g})",
        _first_token,
        lambda error: error - _FAR,
        lambda study: True,
    )
    return reporting.table_of(rows)


def _second_hardest(study: Study) -> float:
    steps = hardness_table([study], (_ETA,)).filter(like="step").iloc[0]
    return float(steps.nlargest(2).iloc[-1]) if len(steps) > 1 else 0.0


def _sharpness_ratio(study: Study) -> float:
    table = hypothesis_table([study]).query("prefixes > 1")
    return float((table["most sharpness"] / table["least sharpness"]).max())


def _below_bound(study: Study) -> float:
    price = validity_price(study).query("bound < @_SAYS_NOTHING")
    return float((price.bound - price.diversity).min())


def _first_token(study: Study) -> float:
    return float(calibration_table([study])["shape error, median"].iloc[0])


# A task small enough to do by hand, as a model that the whole chain accepts: three words, a
# next-letter table written out, and each number beside the sum one would write down.

WORDS = ("at", "ta", "to")
LETTERS = "aot"
# p(next letter | letters so far), in the order a, o, t.
TABLE = {"": (0.2, 0.3, 0.5), "t": (0.4, 0.4, 0.2), "a": (0.25, 0.25, 0.5)}


@dataclass(frozen=True)
class Written(Law):
    """A law written out: for each prefix of token ids, the probability of every token."""

    rows: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]

    def logits(self, node: Node) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(dict(self.rows)[node.prefix])


class Example(NamedTuple):
    """A pass over the words, without a cutoff and with one that keeps 2, and what symbols mean."""

    found: Measurement
    trie: Trie
    letters: dict[int, str]
    edge_p: np.ndarray  # without a cutoff [edge]


def worked_example() -> Example:
    """The three words, their model and one pass over it."""
    task = Task("words", "Write one of the words at, ta, to.", WORDS)
    tokenizer = laws.character_tokenizer(task, n_fillers=0)
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS}
    rows = []
    for prefix, p in TABLE.items():
        row = np.zeros(max(tokenizer.get_vocab().values()) + 1)
        row[list(ids.values())] = p
        rows.append((tuple(ids[letter] for letter in prefix), tuple(row.tolist())))
    model = reference_model(Written(tuple(rows)), task, tokenizer, end="none")
    prompt = render_prompt(model, task, end="none")
    found = measure(model, prompt, [(NoCutoff(), 1.0), (TopK(2), 1.0)], ranks=True)
    letters = {i: letter for letter, i in ids.items()}
    return Example(found, prompt.trie, letters, np.exp(found.edge_log_p[:, 0]))


def definitions(example: Example) -> pd.DataFrame:
    """Each quantity, the sum by hand, and the number of the functions the book uses."""
    found, trie, steps = example.found, example.trie, example.found.steps
    share = np.exp(steps.edge_uniform_log_p([1]))[:, 0]
    precision, recall = theorems.local_precision(trie, share), theorems.local_recall(trie, share)
    factors = theorems.factorise(trie, share)
    node = {"".join(example.letters[s] for s in trie.prefix(n)): n for n in range(trie.n_nodes)}
    ordered = np.where(theorems.order_calibrated(steps), "yes", "no")
    error = theorems.shape_error(trie, found.edge_log_p[:, 0])
    count, branching = trie.node_count, trie.node_branching
    entries = [
        ("3.1", "Val", ".2·.5 + .5·.4 + .5·.4", found.validity[0]),
        ("3.1", "Div", "exp(H(.2, .4, .4)) / 3", found.diversity[0]),
        ("3.2", "N(t), words that begin with t", "2", count[node["t"]]),
        ("3.2", "|G(start)|, first letters that can be right", "2", branching[0]),
        ("4.1", "local precision at the start, 2 kept (t, o)", "1/2", precision[0]),
        ("4.1", "local recall there", "N(t)/3 = 2/3", recall[0]),
        ("4.1", "local precision after t, 2 kept (a, o)", "2/2", precision[node["t"]]),
        ("4.1", "sequence precision", "1/2 · 1", found.sequence_precision[1]),
        ("4.1", "sequence recall (ta, to)", "2/3", found.sequence_recall[1]),
        ("E.1", "α₁ · α₂", "1/2 · 1", factors.precision),
        ("E.1", "β₁ · β₂", "2/3 · 1", factors.recall),
        ("D.1", "order calibrated at the start (a .2 < o .3)", "no", ordered[0]),
        ("D.1", "order calibrated after t", "yes", ordered[node["t"]]),
        ("D.1", "distance to the shape (1/3, 2/3) at the start", ".13 + .17", error[0]),
        ("D.1", "distance to the shape (1/2, 1/2) after t", ".1 + .1", error[node["t"]]),
    ]
    return pd.DataFrame(entries, columns=["definition", "quantity", "by hand", "computed"])


# The laws as controls: the data of the teaching figure.

_CONTROL_TEMPERATURES = tuple(round(0.1 * i, 1) for i in range(1, 31))
CONTROLS: dict[str, Law] = {
    "uniform over V": laws.UniformOverV(),
    "leaky shape": laws.LeakyShape(0.9),
    "equally sharp": laws.EquallySharp(3.0),
    "displaced": laws.Displaced(laws.EquallySharp(3.0), 2),
}


def first_steps(task: Task | str, chosen: dict[str, Law] = CONTROLS) -> pd.DataFrame:
    """The first step of every law at T = 1: law, rank from 0, probability p, n_answers (N)."""
    parts = {}
    for name, law in chosen.items():
        model = reference_model(law, task)
        tokens = TokenTable(render_prompt(model, task).trie)
        node = node_of(tokens, 0, len(model.tokenizer))
        logits = law.logits(node)
        table = pd.DataFrame({"p": np.exp(logits - np.logaddexp.reduce(logits)), "n_answers": 0})
        table.loc[node.symbols, "n_answers"] = node.counts
        ranked = table.iloc[np.argsort(-logits, kind="stable")]
        parts[name] = ranked.assign(rank=np.arange(len(ranked)))
    return stacked(parts, ["law"])


def temperature_curves(task: Task | str, chosen: dict[str, Law] = CONTROLS) -> pd.DataFrame:
    """Rows of `evaluate` for every law from T = 0.1 to 3 without cutoff, column `law`."""
    models = {name: reference_model(law, task) for name, law in chosen.items()}
    asked = {"temperatures": _CONTROL_TEMPERATURES}
    return stacked({name: evaluate(m, task, **asked) for name, m in models.items()}, ["law"])

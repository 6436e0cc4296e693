"""One pass over a task for the formal framework: what its definitions and theorems ask of a model.

Ranks of the valid tokens, the factors of every setting, and what these settings give. Kept beside
the model's rows, since a pass is the only costly part of the chapter. Knows no table for people.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.core.metrics import frontier_area
from calib_utils.core.prompts import Policies
from calib_utils.core.rules import TABLE3_TEMPERATURES, NoCutoff, OracleSize, TopK, table3_rules
from calib_utils.core.split import Steps, TokenTable
from calib_utils.core.tasks import Task, get_task
from calib_utils.core.tries import Trie
from calib_utils.errors import ResultsError
from calib_utils.models.loading import Model
from calib_utils.results import conventions, records
from calib_utils.results.evaluation import (
    Request,
    evaluate,
    keys,
    render_prompt,
    request_for,
    step_losses,
)
from calib_utils.results.measure import Measurement, Settings, measure, untouched
from calib_utils.results.storage import KEY
from calib_utils.studies.controlled_tasks import CURVE_TEMPERATURES
from calib_utils.studies.oracle_cutoffs import split_table
from calib_utils.studies.reporting import (
    NOT_TESTABLE,
    RATIO_AGREEMENT,
    TESTABLE,
    Finding,
    listed,
    or_equal,
    too_low,
    verdict,
)
from calib_utils.theory import theorems
from calib_utils.theory.laws import (
    Displaced,
    EquallySharp,
    Law,
    LeakyShape,
    Node,
    UniformOverG,
    UniformOverV,
    Zipf,
    character_tokenizer,
    node_of,
    reference_model,
)

FOLDER = conventions.FRAMEWORK
TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
QUICK_TASKS = ("us-states", "rng-2")
SIZES = (1, 2, 5, 8, 10, 11, 12, 15, 20, 50, 100, 500)
NUMBERS = ("validity", "diversity", "sequence_precision", "sequence_recall")
_RANKS = ("rank", "gap", "sorted_gap", "log_p")
_AGAIN = "delete it and run 01_formal_framework"


@dataclass(frozen=True)
class Study:
    """One pass over a task: rules of Table 3, fixed sizes, and temperature alone.

    `numbers` has a row per setting (`NUMBERS`), `factors` alpha and beta (Thm. E.1)
    [step, setting], `ranks` the valid tokens' ranks and no setting, `edge_log_p` [edge]
    ln p(symbol | prefix) at T = 1 without cutoff. `record` says what it is of, and what it cost.
    """

    task: Task
    trie: Trie
    settings: tuple
    numbers: pd.DataFrame
    factors: theorems.Factors
    ranks: Steps
    edge_log_p: np.ndarray
    record: dict

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

    def columns(self, name: str) -> list[int]:
        """The settings of one kind of rule."""
        return [i for i, (rule, _) in enumerate(self.settings) if rule.name == name]


def study(
    model: Model, task: Task | str, end: str = "eos", results_dir: str | Path | None = None
) -> Study:
    """What the chapter needs of a task, kept or measured.

    Args:
        results_dir: where to look for a study of the same weights, task and conventions, and to
            keep a new one. Without it everything is computed now and nothing is kept.

    Raises:
        ResultsError: a study of another model or question holds the place, or it cannot be written.
    """
    request = request_for(model, get_task(task), Policies(end), results_dir=results_dir)
    record = {
        **request.identity(),
        **records.of_model(request.model),
        "task": request.task.name,
        "end": end,
        "convention": conventions.CURRENT[FOLDER],
    }
    places = None if request.folder is None else paths_of(request.folder)
    kept = None if places is None else _kept(places, record, request.prompt.trie)
    if kept is None:
        began = time.perf_counter()
        tables = _measured(request)
        record["seconds"] = round(time.perf_counter() - began, 2)
        record["environment"] = conventions.environment(request.model.device)
        for name, table in tables.items():
            if places is not None:
                records.write(places[name], table, record)
        kept = tables, record
    return _study(request, *kept)


def settings() -> Settings:
    """The grid of Table 3, fixed sizes, and temperature alone; each once."""
    grid = [(rule, t) for rule in table3_rules() for t in TABLE3_TEMPERATURES]
    sizes: Settings = [(TopK(k), 1.0) for k in SIZES]
    return list(dict.fromkeys([*grid, *sizes, *untouched(list(CURVE_TEMPERATURES))]))


def paths_of(folder: Path) -> dict[str, Path]:
    """Where the study of a task is kept whose rows are in `folder`: by table."""
    names = {name: f"{folder.name}.{name}.parquet" for name in ("tokens", "settings")}
    return {name: folder.parent / FOLDER / file for name, file in names.items()}


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """One of the two tables of a kept study, and its record.

    Raises:
        ResultsError: not such a file, or numbers that cannot be.
    """
    needed = ("model", "revision", "task", "end", "seconds", "environment")
    table, record = records.read(path, FOLDER, needed, _AGAIN)
    try:
        possible = len(table) and (_tokens_can_be if "rank" in table else _settings_can_be)(table)
    except (KeyError, TypeError, ValueError):
        possible = False
    if not possible:
        raise ResultsError(f"{path} holds no possible study: {_AGAIN}")
    return table, record


def _tokens_can_be(table: pd.DataFrame) -> bool:
    """Ranks from 0, differences from the highest logit downwards, probabilities up to 1."""
    values = table[list(_RANKS)].to_numpy(float)
    below = values[:, 1:] <= 1e-6
    return bool(not np.isnan(values).any() and (values[:, 0] >= 0).all() and below.all())


def _settings_can_be(table: pd.DataFrame) -> bool:
    """Shares, their factors, and a key that no two rows have in common."""
    shares = [*NUMBERS, *(name for name in table if name.startswith(("alpha_", "beta_")))]
    values = table[shares].drop(columns="diversity").to_numpy(float)
    within = (values >= 0) & (values <= 1 + 1e-9)
    return bool(within.all() and not table.duplicated(KEY).any())


def _kept(
    places: dict[str, Path], record: dict, trie: Trie
) -> tuple[dict[str, pd.DataFrame], dict] | None:
    """A kept study that stands for a pass now; one of an older convention or
    other settings does not."""
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


def _measured(request: Request) -> dict[str, pd.DataFrame]:
    chosen = settings()
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


def _study(request: Request, tables: dict[str, pd.DataFrame], record: dict) -> Study:
    trie, (tokens, numbers) = request.prompt.trie, (tables["tokens"], tables["settings"])
    alpha, beta = (
        numbers[[name for name in numbers if name.startswith(f"{part}_")]].to_numpy().T
        for part in ("alpha", "beta")
    )
    none = np.empty((trie.n_nodes, 0))
    ranks = Steps(
        TokenTable(trie),
        *(tokens[name].to_numpy() for name in ("rank", "gap", "sorted_gap")),
        *(np.empty(0), np.empty(0, dtype=bool), none, none, none),
    )
    log_p = ranks.tokens.sum_by_edge(tokens.log_p.to_numpy()[:, None])[:, 0]
    factors = theorems.Factors(alpha, beta)
    return Study(request.task, trie, tuple(settings()), numbers, factors, ranks, log_p, record)


# The formal framework on a model's own prefix trees: definitions worked, hypotheses measured.
#
# Factors, hardness and heads of each task's study as tables for people. Decides the claims of the
# chapter. Knows theory and studies; computes no probability itself.

ETAS = (0.05, 0.1, 0.5)
HARD = 0.1  # nats of recall: a step that need not lose a tenth of it is not called hard


def factor_table(study: Study, sizes=(5, 10, 20, 100)) -> pd.DataFrame:
    """Alpha and beta of every step for fixed numbers of kept tokens, and their products."""
    rows = []
    for k in sizes:
        column = study.settings.index((TopK(k), 1.0))
        for name, values in (("α", study.factors.alpha), ("β", study.factors.beta)):
            steps = {str(step + 1): v for step, v in enumerate(values[:, column])}
            rows.append({"kept": k, "": name, **steps, "product": values[:, column].prod()})
    return pd.DataFrame(rows)


def factor_gap(study: Study) -> float:
    """Largest difference between the products of Thm. E.1 and what the book reports."""
    gaps = [
        study.factors.precision - study.numbers.sequence_precision,
        study.factors.recall - study.numbers.sequence_recall,
    ]
    return float(np.abs(gaps).max())


def hardness_table(study: Study, etas=ETAS) -> pd.DataFrame:
    """How hard each step is (Def. E.2): nats of recall lost at least, at each precision allowed.

    Over the settings of the study, and, for steps before which no answer ends, over cutoffs that
    adapt to the prefix there (`theorems.step_frontier`); the smaller of the two. Over all rank
    cutoffs a step is at most as hard as that.
    """
    rows = []
    for eta in etas:
        hard = theorems.hardness(study.factors, eta)
        for step, frontier in study.step_frontiers.items():
            alpha, beta = frontier.T
            precise = -np.log(alpha) <= eta
            if precise.any():
                hard[step] = min(hard[step], -np.log(beta[precise].max()))
        rows.append({"η": eta, **{f"step {s + 1}": h for s, h in enumerate(np.abs(hard))}})
    return pd.DataFrame(rows)


def hardness_tables(studies: list[Study]) -> pd.DataFrame:
    """`hardness_table` of every task; a task with fewer steps has no number for the others."""
    return _task_by_task(hardness_table, studies)


def _task_by_task(table: Callable[[Study], pd.DataFrame], studies: list[Study]) -> pd.DataFrame:
    """The tables of all studies below each other, the task in front."""
    parts = {one.task.name: table(one) for one in studies}
    return pd.concat(parts, names=["task", None]).reset_index("task").reset_index(drop=True)


def recall_bounds(study: Study) -> pd.DataFrame:
    """Each setting's sequence precision and recall, and the bound of Thm. E.3 at its precision.

    The constants are the hardness of the steps over these very settings: the bound holds for them.
    """
    precision, recall = study.factors.precision, study.factors.recall
    bound = theorems.best_recall_bound(study.factors, precision, np.geomspace(0.01, 5, 60))
    names = [rule.name for rule, _ in study.settings]
    return pd.DataFrame({"rule": names, "precision": precision, "recall": recall, "bound": bound})


def has_fixed_branching(study: Study) -> bool:
    """Assumption 5.1: one length, and as many valid tokens at every prefix of a step."""
    trie = study.trie
    depth = trie.node_depth
    same = all(len(set(trie.node_branching[depth == d])) == 1 for d in range(study.n_steps))
    return same and len(set(depth[trie.edge_node[trie.sequence_edge]])) == 1


def validity_price(study: Study) -> pd.DataFrame:
    """Val and Div under temperature alone, and the bound of Thm. F.4 at that validity.

    Where Assumption 5.1 fails the theorem says nothing; the bound is then left out (NaN).
    """
    columns = study.columns("none")
    val, div = (study.numbers[name].to_numpy()[columns] for name in ("validity", "diversity"))
    bound = np.full(len(val), np.nan)
    if has_fixed_branching(study):
        depth = study.trie.node_depth
        first = [int(np.flatnonzero(depth == d)[0]) for d in range(study.n_steps)]
        bound = theorems.diversity_bound(val, study.trie.node_branching[first])
    temperatures = [study.settings[column][1] for column in columns]
    table = pd.DataFrame(
        {"temperature": temperatures, "validity": val, "diversity": div, "bound": bound}
    )
    return table.sort_values("temperature", ignore_index=True)


def hypothesis_table(studies: list[Study]) -> pd.DataFrame:
    """The hypotheses of Thm. F.4 on every step with a choice, task by task."""
    return _task_by_task(lambda one: theorems.hypotheses(theorems.heads(one.ranks)), studies)


def calibration_table(studies: list[Study]) -> pd.DataFrame:
    """Def. D.1 at every prefix: how many are order calibrated, how far from shape calibrated."""
    rows = []
    for one in studies:
        error = theorems.shape_error(one.trie, one.edge_log_p)
        order = theorems.order_calibrated(one.ranks)
        for depth in range(one.n_steps):
            here = one.trie.node_depth == depth
            rows.append(
                {
                    "task": one.task.name,
                    "step": depth + 1,
                    "prefixes": int(here.sum()),
                    "order calibrated": float(order[here].mean()),
                    "shape error, median": float(np.median(error[here])),
                    "shape error, largest": float(error[here].max()),
                }
            )
    return pd.DataFrame(rows)


def findings(studies: list[Study]) -> pd.DataFrame:
    """The claims of Sec. 4 and 5 about models, decided on this one's prefix trees.

    A task that the model hardly does at any temperature decides none of them but the bound on
    recall, which is a theorem on whatever ranking.
    """
    fixed = [one for one in studies if has_fixed_branching(one)]
    rows = [
        _where_done(_many_hard_steps, studies),
        _recall_bound_holds(studies),
        _where_done(_diversity_bound_holds, fixed),
        _where_done(_valid_tokens_come_first, fixed),
        _where_done(_heads_are_geometric, fixed),
        _where_done(_prefixes_are_equally_sharp, fixed),
        _where_done(_first_token_is_not_shaped, studies),
    ]
    return pd.DataFrame(rows)


def _where_done(decide: Callable[[list[Study]], Finding], studies: list[Study]) -> Finding:
    """What is found on the tasks that the model does at some temperature."""
    done = [one for one in studies if validity_price(one).validity.max() >= TESTABLE]
    found = decide(done or studies)
    return found if done else replace(found, found=too_low(), verdict=NOT_TESTABLE)


def _many_hard_steps(studies: list[Study]) -> Finding:
    eta = 0.1
    counts, second = {}, []
    for one in studies:
        hard = hardness_table(one, (eta,)).drop(columns="η").iloc[0]
        counts[one.task.name] = int((hard > HARD).sum())
        if one.task.name.startswith("rng"):
            second.append(hard.nlargest(2).iloc[-1] if len(hard) > 1 else 0.0)
    told = [f"{counts[one.task.name]} of {one.n_steps}" for one in studies]
    return Finding(
        "Long answers have many hard steps (over the cutoffs looked at)",
        "Def. E.2, Thm. 4.2",
        f"steps that lose more than {HARD:g} nat of recall at η = {eta:g}: "
        + listed(counts, told, "{}: {}"),
        verdict(bool(second), np.array(second) - HARD),
    )


def _recall_bound_holds(studies: list[Study]) -> Finding:
    slack = {one.task.name: recall_bounds(one).eval("bound - recall").min() for one in studies}
    slack = {name: round(float(value), 9) + 0.0 for name, value in slack.items()}  # no minus 0
    return Finding(
        "Recall stays below the bound, with constants measured on the same settings",
        "Thm. E.3 (4.2)",
        "least distance to the bound " + listed(slack, slack.values(), "{}: {:.2f}"),
        verdict(True, min(slack.values()) >= -1e-9),
    )


def _diversity_bound_holds(studies: list[Study]) -> Finding:
    slack = {}
    for one in studies:
        table = validity_price(one).dropna()
        slack[one.task.name] = round(float((table.bound - table.diversity).min()), 6) + 0.0
    return Finding(
        "Diversity under temperature stays below the bound at its validity",
        "Thm. F.4 (5.2)",
        "least distance to the bound " + listed(slack, slack.values(), "{}: {:.3f}"),
        verdict(True, or_equal(list(slack.values()))),
    )


def _valid_tokens_come_first(studies: list[Study]) -> Finding:
    table = _steps(studies)
    first = table["valid first"]
    return Finding(
        "Valid tokens hold the first ranks",
        "hypothesis of Thm. F.4",
        "share of prefixes where they do " + listed(table["name"], first, "{}: {:.0%}"),
        verdict(len(table) > 0, bool((first == 1).all())),
    )


def _heads_are_geometric(studies: list[Study]) -> Finding:
    table = _steps(studies)
    head = table["median R²"]
    return Finding(
        "Their logits fall linearly with rank (a geometric head)",
        "hypothesis of Thm. F.4",
        "median R² of the line (decided at .95) " + listed(table["name"], head, "{}: {:.2f}"),
        verdict(len(table) > 0, head - 0.95),
    )


def _prefixes_are_equally_sharp(studies: list[Study]) -> Finding:
    table = _steps(studies)
    table = table[table.prefixes > 1]
    ratio = table["most sharpness"] / table["least sharpness"]
    return Finding(
        "All prefixes of a step are equally sharp",
        "hypothesis of Thm. F.4",
        "largest sharpness over smallest (decided at 1.25) "
        + listed(table["name"], ratio, "{}: {:.1f}"),
        verdict(len(table) > 0, np.log(1.25 / ratio), RATIO_AGREEMENT),
    )


def _steps(studies: list[Study]) -> pd.DataFrame:
    """`hypothesis_table`, each row with a name."""
    table = hypothesis_table(studies)
    return table.assign(name=table.task + " step " + table.step.astype(str))


def _first_token_is_not_shaped(studies: list[Study]) -> Finding:
    table = calibration_table(studies)
    first = table[table.step == 1]
    error = first["shape error, median"]
    return Finding(
        "The first token is far from shape calibrated",
        "Def. D.1, Sec. 5",
        "total variation from the N-weighted law (decided at .1) "
        + listed(first.task, error, "{}: {:.2f}"),
        verdict(True, error - 0.1),
    )


# A task small enough to do by hand, as a model that the whole chain accepts.
#
# Three two-letter words, a next-letter table written out, and every number of Def. 3.1, 3.2, 4.1
# and D.1 beside the sum one would write down. Knows the public functions; nothing of their
# insides.

WORDS = ("at", "ta", "to")
LETTERS = "aot"
# p(next letter | letters so far), in the order a, o, t.
TABLE = {"": (0.2, 0.3, 0.5), "t": (0.4, 0.4, 0.2), "a": (0.25, 0.25, 0.5)}


@dataclass(frozen=True)
class Written(Law):
    """A law written out as a table.

    Args:
        rows: for each prefix of token ids, the probability of every token.
    """

    rows: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]

    def logits(self, node: Node) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(dict(self.rows)[node.prefix])

    def valid_log_p(self, node: Node, temperature: float = 1.0) -> np.ndarray:
        tempered = self.logits(node) / temperature
        return tempered[node.symbols] - np.logaddexp.reduce(tempered)


@dataclass(frozen=True)
class Example:
    """A pass over the words, without a cutoff and with one that keeps 2, and what symbols mean."""

    found: Measurement
    letters: dict[int, str]

    @property
    def trie(self) -> Trie:
        return self.found.steps.tokens.trie

    @property
    def edge_p(self) -> np.ndarray:
        """Probability of every edge without a cutoff. [edge]"""
        return np.exp(self.found.edge_log_p[:, 0])


def worked_example() -> Example:
    """The three words, their model and one pass over it."""
    task = Task("words", "Write one of the words at, ta, to.", WORDS)
    tokenizer = character_tokenizer(task, n_fillers=0)
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS}
    n_vocab = max(tokenizer.get_vocab().values()) + 1
    rows = []
    for prefix, p in TABLE.items():
        row = np.zeros(n_vocab)
        row[list(ids.values())] = p
        rows.append((tuple(ids[letter] for letter in prefix), tuple(row.tolist())))
    model = reference_model(Written(tuple(rows)), task, tokenizer, end="none")
    prompt = render_prompt(model, task, end="none")
    found = measure(model, prompt, [(NoCutoff(), 1.0), (TopK(2), 1.0)], ranks=True)
    return Example(found, {i: letter for letter, i in ids.items()})


def definitions(example: Example) -> pd.DataFrame:
    """Each quantity, the sum by hand, and the number of the functions the book uses."""
    found, steps, trie = example.found, example.found.steps, example.trie
    share = np.exp(steps.edge_uniform_log_p([1]))[:, 0]
    precision, recall = theorems.local_precision(trie, share), theorems.local_recall(trie, share)
    factors = theorems.factorise(trie, share)
    node = {"".join(example.letters[s] for s in trie.prefix(n)): n for n in range(trie.n_nodes)}
    ordered = theorems.order_calibrated(steps)
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
        ("D.1", "order calibrated at the start (a .2 < o .3)", "no", _yes(ordered[0])),
        ("D.1", "order calibrated after t", "yes", _yes(ordered[node["t"]])),
        ("D.1", "distance to the shape (1/3, 2/3) at the start", ".13 + .17", error[0]),
        ("D.1", "distance to the shape (1/2, 1/2) after t", ".1 + .1", error[node["t"]]),
    ]
    return pd.DataFrame(entries, columns=["definition", "quantity", "by hand", "computed"])


def _yes(holds) -> str:
    return "yes" if holds else "no"


# The laws as controls: what each must measure, and what it does measure through the whole chain.
#
# Knows the formulas of `laws`, and how to ask for numbers; the two meet in one table. Also the
# data of the teaching figure: one step of each law, and its answers under temperature.

CONTROL_TASKS = ("rng-2", "rng-2-sum-at-most-10", "us-states")
# A part of Table 3's temperatures, all of its cutoffs.
TEMPERATURES = (0.6, 1.0, 1.6, 2.5)
CONTROL_TEMPERATURES = tuple(round(0.1 * i, 1) for i in range(1, 31))
CONTROLS: dict[str, Law] = {
    "uniform over V": UniformOverV(),
    "uniform over G": UniformOverG(),
    "leaky shape": LeakyShape(0.9),
    "equally sharp": EquallySharp(3.0),
    "Zipf tail": Zipf(2.0),
    "displaced": Displaced(EquallySharp(3.0), 2),
}


@dataclass(frozen=True)
class Expected:
    """What a law makes of a trie, in float64, by its formulas and none of the chain's arithmetic.

    `oracle_precision` and `oracle_recall` are Prec_seq and Rec_seq (Def. 4.1) of the oracle size.
    `order_calibrated` as in Def. D.1; `proportional` where the *valid* tokens have p proportional
    to N at T = 1 (Def. D.1 asks for no invalid mass as well). With both, the order and the shape
    part of a loss are 0.
    """

    validity: float
    diversity: float
    oracle_precision: float
    oracle_recall: float
    order_calibrated: bool
    proportional: bool


def expected(law: Law, trie: Trie, n_vocab: int, temperature: float = 1.0) -> Expected:
    """Val and Div (Def. 3.1) of a law at a temperature without cutoff, and the oracle size's
    precision and recall, which no temperature changes.

    Raises:
        InvalidRequestError: the law does not fit the trie.
    """
    tokens = TokenTable(trie)
    log_p, uniform = np.empty((2, len(tokens.edge)))
    ordered = proportional = True
    for index in range(trie.n_nodes):
        node = node_of(tokens, index, n_vocab)
        law.require_fits(node)
        own = slice(tokens.first[index], tokens.first[index + 1])
        log_p[own] = law.valid_log_p(node, temperature)
        logits = law.logits(node)
        rank = np.argsort(np.argsort(-logits, kind="stable"))
        kept = rank[node.symbols] < node.n_valid
        uniform[own] = np.where(kept, -math.log(node.n_valid), -math.inf)
        lowest = logits[node.symbols].min()
        ordered &= bool(lowest >= np.delete(logits, node.symbols).max(initial=-math.inf))
        per_answer = law.valid_log_p(node) - np.log(node.counts)
        proportional &= bool(np.ptp(per_answer) < 1e-12)
    drawn, even = (_answer_probabilities(tokens, values) for values in (log_p, uniform))
    share = drawn[drawn > 0] / drawn.sum()
    diversity = np.exp(-(share * np.log(share)).sum()) / trie.n_answers
    # Not `metrics`: what these numbers are held against goes through it.
    return Expected(
        float(drawn.sum()),
        float(diversity) if len(share) else math.nan,
        float(even.sum()),
        float((even > 0).mean()),
        ordered,
        proportional,
    )


def _answer_probabilities(tokens: TokenTable, log_p: np.ndarray) -> np.ndarray:
    """Products along the answers of what the valid tokens have [token]. [answer]"""
    trie = tokens.trie
    edge = np.bincount(tokens.edge, np.exp(log_p), trie.n_edges)
    reach = np.ones(trie.n_nodes)
    for node, child, p in zip(trie.edge_node, trie.edge_child, edge, strict=True):
        if child >= 0:  # a parent's own edge comes before those of its children
            reach[child] = reach[node] * p
    last = trie.sequence_edge
    return np.bincount(trie.sequence_answer, reach[trie.edge_node[last]] * edge[last])


def controls_table(
    tasks: Sequence[Task | str] = CONTROL_TASKS, laws: dict[str, Law] | None = None
) -> pd.DataFrame:
    """Every law on every task, measured as a real model is, beside what its formulas say.

    Returns:
        One row per task and law: `validity`, `diversity` at T = 1 without cutoff, `precision` and
        `recall` of the oracle size, each with its `expected_` twin; `area` under the Val-Div
        frontier of Table 3's cutoffs at `TEMPERATURES`; `order`, `shape`, `size` parts of the loss
        at T = 1 in nats; `order_calibrated`, `proportional` (`Expected`); `deviation`, the largest
        absolute difference from what is expected, of Val and Div at any of the temperatures too.
    """
    rows = []
    for task in map(get_task, tasks):
        for name, law in (laws or CONTROLS).items():
            rows.append({"task": task.name, "law": name, **_control(task, law)})
    return pd.DataFrame(rows)


def _control(task: Task, law: Law) -> dict:
    model = reference_model(law, task)
    trie = render_prompt(model, task).trie
    table = evaluate(model, task, table3_rules(), TEMPERATURES)
    parts = split_table(step_losses(model, task).assign(task=task.name)).iloc[0]
    plain = table[table.rule == NoCutoff.name].set_index("temperature")
    oracle = table[table.rule == OracleSize.name].set_index("temperature").loc[1.0]
    known = {t: expected(law, trie, len(model.tokenizer), t) for t in TEMPERATURES}
    at_one = known[1.0]
    measured = {
        "validity": plain.validity[1.0],
        "diversity": plain.diversity[1.0],
        "precision": oracle.sequence_precision,
        "recall": oracle.sequence_recall,
    }
    pairs = [(plain.validity[t], known[t].validity) for t in TEMPERATURES]
    pairs += [(plain.diversity[t], known[t].diversity) for t in TEMPERATURES]
    pairs += [(measured[n], getattr(at_one, f"oracle_{n}")) for n in ("precision", "recall")]
    return {
        **measured,
        "expected_validity": at_one.validity,
        "expected_diversity": at_one.diversity,
        "expected_precision": at_one.oracle_precision,
        "expected_recall": at_one.oracle_recall,
        "area": frontier_area(table.validity.to_numpy(), table.diversity.to_numpy()),
        **parts[["order", "shape", "size"]],
        "order_calibrated": at_one.order_calibrated,
        "proportional": at_one.proportional,
        "deviation": max(abs(a - b) for a, b in pairs),
    }


def first_steps(task: Task | str, laws: dict[str, Law] | None = None) -> pd.DataFrame:
    """The first step of every law at T = 1, token by token.

    Returns:
        One row per law and token: rank from 0, probability p, n_answers (N, 0 for invalid ones).
    """
    parts = []
    for name, law in (laws or CONTROLS).items():
        model = reference_model(law, task)
        tokens = TokenTable(render_prompt(model, task).trie)
        node = node_of(tokens, 0, len(model.tokenizer))
        logits = law.logits(node)
        n_answers = np.zeros(node.n_vocab, dtype=np.int64)
        n_answers[node.symbols] = node.counts
        order = np.argsort(-logits, kind="stable")
        p = np.exp(logits - np.logaddexp.reduce(logits))[order]
        columns = {"law": name, "rank": np.arange(len(p)), "p": p, "n_answers": n_answers[order]}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def temperature_curves(task: Task | str, laws: dict[str, Law] | None = None) -> pd.DataFrame:
    """Rows of `evaluate` for every law at `CURVE_TEMPERATURES` without cutoff, column `law`."""
    parts = []
    for name, law in (laws or CONTROLS).items():
        table = evaluate(reference_model(law, task), task, temperatures=CONTROL_TEMPERATURES)
        parts.append(table.assign(law=name))
    return pd.concat(parts, ignore_index=True)

"""The formal framework on a model's own prefix trees: definitions worked, hypotheses measured.

One pass per task, its factors, hardness and heads as tables for people. Decides the claims of the
chapter. Knows theory and measurements; computes no probability itself.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from calib_utils import geometric, theory
from calib_utils.controlled import CURVE_TEMPERATURES, Finding, listed, verdict
from calib_utils.evaluation import render_prompt
from calib_utils.measure import Measurement, Settings, measure, untouched
from calib_utils.models import Model
from calib_utils.rules import TABLE3_TEMPERATURES, TopK, table3_rules
from calib_utils.tasks import Task, get_task
from calib_utils.tries import Trie

TASKS = ("us-states", "rng-2", "rng-3", "rng-3-sum-at-most-10")
QUICK_TASKS = ("us-states", "rng-2")
SIZES = (1, 2, 5, 8, 10, 11, 12, 15, 20, 50, 100, 500)
ETAS = (0.05, 0.1, 0.5)
HARD = 0.1  # nats of recall: a step that need not lose a tenth of it is not called hard


@dataclass(frozen=True)
class Study:
    """One pass over a task: rules of Table 3, fixed sizes, and temperature alone."""

    task: Task
    trie: Trie
    settings: Settings
    found: Measurement

    @cached_property
    def factors(self) -> theory.Factors:
        """Alpha and beta of every setting (Thm. E.1). [step, setting]"""
        share = np.exp(self.found.steps.edge_uniform_log_p(slice(None)))
        return theory.factorise(self.trie, share)

    @property
    def n_steps(self) -> int:
        """Tokens of the longest answer, its end included."""
        return int(self.trie.node_depth.max()) + 1

    def columns(self, name: str) -> list[int]:
        """The settings of one kind of rule."""
        return [i for i, (rule, _) in enumerate(self.settings) if rule.name == name]


def study(model: Model, task: Task | str, end: str = "eos") -> Study:
    """Measures what the chapter needs of a task."""
    task = get_task(task)
    prompt = render_prompt(model, task, end=end)
    grid = [(rule, t) for rule in table3_rules() for t in TABLE3_TEMPERATURES]
    sizes: Settings = [(TopK(k), 1.0) for k in SIZES]
    settings = list(dict.fromkeys([*grid, *sizes, *untouched(list(CURVE_TEMPERATURES))]))
    found = measure(model, prompt, settings, ranks=True, description=f"{model.name} on {task.name}")
    return Study(task, prompt.trie, settings, found)


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
        study.factors.precision - study.found.sequence_precision,
        study.factors.recall - study.found.sequence_recall,
    ]
    return float(np.abs(gaps).max())


def hardness_table(study: Study, etas=ETAS) -> pd.DataFrame:
    """How hard each step is (Def. E.2): nats of recall lost at least, at each precision allowed.

    Over the settings of the study, and, for steps before which no answer ends, over cutoffs that
    adapt to the prefix there (`theory.step_frontier`); the smaller of the two. Over all rank
    cutoffs a step is at most as hard as that.
    """
    rows = []
    adaptive = _step_frontiers(study)
    for eta in etas:
        hard = theory.hardness(study.factors, eta)
        for step, frontier in adaptive.items():
            alpha, beta = frontier.T
            precise = -np.log(alpha) <= eta
            if precise.any():
                hard[step] = min(hard[step], -np.log(beta[precise].max()))
        rows.append({"η": eta, **{f"step {s + 1}": h for s, h in enumerate(np.abs(hard))}})
    return pd.DataFrame(rows)


def hardness_tables(studies: list[Study]) -> pd.DataFrame:
    """`hardness_table` of every task; a task with fewer steps has no number for the others."""
    parts = [hardness_table(one).assign(task=one.task.name) for one in studies]
    table = pd.concat(parts, ignore_index=True)
    return table[["task", *[name for name in table if name != "task"]]]


def _step_frontiers(study: Study) -> dict[int, np.ndarray]:
    trie, steps = study.trie, study.found.steps
    first_end = int(trie.node_depth[trie.edge_node[trie.sequence_edge]].min())
    return {d: theory.step_frontier(steps.tokens, steps.rank, d) for d in range(first_end + 1)}


def recall_bounds(study: Study) -> pd.DataFrame:
    """Each setting's sequence precision and recall, and the bound of Thm. E.3 at its precision.

    The constants are the hardness of the steps over these very settings: the bound holds for them.
    """
    precision, recall = study.factors.precision, study.factors.recall
    bound = theory.best_recall_bound(study.factors, precision, np.geomspace(0.01, 5, 60))
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
    val, div = study.found.validity[columns], study.found.diversity[columns]
    bound = np.full(len(val), np.nan)
    if has_fixed_branching(study):
        depth = study.trie.node_depth
        first = [int(np.flatnonzero(depth == d)[0]) for d in range(study.n_steps)]
        bound = geometric.diversity_bound(val, study.trie.node_branching[first])
    temperatures = [study.settings[column][1] for column in columns]
    table = pd.DataFrame(
        {"temperature": temperatures, "validity": val, "diversity": div, "bound": bound}
    )
    return table.sort_values("temperature", ignore_index=True)


def hypothesis_table(studies: list[Study]) -> pd.DataFrame:
    """The hypotheses of Thm. F.4 on every step with a choice, task by task."""
    parts = []
    for one in studies:
        found = geometric.hypotheses(geometric.heads(one.found.steps))
        parts.append(found.assign(task=one.task.name))
    table = pd.concat(parts, ignore_index=True)
    return table[["task", *[name for name in table if name != "task"]]]


def calibration_table(studies: list[Study]) -> pd.DataFrame:
    """Def. D.1 at every prefix: how many are order calibrated, how far from shape calibrated."""
    rows = []
    for one in studies:
        steps = one.found.steps
        plain = one.columns("none")
        at_one = next(c for c in plain if one.settings[c][1] == 1.0)
        error = theory.shape_error(one.trie, one.found.edge_log_p[:, at_one])
        order = theory.order_calibrated(steps)
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
    """The claims of Sec. 4 and 5 about models, decided on this one's prefix trees."""
    rows = [_many_hard_steps(studies), _recall_bound_holds(studies)]
    rows += [
        _diversity_bound_holds(studies),
        *_f4_hypotheses(studies),
        _first_token_is_not_shaped(studies),
    ]
    return pd.DataFrame([vars(row) for row in rows])


def _many_hard_steps(studies: list[Study]) -> Finding:
    eta = 0.1
    counts = {}
    for one in studies:
        hard = hardness_table(one, (eta,)).drop(columns="η").iloc[0]
        counts[one.task.name] = f"{int((hard > HARD).sum())} of {one.n_steps}"
    digits = [name for name in counts if name.startswith("rng")]
    holds = all(int(counts[name].split()[0]) >= 2 for name in digits)
    return Finding(
        "Long answers have many hard steps (over the cutoffs looked at)",
        "Def. E.2, Thm. 4.2",
        f"steps that lose more than {HARD:g} nat of recall at η = {eta:g}: "
        + listed(counts, counts.values(), "{}: {}"),
        verdict(bool(digits), holds),
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
        if len(table):
            slack[one.task.name] = round(float((table.bound - table.diversity).min()), 6) + 0.0
    return Finding(
        "Diversity under temperature stays below the bound at its validity",
        "Thm. F.4 (5.2)",
        "least distance to the bound "
        + (listed(slack, slack.values(), "{}: {:.3f}") or "none: no task has fixed branching"),
        verdict(bool(slack), bool(slack) and min(slack.values()) >= 0),
    )


def _f4_hypotheses(studies: list[Study]) -> list[Finding]:
    table = hypothesis_table([one for one in studies if has_fixed_branching(one)])
    names = table.task + " step " + table.step.astype(str)
    several = table[table.prefixes > 1]
    ratio = several["most sharpness"] / several["least sharpness"]
    several_names = several.task + " step " + several.step.astype(str)
    first, head = table["valid first"], table["median R²"]
    return [
        Finding(
            "Valid tokens hold the first ranks",
            "hypothesis of Thm. F.4",
            "share of prefixes where they do " + listed(names, first, "{}: {:.0%}"),
            verdict(len(table) > 0, bool((first == 1).all())),
        ),
        Finding(
            "Their logits fall linearly with rank (a geometric head)",
            "hypothesis of Thm. F.4",
            "median R² of the line (decided at .95) " + listed(names, head, "{}: {:.2f}"),
            verdict(len(table) > 0, bool((head >= 0.95).all())),
        ),
        Finding(
            "All prefixes of a step are equally sharp",
            "hypothesis of Thm. F.4",
            "largest sharpness over smallest (decided at 1.25) "
            + listed(several_names, ratio, "{}: {:.1f}"),
            verdict(len(several) > 0, bool((ratio <= 1.25).all())),
        ),
    ]


def _first_token_is_not_shaped(studies: list[Study]) -> Finding:
    table = calibration_table(studies)
    first = table[table.step == 1]
    error = first["shape error, median"]
    return Finding(
        "The first token is far from shape calibrated",
        "Def. D.1, Sec. 5",
        "total variation from the N-weighted law (decided at .1) "
        + listed(first.task, error, "{}: {:.2f}"),
        verdict(True, bool((error > 0.1).all())),
    )

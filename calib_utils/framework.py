"""The formal framework on a model's own prefix trees: definitions worked, hypotheses measured.

Factors, hardness and heads of each task's study as tables for people. Decides the claims of the
chapter. Knows theory and studies; computes no probability itself.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from calib_utils import geometric, theory
from calib_utils.controlled import (
    NOT_TESTABLE,
    RATIO_AGREEMENT,
    TESTABLE,
    Finding,
    listed,
    or_equal,
    too_low,
    verdict,
)
from calib_utils.framework_study import Study
from calib_utils.rules import TopK

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
    adapt to the prefix there (`theory.step_frontier`); the smaller of the two. Over all rank
    cutoffs a step is at most as hard as that.
    """
    rows = []
    for eta in etas:
        hard = theory.hardness(study.factors, eta)
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
    val, div = (study.numbers[name].to_numpy()[columns] for name in ("validity", "diversity"))
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
    return _task_by_task(lambda one: geometric.hypotheses(geometric.heads(one.ranks)), studies)


def calibration_table(studies: list[Study]) -> pd.DataFrame:
    """Def. D.1 at every prefix: how many are order calibrated, how far from shape calibrated."""
    rows = []
    for one in studies:
        error = theory.shape_error(one.trie, one.edge_log_p)
        order = theory.order_calibrated(one.ranks)
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

"""The laws as controls: what each must measure, and what it does measure through the whole chain.

Knows the formulas of `laws`, and how to ask for numbers; the two meet in one table. Also the data
of the teaching figure: one step of each law, and its answers under temperature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from calib_utils.evaluation import evaluate, render_prompt, step_losses
from calib_utils.laws import Law, LeakyShape, UniformOverG, UniformOverV, node_of
from calib_utils.metrics import frontier_area
from calib_utils.operating import split_table
from calib_utils.ranked import Displaced, EquallySharp, Zipf
from calib_utils.reference import reference_model
from calib_utils.rules import NoCutoff, OracleSize, table3_rules
from calib_utils.steps import TokenTable
from calib_utils.tasks import Task, get_task
from calib_utils.tries import Trie

TASKS = ("rng-2", "rng-2-sum-at-most-10", "us-states")
# A part of Table 3's temperatures, all of its cutoffs.
TEMPERATURES = (0.6, 1.0, 1.6, 2.5)
CURVE_TEMPERATURES = tuple(round(0.1 * i, 1) for i in range(1, 31))
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
    tasks: Sequence[Task | str] = TASKS, laws: dict[str, Law] | None = None
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
        table = evaluate(reference_model(law, task), task, temperatures=CURVE_TEMPERATURES)
        parts.append(table.assign(law=name))
    return pd.concat(parts, ignore_index=True)

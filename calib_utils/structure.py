"""What a task's answer set looks like before any model runs: size, branching, structural ceiling.

Knows tries and metrics. Asks a tokenizer how answers become tokens, never a network.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from calib_utils import metrics
from calib_utils.evaluation import render_prompt
from calib_utils.models import Model
from calib_utils.tasks import Task, get_task
from calib_utils.tries import Trie, uniform_over_valid, weighted_by_count


def structural_facts(
    model: Model | str, tasks: Iterable[Task | str] | Task | str, *, end: str = "eos"
) -> pd.DataFrame:
    """One row per task, or for one task: what is fixed by the answers and the tokenizer alone.

    Columns: task; answers |V|; nodes (prefixes where the model is asked); tokens per answer;
    valid next tokens |G| by step; `uniform_over_g`, the diversity of a model that is perfectly
    ordered, never invalid and uniform over G; `weighted_by_n`, the same for a shape-calibrated
    model (Def. D.1), which is 1.
    """
    rows = []
    for task in [tasks] if isinstance(tasks, Task | str) else tasks:
        task = get_task(task)
        trie = render_prompt(model, task, end=end).trie
        rows.append(
            {
                "task": task.name,
                "answers": trie.n_answers,
                "nodes": trie.n_nodes,
                "tokens per answer": _span(_sequence_lengths(trie)),
                "valid next tokens by step": branching_by_step(trie),
                "uniform_over_g": diversity_of(trie, uniform_over_valid(trie)),
                "weighted_by_n": diversity_of(trie, weighted_by_count(trie)),
            }
        )
    return pd.DataFrame(rows)


def diversity_of(trie: Trie, edge_log_p: np.ndarray) -> float:
    """Div (Def. 3.1) of a model given by its log-probabilities on the trie's edges [edge]."""
    sequences = metrics.sequence_log_probability(trie, edge_log_p[:, None])
    return float(metrics.diversity(metrics.answer_log_probability(trie, sequences))[0])


def branching_by_step(trie: Trie) -> str:
    """|G| at every depth, as `smallest-largest` where it varies."""
    depths = range(int(trie.node_depth.max()) + 1)
    return " · ".join(_span(trie.node_branching[trie.node_depth == depth]) for depth in depths)


def _sequence_lengths(trie: Trie) -> np.ndarray:
    """Tokens per sequence, the end token included."""
    return trie.node_depth[trie.edge_node[trie.sequence_edge]] + 1


def _span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low}–{high}"

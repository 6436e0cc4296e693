"""One pass of a model over a task's trie, every rule and temperature applied on the way.

Model, prompt, rules and temperatures in; exact numbers per setting out. Keeps only numbers per
edge, never a vocabulary, so memory is flat in answers x vocabulary. Knows nothing of files.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tqdm.auto import tqdm

from calib_utils import metrics, scoring
from calib_utils.models import Model
from calib_utils.prompts import Prompt
from calib_utils.ranking import Ranking
from calib_utils.rules import NoCutoff, Rule
from calib_utils.tries import Trie

# Nodes ranked at once. Below the allocator's mapping threshold memory is recycled; above it the
# page faults cost more than the sort.
_RANKED = 16


@dataclass(frozen=True)
class Measurement:
    """What one pass found: one column per setting (rule, temperature).

    `answer_log_p` is [answer, setting]: ln p of every answer under the rule. `edge_log_p` is
    [edge, setting], the same per step of the trie.
    """

    settings: tuple[tuple[Rule, float], ...]
    validity: np.ndarray
    diversity: np.ndarray
    sequence_precision: np.ndarray
    sequence_recall: np.ndarray
    answer_log_p: np.ndarray
    edge_log_p: np.ndarray


def measure(
    model: Model,
    prompt: Prompt,
    settings: list[tuple[Rule, float]],
    *,
    batch_size: int | None = None,
    description: str = "",
) -> Measurement:
    """Exact Val, Div, Prec_seq and Rec_seq (Def. 3.1, 4.1) of a task under each setting.

    Args:
        settings: (rule, temperature) pairs; pairs that share a temperature share its work.
        batch_size: nodes per forward pass, see `scoring.score`.
        description: shown beside the progress bar.
    """
    trie = prompt.trie
    step = _StepTable(trie)
    edge_log_p = np.empty((trie.n_edges, len(settings)))
    edge_uniform = np.empty_like(edge_log_p)
    ordered = any(rule.uses_ranks for rule, _ in settings)
    with tqdm(total=trie.n_nodes, desc=description or "nodes", unit="node", leave=False) as bar:
        for nodes, logits in scoring.score(model, prompt, batch_size):
            for start in range(0, len(nodes), _RANKED):
                part = slice(start, start + _RANKED)
                ranking = Ranking(logits[part], trie.node_branching[nodes[part]], ordered)
                edges, *columns = step.edges(nodes[part], ranking, settings)
                edge_log_p[edges], edge_uniform[edges] = columns
            bar.update(len(nodes))
    return summarise(trie, settings, edge_log_p, edge_uniform)


def summarise(
    trie: Trie,
    settings: list[tuple[Rule, float]],
    edge_log_p: np.ndarray,
    edge_uniform: np.ndarray,
) -> Measurement:
    """From steps to sequences to answers.

    Args:
        edge_log_p: [edge, setting], ln p(symbol | prefix) under the rule.
        edge_uniform: [edge, setting], the same for the sampler uniform in the retained set.
    """
    by_answer = [
        metrics.answer_log_probability(trie, metrics.sequence_log_probability(trie, table))
        for table in (edge_log_p, edge_uniform)
    ]
    answer_log_p, uniform_log_p = by_answer
    return Measurement(
        tuple(settings),
        metrics.validity(answer_log_p),
        metrics.diversity(answer_log_p),
        metrics.sequence_precision(uniform_log_p),
        metrics.sequence_recall(uniform_log_p),
        answer_log_p,
        edge_log_p,
    )


def untouched(temperatures: list[float]) -> list[tuple[Rule, float]]:
    """The settings of temperature alone."""
    return [(NoCutoff(), temperature) for temperature in temperatures]


class _StepTable:
    """Log-probabilities of a trie's edges from the ranking of their nodes."""

    def __init__(self, trie: Trie):
        order = np.argsort(trie.edge_node, kind="stable")
        bounds = np.searchsorted(trie.edge_node[order], np.arange(trie.n_nodes + 1))
        self._edges = [order[a:b] for a, b in pairwise(bounds)]
        self._trie = trie

    def edges(self, nodes: np.ndarray, ranking: Ranking, settings) -> tuple[np.ndarray, ...]:
        """(edges [edge], ln p [edge, setting], ln p uniform [edge, setting]) of some nodes.

        An end edge may stand for several tokens: their probabilities add up.
        """
        edges = np.concatenate([self._edges[node] for node in nodes])
        ends = self._trie.end_symbols
        row, tokens, first = [], [], []
        for position, node in enumerate(nodes):
            for edge in self._edges[node]:
                symbol = self._trie.edge_symbol[edge]
                members = [symbol] if symbol >= 0 else ends
                first.append(len(tokens))
                row += [position] * len(members)
                tokens += members
        row, slot = np.array(row), _slots(np.array(row))
        table = np.zeros((len(nodes), slot.max() + 1), dtype=np.int64)
        table[row, slot] = tokens
        table = torch.as_tensor(table, device=ranking.top.device)
        gap = ranking.gap(table).cpu().numpy()[row, slot]
        ordered = ranking.negated is not None
        rank = ranking.rank(table).cpu().numpy()[row, slot] if ordered else np.zeros_like(row)

        log_p = np.empty((len(edges), len(settings)))
        uniform = np.empty_like(log_p)
        for temperature in dict.fromkeys(t for _, t in settings):
            step = ranking.at(temperature)
            for column, (rule, its_temperature) in enumerate(settings):
                if its_temperature != temperature:
                    continue
                kept = rule.n_kept(step)
                log_mass = step.log_mass(kept).cpu().numpy()[row]
                kept = kept.cpu().numpy()[row]
                inside = rank < kept
                token_log_p = np.where(inside, gap / temperature - log_mass, -np.inf)
                log_p[:, column] = np.logaddexp.reduceat(token_log_p, first)
                with np.errstate(divide="ignore"):
                    survivors = np.add.reduceat(inside.astype(np.float64), first)
                    uniform[:, column] = np.log(survivors / kept[first])
        return edges, log_p, uniform


def _slots(row: np.ndarray) -> np.ndarray:
    """Position of each entry among the entries of its row; rows come in ascending blocks."""
    starts = np.searchsorted(row, row)
    return np.arange(len(row)) - starts

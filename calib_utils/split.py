"""Where diversity and validity go: exactly over steps, and between order and shape.

Log-probabilities of a trie's edges in, nats out. Knows tries; nothing of models or rules.

Two identities (they hold for every model and task with one token sequence an answer), with p~ the
model given that its answer is valid and N the number of answers below a prefix:

    -ln Val = sum over steps of E_p~ KL(p~(.|prefix) || p(.|prefix))
    -ln Div = sum over steps of E_p~ KL(p~(.|prefix) || N-weighted target at the prefix)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calib_utils.steps import REPAIRS, require_one_sequence
from calib_utils.tries import Trie


@dataclass(frozen=True)
class StepLosses:
    """What each step loses, in nats, [step, setting]: of validity, and of diversity.

    Sums over steps are -ln Val and -ln Div. NaN where validity is 0.
    """

    validity: np.ndarray
    diversity: np.ndarray


def step_losses(trie: Trie, edge_log_p: np.ndarray) -> StepLosses:
    """The two identities, step by step.

    Args:
        edge_log_p: [edge, setting], ln p(symbol | prefix), -inf where cut off.

    Raises:
        InvalidRequestError: an answer has several token sequences.
    """
    require_one_sequence(trie)
    n_settings = edge_log_p.shape[1]
    levels = _edges_by_depth(trie)
    below = np.zeros((trie.n_nodes, n_settings))  # ln of the valid mass below each node
    joint = np.empty_like(edge_log_p)
    for edges in reversed(levels):
        child = trie.edge_child[edges]
        tail = np.where((child >= 0)[:, None], below[child], 0.0)
        joint[edges] = edge_log_p[edges] + tail
        nodes, first = np.unique(trie.edge_node[edges], return_index=True)
        below[nodes] = np.logaddexp.reduceat(joint[edges], first)
    reach = np.zeros((trie.n_nodes, n_settings))
    reach[0] = 1.0
    lost = np.zeros((2, len(levels), n_settings))
    with np.errstate(invalid="ignore"):
        for step, edges in enumerate(levels):
            node, child = trie.edge_node[edges], trie.edge_child[edges]
            log_share = joint[edges] - below[node]
            weight = reach[node] * np.exp(log_share)
            target = np.log(trie.edge_count[edges] / trie.node_count[node])[:, None]
            for place, reference in enumerate((edge_log_p[edges], target)):
                terms = np.where(weight > 0, weight * (log_share - reference), 0.0)
                lost[place, step] = terms.sum(0)
            inner = child >= 0
            reach[child[inner]] = weight[inner]
    lost[:, :, ~np.isfinite(below[0])] = np.nan
    return StepLosses(*lost)


def _edges_by_depth(trie: Trie) -> list[np.ndarray]:
    """The edges that leave the nodes of each depth, those of a node together."""
    depth = trie.node_depth[trie.edge_node]
    order = np.lexsort((trie.edge_node, depth))
    return np.split(order, np.searchsorted(depth[order], np.arange(1, depth.max() + 1)))


@dataclass(frozen=True)
class Split:
    """A loss in nats between its two causes; `order + shape + rest == total`.

    `rest` is what the loss of the decoder with both repaired still is.
    """

    total: np.ndarray
    order: np.ndarray
    shape: np.ndarray
    rest: np.ndarray


def shapley(losses: Mapping[str, np.ndarray]) -> Split:
    """Shares a loss between order and shape by Shapley's value.

    Each part is what its repair saves, averaged over whether it is repaired first or second: the
    only split that adds up, treats both alike and gives nothing to a repair that never saves.

    Args:
        losses: in nats, for each of `steps.REPAIRS`; arrays of one shape.

    >>> found = shapley({"none": 1.0, "order": 0.4, "shape": 0.7, "both": 0.0})
    >>> round(float(found.order), 3), round(float(found.shape), 3)
    (0.65, 0.35)
    """
    none, order, shape, both = (np.asarray(losses[repair], dtype=float) for repair in REPAIRS)
    return Split(
        none, ((none - order) + (shape - both)) / 2, ((none - shape) + (order - both)) / 2, both
    )

"""The frontier over adaptive cutoffs against every assignment of a cutoff to every node."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.adaptive import adaptive_frontier
from calib_utils.steps import TokenTable
from calib_utils.tries import Sequences, build_trie

words = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)


def trie_of(found, ends=(0,)):
    return build_trie(Sequences(tuple(found), tuple(range(len(found))), ends, len(found)))


def ranked(tokens, seed, n_vocab=6):
    """Random distinct ranks for the valid tokens of every node."""
    random = np.random.default_rng(seed)
    rank = np.empty(len(tokens.edge), dtype=np.int64)
    for node in range(tokens.trie.n_nodes):
        own = slice(tokens.first[node], tokens.first[node + 1])
        rank[own] = random.permutation(n_vocab)[: own.stop - own.start]
    return rank


def every_assignment(tokens, rank):
    """(precision, recall) of every way to cut each node right below one of its valid tokens.

    Other cuts keep the same valid tokens among more, so they have less precision.
    """
    trie = tokens.trie
    options = [rank[tokens.first[n] : tokens.first[n + 1]] + 1 for n in range(trie.n_nodes)]
    for sizes in itertools.product(*options):
        below = np.zeros((trie.n_nodes, 2))
        for node in range(trie.n_nodes - 1, -1, -1):
            reached = set()
            for token in range(tokens.first[node], tokens.first[node + 1]):
                edge = tokens.edge[token]
                child = trie.edge_child[edge]
                if rank[token] < sizes[node]:
                    own = below[child] if child >= 0 else [1.0, float(edge not in reached)]
                    below[node] += [own[0] / sizes[node], own[1]]
                    reached.add(edge)
        yield below[0] / [1, trie.n_answers]


@given(
    st.lists(words, min_size=1, max_size=5, unique=True),
    st.sampled_from([(0,), (0, 9)]),
    st.integers(0, 2**31),
)
def test_the_frontier_is_the_hull_of_every_assignment(found, ends, seed):
    tokens = TokenTable(trie_of(found, ends))
    assume(np.prod(np.diff(tokens.first).astype(float)) <= 3000)
    rank = ranked(tokens, seed)
    hull = adaptive_frontier(tokens, rank)
    points = np.array(list(every_assignment(tokens, rank)))
    for weight in np.linspace(0, 1, 41):
        mix = np.array([weight, 1 - weight])
        assert (hull @ mix).max() == pytest.approx((points @ mix).max(), abs=1e-12)
    for corner in hull:
        assert np.abs(points - corner).max(axis=1).min() < 1e-12, "a corner no cutoff attains"
    assert (np.diff(hull[:, 0]) < 0).all()
    assert (np.diff(hull[:, 1]) > 0).all()


def test_keeping_more_can_be_better_in_both():
    # ERRATA 10: valid, invalid, valid. Keeping 2: 1/2 and 1/2; keeping 3: 2/3 and 1.
    tokens = TokenTable(trie_of([(1,), (2,)]))
    rank = np.zeros(len(tokens.edge), dtype=np.int64)
    rank[tokens.symbol == 2] = 2
    found = {tuple(point) for point in adaptive_frontier(tokens, rank).round(12)}
    assert found == {(1.0, 0.5), (round(2 / 3, 12), 1.0)}


def test_a_perfect_order_reaches_one_and_one():
    tokens = TokenTable(trie_of([(1, 2), (1, 3), (2,), (3, 1, 1)]))
    rank = np.arange(len(tokens.edge)) - tokens.first[tokens.node]
    assert adaptive_frontier(tokens, rank).tolist() == [[1.0, 1.0]]


def test_no_rule_lies_outside(tiny, small_task):
    model = tiny("llama", chat=True)
    hull = cu.adaptive_frontier(model, small_task).to_numpy()
    rules = ["top_k=50", "top_k=150", "top_k=250", "top_p=0.9", "min_p=0.01", "oracle_size"]
    table = cu.evaluate(model, small_task, rules, [0.5, 1.0, 2.0])
    points = table[["sequence_precision", "sequence_recall"]].to_numpy()
    for weight in np.linspace(0, 1, 21):
        mix = np.array([weight, 1 - weight])
        assert (points @ mix).max() <= (hull @ mix).max() + 1e-12

"""Prefix trees: hand-counted examples, brute force over random answer sets, ERRATA 11 and 12."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.core import metrics
from calib_utils.core.tries import Sequences, build_trie, uniform_over_valid, weighted_by_count
from calib_utils.errors import TokenizationError

END = 9
SYMBOLS = range(4)  # 0 is a token like any other
words = st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=4).map(tuple)
answer_sets = st.lists(words, min_size=1, max_size=12, unique=True)
some_ends = st.sampled_from([(END,), (7, END, 8)])


def trie_of(answers, ends=(END,)):
    return build_trie(Sequences(tuple(answers), tuple(range(len(answers))), ends, len(answers)))


def prefixes(trie):
    found = [()]
    for node in range(1, trie.n_nodes):
        found.append((*found[trie.node_parent[node]], int(trie.node_symbol[node])))
    return found


def diversity_of(trie, edge_log_p):
    sequences = metrics.sequence_log_probability(trie, edge_log_p[:, None])
    return metrics.diversity(metrics.answer_log_probability(trie, sequences))[0]


def test_a_tree_counted_by_hand():
    trie = trie_of([(1, 2), (1, 3), (4,)])
    assert prefixes(trie) == [(), (1,), (1, 2), (1, 3), (4,)]
    assert trie.node_count.tolist() == [3, 2, 1, 1, 1]
    assert trie.node_branching.tolist() == [2, 2, 1, 1, 1]
    assert trie.valid_symbols(0) == [1, 4]
    assert trie.valid_symbols(1) == [2, 3]
    assert trie.valid_symbols(2) == [END]
    assert [c.tolist() for c in trie.children()] == [[1, 4], [2, 3], [], [], []]
    assert trie.node_parent.tolist() == [-1, 0, 1, 1, 0]
    assert trie.node_symbol.tolist() == [-1, 1, 2, 3, 4]
    assert trie.edge_symbol.tolist() == [1, 2, -1, 3, -1, 4, -1]
    assert trie.edge_child.tolist() == [1, 2, -1, 3, -1, 4, -1]
    assert trie.sequence_edge.tolist() == [2, 4, 6]
    arrays = [value for value in vars(trie).values() if isinstance(value, np.ndarray)]
    assert {array.dtype.kind for array in arrays} == {"i"}, "all can be indices"


def test_an_answer_may_begin_another_when_an_end_token_closes_it():
    trie = trie_of([(1,), (1, 2)])
    assert trie.node_branching.tolist() == [1, 2, 1]
    assert trie.valid_symbols(1) == [2, END]


def test_several_end_symbols_count_in_the_branching_but_close_one_answer():
    trie = trie_of([(1,), (1, 2)], ends=(7, 8, 9))
    assert trie.node_branching.tolist() == [1, 4, 3]
    assert trie.node_count.tolist() == [2, 2, 1]
    assert np.exp(uniform_over_valid(trie)).tolist() == pytest.approx([1, 0.75, 0.25, 1])


def test_without_an_end_the_last_symbol_completes_the_answer():
    trie = trie_of([(1, 2), (1, 3), (4,)], ends=())
    assert prefixes(trie) == [(), (1,)]
    assert trie.node_branching.tolist() == [2, 2]
    assert sorted(trie.edge_child.tolist()) == [-1, -1, -1, 1]


def test_an_answer_with_two_segmentations_counts_once():
    sequences = Sequences(((1, 2), (3,), (1, 4)), (0, 0, 1), (END,), 2)
    trie = build_trie(sequences)
    assert trie.node_count.tolist() == [2, 2, 1, 1, 1]
    assert trie.edge_count[trie.edge_node == 0].tolist() == [2, 1]
    assert trie.sequence_answer.tolist() == [0, 0, 1]
    sequence_p = metrics.sequence_log_probability(trie, uniform_over_valid(trie)[:, None])
    answer_p = np.exp(metrics.answer_log_probability(trie, sequence_p)[:, 0])
    assert answer_p == pytest.approx([1 / 4 + 1 / 2, 1 / 4])


@given(answer_sets, some_ends)
def test_nodes_counts_and_branching_agree_with_enumeration(answers, ends):
    trie = trie_of(answers, ends)
    expected = {a[:k] for a in answers for k in range(len(a) + 1)}
    found = prefixes(trie)
    assert len(found) == len(expected)
    assert set(found) == expected
    closed = [(*a, end) for a in answers for end in ends]
    for node, prefix in enumerate(found):
        below = [a for a in closed if a[: len(prefix)] == prefix]
        following = sorted({a[len(prefix)] for a in below})
        assert trie.node_count[node] == len({a[:-1] for a in below})
        assert trie.node_branching[node] == len(following)
        assert trie.valid_symbols(node) == following
        assert trie.prefix(node) == list(prefix)
        assert trie.node_depth[node] == len(prefix)
        assert trie.node_parent[node] < node


@given(answer_sets)
def test_a_model_weighted_by_count_is_uniform_over_answers(answers):
    trie = trie_of(answers)
    sequences = metrics.sequence_log_probability(trie, weighted_by_count(trie)[:, None])
    assert np.exp(sequences) == pytest.approx(np.full((len(answers), 1), 1 / len(answers)))
    assert diversity_of(trie, weighted_by_count(trie)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("us-states", " ", 0.957),  # New x 4, North x 2, South x 2
        ("rng-3-sum-equals-10", ",", 0.895),
        ("rng-3-sum-at-most-10", ",", 0.606),
        ("rng-4-sum-at-most-10", ",", 0.329),
        ("rng-3", ",", 1.0),
    ],
)
def test_structural_ceiling_of_a_perfectly_ordered_model(name, split, expected):
    trie = cu.trie_of_strings([answer.split(split) for answer in cu.get_task(name).answers])
    assert diversity_of(trie, uniform_over_valid(trie)) == pytest.approx(expected, abs=5e-4)
    assert diversity_of(trie, weighted_by_count(trie)) == pytest.approx(1, abs=1e-12)


def test_a_trie_of_letters():
    trie = cu.trie_of_strings(["ab", "ac", "a"])
    assert trie.n_nodes == 4
    assert trie.node_branching.tolist() == [1, 3, 1, 1]
    # Letters are numbered from 1 in their order, the end is 0.
    assert [trie.valid_symbols(node) for node in range(4)] == [[1], [0, 2, 3], [0], [0]]


def test_a_trie_of_no_answers_is_refused_by_name():
    with pytest.raises(cu.CalibUtilsError, match="give at least one"):
        cu.trie_of_strings([])


@pytest.mark.parametrize(
    ("symbols", "answer", "ends", "message"),
    [
        ((), (), (END,), "there are no answers to build a trie of: give at least one"),
        (((3,), (1, 2), (1, 2)), (0, 1, 2), (END,), "answers 1 and 2 have the same tokens (1, 2)"),
        (((1, 2), (1, 2)), (0, 0), (END,), "the same token sequence is listed twice"),
        (((3,), (1, 2), (1,)), (0, 1, 2), (), "answer 2 begins answer 1; without an end token"),
        (((1,), (END, 1, 8)), (0, 1), (END, 8), "answer 1 contains the end token(s) [8, 9]"),
        (((1,), ()), (0, 1), (END,), "answer 1 has no tokens: remove it from the task"),
    ],
)
def test_ambiguous_sequences_are_refused(symbols, answer, ends, message):
    with pytest.raises(TokenizationError, match=re.escape(message)):
        build_trie(Sequences(symbols, answer, ends, len(set(answer))))


def test_a_sequence_without_its_answer_or_an_answer_without_its_sequence_is_refused():
    for symbols, answer in [(((1,), (2,)), (0,)), (((1,),), (0, 1))]:
        with pytest.raises(ValueError, match=r"shorter|longer"):
            build_trie(Sequences(symbols, answer, (END,), 2))


@given(answer_sets)
def test_without_an_end_exactly_the_prefix_free_sets_are_accepted(answers):
    clash = any(a != b and b[: len(a)] == a for a, b in itertools.product(answers, repeat=2))
    if clash:
        with pytest.raises(TokenizationError):
            trie_of(answers, ends=())
    else:
        assert trie_of(answers, ends=()).n_answers == len(answers)


@given(answer_sets, answer_sets)
def test_fingerprints_tell_answer_sets_apart(first, second):
    def fingerprint(answers):
        return Sequences(tuple(answers), tuple(range(len(answers))), (END,), len(answers))

    same = fingerprint(first).fingerprint() == fingerprint(second).fingerprint()
    assert same == (first == second)

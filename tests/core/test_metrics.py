"""Validity, diversity, precision and recall: by hand, and by the identities of ERRATA 2 and 3."""

import math
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.core import metrics
from calib_utils.core.tries import Sequences, build_trie
from calib_utils.errors import InvalidRequestError

END = 9
log = np.log


def trie_of(answers):
    return build_trie(Sequences(tuple(answers), tuple(range(len(answers))), (END,), len(answers)))


def test_validity_and_diversity_by_hand():
    p = np.array([0.5, 0.25, 0.125])
    assert metrics.validity(log(p)) == pytest.approx(0.875)
    share = p / 0.875
    entropy = -(share * log(share)).sum()
    assert metrics.diversity(log(p)) == pytest.approx(np.exp(entropy) / 3)


@pytest.mark.parametrize(
    ("p", "expected"),
    [([0.2, 0.2], 1.0), ([0.3, 0.0], 0.5), ([0.1, 0.1, 0.0, 0.0], 0.5), ([1e-300, 1e-300], 1.0)],
)
def test_diversity_of_simple_distributions(p, expected):
    with np.errstate(divide="ignore"):
        assert metrics.diversity(log(np.array(p))) == pytest.approx(expected, abs=1e-12)


def test_diversity_is_nan_where_validity_is_zero():
    log_p = np.array([[-np.inf, log(0.5)], [-np.inf, -np.inf]])
    assert metrics.validity(log_p).tolist() == [0.0, 0.5]
    assert np.isnan(metrics.diversity(log_p)[0])
    assert metrics.diversity(log_p)[1] == 0.5
    underflows = np.array([-5000.0, -5000.0])
    assert metrics.validity(underflows) == 0
    assert np.isnan(metrics.diversity(underflows))


def test_probabilities_multiply_along_the_path_and_add_up_over_segmentations():
    trie = build_trie(Sequences(((1, 2), (3,), (1,)), (0, 0, 1), (END,), 2))
    assert trie.edge_symbol.tolist() == [1, -1, 2, -1, 3, -1]
    edge_log_p = log([[0.6], [0.3], [0.5], [0.9], [0.2], [0.8]])
    sequences = metrics.sequence_log_probability(trie, edge_log_p)
    assert np.exp(sequences[:, 0]) == pytest.approx([0.6 * 0.5 * 0.9, 0.2 * 0.8, 0.6 * 0.3])
    answers = metrics.answer_log_probability(trie, sequences)
    assert np.exp(answers[:, 0]) == pytest.approx([0.27 + 0.16, 0.18])


def test_sequence_precision_is_not_validity_under_the_truncated_model():
    # ERRATA 2: p = (.7, .2, .1), valid = ranks 1 and 3, keep 3.
    trie = trie_of([(1,), (3,)])
    p_root, kept = {1: 0.7, 3: 0.1}, 3
    own = [p_root.get(s, 1.0) for s in trie.edge_symbol.tolist()]
    uniform = [1 / kept if s in p_root else 1.0 for s in trie.edge_symbol.tolist()]
    own, uniform = (
        metrics.answer_log_probability(
            trie, metrics.sequence_log_probability(trie, log(p)[:, None])
        )
        for p in (own, uniform)
    )
    assert metrics.sequence_precision(uniform)[0] == pytest.approx(2 / 3)
    assert metrics.validity(own)[0] == pytest.approx(0.8)
    assert metrics.sequence_recall(uniform)[0] == 1


def test_recall_is_the_share_of_answers_that_survive():
    log_p = np.array([[0.0, -np.inf], [-3.0, -np.inf], [-np.inf, -np.inf], [-1.0, -900.0]])
    assert metrics.sequence_recall(log_p).tolist() == [0.75, 0.25]


@st.composite
def random_models(draw):
    """A trie and ln p of its edges: every node gives its valid symbols a random share of 1."""
    words = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
    trie = trie_of(draw(st.lists(words, min_size=1, max_size=12, unique=True)))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    weight = np.exp(draw(st.floats(0.1, 4)) * random.standard_normal(trie.n_edges))
    invalid = np.exp(draw(st.floats(-4, 4)) * random.random(trie.n_nodes))
    total = np.bincount(trie.edge_node, weights=weight) + invalid
    return trie, log(weight / total[trie.edge_node])


def answer_log_p(trie, edge_log_p):
    sequences = metrics.sequence_log_probability(trie, edge_log_p[:, None])
    return metrics.answer_log_probability(trie, sequences)[:, 0]


@given(random_models())
def test_probabilities_are_those_of_enumeration(model):
    trie, edge_log_p = model
    p = dict(zip(zip(trie.edge_node, trie.edge_child, strict=True), edge_log_p, strict=True))
    expected = []
    for edge in trie.sequence_edge:
        total, node = edge_log_p[edge], trie.edge_node[edge]
        while node > 0:
            total += p[trie.node_parent[node], node]
            node = trie.node_parent[node]
        expected.append(total)
    assert answer_log_p(trie, edge_log_p) == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("n_answers", range(1, 200))
def test_rounding_carries_no_measure_out_of_its_range(n_answers):
    # The sum of n equal shares of 1 rounds to above 1 for many n.
    log_p = np.full(n_answers, log(1 / n_answers))
    assert 1 - 1e-12 < metrics.validity(log_p) <= 1
    assert 1 - 1e-12 < metrics.diversity(log_p) <= 1
    log_p[1:] = -np.inf
    assert metrics.diversity(log_p) == 1 / n_answers


points = st.lists(
    st.tuples(st.floats(0, 1), st.one_of(st.floats(0, 1), st.just(np.nan))), max_size=12
).map(lambda pairs: np.array(pairs).reshape(-1, 2))


@given(points)
def test_the_frontier_is_what_nothing_beats(points):
    first, second = points.T
    frontier = metrics.pareto_frontier(first, second)
    usable = np.flatnonzero(~np.isnan(second))
    for index in usable:
        beaten = (first >= first[index]) & (second >= second[index])
        beaten &= (first > first[index]) | (second > second[index])
        on_frontier = any((first[f], second[f]) == (first[index], second[index]) for f in frontier)
        assert on_frontier != beaten.any()
    assert (np.diff(first[frontier]) > 0).all()
    assert (np.diff(second[frontier]) < 0).all()


@given(points)
def test_the_frontier_area_is_the_integral_of_the_best_attainable(points):
    first, second = points.T
    grid = np.unique(np.concatenate([[0.0], first, [1.0]]))
    expected = 0.0
    for low, high in pairwise(grid):
        reach = second[(first >= high) & ~np.isnan(second)]
        expected += (high - low) * (reach.max() if len(reach) else 0)
    assert metrics.frontier_area(first, second) == pytest.approx(expected, abs=1e-12)


# --- The best of so many settings, against all subsets of that many ---

NAN = math.nan


def table_of(pairs, rule="x"):
    validity, diversity = zip(*pairs, strict=True)
    return pd.DataFrame({"rule": rule, "validity": validity, "diversity": diversity})


settings = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 0.79, 0.8, 0.9, 1.0]),
        st.one_of(st.sampled_from([0.1, 0.2, 0.7, NAN]), st.floats(0.01, 1)),
    ),
    min_size=1,
    max_size=9,
)


def brute_force(pairs, level, budget):
    """(mean, 5 % and 95 % quantile) of the best diversity over all subsets of a size."""
    usable = [d if v >= level and not math.isnan(d) else 0.0 for v, d in pairs]
    best = sorted(max(some) for some in combinations(usable, budget))
    # The smallest value that at least q of the subsets do not exceed, in whole numbers.
    low, high = (best[-(-len(best) * twentieths // 20) - 1] for twentieths in (1, 19))
    return sum(best) / len(best), low, high


@given(settings, st.sampled_from([0.3, 0.8, 0.85, 1.0]))
def test_mean_and_band_are_those_over_all_subsets(pairs, level):
    found = cu.best_by_budget(table_of(pairs), level)
    assert found.columns.tolist() == ["rule", "budget", "mean", "low", "high"]
    assert found.budget.tolist() == list(range(1, len(pairs) + 1))
    for row in found.itertuples():
        mean, low, high = brute_force(pairs, level, row.budget)
        assert row.mean == pytest.approx(mean, abs=1e-12)
        assert (row.low, row.high) == (low, high)


@pytest.mark.parametrize("n", [20, 21, 40])
def test_a_quantile_that_falls_between_two_settings_is_the_lower_one(n):
    # One of 20 is exactly 5 %: rounding must not move on to the next.
    values = np.arange(1, n + 1) / n
    first = cu.best_by_budget(table_of([(1.0, v) for v in values])).iloc[0]
    assert first.low == values[-(-n // 20) - 1]
    assert first.high == values[-(-19 * n // 20) - 1]
    assert first["mean"] == pytest.approx(values.mean())


@pytest.mark.parametrize("level", [0, -0.1, 1.01, NAN, math.inf, 80])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(InvalidRequestError, match=f"level {level}: must be above 0 and at most 1"):
        cu.best_by_budget(table_of([(1.0, 0.5)]), level)

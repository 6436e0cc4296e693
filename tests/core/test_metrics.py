"""Validity, diversity, precision and recall: by hand, and by the identities of ERRATA 2 and 3."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib_utils.core import metrics
from calib_utils.core.rules import NoCutoff
from calib_utils.core.tries import Sequences, build_trie, weighted_by_count
from calib_utils.results.measure import summarise

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


def test_diversity_is_nan_where_validity_underflows_to_zero():
    log_p = np.array([-5000.0, -5000.0])
    assert metrics.validity(log_p) == 0
    assert np.isnan(metrics.diversity(log_p))


def test_probabilities_multiply_along_the_path_and_add_up_over_segmentations():
    trie = build_trie(Sequences(((1, 2), (3,), (1,)), (0, 0, 1), (END,), 2))
    p = {(0, 1): 0.6, (0, 3): 0.2, (1, 2): 0.5, (1, -1): 0.3, (2, -1): 0.9, (3, -1): 0.8}
    edges = zip(trie.edge_node.tolist(), trie.edge_symbol.tolist(), strict=True)
    edge_log_p = log([[p[edge]] for edge in edges])
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
    found = summarise(trie, [(NoCutoff(), 1.0)], log(own)[:, None], log(uniform)[:, None])
    assert found.sequence_precision[0] == pytest.approx(2 / 3)
    assert found.validity[0] == pytest.approx(0.8)
    assert found.sequence_recall[0] == 1


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
def test_validity_and_diversity_are_in_range(model):
    trie, edge_log_p = model
    log_p = answer_log_p(trie, edge_log_p)
    assert 0 < metrics.validity(log_p) <= 1
    assert 1 / trie.n_answers <= metrics.diversity(log_p) <= 1


@given(random_models())
def test_val_times_div_splits_into_two_divergences(model):
    # -ln(Val Div) = KL(p~ || p) + KL(p~ || U_V), p~ being p given a valid answer.
    log_p = answer_log_p(*model)
    conditional = log_p - np.logaddexp.reduce(log_p)
    p = np.exp(conditional)
    to_model = (p * (conditional - log_p)).sum()
    to_uniform = (p * (conditional + log(len(p)))).sum()
    left = -log(metrics.validity(log_p) * metrics.diversity(log_p))
    assert left == pytest.approx(to_model + to_uniform, abs=1e-9)


@given(random_models())
def test_lost_diversity_splits_over_steps(model):
    # -ln Div = sum over prefixes of p~(prefix) KL(p~(.|prefix) || N-weighted target).
    trie, edge_log_p = model
    log_p = answer_log_p(trie, edge_log_p)
    share = np.exp(log_p - np.logaddexp.reduce(log_p))
    edge_mass, node_mass = np.zeros(trie.n_edges), np.zeros(trie.n_nodes)
    parent_edge = {int(child): e for e, child in enumerate(trie.edge_child) if child >= 0}
    for sequence, answer in enumerate(trie.sequence_answer):
        edge = int(trie.sequence_edge[sequence])
        while edge is not None:
            edge_mass[edge] += share[answer]
            node_mass[trie.edge_node[edge]] += share[answer]
            edge = parent_edge.get(int(trie.edge_node[edge]))
    conditional = log(edge_mass / node_mass[trie.edge_node])
    steps = (edge_mass * (conditional - weighted_by_count(trie))).sum()
    assert -log(metrics.diversity(log_p)) == pytest.approx(steps, abs=1e-9)


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


def test_settings_are_independent_columns():
    trie = trie_of([(1, 2), (3,)])
    random = np.random.default_rng(0)
    table = -random.random((trie.n_edges, 3))
    together = metrics.sequence_log_probability(trie, table)
    for column in range(3):
        alone = metrics.sequence_log_probability(trie, table[:, [column]])
        assert (together[:, [column]] == alone).all()


@pytest.mark.parametrize("n_answers", range(1, 200))
def test_rounding_carries_no_measure_out_of_its_range(n_answers):
    # The sum of n equal shares of 1 rounds to above 1 for many n.
    log_p = np.full(n_answers, log(1 / n_answers))
    assert 1 - 1e-12 < metrics.validity(log_p) <= 1
    assert 1 - 1e-12 < metrics.diversity(log_p) <= 1
    log_p[1:] = -np.inf
    assert metrics.diversity(log_p) == 1 / n_answers


@given(st.lists(random_models(), min_size=2, max_size=3))
def test_the_measures_of_a_setting_depend_on_its_column_alone(models):
    columns = [answer_log_p(*model) for model in models]
    n_answers = min(map(len, columns))
    table = np.stack([column[:n_answers] for column in columns], axis=1)
    for measure in (metrics.validity, metrics.diversity, metrics.sequence_recall):
        together = measure(table)
        assert together.shape == (len(models),)
        for column, value in zip(table.T, together, strict=True):
            assert measure(column) == pytest.approx(value, rel=1e-12)


@given(random_models(), st.randoms(use_true_random=False), st.integers(1, 5))
def test_neither_the_order_of_answers_nor_one_out_of_reach_adds_anything(model, random, more):
    log_p = answer_log_p(*model)
    shuffled = np.array(random.sample(list(log_p), len(log_p)))
    longer = np.concatenate([shuffled, np.full(more, -np.inf)])
    share = len(log_p) / len(longer)
    assert metrics.validity(longer) == pytest.approx(metrics.validity(log_p), rel=1e-12)
    assert metrics.diversity(longer) == pytest.approx(share * metrics.diversity(log_p), rel=1e-12)
    assert metrics.sequence_recall(longer) == pytest.approx(share)


@given(random_models(), st.floats(0, 700))
def test_diversity_is_blind_to_how_much_mass_is_valid(model, nats):
    log_p = answer_log_p(*model)
    assert metrics.diversity(log_p - nats) == pytest.approx(metrics.diversity(log_p), rel=1e-9)
    expected = metrics.validity(log_p) * np.exp(-nats)
    assert metrics.validity(log_p - nats) == pytest.approx(expected, rel=1e-9, abs=1e-300)


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


@given(points, st.floats(0, 1), st.floats(0, 1))
def test_another_point_never_lowers_the_area_and_a_beaten_one_leaves_it(points, first, second):
    area = metrics.frontier_area(*points.T)
    more = metrics.frontier_area(*np.vstack([points, [first, second]]).T)
    assert area - 1e-12 <= more <= 1
    beaten = ((points[:, 0] >= first) & (points[:, 1] >= second)).any()
    if beaten:
        assert more == pytest.approx(area, abs=1e-12)

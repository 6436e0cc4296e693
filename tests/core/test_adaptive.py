"""The adaptive frontier against every assignment of a cutoff to every node (ERRATA 10).

A cutoff keeps at least one token, at every node it may keep another number.
"""

from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.core.rules import MORE_GRIDS
from calib_utils.core.split import TokenTable, adaptive_frontier
from calib_utils.core.tries import Sequences, build_trie, trie_of_strings
from calib_utils.errors import InvalidRequestError
from calib_utils.models import scoring

AT_MOST = 20_000  # assignments of cutoffs
N_VOCAB = 6  # more than are valid anywhere
N_RANKS = 11  # of two subtrees
CLOSE = 1e-9


def trie_of(answers, ends=(0,)):
    answers = tuple(answers)
    return build_trie(Sequences(answers, tuple(range(len(answers))), ends, len(answers)))


def ranks_in(tokens, rows):
    """[token] rank of each valid token, `rows` holding the vocabulary by rank at every node."""
    places = np.argsort(rows, axis=1)
    return places[tokens.node, tokens.symbol]


@st.composite
def ranked_tries(draw):
    """(tokens, rank [token]) of a trie small enough to try every cutoff at every node."""
    ends = draw(st.sampled_from([(0,), (0, 5), ()]))
    words = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
    if not ends:
        words = st.tuples(st.integers(1, 4), st.integers(1, 4))
    trie = trie_of(sorted(draw(st.sets(words, min_size=1, max_size=5))), ends)
    assume(N_VOCAB**trie.n_nodes <= AT_MOST)
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    tokens = TokenTable(trie)
    rows = random.permuted(np.tile(np.arange(N_VOCAB), (trie.n_nodes, 1)), axis=1)
    return tokens, ranks_in(tokens, rows)


@st.composite
def two_subtrees(draw):
    """(tokens, rank [token]): five answers behind each of two tokens, so hulls of many corners."""
    tokens = TokenTable(trie_of(product((1, 2), range(1, 6)), ()))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    rank = np.arange(len(tokens.edge))
    for node in (1, 2):
        rank[tokens.node == node] = [0, *random.permutation(np.arange(1, N_RANKS))[:4]]
    return tokens, rank


def every_assignment(tokens, rank, n_vocab=N_VOCAB):
    """[assignment, 2]: sequence precision and recall (Def. 4.1) of every choice of cutoffs."""
    trie = tokens.trie
    kept = np.array(list(product(range(1, n_vocab + 1), repeat=trie.n_nodes)))
    precision, answers = np.zeros((2, *kept.shape))
    for node in range(trie.n_nodes - 1, -1, -1):
        reached = set()
        for token in np.flatnonzero(tokens.node == node)[np.argsort(rank[tokens.node == node])]:
            inside, child = rank[token] < kept[:, node], trie.edge_child[tokens.edge[token]]
            ending = child < 0
            precision[:, node] += inside * (1 if ending else precision[:, child])
            # Several end tokens write one answer: it is reached by the first.
            if not ending:
                answers[:, node] += inside * answers[:, child]
            elif tokens.edge[token] not in reached:
                reached.add(tokens.edge[token])
                answers[:, node] += inside
        precision[:, node] /= kept[:, node]
    return np.stack([precision[:, 0], answers[:, 0] / trie.n_answers], axis=1)


def wrapped(points):
    """Corners of the upper right hull by gift wrapping: turn as little as possible, go far."""
    points = np.unique(points.round(12), axis=0)
    most = points[points[:, 0] >= points[:, 0].max() - CLOSE]
    corners = [most[most[:, 1].argmax()]]
    while len(above := points[points[:, 1] > corners[-1][1] + CLOSE]):
        slope = (corners[-1][0] - above[:, 0]) / (above[:, 1] - corners[-1][1])
        best = above[slope <= slope.min() + CLOSE]
        corners.append(best[best[:, 1].argmax()])
    return np.array(corners)


def outside(points, frontier):
    """How far any point lies beyond the upper right hull of a frontier, at most."""
    beyond = [points[:, 0] - frontier[0, 0], points[:, 1] - frontier[-1, 1]]
    for (x0, y0), (x1, y1) in pairwise(frontier):
        normal = np.array([y1 - y0, x0 - x1])
        beyond.append((points - [x0, y0]) @ normal / np.linalg.norm(normal))
    return np.max(beyond)


def check_hull(frontier, points):
    """That a frontier is the upper right hull of the points of all assignments."""
    for point in frontier:
        assert np.abs(points - point).max(1).min() < CLOSE, "attained by some assignment"
    assert outside(points, frontier) < CLOSE, "no assignment does better"
    corners = wrapped(points)
    for corner in corners:
        assert np.abs(frontier - corner).max(1).min() < CLOSE, "no corner is missing"
    assert (np.diff(frontier[:, 0]) < 0).all()
    assert (np.diff(frontier[:, 1]) > 0).all()
    for point in frontier:  # a point between two corners can only come from rounding
        on_a_side = outside(point[None], corners)
        assert abs(on_a_side) < CLOSE
    assert len(corners) <= len(frontier) <= len(corners) + 1


@given(ranked_tries())
def test_the_frontier_is_the_hull_over_all_assignments(case):
    check_hull(adaptive_frontier(*case), every_assignment(*case))


@given(two_subtrees())
def test_hulls_of_many_corners_add_up_to_the_hull_over_all_assignments(case):
    check_hull(adaptive_frontier(*case), every_assignment(*case, N_RANKS))


@given(ranked_tries(), st.floats(0.01, 0.99))
def test_for_every_weighting_the_frontier_holds_the_best(case, weight):
    frontier, points = adaptive_frontier(*case), every_assignment(*case)
    weights = np.array([weight, 1 - weight])
    assert (frontier @ weights).max() == pytest.approx((points @ weights).max(), abs=CLOSE)


def test_invalid_between_valid():
    # Labels V I V: keeping 2 has precision 1/2 and recall 1/2, keeping 3 has 2/3 and 1.
    tokens = TokenTable(trie_of([(1,), (2,)], ()))
    rank = np.array([0, 2])
    points = every_assignment(tokens, rank)
    assert points[1] == pytest.approx([1 / 2, 1 / 2])
    assert points[2] == pytest.approx([2 / 3, 1])
    assert adaptive_frontier(tokens, rank) == pytest.approx(np.array([[1, 1 / 2], [2 / 3, 1]]))


def test_a_point_in_line_with_its_neighbours_is_no_corner():
    # Each of two subtrees is worth (1, 1) or (1/2, 2): one of them in full is half way.
    tokens = TokenTable(trie_of(product((1, 2), repeat=2), ()))
    rank = np.array([0, 1, 0, 3, 0, 3])
    assert [0.75, 0.75] in every_assignment(tokens, rank).tolist()
    assert adaptive_frontier(tokens, rank).tolist() == [[1, 0.5], [0.5, 1]]


def test_the_oracle_size_is_below_the_frontier(measure_logits):
    # The same labels: |G| = 2 tokens kept is worse than 3 in both.
    trie = trie_of([(1,), (2,)], ())
    logits = np.full((1, N_VOCAB), -9.0)
    logits[0, [1, 5, 2]] = [3, 2, 1]
    found = measure_logits(trie, logits, [(cu.OracleSize(), 1.0)], ranks=True)
    frontier = adaptive_frontier(found.steps.tokens, found.steps.rank)
    assert (found.sequence_precision[0], found.sequence_recall[0]) == (0.5, 0.5)
    assert (frontier[-1] > 0.5).all()


def test_a_token_that_comes_late_is_worth_its_answers():
    # Behind rank 2 lie four answers, behind rank 0 one: three corners, each by hand.
    answers = [(1, 1), *((2, last) for last in (1, 2, 3, 4))]
    tokens = TokenTable(trie_of(answers, ()))
    rank = np.empty(len(tokens.edge), dtype=int)
    for token in range(len(rank)):
        node, symbol = tokens.node[token], tokens.symbol[token]
        below = tokens.trie.prefix(node)
        rank[token] = {1: 0, 2: 2}[symbol] if not below else symbol - 1
    expected = np.array([[1, 1 / 5], [2 / 3, 1]])
    assert adaptive_frontier(tokens, rank) == pytest.approx(expected)


@given(ranked_tries())
def test_perfect_order_is_the_single_point_1_1(case):
    tokens, _ = case
    rank = np.arange(len(tokens.edge)) - tokens.first[tokens.node]
    assert adaptive_frontier(tokens, rank).tolist() == [[1.0, 1.0]]


@given(ranked_tries())
def test_promoting_the_valid_tokens_never_lowers_the_frontier(case):
    tokens, rank = case
    order = np.lexsort((rank, tokens.node))
    better = np.empty_like(rank)
    better[order] = np.minimum(rank[order], np.arange(len(rank)) - tokens.first[tokens.node] + 1)
    assert outside(adaptive_frontier(tokens, rank), adaptive_frontier(tokens, better)) < CLOSE


@given(ranked_tries(), st.integers(0, 2**31))
def test_cutoffs_never_lie_outside_and_some_touch(measure_logits, case, seed):
    tokens, _ = case
    logits = np.random.default_rng(seed).standard_normal((tokens.trie.n_nodes, N_VOCAB))
    rules = [rule for rule in cu.table3_rules() if rule.parameter != 500]
    rules += [rule for grid in MORE_GRIDS.values() for rule in grid if rule.is_rank_cutoff]
    rules += [cu.TopK(k) for k in range(1, N_VOCAB)]
    found = measure_logits(tokens.trie, logits, [(rule, 1.0) for rule in rules], ranks=True)
    frontier = adaptive_frontier(found.steps.tokens, found.steps.rank)
    points = np.stack([found.sequence_precision, found.sequence_recall], axis=1)
    assert outside(points, frontier) < CLOSE
    if tokens.trie.n_nodes == 1:  # top-k is then every cutoff there is
        for point in frontier:
            assert np.abs(points - point).max(1).min() < CLOSE


def test_a_wide_and_deep_trie_takes_no_time_to_speak_of():
    # 1,000 answers; the best of 1000^1000 cutoffs where all are valid but for one rank in two.
    tokens = TokenTable(trie_of_strings([f"{n:03d}" for n in range(1000)]))
    rank = 2 * (np.arange(len(tokens.edge)) - tokens.first[tokens.node])
    frontier = adaptive_frontier(tokens, rank)
    assert frontier[0].tolist() == [1.0, 1 / 1000]
    assert frontier[-1] == pytest.approx([(10 / 19) ** 3, 1.0])


def test_several_sequences_an_answer_are_refused():
    trie = build_trie(Sequences(((1, 2), (3,)), (0, 0), (0,), 1))
    tokens = TokenTable(trie)
    with pytest.raises(InvalidRequestError, match="tokenizations='canonical'"):
        adaptive_frontier(tokens, np.zeros(len(tokens.edge), dtype=int))


# Through a model

TASK = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo", "zo", "xy"])
COLUMNS = ["sequence_precision", "sequence_recall"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3.5"])
def test_it_dominates_every_cutoff_of_a_model(tiny, architecture):
    model = tiny(architecture, chat=True)
    rules = [*cu.table3_rules(), *(cu.TopK(k) for k in (1, 2, 3, 5, 100, 150, 200, 250))]
    rules += [rule for grid in MORE_GRIDS.values() for rule in grid if rule.is_rank_cutoff]
    table = cu.evaluate(model, TASK, list(dict.fromkeys(rules)), [0.3, 1.0, 3.0])
    frontier = cu.adaptive_frontier(model, TASK)
    assert frontier.columns.tolist() == COLUMNS
    points, frontier = table[COLUMNS].to_numpy(), frontier.to_numpy()
    assert outside(points, frontier) < CLOSE
    assert len(np.unique(points, axis=0)) > 5
    assert frontier[-1, 1] == 1.0, "keeping all reaches all"


def test_the_frontier_is_stored_and_reused(tiny, tmp_path, monkeypatch):
    model = tiny("llama", chat=True)
    plain = cu.adaptive_frontier(model, TASK)
    first = cu.adaptive_frontier(model, TASK, results_dir=tmp_path)
    monkeypatch.setattr(scoring, "score", lambda *args, **kwargs: pytest.fail("the model ran"))
    again = cu.adaptive_frontier(model, TASK, results_dir=tmp_path)
    pd.testing.assert_frame_equal(plain, first)
    pd.testing.assert_frame_equal(first, again)


def test_a_frontier_is_added_to_stored_rows(tiny, tmp_path):
    model = tiny("llama", chat=True)
    before = cu.evaluate(model, TASK, ["top_k=60"], results_dir=tmp_path)
    frontier = cu.adaptive_frontier(model, TASK, results_dir=tmp_path)
    stored = cu.stored_measurement(model, TASK, tmp_path)
    pd.testing.assert_frame_equal(stored.settings, before, check_dtype=False)
    pd.testing.assert_frame_equal(stored.frontier, frontier)

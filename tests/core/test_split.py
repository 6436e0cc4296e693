"""Losses by step and by cause: the identities, the repairs and what each may change.

Random tries and random logits through `measure`, in place of a model.
"""

from itertools import cycle, pairwise, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import calib_utils as cu
from calib_utils.core import metrics
from calib_utils.core.rules import MORE_GRIDS
from calib_utils.core.split import REPAIRS, TokenTable, adaptive_frontier, shapley, step_losses
from calib_utils.core.tries import Sequences, build_trie, trie_of_strings
from calib_utils.errors import InvalidRequestError, InvalidRuleError
from calib_utils.models import scoring
from calib_utils.results import storage

N_VOCAB = 9
RULES = [
    cu.NoCutoff(),
    cu.TopK(3),
    cu.TopP(0.8),
    cu.MinP(0.2),
    cu.OracleSize(),
    cu.Epsilon(0.05),
    cu.Eta(0.1),
    cu.TopH(0.6),
    cu.TopNSigma(1.0),
    cu.Chain([cu.TopK(6), cu.MinP(0.1)]),
    cu.Chain([cu.TopP(0.9), cu.TopK(5)], "llama.cpp"),
]
SETTINGS = [
    *zip(RULES, cycle([0.3, 1.0, 2.0]), strict=False),
    *((rule, 1.0) for rule in RULES[2:9:3]),
]


def trie_of(answers, ends=(0,)):
    answers = tuple(answers)
    return build_trie(Sequences(answers, tuple(range(len(answers))), ends, len(answers)))


def tries(ends=((0,), (0, 7), ())):
    """Answers over the symbols 1 to 5 with none, one or two end tokens; 6 and 8 are never valid."""
    free = st.sets(
        st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=7
    )
    fixed = st.sets(st.tuples(*[st.integers(1, 5)] * 2), min_size=1, max_size=7)
    return st.sampled_from(ends).flatmap(
        lambda end: (free if end else fixed).map(lambda answers: trie_of(sorted(answers), end))
    )


@st.composite
def models(draw, ends=((0,), (0, 7), ()), ties=True):
    """(trie, logits [node, vocab])"""
    trie = draw(tries(ends))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    logits = draw(st.sampled_from([0.5, 3.0])) * random.standard_normal((trie.n_nodes, N_VOCAB))
    return trie, np.round(logits) if ties and draw(st.booleans()) else logits


def losses_of(steps, repair="none"):
    return step_losses(steps.tokens.trie, steps.edge_log_p(slice(None), repair))


def all_losses(steps):
    return {repair: losses_of(steps, repair) for repair in REPAIRS}


def numbers(steps, repair):
    """(Val, Div) of a repaired decoder, by the metrics rather than by steps."""
    trie = steps.tokens.trie
    log_p = metrics.sequence_log_probability(trie, steps.edge_log_p(slice(None), repair))
    return metrics.validity(log_p), metrics.diversity(log_p)


def check_losses(lost, validity, diversity):
    """That losses over steps add up to -ln Val and -ln Div, and are NaN where Val is 0."""
    positive = validity > 0
    with np.errstate(divide="ignore"):
        expected = np.where(positive, -np.log(validity), np.nan)
    np.testing.assert_allclose(lost.validity.sum(0), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(lost.diversity.sum(0), -np.log(diversity), rtol=0, atol=1e-10)
    for part in (lost.validity, lost.diversity):
        assert (part[:, positive] > -1e-12).all()
        assert np.isnan(part[:, ~positive]).all()


@given(model=models())
def test_losses_over_steps_add_up_for_every_repaired_decoder(measure_logits, model):
    found = measure_logits(*model, [*SETTINGS, (cu.Typical(0.5), 1.0)])
    lost = losses_of(found.steps)
    assert lost.validity.shape == (model[0].node_depth.max() + 1, len(SETTINGS) + 1)
    check_losses(lost, found.validity, found.diversity)
    steps = measure_logits(*model, SETTINGS).steps
    for repair in REPAIRS:
        check_losses(losses_of(steps, repair), *numbers(steps, repair))


def test_losses_by_hand():
    # a leads to two answers, b to one; half of what follows a is invalid, and only one valid half.
    trie = trie_of([(1, 1), (1, 2), (2, 1)], ())
    assert trie.edge_symbol.tolist() == [1, 1, 2, 2, 1]
    lost = step_losses(trie, np.log([[0.4], [0.5], [0.25], [0.4], [1.0]]))
    share_a, share_b = 0.3 / 0.7, 0.4 / 0.7
    log = np.log
    first = share_a * log(share_a / 0.4) + share_b * log(share_b / 0.4)
    assert lost.validity[:, 0] == pytest.approx([first, share_a * log(1 / 0.75)])
    first = share_a * log(share_a / (2 / 3)) + share_b * log(share_b * 3)
    second = share_a * (2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3))
    assert lost.diversity[:, 0] == pytest.approx([first, second])


def test_where_no_answer_is_left_losses_are_nan(measure_logits):
    trie = trie_of([(1,), (2,)])
    logits = np.zeros((trie.n_nodes, N_VOCAB))
    logits[:, 8] = 5.0
    steps = measure_logits(trie, logits, [(cu.TopK(1), 1.0), (cu.NoCutoff(), 1.0)]).steps
    lost = losses_of(steps)
    assert np.isnan(lost.validity[:, 0]).all()
    assert np.isnan(lost.diversity[:, 0]).all()
    assert np.isfinite(lost.validity[:, 1]).all()
    assert np.isfinite(losses_of(steps, "order").validity).all(), "the valid token is first now"


def test_a_step_that_is_cut_off_does_not_spoil_the_others(measure_logits):
    # After 1 nothing valid is kept, two deep; the other branch is measured as if alone.
    trie = trie_of([(1, 1, 1), (2, 1, 1)])
    logits = np.zeros((trie.n_nodes, N_VOCAB))
    below = [node for node in range(trie.n_nodes) if trie.prefix(node)[:1] == [1]]
    logits[below, 8] = 9.0
    found = measure_logits(trie, logits, [(cu.MinP(0.5), 1.0)])
    assert found.diversity[0] == 0.5
    lost = losses_of(found.steps)
    assert lost.diversity.sum() == pytest.approx(np.log(2))
    assert lost.validity.sum() == pytest.approx(-np.log(found.validity[0]))


# Order


def reordered(trie, logits):
    """Logits whose valid tokens take the node's first ranks in their own order, others after."""
    out = np.empty_like(logits)
    for node in range(trie.n_nodes):
        valid = np.isin(np.arange(logits.shape[1]), trie.valid_symbols(node))
        ranked = np.argsort(-logits[node], kind="stable")
        first = np.concatenate([ranked[valid[ranked]], ranked[~valid[ranked]]])
        out[node, first] = logits[node, ranked]
    return out


@given(model=models(ties=False))
def test_order_repair_is_the_model_with_its_tokens_put_in_order(measure_logits, model):
    trie, logits = model
    steps = measure_logits(trie, logits, SETTINGS).steps
    ordered = measure_logits(trie, reordered(trie, logits), SETTINGS).steps
    for repair, same in (("order", "none"), ("both", "shape"), ("order", "order")):
        found = steps.edge_log_p(slice(None), repair)
        expected = ordered.edge_log_p(slice(None), same)
        assert (np.isfinite(found) == np.isfinite(expected)).all()
        np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=1e-12)


@given(model=models(ties=False))
def test_a_model_in_order_loses_nothing_to_order(measure_logits, model):
    trie, logits = model
    steps = measure_logits(trie, reordered(trie, logits), SETTINGS).steps
    assert (steps.edge_log_p(slice(None), "order") == steps.edge_log_p(slice(None), "none")).all()
    found = all_losses(steps)
    for kind in ("validity", "diversity"):
        order = shapley({r: getattr(lost, kind) for r, lost in found.items()}).order
        assert (order == 0).all()


def test_order_is_not_repaired_where_no_top_prefix_is_kept_or_nothing_was_ranked(measure_logits):
    trie = trie_of([(1,), (2,)])
    settings = [(cu.NoCutoff(), 1.0), (cu.Typical(0.5), 1.0)]
    steps = measure_logits(trie, np.zeros((trie.n_nodes, N_VOCAB)), settings).steps
    for repair in ("order", "both"):
        with pytest.raises(InvalidRequestError, match="leave typical"):
            steps.edge_log_p(slice(None), repair)
        assert steps.edge_log_p([0], repair).shape == (trie.n_edges, 1)
    assert steps.edge_log_p([1], "shape").shape == (trie.n_edges, 1)
    with pytest.raises(InvalidRequestError, match="'all' does not exist: choose from"):
        steps.edge_log_p([0], "all")
    unranked = measure_logits(trie, np.zeros((trie.n_nodes, N_VOCAB)), settings[:1]).steps
    for repair in ("order", "both"):
        with pytest.raises(InvalidRequestError, match="ranks=True"):
            unranked.edge_log_p([0], repair)
    assert np.isfinite(unranked.edge_log_p([0], "shape")).all()


# Shape


@given(model=models())
def test_shape_repair_moves_mass_among_the_retained_valid_tokens_only(measure_logits, model):
    trie, logits = model
    steps = measure_logits(trie, logits, SETTINGS).steps
    for start, end in (("none", "shape"), ("order", "both")):
        before, after = (np.exp(steps.edge_log_p(slice(None), repair)) for repair in (start, end))
        assert ((before > 0) == (after > 0)).all()
        for node in range(trie.n_nodes):
            edges = trie.edge_node == node
            np.testing.assert_allclose(after[edges].sum(0), before[edges].sum(0), atol=1e-12)
            count = np.where(after[edges] > 0, trie.edge_count[edges, None], 0)
            share = np.divide(count, count.sum(0), out=np.zeros(count.shape), where=count > 0)
            np.testing.assert_allclose(after[edges], share * before[edges].sum(0), atol=1e-12)


def by_count(trie, tail=-np.inf):
    """Logits with p proportional to N, all else at `tail`."""
    logits = np.full((trie.n_nodes, N_VOCAB), tail)
    symbol = np.where(trie.edge_symbol < 0, 0, trie.edge_symbol)
    logits[trie.edge_node, symbol] = np.log(trie.edge_count)
    return logits


@given(trie=tries(((0,), ())))
def test_a_shape_calibrated_model_loses_nothing_to_order_or_shape(measure_logits, trie):
    settings = [(rule, 1.0) for rule in RULES]
    found = measure_logits(trie, by_count(trie), settings)
    assert found.validity == pytest.approx(np.ones(len(RULES)))
    assert found.diversity[0] == pytest.approx(1.0), "no cutoff"
    losses = all_losses(found.steps)
    for kind in ("validity", "diversity"):
        split = shapley({r: getattr(lost, kind) for r, lost in losses.items()})
        assert split.order == pytest.approx(0, abs=1e-7)
        assert split.shape == pytest.approx(0, abs=1e-7)
        assert split.rest == pytest.approx(split.total, abs=1e-7)
    one, all_kept = found.diversity[1:3], found.sequence_recall[1:3]
    assert (one >= 1 / trie.n_answers - 1e-9).all()
    assert ((one < 1 - 1e-6) == (all_kept < 1)).all(), "the rest is what the cutoff leaves out"


@given(model=models())
def test_the_oracle_size_with_both_repairs_loses_nothing(measure_logits, model):
    settings = [(cu.OracleSize(), t) for t in (0.01, 0.3, 1.0, 3.0)]
    steps = measure_logits(*model, settings).steps
    lost = losses_of(steps, "both")
    assert lost.validity == pytest.approx(0, abs=1e-9)
    assert lost.diversity == pytest.approx(0, abs=1e-9)
    assert numbers(steps, "both") == pytest.approx(np.ones((2, 4)))


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_known_permutation_of_a_flat_step_is_all_order(measure_logits, place):
    # 3 valid tokens, the 3 first ranks equal and the rest nothing; an invalid one takes a rank.
    trie = trie_of([(1,), (2,), (3,)], ())
    logits = np.full((1, N_VOCAB), -np.inf)
    holders = [1, 2, 3]
    holders.insert(place, 6)
    logits[0, holders[:3]] = 1.0
    losses = all_losses(measure_logits(trie, logits, [(cu.NoCutoff(), 1.0)], ranks=True).steps)
    kept = len({1, 2, 3} & set(holders[:3]))
    for kind in ("validity", "diversity"):
        split = shapley({r: getattr(lost, kind).sum() for r, lost in losses.items()})
        assert split.total == pytest.approx(np.log(3 / kept))
        assert split.order == pytest.approx(split.total)
        assert split.shape == pytest.approx(0, abs=1e-12)


def test_a_repaired_order_keeps_the_models_own_order_of_valid_tokens(measure_logits):
    # N = 2 after 1 and 1 after 2, which the model prefers: in order, so only shape is at fault.
    trie = trie_of([(1, 1), (1, 2), (2, 1)], ())
    logits = np.full((trie.n_nodes, N_VOCAB), -np.inf)
    logits[0, [1, 2]] = np.log([1, 2])
    logits[1:, 1] = 0.0
    logits[1 + int(trie.edge_child[0] != 1), 2] = 0.0
    losses = all_losses(measure_logits(trie, logits, [(cu.NoCutoff(), 1.0)], ranks=True).steps)
    split = shapley({r: lost.diversity.sum() for r, lost in losses.items()})
    assert split.order == 0
    assert split.shape == pytest.approx(split.total)
    assert split.total > 0.1


# Shapley's value

tables = arrays.arrays(float, (4, 3, 2), elements=st.floats(0, 100))


@given(tables)
def test_shares_add_up_and_treat_both_causes_alike(table):
    losses = dict(zip(REPAIRS, table, strict=True))
    split = shapley(losses)
    np.testing.assert_allclose(split.order + split.shape + split.rest, split.total, atol=1e-9)
    swapped = shapley({**losses, "order": losses["shape"], "shape": losses["order"]})
    assert (swapped.order == split.shape).all()
    assert (swapped.shape == split.order).all()
    assert (split.total == losses["none"]).all()
    assert (split.rest == losses["both"]).all()


@given(tables)
def test_a_repair_that_never_saves_gets_nothing(table):
    none, shape, *_ = table
    split = shapley({"none": none, "order": none, "shape": shape, "both": shape})
    assert (split.order == 0).all()
    np.testing.assert_allclose(split.shape, none - shape, atol=1e-12)


# Through a model

TASK = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo", "zo"])


@pytest.fixture
def tiny_model(tiny):
    return tiny("llama", chat=True)


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(scoring, "score", never_run)


def never_run(*args, **kwargs):
    pytest.fail("the model ran")


def test_losses_do_not_depend_on_which_other_rules_are_asked_for(tiny_model):
    alone = cu.step_losses(tiny_model, TASK)
    beside = cu.step_losses(tiny_model, TASK, ["none", "top_k=5"])
    pd.testing.assert_frame_equal(alone, beside[beside.rule == "none"].reset_index(drop=True))


def test_losses_and_the_frontier_are_stored_and_reused(tiny_model, tmp_path, monkeypatch):
    rules = ["none", "top_p=0.99"]
    plain = cu.step_losses(tiny_model, TASK, rules, [0.5, 2.0])
    first = cu.step_losses(tiny_model, TASK, rules, [0.5, 2.0], results_dir=tmp_path)
    frontier = cu.adaptive_frontier(tiny_model, TASK, results_dir=tmp_path)
    monkeypatch.setattr(scoring, "score", never_run)
    again = cu.step_losses(tiny_model, TASK, rules, [0.5, 2.0], results_dir=tmp_path)
    pd.testing.assert_frame_equal(plain, first)
    pd.testing.assert_frame_equal(first, again, check_dtype=False)
    kept = cu.adaptive_frontier(tiny_model, TASK, results_dir=tmp_path)
    pd.testing.assert_frame_equal(frontier, kept)
    turned = cu.step_losses(tiny_model, TASK, rules[::-1], [2.0], results_dir=tmp_path)
    assert turned.rule.unique().tolist() == ["top_p", "none"]
    assert len(cu.evaluate(tiny_model, TASK, rules, [0.5, 2.0], results_dir=tmp_path)) == 4


def test_losses_of_rows_stored_without_them_are_added(tiny_model, tmp_path):
    cu.evaluate(tiny_model, TASK, ["none", "top_k=60"], results_dir=tmp_path)
    found = cu.step_losses(tiny_model, TASK, ["none"], results_dir=tmp_path)
    expected = cu.step_losses(tiny_model, TASK, ["none"])
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    stored = cu.stored_measurement(tiny_model, TASK, tmp_path)
    assert stored.settings.rule.tolist() == ["none", "top_k"]
    assert set(stored.losses.rule) == {"none"}


@pytest.mark.parametrize(
    ("sampler", "name"),
    [
        ("typical=0.5", "'typical=0.5'"),
        ("typical=0.5+top_k=5", r"'typical=0.5\+top_k=5'"),
        (cu.Processors(abs, "own"), "'own'"),
    ],
)
def test_samplers_whose_order_cannot_be_repaired_are_refused(tiny_model, no_model, sampler, name):
    with pytest.raises(InvalidRuleError, match=f"{name} keeps no top prefix.*leave it out"):
        cu.step_losses(tiny_model, TASK, ["none", sampler])


def test_several_sequences_an_answer_are_refused(tiny_model, no_model, tmp_path):
    trie = build_trie(Sequences(((1, 2), (3,)), (0, 0), (0,), 1))
    with pytest.raises(InvalidRequestError, match="tokenizations='canonical'"):
        step_losses(trie, np.zeros((trie.n_edges, 1)))
    with pytest.raises(InvalidRequestError, match="tokenizations='canonical'"):
        adaptive_frontier(TokenTable(trie), np.zeros(4, dtype=int))
    for policy in ({"tokenizations": "all"}, {"surface": "any_space"}):
        with pytest.raises(InvalidRequestError, match="surface='exact'"):
            cu.evaluate(tiny_model, TASK, details=True, results_dir=tmp_path, **policy)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_details_go_with_several_end_tokens(tiny_model, tmp_path):
    table = cu.evaluate(
        tiny_model, TASK, ["none"], [1.0], end="line", details=True, results_dir=tmp_path
    )
    stored = storage.read(storage.folder_of(tmp_path, tiny_model.key, TASK.name, "@end=line"))
    own = stored.losses[stored.losses.repair == "none"]
    assert np.exp(-own.validity_loss.sum()) == pytest.approx(table.validity[0])
    assert np.exp(-own.diversity_loss.sum()) == pytest.approx(table.diversity[0])


# --- The adaptive frontier against every assignment of a cutoff to every node (ERRATA 10) ---

AT_MOST = 20_000  # assignments of cutoffs
N_TOKENS = 6  # more than are valid anywhere
N_RANKS = 11  # of two subtrees
CLOSE = 1e-9


@st.composite
def ranked_tries(draw):
    """(tokens, rank [token]) of a trie small enough to try every cutoff at every node."""
    ends = draw(st.sampled_from([(0,), (0, 5), ()]))
    words = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
    if not ends:
        words = st.tuples(st.integers(1, 4), st.integers(1, 4))
    trie = trie_of(sorted(draw(st.sets(words, min_size=1, max_size=5))), ends)
    assume(N_TOKENS**trie.n_nodes <= AT_MOST)
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    tokens = TokenTable(trie)
    rank = random.permuted(np.tile(np.arange(N_TOKENS), (trie.n_nodes, 1)), axis=1)
    return tokens, rank[tokens.node, tokens.symbol]


@st.composite
def two_subtrees(draw):
    """(tokens, rank [token]): five answers behind each of two tokens, so hulls of many corners."""
    tokens = TokenTable(trie_of(product((1, 2), range(1, 6)), ()))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    rank = np.arange(len(tokens.edge))
    for node in (1, 2):
        rank[tokens.node == node] = [0, *random.permutation(np.arange(1, N_RANKS))[:4]]
    return tokens, rank


def every_assignment(tokens, rank, n_vocab=N_TOKENS):
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
    assert (np.diff(frontier[:, 0]) < 0).all()
    assert (np.diff(frontier[:, 1]) > 0).all()


@given(ranked_tries(), two_subtrees())
def test_the_frontier_is_the_hull_over_all_assignments(case, of_many_corners):
    check_hull(adaptive_frontier(*case), every_assignment(*case))
    check_hull(adaptive_frontier(*of_many_corners), every_assignment(*of_many_corners, N_RANKS))


def test_a_point_in_line_with_its_neighbours_is_no_corner():
    # Each of two subtrees is worth (1, 1) or (1/2, 2): one of them in full is half way.
    tokens = TokenTable(trie_of(product((1, 2), repeat=2), ()))
    rank = np.array([0, 1, 0, 3, 0, 3])
    assert [0.75, 0.75] in every_assignment(tokens, rank).tolist()
    assert adaptive_frontier(tokens, rank).tolist() == [[1, 0.5], [0.5, 1]]


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


@given(ranked_tries(), st.integers(0, 2**31))
def test_cutoffs_never_lie_outside_and_some_touch(measure_logits, case, seed):
    tokens, _ = case
    logits = np.random.default_rng(seed).standard_normal((tokens.trie.n_nodes, N_TOKENS))
    rules = [rule for rule in cu.table3_rules() if rule.parameter != 500]
    rules += [rule for grid in MORE_GRIDS.values() for rule in grid if rule.is_rank_cutoff]
    rules += [cu.TopK(k) for k in range(1, N_TOKENS)]
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

"""Where the loss goes: both identities, the split's properties, and models whose split is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils import results, scoring
from calib_utils.errors import InvalidRequestError, InvalidRuleError
from calib_utils.measure import measure
from calib_utils.operating import split_by_step, split_table
from calib_utils.split import shapley, step_losses
from calib_utils.steps import REPAIRS
from calib_utils.tries import Sequences, build_trie

N_VOCAB = 12
END = 0
RULES = [cu.NoCutoff(), cu.TopK(2), cu.TopK(5), cu.TopP(0.8), cu.MinP(0.2), cu.OracleSize()]
TEMPERATURES = (0.5, 1.0, 2.0)
SETTINGS = [(rule, t) for rule in RULES for t in TEMPERATURES]

words = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
tries = st.lists(words, min_size=1, max_size=9, unique=True).map(
    lambda found: build_trie(Sequences(tuple(found), tuple(range(len(found))), (END,), len(found)))
)


def measured(trie, logits, settings=SETTINGS):
    """The measurement of a model that gives these logits. [node, vocab]"""

    def score(model, prompt, batch_size):
        yield np.arange(trie.n_nodes), torch.tensor(logits, dtype=torch.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "score", score)
        return measure(None, SimpleNamespace(trie=trie, ids=()), settings)


def random_logits(trie, seed):
    return 2 * np.random.default_rng(seed).standard_normal((trie.n_nodes, N_VOCAB))


def split_of(found):
    trie, steps = found.steps.tokens.trie, found.steps
    lost = {r: step_losses(trie, steps.edge_log_p(slice(None), r)) for r in REPAIRS}
    return lost, shapley({r: lost[r].validity + lost[r].diversity for r in REPAIRS})


def probabilities(found, repair):
    """p of every answer. [answer, setting]"""
    trie = found.steps.tokens.trie
    edges = found.steps.edge_log_p(slice(None), repair)
    return np.exp(cu.metrics.sequence_log_probability(trie, edges))


@given(tries, st.integers(0, 2**31))
def test_step_losses_add_up_to_the_logarithms_of_validity_and_diversity(trie, seed):
    found = measured(trie, random_logits(trie, seed))
    lost = step_losses(trie, found.edge_log_p)
    dead = found.validity == 0
    assert np.isnan(lost.validity[:, dead]).all()
    assert np.isnan(lost.diversity[:, dead]).all()
    for loss, value in ((lost.validity, found.validity), (lost.diversity, found.diversity)):
        assert (loss[:, ~dead] >= -1e-12).all()
        np.testing.assert_allclose(np.exp(-loss[:, ~dead].sum(0)), value[~dead], rtol=1e-9)


@given(tries, st.integers(0, 2**31))
def test_the_parts_add_up_at_every_step_and_the_oracle_has_no_size_part(trie, seed):
    found = measured(trie, random_logits(trie, seed))
    lost, split = split_of(found)
    gap = split.order + split.shape + split.rest - split.total
    assert np.nanmax(np.abs(gap), initial=0.0) < 1e-9
    oracle = [isinstance(rule, cu.OracleSize) for rule, _ in SETTINGS]
    # Ordered, a node's |G| first tokens are its valid ones; reshaped, answers are uniform.
    np.testing.assert_allclose(lost["both"].validity[:, oracle], 0, atol=1e-9)
    np.testing.assert_allclose(lost["both"].diversity[:, oracle], 0, atol=1e-9)


@given(tries, st.integers(0, 2**31))
def test_repairing_order_never_lowers_the_probability_of_an_answer(trie, seed):
    found = measured(trie, random_logits(trie, seed))
    assert (probabilities(found, "order") >= probabilities(found, "none") * (1 - 1e-12)).all()


@given(tries, st.integers(0, 2**31))
def test_repairing_shape_keeps_each_nodes_valid_mass_and_follows_n(trie, seed):
    found = measured(trie, random_logits(trie, seed))
    before, after = (np.exp(found.steps.edge_log_p(slice(None), r)) for r in ("none", "shape"))
    for node in range(trie.n_nodes):
        own = trie.edge_node == node
        np.testing.assert_allclose(after[own].sum(0), before[own].sum(0), rtol=1e-9, atol=1e-300)
        kept = before[own] > 0
        target = np.where(kept, trie.edge_count[own][:, None], 0.0)
        scale = np.where(target.sum(0) > 0, before[own].sum(0) / target.sum(0).clip(1), 0.0)
        np.testing.assert_allclose(after[own], target * scale, rtol=1e-9, atol=1e-300)
        assert (kept == (after[own] > 0)).all()


def ordered_logits(trie, seed):
    """Random, but with every valid token above every invalid one."""
    logits = random_logits(trie, seed)
    for node in range(trie.n_nodes):
        logits[node, trie.valid_symbols(node)] += 50
    return logits


@given(tries, st.integers(0, 2**31))
def test_a_model_in_order_has_no_order_part(trie, seed):
    _, split = split_of(measured(trie, ordered_logits(trie, seed)))
    np.testing.assert_allclose(split.order[np.isfinite(split.order)], 0, atol=1e-9)


def calibrated_logits(trie):
    """p proportional to N, nothing invalid: shape-calibrated (Def. D.1)."""
    logits = np.full((trie.n_nodes, N_VOCAB), -np.inf)
    symbol = np.where(trie.edge_symbol < 0, END, trie.edge_symbol)
    logits[trie.edge_node, symbol] = np.log(trie.edge_count)
    return logits


@given(tries)
def test_a_shape_calibrated_model_has_neither_part(trie):
    found = measured(trie, calibrated_logits(trie), [(rule, 1.0) for rule in RULES])
    _, split = split_of(found)
    np.testing.assert_allclose(split.order, 0, atol=1e-6)
    np.testing.assert_allclose(split.shape, 0, atol=1e-6)
    assert found.validity[0] == pytest.approx(1, abs=1e-6)
    assert found.diversity[0] == pytest.approx(1, abs=1e-6)


def test_a_model_wrong_only_in_order_loses_only_by_order():
    # Two answers of one token each; the same sorted probabilities, with an invalid token first.
    trie = build_trie(Sequences(((1,), (2,)), (0, 1), (END,), 2))
    logits = np.full((trie.n_nodes, N_VOCAB), -60.0)
    logits[0, [7, 1, 2]] = [10.0, 10.0 - 1e-3, -60.0]
    logits[1:, END] = 10.0
    found = measured(trie, logits, [(cu.OracleSize(), 1.0)])
    _, split = split_of(found)
    assert found.diversity[0] == pytest.approx(0.5)
    assert split.order.sum() == pytest.approx(split.total.sum(), abs=1e-3)
    assert abs(split.shape.sum()) < 1e-3


def test_shapley_is_fair_and_idle_repairs_get_nothing():
    found = shapley({"none": 2.0, "order": 2.0, "shape": 0.5, "both": 0.5})
    assert (found.order, found.shape, found.rest) == (0, 1.5, 0.5)
    found = shapley({"none": 2.0, "order": 1.0, "shape": 1.0, "both": 0.5})
    assert found.order == found.shape == 0.75


def test_typical_has_no_order_repair(tiny, small_task):
    trie = build_trie(Sequences(((1,), (2,)), (0, 1), (END,), 2))
    found = measured(trie, random_logits(trie, 1), [(cu.Typical(0.9), 1.0)])
    assert np.isfinite(found.steps.edge_log_p(slice(None), "shape")).any()
    with pytest.raises(InvalidRequestError, match="typical"):
        found.steps.edge_log_p(slice(None), "order")
    with pytest.raises(InvalidRuleError, match="no top prefix"):
        cu.step_losses(tiny("llama", chat=True), small_task, ["typical=0.9"])


def test_several_sequences_an_answer_are_refused():
    trie = build_trie(Sequences(((1,), (2,)), (0, 0), (END,), 1))
    with pytest.raises(InvalidRequestError, match="canonical"):
        step_losses(trie, np.zeros((trie.n_edges, 1)))


def test_losses_and_frontier_are_stored_with_the_rows_and_reused(
    tiny, small_task, tmp_path, monkeypatch
):
    model, rules = tiny("llama", chat=True), ["none", "top_k=100", "oracle_size"]
    rows = cu.evaluate(model, small_task, rules, [0.7, 1.5], details=True, results_dir=tmp_path)
    live = cu.step_losses(model, small_task, rules, [0.7, 1.5])
    hull = cu.adaptive_frontier(model, small_task)
    monkeypatch.setattr(scoring, "score", lambda *a, **k: pytest.fail("the model ran"))
    again = cu.step_losses(model, small_task, rules, [0.7, 1.5], results_dir=tmp_path)
    np.testing.assert_allclose(again.diversity_loss, live.diversity_loss, atol=1e-9)
    assert cu.adaptive_frontier(model, small_task, results_dir=tmp_path).equals(hull)
    assert set(results.read(next(tmp_path.glob("*/*"))).losses.repair) == set(REPAIRS)
    split = split_table(again.assign(task="small"))
    steps = split_by_step(again.assign(task="small"))
    whole = -np.log(rows.validity * rows.diversity)
    merged = split.merge(rows.assign(whole=whole, task="small"), on=results_key())
    np.testing.assert_allclose(merged.total, merged.whole, atol=1e-6)
    by_step = steps.groupby(results_key(), dropna=False, sort=False)[["order", "shape", "size"]]
    np.testing.assert_allclose(
        by_step.sum(min_count=1).to_numpy(), split[["order", "shape", "size"]], atol=1e-9
    )


def results_key():
    return ["task", "rule", "parameter", "temperature"]

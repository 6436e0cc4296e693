"""Ranks and cutoffs against a stable sort, the transformers warpers, and float64 brute force.

Where they may differ, on purpose: transformers' top-k keeps every token tied with the k-th, ours
the k of lowest id; its top-p breaks ties at the crossing in no stated order, ours by id. Cases
where the cumulative mass comes within 1e-6 of p are left out: rounding decides those.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import calib_utils as cu
from calib_utils.core.processors import check_rules, check_temperatures
from calib_utils.core.ranking import Ranking
from calib_utils.core.rules import TABLE3_TEMPERATURES
from calib_utils.errors import InvalidRuleError, ModelFormatError

SIZES = (1, 2, 7, 127, 128, 129, 512, 1500)  # sums are kept in blocks of 128
TEMPERATURES = (0.01, 0.3, 1.0, 2.5)


def random_logits(seed, n_vocab, levels, hidden):
    """[3, vocab]: `levels` > 0 rounds to that many steps a unit (ties), `hidden` gives -inf."""
    random = np.random.default_rng(seed)
    logits = 3 * random.standard_normal((3, n_vocab))
    if levels:
        logits = np.round(logits * levels) / levels
    if hidden:
        logits[random.random(logits.shape) < 0.3] = -np.inf
        logits[:, random.integers(n_vocab)] = 1.0
    return logits.astype(np.float32)


logit_batches = st.builds(
    random_logits,
    st.integers(0, 2**31),
    st.sampled_from(SIZES),
    st.sampled_from([0, 1, 4]),
    st.booleans(),
)
temperatures = st.sampled_from(TEMPERATURES)
top_p = st.floats(0.01, 0.999).map(cu.TopP)
min_p = st.one_of(st.just(1.0), st.floats(1e-6, 0.999)).map(cu.MinP)
top_k = st.integers(1, 1600).map(cu.TopK)
any_rule = st.one_of(top_p, min_p, top_k, st.just(cu.NoCutoff()), st.just(cu.OracleSize()))


def all_tokens(logits):
    return torch.arange(logits.shape[1]).expand(len(logits), -1)


def by_project(logits, rule, temperature, branching=2):
    """(rank, kept, log p) of every token at every node, from the project."""
    branching = np.full(len(logits), min(branching, logits.shape[1]))
    ranking = Ranking(torch.from_numpy(logits), branching)
    tokens = all_tokens(logits)
    rank = ranking.rank(tokens).numpy()
    step = rule.keep(ranking.at(temperature))
    start, stop = step.start.numpy()[:, None], step.stop.numpy()[:, None]
    kept = (start <= rank) & (rank < stop)
    log_p = ranking.gap(tokens).numpy() / temperature - step.log_mass.numpy()[:, None]
    return rank, kept, np.where(kept, log_p, -np.inf)


def stable_rank(logits):
    order = np.argsort(-logits, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(logits.shape[1])[None], axis=1)
    return rank


def tempered(logits, temperature):
    z = logits.astype(np.float64)
    z = (z - z.max(1, keepdims=True)) / temperature
    p = np.exp(z)
    return p / p.sum(1, keepdims=True)


def brute_force_count(logits, rule, temperature, branching=2):
    """Tokens kept at every node by the definition, float64 and one node at a time."""
    counts = []
    for p in tempered(logits, temperature):
        ranked = np.sort(p)[::-1]
        counts.append(
            {
                "none": lambda r: len(r),
                "top_k": lambda r: min(int(rule.parameter), len(r)),
                "top_p": lambda r: int(np.argmax(np.cumsum(r) >= rule.parameter)) + 1,
                "min_p": lambda r: int((r >= rule.parameter * r[0]).sum()),
                "oracle_size": lambda r: min(branching, len(r)),
            }[rule.name](ranked)
        )
    return np.array(counts)


def undecided(logits, rule, temperature):
    """Whether rounding decides what the rule keeps."""
    ranked = np.sort(tempered(logits, temperature), axis=1)[:, ::-1]
    if rule.name == "top_p":
        return (np.abs(np.cumsum(ranked, axis=1) - rule.parameter) < 1e-6).any()
    if rule.name == "min_p" and rule.parameter < 1:
        # The threshold is compared in float32 logits, whose last digit T divides.
        return (np.abs(ranked / (ranked[:, :1] * rule.parameter) - 1) < 1e-5 / temperature).any()
    return False


@given(logit_batches)
def test_ranks_are_a_stable_descending_argsort(logits):
    rank, _, _ = by_project(logits, cu.NoCutoff(), 1.0)
    assert (rank == stable_rank(logits)).all()


@given(logit_batches, any_rule, temperatures)
def test_every_rule_is_its_definition(logits, rule, temperature):
    assume(not undecided(logits, rule, temperature))
    _, kept, log_p = by_project(logits, rule, temperature)
    count = brute_force_count(logits, rule, temperature)
    assert (kept == (stable_rank(logits) < count[:, None])).all()
    p = np.where(kept, tempered(logits, temperature), 0)
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-9, atol=1e-300)


def by_transformers(logits, warper, temperature):
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits).double())
    return (warper(None, scores) if warper else scores).log_softmax(-1).numpy()


def assert_same_up_to_ties(logits, rule, warper, temperature):
    _, kept, log_p = by_project(logits, rule, temperature)
    expected = by_transformers(logits, warper, temperature)
    ours, theirs = kept & np.isfinite(logits), np.isfinite(expected)
    for node in range(len(logits)):
        differing = ours[node] != theirs[node]
        lowest = logits[node][ours[node]].min()
        assert (logits[node][differing] == lowest).all(), "only ties at the cut may differ"
        if not differing.any():
            finite = ours[node]
            np.testing.assert_allclose(log_p[node][finite], expected[node][finite], atol=1e-9)
    return ours, theirs


WARPERS = {
    "none": (st.just(cu.NoCutoff()), lambda rule: None),
    "top_k": (top_k, lambda rule: TopKLogitsWarper(rule.k)),
    "top_p": (top_p, lambda rule: TopPLogitsWarper(rule.p)),
    "min_p": (min_p, lambda rule: MinPLogitsWarper(rule.min_p)),
}


@pytest.mark.parametrize("family", WARPERS)
@given(logit_batches, st.data(), temperatures)
def test_a_rule_is_the_transformers_warper_but_for_ties_at_the_cut(
    family, logits, data, temperature
):
    rules, warper = WARPERS[family]
    rule = data.draw(rules)
    assume(not undecided(logits, rule, temperature))
    ours, theirs = assert_same_up_to_ties(logits, rule, warper(rule), temperature)
    if family in ("none", "min_p"):
        assert (ours == theirs).all()
    elif family == "top_p":
        assert (ours.sum(1) == theirs.sum(1)).all()
    else:
        assert (ours <= theirs).all(), "transformers keeps all tied with the k-th"
        assert (ours.sum(1) <= rule.k).all(), "we the lowest ids"


@given(logit_batches, temperatures)
def test_leaving_out_the_sort_changes_nothing_without_a_cutoff(logits, temperature):
    found = []
    for ordered in (True, False):
        ranking = Ranking(torch.from_numpy(logits), np.ones(len(logits)), ordered)
        step = ranking.at(temperature)
        mass = step.log_mass
        found.append(ranking.gap(all_tokens(logits)).numpy() / temperature - mass.numpy()[:, None])
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-14)


def test_a_high_temperature_leaves_no_mass_out():
    logits = torch.linspace(0, -60, 50)[None]
    mass = Ranking(logits, [1]).at(20.0).log_mass.item()
    assert mass == pytest.approx(torch.logsumexp(logits.double() / 20, 1).item(), rel=1e-6)


def test_ties_at_the_cut_go_to_the_lower_token_id():
    logits = np.array([[1.0, 2.0, 2.0, 2.0, 0.0]], dtype=np.float32)
    assert by_project(logits, cu.TopK(2), 1.0)[1].tolist() == [[False, True, True, False, False]]
    assert by_project(logits, cu.MinP(1.0), 1.0)[1].tolist() == [[False, True, True, True, False]]
    assert by_project(logits, cu.TopP(0.5), 1.0)[1].tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_top_p_of_1_keeps_even_what_adds_nothing_to_the_mass(temperature):
    logits = np.array([[0.0, -50.0, -1e4, -np.inf]], dtype=np.float32)
    assert by_project(logits, cu.TopP(1.0), temperature)[1].all()


@pytest.mark.parametrize("n_vocab", SIZES)
@pytest.mark.parametrize("p", [1e-9, 0.5, 1 - 1e-12, 1.0])
def test_flat_logits_at_block_boundaries(n_vocab, p):
    logits = np.zeros((2, n_vocab), dtype=np.float32)
    _, kept, _ = by_project(logits, cu.TopP(p), 1.0)
    assert (kept.sum(1) == max(1, math.ceil(p * n_vocab - 1e-6))).all()


def test_the_step_buffer_is_right_at_each_of_many_temperatures():
    logits = random_logits(3, 1500, 0, True)
    ranking = Ranking(torch.from_numpy(logits), np.full(3, 2))
    for temperature in (*TABLE3_TEMPERATURES, *reversed(TABLE3_TEMPERATURES)):
        step = ranking.at(temperature)
        mass = step.within(step.start, torch.full_like(step.start, 40)).log_mass.exp()
        ranked = np.sort(tempered(logits, temperature), axis=1)[:, ::-1]
        expected = ranked[:, :40].sum(1) / ranked[:, 0]
        assert mass.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_distribution_are_refused(bad):
    logits = torch.zeros(2, 600)
    logits[1, 5] = bad
    with pytest.raises(ModelFormatError, match="NaN or infinite"):
        Ranking(logits, np.ones(2))
    with pytest.raises(ModelFormatError, match="NaN or infinite"):
        Ranking(torch.full((1, 4), -torch.inf), np.ones(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_logits_are_ranked_with_their_ties(dtype):
    logits = torch.from_numpy(random_logits(5, 600, 0, False)).to(dtype)
    ranking = Ranking(logits, np.ones(3))
    ranks = ranking.rank(all_tokens(logits)).numpy()
    assert (ranks == stable_rank(logits.float().numpy())).all()


def test_the_grid_of_table_3():
    rules = cu.table3_rules()
    assert len(rules) == 17
    assert {rule.name for rule in rules} == {"none", "top_k", "top_p", "min_p", "oracle_size"}
    assert check_rules(rules) == rules
    assert check_temperatures(TABLE3_TEMPERATURES) == list(TABLE3_TEMPERATURES)
    assert len(TABLE3_TEMPERATURES) == 12


def test_numbers_from_numpy_are_numbers():
    assert check_temperatures(np.linspace(0.5, 1.5, 3)) == [0.5, 1.0, 1.5]
    assert check_temperatures(np.arange(1, 3)) == [1.0, 2.0]
    assert check_temperatures([np.float32(0.5)]) == [0.5]
    assert cu.TopK(np.int64(5)) == cu.TopK(5)
    assert cu.TopP(np.float32(0.5)) == cu.TopP(0.5)


# What is kept, as a set

FEWER = settings(max_examples=20)


# Parameters

WHOLE = f"k must be a whole number, from 1 to {2**63 - 1}"
SHARE, BELOW_1 = "must be above 0 and at most 1", "must be above 0 and below 1"


@pytest.mark.parametrize(
    ("rule", "limit", "values"),
    [
        (cu.TopK, WHOLE, (0, -1, 1.5, True, "5", None)),
        (cu.TopP, SHARE, (0, -0.5, 1.0001, True, "0.5", None, math.nan)),
        (cu.MinP, SHARE, (0, 1.0001, True, math.inf)),
        (cu.TopH, SHARE, (2, True)),
        (cu.Typical, BELOW_1, (1.0, 0)),
        (cu.Epsilon, BELOW_1, (1, -0.1)),
        (cu.Eta, BELOW_1, (math.nan, "a")),
        (cu.TopNSigma, "must be a finite number above 0", (0, math.inf)),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_range(rule, limit, values):
    for value in values:
        with pytest.raises(InvalidRuleError) as told:
            rule(value)
        assert str(told.value) == f"{rule.name}={value!r}: {limit}"


def test_a_rule_keeps_a_window_that_does_not_begin_at_the_top_where_it_is():
    logits = torch.arange(9.0).flip(0)[None].contiguous()
    step = Ranking(logits, np.ones(1)).at(1.0)
    window = step.within(step.start + 2, step.start + 7)
    found = cu.TopK(3).keep(window)
    assert (found.start.tolist(), found.stop.tolist()) == ([2], [5])


@FEWER
@given(logit_batches, any_rule, temperatures, st.integers(-64, 64))
def test_adding_a_constant_to_all_logits_changes_nothing(logits, rule, temperature, constant):
    logits = np.round(logits * 64) / 64  # so that the sum is exact in float32
    _, kept, log_p = by_project(logits, rule, temperature)
    _, moved, moved_log_p = by_project(logits + np.float32(constant), rule, temperature)
    assert (kept == moved).all()
    np.testing.assert_array_equal(log_p, moved_log_p)


@FEWER
@given(logit_batches, any_rule, temperatures, st.randoms(use_true_random=False))
def test_token_ids_decide_nothing_but_ties(logits, rule, temperature, random):
    assume(not undecided(logits, rule, temperature))
    assume(all(len(set(row)) == len(row) for row in logits))
    order = np.array(random.sample(range(logits.shape[1]), logits.shape[1]))
    kept = by_project(logits, rule, temperature)[1]
    moved = by_project(np.ascontiguousarray(logits[:, order]), rule, temperature)[1]
    assert (moved == kept[:, order]).all()

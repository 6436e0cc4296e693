"""Every rule beside Table 3 against transformers' warpers, its definition, and the engines' orders.

Where rounding decides what is kept (a mass or threshold within 1e-6 of the limit), cases are left
out. Ties: transformers' top-k keeps every token tied with the k-th, ours the lowest ids, so chains
with top-k are tested without ties.
"""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

import calib_utils as cu
from calib_utils.errors import InvalidRuleError, UnknownNameError
from calib_utils.ranking import Ranking
from calib_utils.samplers import FAMILIES, MORE_GRIDS, ORDERS

SIZES = (1, 2, 7, 127, 128, 129, 400)
TEMPERATURES = (0.3, 1.0, 2.5)
WARPERS = {
    "top_k": lambda x: TopKLogitsWarper(int(x)),
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical": TypicalLogitsWarper,
    "epsilon": EpsilonLogitsWarper,
    "eta": EtaLogitsWarper,
    "top_h": TopHLogitsWarper,
}


def random_logits(seed, n_vocab, levels, hidden):
    random = np.random.default_rng(seed)
    logits = 3 * random.standard_normal((2, n_vocab))
    if levels:
        logits = np.round(logits * levels) / levels
    if hidden:
        logits[random.random(logits.shape) < 0.3] = -np.inf
        logits[:, random.integers(n_vocab)] = 1.0
    return logits.astype(np.float32)


def batches(levels=(0, 1, 4)):
    return st.builds(
        random_logits,
        st.integers(0, 2**31),
        st.sampled_from(SIZES),
        st.sampled_from(levels),
        st.booleans(),
    )


shares = st.floats(0.02, 0.98)
rules = st.one_of(
    shares.map(cu.Typical),
    st.floats(1e-5, 0.5).map(cu.Epsilon),
    st.floats(1e-5, 0.5).map(cu.Eta),
    shares.map(cu.TopH),
)


def by_project(logits, rule, temperature):
    """ln p of every token, -inf where dropped. [node, token]"""
    ranking = Ranking(torch.from_numpy(logits), np.full(len(logits), 2))
    tokens = torch.arange(logits.shape[1]).expand(len(logits), -1)
    rank = ranking.rank(tokens)
    if rule.temperature_first:
        step = rule.keep(ranking.at(temperature))
    else:
        kept = rule.keep(ranking.at(1.0))
        step = ranking.at(temperature).within(kept.start, kept.stop)
    inside = (step.start[:, None] <= rank) & (rank < step.stop[:, None])
    log_p = ranking.gap(tokens) / temperature - step.log_mass[:, None]
    return torch.where(inside & torch.isfinite(log_p), log_p, -torch.inf).numpy()


def by_transformers(logits, warpers):
    scores = torch.from_numpy(logits).double()
    for warper in warpers:
        scores = warper(None, scores)
    return scores.log_softmax(-1).numpy()


def decided(logits, make, parameter, temperature, nudge=1e-6):
    """Whether a slightly different parameter keeps the same tokens."""
    kept = [
        np.isfinite(by_transformers(logits, [TemperatureLogitsWarper(temperature), make(p)]))
        for p in (parameter * (1 - nudge), parameter, min(parameter * (1 + nudge), 0.9999999))
    ]
    return (kept[0] == kept[1]).all() and (kept[1] == kept[2]).all()


def assert_equal(found, expected):
    assert (np.isfinite(found) == np.isfinite(expected)).all()
    kept = np.isfinite(expected)
    np.testing.assert_allclose(found[kept], expected[kept], atol=1e-9)


@given(batches(), rules, st.sampled_from(TEMPERATURES))
def test_every_rule_is_the_transformers_warper(logits, rule, temperature):
    make = WARPERS[rule.name]
    assume(decided(logits, make, rule.parameter, temperature))
    if rule.name == "top_h":  # its first hundred are taken in no stated order among ties
        assume(np.isfinite(logits).all() and all(len(np.unique(r)) == len(r) for r in logits))
    expected = by_transformers(logits, [TemperatureLogitsWarper(temperature), make(rule.parameter)])
    assert_equal(by_project(logits, rule, temperature), expected)


@given(batches((0,)), st.floats(0.1, 3), st.sampled_from(TEMPERATURES))
def test_top_nsigma_is_its_definition_whatever_the_temperature(logits, n, temperature):
    for row, found in zip(logits, by_project(logits, cu.TopNSigma(n), temperature), strict=True):
        finite = row[np.isfinite(row)].astype(float)
        deviation = finite.std(ddof=1) if len(finite) > 1 else 0.0
        margin = np.abs(finite - (finite.max() - n * deviation))
        if margin.min() > 1e-4:
            assert (np.isfinite(found) == (row >= finite.max() - n * deviation)).all()


@given(batches((0,)), st.permutations(["top_k", "top_p", "min_p", "eta"]), shares)
def test_a_chain_is_its_rules_one_after_another(logits, order, p):
    made = {
        "top_k": cu.TopK(20),
        "top_p": cu.TopP(p),
        "min_p": cu.MinP(0.013),
        "eta": cu.Eta(0.0021),
    }
    chain = cu.Chain(tuple(made[name] for name in order))
    warpers = [TemperatureLogitsWarper(1.3), *(WARPERS[n](made[n].parameter) for n in order)]
    nudged = [w if n != "top_p" else TopPLogitsWarper(p * 0.999999) for n, w in
              zip(("t", *order), warpers, strict=True)]  # fmt: skip
    expected = by_transformers(logits, warpers)
    assume((np.isfinite(expected) == np.isfinite(by_transformers(logits, nudged))).all())
    assert_equal(by_project(logits, chain, 1.3), expected)


def test_the_order_of_transformers_is_that_of_its_own_generation(tiny):
    network = tiny("llama").network
    config = GenerationConfig(
        do_sample=True, temperature=1.7, top_k=40, top_p=0.83, min_p=0.02, typical_p=0.91,
        epsilon_cutoff=0.003, eta_cutoff=0.004, top_h=0.7,
    )  # fmt: skip
    config._eos_token_tensor = None
    theirs = network._get_logits_processor(config, logits_processor=LogitsProcessorList())
    chain = cu.parse_rule(
        "eta=0.004+epsilon=0.003+typical=0.91+min_p=0.02+top_p=0.83+top_k=40+top_h=0.7@transformers"
    )
    logits = random_logits(11, 400, 0, False)
    expected = by_transformers(logits, theirs)
    assert 1 < np.isfinite(expected).sum() < expected.size
    assert_equal(by_project(logits, chain, 1.7), expected)


def test_llama_cpp_tempers_what_the_cut_left():
    logits = random_logits(12, 400, 0, False)
    rule = cu.parse_rule("top_p=0.8+top_k=30@llama.cpp")
    found = by_project(logits, rule, 2.5)
    cut = by_transformers(logits, [TopKLogitsWarper(30), TopPLogitsWarper(0.8)])
    assert_equal(found, torch.from_numpy(cut / 2.5).log_softmax(-1).numpy())
    first = by_project(logits, cu.parse_rule("top_p=0.8+top_k=30@vllm"), 2.5)
    assert np.isfinite(first).sum() > np.isfinite(found).sum(), "the order must matter here"


EVERY = ["none", "top_k=7", "top_p=0.9", "min_p=0.1", "oracle_size", "top_nsigma=1.5"]
EVERY += [rule.key for grid in MORE_GRIDS.values() for rule in grid]


@pytest.mark.parametrize("text", [*EVERY, "top_k=7+eta=0.001", "min_p=0.1+top_p=0.9@vllm"])
def test_text_and_rule_are_two_forms_of_one(text):
    rule = cu.parse_rule(text)
    assert rule.key == text
    assert cu.parse_rule(rule.key) == rule
    assert {name for name in FAMILIES} >= {part.partition("=")[0] for part in
                                           text.partition("@")[0].split("+")}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("typical=1", InvalidRuleError, "below 1"),
        ("epsilon=0", InvalidRuleError, "epsilon=0.0"),
        ("eta=2", InvalidRuleError, "eta=2.0"),
        ("top_h=1.1", InvalidRuleError, "at most 1"),
        ("top_nsigma=-1", InvalidRuleError, "above 0"),
        ("top_k=5+top_k=6", InvalidRuleError, "occurs twice"),
        ("top_k=5@llamacpp", UnknownNameError, "Did you mean 'llama.cpp'"),
        ("eta=0.1@vllm", InvalidRuleError, "vllm has no eta"),
        ("tipical=0.9", UnknownNameError, "Did you mean 'typical'"),
    ],
)
def test_misuse_is_named_with_the_remedy(text, error, said):
    with pytest.raises(error, match=said):
        cu.parse_rule(text)


def test_only_typical_keeps_no_top_prefix():
    rules = [cu.parse_rule(text) for text in EVERY]
    assert {rule.name for rule in rules if not rule.is_rank_cutoff} == {"typical"}
    assert set(ORDERS) == {"transformers", "vllm", "llama.cpp"}

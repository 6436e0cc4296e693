"""Typical, epsilon, eta, top-h, top-nσ and chains against transformers' own warpers in float64.

Every token of the vocabulary is an answer of one step, so that `measure` gives the probability of
each. Left out are cases that rounding decides: a threshold within `MARGIN` nats of a token, a sum
within it of its target. Where they may differ, on purpose: transformers' top-k and top-h break
ties at the cut in an order of their own, ours by token id, so such ties are left out as well.
"""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import GenerationConfig
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
from calib_utils import errors
from calib_utils.core import rules as rules_module
from calib_utils.core.tries import Sequences, build_trie

SIZES = (1, 2, 7, 99, 127, 128, 129, 300)  # sums are kept in blocks of 128, top-h looks at 100
TEMPERATURES = (0.01, 0.3, 0.7, 1.0, 2.5)
MARGIN = 1e-7
ABSENT = -np.inf


def random_logits(seed, n_vocab, scale, levels, hidden):
    """[vocab]: `levels` > 0 rounds to that many steps a unit (ties), `hidden` gives -inf."""
    random = np.random.default_rng(seed)
    logits = scale * random.standard_normal(n_vocab)
    if levels:
        logits = np.round(logits * levels) / levels
    if hidden:
        logits[random.random(n_vocab) < 0.3] = ABSENT
        logits[random.integers(n_vocab)] = 1.0
    return logits.astype(np.float32)


def logit_rows(levels=(0, 1, 4)):
    return st.builds(
        random_logits,
        st.integers(0, 2**31),
        st.sampled_from(SIZES),
        st.sampled_from([0.6, 3.0]),
        st.sampled_from(levels),
        st.booleans(),
    )


temperatures = st.sampled_from(TEMPERATURES)
shares = st.floats(0.001, 0.999)
FAMILIES = {
    "top_k": st.integers(1, 320).map(cu.TopK),
    "top_p": shares.map(cu.TopP),
    "min_p": st.floats(1e-6, 0.999).map(cu.MinP),
    "typical": shares.map(cu.Typical),
    "epsilon": st.floats(1e-6, 0.5).map(cu.Epsilon),
    "eta": st.floats(1e-6, 0.5).map(cu.Eta),
    "top_h": shares.map(cu.TopH),
    "top_nsigma": st.floats(0.05, 4).map(cu.TopNSigma),
}


def nsigma(rule, deviation):
    """The definition of top-nσ in NumPy: M - n σ, with σ of the model's own finite logits."""

    def warp(_, scores):
        values = scores.numpy()
        tempered = values[np.isfinite(values)]
        low = tempered.max() - rule.n * deviation
        return torch.from_numpy(np.where(values >= low, values, ABSENT))

    return warp


WARPERS = {
    "top_k": lambda rule: TopKLogitsWarper(rule.k),
    "top_p": lambda rule: TopPLogitsWarper(rule.p),
    "min_p": lambda rule: MinPLogitsWarper(rule.min_p),
    "typical": lambda rule: TypicalLogitsWarper(rule.mass),
    "epsilon": lambda rule: EpsilonLogitsWarper(rule.epsilon),
    "eta": lambda rule: EtaLogitsWarper(rule.epsilon),
    "top_h": lambda rule: TopHLogitsWarper(rule.top_h),
}


def log_softmax(scores):
    finite = scores[np.isfinite(scores)]
    return scores - (finite.max() + np.log(np.exp(finite - finite.max()).sum()))


def deviation_of(logits):
    finite = logits[np.isfinite(logits)].astype(float)
    return finite.std(ddof=1) if len(finite) > 1 else 0.0


def is_decided(rule, log_p, deviation):
    """Whether what the rule keeps of a distribution is beyond rounding and order of ties."""
    log_p = np.sort(log_p[np.isfinite(log_p)])[::-1]
    p = np.exp(log_p)
    entropy = -(p * log_p).sum()
    log_epsilon = math.log(rule.parameter) if rule.parameter < 1 else 0.0

    def far(values):
        return (np.abs(values) > MARGIN).all()

    def no_tie_after(count):
        return count >= len(p) or log_p[count - 1] > log_p[count]

    if rule.name == "top_k":
        return no_tie_after(rule.k)
    if rule.name == "top_p":
        reached = np.flatnonzero(p.cumsum() >= rule.p)
        return far(p.cumsum() - rule.p) and no_tie_after(reached[0] + 1)
    if rule.name == "min_p":
        return far(log_p - log_p[0] - math.log(rule.min_p))
    if rule.name == "epsilon":
        return far(log_p - log_epsilon)
    if rule.name == "eta":
        return far(log_p - min(log_epsilon, log_epsilon / 2 - entropy))
    if rule.name == "top_nsigma":
        return far(log_p - log_p[0] + rule.n * deviation) or deviation == 0
    if rule.name == "typical":
        distance = np.abs(-log_p - entropy)
        order = np.argsort(distance, kind="stable")
        cumulative = p[order].cumsum()
        if not far(cumulative - rule.mass):
            return False
        last = order[np.flatnonzero(cumulative >= rule.mass)[0]]
        near = np.abs(distance - distance[last]) < MARGIN
        return bool((log_p[near] == log_p[last]).all())
    first = log_softmax(log_p[: rules_module.TOP_H_CANDIDATES])
    terms = -first * np.exp(first)
    running, limit = terms.cumsum(), rule.top_h * terms.sum()
    if (np.abs(running - limit) < MARGIN * limit).any():
        return False
    return no_tie_after(max(1, int((running <= limit).sum())))


def by_transformers(logits, rules, temperature, last=False):
    """ln p after the warpers in turn; temperature before all, or after. Skips undecided cases."""
    deviation = deviation_of(logits) / (1.0 if last else temperature)
    temper = TemperatureLogitsWarper(temperature)
    scores = torch.from_numpy(logits)[None].double()
    scores = scores if last else temper(None, scores)
    for rule in rules:
        assume(is_decided(rule, log_softmax(scores[0].numpy()), deviation))
        warp = nsigma(rule, deviation) if rule.name == "top_nsigma" else WARPERS[rule.name](rule)
        scores = warp(None, scores)
    scores = temper(None, scores) if last else scores
    return scores.log_softmax(-1)[0].numpy()


@cache
def vocabulary_trie(n_vocab):
    """Every token an answer of its own, with no end token."""
    symbols = tuple((token,) for token in range(n_vocab))
    return build_trie(Sequences(symbols, tuple(range(n_vocab)), (), n_vocab))


@pytest.fixture(scope="session")
def by_project(measure_logits):
    """(kept, ln p) of every token of a row of logits, from the project."""

    def get(logits, rule, temperature):
        trie = vocabulary_trie(len(logits))
        found = measure_logits(trie, logits[None], [(rule, temperature)])
        uniform = found.steps.edge_uniform_log_p(slice(None))[:, 0]
        kept = np.isfinite(uniform)
        assert uniform[kept] == pytest.approx(-np.log(kept.sum()), abs=1e-12)
        assert found.validity[0] == pytest.approx(1.0, abs=1e-12), "renormalised"
        return kept, found.edge_log_p[:, 0]

    return get


def assert_equal(found, expected, logits):
    """The same tokens survive, with the same probabilities."""
    kept, log_p = found
    alive = np.isfinite(expected)
    assert (kept & np.isfinite(logits) == alive).all()
    np.testing.assert_allclose(log_p[alive], expected[alive], rtol=1e-9, atol=1e-9)
    assert not np.isfinite(log_p[~alive]).any()


@pytest.mark.parametrize("family", ["typical", "epsilon", "eta", "top_h"])
@given(logits=logit_rows(), temperature=temperatures, data=st.data())
def test_a_rule_is_the_warper_of_transformers(by_project, family, logits, temperature, data):
    rule = data.draw(FAMILIES[family])
    expected = by_transformers(logits, [rule], temperature)
    assert_equal(by_project(logits, rule, temperature), expected, logits)


@given(logits=logit_rows(), rule=FAMILIES["top_nsigma"], temperature=temperatures)
def test_top_nsigma_is_its_definition_at_every_temperature(by_project, logits, rule, temperature):
    finite = np.isfinite(logits)
    gap = logits.astype(float) - logits[finite].max()
    low = -rule.n * deviation_of(logits)
    assume((np.abs(gap[finite] - low) > MARGIN).all() or low == 0)
    kept, log_p = by_project(logits, rule, temperature)
    assert (kept == (gap >= low)).all()
    expected = log_softmax(np.where(kept, gap / temperature, ABSENT))
    np.testing.assert_allclose(np.exp(log_p), np.exp(expected), rtol=1e-9, atol=1e-300)


def one_of_each(names, at_most=4):
    """A list of rules of different families, in any order."""
    chosen = st.lists(st.sampled_from(names), min_size=1, max_size=at_most, unique=True)
    return chosen.flatmap(lambda some: st.tuples(*(FAMILIES[name] for name in some)))


@given(logits=logit_rows((0,)), rules=one_of_each(list(FAMILIES)), temperature=temperatures)
def test_a_chain_is_its_rules_one_after_another(by_project, logits, rules, temperature):
    expected = by_transformers(logits, rules, temperature)
    assert_equal(by_project(logits, cu.Chain(rules), temperature), expected, logits)


def shuffled(order):
    return one_of_each([name for name in order if name in FAMILIES])


@given(
    logits=logit_rows((0,)),
    rules=shuffled(rules_module.ORDERS["transformers"][0]),
    temperature=temperatures,
)
def test_the_order_of_transformers_is_what_generate_builds(
    by_project, network, logits, rules, temperature
):
    names = {"typical": "typical_p", "epsilon": "epsilon_cutoff", "eta": "eta_cutoff"}
    options = {names.get(rule.name, rule.name): rule.parameter for rule in rules}
    options["top_k"] = int(options.get("top_k", 0))
    config = GenerationConfig(do_sample=True, temperature=temperature, **options)
    processors = network._get_logits_processor(config, input_ids_seq_length=4)
    assert len(processors) == len(rules) + (temperature != 1)
    expected = processors(None, torch.from_numpy(logits)[None].double())
    chain = cu.Chain(rules, "transformers")
    by_transformers(logits, chain.rules, temperature)  # skips what rounding decides
    found = by_project(logits, chain, temperature)
    assert_equal(found, expected.log_softmax(-1)[0].numpy(), logits)


@pytest.fixture(scope="session")
def network(tiny):
    return tiny("llama").network


def in_order(rules, names):
    assert {rule.name for rule in rules} <= set(names)
    return [rule for name in names for rule in rules if rule.name == name]


LLAMA_CPP = ("top_nsigma", "top_k", "typical", "top_p", "min_p")
VLLM = ("min_p", "top_k", "top_p")


@pytest.mark.parametrize(
    ("engine", "order", "last"), [("llama.cpp", LLAMA_CPP, True), ("vllm", VLLM, False)]
)
@given(logits=logit_rows((0,)), data=st.data(), temperature=temperatures)
def test_the_order_of_an_engine_is_its_own(
    by_project, engine, order, last, logits, data, temperature
):
    """llama.cpp cuts at temperature 1 and tempers what is left."""
    rules = data.draw(shuffled(order))
    expected = by_transformers(logits, in_order(rules, order), temperature, last=last)
    assert_equal(by_project(logits, cu.Chain(rules, engine), temperature), expected, logits)


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.1, 0.5])
def test_a_window_below_the_top_keeps_its_digits_at_low_temperature(by_project, temperature):
    # Typical sampling at T = 1 drops the top token; tempered, it would hold all but e^-160 of the
    # mass, which a difference of two running sums does not see.
    p = np.array([0.4, 0.08, 0.079, 0.078] + [0.0363] * 10)
    logits = np.log(p / p.sum()).astype(np.float32)
    rule = cu.Chain([cu.Typical(0.3)], "llama.cpp")
    kept, log_p = by_project(logits, rule, temperature)
    assert not kept[0]
    expected = log_softmax(np.where(kept, logits.astype(float), ABSENT) / temperature)
    np.testing.assert_allclose(log_p[kept], expected[kept], rtol=1e-9)


LOWEST = [np.finfo(np.float32).min, float(torch.finfo(torch.bfloat16).min), -1e9, -1e30]


@pytest.mark.parametrize("lowest", LOWEST)
@given(logits=logit_rows(), data=st.data(), temperature=temperatures)
def test_the_lowest_number_masks_as_minus_infinity_does(
    by_project, lowest, logits, data, temperature
):
    rule = data.draw(st.one_of(*FAMILIES.values()))
    low = np.where(np.isfinite(logits), logits, np.float32(lowest))
    found, wanted = (by_project(row, rule, temperature) for row in (low, logits))
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def test_ties_at_the_cut_go_to_the_lower_ids_where_transformers_keeps_them_all(by_project):
    logits = torch.tensor([[2.0, 2.001, 1.0, 2.002]]).bfloat16().float()  # three are 2 there
    kept, _ = by_project(logits[0].numpy(), cu.TopK(2), 1.0)
    assert kept.tolist() == [True, True, False, False]
    assert torch.isfinite(TopKLogitsWarper(2)(None, logits)).tolist() == [[True, True, False, True]]


def test_typical_keeps_what_is_nearest_to_the_entropy_not_the_top(by_project):
    logits = np.log(np.array([0.4] + [0.06] * 10, dtype=np.float32))
    kept, log_p = by_project(logits, cu.Typical(0.5), 1.0)
    assert kept.tolist() == [False] + [True] * 10, "ties stay together"
    assert np.exp(log_p[1:]) == pytest.approx(0.1)
    chain = cu.Chain([cu.Typical(0.5), cu.TopK(3)])
    assert by_project(logits, chain, 1.0)[0].tolist() == [False] + [True] * 3 + [False] * 7


@example(gap=8.0)
@given(gap=st.floats(7.6, 30))
def test_top_h_keeps_no_token_whose_probability_underflows(by_project, gap):
    # At T = 0.01 the entropy of the runners-up is 0 in float64, and 0 <= 0 says nothing.
    logits = np.array([0.0, *np.full(5, -gap)], dtype=np.float32)
    kept, _ = by_project(logits, cu.TopH(0.5), 0.01)
    assert kept.tolist() == [True] + [False] * 5


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (cu.Epsilon(0.15), [1, 1, 1, 0]),
        (cu.Epsilon(0.9), [1, 0, 0, 0]),
        (cu.Eta(0.01), [1, 1, 1, 1]),  # min(.01, .1 e^-H) = .01
        (cu.Eta(0.9), [1, 1, 0, 0]),  # min(.9, .949 e^-1.28) = .264
        (cu.TopNSigma(1.0), [1, 1, 0, 0]),
        (cu.TopH(0.3), [1, 0, 0, 0]),  # terms .367, .361, .322, .230 of 1.280
        (cu.TopH(0.6), [1, 1, 0, 0]),
        (cu.TopH(1.0), [1, 1, 1, 1]),
    ],
)
def test_rules_by_hand(by_project, rule, expected):
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    assert by_project(logits, rule, 1.0)[0].tolist() == list(map(bool, expected))


plain_rules = st.one_of(*FAMILIES.values(), st.just(cu.NoCutoff()), st.just(cu.OracleSize()))


@given(plain_rules)
def test_a_key_parses_back_to_its_rule(rule):
    assert cu.parse_rule(rule.key) == rule


@given(st.lists(plain_rules, min_size=2, max_size=5, unique_by=lambda rule: rule.name))
def test_a_chain_parses_back_and_keeps_its_order(rules):
    chain = cu.Chain(rules)
    assert cu.parse_rule(chain.key) == chain
    assert [rule.name for rule in cu.parse_rule(chain.key).rules] == [rule.name for rule in rules]


@pytest.mark.parametrize("engine", rules_module.ORDERS)
@given(data=st.data())
def test_a_chain_in_an_engines_order_parses_back(engine, data):
    rules = data.draw(shuffled(rules_module.ORDERS[engine][0]))
    chain = cu.Chain(rules, engine)
    assert cu.parse_rule(chain.key) == chain
    assert list(chain.rules) == in_order(rules, rules_module.ORDERS[engine][0])
    assert chain.temperature_first == (engine != "llama.cpp")


MISUSE = {
    "no number": (lambda: cu.parse_rule("eta"), "InvalidRule", "'eta'", "'eta=0.001'"),
    "empty chain": (lambda: cu.Chain([]), "InvalidRule", "[]", "at least one"),
    "chain of text": (lambda: cu.Chain(["top_k=5"]), "InvalidRule", "'top_k=5'", "plain rules"),
    "chain in a chain": (
        lambda: cu.Chain([cu.Chain([cu.TopK(5)], "vllm")]), "InvalidRule", "Chain(", "plain rules"
    ),
    "processors in a chain": (
        lambda: cu.Chain([cu.Processors(abs, "p")]), "InvalidRule", "Processors", "plain rules"
    ),
    "family twice": (
        lambda: cu.parse_rule("top_k=5+top_k=6"), "InvalidRule", "'top_k', 'top_k'", "keep one"
    ),
    "not in vllm": (
        lambda: cu.parse_rule("typical=.5@vllm"), "InvalidRule", "typical", "min_p, top_k, top_p"
    ),
    "oracle in an engine": (
        lambda: cu.parse_rule("oracle_size@llama.cpp"), "InvalidRule", "oracle_size", "leave it out"
    ),
    "unknown engine": (
        lambda: cu.parse_rule("top_k=5@lama.cpp"), "UnknownName", "'lama.cpp'", "'llama.cpp'"
    ),
    "unknown part": (lambda: cu.parse_rule("top_k=5+topp=.9"), "UnknownName", "topp", "'top_p'"),
    "order without a name": (
        lambda: cu.parse_rule("top_k=5@"), "UnknownName", "''", "transformers"
    ),
    "same chain twice": (
        lambda: cu.evaluate("m", "rng-1", ["top_p=.9+top_k=5@vllm", "top_k=5+top_p=.9@vllm"]),
        "InvalidRule",
        "top_k=5+top_p=0.9@vllm",
        "remove one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_a_named_error_with_the_value_and_the_remedy(case):
    act, name, value, remedy = MISUSE[case]
    with pytest.raises(getattr(errors, f"{name}Error")) as caught:
        act()
    assert value in str(caught.value)
    assert remedy in str(caught.value)

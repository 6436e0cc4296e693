"""Theorem E.1 and Def. E.2 against enumeration; Def. 4.1 and D.1 at every prefix."""

import itertools
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.errors import InvalidRequestError
from calib_utils.results.measure import measure, untouched
from calib_utils.studies.errata import ranked_trie
from calib_utils.theory import theorems
from calib_utils.theory.laws import (
    Displaced,
    Geometric,
    LeakyShape,
    UniformOverG,
    UniformOverV,
    reference_model,
)

LETTERS = 4
trees = st.integers(0, 300).map(theorems.small_tree)


def measured(law, task, end):
    """What `measure` finds, with ranks, of a model that follows a law."""
    model = reference_model(law, task, end=end)
    prompt = cu.render_prompt(model, task, end=end)
    return measure(model, prompt, untouched([1.0]), ranks=True)


@st.composite
def trees_with_cutoff(draw):
    tree = draw(trees)
    n = tree.tokens.trie.n_nodes
    return tree, np.array(draw(st.lists(st.integers(1, LETTERS), min_size=n, max_size=n)))


def retained(tree, size):
    """The retained letters of every node, valid or not, straight from the definition."""
    tokens, kept = tree.tokens, []
    for node in range(tokens.trie.n_nodes):
        own = slice(tokens.first[node], tokens.first[node + 1])
        by_rank = dict(zip(tree.rank[own].tolist(), tokens.symbol[own].tolist(), strict=True))
        kept.append([by_rank.get(rank) for rank in range(size[node])])  # None: an invalid letter
    return kept


def walk(tree, size):
    """Every valid prefix with its probability under Q_S: (prefix, node or None, mass)."""
    trie, kept = tree.tokens.trie, retained(tree, size)
    edges = np.stack([trie.edge_node, trie.edge_symbol, trie.edge_child], axis=1).tolist()
    child = {(node, symbol): below for node, symbol, below in edges}
    level = [((), 0, Fraction(1))]
    yield from level
    while level:
        after = []
        for prefix, node, mass in level:
            if node == -1:
                continue
            for letter in kept[node]:
                if letter is not None:
                    step = mass / len(kept[node])
                    after.append(((*prefix, letter), child[node, letter], step))
        yield from after
        level = after


def words(tree):
    trie = tree.tokens.trie
    return [
        (*trie.prefix(int(trie.edge_node[e])), int(trie.edge_symbol[e])) for e in trie.sequence_edge
    ]


@given(trees_with_cutoff())
def test_factors_are_the_conditional_means_of_the_theorem(drawn):
    tree, size = drawn
    share = theorems.shares(tree.tokens, tree.rank, size, exact=True)
    factors = theorems.factorise(tree.tokens.trie, share)
    visited, answers = list(walk(tree, size)), words(tree)
    kept = {prefix for prefix, _, _ in visited}
    for step in range(len(factors.alpha)):
        # Alive before the step: valid so far, or an answer that has ended.
        alive = [v for v in visited if len(v[0]) == step or (v[1] == -1 and len(v[0]) < step)]
        after = [v for v in visited if len(v[0]) == step + 1 or (v[1] == -1 and len(v[0]) <= step)]
        before = sum(mass for _, _, mass in alive)
        expected = sum(mass for _, _, mass in after) / before if before else 0
        assert factors.alpha[step] == expected
        passed = [w for w in answers if w[:step] in kept]
        still = [w for w in answers if w[: step + 1] in kept]
        assert factors.beta[step] == (Fraction(len(still), len(passed)) if passed else 0)


@given(trees_with_cutoff())
def test_local_measures_by_hand(drawn):
    tree, size = drawn
    trie = tree.tokens.trie
    share = theorems.shares(tree.tokens, tree.rank, size, exact=True)
    precision, recall = theorems.local_precision(trie, share), theorems.local_recall(trie, share)
    answers = words(tree)
    for node, kept in enumerate(retained(tree, size)):
        prefix = tuple(trie.prefix(node))
        below = [w for w in answers if w[: len(prefix)] == prefix]
        valid = [letter for letter in kept if letter is not None]
        assert precision[node] == Fraction(len(valid), len(kept))
        reached = sum(w[len(prefix)] in valid for w in below)
        assert recall[node] == Fraction(reached, len(below))


def test_nothing_to_condition_on_makes_the_product_zero():
    tokens, rank = ranked_trie("IV", "V")
    share = theorems.shares(tokens, rank, np.array([1, 1]), exact=True)
    factors = theorems.factorise(tokens.trie, share)
    assert factors.alpha.tolist() == [0, 0] and factors.beta.tolist() == [0, 0]


def test_two_end_tokens_of_one_edge_count_twice_in_precision_and_once_in_recall():
    task = cu.Task(name="one", prompt="Say a.", answers=["a"])
    steps = measured(UniformOverG(), task, "line").steps
    trie = steps.tokens.trie
    share = theorems.shares(steps.tokens, steps.rank, np.array([1, 2]), exact=True)
    factors = theorems.factorise(trie, share)
    assert len(steps.tokens.edge) == trie.n_edges + 1
    assert factors.precision == 1 and factors.recall == 1
    assert theorems.factorise(trie, share / 2).precision == Fraction(1, 4)


@pytest.mark.parametrize("eta", [0.05, 0.3, 1.0])
def test_hardness_by_its_definition(eta):
    tree = theorems.small_tree(1)
    factors = theorems.factorise(tree.tokens.trie, tree.all_shares(exact=False))
    found = theorems.hardness(factors, eta)
    for step, rho in enumerate(found):
        pairs = zip(factors.alpha[step], factors.beta[step], strict=True)
        lost = [-np.log(b) if b > 0 else np.inf for a, b in pairs if a > 0 and -np.log(a) <= eta]
        assert rho == pytest.approx(min(lost, default=np.inf))


def test_the_recall_bound_by_hand():
    assert theorems.recall_bound(1.0, 0.1, 0.7, 3) == pytest.approx(np.exp(-2.1))
    # A precision of e^-0.2 pays for two of the three steps.
    assert theorems.recall_bound(np.exp(-0.2), 0.1, 0.7, 3) == pytest.approx(np.exp(-0.7))
    assert theorems.recall_bound(np.exp(-0.5), 0.1, 0.7, 3) == 1.0
    assert theorems.recall_bound(1.0, 0.1, np.inf, 1) == 0.0
    assert theorems.recall_bound(0.0, 0.1, np.inf, 1) == 1.0


def two_prefixes(seed):
    rng = np.random.default_rng(seed)
    labels = ["".join(rng.permutation(list("VVVIII"[: rng.integers(3, 7)]))) for _ in range(2)]
    return ranked_trie("VV", *labels), labels


@pytest.mark.parametrize("seed", range(8))
def test_no_cutoff_of_a_step_lies_outside_its_frontier(seed):
    (tokens, rank), labels = two_prefixes(seed)
    frontier = theorems.step_frontier(tokens, rank, 1)
    attained = set()
    for a, b in itertools.product(*(range(1, len(label) + 1) for label in labels)):
        share = theorems.shares(tokens, rank, np.array([2, a, b]))
        factors = theorems.factorise(tokens.trie, share)
        point = factors.alpha[1], factors.beta[1]
        attained.add(tuple(np.round(point, 9)))
        for weight in (0.01, 0.3, 1.0, 4.0, 50.0):
            best = (frontier @ [1.0, weight]).max()
            # The frontier's weights lie on a grid, so it may miss a corner by a little.
            assert point[0] + weight * point[1] <= best + 0.01 * (1 + weight)
    assert {tuple(np.round(point, 9)) for point in frontier} <= attained


def test_the_step_frontier_refuses_steps_after_an_end():
    tree = next(t for t in map(theorems.small_tree, range(50)) if len({*map(len, words(t))}) > 1)
    with pytest.raises(InvalidRequestError, match="end before step 3"):
        theorems.step_frontier(tree.tokens, tree.rank, 2)


@pytest.mark.parametrize(
    ("law", "ordered", "shaped"),
    [(UniformOverV(), True, True), (UniformOverG(), True, False), (LeakyShape(0.25), True, False)],
)
def test_calibration_of_known_laws(law, ordered, shaped):
    found = measured(law, "rng-2-sum-at-most-10", "eos")
    assert theorems.order_calibrated(found.steps).all() == ordered
    error = theorems.shape_error(found.steps.tokens.trie, found.edge_log_p[:, 0])
    assert (error < 1e-6).all() == shaped
    if isinstance(law, LeakyShape):
        assert error == pytest.approx(0.75, abs=1e-6)  # all that is missing is on invalid tokens


def test_a_tie_across_the_edge_counts_as_ordered():
    steps = SimpleNamespace(tokens=SimpleNamespace(first=[0, 2, 4]))
    steps.gap, steps.sorted_gap = np.array([0, -1, -1, -1.0]), np.array([0, -1, 0, -1.0])
    assert theorems.order_calibrated(steps).tolist() == [True, False]


def test_bad_requests_are_named():
    tree = theorems.small_tree(0)
    with pytest.raises(InvalidRequestError, match="keeps 0 tokens"):
        theorems.shares(tree.tokens, tree.rank, np.zeros(tree.tokens.trie.n_nodes, dtype=int))
    factors = theorems.factorise(tree.tokens.trie, tree.all_shares(exact=False))
    with pytest.raises(InvalidRequestError, match="eta=0"):
        theorems.hardness(factors, 0)


# --- The geometric model against direct sums, exact series and simulation of its definition ---

sharpness = st.floats(1e-6, 200)
branching = st.integers(1, 400)


def entropy_by_sum(v, a):
    p = np.exp(-a * np.arange(v) / v)
    p /= p.sum()
    return -(p[p > 0] * np.log(p[p > 0])).sum()


@given(branching, sharpness)
def test_entropy_is_the_sum_of_its_definition(v, a):
    assert theorems.head_entropy(v, a) == pytest.approx(entropy_by_sum(v, a), abs=1e-11)


def test_entropy_at_its_ends():
    assert theorems.head_entropy(9, 0.0) == pytest.approx(np.log(9))
    assert theorems.head_entropy(9, np.inf) == 0
    assert theorems.head_entropy(1, 3.0) == 0
    with pytest.raises(InvalidRequestError, match="needs v >= 1"):
        theorems.head_entropy(0, 1.0)


@pytest.mark.parametrize("v", [2, 5, 50])
def test_one_step_attains_the_bound(v):
    z = np.array([0.1, 1.0, 8.0])  # Def. F.1: a step keeps 1 - exp(-z)
    val, div = -np.expm1(-z), theorems.bound_at(z, [v])
    assert div == pytest.approx(theorems.diversity_bound(val, [v]), abs=1e-12)
    assert div == pytest.approx(theorems.at_validity(val, [v]), abs=1e-12)


def test_a_reference_model_of_the_law_has_what_the_formulas_say():
    """Through tokens, logits and `evaluate`; the vocabulary ends, so validity is a little more."""
    task, z = cu.get_task("rng-2"), 10 * 0.5
    model = reference_model(Geometric(0.5), task, end="none")
    row = cu.evaluate(model, task, end="none").iloc[0]
    # digit, comma, digit: the comma is alone, with sharpness 1/10 of a digit's.
    val = (-np.expm1(-z)) ** 2 * -np.expm1(-0.5)
    assert row.validity == pytest.approx(val, abs=1e-6)
    assert row.diversity == pytest.approx(np.exp(-2 * theorems.head_loss(10, z)), abs=1e-6)
    assert row.diversity < theorems.diversity_bound(row.validity, [10, 1, 10])


def test_the_least_loss_is_the_binary_closed_form():
    for eps in (0.9, 0.5, 0.1, 1e-6):
        p = 1 / (1 + np.sqrt(eps))
        h = -(p * np.log(p) + (1 - p) * np.log1p(-p))
        assert theorems.least_loss(eps) == pytest.approx(np.log(2) - h, abs=1e-12)


def heads_of(law):
    return theorems.heads(measured(law, "rng-2", "none").steps)


def test_heads_of_a_geometric_law_meet_every_hypothesis():
    found = heads_of(Geometric(0.5))
    assert found.in_order.all() and found.r2.to_numpy() == pytest.approx(1)
    assert found.slope.to_numpy() == pytest.approx(0.5)
    table = theorems.hypotheses(found)
    assert table.step.tolist() == [1, 3] and table.prefixes.tolist() == [1, 10]
    assert table["most sharpness"].to_numpy() == pytest.approx(5)
    assert table["valid first"].tolist() == [1, 1]


def test_heads_of_another_law_do_not():
    flat = heads_of(UniformOverG())
    assert flat.slope.to_numpy() == pytest.approx(0) and flat.r2.isna().all()
    broken = heads_of(Displaced(Geometric(0.5), 2))
    assert not broken.in_order.any()


# --- The checks hold, and each would show a theorem that is wrong ---

CHECKS = {
    "factorisation": theorems.factorisation,
    "hardness_bound": theorems.hardness_bound,
    "loss_rises": theorems.loss_rises,
    "validity_bounds_diversity": theorems.validity_bounds_diversity,
    "least_loss_is_at_two": lambda: theorems.least_loss_is_at_two(5000),
    "least_loss_limits": theorems.least_loss_limits,
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_theorem_holds_on_everything_looked_at(name):
    assert CHECKS[name]().verdict == "holds"


def unweighted(trie, share):
    """Recall that counts tokens, not answers: Thm. E.1 is not true of it."""
    kept = (share > 0).astype(int)
    total = np.bincount(trie.edge_node)[trie.edge_node]
    return kept / total.reshape(-1, *[1] * (share.ndim - 1))


real_loss, real_bound, real_recall = theorems.head_loss, theorems.bound_at, theorems.recall_bound
BROKEN = {
    "factorisation": ("_part_of_answers", unweighted),
    "hardness_bound": ("recall_bound", lambda p, e, r, m: real_recall(p, e, r, m + 1)),
    "loss_rises": ("head_loss", lambda v, a: real_loss(v, 30 - np.minimum(a, 30))),
    "validity_bounds_diversity": ("bound_at", lambda nats, v: real_bound(1.01 * nats, v)),
    "least_loss_is_at_two": ("least_loss", lambda eps: real_loss(3, -np.log(eps))),
    "least_loss_limits": ("least_loss", lambda eps: 1.01 * real_loss(2, -np.log(eps))),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_theorem_shows(monkeypatch, name):
    monkeypatch.setattr(theorems, *BROKEN[name])
    assert CHECKS[name]().verdict == "fails"

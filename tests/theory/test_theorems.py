"""Theorem E.1 and Def. E.2 against enumeration; Def. 4.1 and D.1 at every prefix."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.core import metrics
from calib_utils.errors import InvalidRequestError
from calib_utils.results.measure import measure, untouched
from calib_utils.studies.errata import ranked_trie
from calib_utils.theory import theorems
from calib_utils.theory.laws import LeakyShape, UniformOverG, UniformOverV, reference_model

LETTERS = 4
trees = st.integers(0, 300).map(lambda seed: theorems.small_tree(seed))


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
    child = {
        (int(n), int(s)): int(c)
        for n, s, c in zip(trie.edge_node, trie.edge_symbol, trie.edge_child, strict=True)
    }
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
def test_products_are_sequence_precision_and_recall(drawn):
    tree, size = drawn
    trie = tree.tokens.trie
    share = theorems.shares(tree.tokens, tree.rank, size)
    factors = theorems.factorise(trie, share)
    with np.errstate(divide="ignore"):
        log_p = metrics.answer_log_probability(
            trie, metrics.sequence_log_probability(trie, np.log(share)[:, None])
        )
    assert factors.precision == pytest.approx(metrics.sequence_precision(log_p)[0], abs=1e-12)
    assert factors.recall == pytest.approx(metrics.sequence_recall(log_p)[0], abs=1e-12)


def test_many_settings_at_once_are_each_on_its_own():
    tree = theorems.small_tree(3)
    together = theorems.factorise(tree.tokens.trie, tree.all_shares(exact=False))
    for column, size in enumerate(itertools.islice(tree.cutoffs(), 0, None, 37)):
        alone = theorems.factorise(
            tree.tokens.trie, theorems.shares(tree.tokens, tree.rank, np.array(size))
        )
        assert np.array_equal(together.alpha[:, 37 * column], alone.alpha)
        assert np.array_equal(together.beta[:, 37 * column], alone.beta)


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
    model = reference_model(UniformOverG(), task, end="line")
    prompt = cu.render_prompt(model, task, end="line")
    steps = measure(model, prompt, untouched([1.0]), ranks=True).steps
    share = theorems.shares(steps.tokens, steps.rank, np.array([1, 2]), exact=True)
    factors = theorems.factorise(prompt.trie, share)
    assert len(prompt.end_ids) == 2
    assert factors.precision == 1 and factors.recall == 1
    assert theorems.factorise(prompt.trie, share / 2).precision == Fraction(1, 4)


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


@given(st.integers(0, 200))
def test_the_best_recall_bound_holds_for_the_family_and_is_attained_by_some(seed):
    tree = theorems.small_tree(seed, most_nodes=4)
    factors = theorems.factorise(tree.tokens.trie, tree.all_shares(exact=False)[:, ::3])
    bound = theorems.best_recall_bound(factors, factors.precision, np.geomspace(0.01, 3, 20))
    assert (factors.recall <= bound + 1e-12).all()


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
    tree = next(t for t in map(theorems.small_tree, range(50)) if _ends_early(t))
    with pytest.raises(InvalidRequestError, match="end before step 3"):
        theorems.step_frontier(tree.tokens, tree.rank, 2)


def _ends_early(tree):
    trie = tree.tokens.trie
    return len(set(trie.node_depth[trie.edge_node[trie.sequence_edge]])) > 1


@pytest.mark.parametrize(
    ("law", "ordered", "shaped"),
    [(UniformOverV(), True, True), (UniformOverG(), True, False), (LeakyShape(0.25), True, False)],
)
def test_calibration_of_known_laws(law, ordered, shaped):
    task = cu.get_task("rng-2-sum-at-most-10")
    model = reference_model(law, task)
    prompt = cu.render_prompt(model, task)
    found = measure(model, prompt, untouched([1.0]), ranks=True)
    assert theorems.order_calibrated(found.steps).all() == ordered
    error = theorems.shape_error(prompt.trie, found.edge_log_p[:, 0])
    assert (error < 1e-6).all() == shaped
    if isinstance(law, LeakyShape):
        assert error == pytest.approx(0.75, abs=1e-6)  # all that is missing is on invalid tokens


def test_a_tie_across_the_edge_counts_as_ordered():
    steps = _steps_of([[0.0, -1.0], [0.0, -1.0]], valid_gaps=[[0.0, -1.0], [-1.0, -1.0]])
    assert theorems.order_calibrated(steps).tolist() == [True, False]


def _steps_of(sorted_gaps, valid_gaps):
    from types import SimpleNamespace

    first = np.cumsum([0, *map(len, valid_gaps)])
    return SimpleNamespace(
        tokens=SimpleNamespace(first=first),
        gap=np.concatenate(valid_gaps),
        sorted_gap=np.concatenate(sorted_gaps),
    )


def test_bad_requests_are_named():
    tree = theorems.small_tree(0)
    with pytest.raises(InvalidRequestError, match="keeps 0 tokens"):
        theorems.shares(tree.tokens, tree.rank, np.zeros(tree.tokens.trie.n_nodes, dtype=int))
    factors = theorems.factorise(tree.tokens.trie, tree.all_shares(exact=False))
    with pytest.raises(InvalidRequestError, match="eta=0"):
        theorems.hardness(factors, 0)

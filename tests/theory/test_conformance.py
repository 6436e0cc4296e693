"""The checks of the theorems hold, and each would show a theorem that is wrong."""

import numpy as np
import pytest

from calib_utils.theory import theorems

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
    found = CHECKS[name]()
    assert found.verdict == "holds" and found.violation <= theorems.ROUNDING


def unweighted(trie, share):
    """Recall that counts tokens, not answers: Thm. E.1 is not true of it."""
    kept = (share > 0).astype(int)
    total = np.bincount(trie.edge_node)[trie.edge_node]
    return kept / total.reshape(-1, *[1] * (share.ndim - 1))


real_loss, real_bound, real_recall = theorems.head_loss, theorems.bound_at, theorems.recall_bound
BROKEN = [
    ("factorisation", theorems, "_part_of_answers", unweighted),
    ("hardness_bound", theorems, "recall_bound", lambda p, e, r, m: real_recall(p, e, r, m + 1)),
    ("loss_rises", theorems, "head_loss", lambda v, a: real_loss(v, 30 - np.minimum(a, 30))),
    (
        "validity_bounds_diversity",
        theorems,
        "bound_at",
        lambda nats, v: real_bound(1.01 * nats, v),
    ),
    ("least_loss_is_at_two", theorems, "least_loss", lambda eps: real_loss(3, -np.log(eps))),
    ("least_loss_limits", theorems, "least_loss", lambda eps: 1.01 * real_loss(2, -np.log(eps))),
]


@pytest.mark.parametrize(
    ("name", "module", "attribute", "wrong"), BROKEN, ids=[b[0] for b in BROKEN]
)
def test_a_wrong_theorem_shows(monkeypatch, name, module, attribute, wrong):
    monkeypatch.setattr(module, attribute, wrong)
    assert CHECKS[name]().verdict == "fails"


def test_the_table_has_every_check():
    table = theorems.checks()
    assert len(table) == len(CHECKS) and (table.verdict == "holds").all()


@pytest.mark.parametrize("seed", range(12))
def test_small_trees_are_what_they_say(seed):
    tree = theorems.small_tree(seed)
    trie = tree.tokens.trie
    assert 3 <= trie.n_nodes <= 5 and trie.node_count[0] == trie.n_answers
    for node in range(trie.n_nodes):
        own = tree.rank[tree.tokens.first[node] : tree.tokens.first[node + 1]]
        assert len(set(own)) == len(own) and own.max() < 4
    assert len(list(tree.cutoffs())) == 4**trie.n_nodes

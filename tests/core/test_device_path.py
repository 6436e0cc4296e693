"""Ranking and rules as on a GPU, run on the CPU: the numbers of the CPU's own way, few operations,
and no read by the host between nodes."""

import numpy as np
import pytest
import torch

import calib_utils as cu
from calib_utils.core import ranking
from calib_utils.core.rules import MORE_GRIDS, TABLE3_TEMPERATURES, table3_rules
from calib_utils.core.tries import trie_of_strings

VOCABULARY = 300
TABLE3 = [(rule, t) for rule in table3_rules() for t in TABLE3_TEMPERATURES]
CHAINS = [
    cu.parse_rule("top_p=0.95+top_k=40@llama.cpp"),
    cu.parse_rule("top_k=40+typical=0.9"),
]
MORE = [
    (rule, t)
    for rule in [*(rule for grid in MORE_GRIDS.values() for rule in grid), *CHAINS]
    for t in (0.01, 0.8, 2.0)
]
RNG_2, RNG_3 = (trie_of_strings(cu.get_task(name).answers) for name in ("rng-2", "rng-3"))


def tied_logits(trie, dtype, seed=0):
    """Float32 [node, vocab] of the values of a dtype, some masked; bfloat16 ties very often."""
    random = np.random.default_rng(seed)
    logits = 3 * random.standard_normal((trie.n_nodes, VOCABULARY))
    logits[random.random(logits.shape) < 0.02] = -np.inf
    logits[random.random(logits.shape) < 0.05] = 0.0
    logits[random.random(logits.shape) < 0.05] = -0.0
    return torch.tensor(logits).to(dtype).float().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [TABLE3, MORE], ids=["table3", "more"])
def test_a_device_gives_the_numbers_of_the_cpu(measure_logits, monkeypatch, dtype, settings):
    logits = tied_logits(RNG_2, dtype)
    if dtype == torch.bfloat16:
        assert len(np.unique(logits[0])) < VOCABULARY * 0.9
    here = measure_logits(RNG_2, logits, settings)
    monkeypatch.setattr(ranking, "BY_ROW", frozenset())
    there = measure_logits(RNG_2, logits, settings)
    for name in ("rank", "start", "stop"):
        assert (getattr(here.steps, name) == getattr(there.steps, name)).all(), name
    for name in ("gap", "sorted_gap", "log_mass"):
        a, b = getattr(here.steps, name), getattr(there.steps, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9, err_msg=name)
    for name in ("validity", "diversity", "sequence_precision", "sequence_recall"):
        a, b = getattr(here, name), getattr(there, name)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_grid_takes_few_operations_and_hardly_any_read(measure_logits, monkeypatch, counted):
    monkeypatch.setattr(ranking, "BY_ROW", frozenset())
    logits = tied_logits(RNG_3, torch.bfloat16)
    assert len(TABLE3) == 204
    with counted() as (operations, reads):
        measure_logits(RNG_3, logits, TABLE3, batch=RNG_3.n_nodes // 2)
    assert operations.total() <= 5000, operations.most_common(20)
    assert operations["_local_scalar_dense"] + reads.total() <= 50, reads
    assert 6 <= reads["cpu"] <= 10, "the results of a batch are read once"


def test_a_ranking_that_does_not_fit_is_done_in_parts(measure_logits, monkeypatch):
    logits = tied_logits(RNG_2, torch.float32)
    whole = measure_logits(RNG_2, logits, TABLE3[:20])
    monkeypatch.setattr(ranking, "BY_ROW", frozenset())
    tried, init = [], ranking.Ranking.__init__

    def limited(self, logits, *args):
        tried.append(len(logits))
        if len(logits) > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        init(self, logits, *args)

    monkeypatch.setattr(ranking.Ranking, "__init__", limited)
    parts = measure_logits(RNG_2, logits, TABLE3[:20])
    assert min(tried) <= 7 < max(tried)
    np.testing.assert_allclose(parts.validity, whole.validity, rtol=1e-9)
    np.testing.assert_allclose(parts.answer_log_p, whole.answer_log_p, rtol=1e-9)

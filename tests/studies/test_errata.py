"""Every item of the errata derived again here, another way; each would fail if it were wrong."""

import functools
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch

import calib_utils as cu
from calib_utils import paths
from calib_utils.core.ranking import Ranking
from calib_utils.studies import errata
from calib_utils.theory import theorems

items = functools.cache(errata.items)


def values(name):
    return next(item for item in items() if item.test == f"test_{name}").values


def test_every_item_has_its_test_and_numbers_once():
    found = items()
    assert all(item.test in globals() for item in found)
    assert len({item.test for item in found}) == len(found)
    assert {item.verdict for item in found} <= {errata.HOLDS, errata.CARE, errata.FAILS}


def test_the_page_has_every_item_with_its_verdict_number_and_test():
    page = (paths.book_dir() / "errata.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", page, flags=re.M)[1:]
    by_number = {int(section.split(".")[0]): section for section in sections}
    assert list(by_number) == [item.number for item in items()]
    for item in items():
        section = by_number[item.number]
        assert f"::errata_{item.number}:s`" in section and f"`{item.test}`" in section
        told = re.search(r"\*\*(.+?)\.\*\*", section).group(1).lower()
        assert told.split()[0] == item.verdict.split()[0]


def entropy(p):
    p = np.array([x for x in p if x > 0])
    return -(p * np.log(p)).sum()


def diversity(p):
    return np.exp(entropy(np.array(p) / np.sum(p))) / len(p)


def test_diversity_range():
    v = values("diversity_range")
    assert (v["least"], v["most"]) == (0.25, 1.0) and np.isnan(v["undefined"])
    rng = np.random.default_rng(0)
    assert all(0.25 <= diversity(rng.dirichlet([0.3] * 4)) <= 1 for _ in range(200))


def test_precision_is_validity():
    v = values("precision_is_validity")
    assert v["precision"] == pytest.approx(2 / 3) and v["validity"] == pytest.approx(0.7 + 0.1)


def test_identities():
    """On a model small enough to write every answer's probability out."""
    assert values("identities")["residual"] < 1e-12
    first = {"a": 0.5, "b": 0.2}
    second = {"a": {"a": 0.4, "b": 0.3}, "b": {"a": 0.6}}
    p = {f + s: first[f] * q for f, tails in second.items() for s, q in tails.items()}
    val, given = sum(p.values()), {y: q / sum(p.values()) for y, q in p.items()}
    kl_model = sum(q * np.log(q / p[y]) for y, q in given.items())
    kl_uniform = sum(q * np.log(q * 3) for q in given.values())
    div = np.exp(entropy(given.values())) / 3
    assert kl_model + kl_uniform == pytest.approx(-np.log(val * div))
    to_a = given["aa"] + given["ab"]
    step_1 = to_a * np.log(to_a / (2 / 3)) + (1 - to_a) * np.log((1 - to_a) / (1 / 3))
    inside = [given["aa"] / to_a, given["ab"] / to_a]
    step_2 = to_a * sum(q * np.log(q / (1 / 2)) for q in inside)
    assert step_1 + step_2 == pytest.approx(-np.log(div))


def test_factorisation():
    v = values("factorisation")
    assert v["violation"] == 0 and v["empty"] == 0


def test_local_is_not_global():
    """From the labels alone, without a trie."""
    v = values("local_is_not_global")
    few = [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    many = [1, 0, 0, 0, 0, 0] + [1] * 39
    for labels, name in ((few, "few"), (many, "many")):
        kept = np.cumsum(labels)
        precise = kept / np.arange(1, len(labels) + 1) >= 0.9
        assert v[name] == pytest.approx(kept[precise].max() / sum(labels))
        assert v[name] <= 0.5
    assert v["precision"] == pytest.approx((1 + 40 / 45) / 2)
    assert v["recall"] == pytest.approx(41 / 42)
    spent = -np.log(v["precision"]) / -np.log(0.9)
    assert v["bound"] == pytest.approx(0.5 ** (1 - spent))
    assert v["recall"] > v["bound"]
    assert (v["all_p"], v["all_r"]) == (pytest.approx(1), 1)


def test_finite_vocabulary():
    v = values("finite_vocabulary")
    p = np.full(10, 0.1)
    assert p[:9].sum() == pytest.approx(v["val"]) and diversity(p[:9]) == pytest.approx(v["div"])
    assert v["bound"] < v["div"]
    # The bound by its definition: the geometric head whose sharpness is ln 1/eps.
    head = np.exp(-np.log(10) * np.arange(9) / 9)
    assert v["bound"] == pytest.approx(diversity(head))
    assert v["large"] < 1e-50


def test_sharpness_per_prefix():
    v = values("sharpness_per_prefix")
    assert v["val"] == pytest.approx(0.5 * 0.5 + 0.25 * 1) and v["div"] == pytest.approx(1)
    assert v["bound"] == pytest.approx(diversity([1, 0.5**0.5])) and v["bound"] < 1


def test_least_loss():
    v = values("least_loss")
    assert v["violation"] < 1e-12 and v["series"] < 1e-12
    q = 1 - 0.9 ** (1 / 4)
    assert v["true"] == pytest.approx(diversity(q ** (np.arange(10) / 10)) ** 4)
    assert v["f4"] == pytest.approx(diversity(0.1 ** (np.arange(10) / 10)) ** 4)
    assert v["f5"] == pytest.approx(diversity([1, 0.1**0.5]) ** 4)
    p = 1 / (1 + v["half"] ** 0.5)
    assert entropy([p, 1 - p]) == pytest.approx(np.log(2) / 2, abs=1e-5)


def test_heavy_tail():
    """The Zipf law cut at a million ranks, its exponent by bisection."""
    v = values("heavy_tail")
    ranks = np.arange(1, 1_000_001.0)
    low, high = 1.1, 4.0
    for _ in range(12):
        s = (low + high) / 2
        p = ranks**-s
        low, high = (s, high) if p[:10].sum() / p.sum() < 0.9 else (low, s)
    assert v["zipf"] == pytest.approx(diversity(p[:10]), abs=2e-3)
    assert v["geometric"] == pytest.approx(diversity(0.1 ** (np.arange(10) / 10)), abs=1e-6)


def test_oracle_is_no_ceiling():
    v = values("oracle_is_no_ceiling")
    assert (v["p2"], v["r2"]) == (0.5, 0.5)
    assert (v["p3"], v["r3"]) == (pytest.approx(2 / 3), 1)


@pytest.mark.parametrize(
    ("name", "n", "keep"),
    [("equals", 3, lambda s: s == 10), ("at_most", 3, lambda s: s <= 10),
     ("four", 4, lambda s: s <= 10)],
)  # fmt: skip
def test_structural_ceiling(name, n, keep):
    answers = [a for a in itertools.product(range(10), repeat=n) if keep(sum(a))]
    prefixes = {a[:k] for a in answers for k in range(n + 1)}
    p = [
        np.prod([1 / sum((*a[:k], d) in prefixes for d in range(10)) for k in range(n)])
        for a in answers
    ]
    assert sum(p) == pytest.approx(1)
    assert values("structural_ceiling")[name] == pytest.approx(diversity(p))


def test_states_ceiling():
    v = values("states_ceiling")
    firsts = [answer.split()[0] for answer in cu.get_task("us-states").answers]
    n = {word: firsts.count(word) for word in firsts}
    # Only the first word has a choice whose options differ in N.
    p = [1 / len(n) / n[word] for word in firsts]
    assert v["even"] == pytest.approx(diversity(p)) and v["weighted"] == pytest.approx(1)
    assert v["new"] == n["New"] == 4 and n["Ohio"] == 1


def test_recall_is_weighted():
    v = values("recall_is_weighted")
    answers = [a for a in itertools.product(range(10), repeat=3) if sum(a) <= 10]
    kept = sum(a[0] <= 4 for a in answers)
    assert v["weighted"] == pytest.approx(kept / len(answers)) and v["count"] == 0.5


def test_area_needs_prevalence():
    """Prevalence straight from the file; a random order's area is near it."""
    v = values("area_needs_prevalence")
    table = pd.read_csv(paths.package_data("published", "precision_recall.csv"))
    last = table[table["index"] == 59]
    assert len(last) == 8 and (last.recall == 1).all()
    assert v["least"] == pytest.approx(last.precision.min(), abs=1e-6)
    assert v["most"] == pytest.approx(last.precision.max(), abs=1e-6)
    assert v["least"] < v["random_least"] < v["least"] + 0.02
    assert 0 < v["gain_least"] < v["gain_most"] < 0.2


def test_judge_noise():
    """Simulated here: precision over the first 8,000 is .9, what follows only dilutes it."""
    v = values("judge_noise")
    rng = np.random.default_rng(7)
    areas, recalls = [], []
    for _ in range(5):
        judged = np.concatenate([rng.random(8000) < 0.9, rng.random(72_000) < 0.1])
        kept = judged.cumsum()
        precision, recall = kept / np.arange(1, 80_001), kept / kept[-1]
        best = np.maximum.accumulate(precision[::-1])[::-1]
        areas.append((best * np.diff(recall, prepend=0.0)).sum())
        recalls.append(recall[precision >= 0.8].max())
    assert v["area"] == pytest.approx(np.mean(areas), abs=0.01)
    assert v["recall"] == pytest.approx(np.mean(recalls), abs=0.01)


def test_cosine_range():
    assert values("cosine_range")["opposite"] == pytest.approx(2)


def test_typical_drops_the_top():
    """By the rule that the book evaluates."""
    v = values("typical_drops_the_top")
    logits = torch.log(torch.tensor([[0.4, *[0.06] * 10]]))
    rule = cu.Typical(0.5)
    left = rule.keep(Ranking(logits, np.array([1])).at(1.0))
    assert not rule.is_rank_cutoff and int(left.start) == 1 and v["top"] == 0
    # The rule keeps all of a tie, where the definition may stop within it.
    assert int(left.stop) - 1 == 10 >= v["kept"]


def test_unequal_budgets():
    v = values("unequal_budgets")
    sizes = {"top_k": 6, "top_p": 5, "min_p": 4, "none": 1}
    assert v == {name: 12.0 * n for name, n in sizes.items()}


def test_a_wrong_number_would_show(monkeypatch):
    """The items compute: with a stronger bound in place of Thm E.3's, item 5 says other numbers."""
    before = errata.local_is_not_global()["bound"]
    monkeypatch.setattr(theorems, "recall_bound", lambda *_: 0.1)
    assert errata.local_is_not_global()["bound"] == 0.1 != before

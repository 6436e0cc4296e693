"""The criterion on data whose family is known; the queries on a tiny model; claims from tables."""

import functools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import calib_utils as cu
from calib_utils import paths
from calib_utils.figures import logit_shape as logit_shape_figures
from calib_utils.studies import logit_shape
from calib_utils.studies.reporting import NOT_DECIDED, NOT_REPRODUCED, REPRODUCED
from calib_utils.theory import curves as curves_module
from calib_utils.theory.curves import FAMILIES, blocks, compare, held_out_errors, preferred

K = np.arange(1, 2001.0)
C = 15
HEAD = K <= C
TRUTHS = {
    "exponential": 10 - 0.004 * K,
    "power_law": 15 - 1.3 * np.log(K),
    "shifted_power_law": 15 - 1.3 * np.log(K + 8),
    "two_part_continuous": np.where(HEAD, 13 - 0.5 * K, 5.5 - 1.2 * np.log((K + 5) / 20)),
    "two_part_log_head": np.where(HEAD, 14 - 2 * np.log(K), 6 - np.log(np.maximum(K - 4, 1))),
    "two_part": np.where(HEAD, 20 - 0.8 * K, 9 - 1.2 * np.log(K + 5)),
}


def noise(seed, correlation=0.0):
    """Normal, variance 1, a first-order autoregression."""
    e = np.random.default_rng(seed).normal(size=len(K))
    for i in range(1, len(e)):
        e[i] = correlation * e[i - 1] + np.sqrt(1 - correlation**2) * e[i]
    return e


@pytest.mark.parametrize("family", [name for name in TRUTHS if name != "power_law"])  # below
def test_data_made_by_a_family_are_traced_back_to_it(family):
    """Correlated residuals do not take held-out blocks in: no breakpoint where there is none."""
    correlation = 0.9 * (family == "shifted_power_law")
    y = TRUTHS[family] + 0.05 * noise(int(correlation > 0), correlation)
    errors = held_out_errors(y)
    assert preferred(errors) == family
    if family == "two_part":  # the others are told apart with their intervals
        table = compare(y, errors).set_index("family")
        assert (table.low[["exponential", "power_law", "shifted_power_law"]] > 1).all()
        assert (table.ratio["two_part"], table.low["two_part"]) == (1, 1)
        assert table.bic_naive.min() == table.bic_effective.min() == 0


def test_the_bic_of_all_ranks_is_taken_in_and_the_effective_one_is_not():
    table = compare(TRUTHS["power_law"] + 0.05 * noise(0, 0.9)).set_index("family")
    assert table.bic_naive.idxmin().startswith("two_part")
    assert table.bic_effective.idxmin() == "power_law"
    assert list(table.index[table.preferred]) == ["power_law"]
    # 1 - r over 1 + r is 1/19 at r = 0.9.
    assert table.effective_n.iloc[0] == pytest.approx(len(K) / 19, rel=0.3)


def test_without_misfit_no_family_is_told_apart():
    """Exact data of the smallest family: errors are rounding, and rounding decides nothing."""
    table = compare(TRUTHS["exponential"]).set_index("family")
    assert 0.5 < table.ratio["two_part_continuous"] < 2
    assert table.ratio["power_law"] > 100
    assert table.index[table.preferred] == ["exponential"]


def test_blocks_cover_every_rank_once_and_in_order():
    number = blocks(2000)
    assert (np.diff(number) >= 0).all() and set(number) == set(range(12))
    widths = np.log([2000] + [np.flatnonzero(number == b)[0] + 1 for b in range(12)])
    assert number[0] == 0 and np.ptp(np.bincount(number)[4:] / np.exp(widths[5:])) < 0.1
    assert set(blocks(7)) == set(range(blocks(7).max() + 1))


def test_interval_and_effective_size_by_hand():
    assert curves_module.mean_interval([1, 3]) == pytest.approx((2, 2 - 12.706, 2 + 12.706), 1e-3)
    assert curves_module.mean_interval([5.0])[1:] == (-np.inf, np.inf)
    assert curves_module.effective_size([1, -1, 1, -1]) == 4  # no credit for alternation
    assert curves_module.effective_size(np.zeros(4)) == 4
    assert curves_module.effective_size(np.ones(1000)) == pytest.approx(1, abs=0.01)


def test_queries_are_the_papers():
    published = logit_shape.published_fits()
    assert len(published) == 18 and published.model.nunique() == 3
    asked = {(q.text, q.prefix) for q in logit_shape.QUERIES}
    assert asked == set(zip(published["query"], published.prefix, strict=True))
    assert published.r2.min() == 0.93408 and published.c.max() == 56
    assert (published.c == 2).sum() == 4  # the notebook says so
    assert published.source.str.contains("2605.11128").all()


def test_logits_of_the_demo_page_lie_on_the_grid_of_bfloat16():
    """The notebook says so. A float32 value does so once in 65,536 times."""
    for name in ("temperature_tokens", "precision_recall"):
        table = pd.read_csv(paths.package_data("published", f"{name}.csv"))
        values = table.logit_value.to_numpy()
        np.testing.assert_array_equal(logit_shape.to_bfloat16(values), values)
    assert not (logit_shape.to_bfloat16([0.1, 1.3]) == [0.1, 1.3]).any()


@pytest.mark.parametrize("architecture", ["llama", "qwen3.5"])  # packed and branched
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("prefix", ["", "1,", "In a world where"])
def test_logits_are_those_of_a_plain_forward_pass(tiny, architecture, chat, prefix):
    model = tiny(architecture, chat=chat)
    query = logit_shape.Query("q", "Name a number.", prefix)
    found = logit_shape.sorted_logits(model, query, 50)
    text = cu.render_prompt(model, logit_shape.query_task(query)).text
    text += prefix if chat or not prefix else " " + prefix
    ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        plain = model.network(ids).logits[0, -1].double().sort(descending=True).values[:50]
    np.testing.assert_allclose(found, plain, atol=1e-4)
    assert found.dtype == np.float64 and (np.diff(found) <= 0).all()


def curves_of(*families, n=400):
    names = [query.label for query in logit_shape.QUERIES]
    columns = {
        name: TRUTHS[family][:n] + 0.02 * noise(seed)[:n]
        for seed, (name, family) in enumerate(zip(names, families, strict=False))
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(1, n + 1, name="rank"))


THREE = ("two_part", "two_part_continuous", "power_law")


@functools.cache
def tables_of(*families):
    curves = curves_of(*families)
    return curves, logit_shape.fit_table(curves), logit_shape.held_out_table(curves)


def decided(*families, **changed):
    _, fits, held_out = tables_of(*families)
    found = logit_shape.findings(fits.assign(**changed), held_out)
    words = "top|lies|exponential|a power law|shifted|jump|head"
    return found.set_index(found.claim.str.extract(f"({words})")[0]).verdict


def test_claims_follow_the_numbers():
    good = decided("two_part")
    assert good.pop("lies") == REPRODUCED and set(good) == {"yes"} and len(good) == 6
    continuous = decided("two_part_continuous")
    assert continuous["jump"] == NOT_DECIDED and continuous["exponential"] == "yes"
    straight = decided("exponential")
    assert straight["exponential"] == straight["head"] == NOT_DECIDED
    assert straight["a power law"] == "yes"
    assert decided("two_part_log_head")["head"] == "no"
    few = decided("two_part", c=2)
    assert few["head"] == NOT_DECIDED and few["lies"] == REPRODUCED
    bad = decided("two_part", c=57, top_miss=-4.0)
    assert (bad["lies"], bad["top"]) == (NOT_REPRODUCED, "no")


def test_a_fit_may_miss_the_top_token_at_an_r2_near_1():
    """R² decides nothing: one rank of 400 moves it little, and is the most probable token."""
    curves, _, _ = tables_of("two_part")
    curves = curves.copy()
    curves.iloc[0] += 4
    row = logit_shape.fit_table(curves).iloc[0]
    assert row.top_miss > 2 and row.r2 > 0.95
    ratios = {family: (1.5, 1.2, 2.0) for family in FAMILIES} | {"power_law": (0.5, 0.2, 0.8)}
    ratios["two_part_log_head"] = (1.1, 0.9, 1.3)
    pooled = pd.DataFrame(ratios, index=["ratio", "low", "high"]).T.rename_axis("family")
    told = logit_shape.key_numbers(logit_shape.fit_table(curves), pooled.reset_index())
    assert told["held_out"] == (
        "better than an exponential, a power law with shifted ranks and the same form without its "
        "jump, and worse than a power law, and neither better nor worse than the same form with a "
        "logarithm as its head"
    )
    assert told["top_miss"] == f"{row.top_miss:.1f}" and told["top_miss_query"] == "3+6"


def test_tables_hold_each_query_once_and_the_interval_of_c_its_breakpoint():
    curves, fits, held_out = tables_of(*THREE)
    assert list(fits["query"]) == ["3+6", "city", "story"]
    assert ((fits.c_low <= fits.c) & (fits.c <= fits.c_high)).all()
    assert fits.c[0] == C and abs(fits.c[1] - C) <= 1
    # The line's next value is 7.2, the tail's first 9 - 1.2 log 21.
    assert fits.jump[0] == pytest.approx(7.2 - 9 + 1.2 * np.log(21), abs=0.1)
    compared, pooled = logit_shape.comparison(curves, held_out), logit_shape.pooled_ratios(held_out)
    assert len(compared) == 3 * len(FAMILIES) and list(pooled.family) == list(FAMILIES)
    geometric = np.exp(np.log(compared.ratio).groupby(compared.family).mean())
    np.testing.assert_allclose(pooled.set_index("family").ratio, geometric[list(FAMILIES)])
    shown = logit_shape.ratio_table(compared, pooled)
    assert list(shown["query"]) == ["3+6", "city", "story", "all queries", "interval from", "to"]
    assert list(logit_shape.bic_table(compared)["query"]) == ["3+6", "city", "story"]
    both = logit_shape.beside_published(fits, "ours")
    assert list(both.whose) == ["published"] * 9 + ["here"] * 3
    assert set(both.model[both.whose == "here"]) == {"ours"}


@pytest.mark.usefixtures("book_style")
def test_figures_show_what_the_tables_hold():
    curves, table, held_out = tables_of(*THREE)
    fits = logit_shape.fits_of(curves)
    compared, pooled = logit_shape.comparison(curves, held_out), logit_shape.pooled_ratios(held_out)
    grid = logit_shape_figures.fit_grid(curves, fits)
    assert [ax.get_visible() for ax in grid.axes] == [True] * 3
    dots = logit_shape_figures.published_dots(logit_shape.beside_published(table, "ours"))
    assert sum(len(c.get_offsets()) for c in dots.axes[0].collections) == 9 + 3
    for draw, tables in (
        (logit_shape_figures.residuals, (curves, fits)),
        (logit_shape_figures.breakpoint_profiles, (fits,)),
        (logit_shape_figures.held_out_ratios, (compared, pooled)),
    ):
        plt.figure()
        assert draw(*tables).figure.says

"""Local curves, areas, baselines and intervals: by hand, by loops, and on the published points."""

from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from calib_utils import paths
from calib_utils.core import metrics
from calib_utils.core.metrics import cluster_interval
from calib_utils.openended import precision_recall

KINDS = (precision_recall.WEIGHTED, precision_recall.UNWEIGHTED)
weight_lists = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def node_of(weights, depth=1, node=(), prompt="p", seed=0, stride=1):
    """Candidates of one node from their weights by rank."""
    n = len(weights)
    own = {"prompt_id": prompt, "category": "story", "seed": seed, "depth": depth}
    own |= {"node": [node] * n, "rank": np.arange(n) * stride, "log_p": -np.arange(1.0, n + 1)}
    return pd.DataFrame(own | {"valid": np.array(weights) > 0, "weight": weights})


def measured(weights, recall=precision_recall.UNWEIGHTED):
    curves = precision_recall.local_curves(node_of(weights))
    return precision_recall.node_measures(curves, recall).iloc[0]


def brute_force(weights, weighted, level=0.8):
    """Area and recall from the definitions, a loop over cutoffs."""
    worth = [w if weighted else float(w > 0) for w in weights]
    points = [
        (sum(worth[:m]) / sum(worth), sum(w > 0 for w in weights[:m]) / m)
        for m in range(1, len(weights) + 1)
    ]
    area, before = 0.0, 0.0
    for level_r in sorted({r for r, _ in points}):
        area += (level_r - before) * max(p for r, p in points if r >= level_r)
        before = level_r
    return area, max([r for r, p in points if p >= level], default=0.0)


# Curves of one node


def test_one_node_by_hand():
    curves = precision_recall.local_curves(node_of([2, 0, 6, 0], stride=10))
    assert curves["rank"].tolist() == [0, 10, 20, 30]
    assert curves.n_kept.tolist() == [1, 2, 3, 4]
    assert curves.precision.tolist() == [1, 1 / 2, 2 / 3, 1 / 2]
    assert curves.recall_weighted.tolist() == [0.25, 0.25, 1, 1]
    assert curves.recall_unweighted.tolist() == [0.5, 0.5, 1, 1]
    found = precision_recall.node_measures(curves, "weighted").iloc[0]
    assert found.area == pytest.approx(0.25 * 1 + 0.75 * 2 / 3)
    assert (found.recall_at, found.prevalence) == (0.25, 0.5)
    assert precision_recall.node_measures(curves, "unweighted").recall_at[0] == 0.5


@given(weight_lists)
def test_areas_and_recalls_are_those_of_a_loop_over_cutoffs(weights):
    for kind in KINDS:
        found = measured(weights, kind)
        if not any(weights):
            assert np.isnan([found.area, found.recall_at, found.random_area]).all()
            continue
        area, recall = brute_force(weights, kind == "weighted")
        assert found.area == pytest.approx(area, abs=1e-12)
        assert found.recall_at == pytest.approx(recall, abs=1e-12)
        assert found.prevalence - 1e-12 <= found.area <= 1


@given(weight_lists.filter(any), st.integers(2, 9), st.randoms())
def test_neither_spacing_scale_nor_row_order_matters(weights, factor, random):
    rows = node_of(weights, stride=factor).assign(weight=np.array(weights) * factor)
    shuffled = rows.sample(frac=1, random_state=random.randrange(2**31))
    for kind in KINDS:
        other = precision_recall.node_measures(precision_recall.local_curves(shuffled), kind)
        assert other.area[0] == pytest.approx(measured(weights, kind).area, abs=1e-12)


@pytest.mark.parametrize("weights", [[1], [3, 1, 2, 0, 0, 0], [1, 1, 1]])
def test_a_perfect_order_has_area_1_and_a_reversed_one_has_not(weights):
    for kind in KINDS:
        assert measured(weights, kind).area == 1
        assert measured(weights, kind).recall_at == 1
    assert measured([0, *weights]).area < 1


@given(weight_lists.filter(any))
def test_the_grid_reads_the_best_precision_at_each_level(weights):
    curves = precision_recall.local_curves(node_of(weights, node=(3, 1)))
    grid = precision_recall.frontiers_on_grid(curves, "weighted")
    assert grid.node.tolist() == [(3, 1)] * 21
    for row in grid.itertuples():
        good = curves[curves.recall_weighted >= row.recall_level]
        assert row.precision == good.precision.max()


def test_a_recall_on_the_grid_is_reached():
    # np.linspace would ask for 0.35000000000000003 where 7/20 are kept.
    curves = precision_recall.local_curves(node_of([1] * 7 + [0] * 80 + [1] * 13))
    grid = precision_recall.frontiers_on_grid(curves, "unweighted")
    assert grid.precision[7] == 1


def test_nodes_are_apart_and_none_is_lost():
    parts = [
        node_of([1, 0], prompt="a"),
        node_of([0, 3], prompt="b"),
        node_of([0, 0, 0], prompt="a", depth=2, node=(0,)),
        node_of([2, 2], prompt="a", seed=1),
    ]
    table = pd.concat(parts).sample(frac=1, random_state=0)
    curves = precision_recall.local_curves(table)
    assert len(curves) == len(table)
    measures = precision_recall.node_measures(curves).set_index(["prompt_id", "seed", "depth"])
    assert measures.area[("a", 0, 1)] == 1 and measures.area[("b", 0, 1)] == 0.5
    assert measures.area.isna().sum() == 1 and measures.n_candidates[("a", 0, 2)] == 3
    assert np.isnan(curves.recall_weighted[curves.depth == 2]).all()
    assert (curves.precision[curves.depth == 2] == 0).all()


# Random orders and judges that err


@pytest.mark.parametrize("cutoffs", [None, (1, 3, 6), (6,)])
@pytest.mark.parametrize("level", [0.5, 0.8])
def test_a_random_order_is_the_mean_over_all_orders(cutoffs, level):
    n = 6
    for n_valid in range(1, n + 1):
        areas, recalls = [], []
        for places in combinations(range(n), n_valid):
            found = np.isin(np.arange(n), places).cumsum()
            kept = np.array(cutoffs or range(1, n + 1))
            recall, precision = found[kept - 1] / n_valid, found[kept - 1] / kept
            areas.append(metrics.frontier_area(recall, precision))
            recalls.append(max(recall[precision >= level], default=0.0))
        random = precision_recall.random_order(n, n_valid, level, cutoffs)
        assert random.area == pytest.approx(np.mean(areas), abs=1e-12)
        assert random.recall_at == pytest.approx(np.mean(recalls), abs=1e-12)


def test_weights_do_not_change_what_a_random_order_gets():
    for kind in KINDS:
        every = [measured(list(order), kind) for order in permutations([9, 2, 1, 0, 0])]
        assert np.mean([m.area for m in every]) == pytest.approx(every[0].random_area)
        assert np.mean([m.recall_at for m in every]) == pytest.approx(every[0].random_recall_at)


def test_a_large_random_order_is_simulated_to_its_error(monkeypatch):
    exact = precision_recall.random_order(100, 30)
    monkeypatch.setattr(precision_recall, "_EXACT_UP_TO", 50)
    precision_recall.random_order.cache_clear()
    drawn = precision_recall.random_order(100, 30)
    other = precision_recall.random_order(100, 30, seed=1)
    precision_recall.random_order.cache_clear()
    assert 0 < drawn.standard_error < 2e-3 and exact.standard_error == 0
    assert drawn.area == pytest.approx(exact.area, abs=4 * drawn.standard_error)
    assert drawn.recall_at == pytest.approx(exact.recall_at, abs=3e-3)
    assert other.area != drawn.area


def test_a_judge_that_errs_makes_a_perfect_order_look_poor():
    found = precision_recall.noise_floor(80_000, 8_000, 0.1, 0.1)
    # One set of drawn labels, computed apart from this code, gave .608 and .511.
    assert abs(found.area - 0.608) < 2 * found.area_sd
    assert abs(found.recall_at - 0.511) < 2 * found.recall_at_sd
    # It calls 7,200 + 7,200 valid; precision .8 lasts until 7,200 + .1 b = .8 (8,000 + b).
    assert found.prevalence == pytest.approx(0.18, abs=0.002)
    assert found.recall_at == pytest.approx((7200 + 0.1 * 800 / 0.7) / 14400, abs=0.002)
    sure = precision_recall.noise_floor(50, 20, 0.0, 0.0)
    assert (sure.area, sure.recall_at, sure.area_sd) == (1, 1, 0)
    assert np.isnan(precision_recall.noise_floor(50, 20, 0.0, 1.0).area)


# Means by depth


def sweep(lose):
    """A random labelled sweep; the share `lose` of deeper candidates is invalid besides."""
    rng, parts = np.random.default_rng(0), []
    for prompt, seed, path in product(range(4), range(3), [(), (0,), (1,), (2,)]):
        p = np.linspace(0.9, 0.3, 10) * (1 - lose * len(path))
        weights = rng.integers(1, 4, 10) * (rng.random(10) < p)
        parts.append(node_of(weights, len(path) + 1, path, f"p{prompt}", seed))
    return precision_recall.local_curves(pd.concat(parts, ignore_index=True))


def test_means_weigh_prompts_and_seeds_equally():
    curves = sweep(lose=0.7)
    measures = precision_recall.node_measures(curves)
    summary = precision_recall.depth_summary(measures).set_index("depth")
    for depth, own in measures.groupby("depth"):
        by_run = own.groupby(["prompt_id", "seed"]).area.mean()
        assert summary.area[depth] == pytest.approx(by_run.groupby("prompt_id").mean().mean())
        assert summary.area_low[depth] < summary.area[depth] < summary.area_high[depth]
        gain = summary.area[depth] - summary.random_area[depth]
        assert summary.area_gain[depth] == pytest.approx(gain)
        half = (1 - summary.random_area[depth]) / 2
        assert summary.past_half[depth] == pytest.approx(gain - half)
    assert summary.n_nodes.tolist() == [12, 36]
    assert summary.n_undefined[2] == (measures.n_valid == 0).sum()
    grid = precision_recall.frontiers_by_depth(precision_recall.frontiers_on_grid(curves))
    assert (grid.lowest <= grid["mean"] + 1e-12).all()
    assert (grid["mean"] <= grid.highest + 1e-12).all()
    assert (grid.groupby("depth")["mean"].diff().dropna() <= 1e-12).all()


def test_the_gain_is_held_against_half_of_a_perfect_one_node_by_node():
    """Gains and halves differ by prompt, and together: their difference hardly varies."""
    table = precision_recall.node_measures(sweep(lose=0.5)).assign(depth=1)
    own = np.linspace(0.1, 0.9, table.prompt_id.nunique())
    table["random_area"] = own[table.prompt_id.factorize()[0]]
    table["area_gain"] = (1 - table.random_area) / 2 - 0.01
    row = precision_recall.depth_summary(table).iloc[0]
    found = row.past_half, row.past_half_low, row.past_half_high
    assert found == pytest.approx((-0.01, -0.01, -0.01))
    assert row.area_gain_high - row.area_gain_low > 0.1


def test_undefined_nodes_are_counted_and_in_no_mean_but_one():
    parts = [node_of([1, 0, 0, 0]), node_of([0] * 4, seed=1), node_of([0] * 4, prompt="q")]
    measures = precision_recall.node_measures(precision_recall.local_curves(pd.concat(parts)))
    row = precision_recall.depth_summary(measures).iloc[0]
    assert (row.n_nodes, row.n_undefined, row.n_prompts, row.n_runs) == (3, 2, 1, 1)
    assert (row.area, row.prevalence, row.prevalence_all) == (1, 0.25, 0.0625)
    assert np.isnan([row.area_low, row.area_high]).all()


def test_depths_are_compared_within_a_run():
    measures = precision_recall.node_measures(sweep(lose=0.5))
    lost = measures[~((measures.prompt_id == "p0") & (measures.depth == 2))]
    found = precision_recall.depth_differences(lost).set_index("measure").loc["area"]
    assert (found["depth"], found.minus, found.n_runs, found.n_unpaired) == (2, 1, 9, 3)
    means = lost[lost.prompt_id != "p0"].dropna(subset="area")
    means = means.groupby(["depth", "prompt_id", "seed"]).area.mean()
    by_run = (means[2] - means[1]).groupby("prompt_id").mean()
    assert found.difference == pytest.approx(by_run.mean())
    assert found.low < found.difference < found.high < 0


# Intervals


def clusters(rng, prompts, seeds, between, within):
    table = [
        {"prompt_id": p, "seed": s, "x": centre + rng.normal(0, within)}
        for p in range(prompts)
        for centre in [rng.normal(0, between)]
        for s in range(seeds)
    ]
    return pd.DataFrame(table)


def test_the_interval_follows_the_clusters_not_the_rows():
    table = clusters(np.random.default_rng(0), 8, 4, between=1.0, within=0.01)
    found = cluster_interval(table, "x")
    again = pd.concat([table] * 50, ignore_index=True)  # fifty nodes a run, all alike
    assert cluster_interval(again, "x") == found
    assert (found.n_outer, found.n_inner) == (8, 32)
    spread = table.groupby("prompt_id").x.mean().std(ddof=0) / np.sqrt(8)
    wide = np.sqrt(8 / 7) * t.ppf(0.975, 7) * spread
    assert found.high - found.low == pytest.approx(2 * wide, rel=0.2)
    assert cluster_interval(table, "x", seed=1) != found == cluster_interval(table, "x", seed=0)


@pytest.mark.parametrize(("prompts", "least", "most"), [(4, 0.82, 0.92), (12, 0.92, 0.99)])
def test_the_interval_covers_at_about_its_rate(prompts, least, most, monkeypatch):
    """Its rate is .95; resamples of four clusters end where at best .875 is covered."""
    monkeypatch.setattr(metrics, "N_RESAMPLES", 600)
    rng = np.random.default_rng(5)
    found = [cluster_interval(clusters(rng, prompts, 3, 1.0, 0.5), "x") for _ in range(400)]
    covered = np.mean([f.low <= 0 <= f.high for f in found])
    assert least < covered < most


@settings(max_examples=5)
@given(st.lists(st.integers(1, 3), min_size=3, max_size=4), st.integers(0, 99))
def test_resampling_is_that_of_a_loop(sizes, seed):
    rng = np.random.default_rng(seed)
    groups = [rng.normal(size=size) for size in sizes]
    rows = [(p, s, x) for p, group in enumerate(groups) for s, x in enumerate(group)]
    table = pd.DataFrame(rows, columns=["prompt_id", "seed", "x"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_RESAMPLES", 4000)
        patch.setattr(metrics, "COVERAGE", 0.6)
        found = cluster_interval(table, "x")
    n, looped = len(groups), []
    for _ in range(3000):
        drawn = [groups[g] for g in rng.integers(n, size=n)]
        looped.append(np.mean([rng.choice(group, len(group)).mean() for group in drawn]))
    tail = norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.8, n - 1))
    low, high = np.quantile(looped, [tail, 1 - tail])
    scale = max(np.ptp(np.concatenate(groups)), 1e-9)
    assert abs(found.low - low) < 0.12 * scale and abs(found.high - high) < 0.12 * scale


def test_too_little_for_an_interval_is_nan_not_zero_wide():
    one = pd.DataFrame({"prompt_id": ["a", "a"], "seed": [0, 0], "x": [1.0, 2.0]})
    found = cluster_interval(one, "x")
    assert found.mean == 1.5 and np.isnan([found.low, found.high]).all()
    assert cluster_interval(one.iloc[:0], "x").n_outer == 0
    assert cluster_interval(one.assign(x=[np.nan, 2.0]), "x").mean == 2


# The authors' published points


def test_published_counts_are_those_of_the_demo_data():
    totals = precision_recall.from_published().set_index(["model", "prefix"]).n_valid
    for model, counts in {
        "Qwen3-8B": (1123, 1028, 1475, 1512),
        "Qwen3.5-35B-A3B": (1000, 853, 1266, 1672),
    }.items():
        assert [totals[model, p] for p in ("In", "In a far", "In a", "My")] == list(counts)


def test_published_points_are_counts_and_agree_with_their_labels():
    points = precision_recall.published_points()
    given = pd.read_csv(paths.package_data("published", "precision_recall.csv"))
    # Six decimals in the file: half a unit of the last one, times up to 2,000 ranks.
    assert (abs(given.precision * points.n_kept - points.n_valid) < 2e-3).all()
    assert (abs(points.recall_unweighted - given.recall) < 1e-6).all()
    before = points.groupby(["model", "prefix"]).shift()
    next_rank = points.n_kept - before.n_kept == 1
    one_more = (points.n_valid - before.n_valid)[next_rank] == 1
    assert next_rank.sum() == 8 * 19
    assert (one_more == (points.group[next_rank] == "valid")).all()


def test_published_areas_are_close_to_a_random_order():
    found = precision_recall.from_published().set_index(["model", "prefix"])
    assert (found.area > found.random_area).all()
    assert found.area_gain.between(0.02, 0.12).all()
    # The published order alone does not say it: four in five tokens are valid here.
    assert found.recall_at["Qwen3.5-35B-A3B", "My"] == 1
    assert found.random_recall_at["Qwen3.5-35B-A3B", "My"] == 1
    assert found.recall_at["Qwen3-8B", "In"] < 0.001

"""Figures of order and of Table 1: what is drawn is what the tables hold."""

import numpy as np
import pandas as pd
import pytest

from calib_utils.figures import order_calibration
from calib_utils.openended import precision_recall, table1

pytestmark = pytest.mark.usefixtures("book_style")


@pytest.fixture(scope="module")
def curves():
    rng = np.random.default_rng(0)
    rows = pd.MultiIndex.from_product(
        [list("pqr"), (1, 2), range(10)], names=["prompt_id", "depth", "rank"]
    )
    table = rows.to_frame(index=False).assign(category="story", seed=0)
    table["node"] = [(0,) * (depth - 1) for depth in table.depth]
    table["valid"] = (rng.random(len(table)) < 0.8 - 0.06 * table["rank"]) | (table["rank"] == 0)
    return precision_recall.local_curves(table.assign(weight=table.valid.astype(int)))


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_a_panel_per_depth_with_its_baselines(curves):
    measures = precision_recall.node_measures(curves, "unweighted")
    grid = precision_recall.frontiers_on_grid(curves, "unweighted")
    frontiers = precision_recall.frontiers_by_depth(grid)
    summary = precision_recall.depth_summary(measures)
    figure = order_calibration.depth_frontiers(frontiers, summary)
    assert len(figure.axes) == 2
    for ax, row in zip(figure.axes, summary.itertuples(), strict=True):
        drawn = lines(ax)
        own = frontiers[frontiers.depth == row.depth]
        assert drawn["mean"].get_ydata().tolist() == own["mean"].tolist()
        assert drawn["prevalence"].get_ydata()[0] == row.prevalence
        assert drawn["random order"].get_ydata()[0] == row.random_area
        assert ax.get_title() == f"step {row.depth}\n3 nodes, 3 runs"
        assert ax.get_xlabel() == "recall, unweighted"
    assert figure.get_figwidth() <= 7


def test_where_nothing_is_valid_the_figures_say_so(curves):
    none = precision_recall.frontiers_by_depth(precision_recall.frontiers_on_grid(curves)).iloc[:0]
    figure = order_calibration.depth_frontiers(none, none)
    ax = order_calibration.compared_frontiers(none.rename(columns={"depth": "labels"}), "labels")
    for text in (figure.axes[0].texts[0], ax.texts[0]):
        assert "no candidate of this sweep is valid" in text.get_text()


def test_cutoffs_are_counted_from_1_and_recall_is_named(curves):
    one = curves[(curves.prompt_id == "p") & (curves.depth == 1)]
    ax = order_calibration.cutoff_curves(one)
    drawn = lines(ax)
    assert drawn["precision"].get_xdata().tolist() == list(range(1, 11))
    assert drawn["recall, unweighted"].get_ydata().tolist() == one.recall_unweighted.tolist()
    assert drawn["prevalence"].get_ydata()[0] == one.precision.iloc[-1]


def test_two_sources_of_labels_lie_over_each_other(curves):
    grid = precision_recall.frontiers_on_grid(curves)
    both = pd.concat([grid.assign(labels="greedy"), grid.assign(labels="sampled")])
    frontiers = precision_recall.frontiers_by_depth(both, "labels")
    ax = order_calibration.compared_frontiers(frontiers, "labels")
    drawn = lines(ax)
    assert (drawn["greedy"].get_ydata() == drawn["sampled"].get_ydata()).all()
    assert ax.figure.says == "At no recall do mean precisions differ by more than 0.00."


def test_dots_and_intervals_of_table_1():
    columns = {"parameter": np.nan, "temperature": 1.0, "prompt_id": ["p", "q", "r"]}
    rows = {"none": ([0.9] * 3, 0.2), "oracle": ([0.9, 0.8, 1.0], 0.5), "top_p": ([0.1] * 3, 0.9)}
    parts = []
    for strategy, (validity, diversity) in rows.items():
        part = pd.DataFrame({"strategy": strategy, "validity": validity, **columns})
        part["embedding_diversity"] = np.array([0.0, 0.1, 0.2]) + diversity
        part["self_bleu"] = np.array([0.0, 0.2, 0.1]) + diversity / 2
        parts.append(part.assign(self_bleu_in_groups=0.3))
    comparison = table1.comparison(pd.concat(parts))
    figure = order_calibration.strategy_dots(comparison, table1.published_table1())
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["oracle, two steps", "no filtering", "top-p"]  # by diversity
    assert [text.get_text() for text in figure.axes[0].texts] == ["none valid enough", "paper"]
    assert figure.says.endswith("highest first: oracle, two steps 0.60, no filtering 0.30.")
    drawn = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    oracle = comparison.set_index("strategy").loc["oracle"]
    expected = [oracle.embedding_diversity_low, oracle.embedding_diversity_high]
    assert drawn[0].get_xdata().tolist() == expected
    assert lines(figure.axes[0])["paper"].get_xdata().tolist() == [0.4, 0.25, 0.25]
    assert figure.get_figwidth() <= 7

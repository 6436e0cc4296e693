"""Figures of order on open-ended tasks and of Table 1: a table in, axes or a figure out."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils import figures
from calib_utils.figures import GREY, INK, TICKS, VALID, name_lines, panels, rule_style, shades
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.order_calibration import strategy_name

_LINES = ("-", "--", "-.", (0, (6, 1, 1, 1, 1, 1)))  # dots alone are for prevalence
_MEASURES = {
    "embedding_diversity": "embedding diversity →",
    "self_bleu": "← self-BLEU, all texts",
    "self_bleu_in_groups": "← self-BLEU, groups of four",
}


def depth_frontiers(frontiers: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Mean, lowest and highest frontier, a panel per depth (Fig. 2 right), by `deepest`.

    What the ranking knows is filled: from the mean down to a random order's mean height, which is
    its area. Lines are named in the first panel.
    """
    depths = sorted(frontiers.depth.unique())
    if not depths:
        return _nothing().figure
    label = f"recall, {summary.recall.iloc[0]}"
    figure, axes = panels(len(depths), len(depths), 2.6, label, "precision")
    rows = summary.set_index("depth")
    for ax, depth in zip(axes, depths, strict=True):
        own, row = frontiers[frontiers.depth == depth], rows.loc[depth]
        # A level's precision holds for all recalls down to the level before it.
        known = {"step": "pre", "color": VALID, "alpha": 0.25, "linewidth": 0}
        higher = own["mean"].clip(lower=row.random_area)
        ax.fill_between(own.recall_level, row.random_area, higher, **known)
        for extreme in ("lowest", "highest"):
            thin = {"color": VALID, "linewidth": 0.8, "linestyle": ":"}
            thin["label"] = "extremes" if extreme == "lowest" else None
            ax.step(own.recall_level, own[extreme], where="pre", **thin)
        ax.step(own.recall_level, own["mean"], where="pre", color=VALID, label="mean")
        ax.axhline(row.random_area, color=INK, linewidth=1.3, label="random order")
        ax.axhline(row.prevalence, color=GREY, linewidth=1.3, linestyle="--", label="prevalence")
        nodes = int(row.n_nodes - row.n_undefined)
        ax.set_title(f"step {depth}\n{nodes} nodes, {int(row.n_runs)} runs", fontsize=10)
        _unit(ax)
    name_lines(axes[0])
    means = (f"{row.area:.2f} ({row.random_area:.2f})" for row in rows.loc[depths].itertuples())
    figure.says = f"Mean area by step, and of a random order: {', '.join(means)}."
    return figure


def prompt_points(measures: pd.DataFrame) -> Figure:
    """`node_measures` with one token forced, a dot per prompt: area, and recall at a precision."""
    figure, axes = panels(2, 2, 3.1, y="of this model's ranking")
    shapes = zip(measures.groupby("kind", sort=False), shades(2), "os", strict=False)
    for (kind, own), colour, marker in shapes:
        own = own.dropna(subset="area")
        style = {"marker": marker, "color": colour, "alpha": 0.65, "linestyle": "none"}
        axes[0].plot(own.random_area, own.area, label=kind, **style)
        axes[1].plot(own.prevalence, own.recall_at, label=kind, **style)
    axes[0].plot([0, 1], [0, 1], "-.", color=INK, linewidth=1.3, label="random order")
    axes[0].set_title("area under the frontier")
    axes[1].set_title("recall at precision 0.8")
    _unit(axes[0], "area of a random order")
    _unit(axes[1], "prevalence")
    name_lines(axes[0])
    defined = measures.dropna(subset="area")
    above = int((defined.area > defined.random_area).sum())
    low = int((defined.recall_at < 0.5).sum())
    figure.says = (
        f"The area is above that of a random order on {above} of {len(defined)} prompts; recall at "
        f"precision 0.8 is below one half on {low}."
    )
    return figure


def cutoff_curves(curves: pd.DataFrame) -> Axes:
    """`local_curves` of one node against the rank of the last token kept (Fig. 3)."""
    _, ax = plt.subplots(figsize=(6.4, 3.2))
    rank = curves["rank"] + 1
    # A dot for every swept rank while they can be told apart.
    mark = {"marker": ".", "linewidth": 1.5} if len(curves) <= 100 else {}
    ax.plot(rank, curves.precision, "-", color=VALID, label="precision", **mark)
    recall = {"color": INK, "label": "recall, unweighted"}
    ax.plot(rank, curves.recall_unweighted, "--", **recall, **mark)
    prevalence = curves.precision.iloc[-1]
    ax.axhline(prevalence, color=GREY, linestyle=":", linewidth=1.3, label="prevalence")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set(xlabel="tokens kept, by rank", ylim=(-0.03, 1.03), yticks=TICKS)
    name_lines(ax)
    ax.figure.says = "No cutoff has a precision of 0.8."
    precise = curves[curves.precision >= 0.8]
    if len(precise):
        last = precise.iloc[-1]
        ax.figure.says = (
            f"The last cutoff with a precision of 0.8 keeps {int(last['rank']) + 1:,} tokens, with "
            f"a recall of {last.recall_unweighted:.2f}."
        )
    return ax


def compared_frontiers(frontiers: pd.DataFrame, by: str) -> Axes:
    """`frontiers_by_depth` of groups over each other (Fig. 7), single nodes' extremes thin."""
    if frontiers.empty:
        return _nothing()
    _, ax = plt.subplots(figsize=(6.4, 3.4))
    groups = frontiers.groupby(by, sort=False)
    for number, ((name, own), colour) in enumerate(zip(groups, shades(len(groups)), strict=True)):
        style = {"color": colour, "linestyle": _LINES[number % 4], "where": "pre"}
        ax.step(own.recall_level, own["mean"], label=str(name), **style)
        for extreme in ("lowest", "highest"):
            ax.step(own.recall_level, own[extreme], linewidth=0.9, alpha=0.6, **style)
    _unit(ax, f"recall, {frontiers.recall.iloc[0]}", "precision")
    name_lines(ax, 2)
    wide = frontiers.pivot_table("mean", "recall_level", by)
    apart = (wide.max(axis=1) - wide.min(axis=1)).max()
    ax.figure.says = f"At no recall do mean precisions differ by more than {apart:.2f}."
    return ax


def strategy_dots(comparison: pd.DataFrame, published: pd.DataFrame) -> Figure:
    """Table 1 as dots with intervals over prompts, a panel per measure.

    Hollow diamonds are the paper's own numbers, of other models, prompts, judge and embedder: where
    they lie says nothing about these; their order does.
    """
    names = [name for name in _MEASURES if comparison[name].notna().any()]
    options = {"figsize": (6.8, 1.5 + 0.42 * len(comparison)), "sharey": True, "squeeze": False}
    figure, (axes,) = plt.subplots(1, len(names), **options)
    comparison = comparison.sort_values("embedding_diversity", ascending=False, na_position="last")
    place = dict(zip(comparison.strategy, range(len(comparison)), strict=True))
    for ax, name in zip(axes, names, strict=True):
        for row in comparison.to_dict("records"):
            y, rule = place[row["strategy"]], row["strategy"].replace("oracle", "oracle_size")
            colour = rule_style(rule)["color"]
            if pd.isna(row[name]):
                note = {"transform": ax.get_yaxis_transform(), "fontsize": 8, "color": GREY}
                note["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                ax.text(0.5, y, "none valid enough", ha="center", va="center", **note)
                continue
            ax.plot([row[f"{name}_low"], row[f"{name}_high"]], [y, y], color=colour)
            ax.plot(row[name], y, "o", color=colour, markersize=7)
        if name in published:
            own = published[published.strategy.isin(place)]
            hollow = {"mfc": "none", "mec": GREY, "linestyle": "none", "markersize": 6}
            ax.plot(own[name], own.strategy.map(place) + 0.22, "D", label="paper", **hollow)
        ax.set_xlabel(_MEASURES[name], fontsize=9)
        ax.tick_params(axis="x", labelsize=9)
        ax.grid(axis="y", visible=False)
    labels = [strategy_name(name) for name in place]
    axes[0].set_yticks(list(place.values()), labels, fontsize=10)
    axes[0].set_ylim(len(place) - 0.5, -0.5)
    name_lines(axes[0])
    usable = comparison.dropna(subset="embedding_diversity")
    found = (
        f"{strategy_name(r.strategy)} {r.embedding_diversity:.2f}" for r in usable.itertuples()
    )
    told = ", ".join(found) or "none is valid enough"
    figure.says = f"Embedding diversity, highest first: {told}."
    return figure


def _nothing() -> Axes:
    """In place of frontiers that no node has."""
    _, ax = plt.subplots(figsize=(6.4, 0.8))
    ax.axis("off")
    ax.text(0.5, 0.5, "no candidate of this sweep is valid: there is no frontier", ha="center")
    return ax


def _unit(ax: Axes, x: str = "", y: str = "") -> None:
    figures.unit_square(ax, x, y)
    ax.set_xticks((0, 0.5, 1))

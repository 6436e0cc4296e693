"""Figures of the study of origins: order and shape along training."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.origins import STAGES

_PALE, _STRONG = "#999999", "#333333"


def order_and_shape(seeds: pd.DataFrame, course: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Shape part against order part: `by_share` as paths, `by_seed` as dots with named means.

    Arrows lead from each stage to what is trained from it.
    """
    ax = ax or plt.gca()
    ax.scatter(seeds.order, seeds["shape"], s=8, color=_PALE, alpha=0.6, linewidth=0)
    means = seeds.groupby(["corpus", "scale", "stage"], sort=False)[["order", "shape"]].mean()
    for corpus, own in course.groupby("corpus", sort=False):
        path = pd.concat([own[["order", "shape"]], means.loc[[(corpus, "medium", "pretrained")]]])
        ax.plot(path.order, path["shape"], ".-", color=_PALE, linewidth=1, markersize=4)
    for (corpus, scale, stage), (x, y) in zip(means.index, means.to_numpy(), strict=True):
        name = corpus if scale == "medium" else f"{corpus}, {scale}"
        name = name if stage == "pretrained" else stage
        ax.plot(x, y, "o" if stage == "pretrained" else "s", color=_STRONG, markersize=6)
        ax.annotate(name, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=10)
        if before := STAGES[stage].after:
            style = {"arrowstyle": "->", "color": _STRONG, "shrinkA": 6, "shrinkB": 6}
            ax.annotate("", (x, y), xytext=means.loc[corpus, scale, before], arrowprops=style)
    ax.set(xlabel="order part of the loss, nats", ylabel="shape part of the loss, nats")
    ax.set(xlim=(0, None), ylim=(0, None))
    return ax


def tightness(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Diversity over the bound of Theorem F.4 by the number of steps, a dot a seed."""
    ax = ax or plt.gca()
    ax.scatter(table.length, table.ratio, s=14, color=_PALE, linewidth=0)
    means = table.groupby("length").ratio.mean()
    ax.plot(means.index, means, "o-", color=_STRONG)
    ax.axhline(1, color="black", linestyle="--", linewidth=1.2)
    ax.text(means.index.max(), 1.01, "the bound", ha="right", va="bottom", fontsize=10)
    ax.set(xlabel="steps of the answer", ylabel="diversity / bound", xticks=means.index)
    ax.set(ylim=(0, 1.15))
    return ax

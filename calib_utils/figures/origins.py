"""Figures of the study of origins: order and shape along training."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.studies.origins import MAIN, STAGES

_PALE, _STRONG = "#999999", "#333333"


# Where a name stands beside its mark, in points: apart from the arrows and from other names.
_BESIDE = {"reward": (8, 2), "reward, KL": (-8, -2), "preferences": (9, 2)}
_BESIDE["preferences, held"] = (8, -12)
_OTHER = (9, -4)


def order_and_shape(seeds: pd.DataFrame, course: pd.DataFrame) -> Figure:
    """Shape part against order part of `by_seed`, named means and faint dots of seeds.

    Left: along pretraining of medium models (`by_share`), a path a corpus. Right: the stages, with
    arrows from what each is trained from.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 3.6))
    medium = seeds[seeds.scale == "medium"]
    means = medium.groupby(["corpus", "stage"], sort=False)[["order", "shape"]].mean()
    trained = medium[medium.stage == "pretrained"]
    left.scatter(trained.order, trained["shape"], s=8, color=_PALE, alpha=0.6, linewidth=0)
    for corpus, own in course.groupby("corpus", sort=False):
        end = means.loc[corpus, "pretrained"]
        left.plot([*own.order, end.order], [*own["shape"], end["shape"]], ".-", color=_PALE)
        left.plot(*end, "o", color=_STRONG)
        if corpus != "geometric":  # beside Zipf's, and a matter of the last figure
            above = (4, 8) if corpus != "zipf with errors" else (4, -16)
            left.annotate(corpus, end, xytext=above, textcoords="offset points", fontsize=10)
    left.set(xscale="log", title="pretraining", xlim=(0.03, 2), ylim=(0, 0.7))
    left.set_xticks([0.1, 1], ["0.1", "1"])
    stages = means.loc[MAIN]
    for stage, (x, y) in zip(stages.index, stages.to_numpy(), strict=True):
        own = medium[(medium.stage == stage) & (medium.corpus == MAIN)]
        right.scatter(own.order, own["shape"], s=8, color=_PALE, alpha=0.6, linewidth=0)
        right.plot(x, y, "o" if stage == "pretrained" else "s", color=_STRONG, markersize=6)
        beside = _BESIDE.get(stage, _OTHER)
        side = {"ha": "right" if beside[0] < 0 else "left", "fontsize": 10}
        right.annotate(stage, (x, y), xytext=beside, textcoords="offset points", **side)
        if before := STAGES[stage]:
            style = {"arrowstyle": "->", "color": _STRONG, "shrinkA": 6, "shrinkB": 6}
            right.annotate("", (x, y), xytext=stages.loc[before], arrowprops=style)
    right.set(title="what follows", xlim=(0, 0.6), ylim=(0, None))
    for ax in (left, right):
        ax.set(xlabel="order part, nats", ylabel="shape part, nats")
    return figure


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

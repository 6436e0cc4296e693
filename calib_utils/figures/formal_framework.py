"""Figures of the formal framework: small trees, compounding, bounds against what was measured."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_utils import figures
from calib_utils.core.rules import TopK
from calib_utils.figures import GREY, INK, INVALID, VALID, name_lines, shades, unit_square
from calib_utils.figures import source_line as source_line
from calib_utils.figures import use_style as use_style
from calib_utils.figures.explorer import GROUPS, StepData, group_masses, groups_of
from calib_utils.figures.explorer import step_data as step_data
from calib_utils.studies.formal_framework import Example, Study
from calib_utils.theory import theorems

_NEVER = 100.0  # nats below the top: no bar can be seen there
_GROUP_COLOURS = dict(zip(GROUPS, (VALID, figures.VALID_RARE, INVALID), strict=True))


def tree(example: Example, ax: Axes | None = None) -> Axes:
    """A small prefix tree: every valid prefix with N, every valid token with its probability."""
    ax = ax or plt.subplots(figsize=(6.0, 3.2))[1]
    trie = example.trie
    # The height at which each edge ends: a leaf has a row of its own, a node the middle of those
    # below it.
    height: dict[int, float] = {}

    def place(node: int) -> float:
        own = np.flatnonzero(trie.edge_node == node).tolist()
        for edge in own:
            child = int(trie.edge_child[edge])
            leaves = sum(trie.edge_child[e] < 0 for e in height)
            height[edge] = place(child) if child >= 0 else float(leaves)
        return float(np.mean([height[edge] for edge in own]))

    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": VALID}
    start_of = {0: place(0)}
    start_of |= {int(trie.edge_child[edge]): end for edge, end in height.items()}

    def label(x: float, y: float, prefix: str, n: int) -> None:
        text = f"{prefix}\nN = {n}"
        ax.text(x, y, text, ha="center", va="center", bbox=box, zorder=2)

    for edge, end in height.items():
        node = int(trie.edge_node[edge])
        depth, start = int(trie.node_depth[node]), start_of[node]
        ax.plot([depth, depth + 1], [start, end], color=GREY, linewidth=1.2, zorder=1)
        p = f"p = {example.edge_p[edge]:.2g}"
        ax.text(depth + 0.5, (start + end) / 2 + 0.1, p, ha="center", fontsize=9)
        symbols = [*trie.prefix(node), int(trie.edge_symbol[edge])]
        label(depth + 1, end, "".join(example.letters[s] for s in symbols), trie.edge_count[edge])
    label(0, start_of[0], "(start)", trie.n_answers)
    ax.set_xlim(-0.35, trie.node_depth.max() + 1.35)
    ax.set_ylim(-0.6, max(height.values()) + 0.6)
    ax.axis("off")
    return ax


def compounding(study: Study, sizes=(5, 10, 20, 100), ax: Axes | None = None) -> Axes:
    """Sequence precision (solid) and recall (dotted) as steps go by, for sizes kept (Thm. E.1)."""
    ax = ax or plt.gca()
    step = np.arange(study.n_steps + 1)
    for k, colour in zip(sizes, shades(len(sizes)), strict=True):
        column = study.settings.index((TopK(k), 1.0))
        both = (study.factors.alpha, "o-", f"{k} kept"), (study.factors.beta, "s:", None)
        for values, line, label in both:
            product = np.concatenate([[1.0], values[:, column].cumprod()])
            style = {"color": colour, "markersize": 5, "label": label}
            ax.plot(step, np.maximum(product, 1e-4), line, **style)
    ax.set_yscale("log")
    ax.set(xlabel="steps taken", ylabel="of the answer so far", ylim=(0.8e-4, 1.4), xticks=step)
    name_lines(ax)
    return ax


def recall_bound(bounds: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Sequence recall against precision of every setting, under the bound of Thm. E.3."""
    ax = ax or plt.gca()
    table = bounds.sort_values("precision")
    ax.step(table.precision, table.bound, where="post", color="black", linewidth=1.4)
    ax.text(0.98, 0.97, "bound of Thm. E.3", ha="right", va="top", transform=ax.transAxes)
    for rule, own in table.groupby("rule", sort=False):
        ax.scatter(own.precision, own.recall, s=20, **figures.rule_style(rule))
    unit_square(ax, "sequence precision", "sequence recall")
    name_lines(ax)
    return ax


def price_of_validity(prices: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """The most diversity at a validity, for 1 to 8 steps of ten valid tokens, and tasks measured.

    Lines: the bound of Thm. F.4, dashed the model of Def. F.1. `prices`: of `validity_prices`.
    """
    ax = ax or plt.gca()
    val = np.linspace(0.001, 0.9999, 400)
    for m, colour in zip((1, 2, 4, 8), shades(4), strict=True):
        label, branching = f"{m} step" + "s" * (m > 1), [10] * m
        ax.plot(val, theorems.diversity_bound(val, branching), color=colour, label=label)
        ax.plot(val, theorems.at_validity(val, branching), "--", color=colour, linewidth=1.2)
    for (task, table), mark in zip(prices.items(), "o^sD", strict=False):
        style = {"color": INK, "markersize": 4, "label": figures.task_name(task)}
        ax.plot(table.validity, table.diversity, mark, **style)
    unit_square(ax, "validity", "diversity")
    name_lines(ax)
    return ax


def head_and_tail(step: StepData, published: pd.DataFrame) -> Figure:
    """One step's ranked tokens by group, and each group's mass, published too (dots) (Fig. 1)."""
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6.4, 6.4))
    first_tokens(step, upper)
    masses = group_masses(step, np.linspace(0.1, 8.0, 159))
    marks = {"valid and frequent": "o", "valid and rare": "^", "invalid": "s"}
    for group, colour in _GROUP_COLOURS.items():
        lower.plot(masses.temperature, masses[group], color=colour, label=group)
        dots = published[group.replace(" ", "_")]
        lower.plot(published.temperature, dots, marks[group], color=colour, markersize=4)
    lower.set(xlabel="temperature", ylabel="probability of the group", ylim=(-0.03, 1.03))
    name_lines(lower)
    return figure


def first_tokens(step: StepData, ax: Axes | None = None, shown: int = 60) -> Axes:
    """Probabilities of one step's tokens by rank at T = 1, in the colours of their groups."""
    ax = ax or plt.gca()
    log_z = step.log_partition(1.0)
    pairs = zip(step.tokens, groups_of(step), strict=True)
    tokens = [(t, g) for t, g in pairs if t.rank < shown and t.gap < _NEVER]
    for group, colour in _GROUP_COLOURS.items():
        own = [t for t, g in tokens if g == group]
        p = np.exp([-t.gap - log_z for t in own])
        ax.vlines([t.rank + 1 for t in own], 1e-9, p, color=colour, linewidth=4, label=group)
    ax.set_yscale("log")
    lowest = np.exp(-max(t.gap for t, _ in tokens) - log_z)
    ax.set(xlabel="rank", ylabel="probability at T = 1", ylim=(lowest / 2, 1.5))
    ax.legend(loc="upper right")
    ranks = [t.rank + 1 for t, g in tokens if g == GROUPS[2]]
    invalid = 1 - step.validity(1.0)
    ax.figure.says = (
        f"{len(ranks)} of the first {len(tokens)} tokens are invalid, the first at rank "
        f"{min(ranks, default='none')}; all invalid ones have {invalid:.0%} at temperature 1."
    )
    return ax


# The teaching figure of the controls: one step of each law, and its answers under temperature.

_RANKS, _LEAST = 24, 1e-4  # shown of a step
_BARS = {"valid": {"color": VALID}, "invalid": {"facecolor": INVALID, "hatch": "////"}}


def laws_under_temperature(steps: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """A row per law: the ranked probabilities of `first_steps`, and its `temperature_curves`."""
    laws = list(dict.fromkeys(steps.law))
    options = {"sharex": "col", "sharey": "col", "squeeze": False}
    figure, axes = plt.subplots(len(laws), 2, figsize=(6.4, 0.9 + 1.6 * len(laws)), **options)
    for (left, right), law in zip(axes, laws, strict=True):
        _step_profile(steps[steps.law == law], left)
        left.set_title(f"{law}\n", loc="left", fontweight="bold")  # above the mass
        curve = curves[curves.law == law].sort_values("temperature")
        right.plot(curve.temperature, curve.validity, "-", color=VALID, label="validity")
        right.plot(curve.temperature, curve.diversity, "--", color=INK, label="diversity")
        right.axvline(1, color=GREY, linewidth=1, zorder=0)
        right.set(ylim=(-0.05, 1.05), xticks=[0, 1, 2, 3], yticks=[0, 0.5, 1])
        at_one = curve[curve.temperature == 1].iloc[0]
        text = f"at T = 1\nVal {at_one.validity:.2f}, Div {at_one.diversity:.2f}"
        right.set_title(text, loc="right", fontsize=10)
    axes[-1, 0].set_xlabel("rank at the first step")
    axes[-1, 1].set_xlabel("temperature")
    left, right = (ax.get_legend_handles_labels() for ax in axes[-1])
    figures.legend_below(figure, 4, left[0] + right[0], left[1] + right[1])
    return figure


def _step_profile(step: pd.DataFrame, ax: Axes) -> None:
    """Probabilities of a first step by rank, valid tokens apart; the title has the invalid mass."""
    is_valid = step.n_answers > 0
    shown = (step["rank"] < _RANKS) & (step.p > 0)
    for (name, style), chosen in zip(_BARS.items(), (is_valid, ~is_valid), strict=True):
        own = step[shown & chosen]
        style = {"width": 0.85, "linewidth": 0, "edgecolor": "white", "label": name, **style}
        ax.bar(own["rank"] + 1, own.p, **style)
    ax.set_title(f"invalid {step.p[~is_valid].sum():.1%}", loc="right", fontsize=10)
    ax.set_yscale("log")
    ax.set(ylabel="p", ylim=(_LEAST, 1))
    ax.set_yticks([1, 0.01, _LEAST], ["1", ".01", ".0001"])
    ax.set(xticks=[1, 10, 20], xlim=(0.2, _RANKS + 0.8))
    ax.minorticks_off()
    ax.grid(axis="x", visible=False)

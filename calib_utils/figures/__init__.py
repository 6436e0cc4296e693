"""One style, which is here, and one module a chapter: tables in, axes out.

Knows colours, labels and the data of the interactive step. Computes no number of its own.
"""

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by most colour-blind readers.
ORANGE, SKY, GREEN = "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
PALETTE = (ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE)
STRONG_FIRST = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#8c6d31")  # for lines, in order
RULE_COLOURS = {
    "none": "#555555",
    "top_k": ORANGE,
    "top_p": BLUE,
    "min_p": GREEN,
    "oracle_size": VERMILION,
    "typical": PURPLE,
    "epsilon": SKY,
    "eta": "#8c6d31",
    "top_h": "#5b3a8c",
    "top_nsigma": "#7f7f00",
}
RULE_NAMES = {
    "none": "temperature alone",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "oracle_size": "oracle size",
    "top_h": "top-H",
    "top_nsigma": "top-nσ",
}
CAUSES = {"order": (VERMILION, "//"), "shape": (BLUE, ""), "size": ("#bbbbbb", "..")}
TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def use_style() -> None:
    """The book's look: sized for a phone's width, type large enough after scaling down."""
    sizes = {"axes.titlesize": 12, "axes.labelsize": 12, "legend.fontsize": 10}
    figure = {"figure.figsize": (6.4, 4.4), "figure.dpi": 110, "figure.facecolor": "white"}
    rc = {**figure, **sizes, "savefig.bbox": "tight", "lines.linewidth": 2}
    sns.set_theme(context="notebook", style="whitegrid", rc=rc)


def unit_square(ax: Axes, x: str, y: str) -> None:
    """Both axes from 0 to 1 with a margin, and their names."""
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=TICKS, yticks=TICKS)
    ax.set(xlabel=x, ylabel=y)


def rule_style(rule: str) -> dict:
    """The colour and display name of a rule's family, the same through the book."""
    return {"color": RULE_COLOURS.get(rule, "#555555"), "label": RULE_NAMES.get(rule, rule)}


def legend_below(figure: Figure, rect: tuple, columns: int = 3, **style) -> None:
    """The panels laid out in `rect` of the figure, and below them the legend of the first."""
    figure.tight_layout(rect=rect)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=columns, frameon=False, **style)


def two_lines(model: str) -> str:
    """A long model name broken after its second hyphen."""
    parts = model.split("-")
    return model if len(parts) < 3 else "-".join(parts[:2]) + "-\n" + "-".join(parts[2:])


def source_line(ax: Axes, *lines: str) -> Axes:
    """Which model file the figure's numbers come from, and how, in small print below it."""
    figure = ax.figure
    # Legends may have any height, and a layout places the panels only when it is drawn.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:
        # Saving widens the figure for the line: a legend at its edge would move there with it.
        if legend.get_bbox_to_anchor() is figure.bbox:
            legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
    bottom = (figure.get_tightbbox().y0 - 0.08) / figure.get_figheight()
    style = {"ha": "center", "va": "top", "fontsize": 8, "color": "#555555"}
    figure.text(0.5, bottom, "\n".join(lines), **style)
    return ax

"""One style, which is here, and one module a chapter: tables in, axes out.

Knows colours, human names, how a figure is stored, and the data of the interactive step. Computes
no number of its own.
"""

import io
import pickle
import re
from collections.abc import Iterable
from textwrap import fill
from xml.sax.saxutils import escape

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox

from calib_utils.core.rules import rule_name

# One meaning a colour through the whole book. What is merely many of one kind (lengths, steps,
# questions, families of models) gets `shades` of one scale instead.
INK, GREY, PALE = "#000000", "#767676", "#bbbbbb"
VALID, INVALID = "#0072b2", "#d55e00"  # as in the explorer; also passed and failed
VALID_RARE = "#56b4e9"
RULE_COLOURS = {
    "none": GREY,
    "top_k": "#e69f00",
    "top_p": "#7b4bb3",
    "min_p": "#009e73",
    "oracle_size": "#c2185b",
    "typical": "#8c6d31",
    "epsilon": "#cc79a7",
    "eta": "#b8a25a",
    "top_h": "#37596b",
    "top_nsigma": "#6b4226",
}
# Of rules that are not the project's, and who has which in this process.
_OWN = ("#1f3fbf", "#e8384f", "#4f8f00", "#00838f", "#ad5cff", "#a05195")
_GIVEN: dict[str, str] = {}
CAUSES = {"order": ("#8a8500", "//"), "shape": ("#2a9db0", ""), "size": (PALE, ".")}
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SUM = {"at-most": "≤", "equals": "="}
_CAPITALS = {"us", "eu", "nba", "nato", "css", "http", "si"}
# A narrow drawing fills the 342 px of a phone's page: 9 points are then 11.7 px high.
_NARROW, _SMALLEST = 3.5, 9  # inches, points
_GAP, _COVERED = 3, 4  # of a name to its line, in points; of lines below it, in their dots
_HEAVIEST = 200_000  # characters of a drawing whose dots stay vectors


def use_style() -> None:
    """The book's look, and in a notebook figures stored as `as_svg` has them."""
    rc = {"axes.titlesize": 12, "axes.labelsize": 12, "legend.fontsize": 10, "lines.linewidth": 2}
    rc |= {"figure.figsize": (6.4, 4.4), "figure.dpi": 110, "figure.facecolor": "white"}
    rc |= {"savefig.bbox": "tight", "svg.fonttype": "none", "svg.hashsalt": "calib_utils"}
    rc |= {"figure.constrained_layout.use": True, "legend.frameon": False, "grid.linewidth": 0.8}
    rc |= {"grid.color": "#dddddd", "axes.edgecolor": PALE, "path.simplify_threshold": 0.3}
    # The font comes with matplotlib, so layouts are the same on any machine.
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans", rc=rc)
    if shell := get_ipython():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")  # loads the backend, which would undo the next lines later
        formatters = shell.display_formatter.formatters
        formatters["image/svg+xml"].for_type(Figure, as_svg)
        # A PNG as well of the one that other sites show.
        formatters["image/png"].for_type(
            Figure, lambda f: print_figure(f, "png", base64=True) if hasattr(f, "is_card") else None
        )


def as_svg(figure: Figure) -> str:
    """The figure as drawn; in its metadata the same for a phone.

    In `title` stands what it says in words (`figure.says`, for who cannot see it), in `desc` where
    its numbers come from.
    """
    # Closed at once: a copy of a figure that is on show would be shown as well.
    narrow = pickle.loads(pickle.dumps(figure))  # a deep copy loses how artists are removed
    plt.close(narrow)
    _stack(narrow)
    said, source = escape(getattr(figure, "says", "")), escape(str(figure.get_label()))
    words = f"<title>{said}</title><desc>{source}</desc>"
    tag, drawing = _svg(figure).split(">", 1)
    return f"{tag}><metadata><![CDATA[{_svg(narrow)}]]></metadata>{words}{drawing}"


def _svg(figure: Figure) -> str:
    """Without header, time and spaces; where many dots would make it heavy they are a picture."""
    for rasterized in (False, True):
        for dots in figure.findobj(PathCollection) if rasterized else ():
            dots.set_rasterized(True)
        file = io.StringIO()
        figure.savefig(file, format="svg", dpi=200, metadata={"Date": None})
        text = file.getvalue()
        text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r"\s*\n\s*", "\n", text)
        text = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), text)
        if len(text) < _HEAVIEST:
            break
    return text


def _stack(figure: Figure) -> None:
    """The panels below each other at a phone's width, each with its own labels."""
    figure.draw_without_rendering()
    axes = [ax for ax in figure.axes if ax.get_visible()]
    boxes = [ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted()) for ax in axes]
    beside = len(axes) > 4 and all(len(t.get_text()) < 8 for t in axes[0].get_yticklabels())
    columns = 2 if beside else 1
    width = _NARROW / columns - 0.45
    heights = [box.height * min(max(width / box.width, 0.7), 1.3) for box in boxes]
    rows = [max(heights[i : i + columns]) for i in range(0, len(axes), columns)]
    grid = figure.add_gridspec(len(rows), columns, height_ratios=rows)
    for ax, place, height in zip(axes, grid, heights, strict=False):
        ax.set_subplotspec(place)
        _complete(ax, width, height)
        if len(rows) > 4 and columns == 1 and ax is not axes[-1]:
            ax.set_xlabel("")  # of many alike once
    named = [ax for ax in axes if hasattr(ax, "names")]
    for artist in [*(name for ax in named for name in ax.names), *figure.legends * bool(named)]:
        artist.remove()
    for text in figure.findobj(Text):
        text.set_fontsize(min(max(text.get_fontsize(), _SMALLEST), 10))
    figure.set_size_inches(_NARROW, sum(rows) + len(rows))
    _fit_height(figure, axes[::columns], sum(rows))
    for ax in named:
        name_lines(ax, fontsize=_SMALLEST)
    for legend in [*figure.legends]:
        handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        style = {"fontsize": _SMALLEST, "title": legend.get_title().get_text()}
        for n in (3, 2, 1):
            legend.remove()
            legend = legend_below(figure, n, handles, labels, **style)
            if legend.get_window_extent().width < _NARROW * figure.dpi:
                break
        _fit_height(figure, axes[::columns], sum(rows))


def _fit_height(figure: Figure, axes: list[Axes], wanted: float) -> None:
    """A height of the figure at which axes below each other have together the wanted one."""
    # Twice: what stands around the panels is known once they are laid out.
    for _ in range(2):
        figure.draw_without_rendering()
        whole = figure.get_figheight()
        drawn = whole * sum(ax.get_position().height for ax in axes)
        figure.set_figheight(whole + wanted - drawn)


def _complete(ax: Axes, width: float, height: float) -> None:
    """Gives a panel the title and labels that it shared, in lines of its width (inches)."""
    ax.tick_params(labelleft=True, labelbottom=True, labelsize=_SMALLEST)
    beside, below = ax.get_shared_y_axes(), ax.get_shared_x_axes()
    x = [ax.get_xlabel(), *(one.get_xlabel() for one in below.get_siblings(ax))]
    y = [ax.get_ylabel(), *(one.get_ylabel() for one in beside.get_siblings(ax))]
    ax.set_xlabel(_wrapped(next(filter(None, x), ""), width))
    ax.set_ylabel(_wrapped(next(filter(None, y), ""), height))
    places, ticks = ax.get_xticks(), [tick.get_text() for tick in ax.get_xticklabels()]
    is_full = 0.08 * sum(len(tick) + 1 for tick in ticks) > width
    if is_full and isinstance(ax.xaxis.get_major_locator(), FixedLocator):
        ax.set_xticks(places[::2], ticks[::2])
    ax.set_title(_wrapped(ax.get_label() or ax.get_title(), width))


def _wrapped(text: str, inches: float) -> str:
    n = max(8, int(13 * inches))  # characters; a panel of one bar has hardly any height
    lines = [line if len(line) <= n else line.replace(", ", ",\n") for line in text.split("\n")]
    lines = "\n".join(lines).split("\n")
    return "\n".join(t if "$" in t else fill(t, n, break_long_words=False) for t in lines)


def shades(n: int) -> list[str]:
    """`n` colours of one scale from dark to light, for what is told apart but means nothing."""
    return [to_hex(colour) for colour in sns.color_palette("viridis", n + 2)[:n]]


def panels(
    n: int, columns: int, height: float, x: str = "", y: str = ""
) -> tuple[Figure, list[Axes]]:
    """`n` panels of one scale, of a height in inches, labelled at the edges. None: one, empty."""
    n = max(n, 1)
    rows, columns = -(-n // columns), min(n, columns)
    options = {"sharex": True, "sharey": True, "squeeze": False}
    figure, grid = plt.subplots(rows, columns, figsize=(6.8, 0.6 + height * rows), **options)
    for ax in grid.flat[n:]:
        ax.remove()
    for ax in grid.flat[max(0, n - columns) : n]:
        ax.set_xlabel(x)
        ax.tick_params(labelbottom=True)
    for ax in grid[:, 0]:
        ax.set_ylabel(y)
    return figure, list(grid.flat[:n])


def unit_square(ax: Axes, x: str = "", y: str = "") -> None:
    """Both axes from 0 to 1 with a margin, and their names."""
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.05), xticks=TICKS, yticks=TICKS)
    ax.set(xlabel=x or ax.get_xlabel(), ylabel=y or ax.get_ylabel())


def rule_style(rule: str) -> dict:
    """The colour and display name of a rule's family, the same through the book.

    Other rules, such as a user's own, take the colours of `_OWN` in the order they are drawn in.
    """
    colour = RULE_COLOURS.get(rule) or _GIVEN.setdefault(rule, _OWN[len(_GIVEN) % len(_OWN)])
    return {"color": colour, "label": rule_name(rule)}


def task_name(task: str) -> str:
    """A task as people say it.

    >>> task_name("rng-3-sum-at-most-10"), task_name("us-states-paraphrase-2")
    ('3 digits, sum ≤ 10', 'US states, paraphrase 2')
    """
    base, *variant = re.split("-(?=(?:paraphrase|shortest|wording)-)", task)
    if digits := re.fullmatch(r"rng-(\d+)(?:-sum-(at-most|equals)-(\d+))?", base):
        n, how, total = digits.groups()
        name = f"{n} digits" + (f", sum {_SUM[how]} {total}" if how else "")
    else:
        name = " ".join(w.upper() if w in _CAPITALS else w for w in base.split("-"))
        name = name[:1].upper() + name[1:]
    return ", ".join([name, *(part.replace("-", " ") for part in variant)])


def legend_below(figure: Figure, columns: int = 3, handles=None, labels=None, **style) -> Legend:
    """A legend below all panels, by default of the first one's artists."""
    if handles is None:
        handles, labels = figure.axes[0].get_legend_handles_labels()
    return figure.legend(handles, labels, loc="outside lower center", ncols=columns, **style)


def name_lines(ax: Axes, columns: int = 3, fontsize: float = 10) -> None:
    """Names what is labelled in a panel beside it, in its colour, where there is room for all.

    Otherwise a legend below the figure, in so many columns. To be called when all is drawn; the
    narrow drawing decides anew.
    """
    handles, labels = ax.get_legend_handles_labels()
    figure, box = ax.figure, ax.bbox
    figure.draw_without_rendering()  # lays out
    pixel, taken = figure.dpi / 72, [text.get_window_extent() for text in ax.texts]
    inks = {artist: _ink(artist) for artist in (*ax.lines, *ax.collections)}
    every = np.concatenate([*inks.values(), np.empty((0, 2))])
    ax.names = []
    for handle, label in zip(handles, labels, strict=True):
        own = inks.get(handle, every[:0])
        others = np.concatenate([ink for a, ink in inks.items() if a is not handle] or [every[:0]])
        name = ax.text(0, 0, label, fontsize=fontsize, color=_as_text(handle), va="bottom")
        name.set(transform=ax.transAxes, in_layout=False, zorder=5)
        ax.names.append(name)
        size = np.array(name.get_window_extent().size)
        # Lower left corners: right, left, above and below of points of the line, and askew.
        gap = _GAP * pixel
        sides = [(x, y) for x in (0, 0.5, 1) for y in (0, 0.5, 1) if (x, y) != (0.5, 0.5)]
        ends = own[:: max(1, len(own) // 80)]
        low = np.concatenate(
            [ends - size * side + gap * (1 - 2 * np.array(side)) for side in sides]
        )
        inside = ((low >= box.min + gap) & (low + size <= box.max - gap)).all(axis=1)
        for other in taken:
            apart = (low > other.max + gap) | (low + size < other.min - gap)
            inside &= apart.any(axis=1)
        if not inside.any():
            break
        low = low[inside]
        covered = _inside(every, low, size, pixel)
        cost = covered + 0.1 * _inside(others, low, size, 9 * pixel)
        best = cost.argmin()
        if covered[best] > _COVERED:
            break
        taken.append(Bbox([low[best], low[best] + size]))
        name.set_position(ax.transAxes.inverted().transform(low[best]))
    else:
        return
    for name in ax.names:
        name.remove()
    ax.names = []
    legend_below(figure, columns, handles, labels)


def _ink(artist: Artist) -> np.ndarray:
    """Where a line or dots are within their panel, in pixels, a line as dots. [dot, (x, y)]"""
    if isinstance(artist, Line2D):
        x, y = STEP_LOOKUP_MAP[artist.get_drawstyle()](*artist.get_xydata().T)
        dots = artist.get_transform().transform(np.column_stack([x, y]))
        dots = dots[np.isfinite(dots).all(axis=1)]
        if artist.get_linestyle() != "None" and len(dots) > 1:
            way = np.r_[0, np.hypot(*np.diff(dots, axis=0).T).cumsum()]
            places = np.linspace(0, way[-1], min(2000, 2 + int(way[-1] / 3)))
            dots = np.column_stack([np.interp(places, way, xy) for xy in dots.T])
    elif isinstance(artist, PathCollection):
        dots = artist.get_offset_transform().transform(np.asarray(artist.get_offsets()))
    else:
        return np.empty((0, 2))
    return dots[((dots >= artist.axes.bbox.min) & (dots <= artist.axes.bbox.max)).all(axis=1)]


def _inside(dots: np.ndarray, low: np.ndarray, size: np.ndarray, margin: float) -> np.ndarray:
    """How many dots are in each of many boxes of one size and a margin around it. [box]"""
    after = dots[None] >= (low - margin)[:, None]
    return (after & (dots[None] <= (low + size + margin)[:, None])).all(axis=2).sum(axis=1)


def _as_text(artist: Artist) -> str:
    """An artist's colour, dark enough to read on white (4.5 : 1)."""
    is_line = isinstance(artist, Line2D)
    colour = np.array(to_rgb(artist.get_color() if is_line else artist.get_facecolor()[0]))
    while luminance(colour) > 0.18:
        colour = colour * 0.97
    return to_hex(colour)


def luminance(rgb: Iterable[float]) -> float:
    """Relative luminance, as WCAG defines it, of red, green and blue from 0 to 1."""
    parts = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def source_line(ax: Axes, *lines: str) -> Axes:
    """Notes which model file the numbers come from, and how: the book puts it in the caption."""
    ax.figure.set_label("; ".join(lines))
    return ax

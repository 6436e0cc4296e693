"""What all figures share: lines that carry their names."""

import io
import pickle

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from calib_utils import figures

pytestmark = pytest.mark.usefixtures("book_style")


def curves(n, name="power {}", **style):
    figure, ax = plt.subplots()
    x = np.linspace(0, 1, 50)
    for k in range(n):
        ax.plot(x, x ** (1 + k), color=figures.RULE_COLOURS["top_k"], label=name.format(k), **style)
    figures.unit_square(ax)
    figures.name_lines(ax)
    return figure, ax


def boxes(ax):
    ax.figure.draw_without_rendering()
    return [name.get_window_extent() for name in ax.names]


def stacked(figure):
    narrow = pickle.loads(pickle.dumps(figure))
    figures._stack(narrow)
    return narrow.axes[0]


@pytest.mark.parametrize("drawing", [lambda figure: figure.axes[0], stacked])
def test_names_stand_beside_their_lines_and_nothing_covers_them(drawing):
    figure, _ = curves(3, marker=".")
    ax = drawing(figure)
    assert [name.get_text() for name in ax.names] == ["power 0", "power 1", "power 2"]
    assert not ax.figure.legends
    found = boxes(ax)
    inside = ax.get_window_extent()
    for k, (box, line) in enumerate(zip(found, ax.lines, strict=True)):
        assert inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 < inside.y1
        assert not any(box.overlaps(other) for other in found[k + 1 :])
        dots = figures._ink(line)
        outside = np.maximum(box.min - dots, dots - box.max).clip(min=0)
        assert np.hypot(*outside.T).min() < 10 * figure.dpi / 72
    figure.savefig(io.BytesIO())


def test_where_there_is_no_room_a_legend_names_all():
    figure, ax = curves(2, "a name that is longer than its panel is wide, " * 2 + "{}")
    assert not ax.names and len(figure.legends[0].get_texts()) == 2
    # The narrow drawing has one as well, and not two.
    assert len(stacked(figure).figure.legends) == 1


def test_names_are_dark_enough_to_read():
    _, ax = curves(1)
    red, green, blue = (
        c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4
        for c in to_rgb(ax.names[0].get_color())
    )
    assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 4.5

"""The table of controls: what is measured is what is known, and a broken chain would show."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from calib_utils.core import metrics
from calib_utils.core.ranking import Ranking
from calib_utils.core.rules import OracleSize
from calib_utils.figures import formal_framework as formal_framework_figures
from calib_utils.studies import formal_framework
from calib_utils.theory.laws import Geometric, UniformOverG, UniformOverV

SMALL = ("rng-2", "rng-2-sum-at-most-10")


@pytest.fixture(scope="module")
def table():
    return formal_framework.controls_table(SMALL).set_index(["task", "law"])


def test_nothing_deviates_from_what_is_known(table):
    assert len(table) == len(SMALL) * len(formal_framework.CONTROLS)
    assert table.deviation.max() < 1e-7
    assert table.notna().all(axis=None)


def test_each_part_of_the_loss_is_there_exactly_where_it_should_be(table):
    assert ((table.order.abs() < 1e-9) == table.order_calibrated).all()
    assert (table.order > -1e-9).all()
    assert ((table["shape"].abs() < 1e-6) == table.proportional).all()
    total = -np.log(table.validity * table.diversity)
    assert table[["order", "shape", "size"]].sum(axis=1).to_numpy() == pytest.approx(total)
    perfect = table.xs("uniform over V", level="law")
    assert perfect[["validity", "diversity", "precision", "recall", "area"]].to_numpy() == (
        pytest.approx(1)
    )


def test_laws_of_ones_own():
    found = formal_framework.controls_table(["rng-1"], {"mine": Geometric(0.5)})
    assert found.law.tolist() == ["mine"] and found.deviation.max() < 1e-12


def warmer(ranking, temperature, at=Ranking.at):
    return at(ranking, temperature * 1.01)


def one_too_many(rule, step):
    return step.size.minimum(step.branching + 1)


def steeper(trie, edge_log_p, whole=metrics.sequence_log_probability):
    return whole(trie, edge_log_p) * 1.001


@pytest.mark.parametrize(
    ("where", "name", "wrong"),
    [
        (Ranking, "at", warmer),
        (OracleSize, "n_kept", one_too_many),
        (metrics, "sequence_log_probability", steeper),
        (metrics, "diversity", lambda p, right=metrics.diversity: right(p) ** 1.001),
        (metrics, "validity", lambda p, right=metrics.validity: right(p) ** 1.001),
    ],
)
def test_an_error_anywhere_in_the_chain_shows_as_a_deviation(monkeypatch, where, name, wrong):
    monkeypatch.setattr(where, name, wrong)
    found = formal_framework.controls_table(["rng-1"], {"mine": Geometric(0.5)})
    assert found.deviation.max() > 1e-4


def test_the_figures_data_and_the_figure():
    laws = {"V": UniformOverV(), "G": UniformOverG(), "geometric": Geometric(0.5)}
    steps = formal_framework.first_steps("rng-2-sum-at-most-10", laws)
    assert steps.groupby("law").p.sum().to_numpy() == pytest.approx(1)
    first = steps[steps.law == "V"].head(10)
    assert first.n_answers.tolist() == [10, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert first.p.to_numpy() == pytest.approx(first.n_answers / 64)
    curves = formal_framework.temperature_curves("rng-2-sum-at-most-10", laws)
    assert (curves[curves.law == "G"].diversity.nunique()) == 1
    figure = formal_framework_figures.laws_under_temperature(steps, curves)
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    assert bars == pytest.approx(first.p)
    titles = [ax.get_title(loc="right") for ax in figure.axes]
    assert titles[1] == "T = 1: Val 1.00, Div 1.00" and titles[2] == "invalid 0.0%"
    plt.close(figure)

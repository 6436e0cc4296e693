"""The study of cutoffs on hand-made tables and a tiny model: what is shown is what was measured."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils.core.split import REPAIRS
from calib_utils.core.tasks import paraphrases
from calib_utils.errors import UnknownNameError
from calib_utils.results.storage import KEY
from calib_utils.studies import oracle_cutoffs, reporting
from calib_utils.studies.reporting import (
    AGREEMENT,
    EXCLUDED,
    NOT_DECIDED,
    NOT_REPRODUCED,
    REPRODUCED,
)

HULL = np.array([[1.0, 0.2], [0.5, 0.6], [0.1, 1.0]])


def rows(task, points):
    """A table of `evaluate` from (rule, validity, diversity)."""
    table = pd.DataFrame(points, columns=["rule", "validity", "diversity"])
    table["parameter"] = np.arange(len(table), dtype=float)
    return table.assign(
        task=task, temperature=1.0, sequence_precision=table.validity, sequence_recall=0.5
    )


def decided(points, task="rng-2", ceiling=1.0):
    table = rows(task, points)
    facts = pd.DataFrame({"task": [task], "uniform_over_g": [ceiling]})
    oracle = oracle_cutoffs.oracle_table(table, facts, {task: pd.DataFrame(HULL)})
    found = oracle_cutoffs.findings(table, oracle)
    return found.set_index("claim").verdict


PRACTICAL = [(rule, 0.7, 0.3) for rule in oracle_cutoffs.PRACTICAL]


BETTER = "The oracle size is better than every practical rule, by {}"
BY = [BETTER.format(by) for by in oracle_cutoffs.COMPARED_BY]
STATES = "With an oracle size, US states reach validity and diversity 1"
DIGITS = "With an oracle size, unconstrained digits come close to validity and diversity 1"


def test_claims_follow_the_numbers():
    good = decided([*PRACTICAL, ("oracle_size", 0.99, 0.98)])
    assert good[DIGITS] == REPRODUCED
    assert (good[BY] == REPRODUCED).all()
    assert good[STATES] == NOT_DECIDED
    bad = decided([*PRACTICAL, ("oracle_size", 0.6, 0.2)])
    assert bad[DIGITS] == NOT_REPRODUCED
    assert (bad[[BY[0], BY[2]]] == NOT_REPRODUCED).all()
    assert bad[BY[1]] == EXCLUDED  # neither is that valid
    dead = decided([(rule, 0.01, 0.5) for rule in (*oracle_cutoffs.PRACTICAL, "oracle_size")])
    assert set(dead) == {EXCLUDED, NOT_DECIDED}
    assert dead[STATES] == NOT_DECIDED  # it was not looked at


@pytest.mark.parametrize(("scale", "point", "beaten"), [
    (1.0, "reaches validity 0.9 and diversity 0.2", "on the one task that it can do"),
    (0.0, "gives no valid answer", "on no task, because this model can do none of them"),
])  # fmt: skip
def test_the_prose_quotes_what_the_tables_hold(scale, point, beaten):
    table = rows("us-states", [*PRACTICAL, ("oracle_size", 0.9, 0.2)])
    table.validity *= scale
    facts = pd.DataFrame({"task": ["us-states"], "uniform_over_g": [0.95]})
    points = oracle_cutoffs.oracle_table(table, facts, {"us-states": pd.DataFrame(HULL)})
    alone = {"task": ["us-states"], "decoder": ["T = 1 alone"]}
    decoders = pd.DataFrame(alone).assign(total=2.0, order=0.5, shape=1.2, size=0.3)
    told = oracle_cutoffs.key_numbers(table, points, decoders)
    assert (told["oracle_point"], told["beaten"]) == (point, beaten)
    assert told["shape_us-states"] == "1.2"


def test_the_oracle_is_compared_where_somebody_would_use_it():
    table = rows("a", [("min_p", 0.9, 0.5), ("top_k", 0.6, 0.9), ("oracle_size", 0.85, 0.6)])
    beside = oracle_cutoffs.compared(table).set_index("by")
    assert beside.rule.tolist() == ["top_k", "min_p", "top_k"]
    assert beside["oracle size"].tolist() == pytest.approx([0.6, 0.6, 0.51])
    assert beside["best other"].tolist() == pytest.approx([0.9, 0.5, 0.54])
    assert oracle_cutoffs.rules_above(beside.reset_index()) == (
        "1 of 1 by diversity at validity ≥ 0.5 (top-k on 1), "
        "0 of 1 by diversity at validity ≥ 0.8, 1 of 1 by the best Val × Div (top-k on 1)"
    )
    # Validity that nobody would accept is not credited, however wide its area.
    useless = rows("a", [("min_p", 0.6, 0.5), ("oracle_size", 0.49, 1.0)])
    assert oracle_cutoffs.compared(useless)["oracle size"].tolist() == [0.0, pytest.approx(0.49)]


def test_the_oracle_in_the_limit_of_heat_is_uniform_over_what_it_keeps(tiny, tmp_path):
    model = tiny("llama", chat=True)
    page = reporting.Page(model, tmp_path, "eos", "")
    table = oracle_cutoffs.table3(page, ["rng-1"])
    oracle = table[table.rule == "oracle_size"].set_index("temperature")
    limit = oracle.loc[oracle_cutoffs.LIMIT]
    assert limit.validity == pytest.approx(limit.sequence_precision, rel=1e-4)
    assert len(oracle_cutoffs.in_study(table)) == len(table)
    losses = oracle_cutoffs.table3_losses(page, ["rng-1"])
    assert set(losses.temperature) == set(table.temperature)
    assert oracle_cutoffs.temperature_text(oracle.reset_index()).iloc[-1] == "∞"


def test_the_ceiling_counts_where_the_oracle_cannot_reach_one():
    points = [*PRACTICAL, ("oracle_size", 0.99, 0.6)]
    claim = "With an oracle size, sum-constrained digits stay away from validity and diversity 1"
    assert decided(points, "rng-2-sum-equals-10")[claim] == REPRODUCED
    assert decided(points, "rng-2-sum-equals-10", ceiling=0.61)[claim] == NOT_REPRODUCED


def test_recall_on_the_hull():
    assert oracle_cutoffs.recall_at(HULL, 0.75) == pytest.approx(0.4)
    assert oracle_cutoffs.recall_at(HULL, 0.0) == 1.0
    assert np.isnan(oracle_cutoffs.recall_at(HULL[1:], 0.75))


def test_every_sampler_has_an_area_and_budgets_a_task():
    table = pd.concat([rows("a", PRACTICAL), rows("b", [("none", 0.9, 0.5), ("none", 0.95, 0.1)])])
    wide = oracle_cutoffs.areas(table).set_index("task")
    assert wide.loc["a", "top_k"] == pytest.approx(0.21)
    assert wide.loc["b", "none"] == pytest.approx(0.9 * 0.5 + 0.05 * 0.1)
    assert oracle_cutoffs.task_for_budgets(table, 0.8) == "b"


@pytest.fixture
def measured(tiny, small_task):
    model, rules = tiny("llama", chat=True), ["none", "top_k=200", "oracle_size"]
    table = cu.evaluate(model, small_task, rules, [0.5, 1.0])
    losses = cu.step_losses(model, small_task, rules, [0.5, 1.0]).assign(task=small_task.name)
    return table, losses


def test_operating_points_are_settings_of_the_table(measured):
    table, losses = measured
    level = float(table.validity[table.rule == "none"].min())
    points = oracle_cutoffs.operating_points(table, losses, level)
    assert points.decoder.iloc[0] == "T = 1 alone"
    assert (points[points.decoder.str.contains("Val")].validity >= level).all()
    both = points.merge(table, on=["task", *KEY], suffixes=("", "_in_table"))
    assert len(both) == len(points)
    assert (both.validity == both.validity_in_table).all()
    assert points[["order", "shape", "size"]].sum(axis=1).to_numpy() == pytest.approx(points.total)
    assert points.total.to_numpy() == pytest.approx(-np.log(points.validity * points.diversity))
    assert oracle_cutoffs.operating_points(table, losses, 1.0).decoder.tolist() == ["T = 1 alone"]


def test_a_rule_of_ones_own_counts_as_any_rule():
    table = rows("rng-2", [*PRACTICAL, ("mine", 0.9, 0.8), ("oracle_size", 0.9, 0.7)])
    losses = table[["task", *KEY]].merge(pd.DataFrame({"repair": REPAIRS}), how="cross")
    losses = losses.assign(step=1, validity_loss=0.1, diversity_loss=0.2)
    points = oracle_cutoffs.operating_points(table, losses).set_index("decoder")
    assert points.rule["any rule, Val ≥ 0.8"] == "mine"
    assert points.rule["oracle size, Val ≥ 0.8"] == "oracle_size"
    beside = oracle_cutoffs.compared(table).set_index("by")
    assert beside.loc[oracle_cutoffs.PRODUCT, "rule"] == "mine"


def test_paraphrases_ask_for_the_same_answers():
    for name in ("us-states", "rng-3", "rng-2-sum-at-most-10"):
        task, others = cu.get_task(name), paraphrases(name)
        assert len({task.prompt, *(other.prompt for other in others)}) == 1 + len(others) == 5
        assert all(other.answers == task.answers for other in others)
        assert all(cu.get_task(other.name) == other for other in others)
        if "sum" in name:
            assert all("sum to at most 10" in other.prompt for other in others)
    with pytest.raises(UnknownNameError, match="us-states-paraphrase-4"):
        cu.get_task("us-states-paraphrase-5")
    assert paraphrases(cu.Task("own", "Say:", ["a"])) == []
    assert cu.get_task("us-states-shortest-3").answers == ("Iowa", "Ohio", "Utah")


def test_sensitivity_compares_like_with_like(tiny, tmp_path, monkeypatch):
    model = tiny("llama", chat=True)
    monkeypatch.setattr(oracle_cutoffs, "SHORTEST", 4)
    table = oracle_cutoffs.sensitivity(model, "rng-1", results_dir=tmp_path)
    rows = table.set_index("variant")
    assert {"bfloat16", "end = line", "end = none", "paraphrase 4"} <= set(table.variant)
    assert rows.loc["batches of 7", "validity"] == pytest.approx(
        rows.loc["as everywhere", "validity"], rel=1e-3
    )
    canonical, every = (rows.loc[f"4 shortest answers, {kind} tokenisations"].validity
                        for kind in ("canonical", "all"))  # fmt: skip
    assert every >= canonical
    moves = oracle_cutoffs.largest_moves(pd.concat([table, table.assign(task="other")]))
    other, moves = (own.reset_index(drop=True) for _, own in moves.groupby("task"))
    pd.testing.assert_frame_equal(other.assign(task="rng-1"), moves)
    assert set(moves.choice) == {"batch size", "bfloat16", "end", "paraphrase", "all tokenisations"}
    worst = max(abs(rows.loc[f"paraphrase {i}", "validity"] - rows.loc["as everywhere", "validity"])
                for i in (1, 2, 3, 4))  # fmt: skip
    found = moves.set_index("choice").validity
    assert found["paraphrase"] == pytest.approx(worst)


def test_precision_compares_every_setting_in_bfloat16(tiny, tmp_path):
    model = tiny("llama", chat=True)
    page = cu.open_page(model, results_dir=tmp_path)
    changes = oracle_cutoffs.precision(page, ["rng-1"])
    assert len(changes) == 205
    assert set(changes.kept[changes.rule == "none"]) == {"the same tokens"}
    plain = changes[(changes.rule == "none") & (changes.temperature == 1)].iloc[0]
    half = dataclasses.replace(model, dtype="bfloat16")
    rows = [cu.evaluate(m, "rng-1", results_dir=tmp_path).iloc[0] for m in (model, half)]
    assert plain.validity == pytest.approx(abs(rows[1].validity - rows[0].validity), abs=1e-12)
    assert plain.diversity == pytest.approx(abs(rows[1].diversity - rows[0].diversity), abs=1e-12)
    by_kept = oracle_cutoffs.moves_by(changes, "kept")
    assert by_kept.settings.sum() == 205
    assert by_kept.diversity.max() == changes.diversity.max()


def test_a_verdict_that_hangs_on_less_than_two_machines_agree_by_is_none():
    def above(margin):
        points = [*PRACTICAL, ("oracle_size", 0.7, 0.3 + margin)]
        return decided(points)[BY[0]]

    for way, word in ((1, REPRODUCED), (-1, NOT_REPRODUCED)):
        assert above(way * 1.1 * AGREEMENT) == word
        assert above(way * 0.9 * AGREEMENT) == NOT_DECIDED
    assert reporting.decided(0.5 + AGREEMENT / 2, 0.9, 0.5) == NOT_DECIDED

"""Many models, tasks and rules: the rows of single calls, paired by hand, released in between."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils.errors import InvalidRequestError, InvalidRuleError, UnknownNameError
from calib_utils.models import loading
from calib_utils.results import comparison

# A cutoff under which some answers of a random model survive.
RULES, TEMPERATURES = ["none", "min_p=1e-12"], [0.7, 1.0]
TASKS = ["rng-1", "planet", "month"]


@pytest.fixture(scope="module")
def table(tiny):
    return comparison.evaluate_many(
        [tiny("llama"), tiny("qwen3")], TASKS, RULES, TEMPERATURES, parts=True
    )


def test_rows_are_those_of_single_calls(tiny, table):
    one = cu.evaluate(tiny("qwen3"), "planet", RULES, TEMPERATURES)
    own = table[(table.model == one.model[0]) & (table.task == "planet")]
    pd.testing.assert_frame_equal(own[one.columns].reset_index(drop=True), one)
    assert len(table) == 2 * len(TASKS) * 4
    parts = table[["order", "shape", "size"]].sum(axis=1)
    assert np.allclose(table.total, parts)
    assert np.allclose(table.total, -np.log(table.validity * table.diversity))


def test_a_split_of_what_has_none_is_refused_or_left_out(tiny):
    model, short = tiny("llama"), cu.Task("t", "p:", ["ab", "x"], aliases={"x": ["xx"]})
    with pytest.raises(InvalidRuleError, match=r"'typical=0\.9' keeps no top prefix"):
        cu.split(model, "rng-1", ["typical=0.9"])
    with pytest.raises(InvalidRequestError, match="one token sequence an answer"):
        cu.split(model, short)
    for task, rule in (("rng-1", "typical=0.9"), (short, "none")):
        assert "order" not in comparison.evaluate_many([model], [task], [rule], parts=None)
    assert "order" in comparison.evaluate_many([model], ["rng-1"], parts=None)
    spelled = cu.Task("spelled", "Name one. Answer:", ["ab", "1,2", "zoo", "zo"])
    several = comparison.evaluate_many([model], [spelled], parts=None, tokenizations="all")
    assert "order" not in several


def test_differences_are_paired_by_task(tiny, table):
    names = [tiny(name).name for name in ("llama", "qwen3")]
    found = comparison.differences(table, [tuple(names)])
    assert len(found) == 4 * len(["validity", "diversity", "total", "order", "shape", "size"])
    first, second = (
        table[(table.model == name) & (table.rule == "min_p") & (table.temperature == 0.7)]
        .set_index("task")
        .diversity
        for name in names
    )
    row = found.query("rule == 'min_p' and temperature == 0.7 and measure == 'diversity'").iloc[0]
    apart = second - first
    assert row.difference == pytest.approx(apart.mean())
    assert (row.larger_on, row.n_tasks) == ((apart > 0).sum(), 3)
    assert row.low <= row.difference <= row.high and row.low < row.high
    turned = comparison.differences(table, [tuple(names[::-1])])
    assert np.allclose(turned.difference, -found.difference)


def test_one_models_weights_are_held_at_a_time(tiny_folder, monkeypatch):
    names = [tiny_folder(name) for name in ("llama", "qwen3", "olmo3")]
    held, real = [], loading.Model.network.func

    def network(model):
        held.append(model.name)
        return real(model)

    monkeypatch.setattr(loading.Model.network, "func", network)
    models = comparison.load_many(names, device="cpu")
    comparison.evaluate_many(models, ["rng-1", "planet"])
    assert held == [model.name for model in models], "each is loaded once"
    assert not any("network" in vars(model) for model in models)


def test_everything_is_checked_before_weights_are_loaded(tiny_folder, monkeypatch):
    monkeypatch.setattr(loading.Model.network, "func", lambda _: pytest.fail("weights were loaded"))
    folder, bad = tiny_folder("llama"), cu.Task("t", "p:", ["a<|end|>"])
    for arguments, error in (
        (([folder], ["rng-1", "rng-0"]), cu.CalibUtilsError),
        (([folder], ["rng-1", bad]), cu.CalibUtilsError),
        (([folder, "zz"], ["rng-1"]), UnknownNameError),
        (([folder], ["rng-1"], ["none", "top_p=2"]), InvalidRuleError),
        (([folder], ["rng-1", "rng-1"]), InvalidRequestError),
        (([folder, folder], ["rng-1"]), InvalidRequestError),
    ):
        with pytest.raises(error):
            comparison.evaluate_many(*arguments)


def test_checkpoints_of_two_runs_keep_apart(tiny_folder, tmp_path):
    for run, name in (("runA", "llama"), ("runB", "qwen3")):
        shutil.copytree(tiny_folder(name), tmp_path / run / "checkpoint-10")
    names = [tmp_path / run / "checkpoint-10" for run in ("runA", "runB")]
    table = comparison.evaluate_many(names, ["rng-1"], results_dir=tmp_path / "rows")
    assert table.model.tolist() == ["runA/checkpoint-10", "runB/checkpoint-10"]
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {
        "runA--checkpoint-10", "runB--checkpoint-10"
    }  # fmt: skip


def test_checkpoints_come_in_the_order_of_their_steps(tmp_path):
    for name in ("step_200", "checkpoint-1000", "checkpoint-30", "logs-7", "final"):
        (tmp_path / name).mkdir()
        if name != "logs-7":
            (tmp_path / name / "config.json").write_text("{}")
    assert list(comparison.checkpoints(tmp_path)) == [30, 200, 1000]
    (tmp_path / "other-30").mkdir()
    (tmp_path / "other-30" / "config.json").write_text("{}")
    with pytest.raises(InvalidRequestError, match="checkpoint-30 and other-30 are both of step 30"):
        comparison.checkpoints(tmp_path)
    for nothing in (tmp_path / "final", tmp_path / "nowhere"):
        with pytest.raises(InvalidRequestError, match="holds no checkpoints"):
            comparison.checkpoints(nothing)


def test_pairs_are_read_from_a_file_or_refused(tmp_path):
    file = tmp_path / "pairs.yaml"
    file.write_text("- [a/base, a/tuned]\n- [b, c]\n")
    assert comparison.read_pairs(file) == [("a/base", "a/tuned"), ("b", "c")]
    for content in ([], [["a"]], [["a", "b"], "c"], [["a", 5]], {"a": "b"}, "a", None):
        file = tmp_path / "pairs.json"
        file.write_text(json.dumps(content))
        with pytest.raises(InvalidRequestError, match="must be JSON or YAML like"):
            comparison.read_pairs(file)

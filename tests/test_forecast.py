"""Forecasts: held against times and memory that were taken, and never kept as results."""

import json
from dataclasses import replace

import numpy as np
import pytest

from calib_utils import checkpoints, forecast, paths, runner, scoring, sizes
from calib_utils.__main__ import main
from calib_utils.errors import InvalidRequestError
from calib_utils.registry import CORE

SMALL = "smollm2-135m-instruct"
TIMINGS = forecast.timings()
STUDIES = sorted(set(TIMINGS.notebook))
# Left out of its own forecast, a model must lie inside; two others at least are needed for that.
CASES = [
    (notebook, model)
    for notebook, part in TIMINGS.groupby("notebook")
    for model in part.model
    if len(part) > 2
]


def test_every_notebook_was_timed():
    timed = set(TIMINGS.notebook) - {forecast.PROBE}
    assert timed >= {f"{n:02d}_{t}" for n, t in [(0, "quickstart"), (1, "formal_framework")]}
    assert timed <= set(runner.notebook_names())
    assert set(TIMINGS.model) == set(CORE)
    assert (TIMINGS.cpu_s > 0).all()
    assert set(TIMINGS[TIMINGS.notebook == forecast.PROBE].model) == set(CORE)


@pytest.mark.parametrize(("notebook", "model"), CASES)
def test_a_models_time_lies_in_the_range_forecast_from_the_others(notebook, model):
    part = TIMINGS[TIMINGS.notebook == notebook]
    found = forecast._predicted(sizes.size_of(model), part[part.model != model])
    (taken,) = part[part.model == model].cpu_s
    assert found.low <= taken <= found.high
    # A range of everything would be no forecast.
    assert found.high / found.low < 12


@pytest.mark.parametrize("notebook", STUDIES)
def test_a_range_explains_its_own_models(notebook):
    part = TIMINGS[TIMINGS.notebook == notebook]
    for row in part.itertuples():
        found = forecast._predicted(sizes.size_of(row.model), part)
        assert found.low <= row.cpu_s <= found.high


def test_more_parameters_and_more_vocabulary_never_take_less():
    size = sizes.size_of("Qwen/Qwen3-0.6B")
    base = forecast.seconds(size).set_index("notebook")
    for larger in (
        replace(size, products=3 * size.products, parameters=3 * size.parameters),
        replace(size, vocabulary=2 * size.vocabulary),
    ):
        table = forecast.seconds(larger).set_index("notebook")
        assert (table.low >= base.low - 1e-6).all()
        assert (table.high >= base.high - 1e-6).all()
    big = forecast.seconds(replace(size, products=100 * size.products)).set_index("notebook")
    # The products alone take so long at the machine's peak.
    nodes = TIMINGS[TIMINGS.notebook == "02_controlled_tasks"].nodes.max()
    least = 2 * 100 * size.products * nodes / forecast._PEAK / TIMINGS.cores.max()
    assert big.low["02_controlled_tasks"] >= least


def test_what_was_never_timed_widens_the_range():
    dense, experts = (sizes.size_of(f"Qwen/{n}") for n in ("Qwen3-4B", "Qwen3.5-35B-A3B"))
    assert dense.model_type in scoring.PACKABLE and experts.model_type not in scoring.PACKABLE

    def width(size):
        table = forecast.seconds(size)
        return (table.high / table.low).max()

    assert width(experts) > 2 * width(dense)


def test_cores_share_the_work_no_further_than_was_measured():
    size = sizes.size_of("Qwen/Qwen3-8B")
    one, two, many = (forecast.seconds(size, cores=n) for n in (1, 2, 64))
    assert (one.high > two.high).all()
    assert two.equals(many)


def test_a_probe_taken_here_replaces_the_tables_machine():
    size = sizes.size_of("Qwen/Qwen3.5-122B-A10B")
    once, twice = (forecast.seconds(size, probe_s) for probe_s in (1.0, 2.0))
    for name in ("low", "high"):
        start = forecast._START_S
        np.testing.assert_allclose(twice[name] - start, 2 * (once[name] - start))
    assert once.equals(forecast.seconds(sizes.size_of(SMALL), 1.0))
    # An embedded model's own probe gives its own times.
    for row in TIMINGS[TIMINGS.notebook != forecast.PROBE].itertuples():
        own = TIMINGS[(TIMINGS.notebook == forecast.PROBE) & (TIMINGS.model == row.model)]
        table = forecast.seconds(sizes.size_of(row.model), own.cpu_s.item()).set_index("notebook")
        low, high = table.loc[row.notebook] - forecast._START_S
        assert low <= row.cpu_s <= high


def test_the_memory_that_was_taken_lies_in_the_forecast():
    """Against the benchmark of one model on tasks of a hundred to ten thousand answers."""
    record = json.loads((paths.project_root() / "benchmarks/results/scaling.json").read_text())
    found = forecast.memory(sizes.size_of(record["model"]))
    for task in ("rng_2", "rng_3", "rng_4"):
        loaded, extra = (record[f"{task}_{part}_memory_mb"] for part in ("loaded", "extra"))
        assert 0.9 * found.total.low < (loaded + extra) * 1e6 < 1.1 * found.total.high


def test_memory_follows_from_the_dtype_and_the_architecture():
    dense, recurrent = (sizes.size_of(f"Qwen/{name}") for name in ("Qwen3-8B", "Qwen3.5-9B"))
    assert forecast.memory(dense).weights == 4 * dense.parameters
    assert forecast.memory(dense, "bfloat16").weights == 2 * dense.parameters
    # A copy of the recurrent state per row, and of each step on the way down.
    beside = forecast.memory(recurrent).beside
    assert beside.low > 16 * recurrent.state_bytes
    assert beside.high > 4 * beside.low
    with pytest.raises(InvalidRequestError, match="dtype='int4' does not exist"):
        forecast.memory(dense, "int4")


@pytest.mark.parametrize("one", checkpoints.checkpoints(), ids=lambda one: one.name)
def test_every_checkpoint_has_a_forecast_that_says_it_is_one(one):
    told = forecast.report(sizes.size_of(one.load_name), "bfloat16", "cpu")
    assert told.startswith("FORECAST") and "not a measurement" in told.splitlines()[0]
    assert "all of these" in told
    assert ("active" in told) == (one.active < one.parameters)


def test_what_does_not_fit_is_said(monkeypatch):
    size = sizes.size_of("Qwen/Qwen3-8B")
    monkeypatch.setattr(forecast, "_memory_here", lambda device: 8e9)
    assert "WARNING: does not fit into the memory" in forecast.report(size, "float32", "cpu")
    monkeypatch.setattr(forecast, "_memory_here", lambda device: 8e12)
    monkeypatch.setattr(forecast, "disk", lambda size: (2e10, 1e10))
    told = forecast.report(size, "float32", "cpu")
    assert "the disk is too small" in told and "memory here" not in told


def test_the_command_measures_and_keeps_nothing(tiny_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(paths.default_results_dir().rglob("*"))
    assert main(["forecast", "--model", str(tiny_folder("qwen3")), "--measure"]) == 0
    out, err = capsys.readouterr()
    assert "times follow from" in out and "taken just now" in out
    assert "scaled from those of the embedded models" in err  # told before the model was loaded
    assert sorted(paths.default_results_dir().rglob("*")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "owner/nothing"], "HubUnreachableError: the size of owner/nothing"),
        (["--model", "smollm"], "UnknownNameError"),
        (["--model", SMALL, "--dtype", "int4"], "dtype='int4' does not exist"),
        (["--model", SMALL, "--device", "tpu"], "DeviceError"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, hub, capsys):
    assert main(["forecast", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1

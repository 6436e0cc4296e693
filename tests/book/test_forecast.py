"""Forecasts: held against times and memory that were taken, and never kept as results."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.__main__ import main
from calib_utils.book import notebooks, resources
from calib_utils.errors import InvalidRequestError, ModelFormatError
from calib_utils.models import registry

SMALL = "smollm2-135m-instruct"


def test_times_that_were_taken_lie_within_the_spread_that_is_told():
    table = pd.read_csv(paths.package_data("panel", "seconds.csv"))
    taken = table.pivot(index="notebook", columns="model", values="cpu_s")
    assert set(taken.index) <= set(notebooks.notebook_names()) and taken[SMALL].notna().all()
    told = {model: resources.seconds(resources.size_of(model)) for model in taken}
    assert told[SMALL] >= taken[SMALL].sum()
    for model in set(taken) - {SMALL}:
        both = taken[[model, SMALL]].dropna().sum()
        ratio = told[model] / told[SMALL] / (both[model] / both[SMALL])
        assert 1 / resources.SPREAD < ratio < resources.SPREAD, model
    size = resources.size_of("Qwen/Qwen3-0.6B")
    assert resources.seconds(replace(size, active=1)) == told[SMALL]
    larger = resources.seconds(replace(size, active=3 * size.active))
    assert larger == pytest.approx(3 * resources.seconds(size))


def test_the_memory_that_was_taken_lies_below_the_forecast():
    """Against the benchmark of one model on tasks of a hundred to ten thousand answers."""
    record = json.loads((paths.project_root() / "benchmarks/results/scaling.json").read_text())
    told = resources.memory(resources.size_of(record["model"]))
    for task in ("rng_2", "rng_3", "rng_4"):
        loaded, extra = (record[f"{task}_{part}_memory_mb"] for part in ("loaded", "extra"))
        assert told / 2.5 < (loaded + extra) * 1e6 < 1.1 * told


def test_memory_follows_from_the_dtype_and_the_architecture():
    dense, recurrent = (resources.size_of(f"Qwen/{name}") for name in ("Qwen3-8B", "Qwen3.5-9B"))
    assert resources.memory(dense) > 4 * dense.parameters
    halves = resources.memory(dense, "bfloat16")
    assert 2 * dense.parameters < halves < resources.memory(dense) - 2 * dense.parameters
    # A copy of the recurrent state per row, and of each step on the way down.
    beside = resources.memory(recurrent) - 4 * recurrent.parameters
    assert beside > 64 * recurrent.state_bytes
    with pytest.raises(InvalidRequestError, match="dtype='int4' does not exist"):
        resources.memory(dense, "int4")


@pytest.mark.parametrize("one", registry.checkpoints(), ids=lambda one: one.name)
def test_every_checkpoint_has_a_forecast_that_says_it_is_one(one):
    told = resources.report(resources.size_of(one.load_name), "bfloat16", "cpu")
    assert told.startswith("FORECAST") and "not a measurement" in told.splitlines()[0]
    assert "within a factor of" in told
    assert ("active" in told) == (one.active < one.parameters)


def test_what_a_batch_system_is_asked_for(tiny_folder, tmp_path):
    asked = resources.resources
    small, large = asked(["smollm2-135m-instruct", "Qwen/Qwen3-8B"])
    assert small["gpus"] == 0
    assert large["mem_mb"] > 32_000 > small["mem_mb"] > 500
    assert large["minutes"] > small["minutes"] >= 10
    (halves,) = asked(["Qwen/Qwen3-8B"], dtype="bfloat16", gpu_gb=80)
    assert (halves["gpus"], halves["key"]) == (1, "Qwen--Qwen3-8B")
    assert asked(["Qwen/Qwen3-8B"], gpu_gb=24)[0]["gpus"] > 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFormatError, match="not a model folder"):
        asked([str(tmp_path / "empty")])
    twin = shutil.copytree(tiny_folder(), tmp_path / "x" / tiny_folder().name)
    with pytest.raises(InvalidRequestError, match="more than one model"):
        asked([str(tiny_folder()), str(twin)])


def test_what_does_not_fit_is_said(monkeypatch):
    size = resources.size_of("Qwen/Qwen3-8B")
    monkeypatch.setattr(resources, "_memory_here", lambda device: 8e9)
    assert "WARNING: does not fit into the memory" in resources.report(size, "float32", "cpu")
    monkeypatch.setattr(resources, "_memory_here", lambda device: 8e12)
    told = resources.report(replace(size, disk_bytes=10**18), "float32", "cpu")
    assert "the disk is too small" in told and "memory here" not in told


def test_a_forecast_is_made_for_a_gpu_that_is_not_here(capsys):
    command = ["forecast", "--model", "meta-llama/Llama-3.1-8B-Instruct"]
    assert main([*command, "--gpu", "l4"]) == 0
    told = capsys.readouterr().out
    assert "float32 on cuda" in told and "there 24 GB" in told and "WARNING" in told
    assert main([*command, "--gpu-gb", "141", "--dtype", "bfloat16"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    for wrong in (["--gpu", "H1000"], ["--gpu-gb", "0"], ["--gpu-gb", "nan"]):
        assert main([*command, *wrong]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()

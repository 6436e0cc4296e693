"""Data of the explorer page: the stored rows, of every model with results and of none else."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from calib_utils import paths
from calib_utils.figures import CAUSES, RULE_COLOURS, explorer
from calib_utils.figures.explorer import StepData
from calib_utils.models.registry import DEFAULT_MODEL
from calib_utils.results import storage
from calib_utils.results.storage import KEY
from calib_utils.studies import oracle_cutoffs
from calib_utils.studies.oracle_cutoffs import PRACTICAL

STORE = paths.default_results_dir()
SMALL, ADDED = "smollm2-135m-instruct", "Qwen--Qwen3-0.6B"
MOST_BYTES = 400_000  # a script is read when its model is chosen, on a phone too


def scripts(folder):
    """The index, and each model's key and data, as a browser would get them."""
    index = (folder / "index.js").read_text(encoding="ascii")
    index = json.loads(index.removeprefix("globalThis.calibUtilsModels =").removesuffix(";\n"))
    models = {}
    for path in folder.glob("model-*.js"):
        text = path.read_text(encoding="ascii")
        inside = text.removeprefix("calibUtilsModel(").removesuffix(");\n")
        key, data = json.loads(f"[{inside}]")
        models[key] = data
    return index, models


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / explorer.PAGE_FOLDER
    left_out = explorer.write(STORE, folder)
    return folder, left_out


@pytest.fixture
def store(tmp_path):
    """A store of two tasks of one model and the steps of both, to spoil."""
    for name in ("us-states", "rng-2"):
        shutil.copytree(STORE / SMALL / name, tmp_path / "store" / SMALL / name)
        path = explorer.path_of(tmp_path / "store", SMALL, name)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(explorer.path_of(STORE, SMALL, name), path)
    return tmp_path / "store"


def test_every_committed_model_has_a_small_script_and_the_default_is_first(written):
    folder, left_out = written
    index, models = scripts(folder)
    stored = {path.name for path in STORE.iterdir() if path.is_dir()}
    assert left_out.empty
    assert index["models"][0]["key"] == DEFAULT_MODEL
    assert {one["key"] for one in index["models"]} == set(models) == stored
    assert all(path.stat().st_size < MOST_BYTES for path in folder.iterdir())


def test_colours_are_those_of_the_figures(written):
    index, _ = scripts(written[0])
    wanted = {rule: RULE_COLOURS[rule] for rule in (*PRACTICAL, "oracle_size")}
    assert index["colours"] == wanted | {cause: colour for cause, (colour, _) in CAUSES.items()}


def test_the_numbers_are_the_stored_rows(written):
    index, models = scripts(written[0])
    for key, tasks in models.items():
        assert set(tasks) <= set(oracle_cutoffs.TASKS)
        for task, one in tasks.items():
            found = pd.DataFrame(one["rows"], columns=index["columns"])
            found = found.astype({name: float for name in found if name != "rule"})
            suffix = "@end=line" if "end = line" in one["source"] else ""
            stored = storage.read(STORE / key / f"{task}{suffix}")
            assert len(found) == 17 * 12 and not found.duplicated(KEY).any()
            assert stored.record["weights_sha256"][:12] in one["source"]
            assert one["prompt"] == stored.record["prompt"]
            split = oracle_cutoffs.split_table(stored.losses.assign(task=task))
            right = found[KEY].merge(stored.settings, on=KEY).merge(split, on=["task", *KEY])
            for name in explorer.MEASURES:
                np.testing.assert_allclose(found[name], right[name], rtol=1e-7, err_msg=name)
                # What is shown is rounded once more: never to another third digit than the row's.
                pairs = zip(found[name].dropna(), right[name].dropna(), strict=True)
                assert all(f"{a:.3g}" == f"{b:.3g}" for a, b in pairs)
            for name in explorer.PARTS:
                wanted = right[name].where(right.total.notna())
                np.testing.assert_allclose(found[name], wanted, rtol=1e-7, atol=1.001e-6)
            parts = found.order + found["shape"] + found["size"]
            np.testing.assert_allclose(parts, found.total, atol=3e-6, rtol=1e-6)


def test_the_frontier_is_the_one_of_the_chapter(written):
    index, models = scripts(written[0])
    for key, end in ((DEFAULT_MODEL, ""), ("gemma-3-270m", "@end=line")):
        one = models[key]["rng-2"]
        found = pd.DataFrame(one["rows"], columns=index["columns"])
        marked = found[found.on_frontier == 1].astype({"parameter": float})
        table = storage.read(STORE / key / f"rng-2{end}").settings
        asked = found.astype({"parameter": float})[KEY].merge(table, on=KEY)
        best = oracle_cutoffs.frontier_points(asked)
        assert len(marked) == len(best) == len(best.merge(marked, on=KEY))


def test_steps_are_the_kept_ones(written):
    _, models = scripts(written[0])
    for key, tasks in models.items():
        for task, one in tasks.items():
            path = explorer.path_of(STORE, key, task)
            assert bool(one["steps"]) == path.is_file()
            if one["steps"]:
                steps, _ = explorer.read(path)
                assert [StepData.from_json(step) for step in one["steps"]] == steps


def test_a_new_model_appears_and_one_without_these_rows_does_not(store, tmp_path):
    shutil.copytree(store / SMALL / "us-states", store / ADDED / "us-states")
    shutil.copytree(STORE / SMALL / "rng-2@end=none", store / "other" / "rng-2@end=none")
    (store / ".draft").mkdir()
    left_out = explorer.write(store, tmp_path / "out")
    index, models = scripts(tmp_path / "out")
    assert left_out.empty
    assert {one["key"] for one in index["models"]} == {SMALL, ADDED}
    assert list(models[ADDED]) == ["us-states"]
    assert models[ADDED]["us-states"]["steps"] == []


def test_no_results_at_all_is_a_page_without_models(tmp_path):
    assert explorer.write(tmp_path / "nothing", tmp_path / "out").empty
    assert scripts(tmp_path / "out")[0]["models"] == []


def spoil(store, how):
    table, steps = store / SMALL / "us-states", explorer.path_of(store, SMALL, "us-states")
    record = table / storage.RECORD
    if how == "table changed":
        with (table / "settings.csv").open("a") as file:
            file.write("x")
    elif how == "table of another convention":
        content = json.loads(record.read_text(encoding="utf-8")) | {"convention": 0}
        record.write_text(json.dumps(content), encoding="utf-8")
    elif how == "steps cut off":
        steps.write_text(steps.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    else:
        name, value = {
            "steps of another convention": ("convention", 0),
            "steps of other weights": ("weights_sha256", "0" * 64),
            "steps of another end": ("end", "line"),
        }[how]
        content = json.loads(steps.read_text(encoding="utf-8"))
        content["record"][name] = value
        steps.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("table changed", "is not the file that"),
        ("table of another convention", "of an older convention"),
        ("steps cut off", "holds no steps"),
        ("steps of another convention", "of another convention than the rows"),
        ("steps of other weights", "of another weights than the rows"),
        ("steps of another end", "of another end than the rows"),
    ],
)
def test_what_is_broken_or_stale_is_left_out_and_named(store, tmp_path, how, why):
    spoil(store, how)
    left_out = explorer.write(store, tmp_path / "out")
    tasks = scripts(tmp_path / "out")[1][SMALL]
    assert len(left_out) == 1 and why in left_out.why[0]
    assert left_out.folder[0].startswith(f"{SMALL}/us-states")
    assert tasks["rng-2"]["steps"]
    if how.startswith("table"):
        assert set(tasks) == {"rng-2"}
    else:
        assert len(tasks["us-states"]["rows"]) == 17 * 12 and tasks["us-states"]["steps"] == []

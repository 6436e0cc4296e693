"""Stored tables: reuse, refusal of what does not belong, and no half-written folder, ever."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils import files
from calib_utils.book import check
from calib_utils.core import prompts
from calib_utils.errors import InvalidTaskError, ResultsError
from calib_utils.models import scoring
from calib_utils.results import conventions, evaluation, storage
from calib_utils.results.storage import Tables

TASK = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo", "zo"])
RULES = ["none", "top_k=150", "top_p=0.99", "min_p=0.001", "oracle_size"]


@pytest.fixture
def model(tiny):
    return tiny("llama", chat=True)


@pytest.fixture(scope="module")
def template(tiny, tmp_path_factory):
    """One stored measurement in a folder of results."""
    model, root = tiny("llama", chat=True), tmp_path_factory.mktemp("template")
    cu.evaluate(model, TASK, RULES, [0.5, 2.0], results_dir=root)
    cu.answer_probabilities(model, TASK, [0.5, 1.0], results_dir=root)
    return root


@pytest.fixture
def stored(template, model, tmp_path):
    """The folder of a copy of it that a test may spoil."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return storage.folder_of(tmp_path, model.key, TASK.name)


@pytest.fixture
def passes(monkeypatch):
    """Grows with every pass of a model over a task."""
    ran, real = [], scoring.score
    monkeypatch.setattr(scoring, "score", lambda *a, **k: ran.append(1) or real(*a, **k))
    return ran


@pytest.mark.parametrize("several", [{"policies": {"end": "line"}}, {"aliases": {"zo": ["Zo"]}}])
def test_a_cutoff_may_keep_every_answer_and_drop_a_way_to_write_it(stored, several):
    found = storage.read(stored)
    table = found.settings
    cut = (table.rule != "none") & (table.sequence_recall == 1)
    assert cut.any()
    lower = Tables(table.assign(validity=table.validity.where(~cut, table.validity * 0.9)))
    with pytest.raises(ResultsError, match="keeps every answer lowers validity"):
        lower.check("here", found.record)
    lower.check("here", {**found.record, **several})


def test_stored_rows_are_the_computed_rows_to_the_last_bit(model, stored, tmp_path, passes):
    again = cu.evaluate(model, TASK, RULES, [0.5, 2.0], results_dir=tmp_path)
    assert list(again.columns) == storage.COLUMNS
    on_disk = pd.read_csv(stored / "settings.csv")
    assert len(again) == len(again.merge(on_disk, on=storage.COLUMNS)) == 10
    table = cu.evaluate(model, TASK, ["top_p=0.99", "none"], [2.0, 0.5], results_dir=tmp_path)
    assert table.rule.tolist() == ["top_p", "top_p", "none", "none"], "the order asked for"
    assert table.temperature.tolist() == [2.0, 0.5, 2.0, 0.5]
    assert not passes


def test_storing_does_not_change_what_is_returned(model, tmp_path):
    plain = cu.evaluate(model, TASK, RULES, [0.5])
    for _ in range(2):
        stored = cu.evaluate(model, TASK, RULES, [0.5], results_dir=tmp_path)
        pd.testing.assert_frame_equal(plain, stored)


def test_answer_probabilities_are_reused_and_add_up_to_the_validity(
    model, stored, tmp_path, passes
):
    answers = cu.answer_probabilities(model, TASK, [1.0], results_dir=tmp_path)
    table = cu.evaluate(model, TASK, ["none"], [1.0], results_dir=tmp_path)
    assert answers.answer.tolist() == list(TASK.answers)
    assert np.exp(answers.log_p).sum() == pytest.approx(table.validity[0], rel=1e-12)
    assert not passes


def test_only_missing_settings_are_measured(model, stored, tmp_path, monkeypatch):
    asked = []
    real = evaluation.measure
    monkeypatch.setattr(
        evaluation, "measure", lambda m, p, s, **kw: asked.append(s) or real(m, p, s, **kw)
    )
    cu.evaluate(model, TASK, ["none", "top_k=7"], [0.5, 2.0], results_dir=tmp_path)
    assert asked == [[(cu.TopK(7), 0.5), (cu.TopK(7), 2.0)]]
    kept = storage.read(stored)
    assert len(kept.settings) == 10 + 2 + 1  # and T = 1 from the answers
    assert set(kept.answers.temperature) == {0.5, 1.0}


def test_rows_of_an_older_convention_are_measured_again(
    model, stored, tmp_path, monkeypatch, passes
):
    monkeypatch.setitem(conventions.CURRENT, "rows", 2)
    for _ in range(2):
        cu.evaluate(model, TASK, ["none"], [0.5], results_dir=tmp_path)
        assert passes == [1] and storage.read(stored).record["convention"] == 2


@pytest.mark.parametrize("name", conventions.FOLDERS)
def test_a_task_with_the_name_of_another_folder_is_refused(name):
    with pytest.raises(InvalidTaskError, match=f"{name!r} is a reserved word"):
        cu.Task(name, TASK.prompt, TASK.answers)


def test_rows_of_another_prompt_other_answers_or_weights_are_refused(model, stored, tmp_path):
    before = (stored / "settings.csv").read_bytes()
    other = cu.Task(TASK.name, "Another prompt. Answer:", [*TASK.answers, "more"])
    with pytest.raises(ResultsError, match="prompt_sha256, sequences_sha256"):
        cu.evaluate(model, other, results_dir=tmp_path)
    assert (stored / "settings.csv").read_bytes() == before
    edit_record(weights_sha256="0" * 64)(stored / "provenance.json")
    with pytest.raises(ResultsError, match="weights_sha256"):
        cu.evaluate(model, TASK, results_dir=tmp_path)


def test_other_policies_and_dtypes_have_their_own_folder(model, stored, tmp_path, tiny_folder):
    cu.evaluate(model, TASK, results_dir=tmp_path, end="line")
    half = cu.load_model(tiny_folder("llama", chat=True), dtype="bfloat16", device="cpu")
    cu.evaluate(half, TASK, results_dir=tmp_path)
    names = {folder.name for folder in stored.parent.iterdir() if folder.is_dir()}
    assert names == {"few", "few@end=line", "few@dtype=bfloat16"}
    assert cu.stored_measurement(half, TASK, tmp_path).record["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["null", "NA", "007"])
def test_names_that_look_like_missing_values_or_numbers_stay_names(model, tmp_path, name):
    task = cu.Task(name, TASK.prompt, TASK.answers)
    first, again = (cu.evaluate(model, task, results_dir=tmp_path) for _ in range(2))
    assert first.task.tolist() == again.task.tolist() == [name]


def test_the_record_names_what_a_number_depends_on(stored, model):
    record = cu.stored_measurement(model, TASK, stored.parent.parent).record
    assert {"convention", *conventions.IDENTITY["rows"]} <= set(record)
    assert record["environment"]["packages"]["torch"]
    assert record["prompt"] == TASK.prompt
    assert record["seconds"] >= 0
    assert set(record["files"]) == {"settings.csv", "answers.parquet"}


def test_nothing_stored_is_said_plainly(model, tmp_path):
    with pytest.raises(ResultsError, match="nothing is stored"):
        cu.stored_measurement(model, TASK, tmp_path)
    cu.evaluate(model, TASK, end="line", results_dir=tmp_path)
    assert cu.stored_measurement(model, TASK, tmp_path, "line").record["policies"]["end"] == "line"
    with pytest.raises(ResultsError, match="nothing is stored"):
        cu.stored_measurement(model, TASK, tmp_path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_record(**changes):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("name", "tamper"),
    [
        ("settings.csv", flip),
        ("settings.csv", lambda path: path.unlink()),
        ("provenance.json", lambda path: path.unlink()),
        ("provenance.json", edit_record(schema=99)),
        ("provenance.json", edit_record(files={"settings.csv": "0" * 64})),
        ("provenance.json", edit_record(files={})),
    ],
)
def test_a_folder_changed_by_hand_is_refused(model, stored, tmp_path, name, tamper):
    tamper(stored / name)
    with pytest.raises(ResultsError, match="measure again"):
        cu.evaluate(model, TASK, results_dir=tmp_path)


DETAILED = ["none", "top_k=150", "typical=0.9", "top_p=0.99+top_k=200@llama.cpp"]
TABLES = tuple(storage.FILES)


def store_details(model, results_dir):
    """The folder of a measurement with all four tables."""
    asked = {"answer_temperatures": [1.0], "details": True, "results_dir": results_dir}
    cu.evaluate(model, TASK, DETAILED, [0.5, 1.0, 2.0], **asked)
    return storage.folder_of(results_dir, model.key, TASK.name)


@pytest.fixture
def detailed(model, tmp_path):
    return store_details(model, tmp_path)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """All four tables and their record."""
    return storage.read(store_details(tiny("llama", chat=True), tmp_path_factory.mktemp("whole")))


def cell(column, value):
    """Sets one column of the rows without a cutoff."""
    return lambda w: {"settings": w.settings.assign(
        **{column: w.settings[column].where(w.settings.rule != "none", value)}
    )}  # fmt: skip


def nested(name, tight, loose):
    """Two cutoffs of one kind, the looser of which reaches less."""

    def change(whole):
        row = whole.settings.iloc[[0]].assign(rule=name, temperature=0.31)
        first = row.assign(parameter=tight, sequence_recall=1.0)
        second = row.assign(parameter=loose, sequence_recall=0.5)
        return {"settings": pd.concat([whole.settings, first, second], ignore_index=True)}

    return change


def losses(**changes):
    """Changes the losses of the rows that a setting has without repair."""

    def change(whole):
        table = whole.losses.copy()
        rows = (table.rule == "none") & (table.temperature == 2.0) & (table.repair == "none")
        for column, new in changes.items():
            table.loc[rows, column] = new(table.loc[rows, column])
        return {"losses": table}

    return change


def frontier(precision, recall):
    table = pd.DataFrame({"sequence_precision": precision, "sequence_recall": recall})
    return lambda whole: {"frontier": table}


BREAKS = {
    "validity above 1": (cell("validity", 1.1), "validity must lie"),
    "validity below 0": (cell("validity", -0.1), "validity must lie"),
    "validity missing": (cell("validity", np.nan), "validity must lie"),
    "diversity below 1/|V|": (cell("diversity", 0.2), "diversity must lie"),
    "diversity above 1": (cell("diversity", 1.01), "diversity must lie"),
    "diversity missing": (cell("diversity", np.nan), "diversity must lie"),
    "precision above 1": (cell("sequence_precision", 2.0), "precision must lie"),
    "recall below 0": (cell("sequence_recall", -1.0), "recall must lie"),
    "temperature 0": (cell("temperature", 0.0), "settings occurs twice|above 0"),
    "a setting twice": (
        lambda w: {"settings": pd.concat([w.settings, w.settings.iloc[[0]]])}, "occurs twice"
    ),
    "recall falls as top_k grows": (nested("top_k", 5.0, 6.0), "falls as top_k loosens"),
    "recall falls as top_p grows": (nested("top_p", 0.3, 0.4), "falls as top_p loosens"),
    "recall falls as min_p shrinks": (nested("min_p", 0.4, 0.3), "falls as min_p loosens"),
    "ln p above 0": (lambda w: {"answers": w.answers.assign(log_p=0.5)}, "is above 0"),
    "masses that do not add up": (
        lambda w: {"answers": w.answers.assign(log_p=w.answers.log_p - 2)}, "add up to the validity"
    ),
    "an answer missing": (lambda w: {"answers": w.answers.iloc[:-1]}, "answers are missing"),
    "a column missing": (
        lambda w: {"settings": w.settings.drop(columns="n_nodes")}, "of the settings, columns are"
    ),
    "no rows": (lambda w: {"settings": w.settings.iloc[:0]}, "settings.* (is empty|differs)"),
    "a negative loss": (losses(diversity_loss=lambda x: -x), "negative"),
    "a negative step": (losses(validity_loss=lambda x: x + np.array([-9, 9, 0, 0])), "negative"),
    "validity losses that do not add up": (losses(validity_loss=lambda x: x * 2), "-ln validity"),
    "diversity losses that do not add up": (
        losses(diversity_loss=lambda x: x + 0.01), "-ln diversity"
    ),
    "an unknown repair": (losses(repair=lambda x: "luck"), "unknown repairs .'luck'"),
    "a missing repair": (losses(repair=lambda x: np.nan), "repair .* is no str"),
    "a column of losses missing": (
        lambda w: {"losses": w.losses.drop(columns="step")}, "of the losses, columns are"
    ),
    "a point beyond 1": (frontier([1.1, 0.5], [0.2, 1.0]), "outside"),
    "a point below 0": (frontier([1.0, 0.5], [-0.1, 1.0]), "outside"),
    "a point missing": (frontier([1.0, np.nan], [0.2, 1.0]), "outside"),
    "precision that rises": (frontier([0.5, 1.0], [0.2, 0.4]), "not ordered"),
    "recall that falls": (frontier([1.0, 0.5], [0.4, 0.2]), "not ordered"),
}  # fmt: skip


@pytest.mark.parametrize("invariant", BREAKS)
def test_a_broken_invariant_is_refused_on_write_and_on_read(
    whole, invariant, tmp_path, monkeypatch
):
    change, message = BREAKS[invariant]
    broken, target = replace(whole, **change(whole)), tmp_path / "model" / "few"
    with pytest.raises(ResultsError, match=message):
        storage.write(target, broken, whole.record)
    assert not target.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "check", lambda *args: None)
        storage.write(target, broken, whole.record)
    with pytest.raises(ResultsError, match=message):
        storage.read(target)


def assert_same_tables(one, other):
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))


def test_details_store_all_tables_in_one_pass(model, tmp_path, passes):
    options = {"answer_temperatures": [1.0], "details": True, "results_dir": tmp_path}
    first = cu.evaluate(model, TASK, DETAILED, [0.5, 2.0], **options)
    assert passes == [1]
    stored = cu.stored_measurement(model, TASK, tmp_path)
    assert not any(getattr(stored, name).empty for name in TABLES)
    bulk = {f"{name}.parquet" for name in ("answers", "losses", "frontier")}
    assert set(stored.record["files"]) == {"settings.csv", *bulk}
    rank_cutoffs = {"none", "top_k", "top_k=200+top_p=0.99@llama.cpp"}
    assert set(stored.losses.rule) == rank_cutoffs
    second = cu.evaluate(model, TASK, DETAILED, [0.5, 2.0], **options)
    pd.testing.assert_frame_equal(first, second)
    rules = [rule for rule in DETAILED if "typical" not in rule]
    lost = cu.step_losses(model, TASK, rules, [0.5, 2.0], results_dir=tmp_path)
    assert len(lost) == 3 * 2 * 4 * 4, "rules, temperatures, repairs, steps"
    points = cu.adaptive_frontier(model, TASK, results_dir=tmp_path)
    pd.testing.assert_frame_equal(points, stored.frontier)
    cu.answer_probabilities(model, TASK, [1.0], results_dir=tmp_path)
    assert passes == [1], "everything else was there"
    computed = cu.step_losses(model, TASK, rules, [0.5, 2.0])
    pd.testing.assert_frame_equal(computed, lost, check_dtype=False)
    pd.testing.assert_frame_equal(cu.adaptive_frontier(model, TASK), points)


def test_new_settings_join_the_details_that_are_there(model, tmp_path, detailed):
    before = storage.read(detailed)
    cu.evaluate(model, TASK, ["top_k=7"], [2.0], results_dir=tmp_path, details=True)
    after = storage.read(detailed)
    assert after.settings.rule.tolist() == [*before.settings.rule, "top_k"]
    n = len(before.losses)
    pd.testing.assert_frame_equal(after.losses.iloc[:n], before.losses, check_dtype=False)
    assert set(after.losses.iloc[n:].parameter) == {7.0}
    pd.testing.assert_frame_equal(after.frontier, before.frontier)


def test_details_of_a_validity_that_underflows_are_stored(model, tmp_path):
    options = {"details": True, "results_dir": tmp_path}
    found = cu.evaluate(model, TASK, ["none", "top_k=1"], [0.001], **options)
    assert found.validity.tolist() == [0, 0]
    assert found.diversity.isna().all()
    again = cu.evaluate(model, TASK, ["none", "top_k=1"], [0.001], **options)
    pd.testing.assert_frame_equal(found, again)


def test_a_place_that_cannot_be_written_is_named_before_the_model_runs(model, tmp_path, passes):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultsError, match="writable results_dir"):
        cu.evaluate(model, TASK, results_dir=tmp_path / "file")
    assert not passes


def test_a_full_disk_leaves_the_old_rows(stored, monkeypatch):
    whole = storage.read(stored)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(ResultsError, match="No space left"):
        storage.write(stored, whole, whole.record)
    monkeypatch.undo()
    pd.testing.assert_frame_equal(storage.read(stored).settings, whole.settings)
    assert {path.name for path in stored.parent.iterdir()} == {".lock", stored.name}


WRITER = """
import sys
from pathlib import Path
from calib_utils.results import storage
source, target = map(Path, sys.argv[1:])
whole = storage.read(source)
print("ready", flush=True)
while True:
    storage.write(target, whole, whole.record)
"""


@pytest.mark.full
@pytest.mark.parametrize("delay", [0.0, 0.013, 0.029, 0.051, 0.083, 0.12])
def test_a_killed_writer_leaves_a_whole_folder_or_none(detailed, delay):
    target = detailed.with_name("killed")
    command = [sys.executable, "-c", WRITER, str(detailed), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    whole, found = storage.read(detailed), storage.read(target)
    if target.exists():
        assert_same_tables(found, whole)
    else:
        assert found is None
    storage.write(target, whole, whole.record)
    assert_same_tables(storage.read(target), whole)


def test_a_folder_replaced_while_it_is_read_is_read_whole(stored, monkeypatch):
    whole = storage.read(stored)
    fewer = whole.settings[whole.settings.rule == "none"].reset_index(drop=True)
    digest, swapped = files.sha256_of_file, []

    def replace_first(path):
        if not swapped:
            swapped.append(path)
            storage.write(stored, Tables(fewer, whole.answers), whole.record)
        return digest(path)

    monkeypatch.setattr(files, "sha256_of_file", replace_first)
    found = storage.read(stored)
    assert len(found.settings) in (len(fewer), len(whole.settings))


def test_recomputing_a_folder_gives_its_rows_and_says_so(tiny_folder, tmp_path):
    # Loaded anew: where it lies is kept in the cache of the test that loads it.
    model = cu.load_model(tiny_folder("llama", chat=True), device="cpu")
    rules = ["none", "top_k=150", "typical=0.9", "top_k=150+top_p=0.9@llama.cpp", "oracle_size"]
    cu.evaluate(model, "rng-1", rules, [0.5, 2.0], details=True, results_dir=tmp_path)
    cu.evaluate(model, "rng-1", ["none"], [0.01], answer_temperatures=[0.7], results_dir=tmp_path)
    (folder,) = check.stored(tmp_path)
    before = storage.read(folder)
    row = check.recompute(folder, update=True).iloc[0]
    after = storage.read(folder)
    assert row.same and row["convention is current"]
    assert row.rows == len(before.settings) == len(after.settings) == 12
    assert len(after.losses) >= len(before.losses) > 0
    assert after.frontier.equals(before.frontier)
    assert set(after.answers.temperature) == {0.7}
    moved = before.settings.copy()
    moved.loc[moved.rule != "none", "validity"] *= 1.01
    tables = Tables(moved, before.answers)
    storage.write(folder, tables, before.record)
    assert not check.recompute(folder).iloc[0].same


def test_the_order_of_segmentations_does_not_make_rows_foreign(
    model, tmp_path, monkeypatch, passes
):
    """Tokens of equal text come out of a vocabulary in another order in another process."""
    asked = {"tokenizations": "all", "results_dir": tmp_path}
    first = cu.evaluate(model, TASK, ["none"], **asked)
    assert len(cu.render_prompt(model, TASK, tokenizations="all").sequences.symbols) > 4
    real = prompts.render

    def turned(*args):
        prompt = real(*args)
        own = prompt.sequences
        own = replace(own, symbols=own.symbols[::-1], answer=own.answer[::-1])
        return replace(prompt, sequences=own)

    monkeypatch.setattr(prompts, "render", turned)
    assert cu.evaluate(model, TASK, ["none"], **asked).equals(first)
    assert passes == [1]

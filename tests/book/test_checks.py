"""`check`: what is sound passes, and each thing that can be wrong is found and named."""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils import paths
from calib_utils.__main__ import main
from calib_utils.book import check
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import ResultsError
from calib_utils.figures import explorer
from calib_utils.files import sha256_of_file
from calib_utils.openended import verifiers
from calib_utils.openended.sweeps import Sweep, sweep
from calib_utils.results import conventions, draws, records, storage
from calib_utils.results.evaluation import request_for
from calib_utils.results.storage import Tables
from calib_utils.studies import beyond, formal_framework, logit_shape

HUB_ID, KEY = "owner/tiny", "owner--tiny"
SWEEP = Sweep((OpenPrompt("one", "story", "Tell a story."),), ranks=(0, 3), max_tokens=3)
SMALL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def template(tmp_path_factory, tiny_folder, cached):
    """Results of a tiny model of the hub: two tables with all parts, a sweep, drawn replies."""
    from huggingface_hub import constants

    root = tmp_path_factory.mktemp("checks")
    cached(root / "hub", tiny_folder("llama", chat=True), HUB_ID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
        patch.setenv("CALIB_UTILS_CACHE", str(root / "cache"))
        patch.setattr(conventions, "_commit", lambda: {"commit": "1" * 40, "dirty": False})
        model = cu.load_model(HUB_ID, device="cpu")
        options = {"details": True, "answer_temperatures": [1.0], "results_dir": root / "rows"}
        cu.evaluate(model, "rng-1", ["none", "top_k=150", "top_p=0.9"], [0.5, 1.0], **options)
        cu.evaluate(model, "rng-1", ["none"], end="line", results_dir=root / "rows")
        sweep(model, SWEEP, root / "rows")
        beyond.ask(model, beyond.Question("x", "Name a city", "city"), 4, 0, root / "rows")
        texts = root / "rows" / model.key / "texts"
        (texts / "repeats-x-n4").rename(texts / "repeats")
    return root


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    """A copy that a test may spoil, and the hub cache its model is in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(template / "hub"))
    return shutil.copytree(template / "rows", tmp_path / "rows")


def findings(root):
    return [fault.what for one in check.check(root) for fault in one.faults]


def errors(root):
    return [f for one in check.check(root) for f in one.faults if f.level == check.ERROR]


def test_sound_results_have_no_fault(world, capsys):
    found = check.check(world)
    assert [(one.folder.name, one.kind, one.verdict) for one in found] == [
        ("rng-1", "table", "ok"),
        ("rng-1@end=line", "table", "ok"),
        ("repeats", "texts", "ok"),
        ("sweep", "texts", "ok"),
    ]
    assert main(["check", str(world), "--strict"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "folder,kind,verdict,finding"
    assert f"{KEY}/texts/sweep,texts,ok," in out
    assert "4 looked at, 0 at fault" in err
    # A model's folder, its texts, and single folders are looked at alike.
    for below, n in ((KEY, 4), (f"{KEY}/texts", 2), (f"{KEY}/rng-1", 1), (f"{KEY}/texts/sweep", 1)):
        assert [one.verdict for one in check.check(world / below)] == ["ok"] * n


def test_labels_are_looked_at(tmp_path):
    """A model's labels without their texts, changed labels, files that are none."""
    own = paths.default_results_dir() / "smollm2-135m-instruct"
    model = tmp_path / "smollm2-135m-instruct"
    for name in ("lists-1@exact", "texts-1@harper"):
        (model / "labels").mkdir(parents=True, exist_ok=True)
        shutil.copy(own / "labels" / f"{name}.parquet", model / "labels")
        texts = name.partition("@")[0]
        shutil.copytree(own / "texts" / texts, model / "texts" / texts)
    path = model / "labels" / "lists-1@exact.parquet"

    def findings():
        (found,) = [one for one in check.check(tmp_path) if one.kind == "labels"]
        return " ".join(fault.what for fault in found.faults)

    assert findings() == ""
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert "lists-1@exact.parquet holds no labels" in findings()
    path.write_bytes((model / "labels" / "texts-1@harper.parquet").read_bytes())
    assert "texts that are not stored" in findings()
    path.write_bytes(whole)
    table, record = verifiers.read(path)
    records.write(path, table.assign(valid=~table.valid.astype("boolean")), record)
    assert "labels that the lists do not give" in findings()
    records.write(path, table.iloc[1:], record)
    assert "not those of its hash" in findings()
    path.write_bytes(whole)
    (model / "labels" / "notes.txt").write_text("mine")
    assert "notes.txt is not a file of labels" in findings()


def record_of(folder):
    return json.loads((folder / "provenance.json").read_text())


def edit(folder, **changes):
    text = json.dumps(record_of(folder) | changes)
    (folder / "provenance.json").write_text(text)


def without(folder, name):
    record = record_of(folder)
    del record[name]
    (folder / "provenance.json").write_text(json.dumps(record))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rehash(folder):
    """Makes the record vouch for the files as they are."""
    names = record_of(folder)["files"]
    edit(folder, files={name: sha256_of_file(folder / name) for name in names})


def rewrite(folder, change):
    """Changes the settings and has the record vouch for them, as a forger would."""
    table = pd.read_csv(folder / "settings.csv")
    change(table).to_csv(folder / "settings.csv", index=False, lineterminator="\n")
    rehash(folder)


def link(path):
    """Moves a file or folder out of the results and leaves a link to it."""
    outside = next(above for above in path.parents if above.name == "rows").parent / "elsewhere"
    os.symlink(path.rename(outside), path)


def nested(folder, name, **changes):
    edit(folder, **{name: record_of(folder)[name] | changes})


OUTSIDE = "../../rng-1@end=line/settings.csv"
TABLE = {
    "a byte in a Parquet file": (lambda f: flip(f / "losses.parquet"), "SHA-256 differs"),
    "a file is missing": (lambda f: (f / "frontier.parquet").unlink(), "SHA-256 differs"),
    "the sidecar is missing": (
        lambda f: (f / "provenance.json").unlink(), "missing or unreadable"
    ),
    "the sidecar is a list": (
        lambda f: (f / "provenance.json").write_text("[]"), "missing or unreadable"
    ),
    "another schema": (lambda f: edit(f, schema=1), "schema 1"),
    "a file too many": (lambda f: (f / "notes.txt").touch(), "notes.txt is not in the record"),
    "a link in place of a file": (lambda f: link(f / "settings.csv"), "is a link"),
    "a name that leads out": (lambda f: nested(f, "files", **{OUTSIDE: "0" * 64}), "lead out"),
    "a convention that does not exist": (
        lambda f: nested(f, "policies", end="soon"), "end='soon' does not exist"
    ),
    "another convention than the folder's": (
        lambda f: nested(f, "policies", end="none"), "rename it, or measure again"
    ),
    "a dtype that does not exist": (lambda f: edit(f, dtype="float8"), "'float8' does not exist"),
    "a validity above 1": (
        lambda f: rewrite(f, lambda t: t.assign(validity=1.5)), "validity must lie in [0, 1]"
    ),
    "rows of another model": (
        lambda f: rewrite(f, lambda t: t.assign(model=SMALL)), f"the table is of ['{SMALL}']"
    ),
    "rows of another task": (
        lambda f: rewrite(f, lambda t: t.assign(task="rng-2")), "the table is of ['rng-2']"
    ),
    "fewer answers than the task has": (
        lambda f: rewrite(f, lambda t: t.assign(n_answers=11)), "whole answers"
    ),
    "another prompt": (lambda f: edit(f, prompt="Say 4."), "not those of the task rng-1"),
    "a task that leads elsewhere": (lambda f: edit(f, task="../task.json"), "no name of a task"),
    "another model in the record": (
        lambda f: edit(f, model="owner/other"), "belong into 'owner--other'"
    ),
    "an older convention": (lambda f: edit(f, convention=0), "of convention 0 of rows"),
    "no environment": (lambda f: edit(f, environment={}), "the environment lacks commit"),
    "a list for an environment": (
        lambda f: edit(f, environment=["date", "python"]), "not fields with their values"
    ),
    "a number for a version": (
        lambda f: nested(f, "environment", python=3.11), "python of the environment is 3.11, no str"
    ),
    "a list of packages": (
        lambda f: nested(f, "environment", packages=["torch"]), "packages of the environment is"
    ),
    "a number for a revision": (lambda f: edit(f, revision=5), "revision is 5, neither a commit"),
    "a field is missing": (lambda f: without(f, "policies"), "'policies'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_is_wrong_with_a_table_is_found(world, name):
    spoil, said = TABLE[name]
    spoil(world / KEY / "rng-1")
    shutil.rmtree(world / KEY / "texts")
    found = check.check(world)
    assert any(said in fault.what for one in found for fault in one.faults), found
    # A remedy is named, and what is beside it is not blamed.
    remedies = ("measure", "delete", "restore", "rename", "move", "put", "choose")
    for one in found:
        assert one.verdict == ("error" if one.folder.name == "rng-1" else "ok"), found
        assert all(any(word in f.what for word in remedies) for f in one.faults), one.faults


PLACES = {
    "a foreign model's folder": (
        lambda r: (r / KEY).rename(r / "gemma-3-270m"), f"they belong into '{KEY}'"
    ),
    "a draft": (lambda r: (r / KEY / ".rng-1-0123").mkdir(), "killed run"),
    "a file among the models": (lambda r: (r / "notes.txt").touch(), "not a results folder"),
    "an empty folder": (lambda r: (r / KEY / "rng-2").mkdir(), "missing or unreadable"),
    "a linked folder": (lambda r: link(r / KEY / "rng-1"), "is a link"),
    "a linked model": (lambda r: os.symlink(r / KEY, r / "other--model"), "is a link"),
    "a renamed table": (
        lambda r: (r / KEY / "rng-1").rename(r / KEY / "rng-3"), "called 'rng-3'"
    ),
    "nothing": (lambda r: shutil.rmtree(r / KEY), "nothing is stored here"),
    "no folder": (lambda r: shutil.rmtree(r), "no such folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_what_lies_where_it_should_not_is_found(world, name):
    spoil, said = PLACES[name]
    spoil(world)
    found = errors(world)
    assert any(said in fault.what for fault in found), found


def first_file(folder):
    return folder / next(iter(record_of(folder)["files"]))


def retext(folder, **changes):
    """Changes columns of the first file, by a value or from it; the record vouches for the new."""
    table = records.pq.read_table(path := first_file(folder))
    rows = table.to_pylist()
    for row in rows:
        row |= {n: new(row[n]) if callable(new) else new for n, new in changes.items()}
    records.pq.write_table(records.pa.Table.from_pylist(rows, schema=table.schema), path)
    rehash(folder)


TEXTS = {
    "a byte": ("sweep", lambda f: flip(first_file(f)), "SHA-256 differs"),
    "a file is missing": ("sweep", lambda f: first_file(f).unlink(), "SHA-256 differs"),
    "a file too many": ("sweep", lambda f: (f / "x.parquet").touch(), "not in the record"),
    "no sidecar": ("repeats", lambda f: (f / "provenance.json").unlink(), "unreadable"),
    "unfinished": ("sweep", lambda f: without(f, "files"), "unfinished"),
    "a name that leads out": (
        "sweep", lambda f: nested(f, "files", **{"../../x.parquet": "0" * 64}), "among its files"
    ),
    "a name of another kind": (
        "repeats", lambda f: nested(f, "files", **{"x.csv": "0" * 64}), "SHA-256 differs"
    ),
    "another sweep": ("sweep", lambda f: nested(f, "sweep", max_tokens=4), "the one of its hash"),
    "an impossible sweep": ("sweep", lambda f: nested(f, "sweep", depth=9), "depth=9"),
    "a log-probability above 0": ("sweep", lambda f: retext(f, log_p=1.0), "above 0"),
    "a reply more probable than can be": ("repeats", lambda f: retext(f, log_p=1.0), "above 0"),
    "a reply without text": ("repeats", lambda f: retext(f, text=None), "has no text"),
    "a foreign rank": ("sweep", lambda f: retext(f, path_ranks=[7]), "does not have"),
    "ranks in another order": (
        "sweep", lambda f: retext(f, path_ranks=lambda ranks: [3 - ranks[0]]), "lower rank"
    ),
    "a path of another length": ("sweep", lambda f: retext(f, path_ids=[]), "than its depth"),
    "a tree of another prompt": ("sweep", lambda f: retext(f, prompt_id="two"), "the trees"),
    "an older convention": ("sweep", lambda f: edit(f, convention=0), "of convention 0 of texts"),
    "another model": ("repeats", lambda f: edit(f, model=SMALL), "not those of"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_wrong_with_texts_is_found(world, name):
    kind, spoil, said = TEXTS[name]
    spoil(world / KEY / "texts" / kind)
    found = {one.folder.name: one for one in check.check(world / KEY / "texts")}
    assert any(said in fault.what for fault in found[kind].faults), found
    assert {name for name, one in found.items() if one.verdict == "error"} == {kind}


def of_this_machine(folder):
    edit(folder, model=f"/home/me/{KEY}", revision=None)
    rewrite(folder, lambda table: table.assign(model=f"/home/me/{KEY}"))


def of_ones_own(folder):
    edit(folder, task="mine")
    rewrite(folder.rename(folder.with_name("mine")), lambda table: table.assign(task="mine"))


NOTES = {
    "a model of this machine": (of_this_machine, "file of one machine"),
    "a revision that moves": (lambda f: edit(f, revision="main"), "may move"),
    "a task of one's own": (of_ones_own, "not a task of this project"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_cannot_be_contributed_is_noted(world, name):
    spoil, said = NOTES[name]
    spoil(world / KEY / "rng-1")
    assert not errors(world)
    assert any(said in what for what in findings(world)), findings(world)
    assert main(["check", str(world)]) == 0
    assert main(["check", str(world), "--strict"]) == 1


def test_a_fault_is_printed_and_sets_the_status(world, capsys):
    flip(world / KEY / "rng-1" / "losses.parquet")
    assert main(["check", str(world)]) == 1
    assert f"{KEY}/rng-1,table,error," in capsys.readouterr().out


def test_an_embedded_model_is_its_file(tmp_path):
    folder = shutil.copytree(
        paths.default_results_dir() / SMALL / "us-states", tmp_path / SMALL / "us-states"
    )
    assert not findings(tmp_path)
    edit(folder, weights_sha256="0" * 64)
    assert "the weights are not those of smollm2" in findings(tmp_path)[0]


@given(
    st.data(),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3),
)
@settings(max_examples=40)
def test_no_value_in_a_sidecar_breaks_the_check(template, tmp_path_factory, data, value):
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as root:
        folder = shutil.copytree(template / "rows" / KEY / "rng-1", f"{root}/{KEY}/rng-1")
        field = data.draw(st.sampled_from(sorted(record_of(Path(folder)))))
        edit(Path(folder), **{field: value})
        list(check.check(folder))


# Recomputing


def more_valid(t):
    """Five rows of a table, nearly twice as valid."""
    more = np.where(np.arange(len(t.settings)) < 5, 1.9, 1.0)
    return Tables(t.settings.assign(validity=t.settings.validity * more))


def repaired(t):
    more = np.where(t.losses.repair == "none", 1.0, 1.1)
    return replace(t, losses=t.losses.assign(diversity_loss=t.losses.diversity_loss * more))


def other_answers(t):
    """The same validity and diversity, of other answers."""
    return replace(t, answers=t.answers.assign(log_p=t.answers.log_p.to_numpy()[::-1]))


def frontier_moved(t):
    points = t.frontier.astype(float)
    return replace(t, frontier=points.assign(sequence_precision=points.sequence_precision / 2))


FORGED = {"validity": more_valid, "repair": repaired, "answers": other_answers}
FORGED |= {"frontier": frontier_moved}


@pytest.mark.parametrize("what", FORGED)
def test_recomputing_finds_what_is_consistent_and_made_up(world, what, capsys):
    folder = world / KEY / "rng-1"
    whole = storage.read(folder)
    storage.write(folder, FORGED[what](whole), whole.record)
    assert not errors(world)
    (one,) = check.recompute_some(check.check(folder), 1)
    assert "computed again" in one.faults[0].what
    assert main(["check", str(folder), "--recompute", "1"]) == 1
    shutil.rmtree(world / KEY / "texts")
    capsys.readouterr()
    assert main(["reproduce", "--results-dir", str(world)]) == 1
    assert "1 of 2 agree within their tolerance" in capsys.readouterr().out


def settings_of(**columns):
    return lambda t: {"settings": t.settings.assign(**columns)}


IMPOSSIBLE = {
    "validity of other losses": (
        lambda t: {"settings": more_valid(t).settings}, "do not add up to|lowers validity"
    ),
    "diversity of other answers": (
        lambda t: {"settings": t.settings.assign(diversity=t.settings.diversity**0.9), "losses":
            t.losses.iloc[:0]}, "do not add up to the diversity"
    ),
    "a part of an answer": (settings_of(sequence_recall=0.55), "share of whole answers"),
    "more diverse than reachable": (
        settings_of(sequence_recall=lambda t: t.sequence_recall.clip(upper=0.1)),
        "above the share of",
    ),
    "valid and not reachable": (
        settings_of(sequence_recall=0.0, sequence_precision=0.0), "must be reachable"
    ),
    "reachable and never drawn": (settings_of(sequence_precision=0.0), "must be reachable"),
    "text for a number": (settings_of(n_nodes="11"), "n_nodes .* is no int"),
    "a number for a name": (settings_of(rule=5), "rule .* is no str"),
    "one column more": (settings_of(extra=1), "extra"),
    "an answer without a number": (
        lambda t: {"answers": t.answers.assign(log_p=np.nan)}, "log_p is above 0 or none"
    ),
    "a step is missing": (lambda t: {"losses": t.losses.iloc[1:]}, "are missing among the losses"),
    "half a loss": (
        lambda t: {"losses": t.losses.assign(validity_loss=np.nan)}, "negative or missing"
    ),
    "a loss twice": (
        lambda t: {"losses": pd.concat([t.losses, t.losses.iloc[:1]])}, "row of losses occurs twice"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_no_model_gives_is_refused(world, what):
    change, said = IMPOSSIBLE[what]
    tables = storage.read(world / KEY / "rng-1")
    with pytest.raises(ResultsError, match=said):
        replace(tables, **change(tables)).check("here", tables.record)


def test_a_product_of_many_steps_may_underflow(world):
    tables = storage.read(world / KEY / "rng-1")
    none = {"validity": 0.0, "diversity": np.nan, "sequence_precision": 0.0}
    table = tables.settings.iloc[[0]].assign(**none, sequence_recall=1.0)
    assert not list(storage.setting_faults(table.assign(n_nodes=100), tables.record))
    assert list(storage.setting_faults(table, tables.record))


def test_what_users_say_of_their_models_is_no_stray_file(world):
    (world / records.OWN_MODELS).write_text(f"{KEY}:\n  family: Mine\n")
    assert not findings(world)
    (world / records.OWN_MODELS).write_text(f"{KEY}:\n  colour: red\n")
    (said,) = findings(world)
    assert "'colour'" in said and "family" in said


def test_differences_are_of_logarithms_and_of_rows():
    row = {"rule": "none", "parameter": np.nan, "temperature": 1.0}
    one = pd.DataFrame([row | {"validity": 1e-9, "diversity": 0.5}])
    other = one.assign(validity=2e-9)

    def apart(one, other, **more):
        found = storage.differences(one.assign(**more), other.assign(**more), storage.KEY)
        return [found["validity"], found["diversity"]]

    assert apart(one, other) == pytest.approx([np.log(2), 0])
    # Logits are divided by a temperature below 1, and so is their rounding multiplied.
    assert apart(one, other, temperature=0.1)[0] == pytest.approx(np.log(2) / 10)
    assert apart(one, other, temperature=2.0)[0] == pytest.approx(np.log(2))
    assert apart(one, pd.concat([one, other.assign(rule="eta")])) == [np.inf, np.inf]
    assert apart(one, one.assign(diversity=np.nan)) == [0, np.inf]
    # One token more among a thousand that a cutoff keeps.
    counted = (one.assign(sequence_precision=1 / n) for n in (1000, 1001))
    assert storage.differences(*counted, storage.KEY)["sequence_precision"] < 1e-3 / 2
    # What underflows on one machine may be a number on the next.
    none = one.assign(validity=0.0, diversity=np.nan)
    assert apart(none, one.assign(validity=1e-310)) == [0, 0]
    assert apart(none, one)[0] > 600


def test_a_table_that_would_fill_the_memory_is_named(world):
    folder = world / KEY / "rng-1"
    path = folder / "frontier.parquet"
    column = records.pa.array(np.zeros(3_000_000))
    names = storage.FRONTIER_COLUMNS
    records.pq.write_table(records.pa.table(dict.fromkeys(names, column)), path)
    rehash(folder)
    assert path.stat().st_size < 100_000
    (fault,) = errors(world)
    assert "3,000,000 rows" in fault.what


@pytest.mark.parametrize("name", ["provenance.json", "settings.csv"])
def test_a_pipe_or_a_device_is_named_and_not_waited_for(world, name):
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        path = world / KEY / "rng-1" / name
        path.unlink(missing_ok=True)
        make(path)
        assert errors(world)


def test_rows_and_the_study_of_their_task_hold_the_same_numbers(tmp_path):
    own = paths.default_results_dir() / SMALL
    for name in ("rng-2", "framework"):
        shutil.copytree(own / name, tmp_path / SMALL / name)
    assert not findings(tmp_path)
    path = tmp_path / SMALL / "framework" / "rng-2.settings.parquet"
    table, record = formal_framework.read(path)

    def spoilt(**columns):
        records.write(path, table.assign(**columns), record)
        return " ".join(findings(tmp_path))

    assert "validity is 0.64 nats from that in rng-2" in spoilt(validity=table.validity * 1.9)
    assert "factors that do not make its sequence_pre" in spoilt(alpha_1=table.alpha_1 * 0.9)
    assert "columns are" in spoilt(more=1.0)
    assert "diversity must lie in" in spoilt(diversity=1.1)
    records.write(path, table.iloc[1:], record)
    assert "not the settings of a study" in " ".join(findings(tmp_path))


def test_what_was_kept_beside_the_rows_is_computed_again(tiny, tmp_path, monkeypatch):
    """Sorted logits and single steps of a tiny model, as they are and spoilt."""
    model = tiny("llama", chat=True)
    monkeypatch.setattr(check, "load_model", lambda *args, **options: model)
    logit_shape.keep(logit_shape.logit_curves(model), model, tmp_path)
    explorer.keep(model, ["rng-2"], "eos", tmp_path)
    request = request_for(model, "rng-2", results_dir=tmp_path)
    draws.kept(request, [(cu.NoCutoff(), 1.0), (cu.OracleSize(), 2.0)])
    assert all(row.same.item() for row in check.reproduce(tmp_path))
    (path,) = check.stored(tmp_path, kind="logits")
    curves, record = records.read_logits(path)
    records.write(path, curves - 1, record)
    assert [row.same.item() for row in check.reproduce(tmp_path)] == [False, True, True]
    records.write(path, curves, record)
    (steps,) = check.stored(tmp_path, kind="steps")
    content = json.loads(steps.read_text())
    content["steps"] = content["steps"][1:]
    steps.write_text(json.dumps(content))
    assert [row.same.item() for row in check.reproduce(tmp_path)] == [True, False, True]
    path = draws.path_of(request.folder)
    table, record = draws.read(path)
    records.write(path, table.assign(valid=True, ended=True), record)
    assert [row.same.item() for row in check.reproduce(tmp_path)] == [True, False, False]


def test_a_cutoff_that_ends_a_hair_earlier_is_the_same(world, monkeypatch):
    """Rows as of a machine whose last digits differ, and as of none."""
    model = cu.load_model(HUB_ID, device="cpu")

    def at(*temperatures):
        return cu.evaluate(model, "rng-1", ["top_p=0.95"], temperatures)[storage.NUMBERS]

    low, high = 1.0, 1.02
    while high - low > 1e-7:  # towards a temperature at which one token more is kept
        steps = np.linspace(low, high, 101)
        place = np.log(at(*steps).validity).diff().abs().argmax()
        low, high = steps[place - 1], steps[place]
    before, after = np.log(at(low, high).validity)
    monkeypatch.setitem(storage.TOLERANCE, "float32", 1e-4)
    assert abs(after - before) > 2e-4
    folder = world / KEY / "rng-1"
    shutil.rmtree(folder)
    cu.evaluate(model, "rng-1", ["none", "top_p=0.95"], [high], results_dir=world)
    whole = storage.read(folder)
    (row,) = np.flatnonzero(whole.settings.rule == "top_p")
    for factor, same in ((1, True), (1.01, False)):
        moved = whole.settings.copy()
        moved.loc[row, storage.NUMBERS] = (at(low) * [factor, 1, 1, 1]).to_numpy()[0]
        storage.write(folder, Tables(moved), whole.record)
        assert check.recompute(folder).same.item() == same


def test_a_corner_on_a_straight_line_is_no_difference(world):
    folder = world / KEY / "rng-1"
    whole = storage.read(folder)
    points = whole.frontier.astype(float)
    middle = (points + points.shift(-1)).dropna() / 2
    more = pd.concat([points, middle]).sort_values("sequence_recall", ignore_index=True)
    assert len(more) > len(points)
    storage.write(folder, replace(whole, frontier=more), whole.record)
    assert check.recompute(folder).same.item()


def test_in_half_precision_what_a_cutoff_keeps_is_not_compared(world):
    model = cu.load_model(HUB_ID, device="cpu", dtype="bfloat16")
    cu.evaluate(model, "rng-1", ["none", "top_k=3"], results_dir=world)
    folder = world / KEY / "rng-1@dtype=bfloat16"
    whole = storage.read(folder)
    for rule, same in (("top_k", True), ("none", False)):
        moved = whole.settings.copy()
        moved.loc[moved.rule == rule, "validity"] /= 2
        storage.write(folder, Tables(moved), whole.record)
        assert check.recompute(folder).same.item() == same
    storage.write(folder, Tables(whole.settings[whole.settings.rule == "top_k"]), whole.record)
    assert check.recompute(folder).same.item(), "nothing is left to compare"


def test_a_validity_however_small_has_to_fit_its_losses(tiny, tmp_path):
    arguments = {"temperatures": [0.1, 1.0], "details": True, "results_dir": tmp_path}
    cu.evaluate(tiny("llama"), "rng-1", **arguments)
    (folder,) = tmp_path.glob("*/rng-1")
    whole = storage.read(folder)
    assert not errors(tmp_path) and 0 < whole.settings.validity.min() < 1e-20
    least = whole.settings.validity == whole.settings.validity.min()
    for rows in (
        whole.settings.assign(validity=whole.settings.validity * (1 + 0.5 * least)),
        whole.settings[~least],
    ):
        with pytest.raises(ResultsError, match="losses"):
            replace(whole, settings=rows).check("here")


def test_recomputing_finds_answers_and_prompts_of_another_tokenizer(world):
    edit(world / KEY / "rng-1", prompt_sha256="0" * 64, sequences_sha256="1" * 64)
    (one,) = check.recompute_some(check.check(world / KEY / "rng-1"), 1)
    assert "prompt_sha256: computed again, inf apart" in one.faults[0].what


@pytest.mark.parametrize("change", [{"log_p": -1e-3}, {"text": "Another text."}])
def test_rescoring_finds_texts_that_the_model_does_not_write_so(world, change):
    retext(world / KEY / "texts" / "sweep", **change)
    assert not errors(world)
    (one,) = check.recompute_some(check.check(world / KEY / "texts" / "sweep"), 2)
    assert "log_p: computed again" in one.faults[0].what


def test_the_same_seed_draws_the_same_rows(world, monkeypatch):
    found = check.check(world)
    monkeypatch.setattr(check, "recompute", lambda *_, **__: pd.DataFrame([{"same": True}]))
    seeds = ("a commit", "a commit", *range(6))
    drawn = [[c.folder for c in check.recompute_some(found, 1, seed)] for seed in seeds]
    assert drawn[0] == drawn[1]
    assert len({tuple(folders) for folders in drawn}) == 2


def test_a_model_that_is_not_here_is_not_fetched(world, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(world / "empty"))
    found = check.recompute_some(check.check(world), 1)
    assert [one.verdict for one in found] == ["note"] * 2
    assert all("owner/tiny is not here: fetch it" in one.faults[0].what for one in found)

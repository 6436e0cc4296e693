"""Readers under random and mutated input: what was written, or the named error, never another.

More examples: `CALIB_UTILS_FUZZ=5000 python -m pytest tests/book/test_fuzz.py`.
"""

import json
import os
import shutil

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils import paths
from calib_utils.core import tasks
from calib_utils.core.processors import parse_rule
from calib_utils.core.rules import FAMILIES, ORDERS
from calib_utils.errors import (
    InvalidRuleError,
    InvalidTaskError,
    ModelFormatError,
    ResultsError,
    UnknownNameError,
)
from calib_utils.files import sha256_of_file
from calib_utils.openended.judges import UnreadableReplyError, read_reply
from calib_utils.openended.verifiers import CRITERIA, HIGHEST, LOWEST
from calib_utils.results import conventions, records, storage

EXAMPLES = int(os.environ.get("CALIB_UTILS_FUZZ", 60))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
few = settings(fuzz, max_examples=max(EXAMPLES // 3, 40))
ANY_TEXT = st.text(st.characters(codec=None), max_size=30)  # half surrogate pairs included
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutations(draw, most=4):
    """A few changes of bytes, each at a place given as a share of the whole."""
    kinds = st.sampled_from(["flip", "set", "cut", "drop", "insert", "repeat"])
    place = st.floats(0, 1, exclude_max=True)
    change = st.tuples(kinds, place, st.integers(0, 255), st.integers(1, 40))
    return draw(st.lists(change, min_size=1, max_size=most))


def mutated(content, changes):
    content = bytearray(content)
    for kind, place, byte, length in changes:
        at = int(place * len(content))
        if kind == "flip" and content:
            content[at] ^= 1 << byte % 8
        elif kind == "set" and content:
            content[at] = byte
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "insert":
            content[at:at] = bytes([byte]) * length
        else:
            content[at:at] = content[at : at + length]
    return bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def copied(folder, place):
    """A copy that a case may spoil, in the place of the last one's."""
    copy = place / folder.name
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(folder, copy)


# Task files

GOOD_TASK = {"name": "t", "prompt": "Name one. Answer:", "answers": ["ab", "1,2", "zoo"]}


def read_task(place, content):
    path = place / "task.json"
    path.write_bytes(content)
    try:
        return tasks.get_task(path)
    except InvalidTaskError as error:
        assert str(error)
        return None


@fuzz
@given(
    fields=st.fixed_dictionaries(
        {}, optional={name: JSON | st.just(value) for name, value in GOOD_TASK.items()}
    ),
    more=JSON,
)
def test_any_json_is_a_task_or_a_named_error(place, fields, more):
    for content in (fields, more):
        task = read_task(place, json.dumps(content).encode())
        if task is not None:
            own = (task.name, task.prompt, list(task.answers))
            assert own == tuple(content[name] for name in GOOD_TASK)


@fuzz
@given(changes=mutations())
def test_a_damaged_task_file_is_a_task_or_a_named_error(place, changes):
    task = read_task(place, mutated(json.dumps(GOOD_TASK).encode(), changes))
    if task is not None:
        assert task.answers and task.prompt.strip()


@fuzz
@given(name=ANY_TEXT | st.from_regex(r"(rng-[0-9]+|us-states)(-[a-z]+-[0-9]+)*", fullmatch=True))
def test_any_name_is_a_task_or_a_named_error(name):
    try:
        found = tasks.get_task(name)
    except (InvalidTaskError, UnknownNameError):
        return
    assert found.name == name and found.answers


# Rules

NUMBERS = st.floats() | st.integers() | ANY_TEXT | st.sampled_from(["", "1e400", "-0", "0x1", "½"])
RULE = st.tuples(st.sampled_from(sorted(FAMILIES)) | ANY_TEXT, NUMBERS).map(
    lambda pair: f"{pair[0]}={pair[1]}"
)
CHAINS = st.tuples(
    st.lists(RULE | st.sampled_from(sorted(FAMILIES)), min_size=1, max_size=4),
    st.sampled_from(["", *(f"@{order}" for order in ORDERS)]) | ANY_TEXT,
).map(lambda parts: "+".join(parts[0]) + parts[1])


@fuzz
@given(text=ANY_TEXT | RULE | CHAINS)
def test_any_text_is_a_rule_that_reads_back_or_a_named_error(text):
    try:
        rule = parse_rule(text)
    except (InvalidRuleError, UnknownNameError) as error:
        assert str(error)
        return
    assert parse_rule(rule.key) == rule and parse_rule(rule.key).key == rule.key


# Stored rows


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """A stored measurement with every table, and what it holds."""
    model, root = tiny("llama", chat=True), tmp_path_factory.mktemp("rows")
    task = cu.Task("few", "Name one. Answer:", ["ab", "1,2", "zoo"])
    cu.evaluate(model, task, ["none", "top_k=5"], [1.0], details=True, results_dir=root)
    cu.answer_probabilities(model, task, results_dir=root)
    folder = storage.folder_of(root, model.key, task.name)
    return folder, storage.read(folder)


@few
@given(data=st.data(), changes=mutations())
def test_damaged_rows_are_the_same_rows_or_a_named_error(measured, place, data, changes):
    folder, whole = measured
    copy = copied(folder, place)
    names = sorted(path.name for path in folder.iterdir())
    file = copy / data.draw(st.sampled_from(names))
    file.write_bytes(mutated(file.read_bytes(), changes))
    try:
        found = storage.read(copy)
    except ResultsError as error:
        assert str(copy) in str(error)
        return
    for name in storage.FILES:
        pd.testing.assert_frame_equal(getattr(found, name), getattr(whole, name))


@few
@given(data=st.data(), value=JSON)
def test_a_sidecar_with_any_value_is_read_or_a_named_error(measured, place, data, value):
    folder, whole = measured
    copy = copied(folder, place)
    record = dict(whole.record)
    record[data.draw(st.sampled_from(sorted(record)))] = value
    (copy / storage.RECORD).write_text(json.dumps(record))
    try:
        found = storage.read(copy)
    except ResultsError as error:
        assert str(copy) in str(error)
        return
    pd.testing.assert_frame_equal(found.settings, whole.settings)


# Completions


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A stored sweep of one tree, as it is written."""
    folder = tmp_path_factory.mktemp("texts") / "sweep"
    record = dict.fromkeys([*conventions.IDENTITY["texts"], "sweep"], "x")
    row = {"prompt_id": "one", "category": "c", "seed": 0, "position": 0, "prefix": "", "depth": 1}
    row |= {"path_ranks": [0], "path_ids": [5], "path_log_p": [-0.5], "sample": 0, "text": "ab"}
    row |= {"token_ids": [5, 6], "log_p": -1.0, "ended": True}
    table = pd.DataFrame([row, row | {"text": "zoo"}])
    return folder, records.kept(folder, record, ["one@0"], lambda _: table)


@few
@given(data=st.data(), changes=mutations(), forged=st.booleans())
def test_damaged_completions_are_the_same_or_a_named_error(swept, place, data, changes, forged):
    folder, whole = swept
    copy = copied(folder, place)
    file = copy / data.draw(st.sampled_from(["one@0.parquet", "provenance.json"]))
    file.write_bytes(mutated(file.read_bytes(), changes))
    forged = forged and file.suffix == ".parquet"
    if forged:  # with the hash of what is there now, so that the file itself is read
        record = records.read_record(folder) | {"files": {file.name: sha256_of_file(file)}}
        (copy / "provenance.json").write_text(json.dumps(record))
    try:
        found = records.read_completions(copy)
    except ResultsError as error:
        assert str(copy) in str(error)
        return
    assert list(found) == records.COLUMNS
    if not forged:
        pd.testing.assert_frame_equal(found, whole)


def test_spoilt_metadata_of_completions_is_a_named_error(swept, place):
    """What pandas notes in a Parquet file is read only when rows become a table."""
    copy = copied(swept[0], place)
    file, record = copy / "one@0.parquet", records.read_record(copy)
    file.write_bytes(file.read_bytes().replace(b"numpy_type", b"numpy_typo"))
    record["files"] = {file.name: sha256_of_file(file)}
    (copy / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(ResultsError, match=r"unreadable.*numpy_type"):
        records.read_completions(copy)


# GGUF


@few
@given(changes=mutations(), large=st.integers(0, 2**64 - 1), where=st.none() | st.integers(0, 900))
def test_a_damaged_gguf_is_loaded_or_a_named_error(tiny_gguf, place, changes, large, where):
    content = bytearray(tiny_gguf.read_bytes())
    if where is not None:
        content[where : where + 8] = large.to_bytes(8, "little")
    path = place / "damaged.gguf"
    path.write_bytes(mutated(content, changes))
    try:
        cu.load_model(path, device="cpu")
    except ModelFormatError as error:
        assert str(path) in str(error)
    finally:
        shutil.rmtree(paths.cache_dir() / "converted", ignore_errors=True)


# A judge's answers

ANSWER = {"reason": "fine", **dict.fromkeys(CRITERIA, 9)}


@fuzz
@given(
    fields=st.fixed_dictionaries(
        {}, optional={name: JSON | st.just(value) for name, value in ANSWER.items()}
    ),
    before=ANY_TEXT,
    after=ANY_TEXT,
    changes=st.none() | mutations(),
)
def test_any_answer_of_a_judge_is_a_verdict_or_the_named_error(fields, before, after, changes):
    reply = before + json.dumps(fields) + after
    if changes is not None:
        reply = mutated(reply.encode("utf-8", "replace"), changes).decode("utf-8", "replace")
    try:
        verdict = read_reply(reply, judged=before)
    except UnreadableReplyError as error:
        assert str(error)
        return
    assert all(LOWEST <= getattr(verdict, name) <= HIGHEST for name in CRITERIA)
    verdict.reason.encode("utf-8")

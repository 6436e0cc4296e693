"""Sweeps: every leaf by brute force, nothing lost or doubled by a kill, labels to candidates."""

import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.book import check
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import InvalidRequestError, ResultsError, UnknownNameError
from calib_utils.models import generation
from calib_utils.models.generation import Continuations
from calib_utils.openended import sweeps
from calib_utils.openended.sweeps import Sweep, sweep
from calib_utils.results import conventions, records

PROMPTS = (OpenPrompt("one", "story", "Tell a story."), OpenPrompt("two", "item", "Name a b."))
RANKS = (0, 3, 7)


@torch.no_grad()
def plain_logits(network, ids):
    return network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def brute_force(model, start, written, ranks, depth, max_tokens):
    """Leaves below a position, one plain forward pass per token: {ranks: (ids, log_p, tokens)}."""

    def log_softmax(ids):
        return torch.log_softmax(plain_logits(model.network, [*start.ids, *written, *ids]), dim=0)

    def finished(ids):
        added = []
        while len(added) < max_tokens and (ids + added)[-1] not in start.end_ids:
            log_p = log_softmax(ids + added)
            added.append(int(log_p.argmax()))
            yield added[-1], float(log_p[added[-1]])

    found = {}
    for path in itertools.product(ranks, repeat=depth):
        ids, log_p, taken = [], [], ()
        for rank in path:
            if ids and ids[-1] in start.end_ids:
                break
            row = log_softmax(ids)
            token = int(np.argsort(-row.numpy(), kind="stable")[rank])
            ids, log_p, taken = [*ids, token], [*log_p, float(row[token])], (*taken, rank)
        found[taken] = ids, log_p, list(finished(ids))
    return found


def assert_is_brute_force(model, plan, table):
    assert list(table.columns) == records.COLUMNS
    trees = table.groupby(["prompt_id", "seed"], sort=False)
    assert list(trees.groups) == [(prompt.id, seed) for prompt, seed in plan.trees]
    for (prompt, seed), (_, tree) in zip(plan.trees, trees, strict=True):
        start = generation.start_of(model, prompt)
        assert (tree.position.nunique(), tree.prefix.nunique()) == (1, 1)
        prefix = tree.prefix.iloc[0]
        written = openings(model, plan, prompt, seed, start)
        assert len(written) == tree.position.iloc[0]
        assert model.tokenizer.decode(written) == prefix
        expected = brute_force(model, start, written, plan.ranks, plan.depth, plan.max_tokens)
        assert [tuple(path) for path in tree.path_ranks] == list(expected)
        for row, (ranks, (ids, log_p, added)) in zip(
            tree.itertuples(), expected.items(), strict=True
        ):
            assert tuple(row.path_ranks) == ranks
            assert list(row.path_ids) == ids
            np.testing.assert_allclose(row.path_log_p, log_p, atol=2e-4)
            tokens = [*ids, *(token for token, _ in added)]
            assert list(row.token_ids) == tokens
            assert row.log_p == pytest.approx(sum(value for _, value in added), abs=1e-3)
            assert row.ended == (tokens[-1] in start.end_ids)
            assert row.depth == len(ranks)
            shown = [*written, *(tokens[:-1] if row.ended else tokens)]
            assert row.text == model.tokenizer.decode(shown)
            assert (row.sample, row.seed, row.category) == (0, seed, prompt.category)


def openings(model, plan, prompt, seed, start):
    return list(sweeps._opening(model, plan, start, sweeps._key(prompt, seed), None, Continuations))


DEEP = Sweep(PROMPTS[:1], depth=3, ranks=range(0, 9, 4), max_tokens=2)
WIDE = Sweep(PROMPTS, (0, 3), position=(1, 6), depth=2, ranks=RANKS, max_tokens=4)


@pytest.mark.parametrize(
    ("architecture", "plan", "n"),
    [("llama", DEEP, 27), ("llama", WIDE, 36), ("gemma3", WIDE, 34), ("qwen3.5", WIDE, 36)],
)
def test_every_leaf_by_brute_force(tiny, architecture, plan, n):
    model = tiny(architecture, chat=True)
    table = sweep(model, plan, batch_size=5)
    assert (len(table), table.position.nunique() > 1) == (n, plan is WIDE)
    assert_is_brute_force(model, plan, table)


def test_a_candidate_that_ends_the_text_is_a_leaf(tiny):
    model = tiny(chat=True)
    start = generation.start_of(model, PROMPTS[0])
    order = np.argsort(-plain_logits(model.network, start.ids).numpy(), kind="stable")
    end = int(np.flatnonzero(np.isin(order, start.end_ids))[0])
    ranks = sorted({0, 1, end})
    plan = Sweep(PROMPTS[:1], depth=2, ranks=ranks, max_tokens=3)
    table = sweep(model, plan)
    assert_is_brute_force(model, plan, table)
    closed = table[table.depth == 1]
    assert [list(path) for path in closed.path_ranks] == [[end]]
    assert (closed.text.item(), closed.ended.item(), closed.log_p.item()) == ("", True, 0.0)
    assert len(table) == 1 + (len(ranks) - 1) * len(ranks)


def test_the_opening_stops_before_the_end(tiny):
    model = tiny(chat=True)
    start = generation.start_of(model, PROMPTS[0])
    plan = Sweep(PROMPTS[:1], position=8, ranks=(0,), max_tokens=2)
    free = openings(model, plan, PROMPTS[0], 0, generation.Start(start.ids, ()))
    assert len(free) == 8
    early = generation.Start(start.ids, (free[5],))
    assert openings(model, plan, PROMPTS[0], 0, early) == free[: free.index(free[5])]


def test_special_tokens_are_shown_to_the_judge(tiny):
    model = tiny(chat=True)
    marker = model.tokenizer.convert_tokens_to_ids("<|start|>")
    start = generation.start_of(model, PROMPTS[0])
    order = np.argsort(-plain_logits(model.network, start.ids).numpy(), kind="stable")
    rank = int(np.flatnonzero(order == marker)[0])
    table = sweep(model, Sweep(PROMPTS[:1], ranks=(rank,), max_tokens=2))
    assert table.text.item().startswith("<|start|>")


def test_samples_share_their_leaf_and_differ(tiny):
    model = tiny(chat=True)
    plan = Sweep(PROMPTS[:1], (0, 1), ranks=RANKS, n_samples=4, max_tokens=5, temperature=1.5)
    table = sweep(model, plan)
    assert len(table) == 2 * plan.n_completions == 24
    for _, leaf in table.groupby(["seed", "depth", table.path_ranks.map(tuple)]):
        assert list(leaf["sample"]) == [0, 1, 2, 3]
        assert leaf.path_log_p.map(tuple).nunique() == 1
        assert leaf.text.nunique() > 1
    first, second = (part for _, part in table.groupby("seed"))
    assert (first.path_ids.map(tuple).values == second.path_ids.map(tuple).values).all()
    assert (first.text.values != second.text.values).mean() > 0.5


def test_same_seed_same_table_whatever_else_is_swept(tiny):
    model = tiny(chat=True)
    options = {"position": (1, 5), "ranks": RANKS, "max_tokens": 4}
    both = sweep(model, Sweep(PROMPTS, (1, 2), **options))
    one = sweep(model, Sweep(PROMPTS[1:], (2,), **options))
    part = both[(both.prompt_id == "two") & (both.seed == 2)].reset_index(drop=True)
    assert part.text.tolist() == one.text.tolist()
    assert part.log_p.to_numpy() == pytest.approx(one.log_p.to_numpy(), abs=1e-4)
    # One seed is not one number everywhere.
    assert both[both.seed == 1].groupby("prompt_id").prefix.first().nunique() == 2


# What the model's folder says


def test_the_folder_says_what_the_loaded_model_would(tiny, architecture):
    model = tiny(architecture)
    own = model.network.generation_config.eos_token_id
    assert list(generation.own_end_ids(model)) == ([] if own is None else [own])
    size = len(model.network.get_output_embeddings().weight)
    assert generation.vocabulary_size(model) == size


def test_an_open_prompt_may_be_called_what_no_task_may(tiny):
    named = (OpenPrompt(name, "story", "Tell a story.") for name in ("labels", "one"))
    starts = [generation.start_of(tiny(chat=True), prompt) for prompt in named]
    assert starts[0] == starts[1]


@pytest.mark.parametrize("content", ['{"eos_token_id": [9, 4]}', '{"eos_token_id": 9}'])
def test_end_tokens_are_those_of_the_generation_settings(tiny_folder, tmp_path, content):
    folder = shutil.copytree(tiny_folder(), tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    model = cu.load_model(folder, device="cpu")
    own = np.atleast_1d(model.network.generation_config.eos_token_id)
    assert generation.own_end_ids(model) == tuple(sorted(own.tolist()))
    assert 9 in own
    assert set(own) <= set(generation.start_of(model, PROMPTS[0]).end_ids)


# Storage

PLAN = Sweep(PROMPTS, (0, 1, 2), position=(1, 3), ranks=RANKS, max_tokens=3)
CHILD = """
import os, pathlib, pickle, sys, time
import calib_utils as cu
from calib_utils.openended import sweeps

folder, results, point, plan = sys.argv[1:]


def wait():
    print("ready", flush=True)
    time.sleep(600)


started, grow, replace = [], sweeps.grow, os.replace


def grow_and_wait(*args):
    started.append(args)
    for number, row in enumerate(grow(*args)):
        yield row
        if point == "completing" and (len(started), number) == (3, 1):
            wait()


def replace_and_wait(draft, target):
    if point == "writing" and len(started) == 3:
        wait()
    replace(draft, target)


sweeps.grow, os.replace = grow_and_wait, replace_and_wait
plan = pickle.loads(pathlib.Path(plan).read_bytes())
sweeps.sweep(cu.load_model(folder, device="cpu"), plan, results)
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


@pytest.mark.full
@pytest.mark.parametrize("point", ["completing", "writing"])
def test_a_kill_in_mid_sweep_loses_one_tree_at_most(
    tiny, tiny_folder, tmp_path, monkeypatch, point
):
    model = tiny(chat=True)
    whole = sweep(model, PLAN, tmp_path / "whole")
    folder = tmp_path / "killed" / model.key / "texts" / PLAN.name
    (tmp_path / "plan").write_bytes(pickle.dumps(PLAN))
    arguments = [tiny_folder(chat=True), tmp_path / "killed", point, tmp_path / "plan"]
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert len(contents(folder)) == 2
    assert bool(list(folder.glob(".*.draft"))) == (point == "writing")
    with pytest.raises(ResultsError, match="unfinished"):
        records.read_completions(folder)
    for draft in folder.glob(".*.draft"):
        os.utime(draft, (0, 0))
    grown, grow = [], sweeps.grow

    def counting(model, plan, prompt, seed, *args):
        grown.append((prompt.id, seed))
        return grow(model, plan, prompt, seed, *args)

    monkeypatch.setattr(sweeps, "grow", counting)
    resumed = sweep(model, PLAN, tmp_path / "killed")
    assert grown == [(prompt.id, seed) for prompt, seed in PLAN.trees[2:]]
    pd.testing.assert_frame_equal(resumed, whole)
    assert contents(folder) == contents(tmp_path / "whole" / model.key / "texts" / PLAN.name)
    assert not list(folder.glob(".*"))
    leaves = resumed.assign(path=resumed.path_ranks.map(tuple))
    assert not leaves.duplicated(["prompt_id", "seed", "path"]).any()


@pytest.fixture(scope="module")
def swept(tiny, tmp_path_factory):
    """A results folder with a sweep."""
    results_dir = tmp_path_factory.mktemp("swept")
    sweep(tiny(chat=True), PLAN, results_dir)
    return results_dir


@pytest.fixture
def stored(swept, tiny_folder, tmp_path):
    """A copy of it, the folder of the sweep, and a model that has not loaded its weights."""
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    fresh = cu.load_model(tiny_folder(chat=True), device="cpu")
    return fresh, tmp_path, tmp_path / fresh.key / "texts" / PLAN.name


def test_a_stored_sweep_is_the_same_and_needs_no_weights(stored):
    model, results_dir, folder = stored
    again = sweep(model, PLAN, results_dir)
    assert "network" not in vars(model)
    pd.testing.assert_frame_equal(again, records.read_completions(folder))
    computed = sweep(model, PLAN)
    assert list(again.columns) == list(computed.columns)
    for name in again.columns:
        assert [np.atleast_1d(x).tolist() for x in again[name]] == [
            np.atleast_1d(x).tolist() for x in computed[name]
        ], name


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"ranks": (0, 3, 8)}, "sweep_sha256"),
        ({"seeds": (0, 1)}, "sweep_sha256"),
        ({"prompts": (PROMPTS[0], OpenPrompt("two", "item", "Name a c."))}, "prompts_sha256"),
    ],
)
def test_another_sweep_under_the_same_name_is_refused(stored, changes, differs):
    model, results_dir, folder = stored
    before = contents(folder)
    other = replace(PLAN, **changes)
    with pytest.raises(ResultsError, match=differs):
        sweep(model, other, results_dir)
    assert contents(folder) == before
    assert len(sweep(model, replace(other, name="other"), results_dir))


@pytest.mark.parametrize("name", ["weights_sha256", "dtype", "prompts_sha256"])
def test_completions_of_other_weights_or_prompts_are_refused(stored, name):
    model, results_dir, folder = stored
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**record, name: "other"}))
    with pytest.raises(ResultsError, match=f"differs in {name}"):
        sweep(model, PLAN, results_dir)
    assert len(records.read_completions(folder)) == 18  # still there for those who only read


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda f: (f / "one@1.parquet").write_bytes(b"PAR1"), "SHA-256 differs"),
        (lambda f: (f / "provenance.json").write_text("{"), "unreadable"),
        (lambda f: (f / "provenance.json").write_text("[]"), "unreadable"),
        (lambda f: (f / "provenance.json").unlink(), "unreadable"),
        (lambda f: (f / "provenance.json").write_text('{"format": 0}'), "format 0"),
    ],
)
def test_spoiled_folders_are_named_errors(stored, spoil, match):
    model, results_dir, folder = stored
    spoil(folder)
    with pytest.raises(ResultsError, match=match):
        sweep(model, PLAN, results_dir)
    with pytest.raises(ResultsError, match=match):
        records.read_completions(folder)


def test_a_tree_that_is_missing_is_grown_again(stored):
    model, results_dir, folder = stored
    whole = contents(folder)
    (folder / "one@1.parquet").unlink()
    with pytest.raises(ResultsError, match="SHA-256 differs"):
        records.read_completions(folder)
    assert len(sweep(model, PLAN, results_dir)) == 18
    assert contents(folder) == whole


def test_a_place_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultsError, match="writable results_dir"):
        sweep(tiny(chat=True), PLAN, tmp_path / "file")


def test_texts_of_an_older_convention_are_written_anew(stored, monkeypatch):
    model, results_dir, folder = stored
    whole = records.read_completions(folder)
    monkeypatch.setitem(conventions.CURRENT, "texts", 2)
    again = sweep(model, PLAN, results_dir)
    assert records.read_record(folder)["convention"] == 2
    assert again.text.tolist() == whole.text.tolist()


def test_a_renamed_class_leaves_stored_texts_what_they_are(stored, monkeypatch):
    """A digest is of token ids, not of how Python writes an object."""
    model, results_dir, folder = stored
    before = contents(folder)
    monkeypatch.setattr(generation.Start, "__repr__", lambda self: "Beginning()")
    monkeypatch.setattr(sweeps, "grow", None)
    assert len(sweep(model, PLAN, results_dir)) == 18
    assert contents(folder) == before


def test_stored_texts_are_scored_by_their_ids(tiny, tmp_path):
    model, generator = tiny(chat=True), np.random.default_rng(0)
    sweep(model, Sweep(PROMPTS[:1], ranks=RANKS, depth=2, max_tokens=3), tmp_path)
    folder = records.folder_of(tmp_path, model.key, "sweep")
    n, gap = check.rescore(folder, 100, generator, model)
    assert n == len(records.read_completions(folder)) and gap < 1e-5
    _, gap = check.rescore(folder, 100, generator, tiny("gemma3", chat=True))
    assert gap > check.TEXT_TOLERANCE


# Requests


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prompts": ()}, "prompts=.*give at least one"),
        ({"prompts": (PROMPTS[0],) * 2}, "every id must occur once"),
        ({"seeds": ()}, "seeds="),
        ({"seeds": (1, 1)}, "every seed must occur once"),
        ({"seeds": (-1,)}, "seeds=-1: must be a whole number"),
        ({"seeds": (0, 1), "position": 0}, "the same for each of the 2 seeds"),
        ({"seeds": (0, 1), "position": (0, 4)}, "the same for each of the 2 seeds"),
        ({"position": -1}, "position=-1"),
        ({"position": (4, 2)}, "position="),
        ({"position": (1, 2, 3)}, "position="),
        ({"depth": 0}, "depth=0"),
        ({"depth": 4}, "depth=4: must be .*from 1 to 3"),
        ({"ranks": ()}, "ranks="),
        ({"ranks": (3, 1)}, "ascending"),
        ({"ranks": (0, 1, 1)}, "ascending"),
        ({"ranks": (-1, 1)}, "from 0"),
        ({"n_samples": -1}, "n_samples=-1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": 0.7}, "leave it out, or set n_samples"),
        ({"temperature": 0.0, "n_samples": 2}, "above 0"),
        ({"end": "none"}, "end='none'"),
        ({"name": "a/b"}, "name="),
        ({"name": ".hidden"}, "name="),
    ],
)
def test_bad_sweeps(changes, match):
    with pytest.raises(InvalidRequestError, match=match):
        Sweep(**{"prompts": PROMPTS, **changes})


def test_unknown_prompts_have_near_matches():
    with pytest.raises(UnknownNameError, match="Did you mean 'item-city'"):
        Sweep(["item-citty"])
    assert Sweep("item-city").prompts[0].verifier == "city"


def test_ranks_beyond_the_vocabulary_stop_before_the_model_runs(tiny_folder, tmp_path):
    model = cu.load_model(tiny_folder(chat=True), device="cpu")
    with pytest.raises(InvalidRequestError, match=r"forces rank 990, .* has \d+ tokens"):
        sweep(model, Sweep(PROMPTS[:1]), tmp_path)
    assert "network" not in vars(model)
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 400), st.integers(1, 2000))
def test_log_ranks_are_distinct_ascending_and_span(n, max_rank):
    if n > max_rank:
        with pytest.raises(InvalidRequestError):
            sweeps.log_ranks(n, max_rank)
        return
    ranks = sweeps.log_ranks(n, max_rank)
    assert len(ranks) == n
    assert ranks[0] == 0
    assert list(ranks) == sorted(set(ranks))
    assert ranks[-1] == (max_rank - 1 if n > 1 else 0)


def test_the_paper_s_ranks_are_the_default_and_sizes_are_counted():
    assert Sweep(PROMPTS).ranks == tuple(range(0, 1000, 10))
    plan = Sweep(PROMPTS, (0, 1), position=2, depth=2, ranks=RANKS, n_samples=2, max_tokens=5)
    assert sweeps.size_of(plan) == (2 * 2 * 9 * 2, 2 * 2 * 9 * 2 * 7)


# From labels to candidates


def synthetic(depth, ranks, n_samples, rng):
    """Completions of one tree with few different texts, and labels with some missing."""
    rows = []
    for path in itertools.product(ranks, repeat=depth):
        length = 1 if path[0] == ranks[-1] else depth  # the last candidate ends the text
        if length == 1 and any(path[1:]):
            continue
        for sample in range(max(1, n_samples)):
            rows.append(
                {
                    **{"prompt_id": "one", "category": "story", "seed": 0, "position": 0},
                    **{"prefix": "", "depth": length, "sample": sample},
                    "path_ranks": list(path[:length]),
                    "path_ids": [100 + 7 * rank for rank in path[:length]],
                    "path_log_p": [-1.0 - rank for rank in path[:length]],
                    "text": f"text {rng.integers(6)}",
                    **{"token_ids": [1], "log_p": -1.0, "ended": True},
                }
            )
    table = pd.DataFrame(rows, columns=records.COLUMNS)
    texts = table.text.drop_duplicates()
    verdicts = rng.choice([True, False, None], size=len(texts), p=[0.3, 0.5, 0.2])
    labels = pd.DataFrame({"prompt_id": "one", "text": texts, "valid": verdicts})
    return table, labels


def plain_nodes(table, labels, min_share):
    """The same by definition, leaf by leaf, over every way to fill in what is missing."""
    verdict = dict(zip(labels.text, labels.valid, strict=True))
    by_leaf = {}
    for row in table.itertuples():
        by_leaf.setdefault(tuple(row.path_ranks), []).append(verdict.get(row.text))

    def valid(leaf, missing):
        known = [missing if v is None else v for v in by_leaf[leaf]]
        return sum(known) >= (1 if min_share is None else min_share * len(known) - 1e-9)

    found, dropped = {}, 0
    for path in {leaf[:k] for leaf in by_leaf for k in range(1, len(leaf) + 1)}:
        leaves = [leaf for leaf in by_leaf if leaf[: len(path)] == path]
        worst, best = (sum(valid(leaf, fill) for leaf in leaves) for fill in (False, True))
        if bool(worst) != bool(best):
            dropped += 1
            continue
        found[path] = bool(worst), worst, best - worst
    return found, dropped


@given(
    st.integers(1, 3),
    st.sampled_from([(0, 1), (0, 2, 5)]),
    st.sampled_from([(0, None), (4, None), (4, 0.5), (5, 0.2), (3, 1.0)]),
    st.integers(0, 10_000),
)
@settings(max_examples=50)
def test_node_table_by_brute_force(depth, ranks, rule, seed):
    n_samples, min_share = rule
    table, labels = synthetic(depth, ranks, n_samples, np.random.default_rng(seed))
    shuffled = table.sample(frac=1, random_state=seed)
    found = sweeps.node_table(shuffled, labels, min_share)
    expected, dropped = plain_nodes(table, labels, min_share)
    assert found.attrs["dropped"] == dropped
    assert list(found.columns) == sweeps.COLUMNS
    rows = {
        (*row.node, row.rank): (row.valid, row.weight, row.n_unlabelled)
        for row in found.itertuples()
    }
    assert rows == expected
    for row in found.itertuples():
        assert row.depth == len(row.node) + 1
        assert row.token_id == 100 + 7 * row.rank


def test_labels_of_any_boolean_kind_and_all_missing():
    table, labels = synthetic(2, (0, 1), 0, np.random.default_rng(1))
    for valid in (True, 1.0, np.bool_(True)):
        assert sweeps.node_table(table, labels.assign(valid=valid)).valid.all()
    none = sweeps.node_table(table, labels.assign(valid=None))
    assert none.empty and none.attrs["dropped"] == 2 + 2
    assert sweeps.node_table(table, labels.iloc[:0]).attrs["dropped"] == 4
    assert sweeps.node_table(table.iloc[:0], labels).empty


def test_labels_that_contradict_are_refused():
    table, labels = synthetic(1, (0, 1), 0, np.random.default_rng(1))
    with pytest.raises(ResultsError, match="two labels for one text of 'one': 'text"):
        sweeps.node_table(table, pd.concat([labels, labels]))


def test_identical_completions_are_judged_once(tiny):
    plan = Sweep(PROMPTS, ranks=RANKS, n_samples=5, max_tokens=1, temperature=0.05)
    table = sweep(tiny(chat=True), plan)
    texts = sweeps.unique_texts(table)
    pairs = list(zip(table.prompt_id, table.text, strict=True))
    assert list(zip(texts.prompt_id, texts.text, strict=True)) == list(dict.fromkeys(pairs))
    assert len(texts) < len(table)
    # Labels of the merged texts reach every completion.
    found = sweeps.node_table(table, texts.assign(valid=True))
    assert (found.weight == 1).all()  # a leaf each
    assert found.valid.all() and len(found) == 2 * len(RANKS)

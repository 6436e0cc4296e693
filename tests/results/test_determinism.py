"""What the same request gives again: to the bit, or to the stated tolerance, or another draw.

To the bit: another process, another hash seed, the same threads. To `storage.TOLERANCE`: other
threads and batch sizes, whose sums are rounded in another order. `make determinism` does the same
with fresh clones.
"""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import calib_utils as cu
from calib_utils import paths
from calib_utils.core import metrics
from calib_utils.openended import programs, table1
from calib_utils.results import draws
from calib_utils.results.storage import KEY, NUMBERS, TOLERANCE, differences

RULES = ["none", "top_k=50", "top_p=0.9", "min_p=0.1", "oracle_size", "typical=0.9", "top_h=0.5"]
TEMPERATURES = [0.3, 1.0, 2.0, 4.0]
BATCHES = [1, 3, 100_000]  # and the device's own
WORDS = ["1,2,3", "1,2,4", "1,3", "1", "ab", "abab", "a b ab", "cab", "x", "zebra"]
TABLES = """
import json, sys
import torch
import calib_utils as cu
from calib_utils.openended import programs, table1
from calib_utils.results import draws

folder, out, words, rules, temperatures = json.loads(sys.argv[1])
torch.set_num_threads(1)
model = cu.load_model(folder, device="cpu")
task = cu.Task("small", "Pick one of the ten words on the list at random. Answer:", words)
tables = {
    "settings": cu.evaluate(model, task, rules, temperatures),
    "answers": cu.answer_probabilities(model, task, temperatures),
    "losses": cu.step_losses(model, task, ["none", "top_p=0.9"], temperatures),
    "frontier": cu.adaptive_frontier(model, task),
    "sampled": draws.sample_answers(model, task, n=50, seed=3),
    "drawn": programs.draw(model, "Say something.", 5, 8, seed=3),
    "plan": table1.plan_generations(["p", "q"], seed=3),
}
torch.set_num_threads(2)
tables["settings, two threads"] = cu.evaluate(model, task, rules, temperatures)
for name, table in tables.items():
    table.to_parquet(f"{out}/{name}.parquet")
"""


@pytest.fixture
def n_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def largest_gap(one, other):
    """Largest difference of two tables in nats; infinite for a row in one alone."""
    return max(differences(*(table[[*KEY, *NUMBERS]] for table in (one, other)), KEY).values())


def test_processes_and_hash_seeds_change_no_bit_and_threads_no_digit_that_counts(
    tiny_folder, tmp_path, monkeypatch, n_threads
):
    found = []
    for where in ("here", "elsewhere"):
        (out := tmp_path / where).mkdir()
        asked = [str(tiny_folder("llama", chat=True)), str(out), WORDS, RULES, TEMPERATURES]
        command = [sys.executable, "-c", TABLES, json.dumps(asked)]
        if where == "here":
            monkeypatch.setattr(sys, "argv", command[2:])
            exec(TABLES, {})
        else:
            own = os.environ | {"PYTHONHASHSEED": "4321"}
            done = subprocess.run(command, env=own, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        found.append({path.stem: pd.read_parquet(path) for path in out.glob("*.parquet")})
    first, again = found
    assert len(first) == 8
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, again[name], check_exact=True, obj=name)
    assert first["settings"].validity.nunique() > len(RULES), "settings differ from one another"
    assert largest_gap(first["settings"], first["settings, two threads"]) <= TOLERANCE["float32"]


@pytest.mark.models
def test_a_real_models_numbers_hold_over_threads_batch_sizes_and_loads(n_threads):
    def numbers(threads, batch_size):
        n_threads(threads)
        return cu.evaluate(model, "rng-1", RULES, TEMPERATURES, end="none", batch_size=batch_size)

    model = cu.load_model("smollm2-135m-instruct", device="cpu")
    first = numbers(1, None)
    assert first.validity.between(0.01, 0.99).sum() > len(RULES)
    for batch_size in BATCHES:
        assert largest_gap(first, numbers(1, batch_size)) <= TOLERANCE["float32"], batch_size
    assert largest_gap(first, numbers(2, None)) <= TOLERANCE["float32"]
    model = cu.load_model("smollm2-135m-instruct", device="cpu")
    pd.testing.assert_frame_equal(first, numbers(1, None), check_exact=True)


def clusters(n=12):
    random = np.random.default_rng(0)
    pairs = [(f"p{i // 3}", i % 3) for i in range(n)]
    return pd.DataFrame(pairs, columns=["prompt_id", "seed"]).assign(x=random.random(n))


SEEDED = {
    "answers": lambda model, seed: draws.sample_answers(model, "rng-1", n=30, seed=seed),
    "replies": lambda model, seed: programs.draw(model, "Say something.", 4, 8, seed=seed),
    "replies by generate": lambda model, seed: table1.draw_texts(
        model, programs.message_start(model, "Say something."), [{}], [seed], [()] * 4, 8
    ),
    "settings": lambda model, seed: table1.plan_generations(["p"], seed=seed),
    "intervals": lambda model, seed: metrics.cluster_interval(clusters(), "x", seed=seed),
}


@pytest.mark.parametrize("what", SEEDED)
def test_a_seed_is_all_that_a_draw_depends_on(tiny, what):
    def drawn(seed):
        found = SEEDED[what](tiny("llama", chat=True), seed)
        return found.to_csv() if isinstance(found, pd.DataFrame) else str(found)

    first = drawn(7)
    # Neither the state of global generators nor what was drawn in between matters.
    torch.manual_seed(99)
    np.random.seed(99)
    other = drawn(8)
    assert drawn(7) == first
    assert other != first


def test_a_seed_of_resamples_moves_the_interval_and_not_the_mean():
    one, other = (metrics.cluster_interval(clusters(), "x", seed=s) for s in (1, 2))
    assert one.mean == other.mean
    assert (one.low, one.high) != (other.low, other.high)


NOTEBOOKS = sorted(paths.notebooks_dir().glob("[0-9]*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_seed_that_a_notebook_calls_unused_is_unused(path):
    source = path.read_text(encoding="utf-8")
    (line,) = (one for one in source.splitlines() if one.startswith("seed = "))
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    read = any(name.id == "seed" and isinstance(name.ctx, ast.Load) for name in names)
    assert read != ("not used" in line)

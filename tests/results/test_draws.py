"""Draws: as often as they are probable, marked as validity counts them, kept with a record."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

import calib_utils as cu
from calib_utils import paths
from calib_utils.errors import ResultsError
from calib_utils.results import conventions, draws, records, storage
from calib_utils.results.evaluation import request_for, share_interval
from calib_utils.results.measure import measure
from calib_utils.results.storage import KEY
from calib_utils.studies import oracle_cutoffs

RULES = (cu.NoCutoff(), cu.TopK(40), cu.TopP(0.7), cu.MinP(0.2), cu.OracleSize())
SETTINGS = [*product(RULES, (0.7, 1.0, 1.6))]
LETTERS = cu.Task(
    "letters", "Pick a letter or a digit:", list("abcdefghijklmnopqrstuvwxyz0123456789")
)
N = 600
STORED = sorted(paths.default_results_dir().glob(f"*/{conventions.DRAWS}/*.parquet"))


@pytest.fixture(scope="module", params=["random", "law"])
def drawn(request, tiny, small_task):
    """(prompt, exact numbers, draws): of a random model, and of a law on longer answers."""
    if request.param == "random":  # without an end, or a random model would hardly ever write one
        model, task, end = tiny("llama", chat=True), LETTERS, "none"
    else:
        model, task, end = cu.reference_model(cu.LeakyShape(0.8), small_task), small_task, "eos"
    prompt = cu.render_prompt(model, task, end=end)
    return prompt, measure(model, prompt, SETTINGS), draws.draw(model, prompt, SETTINGS, N, seed=1)


def test_answers_come_as_often_as_they_are_probable(drawn):
    prompt, exact, found = drawn
    answer = dict(zip(prompt.sequences.symbols, prompt.sequences.answer, strict=True))
    seen_some = 0
    for column, own in enumerate(found):
        hits = sum(one.valid for one in own)
        low, high = share_interval(hits, N, z=4)
        assert low <= exact.validity[column] <= high, SETTINGS[column]
        seen_some += 0 < hits < N
        p = np.exp(exact.answer_log_p[:, column])
        counts = np.zeros(len(p))
        for one in own:
            if one.valid:
                counts[answer[one.token_ids[:-1] if prompt.end_ids else one.token_ids]] += 1
        error = np.sqrt(N * p * (1 - p)) + 0.5
        assert (np.abs(counts - N * p) <= 5 * error).all(), SETTINGS[column]
        assert not counts[p == 0].any()
    assert seen_some > 5


def test_what_is_valid_is_a_whole_answer_and_what_is_not_ends_at_its_first_wrong_token(drawn):
    prompt, _, found = drawn
    whole = {(*s, *end) for s in prompt.sequences.symbols for end in zip(prompt.end_ids)}
    whole |= set() if prompt.end_ids else set(prompt.sequences.symbols)
    begun = {s[:n] for s in whole for n in range(len(s))}
    for one in {one for own in found for one in own}:
        assert one.valid == (one.token_ids in whole)
        assert one.token_ids[:-1] in begun
        assert one.valid or one.token_ids not in begun
        assert one.ended == (one.valid or one.token_ids[-1] in prompt.end_ids)


def test_settings_share_their_random_numbers_and_seeds_do_not(tiny):
    model = tiny("llama", chat=True)
    prompt = cu.render_prompt(model, LETTERS, end="none")
    same = [(cu.NoCutoff(), 1.0), (cu.TopK(10**6), 1.0), (cu.MinP(1e-9), 1.0), (cu.TopP(0.5), 1.0)]
    one, again, other = (draws.draw(model, prompt, same, 50, seed) for seed in (0, 0, 1))
    assert one == again != other
    assert one[0] == one[1] == one[2] != one[3]


def test_draws_are_kept_with_what_they_are_of(tiny, tmp_path):
    request = request_for(tiny("llama", chat=True), LETTERS, results_dir=tmp_path)
    table = draws.kept(request, SETTINGS)
    path = draws.path_of(request.folder)
    assert list(table) == list(draws.COLUMNS) and len(table) == len(SETTINGS) * draws.N_DRAWS
    read, record = draws.read(path)
    pd.testing.assert_frame_equal(read, table)
    assert record["weights_sha256"] == request.model.weights_sha256
    assert record["convention"] == conventions.CURRENT[conventions.DRAWS]
    # What is kept is what comes back; other settings are drawn, and so is another convention.
    records.write(path, table.assign(text="kept"), record)
    assert set(draws.kept(request, SETTINGS).text) == {"kept"}
    assert len(draws.kept(request, SETTINGS[:3])) == 3 * draws.N_DRAWS
    records.write(path, table.assign(text="kept"), record | {"convention": 0})
    pd.testing.assert_frame_equal(draws.kept(request, SETTINGS), table)
    records.write(path, table, record | {"weights_sha256": "0" * 64})
    with pytest.raises(ResultsError, match="differs in weights_sha256"):
        draws.kept(request, SETTINGS)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda table: table.drop(columns="ended"), "columns are"),
        (lambda table: table.iloc[1:], "not 10 draws of every setting"),
        (lambda table: table.iloc[:0], "not 10 draws"),
        (lambda table: table.assign(valid=True, ended=False), "did not end"),
    ],
)
def test_broken_draws_name_themselves_and_the_remedy(tiny, tmp_path, spoil, why):
    request = request_for(tiny("llama", chat=True), LETTERS, results_dir=tmp_path)
    draws.kept(request, SETTINGS[:2])
    path = draws.path_of(request.folder)
    table, record = draws.read(path)
    records.write(path, spoil(table), record)
    with pytest.raises(ResultsError, match=f"{why}.*run 03_oracle_cutoffs"):
        draws.read(path)


@pytest.mark.parametrize("path", STORED, ids=lambda path: "/".join(path.parts[-3::2]))
def test_the_committed_draws_agree_with_the_exact_rows(path):
    """Over all settings at once: draws of a number share their random numbers, ten are apart."""
    table, record = draws.read(path)
    rows = storage.read(path.parents[1] / path.stem)
    for name in conventions.IDENTITY[conventions.DRAWS]:
        assert record[name] == rows.record[name]
    assert len(table) == len(oracle_cutoffs.SETTINGS) * draws.N_DRAWS
    both = table.merge(rows.settings, on=KEY)
    assert len(both) == len(table)
    by_draw = (both.valid - both.validity).groupby(both.draw).mean()
    assert abs(by_draw.mean()) <= 5 * by_draw.std() / np.sqrt(draws.N_DRAWS) + 1e-3
    # What is certain, or impossible, is so in every draw.
    assert both.valid[both.validity > 1 - 1e-9].all() and not both.valid[both.validity < 1e-9].any()
    answers = set(cu.get_task(record["task"]).answers)
    assert set(table.text[table.valid]) <= answers


def test_there_are_committed_draws():
    assert STORED

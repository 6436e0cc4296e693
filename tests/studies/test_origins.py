"""The world of origins, its corpora, the training of its models, and what is said of them."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from calib_utils import paths
from calib_utils.book import check
from calib_utils.errors import ResultsError
from calib_utils.studies import origins

FEW = origins.world()[30:34]  # strings of one to four letters


@pytest.fixture(scope="module")
def questions():
    return origins.world()


def test_world_is_forty_questions_of_different_answers(questions):
    assert len({q.task.prompt for q in questions}) == 40
    for q in questions:
        assert 4 <= len(set(q.task.answers)) == len(q.task.answers)
        lines = [f"{q.task.prompt} {answer}" for answer in q.task.answers]
        assert max(map(len, lines)) < origins._LONGEST  # with room for the end


def test_zipf_frequencies(questions):
    lines = origins.draw(questions, "zipf", 40_000, np.random.default_rng(0))
    first = questions[0].task
    counts = pd.Series(lines)[lambda s: s.str.startswith(first.prompt)].value_counts()
    p = 1 / np.arange(1, len(first.answers) + 1)
    for answer, expected in zip(first.answers, counts.sum() * p / p.sum(), strict=True):
        assert abs(counts[f"{first.prompt} {answer}"] - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("corpus", origins.CORPORA)
def test_share_of_wrong_lines(questions, corpus):
    valid = {f"{q.task.prompt} {answer}" for q in questions for answer in q.task.answers}
    lines = origins.draw(questions, corpus, 4_000, np.random.default_rng(1))
    wrong = np.mean([line not in valid for line in lines])
    if corpus in ("uniform", "zipf"):
        assert wrong == 0
    else:
        # Another question's answer may be right here; strings end in letters that are not valid.
        assert 0.05 < wrong < 0.25


def test_a_line_is_learnt_to_its_first_end():
    ids = origins.encode(["w0: ba", "w0: babababa"[: origins._LONGEST - 1]], origins.tokenizer())
    learnt = (origins.labels_of(ids) >= 0).sum(1)
    assert learnt.tolist() == [7, origins._LONGEST]


def test_drawn_lines_are_judged_by_their_task(questions):
    """A model that always ends says nothing valid; one that knows one answer is always right."""

    class Always(torch.nn.Module):
        def __init__(self, line: str):
            super().__init__()
            self.line = origins.encode([line], origins.tokenizer())[0]

        def forward(self, ids):
            logits = torch.full((*ids.shape, 257), -1e9)
            logits[:, :, self.line[min(ids.shape[1], len(self.line) - 1)]] = 0
            return type("Output", (), {"logits": logits})

    one = questions[3]
    for line, right in (
        (f"{one.task.prompt} {one.task.answers[2]}", True),
        (one.task.prompt, False),
    ):
        ids, valid = origins.sample(Always(line), [one], 5, seed=0)
        assert ids.shape == (5, origins._LONGEST)
        assert valid.tolist() == [right] * 5


@pytest.fixture(scope="module")
def trained():
    return origins.train(0, 0.01, FEW)


@pytest.mark.full
def test_every_stage_is_measured(trained):
    seeds = origins.by_seed(trained["losses"])
    assert set(seeds.stage) == set(origins.STAGES)
    assert set(seeds.corpus) == set(origins.CORPORA)
    assert set(seeds.scale) == set(origins.SIZES)
    parts = seeds[["order", "shape", "size"]].sum(axis=1)
    np.testing.assert_allclose(parts, seeds.total, atol=1e-9)
    assert len(origins.by_share(trained["course"])) == 4 * len(origins.CORPORA)


@pytest.mark.full
def test_training_makes_a_seed_again(trained):
    again = origins.train(0, 0.01, FEW)
    for name, table in trained.items():
        pd.testing.assert_frame_equal(table, again[name])


@pytest.mark.full
def test_one_seed_decides_nothing(trained):
    found = origins.findings(origins.by_seed(trained["losses"]), trained["strings"])
    assert set(found.verdict) == {"not decided"}


def test_tables_of_another_convention_are_refused(tmp_path):
    record = tmp_path / "origins" / "record.json"
    record.parent.mkdir()
    record.write_text('{"convention": 0}')
    with pytest.raises(ResultsError, match="anew=True"):
        origins.results(tmp_path / "results")


def unreadable(folder):
    (folder / "seed-1" / "losses.parquet").write_bytes(b"PAR1")


def missing(folder):
    (folder / "seed-2" / "course.parquet").unlink()


def changed(column):
    def change(folder):
        path = folder / "seed-3" / "losses.parquet"
        table = pd.read_parquet(path)
        table.loc[5, column] += 1
        table.to_parquet(path, index=False)

    return change


def another_record(text):
    return lambda folder: (folder / "record.json").write_text(text)


SPOILT = {
    "no record": (lambda folder: (folder / "record.json").unlink(), "record.json cannot be read"),
    "half a record": (another_record("{"), "record.json cannot be read"),
    "a list for a record": (another_record("[]"), "record.json cannot be read"),
    "another convention": (another_record('{"convention": 0}'), "of an older convention"),
    "unreadable": (unreadable, "ArrowInvalid"),
    "missing": (missing, "course.parquet"),
    "validity": (changed("validity"), "no share of 1"),
    "total": (changed("total"), "do not add up"),
}


@pytest.mark.parametrize("spoil, said", SPOILT.values(), ids=SPOILT)
def test_spoilt_tables_are_told_with_the_remedy(spoil, said, tmp_path):
    shutil.copytree(paths.default_results_dir().parent / "origins", tmp_path / "origins")
    (tmp_path / "results").mkdir()
    assert check.check(tmp_path / "results")[-1].verdict == "ok"
    spoil(tmp_path / "origins")
    with pytest.raises(ResultsError, match=f"{said}.*anew=True"):
        origins.results(tmp_path / "results")
    (fault,) = check.check(tmp_path / "results")[-1].faults
    assert said in fault.what


def test_what_a_killed_training_left_is_a_note(tmp_path):
    shutil.copytree(paths.default_results_dir().parent / "origins", tmp_path / "origins")
    (tmp_path / "results").mkdir()
    shutil.rmtree(tmp_path / "origins" / "seed-4")
    (fault,) = check.check(tmp_path / "results")[-1].faults
    assert fault.level == check.NOTE and "seeds [4]" in fault.what


@pytest.mark.full
def test_a_short_training_of_the_whole_world_is_kept_and_read_again(tmp_path):
    found = origins.results(tmp_path / "results", anew=True, seeds=[0, 1], short=0.01)
    kept = sorted(path.name for path in (tmp_path / "origins").glob("[!.]*"))
    assert kept == ["record.json", "seed-0", "seed-1"]
    again = origins.results(tmp_path / "results", seeds=[0, 1], short=0.01)
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, again[name])
    seeds = origins.by_seed(found["losses"])
    assert len(origins.findings(seeds, found["strings"])) == 7 + 2 * (len(origins.STAGES) - 1)


def test_another_folder_of_results_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "ProcessPoolExecutor", None)
    found = origins.results(tmp_path / "results")
    assert set(found["losses"].seed) == set(origins.SEEDS)
    assert not (tmp_path / "origins").exists()

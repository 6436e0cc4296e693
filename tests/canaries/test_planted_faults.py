"""Faults planted by hand are caught by the canaries alone, and a new meaning needs a convention."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

import calib_utils as cu
from calib_utils.core import metrics, prompts, split, tries
from calib_utils.core.ranking import Ranking


def replace_everywhere(monkeypatch, original, faulty):
    """`faulty(original)` instead of a function, in every module that has it, or of a ranking."""
    modules = [own for key, own in sys.modules.items() if key.split(".")[0] == cu.__name__]
    for holder in (Ranking, *modules):
        for name, held in list(vars(holder).items()):
            if held is original:
                monkeypatch.setattr(holder, name, faulty(original))


def warmer(at):
    return lambda ranking, temperature: at(ranking, temperature + 1e-3)


def off_by_one(rank):
    return lambda ranking, tokens: rank(ranking, tokens) + 1


def without_ties(_):
    """Tied tokens all get the first rank of their tie."""

    def rank(ranking, tokens):
        values = ranking.logits.gather(1, tokens)
        return (ranking.logits[:, None, :] > values[:, :, None]).sum(-1)

    return rank


def higher_ids_first(rank):
    """Ties by descending token id."""

    def turned(ranking, tokens):
        values = ranking.logits.gather(1, tokens)[:, :, None]
        tied = (ranking.logits[:, None, :] == values).sum(-1)
        above = (ranking.logits[:, None, :] > values).sum(-1)
        return 2 * above + tied - 1 - rank(ranking, tokens)

    return turned


def another_end(render):
    """The next token id ends an answer."""

    def rendered(*args, **kwargs):
        prompt = render(*args, **kwargs)
        ends = tuple(end + 1 for end in prompt.end_ids)
        sequences = replace(prompt.sequences, end_symbols=ends)
        return replace(prompt, end_ids=ends, sequences=sequences, trie=tries.build_trie(sequences))

    return rendered


def in_bits(measure):
    return lambda log_p: measure(log_p / math.log(2))


def losses_in_bits(step_losses):
    def found(trie, edge_log_p):
        losses = step_losses(trie, edge_log_p)
        return replace(losses, **{k: v / math.log(2) for k, v in vars(losses).items()})

    return found


# What is wrong: where and how, and the canary that has to notice.
FAULTS = {
    "T + 1e-3 in the ranking": (Ranking.at, warmer, "rows_with_ties"),
    "a rank that is off by one": (Ranking.rank, off_by_one, "rows_by_end"),
    "no tie rule": (Ranking.rank, without_ties, "rows_in_bfloat16"),
    "ties to the higher id": (Ranking.rank, higher_ids_first, "rows_in_bfloat16"),
    "another end token": (prompts.render, another_end, "rows_by_policy_of_a_model"),
    "diversity in bits": (metrics.diversity, in_bits, "measures_by_hand"),
    "losses in bits": (split.step_losses, losses_in_bits, "losses_and_their_split"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault, canaries, changes, request, monkeypatch):
    original, faulty, name = FAULTS[fault]
    canary = canaries.CANARIES[name]
    replace_everywhere(monkeypatch, original, faulty)
    with torch.inference_mode():
        found = canary.compute(request.getfixturevalue)
    assert changes(canary, found), f"{name} does not notice: {fault}"


@pytest.fixture
def asked(canaries, require_golden, tmp_path):
    """Holds values against golden ones in a folder of the test's own: `asked(values, now=1)`."""
    tolerances = {"": canaries.ARITHMETIC, "ranks": canaries.EXACT}
    one = canaries.Canary("one", "rows", None, tolerances, "a reason")

    def ask(values, now=1):
        require_golden(one, values, tmp_path, now)
        return json.loads((tmp_path / "one.json").read_text())

    return ask


VALUES = {"validity": [0.25, math.nan, 0.0], "ranks": [1, 2]}


@pytest.fixture
def written(asked, monkeypatch):
    """`asked`, with `VALUES` written as golden under convention 1."""
    with monkeypatch.context() as patch:
        patch.setenv("CANARIES", "rewrite")
        asked(VALUES)
    return asked


def test_numbers_within_their_tolerance_are_the_golden_ones(written):
    written({"validity": [0.25 * (1 + 1e-10), math.nan, 1e-14], "ranks": [1, 2]})


@pytest.mark.parametrize(
    "values",
    [
        {"validity": [0.25001, math.nan, 0.0], "ranks": [1, 2]},
        {"validity": [0.25, 0.0, 0.0], "ranks": [1, 2]},
        {"validity": [0.25, math.nan, 0.0], "ranks": [1, 3]},
        {"validity": [0.25, math.nan], "ranks": [1, 2]},
        {"validity": [0.25, math.nan, 0.0, 1.0], "ranks": [1, 2]},
        {"ranks": [1, 2]},
    ],
)
def test_a_changed_value_says_what_to_do(written, values, monkeypatch):
    for rewrite in ("", "rewrite"):  # writing anew is refused as well
        monkeypatch.setenv("CANARIES", rewrite)
        if rewrite and "ranks" in values and len(values.get("validity", ())) == 4:
            continue  # what is only added is written
        with pytest.raises(
            pytest.fail.Exception, match=r"bump the integer of 'rows' in results/conventions"
        ):
            written(values)


def test_a_bumped_convention_is_written_with_its_values(written, monkeypatch):
    with pytest.raises(pytest.fail.Exception, match="convention 1 of 'rows', which is 2 now"):
        written(VALUES, now=2)
    monkeypatch.setenv("CANARIES", "rewrite")
    found = written(VALUES | {"validity": [0.5]}, now=2)
    assert (found["convention"], found["values"]["validity"]) == (2, [0.5])


def test_every_golden_file_belongs_to_a_canary_of_its_kind(canaries, request):
    files = {path.stem: path for path in (request.path.parent / "golden").glob("*.json")}
    assert files.keys() == canaries.CANARIES.keys()
    for name, path in files.items():
        assert json.loads(path.read_text())["kind"] == canaries.CANARIES[name].kind

"""Any logits processor, at every prefix: against enumeration, our own rules, and `generate`."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, set_seed
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

import calib_utils as cu
from calib_utils import paths, scoring
from calib_utils.errors import InvalidRuleError

TASK = cu.Task("few", "Name one:", ["ab", "abab", "1,1", "1", "zoo"])
DRAWS = 1000


def halve_digits(ids, scores):
    """Depends on the last token of the prefix."""
    return torch.where(ids[:, -1:] % 2 == 0, scores / 2, scores)


def enumerate_answers(model, processors):
    """p of every answer: one plain forward pass a prefix, the processors on that prefix."""
    prompt = cu.render_prompt(model, TASK)
    (end,) = prompt.end_ids
    found = np.zeros(len(TASK.answers))
    for symbols, answer in zip(prompt.sequences.symbols, prompt.sequences.answer, strict=True):
        p = 1.0
        for step, token in enumerate([*symbols, end]):
            ids = torch.tensor([[*prompt.ids, *symbols[:step]]])
            with torch.no_grad():
                scores = model.network(input_ids=ids, use_cache=False).logits[:, -1].float()
            p *= float(LogitsProcessorList(processors)(ids, scores).double().softmax(-1)[0, token])
        found[answer] += p
    return found


@pytest.mark.parametrize(
    ("processors", "at"),
    [
        ([RepetitionPenaltyLogitsProcessor(1.5)], 1),
        ([RepetitionPenaltyLogitsProcessor(1.5), TopPLogitsWarper(0.98)], 1),
        ([NoRepeatNGramLogitsProcessor(2)], 0),
        ([halve_digits], 0),
    ],
)
def test_a_processor_is_enumeration(tiny, processors, at):
    model = tiny("qwen3", chat=True)
    sampler = cu.Processors(processors, "mine", temperature_at=at)
    table = cu.evaluate(model, TASK, [sampler], [1.7])
    whole = [*processors[:at], TemperatureLogitsWarper(1.7), *processors[at:]]
    p = enumerate_answers(model, whole)
    assert table.validity[0] == pytest.approx(p.sum(), rel=2e-4, abs=1e-14)
    if p.sum() > 0:
        share = p[p > 0] / p.sum()
        diversity = math.exp(-(share * np.log(share)).sum()) / len(p)
        assert table.diversity[0] == pytest.approx(diversity, rel=2e-4)
    else:
        assert math.isnan(table.diversity[0])


@pytest.mark.parametrize(
    ("rule", "warper"),
    [(cu.TopP(0.97), TopPLogitsWarper(0.97)), (cu.Typical(0.9), TypicalLogitsWarper(0.9))],
)
def test_a_wrapped_warper_is_our_own_rule(tiny, rule, warper):
    table = cu.evaluate(
        tiny("llama", chat=True), TASK, [rule, cu.Processors(warper, "w")], [0.7, 2]
    )
    numbers = ["validity", "diversity", "sequence_precision", "sequence_recall"]
    ours, theirs = table[:2][numbers].to_numpy(), table[2:][numbers].to_numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-12)
    assert table.rule.tolist() == [rule.name, rule.name, "w", "w"]


def test_the_position_of_temperature_matters(tiny):
    model = tiny("llama", chat=True)
    make = [cu.Processors(RepetitionPenaltyLogitsProcessor(2.0), f"at{i}", temperature_at=i)
            for i in (0, 1)]  # fmt: skip
    hot = cu.evaluate(model, TASK, make, [3.0])
    cool = cu.evaluate(model, TASK, make, [1.0])
    # A penalty multiplies or divides scores, so it commutes with a division by the temperature.
    assert hot.validity[0] == pytest.approx(hot.validity[1], rel=1e-4)
    cut = [cu.Processors(TopPLogitsWarper(0.6), f"cut{i}", temperature_at=i) for i in (0, 1)]
    wide = cu.evaluate(model, TASK, cut, [3.0]).sequence_recall
    assert cool.validity[0] == pytest.approx(cool.validity[1], rel=1e-9)
    assert wide[0] >= wide[1]


def test_their_rows_are_neither_stored_nor_in_the_way(tiny, tmp_path, monkeypatch):
    model, mine = tiny("llama", chat=True), cu.Processors(halve_digits, "mine")
    first = cu.evaluate(model, TASK, ["top_k=9", mine, "none"], results_dir=tmp_path)
    assert first.rule.tolist() == ["top_k", "mine", "none"]
    stored = cu.stored_measurement(model, TASK, tmp_path).settings
    assert stored.rule.tolist() == ["top_k", "none"]
    again = cu.evaluate(model, TASK, ["top_k=9", mine, "none"], results_dir=tmp_path)
    assert again.equals(first)
    monkeypatch.setattr(scoring, "score", lambda *a, **k: pytest.fail("the model ran"))
    cu.evaluate(model, TASK, ["top_k=9", "none"], results_dir=tmp_path)


class Third(cu.Rule):
    """A rule of a user's own."""

    name = "third"

    def n_kept(self, step):
        return step.size // 3


def test_a_users_rule_is_measured_and_split_but_not_stored(tiny, tmp_path):
    model = tiny("llama", chat=True)
    found = cu.evaluate(model, TASK, [Third(), "top_k=88"], details=True, results_dir=tmp_path)
    n_vocab = model.network.config.vocab_size
    same = cu.evaluate(model, TASK, [cu.TopK(n_vocab // 3)])
    assert found.validity[0] == pytest.approx(same.validity[0], rel=1e-6)
    assert set(cu.step_losses(model, TASK, [Third()]).repair) == {"none", "order", "shape", "both"}
    assert set(cu.stored_measurement(model, TASK, tmp_path).settings.rule) == {"top_k"}


def test_a_users_rule_may_not_take_a_name(tiny, monkeypatch):
    monkeypatch.setattr(Third, "name", "top_k")
    with pytest.raises(InvalidRuleError, match="rename it"):
        cu.evaluate(tiny("llama", chat=True), TASK, [Third()])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cu.Processors([], "x"), "give logits processors"),
        (lambda: cu.Processors([0.9], "x"), "give logits processors"),
        (lambda: cu.Processors(halve_digits, "a=b"), "without '='"),
        (lambda: cu.Processors(halve_digits, "x", "high"), "not a number"),
        (lambda: cu.Processors(halve_digits, "x", temperature_at=2), "from 0 to 1"),
    ],
)
def test_misuse_is_named(make, said):
    with pytest.raises(InvalidRuleError, match=said):
        make()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda ids, scores: scores - math.inf, "drops every token"),
        (lambda ids, scores: scores * math.nan, "gives NaN"),
        (lambda ids, scores: scores[:, :5], "instead of scores of the shape"),
    ],
)
def test_a_processor_that_leaves_no_distribution_is_named(tiny, function, said):
    with pytest.raises(InvalidRuleError, match=said):
        cu.evaluate(tiny("llama", chat=True), TASK, [cu.Processors(function, "bad")])


def test_temperature_left_to_the_processors_is_not_given_twice(tiny, monkeypatch):
    own = cu.Processors(TemperatureLogitsWarper(2.0), "own", temperature_at=None)
    model = tiny("llama", chat=True)
    ours = cu.evaluate(model, TASK, [own]).validity[0]
    plain = cu.evaluate(model, TASK, ["none"], [2.0]).validity[0]
    assert ours == pytest.approx(plain, rel=1e-5)
    monkeypatch.setattr(scoring, "score", lambda *a, **k: pytest.fail("the model ran"))
    with pytest.raises(InvalidRuleError, match=r"evaluate it at temperature 1\.0"):
        cu.evaluate(model, TASK, [own], [0.5])


def test_exact_numbers_agree_with_what_generate_draws(tiny):
    model = tiny("llama", chat=True)
    letters = cu.Task("letters", "Say:", [chr(c) for c in range(ord("a"), ord("z") + 1)])
    processors = [RepetitionPenaltyLogitsProcessor(1.8)]
    sampler = cu.Processors(processors, "mine", temperature_at=1)
    exact = cu.evaluate(model, letters, [sampler], end="none").validity[0]
    prompt = cu.render_prompt(model, letters, end="none")
    with torch.random.fork_rng(devices=[]):
        set_seed(3)
        drawn = model.network.generate(
            torch.tensor([prompt.ids]).expand(DRAWS, -1),
            attention_mask=torch.ones(DRAWS, len(prompt.ids), dtype=torch.long),
            logits_processor=LogitsProcessorList(copy.deepcopy(processors)),
            do_sample=True,
            top_k=0,
            max_new_tokens=1,
            pad_token_id=0,
        )
    hits = sum((token,) in prompt.sequences.symbols for token in drawn[:, -1].tolist())
    assert 0.02 < exact < 0.98
    assert abs(hits - DRAWS * exact) <= 4 * math.sqrt(DRAWS * exact * (1 - exact)) + 1


@pytest.mark.models
def test_the_page_that_shows_how_runs_as_printed(capsys):
    page = (paths.book_dir() / "bring_a_sampler.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "bring_a_sampler.md", "exec"), names)
    assert {"two_nats", "oracle_size"} <= set(names["table"].rule)
    assert len(blocks) == 4
    assert "llama.cpp" in capsys.readouterr().out

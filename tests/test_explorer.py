"""The explorer's data is the step itself: tokens, counts and partition function."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import calib_utils as cu
from calib_utils import explorer as ex
from calib_utils import figures, paths, scoring

TEMPERATURES = np.geomspace(ex.MIN_TEMPERATURE, 5, 40)
N_VOCAB = 262_144


@pytest.fixture(scope="module")
def direct(tiny, small_task):
    """(StepData, gaps [vocab] by rank, N of the valid ones by rank) from a plain forward pass."""

    def get(prefix, chat=True):
        model = tiny("llama", chat=chat)
        prompt = cu.render_prompt(model, small_task)
        ids = model.tokenizer(prompt.text + prompt.lead * bool(prefix) + prefix).input_ids
        with torch.no_grad():
            logits = model.network(torch.tensor([ids])).logits[0, -1].double().numpy()
        order = np.lexsort((np.arange(len(logits)), -logits))
        gaps = logits.max() - logits[order]
        count = {}
        for tokens in prompt.sequences.symbols:
            if tokens[: len(ids) - len(prompt.ids)] == tuple(ids[len(prompt.ids) :]):
                after = [*tokens, *prompt.end_ids][len(ids) - len(prompt.ids)]
                count[after] = count.get(after, 0) + 1
        answers = {int(np.flatnonzero(order == v)[0]): n for v, n in count.items()}
        return ex.step_data(model, small_task, prefix), gaps, answers

    return get


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "base"])
@pytest.mark.parametrize("prefix", ["", "1,", "ab"])
def test_the_data_is_the_step_itself(direct, prefix, chat):
    step, gaps, answers = direct(prefix, chat)
    assert step.n_vocab == len(gaps) and step.n_listed == ex.N_TOP
    assert {t.rank: t.n_answers for t in step.tokens if t.n_answers} == answers
    ranks = [t.rank for t in step.tokens]
    assert ranks == sorted({*range(ex.N_TOP), *answers})
    np.testing.assert_allclose([t.gap for t in step.tokens], gaps[ranks], atol=2e-5)
    # Counts are exact where a bin starts, so are ranks.
    starts = ex.N_TOP + np.cumsum([0, *(part.count for part in step.tail)])
    assert starts[-1] == len(gaps)
    firsts = [part.first for part in step.tail]
    np.testing.assert_allclose(firsts, gaps[starts[:-1]], atol=2e-5)
    assert set(answers) - set(range(ex.N_TOP)) <= set(starts)
    for temperature in TEMPERATURES:
        exact = np.exp(-gaps / temperature)
        # Two float32 passes, divided by a temperature of 0.1, differ as much as the bins may.
        assert math.exp(step.log_partition(temperature)) == pytest.approx(exact.sum(), rel=2e-4)
        valid = exact[list(answers)].sum() / exact.sum()
        assert step.validity(temperature) == pytest.approx(valid, rel=1e-3)


def test_only_the_path_to_the_prefix_is_forwarded(tiny, small_task, monkeypatch):
    seen, score = [], scoring.score

    def watched(*args):
        for nodes, logits in score(*args):
            seen.extend(nodes.tolist())
            yield nodes, logits

    monkeypatch.setattr(scoring, "score", watched)
    model = tiny("llama", chat=True)
    ex.step_data(model, small_task)
    assert seen == [0]
    ex.step_data(model, small_task, "1,")
    assert len(seen) <= 1 + 3


@pytest.mark.parametrize("shape", ["uniform", "normal", "worst", "tied", "infinite"])
def test_bins_keep_the_partition_function_on_any_logits(shape):
    """Also where all the mass is in the tail, and where every bin is as spread as it can be."""
    draw = np.random.default_rng(0)
    gaps = {
        "uniform": lambda: draw.uniform(0, 40, N_VOCAB),
        "normal": lambda: draw.normal(15, 3, N_VOCAB).clip(0),
        # Half of the tokens at either end of a bin, at the temperature that weighs them most.
        "worst": lambda: np.repeat([1.2476, 1.2499], N_VOCAB // 2),
        "tied": lambda: np.round(draw.uniform(0, 5, N_VOCAB), 1),
        "infinite": lambda: np.append(draw.uniform(0, 9, N_VOCAB), [ex._INFINITE_GAP] * 50),
    }[shape]()
    gaps = np.sort(gaps)
    bins = ex.tail_bins(gaps, np.array([7, 1000]), len(gaps))
    starts = np.cumsum([0, *(part.count for part in bins)])
    assert {7, 1000} <= set(starts) and starts[-1] == len(gaps)
    assert len(bins) < 3000
    counts, means = np.array([(part.count, part.mean) for part in bins]).T
    for temperature in TEMPERATURES:
        exact = 1 + np.exp(-gaps / temperature).sum()
        found = 1 + counts @ np.exp(-means / temperature)
        assert found == pytest.approx(exact, rel=ex.MAX_ERROR)


@pytest.mark.parametrize("prefix", ["7;", "1,2,9", "abx", " 1,"])
def test_a_bad_prefix_names_itself_and_the_remedy(tiny, small_task, prefix):
    with pytest.raises(cu.CalibUtilsError, match=re.escape(repr(prefix))) as caught:
        ex.step_data(tiny("llama", chat=True), small_task, prefix)
    assert "take ''" in str(caught.value) and "'small'" in str(caught.value)


def test_logits_that_are_not_numbers_are_named(fresh_tiny, small_task):
    model = fresh_tiny("llama", chat=True)
    with torch.no_grad():
        model.network.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(cu.CalibUtilsError, match="NaN"):
        ex.step_data(model, small_task)


def test_any_text_survives_the_page(tiny, small_task):
    step = ex.step_data(tiny("llama", chat=True), small_task)
    nasty = '</script><!--<script> & " \\ \u2028 \U0001f600'
    tokens = (replace(step.tokens[0], text=nasty), *step.tokens[1:])
    step = replace(step, tokens=tokens, prompt=nasty, prefix='"><b>')
    page = ex.explorer(step, "<weights> & more").data
    assert page.count("</script") == page.count("<script") == 1
    assert "<b>" not in page and "&lt;weights&gt;" in page
    data = json.loads(re.search(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)[1])
    assert data["tokens"][0]["text"] == data["prompt"] == nasty
    assert len(data["tail"]) == len(step.tail)
    assert " id=" not in page  # two copies on one page


def test_white_space_and_controls_are_visible(tiny):
    tokenizer = tiny("llama", chat=True).tokenizer
    texts = {ex._visible(tokenizer, token) for token in range(len(tokenizer))}
    assert {"␣", "␣a", "⏎", "⇥", "\\x07", "a", "<|end|>"} <= texts
    assert all(text.isprintable() and text for text in texts)


def test_the_page_has_the_figures_colours():
    style = (paths.book_dir() / "assets" / "explorer.css").read_text(encoding="utf-8")
    assert f"--cu-valid: {figures.BLUE};" in style
    assert f"--cu-invalid: {figures.VERMILION};" in style

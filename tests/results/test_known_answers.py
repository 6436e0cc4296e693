"""The embedded models: values computed apart from this project, and what the models write."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import set_seed

import calib_utils as cu
from calib_utils import paths
from calib_utils.results.measure import measure
from calib_utils.results.storage import KEY

pytestmark = pytest.mark.models

ROWS = pd.DataFrame(
    json.loads(paths.package_data("reference", "known_answers.json").read_text())["rows"]
).astype({"parameter": float})
SMALLEST = "smollm2-135m-instruct"
# Those of the smallest model are held by the canaries, and closer.
CASES = ROWS.loc[ROWS.model != SMALLEST, ["model", "task"]].drop_duplicates().values.tolist()
NEAR = {"n_answers": 0, "n_nodes": 0, "sequence_recall": 1e-9}
NEAR |= dict.fromkeys(("validity", "sequence_precision", "diversity"), 1e-4)
# A question to which this small model gives a valid answer about half of the time.
SAMPLED_TASK = cu.Task(
    "sky",
    "Answer with one word, yes or no. Is the sky blue?",
    ["Yes", "No", "yes", "no", "Yes.", "No."],
)
DRAWS, SIGMAS = 400, 4


@pytest.fixture(scope="module")
def model(request):
    """Loaded once for the tasks of a name."""
    return cu.load_model(request.param, device="cpu")


@pytest.mark.parametrize(("model", "task"), CASES, indirect=["model"])
def test_evaluate_reproduces_independent_values(model, task):
    known = ROWS[(ROWS.model == model.name) & (ROWS.task == task)]
    rules = known.rule + known.parameter.map(lambda n: "" if math.isnan(n) else f"={n:g}")
    table = cu.evaluate(model, task, rules.unique(), sorted(known.temperature.unique()))
    both = table.merge(known, on=KEY, suffixes=("", "_known"))
    assert len(both) == len(known)
    for name, atol in NEAR.items():
        np.testing.assert_allclose(both[name], both[f"{name}_known"], 0, atol, err_msg=name)


def generate(model, prompt, top_p):
    """Seeded draws by transformers' own loop, as the tokens before the end token, or None."""
    (end,) = prompt.end_ids
    length = max(map(len, prompt.sequences.symbols)) + 1
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        start = model.network(ids[:, :-1], use_cache=True).past_key_values
    start.batch_repeat_interleave(DRAWS)
    set_seed(7)
    out = model.network.generate(
        ids.expand(DRAWS, -1),
        attention_mask=torch.ones(DRAWS, ids.shape[1], dtype=torch.long),
        past_key_values=start,  # the prompt is forwarded once
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=top_p,
        max_new_tokens=length,
        eos_token_id=end,
        pad_token_id=end,
    )
    rows = out[:, ids.shape[1] :].tolist()
    return [tuple(row[: row.index(end)]) if end in row else None for row in rows]


def assert_share(hits, p, what):
    """Within four standard deviations of a binomial share, and at least one draw of slack."""
    sigma = math.sqrt(DRAWS * p * (1 - p))
    assert abs(hits - DRAWS * p) <= SIGMAS * sigma + 1, f"{what}: {hits} of {DRAWS}, expected {p}"


@pytest.mark.parametrize("model", [SMALLEST], indirect=True)
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_exact_probabilities_agree_with_what_the_model_writes(model, top_p):
    """And those at another temperature do not."""
    prompt = cu.render_prompt(model, SAMPLED_TASK)
    found = measure(model, prompt, [(cu.TopP(top_p), 1.0)])
    validity, p = found.validity[0], np.exp(found.answer_log_p[:, 0])
    assert 0.3 < validity < 0.7, "a share near 0 or 1 would prove little"
    answer = dict(zip(prompt.sequences.symbols, prompt.sequences.answer, strict=True))
    with torch.random.fork_rng(devices=[]):
        drawn = generate(model, prompt, top_p)
    hits = [answer[tokens] for tokens in drawn if tokens in answer]
    assert_share(len(hits), validity, "valid")
    for index, name in enumerate(SAMPLED_TASK.answers):
        assert_share(hits.count(index), p[index], name)
    assert not set(np.flatnonzero(p == 0)) & set(hits), "a removed answer was drawn"
    cooler = measure(model, prompt, [(cu.TopP(top_p), 0.7)])
    with pytest.raises(AssertionError, match="valid"):
        assert_share(len(hits), cooler.validity[0], "valid")

"""Batched completion is what a plain forward pass, and `generate`, give row by row, at the pace of
a CPU and at that of a GPU, which reads its texts some steps at a time."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import calib_utils as cu
from calib_utils.errors import InvalidRequestError, ModelFormatError, OutOfMemoryError
from calib_utils.models import generation, scoring
from calib_utils.models.generation import Continuations

PROMPT = tuple(range(40, 60))  # longer than the tiny models' windows
PREFIXES = [(), (70,), (71, 9), (8,), (7, 70, 71), (), (9, 71), (100, 3, 5)]
MAX_TOKENS = 11
TOLERANCE = 2e-4  # nats; logits of the tiny models have a standard deviation of about 5


@pytest.fixture
def gpu_pace(monkeypatch):
    """Called, it makes this CPU go through its batches as a GPU does."""
    return lambda: monkeypatch.setitem(generation.PACES, "cpu", generation.PACES["cuda"])


@pytest.fixture(params=["cpu", "cuda"])
def pace(request, monkeypatch):
    """A test runs at the pace of each kind of device."""
    monkeypatch.setitem(generation.PACES, "cpu", generation.PACES[request.param])


def complete(model, prompt_ids, *request, batch_size=None, **options):
    return Continuations(model, prompt_ids, batch_size).complete(*request, **options)


@torch.no_grad()
def plain_log_p(network, ids):
    logits = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


@torch.no_grad()
def generated(network, ids, end_ids):
    """What transformers' own greedy search adds to the ids."""
    ids = torch.tensor([ids])
    out = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=list(end_ids) or None,
        pad_token_id=0,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def assert_log_p_is_plain(network, found, tolerance=TOLERANCE):
    whole = [*PROMPT, *found.prefix, *found.token_ids]
    log_p = plain_log_p(network, whole)
    steps = range(len(PROMPT), len(whole))
    expected = [log_p[i - 1, whole[i]] for i in steps]
    np.testing.assert_allclose([*found.prefix_log_p, *found.log_p], expected, atol=tolerance)


def test_greedy_completion_is_generate(tiny, architecture, gpu_pace):
    model = tiny(architecture)
    free = complete(model, PROMPT, PREFIXES, MAX_TOKENS, ())
    # Tokens that the model does write, some early and some late, so that rows end at many steps.
    ends = {free[1].token_ids[2], free[4].token_ids[7], free[7].token_ids[0]}
    ends -= {prefix[-1] for prefix in PREFIXES if prefix}
    expected = [generated(model.network, [*PROMPT, *prefix], ends) for prefix in PREFIXES]
    assert len(set(map(len, expected))) > 1
    for batch_size, prepare in [(1, None), (3, None), (None, None), (None, gpu_pace)]:
        if prepare:
            prepare()
        found = complete(model, PROMPT, PREFIXES, MAX_TOKENS, ends, batch_size=batch_size)
        assert [completion.prefix for completion in found] == PREFIXES
        assert [completion.token_ids for completion in found] == expected, batch_size
        for completion in found:
            assert completion.ended == (completion.token_ids[-1] in ends)
            assert_log_p_is_plain(model.network, completion)


def test_sampled_log_probabilities_are_at_temperature_1(tiny, architecture):
    model = tiny(architecture)
    drawn = complete(model, PROMPT, PREFIXES[:5], 4, (), n_samples=2, temperature=2.0, seed=3)
    assert [(d.prefix, d.sample) for d in drawn] == [(p, s) for p in PREFIXES[:5] for s in (0, 1)]
    for completion in drawn:
        assert_log_p_is_plain(model.network, completion)


def test_rows_that_ended_are_not_forwarded(tiny, monkeypatch, gpu_pace):
    model = tiny()
    prefixes = [(i,) for i in range(60, 80)]
    free = complete(model, PROMPT, prefixes, 30, ())
    ends = {completion.token_ids[3] for completion in free[::2]} - set(range(60, 80))
    rows, forward = [], generation.forward

    def counting(network, ids, *args, **kwargs):
        rows.append(len(ids))
        return forward(network, ids, *args, **kwargs)

    monkeypatch.setattr(generation, "forward", counting)
    monkeypatch.setattr(scoring, "forward", counting)  # of the prompt
    found = complete(model, PROMPT, prefixes, 30, ends)
    assert rows[:2] == [1, 20]
    # The prompt; then of each row its prefix and every token but the last.
    assert sum(rows) == 1 + sum(len(completion.token_ids) for completion in found)
    assert rows[-1] < 20

    rows.clear()
    gpu_pace()
    assert [f.token_ids for f in complete(model, PROMPT, prefixes, 30, ends)] == [
        f.token_ids for f in found
    ]
    groups = [set(rows[at : at + 8]) for at in range(1, len(rows), 8)]
    assert all(len(group) == 1 for group in groups), "rows leave after each eighth step alone"
    sizes = [group.pop() for group in groups]
    assert all(b in (a, min(b, 0.75 * a)) for a, b in itertools.pairwise(sizes)), "in groups"
    assert sizes[0] == 20 > sizes[-1]


@pytest.mark.parametrize(
    ("prefixes", "n_samples", "operations"), [([()] * 512, 0, 6000), ([()], 512, 7500)]
)
def test_a_gpu_is_read_once_in_eight_steps(
    tiny, counted, gpu_pace, prefixes, n_samples, operations
):
    gpu_pace()
    tree = Continuations(tiny(), PROMPT, 512)
    with counted() as (found, reads):
        tree.complete(prefixes, 32, (), n_samples=n_samples)
    assert found["_local_scalar_dense"] == 0
    assert dict(reads) == {"cpu": 2 * 32 / 8}, "the tokens, and their log-probabilities"
    # Of which about 155 a step are this network's.
    assert found.total() <= operations, found.most_common(20)


@pytest.mark.parametrize(
    ("architecture", "shares"),
    [("llama", True), ("qwen2", True), ("qwen3", True), ("gemma3", False)],
)
def test_rows_share_the_keys_of_a_prompt(tiny, architecture, shares):
    """Nothing as large as a copy of them for every row is made, where rows can do without."""
    model, rows, prompt = tiny(architecture), 64, PROMPT * 20
    tree = Continuations(model, prompt, rows)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.untyped_storage().nbytes())
            return found

    with Sizes():
        found = tree.complete([()], 4, n_samples=rows)
    config = model.network.config.get_text_config()
    keys = config.num_key_value_heads * config.head_dim * len(prompt) * 4
    assert (largest < rows * keys / 2) == shares
    again = complete(model, prompt, [()], 4, n_samples=1)
    assert found[0].token_ids == again[0].token_ids
    assert found[0].log_p == pytest.approx(again[0].log_p, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_a_gpu_draws_the_texts_of_a_cpu(tiny, gpu_pace, temperature):
    model, free = tiny(), complete(tiny(), PROMPT, PREFIXES, 20, (), n_samples=3)
    ends = {one.token_ids[9] for one in free[::3]}
    options = {"n_samples": 3, "temperature": temperature}
    here = complete(model, PROMPT, PREFIXES, 20, ends, **options)
    gpu_pace()
    there = complete(model, PROMPT, PREFIXES, 20, ends, **options)
    assert len({len(one.token_ids) for one in here}) > 5
    assert {one.ended for one in here} == {True, False}
    for a, b in zip(here, there, strict=True):
        assert (a.token_ids, a.ended) == (b.token_ids, b.ended)
        assert_log_p_is_plain(model.network, b)


@pytest.mark.usefixtures("pace")
def test_what_is_not_scored_is_completed_alike(tiny):
    model = tiny()
    scored = complete(model, PROMPT, PREFIXES, MAX_TOKENS)
    found = Continuations(model, PROMPT, scored=False).complete(PREFIXES, MAX_TOKENS)
    for one, other in zip(scored, found, strict=True):
        # Products of other sizes differ in the last digits of float32, on some kernels.
        assert other == replace(one, prefix_log_p=(), log_p=other.log_p)
        assert other.log_p == pytest.approx(one.log_p, abs=1e-5)


@pytest.mark.usefixtures("pace")
def test_a_prefix_that_ends_is_complete(tiny):
    found = complete(tiny(), PROMPT, [(70, 5), (70, 6), (5,)], 4, [5])
    assert [(f.token_ids == (), f.ended) for f in found][::2] == [(True, True)] * 2
    assert len(found[0].prefix_log_p) == 2
    assert found[1].token_ids


@pytest.mark.usefixtures("pace")
def test_what_comes_after_an_end_does_not_count(fresh_tiny):
    model = fresh_tiny()
    free = complete(model, PROMPT, PREFIXES, 12, ())
    end = free[0].token_ids[2]
    with torch.no_grad():
        model.network.get_input_embeddings().weight[end] = float("nan")
    found = complete(model, PROMPT, PREFIXES, 12, [end])
    assert found[0].token_ids == free[0].token_ids[:3]
    assert {one.ended for one in found} == {True, False}


def test_candidates_are_a_plain_sort(tiny, architecture):
    model = tiny(architecture)
    ranks = (0, 1, 5, 200, model.network.get_output_embeddings().weight.shape[0] - 1)
    found = Continuations(model, PROMPT, 3).candidates(PREFIXES, ranks)
    for prefix, tokens in zip(PREFIXES, found, strict=True):
        log_p = plain_log_p(model.network, [*PROMPT, *prefix])[-1]
        order = np.argsort(-log_p, kind="stable")
        # Float ties aside: the same log-probability at each rank, and at the top the same token.
        np.testing.assert_allclose(log_p[tokens], log_p[order[list(ranks)]], atol=TOLERANCE)
        assert tokens[0] == order[0]


def test_tied_candidates_come_by_ascending_id(fresh_tiny):
    model = fresh_tiny()
    torch.nn.init.zeros_(model.network.get_output_embeddings().weight)
    found = Continuations(model, PROMPT).candidates([(), (70,)], [0, 1, 7, 100])
    assert found.tolist() == [[0, 1, 7, 100]] * 2


def test_draws_depend_on_seed_prefix_and_number_alone(tiny):
    model = tiny()
    options = {"n_samples": 3, "temperature": 1.5}
    whole = complete(model, PROMPT, PREFIXES, 6, (), seed=1, **options)
    apart = complete(model, PROMPT, PREFIXES[4:5], 6, (), seed=1, batch_size=1, **options)
    assert [d.token_ids for d in whole if d.prefix == PREFIXES[4]] == [d.token_ids for d in apart]
    other = complete(model, PROMPT, PREFIXES, 6, (), seed=2, **options)
    assert sum(a.token_ids == b.token_ids for a, b in zip(whole, other, strict=True)) < 3
    assert len({d.token_ids for d in apart}) == 3


def test_a_low_temperature_is_greedy(tiny):
    model = tiny()
    cold = complete(model, PROMPT, PREFIXES, 6, (), n_samples=2, temperature=1e-4)
    greedy = complete(model, PROMPT, PREFIXES, 6, ())
    assert [d.token_ids for d in cold[::2]] == [g.token_ids for g in greedy]
    assert [d.token_ids for d in cold[1::2]] == [g.token_ids for g in greedy]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_draws_have_the_tempered_distribution(tiny, temperature):
    model, n = tiny(), 3000
    drawn = complete(
        model, PROMPT, [(70,)], 1, (), n_samples=n, temperature=temperature, batch_size=1000
    )
    log_p = plain_log_p(model.network, [*PROMPT, 70])[-1] / temperature
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    share = np.bincount([d.token_ids[0] for d in drawn], minlength=len(p)) / n
    assert np.abs(share - p).max() < 5 * np.sqrt(0.25 / n)
    # Wilson's spread for the sum of a distance over all tokens, generously.
    assert np.abs(share - p).sum() < 2 * np.sqrt(len(p) / n)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.floats(0, 1, exclude_max=True))
@settings(max_examples=200)
def test_a_draw_inverts_the_distribution_function(logits, u):
    row = torch.tensor([logits])
    token, log_p = generation._draw(row, torch.tensor([u], dtype=torch.float64), 1.0)
    token, p = int(token), torch.softmax(row[0].double(), dim=0).numpy()
    assert p[:token].sum() <= u + 1e-12
    assert p[: token + 1].sum() >= u - 1e-12
    assert p[token] > 0
    assert log_p.exp() == pytest.approx(p[token])


def limited(monkeypatch, rows, message="DefaultCPUAllocator: can't allocate memory"):
    """Refuses calls of more rows; gives the rows of each call, a list that grows."""
    forward, asked = generation.forward, []

    def small(network, ids, *args, **kwargs):
        asked.append(len(ids))
        if len(ids) > rows:
            raise RuntimeError(message)
        return forward(network, ids, *args, **kwargs)

    monkeypatch.setattr(generation, "forward", small)
    return asked


def test_the_batch_halves_where_memory_is_short(tiny, monkeypatch):
    model, seen = tiny(), []
    expected = complete(model, PROMPT, PREFIXES, 5, ())
    asked = limited(monkeypatch, rows=1)
    tree = Continuations(model, PROMPT, 8)
    found = tree.complete(PREFIXES, 5, advance=seen.append)
    assert [f.token_ids for f in found] == [e.token_ids for e in expected]
    assert sum(seen) == len(PREFIXES)
    asked.clear()
    assert (tree.candidates(PREFIXES, [0])[:, 0] == [e.token_ids[0] for e in expected]).all()
    assert max(asked) == 1, "what did not fit is not tried again"


@pytest.mark.parametrize(
    ("message", "error", "said"),
    [
        ("can't allocate memory", OutOfMemoryError, "batch size tried: 1"),
        ("shapes do not match", RuntimeError, "shapes do not match"),
    ],
)
def test_one_row_that_does_not_fit_is_a_named_error_and_no_other(
    tiny, monkeypatch, message, error, said
):
    tree = Continuations(tiny(), PROMPT)
    limited(monkeypatch, 0, message)
    with pytest.raises(error, match=said):
        tree.complete([(70,)], 2)


def test_a_prompt_that_does_not_fit_is_a_named_error(fresh_tiny, monkeypatch):
    model = fresh_tiny()

    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.network, "forward", forward)
    for ask in (lambda: Continuations(model, PROMPT), lambda: cu.sample_answers(model, "rng-1")):
        with pytest.raises(OutOfMemoryError, match="the prompt of"):
            ask()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"max_tokens": 0}, InvalidRequestError, "max_tokens=0"),
        ({"max_tokens": 2.5}, InvalidRequestError, "max_tokens=2.5"),
        ({"n_samples": -1}, InvalidRequestError, "n_samples=-1"),
        ({"n_samples": 1, "temperature": 0.0}, InvalidRequestError, "temperature 0.0"),
        ({"temperature": float("nan")}, InvalidRequestError, "nan"),
        ({"batch_size": 0}, InvalidRequestError, "batch_size=0"),
        ({"prompt_ids": ()}, InvalidRequestError, "prompt_ids is empty"),
    ],
)
def test_bad_requests(tiny, changes, error, match):
    request = {"prompt_ids": PROMPT, "prefixes": PREFIXES, "max_tokens": 2, **changes}
    with pytest.raises(error, match=match):
        complete(tiny(), **request)


@pytest.mark.parametrize("ranks", [[], [-1], [0, 100_000]])
def test_ranks_that_do_not_exist(tiny, ranks):
    with pytest.raises(InvalidRequestError, match="must be from 0 to"):
        Continuations(tiny(), PROMPT).candidates([()], ranks)


@pytest.mark.usefixtures("pace")
@pytest.mark.parametrize(("prefix", "n_samples"), [((70,), 0), ((), 0), ((), 2)])
def test_broken_weights_are_a_named_error(fresh_tiny, prefix, n_samples):
    model = fresh_tiny()
    torch.nn.init.constant_(model.network.get_output_embeddings().weight, float("nan"))
    with pytest.raises(ModelFormatError, match="NaN or infinite"):
        complete(model, PROMPT, [prefix], 2, (), n_samples=n_samples)

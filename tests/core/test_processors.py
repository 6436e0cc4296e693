"""Rules, and any logits processor of transformers, against a loop over answers and tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

import calib_utils as cu
from calib_utils.core import processors, rules
from calib_utils.errors import InvalidRuleError, UnknownNameError
from calib_utils.models import scoring
from calib_utils.results import storage

# Answers that repeat themselves and the prompt's words.
TASK = cu.Task(
    "again", "Say one of x, ab, 1. Answer:", ["x", "xx", "xxx", "abab", "1,1", "ab", "1"]
)
NUMBERS = ["validity", "diversity", "sequence_precision", "sequence_recall"]


@pytest.fixture
def model(tiny):
    return tiny("llama", chat=True)


def like_the_last(ids, scores):
    """A plain function of the prefix: the token just written gains six nats, in place."""
    scores[torch.arange(len(ids)), ids[:, -1]] += 6.0
    return scores


def by_length(ids, scores):
    """Sharper with every token written, and nothing below a threshold."""
    scores = scores * (1 + ids.shape[1] / 50)
    return scores.masked_fill(scores < scores.amax(1, keepdim=True) - 30, -torch.inf)


REPEAT = RepetitionPenaltyLogitsProcessor(1.7)
CASES = {
    "repetition penalty": ([REPEAT], 1),
    "no repeated 2-gram": ([NoRepeatNGramLogitsProcessor(2)], 0),
    "plain function": ([like_the_last], 0),
    "one after another": ([REPEAT, like_the_last, TopPLogitsWarper(0.9999)], 2),
    "by length": ([by_length, MinPLogitsWarper(1e-7)], 1),
}


@pytest.fixture(scope="module")
def plain_logits():
    """Logits after a context from a forward pass of its own, each context once."""
    found = {}

    @torch.no_grad()
    def get(model, context):
        key = model.folder, *context
        if key not in found:
            ids = torch.tensor([context])
            found[key] = model.network(input_ids=ids, use_cache=False).logits[:, -1]
        return found[key].clone()

    return get


def brute_force(model, prompt, plain_logits, processors, temperature_at, temperature):
    """The four numbers, answer by answer and token by token, a plain forward pass a prefix."""
    row = list(processors)
    if temperature_at is not None:
        row.insert(temperature_at, TemperatureLogitsWarper(temperature))
    row = LogitsProcessorList(row)
    p, uniform = np.ones((2, prompt.trie.n_answers))
    (end,) = prompt.end_ids
    for symbols, answer in zip(prompt.sequences.symbols, prompt.sequences.answer, strict=True):
        for step, token in enumerate([*symbols, end]):
            context = [*prompt.ids, *symbols[:step]]
            scores = row(torch.tensor([context]), plain_logits(model, context))
            step_p = scores.double().softmax(-1)[0]
            p[answer] *= float(step_p[token])
            uniform[answer] *= float(step_p[token] > 0) / int((step_p > 0).sum())
    share = p[p > 0] / p.sum()
    diversity = np.exp(-(share * np.log(share)).sum()) / len(p) if len(share) else np.nan
    return [p.sum(), diversity, uniform.sum(), (uniform > 0).mean()]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("case", CASES)
def test_a_sampler_is_a_loop_over_answers_with_a_forward_pass_each(
    model, plain_logits, case, temperature
):
    processors, at = CASES[case]
    sampler = cu.Processors(processors, "own", temperature_at=at)
    found = cu.evaluate(model, TASK, [sampler], [temperature])
    prompt = cu.render_prompt(model, TASK)
    expected = brute_force(model, prompt, plain_logits, processors, at, temperature)
    np.testing.assert_allclose(found[NUMBERS].to_numpy()[0], expected, rtol=3e-4, atol=1e-14)


@pytest.mark.parametrize("architecture", ["qwen3.5", "gemma3"])
def test_other_architectures_and_batches_see_their_own_prefixes(tiny, plain_logits, architecture):
    model = tiny(architecture, chat=True)
    processors, at = CASES["one after another"]
    sampler = cu.Processors(processors, "own", temperature_at=at)
    prompt = cu.render_prompt(model, TASK)
    expected = brute_force(model, prompt, plain_logits, processors, at, 3.0)
    for batch_size in (1, 3, None):
        found = cu.evaluate(model, TASK, [sampler], [3.0], batch_size=batch_size)
        np.testing.assert_allclose(found[NUMBERS].to_numpy()[0], expected, rtol=3e-4)


WARPERS = {
    "none": [],
    **{f"top_k={k}": [TopKLogitsWarper(k)] for k in (60, 200)},
    **{f"top_p={p}": [TopPLogitsWarper(p)] for p in (0.97, 0.99)},
    "min_p=0.005": [MinPLogitsWarper(0.005)],
}


@pytest.mark.parametrize("architecture", ["llama", "qwen3.5", "gemma3"])
def test_evaluate_is_enumeration_with_the_transformers_warpers(tiny, plain_logits, architecture):
    model, temperatures = tiny(architecture, chat=True), [0.8, 2.5]
    prompt = cu.render_prompt(model, TASK)
    expected = [
        brute_force(model, prompt, plain_logits, warpers, 0, temperature)
        for warpers in WARPERS.values()
        for temperature in temperatures
    ]
    found = cu.evaluate(model, TASK, WARPERS, temperatures)[NUMBERS].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-14)
    assert ((found[:, 3] > 0) & (found[:, 3] < 1)).any(), "some cutoff must cut some answers"


@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0])
@pytest.mark.parametrize(
    ("processor", "rule"),
    [
        (TopPLogitsWarper(0.999), cu.TopP(0.999)),
        (TypicalLogitsWarper(0.999), cu.Typical(0.999)),
        (MinPLogitsWarper(1e-5), cu.MinP(1e-5)),
    ],
)
def test_a_warper_of_transformers_is_the_rule(model, processor, rule, temperature):
    found = cu.evaluate(model, TASK, [cu.Processors(processor, "own"), rule], [temperature])
    own, known = found[NUMBERS].to_numpy()
    np.testing.assert_allclose(own, known, rtol=1e-5)
    assert known[3] > 0, "some answers are left"


def test_several_end_tokens_add_up(tiny):
    model = tiny("llama", chat=True)
    found = cu.evaluate(
        model, TASK, [cu.Processors(lambda ids, scores: scores, "own"), "none"], [0.6], end="line"
    )
    own, known = found[NUMBERS].to_numpy()
    np.testing.assert_allclose(own, known, rtol=1e-5)


def test_rules_and_processors_keep_the_order_asked_for(model, tmp_path):
    def sampler(name, scale):
        return cu.Processors(lambda ids, scores: scores * scale, name, scale)

    rows = ["top_k=60", sampler("a", 2.0), "none", sampler("b", 0.5), "top_p=0.99"]
    for folder in (None, tmp_path, tmp_path):
        found = cu.evaluate(model, TASK, rows, [1.0, 0.5], results_dir=folder)
        assert found.rule.tolist() == [
            n for n in ("top_k", "a", "none", "b", "top_p") for _ in "12"
        ]
        assert found.temperature.tolist() == [1.0, 0.5] * 5
        assert found.parameter.dropna().tolist() == [60, 60, 2, 2, 0.5, 0.5, 0.99, 0.99]
    # Logits times 2 are T = 1/2.
    by = found.set_index(["rule", "temperature"]).validity
    assert by["a", 1.0] == pytest.approx(by["none", 0.5], rel=1e-5)
    assert by["b", 0.5] == pytest.approx(by["none", 1.0], rel=1e-5)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def counting(calls):
    def process(ids, scores):
        calls.append(len(ids))
        return scores

    return process


def test_rows_of_processors_are_neither_stored_nor_reused(model, tmp_path):
    cu.evaluate(model, TASK, ["none", "top_k=60"], [1.0], results_dir=tmp_path)
    folder = storage.folder_of(tmp_path, model.key, TASK.name)
    before, calls = content(folder), []
    mine = cu.Processors(counting(calls), "own")
    for times in (1, 2):
        found = cu.evaluate(model, TASK, ["none", mine], [1.0], results_dir=tmp_path)
        assert sum(calls) >= times * found.n_nodes[0], "every node, every time"
        assert content(folder) == before
    other = cu.Processors(lambda ids, scores: scores * 3, "own")
    first, second = cu.evaluate(model, TASK, ["none", other], results_dir=tmp_path).validity
    assert abs(math.log(second / first)) > 0.1


@pytest.mark.parametrize("family", rules.FAMILIES)
def test_a_name_of_a_rule_is_refused_since_tables_could_not_tell_them_apart(family):
    with pytest.raises(InvalidRuleError, match=f"{family!r}: rename it"):
        cu.evaluate("m", "rng-1", [cu.Processors(like_the_last, family)])


BROKEN = {
    "drops all": (
        lambda _, s: s - torch.inf,
        "drops every token, or gives NaN.*must keep at least",
    ),
    "drops all of one row": (
        lambda _, s: s.index_fill(0, torch.tensor([0]), -torch.inf),
        "drops every",
    ),
    "NaN": (lambda _, s: s * torch.nan, "gives NaN"),
    "one NaN": (lambda _, s: s.index_fill(1, torch.tensor([3]), torch.nan), "gives NaN"),
    "+inf": (lambda _, s: s + torch.inf, "drops every token, or gives NaN"),
    "wrong width": (lambda _, s: s[:, :-1], r"instead of scores of the\s+shape \(\d+, \d+\)"),
    "one row of many": (lambda _, s: s[0], "instead of scores"),
    "nothing": (lambda _, s: None, "NoneType instead of scores"),
    "an array": (lambda _, s: s.numpy(), "ndarray instead of scores"),
}


def add_rows(ids, scores):
    return scores + scores.cumsum(0) * 0.01


class Remembers:
    """Keeps what it saw in the first row that it was ever asked."""

    def __init__(self):
        self.first = None

    def __call__(self, ids, scores):
        self.first = scores[:1] if self.first is None else self.first
        return scores + 0.1 * self.first


class Counts:
    def __init__(self):
        self.state = {"calls": 0}

    def __call__(self, ids, scores):
        self.state["calls"] += 1
        return scores * self.state["calls"]


IMPURE = {
    "memory": Remembers,
    "a counter": Counts,
    "chance": lambda: lambda ids, scores: scores + torch.rand(1) * (scores - 1),
    "other rows": lambda: add_rows,
    # As written by hand without `dim=`: the order of rows does not matter, their company does.
    "the highest of all rows": lambda: lambda ids, s: s.masked_fill(s < s.max() - 5, -torch.inf),
    "the spread of all rows": lambda: lambda ids, s: s / s.std(),
    "a second model with a cache": lambda: "guidance",
}


@pytest.mark.parametrize("case", IMPURE)
def test_a_processor_that_depends_on_more_than_the_prefix_is_a_named_error(model, case):
    processor = IMPURE[case]()
    if processor == "guidance":
        processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model.network)
    said = "'own'(, processor 1, failed| answers otherwise when it is asked again)"
    with pytest.raises(InvalidRuleError, match=said):
        cu.evaluate(model, TASK, [cu.Processors(processor, "own")])


def test_a_processor_that_holds_parameters_runs_without_gradients(model):
    scale = torch.nn.Parameter(torch.tensor(2.0))
    learned = torch.nn.Linear(1, 1)

    def guided(ids, scores):
        plain = model.network(ids[:, -1:]).logits[:, -1]
        return scale * scores + 0 * (plain + learned(scores[:, :1]))

    rows = [cu.Processors(guided, "own"), "none"]
    own = cu.evaluate(model, TASK, rows[:1], [1.0])[NUMBERS].to_numpy()
    known = cu.evaluate(model, TASK, rows[1:], [0.5])[NUMBERS].to_numpy()
    np.testing.assert_allclose(own, known, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, -1e9])
def test_a_score_that_is_masked_by_the_lowest_number_is_dropped(model, lowest, temperature):
    rows = [
        cu.Processors(MinPLogitsWarper(0.01, filter_value=value), f"by{i}", temperature_at=at)
        for i, (value, at) in enumerate(
            [(-torch.inf, 0), (lowest, 0), (-torch.inf, 1), (lowest, 1)]
        )
    ]
    found = cu.evaluate(model, TASK, rows, [temperature])[NUMBERS].to_numpy()
    np.testing.assert_array_equal(found[::2], found[1::2])


@pytest.mark.parametrize("position", ["last", "before temperature"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_processor_that_returns_no_distribution_is_a_named_error(model, case, position):
    broken, message = BROKEN[case]
    row = [broken] if position == "last" else [broken, like_the_last]
    sampler = cu.Processors(row, "broken", temperature_at=len(row) - 1)
    with pytest.raises(InvalidRuleError, match=f"(?s)'broken'.*{message}"):
        cu.evaluate(model, TASK, [sampler], [0.5])


def test_temperature_left_to_the_processors_is_refused_before_the_model_runs(model, monkeypatch):
    own = [TemperatureLogitsWarper(0.5)]
    sampler = cu.Processors(own, "own", temperature_at=None)
    found = cu.evaluate(model, TASK, [sampler], [1.0]).validity[0]
    assert found == pytest.approx(cu.evaluate(model, TASK, ["none"], [0.5]).validity[0], rel=1e-5)
    monkeypatch.setattr(scoring, "score", lambda *args, **kwargs: pytest.fail("the model ran"))
    for temperatures in ([0.5], [1.0, 2.0]):
        with pytest.raises(InvalidRuleError, match=r"(?s)'own'.*at\s+temperature 1.0, not \["):
            cu.evaluate(model, TASK, [sampler], temperatures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], "p"), "give logits processors"),
        (([1], "p"), r"got \[1\]"),
        ((MinPLogitsWarper, "p"), r"MinPLogitsWarper is a class: give an object, MinP"),
        ((abs, ""), "sampler name ''"),
        ((abs, 5), "sampler name 5"),
        ((abs, "a=b"), "without '='"),
        ((abs, "a+b"), "without '='"),
        ((abs, "a@b"), "without '='"),
        ((abs, "p", "1"), "parameter='1'"),
        ((abs, "p", True), "parameter=True"),
        ((abs, "p", 1, 2), "temperature_at=2 must be None or from 0 to 1"),
        ((abs, "p", 1, -1), "temperature_at=-1"),
        ((abs, "p", 1, "first"), "temperature_at='first'"),
    ],
)
def test_misuse_is_a_named_error(arguments, message):
    with pytest.raises(InvalidRuleError, match=message):
        cu.Processors(*arguments)


@given(st.permutations([0, 1, 2]), st.integers(0, 3), st.sampled_from([0.3, 1.0, 2.0]))
def test_the_row_of_processors_is_that_of_transformers(order, at, temperature):
    row = [REPEAT, like_the_last, MinPLogitsWarper(0.1)]
    row = [row[place] for place in order]
    generator = torch.Generator().manual_seed(at)
    logits = 3 * torch.randn(4, 50, generator=generator)
    ids = torch.randint(50, (4, 9), generator=generator)
    whole = [*row[:at], TemperatureLogitsWarper(temperature), *row[at:]]
    expected = LogitsProcessorList(whole)(ids, logits.clone()).double().log_softmax(-1)
    before = logits.clone()
    found = cu.Processors(row, "own", temperature_at=at).log_p(ids, logits, temperature)
    assert torch.equal(logits, before), "the model's logits are left alone"
    assert torch.equal(found, expected)


# --- Rules of a user's own: their answers looked at, their rows never stored ---


def own(n_kept, **attributes):
    """A rule as a user may write it."""
    body = {"name": "own", "n_kept": lambda self, step: n_kept(step)}
    return type("Own", (cu.Rule,), body | attributes)()


def ten(step):
    return step.size.clamp(max=10)


ALIKE = {"alone": lambda rule: rule, "in a chain": lambda rule: cu.Chain([rule, cu.TopP(0.95)])}


@pytest.mark.parametrize("place", ALIKE)
def test_a_rule_of_ones_own_gives_the_numbers_of_the_same_rule(tiny, place):
    mine, ours = (ALIKE[place](rule) for rule in (own(ten), cu.TopK(10)))
    for measured in (cu.evaluate, cu.step_losses):
        found, wanted = (
            measured(tiny("llama"), "rng-2", [rule], [0.7, 2.0]).drop(columns=["rule", "parameter"])
            for rule in (mine, ours)
        )
        assert len(found) and found.equals(wanted)


@pytest.mark.parametrize("place", ALIKE)
def test_its_rows_are_never_stored(tiny, tmp_path, place):
    """Its code may change under its name."""
    arguments = {"results_dir": tmp_path, "temperatures": [2.0]}
    for n_kept in (ten, lambda step: step.size):
        rule = ALIKE[place](own(n_kept))
        found = cu.evaluate(tiny("llama"), "rng-1", ["none", rule], **arguments)
        fresh = cu.evaluate(tiny("llama"), "rng-1", [rule], [2.0])
        assert found.validity[1] == fresh.validity[0]
        stored = cu.stored_measurement(tiny("llama"), "rng-1", tmp_path)
        assert list(stored.settings.rule) == ["none"]


@pytest.mark.parametrize("place", ALIKE)
def test_a_known_name_is_refused(tiny, tmp_path, place):
    rule = ALIKE[place](own(ten, name="top_k"))
    with pytest.raises(InvalidRuleError, match="'top_k': rename it"):
        cu.evaluate(tiny("llama"), "rng-1", [rule], results_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("n_kept", "said"),
    [
        (lambda step: step.size + 1, r"gave 263 of 262 tokens"),
        (lambda step: step.size * 0, r"gave 0 of 262 tokens"),
        (lambda step: step.size > 3, r"gave torch\.bool of shape"),
        (lambda step: step.size.double(), r"gave torch\.float64 of shape"),
        (
            lambda step: torch.full((1, 1), 3),
            r"gave torch\.int64 of shape torch\.Size\(\[1, 1\]",
        ),
        (
            lambda step: step.size[:1].repeat(7),
            r"gave torch\.int64 of shape torch\.Size\(\[7\]",
        ),
        (lambda step: 5, r"gave int of shape None"),
        (lambda step: [5], r"gave list of shape None"),
        (lambda step: None, r"gave NoneType of shape None"),
    ],
)
@pytest.mark.parametrize("place", ALIKE)
def test_a_number_of_tokens_that_is_none_is_named(tiny, place, n_kept, said):
    with pytest.raises(InvalidRuleError, match=f"rule 'own': n_kept {said}"):
        cu.evaluate(tiny("llama"), "rng-1", [ALIKE[place](own(n_kept))])


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"name": None}, "name=None: give its class a name"),
        ({"name": ""}, "name='': give its class a name"),
        ({"parameter": "x"}, "parameter='x': give a number"),
        ({"parameter": None}, "parameter=None: give a number"),
    ],
)
def test_a_rule_that_cannot_be_named_in_a_table_is_refused(attributes, said):
    with pytest.raises(InvalidRuleError, match=said):
        processors.check_rules([own(ten, **attributes)])


def test_a_whole_number_is_a_parameter_too():
    (rule,) = processors.check_rules([own(ten, parameter=1)])
    assert rule.key == "own=1"
    assert processors.check_rules([rule]) == [rule]


def test_a_rule_that_keeps_no_top_prefix_says_so_itself(tiny):
    def second(self, step):
        return step.within(step.start + 1, step.start + 2)

    rule = own(ten, keep=second, is_rank_cutoff=False)
    validity = cu.evaluate(tiny("llama"), "rng-1", [rule]).validity
    assert len(validity) == 1
    with pytest.raises(InvalidRuleError, match="keeps no top prefix"):
        cu.step_losses(tiny("llama"), "rng-1", [rule])


def test_the_name_of_a_stored_rule_imports_nothing(monkeypatch):
    """Stored tables may come from others."""
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("imported"))
    for text in ("os:getcwd", "top_k=4+os:getcwd"):
        with pytest.raises(UnknownNameError, match="unknown rule"):
            cu.parse_rule(text)

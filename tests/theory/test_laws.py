"""Models with known answers, through the whole chain: formulas, brute force, draws, stored rows."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import calib_utils as cu
from calib_utils.book import check
from calib_utils.core.tries import uniform_over_valid
from calib_utils.errors import (
    InvalidRequestError,
    ResultsError,
    TokenizationError,
    UnknownNameError,
)
from calib_utils.models import scoring
from calib_utils.results.evaluation import diversity_of, share_interval
from calib_utils.studies.oracle_cutoffs import split_table
from calib_utils.theory.laws import (
    ByStep,
    Displaced,
    EquallySharp,
    Geometric,
    Law,
    LeakyShape,
    Node,
    Permuted,
    UniformOverG,
    UniformOverV,
    Zipf,
    character_tokenizer,
    reference_model,
)

TEMPERATURES = (0.3, 1.0, 1.7, 3.0)
RULES = ("none", "top_k=3", "top_k=12", "top_p=0.57", "top_p=0.93", "min_p=0.3", "oracle_size")
LAWS = [
    UniformOverV(),
    UniformOverG(),
    LeakyShape(0.9),
    LeakyShape(0.05),  # not order calibrated
    Geometric(0.25),
    EquallySharp(2.0),
    Zipf(1.3),
    Displaced(Geometric(0.31), 1),
    Permuted(Zipf(1.3), (2, 0, 1)),
    ByStep((Zipf(1.3), LeakyShape(0.7))),
]
# Equal branching at each step (Assumption 5.1), with steps that leave no choice.
FIXED, BRANCHING = "rng-2", (10, 1, 10, 1)
UNEQUAL = cu.Task("unequal", "Say one:", ["a", "ab", "abc", "abd", "b", "cab", "cc"])
EXACT = 1e-12  # where float32 holds the logits


def float32_limit(law, task, temperature, end="eos"):
    """How far ln p of an answer may move when every logit is rounded to float32 (2^-24 of it)."""
    worst, depth = 0.0, 0
    for node in nodes_by_hand(reference_model(law, task, end=end), task, end).values():
        logits = law.logits(node)
        gap = np.where(np.isfinite(logits), np.abs(logits), 0.0)
        p = np.exp((logits - logits.max()) / temperature)
        mean = (gap * p).sum() / p.sum()
        worst = max(worst, (gap[node.symbols].max() + mean) / temperature)
        depth = max(depth, len(node.prefix) + 1)
    return EXACT + depth * worst * 2.0**-24


def nodes_by_hand(model, task, end="eos"):
    """Every prefix of an answer as the law sees it, counted from token lists without a trie."""
    prompt = cu.render_prompt(model, task, end=end)
    counts = defaultdict(lambda: defaultdict(float))
    for symbols in prompt.sequences.symbols:
        for i, symbol in enumerate(symbols):
            counts[symbols[:i]][symbol] += 1
        for token in prompt.end_ids:
            counts[symbols][token] += 1 / len(prompt.end_ids)
    size = len(model.tokenizer)
    return {
        prefix: Node(prefix, np.array(list(n)), np.array(list(n.values())), size)
        for prefix, n in counts.items()
    }


def kept_by_hand(rule, p, n_valid):
    """Tokens that survive, by descending probability and ascending id."""
    name, _, number = rule.partition("=")
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    if name == "top_k":
        return order[: int(number)]
    if name == "oracle_size":
        return order[:n_valid]
    if name == "min_p":
        return [token for token in order if p[token] >= float(number) * p[order[0]]]
    if name == "top_p":
        held = np.cumsum([p[token] for token in order])
        return order[: int(np.argmax(held >= float(number))) + 1]
    return order


def by_hand(model, task, rule, temperature, end="eos"):
    """(Val, Div, Prec_seq, Rec_seq) by listing every answer, from float32 logits as the model's."""
    prompt, steps = cu.render_prompt(model, task, end=end), {}
    for prefix, node in nodes_by_hand(model, task, end).items():
        logits = np.float32(model.law.logits(node)).astype(float)
        p = np.exp((logits - logits.max()) / temperature)
        kept = kept_by_hand(rule, p / p.sum(), node.n_valid)
        total = p[kept].sum()
        steps[prefix] = {token: (p[token] / total, 1 / len(kept)) for token in kept}
    drawn, uniform = [], []
    for symbols in prompt.sequences.symbols:
        ways = [(*symbols, token) for token in prompt.end_ids] or [symbols]
        pairs = []
        for way in ways:
            edges = [steps[way[:i]].get(token, (0.0, 0.0)) for i, token in enumerate(way)]
            pairs.append(np.prod(edges, axis=0))
        drawn.append(sum(pair[0] for pair in pairs))
        uniform.append(sum(pair[1] for pair in pairs))
    share = np.array(drawn) / sum(drawn) if sum(drawn) else np.array([])
    entropy = -sum(q * math.log(q) for q in share if q)
    diversity = math.exp(entropy) / len(drawn) if len(share) else math.nan
    return sum(drawn), diversity, sum(uniform), np.mean(np.array(uniform) > 0)


def numbers(row):
    return row.validity, row.diversity, row.sequence_precision, row.sequence_recall


def plain(law, task, temperature=1.0, **options):
    table = cu.evaluate(reference_model(law, task, **options), task, temperatures=[temperature])
    return table.iloc[0]


def assert_close(law, task, temperature, row, validity, diversity, end="eos"):
    """Within what rounding logits to float32 allows, to first order."""
    limit = float32_limit(law, task, temperature, end)
    assert row.validity == pytest.approx(validity, rel=limit)
    n = len(cu.get_task(task).answers)
    assert row.diversity == pytest.approx(diversity, rel=2 * limit * (1 + math.log(n)))


# Every law and rule against brute force.


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("end", ["eos", "line"])
def test_every_rule_and_temperature_agrees_with_listing_the_answers(law, end):
    model = reference_model(law, UNEQUAL, end=end)
    table = cu.evaluate(model, UNEQUAL, RULES, TEMPERATURES, end=end)
    keys = table.rule + table.parameter.map(lambda p: "" if math.isnan(p) else f"={p:g}")
    for key, row in zip(keys, table.itertuples(), strict=True):
        wanted = by_hand(model, UNEQUAL, key, row.temperature, end)
        assert numbers(row) == pytest.approx(wanted, rel=1e-9, nan_ok=True), (key, row.temperature)


def hill(p):
    """exp(entropy) of weights."""
    p = np.asarray(p) / np.sum(p)
    return math.exp(-(p * np.log(p)).sum())


# Formulas of the docstrings on equal branching, each written out anew.

MASSES = {
    Geometric(0.25): lambda v, rank: np.exp(-0.25 * rank),
    Geometric(1.0): lambda v, rank: np.exp(-rank),
    Geometric(0.3): lambda v, rank: np.exp(-0.3 * rank),
    EquallySharp(3.0): lambda v, rank: np.exp(-3 * rank / v),
    Zipf(1.3): lambda v, rank: (rank + 1) ** -1.3,
}


@pytest.mark.parametrize("k", [0, 1, 4, 10])
@pytest.mark.parametrize("law", MASSES, ids=repr)
def test_laws_by_rank_and_displaced(law, k):
    moved, n = Displaced(law, k) if k else law, len(character_tokenizer(FIXED))
    table = cu.evaluate(reference_model(moved, FIXED), FIXED, ["none", "oracle_size"], TEMPERATURES)
    share = ((10 - k) / 10) ** 2
    for temperature, rows in table.groupby("temperature"):
        own = {}
        for v in BRANCHING:
            mass = MASSES[law](v, np.arange(n, dtype=float)) ** (1 / temperature)
            own[v] = mass[[*range(v - k), *range(v, v + k)] if v > 1 else [0]] / mass.sum()
        diversity = math.prod(hill(own[v]) / v for v in BRANCHING)
        free = math.prod(own[v].sum() for v in BRANCHING), diversity
        assert_close(moved, FIXED, temperature, rows.iloc[0], *free)
        if law in (Geometric(0.25), Geometric(1.0)):  # float32 holds these logits
            assert numbers(rows.iloc[0])[:2] == pytest.approx(free, rel=EXACT)
        assert numbers(rows.iloc[1])[2:] == pytest.approx((share, share), abs=EXACT)


def test_equal_sharpness_has_one_local_validity_whatever_the_branching():
    # Over infinitely many ranks; here a remainder of e^-53.
    row = plain(EquallySharp(3.0), "rng-2-sum-at-most-10", 0.8)
    assert row.validity == pytest.approx((1 - math.exp(-3 / 0.8)) ** 4, rel=1e-6)


@pytest.mark.parametrize("a", [1.0, 0.9, 0.2])
def test_leaky_shape(a):
    row = plain(LeakyShape(a), FIXED)
    assert_close(LeakyShape(a), FIXED, 1.0, row, a**4, 1.0)
    lengths = np.array([len(answer) + 1 for answer in UNEQUAL.answers])
    row = plain(LeakyShape(a), UNEQUAL)
    p = a**lengths / len(lengths)
    assert_close(LeakyShape(a), UNEQUAL, 1.0, row, p.sum(), hill(p) / len(p))


def test_leaky_shape_is_order_calibrated_up_to_a_known_validity():
    """At the root of `rng-1`: a/10 of each digit against (1-a)/(n-10) of each other token."""
    n = len(character_tokenizer("rng-1"))
    for a, ordered in ((10 / n + 0.001, True), (10 / n - 0.001, False)):
        model = reference_model(ByStep((LeakyShape(a), UniformOverV())), "rng-1")
        oracle = cu.evaluate(model, "rng-1", ["oracle_size"]).iloc[0]
        assert (oracle.sequence_recall == 1) == ordered


# Positive and negative controls of losses, split and frontier.


@pytest.mark.parametrize("task", [FIXED, "rng-2-sum-at-most-10", "us-states", UNEQUAL], ids=str)
@pytest.mark.parametrize("end", ["eos", "line"])
def test_uniform_over_v_is_perfect_everywhere(task, end):
    model = reference_model(UniformOverV(), task, end=end)
    rules = ["none", "top_p=1", "min_p=0.000001"]
    table = cu.evaluate(model, task, [*rules, "oracle_size"], end=end)
    assert table[["validity", "diversity"]].to_numpy() == pytest.approx(1, abs=1e-11)
    sequence = table[["sequence_precision", "sequence_recall"]].iloc[-1]
    assert sequence.tolist() == pytest.approx([1, 1])
    losses = cu.step_losses(model, task, end=end)
    assert losses[["validity_loss", "diversity_loss"]].to_numpy() == pytest.approx(0, abs=1e-11)
    parts = split_table(losses.assign(task="t"))[["total", "order", "shape", "size"]]
    assert parts.to_numpy() == pytest.approx(0, abs=1e-11)
    frontier = cu.adaptive_frontier(model, task, end=end).to_numpy()
    assert frontier[-1] == pytest.approx([1, 1], abs=1e-11)
    log_p = cu.answer_probabilities(model, task, end=end).log_p
    assert log_p.to_numpy() == pytest.approx(-math.log(len(log_p)), abs=1e-6)


def test_without_an_end_token_an_answer_counts_when_written():
    law = LeakyShape(0.8)
    row = cu.evaluate(reference_model(law, FIXED, end="none"), FIXED, end="none").iloc[0]
    assert_close(law, FIXED, 1.0, row, 0.8**3, 1.0, end="none")
    with pytest.raises(TokenizationError, match="begins answer"):
        reference_model(law, UNEQUAL, end="none")


@pytest.mark.parametrize("task", [FIXED, "rng-3-sum-equals-10", "us-states", UNEQUAL], ids=str)
def test_uniform_over_g_is_the_structural_ceiling_at_every_temperature(task):
    model = reference_model(UniformOverG(), task)
    ceiling = cu.structural_facts(model, [task]).uniform_over_g[0]
    table = cu.evaluate(model, task, temperatures=TEMPERATURES)
    assert table.validity.to_numpy() == pytest.approx(1, abs=EXACT)
    assert table.diversity.to_numpy() == pytest.approx(ceiling, abs=EXACT)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_parts_of_the_loss_are_positive_where_order_or_shape_is_wrong(law):
    losses = cu.step_losses(reference_model(law, UNEQUAL), UNEQUAL).assign(task="t")
    parts = split_table(losses).iloc[0]
    assert parts.order > 0.01 if law in (LAWS[3], LAWS[7], LAWS[8]) else parts.order == 0
    # In proportion to N, and in order.
    if law in (LAWS[0], LAWS[2]):
        assert abs(parts["shape"]) < 1e-6
    elif law != LAWS[3]:
        assert parts["shape"] > 1e-3


@pytest.mark.parametrize("law", [Geometric(0.31), Zipf(1.3)], ids=repr)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_repairing_the_order_of_a_displaced_law_gives_the_law(law, temperature):
    def losses(law, repair):
        table = cu.step_losses(reference_model(law, UNEQUAL), UNEQUAL, ["none"], [temperature])
        table = table[table.repair == repair]
        return table[["validity_loss", "diversity_loss"]].to_numpy()

    assert losses(Displaced(law, 1), "order") == pytest.approx(losses(law, "none"), abs=EXACT)
    assert losses(Displaced(law, 1), "none") != pytest.approx(losses(law, "none"), abs=1e-3)


def test_the_best_adaptive_cutoff_reaches_both_only_where_order_is_calibrated():
    zipf = Zipf(1.3)
    models = [reference_model(law, FIXED) for law in (zipf, Displaced(zipf, 1))]
    ordered, found = (cu.adaptive_frontier(model, FIXED).to_numpy() for model in models)
    assert ordered[-1] == pytest.approx([1, 1])
    # Keeping all ten means eleven ranks; stopping at nine loses a tenth, and no invalid one.
    assert found[0] == pytest.approx([1, 0.81], abs=EXACT)
    assert found[-1] == pytest.approx([(10 / 11) ** 2, 1], abs=EXACT)


# What the theory says of these laws.


def ranked_loss(v, a):
    """Delta_v(a) = ln v - entropy of exp(-a i / v), i < v (Def. F.1)."""
    return math.log(v) - math.log(hill(np.exp(-a * np.arange(v) / v)))


@pytest.mark.parametrize(("fillers", "decay", "holds"), [(0, 0.001, False), (5000, 0.2, True)])
def test_normalised_over_few_ranks_the_bound_of_theorem_f4_fails(fillers, decay, holds):
    """Nine valid tokens of twelve: nearly flat, so valid and diverse at once."""
    task = cu.Task("nine", "123456789", list("123456789"))
    model = reference_model(Geometric(decay), task, character_tokenizer(task, fillers), "none")
    assert len(model.tokenizer) == 12 + fillers
    row = cu.evaluate(model, task, end="none").iloc[0]
    bound = math.exp(-ranked_loss(9, -math.log(1 - row.validity)))
    assert (row.diversity <= bound + 1e-9) == holds


@dataclass(frozen=True)
class ByPrefix(Law):
    """A law that looks at the prefix: sure of itself after the second answer's first letter."""

    def logits(self, node):
        certain = len(node.prefix) == 1 and node.prefix[0] == SECOND
        return (UniformOverV() if certain else Geometric(math.log(2))).logits(node)


PAIR = cu.Task("pair", "x", ["ax", "bx"])
SECOND = character_tokenizer(PAIR).convert_tokens_to_ids("b")


def test_a_decay_that_differs_between_prefixes_escapes_theorem_5_2():
    """.5 x .5 and .25 x 1: half of the mass is valid, and shared evenly."""
    row = cu.evaluate(reference_model(ByPrefix(), PAIR, end="none"), PAIR, end="none").iloc[0]
    assert (row.validity, row.diversity) == pytest.approx((0.5, 1.0), abs=1e-6)
    bound = math.exp(-ranked_loss(2, math.log(2)) - ranked_loss(1, math.log(2)))
    assert bound == pytest.approx(0.985, abs=1e-3)


# The interface of a real model.


def test_logits_depend_on_the_whole_prefix_and_a_cache_continues_it():
    model = reference_model(Geometric(0.25), UNEQUAL)
    prompt = cu.render_prompt(model, UNEQUAL)
    tokens = torch.tensor([model.tokenizer("abd").input_ids, model.tokenizer("cab").input_ids])
    whole = torch.cat([torch.tensor([prompt.ids] * 2), tokens], dim=1)
    at_once, _ = scoring.forward(model.network, whole, None, keep=4)
    first, cache = scoring.forward(model.network, whole[:1, : len(prompt.ids)], None, keep=1)
    steps, both = [first.expand(2, -1, -1)], scoring.continue_rows(cache, torch.tensor([0, 0]))
    for column in range(3):
        logits, both = scoring.forward(model.network, tokens[:, column : column + 1], both, keep=1)
        steps.append(logits)
    assert torch.equal(torch.cat(steps, dim=1), at_once)
    swapped = scoring.continue_rows(both, torch.tensor([1, 0]))
    end = torch.full((2, 1), prompt.end_ids[0])
    a, _ = scoring.forward(model.network, end, swapped, keep=1)
    assert both.ids.tolist() == swapped.ids.flip(0).tolist()
    # After the end nothing but the end is possible.
    assert (a.argmax(-1) == prompt.end_ids[0]).all() and torch.isfinite(a).sum() == 2


def test_after_an_invalid_token_only_the_end_is_possible():
    model = reference_model(Geometric(0.25), UNEQUAL)
    prompt = cu.render_prompt(model, UNEQUAL)
    ids = torch.tensor([[*prompt.ids, *model.tokenizer("db").input_ids]])
    logits, _ = scoring.forward(model.network, ids, None, keep=2)
    assert logits.softmax(-1)[0, :, prompt.end_ids[0]].tolist() == [1, 1]


def test_another_prompt_is_refused():
    model = reference_model(UniformOverV(), "rng-2")
    with pytest.raises(InvalidRequestError, match=r"knows one task, 'rng-2'.*reference_model"):
        cu.evaluate(model, "rng-3")


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_draws_agree_with_the_exact_values(temperature):
    law, n = Displaced(EquallySharp(3.0), 1), 4000
    model = reference_model(law, UNEQUAL)
    drawn = cu.sample_answers(model, UNEQUAL, n, temperature, seed=3)
    exact = np.exp(cu.answer_probabilities(model, UNEQUAL, [temperature]).log_p.to_numpy())
    low, high = share_interval(int(drawn.answer.notna().sum()), n, z=4)
    assert low < exact.sum() < high
    for answer, p in zip(UNEQUAL.answers, exact, strict=True):
        low, high = share_interval(int((drawn.answer == answer).sum()), n, z=4)
        assert low < p < high, answer
    assert 0.2 < exact.sum() < 0.99, "a share near 0 or 1 would prove little"


def test_stored_rows_are_reused_and_told_apart(tmp_path):
    laws = [Geometric(0.25), Geometric(0.5)]
    models = [reference_model(law, UNEQUAL) for law in laws]
    first = [cu.evaluate(m, UNEQUAL, RULES, results_dir=tmp_path, details=True) for m in models]
    assert first[0].validity[0] != first[1].validity[0]
    assert len(list(tmp_path.glob("*/*/provenance.json"))) == 2
    again = reference_model(Geometric(0.25), UNEQUAL)
    assert again.weights_sha256 == models[0].weights_sha256 != models[1].weights_sha256
    object.__setattr__(again, "network", None)  # stored rows need no network
    assert cu.evaluate(again, UNEQUAL, RULES, results_dir=tmp_path).equals(first[0])
    other = reference_model(Geometric(0.25), UNEQUAL, character_tokenizer(UNEQUAL, 7))
    assert other.key != models[0].key
    object.__setattr__(other, "key", models[0].key)
    with pytest.raises(ResultsError, match="weights_sha256"):
        cu.evaluate(other, UNEQUAL, RULES, results_dir=tmp_path)


def test_reproduce_says_that_it_knows_no_such_model(tmp_path):
    cu.evaluate(reference_model(Geometric(0.25), UNEQUAL), UNEQUAL, results_dir=tmp_path)
    (folder,) = check.stored(tmp_path)
    with pytest.raises(UnknownNameError, match=r"reference Geometric\(decay=0.25\)"):
        check.recompute(folder)


# The tokenizer made for a task.


def test_the_tokenizer_has_a_token_per_character_and_answers_no_leading_space():
    task = cu.Task("accents", "Name a city, please.\nNow:", ["São Paulo", "New York"])
    tokenizer = character_tokenizer(task, n_fillers=5)
    known = set(task.prompt + "".join(task.answers))
    assert len(tokenizer) == len(known) + 5 + 2
    prompt = cu.render_prompt(reference_model(UniformOverV(), task, tokenizer), task)
    assert prompt.text == task.prompt and len(prompt.ids) == len(task.prompt) and not prompt.lead
    for answer, symbols in zip(task.answers, prompt.sequences.symbols, strict=True):
        assert len(symbols) == len(answer) and tokenizer.decode(list(symbols)) == answer
    lines = cu.render_prompt(reference_model(UniformOverV(), task), task, end="line")
    assert len(lines.end_ids) == 2  # the end token, the line break
    everything = cu.render_prompt(reference_model(UniformOverV(), task), task, tokenizations="all")
    assert len(everything.sequences.symbols) == 2


# Random tasks.

ANSWERS = st.lists(st.text("ab1", min_size=1, max_size=4), min_size=1, max_size=7, unique=True)


@settings(max_examples=25)
@given(ANSWERS, st.sampled_from(LAWS), st.sampled_from(RULES), st.sampled_from(["eos", "none"]))
def test_random_tasks_agree_with_listing(answers, law, rule, end):
    task = cu.Task("random", "go:", answers)
    starts = (a != b and b.startswith(a) for a in answers for b in answers)
    assume(end == "eos" or not any(starts))
    model = reference_model(law, task, character_tokenizer(task, 9), end)
    table = cu.evaluate(model, task, [rule], [0.7], end=end)
    wanted = by_hand(model, task, rule, 0.7, end)
    assert numbers(table.iloc[-1]) == pytest.approx(wanted, rel=1e-9, nan_ok=True)


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Geometric(-1.0), r"decay=-1.0: must be a finite number above 0"),
        (lambda: Geometric(math.nan), r"decay=nan"),
        (lambda: EquallySharp(-0.5), r"sharpness=-0.5: must be a finite number above 0"),
        (lambda: Zipf(0), r"exponent=0: must be"),
        (lambda: Zipf("1"), r"exponent='1'"),
        (lambda: LeakyShape(1.2), r"local_validity=1.2: must be above 0 and at most 1"),
        (lambda: LeakyShape(0), r"local_validity=0"),
        (lambda: Displaced(UniformOverV(), 1), r"UniformOverV\(\) has no ranks.*Geometric"),
        (lambda: Displaced(Zipf(1.0), 0), r"k=0: must be a whole number, at least 1"),
        (lambda: Permuted(Zipf(1.0), (0, 2)), r"to=\(0, 2\): must hold every rank from 0 to 1"),
        (lambda: ByStep(()), r"laws=\(\): must be"),
        (
            lambda: reference_model(Displaced(Zipf(1.0), 11), FIXED),
            r"k=11: .*10 valid and \d+ invalid.*take at most 10",
        ),
        (
            lambda: reference_model(ByStep((Displaced(Zipf(1.0), 3),)), UNEQUAL),
            r"k=3: .*take at most 2",
        ),
        (lambda: reference_model(Permuted(Zipf(1.0), range(200)), FIXED), r"200 ranks, the voc"),
        (lambda: reference_model("geometric", FIXED), r"law='geometric' is no law"),
        (lambda: character_tokenizer(FIXED, -1), "n_fillers=-1"),
        (lambda: LeakyShape(0.5).require_fits(Node((), np.arange(4), np.ones(4), 4)), "all 4 tok"),
    ],
)
def test_a_law_that_does_not_fit_is_refused(make, message):
    with pytest.raises(InvalidRequestError, match=message):
        make()


# A real tokenizer.


@pytest.mark.models
def test_a_real_models_trie_is_followed():
    real_tokenizer = cu.load_model("smollm2-135m-instruct").tokenizer
    perfect = reference_model(UniformOverV(), "us-states", real_tokenizer)
    row = cu.evaluate(perfect, "us-states").iloc[0]
    assert (row.validity, row.diversity) == pytest.approx((1, 1), abs=1e-11)
    blind = reference_model(UniformOverG(), "us-states", real_tokenizer)
    row = cu.evaluate(blind, "us-states").iloc[0]
    ceiling = cu.structural_facts(blind, "us-states").uniform_over_g[0]
    assert (row.validity, row.diversity) == pytest.approx((1, ceiling), abs=EXACT)
    words = cu.trie_of_strings([a.split() for a in cu.get_task("us-states").answers])
    assert diversity_of(words, uniform_over_valid(words)) == pytest.approx(0.957, abs=5e-4)
    assert ceiling < 0.957  # tokens smaller than words share more beginnings


def test_brute_force_of_a_displaced_zipf_law_without_the_laws_code():
    """Masses, ranks and products spelled out on strings; nothing of `laws` or `ranked`."""
    answers, law = UNEQUAL.answers, Displaced(Zipf(1.5), 1)
    tokenizer = character_tokenizer(UNEQUAL)
    ids = {c: tokenizer.convert_tokens_to_ids(c) for c in "abcd"} | {"$": tokenizer.eos_token_id}
    n, temperature = len(tokenizer), 1.4
    total = sum((i + 1) ** (-1.5 / temperature) for i in range(n))
    p = {}
    for answer in answers:
        p[answer] = 1.0
        for i, letter in enumerate(answer + "$"):
            below = defaultdict(int)
            for other in answers:
                if (other + "$").startswith(answer[:i]):
                    below[(other + "$")[i]] += 1
            ranked = sorted(below, key=lambda c: (-below[c], ids[c]))
            rank = ranked.index(letter)
            if len(ranked) > 1 and rank == len(ranked) - 1:
                rank += 1  # changed places with the first invalid token
            p[answer] *= (rank + 1) ** (-1.5 / temperature) / total
    row = plain(law, UNEQUAL, temperature)
    values = np.array(list(p.values()))
    assert_close(law, UNEQUAL, temperature, row, values.sum(), hill(values) / len(values))
    table = cu.answer_probabilities(reference_model(law, UNEQUAL), UNEQUAL, [temperature])
    assert np.exp(table.log_p.to_numpy()) == pytest.approx(values, rel=1e-6)

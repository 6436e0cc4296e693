"""Canaries: a golden set per kind of stored number, small enough for every push.

A number that changes here without a new convention (`results/conventions.py`) is a fault; a
rename, a moved function or another processor changes none of them. `make canaries` writes the
golden files anew where a convention was bumped, and adds values that are new; it overwrites no
others. The mutation benchmark (`benchmarks/mutation.py`) says how much slips through, and
`test_planted_faults.py` plants faults by hand.

A canary is a function from a fixture getter to nested dictionaries of numbers.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product, starmap

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

import calib_utils as cu
from calib_utils import paths
from calib_utils.core import metrics, rules, split, tries
from calib_utils.core.split import REPAIRS, TokenTable
from calib_utils.figures import explorer
from calib_utils.models import generation
from calib_utils.openended import precision_recall, table1, verifiers
from calib_utils.results import draws, evaluation
from calib_utils.results.storage import KEY, NUMBERS
from calib_utils.studies import formal_framework, logit_shape
from calib_utils.theory import curves as curves_module
from calib_utils.theory import laws, theorems


@dataclass(frozen=True)
class Tolerance:
    """A number may move by `relative` of itself and by `absolute`, whichever is less, or `floor`.

    What is no finite float (counts, ranks, token ids, words, NaN) has to be equal.
    """

    relative: float = 1.0
    absolute: float = math.inf
    floor: float = 0.0


EXACT = Tolerance(0.0)
# Sums of float64 in another order; where terms cancel, nothing is left but the floor.
ARITHMETIC = Tolerance(relative=1e-9, floor=1e-12)
# Searched for until 1e-6 in a parameter, so the squared error is right to 1e-12, the rest to 1e-5.
SEARCHED = Tolerance(relative=1e-5, floor=1e-9)
# Float32 kernels: the project's agreement in Val and Div, and small probabilities held as well.
FORWARD = Tolerance(relative=1e-3, absolute=1e-4, floor=1e-300)
LOGITS = Tolerance(absolute=1e-3)
LOG_P = Tolerance(relative=1e-3, floor=1e-4)


@dataclass(frozen=True)
class Canary:
    """A question whose answer is a golden file.

    `tolerances` by the first key of the values, "" for the rest; `why` is their reason. `on`: the
    model that it runs, "tiny" or an embedded one; empty: none.
    """

    name: str
    kind: str
    compute: Callable
    tolerances: dict[str, Tolerance]
    why: str
    on: str = ""

    @property
    def digits(self) -> int:
        return 7 if self.tolerances[""] in (FORWARD, LOGITS) else 12


CANARIES: dict[str, Canary] = {}


def canary(kind: str, tolerance: Tolerance, why: str, on: str = "", **tolerances: Tolerance):
    """Registers a function as the canary of its name, for a kind of stored number."""

    def register(compute):
        of = {"": tolerance, **tolerances}
        CANARIES[compute.__name__] = Canary(compute.__name__, kind, compute, of, why, on)
        return compute

    return register


ARITHMETIC_WHY = "float64 arithmetic on given numbers: sums in another order differ by 1e-15"
FORWARD_WHY = "float32 kernels differ between processors: 1e-4 in Val and Div, 1e-3 of themselves"

# --- rows: logits given, no model ---------------------------------------------------------------

N_VOCAB = 300  # more than two blocks of running sums
RULES = (
    "none",
    *("top_k=1", "top_k=3", "top_k=40", "top_k=1000"),
    *("top_p=0.1", "top_p=0.5", "top_p=0.9", "top_p=1"),
    *("min_p=0.01", "min_p=0.1", "min_p=0.5", "min_p=1"),
    "oracle_size",
    *("typical=0.2", "typical=0.9", "epsilon=0.001", "epsilon=0.05", "eta=0.001", "eta=0.05"),
    *("top_h=0.2", "top_h=0.8", "top_nsigma=0.5", "top_nsigma=1.5"),
    *("top_k=20+top_p=0.9", "top_p=0.9+top_k=20", "oracle_size+top_p=0.7", "typical=0.9+top_p=0.5"),
    *("min_p=0.05+typical=0.8", "top_p=0.8+typical=0.5+top_k=4", "typical=0.5+min_p=0.4"),
    "typical=0.6+eta=0.02+epsilon=0.01",
    "top_nsigma=1.5+top_h=0.7",
    *("top_k=50+top_p=0.8+min_p=0.05@transformers", "top_k=50+top_p=0.8+min_p=0.05@vllm"),
    "top_k=50+top_p=0.8+min_p=0.05@llama.cpp",
    "top_nsigma=1.2+typical=0.9@llama.cpp",
    "top_h=0.9+epsilon=0.01+eta=0.01@transformers",
)
TEMPERATURES = (0.01, 0.1, 0.6, 1.0, 1.7, 3.0)
FEW_RULES = (
    *("none", "top_k=3", "top_p=0.5", "top_p=0.9", "min_p=0.1", "min_p=1", "oracle_size"),
    *("typical=0.5", "eta=0.05", "top_h=0.5", "top_nsigma=1"),
)
FEW_TEMPERATURES = (0.05, 1.0, 2.5)
# Symbols of answers that share prefixes, begin one another and differ in depth.
ANSWERS = (
    *((11, 12, 13), (11, 12, 14), (11, 15), (11,), (20,), (20, 11), (21, 22, 23, 24), (21, 22)),
    *((130, 131), (299,), (21, 22, 23, 250), (12, 11)),
)
PREFIX_FREE = ((11, 12), (11, 13, 14), (20,), (21, 22, 23), (21, 22, 24), (130, 299), (12, 11, 20))
# Several sequences an answer: (symbols, answer).
SPELLINGS = (
    *(((11, 12), 0), ((13,), 0), ((20,), 1), ((14, 15), 2), ((14, 12, 13), 2), ((16,), 2)),
    *(((11, 20), 3), ((130, 131), 4), ((132,), 4)),
)


def trie_of(answers=ANSWERS, ends=(0,)) -> tries.Trie:
    sequences = tries.Sequences(tuple(answers), tuple(range(len(answers))), ends, len(answers))
    return tries.build_trie(sequences)


def spelled_trie() -> tries.Trie:
    symbols, answer = zip(*SPELLINGS, strict=True)
    return tries.build_trie(tries.Sequences(symbols, answer, (0, 7), 5))


def valid_first(trie: tries.Trie, logits: np.ndarray, gain: float) -> np.ndarray:
    """Logits with the valid tokens raised: some rank first, some in the middle. [node, vocab]"""
    tokens, logits = TokenTable(trie), logits.copy()
    logits[tokens.node, tokens.symbol] += gain * (1 + np.arange(len(tokens.edge)) % 3) / 2
    return logits


def tied_logits(trie: tries.Trie, seed: int = 0) -> np.ndarray:
    """Exact ties everywhere, near-ties of a last float32 digit, and tokens that are impossible."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-40, 17, (trie.n_nodes, N_VOCAB)) / 8.0
    logits = valid_first(trie, logits, 5.0)
    near = rng.random(logits.shape) < 0.2
    logits = np.where(near, np.nextafter(logits.astype(np.float32), np.float32(99)), logits)
    impossible = rng.random(logits.shape) < 0.05
    return np.where(impossible & (logits < 0), -np.inf, logits)


def bfloat16_logits(trie: tries.Trie) -> np.ndarray:
    """Smooth logits in the steps of bfloat16, 1/16 near the top: ties as a real model has them."""
    rng = np.random.default_rng(1)
    smooth = valid_first(trie, rng.standard_normal((trie.n_nodes, N_VOCAB)) + 12, 2.0)
    return torch.from_numpy(smooth).to(torch.bfloat16).double().numpy()


def level_logits(trie: tries.Trie) -> np.ndarray:
    """Eight tokens share all mass evenly, valid ones among them: cuts fall on whole numbers."""
    logits = np.full((trie.n_nodes, N_VOCAB), -2e4)
    logits[:, 10:18] = 3.0
    return logits


def settings_of(keys, temperatures):
    return [(cu.parse_rule(key), t) for key in keys for t in temperatures]


def measured(get, trie, logits, keys, temperatures, **options):
    settings = settings_of(keys, temperatures)
    return get("measure_logits")(trie, logits, settings, **options)


def columns_of(found) -> list[str]:
    return [f"{sampler.key} T={temperature:g}" for sampler, temperature in found.settings]


def rows_of(found) -> dict:
    """Val, Div, Prec_seq and Rec_seq of every setting."""
    numbers = [getattr(found, name) for name in NUMBERS]
    return dict(zip(columns_of(found), np.stack(numbers, axis=1), strict=True))


def windows_of(found) -> dict:
    """Tokens kept at each node, and from which rank on; the ranks of valid tokens."""
    size = (found.steps.stop - found.steps.start).T
    sized = dict(zip(columns_of(found), size, strict=True))
    begun = {k: s for k, s in zip(columns_of(found), found.steps.start.T, strict=True) if s.any()}
    return {"kept": sized, "first rank": begun, "rank": found.steps.rank}


def log_p_of(found, temperatures=(0.01, 0.05, 1.0, 1.7)) -> dict:
    """ln p of every answer, without cutoff and under some rules."""
    some = ("none", "top_p=0.9", "oracle_size", "typical=0.9")
    return {
        column: log_p
        for column, log_p, (sampler, t) in zip(
            columns_of(found), found.answer_log_p.T, found.settings, strict=True
        )
        if sampler.key in some and t in temperatures
    }


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def rows_with_ties(get):
    trie = trie_of()
    found = measured(get, trie, tied_logits(trie), RULES, TEMPERATURES)
    return {"rows": rows_of(found), "ln p": log_p_of(found), **windows_of(found)}


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def rows_in_bfloat16(get):
    trie = trie_of(ends=(0, 7))
    # What llama.cpp leaves below the top at T = 1 is faint when it is cold: no difference of sums.
    below = ("typical=0.3@llama.cpp", "typical=0.6@llama.cpp")
    rules = (*FEW_RULES, *below, *(f"top_k={k}" for k in (1, 2, 4, 6, 10, 16, 25)))
    found = measured(get, trie, bfloat16_logits(trie), rules, FEW_TEMPERATURES)
    faint = [sampler.key in below for sampler, _ in found.settings]
    mass = found.steps.log_mass[:, faint]
    return {"rows": rows_of(found), "ln p": log_p_of(found), "mass": mass, **windows_of(found)}


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def rows_at_level_logits(get):
    """Shares that are reached exactly: the crossing token is in, all of a tie at min-p is in."""
    trie = trie_of(((10,), (11, 12), (17, 20), (30,)))
    rules = (*FEW_RULES, "top_p=0.25", "top_p=0.125", "top_k=8", "min_p=0.5")
    found = measured(get, trie, level_logits(trie), rules, FEW_TEMPERATURES)
    return {"rows": rows_of(found), **windows_of(found)}


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def rows_by_end(get):
    """One end token, two, and none."""
    found = {}
    for name, ends in {"one": (0,), "two": (0, 7), "none": ()}.items():
        trie = trie_of(PREFIX_FREE, ends)
        own = measured(get, trie, tied_logits(trie, 2), FEW_RULES, FEW_TEMPERATURES, batch=5)
        found[name] = {"rows": rows_of(own), "rank": own.steps.rank}
    return found


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def rows_of_several_spellings(get):
    """Probabilities add up over the sequences of an answer; N and recall count answers."""
    trie = spelled_trie()
    found = measured(get, trie, tied_logits(trie, 3), FEW_RULES, FEW_TEMPERATURES)
    return {"rows": rows_of(found), "ln p": log_p_of(found)}


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def rows_without_ranks(get):
    """Temperature alone goes without the sort; a single answer and a tiny vocabulary go as well."""
    trie = trie_of()
    plain = measured(get, trie, tied_logits(trie), ["none"], TEMPERATURES)
    ranked_too = measured(get, trie, tied_logits(trie), ["none"], TEMPERATURES, ranks=True)
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 1.0, -np.inf]])
    small = measured(get, trie_of(((1,),)), logits, FEW_RULES, [1.0])
    return {
        "plain": rows_of(plain),
        "ranked": rows_of(ranked_too),
        "single": rows_of(small),
        "is not ranked": bool(np.isnan(plain.steps.sorted_gap).all()),
    }


def without_repeats(ids, scores):
    """Drops the last token of what was written so far, and every token when it is the 20."""
    scores = scores.clone()
    scores[torch.arange(len(ids)), ids[:, -1]] = -torch.inf
    return scores


@canary("rows", Tolerance(relative=2e-5, floor=1e-9), "processors compute in float32")
def rows_of_processors(get):
    """Processors that see the prefix; temperature before, between and after them, or theirs."""
    trie = trie_of(ends=(0, 7))
    penalty, top_k = RepetitionPenaltyLogitsProcessor(1.3), TopKLogitsWarper(30)
    repeat = NoRepeatNGramLogitsProcessor(2)
    own = LogitsProcessorList([TemperatureLogitsWarper(0.7), top_k])
    before = [cu.Processors([penalty, top_k], f"at {at}", 1.3, at) for at in (0, 1, 2)]
    settings = [
        *product(before, (0.3, 2.0)),
        (cu.Processors(list(own), "own", temperature_at=None), 1.0),
        (cu.Processors([without_repeats, repeat], "repeats"), 1.5),
        (cu.TopK(30), 2.0),
    ]
    found = get("measure_logits")(
        trie, bfloat16_logits(trie), settings, prompt_ids=(11, 12, 11, 20), batch=4
    )
    log_p = dict(zip(columns_of(found), found.answer_log_p.T, strict=True))
    return {"rows": rows_of(found), "ln p": log_p}


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def measures_by_hand(get):
    """Val, Div, precision, recall and frontiers of given log-probabilities."""
    trie = spelled_trie()
    rng = np.random.default_rng(4)
    edge_log_p = np.log(rng.random((trie.n_edges, 4)))
    edge_log_p[:, 1] = -np.inf
    edge_log_p[::3, 2] = -np.inf
    edge_log_p[:, 3] *= 400
    sequences = metrics.sequence_log_probability(trie, edge_log_p)
    answers = metrics.answer_log_probability(trie, sequences)
    points = np.round(rng.random((2, 40)), 1)
    points[:, 5] = np.nan
    full, nothing = np.log(np.full((50, 1), 1 / 50)), np.full((2, 3), np.nan)
    evenly = [np.log(np.full((n, 1), 1 / n)) for n in range(1, 200)]
    within = [1 / len(p) <= metrics.diversity(p)[0] <= 1 >= metrics.validity(p)[0] for p in evenly]
    return {
        "sequences": sequences,
        "answers": answers,
        "validity": [*metrics.validity(answers), *metrics.validity(full)],
        "diversity": [*metrics.diversity(answers), *metrics.diversity(full)],
        "diversity of one answer": metrics.diversity(np.array([[-1.2], [-np.inf]])),
        "precision": metrics.sequence_precision(answers),
        "recall": metrics.sequence_recall(answers),
        "frontier": metrics.pareto_frontier(*points),
        "area": metrics.frontier_area(*points),
        "nothing": [metrics.pareto_frontier(*nothing), metrics.frontier_area(*nothing)],
        "kind of nothing": metrics.pareto_frontier(*nothing).dtype.name,
        "rounding stays within": all(within),
    }


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def budgets_of_settings(get):
    """Samplers at equal budgets: exact expectations and bands over draws of settings."""
    rng = np.random.default_rng(5)
    table = pd.DataFrame(
        {
            "rule": ["a"] * 12 + ["b"] * 7 + ["c"] * 3,
            "validity": np.round(rng.random(22), 1),
            "diversity": [math.nan, *rng.random(21)],
        }
    )
    found = {f"level {level}": metrics.best_by_budget(table, level) for level in (0.3, 0.8, 1.0)}
    return {name: records(table) for name, table in found.items()}


def records(table: pd.DataFrame) -> dict:
    """A table column by column."""
    return {str(name): column.tolist() for name, column in table.items()}


# --- rows: structure of answers -----------------------------------------------------------------


@canary("rows", ARITHMETIC, "N, G and the shape of tries are counted, exactly; ceilings are sums")
def structure_of_answers(get):
    found = {}
    for name, trie in (
        ("eos", trie_of()),
        ("line", trie_of(ends=(0, 7))),
        ("none", trie_of(PREFIX_FREE, ())),
        ("spellings", spelled_trie()),
        ("a symbol 0", trie_of(((0, 1), (0, 2, 0), (3,)), ())),
        ("a symbol 0, closed", trie_of(((0, 1), (0, 2, 0), (3,)), (8, 9))),
        ("words", tries.trie_of_strings([["New", "York"], ["New", "Mexico"], ["Ohio"]])),
    ):
        fields = {key: value for key, value in vars(trie).items() if not key.startswith("_")}
        table = TokenTable(trie)
        sequences = tries.Sequences(((1, 2), (3,)), (0, 1), trie.end_symbols, 2)
        found[name] = {
            **fields,
            "fingerprint": sequences.fingerprint(),
            "token": [table.edge, table.symbol, table.node, table.first],
            "children": trie.children(),
            "valid": [trie.valid_symbols(node) for node in range(trie.n_nodes)],
            "prefix": [trie.prefix(node) for node in range(trie.n_nodes)],
            "size": [trie.n_nodes, trie.n_edges],
            "uniform over G": tries.uniform_over_valid(trie),
            "by N": tries.weighted_by_count(trie),
            "ceiling": evaluation.diversity_of(trie, tries.uniform_over_valid(trie)),
            "G by step": evaluation.branching_by_step(trie),
        }
    return found


# Texts, truth values and numbers at and beyond the ends of what each rule takes.
PARAMETERS = ("1", True, -1, 0, 1e-9, 0.5, 1, 1.5, 2, 2.5, 3, 1e5, math.nan, math.inf)


@canary("rows", EXACT, "a grid is a list of settings, and a parameter is taken or it is not")
def grids_and_parameters(get):
    """The settings of Table 3 and beside it; which numbers a rule takes, and how it holds them."""
    beside = [rule.key for grid in rules.MORE_GRIDS.values() for rule in grid]
    found: dict = {"Table 3": [rule.key for rule in rules.table3_rules()], "beside": beside}
    found["temperatures"] = rules.TABLE3_TEMPERATURES
    found["orders"] = rules.ORDERS
    for name, family in rules.FAMILIES.items():
        if name in ("none", "oracle_size"):
            continue
        found[name] = {}
        for value in (*PARAMETERS, np.float32(0.5), np.int64(1)):
            try:
                rule = family(value)
                held = [rule.key, *(type(v).__name__ for v in vars(rule).values())]
                found[name][f"{value!r}"] = held
            except cu.CalibUtilsError as error:
                found[name][f"{value!r}"] = type(error).__name__
    return found


AMBIGUOUS = {
    "no answers": ((), (), (0,)),
    "no tokens": (((1,), ()), (0, 1), (0,)),
    "two answers": (((1, 2), (1, 2)), (0, 1), (0,)),
    "twice": (((1, 2), (1, 2)), (0, 0), (0,)),
    "holds an end": (((1, 0, 2),), (0,), (0,)),
    "begins another": (((1, 2), (1, 2, 3)), (0, 1), ()),
    "begins another by one": (((1,), (1, 2)), (0, 1), ()),
    "begins another, closed": (((1, 2), (1, 2, 3)), (0, 1), (0,)),
    "an answer short": (((1, 2), (1, 3)), (0,), (0,)),
    "fine": (((1, 2), (1, 3)), (0, 1), ()),
}


@canary("rows", EXACT, "an answer set is accepted or it is not")
def refused_answer_sets(get):
    """One output must not count for two answers."""
    found = {}
    for name, (symbols, answer, ends) in AMBIGUOUS.items():
        try:
            trie = tries.build_trie(tries.Sequences(symbols, answer, ends, len(set(answer))))
            found[name] = trie.n_nodes
        except (cu.CalibUtilsError, ValueError) as error:
            found[name] = type(error).__name__
    return found


def prompt_facts(prompt) -> dict:
    return {
        "ids": prompt.ids,
        "lead": prompt.lead,
        "ends": prompt.end_ids,
        "sequences": sorted(prompt.sequences.symbols)[:40],
        "how many": len(prompt.sequences.symbols),
        "fingerprint": prompt.sequences.fingerprint(),
        "nodes": prompt.trie.n_nodes,
        "N": prompt.trie.node_count[:30],
        "G": prompt.trie.node_branching[:30],
    }


@canary("rows", EXACT, "token ids and counts of a tokenizer built here", "tiny")
def prompts_by_policy(get):
    """End policies, tokenizations, surfaces; a chat model, a base model, one with BOS."""
    tiny, task = get("tiny"), get("small_task")
    short = cu.Task("short", task.prompt, ["1,2", "ab", "Abc"])
    found = {}
    for kind in ({"chat": True}, {"chat": False}, {"chat": False, "bos": True}):
        model = tiny("llama", **kind)
        for end in ("eos", "line"):
            found[f"{kind} {end}"] = prompt_facts(cu.render_prompt(model, task, end=end))
        found[f"{kind} none"] = prompt_facts(cu.render_prompt(model, short, end="none"))
        for policy in (
            {"tokenizations": "all"},
            {"surface": "any_space"},
            {"surface": "any_case"},
            {"surface": "any_case", "tokenizations": "all", "end": "line"},
        ):
            facts = prompt_facts(cu.render_prompt(model, short, **policy))
            found[f"{kind} {policy}"] = {k: v for k, v in facts.items() if k not in ("ids", "N")}
    return found


@canary("rows", ARITHMETIC, "counted, and a ceiling of float64", "tiny")
def structure_of_tasks(get):
    model = get("tiny")("llama", chat=True)
    tasks = ["us-states", "rng-2", "rng-2-sum-at-most-10", "rng-3-sum-equals-10"]
    names = ["us-states-paraphrase-1", "rng-2-paraphrase-2", "us-states-shortest-11"]
    prompts = {own.name: [own.prompt, len(own.answers)] for own in map(cu.get_task, names)}
    return records(cu.structural_facts(model, tasks)) | {"tasks": prompts}


# --- rows, losses, explorer: tiny random models ---------------------------------------------------

MODEL_RULES = ["none", "top_k=5", "top_p=0.9", "min_p=0.1", "oracle_size", "typical=0.5"]


def evaluated(model, task, rules, temperatures, **policies) -> dict:
    return by_setting(cu.evaluate(model, task, rules, temperatures, **policies))


def by_setting(table: pd.DataFrame) -> dict:
    keys = [f"{row.rule}={row.parameter} T={row.temperature}" for row in table.itertuples()]
    rows = dict(zip(keys, table[NUMBERS].to_numpy(), strict=True))
    return rows | {"size": table[["n_answers", "n_nodes"]].iloc[0].tolist()}


@canary("rows", FORWARD, FORWARD_WHY, "tiny", **{"ln p": LOG_P, "weights": Tolerance(1e-6)})
def rows_of_every_architecture(get):
    """A forward pass of each architecture, packed or branched, as a chat and as a base model."""
    found: dict = {"ln p": {}, "weights": {}}
    for architecture in get("architectures"):
        for chat in (True, False):
            model, task = get("tiny")(architecture, chat=chat), get("small_task")
            name = f"{architecture} {'chat' if chat else 'base'}"
            temperatures = [1.0, 3.0, 6.0] if chat else [4.0]
            found[name] = evaluated(model, task, MODEL_RULES, temperatures)
            log_p = cu.answer_probabilities(model, task, [0.1, 1.0])
            found["ln p"][name] = log_p.log_p.tolist()
            # Where these move the weights are others, and all else follows.
            parts = [p.detach().double().abs().sum() for p in model.network.parameters()]
            found["weights"][name] = float(sum(parts))
    return found


@canary("rows", FORWARD, FORWARD_WHY, "tiny")
def rows_by_policy_of_a_model(get):
    model = get("tiny")("llama", chat=False)
    task = cu.Task("short", get("small_task").prompt, ["1,2", "ab", "Abc"])
    rules, temperatures = ["none", "top_p=0.9", "oracle_size"], [0.5, 3.0, 6.0]
    policies = [*product(("eos", "line"), ("canonical", "all"), ("exact", "any_case"))]
    found = {}
    for values in (*policies, ("none", "canonical", "exact")):
        own = dict(zip(("end", "tokenizations", "surface"), values, strict=True))
        found[" ".join(values)] = evaluated(model, task, rules, temperatures, **own)
    return found


# --- losses, frontiers and theory: logits given ---------------------------------------------------


def measured_steps(*asked):
    return measured(*asked, ranks=True).steps


def by_end(prefix_free):
    """One end token, two, and none: tries with their logits."""
    yield "one end", (trie := trie_of()), tied_logits(trie)
    yield "two ends", (trie := trie_of(ends=(0, 7))), bfloat16_logits(trie)
    yield "no end", (trie := trie_of(prefix_free, ())), tied_logits(trie)


LOSS_RULES = ("none", "top_k=3", "top_p=0.9", "min_p=0.1", "oracle_size", "top_k=20+top_p=0.9")


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def losses_and_their_split(get):
    """Losses by step, of the decoder as it is and repaired; Shapley's shares of order and shape."""
    found = {}
    for name, trie, logits in by_end((*PREFIX_FREE, (299,))):
        steps = measured_steps(get, trie, logits, LOSS_RULES, (0.3, 1.0, 2.0))
        edges = {repair: steps.edge_log_p(slice(None), repair) for repair in REPAIRS}
        losses = {repair: split.step_losses(trie, edges[repair]) for repair in REPAIRS}
        shares = {
            part: vars(split.shapley({r: getattr(losses[r], part).sum(0) for r in REPAIRS}))
            for part in ("validity", "diversity")
        }
        found[name] = {
            "losses": {repair: vars(loss) for repair, loss in losses.items()},
            "shares": shares,
            "edges": {repair: edges[repair][:, [1, -2]] for repair in REPAIRS},
            "uniform": steps.edge_uniform_log_p([1, -2]),
        }
    found["steps"] = {
        "rank": steps.rank,
        "gap": steps.gap,
        "sorted": steps.sorted_gap,
        "mass": steps.log_mass[:, ::5],
    }
    hand = split.shapley({"none": 1, "order": 0.4, "shape": 0.7, "both": 0.125})
    found["by hand"] = {name: float(part) for name, part in vars(hand).items()}
    whole = split.shapley({"none": 4, "order": 1, "shape": 2, "both": 0})
    found["whole numbers"] = [part.dtype.name for part in vars(whole).values()]
    return found


@canary("rows", ARITHMETIC, ARITHMETIC_WHY)
def adaptive_frontiers(get):
    found = {}
    for name, trie, logits in by_end(PREFIX_FREE):
        steps = measured_steps(get, trie, logits, ["none"], [1.0])
        found[name] = split.adaptive_frontier(steps.tokens, steps.rank)
    # Each of two subtrees is worth (1, 1) or (1/2, 2), so one of them in full is half way.
    level = TokenTable(trie_of(((1, 1), (1, 2), (2, 1), (2, 2)), ()))
    found["in line"] = split.adaptive_frontier(level, np.array([0, 1, 0, 3, 0, 3]))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        words = {tuple(word) for word in rng.integers(1, 5, (30, 3)).tolist()}
        trie = trie_of(sorted(words), (0,) if seed % 2 else (0, 9))
        tokens = TokenTable(trie)
        own = np.diff(tokens.first)
        spread = 2 + seed
        rank = np.concatenate([rng.permutation(spread * n)[:n] for n in own])
        found[f"random {seed}"] = split.adaptive_frontier(tokens, rank)
    return found


def fractions(values) -> list:
    """Exact numbers as text."""
    return [str(Fraction(v)) for v in np.asarray(values, dtype=object).ravel()]


@canary("framework", ARITHMETIC, "fractions are exact; the rest is float64 on given numbers")
def factors_of_theory(get):
    """Local and sequence measures, Thm. E.1 and E.3, hardness, order and shape calibration."""
    trie = trie_of(ends=(0, 7))
    steps = measured_steps(get, trie, tied_logits(trie), ["top_k=3", "none"], [0.5, 1.0])
    tokens, rank = steps.tokens, steps.rank
    found: dict = {}
    sizes = {"3": np.full(trie.n_nodes, 3), "by node": 1 + np.arange(trie.n_nodes) * 7 % 40}
    for name, size in sizes.items():
        exact = theorems.shares(tokens, rank, size, exact=True)
        factors = theorems.factorise(trie, exact)
        found[name] = {
            "shares": fractions(exact),
            "floats": theorems.shares(tokens, rank, size),
            "local precision": fractions(theorems.local_precision(trie, exact)),
            "local recall": fractions(theorems.local_recall(trie, exact)),
            "alpha": fractions(factors.alpha),
            "beta": fractions(factors.beta),
            "precision and recall": fractions([factors.precision, factors.recall]),
        }
    sizes = [np.full(trie.n_nodes, k) for k in (1, 2, 4, 8, 16, 64, 300)]
    family = np.stack([theorems.shares(tokens, rank, size) for size in sizes], axis=1)
    factors = theorems.factorise(trie, family)
    found["family"] = {
        "alpha": factors.alpha,
        "beta": factors.beta,
        "precision": factors.precision,
        "recall": factors.recall,
        "local recall": theorems.local_recall(trie, family)[:, 3],
        "hardness": {str(eta): theorems.hardness(factors, eta) for eta in (0.1, 1.0, 3.0)},
        "bound": theorems.best_recall_bound(factors, [0.01, 0.2, 0.5, 1.0], (0.1, 0.5, 1.0, 3.0)),
    }
    bounds = ((1.0, 0.1, 0.5, 4), (0.5, 0.2, 0.7, 4), (0.01, 0.5, 1.0, 2), (0.9, 1, math.inf, 1))
    bounds = (*bounds, (0.0, 0.1, 0.5, 4), (math.exp(-0.5), 0.5, 1.0, 1))
    found["recall bound"] = [float(theorems.recall_bound(*numbers)) for numbers in bounds]
    found["step frontiers"] = {
        "first": theorems.step_frontier(tokens, rank, 0, [0.01, 0.1, 0.5, 1, 2, 10]),
        "second": theorems.step_frontier(tokens, rank, 1, [0.01, 0.1, 0.5, 1, 2, 10]),
        "by itself": theorems.step_frontier(tokens, rank, 1)[::40],
        "how many": len(theorems.step_frontier(tokens, rank, 1)),
    }
    rng = np.random.default_rng(10)
    made = theorems.Factors(rng.uniform(0.5, 1, (6, 5)), rng.uniform(0.2, 0.9, (6, 5)))
    made.alpha[0, 0], made.alpha[2, 1], made.beta[3, 1] = math.exp(-0.5), 0.0, 0.0
    precisions = [0.0, 0.3, 0.9, 1.0]
    found["made"] = {
        "hardness": [theorems.hardness(made, eta) for eta in (0.1, 0.5)],
        "bound": theorems.best_recall_bound(made, precisions, (0.05, 0.2, 0.5)),
        "bound of one": float(theorems.best_recall_bound(made, 0.9, (0.2,))),
    }
    with pytest.raises(cu.CalibUtilsError):
        theorems.hardness(made, 0.0)
    # Nothing is kept; the root alone keeps nothing.
    kept = theorems.shares(tokens, rank, np.full(trie.n_nodes, 300), exact=True)
    emptied = {"nothing": kept * 0, "not the root": np.where(trie.edge_node == 0, kept * 0, kept)}
    for name, share in emptied.items():
        exact, floats = (theorems.factorise(trie, own) for own in (share, share.astype(float)))
        pairs = theorems.factorise(trie, np.stack([share, kept], 1).astype(float))
        found[name] = [fractions(exact.alpha), fractions(exact.beta), floats.alpha, pairs.alpha]
        found[f"kinds, {name}"] = [exact.alpha.dtype.name, pairs.beta.dtype.name]
    whole, part = (theorems.shares(tokens, rank, sizes[2], exact) for exact in (True, False))
    found["kinds"] = sorted({type(v).__name__ for v in [*whole, *part.tolist()]})
    found["order"] = theorems.order_calibrated(steps)
    at_one, by_count = steps.edge_log_p([3])[:, 0], tries.weighted_by_count(trie)
    found["shape"] = [theorems.shape_error(trie, edges) for edges in (at_one, by_count)]
    return found


@canary("framework", Tolerance(relative=1e-8, floor=1e-12), "closed forms that cancel, float64")
def geometric_model(get):
    """Def. F.1, Thm. F.4 and its corollaries; how near measured steps come to the hypotheses."""
    v, a = np.meshgrid([1, 2, 7, 50, 151936], [0.0, 1e-5, 0.01, 0.7, 3.0, 40.0, math.inf])
    trie = trie_of(ends=(0, 7))
    steps = measured_steps(get, trie, bfloat16_logits(trie), ["none"], [1.0])
    heads = theorems.heads(steps)
    branching = [10, 10, 1, 5]
    return {
        "entropy": theorems.head_entropy(v, a),
        "loss": theorems.head_loss(v[:, 1:3], a[:, 1:3]),
        "bound": theorems.diversity_bound([0.0, 0.1, 0.5, 0.99, 1 - 1e-12, 1.0], branching),
        "bound at": theorems.bound_at(60.0, branching),
        "least": theorems.least_loss([1.0, 0.5, 1e-6, 0.0]),
        "searched": theorems.least_loss_by_search(0.01, 40),
        "at validity": [theorems.at_validity(val, branching) for val in (0.2, 0.9)],
        "heads": records(heads.drop(columns="miss")),
        "hypotheses": records(theorems.hypotheses(heads).drop(columns="median miss")),
    }


@canary("framework", ARITHMETIC, ARITHMETIC_WHY)
def known_laws(get):
    """Laws by formula: their logits and what their valid tokens hold at a temperature."""
    trie = trie_of()
    tokens = TokenTable(trie)
    base = laws.Geometric(0.3)
    known = {
        "uniform over V": laws.UniformOverV(),
        "uniform over G": laws.UniformOverG(),
        "leaky": laws.LeakyShape(0.8),
        "geometric": base,
        "sharp": laws.EquallySharp(1.5),
        "zipf": laws.Zipf(1.1),
        "displaced": laws.Displaced(base, 1),
        "permuted": laws.Permuted(base, (2, 0, 1)),
        "by step": laws.ByStep((base, laws.LeakyShape(0.5))),
    }
    found = {}
    for name, law in known.items():
        nodes = [laws.node_of(tokens, node, 40 if name == "leaky" else N_VOCAB) for node in (0, 1)]
        if name == "leaky":
            nodes = [laws.Node((), np.array([3, 5, 9]), np.array([1, 4, 2]), 40)]
        found[name] = {
            "logits": [law.logits(node)[:25] for node in nodes],
            "ln p": [
                log_softmax(law.logits(node) / t)[node.symbols] for node in nodes for t in (0.5, 1)
            ],
        }
    return found


@canary("framework", FORWARD, FORWARD_WHY, "tiny", **{"log_p": LOG_P})
def framework_of_a_model(get):
    """One pass of the formal framework: factors, ranks and numbers of its grid."""
    task = cu.Task("few", get("small_task").prompt, ["1,2", "1,3", "ab", "abab", "x"])
    study = formal_framework.study(get("tiny")("llama", chat=True), task)
    keys = [f"{rule.key} T={t:g}" for rule, t in study.settings]
    every = slice(0, None, 9)
    numbers = study.numbers[NUMBERS].to_numpy()
    frontiers = {str(d): points[::60] for d, points in study.step_frontiers.items()}
    return {
        "log_p": study.edge_log_p,
        "rank": study.ranks.rank,
        "settings": [len(keys), study.n_steps],
        "numbers": dict(zip(keys[every], numbers[every], strict=True)),
        "alpha": dict(zip(keys[every], study.factors.alpha.T[every], strict=True)),
        "beta": dict(zip(keys[every], study.factors.beta.T[every], strict=True)),
        "frontiers": frontiers,
    }


# --- logits: sorted logits and curve fits ---------------------------------------------------------


def noisy_curve(n: int = 60, c: int = 9) -> np.ndarray:
    """A head that is a line, a tail that is a logarithm, and small errors that are known."""
    k = np.arange(1.0, n + 1)
    curve = np.where(k <= c, 20 - 0.7 * k, 15 - 1.4 * np.log(np.maximum(k - c - 1, 0) + 4.0))
    return curve + 0.02 * np.sin(7 * k) + 0.01 * np.cos(1.3 * k)


def fit_numbers(fit) -> dict:
    names = ("c", "m", "b", "A", "B", "shift", "sse", "mse", "r2", "jump")
    profile = [] if fit.profile is None else fit.profile[:: max(1, fit.n // 8)]
    predicted = fit.predict(np.array([1, 5, fit.c + 1, fit.n, fit.n + 10]))
    own = {name: getattr(fit, name) for name in names}
    return own | {"predicted": predicted, "profile": profile}


@canary("logits", SEARCHED, "a bounded search that ends within 1e-6 of log u")
def curve_fits(get):
    """Every family, with ranks held out and without; the criterion that chooses among them."""
    y = noisy_curve()
    weights = np.ones_like(y)
    weights[7:13] = 0.0
    found: dict = {
        family: {"all": fit_numbers(fit(y)), "held out": fit_numbers(fit(y, weights))}
        for family, (fit, _) in curves_module.FAMILIES.items()
    }
    errors = curves_module.held_out_errors(y, 4)
    compared = curves_module.compare(y, errors)
    found["held out errors"] = records(errors)
    found["compared"] = records(compared)
    found["preferred"] = curves_module.preferred(errors)
    found["blocks"] = curves_module.blocks(40, 6)
    found["interval"] = curves_module.mean_interval([0.1, 0.5, -0.2, 0.4])
    residuals = (np.sin(np.arange(50)), np.arange(9.0), [0, 0])
    found["effective size"] = [curves_module.effective_size(e) for e in residuals]
    bent = curves_module.two_part_continuous(y)
    below = bent.A + bent.B * np.log(bent.shift - 1)
    found["continuous"] = float(bent.predict([bent.c])[0] - below)
    return found


@canary("logits", SEARCHED, "a bounded search that ends within 1e-6 of log u")
def tables_of_sorted_logits(get):
    """Fits, rounding to bfloat16 and pooled ratios as the chapter shows them."""
    k = np.arange(1.0, 61)
    curves = pd.DataFrame({"a": noisy_curve(), "b": noisy_curve(c=20) - np.log(k) / 3})
    held_out = pd.concat(
        [curves_module.held_out_errors(curves[q].to_numpy(), 3).assign(query=q) for q in curves]
    )
    return {
        "fits": records(logit_shape.fit_table(curves)),
        "bfloat16": records(logit_shape.bfloat16_table(curves)),
        "rounded": logit_shape.to_bfloat16([20.07, 20.05, -3.0039, 1e-3, 1.00390625, 1.01171875]),
        "pooled": records(logit_shape.pooled_ratios(held_out)),
        "bic": records(logit_shape.bic_table(logit_shape.comparison(curves, held_out))),
    }


@canary("logits", LOGITS, "float32 kernels: logits of these models differ by up to 2e-5", "tiny")
def sorted_logits_of_a_model(get):
    queries = (logit_shape.QUERIES[0], logit_shape.QUERIES[2], logit_shape.QUERIES[5])
    return {
        f"{architecture} {query.label}": logit_shape.sorted_logits(
            get("tiny")(architecture, chat=chat), query, 200
        )[::13]
        for architecture, chat in (("llama", True), ("gemma3", False))
        for query in queries
    }


# --- steps: what the interactive figure shows -----------------------------------------------------


def step_facts(step) -> dict:
    return {
        "prefix": step.prefix,
        "size": [step.n_vocab, step.n_listed],
        "top": [[token.text, token.rank, token.gap] for token in step.tokens[:12]],
        "valid": [[t.text, t.rank, t.gap, t.n_answers] for t in step.tokens if t.n_answers],
        "tail": [[part.count, part.first, part.mean] for part in step.tail[::8]],
        "bins": len(step.tail),
        "validity": [step.validity(t) for t in (0.1, 1.0, 2.0)],
        "ln Z": [step.log_partition(t) for t in (0.1, 1.0, 2.0)],
    }


@canary("steps", LOGITS, "float32 kernels: gaps of these models differ by up to 2e-5", "tiny")
def explorer_steps(get):
    model, task = get("tiny")("llama", chat=True), get("small_task")
    found = {
        f"{answer} {i}": step_facts(step)
        for answer in ("1,2,3", "abab")
        for i, step in enumerate(explorer.steps_along(model, task, answer, end="line"))
    }
    first = explorer.step_data(model, task)
    masses = explorer.group_masses(first, np.array([0.2, 1.0, 3.0]))
    found["groups"] = records(masses)
    return found


@canary("steps", ARITHMETIC, "rounded to six decimals by the code")
def bins_of_the_tail(get):
    gaps = np.cumsum(np.random.default_rng(6).exponential(0.02, 900)) + 1.5
    found = explorer.tail_bins(gaps, np.array([3, 500]), 5000)
    return {"bins": [[part.count, part.first, part.mean] for part in found[::5]], "n": len(found)}


# --- texts ----------------------------------------------------------------------------------------

# Ids as they were once drawn from the tiny models, the end token included; never drawn again.
STORED_TEXTS = {
    "llama": ((13, 29, 84, 220, 65, 97, 256), (200, 7, 7, 258), (256, 257, 258, 259, 0, 100)),
    "qwen3.5": ((65, 66, 67, 12, 256), (31, 5, 44, 90, 123, 211, 9, 18)),
    "gemma3": ((1, 2, 3, 5, 8, 13, 21, 34, 55, 89), (250, 251, 260)),
    "qwen3-moe": ((100, 50, 25, 12, 6, 3), (256,)),
}


@canary("texts", LOG_P, "ln p of stored token ids under float32 kernels: 1e-3 of itself", "tiny")
def stored_texts_scored_again(get):
    """Stored texts are scored by their ids; what is greedy, or a rank, is followed as well."""
    found: dict = {}
    for architecture, texts in STORED_TEXTS.items():
        model = get("tiny")(architecture, chat=True)
        prompt = cu.render_prompt(model, get("small_task"))
        tree = generation.Continuations(model, prompt.ids, batch_size=2)
        done = tree.complete([*texts, ()], 5, prompt.end_ids)
        found[architecture] = {
            "ln p": [one.prefix_log_p for one in done],
            "greedy": [[*one.token_ids, one.ended] for one in done],
            "greedy ln p": [one.log_p for one in done],
            "by rank": tree.candidates([texts[0][:2], ()], [0, 1, 5, 40, 200]),
        }
    return found


SEEDED_WHY = "seeded numbers of NumPy, compared with gaps of models far above rounding"


@canary("texts", EXACT, SEEDED_WHY, "tiny")
def draws_by_seed(get):
    """The same seed, prefix and number give the same draw, whatever else is drawn."""
    model = get("tiny")("llama", chat=True)
    prompt = cu.render_prompt(model, get("small_task"))
    tree = generation.Continuations(model, prompt.ids)
    found = {}
    for t, seed in product((0.5, 1.0, 1.5), (0, 1)):
        options = {"n_samples": 3, "temperature": t, "seed": seed}
        drawn = tree.complete([(), (65,)], 4, prompt.end_ids, **options)
        found[f"T={t:g} seed {seed}"] = [[one.sample, *one.token_ids] for one in drawn]
    return found


@canary("draws", EXACT, "seeded numbers of NumPy against shares far from them", "tiny")
def draws_under_settings(get):
    """Draws of every rule share their numbers; one that stays valid goes on to the end."""
    task = get("small_task")
    models = {"llama": get("tiny")("llama", chat=True)}
    models["leaky"] = cu.reference_model(cu.LeakyShape(0.8), task)
    settings, found = settings_of([*FEW_RULES, "oracle_size+top_p=0.7"], (0.05, 1.0)), {}
    for name, model in models.items():
        drawn = draws.draw(model, cu.render_prompt(model, task), settings, n=4, seed=3)
        for (rule, temperature), own in zip(settings, drawn, strict=True):
            texts = [[*one.token_ids, one.valid, one.ended] for one in own]
            found[f"{name} {rule.key} {temperature}"] = texts
    return found


TEXTS = (
    "One of the two is here, and the other one is not.",
    "One of the two is here.",
    "the THE the the The, one of the two?",
    "Something else: 3.5 apples, 4 pears and a well-known fruit.",
    "a",
    "",
    "One of the two is here.",
    "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch.",
)


@canary("texts", ARITHMETIC, "counts of n-grams, and sums of float64")
def diversity_of_texts(get):
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((9, 5))
    return {
        "angles": [
            table1.embedding_diversity(v)
            for v in (vectors, vectors[:2], np.abs(vectors), np.ones((3, 4)), vectors[:1])
        ],
        "self-BLEU": [table1.self_bleu(TEXTS, order) for order in (1, 2, 4)],
        "few": [table1.self_bleu(TEXTS[:n]) for n in (1, 2, 3)],
        "in groups": [table1.self_bleu_in_groups(TEXTS, rounds=5, seed=seed) for seed in (0, 1)],
    }


# --- labels, and what is measured of labelled candidates ------------------------------------------

ITEMS = {
    "city": (
        *("Paris", "  **Paris**.", "paris, France", "Paris, Japan", "Paris (Texas)", "St. Louis"),
        *("São Paulo", "Sao Paulo", "Saint Petersburg, Russia", "London, England", "Atlantis"),
        *("The Hague", "I like Paris", "", "東京", "Constantinople", "Austin, TX"),
        *("Portland, Maine", "New York City", "Winston-Salem", "Paris, Nowhere", "Xi'an"),
    ),
    "country": (
        *("France", "the united states", "Taiwan", "Kosovo", "Côte d'Ivoire", "Yugoslavia", "Fr"),
    ),
    "element": ("Gold", "Au", "aluminium", "Aluminum", "unobtainium", "H"),
    "us-state": ("Texas", "washington", "D.C.", "Puerto Rico", "new  york", "Tex"),
}
CUT_OFF = ("San Franc", "Par", "Xqz", "", "Paris, Fr")


@canary("labels", EXACT, "lists decide")
def labels_by_list(get):
    found = {
        kind: {text: list(verifiers.decide(kind, text)) for text in texts}
        for kind, texts in ITEMS.items()
    }
    found["cut off"] = {text: list(verifiers.decide("city", text, False)) for text in CUT_OFF}
    judged = verifiers.ExactJudge().judge(
        items(ITEMS["city"]).assign(prompt="Name a random city in the world.")
    )
    found["judged"] = {name: judged[name].astype(str).tolist() for name in ("valid", "overall")}
    return found


def items(texts) -> pd.DataFrame:
    return pd.DataFrame({"prompt": "Name a city.", "text": list(texts), "ended": True})


SENTENCES = (
    "He go home.The end",
    "The cat sat on the mat, and it was warm.",
    "She have two dog. they is happy .",
    "The colour of the color is gray or grey.",
    "I likes 東京 very much\ufffd",
    "a an apple the the pear",
    "Once upon a time there was a girl who lived in a littel hous",
)


@canary("labels", EXACT, "rules decide")
def labels_by_grammar(get):
    judged = verifiers.LanguageChecker().judge(items([*SENTENCES, " "]))
    return {
        "ended": {text: verifiers.findings(text) for text in SENTENCES},
        "cut off": {text: verifiers.findings(text, ended=False) for text in SENTENCES},
        "grammar": judged.grammar.astype(float).fillna(0.0).tolist(),
        "valid": judged.valid.astype(str).tolist(),
    }


def labelled_candidates() -> pd.DataFrame:
    """Nodes of five prompts and two seeds, in no order of validity; one without a valid one."""
    rng = np.random.default_rng(8)
    rows = []
    for prompt, seed, depth, node in product(range(5), range(2), (1, 2, 3), range(2)):
        n = int(rng.integers(3, 30))
        valid = rng.random(n) < 0.7 * np.exp(-np.arange(n) / (4 * depth))
        if (prompt, node) == (2, 1):
            valid[:] = False
        for rank, v in zip(rng.permutation(n).tolist(), valid[::-1].tolist(), strict=True):
            weight = int(rng.integers(1, 9)) if v else 0
            key = (f"p{prompt}", "cities", seed, depth, f"n{node}")
            rows.append((*key, 10 * rank, v, weight))
    columns = [*precision_recall.NODE, "rank", "valid", "weight"]
    return pd.DataFrame(rows, columns=columns)


@canary("labels", ARITHMETIC, ARITHMETIC_WHY)
def order_measures(get):
    """Local precision and recall, frontiers, areas; a random order's; summaries by depth."""
    curves = precision_recall.local_curves(labelled_candidates())
    found: dict = {"curves": records(curves.iloc[::9, 5:])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_RESAMPLES", 200)
        for kind in (precision_recall.WEIGHTED, precision_recall.UNWEIGHTED):
            measures = precision_recall.node_measures(curves, kind)
            grid = precision_recall.frontiers_on_grid(curves, kind)
            found[kind] = {
                "nodes": records(measures.iloc[::4, 5:]),
                "grid": records(grid.iloc[::31, 6:]),
                "by depth": records(precision_recall.frontiers_by_depth(grid).iloc[::4]),
                "summary": records(precision_recall.depth_summary(measures)),
                "differences": records(precision_recall.depth_differences(measures)),
            }
        patch.setattr(precision_recall, "LEVEL", 0.4)
        for kind in (precision_recall.WEIGHTED, precision_recall.UNWEIGHTED):
            reached = precision_recall.node_measures(curves, kind).recall_at
            found[kind]["low level"] = reached.tolist()[::4]
    return found


@canary("labels", ARITHMETIC, ARITHMETIC_WHY)
def order_by_chance(get):
    """What a random order and an erring judge give."""
    found = [
        *starmap(precision_recall.random_order, ((2, 1), (10, 3), (30, 0), (12, 12))),
        precision_recall.random_order(40, 9, 0.3, (1, 5, 10, 40)),
        precision_recall.random_order(200, 30, cutoffs=(1, 20, 200), seed=3),
    ]
    floors = [
        precision_recall.noise_floor(30, 10, 0.1, 0.2, n_draws=20),
        precision_recall.noise_floor(30, 10, 0.0, 0.0, n_draws=3),
        precision_recall.noise_floor(5, 1, 0.0, 1.0, n_draws=3),
    ]
    return {
        "random": [list(vars(one).values()) for one in found],
        "noise": [list(vars(one).values()) for one in floors],
        "published": records(precision_recall.from_published().iloc[:, 3:]),
    }


@canary("labels", ARITHMETIC, "seeded draws of NumPy's generator, and sums of float64")
def intervals(get):
    rng = np.random.default_rng(9)
    table = pd.DataFrame(
        {
            "prompt_id": rng.choice(list("abcdefg"), 60),
            "seed": rng.integers(0, 3, 60),
            "x": np.where(rng.random(60) < 0.1, math.nan, rng.random(60)),
        }
    )
    few = table[table.prompt_id.isin(["a", "b"])]
    cases = {
        "two levels": metrics.cluster_interval(table, "x"),
        "one level": metrics.cluster_interval(table, "x", inner=None, seed=1),
        "few": metrics.cluster_interval(few, "x"),
        "one cluster": metrics.cluster_interval(table[table.prompt_id == "c"], "x"),
        "two pairs": metrics.cluster_interval(table[table.prompt_id == "c"].iloc[:2], "x"),
        "nothing": metrics.cluster_interval(table.iloc[:0], "x"),
    }
    return {name: list(vars(found).values()) for name, found in cases.items()} | {
        "mean": metrics.cluster_mean(table, "x")
    }


# --- the smallest real model ----------------------------------------------------------------------


SMALLEST, SMALLEST_TASK = "smollm2-135m-instruct", "rng-3-sum-equals-10"


@pytest.fixture(scope="module")
def of_the_smallest():
    """Rows at the settings of the independent answers, and ln p of every answer at T = 1."""
    text = paths.package_data("reference", "known_answers.json").read_text()
    known = pd.DataFrame(json.loads(text)["rows"])
    known = known[(known.model == SMALLEST) & (known.task == SMALLEST_TASK)]
    keys = known.rule + known.parameter.map(lambda n: "" if pd.isna(n) else f"={n:g}")
    model = cu.load_model(SMALLEST, device="cpu")
    temperatures = sorted(known.temperature.unique().tolist())
    rows = cu.evaluate(model, SMALLEST_TASK, [*dict.fromkeys(keys)], temperatures)
    log_p = cu.answer_probabilities(model, SMALLEST_TASK, [1.0]).log_p
    return rows, known, log_p.to_numpy()


@canary("rows", FORWARD, FORWARD_WHY, SMALLEST, **{"ln p": LOG_P})
def rows_of_the_smallest_model(get):
    rows, _, log_p = get("of_the_smallest")
    return by_setting(rows) | {"ln p": log_p[::7]}


@pytest.mark.models
@pytest.mark.parametrize("source", ["stored", "independent"])
def test_the_smallest_model_gives_its_stored_rows_and_the_independent_answers(
    of_the_smallest, source
):
    rows, known, _ = of_the_smallest
    if source == "stored":
        known = pd.read_csv(
            paths.project_root() / "data/results" / SMALLEST / SMALLEST_TASK / "settings.csv"
        )
    known = known.assign(parameter=known.parameter.astype(float))
    both = rows.merge(known, on=KEY, suffixes=("", "_known"))
    assert len(both) >= 10
    for name in ("n_answers", "n_nodes", *NUMBERS):
        for near in ({"rtol": 0, "atol": 1e-4}, {"rtol": 1e-3}):
            np.testing.assert_allclose(both[name], both[f"{name}_known"], **near, err_msg=name)


def _parameter(one: Canary):
    marks = [pytest.mark.models] if one.on not in ("", "tiny") else []
    return pytest.param(one.name, marks=marks, id=f"{one.name}-on-{one.on}" if one.on else one.name)


@pytest.mark.parametrize("name", [*map(_parameter, CANARIES.values())])
def test_stored_numbers_keep_their_meaning(name, request, require_golden):
    chosen = CANARIES[name]
    require_golden(chosen, chosen.compute(request.getfixturevalue))

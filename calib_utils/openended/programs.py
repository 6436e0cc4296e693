"""Replies that a model draws, programs among them, whether these pass, and measures (Fig. 12).

Knows the project's own problems and the sandbox by name; not how a program is run, and no claim.
"""

import ast
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from scipy.stats import rankdata
from tqdm.auto import tqdm

from calib_utils import files, paths
from calib_utils.core.metrics import cluster_interval
from calib_utils.core.tasks import OpenPrompt
from calib_utils.models.generation import Continuations, Start, start_of
from calib_utils.models.loading import Model, generation_settings
from calib_utils.openended import sandbox
from calib_utils.openended.sandbox import Limits, Verdict
from calib_utils.results import conventions, records

_ASKS = (
    "Write a Python function `{signature}`. {prompt} Reply with one Python code block that holds "
    "the complete function, and nothing else."
)
_MARKDOWN = MarkdownIt("commonmark").disable(["inline", "reference", "html_block"])
_PYTHON = re.compile(r"\bi?py(thon)?[\d.]*\b", re.IGNORECASE)  # in the words beside a fence


@dataclass(frozen=True)
class Problem:
    """A function to be written, and its tests: (arguments, expected value) pairs.

    `reference` and `wrong` are a program that passes and one that does not.
    """

    id: str
    signature: str
    prompt: str
    tests: tuple[tuple[tuple, Any], ...]
    reference: str = ""
    wrong: str = ""

    @property
    def entry_point(self) -> str:
        """The name of the function."""
        return self.signature.partition("(")[0]

    @property
    def message(self) -> str:
        """The user's message, exactly as the model is to see it."""
        return _ASKS.format(signature=self.signature, prompt=self.prompt)

    def run(self, source: str) -> Verdict:
        """The tests' verdict on a program, see `sandbox.run_tests`."""
        return sandbox.run_tests(source, self.entry_point, self.tests)


def read_problems() -> tuple[Problem, ...]:
    """The project's own problems."""
    problems = []
    for record in files.json_of(paths.package_data("tasks", "programs.json")):
        tests = tuple((tuple(test["arguments"]), test["expected"]) for test in record["tests"])
        problems.append(Problem(**record | {"tests": tests}))
    return tuple(problems)


def extract_code(reply: str, entry_point: str = "") -> str:
    """The program in a reply, whose fenced blocks are those of CommonMark, cut off or not.

    The first block that is Python and defines the function `entry_point` (any function without a
    name); else the first that is marked as Python; else the first block, or the reply if it has
    none. Blocks are not joined.

    >>> extract_code("First:\\n```sh\\nls\\n```\\nThen:\\n~~~~ {.python}\\ndef f(): pass\\n~~~~")
    'def f(): pass\\n'
    """
    reply = reply.lstrip("\ufeff")  # which Python takes at the start of a file, and here too
    tokens = _MARKDOWN.parse(reply)
    blocks = [token for token in tokens if token.type == "fence" and token.content.strip()]
    codes = [block.content.lstrip("\ufeff") for block in blocks]
    for code in (*codes, reply):
        if _defines(_parsed(code), entry_point):
            return code
    marked = [code for block, code in zip(blocks, codes, strict=True) if _PYTHON.search(block.info)]
    return (marked + codes + [reply])[0]


def tested_code(problem: str, reply: str) -> str:
    """The program in a reply to one of the project's problems, by id: the one that was tested."""
    return extract_code(reply, _entry_points().get(problem, ""))


@cache
def _entry_points() -> dict[str, str]:
    return {problem.id: problem.entry_point for problem in read_problems()}


def _parsed(source: str) -> ast.Module | None:
    """None for what is no Python of this interpreter's version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a model wrote
            return ast.parse(source)
    # Deep nesting exhausts the parser's stack or memory; zero bytes are a ValueError.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines(tree: ast.Module | None, name: str) -> bool:
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and name in ("", node.name):
            return True
        if name and name in (getattr(target, "id", "") for target in getattr(node, "targets", ())):
            return True
    return False


def normalised(source: str) -> str | None:
    """A program's syntax as text: equal for programs that differ in layout, comments and
    docstrings only. None where it is no Python of this interpreter's version."""
    if (tree := _parsed(source)) is None:
        return None
    try:
        for node in ast.walk(tree):
            match getattr(node, "body", None):
                case [ast.Expr(ast.Constant(str())), _, *_]:
                    del node.body[0]
        return ast.dump(tree)
    except (ValueError, RecursionError):
        return None


# Seeded replies of a model to one message.

COLUMNS = ["draw", "text", "n_tokens", "log_p", "ended"]
# Fields of a model's generation settings that change what it writes, and the values that do not.
NEUTRAL = {
    **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0},
    **{"epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    **{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
}


def message_start(model: Model, message: str) -> Start:
    """The tokens of a user's message in the model's chat template, and those that end a reply."""
    return start_of(model, OpenPrompt("message", "drawn", message))


def draw(
    model: Model, message: str, n: int, max_tokens: int, *, temperature: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Replies to a message, without cutoff. A draw depends on its number, not on `n`.

    Returns:
        A row per draw, columns `COLUMNS`: the text without its end token, the number of tokens
        with it, and `log_p`, the log-probability in nats of these tokens at temperature 1,
        whatever temperature they were drawn at; of a prefix where the reply had not `ended`.
    """
    start = message_start(model, message)
    options = {"n_samples": n, "temperature": temperature, "seed": seed}
    tree, rows = Continuations(model, start.ids), []
    for done in tree.complete([()], max_tokens, start.end_ids, **options):
        text = model.tokenizer.decode(list(done.token_ids[: -1 if done.ended else None]))
        log_p = min(0.0, sum(done.log_p))  # at most 0 but for rounding in the last digit
        rows.append((done.sample, text, len(done.token_ids), log_p, done.ended))
    return pd.DataFrame(rows, columns=COLUMNS)


def own_settings(model: Model) -> dict:
    """Sampling settings that the model's own files give; empty where they give none.

    transformers would fill gaps with its own defaults (top-k 50); here a gap means no cutoff.
    """
    given = generation_settings(Path(model.folder))
    return {name: given[name] for name in NEUTRAL if given.get(name) is not None}


def record_of(model: Model, asked: dict, settings: dict) -> dict:
    """What stored tables depend on, and what people want to know beside it.

    Args:
        asked: id -> what is asked and how it is judged, as plain content (`conventions.digest`).
        settings: the numbers of the request.
    """
    return {
        **records.of_model(model),
        "prompts_sha256": conventions.digest(asked),
        "sweep_sha256": conventions.digest(settings),
        "weights_file": model.weights_file,
        "settings": settings,
        "environment": conventions.environment(model.device),
    }


_VERDICT = ["outcome", "reason", "n_passed", "n_tests"]
TESTED_COLUMNS = ["problem", *COLUMNS, *_VERDICT]


def sample_programs(
    model: Model,
    problems: Sequence[Problem],
    n: int = 20,
    *,
    max_tokens: int = 256,
    seed: int = 0,
    results_dir: str | Path | None = None,
    name: str = "programs",
) -> pd.DataFrame:
    """Replies of a model to every problem, drawn without cutoff, each tested in a sandbox.

    Args:
        n: replies per problem.
        max_tokens: a reply that has not ended by then is tested as it is.
        results_dir: problems are kept under `results_dir/<model>/texts/<name>`, one file each as
            soon as it is done. A run after a kill goes on from there; a finished one needs neither
            the weights nor a sandbox. Without it nothing is kept.

    Returns:
        A row per reply, columns `TESTED_COLUMNS`; `log_p` as in `draw`.
    """
    chosen = {problem.id: problem for problem in problems}

    def make(problem_id: str) -> pd.DataFrame:
        sandbox.require()  # before minutes of drawing, not after
        problem = chosen[problem_id]
        drawn = draw(model, problem.message, n, max_tokens, seed=seed)
        table = run_programs(drawn.assign(problem=problem_id), [problem])
        bar.update(n)
        return table

    asked = {}
    for key, problem in chosen.items():
        start = message_start(model, problem.message)
        asked[key] = [start.ids, start.end_ids, problem.entry_point, problem.tests]
    settings = {"n": n, "temperature": 1.0, "max_tokens": max_tokens, "seed": seed}
    settings |= {"isolation": "namespaces", **vars(Limits())}
    record = record_of(model, asked, settings)
    folder = records.folder_of(results_dir, model.key, name)
    with tqdm(total=len(chosen) * n, unit="program", desc=model.name, leave=False) as bar:
        return records.kept(folder, record, chosen, make)


def run_programs(drawn: pd.DataFrame, problems: Sequence[Problem]) -> pd.DataFrame:
    """Tests the programs in replies, whoever wrote them; needs no model.

    Args:
        drawn: columns problem and text; a text that occurs again for a problem is run once.

    Returns:
        The rows with the verdicts' columns.
    """
    chosen = {problem.id: problem for problem in problems}
    pairs = list(zip(drawn.problem, drawn.text, strict=True))
    verdicts = {
        (key, text): vars(chosen[key].run(extract_code(text, chosen[key].entry_point)))
        for key, text in dict.fromkeys(pairs)
    }
    found = pd.DataFrame([verdicts[pair] for pair in pairs], columns=_VERDICT, index=drawn.index)
    table = drawn.assign(**found)
    return table[[column for column in TESTED_COLUMNS if column in table]].reset_index(drop=True)


# Measures. Order and shape are those of whole sequences: a program counts once however often it
# was drawn, and replies cut off at the token limit are left out, since their log-probability is
# that of a prefix. What was never drawn is as good as absent.

PASSED = "passed"


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n programs, drawn without replacement, hold one of c passing ones.

    1 - C(n-c, k) / C(n, k), the unbiased estimate of pass@k (Chen et al., arXiv:2107.03374).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_rates(table: pd.DataFrame, ks: Sequence[int] = (1, 5)) -> pd.DataFrame:
    """pass@k over problems with 95 % intervals.

    Returns:
        A row per k: estimate, low, high, problems. The interval is for problems like these:
        problems are drawn again, their programs are kept.
    """
    counts = (table.outcome == PASSED).groupby(table.problem, sort=False).agg(["size", "sum"])
    counts = counts.reset_index()
    rows = []
    for k in ks:
        rates = [pass_at_k(n, c, k) for n, c in zip(counts["size"], counts["sum"], strict=True)]
        found = cluster_interval(counts.assign(rate=rates), "rate", outer="problem", inner=None)
        row = {"k": k, "estimate": found.mean, "low": found.low, "high": found.high}
        rows.append(row | {"problems": found.n_outer})
    return pd.DataFrame(rows)


def ranked_programs(table: pd.DataFrame) -> pd.DataFrame:
    """Distinct complete replies, per problem by falling log-probability.

    Returns:
        Columns problem, rank (from 1), log_p in nats, passed, drawn (how often), text.
    """
    whole = table[table.ended.astype(bool)]
    groups = whole.assign(passed=whole.outcome == PASSED).groupby(["problem", "text"], sort=False)
    named = {"log_p": ("log_p", "max"), "passed": ("passed", "first"), "drawn": ("draw", "size")}
    found = groups.agg(**named).reset_index()
    found["place"] = found.problem.map(list(table.problem.unique()).index)
    found = found.sort_values(["place", "log_p"], ascending=[True, False], kind="stable")
    found["rank"] = found.groupby("problem", sort=False).cumcount() + 1
    columns = ["problem", "rank", "log_p", "passed", "drawn", "text"]
    return found[columns].reset_index(drop=True)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive scores above a negative, ties half; NaN without both.

    >>> auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    1.0
    """
    positive = np.asarray(positive, dtype=bool)
    n, others = positive.sum(), (~positive).sum()
    if not n or not others:
        return math.nan
    wins = rankdata(score)[positive].sum() - n * (n + 1) / 2
    return float(wins / (n * others))


def order_by_problem(table: pd.DataFrame) -> pd.DataFrame:
    """How well log-probability puts passing programs first, a row per problem.

    Returns:
        Columns problem, programs (distinct and complete), prevalence (share that pass), auc; auc
        is NaN where all pass or none, and 0.5 for a random order.
    """
    rows = [
        (problem, len(own), own.passed.mean(), auc(own.log_p.to_numpy(), own.passed.to_numpy()))
        for problem, own in ranked_programs(table).groupby("problem", sort=False)
    ]
    return pd.DataFrame(rows, columns=["problem", "programs", "prevalence", "auc"])


def shape_by_problem(table: pd.DataFrame, tops: Sequence[int] = (1, 3)) -> pd.DataFrame:
    """How the model spreads probability over the distinct passing programs it was seen to write.

    Replies with the same program (`normalised`) count as one, and their probabilities add up: a
    lower bound, for other replies with it were not drawn.

    Returns:
        A row per problem with a passing program: passing (distinct programs), top_1, top_3, ...
        (share of their mass that the most probable hold), effective (exp of the entropy of their
        probabilities, from 1 to `passing`), log_mass (ln of their mass, in nats).
    """
    rows = []
    for problem, own in ranked_programs(table).groupby("problem", sort=False):
        own = own[own.passed]
        if own.empty:
            continue
        syntax = [normalised(tested_code(problem, text)) for text in own.text]
        groups = own.groupby(pd.Series(syntax, index=own.index))
        log_p = np.sort([np.logaddexp.reduce(g.to_numpy()) for _, g in groups.log_p])[::-1]
        log_mass = np.logaddexp.reduce(log_p)
        share = np.exp(log_p - log_mass)
        entropy = -(share * (log_p - log_mass)).sum()
        row = {"problem": problem, "passing": len(share)}
        row |= {f"top_{k}": float(share[:k].sum()) for k in tops}
        row |= {"effective": float(np.exp(entropy)), "log_mass": float(min(log_mass, 0.0))}
        rows.append(row)
    names = ["problem", "passing", *(f"top_{k}" for k in tops), "effective", "log_mass"]
    return pd.DataFrame(rows, columns=names)

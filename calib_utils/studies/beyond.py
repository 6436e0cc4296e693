"""Beyond the controlled tasks (Fig. 11, 12): one question many times, programs by probability.

Draws replies and programs or takes stored ones; counts, estimates with intervals and claims out.
Knows no figure, and not how programs are drawn and tested (`openended.programs`).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import digamma

from calib_utils.core.metrics import DECIDES, as_text, cluster_interval
from calib_utils.errors import InvalidRequestError
from calib_utils.models.endpoint import Endpoint, Reply
from calib_utils.models.loading import Model
from calib_utils.openended import programs, verifiers
from calib_utils.openended.programs import PASSED, normalised, read_problems, tested_code
from calib_utils.openended.prompts import get_prompt
from calib_utils.results import records
from calib_utils.results.evaluation import share_interval
from calib_utils.studies import reporting
from calib_utils.studies.reporting import CLAIM, EXCLUDED, OURS, TESTABLE, Finding, mean_text, voted

CITY_PROMPT = "Name a random city in the world"  # Fig. 11
N_REPLIES, N_PROGRAMS = 200, 20
QUICK_REPLIES, QUICK_PROGRAMS, QUICK_PROBLEMS = 8, 3, 1
REPLY_TOKENS = 20  # a name and its country fit; what is longer is no name
PROGRAM_TOKENS, QUICK_TOKENS = 256, 40
NOT_ASKED = "No other model was asked here: endpoint_url and endpoint_model name one."
NOT_RUN = "Programs are asked of chat models only, and this is a base model."
NAMES_NEEDED = 30  # for a share of them to say something
N_RESAMPLES, Z = 500, 1.96
_TAIL = 40.0  # e^-40 is nothing beside what is summed
_LONGEST = 40  # characters of an answer in a table

_DRAWS = 4  # passing draws among which pairs are compared
# Where claims are decided.
_DOMINATES = 0.5
_ORDERED = 0.95  # AUC; 1 is a perfect order
_FEW = 4  # equally likely programs
_ALIKE = 6  # problems: as many coins fall alike once in 32 times

between = partial(as_text, whole_from=10, undefined="nan", alone="")


class Estimate(NamedTuple):
    """A value and a 95 % interval."""

    value: float
    low: float
    high: float


class Repeats(NamedTuple):
    """How often each answer came, the most frequent first, and what follows from it."""

    counts: pd.Series  # answer -> how often
    top_share: Estimate  # of the most frequent answer
    effective: Estimate  # number of answers exp(H), corrected for those unseen
    unseen: Estimate  # the probability that the next answer is a new one


def plain_answer(text: str) -> str:
    """A reply's first line without case, markup, outer punctuation and repeated spaces.

    >>> plain_answer(" **Valparaíso**,  Chile.\\nIt lies by the sea.")
    'valparaíso, chile'
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r'[*_`#"“”]+', "", unicodedata.normalize("NFKC", line)).casefold()
    return re.sub(r"\s+", " ", line).strip(" .,;:!?'-–—")


def summarise(texts: Iterable[str]) -> Repeats:
    """Counts of the answers (`plain_answer`) in some replies, at least two, with estimates."""
    answers = pd.Series([plain_answer(text) for text in texts], dtype=object)
    if len(answers) < 2:
        raise InvalidRequestError(f"{len(answers)} replies: at least two are needed")
    counts = answers.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    x = counts.to_numpy()
    top = Estimate(float(x[0] / x.sum()), *share_interval(int(x[0]), int(x.sum())))
    return Repeats(counts, top, effective_number(x), unseen(x))


def effective_number(counts: np.ndarray, seed: int = 0) -> Estimate:
    """exp(H) of the distribution that the counts are a sample of, H in nats.

    H by `entropy`, plus and minus 1.96 of its spread over samples of an estimated distribution in
    which the unseen mass is split evenly among an estimated number of unseen answers (Chao1), as in
    Chao et al. (2014). Where answers follow a power law, H comes out too low and the interval
    covers less often than it says (tests have a case): read it together with `unseen`.
    """
    counts = counts[counts > 0]
    n = int(counts.sum())
    h = entropy(counts)
    drawn = np.random.default_rng(seed).multinomial(n, _completed(counts), size=N_RESAMPLES)
    spread = float(np.std([entropy(sample[sample > 0]) for sample in drawn], ddof=1))
    low = max(0.0, h - Z * spread)
    return Estimate(float(np.exp(h)), float(np.exp(low)), float(np.exp(h + Z * spread)))


def entropy(counts: np.ndarray) -> float:
    """H in nats from counts above 0, corrected for unseen answers (Chao, Wang & Jost 2013).

    >>> round(entropy(np.array([50, 50])), 3)
    0.698
    """
    n = int(counts.sum())
    seen = float((counts / n * (digamma(n) - digamma(counts))).sum())
    once, twice = _rare(counts)
    if once == 0 or n < 2:
        return seen
    # a: the mean probability of an answer that came once, by Good's theory.
    a = 2 * twice / ((n - 1) * once + 2 * twice) if twice else 2 / ((n - 1) * (once - 1) + 2)
    q = 1.0 - a
    if q <= 0.0:
        return seen
    if a * n < 1:
        rest = q ** (1 - n) * (-np.log(a) - (q ** np.arange(1, n) / np.arange(1, n)).sum())
    else:  # the same series from its other end, where the difference above would cancel
        j = np.arange(1, int(_TAIL / a) + 2)
        rest = (q**j / (n - 1 + j)).sum()
    return seen + once / n * float(rest)


def unseen(counts: np.ndarray) -> Estimate:
    """The probability of a new answer, by Good and Turing: the share of answers that came once.

    The interval is Esty's (1983), but never nearer to 0 or 1 than 3/n, a mass that one sample of
    twenty does not draw at all.
    """
    n = int(counts.sum())
    once, twice = _rare(counts)
    half = float(Z * np.sqrt(once * (1 - once / n) + 2 * twice) / n)
    value, least = once / n, min(1.0, 3 / n)
    low, high = min(value - half, 1 - least), max(value + half, least)
    return Estimate(value, max(0.0, low), min(1.0, high))


def _rare(counts: np.ndarray) -> tuple[int, int]:
    return int((counts == 1).sum()), int((counts == 2).sum())


def _completed(counts: np.ndarray) -> np.ndarray:
    """Estimated probabilities of the seen answers, shrunk, and of the unseen ones after them."""
    n = int(counts.sum())
    once, twice = _rare(counts)
    share = counts / n
    if once == 0:
        return share
    chao1 = once**2 / (2 * twice) if twice else once * (once - 1) / 2
    n_unseen = max(1, int(np.ceil((n - 1) / n * chao1)))
    pairs = (n - 1) * once
    missing = once / n * (pairs / (pairs + 2 * twice) if twice else 1 - 1 / n)
    shrink = (1 - share) ** n
    loss = (share * shrink).sum()
    seen = share * (1 - missing / loss * shrink) if loss > 0 else share * (1 - missing)
    seen = np.maximum(seen, 0.0)
    return np.concatenate(
        [seen * (1 - missing) / seen.sum(), np.full(n_unseen, missing / n_unseen)]
    )


# Which questions are asked and which programs drawn, and the names under which they are kept.


class Question(NamedTuple):
    """A prompt that is asked many times."""

    label: str  # in tables and file names
    prompt: str  # the user's message
    kind: str  # the list that says whether a reply is an answer
    temperature: float = 1.0  # at which replies are drawn, without cutoff


_KINDS = ("city", "country", "element")


def questions(model: Model, quick: bool = False) -> list[Question]:
    """Fig. 11's question, the same at half the temperature, and three of the open set.

    Two of them for a quick look, and for a base model, which rarely answers a question.
    """
    city, country, element = (
        Question(kind, get_prompt(f"item-{kind}").prompt, kind) for kind in _KINDS
    )
    first = Question("random-city", CITY_PROMPT, "city")
    if quick or not model.tokenizer.chat_template:
        return [first, country]
    return [first, Question("random-city-half", CITY_PROMPT, "city", 0.5), city, country, element]


def ask(
    model: Model,
    question: Question,
    n: int = N_REPLIES,
    seed: int = 0,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Replies of a model to one question, without cutoff: columns of `programs.COLUMNS`.

    Kept as `repeats-<label>`; another number of replies or seed is kept beside it.
    """
    drawn = {"temperature": question.temperature, "seed": seed}
    start = programs.message_start(model, question.prompt)
    prompts = {"repeats": [start.ids, start.end_ids]}
    # Part of the identity of stored replies, though all are drawn without cutoff.
    request = {"n": n, "settings": "plain", **drawn, "max_tokens": REPLY_TOKENS}
    request["own_settings"] = programs.own_settings(model)
    name = kept_as(f"repeats-{question.label}", n, N_REPLIES, seed)
    return records.kept(
        records.folder_of(results_dir, model.key, name),
        programs.record_of(model, prompts, request),
        prompts,
        lambda _: programs.draw(model, question.prompt, n, REPLY_TOKENS, **drawn),
    )


def ask_all(model: Model, asked: Sequence[Question], *args, **options) -> pd.DataFrame:
    """`ask` with each question: its replies, with `question` in front."""
    answers = {question.label: ask(model, question, *args, **options) for question in asked}
    return reporting.stacked(answers, ["question"])


def ask_endpoint(url: str, model: str, n: int) -> pd.DataFrame:
    """Replies to Fig. 11's question of a model behind an OpenAI-compatible server at temperature 1.

    Nothing is kept: running again asks, and costs, again. What the server refuses is left out,
    unless it refuses all: then, and where it cannot be used, an EndpointError. No rows where `url`
    is empty.
    """
    if not url:
        return pd.DataFrame(columns=["question", "draw", "text"])
    replies = list(Endpoint(url, model, options={"temperature": 1.0}).replies([CITY_PROMPT] * n))
    rows = [(at, reply.text) for at, reply in replies if isinstance(reply, Reply)]
    if replies and not rows:
        raise replies[0][1]  # the request itself is wrong
    return pd.DataFrame(rows, columns=["draw", "text"]).assign(question=model)


def draw_programs(
    model: Model,
    n: int = N_PROGRAMS,
    seed: int = 0,
    *,
    quick: bool = False,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Tested programs for the project's problems, columns `programs.COLUMNS`.

    Kept as `programs`; another request is kept beside it. A base model gives no rows.
    """
    if not model.tokenizer.chat_template:
        return pd.DataFrame(columns=programs.TESTED_COLUMNS)
    return programs.sample_programs(
        model,
        read_problems()[: QUICK_PROBLEMS if quick else None],
        n,
        max_tokens=QUICK_TOKENS if quick else PROGRAM_TOKENS,
        seed=seed,
        results_dir=results_dir,
        name=kept_as("programs-quick" if quick else "programs", n, N_PROGRAMS, seed),
    )


def kept_as(name: str, n: int, usual: int, seed: int) -> str:
    """The name with a number of draws and a seed that are not the usual ones."""
    return name + f"-n{n}" * (n != usual) + f"-seed{seed}" * (seed != 0)


# Tables: replies and tested programs in, rows for people out.


def answers_table(replies: pd.DataFrame, asked: Sequence[Question]) -> pd.DataFrame:
    """What came back to each question, with 95 % intervals in brackets.

    `names`: replies that are a name of the list and nothing else; so are those of the last.
    """
    rows = []
    for question in asked:
        texts, given = _texts_and_names(replies, question)
        found = summarise(texts)
        row = {"question": question.label, "T": question.temperature, "replies": len(texts)}
        row["names"] = share_of(len(given), len(texts))
        row["most frequent"] = shortened(found.counts.index[0], _LONGEST)
        row |= {"its share": between(*found.top_share), "different": len(found.counts)}
        row |= {"effective number": between(*found.effective), "unseen": between(*found.unseen)}
        rows.append(row | {"top of the names": top_name(given)})
    return pd.DataFrame(rows)


def names(texts: pd.Series, kind: str) -> pd.Series:
    """The replies whose first line is a name of this kind and nothing else."""
    given = [verifiers.decide(kind, plain_answer(text))[0] for text in texts]
    return texts[[answer is True for answer in given]]


def _texts_and_names(replies: pd.DataFrame, question: Question) -> tuple[pd.Series, pd.Series]:
    texts = replies.text[replies.question == question.label]
    return texts, names(texts, question.kind)


def top_name(given: pd.Series) -> str:
    """The most frequent of some `names` with its share of them, or its count if they are few."""
    if not len(given):
        return "none"
    if len(given) < NAMES_NEEDED:
        counts = given.map(plain_answer).value_counts().sort_index()
        return f"{counts.idxmax()}, {counts.max()} of {len(given)}"
    found = summarise(given)
    return f"{found.counts.index[0]} {between(*found.top_share)}"


def pass_table(table: pd.DataFrame) -> pd.DataFrame:
    """How the replies fared, and pass@1 and pass@5 with intervals over problems; one row."""
    row = {"problems": table.problem.nunique(), "replies": len(table)}
    row |= table.outcome.value_counts().to_dict()
    row["cut off"] = int((~table.ended.astype(bool)).sum())
    least = int(table.groupby("problem").size().min())
    for rate in programs.pass_rates(table, [k for k in (1, 5) if k <= least]).itertuples():
        row[f"pass@{rate.k}"] = between(rate.estimate, rate.low, rate.high)
    return pd.DataFrame([row])


def order_table(table: pd.DataFrame) -> pd.DataFrame:
    """Per problem how well log-probability, and shortness alone, put passing replies first.

    As `programs.order_by_problem`; the last row is the mean over problems with both kinds.
    """
    found = programs.order_by_problem(table)
    whole = table[table.ended.astype(bool)].drop_duplicates(["problem", "text"])
    short = {
        problem: programs.auc(-own.n_tokens.to_numpy(float), (own.outcome == PASSED).to_numpy())
        for problem, own in whole.groupby("problem")
    }
    found["auc, shorter first"] = found.problem.map(short)
    both = found.dropna(subset="auc")
    mean = {"problem": f"mean over {len(both)}", "programs": int(both.programs.sum())}
    mean["prevalence"] = both.prevalence.mean()
    mean |= {name: mean_text(both, name, "problem") for name in ("auc", "auc, shorter first")}
    return pd.concat([found.astype(object), pd.DataFrame([mean])], ignore_index=True)


def same_program(table: pd.DataFrame) -> pd.DataFrame:
    """The probability that two passing replies hold the same program, unbiased, per problem.

    `same`: the sum of x (x - 1) / (m (m - 1)) over programs drawn x of m times, NaN under two. What
    was never drawn counts here, which no sum of the drawn programs' probabilities can do.
    """
    rows = []
    for problem, own in table[table.outcome == PASSED].groupby("problem", sort=False):
        syntax = own.text.map(partial(tested_code, problem)).map(normalised)
        x, m = syntax.value_counts().to_numpy(), len(own)
        rows.append((problem, m, len(x), (x * (x - 1)).sum() / (m * (m - 1)) if m > 1 else np.nan))
    return pd.DataFrame(rows, columns=["problem", "passing", "different", "same"])


def shape_table(table: pd.DataFrame) -> pd.DataFrame:
    """Per problem: passing draws, different programs, and how their mass is spread, both ways."""
    drawn = same_program(table).rename(columns={"same": "two are the same"})
    share = (table.outcome == PASSED).groupby(table.problem).mean()
    drawn.insert(1, "share that pass", drawn.problem.map(share))
    mass = programs.shape_by_problem(table).set_index("problem").iloc[:, 1:]
    mass.columns = ["top one", "top three", "effective number", "ln of their mass"]
    return drawn.join(mass, on="problem")


def example_programs(table: pd.DataFrame) -> str:
    """The shortest pair of a passing and a failing (not broken) program of one problem, if any."""
    pairs = []
    for problem, own in table.groupby("problem", sort=False):
        code = own.text.map(partial(tested_code, problem)).str.strip()
        good, bad = code[own.outcome == PASSED], code[own.outcome == "failed"]
        if len(good) and len(bad):
            pair = min(good, key=len), min(bad, key=len)
            said = "# {0}: passes\n{1}\n\n# {0}: fails\n{2}".format(problem, *pair)
            pairs.append((len("".join(pair)), said))
    return min(pairs)[1] if pairs else ""


def why_not(table: pd.DataFrame) -> str:
    """What stands in the place of a table or figure of programs that cannot be."""
    nothing = "There is nothing to show here: too few complete replies of this model pass."
    return nothing if len(table) else NOT_RUN


def share_of(hits: int, n: int) -> str:
    """A share with its interval, as text."""
    return between(hits / n, *share_interval(hits, n))


def shortened(answer: str, longest: int) -> str:
    """An answer of at most so many characters."""
    answer = answer or "(nothing)"
    return answer if len(answer) <= longest else answer[: longest - 1] + "…"


# The paper's examples as claims, decided on one model's draws.


def findings(replies: pd.DataFrame, asked: Sequence[Question], table: pd.DataFrame) -> pd.DataFrame:
    """The paper's examples of Fig. 11 and 12, decided on `ask_all` and `draw_programs`.

    Every question has a vote, by its interval. Programs are decided by the interval over problems
    or, where these are too few for one, by problems that all lie on one side.
    """
    first, *others = asked
    others = [question for question in others if question.prompt != first.prompt]
    one = "One name outnumbers all other answers to Fig. 11's question"
    more = "One name also outnumbers all others for other questions"
    rows = [_one_dominates(replies, [first], one, CLAIM)]
    rows.append(_one_dominates(replies, others, more, OURS))
    order = programs.order_by_problem(table).dropna(subset="auc")
    passing = f"; {order.prevalence.mean():.0%} of their programs pass" if len(order) else ""
    same = same_program(table).query("passing >= @_DRAWS")
    n_passed = (table.outcome == PASSED).sum()
    excluded = f"excluded: {n_passed} of {len(table)} replies pass" if len(table) else NOT_RUN
    for claim, source, kind, kept, column, sign, at, told in (
        (
            "Passing and failing programs are mixed when sorted by log-probability",
            *("Fig. 12 (order)", CLAIM, order, "auc", -1, _ORDERED),
            f"AUC {{}}{passing} (decided at {_ORDERED:g}; 1 is a perfect order)",
        ),
        (
            *("Passing programs are more probable than failing ones, beyond chance", "Fig. 12"),
            *(OURS, order, "auc", 1, 0.5, f"AUC {{}}{passing} (decided at 0.5)"),
        ),
        (
            "A few programs have most of the mass of all that pass, including those not sampled",
            *("Fig. 12 (shape)", CLAIM, same, "same", 1, 1 / _FEW),
            f"two passing replies are the same program with probability {{}} (decided at 1/{_FEW}, "
            f"as if {_FEW} programs were equally likely)",
        ),
    ):
        found = told.format(mean_text(kept, column, "problem")) + f"; problems: {len(kept)}"
        if not n_passed or n_passed < TESTABLE * len(table):
            rows.append(Finding(claim, source, excluded, EXCLUDED, kind))
            continue
        mean, points = cluster_interval(kept, column, "problem", None), kept[column]
        low, high = mean.low, mean.high
        if mean.n_outer < DECIDES:  # all of the points, where they are enough to say something
            enough = len(points) >= _ALIKE
            low, high = (points.min(), points.max()) if enough else (np.nan, np.nan)
        low, high = (low, high) if sign > 0 else (-high, -low)
        rows.append(Finding(claim, source, found, reporting.decided(low, high, sign * at), kind))
    return reporting.table_of(rows)


def headline(replies: pd.DataFrame, asked: Sequence[Question], table: pd.DataFrame) -> dict:
    """The numbers that other pages quote, as text."""
    texts, given = _texts_and_names(replies, asked[0])
    said = {"city_names": share_of(len(given), len(texts)), "city_top": top_name(given)}
    said |= {"pass_1": "not run", "program_auc": "not run"}
    if len(table):
        rate = programs.pass_rates(table, [1]).iloc[0]
        said["pass_1"] = between(rate.estimate, rate.low, rate.high)
        said["program_auc"] = mean_text(programs.order_by_problem(table), "auc", "problem")
    return said


def _one_dominates(replies: pd.DataFrame, asked: Sequence[Question], claim: str, kind: str):
    """The claim, decided by the share of each question's most frequent name."""
    told, margins, excluded = [], {}, []
    for question in asked:
        _, given = _texts_and_names(replies, question)
        if len(given) < NAMES_NEEDED:
            excluded.append(f"{question.label} ({len(given)} replies are a name)")
            continue
        told.append(f"{question.label} {top_name(given)} of {len(given)} names")
        share = summarise(given).top_share
        # The end of the interval that is nearer to what decides, if one side holds all of it.
        low, high = share.low - _DOMINATES, share.high - _DOMINATES
        margins[question.label] = low if low > 0 else min(high, 0.0)
    found = f"{', '.join(told)} (decided at {_DOMINATES:g})"
    return voted(claim, "Fig. 11", found, margins, excluded, kind=kind, of="question")

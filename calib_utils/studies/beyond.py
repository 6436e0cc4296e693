"""The same open question asked many times: which answers come, how many, how many are unseen.

Texts in, counts and estimates with intervals out, whoever wrote the texts. `ask` draws them from a
model. Knows nothing of which answers are right.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from calib_utils.core.metrics import as_text, cluster_interval
from calib_utils.core.tasks import GAZETTEERS
from calib_utils.errors import InvalidRequestError
from calib_utils.models.loading import Model, load_model
from calib_utils.models.served import Endpoint, Reply
from calib_utils.openended import programs, prompts, verifiers
from calib_utils.openended import programs as measures
from calib_utils.openended.programs import PASSED, extract_code, normalised, read_problems
from calib_utils.results import records
from calib_utils.results.evaluation import share_interval
from calib_utils.studies.reporting import NOT_TESTABLE, OURS, Finding, decided

CITY_PROMPT = "Name a random city in the world"  # Fig. 11
N_RESAMPLES, Z = 500, 1.96
_TAIL = 40.0  # e^-40 is nothing beside what is summed


class Estimate(NamedTuple):
    """A value and a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Repeats:
    """How often each answer came, the most frequent first, and what follows from it.

    `top_share` is the share of the most frequent answer, `effective` the effective number of
    answers exp(H) corrected for those unseen, `effective_seen` the same of the counts as they are,
    `unseen` the probability that the next answer is a new one.
    """

    counts: pd.Series  # answer -> how often
    top_share: Estimate
    effective: Estimate
    effective_seen: float
    unseen: Estimate

    @property
    def n(self) -> int:
        """Answers given."""
        return int(self.counts.sum())

    @property
    def seen_once(self) -> int:
        """Answers that came once."""
        return int((self.counts == 1).sum())


def ask(
    model: Model | str,
    prompt: str = CITY_PROMPT,
    n: int = 200,
    *,
    temperature: float = 1.0,
    max_tokens: int = 32,
    seed: int = 0,
    results_dir: str | Path | None = None,
    name: str = "repeats",
) -> pd.DataFrame:
    """Replies of a model to one prompt, without cutoff.

    Args:
        results_dir: where to keep them, under `results_dir/<model>/texts/<name>`.

    Returns:
        Columns of `programs.COLUMNS`.
    """
    model = load_model(model)

    def make(_: str) -> pd.DataFrame:
        options = {"temperature": temperature, "seed": seed}
        return programs.draw(model, prompt, n, max_tokens, **options)

    folder = records.folder_of(results_dir, model.key, name)
    start = programs.message_start(model, prompt)
    asked = {"repeats": [start.ids, start.end_ids]}
    # Part of the identity of stored replies, though all are drawn without cutoff.
    request = {"n": n, "settings": "plain", "temperature": temperature, "seed": seed}
    request |= {"max_tokens": max_tokens, "own_settings": programs.own_settings(model)}
    return programs.kept(folder, programs.record_of(model, asked, request), asked, make)


def plain_answer(text: str) -> str:
    """A reply's first line without case, markup, outer punctuation and repeated spaces.

    >>> plain_answer(" **Valparaíso**,  Chile.\\nIt lies by the sea.")
    'valparaíso, chile'
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r'[*_`#"“”]+', "", unicodedata.normalize("NFKC", line)).casefold()
    return re.sub(r"\s+", " ", line).strip(" .,;:!?'-–—")


def summarise(texts: Iterable[str], seed: int = 0) -> Repeats:
    """Counts of the answers (`plain_answer`) in some replies, with estimates.

    Args:
        seed: of the bootstrap.

    Raises:
        InvalidRequestError: fewer than two replies.
    """
    answers = pd.Series([plain_answer(text) for text in texts], dtype=object)
    if len(answers) < 2:
        raise InvalidRequestError(f"{len(answers)} replies: at least two are needed")
    counts = answers.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    x = counts.to_numpy()
    top = Estimate(float(x[0] / x.sum()), *share_interval(int(x[0]), int(x.sum())))
    return Repeats(counts, top, effective_number(x, seed), float(np.exp(_plug_in(x))), unseen(x))


def effective_number(counts: np.ndarray, seed: int = 0) -> Estimate:
    """exp(H) of the distribution that the counts are a sample of, H in nats.

    H by the estimator of Chao, Wang and Jost (2013). Its spread is taken from samples of an
    estimated distribution in which the unseen mass is split evenly among an estimated number of
    unseen answers (Chao1), as in Chao et al. (2014); the interval is H plus and minus 1.96 of it.
    A plain bootstrap of the counts would lose rare answers twice.

    No estimator knows a long tail that the sample has not touched: where answers follow a power
    law, H comes out too low and the interval covers less often than it says (tests have a case).
    Read it together with `unseen`.
    """
    counts = np.asarray(counts)[np.asarray(counts) > 0]
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
    counts = np.asarray(counts)
    n = int(counts.sum())
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n))])  # [k] = sum to k
    seen = float((counts / n * (harmonic[n - 1] - harmonic[counts - 1])).sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
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

    The interval is Esty's (1983) with 1.96 standard deviations, but never nearer to 0 or 1 than
    3/n: in one sample of twenty a mass of 3/n is not drawn at all.
    """
    counts = np.asarray(counts)
    n = int(counts.sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    half = float(Z * np.sqrt(once * (1 - once / n) + 2 * twice) / n)
    value, least = once / n, min(1.0, 3 / n)
    low, high = min(value - half, 1 - least), max(value + half, least)
    return Estimate(value, max(0.0, low), min(1.0, high))


def _plug_in(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def _completed(counts: np.ndarray) -> np.ndarray:
    """Estimated probabilities of the seen answers, shrunk, and of the unseen ones after them."""
    n = int(counts.sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
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


# Beyond the controlled tasks (Fig. 11, 12): which questions are asked and which programs drawn.
#
# Knows the study's questions, its sizes and the names under which texts are kept. How replies are
# drawn and tested is known to `repeats` and `programs`.

N_REPLIES, N_PROGRAMS = 200, 20
QUICK_REPLIES, QUICK_PROGRAMS, QUICK_PROBLEMS = 8, 3, 1
REPLY_TOKENS = 20  # a name and its country fit; what is longer is no name
PROGRAM_TOKENS, QUICK_TOKENS = 256, 40
NOT_ASKED = "not run here: set endpoint_url and endpoint_model"


@dataclass(frozen=True)
class Question:
    """A prompt that is asked many times.

    Args:
        label: in tables and file names.
        prompt: the user's message.
        kind: the gazetteer that says whether a reply is an answer.
        temperature: at which replies are drawn, without cutoff.
    """

    label: str
    prompt: str
    kind: str
    temperature: float = 1.0


def _from_open_set(label: str, prompt_id: str) -> Question:
    prompt = prompts.get_prompt(prompt_id)
    return Question(label, prompt.prompt, prompt.gazetteer)


def questions(model: Model, quick: bool = False) -> list[Question]:
    """Fig. 11's question, the same at half the temperature, and three of the open set.

    Two of them for a quick look, and for a base model, which continues a question more often than
    it answers one.
    """
    first = Question("random-city", CITY_PROMPT, "city")
    if quick or not model.tokenizer.chat_template:
        return [first, _from_open_set("country", "item-country")]
    cooler = Question("random-city-half", CITY_PROMPT, "city", 0.5)
    return [first, cooler, *(_from_open_set(kind, f"item-{kind}") for kind in GAZETTEERS)]


def ask_all(
    model: Model,
    asked: Sequence[Question],
    n: int = N_REPLIES,
    seed: int = 0,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Replies to every question: columns of `programs.COLUMNS`, with `question` before them.

    Kept as `repeats-<label>`; another number of replies or seed is kept beside it.
    """
    tables = []
    for question in asked:
        name = _kept_as(f"repeats-{question.label}", n=(n, N_REPLIES), seed=(seed, 0))
        table = ask(
            model,
            question.prompt,
            n,
            temperature=question.temperature,
            max_tokens=REPLY_TOKENS,
            seed=seed,
            results_dir=results_dir,
            name=name,
        )
        table.insert(0, "question", question.label)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def ask_endpoint(url: str, model: str, n: int, prompt: str = CITY_PROMPT) -> pd.DataFrame:
    """Replies of a model behind an OpenAI-compatible server at temperature 1, in any order.

    Nothing is kept: running again asks, and costs, again. What the server refuses is left out.

    Returns:
        Columns question, draw, text; no rows where `url` is empty.

    Raises:
        EndpointError: the server cannot be used.
    """
    if not url:
        return pd.DataFrame(columns=["question", "draw", "text"])
    replies = Endpoint(url, model, options={"temperature": 1.0}).replies([prompt] * n)
    rows = [(at, reply.text) for at, reply in replies if isinstance(reply, Reply)]
    return pd.DataFrame(rows, columns=["draw", "text"]).assign(question=model)


def draw_programs(
    model: Model,
    n: int = N_PROGRAMS,
    seed: int = 0,
    *,
    isolation: str = "namespaces",
    quick: bool = False,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Tested programs for the project's problems, columns `programs.COLUMNS`.

    Kept as `programs`; another request is kept beside it. A base model, which no instruction
    reaches, is not asked: it gives no rows.
    """
    if not model.tokenizer.chat_template:
        return pd.DataFrame(columns=programs.TESTED_COLUMNS)
    usual = {"n": (n, N_PROGRAMS), "seed": (seed, 0), "isolation": (isolation, "namespaces")}
    return programs.sample_programs(
        model,
        read_problems()[: QUICK_PROBLEMS if quick else None],
        n,
        max_tokens=QUICK_TOKENS if quick else PROGRAM_TOKENS,
        seed=seed,
        isolation=isolation,
        results_dir=results_dir,
        name=_kept_as("programs-quick" if quick else "programs", **usual),
    )


def _kept_as(name: str, **settings: tuple) -> str:
    """The name with every setting, given as (value, usual value), that is unusual."""
    unusual = {key: value for key, (value, usual) in settings.items() if value != usual}
    return name + "".join(f"-{key}{value}" for key, value in unusual.items())


# Tables of the beyond chapter: replies and tested programs in, rows for people out.
#
# Knows how estimates and their intervals are written. Estimates themselves are those of `repeats`
# and `program_measures`; draws nothing.

NOT_RUN = "not run for this model: programs are asked of chat models only"
NAMES_NEEDED = 30  # for a share of them to say something
_LONGEST = 40  # characters of an answer in a table
_NOTHING = "nothing to show here: no problem has replies of the kinds that this needs"


def answers_table(replies: pd.DataFrame, asked: Sequence[Question]) -> pd.DataFrame:
    """What came back to each question, a row each, with 95 % intervals in brackets.

    An answer is a reply's first line (`beyond.plain_answer`); `names` is the share of replies
    whose answer is a name of the gazetteer and nothing else (what its lists leave open does not
    count), and the last column is about these alone.
    """
    rows = []
    for question in asked:
        texts = replies.text[replies.question == question.label]
        given = names(texts, question.kind)
        found = summarise(texts)
        rows.append(
            {
                "question": question.label,
                "T": question.temperature,
                "replies": found.n,
                "names": share_of(len(given), len(texts)),
                "most frequent": shortened(found.counts.index[0], _LONGEST),
                "its share": between(*found.top_share),
                "different": len(found.counts),
                "effective number": between(*found.effective),
                "unseen": between(*found.unseen),
                "top of the names": top_name(given),
            }
        )
    return pd.DataFrame(rows)


def names(texts: pd.Series, kind: str) -> pd.Series:
    """The replies whose first line is a name of this kind and nothing else."""
    given = [verifiers.decide(kind, plain_answer(text))[0] for text in texts]
    return texts[[answer is True for answer in given]]


def top_name(given: pd.Series) -> str:
    """The most frequent of some `names`, its share of them and the interval, as text.

    Under `NAMES_NEEDED` names a count takes the place of a share.
    """
    if not len(given):
        return "–"
    if len(given) < NAMES_NEEDED:
        counts = given.map(plain_answer).value_counts().sort_index()
        return f"{counts.idxmax()}, {counts.max()} of {len(given)}"
    found = summarise(given)
    return f"{found.counts.index[0]} {between(*found.top_share)}"


def pass_table(table: pd.DataFrame) -> pd.DataFrame:
    """How the replies fared, and pass@1 and pass@5 with intervals over problems; one row."""
    counts = table.outcome.value_counts()
    row = {"problems": table.problem.nunique(), "replies": len(table)}
    row |= {outcome: int(count) for outcome, count in counts.items()}
    row["cut off"] = int((~table.ended.astype(bool)).sum())
    least = int(table.groupby("problem").size().min())
    for rate in measures.pass_rates(table, [k for k in (1, 5) if k <= least]).itertuples():
        row[f"pass@{rate.k}"] = between(rate.estimate, rate.low, rate.high)
    return pd.DataFrame([row])


def order_table(table: pd.DataFrame) -> pd.DataFrame:
    """Per problem how well log-probability, and shortness alone, put passing replies first.

    Distinct complete replies, as in `programs.order_by_problem`; the last row is the mean
    over problems with both kinds, with its interval.
    """
    found = measures.order_by_problem(table)
    whole = table[table.ended.astype(bool)].drop_duplicates(["problem", "text"])
    short = {
        problem: measures.auc(-own.n_tokens.to_numpy(float), (own.outcome == PASSED).to_numpy())
        for problem, own in whole.groupby("problem")
    }
    found["auc, shorter first"] = found.problem.map(short)
    both = found.dropna(subset="auc")
    mean = {"problem": f"mean over {len(both)}", "programs": int(both.programs.sum())}
    mean["prevalence"] = both.prevalence.mean()
    for column in ("auc", "auc, shorter first"):
        mean[column] = over_problems(both, column)
    return pd.concat([found.astype(object), pd.DataFrame([mean])], ignore_index=True)


def same_program(table: pd.DataFrame) -> pd.DataFrame:
    """The probability that two passing replies hold the same program, unbiased, per problem.

    A sum of x (x - 1) / (m (m - 1)) over programs drawn x of m times. What was never drawn counts
    here, which no sum of the drawn programs' probabilities can do.

    Returns:
        Columns problem, passing (draws), different (programs), same; NaN under two draws.
    """
    rows = []
    for problem, own in table[table.outcome == PASSED].groupby("problem", sort=False):
        x = own.text.map(lambda text: normalised(extract_code(text))).value_counts().to_numpy()
        m = int(x.sum())
        same = float((x * (x - 1)).sum() / (m * (m - 1))) if m > 1 else np.nan
        rows.append({"problem": problem, "passing": m, "different": len(x), "same": same})
    return pd.DataFrame(rows, columns=["problem", "passing", "different", "same"])


def shape_table(table: pd.DataFrame) -> pd.DataFrame:
    """Per problem: passing draws, different programs, and how their mass is spread, both ways."""
    drawn = same_program(table)
    mass = measures.shape_by_problem(table).set_index("problem")
    share = (table.outcome == PASSED).groupby(table.problem).mean()
    drawn.insert(1, "share that pass", drawn.problem.map(share))
    names = {"top_1": "top one", "top_3": "top three", "effective": "effective number"}
    for column, name in {**names, "log_mass": "ln of their mass"}.items():
        drawn[name] = drawn.problem.map(mass[column])
    return drawn.rename(columns={"same": "two are the same"})


def example_programs(table: pd.DataFrame) -> str:
    """The shortest passing and the shortest failing program of one problem, the shortest pair.

    A program that does not load is no example. Empty where no problem has both.
    """
    pairs = []
    for problem, own in table.groupby("problem", sort=False):
        code = own.text.map(extract_code).map(str.strip)
        good, bad = code[own.outcome == PASSED], code[own.outcome == "failed"]
        if len(good) and len(bad):
            pair = min(good, key=len), min(bad, key=len)
            pairs.append((len("".join(pair)), problem, *pair))
    if not pairs:
        return ""
    _, problem, good, bad = min(pairs)
    return f"# {problem}: passes\n{good}\n\n# {problem}: fails\n{bad}"


def most_mixed(table: pd.DataFrame) -> str:
    """The problem whose share of passing replies is nearest to a half, complete replies only.

    Empty where no problem has both kinds.
    """
    order = measures.order_by_problem(table).dropna(subset="auc")
    return str(order.problem[(order.prevalence - 0.5).abs().idxmin()]) if len(order) else ""


def why_not(table: pd.DataFrame) -> str:
    """What stands in the place of a table or figure of programs that cannot be."""
    return _NOTHING if len(table) else NOT_RUN


def curve_of(table: pd.DataFrame, problem: str) -> tuple[pd.DataFrame, float]:
    """Precision and recall over log-probability cutoffs of one problem, and its prevalence."""
    own = measures.ranked_programs(table[table.problem == problem])
    curve = measures.precision_recall(own.log_p.to_numpy(), own.passed.to_numpy())
    return curve, float(own.passed.mean())


between = partial(as_text, whole_from=10, undefined="nan", alone="")


def over_problems(table: pd.DataFrame, column: str) -> str:
    """The mean of a column with its interval over problems, as text."""
    found = cluster_interval(table, column, outer="problem", inner=None)
    return between(found.mean, found.low, found.high)


def share_of(hits: int, n: int) -> str:
    """A share with its interval, as text."""
    return between(hits / n, *share_interval(hits, n))


def shortened(answer: str, longest: int) -> str:
    """An answer of at most so many characters."""
    answer = answer or "(nothing)"
    return answer if len(answer) <= longest else answer[: longest - 1] + "…"


# The paper's examples of Fig. 11 and 12 as claims, decided on one model's draws.
#
# Knows when a claim is testable and at which number it is decided. Draws and counts nothing
# itself.

# Below these a claim is not testable.
_PROBLEMS = 3  # problems that an interval is over
_MANY = 6  # distinct passing programs: were all alike, the top three would hold half at most
_DRAWS = 4  # passing draws among which pairs are compared
# Where claims are decided.
_DOMINATES = 0.5
_ORDERED = 0.95  # AUC; 1 is a perfect order
_FEW = 4  # equally likely programs


def findings(replies: pd.DataFrame, asked: Sequence[Question], table: pd.DataFrame) -> pd.DataFrame:
    """The paper's examples of Fig. 11 and 12, decided on one model's draws.

    Args:
        replies, asked: of `ask_all`; the first question is Fig. 11's.
        table: of `draw_programs`.

    Returns:
        Columns claim, source, found, verdict. An interval that lies on both sides of the
        number named in `found` decides nothing. Of several questions, one that disagrees refutes.
    """
    first, *others = asked
    others = [question for question in others if question.prompt != first.prompt]
    one = "One name outnumbers all other answers to Fig. 11's question"
    rows = [
        _one_dominates(replies, [first], one, "Fig. 11"),
        _one_dominates(replies, others, "So it is when other names are asked for", OURS),
        *_order(table),
        _drawn_shape(table),
        _whole_shape(table),
    ]
    return pd.DataFrame(rows)


def headline(replies: pd.DataFrame, asked: Sequence[Question], table: pd.DataFrame) -> dict:
    """The numbers that other pages quote, as text."""
    texts = replies.text[replies.question == asked[0].label]
    given = names(texts, asked[0].kind)
    said = {"city_names": share_of(len(given), len(texts)), "city_top": top_name(given)}
    said |= {"pass_1": "not run", "program_auc": "not run"}
    if len(table):
        rate = measures.pass_rates(table, [1]).iloc[0]
        said["pass_1"] = between(rate.estimate, rate.low, rate.high)
        order = measures.order_summary(table).iloc[0]
        said["program_auc"] = between(order.estimate, order.low, order.high)
    return said


def _one_dominates(replies, asked, claim: str, source: str) -> Finding:
    said, intervals = [], []
    for question in asked:
        texts = replies.text[replies.question == question.label]
        given = names(texts, question.kind)
        if len(given) < NAMES_NEEDED:
            told = f"{len(given)} replies are a name, at least {NAMES_NEEDED} are needed"
        else:
            told = f"{top_name(given)} of the {len(given)} replies that are a name"
            intervals.append(summarise(given).top_share)
        said.append(f"{question.label}: {told}")
    found = f"{'; '.join(said)} (decided at {_DOMINATES:g})"
    if not intervals:
        return Finding(claim, source, found, NOT_TESTABLE)
    low, high = (min(getattr(own, end) for own in intervals) for end in ("low", "high"))
    return Finding(claim, source, found, decided(low, high, _DOMINATES))


def _order(table: pd.DataFrame) -> list[Finding]:
    kept = measures.order_by_problem(table).dropna(subset="auc") if len(table) else table
    share = f", {kept.prevalence.mean():.0%} of their programs pass" if len(kept) else ""
    told = f"AUC {{auc}} over {{n}} problems{share} "
    few = "with both kinds"
    return [
        _over_problems(
            "Programs that pass and that fail interleave by log-probability",
            "Fig. 12 (order)",
            (table, kept, few),
            told + f"(decided at {_ORDERED:g}; 1 is a perfect order)",
            ("auc", _ORDERED, False),
        ),
        _over_problems(
            "Log-probability puts programs that pass first more often than chance",
            OURS,
            (table, kept, few),
            told + "(decided at 0.5)",
            ("auc", 0.5, True),
        ),
    ]


def _drawn_shape(table: pd.DataFrame) -> Finding:
    kept = measures.shape_by_problem(table) if len(table) else pd.DataFrame({"passing": []})
    return _over_problems(
        "Few of the drawn programs that pass hold most of their mass",
        "Fig. 12 (shape)",
        (table, kept[kept.passing >= _MANY], f"with {_MANY} different passing programs"),
        "the top three hold {top_3} of it, the top one {top_1}, over {n} problems with at least "
        f"{_MANY} different ones (decided for three at 0.5)",
        ("top_3", 0.5, True),
    )


def _whole_shape(table: pd.DataFrame) -> Finding:
    kept = same_program(table)
    return _over_problems(
        "Few programs hold most of the mass of all that pass, undrawn ones included",
        "Fig. 12 (shape)",
        (table, kept[kept.passing >= _DRAWS], f"with {_DRAWS} passing draws"),
        "two draws that pass are the same program with probability {same}, over {n} problems with "
        f"at least {_DRAWS} of them (decided at 1/{_FEW}, as if {_FEW} programs were equally "
        "likely)",
        ("same", 1 / _FEW, True),
    )


def _over_problems(claim: str, source: str, rows: tuple, told: str, rule: tuple) -> Finding:
    """A claim about the mean of a column over problems, decided by its interval.

    Args:
        rows: the programs, the table of problems that count, and which these are in words.
        told: what is found, with fields for columns and for `n`, the number of problems.
        rule: the column, the number it is decided at, and whether more or less is claimed.
    """
    table, kept, which = rows
    if len(kept) < _PROBLEMS:
        few = f"problems {which}: {len(kept)}, {_PROBLEMS} are needed"
        return Finding(claim, source, few if len(table) else NOT_RUN, NOT_TESTABLE)
    column, at, more = rule
    means = {name: over_problems(kept, name) for name in kept if f"{{{name}}}" in told}
    mean = cluster_interval(kept, column, "problem", None)
    said = decided(mean.low, mean.high, at) if more else decided(-mean.high, -mean.low, -at)
    return Finding(claim, source, told.format(n=len(kept), **means), said)

"""Beyond the controlled tasks (Fig. 11, 12): what is asked and drawn, and tables of it for people.

Knows the study's questions, its sizes and the names under which texts are kept. How replies are
drawn, tested and counted is known to `repeats`, `programs` and `program_measures`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import gazetteer, openset, programs, repeats
from calib_utils import program_measures as measures
from calib_utils.bootstrap import cluster_interval
from calib_utils.endpoint import Endpoint, Reply
from calib_utils.models import Model
from calib_utils.problems import extract_code, normalised, read_problems
from calib_utils.program_measures import PASSED
from calib_utils.sampling import share_interval

N_REPLIES, N_PROGRAMS = 200, 20
QUICK_REPLIES, QUICK_PROGRAMS, QUICK_PROBLEMS = 8, 3, 1
REPLY_TOKENS = 20  # a name and its country fit; what is longer is no name
PROGRAM_TOKENS, QUICK_TOKENS = 256, 40
NOT_ASKED = "not run here: set endpoint_url and endpoint_model"
NOT_RUN = "not run for this model: programs are asked of chat models only"
_NOTHING = "nothing to show here: no problem has replies of the kinds that this needs"


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
    prompt = openset.get_prompt(prompt_id)
    return Question(label, prompt.prompt, prompt.gazetteer)


def questions(model: Model, quick: bool = False) -> list[Question]:
    """Fig. 11's question, the same at half the temperature, and three of the open set.

    Two of them for a quick look, and for a base model, which continues a question more often than
    it answers one.
    """
    first = Question("random-city", repeats.CITY_PROMPT, "city")
    if quick or not model.tokenizer.chat_template:
        return [first, _from_open_set("country", "item-country")]
    cooler = Question("random-city-half", repeats.CITY_PROMPT, "city", 0.5)
    return [first, cooler, *(_from_open_set(kind, f"item-{kind}") for kind in openset.GAZETTEERS)]


def ask_all(
    model: Model,
    asked: Sequence[Question],
    n: int = N_REPLIES,
    seed: int = 0,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Replies to every question: columns of `drawing.COLUMNS`, with `question` before them.

    Kept as `repeats-<label>`; another number of replies or seed is kept beside it.
    """
    tables = []
    for question in asked:
        name = _kept_as(f"repeats-{question.label}", n=(n, N_REPLIES), seed=(seed, 0))
        table = repeats.ask(
            model,
            question.prompt,
            n,
            settings="plain",
            temperature=question.temperature,
            max_tokens=REPLY_TOKENS,
            seed=seed,
            results_dir=results_dir,
            name=name,
        )
        table.insert(0, "question", question.label)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def ask_endpoint(url: str, model: str, n: int, prompt: str = repeats.CITY_PROMPT) -> pd.DataFrame:
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


def answers_table(replies: pd.DataFrame, asked: Sequence[Question]) -> pd.DataFrame:
    """What came back to each question, a row each, with 95 % intervals in brackets.

    An answer is a reply's first line (`repeats.plain_answer`); `names` is the share of replies that
    are a name of the gazetteer and nothing else (those that its lists leave open count).
    """
    rows = []
    for question in asked:
        texts = replies.text[replies.question == question.label]
        found = repeats.summarise(texts)
        rows.append(
            {
                "question": question.label,
                "T": question.temperature,
                "replies": found.n,
                "names": between(*names_share(texts, question.kind)),
                "most frequent": _short(found.counts.index[0]),
                "its share": between(*vars(found.top_share).values()),
                "different": len(found.counts),
                "effective number": between(*vars(found.effective).values()),
                "unseen": between(*vars(found.unseen).values()),
            }
        )
    return pd.DataFrame(rows)


def names_share(texts: pd.Series, kind: str) -> tuple[float, float, float]:
    """The share of replies that are a name of this kind and nothing else, and its interval."""
    given = [gazetteer.decide(kind, repeats.plain_answer(text))[0] for text in texts]
    hits = sum(answer is not False for answer in given)
    return hits / len(given), *share_interval(hits, len(given))


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
        return pd.DataFrame(columns=programs.COLUMNS)
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

    Distinct complete replies, as in `program_measures.order_by_problem`; the last row is the mean
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
    mean = {"problem": f"mean of {len(both)} problems", "programs": int(both.programs.sum())}
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


def over_problems(table: pd.DataFrame, column: str) -> str:
    """The mean of a column with its interval over problems, as text."""
    found = cluster_interval(table, column, outer="problem", inner=None)
    return between(found.mean, found.low, found.high)


def between(value: float, low: float, high: float) -> str:
    """Two decimals below ten, whole numbers from there; without an interval the value alone."""
    value, low, high = (f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in (value, low, high))
    return value if "nan" in (low, high) else f"{value} ({low} to {high})"


def _short(answer: str) -> str:
    return answer if len(answer) <= 40 else answer[:39] + "…"


def _kept_as(name: str, **settings: tuple) -> str:
    """The name with every setting, given as (value, usual value), that is unusual."""
    unusual = {key: value for key, (value, usual) in settings.items() if value != usual}
    return name + "".join(f"-{key}{value}" for key, value in unusual.items())

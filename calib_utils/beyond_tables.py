"""Tables of the beyond chapter: replies and tested programs in, rows for people out.

Knows how estimates and their intervals are written. Estimates themselves are those of `repeats` and
`program_measures`; draws nothing.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from calib_utils import gazetteer, repeats
from calib_utils import program_measures as measures
from calib_utils.beyond import Question
from calib_utils.bootstrap import as_text, cluster_interval
from calib_utils.problems import extract_code, normalised
from calib_utils.program_measures import PASSED
from calib_utils.sampling import share_interval

NOT_RUN = "not run for this model: programs are asked of chat models only"
NAMES_NEEDED = 30  # for a share of them to say something
_LONGEST = 40  # characters of an answer in a table
_NOTHING = "nothing to show here: no problem has replies of the kinds that this needs"


def answers_table(replies: pd.DataFrame, asked: Sequence[Question]) -> pd.DataFrame:
    """What came back to each question, a row each, with 95 % intervals in brackets.

    An answer is a reply's first line (`repeats.plain_answer`); `names` is the share of replies
    whose answer is a name of the gazetteer and nothing else (what its lists leave open does not
    count), and the last column is about these alone.
    """
    rows = []
    for question in asked:
        texts = replies.text[replies.question == question.label]
        given = names(texts, question.kind)
        found = repeats.summarise(texts)
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
    given = [gazetteer.decide(kind, repeats.plain_answer(text))[0] for text in texts]
    return texts[[answer is True for answer in given]]


def top_name(given: pd.Series) -> str:
    """The most frequent of some `names`, its share of them and the interval, as text.

    Under `NAMES_NEEDED` names a count takes the place of a share.
    """
    if not len(given):
        return "–"
    if len(given) < NAMES_NEEDED:
        counts = given.map(repeats.plain_answer).value_counts().sort_index()
        return f"{counts.idxmax()}, {counts.max()} of {len(given)}"
    found = repeats.summarise(given)
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

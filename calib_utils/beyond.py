"""Beyond the controlled tasks (Fig. 11, 12): which questions are asked and which programs drawn.

Knows the study's questions, its sizes and the names under which texts are kept. How replies are
drawn and tested is known to `repeats` and `programs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calib_utils import openset, programs, repeats
from calib_utils.endpoint import Endpoint, Reply
from calib_utils.models import Model
from calib_utils.problems import read_problems
from calib_utils.tasks import GAZETTEERS

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
    return [first, cooler, *(_from_open_set(kind, f"item-{kind}") for kind in GAZETTEERS)]


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


def _kept_as(name: str, **settings: tuple) -> str:
    """The name with every setting, given as (value, usual value), that is unusual."""
    unusual = {key: value for key, (value, usual) in settings.items() if value != usual}
    return name + "".join(f"-{key}{value}" for key, value in unusual.items())

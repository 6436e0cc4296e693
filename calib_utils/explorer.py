"""One real decoding step, small enough for a page: what the interactive figure needs.

A model, a task and the beginning of an answer in; tokens, gaps and a binned tail out, as data and
as HTML that `book/assets/explorer.js` brings to life. Knows nothing of rules: the page does.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from IPython.display import HTML

from calib_utils.errors import InvalidRequestError
from calib_utils.evaluation import render_prompt
from calib_utils.models import Model, load_model
from calib_utils.prompts import Prompt
from calib_utils.scoring import logits_after
from calib_utils.steps import TokenTable
from calib_utils.tasks import Task, get_task
from calib_utils.tries import Trie

N_TOP, MIN_TEMPERATURE = 150, 0.1
MAX_ERROR = 1e-4  # relative, of Z, at any temperature from MIN_TEMPERATURE on
# A bin's width over the temperature, where its mass can matter. Taking the mean of its gaps costs
# at most width^2/8 e^width of that mass (a variance is at most range^2/4), here 8e-5.
_RELATIVE_WIDTH = 0.025
_INFINITE_GAP = 1e5  # JSON has no infinity; the mass is 0 all the same
_EXACTLY = {"clean_up_tokenization_spaces": False}
# Of tokens, as in Fig. 1.
GROUPS = ("valid and frequent", "valid and rare", "invalid")
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


class Token(NamedTuple):
    """A next token: `rank` from 0, `gap` in nats below the top logit, N(prefix + token) answers
    that begin with it; valid where that is above 0 (Def. 3.2)."""

    text: str
    rank: int
    gap: float
    n_answers: int


class Bin(NamedTuple):
    """`count` tokens of consecutive ranks: the gap of the first one, and the mean of all."""

    count: int
    first: float
    mean: float


@dataclass(frozen=True)
class StepData:
    """One step: its top tokens and every valid one by name, the rest in bins; no temperature yet.

    `tail` covers all ranks from `n_listed` on, valid ones included; each of these starts a bin, so
    that whether a cutoff keeps it never rests on interpolation.
    """

    task: str
    model: str
    prompt: str
    prefix: str
    n_vocab: int
    n_listed: int
    tokens: tuple[Token, ...]
    tail: tuple[Bin, ...]

    @classmethod
    def from_json(cls, content: dict) -> "StepData":
        """What `to_json` wrote, parsed; raises TypeError where fields are missing or too many."""
        tokens = tuple(Token(*row) for row in content["tokens"])
        tail = tuple(Bin(*row) for row in content["tail"])
        return cls(**content | {"tokens": tokens, "tail": tail})

    def to_json(self) -> str:
        """One line; tokens and bins are lists there, without the names of their fields."""
        return json.dumps(vars(self), separators=(",", ":"))

    def log_partition(self, temperature: float) -> float:
        """ln Z in nats, relative to the top token; Z is right to `MAX_ERROR` for T >= 0.1."""
        gaps = [token.gap for token in self.tokens if token.rank < self.n_listed]
        weights = [1] * len(gaps) + [part.count for part in self.tail]
        gaps += [part.mean for part in self.tail]
        return math.log(np.dot(weights, np.exp(-np.array(gaps) / temperature)))

    def validity(self, temperature: float) -> float:
        """Probability of the valid next tokens without any cutoff, in [0, 1]."""
        gaps = [token.gap for token in self.tokens if token.n_answers]
        return float(np.exp(-np.array(gaps) / temperature - self.log_partition(temperature)).sum())


def step_data(model: Model | str, task: Task | str, prefix: str = "", end: str = "eos") -> StepData:
    """Reads the logits after `prefix` and keeps what the figure needs.

    Args:
        prefix: the beginning of an answer, at a boundary of its tokens; empty for the first step.
        end: what closes an answer, as in `prompts.Policies`.

    Raises:
        InvalidRequestError: no valid answer continues `prefix`, or it ends inside a token.
        ModelFormatError: NaN or infinite logits.
    """
    model, task = load_model(model), get_task(task)
    prompt = render_prompt(model, task, end=end)
    n_ends = bool(prompt.end_ids)  # whether something is left to choose after a whole answer
    answers = prompt.sequences.symbols
    texts = []
    for path in sorted({a[:n] for a in answers for n in range(len(a) + n_ends)}, key=len):
        texts.append(_text_after(model.tokenizer, prompt, path))
        if texts[-1] == prefix:
            return _step(model, task, prompt, path, prefix)
    raise InvalidRequestError(
        f"prefix {prefix!r} is not the beginning of an answer of task {task.name!r}, cut between "
        f"two tokens: take '' for the first step, or one like {', '.join(map(repr, texts[1:6]))}"
    )


def steps_along(
    model: Model | str, task: Task | str, answer: str, end: str = "eos", most: int = 3
) -> list[StepData]:
    """The first steps of one answer at which several next tokens lead to answers, at most `most`.

    Where only one token is valid, or only an end, there is nothing for a cutoff to choose.

    Raises:
        InvalidRequestError: not an answer of the task.
    """
    model, task = load_model(model), get_task(task)
    if answer not in task.answers:
        raise InvalidRequestError(
            f"{answer!r} is no answer of task {task.name!r}: take one like {task.answers[0]!r}"
        )
    prompt = render_prompt(model, task, end=end)
    which = prompt.sequences.answer.index(task.answers.index(answer))
    path, trie = prompt.sequences.symbols[which], prompt.trie
    nodes = _nodes(trie, path)
    open_lengths = [
        length
        for length, node in enumerate(nodes)
        if trie.node_branching[node] > 1 and trie.node_count[node] > 1
    ]
    found = []
    for length in open_lengths[:most]:
        text = _text_after(model.tokenizer, prompt, path[:length])
        # A base model may write the space before its answer as a token of its own.
        prefix = text or prompt.lead.translate(_VISIBLE) * bool(length)
        found.append(_step(model, task, prompt, path[:length], prefix))
    return found


def groups_of(step: StepData) -> list[str]:
    """Which of `GROUPS` every listed token of a step belongs to.

    A valid token is frequent if it holds at least its fair share N/|V| of the valid mass at T = 1.
    """
    n_answers, gaps = np.array([(token.n_answers, token.gap) for token in step.tokens]).T
    share = np.exp(-gaps) / np.exp(-gaps[n_answers > 0]).sum()
    kinds = np.where(share >= n_answers / n_answers.sum(), *GROUPS[:2])
    return np.where(n_answers > 0, kinds, GROUPS[2]).tolist()


def group_masses(step: StepData, temperatures: np.ndarray) -> pd.DataFrame:
    """Probability of each group at each temperature: a row per temperature, summing to 1."""
    groups, gaps = np.array(groups_of(step)), np.array([token.gap for token in step.tokens])
    rows = []
    for temperature in temperatures:
        p = np.exp(-gaps / temperature - step.log_partition(temperature))
        # Valid tokens are all listed, invalid ones are not.
        row = {group: float(p[groups == group].sum()) for group in GROUPS[:2]}
        rows.append({"temperature": temperature, **row, GROUPS[2]: 1 - sum(row.values())})
    return pd.DataFrame(rows)


def tail_bins(gaps: np.ndarray, starts: np.ndarray, n_vocab: int) -> tuple[Bin, ...]:
    """Bins whose means give the partition function to `MAX_ERROR` for every T >= 0.1.

    Tokens at gap g matter only where T > g / ln(n_vocab): below, the top token outweighs all of
    them. So bins may widen with the gap.

    Args:
        gaps: [token], ascending, in nats below the top logit.
        starts: positions in `gaps` at which a bin has to begin.
        n_vocab: tokens of the whole vocabulary.
    """
    knee = MIN_TEMPERATURE * (log_vocab := math.log(n_vocab))
    level = np.minimum(gaps, knee) / (_RELATIVE_WIDTH * MIN_TEMPERATURE)
    level += np.log(np.maximum(gaps / knee, 1)) / math.log1p(_RELATIVE_WIDTH / log_vocab)
    new = np.diff(np.floor(level), prepend=-1) != 0
    new[starts] = True
    parts = np.split(gaps, np.flatnonzero(new)[1:]) if len(gaps) else []
    return tuple(Bin(len(p), round(float(p[0]), 6), round(float(p.mean()), 6)) for p in parts)


def explorer(step: StepData, source: str) -> HTML:
    """The interactive figure, self-contained but for the book's `explorer.js` and `explorer.css`.

    Args:
        source: where the numbers come from, in one line, as `reporting.source_of` writes it.
    """
    # Token texts may hold anything, "</script" included.
    data = step.to_json().replace("<", "\\u003c")
    n_valid = sum(token.n_answers > 0 for token in step.tokens)
    place = f"after “{step.prefix}”" if step.prefix else "first token"
    title = html.escape(f"Explorer of one step: {step.task}, {place}, {step.model}")
    return HTML(
        f'<div class="cu-explorer" role="group" aria-label="{title}">'
        f'<script type="application/json">{data}</script>'
        f'<p class="cu-fallback">{title}. {n_valid} of {step.n_vocab:,} next tokens are valid; at '
        f"temperature 1 they hold {step.validity(1.0):.2g} of the probability. "
        "The sliders work in the built book.</p>"
        "<noscript><p>Temperature and cutoff can be moved once JavaScript is on.</p></noscript>"
        f'<p class="cu-source">numbers from {html.escape(source)}</p></div>'
    )


def _step(model: Model, task: Task, prompt: Prompt, path: Sequence[int], prefix: str) -> StepData:
    logits = logits_after(model, prompt, path)
    order = np.argsort(-logits, kind="stable")  # stable: ties by ascending token id
    gaps = np.minimum(logits[order[0]] - logits[order], _INFINITE_GAP)
    table = TokenTable(prompt.trie)
    own, _ = table.of(np.array([_nodes(prompt.trie, path)[-1]]))
    counts = prompt.trie.edge_count[table.edge[own]]  # N(prefix + token) of the valid tokens
    answers = dict(zip(table.symbol[own].tolist(), counts.tolist(), strict=True))
    n_listed = min(N_TOP, len(order))
    deep = n_listed + np.flatnonzero(np.isin(order[n_listed:], list(answers)))
    tokens = []
    for rank in [*range(n_listed), *deep.tolist()]:
        token = int(order[rank])
        text, gap = _visible(model.tokenizer, token), round(float(gaps[rank]), 6)
        tokens.append(Token(text, rank, gap, answers.get(token, 0)))
    tail = tail_bins(gaps[n_listed:], deep - n_listed, len(order))
    known = (task.name, model.key, task.prompt, prefix, len(order), n_listed)
    return StepData(*known, tuple(tokens), tail)


def _nodes(trie: Trie, path: Sequence[int]) -> list[int]:
    """The nodes along a path from the root; one fewer where nothing has to close the answer."""
    children, nodes = trie.children(), [0]
    for token in path:
        nodes += [c for c in children[nodes[-1]] if trie.node_symbol[c] == token]
    return nodes


def _text_after(tokenizer, prompt: Prompt, path: Sequence[int]) -> str:
    """What `path` adds to the prompt, without the space that a base model's answer starts with."""
    start = len(tokenizer.decode(prompt.ids, **_EXACTLY)) + len(prompt.lead)
    return tokenizer.decode([*prompt.ids, *path], **_EXACTLY)[start:]


def _visible(tokenizer, token: int) -> str:
    """A token's text with white space and control characters made visible."""
    text = tokenizer.decode([token], **_EXACTLY).translate(_VISIBLE)
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown) or f"#{token}"

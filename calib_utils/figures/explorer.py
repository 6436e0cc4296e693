"""One real decoding step, small enough for a page; steps kept as files; the explorer page's data.

As data and as HTML that `book/assets/explorer.js` brings to life, which knows how a rule cuts.
"""

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from IPython.display import HTML

from calib_utils import files, paths
from calib_utils.core.prompts import Policies, Prompt, exact_text
from calib_utils.core.rules import table3_rules
from calib_utils.core.split import TokenTable
from calib_utils.core.tasks import Task, get_task
from calib_utils.core.tries import Trie
from calib_utils.errors import InvalidRequestError, ResultsError
from calib_utils.figures import CAUSES, RULE_COLOURS, task_name
from calib_utils.models.loading import Model, load_model
from calib_utils.models.registry import book_order, human_name
from calib_utils.models.scoring import logits_after
from calib_utils.results import conventions, draws, records
from calib_utils.results.evaluation import keys, render_prompt
from calib_utils.results.storage import KEY, Stored, folder_of
from calib_utils.studies import model_panel, oracle_cutoffs
from calib_utils.studies.model_panel import PARTS
from calib_utils.studies.oracle_cutoffs import TASKS, frontier_points

STEPS_FOLDER = conventions.STEPS
# The answer that the steps of a task lie along: one that leaves something open after its beginning.
ANSWERS = {
    "us-states": "New York",
    "rng-2": "4,7",
    "rng-3": "4,7,1",
    "rng-3-sum-at-most-10": "3,4,2",
}
PAGE_FOLDER = "explorer"  # below the built book's `_static`
MEASURES = ("validity", "diversity", "sequence_precision", "sequence_recall")
COLUMNS = (*KEY, *MEASURES, *PARTS, "on_frontier", "draws")
GROUPS = ("valid and frequent", "valid and rare", "invalid")  # of tokens, as in Fig. 1
_MOST_STEPS = 3  # kept of an answer
N_TOP, MIN_TEMPERATURE = 150, 0.1
MAX_ERROR = 1e-4  # relative, of Z, at any temperature from MIN_TEMPERATURE on
# A bin's width over the temperature, where its mass can matter. Taking the mean of its gaps costs
# at most width^2/8 e^width of that mass (a variance is at most range^2/4), here 8e-5.
_RELATIVE_WIDTH = 0.025
_INFINITE_GAP = 1e5  # JSON has no infinity; the mass is 0 all the same
_LONGEST_TEXT = 24  # of a drawn answer, in characters
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})
_ROUNDING = 0.01  # in logits: what float32 kernels of two machines differ by, with room
_LOSS_ROUNDING = 1e-6  # nats: parts of a loss below that are rounding, as in the chapter's table


class Token(NamedTuple):
    """A next token; valid where answers begin with it (Def. 3.2)."""

    text: str
    rank: int  # from 0
    gap: float  # nats below the top logit
    n_answers: int  # N(prefix + token)


class Bin(NamedTuple):
    """Tokens of consecutive ranks: how many, the gap of the first one, and the mean of all."""

    count: int
    first: float
    mean: float


@dataclass(frozen=True)
class StepData:
    """One step: its top tokens and every valid one by name, the rest in bins; no temperature yet.

    `tail` covers all ranks from `n_listed` on; a valid one starts a bin, so that no cutoff has to
    interpolate whether it is kept.
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
        lists = (("tokens", Token), ("tail", Bin))
        named = {name: tuple(of(*row) for row in content[name]) for name, of in lists}
        return cls(**content | named)

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


def step_data(model: Model | str, task: Task | str, end: str = "eos") -> StepData:
    """The first step of a task that leaves a choice, as `steps_along` has it.

    Raises:
        InvalidRequestError: no step of the first answer does.
    """
    task = get_task(task)
    if not (steps := steps_along(model, task, task.answers[0], end)):
        raise InvalidRequestError(f"task {task.name!r} leaves no choice: give it more answers")
    return steps[0]


def steps_along(
    model: Model | str, task: Task | str, answer: str, end: str = "eos"
) -> list[StepData]:
    """The first steps of an answer of the task, at most three, that have several valid tokens.

    Raises:
        InvalidRequestError: no answer of the task.
        ModelFormatError: NaN or infinite logits.
    """
    model, task = load_model(model), get_task(task)
    if answer not in task.answers:
        raise InvalidRequestError(
            f"{answer!r} is no answer of task {task.name!r}: take one like {task.answers[0]!r}"
        )
    prompt = render_prompt(model, task, end=end)
    path = prompt.sequences.symbols[prompt.sequences.answer.index(task.answers.index(answer))]
    trie, found = prompt.trie, []
    for length, node in enumerate(_nodes(trie, path)):
        if trie.node_branching[node] > 1 and trie.node_count[node] > 1 and len(found) < _MOST_STEPS:
            text = _text_after(model.tokenizer, prompt, path[:length])
            # A base model may write the space before its answer as a token of its own.
            prefix = text or prompt.lead.translate(_VISIBLE) * bool(length)
            found.append(_step(model, task, prompt, path[:length], prefix))
    return found


def groups_of(step: StepData) -> list[str]:
    """The group of every listed token; frequent: at least N/|V| of the valid mass at T = 1."""
    n_answers, gaps = np.array([(token.n_answers, token.gap) for token in step.tokens]).T
    share = np.exp(-gaps) / np.exp(-gaps[n_answers > 0]).sum()
    kinds = np.where(share >= n_answers / n_answers.sum(), *GROUPS[:2])
    return np.where(n_answers > 0, kinds, GROUPS[2]).tolist()


def group_masses(step: StepData, temperatures: np.ndarray) -> pd.DataFrame:
    """Probability of each group at each temperature: a row per temperature, summing to 1."""
    groups, gaps = np.array(groups_of(step)), np.array([token.gap for token in step.tokens])
    log_z = [step.log_partition(one) for one in temperatures]
    p = np.exp(-gaps[:, None] / temperatures - log_z)  # [token, temperature]
    masses = pd.DataFrame({"temperature": temperatures})
    masses[GROUPS[0]], masses[GROUPS[1]] = (p[groups == group].sum(0) for group in GROUPS[:2])
    # Valid tokens are all listed, invalid ones are not.
    return masses.assign(**{GROUPS[2]: 1 - masses[[*GROUPS[:2]]].sum(axis=1)})


def tail_bins(gaps: np.ndarray, starts: np.ndarray, n_vocab: int) -> tuple[Bin, ...]:
    """Bins whose means give the partition function to `MAX_ERROR` for every T >= 0.1.

    Tokens at gap g matter only where T > g / ln(n_vocab), so bins may widen with the gap. `gaps`
    [token] ascend, in nats below the top logit; a bin begins at each position of `starts`.
    """
    knee = MIN_TEMPERATURE * (log_vocab := math.log(n_vocab))
    level = np.minimum(gaps, knee) / (_RELATIVE_WIDTH * MIN_TEMPERATURE)
    level += np.log(np.maximum(gaps / knee, 1)) / math.log1p(_RELATIVE_WIDTH / log_vocab)
    new = np.diff(np.floor(level), prepend=-1) != 0
    new[starts] = True
    parts = np.split(gaps, np.flatnonzero(new)[1:]) if len(gaps) else []
    return tuple(Bin(len(p), round(float(p[0]), 6), round(float(p.mean()), 6)) for p in parts)


def explorer(step: StepData, source: str) -> HTML:
    """The figure, all but the book's `explorer.js` and `explorer.css`; `source` of its numbers."""
    data = step.to_json().replace("<", "\\u003c")  # a token may be "</script"
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
        token, gap = int(order[rank]), round(float(gaps[rank]), 6)
        tokens.append(Token(_visible(model.tokenizer, token), rank, gap, answers.get(token, 0)))
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
    start = len(exact_text(tokenizer, prompt.ids)) + len(prompt.lead)
    return exact_text(tokenizer, [*prompt.ids, *path])[start:]


def _visible(tokenizer, token: int) -> str:
    return _printable(exact_text(tokenizer, [token]).translate(_VISIBLE)) or f"#{token}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# Steps kept beside a model's tables, a file a task; it changes by more than rounding or not at all.


def path_of(results_dir: str | Path, model_key: str, task: str) -> Path:
    """Where a model's steps of a task are kept."""
    return Path(results_dir) / model_key / STEPS_FOLDER / f"{task}.json"


def keep(model: Model, tasks: Iterable[str], end: str, results_dir: str | Path) -> dict:
    """The steps, a list, of each task that `ANSWERS` names; a ResultsError where they cannot go."""
    found = {}
    for task in filter(ANSWERS.__contains__, tasks):
        steps = found[task] = steps_along(model, task, ANSWERS[task], end)
        convention = conventions.CURRENT[STEPS_FOLDER]
        record = records.of_model(model) | {"task": task, "end": end, "convention": convention}
        path = path_of(results_dir, model.key, task)
        if path.exists():
            kept, old = read(path)
            conventions.require_same(path, STEPS_FOLDER, old, record)
            if old == record and len(kept) == len(steps) and all(map(alike, kept, steps)):
                continue
        lines = ",\n".join(step.to_json() for step in steps)
        head = json.dumps(record, sort_keys=True)
        with records.writing(path):
            files.keep(path, f'{{"record": {head},\n"steps": [\n{lines}\n]}}\n'.encode())
    return found


def read(path: Path) -> tuple[list[StepData], dict]:
    """Kept steps, and the record of what they are of; ResultsError where they cannot be."""
    paths.note_read(path)
    why = "it is incomplete"
    try:
        content = files.json_of(path)
        record, steps = content["record"], [StepData.from_json(one) for one in content["steps"]]
        named = {*conventions.IDENTITY[STEPS_FOLDER], "model", "revision"} <= set(record)
        tasks = {record["task"], path.stem, *(step.task for step in steps)}
        if steps and named and len(tasks) == 1 and all(map(_complete, steps)):
            return steps, record
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = type(error).__name__
    raise ResultsError(f"{path} holds no steps ({why}): delete it and run 03_oracle_cutoffs")


def _complete(step: StepData) -> bool:
    """Ranks and gaps ascend, and every token of the vocabulary is counted once."""
    listed = step.tokens[: step.n_listed]
    gaps = [token.gap for token in listed] + [part.first for part in step.tail]
    n_tokens = step.n_listed + sum(part.count for part in step.tail)
    ranks = [token.rank for token in listed]
    return ranks == list(range(step.n_listed)) and gaps == sorted(gaps) and n_tokens == step.n_vocab


def alike(one: StepData, other: StepData) -> bool:
    """Whether two steps are the same up to rounding, in which near ties may change places."""

    def facts(step):
        valid = sorted((t.text, t.n_answers, t.gap) for t in step.tokens if t.n_answers)
        exact = vars(step) | {"tail": None, "tokens": [named[:2] for named in valid]}
        gaps = [token.gap for token in step.tokens[: step.n_listed]]
        return exact, np.array(gaps + [gap for *_, gap in valid])

    (exact, gaps), (exact_other, gaps_other) = facts(one), facts(other)
    return exact == exact_other and bool(np.abs(gaps - gaps_other).max() <= _ROUNDING)


# The explorer page. Opened from a file it may load scripts but no data: each model's is a script.


def write(results_dir: str | Path, folder: str | Path) -> pd.DataFrame:
    """Writes `index.js` and a script for each model with rows of the study of cutoffs.

    By task: `rows` (columns `COLUMNS`; null where there is no number; `draws` are places among the
    texts), `texts`, the `n_valid` valid ones first, `prompt`, `source`, `steps`.
    Returns what was left out as broken, or of an older convention: columns folder, why.
    """
    folder, models, left_out = Path(folder), [], []
    folder.mkdir(parents=True, exist_ok=True)
    measured = model_panel.keys_in(results_dir) if Path(results_dir).is_dir() else []
    for known in model_panel.models(measured).itertuples():
        shown = {}
        for task in TASKS:
            stored, missing = model_panel.study_of(results_dir, known.model, task)
            left_out += missing
            if not stored:
                continue
            record = stored.record
            drawn, missing = _drawn(results_dir, known.model, task, record)
            left_out += missing
            if rows := _rows(stored, task, drawn):
                source = (
                    f"{known.model}, SHA-256 of the weights {record['weights_sha256'][:12]}…, "
                    f"{record['dtype']}, end = {record['policies']['end']}, "
                    f"{stored.settings.n_answers.iloc[0]} answers, "
                    f"convention {record['convention']}"
                )
                path = path_of(results_dir, known.model, task)
                wanted = {"end": record["policies"]["end"]}
                steps, missing = _beside(STEPS_FOLDER, path, read, record, wanted)
                left_out += missing
                shown[task] = {"prompt": record["prompt"], "source": source, "rows": rows}
                shown[task] |= {"steps": [vars(step) for step in steps or ()]}
                shown[task] |= {"texts": drawn["texts"], "n_valid": drawn["n_valid"]}
        if shown:
            script = f"calibUtilsModel({_js(known.model)}, {_js(shown)});\n"
            (folder / f"model-{known.model}.js").write_text(script, encoding="utf-8")
            name = human_name(known.model)
            models.append({"key": known.model, "name": name, "stage": known.stage})
    models.sort(key=lambda one: book_order(one["key"]))
    colours = {rule.name: RULE_COLOURS[rule.name] for rule in table3_rules()}
    colours |= {cause: colour for cause, (colour, _) in CAUSES.items()}
    names = {task: task_name(task) for task in TASKS}
    index = {"models": models, "tasks": names, "colours": colours, "columns": COLUMNS}
    script = f"globalThis.calibUtilsModels = {_js(index)};\n"
    (folder / "index.js").write_text(script, encoding="utf-8")
    return pd.DataFrame(left_out, columns=["folder", "why"])


def _rows(stored: Stored, task: str, drawn: dict) -> list[list]:
    """The settings of Table 3 and the oracle size, each with its loss split and its place."""
    split = oracle_cutoffs.split_table(stored.losses.assign(task=task))[[*KEY, *PARTS]]
    table = keys(oracle_cutoffs.SETTINGS).merge(stored.settings, on=KEY)
    if table.empty:
        return []
    best = frontier_points(table)[KEY].assign(on_frontier=1)
    table = table.merge(split, on=KEY, how="left").merge(best, on=KEY, how="left")
    parts = table[list(PARTS)]
    # Without a valid answer there is no loss to split, though its size part alone may be known.
    table[list(PARTS)] = parts.mask(parts.abs() < _LOSS_ROUNDING, 0.0).where(parts.total.notna())
    table = table.merge(drawn["draws"], on=KEY, how="left")
    return [[_short(value) for value in row] for row in table[list(COLUMNS)].values.tolist()]


def _short(value: str | float | list) -> str | float | list | None:
    """A number in few digits that rounds to the same three as the stored one; null if none."""
    if isinstance(value, str | list) or pd.isna(value):
        return value if isinstance(value, str | list) else None
    short = float(f"{value:.8g}")
    return short if f"{short:.3g}" == f"{value:.3g}" else value


def _drawn(results_dir: str | Path, key: str, task: str, record: dict) -> tuple[dict, list]:
    """Kept draws: their texts, the valid ones first, and a table of which each setting has."""
    rows = folder_of(Path(results_dir), key, task, Policies(**record["policies"]).suffix)
    wanted = {name: record[name] for name in ("prompt_sha256", "sequences_sha256")}
    table, missing = _beside(conventions.DRAWS, draws.path_of(rows), draws.read, record, wanted)
    if table is None:
        return {"texts": [], "n_valid": 0, "draws": keys([]).assign(draws=None)}, missing
    pairs = [*zip(~table.valid, map(_told, table.text, table.ended), strict=True)]
    place = {pair: number for number, pair in enumerate(sorted(set(pairs)))}
    of = np.reshape([place[pair] for pair in pairs], (-1, draws.N_DRAWS)).tolist()
    found = {"texts": [text for _, text in place], "n_valid": sum(not wrong for wrong, _ in place)}
    return found | {"draws": table[KEY].iloc[:: draws.N_DRAWS].assign(draws=of)}, missing


def _told(text: str, ended: bool) -> str:
    """A drawn answer in few characters; dots where it did not end, or is cut here."""
    seen = re.sub("^ +| +$", lambda space: "␣" * len(space[0]), text)
    seen = _printable(seen.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍"))
    cut = seen[:_LONGEST_TEXT]
    return (cut if ended and cut == seen else f"{cut}…") or "(nothing)"


def _beside(kind: str, path: Path, read: Callable, record: dict, wanted: dict) -> tuple:
    """What is kept at a path, if of the weights and the question of the rows; what is left out."""
    if not path.is_file():
        return None, []
    wanted = wanted | {name: record[name] for name in ("weights_sha256", "dtype")}
    wanted["convention"] = conventions.CURRENT[kind]
    try:
        content, own = read(path)
        differs = [name.split("_")[0] for name, value in wanted.items() if own.get(name) != value]
        if not differs:
            return content, []
        why = f"of another {' and '.join(differs)} than the rows: run 03_oracle_cutoffs again"
    except ResultsError as error:
        why = str(error)
    return None, [(f"{path.parent.parent.name}/{path.name}", why)]


def _js(data: dict | str) -> str:
    """JSON in ASCII, which is JavaScript."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)

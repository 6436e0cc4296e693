"""Answers drawn from a model: freely to their end, or under many settings at once and kept.

Many settings share one uniform number a step, which reads its token off each ranked, cut
distribution, so neighbouring settings write mostly the same answers. Such a draw goes on until the
answer is valid, or cannot become so. Knows no chapter.
"""

import time
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from calib_utils.core.processors import check_temperatures
from calib_utils.core.prompts import Prompt, exact_text
from calib_utils.core.ranking import Ranking
from calib_utils.core.tasks import Task, get_task
from calib_utils.errors import ResultsError, whole_number
from calib_utils.models.loading import Model, load_model
from calib_utils.models.scoring import continue_rows, forward, read_shared
from calib_utils.results import conventions, records
from calib_utils.results.conventions import DRAWS
from calib_utils.results.evaluation import Request, keys, render_prompt
from calib_utils.results.measure import Settings
from calib_utils.results.storage import KEY

N_DRAWS, SEED = 10, 0
COLUMNS = {"rule": str, "parameter": float, "temperature": float, "draw": int}
COLUMNS |= {"text": str, "valid": bool, "ended": bool}
_COMPLETE, _OFF = -1, -2  # where the last token of a valid answer leads, and where a wrong one does
_ROWS = 32  # prefixes per forward pass: each may hold a copy of the prompt's keys
_AGAIN = "delete it and run 03_oracle_cutoffs"


def sample_answers(
    model: Model | str,
    task: Task | str,
    n: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    **policies: str,
) -> pd.DataFrame:
    """Seeded draws from the model at a temperature, without cutoff.

    Returns:
        One row per draw: `text` as written, and `answer`, the valid answer that the drawn tokens
        spell under the policies of `evaluate`, or None.

    Raises:
        InvalidRequestError: a temperature, a number of draws or a seed out of range.
    """
    (temperature,) = check_temperatures([temperature])
    n, seed = whole_number("n", n), whole_number("seed", seed, 0, 2**63 - 1)
    model, task = load_model(model), get_task(task)
    prompt = render_prompt(model, task, **policies)
    longest = max(map(len, prompt.sequences.symbols)) + bool(prompt.end_ids)
    drawn = _draw_freely(model, prompt, n, longest, temperature, seed)
    spells = zip(prompt.sequences.symbols, prompt.sequences.answer, strict=True)
    spelled = {symbols: task.answers[number] for symbols, number in spells}
    rows = []
    for tokens in drawn:
        stops = np.flatnonzero(np.isin(tokens, prompt.end_ids))
        body = tuple(tokens[: stops[0]] if len(stops) else tokens)
        answer = spelled.get(body) if len(stops) else None
        if not prompt.end_ids:  # the first answer on the way is the answer
            starts = (body[:k] for k in range(1, len(body) + 1))
            answer = next((spelled[start] for start in starts if start in spelled), None)
        rows.append({"text": model.tokenizer.decode(list(body)), "answer": answer})
    return pd.DataFrame(rows)


def _draw_freely(model: Model, prompt: Prompt, n: int, length: int, temperature: float, seed: int):
    """Token ids [draw, step], each step drawn from the tempered distribution.

    Draws that agree so far share a row of the forward pass; one that has ended takes no part in it,
    and what stands behind its end token means nothing.
    """
    network = model.network
    generator = torch.Generator().manual_seed(seed)
    logits, cache = read_shared(network, prompt.ids)
    drawn = torch.zeros(n, length, dtype=torch.int64)
    ends = torch.tensor(prompt.end_ids, dtype=torch.int64)
    going, row = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    for step in range(length):
        below = torch.softmax(logits.cpu().double() / temperature, dim=-1).cumsum(-1)
        heights = torch.rand(len(going), generator=generator, dtype=torch.float64)
        tokens = torch.empty_like(row)
        for one in row.unique():
            mine, steps = row == one, below[one]
            tokens[mine] = torch.searchsorted(steps, heights[mine] * steps[-1], right=True)
        drawn[going, step] = tokens
        on = ~torch.isin(tokens, ends)
        going = going[on]
        if step == length - 1 or not len(going):
            break
        pairs, row = torch.stack([row[on], tokens[on]], dim=1).unique(dim=0, return_inverse=True)
        parent, token = pairs.to(cache.ids.device).unbind(1)
        logits, cache = forward(network, token[:, None], continue_rows(cache, parent), keep=1)
        logits = logits[:, -1]
    return drawn.numpy()


# Under many settings at once.


class Draw(NamedTuple):
    """What was drawn, its end token included; valid: a token sequence that validity counts.

    An invalid one reaches to its first token with which no valid answer goes on; it has `ended` if
    that closes an answer.
    """

    token_ids: tuple[int, ...]
    valid: bool
    ended: bool


def draw(
    model: Model, prompt: Prompt, settings: Settings, n: int = N_DRAWS, seed=SEED
) -> list[list[Draw]]:
    """Independent draws under each setting, [setting][draw]; settings share their random numbers.

    Args:
        settings: (rule, temperature) pairs of rules that cut the tempered distribution.
        seed: what `numpy.random.default_rng` takes.
    """
    trie, ends = prompt.trie, set(prompt.end_ids)
    edges = zip(trie.edge_node.tolist(), trie.edge_symbol.tolist(), strict=True)
    leads = dict(zip(edges, trie.edge_child.tolist(), strict=True))
    uniforms = np.random.default_rng(seed).random((int(trie.node_depth.max()) + 1, n))
    found: dict[tuple[int, int], Draw] = {}
    # The draws that have come to a node; only there is the model asked.
    waiting = {0: [(setting, number) for setting in range(len(settings)) for number in range(n)]}

    def grow(nodes, logits, state) -> None:
        """Draws after some nodes, one for each row of logits and state, and goes on below them."""
        bar.update(len(nodes))
        further = []
        for row, node in enumerate(nodes):
            ranking = Ranking(logits[row].cpu(), [trie.node_branching[node]])
            uniform = uniforms[trie.node_depth[node]]
            for token, own in _chosen(ranking, settings, waiting.pop(node), uniform).items():
                to = leads.get((node, -1 if token in ends else token), _OFF)
                if to >= 0:
                    waiting[to] = own
                    further.append((row, to))
                    continue
                ended = token in ends or to == _COMPLETE
                one = Draw((*trie.prefix(node), token), to == _COMPLETE, ended)
                found.update(dict.fromkeys(own, one))
        for start in range(0, len(further), _ROWS):
            rows, below = map(list, zip(*further[start : start + _ROWS], strict=True))
            asked = continue_rows(state, torch.tensor(rows, device=device))
            ids = torch.as_tensor(trie.node_symbol[below][:, None], device=device)
            grow(below, *forward(model.network, ids, asked, keep=1))

    with tqdm(desc=f"{model.name}, draws", unit="prefix", leave=False) as bar:
        first, state = read_shared(model.network, prompt.ids)
        device = state.ids.device
        grow([0], first[:, None], state)
    return [[found[setting, number] for number in range(n)] for setting in range(len(settings))]


def _chosen(ranking: Ranking, settings: Settings, draws, uniforms) -> dict[int, list]:
    """Each token that some of the draws take, and which."""
    by_rank: dict[int, list] = {}
    by_temperature = sorted(draws, key=lambda one: (settings[one[0]][1], one[0]))
    for temperature, some in groupby(by_temperature, lambda one: settings[one[0]][1]):
        step = ranking.at(temperature)
        for setting, own in groupby(some, lambda one: one[0]):
            kept = settings[setting][0].keep(step)
            for one in own:
                # The least number of top tokens that hold this share of what is kept.
                count = kept.start + kept.count_reaching(uniforms[one[1]])
                by_rank.setdefault(int(count) - 1, []).append(one)
    return {_token_at(ranking, rank): own for rank, own in by_rank.items()}


def _token_at(ranking: Ranking, rank: int) -> int:
    """The token of a rank, ties by ascending id."""
    values = ranking.negated[0]
    tied = torch.nonzero(ranking.logits[0] == -values[rank])[:, 0]
    return int(tied[rank - int(torch.searchsorted(values, values[rank]))])


def table_of(request: Request, settings: Settings) -> pd.DataFrame:
    """The draws of a task as they are kept: `COLUMNS`, settings in their order.

    `text`: what was written, without its end and the space that a base model's answer starts with.
    """
    model, prompt = request.model, request.prompt
    drawn = draw(model, prompt, settings, seed=[SEED, *request.task.name.encode()])
    start, texts = len(exact_text(model.tokenizer, prompt.ids)), {}
    every = [one for own in drawn for one in own]
    for ids in {one.token_ids for one in every}:
        body = ids[:-1] if ids and ids[-1] in prompt.end_ids else ids
        text = exact_text(model.tokenizer, [*prompt.ids, *body])[start:]
        texts[ids] = text.removeprefix(prompt.lead)
    table = keys(settings)
    return (
        table.loc[table.index.repeat(N_DRAWS)]
        .assign(
            draw=np.tile(np.arange(N_DRAWS, dtype=np.int16), len(settings)),
            text=[texts[one.token_ids] for one in every],
            valid=[one.valid for one in every],
            ended=[one.ended for one in every],
        )
        .reset_index(drop=True)
    )


def path_of(rows: Path) -> Path:
    """Where draws are kept, of a task whose rows are in this folder."""
    return rows.parent / DRAWS / f"{rows.name}.parquet"


def kept(request: Request, settings: Settings) -> pd.DataFrame:
    """`table_of`, kept in the request's results folder and read from there if it is.

    Raises:
        ResultsError: draws of another measurement hold the place, or it cannot be written.
    """
    path = request.folder and path_of(request.folder)
    record = {**request.identity(), **records.of_model(request.model)}
    record |= {"convention": conventions.CURRENT[DRAWS], "task": request.task.name}
    record |= {"policies": vars(request.policies), "seed": SEED}
    if path and path.exists():
        table, stored = read(path)
        conventions.require_same(path, DRAWS, stored, record)
        here = table[KEY].drop_duplicates(ignore_index=True)
        if conventions.is_current(DRAWS, stored) and here.equals(keys(settings)):
            return table
    began = time.perf_counter()
    table = table_of(request, settings)
    record |= {"seconds": round(time.perf_counter() - began, 2)}
    record |= {"environment": conventions.environment(request.model.device)}
    if path:
        records.write(path, table, record)
    return table


def read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Kept draws, and the record of what they are of; a ResultsError where they cannot be."""
    needed = ("model", "revision", "task", "policies", "seconds", "environment")
    table, record = records.read(path, DRAWS, needed, _AGAIN)
    wrong = records.wrong_columns(table, COLUMNS)
    if not wrong:
        numbers = table.groupby(KEY, dropna=False).draw.apply(list)
        whole = len(table) and all(own == list(range(N_DRAWS)) for own in numbers)
        wrong = "" if whole else f"not {N_DRAWS} draws of every setting"
        if (table.valid & ~table.ended).any():
            wrong = "a valid answer that did not end"
    if wrong:
        raise ResultsError(f"{path} holds no draws ({wrong}): {_AGAIN}")
    return table, record

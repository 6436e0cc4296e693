"""One pass of a model over a task's trie, every sampler and temperature applied on the way.

Model, prompt, samplers and temperatures in; exact numbers per setting out. Keeps only numbers per
node and edge, never a vocabulary, so memory is flat in answers x vocabulary. Knows no files.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from calib_utils.core import metrics, ranking
from calib_utils.core.processors import Processors
from calib_utils.core.prompts import Prompt
from calib_utils.core.rules import NoCutoff, Rule, Sampler
from calib_utils.core.split import Steps, TokenTable
from calib_utils.models import scoring
from calib_utils.models.loading import Model

# Logits ranked at once, and nodes at most, where rows are ranked one by one: few bytes.
_RANKED_LOGITS, _RANKED_NODES = 1 << 22, 64
_UNSORTED_NODES = 16  # without a sort calls are cheap, and smaller arrays stay in the cache
# On a device a call costs the same for many nodes. What the ranking of a logit takes there, with
# the copies of a sort and of masks, and the share of the free memory that it may have.
_RANKED_BYTES, _SHARE = 80, 0.5
_UNKNOWN_FREE = 4e9  # of a device that does not tell

Settings = list[tuple[Sampler, float]]
Stream = Iterator[tuple[np.ndarray, torch.Tensor]]


@dataclass(frozen=True)
class Measurement:
    """What one pass found: one column per setting (sampler, temperature).

    `answer_log_p` is [answer, setting]: ln p of every answer under the sampler. `edge_log_p` is
    [edge, setting], the same per step of the trie. `steps` has the settings that are rules, in
    their order: ranks, windows, and from them the counterfactuals.
    """

    settings: tuple[tuple[Sampler, float], ...]
    validity: np.ndarray
    diversity: np.ndarray
    sequence_precision: np.ndarray
    sequence_recall: np.ndarray
    answer_log_p: np.ndarray
    edge_log_p: np.ndarray
    steps: Steps


def measure(
    model: Model,
    prompt: Prompt,
    settings: Settings,
    *,
    batch_size: int | None = None,
    ranks: bool = False,
    description: str = "",
) -> Measurement:
    """Exact Val, Div, Prec_seq and Rec_seq (Def. 3.1, 4.1) of a task under each setting.

    Args:
        settings: (sampler, temperature) pairs; pairs that share a temperature share its work.
        batch_size: nodes per forward pass, see `scoring.score`.
        ranks: rank tokens even where no rule asks for it.
        description: shown beside the progress bar.
    """
    trie = prompt.trie
    tokens = TokenTable(trie)
    is_rule = np.array([isinstance(sampler, Rule) for sampler, _ in settings], dtype=bool)
    windows = _Windows(tokens, [(s, t) for s, t in settings if isinstance(s, Rule)], ranks)
    dense = _Dense(prompt, tokens, [(s, t) for s, t in settings if isinstance(s, Processors)])
    with tqdm(total=trie.n_nodes, desc=description or "nodes", unit="node", leave=False) as bar:
        most = _RANKED_NODES if windows.ordered or not is_rule.all() else _UNSORTED_NODES
        for nodes, logits in _regrouped(scoring.score(model, prompt, batch_size), most):
            _add(windows, nodes, logits)
            dense.add(nodes, logits)
            bar.update(len(nodes))
    steps = windows.steps()
    edge_log_p, edge_uniform = np.empty((2, trie.n_edges, len(settings)))
    edge_log_p[:, is_rule] = steps.edge_log_p(slice(None))
    edge_uniform[:, is_rule] = steps.edge_uniform_log_p(slice(None))
    edge_log_p[:, ~is_rule], edge_uniform[:, ~is_rule] = dense.edges()
    answer_log_p, uniform_log_p = (
        metrics.answer_log_probability(trie, metrics.sequence_log_probability(trie, table))
        for table in (edge_log_p, edge_uniform)
    )
    return Measurement(
        tuple(settings),
        metrics.validity(answer_log_p),
        metrics.diversity(answer_log_p),
        metrics.sequence_precision(uniform_log_p),
        metrics.sequence_recall(uniform_log_p),
        answer_log_p,
        edge_log_p,
        steps,
    )


def _add(windows: "_Windows", nodes: np.ndarray, logits: torch.Tensor) -> None:
    """In parts where memory runs out: what a ranking takes is known roughly."""

    def add(rows: range) -> None:
        part = slice(rows.start, rows.stop)
        windows.add(nodes[part], logits[part])

    batch = scoring.Batch(len(nodes), logits.device)
    for _ in batch.each(range(len(nodes)), add, "the ranking of one node"):
        pass


def _regrouped(stream: Stream, most: int) -> Stream:
    """The same nodes and logits, in groups of a size to rank at once.

    Args:
        most: nodes of a group where rows are ranked one by one.
    """
    held: list[tuple[np.ndarray, torch.Tensor]] = []

    def joined():
        nodes, logits = zip(*held, strict=True)
        held.clear()
        return np.concatenate(nodes), logits[0] if len(logits) == 1 else torch.cat(logits)

    for nodes, logits in stream:
        size = _ranked_at_once(logits, most)
        if held and sum(len(part) for part, _ in held) + len(nodes) > size:
            yield joined()
        for start in range(0, len(nodes), size):
            part = slice(start, start + size)
            held.append((nodes[part], logits[part]))
            # Where rows are ranked one by one, waiting for more would save nothing.
            if len(nodes) > start + size or logits.device.type in ranking.BY_ROW:
                yield joined()
    if held:
        yield joined()


def _ranked_at_once(logits: torch.Tensor, most: int) -> int:
    """How many nodes to rank in one call."""
    device, n_vocab = logits.device, logits.shape[1]
    if device.type in ranking.BY_ROW:
        return max(1, min(most, _RANKED_LOGITS // n_vocab))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _UNKNOWN_FREE
    return max(1, int(_SHARE * free / (_RANKED_BYTES * n_vocab)))


def untouched(temperatures: list[float]) -> Settings:
    """The settings of temperature alone."""
    return [(NoCutoff(), temperature) for temperature in temperatures]


class _Windows:
    """Fills `Steps` node by node."""

    def __init__(self, tokens: TokenTable, settings: Settings, ranks: bool):
        self._tokens, self._settings = tokens, settings
        self.ordered = ranks or any(rule.uses_ranks for rule, _ in settings)
        self._columns: dict[float, list[int]] = {}
        for column, (_, temperature) in enumerate(settings):
            self._columns.setdefault(temperature, []).append(column)
        n_tokens, n_nodes = len(tokens.edge), tokens.trie.n_nodes
        self._rank = np.zeros(n_tokens, dtype=np.int64)
        # NaN where nothing is ranked, so that a repair of the order cannot pass for a number.
        self._gap, self._sorted_gap = np.full((2, n_tokens), np.nan)
        self._start, self._stop = np.zeros((2, n_nodes, len(settings)), dtype=np.int32)
        self._log_mass = np.empty((n_nodes, len(settings)))

    def add(self, nodes: np.ndarray, logits: torch.Tensor) -> None:
        if not self._settings and not self.ordered:
            return
        branching = self._tokens.trie.node_branching[nodes]
        ranked = ranking.Ranking(logits, branching, self.ordered)
        token, row = self._tokens.of(nodes)
        slot = np.arange(len(token)) - np.searchsorted(row, row)
        table = np.zeros((len(nodes), slot.max() + 1), dtype=np.int64)
        table[row, slot] = self._tokens.symbol[token]
        symbols = torch.as_tensor(table, device=ranked.top.device)
        self._gap[token] = ranked.gap(symbols).cpu().numpy()[row, slot]
        if self.ordered:
            self._rank[token] = ranked.rank(symbols).cpu().numpy()[row, slot]
            first = ranked.sorted_gap[:, : slot.max() + 1]
            self._sorted_gap[token] = first.cpu().numpy()[row, slot]
        cut_first = {rule for rule, _ in self._settings if not rule.temperature_first}
        plain = ranked.at(1.0) if cut_first else None
        kept_first = {rule: rule.keep(plain) for rule in cut_first}
        # Columns stay on the device until the last; each read would wait for it.
        starts, stops, masses = [], [], []
        for temperature, columns in self._columns.items():
            step = ranked.at(temperature)
            rules = [self._settings[column][0] for column in columns]
            kept = [kept_first[rule] if rule in cut_first else rule.keep(step) for rule in rules]
            starts.append(torch.stack([left.start for left in kept], dim=1))
            stops.append(torch.stack([left.stop for left in kept], dim=1))
            # Only a `keep` of its own can leave a window that begins below the top.
            inner = [i for i, rule in enumerate(rules) if type(rule).keep is not Rule.keep]
            masses.append(step.log_mass_of(starts[-1], stops[-1], inner))
        if starts:
            at = np.ix_(nodes, [column for some in self._columns.values() for column in some])
            self._start[at] = torch.cat(starts, dim=1).cpu().numpy()
            self._stop[at] = torch.cat(stops, dim=1).cpu().numpy()
            self._log_mass[at] = torch.cat(masses, dim=1).cpu().numpy()

    def steps(self) -> Steps:
        return Steps(
            self._tokens,
            self._rank,
            self._gap,
            self._sorted_gap,
            np.array([temperature for _, temperature in self._settings], dtype=float),
            np.array([rule.is_rank_cutoff for rule, _ in self._settings], dtype=bool),
            self._start,
            self._stop,
            self._log_mass,
        )


class _Dense:
    """Samplers that may do anything: a vocabulary each, at every node, with the node's prefix."""

    def __init__(self, prompt: Prompt, tokens: TokenTable, settings: Settings):
        self._prompt, self._tokens, self._settings = prompt, tokens, settings
        self._log_p = np.empty((len(tokens.edge), len(settings)))
        self._size = np.empty((prompt.trie.n_nodes, len(settings)))

    def add(self, nodes: np.ndarray, logits: torch.Tensor) -> None:
        if not self._settings:
            return
        logits = logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
        depth = self._prompt.trie.node_depth[nodes]
        for level in np.unique(depth):  # prefixes of one length make rows of one call
            rows = np.flatnonzero(depth == level)
            ids = torch.tensor([self._ids(node) for node in nodes[rows]], device=logits.device)
            token, row = self._tokens.of(nodes[rows])
            symbols = torch.as_tensor(self._tokens.symbol[token], device=logits.device)
            for column, (sampler, temperature) in enumerate(self._settings):
                log_p = sampler.log_p(ids, logits[rows], temperature)
                self._log_p[token, column] = log_p[row, symbols].cpu().numpy()
                self._size[nodes[rows], column] = (log_p > -torch.inf).sum(1).cpu().numpy()

    def _ids(self, node: int) -> list[int]:
        return [*self._prompt.ids, *self._prompt.trie.prefix(node)]

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """(ln p, ln p of the uniform sampler), both [edge, setting]."""
        kept = np.isfinite(self._log_p)
        uniform = np.where(kept, -np.log(self._size[self._tokens.node]), -np.inf)
        return self._tokens.sum_by_edge(self._log_p), self._tokens.sum_by_edge(uniform)

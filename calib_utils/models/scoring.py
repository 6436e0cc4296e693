"""Next-token logits at every node of a trie, each node forwarded once, in a stream.

Knows torch models and their caches. Knows nothing of rules, metrics or files.

Two ways, the same numbers. *Packed*: consecutive nodes share one row, and a mask lets each see the
prompt and its ancestors only. It needs attention layers and rotary positions, so it is used where
tests prove it. *Branched*: each node is a row that continues a copy of its parent's state. That is
the network's cache where tests or a first comparison show it to be right; elsewhere the tokens, and
every prefix is read from its start.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from weakref import WeakKeyDictionary

import numpy as np
import torch

from calib_utils.core.prompts import Prompt
from calib_utils.core.tries import Sequences, Trie, build_trie
from calib_utils.errors import ModelFormatError, OutOfMemoryError
from calib_utils.models.loading import Model

# Proven equal to a plain forward pass per sequence in tests/models/test_parity.py: packed, or with
# any number of tokens read at a time on a filled cache.
PACKABLE = frozenset({"gemma3_text", "llama", "olmo3", "qwen2", "qwen3"})
PROVEN = PACKABLE | {"gemma3", "qwen3_moe", "qwen3_5_text", "qwen3_5_moe_text"}
# Nodes per forward pass: enough for matrix products to run near the machine's limit, few enough
# that the logits of a batch (float32) stay below the second number, in bytes.
_BATCH = {"cpu": (256, 160e6), "mps": (512, 160e6), "cuda": (1024, 2e9)}
_BRANCHED_SHARE = 8
_SHARED = "calib_utils_shared_prompt"


def score(
    model: Model, prompt: Prompt, batch_size: int | None = None, packed: bool | None = None
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Logits after every prefix of the answers.

    The prompt is forwarded once, then the trie subtree by subtree. Only the state on the path to
    the current batch is kept, so memory does not grow with the number of answers.

    Args:
        batch_size: nodes per forward pass; halved on its own when memory runs out.
        packed: force one of the two ways; by default packed where it is proven.

    Yields:
        (nodes [batch], logits [batch, vocab]) until every node has come once, the root first.

    Raises:
        OutOfMemoryError: even one node does not fit.
    """
    from transformers import DynamicCache

    network, root = model.network, np.zeros(1, dtype=np.int64)
    if packed is None:
        packed = _is_proven(network.config, PACKABLE)
    # Built without the config: a cache with sliding layers would forget by order of arrival.
    logits, state = read_prompt(network, prompt.ids, DynamicCache() if packed else None)
    device = state.ids.device
    batch = Batch(batch_size or default_batch(device.type, logits.shape[1], packed), device)
    yield root, logits
    if packed:
        yield from _packed(network, prompt.trie, state, len(prompt.ids), batch)
    else:
        yield from _Branched(network, prompt.trie, batch).below(root, state)


def default_batch(device_type: str, vocabulary: int, packed: bool) -> int:
    """Nodes per forward pass on a kind of device (`cpu`, `mps` or `cuda`)."""
    nodes, logits_bytes = _BATCH.get(device_type, _BATCH["cpu"])
    nodes = min(nodes, int(logits_bytes / (4 * vocabulary)))
    return max(1, nodes if packed else nodes // _BRANCHED_SHARE)


class Batch:
    """How many nodes to forward at once, and what to do when they do not fit."""

    def __init__(self, size: int, device):
        self.size, self.device = size, device

    def shrink(self, error: RuntimeError, tried: int, what: str = "one node") -> None:
        """Halves the size where memory ran out; where it cannot, or for another error, raises."""
        if not _is_memory(error):
            raise error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if tried <= 1:
            raise OutOfMemoryError(
                f"{what} does not fit into memory (batch size tried: 1): use dtype='bfloat16', a "
                "smaller model, or device_map='auto' to spread it over devices"
            ) from error
        self.size = tried // 2

    def each(
        self, items: Sequence | np.ndarray, work: Callable, what: str = "one node"
    ) -> Iterator:
        """What `work` gives for some of the items at a time, fewer where memory runs out."""
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            try:
                found = [work(part)]
            except RuntimeError as error:
                self.shrink(error, len(part), what)
                continue
            start += len(part)
            yield found.pop()  # and keeps no logits alive


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


@dataclass(frozen=True)
class State:
    """What rows have read.

    Args:
        ids: all of it, [row, token].
        cache: the network's; None before the first token, and in the plain way.
        seen: which of the tokens are not there to fill a row, [row, token], of `ids` and perhaps of
            those to be read next; None: all.
        at_once: tokens read at a time on a filled cache; 0 in the plain way, which reads all anew.
    """

    ids: torch.Tensor
    cache: object | None = None
    seen: torch.Tensor | None = None
    at_once: int = 1 << 30


def read_prompt(network, prompt_ids: Sequence[int], cache=None) -> tuple[torch.Tensor, State]:
    """Logits [1, vocab] after a prompt, and its state; read into an empty `cache`, if one is given.

    Raises:
        OutOfMemoryError: the prompt does not fit.
    """
    device = network.get_input_embeddings().weight.device
    ids = torch.tensor([list(prompt_ids)], device=device)
    state = None if cache is None else State(ids[:, :0], cache)
    try:
        logits, state = forward(network, ids, state, keep=1)
    except RuntimeError as error:
        Batch(1, device).shrink(error, 1, f"the prompt of {len(prompt_ids)} tokens")
    return logits[:, -1], state


def read_shared(network, prompt_ids: Sequence[int]) -> tuple[torch.Tensor, State]:
    """`read_prompt` for rows that continue it without a copy of its keys and values each.

    With a copy where `can_be_filled` is false or the network has an attention of its own.
    """
    logits, state = read_prompt(network, prompt_ids)
    if can_be_filled(network) and network.config._attn_implementation in ("sdpa", _SHARED):
        branch = copy.copy(state.cache)
        branch.layers = [_of_all_rows()(layer) for layer in state.cache.layers]
        network.set_attn_implementation(_SHARED)  # which with other caches is sdpa
        state = replace(state, cache=branch)
    return logits, state


@torch.inference_mode()
def forward(network, ids, state: State | None, keep: int, **inputs):
    """Logits of the last `keep` of the tokens [row, position, vocab], and the grown state.

    Args:
        ids: [row, token], after what is in the state; None of which is the start of a prompt.
        inputs: what the packed way gives beside them.
    """
    state = _start(network, ids) if state is None else state
    whole = torch.cat([state.ids, ids], dim=1)
    if not state.at_once:
        out = network(input_ids=whole, use_cache=False, logits_to_keep=keep)
        return out.logits[:, -keep:], replace(state, ids=whole)
    cache, found, at = state.cache, [], state.ids.shape[1]
    if (seen := state.seen) is not None:
        seen = torch.nn.functional.pad(seen, (0, whole.shape[1] - seen.shape[1]), value=1)
        inputs = {"attention_mask": seen, "position_ids": (seen.cumsum(1) - 1)[:, at:]}
    knows = not inputs and "position_ids" in signature(network.forward).parameters
    for part in ids.split(state.at_once if at else ids.shape[1], dim=1):
        n = part.shape[1]
        if at and knows:  # not every network counts what its cache holds
            positions = torch.arange(at, at + n, device=ids.device)
            inputs = {"position_ids": positions.expand(len(ids), -1)}
        out = network(
            input_ids=part,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=min(keep, n),
            **inputs,
        )
        cache, at = out.past_key_values, at + n
        found.append(out.logits)
    logits = found[0] if len(found) == 1 else torch.cat(found, dim=1)  # spares a large copy
    return logits[:, -keep:], replace(state, ids=whole, cache=cache, seen=seen)


def can_be_filled(network) -> bool:
    """Whether rows of several lengths can be read together, filled at their start.

    Not with a sliding window, which would count what fills a row.
    """
    config = network.config
    return _is_proven(config, PACKABLE) and getattr(config, "sliding_window", None) is None


def _is_proven(config, types: frozenset[str]) -> bool:
    """Whether a model is of a proven type, and its config makes no layers that the type lacks."""
    declared = getattr(type(config), "__dataclass_fields__", ())
    shaping = ("sliding_window", "layer_types", "attention_chunk_size")
    foreign = [n for n in shaping if getattr(config, n, None) is not None and n not in declared]
    return config.model_type in types and not foreign


# Of networks that were compared: tokens of the longest prompt, and tokens to read at a time.
_COMPARED: WeakKeyDictionary = WeakKeyDictionary()
# Mean difference of logits, in standard deviations over the vocabulary, that is rounding.
_ROUNDING, _HALF_ROUNDING = 1e-4, 0.1


def _start(network, ids) -> State:
    """Nothing read, and how to read on after `ids` [1, token]: by the cache if that is right."""
    if _is_proven(network.config, PROVEN):
        return State(ids[:, :0])
    length, at_once = _COMPARED.get(network) or (0, getattr(network, "at_once", 1))
    if at_once and ids.shape[1] > length:
        if why := _disagreement(network, ids):
            warnings.warn(
                f"{network.config.model_type}: its cache cannot be used ({why}), so every prefix is"
                " read from its start; the numbers are right, and take longer",
                stacklevel=2,
            )
        at_once = 0 if why else 1
        _COMPARED[network] = ids.shape[1], at_once
    return State(ids[:, :0], at_once=at_once)


def _disagreement(network, ids) -> str:
    """What speaks against a cache, read on from one token at a time; empty where nothing does."""
    after = torch.stack([ids[0, :3], ids[0, -3:]])
    state = State(ids[:, :0], at_once=1)
    try:
        _, state = forward(network, ids, state, keep=1)
        _, state = forward(network, after, continue_rows(state, ids.new_tensor([0, 0])), keep=1)
        after, state = after[[0, 1, 0]], continue_rows(state, ids.new_tensor([1, 0, 1]))
        found, _ = forward(network, after, state, keep=after.shape[1])
    except Exception as error:
        if _is_memory(error):
            raise
        return f"{type(error).__name__}: {error}"[:200]
    plain, _ = forward(network, after, State(state.ids, at_once=0), keep=after.shape[1])
    gap = ((found - plain).abs().mean(-1) / plain.std(-1)).max().item()
    if gap <= (_ROUNDING if plain.dtype == torch.float32 else _HALF_ROUNDING):
        return ""
    return f"its logits are off by {gap:.1g} standard deviations"


def _packed(network, trie: Trie, state: State, prompt_length: int, batch: Batch):
    """Nodes in preorder, so that every ancestor of a batch lies in it or above its first node."""
    window = getattr(network.config, "sliding_window", None)
    dtype = network.get_input_embeddings().weight.dtype
    end = _subtree_end(trie)
    path: list[int] = []  # nodes whose keys the cache holds after the prompt's

    def run(nodes: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        nonlocal state, path
        above = (np.flatnonzero(end[1 : nodes[0]] > nodes[0]) + 1).tolist()
        held = list(range(prompt_length)) + [prompt_length + path.index(node) for node in above]
        columns = np.array([*above, *nodes], dtype=np.int64)
        depth = np.concatenate(
            [np.arange(prompt_length) + 1, prompt_length + trie.node_depth[columns]]
        )
        # Which keys each node may see: the prompt, its ancestors and itself. [node, key]
        sees = (columns <= nodes[:, None]) & (nodes[:, None] < end[columns])
        sees = np.pad(sees, ((0, 0), (prompt_length, 0)), constant_values=True)
        masks = {"full_attention": sees}
        if window is not None:
            near = depth[-len(nodes) :, None] - depth[None, :] < window
            masks["sliding_attention"] = sees & near
        masks = {name: _additive(mask, dtype, batch.device) for name, mask in masks.items()}
        inputs = {
            "attention_mask": masks if window is not None else masks["full_attention"],
            "position_ids": torch.as_tensor(depth[-len(nodes) :] - 1, device=batch.device)[None],
        }
        ids = torch.as_tensor(trie.node_symbol[nodes], device=batch.device)[None]
        branch = replace(state, cache=_columns(state.cache, held))
        logits, state = forward(network, ids, branch, keep=len(nodes), **inputs)
        path = columns.tolist()
        return nodes, logits[0]

    yield from batch.each(np.arange(1, trie.n_nodes), run)


def _subtree_end(trie: Trie) -> np.ndarray:
    """The first node after all those below each node, in preorder. [node]"""
    size = np.ones(trie.n_nodes, dtype=np.int64)
    for depth in range(trie.node_depth.max(), 0, -1):
        at = np.flatnonzero(trie.node_depth == depth)
        np.add.at(size, trie.node_parent[at], size[at])
    return np.arange(trie.n_nodes) + size


def _additive(mask: np.ndarray, dtype, device) -> torch.Tensor:
    blank = torch.zeros(mask.shape, dtype=dtype, device=device)
    hidden = torch.as_tensor(~mask, device=device)
    return blank.masked_fill_(hidden, torch.finfo(dtype).min)[None, None]


def _columns(cache, kept: list[int]):
    """A cache that holds only some positions of `cache`, which stays as it is."""
    branch = _copied(cache)
    for layer in branch.layers:
        where = torch.as_tensor(kept, device=layer.keys.device)
        layer.keys = layer.keys.index_select(2, where)
        layer.values = layer.values.index_select(2, where)
    return branch


def _copied(cache):
    """A cache with layers of its own, whose tensors are shared."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


class _Branched:
    def __init__(self, network, trie: Trie, batch: Batch):
        self.network, self.trie, self.batch = network, trie, batch
        self.children = trie.children()
        self.only_child = np.array([c[0] if len(c) == 1 else -1 for c in self.children])

    def below(self, parents: np.ndarray, state) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """All nodes below `parents`, which the rows of `state` have read."""
        nodes = np.concatenate([self.children[p] for p in parents])
        origin = np.repeat(np.arange(len(parents)), [len(self.children[p]) for p in parents])

        def forwarded(places: np.ndarray):
            run = self._run(nodes[places])
            ids = torch.as_tensor(self.trie.node_symbol[run], device=self.batch.device)
            rows = torch.as_tensor(origin[places], device=self.batch.device)
            return run, *forward(self.network, ids, continue_rows(state, rows), keep=run.shape[1])

        for run, logits, grown in self.batch.each(np.arange(len(nodes)), forwarded):
            for column in range(run.shape[1]):
                yield run[:, column], logits[:, column]
            del logits
            yield from self.below(run[:, -1], grown)

    def _run(self, nodes: np.ndarray) -> np.ndarray:
        """Nodes [row, step] to forward together: on while every row has exactly one way down."""
        run = [nodes]
        while (self.only_child[run[-1]] >= 0).all():
            run.append(self.only_child[run[-1]])
        return np.stack(run, axis=1)


def continue_rows(state: State, rows: torch.Tensor) -> State:
    """A state whose row i continues row `rows[i]` of `state`, which stays as it is."""
    seen = None if state.seen is None else state.seen[rows]
    state = replace(state, ids=state.ids[rows], seen=seen)
    if state.cache is None:
        return state
    branch = _copied(state.cache)
    for layer in branch.layers:
        # Recurrent layers keep their states in dictionaries, which a shallow copy would share.
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
    branch.reorder_cache(rows)
    return replace(state, cache=branch)


@cache
def _of_all_rows() -> type:
    """A cache layer for what rows have read after a prompt, made known to transformers with the
    attention that reads both."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.cache_utils import DynamicLayer
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    class OfAllRows(DynamicLayer):
        def __init__(self, layer):
            super().__init__()
            self.prompt = layer.keys, layer.values

        def update(self, keys, values, *args, **kwargs):
            return tuple(zip(self.prompt, super().update(keys, values), strict=True))

        def get_seq_length(self) -> int:
            return self.prompt[0].shape[2] + super().get_seq_length()

        def reorder_cache(self, rows) -> None:
            if self.is_initialized:
                super().reorder_cache(rows)

    def attention(module, query, key, value, mask, scaling, **kwargs):
        if isinstance(key, tuple):
            if query.shape[2] == 1:
                return _of_one_token(query, key, value, mask, scaling), None
            key, value = (  # the kernel keeps no scores, which would be large
                torch.cat([prompt.expand(len(own), -1, -1, -1), own], dim=2)
                for prompt, own in (key, value)
            )
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)

    AttentionInterface.register(_SHARED, attention)
    AttentionMaskInterface.register(_SHARED, sdpa_mask)
    return OfAllRows


def _of_one_token(query, key, value, mask, scaling) -> torch.Tensor:
    """What one token of each row attends to [row, 1, head, ...], of the prompt and of its row.

    Args:
        query: [row, head, 1, ...].
        key, value: the prompt's [1, head of keys, token, ...], and the rows' own.
        mask: bool [row, 1, 1, token] over both, or None for all.
    """
    (prompt_key, own_key), (prompt_value, own_value) = key, value
    n_rows, n_heads, _, width = query.shape
    # [row, head of keys, query head of it, ...]. To the prompt's keys all rows are one matrix.
    query = query.reshape(n_rows, own_key.shape[1], -1, width) * scaling
    with_prompt = torch.einsum("rhqd,hkd->rhqk", query, prompt_key[0])
    with_own = torch.einsum("rhqd,rhkd->rhqk", query, own_key)
    scores = torch.cat([with_prompt, with_own], dim=3)
    if mask is not None:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    to_prompt, to_own = scores.softmax(dim=3).tensor_split([prompt_key.shape[2]], dim=3)
    found = torch.einsum("rhqk,hkd->rhqd", to_prompt, prompt_value[0]) + to_own @ own_value
    return found.reshape(n_rows, 1, n_heads, width)


def logits_after(model: Model, prompt: Prompt, path: Sequence[int]) -> np.ndarray:
    """Logits [vocab] after the prompt and `path`, float64.

    Raises:
        ModelFormatError: NaN or infinite logits.
    """
    if path:  # a trie of this one path: nothing else has to be forwarded
        # With a symbol behind it, so that its end is a node under every policy of ends.
        trie = build_trie(Sequences(((*path, 0),), (0,), (), 1))
        prompt = replace(prompt, trie=trie)
    scored = score(model, prompt)
    logits = next(batch for nodes, batch in scored if nodes[-1] == len(path))
    row = logits[-1].float().cpu().double().numpy()
    if not np.isfinite(row.max()):
        remedy = "try dtype='float32', or check that the weight files are intact"
        raise ModelFormatError(f"{model.name} returned NaN or infinite logits: {remedy}")
    return row

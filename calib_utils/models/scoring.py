"""Next-token logits at every node of a trie, each node forwarded once, in a stream.

Knows torch models and their caches. Knows nothing of rules, metrics or files.

Two ways, the same numbers. *Packed*: consecutive nodes share one row, and a mask lets each see the
prompt and its ancestors only. It needs attention layers and rotary positions, so it is used where
tests prove it. *Branched*: each node is a row that continues a copy of its parent's cache,
recurrent state included; right for every architecture, at the price of those copies.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from calib_utils.core.prompts import Prompt
from calib_utils.core.tries import Sequences, Trie, build_trie
from calib_utils.errors import ModelFormatError, OutOfMemoryError
from calib_utils.models.loading import Model

# Proven equal to a plain forward pass per sequence in tests/models/test_parity.py.
PACKABLE = frozenset({"gemma3_text", "llama", "olmo3", "qwen2", "qwen3"})
# Nodes per forward pass: enough for matrix products to run near the machine's limit, few enough
# that the logits of a batch (float32) stay below the second number, in bytes.
_BATCH = {"cpu": (256, 160e6), "mps": (512, 160e6), "cuda": (1024, 2e9)}
_BRANCHED_SHARE = 8
_MEMORY_REMEDY = (
    "use dtype='bfloat16', a smaller model, or device_map='auto' to spread it over devices"
)


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
    network = model.network
    device = network.get_input_embeddings().weight.device
    if packed is None:
        packed = network.config.model_type in PACKABLE
    vocabulary = network.get_output_embeddings().weight.shape[0]
    batch = Batch(batch_size or default_batch(device.type, vocabulary, packed), device)
    ids = torch.tensor([prompt.ids], device=device)
    cache = None
    if packed:
        # Built without the config: a cache with sliding layers would forget by order of arrival.
        from transformers import DynamicCache

        cache = DynamicCache()
    try:
        logits, cache = forward(network, ids, cache, keep=1)
    except RuntimeError as error:
        batch.shrink(error, 1, f"the prompt of {len(prompt.ids)} tokens")
    yield np.zeros(1, dtype=np.int64), logits[:, -1]
    if packed:
        yield from _packed(network, prompt.trie, cache, len(prompt.ids), batch)
    else:
        yield from _Branched(network, prompt.trie, batch).below(np.zeros(1, dtype=np.int64), cache)


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
        text = str(error).lower()
        if "out of memory" not in text and "can't allocate memory" not in text:
            raise error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if tried <= 1:
            raise OutOfMemoryError(
                f"{what} does not fit into memory (batch size tried: 1): {_MEMORY_REMEDY}"
            ) from error
        self.size = tried // 2


@torch.inference_mode()
def forward(network, ids, cache, keep: int, **inputs):
    """Logits of the last `keep` positions [row, position, vocab], and the grown cache."""
    out = network(
        input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep, **inputs
    )
    return out.logits, out.past_key_values


def _packed(network, trie: Trie, cache, prompt_length: int, batch: Batch):
    """Nodes in preorder, so that every ancestor of a batch lies in it or above its first node."""
    window = getattr(network.config, "sliding_window", None)
    dtype = network.get_input_embeddings().weight.dtype
    path: list[int] = []  # nodes whose keys the cache holds after the prompt's
    start = 1
    while start < trie.n_nodes:
        stop = min(start + batch.size, trie.n_nodes)
        above = _ancestors(trie, start)
        held = list(range(prompt_length)) + [prompt_length + path.index(node) for node in above]
        nodes = np.arange(start, stop)
        columns = np.array([*above, *nodes], dtype=np.int64)
        depth = np.concatenate(
            [np.arange(prompt_length) + 1, prompt_length + trie.node_depth[columns]]
        )
        sees = _visible(trie, nodes, columns, prompt_length)
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
        branch = _columns(cache, torch.as_tensor(held, device=batch.device))
        try:
            logits, grown = forward(network, ids, branch, keep=len(nodes), **inputs)
        except RuntimeError as error:
            batch.shrink(error, stop - start)
            continue
        cache, path, start = grown, columns.tolist(), stop
        yield nodes, logits[0]
        del logits


def _ancestors(trie: Trie, node: int) -> list[int]:
    """The nodes between the root and `node`, neither included, from the top."""
    found = []
    while (node := int(trie.node_parent[node])) > 0:
        found.append(node)
    return found[::-1]


def _visible(trie: Trie, nodes, columns, prompt_length: int) -> np.ndarray:
    """Which keys each node may see: the prompt, its ancestors and itself. [node, key]"""
    place = {int(node): i for i, node in enumerate(columns)}
    sees = np.zeros((len(nodes), len(columns)), dtype=bool)
    first = len(columns) - len(nodes)
    for row, node in enumerate(nodes):
        parent = int(trie.node_parent[node])
        if parent > 0:
            at = place[parent]
            if at >= first:
                sees[row] = sees[at - first]
            else:  # an ancestor from before this batch: so are all above it
                sees[row, : at + 1] = True
        sees[row, first + row] = True
    return np.concatenate([np.ones((len(nodes), prompt_length), dtype=bool), sees], axis=1)


def _additive(mask: np.ndarray, dtype, device) -> torch.Tensor:
    blank = torch.zeros(mask.shape, dtype=dtype, device=device)
    hidden = torch.as_tensor(~mask, device=device)
    return blank.masked_fill_(hidden, torch.finfo(dtype).min)[None, None]


def _columns(cache, kept: torch.Tensor):
    """A cache that holds only some positions of `cache`, which stays as it is."""
    branch = _copied(cache)
    for layer in branch.layers:
        where = kept.to(layer.keys.device)
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

    def below(self, parents: np.ndarray, cache) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """All nodes below `parents`, whose state is in the rows of `cache`."""
        nodes = np.concatenate([self.children[p] for p in parents])
        origin = np.repeat(np.arange(len(parents)), [len(self.children[p]) for p in parents])
        start = 0
        while start < len(nodes):
            stop = min(start + self.batch.size, len(nodes))
            run = self._run(nodes[start:stop])
            ids = torch.as_tensor(self.trie.node_symbol[run], device=self.batch.device)
            rows = torch.as_tensor(origin[start:stop], device=self.batch.device)
            try:
                branch = continue_rows(cache, rows)
                logits, grown = forward(self.network, ids, branch, keep=run.shape[1])
            except RuntimeError as error:
                self.batch.shrink(error, stop - start)
                continue
            for column in range(run.shape[1]):
                yield run[:, column], logits[:, column]
            del logits, branch
            yield from self.below(run[:, -1], grown)
            start = stop

    def _run(self, nodes: np.ndarray) -> np.ndarray:
        """Nodes [row, step] to forward together: on while every row has exactly one way down."""
        run = [nodes]
        while (self.only_child[run[-1]] >= 0).all():
            run.append(self.only_child[run[-1]])
        return np.stack(run, axis=1)


def continue_rows(cache, rows: torch.Tensor):
    """A cache whose row i continues row `rows[i]` of `cache`, which stays as it is."""
    branch = _copied(cache)
    for layer in branch.layers:
        # Recurrent layers keep their states in dictionaries, which a shallow copy would share.
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
    branch.reorder_cache(rows)
    return branch


def logits_after(model: Model, prompt: Prompt, path: Sequence[int]) -> np.ndarray:
    """Logits [vocab] after the prompt and `path`, float64.

    Raises:
        ModelFormatError: NaN or infinite logits.
    """
    if path:  # a trie of this one path: nothing else has to be forwarded
        trie = build_trie(Sequences((tuple(path),), (0,), prompt.end_ids, 1))
        prompt = replace(prompt, trie=trie)
    scored = score(model, prompt)
    logits = next(batch for nodes, batch in scored if nodes[-1] == len(path))
    row = logits[-1].float().cpu().double().numpy()
    if not np.isfinite(row.max()):
        remedy = "try dtype='float32', or check that the weight files are intact"
        raise ModelFormatError(f"{model.name} returned NaN or infinite logits: {remedy}")
    return row

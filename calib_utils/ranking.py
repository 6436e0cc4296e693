"""Next-token logits by rank: one sort a node, then masses of top sets at any temperature.

Float32 logits in, float64 log-masses and counts out. Knows nothing of models, tasks or answers.
Ranks are by descending logit, ties by ascending token id.
"""

import numpy as np
import torch

from calib_utils.errors import ModelFormatError

_BLOCK = 512


class Ranking:
    """The logits of a batch of nodes, sorted unless no rule asks for ranks.

    Args:
        logits: float tensor [node, vocab], in any float dtype.
        branching: int64 [node], the number of valid next tokens |G| at each node.
        ordered: False leaves out the sort; ranks and masses of top sets are then undefined, the
            mass of the whole vocabulary is not.

    Raises:
        ModelFormatError: a logit is NaN or +inf, or all of a node's logits are -inf.
    """

    def __init__(self, logits: torch.Tensor, branching, ordered: bool = True):
        # MPS has no float64; its logits are reduced on the CPU.
        self.logits = logits.float().cpu() if logits.device.type == "mps" else logits.float()
        self.top = self.logits.max(dim=1, keepdim=True).values  # NaN if any logit is
        if not torch.isfinite(self.top).all():
            raise ModelFormatError(
                "the model returned NaN or infinite logits: try dtype='float32', or check that "
                "the weight files are intact"
            )
        self.branching = torch.as_tensor(branching, device=self.top.device)
        self.negated = _sort_ascending(-self.logits) if ordered else None
        # From the sorted values where there are any, so that masses can be cut by rank.
        values = -self.negated if ordered else self.logits
        self._gap = values.double() - self.top
        width = -(-self.logits.shape[1] // _BLOCK) * _BLOCK
        self._mass = torch.zeros(len(self.top), width, dtype=torch.float64, device=self.top.device)

    def gap(self, tokens: torch.Tensor) -> torch.Tensor:
        """How far each token's logit lies below the node's highest: float64 [node, token] <= 0."""
        return self.logits.gather(1, tokens).double() - self.top

    def rank(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rank of each token at its node, from 0: int64 [node, token]."""
        values = -self.logits.gather(1, tokens)
        ranks = torch.searchsorted(self.negated, values)
        tied = torch.searchsorted(self.negated, values, right=True) - ranks > 1
        for node, column in torch.nonzero(tied).tolist():
            token = tokens[node, column]
            lower_ids = self.logits[node, :token]
            ranks[node, column] += (lower_ids == self.logits[node, token]).sum()
        return ranks

    def at(self, temperature: float) -> "Step":
        """The step at one temperature. It lives in a buffer that the next call overwrites."""
        mass = self._mass[:, : self._gap.shape[1]]
        torch.div(self._gap, temperature, out=mass)
        mass.exp_()
        return Step(self, temperature)


class Step:
    """One decoding step for a batch of nodes: the tempered distribution, by rank.

    `branching` is |G| [node]; `n_vocab` the vocabulary size.
    """

    def __init__(self, ranking: Ranking, temperature: float):
        self.temperature = temperature
        self.branching = ranking.branching
        self._negated = ranking.negated
        self.n_nodes, self.n_vocab = ranking.logits.shape
        # Sums of blocks answer "mass of the top n" and "smallest n with mass p" by looking into
        # one block only, where a running sum over the vocabulary would cost ten times the exp.
        self._blocks = ranking._mass.view(self.n_nodes, -1, _BLOCK)
        self._upto_block = self._blocks.sum(-1).cumsum(-1)

    def constant(self, count: int) -> torch.Tensor:
        """`count` for every node, int64 [node]."""
        return torch.full((self.n_nodes,), count, dtype=torch.int64, device=self._blocks.device)

    def log_mass(self, count: torch.Tensor) -> torch.Tensor:
        """ln of the mass of the top `count` tokens, relative to the top token. [node]"""
        block, inside = count // _BLOCK, count % _BLOCK
        rows = torch.arange(self.n_nodes, device=count.device)
        before = torch.where(block > 0, self._upto_block[rows, (block - 1).clamp(min=0)], 0.0)
        part = self._blocks[rows, block.clamp(max=self._blocks.shape[1] - 1)]
        positions = torch.arange(_BLOCK, device=count.device)
        return (before + torch.where(positions < inside[:, None], part, 0.0).sum(-1)).log()

    def count_reaching(self, share: float) -> torch.Tensor:
        """Size of the smallest top set that holds at least `share` of the mass. [node]"""
        target = share * self._upto_block[:, -1:]
        block = torch.searchsorted(self._upto_block, target)[:, 0]
        block = block.clamp(max=self._blocks.shape[1] - 1)
        rows = torch.arange(self.n_nodes, device=block.device)
        before = torch.where(block > 0, self._upto_block[rows, (block - 1).clamp(min=0)], 0.0)
        running = before[:, None] + self._blocks[rows, block].cumsum(-1)
        inside = (running < target).sum(-1) + 1
        return (block * _BLOCK + inside).clamp(max=self.n_vocab)

    def count_within(self, nats: float) -> torch.Tensor:
        """How many tokens have ln p within `nats` of the most probable one. [node]"""
        limit = self._negated[:, :1].double() + nats * self.temperature
        return torch.searchsorted(self._negated, limit.float(), right=True)[:, 0]


def _sort_ascending(values: torch.Tensor) -> torch.Tensor:
    """Each row from low to high. On a CPU NumPy sorts floats several times faster than torch."""
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))

"""Next-token logits by rank: one sort a node, then masses of rank windows at any temperature.

Float32 logits in, float64 log-masses and counts out. Knows nothing of models, tasks or answers.
Ranks are from 0 by descending logit, ties by ascending token id.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch

from calib_utils.errors import ModelFormatError

# Where a row is taken at a time, which is faster there. Elsewhere the batch is taken at once,
# and nothing is read back, since each read would wait for the device.
BY_ROW = frozenset({"cpu"})
_BLOCK = 128
_UNDERFLOW = -740.0  # exp of less is 0, or not above the smallest double
_MASKED = 1e6  # nats
_PARTS = 8  # that a search cuts a range of ranks into
_AS_NEAR = 1e-9  # nats, below the spacing of logits in float32
_FAINT = 1e-3  # a window's share of the mass above it, below which it is added up by itself


class Ranking:
    """The logits [node, vocab] of a batch of nodes, sorted unless no rule asks for ranks.

    A logit more than 10^6 below the top one counts as masked, -inf.

    Args:
        branching: int64 [node], the number of valid next tokens |G| at each node.
        ordered: False leaves out the sort; only the mass of the whole vocabulary is then defined.

    Raises:
        ModelFormatError: a logit is NaN or +inf, or all of a node's logits are -inf.
    """

    def __init__(self, logits: torch.Tensor, branching, ordered: bool = True):
        # MPS has no float64; its logits are reduced on the CPU.
        logits = logits.float().cpu() if logits.device.type == "mps" else logits.float()
        self._by_row = logits.device.type in BY_ROW
        # Apart, since `aminmax` along rows takes thirty times as long. NaN if any logit is.
        lowest, self.top = logits.amin(1, keepdim=True), logits.amax(1, keepdim=True)
        if not torch.isfinite(self.top).all():
            raise ModelFormatError(
                "the model returned NaN or infinite logits: try dtype='float32', or check that "
                "the weight files are intact"
            )
        # Elsewhere than on a CPU a look at the values costs more than the filling.
        if not self._by_row or (lowest < self.top - _MASKED).any():
            logits = logits.masked_fill(logits < self.top - _MASKED, -math.inf)
        self.logits = logits
        self.branching = torch.as_tensor(branching, device=self.top.device)
        self.negated = self._order = self._running = None
        if ordered and self._by_row:
            self.negated = _sort_ascending(-self.logits)
        elif ordered:  # subtracted, since some sorts put -0 before 0
            self.negated, self._order = (0.0 - self.logits).sort(dim=-1, stable=True)
        # From the sorted values where there are any, so that masses can be cut by rank.
        values = self.negated.double().neg_() if ordered else self.logits.double()
        self.sorted_gap = values.sub_(self.top)
        width = -(-self.logits.shape[1] // _BLOCK) * _BLOCK
        self._mass = torch.zeros(len(self.top), width, dtype=torch.float64, device=self.top.device)

    def gap(self, tokens: torch.Tensor) -> torch.Tensor:
        """How far each token's logit lies below the node's highest: float64 [node, token] <= 0."""
        return self.logits.gather(1, tokens).double() - self.top

    def rank(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rank of each token at its node: int64 [node, token]."""
        if not self._by_row:
            return self._ranks.gather(1, tokens)
        values = -self.logits.gather(1, tokens)
        ranks = torch.searchsorted(self.negated, values)
        tied = torch.searchsorted(self.negated, values, right=True) - ranks > 1
        for node, column in torch.nonzero(tied).tolist():
            token = tokens[node, column]
            lower_ids = self.logits[node, :token]
            ranks[node, column] += (lower_ids == self.logits[node, token]).sum()
        return ranks

    @cached_property
    def _ranks(self) -> torch.Tensor:
        """Rank of every token of the vocabulary, from a stable sort. [node, vocab]"""
        places = torch.arange(self._order.shape[1], device=self._order.device)
        return torch.empty_like(self._order).scatter_(1, self._order, places.expand_as(self._order))

    def at(self, temperature: float) -> "Step":
        """The step at one temperature. It lives in a buffer that the next call overwrites."""
        mass = self._mass[:, : self.logits.shape[1]]
        if self._by_row:
            # A row at a time stays in the cache. What underflows is left out where it comes last.
            # Not NumPy's exp, which takes 2.7 times as long where processors lack AVX-512.
            nonzero = [mass.shape[1]] * len(mass)
            if self.negated is not None:
                limit = self.negated[:, :1] - _UNDERFLOW * temperature
                nonzero = torch.searchsorted(self.negated, limit)[:, 0].tolist()
            for row, gap, n in zip(mass, self.sorted_gap, nonzero, strict=True):
                torch.mul(gap[:n], 1 / temperature, out=row[:n]).exp_()
                if n < len(row):
                    row[n:] = 0.0
        else:
            torch.mul(self.sorted_gap, 1 / temperature, out=mass).exp_()
        return Step(self, temperature, _Sums(self._mass))

    def running(self, mass: "_Sums") -> torch.Tensor:
        """Sum over the top `count` ranks at place `count`, where many are asked for. [node, 1 +]"""
        if self._running is None or self._running[0] is not mass:
            # The buffer of the last temperature: a new one costs as much as the sum.
            sums = (
                self._running[1]
                if self._running
                else self._mass.new_zeros(len(self._mass), 1 + self._mass.shape[1])
            )
            torch.cumsum(self._mass, 1, out=sums[:, 1:])
            self._running = mass, sums
        return self._running[1]

    @cached_property
    def finite(self) -> torch.Tensor:
        """How many of each node's tokens are not masked. [node, 1]"""
        # A limit in float64 would copy the whole table.
        return torch.searchsorted(self.negated, torch.full_like(self.top, math.inf))

    def between(self, start: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
        """Which ranks lie from `start` to before `stop` [node]: bool [node, vocab]."""
        ranks = torch.arange(self.logits.shape[1], device=start.device)
        return (ranks >= start[:, None]) & (ranks < stop[:, None])

    @cached_property
    def deviation(self) -> torch.Tensor:
        """Standard deviation of each node's finite logits, with n - 1. [node]"""
        finite = torch.isfinite(self.logits)
        count = finite.sum(1)
        values = torch.where(finite, self.logits.double(), 0.0)
        mean = values.sum(1) / count
        square = torch.where(finite, (values - mean[:, None]) ** 2, 0.0).sum(1)
        return (square / (count - 1).clamp(min=1)).sqrt()


class _Sums:
    """Running sums along the ranks, kept by block: a running sum over the whole vocabulary would
    cost ten times the exponentials."""

    def __init__(self, values: torch.Tensor):
        self._blocks = values.view(len(values), -1, _BLOCK)
        self._upto = self._blocks.sum(-1).cumsum(-1)
        self._rows = torch.arange(len(values), device=values.device)[:, None]
        self._places = torch.arange(_BLOCK, device=values.device)

    def upto(self, count: torch.Tensor) -> torch.Tensor:
        """Sum over the top `count` ranks, for one or several counts a node. [node] or [node, n]"""
        if count.ndim == 1:
            return self.upto(count[:, None])[:, 0]
        block, inside = count // _BLOCK, count % _BLOCK
        part = self._blocks[self._rows, block.clamp(max=self._blocks.shape[1] - 1)]
        part = torch.where(self._places < inside[..., None], part, 0.0).sum(-1)
        return self._before(block) + part

    def count_reaching(self, target: torch.Tensor) -> torch.Tensor:
        """Smallest count whose sum is at least `target`; for nonnegative values. [node]"""
        block = torch.searchsorted(self._upto, target[:, None])
        block = block.clamp(max=self._blocks.shape[1] - 1)
        running = self._before(block) + self._blocks[self._rows, block][:, 0].cumsum(-1)
        return block[:, 0] * _BLOCK + (running < target[:, None]).sum(-1) + 1

    def _before(self, block: torch.Tensor) -> torch.Tensor:
        return torch.where(block > 0, self._upto[self._rows, (block - 1).clamp(min=0)], 0.0)


class Step:
    """A decoding step for a batch of nodes: the tempered distribution over a window of ranks.

    The window is the ranks from `start` to before `stop` [node], at first the whole vocabulary;
    what a cutoff keeps is a smaller one, and probabilities are those within it. `branching`: |G|.
    """

    def __init__(self, ranking: Ranking, temperature: float, mass: _Sums, start=None, stop=None):
        self.temperature, self.branching = temperature, ranking.branching
        self.n_vocab = ranking.logits.shape[1]
        self._ranking, self._mass = ranking, mass
        self.start = torch.zeros_like(self.branching, dtype=torch.int64) if start is None else start
        self.stop = torch.full_like(self.start, self.n_vocab) if stop is None else stop

    def within(self, start: torch.Tensor, stop: torch.Tensor) -> "Step":
        """The same step with only the ranks from `start` to before `stop` left. [node]"""
        return Step(self._ranking, self.temperature, self._mass, start, stop)

    @cached_property
    def size(self) -> torch.Tensor:
        """Number of tokens in the window. [node]"""
        return self.stop - self.start

    def log_mass_of(self, start: torch.Tensor, stop: torch.Tensor, inner: list[int]):
        """`log_mass` of several windows of the vocabulary at once. [node, window]

        Args:
            inner: the windows that need not begin at rank 0.
        """
        log_mass = self._mass.upto(stop).log()
        for window in inner:
            first, last = start[:, window], stop[:, window]
            below = self._mass.upto(first)
            held = self._mass.upto(last) - below
            # Far below the top a difference of running sums has few digits left, or none.
            log_mass[:, window] = self._added_up(first, last, held, held < _FAINT * below)
        return log_mass

    def _added_up(self, start, stop, held, faint) -> torch.Tensor:
        """ln of what windows hold, token by token where `faint`. [node]"""
        gap, log_mass = self._ranking.sorted_gap, held.log()
        if self._ranking._by_row:
            for node in torch.nonzero(faint)[:, 0].tolist():
                inside = gap[node, start[node] : stop[node]] / self.temperature
                log_mass[node] = inside.logsumexp(0)
            return log_mass
        inside = torch.where(self._ranking.between(start, stop), gap / self.temperature, -math.inf)
        return torch.where(faint, inside.logsumexp(1), log_mass)

    @cached_property
    def _total(self) -> torch.Tensor:
        return self._mass.upto(self.stop) - self._mass.upto(self.start)

    @cached_property
    def log_mass(self) -> torch.Tensor:
        """ln of the window's mass, relative to the node's most probable token. [node]"""
        return self._total.log()

    @cached_property
    def top_gap(self) -> torch.Tensor:
        """How far the window's first logit lies below the node's highest. [node] <= 0"""
        return self._ranking.sorted_gap.gather(1, self.start[:, None])[:, 0]

    @cached_property
    def entropy(self) -> torch.Tensor:
        """Of the distribution over the window, in nats. [node]"""
        mass, gap = self._ranking._mass[:, : self.n_vocab], self._ranking.sorted_gap
        # Beyond `last` nothing has mass, and 0 times -inf would be NaN.
        last = self._count(torch.full_like(self.log_mass, _UNDERFLOW * self.temperature))
        last = torch.minimum(self.stop, last)
        if self._ranking._by_row:
            windows = zip(mass, gap, self.start.tolist(), last.tolist(), strict=True)
            weighted = torch.stack([m[a:b] @ g[a:b] for m, g, a, b in windows])
        else:
            inside = self._ranking.between(self.start, last)
            weighted = torch.where(inside, mass * gap, 0.0).sum(1)
        return self.log_mass - weighted / self.temperature / self._total

    @property
    def deviation(self) -> torch.Tensor:
        """Standard deviation of the node's logits, temperature and window aside. [node]"""
        return self._ranking.deviation

    def first_log_p(self, count: int) -> torch.Tensor:
        """ln p of the window's first `count` ranks, -inf past its end. [node, rank]"""
        places = torch.arange(min(count, self.n_vocab), device=self.start.device)
        ranks = self.start[:, None] + places
        gaps = self._ranking.sorted_gap.gather(1, ranks.clamp(max=self.n_vocab - 1))
        log_p = gaps / self.temperature - self.log_mass[:, None]
        return torch.where(ranks < self.stop[:, None], log_p, -math.inf)

    def count_reaching(self, share: float) -> torch.Tensor:
        """Size of the smallest top set of the window that holds `share` of its mass. [node]"""
        target = self._mass.upto(self.start) + share * self._total
        reached = self._mass.count_reaching(target) - self.start
        return torch.minimum(reached.clamp(min=1), self.size)

    def count_within(self, nats) -> torch.Tensor:
        """How many tokens have ln p within `nats` of the window's most probable one. [node]"""
        return self._in_window(self.top_gap - nats * self.temperature)

    def count_above(self, log_p) -> torch.Tensor:
        """How many of the window's tokens have ln p of at least `log_p`. [node]"""
        return self._in_window((log_p + self.log_mass) * self.temperature)

    def nearest(self, log_p: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens whose ln p is nearest to `log_p`, just enough to hold `share` of the mass.

        Tokens equally near stay or go together: a window of ranks, its start and stop. [node]
        """
        gap, sums = self._ranking.sorted_gap, self._ranking.running(self._mass)
        centre = ((log_p + self.log_mass) * self.temperature)[:, None]
        first, end = self.start[:, None], self.stop[:, None].minimum(self._ranking.finite)
        middle = self._count(centre, strict=True).clamp(first, end)
        target, above = share * self._total[:, None], middle - first

        def distance(places):
            """Of the token at this place above the centre, counted from 1."""
            away = gap.gather(1, (middle - places).clamp(min=0)) - centre
            return torch.where(places > above, math.inf, away + _AS_NEAR)

        def start_within(distance):
            return self._count(centre + distance, strict=True).clamp(min=first)

        def stop_within(distance):
            return self._count(centre - distance).clamp(max=end)

        # The first token above that, with all as near below, holds enough.
        short, enough = torch.zeros_like(above), above + 1
        bits = torch.arange((self.n_vocab + 1).bit_length(), device=gap.device)
        tried = (1 << bits).expand(len(gap), -1).minimum(enough)  # most windows are small
        parts = torch.arange(1, _PARTS, device=gap.device)
        for _ in range(1 + math.ceil(math.log(self.n_vocab + 1, _PARTS))):
            bounds = torch.cat([short, tried, enough], 1)
            held = sums.gather(1, stop_within(distance(tried)))
            held -= sums.gather(1, middle - tried.minimum(above))
            # Between the last place that is too short and the first that is not.
            last = ((held < target) | (tried <= short)).sum(1, keepdim=True)
            short, enough = bounds.gather(1, last), bounds.gather(1, last + 1)
            if self._ranking._by_row and (enough - short).max() <= 1:
                break
            tried = short + (enough - short) * parts // _PARTS
        # A token below may be nearer than that one. All above that are nearer still then stay.
        filled = torch.searchsorted(sums, sums.gather(1, middle - short) + target)
        last = filled.maximum(middle + 1) - 1
        away = centre - gap.gather(1, last.clamp(max=self.n_vocab - 1)) + _AS_NEAR
        near = distance(enough).minimum(torch.where(last < end, away, math.inf))
        return start_within(near)[:, 0], stop_within(near)[:, 0]

    def _in_window(self, gap: torch.Tensor) -> torch.Tensor:
        """How many of the window's tokens lie at most `gap` below their node's top. [node]"""
        return torch.minimum((self._count(gap) - self.start).clamp(min=0), self.size)

    def _count(self, gap: torch.Tensor, strict: bool = False) -> torch.Tensor:
        """How many tokens lie at most `gap` below their node's top; `strict`: nearer. [node], or
        [node, n] for several distances."""
        if gap.ndim == 1:
            return self._count(gap[:, None], strict)[:, 0]
        limit = -self._ranking.top.double() - gap
        single = limit.float()
        # The largest float32 not above the limit (strict: the smallest not below), so that the
        # comparison is the one in float64.
        passed = single.double() < limit if strict else single.double() > limit
        towards = torch.full_like(single, math.inf if strict else -math.inf)
        single = torch.where(passed, torch.nextafter(single, towards), single)
        return torch.searchsorted(self._ranking.negated, single, right=not strict)


def _sort_ascending(values: torch.Tensor) -> torch.Tensor:
    """Each row from low to high, in place: NumPy sorts faster than torch."""
    rows = values.numpy()  # the caller's own copy
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy's sort lets others run
        list(pool.map(np.ndarray.sort, np.array_split(rows, min(len(rows), pool._max_workers))))
    return values

"""What a run will take, before it runs: memory, disk, and seconds of the notebooks timed so far.

Knows sizes and how long the notebooks took for the embedded models (`data/panel/seconds.csv`).
A forecast is not a measurement, and nothing here is stored as one.
"""

import os
import shutil
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from calib_utils import checkpoints, paths, runner, scoring, sizes
from calib_utils.errors import InvalidRequestError
from calib_utils.evaluation import evaluate
from calib_utils.models import Model
from calib_utils.sizes import ModelSize

PROBE, PROBE_TASK = "probe", "rng-2"
# Python, torch and transformers, measured before any weights.
_BASE_BYTES = 0.55e9
# Memory beside the model was 2 to 4 times the logits of a batch (benchmarks/results/scaling.json).
_LOGIT_COPIES = (2, 4)
_ROW_TOKENS = 150  # the longest prompt of the controlled tasks in a chat template, and an answer
_LEVELS = 8  # steps of an answer whose caches the branched way holds at once, at most
# The branched way took 2.3 times the packed one (DECISIONS.md); recurrent layers were not timed.
_BRANCHED = 2.3
# Another processor of the same class, another depth: no forecast is narrower than this.
_LEAST_SPREAD, _MORE = 1.5, 1.1
_PEAK = 103e9  # products and sums a second of one core (benchmarks/results/scoring.json)
_SERIAL = 1.5  # what more threads do not speed up
_START_S = 8.0  # kernel and imports, CPU seconds


@dataclass(frozen=True)
class Range:
    """From `low` to `high`: neither is promised."""

    low: float
    high: float


@dataclass(frozen=True)
class Memory:
    """Bytes: weights once, and what exact evaluation holds beside them with default batches."""

    weights: float
    beside: Range
    here: float | None  # of this machine; None on a GPU, and where it is not told

    @property
    def total(self) -> Range:
        """Everything."""
        return Range(self.weights + self.beside.low, self.weights + self.beside.high)


def memory(size: ModelSize, dtype: str = "float32", device: str = "cpu") -> Memory:
    """Memory of a run.

    Args:
        device: cpu, cuda or mps, which decides the batch.

    Raises:
        InvalidRequestError: a dtype that does not exist.
    """
    if dtype not in sizes.BYTES:
        known = ", ".join(sizes.BYTES)
        raise InvalidRequestError(f"dtype={dtype!r} does not exist: choose from {known}")
    kind = device.split(":")[0]
    nodes, most = scoring._BATCH.get(kind, scoring._BATCH["cpu"])
    nodes = max(1, min(nodes, int(most / (4 * size.vocabulary))))
    row = size.cache_values * sizes.BYTES[dtype] * _ROW_TOKENS + size.state_bytes
    if size.model_type in scoring.PACKABLE:
        # One row holds the prompt and the batch; attention copies it while it grows.
        row += size.cache_values * sizes.BYTES[dtype] * nodes
        caches = Range(row, 2 * row)
    else:
        nodes = max(1, nodes // scoring._BRANCHED_SHARE)
        caches = Range(row * nodes, row * nodes * _LEVELS)
    logits = 4 * nodes * size.vocabulary
    base = _BASE_BYTES if kind == "cpu" else 0.0
    beside = Range(
        base + caches.low + _LOGIT_COPIES[0] * logits,
        base + caches.high + _LOGIT_COPIES[1] * logits,
    )
    return Memory(size.weight_bytes(dtype), beside, _memory_here(device))


def seconds(
    size: ModelSize, probe_s: float | None = None, cores: int | None = None
) -> pd.DataFrame:
    """Seconds for every notebook that was timed, scaled from those of the embedded models.

    A notebook's CPU time is taken as a constant plus a multiple of the numbers in matrix products
    plus a multiple of the vocabulary (sorting, sums). The range is all that agrees with the
    embedded models' times, and what was never timed: experts that a batch touches together, and
    the branched way.

    Args:
        probe_s: seconds of `measure_probe` on this machine; then only the number of probes that a
            notebook is worth is taken from the embedded models.
        cores: that share the work; by default this machine's.

    Returns:
        Columns notebook, low, high.
    """
    table = timings()
    probes = table[table.notebook == PROBE].set_index("model").cpu_s
    rows = []
    for notebook, part in table[table.notebook != PROBE].groupby("notebook"):
        if probe_s is None:
            found = _predicted(size, part)
            share = min(cores or os.cpu_count() or 1, int(part.cores.max()))
            low, high = found.low / share, _SERIAL * found.high / share
        else:
            # What takes a model so many probes takes another about as many.
            ratio = part.cpu_s.to_numpy() / probes[part.model].to_numpy()
            low = probe_s * ratio.min() / _LEAST_SPREAD
            high = probe_s * ratio.max() * _LEAST_SPREAD
        rows.append({"notebook": notebook, "low": _START_S + low, "high": _START_S + high})
    return pd.DataFrame(rows)


def measure_probe(model: Model | str) -> float:
    """Wall seconds of a small exact evaluation, the second time, when nothing has to be set up."""
    for _ in range(2):
        began = time.perf_counter()
        evaluate(model, PROBE_TASK)
        wall = time.perf_counter() - began
    return wall


def timings() -> pd.DataFrame:
    """CPU seconds of the notebooks for the embedded models, one row each, start left out.

    A run counts before what the sidecars of stored tables add up to.
    """
    table = pd.read_csv(paths.package_data("panel", "seconds.csv"))
    table = table.sort_values("source").drop_duplicates(["notebook", "model"])  # run < sidecars
    start = np.where((table.source == "run") & (table.notebook != PROBE), _START_S, 0.0)
    cpu = table.cpu_s.fillna(table.wall_s * table.threads)
    return table.assign(cpu_s=(cpu - start).clip(lower=0.1)).reset_index(drop=True)


def _predicted(size: ModelSize, part: pd.DataFrame) -> Range:
    """CPU seconds: all that agrees with the embedded models' times within the spread.

    Seconds are a P + b V + c with P the numbers in matrix products and V the vocabulary. Two or
    three times do not fix a, b and c, so both ends are sought among all that explain them, with a
    no smaller than the products of the counted nodes take at the machine's peak.
    """
    known = [sizes.size_of_checkpoint(checkpoints.get_checkpoint(name)) for name in part.model]
    inputs = np.array([[one.products / 1e9, one.vocabulary / 1e5, 1.0] for one in known])
    relative = inputs / part.cpu_s.to_numpy()[:, None]
    nodes = part.nodes.max()
    least = 0.0 if pd.isna(nodes) else 2e9 * nodes / _PEAK
    bounds = [(least, None), (0, None), (0, None)]
    # The smallest spread that explains every time, then some more.
    n, one = len(known), np.ones(len(known))
    slack = np.concatenate([np.c_[relative, -one], np.c_[-relative, -one]])
    best = linprog([0, 0, 0, 1], slack, np.concatenate([one, -one]), bounds=[*bounds, (0, None)])
    spread = max(_LEAST_SPREAD, _MORE * (1 + best.fun), _MORE / max(1 - best.fun, 0.1))
    # A batch of tokens reads nearly all experts, so memory may be the limit, not products.
    everything = size.products + size.parameters - size.active
    low, high = [size.products, size.vocabulary], [everything, size.vocabulary]
    rows = np.concatenate([relative, -relative])
    limits = np.concatenate([np.full(n, spread), np.full(n, -1 / spread)])
    ends = []
    for sign, (products, vocabulary) in ((1, low), (-1, high)):
        wanted = sign * np.array([products / 1e9, vocabulary / 1e5, 1.0])
        ends.append(sign * linprog(wanted, rows, limits, bounds=bounds).fun)
    if size.model_type not in scoring.PACKABLE:
        ends[1] *= _BRANCHED
    return Range(*ends)


def disk(size: ModelSize) -> tuple[float, float]:
    """Bytes that the model still takes, at most, and bytes free where models are cached."""
    folder = paths.cache_dir()
    while not folder.exists():
        folder = folder.parent
    return float(size.disk_bytes), float(shutil.disk_usage(folder).free)


def _memory_here(device: str) -> float | None:
    if device != "cpu":
        return None
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def report(size: ModelSize, dtype: str, device: str, probe_s: float | None = None) -> str:
    """The forecast for people; its first word says that it is one."""
    found, (needed, free) = memory(size, dtype, device), disk(size)
    lines = [
        f"FORECAST for {size.name}, {dtype} on {device}; not a measurement",
        f"  parameters  {size.parameters / 1e9:.3g} B"
        + (f", {size.active / 1e9:.3g} B active" if size.active < size.parameters else "")
        + f", vocabulary {size.vocabulary:,} ({size.source})",
        f"  memory      {_gb(found.weights)} weights + {_span(found.beside, _gb)} beside them"
        + (f"; here {_gb(found.here)}" if found.here else ""),
        f"  disk        {_gb(needed)} to fetch or convert unless it is cached; {_gb(free)} free",
    ]
    times = seconds(size, probe_s)
    for row in times.itertuples():
        lines.append(f"  {row.notebook:<22} {_span(Range(row.low, row.high), _clock)}")
    total = Range(times.low.sum(), times.high.sum())
    lines.append(f"  {'all of these':<22} {_span(total, _clock)}")
    if untimed := sorted(set(runner.notebook_names()) - set(times.notebook)):
        lines.append(f"  not timed so far: {', '.join(untimed)}")
    if probe_s is not None:
        lines.append(f"  times follow from {probe_s:.2g} s for {PROBE_TASK}, taken just now")
    else:
        lines.append(
            "  times are scaled from those of the embedded models in float32 on "
            f"{timings().cores.max()} cores; --measure times this model and machine"
        )
    if found.here and found.total.low > found.here:
        lines.append(
            "  WARNING: does not fit into the memory here, and the times do not hold; "
            "use --dtype bfloat16, a smaller model, or a larger machine"
        )
    if needed > free:
        lines.append("  WARNING: the disk is too small; CALIB_UTILS_CACHE and HF_HOME move caches")
    return "\n".join(lines)


def _gb(value: float) -> str:
    return f"{value / 1e9:.2g} GB" if value < 1e11 else f"{value / 1e9:.0f} GB"


def _clock(value: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.2g} {unit}"
    return f"{value:.2g} s"


def _span(span: Range, show) -> str:
    low, high = show(span.low), show(span.high)
    return low if low == high else f"{low} to {high}"

"""What a run will take, before it runs: memory, disk, a rough time; what to ask a batch system for.

Knows sizes, and how long the notebooks took for one small model (`data/panel/seconds.csv`). A
forecast is not a measurement, and nothing here is stored as one.
"""

import math
import os
import shutil
import time
from collections.abc import Iterable

import pandas as pd

from calib_utils import checkpoints, freshness, paths, runner, scoring, sizes
from calib_utils.errors import InvalidRequestError
from calib_utils.evaluation import evaluate
from calib_utils.models import Model
from calib_utils.sizes import BYTES, ModelSize

PROBE, PROBE_TASK = "probe", "rng-2"
_TIMED = "smollm2-135m-instruct"  # the one model for which every timed notebook was run
# The times of the other embedded models are within this factor of those scaled from it.
SPREAD = 3
# Python, torch and transformers, measured before any weights.
_BASE_BYTES = 0.55e9
# Memory beside the model was 2 to 4 times the logits of a batch (benchmarks/results/scaling.json).
_LOGIT_COPIES = 4
_ROW_TOKENS = 150  # the longest prompt of the controlled tasks in a chat template, and an answer
_LEVELS = 8  # steps of an answer whose caches the branched way holds at once, at most
# A job that asks for too little is killed, one that asks for too much waits a little longer.
_MARGIN = 1.5
_LEAST_MINUTES = 10
_DRIVER_BYTES = 1e9  # the command beside the kernel of a notebook


def memory(size: ModelSize, dtype: str = "float32", device: str = "cpu") -> float:
    """Bytes that exact evaluation takes at most with default batches, the weights included.

    Args:
        device: cpu, cuda or mps, which decides the batch.

    Raises:
        InvalidRequestError: a dtype that does not exist.
    """
    if dtype not in BYTES:
        raise InvalidRequestError(f"dtype={dtype!r} does not exist: choose from {', '.join(BYTES)}")
    kind, packed = device.split(":")[0], size.model_type in scoring.PACKABLE
    nodes = scoring.default_batch(kind, size.vocabulary, packed)
    row = size.cache_values * BYTES[dtype] * _ROW_TOKENS + size.state_bytes
    if packed:
        # One row holds the prompt and the batch; attention copies it while it grows.
        caches = 2 * (row + size.cache_values * BYTES[dtype] * nodes)
    else:
        caches = row * nodes * _LEVELS
    beside = caches + _LOGIT_COPIES * 4 * nodes * size.vocabulary
    return size.weight_bytes(dtype) + beside + (_BASE_BYTES if kind == "cpu" else 0)


def seconds(size: ModelSize, probe_s: float | None = None) -> pd.Series:
    """CPU seconds of every notebook that was timed, by name; the truth is within `SPREAD` of it.

    The times of one small model are scaled by the parameters that a token passes through.

    Args:
        probe_s: of `measure_probe` on this machine; then by the ratio of the probes instead.
    """
    table = pd.read_csv(paths.package_data("panel", "seconds.csv"))
    table = table[(table.model == _TIMED) & (table.source == "run")]
    times = table.set_index("notebook").cpu_s
    probe = times.pop(PROBE)
    if probe_s is not None:
        return times * probe_s / probe
    return times * size.active / checkpoints.get_checkpoint(_TIMED).active


def measure_probe(model: Model | str) -> float:
    """Wall seconds of a small exact evaluation, the second time, when nothing has to be set up."""
    for _ in range(2):
        began = time.perf_counter()
        evaluate(model, PROBE_TASK)
        wall = time.perf_counter() - began
    return wall


def resources(names: Iterable[str], dtype: str = "float32", gpu_gb: float = 0.0) -> list[dict]:
    """What to ask a batch system for, for each model: `model`, `key`, `gpus`, `mem_mb`, `minutes`.

    Minutes are CPU time also where a GPU is asked for, since no rate of one was measured.

    Args:
        gpu_gb: memory of one GPU, 10^9 bytes; 0 asks for none.

    Raises:
        InvalidRequestError: a negative size of a GPU, or two models that would share a folder.
        UnknownNameError, ModelFormatError, HubUnreachableError: a model whose size is not known.
    """
    if not gpu_gb >= 0:
        raise InvalidRequestError(f"gpu_gb={gpu_gb!r}: must be 0 (no GPU) or more")
    found = []
    for name in names:
        size, key = sizes.size_of(name), freshness.identity(name).key
        needed = memory(size, dtype, "cuda" if gpu_gb else "cpu") * _MARGIN
        # A loader holds the weights in main memory before they go to the device.
        held = size.weight_bytes(dtype) * _MARGIN + _DRIVER_BYTES if gpu_gb else needed
        times = seconds(size)
        # A notebook that was never timed counts as much as the others do.
        mean = times.sum() / len(times) * SPREAD / 60
        found.append(
            {
                "model": name,
                "key": key,
                "gpus": math.ceil(needed / (gpu_gb * 1e9)) if gpu_gb else 0,
                "mem_mb": math.ceil((held + _DRIVER_BYTES) / 1e6),
                "minutes": max(_LEAST_MINUTES, math.ceil(mean * len(runner.notebook_names()))),
            }
        )
    keys = [one["key"] for one in found]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise InvalidRequestError(
            f"more than one model would go into {', '.join(twice)}: rename a folder or file"
        )
    return found


def report(size: ModelSize, dtype: str, device: str, probe_s: float | None = None) -> str:
    """The forecast for people; its first word says that it is one."""
    needed, here, free = memory(size, dtype, device), _memory_here(device), _disk_here()
    active = f", {size.active / 1e9:.3g} B active" if size.active < size.parameters else ""
    times = seconds(size, probe_s)
    by = f"scaled from {_TIMED} by parameters; --measure times this model and machine"
    if probe_s is not None:
        by = f"times follow from {probe_s:.2g} s for {PROBE_TASK}, taken just now"
    lines = [
        f"FORECAST for {size.name}, {dtype} on {device}; not a measurement",
        f"  parameters  {size.parameters / 1e9:.3g} B{active}, vocabulary {size.vocabulary:,} "
        f"({size.source})",
        f"  memory      {_gb(needed)} at most" + (f"; here {_gb(here)}" if here else ""),
        f"  disk        {_gb(size.disk_bytes)} to fetch or convert unless it is cached; "
        f"{_gb(free)} free",
        f"  CPU time    {_clock(times.sum())} for {len(times)} notebooks, within a factor of "
        f"{SPREAD} either way",
        f"              {by}",
    ]
    if untimed := sorted(set(runner.notebook_names()) - set(times.index)):
        lines.append(f"  not timed so far: {', '.join(untimed)}")
    if here and needed > here:
        lines.append(
            "  WARNING: does not fit into the memory here, and the times do not hold; "
            "use --dtype bfloat16, a smaller model, or a larger machine"
        )
    if size.disk_bytes > free:
        lines.append("  WARNING: the disk is too small; CALIB_UTILS_CACHE and HF_HOME move caches")
    return "\n".join(lines)


def _disk_here() -> int:
    """Bytes free where models are cached."""
    folder = paths.cache_dir()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _memory_here(device: str) -> int | None:
    """Bytes of this machine; None on a GPU, and where it is not told."""
    if device != "cpu":
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def _gb(value: float) -> str:
    return f"{value / 1e9:.2g} GB" if value < 1e11 else f"{value / 1e9:.0f} GB"


def _clock(value: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.2g} {unit}"
    return f"{value:.2g} s"

"""What the benchmarks share: timing, a description of the machine, the machine's GEMM limit."""

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # before anything imports tqdm

import numpy as np
import torch

from calib_utils.models import scoring

_PACKAGES = ("calib-utils", "torch", "transformers", "numpy", "lm-eval", "minicons")
_QUIET = 0.1  # cores that others may keep busy
_GEMM_SIZES = (1024, 2048, 3072)


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, and what the last call returned.

    `others_cores` is how many cores other processes (or the hypervisor) kept busy meanwhile, the
    most over the repeats; None where the system does not say.
    """

    wall_s: float
    cpu_s: float
    repeats: int
    others_cores: float | None
    value: Any

    def scaled(self, share: float) -> "Timing":
        return replace(self, wall_s=share * self.wall_s, cpu_s=share * self.cpu_s)

    def columns(self, way: str = "") -> dict:
        names = ("wall_s", "cpu_s", "repeats", "others_cores")
        return {f"{way}_{name}".lstrip("_"): getattr(self, name) for name in names}


def timed(function: Callable[[], Any], repeats: int = 3, patience_s: float = 60.0) -> Timing:
    """Time of `function`; one repeat only where a single one outlasts `patience_s`.

    CPU seconds are those of all threads of this process.
    """
    walls, cpus, others = [], [], []
    while len(walls) < repeats and (not walls or walls[0] <= patience_s):
        value = None  # so that two results are never held at once
        wall, cpu, machine = time.perf_counter(), time.process_time(), _machine_cpu_s()
        value = function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if machine is not None:
            others.append(max(0.0, _machine_cpu_s() - machine - cpus[-1]) / walls[-1])
    busiest = max(others, default=None)
    return Timing(statistics.median(walls), statistics.median(cpus), len(walls), busiest, value)


def _machine_cpu_s() -> float | None:
    """CPU seconds that all processes have used since boot, stolen time included."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *rest = map(int, fields)
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def gemm_peak_flops() -> float:
    """float32 multiply-adds per second, times two: the best of several square products."""
    best = 0.0
    for size in _GEMM_SIZES:
        a, b = torch.randn(size, size), torch.randn(size, size)
        out = torch.empty(size, size)
        torch.mm(a, b, out=out)
        for _ in range(max(5, int(4e11 / (2 * size**3)))):
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def forward_only(model, prompt) -> int:
    """Our forward passes with nothing done to the logits."""
    return sum(len(nodes) for nodes, _ in scoring.score(model, prompt))


def spread(n: int, count: int) -> np.ndarray:
    """`count` of so many indices, evenly spread; all of them where there are fewer."""
    return np.linspace(0, n - 1, min(n, count)).astype(int)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark takes."""
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, help="where to write the record as JSON")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def describe() -> dict:
    """Machine, versions and date, under flat keys."""
    record = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine_cpu": _cpu_name(),
        "machine_cores": os.cpu_count(),
        "machine_system": f"{platform.system()} {platform.machine()}",
        "torch_threads": torch.get_num_threads(),
        "version_python": platform.python_version(),
    }
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            record[f"version_{package.replace('-', '_')}"] = metadata.version(package)
    return record


def _cpu_name() -> str:
    try:
        found = re.search(r"(?m)^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return (found[1].strip() if found else platform.processor()) or "unknown"


def save(record: dict, path: Path | None) -> None:
    """Prints the record, and writes it to `path` when there is one; six significant digits.

    Adds `quiet`: whether the machine had nothing else to do during every timing.
    """
    busy = {k: v for k, v in record.items() if k.endswith("_others_cores") and v is not None}
    record = {**record, "quiet": max(busy.values()) <= _QUIET if busy else None}
    if record["quiet"] is False:
        print(f"not quiet, do not publish: cores used by others {busy}", file=sys.stderr)
    rounded = {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in record.items()
    }
    text = json.dumps(rounded, indent=2)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")

"""What a batch system is asked for on behalf of a model: GPUs, memory, minutes.

Knows forecasts. What is asked for is a ceiling from a range, not a measurement.
"""

import math
from collections.abc import Iterable

from calib_utils import forecast, freshness, runner, sizes
from calib_utils.errors import CalibUtilsError, InvalidRequestError

# A job that asks for too little is killed, one that asks for too much waits a little longer.
_MARGIN = 1.5
_LEAST_MINUTES = 10
_DRIVER_BYTES = 1e9  # the command beside the kernel of a notebook
_UNKNOWN = {"gpus": 0, "mem_mb": 16_000, "minutes": 24 * 60}


def of_model(
    name: str,
    revision: str | None = None,
    dtype: str = "float32",
    gpu_gb: float = 0.0,
    probe_s: float | None = None,
) -> dict:
    """What to ask for.

    Args:
        gpu_gb: memory of one GPU, 10^9 bytes; 0 asks for none.
        probe_s: see `forecast.seconds`.

    Returns:
        `model`, `key` (its folder), `gpus`, `mem_mb`, `minutes`, and `known`: False where the size
        of the model is not told here, and the numbers are round ones. Minutes are those of a CPU
        with two cores also where a GPU is asked for, since no rate of one was measured.

    Raises:
        InvalidRequestError: a negative size of a GPU.
    """
    if not gpu_gb >= 0:
        raise InvalidRequestError(f"gpu_gb={gpu_gb!r}: must be 0 (no GPU) or more")
    found = {"model": name, "key": freshness.identity(name, revision).key, "known": False}
    try:
        size = sizes.size_of(name, revision)
    except CalibUtilsError:
        return found | _UNKNOWN | {"gpus": int(gpu_gb > 0)}
    on_gpu = gpu_gb > 0
    needed = forecast.memory(size, dtype, "cuda" if on_gpu else "cpu").total.high * _MARGIN
    # A loader holds the weights in main memory before they go to the device.
    held = size.weight_bytes(dtype) * _MARGIN + _DRIVER_BYTES if on_gpu else needed
    times = forecast.seconds(size, probe_s)
    # A notebook that was never timed counts as much as the others do.
    untimed = len(set(runner.notebook_names()) - set(times.notebook))
    minutes = times.high.sum() * (1 + untimed / len(times)) * _MARGIN / 60
    return found | {
        "known": True,
        "gpus": math.ceil(needed / (gpu_gb * 1e9)) if on_gpu else 0,
        "mem_mb": math.ceil((held + _DRIVER_BYTES) / 1e6),
        "minutes": max(_LEAST_MINUTES, math.ceil(minutes)),
    }


def of_models(names: Iterable[str], **options) -> list[dict]:
    """`of_model` for each.

    Raises:
        InvalidRequestError: two of them would share a folder of pages and rows.
    """
    found = [of_model(name, **options) for name in names]
    keys = [one["key"] for one in found]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise InvalidRequestError(
            f"more than one model would go into {', '.join(twice)}: rename a folder or file"
        )
    return found

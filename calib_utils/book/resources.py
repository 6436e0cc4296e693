"""What a run will take, before it runs: the size of a model, memory, disk, a rough time.

Knows the panel's table, config files, headers of weight files, and how long the notebooks took for
one small model (`data/panel/seconds.csv`). Loads no weights, and fetches nothing.
"""

import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calib_utils import files, paths
from calib_utils.book import notebooks
from calib_utils.errors import InvalidRequestError, ModelFormatError, UnknownNameError
from calib_utils.models import loading, registry, weights
from calib_utils.models.loading import resolve_device
from calib_utils.models.registry import EMBEDDED, Checkpoint

# Tensors of a multimodal checkpoint that the language model alone does not load.
_NOT_LOADED = ("model.visual.", "visual.", "mtp.")
_STATE_BYTES = 4  # recurrent states stay float32
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TIMED = "smollm2-135m-instruct"  # the one model for which every timed notebook was run
SPREAD = 3  # times of the one other model that was timed, in three notebooks, are within it
_BASE_BYTES = 0.55e9  # Python, torch and transformers, measured before any weights
# Memory beside the model was 2 to 4 times the logits of a batch (benchmarks/results/scaling.json).
_LOGIT_COPIES = 4
_ROW_TOKENS = 150  # the longest prompt of the controlled tasks in a chat template, and an answer
_LEVELS = 8  # steps of an answer whose caches the branched way holds at once, at most
# A job that asks for too little is killed, one that asks for too much waits a little longer.
_MARGIN = 1.5
_LEAST_MINUTES = 10
_DRIVER_BYTES = 1e9  # the command beside the kernel of a notebook
# Memory of common GPUs in 10^9 bytes, as their makers name it; of others `--gpu-gb` tells.
GPUS = {
    **{"T4": 16, "L4": 24, "L40S": 48, "RTX 3090": 24, "RTX 4090": 24, "RTX 5090": 32},
    **{"V100 16GB": 16, "V100 32GB": 32, "A10": 24, "A100 40GB": 40, "A100 80GB": 80},
    **{"H100": 80, "H200": 141, "B200": 180, "MI250X": 128, "MI300X": 192},
}


@dataclass(frozen=True)
class ModelSize:
    """What a forecast needs to know of a model."""

    name: str
    parameters: int  # of the language model as it is loaded
    active: int  # of these, what one token passes through; fewer in a mixture of experts
    vocabulary: int  # logits per position
    cache_values: int  # kept per row and token, all layers; a sliding window counts in full
    state_bytes: int  # of recurrent layers, per row
    model_type: str  # of transformers
    disk_bytes: int  # still to be fetched or written; 0 for what is here
    source: str  # where these numbers come from

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the loaded weights."""
        return self.parameters * BYTES[dtype]


def size_of(name: str | Path, revision: str | None = None) -> ModelSize:
    """The size of a model of the panel, a local folder, or a hub model that was fetched.

    Raises:
        UnknownNameError: no such model.
        ModelFormatError: a folder without the numbers, or a GGUF file that is not embedded.
        HubUnreachableError: a hub model outside the panel that is not in the hub's cache.
    """
    loading.check_name(name, revision)
    text, path = str(name), Path(name).expanduser()
    known = registry.find(text)
    if known is not None and text in (known.hub, known.load_name):
        return size_of_checkpoint(known)
    if path.is_dir():
        return _of_folder(text, path)
    if path.suffix == ".gguf" and path.is_file():
        raise ModelFormatError(f"the size of {text} is not known before it is loaded: run it")
    if loading.is_hub_id(text):
        try:
            return _of_folder(text, weights.hub_folder(text, revision, local_only=True))
        except ModelFormatError as error:  # only its small files were fetched
            raise ModelFormatError(f"the size of {text} is not known: {error}") from error
    names = (one.load_name for one in registry.checkpoints())
    raise UnknownNameError("model", text, names, "Or a folder or hub id.")


def size_of_checkpoint(one: Checkpoint) -> ModelSize:
    """The size of a checkpoint of the panel's table."""
    if one.hub:
        disk = one.parameters * BYTES[one.dtype]
        source = f"data/panel/checkpoints.csv, sizes {one.sizes}"
    else:  # the file itself, and its copy in float32
        disk, source = EMBEDDED[one.name].size + one.parameters * BYTES["float32"], "the file"
    return _from_config(one.load_name, one.architecture, one.parameters, one.active, disk, source)


def _of_folder(name: str, folder: Path) -> ModelSize:
    from safetensors import SafetensorError, safe_open

    counts: dict[str, int] = {}
    file = folder / "config.json"
    try:
        config = files.json_of(file)
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(files.regular(file, math.inf), "np") as tensors:
                names = tensors.keys()
                counts |= {name: math.prod(tensors.get_slice(name).get_shape()) for name in names}
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelFormatError(f"{file} cannot be read ({error}): not a model folder") from error
    if not counts:
        raise ModelFormatError(f"{folder} has no safetensors weights: not a model folder")
    try:
        text = config.get("text_config", config)
        loaded = {k: n for k, n in counts.items() if not k.startswith(_NOT_LOADED)}
        total, share = sum(loaded.values()), 1.0
        experts = sum(n for key, n in loaded.items() if ".experts." in key)
        if n_experts := text.get("num_experts") or text.get("num_local_experts"):
            share = text["num_experts_per_tok"] / n_experts
        active = total - experts + round(experts * share)
        return _from_config(name, text, total, active, 0, f"the files in {folder.name}/")
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelFormatError(
            f"{name} does not tell its size ({type(error).__name__}: {error}): restore its "
            "config.json, or fetch it again"
        ) from error


def _from_config(name, config: Mapping, total, active, disk, source) -> ModelSize:
    model_type = str(config.get("model_type", ""))
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    recurrent, state = 0, 0
    if types := config.get("layer_types"):
        recurrent = types.count("linear_attention")
    elif every := config.get("full_attention_interval"):
        recurrent = layers - layers // every
    if recurrent:
        parts, kernel = ("key", "value"), config.get("linear_conv_kernel_dim", 4)
        key, value = (
            config[f"linear_num_{part}_heads"] * config[f"linear_{part}_head_dim"] for part in parts
        )
        state = value * config["linear_key_head_dim"] + (2 * key + value) * kernel
    numbers = {
        "vocabulary": config["vocab_size"],
        "cache_values": 2 * (layers - recurrent) * kv_heads * head_dim,
        "state_bytes": recurrent * state * _STATE_BYTES,
    }
    if not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise ValueError(f"impossible numbers {numbers}")
    return ModelSize(
        name, total, active, **numbers, model_type=model_type, disk_bytes=disk, source=source
    )


def memory(size: ModelSize, dtype: str = "float32", device: str = "cpu") -> float:
    """Bytes that exact evaluation takes at most with default batches, the weights included."""
    if dtype not in BYTES:
        raise InvalidRequestError(f"dtype={dtype!r} does not exist: choose from {', '.join(BYTES)}")
    from calib_utils.models import scoring  # imports torch, which a list of models does not need

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


def seconds(size: ModelSize) -> float:
    """CPU seconds of all notebooks about a model; where it was tried, within `SPREAD` of the truth.

    Those of one small model, scaled by the parameters that a token passes through; what is smaller
    takes as long, since rankings, tables and figures stay. A notebook that was never timed counts
    as much as the others do on average.
    """
    table = pd.read_csv(paths.package_data("panel", "seconds.csv"))
    scale = max(1.0, size.active / registry.find(_TIMED).active)
    timed = table[table.model == _TIMED]
    return timed.cpu_s.mean() * scale * len(notebooks.notebook_names())


def resources(names: Iterable[str], dtype: str = "float32", gpu_gb: float = 0.0) -> list[dict]:
    """What to ask a batch system for, for each model: `model`, `key`, `gpus`, `mem_mb`, `minutes`.

    Minutes are CPU time also where a GPU is asked for, since no rate of one was measured. `gpu_gb`
    is the memory of one GPU, 10^9 bytes; 0 asks for none.

    Raises:
        InvalidRequestError: a size that no GPU has, or two models that would share a folder.
        UnknownNameError, ModelFormatError, HubUnreachableError: a model whose size is not known.
    """
    if not (gpu_gb == 0 or 1 <= gpu_gb < math.inf):
        raise InvalidRequestError(f"gpu_gb={gpu_gb!r}: must be 0 (no GPU), or 1 or more")
    found: dict[str, dict] = {}
    for name in names:
        size, key = size_of(name), notebooks.identity(name).key
        needed = memory(size, dtype, "cuda" if gpu_gb else "cpu") * _MARGIN
        # A loader holds the weights in main memory before they go to the device.
        held = size.weight_bytes(dtype) * _MARGIN if gpu_gb else needed
        gpus = math.ceil(needed / (gpu_gb * 1e9)) if gpu_gb else 0
        row = {"model": name, "key": key, "gpus": gpus}
        row["mem_mb"] = math.ceil((held + _DRIVER_BYTES) / 1e6)
        row["minutes"] = max(_LEAST_MINUTES, math.ceil(seconds(size) * SPREAD / 60))
        if found.setdefault(key, row) is not row:
            raise InvalidRequestError(
                f"more than one model would go into {key}: rename a folder or file"
            )
    return [*found.values()]


@dataclass(frozen=True)
class Planned:
    """One of the paper's checkpoints in the plan of a run of all of them."""

    checkpoint: Checkpoint
    memory: float  # bytes that it takes at most
    folder: Path | None  # its local copy, of a plan for local copies
    why_not: str  # empty where it is run


def panel_plan(
    dtype: str, device: str, models_dir: Path | None = None, there: float | None = None
) -> list[Planned]:
    """The paper's 21 checkpoints, smallest first, with what this machine can hold.

    Args:
        device: as `load_model` takes it.
        models_dir: holds `owner/name` or `owner--name` folders, or is a cache of the hub's; None
            takes the hub.
        there: bytes of memory to keep to; by default those of the device.

    Raises:
        InvalidRequestError: a dtype that does not exist, no such folder, or no memory.
        DeviceError: no such device here.
    """
    if models_dir is not None and not models_dir.is_dir():
        raise InvalidRequestError(f"{models_dir} is no folder: give the one that holds the models")
    if there is not None and not 0 < there < math.inf:
        raise InvalidRequestError(f"memory of {there / 1e9} GB: must be more than 0")
    kind, here = resolve_device(device), there or _memory_here(device)
    plan = []
    for one in registry.checkpoints():
        if one.panel != "paper":
            continue
        needed, folder, why_not = memory(size_of_checkpoint(one), dtype, kind), None, ""
        if here and needed > here:
            why_not = f"takes up to {_gb(needed)}, and there are {_gb(here)}"
        elif models_dir is not None and (folder := weights.local_copy(one.hub, models_dir)) is None:
            why_not = f"not in {models_dir}"
        plan.append(Planned(one, needed, folder, why_not))
    return sorted(plan, key=lambda planned: planned.memory)


def gpu_memory(name: str) -> float:
    """Bytes of a GPU by its name in `GPUS`, in any case and without spaces.

    Raises:
        UnknownNameError: none of them.
    """

    wanted, *known = (re.sub(r"[\W_]+", "", text).lower() for text in (name, *GPUS))
    if wanted not in known:
        raise UnknownNameError("GPU", name, GPUS, "Its memory can be given as --gpu-gb.")
    return [*GPUS.values()][known.index(wanted)] * 1e9


def report(size: ModelSize, dtype: str, device: str, there: float | None = None) -> str:
    """The forecast for people; its first word says that it is one.

    Args:
        device: as `load_model` takes it; one that is not here only with `there`.
        there: bytes of memory of the machine that it is for; by default those of this one.
    """
    here, device = there or _memory_here(device), device if there else resolve_device(device)
    needed = memory(size, dtype, device)
    place = "there" if there else "here"
    cache = paths.cache_dir() if size.name in EMBEDDED else weights.hub_cache()
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    active = f", {size.active / 1e9:.3g} B active" if size.active < size.parameters else ""
    disk = f"{_gb(size.disk_bytes)} to fetch or convert unless it is cached; {_gb(free)} free"
    lines = [
        f"FORECAST for {size.name}, {dtype} on {device}; not a measurement",
        f"  parameters  {size.parameters / 1e9:.3g} B{active}, vocabulary {size.vocabulary:,} "
        f"({size.source})",
        f"  memory      {_gb(needed)} at most" + (f"; {place} {_gb(here)}" if here else ""),
        f"  disk        {disk}",
        f"  CPU time    {_clock(seconds(size))} for all notebooks, scaled from {_TIMED} by "
        f"parameters; the one other model that was timed was within a factor of {SPREAD}",
    ]
    if here and needed > here:
        lines.append(
            "  WARNING: does not fit into the memory, and the times do not hold; "
            "use --dtype bfloat16, a smaller model, or a larger machine"
        )
    if size.disk_bytes > free:
        lines.append("  WARNING: the disk is too small; CALIB_UTILS_CACHE and HF_HOME move caches")
    return "\n".join(lines)


def _memory_here(device: str) -> int | None:
    """Bytes of this machine or its GPU, of all GPUs for a device map; None where it is not told."""
    kind = resolve_device(device)
    if kind.startswith("cuda"):
        import torch

        spread = device in loading.DEVICE_MAPS
        gpus = range(torch.cuda.device_count()) if spread else [torch.device(kind).index or 0]
        return sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)
    if kind != "cpu":
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

"""What a run will take, before it runs: the size of a model, memory, disk, a rough time.

Knows the panel's table, config files, headers of weight files, and how long the notebooks took for
one small model (`data/panel/seconds.csv`). Loads no weights, and stores nothing as a measurement.
"""

import math
import os
import shutil
import timeit
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calib_utils import files, paths
from calib_utils.book import notebooks
from calib_utils.errors import (
    CalibUtilsError,
    HubUnreachableError,
    InvalidRequestError,
    ModelFormatError,
    UnknownNameError,
)
from calib_utils.models import loading, registry, scoring, weights
from calib_utils.models.loading import Model
from calib_utils.models.registry import EMBEDDED, Checkpoint
from calib_utils.results.evaluation import evaluate

# Tensors of a multimodal checkpoint that the language model alone does not load.
_NOT_LOADED = ("model.visual.", "visual.", "mtp.")
_STATE_BYTES = 4  # recurrent states stay float32
_GGUF_TYPES = {"gemma3": "gemma3_text"}  # where transformers has another name
_GGUF_FIELDS = {
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "hidden_size": "embedding_length",
}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PROBE, PROBE_TASK = "probe", "rng-2"
_TIMED = "smollm2-135m-instruct"  # the one model for which every timed notebook was run
SPREAD = 3  # times of the other embedded models are within this factor of those scaled from it
_BASE_BYTES = 0.55e9  # Python, torch and transformers, measured before any weights
# Memory beside the model was 2 to 4 times the logits of a batch (benchmarks/results/scaling.json).
_LOGIT_COPIES = 4
_ROW_TOKENS = 150  # the longest prompt of the controlled tasks in a chat template, and an answer
_LEVELS = 8  # steps of an answer whose caches the branched way holds at once, at most
# A job that asks for too little is killed, one that asks for too much waits a little longer.
_MARGIN = 1.5
_LEAST_MINUTES = 10
_DRIVER_BYTES = 1e9  # the command beside the kernel of a notebook


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
    """The size of an embedded model, a local folder or GGUF file, or a model on the hub.

    Raises:
        UnknownNameError: no such model.
        ModelFormatError: a folder or file without the numbers.
        HubUnreachableError: a hub model that is neither in the panel nor in the hub's cache.
    """
    loading.check_name(name)
    loading.check_revision(name, revision)
    text, path = str(name), Path(name).expanduser()
    known = registry.find(text)
    try:
        if text in EMBEDDED:
            return size_of_checkpoint(registry.get_checkpoint(text))
        if path.is_dir():
            return _of_folder(text, path)
        if path.suffix == ".gguf" and path.is_file():
            return _of_gguf(text, path)
        if known is not None and known.hub == text:
            return size_of_checkpoint(known)
        if loading.is_hub_id(text) and path.suffix != ".gguf":
            return _of_hub(text, revision)
    except CalibUtilsError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelFormatError(
            f"{text} does not tell its size ({type(error).__name__}: {error}): restore its "
            "config.json, or fetch it again"
        ) from error
    names = (one.load_name for one in registry.checkpoints())
    raise UnknownNameError("model", text, names, "Or a folder or .gguf.")


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
    return _from_counts(name, config, counts, 0, f"the files in {folder.name}/")


def _of_hub(name: str, revision: str | None) -> ModelSize:
    try:
        return _of_folder(name, weights.hub_folder(name, revision, local_only=True))
    except (HubUnreachableError, ModelFormatError):  # not here, or only its small files
        config, counts = weights.hub_headers(name, revision)
    # Most checkpoints are published in half precision; the vision tower is fetched as well.
    disk = sum(counts.values()) * BYTES.get(config.get("dtype", config.get("torch_dtype")), 2)
    return _from_counts(name, config, counts, disk, "config and headers on the hub")


def _of_gguf(name: str, path: Path) -> ModelSize:
    header = weights.read_header(path)
    fields = {key: field.contents() for key, field in header.fields.items()}
    architecture = fields["general.architecture"]
    config = {
        **{name: int(fields[f"{architecture}.{key}"]) for name, key in _GGUF_FIELDS.items()},
        "model_type": _GGUF_TYPES.get(architecture, architecture),
        "head_dim": fields.get(f"{architecture}.attention.key_length"),
        "vocab_size": int(fields["tokenizer.ggml.tokens"][0]),  # the length
    }
    total = sum(int(tensor.n_elements) for tensor in header.tensors)
    return _from_config(name, config, total, total, total * BYTES["float32"], "the GGUF's header")


def _from_counts(name, config, counts: Mapping[str, int], disk: int, source: str) -> ModelSize:
    text = config.get("text_config", config)
    loaded = {k: n for k, n in counts.items() if not k.startswith(_NOT_LOADED)}
    total, share = sum(loaded.values()), 1.0
    experts = sum(n for key, n in loaded.items() if ".experts." in key)
    if n_experts := text.get("num_experts") or text.get("num_local_experts"):
        share = text["num_experts_per_tok"] / n_experts
    return _from_config(name, text, total, total - experts + round(experts * share), disk, source)


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

    Those of one small model, scaled by the parameters that a token passes through; or, given
    `probe_s` of `measure_probe` on this machine, by the ratio of the probes.
    """
    table = pd.read_csv(paths.package_data("panel", "seconds.csv"))
    table = table[(table.model == _TIMED) & (table.source == "run")]
    times = table.set_index("notebook").cpu_s
    probe = times.pop(PROBE)
    if probe_s is not None:
        return times * probe_s / probe
    return times * size.active / registry.get_checkpoint(_TIMED).active


def measure_probe(model: Model | str) -> float:
    """Wall seconds of a small exact evaluation, the second time, when nothing has to be set up."""
    return timeit.repeat(lambda: evaluate(model, PROBE_TASK), number=1, repeat=2)[-1]


def resources(names: Iterable[str], dtype: str = "float32", gpu_gb: float = 0.0) -> list[dict]:
    """What to ask a batch system for, for each model: `model`, `key`, `gpus`, `mem_mb`, `minutes`.

    Minutes are CPU time also where a GPU is asked for, since no rate of one was measured. `gpu_gb`
    is the memory of one GPU, 10^9 bytes; 0 asks for none.

    Raises:
        InvalidRequestError: a negative size of a GPU, or two models that would share a folder.
        UnknownNameError, ModelFormatError, HubUnreachableError: a model whose size is not known.
    """
    if not gpu_gb >= 0:
        raise InvalidRequestError(f"gpu_gb={gpu_gb!r}: must be 0 (no GPU) or more")
    found = []
    for name in names:
        size, key = size_of(name), notebooks.identity(name).key
        needed = memory(size, dtype, "cuda" if gpu_gb else "cpu") * _MARGIN
        # A loader holds the weights in main memory before they go to the device.
        held = size.weight_bytes(dtype) * _MARGIN + _DRIVER_BYTES if gpu_gb else needed
        gpus = math.ceil(needed / (gpu_gb * 1e9)) if gpu_gb else 0
        row = {"model": name, "key": key, "gpus": gpus}
        row["mem_mb"] = math.ceil((held + _DRIVER_BYTES) / 1e6)
        # A notebook that was never timed counts as much as the others do.
        minutes = seconds(size).mean() * SPREAD / 60 * len(notebooks.notebook_names())
        found.append(row | {"minutes": max(_LEAST_MINUTES, math.ceil(minutes))})
    keys = [one["key"] for one in found]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise InvalidRequestError(
            f"more than one model would go into {', '.join(twice)}: rename a folder or file"
        )
    return found


def report(size: ModelSize, dtype: str, device: str, probe_s: float | None = None) -> str:
    """The forecast for people; its first word says that it is one."""
    needed, here = memory(size, dtype, device), _memory_here(device)
    cache = paths.cache_dir()
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    active = f", {size.active / 1e9:.3g} B active" if size.active < size.parameters else ""
    times = seconds(size, probe_s)
    by = f"scaled from {_TIMED} by parameters; --measure times this model and machine"
    if probe_s is not None:
        by = f"times follow from {probe_s:.2g} s for {PROBE_TASK}, taken just now"
    disk = f"{_gb(size.disk_bytes)} to fetch or convert unless it is cached; {_gb(free)} free"
    billions = f"{size.parameters / 1e9:.3g} B{active}"
    clock = f"{_clock(times.sum())} for {len(times)} notebooks"
    lines = [
        f"FORECAST for {size.name}, {dtype} on {device}; not a measurement",
        f"  parameters  {billions}, vocabulary {size.vocabulary:,} ({size.source})",
        f"  memory      {_gb(needed)} at most" + (f"; here {_gb(here)}" if here else ""),
        f"  disk        {disk}",
        f"  CPU time    {clock}, within a factor of {SPREAD} either way",
        f"              {by}",
    ]
    if untimed := sorted(set(notebooks.notebook_names()) - set(times.index)):
        lines.append(f"  not timed so far: {', '.join(untimed)}")
    if here and needed > here:
        lines.append(
            "  WARNING: does not fit into the memory here, and the times do not hold; "
            "use --dtype bfloat16, a smaller model, or a larger machine"
        )
    if size.disk_bytes > free:
        lines.append("  WARNING: the disk is too small; CALIB_UTILS_CACHE and HF_HOME move caches")
    return "\n".join(lines)


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

"""How large a model is before it is loaded: parameters, vocabulary, cache, bytes on disk.

Knows the panel's table, config files and the headers of weight files. Loads no weights; asks the
hub only for what is neither in the table nor here.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calib_utils import checkpoints, weights
from calib_utils.checkpoints import Checkpoint
from calib_utils.conversion import read_header
from calib_utils.errors import (
    CalibUtilsError,
    HubUnreachableError,
    ModelFormatError,
    UnknownNameError,
)
from calib_utils.registry import EMBEDDED

# Tensors of a multimodal checkpoint that the language model alone does not load.
_NOT_LOADED = ("model.visual.", "visual.", "mtp.")
_STATE_BYTES = 4  # recurrent states stay float32
_GGUF_TYPES = {"gemma3": "gemma3_text"}  # where transformers has another name
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What a forecast needs to know of a model.

    Args:
        parameters: of the language model as it is loaded.
        active: of these, what one token passes through; fewer in a mixture of experts.
        vocabulary: logits per position.
        cache_values: numbers kept per row and token, all layers; a sliding window counts in full.
        state_bytes: of recurrent layers, per row.
        model_type: of transformers.
        disk_bytes: still to be fetched or written; 0 for what is here.
        source: where these numbers come from.
    """

    name: str
    parameters: int
    active: int
    vocabulary: int
    cache_values: int
    state_bytes: int
    model_type: str
    disk_bytes: int
    source: str

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
    text, path = str(name), Path(name).expanduser()
    known = checkpoints.find(text)
    try:
        if text in EMBEDDED:
            return size_of_checkpoint(checkpoints.get_checkpoint(text))
        if path.is_dir():
            return _of_folder(text, path)
        if path.suffix == ".gguf" and path.is_file():
            return _of_gguf(text, path)
        if known is not None and known.hub == text:
            return size_of_checkpoint(known)
        if text.count("/") == 1 and path.suffix != ".gguf":
            return _of_hub(text, revision)
    except CalibUtilsError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelFormatError(
            f"{text} does not tell its size ({type(error).__name__}: {error}): restore its "
            "config.json, or fetch it again"
        ) from error
    names = [one.load_name for one in checkpoints.checkpoints()]
    raise UnknownNameError("model", text, names, "Or a folder or .gguf.")


def size_of_checkpoint(one: Checkpoint) -> ModelSize:
    """The size of a checkpoint of the panel's table."""
    if one.hub:
        disk = one.parameters * BYTES[one.dtype]
        source = f"data/panel/checkpoints.csv, sizes {one.sizes}"
    else:
        # The file itself, and its copy in float32.
        disk = EMBEDDED[one.name].size + one.parameters * BYTES["float32"]
        source = "the file"
    return _from_config(one.load_name, one.architecture, one.parameters, one.active, disk, source)


def _of_folder(name: str, folder: Path) -> ModelSize:
    from safetensors import SafetensorError, safe_open

    counts: dict[str, int] = {}
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "np") as tensors:
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
    header = read_header(path)
    fields = {key: field.contents() for key, field in header.fields.items()}
    architecture = fields["general.architecture"]

    def number(key: str) -> int:
        return int(fields[f"{architecture}.{key}"])

    config = {
        "model_type": _GGUF_TYPES.get(architecture, architecture),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "hidden_size": number("embedding_length"),
        "head_dim": fields.get(f"{architecture}.attention.key_length"),
        "vocab_size": int(fields["tokenizer.ggml.tokens"][0]),  # the length
    }
    total = sum(int(tensor.n_elements) for tensor in header.tensors)
    return _from_config(name, config, total, total, total * BYTES["float32"], "the GGUF's header")


def _from_counts(name, config, counts: Mapping[str, int], disk: int, source: str) -> ModelSize:
    text = config.get("text_config", config)
    loaded = {k: n for k, n in counts.items() if not k.startswith(_NOT_LOADED)}
    total = sum(loaded.values())
    experts = sum(n for key, n in loaded.items() if ".experts." in key)
    share = 1.0
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
        key, value = (
            config[f"linear_num_{part}_heads"] * config[f"linear_{part}_head_dim"]
            for part in ("key", "value")
        )
        kernel = config.get("linear_conv_kernel_dim", 4)
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

"""How large a model is before it is loaded: parameters, vocabulary, cache, bytes on disk.

Knows the panel's table, config files and the headers of weight files. Loads no weights; asks the
hub only for what is neither in the table nor here.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calib_utils import checkpoints, gguf_header, weights
from calib_utils.checkpoints import Checkpoint
from calib_utils.errors import HubUnreachableError, ModelFormatError, UnknownNameError
from calib_utils.registry import EMBEDDED

# Tensors of a multimodal checkpoint that the language model alone does not load.
_NOT_LOADED = ("model.visual.", "visual.", "mtp.")
_MAX_HEADER = 1 << 30
_UNREADABLE = (ValueError, TypeError, RecursionError, MemoryError, struct.error)
_STATE_BYTES = 4  # recurrent states stay float32
_GGUF_TYPES = {"gemma3": "gemma3_text"}  # where transformers has another name
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What a forecast needs to know of a model.

    Args:
        name: as it was asked for.
        parameters: of the language model as it is loaded.
        active: of these, what one token passes through; fewer in a mixture of experts.
        products: of the active ones, those in matrix products: all but an input embedding that is
            not the output head as well.
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
    products: int
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
    text = str(name)
    if text in EMBEDDED:
        return size_of_checkpoint(checkpoints.get_checkpoint(text))
    path = Path(text).expanduser()
    if path.is_dir():
        return _of_folder(text, path)
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(text, path)
    known = checkpoints.find(text)
    if known is not None and known.hub == text:
        return size_of_checkpoint(known)
    if text.count("/") == 1 and path.suffix != ".gguf":
        return _of_hub(text, revision)
    raise UnknownNameError(
        "model", text, [one.load_name for one in checkpoints.checkpoints()], "Or a folder or .gguf."
    )


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
    config = _json(folder / "config.json")
    counts: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        counts |= _tensor_sizes(file)
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
    header = gguf_header.read(path)
    counts = header.tensors
    try:
        arch = header.fields["general.architecture"]

        def number(key: str) -> int:
            return int(header.fields[f"{arch}.{key}"])

        hidden, heads = number("embedding_length"), number("attention.head_count")
        config = {
            "model_type": _GGUF_TYPES.get(arch, arch),
            "hidden_size": hidden,
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": number("attention.head_count_kv"),
            "vocab_size": header.fields["tokenizer.ggml.tokens"].length,
            "tie_word_embeddings": "output.weight" not in counts,
        }
        if f"{arch}.attention.key_length" in header.fields:
            config["head_dim"] = number("attention.key_length")
    except (AttributeError, KeyError, ValueError, OverflowError, TypeError) as error:
        raise ModelFormatError(
            f"{path} does not tell its size ({type(error).__name__}: {error}): fetch it again, or "
            "use a safetensors folder"
        ) from error
    total = sum(counts.values())
    return _from_config(name, config, total, total, total * BYTES["float32"], "the GGUF's header")


def _from_counts(name, config, counts: Mapping[str, int], disk: int, source: str) -> ModelSize:
    with _complete(name):
        text = config.get("text_config", config)
        loaded = {k: n for k, n in counts.items() if not k.startswith(_NOT_LOADED)}
        total = sum(loaded.values())
        experts = sum(n for key, n in loaded.items() if ".experts." in key)
        share = 1.0
        if n_experts := text.get("num_experts") or text.get("num_local_experts"):
            share = text["num_experts_per_tok"] / n_experts
        active = total - experts + round(experts * share)
        # A head that is not stored is the embedding, whatever the config says.
        text = {**text, "tie_word_embeddings": "lm_head.weight" not in loaded}
    return _from_config(name, text, total, active, disk, source)


@contextmanager
def _complete(name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelFormatError(
            f"{name}: the config does not give {error}: restore its config.json"
        ) from error


def _from_config(name, config: Mapping, total, active, disk, source) -> ModelSize:
    with _complete(name):
        vocabulary, hidden, heads = (
            _count(config, key) for key in ("vocab_size", "hidden_size", "num_attention_heads")
        )
        head_dim = config.get("head_dim") or hidden // heads
        full, recurrent = _layers(config)
        cache = 2 * full * (config.get("num_key_value_heads") or heads) * head_dim
        state = 0
        if recurrent:
            key, value = (
                config[f"linear_num_{part}_heads"] * config[f"linear_{part}_head_dim"]
                for part in ("key", "value")
            )
            kernel = config.get("linear_conv_kernel_dim", 4)
            state = value * config["linear_key_head_dim"] + (2 * key + value) * kernel
            state *= recurrent * _STATE_BYTES
        embedding = 0 if config.get("tie_word_embeddings", True) else vocabulary * hidden
        numbers = {"products": active - embedding, "cache_values": cache, "state_bytes": state}
        if not all(type(number) is int and number >= 0 for number in numbers.values()):
            raise ValueError(f"possible numbers ({numbers})")
    return ModelSize(
        name=name,
        parameters=total,
        active=active,
        vocabulary=vocabulary,
        model_type=str(config.get("model_type", "")),
        disk_bytes=disk,
        source=source,
        **numbers,
    )


def _count(config: Mapping, key: str) -> int:
    if type(config[key]) is not int or config[key] < 1:
        raise ValueError(f"{key} as a whole number above 0 but {config[key]!r}")
    return config[key]


def _layers(config: Mapping) -> tuple[int, int]:
    """How many layers keep keys and values, and how many a recurrent state."""
    n = _count(config, "num_hidden_layers")
    if types := config.get("layer_types"):
        recurrent = types.count("linear_attention")
    elif every := config.get("full_attention_interval"):
        recurrent = n - n // every
    else:
        recurrent = 0
    return n - recurrent, recurrent


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} cannot be read ({error}): not a model folder") from error
    return found


def _tensor_sizes(file: Path) -> dict[str, int]:
    """Numbers in every tensor of a safetensors file, from its header alone."""
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        counts = {name: math.prod(tensor["shape"]) for name, tensor in header.items()}
    except (*_UNREADABLE, OSError, KeyError, AttributeError) as error:
        raise ModelFormatError(
            f"{file} has no readable safetensors header ({error}): fetch it again"
        ) from error
    return counts

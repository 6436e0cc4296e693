"""A GGUF file as a safetensors folder in the cache: converted once, looked at before each use.

Knows both formats and transformers' reader. Fetches nothing.
"""

import json
from pathlib import Path

from calib_utils import files, gguf_header, paths
from calib_utils.errors import CacheError, ModelFormatError
from calib_utils.files import sha256_of_file

# Bump when the conversion below would write other bytes.
_CONVERTER = 1
_COMPLETE = "complete.json"
_SMALL = 1 << 24  # bytes of a file that is hashed at each use; of a larger one the size is compared


def converted_folder(gguf: Path, sha256: str) -> Path:
    """A safetensors copy of a GGUF, dequantised exactly to float32; made once, then reused.

    Loading GGUF costs half a minute each time, the copy about a second. A copy that is not what
    was written is made anew.

    Raises:
        ModelFormatError: the file is not a GGUF that transformers can read.
        CacheError: the copy cannot be written.
    """
    target = paths.cache_dir() / "converted" / f"{sha256[:16]}-v{_CONVERTER}"
    if is_whole(target):
        return target
    gguf_header.read(gguf)
    try:
        with files.whole_folder(target, is_whole) as folder:
            _convert(gguf, folder)
            states = {file.name: _state(file) for file in sorted(folder.iterdir())}
            record = {"gguf": gguf.name, "sha256": sha256, "converter": _CONVERTER, "files": states}
            (folder / _COMPLETE).write_text(json.dumps(record), encoding="utf-8")
    except OSError as error:
        raise unwritable(target, error) from error
    return target


def is_whole(folder: Path) -> bool:
    """Whether a converted folder is there with every file in its size and, if small, its bytes."""
    try:
        record = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))
        # Copies of older versions have no list of files.
        return all(_state(folder / name) == s for name, s in record.get("files", {}).items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def unwritable(target: Path, error: Exception) -> CacheError:
    """The error for a file of the cache that cannot be written."""
    first = str(error).strip().split("\n")[0] or type(error).__name__
    return CacheError(
        f"cannot write {target} ({first}): make room there, or set CALIB_UTILS_CACHE to a writable "
        "folder with space"
    )


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        options = {"gguf_file": gguf.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        network = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    except Exception as error:
        raise ModelFormatError(
            f"{gguf} cannot be read as GGUF ({type(error).__name__}: {error}); fetch it again, "
            "or use a safetensors folder"
        ) from error
    # transformers refuses to save what it believes is still quantised.
    network.is_quantized = False
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    try:
        network.save_pretrained(folder, max_shard_size="100GB")
        tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers have errors of their own
        raise OSError(str(error)) from error


def _state(file: Path) -> list:
    """Size and, of a small file, SHA-256."""
    size = file.stat().st_size
    return [size, sha256_of_file(file) if size <= _SMALL else None]

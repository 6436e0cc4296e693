"""A GGUF file as a safetensors folder in the cache: converted once, looked at before each use.

Knows both formats and transformers' reader. Fetches nothing.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from calib_utils import files, paths
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
    read_header(gguf)
    try:
        with files.whole_folder(target, is_whole) as folder:
            _convert(gguf, folder)
            states = {file.name: _state(file) for file in sorted(folder.iterdir())}
            record = {"gguf": gguf.name, "sha256": sha256, "converter": _CONVERTER, "files": states}
            (folder / _COMPLETE).write_text(json.dumps(record), encoding="utf-8")
    except OSError as error:
        raise unwritable(target, error) from error
    return target


def read_header(path: Path):
    """Fields and tensors of a GGUF file; of an array among the fields only its length.

    The elements of the arrays are the vocabulary, for which the package's own reader takes up to
    half a minute. Nothing is believed that the file cannot hold.

    Raises:
        ModelFormatError: not a GGUF file, cut off, or with counts that the file cannot hold.
    """
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class Header(GGUFReader):
        def _get_field_parts(self, orig_offs, raw_type):
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, length = self._get(orig_offs, np.uint32)[0], self._get(orig_offs + 4, np.uint64)
            end, content = orig_offs + 12, memoryview(self.data)
            if kind == GGUFValueType.STRING:
                for _ in range(int(length[0])):  # struct raises past the end of the file
                    end += 8 + struct.unpack_from("<Q", content, end)[0]
            else:
                element = self.gguf_scalar_to_np[GGUFValueType(kind)]
                end += int(length[0]) * np.dtype(element).itemsize
            return end - orig_offs, [length], [0], [GGUFValueType.ARRAY]

    try:
        header = Header(path)
        architecture = header.fields["general.architecture"].contents()
        # transformers builds all layers before it looks at a tensor.
        layers = header.fields[f"{architecture}.block_count"].contents()
        if layers > len(header.tensors):
            raise ValueError(f"{layers:,} layers, {len(header.tensors)} tensors")
    except Exception as error:
        raise _unreadable(path, error) from error
    return header


def require_every_tensor(source: Path, told: Mapping) -> None:
    """Refuses weights that lack a part, which transformers would draw at random.

    Args:
        told: the loading information of transformers.

    Raises:
        ModelFormatError: with the parts' names.
    """
    if missing := sorted(map(str, told["missing_keys"])):
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelFormatError(
            f"{source} lacks {len(missing)} of the model's tensors ({names}), and they would be "
            "random: fetch or save the model again"
        )


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
        network, told = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:
        raise _unreadable(gguf, error) from error
    require_every_tensor(gguf, told)
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


def _unreadable(gguf: Path, error: Exception) -> ModelFormatError:
    return ModelFormatError(
        f"{gguf} cannot be read as GGUF ({type(error).__name__}: {error}); fetch it again, or use "
        "a safetensors folder"
    )


def _state(file: Path) -> list:
    """Size and, of a small file, SHA-256."""
    size = file.stat().st_size
    return [size, sha256_of_file(file) if size <= _SMALL else None]

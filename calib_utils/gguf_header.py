"""The header of a GGUF file, read within its bounds: a hostile one costs neither memory nor time.

Knows the layout of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the
package `gguf`, through which transformers loads these files, believes every count it is told, so
a file is read here first.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calib_utils.errors import ModelFormatError

_SCALARS = dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_FIELDS = _MOST_TENSORS = 1 << 17
_MOST_DIMENSIONS = 4  # of ggml
_LONGEST_NAME = 1 << 16
# Numbers that transformers builds layers from, before it looks at a tensor.
_BUILT_FROM = ("block_count", "embedding_length", "feed_forward_length", "expert_count")


@dataclass(frozen=True)
class Array:
    """An array among the fields, of which only the number of elements is kept."""

    length: int


@dataclass(frozen=True)
class Header:
    """Metadata fields by key, and the number of elements of each tensor by name."""

    fields: Mapping[str, int | float | bool | str | Array]
    tensors: Mapping[str, int]


def read(path: Path) -> Header:
    """The header, if everything it announces is in the file.

    Raises:
        ModelFormatError: not a GGUF file, cut off, or with counts that the file cannot hold.
    """
    try:
        with open(path, "rb") as stream:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(content).header()
    except (OSError, ValueError, struct.error) as error:
        raise ModelFormatError(
            f"{path} cannot be read as GGUF ({type(error).__name__}: {error}); fetch it again, or "
            "use a safetensors folder"
        ) from error


class _Reader:
    def __init__(self, content: mmap.mmap):
        self.content, self.at = content, 0

    def header(self) -> Header:
        magic, version = self.content[:4], self.scalar("I", after=4)
        if magic != b"GGUF" or version not in _VERSIONS:
            raise ValueError(f"begins with {magic!r}, version {version}")
        n_tensors = self.count("tensors", _MOST_TENSORS)
        n_fields = self.count("fields", _MOST_FIELDS)
        fields: dict = {}
        for _ in range(n_fields):
            key = self.name()
            if key in fields:
                raise ValueError(f"the field {key[:80]!r} occurs twice")
            fields[key] = self.value(self.scalar("I"))
        sizes = [self.tensor() for _ in range(n_tensors)]
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise ValueError(f"an alignment of {alignment!r}")
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, int] = {}
        for name, elements, n_bytes, offset in sizes:
            if name in tensors:
                raise ValueError(f"the tensor {name[:80]!r} occurs twice")
            if start + offset + n_bytes > len(self.content):
                raise ValueError(f"the tensor {name[:80]!r} ends beyond the file")
            tensors[name] = elements
        _require_plausible(fields, tensors)
        return Header(fields, tensors)

    def scalar(self, form: str, after: int | None = None):
        self.at = self.at if after is None else after
        (value,) = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def count(self, what: str, most: int) -> int:
        found = self.scalar("Q")
        if found > most:
            raise ValueError(f"{found:,} {what}, at most {most:,} are read")
        return found

    def text(self, most: int) -> str:
        length = self.scalar("Q")
        if length > min(most, len(self.content) - self.at):
            raise ValueError(f"a text of {length:,} bytes at byte {self.at:,}")
        self.at += length
        return self.content[self.at - length : self.at].decode("utf-8")

    def name(self) -> str:
        return self.text(_LONGEST_NAME)

    def value(self, kind: int):
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text(len(self.content))
        if kind != _ARRAY:
            raise ValueError(f"a field of the unknown type {kind}")
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            smallest = 8
        elif kind in _SCALARS:
            smallest = struct.calcsize(f"<{_SCALARS[kind]}")
        else:
            raise ValueError(f"an array of the type {kind}")
        if length * smallest > len(self.content) - self.at:
            raise ValueError(f"an array of {length:,} elements at byte {self.at:,}")
        if kind == _STRING:
            for _ in range(length):
                self.skip_text()
        else:
            self.at += length * smallest
        return Array(length)

    def skip_text(self) -> None:
        length = self.scalar("Q")
        if length > len(self.content) - self.at:
            raise ValueError(f"a text of {length:,} bytes at byte {self.at:,}")
        self.at += length

    def tensor(self) -> tuple[str, int, int, int]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, n_dimensions = self.name(), self.scalar("I")
        if not 0 < n_dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name[:80]!r} has {n_dimensions} dimensions")
        shape = [self.scalar("Q") for _ in range(n_dimensions)]
        kind, offset = GGMLQuantizationType(self.scalar("I")), self.scalar("Q")
        block, size = GGML_QUANT_SIZES[kind]
        elements = math.prod(shape)
        if not elements or elements % block:
            raise ValueError(f"the tensor {name[:80]!r} has the shape {shape}")
        return name, elements, elements // block * size, offset


def _require_plausible(fields: Mapping, tensors: Mapping[str, int]) -> None:
    """No layer without a tensor, no width beyond the largest tensor."""
    architecture = fields.get("general.architecture")
    for part in _BUILT_FROM:
        found = fields.get(f"{architecture}.{part}")
        most = len(tensors) if part == "block_count" else max(tensors.values(), default=0)
        if type(found) is int and not 0 <= found <= most:
            raise ValueError(f"{part} is {found:,}, but the tensors allow no more than {most:,}")

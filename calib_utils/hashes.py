"""SHA-256 of files and of model folders, which is how weights are told apart.

Knows files and a memo of what was hashed before; nothing of where they come from.
"""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path

from tqdm.auto import tqdm

from calib_utils import files, paths
from calib_utils.errors import ModelFormatError

_SHA256 = re.compile("[0-9a-f]{64}")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """SHA-256 over names and bytes of a folder's config and safetensors files.

    Remembered by path, size and modification time, since a large model takes minutes to read.

    Raises:
        ModelFormatError: no config.json, or weights that are not safetensors.
    """
    weights = sorted(folder.glob("*.safetensors"))
    config = folder / "config.json"
    if not config.is_file():
        raise ModelFormatError(f"{folder} has no config.json: not a model folder")
    if not weights:
        pickles = [p.name for p in sorted((*folder.glob("*.bin"), *folder.glob("*.pt")))]
        found = f"only {', '.join(pickles)}, which can run code when loaded" if pickles else "none"
        raise ModelFormatError(
            f"{folder} has no safetensors weights ({found}): convert them with "
            "model.save_pretrained(folder)"
        )
    parts = [config, *weights]
    memo = paths.cache_dir() / "hashes" / f"{_sha256_of_text(str(folder.resolve()))[:32]}.json"
    try:
        state = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in map(Path.resolve, parts)]
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            remembered = json.loads(memo.read_text())
            if remembered["state"] == state and _SHA256.fullmatch(remembered["sha256"]):
                return remembered["sha256"]
        bar = tqdm(parts, desc=f"hashing {folder.name}", unit="file", leave=False)
        digest = _sha256_of_text(json.dumps([[f.name, sha256_of_file(f)] for f in bar]))
    except OSError as error:
        raise ModelFormatError(
            f"{folder} cannot be read ({error}): restore the file, or fetch the model again"
        ) from error
    # A cache that cannot be written costs time, not the result.
    with suppress(OSError):
        with files.whole(memo, parents=True) as draft:
            draft.write_text(json.dumps({"state": state, "sha256": digest}))
    return digest


def _sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

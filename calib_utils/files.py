"""Files that appear whole or not at all, folders that one process changes at a time, and SHA-256.

Knows the file system. Knows nothing of what is in a file.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from calib_utils import paths
from calib_utils.errors import ModelFormatError

# A name that a run may give a file: none that leads out of a folder, or is hidden.
PLAIN_NAME = re.compile(r"\w[\w.@=+-]*")
LOCK = ".lock"
# The names of drafts below; what else is hidden in a folder is not ours to remove.
_DRAFT = re.compile(r"\.(.+-)?[0-9a-f]{32}(\.draft|-old)?")
_STALE_SECONDS = 86_400  # what a killed run left: no download or conversion takes a day
_SHA256 = re.compile("[0-9a-f]{64}")


def regular(path: str | Path, most: float = 1 << 28) -> Path:
    """The path of a file that can be read to its end; OSError for a pipe, a device or a huge one.

    Args:
        most: bytes; what is stored here or written by hand is far smaller than the default.

    A pipe would be waited for, and a device such as `/dev/zero` never ends.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no regular file")
    if found.st_size > most:
        raise OSError(f"{path} has {found.st_size:,} bytes, more than {most:,}")
    return Path(path)


@contextmanager
def whole(path: Path, parents: bool = False) -> Iterator[Path]:
    """A draft beside `path` that takes its name when the block ends well, and goes when it fails.

    `parents` makes the folder where it is missing. Raises OSError where nothing can be written.
    """
    draft = path.with_name(f".{uuid.uuid4().hex}.draft")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    finally:
        with suppress(OSError):
            draft.unlink()


def keep(path: Path, content: bytes) -> Path:
    """The file with that content: written as a whole, and only where it differs."""
    if not path.is_file() or path.read_bytes() != content:
        with whole(path, parents=True) as draft:
            draft.write_bytes(content)
    return path


@contextmanager
def alone(folder: Path, label: str = "") -> Iterator[bool]:
    """Waits until no other process is in such a block with the same folder; a kill ends the block.

    Gives False where the folder cannot be locked (no locks there, or not writable), so that others
    may be in the block too. The file `LOCK` in the folder stays behind. Not to be nested.

    Args:
        label: shown on stderr while waiting; empty for silence.
    """
    lock = FileLock(folder / LOCK, fallback_to_soft=False)  # a soft lock outlives its process
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if label:
                waiting = f"another {label} is at work; waiting until it ends"
                print(waiting, file=sys.stderr, flush=True)
            lock.acquire()
    except OSError:
        pass
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def whole_folder(target: Path, is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder that becomes `target` only when the block ends well.

    `is_whole` says whether what has the name already stays, as where another run was faster. Raises
    OSError where nothing can be written.
    """
    draft = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    old = draft.with_name(f"{draft.name}-old")
    try:
        draft.mkdir(parents=True)
        remove_stale(target.parent)
        yield draft
        with alone(target.parent):
            if not is_whole(target):
                with suppress(FileNotFoundError):
                    os.replace(target, old)
                os.replace(draft, target)
    finally:
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


def remove_stale(folder: Path, after: float = _STALE_SECONDS) -> None:
    """Removes drafts that killed runs left in a folder so many seconds ago, none dated ahead."""
    for draft in folder.glob(".*"):
        with suppress(OSError):
            if _DRAFT.fullmatch(draft.name) and time.time() - draft.stat().st_mtime > after:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """SHA-256 over names and bytes of a model folder's config and safetensors files.

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
    with suppress(OSError), whole(memo, parents=True) as draft:
        draft.write_text(json.dumps({"state": state, "sha256": digest}))
    return digest


def _sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

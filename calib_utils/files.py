"""Files that appear whole or not at all, and folders that one process changes at a time.

Knows the file system. Knows nothing of what is in a file.
"""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where two runs are not kept apart
    fcntl = None

_STALE_SECONDS = 86_400  # what a killed run left: no download or conversion takes a day


@contextmanager
def whole(path: Path, parents: bool = False) -> Iterator[Path]:
    """A draft beside `path` that takes its name when the block ends well, and goes when it fails.

    Args:
        parents: makes the folder where it is missing.

    Raises:
        OSError: the place cannot be written.
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
def alone(folder: Path) -> Iterator[bool]:
    """Waits until no other process is in such a block with the same folder; a kill ends the block.

    The folder itself is locked, so nothing is left in it. Not to be nested.

    Returns:
        Whether it is known that no other is there; not where the file system has no locks.
    """
    descriptor, locked = None, False
    try:
        if fcntl is not None:
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                locked = True
        yield locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def whole_folder(target: Path, is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder that becomes `target` only when the block ends well.

    Args:
        is_whole: whether what has the name already stays, as where another run was faster.

    Raises:
        OSError: the place cannot be written.
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


def remove_stale(folder: Path) -> None:
    """Removes what killed runs left in a folder, by its date; what is dated ahead stays."""
    for draft in folder.glob(".*"):
        with suppress(OSError):
            if time.time() - draft.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()

"""Files that appear whole or not at all, and folders that one process changes at a time.

Knows the file system. Knows nothing of what is in a file.
"""

import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where two runs are not kept apart
    fcntl = None

# A name that a run may give a file: none that leads out of a folder, or is hidden.
PLAIN_NAME = re.compile(r"\w[\w.@=+-]*")
# The names of drafts below; what else is hidden in a folder is not ours to remove.
_DRAFT = re.compile(r"\.(.+-)?[0-9a-f]{32}(\.draft|-old)?")
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
def alone(place: Path, what: str = "") -> Iterator[int | None]:
    """Waits until no other process is in such a block with the same place; a kill ends the block.

    Args:
        place: a folder or file, itself locked, so that nothing is left behind. Not to be nested.
        what: is at work there, said on stderr where it has to be waited for; empty: nothing is.

    Returns:
        The descriptor that holds the lock, and holds it on in a child that it is passed to; None
        where the file system has no locks, so that others may be there.
    """
    descriptor, held = None, None
    try:
        if fcntl is not None:
            with suppress(OSError):
                # NFS locks a file only for those who may write to it; no folder can be opened so.
                flags = os.O_RDONLY if place.is_dir() else os.O_RDWR
                descriptor = os.open(place, flags)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if what:
                        waiting = f"another {what} is at work; waiting until it ends"
                        print(waiting, file=sys.stderr, flush=True)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                held = descriptor
        yield held
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


def remove_stale(folder: Path, after: float = _STALE_SECONDS) -> None:
    """Removes drafts that killed runs left in a folder so many seconds ago, none dated ahead."""
    for draft in folder.glob(".*"):
        with suppress(OSError):
            if _DRAFT.fullmatch(draft.name) and time.time() - draft.stat().st_mtime > after:
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()

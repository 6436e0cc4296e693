"""Files that appear whole or not at all, folders that one process changes at a time, and SHA-256.

Knows the file system. Knows nothing of what is in a file.
"""

import errno
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

import yaml
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from calib_utils import paths
from calib_utils.errors import ModelFormatError, UnknownNameError

# A name that a run may give a file: none that leads out of a folder, or is hidden.
PLAIN_NAME = re.compile(r"\w[\w.@=+-]*")
LOCK = ".lock"
# The names of drafts of files; what else is hidden in a folder is not ours to remove.
_DRAFT = re.compile(r"\.[0-9a-f]{32}\.draft")
_STALE_SECONDS = 86_400  # what a killed run left: no download or conversion takes a day
_SHA256 = re.compile("[0-9a-f]{64}")
_TICK_NS = 50_000_000  # a file system's clock may stand still for so long
# What a model folder is made of: fetched from the hub, and part of the model's identity.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


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
def whole_folder(target: Path, label: str = "") -> Iterator[Path]:
    """A draft that becomes the folder `target` when the block ends well; an empty one just goes.

    One writer at a time, for as long as the block takes. A reader finds the old folder, the new
    one, or for a moment none. Raises OSError where nothing can be written; `label` as in `alone`.
    """
    with suppress(OSError):  # writing says what is wrong
        target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target.parent, label) as held:
        if held:
            _recover(target)
        # Where nothing can be locked, no two writers may share a draft.
        mark = "" if held else f"{uuid.uuid4().hex}."
        draft, old = (_beside(target, f"{mark}{what}") for what in ("draft", "old"))
        try:
            draft.mkdir(parents=True)
            yield draft
            if any(draft.iterdir()):
                with suppress(FileNotFoundError):  # none is replaced
                    replace(target, old)
                replace(draft, target)
        finally:
            if old.exists() and not target.exists():
                replace(old, target)
            for left in (draft, old):
                shutil.rmtree(left, ignore_errors=True)


def folder_exists(folder: Path) -> bool:
    """Whether there is such a folder, one that a killed writer had moved being put back.

    Raises OSError or ValueError where the file system cannot tell.
    """
    try:
        os.lstat(folder)
        return True
    except (FileNotFoundError, NotADirectoryError):
        if not _beside(folder, "old").exists():
            return False
    with alone(folder.parent) as held:
        if held:
            _recover(folder)
    return folder.exists()


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _recover(folder: Path) -> None:
    """Does what a writer that was killed had no time for; only where no other is at work."""
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():
        with suppress(OSError):
            replace(old, folder)
    for left in (old, _beside(folder, "draft")):
        shutil.rmtree(left, ignore_errors=True)


def remove_stale(folder: Path, after: float = _STALE_SECONDS) -> None:
    """Removes drafts that killed runs left in a folder so many seconds ago, none dated ahead."""
    for draft in folder.glob(".*"):
        with suppress(OSError):
            if _DRAFT.fullmatch(draft.name) and time.time() - draft.stat().st_mtime > after:
                draft.unlink()


def replace(source: Path, target: Path) -> None:
    """`os.replace`, and by copy where that is refused.

    An overlay file system, as of containers, renames no folder that lies in a lower layer.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(source, target)
        try:
            shutil.rmtree(source)
        except OSError:
            shutil.copytree(target, source, dirs_exist_ok=True)
            raise


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes; raises as `regular`."""
    with open(regular(path, math.inf), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(place: Path, parts: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of every part of a model, which lies at `place`; raises as `sha256_of_file`.

    Remembered in the cache by inode, size and both times, since a large model takes minutes to
    read; what was written a moment ago is not, as the next change may come within the same tick.
    """
    memo = paths.cache_dir() / "hashes" / f"{_sha256_of_text(str(place.resolve()))[:32]}.json"
    known, now, found = {}, {}, {}
    with suppress(OSError, ValueError, RecursionError):
        known = json.loads(memo.read_text())
    for part in tqdm(list(parts), desc=f"hashing {place.name}", unit="file", leave=False):
        name, state = os.path.relpath(part, place), _state(part)
        old = known.get(name) if isinstance(known, dict) else None
        if not (isinstance(old, list) and old[:-1] == state and _SHA256.fullmatch(str(old[-1]))):
            settled = time.time_ns() - max(state[2:]) > _TICK_NS
            digest = sha256_of_file(part)
            old = [*(state if settled and _state(part) == state else [None]), digest]
        now[name], found[part] = old, old[-1]
    # A cache that cannot be written costs time, not the result.
    if now != known:
        with suppress(OSError), whole(memo, parents=True) as draft:
            draft.write_text(json.dumps(now))
    return found


def _state(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def sha256_of_gguf(path: Path) -> str:
    """SHA-256 of a GGUF file, remembered; raises a ModelFormatError where it cannot be read."""
    try:
        return remembered_sha256(path, [path])[path]
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read ({error}): fetch it again") from error


def sha256_of_folder(folder: Path) -> str:
    """SHA-256 over names and bytes of everything in a model folder that shapes a number.

    That is its config, weights and their index, tokenizer, chat templates, generation settings.

    Raises:
        ModelFormatError: no config.json, weights that are not safetensors or lie elsewhere, or an
            adapter, which transformers adds only where the package peft is installed.
    """
    try:
        parts = _model_files(folder)
        found = remembered_sha256(folder, parts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelFormatError):
            raise
        raise ModelFormatError(
            f"{folder} cannot be read ({type(error).__name__}: {error}): restore the file, or "
            "fetch the model again"
        ) from error
    named = [[part.relative_to(folder).as_posix(), sha256] for part, sha256 in found.items()]
    return _sha256_of_text(json.dumps(named))


def _model_files(folder: Path) -> list[Path]:
    """What transformers may read of a model folder."""
    if not (folder / "config.json").is_file():
        raise ModelFormatError(f"{folder} has no config.json: not a model folder")
    if (folder / "adapter_config.json").exists():
        raise ModelFormatError(
            f"{folder} holds an adapter (adapter_config.json), which would be left out where peft "
            "is missing: save the model with it merged (merge_and_unload), or remove the file"
        )
    found = {file for pattern in MODEL_FILES for file in folder.glob(pattern)}
    found |= {*folder.glob("additional_chat_templates/*.jinja")}
    config, named = json_of(folder / "config.json"), set()
    if "transformers_weights" in config:
        named.add(config["transformers_weights"])
    for index in folder.glob("*.safetensors.index.json"):
        named |= {*json_of(index)["weight_map"].values()}
    for name in named:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ModelFormatError(
                f"{folder} names weights outside of it ({name!r}): put the files into the folder"
            )
        found.add(folder / name)
    if not any(file.suffix == ".safetensors" for file in found):
        pickles = [p.name for p in sorted((*folder.glob("*.bin"), *folder.glob("*.pt")))]
        only = f"only {', '.join(pickles)}, which can run code when loaded" if pickles else "none"
        raise ModelFormatError(
            f"{folder} has no safetensors weights ({only}): convert them with "
            "model.save_pretrained(folder)"
        )
    return sorted(found)


def json_of(path: Path):
    """What is in a JSON file; raises as `regular`, ValueError or RecursionError for no JSON."""
    return json.loads(regular(path).read_text(encoding="utf-8"))


def written_by_hand(path: str | Path):
    """What is in a JSON or YAML file (`.yaml`, `.yml`) of a user's.

    Raises as `json_of`, and ValueError for a key that occurs twice or a YAML alias, which Python
    would take without a word.
    """
    text = regular(path).read_text(encoding="utf-8")
    if Path(path).suffix not in (".yaml", ".yml"):
        return json.loads(text, object_pairs_hook=_each_once)
    try:
        return yaml.load(text, _PlainYaml)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _each_once(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


class _PlainYaml(yaml.SafeLoader):
    """No key twice, and no aliases: a short file could stand for a huge one."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ValueError("an alias (*name): write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = (self.construct_object(key, deep=True) for key, _ in node.value)
        _each_once([(key, None) for key in keys])
        return super().construct_mapping(node, deep)


def imported(text: str):
    """What `module:name` names, of a module on Python's path; UnknownNameError where there is none.

    Importing a module runs it.
    """
    module, _, name = str(text).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does
        hint = f"({type(error).__name__}: {error}). Write module:name, of a file in this folder, "
        raise UnknownNameError("name", text, (), f"{hint}or of an installed module.") from error


def _sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

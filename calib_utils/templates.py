"""Whether a model's chat template comes to an end, tried in a process of its own under limits.

Templates run in the sandbox of transformers, which keeps them from the program and the machine but
not from time and memory. Knows a folder's template files; asks no model.
"""

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from calib_utils import files, paths
from calib_utils.errors import ModelFormatError

SECONDS, MEGABYTES, CHARACTERS = 10, 2_048, 100_000  # processor, memory, output
_PATIENCE = 60  # seconds in all, where other processes take the cores
_TOO_MUCH = 3
# The two conversations that `prompts` renders. An error of the template itself is told there.
_TRY = """
import sys, time
from transformers.utils.chat_template_utils import _compile_jinja_template
try:
    import resource
    seconds, megabytes = map(int, sys.argv[1:3])
    seconds += int(time.process_time()) + 1  # the import's are not the template's
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20,) * 2)
except ImportError:
    pass
tokens = {name: f"<{name}>" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
messages = [{"role": "user", "content": "question"}]
try:
    template = _compile_jinja_template(sys.stdin.read())
    for more in ([], [{"role": "assistant", "content": "answer"}]):
        size, asked = 0, {"messages": messages + more, "add_generation_prompt": not more}
        for part in template.generate(**asked, **tokens):
            size += len(part)
            if size > int(sys.argv[3]):
                sys.exit(3)
except (MemoryError, OverflowError):
    sys.exit(3)
except Exception:
    pass
"""


def require_bounded(folder: Path) -> None:
    """Refuses a folder whose chat template takes unbounded time, memory or output.

    It is tried once on a plain question, and remembered: a template may still behave otherwise on
    a question that its author has in mind.

    Raises:
        ModelFormatError: naming the file and the limit.
    """
    for source, template in _templates(folder):
        if not _ends(template):
            raise ModelFormatError(
                f"the chat template in {source} does not end within {SECONDS} s, {MEGABYTES} MB "
                f"and {CHARACTERS:,} characters on a plain question: repair it, or remove it to "
                "treat the model as a base model"
            )


def _templates(folder: Path) -> list[tuple[Path, str]]:
    """The template that a tokenizer of this folder has, or several by name; none if unreadable."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    with suppress(OSError, ValueError):
        return [(own, own.read_text(encoding="utf-8"))]
    with suppress(OSError, ValueError, RecursionError, AttributeError, TypeError):
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") or []
        texts = [found] if isinstance(found, str) else [one.get("template") for one in found]
        return [(config, text) for text in texts if isinstance(text, str)]
    return []


@lru_cache(maxsize=64)
def _ends(template: str) -> bool:
    content = repr((template, _TRY, SECONDS, MEGABYTES, CHARACTERS)).encode()
    memo = paths.cache_dir() / "templates" / hashlib.sha256(content).hexdigest()[:32]
    with suppress(OSError):
        if memo.is_file():
            return True
    command = [sys.executable, "-c", _TRY, *map(str, (SECONDS, MEGABYTES, CHARACTERS))]
    try:
        done = subprocess.run(
            command,
            input=template.encode("utf-8", "replace"),
            timeout=_PATIENCE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode == _TOO_MUCH or done.returncode < 0:  # below 0: ended by a limit
        return False
    with suppress(OSError):  # a cache that cannot be written costs time only
        with files.whole(memo, parents=True) as draft:
            draft.touch()
    return True

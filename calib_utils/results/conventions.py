"""What each kind of stored number means, as one small integer that is part of its identity.

Knows kinds and records, which are plain dictionaries; no file, no model and no source code. A
stored number is used again while its identity is that of the request: weights, prompt, answer
tokens, number format and convention. The commit and the versions of packages travel as notes.

Whoever changes what a number means raises its integer here, in the same commit, and adds a line to
the changelog: everything of that kind is then computed again when next asked for. A rename or a
faster way to the same value changes none; the canaries tell which of the two a change was.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from calib_utils.errors import ResultsError

ROWS, TEXTS, FRAMEWORK = "rows", "texts", "framework"
LABELS, LOGITS, STEPS, LEVERS = "labels", "logits", "steps", "levers"
DRAWS, ORIGINS = "draws", "origins"

CURRENT = {
    # Validity, diversity, sequence precision and recall of a rule at a temperature; ln p of every
    # answer; losses of every step; the frontier of adaptive cutoffs. Nats, float64 reductions.
    # 1 (2026-11-28): temperature before the cutoff, ties by ascending id, in-context encoding.
    ROWS: 1,
    # Completions and replies: which tokens are forced, how the others are chosen, what ends a text,
    # and their log-probabilities at temperature 1.
    # 1 (2026-11-28): greedy, or drawn with a generator seeded for each text.
    TEXTS: 1,
    # Ranks of the valid tokens, the factors alpha and beta of every setting, its four numbers.
    # 1 (2026-11-28): ranks from 0, factors as in Thm. E.1.
    FRAMEWORK: 1,
    # Labels of texts by a list or by a checker of grammar.
    # 1 (2026-11-28): the rules of `openended.lists`, `forms` and `verifiers`.
    LABELS: 1,
    # The 2,000 highest logits of the queries of chapter 06, in falling order.
    # 1 (2026-11-28): float32, at the first token of the answer.
    LOGITS: 1,
    # Single decoding steps for the explorer page: gaps to the highest logit, counts of answers.
    # 1 (2026-11-28): ranks from 0, bins of the tail as `explorer` makes them.
    STEPS: 1,
    # ln p of every answer of a list under each prompt of chapter 08, at its temperatures.
    # 1 (2026-11-28): float32, the standard wording as "wording 0".
    LEVERS: 1,
    # Answers drawn under every setting of the explorer, and which of them are valid.
    # 1 (2026-11-28): by inverting the ranked, cut distribution, one uniform number a step.
    DRAWS: 1,
    # Losses of the models trained for chapter 09, by seed; no model's folder has them.
    # 1 (2026-11-29): world, corpora, stages and sizes as `studies.origins` has them.
    ORIGINS: 1,
}
# What must be equal, beside the convention, for something stored to be what is asked for. Only
# texts of another engine than transformers name one.
IDENTITY = {
    ROWS: ("weights_sha256", "prompt_sha256", "sequences_sha256", "dtype"),
    TEXTS: ("weights_sha256", "prompts_sha256", "sweep_sha256", "dtype", "engine"),
    FRAMEWORK: ("weights_sha256", "prompt_sha256", "sequences_sha256", "dtype"),
    LABELS: ("texts_sha256", "judge"),
    LOGITS: ("weights_sha256", "dtype"),
    STEPS: ("weights_sha256", "dtype", "task", "end"),
    LEVERS: ("weights_sha256", "prompts_sha256", "dtype"),
    DRAWS: ("weights_sha256", "prompt_sha256", "sequences_sha256", "dtype"),
}
# Folders beside those of the tasks, which no task may be called.
FOLDERS = (TEXTS, FRAMEWORK, LABELS, LOGITS, STEPS, LEVERS, DRAWS)


def is_current(kind: str, record: Mapping) -> bool:
    """Whether something stored was made under the convention of today."""
    return record.get("convention") == CURRENT[kind]


def require_same(where, kind: str, stored: Mapping, asked: Mapping) -> None:
    """Keeps one measurement from taking the place of another.

    Raises:
        ResultsError: the records differ in a part of the identity that is not the convention.
    """
    differs = [name for name in IDENTITY[kind] if stored.get(name) != asked.get(name)]
    if differs:
        raise ResultsError(
            f"{where} holds {kind} of another measurement (differs in {', '.join(differs)}): use "
            "another results_dir or name, or delete it"
        )


def identity(kind: str, record: Mapping) -> str:
    """The digest of a record's identity, convention included; the same on every machine."""
    return digest({name: record.get(name) for name in ("convention", *IDENTITY[kind])})


def digest(content) -> str:
    """SHA-256 of plain content: what `json` can write. No name of a class is part of it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Where and when a number was computed: packages, machine, commit. Notes, never an identity.

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "gguf")


def environment(device: str) -> dict:
    """Packages, machine, commit and date, for the record beside a table."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES if find_spec(name)},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": device,
        **_commit(),
    }


def _commit() -> dict:
    def git(*arguments: str) -> str:
        package = Path(__file__).parents[1]
        # Of an installed package, a repository above is somebody else's.
        own = {**os.environ, "GIT_CEILING_DIRECTORIES": str(package.parents[1])}
        options = {"capture_output": True, "text": True, "cwd": package, "env": own}
        done = subprocess.run(["git", *arguments], **options)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--", "."))}
    except OSError:
        return {"commit": "", "dirty": True}

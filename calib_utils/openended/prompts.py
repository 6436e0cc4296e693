"""Open-ended prompts: a set of the project's own, and NoveltyBench by name.

Knows prompts, their categories, and which list or form decides an answer. Knows nothing of
tokens, models or judges.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from calib_utils import paths
from calib_utils.core.tasks import OpenPrompt, closed_lists, wording
from calib_utils.errors import HubUnreachableError, InvalidTaskError, UnknownNameError
from calib_utils.models import weights
from calib_utils.openended import forms, lists

CATEGORIES = ("story", "joke", "poem", "item", "plot", "list", "form")
# Who decides by program, by name: (name, text, ended) -> (True, False or None, reason).
VERIFIERS = dict.fromkeys(lists.KINDS, lists.decide) | dict.fromkeys(forms.FORMS, forms.decide)
# The data set of Zhang et al. (arXiv:2504.05228) that the paper takes its queries from.
NOVELTYBENCH = "yimingzhang/novelty-bench"
SPLITS = ("curated", "wildchat")


def open_prompts(categories: Iterable[str] = CATEGORIES) -> tuple[OpenPrompt, ...]:
    """The project's own prompts of some categories: of the file, of each list, of each form.

    >>> [prompt.verifier for prompt in open_prompts(["item"])]
    ['city', 'country', 'element', 'city']
    """
    wanted = [categories] if isinstance(categories, str) else list(categories)
    for name in wanted:
        if name not in CATEGORIES:
            raise UnknownNameError("category", name, CATEGORIES)
    return tuple(prompt for prompt in _own_prompts() if prompt.category in wanted)


@cache
def _own_prompts() -> tuple[OpenPrompt, ...]:
    path = paths.package_data("tasks", "open_prompts.json")
    known = _prompts(json.loads(path.read_text(encoding="utf-8")), str(path))
    known += _list_prompts({prompt.prompt for prompt in known})
    return known + tuple(
        OpenPrompt(f"{forms.CATEGORY}-{name}", forms.CATEGORY, form.prompt, name)
        for name, form in forms.FORMS.items()
    )


def _list_prompts(asked: set[str]) -> tuple[OpenPrompt, ...]:
    """One for an item of each closed list, but for what is asked already."""
    found = (OpenPrompt(f"list-{name}", "list", wording(name), name) for name in closed_lists())
    return tuple(prompt for prompt in found if prompt.prompt not in asked)


def verifier_named(name: str) -> str:
    """The name of a list or form, as it is; an UnknownNameError where there is none."""
    if name not in VERIFIERS:
        raise UnknownNameError("verifier", name, VERIFIERS)
    return name


def get_prompt(prompt: OpenPrompt | str) -> OpenPrompt:
    """A prompt as it is, or one of the project's own by its id; else an UnknownNameError."""
    if isinstance(prompt, OpenPrompt):
        return prompt
    known = {own.id: own for own in _own_prompts()}
    if prompt not in known:
        hint = "Or build an core.tasks.OpenPrompt(id=, category=, prompt=)."
        raise UnknownNameError("prompt", prompt, known, hint)
    return known[prompt]


def noveltybench(
    split: str = "curated", *, revision: str | None = None, file: str | Path | None = None
) -> tuple[OpenPrompt, ...]:
    """The prompts of NoveltyBench, from the hub or from a file fetched by hand.

    Args:
        split: `curated` (100 prompts) or `wildchat` (1,000).
        revision: commit, branch or tag on the hub; name a commit for a run that must stay the same.
        file: a `.jsonl` or `.parquet` with the columns id, prompt and perhaps category.

    Raises:
        HubUnreachableError, InvalidTaskError
    """
    if split not in SPLITS:
        raise UnknownNameError("NoveltyBench split", split, SPLITS)
    if file is not None:
        return _prompts(_rows(Path(file)), str(file))
    try:
        folder = weights.hub_dataset(NOVELTYBENCH, revision, (f"data/{split}*", f"{split}*"))
    except HubUnreachableError as error:
        raise HubUnreachableError(
            f"{error}. Without the hub, fetch data/{split}*.jsonl of the repository "
            "github.com/novelty-bench/novelty-bench by hand and pass its path as file=, or use "
            "this project's own prompts: open_prompts()"
        ) from error
    files = sorted(p for p in folder.rglob(f"{split}*") if p.suffix in (".jsonl", ".parquet"))
    return _prompts([row for path in files for row in _rows(path)], NOVELTYBENCH)


def _rows(path: Path) -> list[dict]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path).to_pylist()
        # At line feeds alone: a string may hold what else Unicode calls the end of a line.
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    except Exception as error:
        raise InvalidTaskError(
            f"{str(path)!r} is unreadable ({type(error).__name__}: {error}); it must be a .parquet "
            'file, or have lines like {"id": "...", "prompt": "..."}'
        ) from error


def _prompts(rows: list[dict], source: str) -> tuple[OpenPrompt, ...]:
    """Rows as prompts; one without a category gets the name of the data set."""
    found: dict[str, OpenPrompt] = {}
    for number, row in enumerate(rows, start=1):
        try:
            category = row.get("category") or "noveltybench"
            prompt = OpenPrompt(row["id"], category, row["prompt"], row.get("verifier"))
        except (AttributeError, KeyError, TypeError) as error:
            raise InvalidTaskError(
                f"{source}, row {number}: {row!r} has no id or no prompt: give both as strings"
            ) from error
        if prompt.verifier is not None:
            verifier_named(prompt.verifier)
        if prompt.id in found:
            raise InvalidTaskError(f"{source}, row {number}: the id {prompt.id!r} occurs twice")
        found[prompt.id] = prompt
    return tuple(found.values())

"""The project's own open prompts, by category and id, and which list or form decides an answer.

Knows nothing of tokens, models or judges.
"""

from collections.abc import Iterable
from functools import cache

from calib_utils import files, paths
from calib_utils.core.tasks import OpenPrompt, closed_lists, wording
from calib_utils.errors import UnknownNameError
from calib_utils.openended import forms, lists

CATEGORIES = ("story", "joke", "poem", "item", "plot", "list", forms.CATEGORY)
# Who decides by program, by name: (name, text, ended) -> (True, False or None, reason).
VERIFIERS = dict.fromkeys(lists.KINDS, lists.decide) | dict.fromkeys(forms.FORMS, forms.decide)


def open_prompts(categories: Iterable[str] = CATEGORIES) -> tuple[OpenPrompt, ...]:
    """The project's own prompts of some categories: of the file, of each list, of each form.

    >>> [prompt.verifier for prompt in open_prompts(["item"])]
    ['city', 'country', 'element', 'city']
    """
    wanted = [categories] if isinstance(categories, str) else list(categories)
    for name in wanted:
        if name not in CATEGORIES:
            raise UnknownNameError("category", name, CATEGORIES)
    return tuple(prompt for prompt in _own_prompts().values() if prompt.category in wanted)


@cache
def _own_prompts() -> dict[str, OpenPrompt]:
    rows = files.json_of(paths.package_data("tasks", "open_prompts.json"))
    own = [OpenPrompt(**row) for row in rows]
    asked = {prompt.prompt for prompt in own}
    listed = [OpenPrompt(f"list-{name}", "list", wording(name), name) for name in closed_lists()]
    own += [prompt for prompt in listed if prompt.prompt not in asked]
    own += [
        OpenPrompt(f"{forms.CATEGORY}-{name}", forms.CATEGORY, form.prompt, name)
        for name, form in forms.FORMS.items()
    ]
    return {prompt.id: prompt for prompt in own}


def get_prompt(prompt: OpenPrompt | str) -> OpenPrompt:
    """A prompt as it is, or one of the project's own by its id; else an UnknownNameError."""
    if isinstance(prompt, OpenPrompt):
        return prompt
    known = _own_prompts()
    if prompt not in known:
        hint = "Or build a core.tasks.OpenPrompt(id=, category=, prompt=)."
        raise UnknownNameError("prompt", prompt, known, hint)
    return known[prompt]

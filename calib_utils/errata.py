"""What holds, what needs care and what to correct in the paper: what an item is, and small steps.

The items are in `errata_theory` and `errata_readings`. Each recomputes its own numbers from
small examples, with the functions that the rest of the book uses. Knows tries; runs no model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import ModuleType

import numpy as np

from calib_utils.steps import TokenTable
from calib_utils.tasks import get_task
from calib_utils.tries import Sequences, Trie, build_trie, trie_of_strings

HOLDS, CARE, FAILS = "holds", "needs care", "fails as stated"


@dataclass(frozen=True)
class Item:
    """One statement of the paper, what came out, and how it stands.

    `found` names every number in `values`; `test` is the test that would fail if it were wrong.
    """

    number: int
    where: str
    statement: str
    found: str
    verdict: str
    values: dict[str, float]
    test: str


def item(number: int, where: str, statement: str, verdict: str, found: str):
    """Makes an item of a function that returns its numbers.

    The test of the item is `test_` and the function's name.
    """

    def wrap(work: Callable[[], dict[str, float]]) -> Callable[[], Item]:
        @wraps(work)
        def build() -> Item:
            values, test = work(), f"test_{work.__name__}"
            return Item(number, where, statement, found.format(**values), verdict, values, test)

        build.item_number = number
        return build

    return wrap


def items_of(*modules: ModuleType) -> list[Item]:
    """The items of some modules, worked out now, in order."""
    builders = [b for m in modules for b in vars(m).values() if hasattr(b, "item_number")]
    return [build() for build in sorted(builders, key=lambda build: build.item_number)]


def ranked_trie(*labels: str) -> tuple[TokenTable, np.ndarray]:
    """One step as a string of V and I by rank, or two: the root's, then one per valid token.

    Returns:
        The tokens, and the rank of each. [token]

    >>> ranked_trie("VIV")[1].tolist()
    [0, 2]
    """
    first = [rank for rank, label in enumerate(labels[0]) if label == "V"]
    words = [(rank,) for rank in first]
    if len(labels) > 1:
        below = dict(zip(first, labels[1:], strict=True))
        words = [(r, i) for r in first for i, label in enumerate(below[r]) if label == "V"]
    sequences = Sequences(tuple(words), tuple(range(len(words))), (), len(words))
    tokens = TokenTable(build_trie(sequences))
    return tokens, tokens.symbol  # symbols were chosen to be ranks


def digit_trie(task: str) -> Trie:
    """A trie of a digit task's answers, a symbol per digit."""
    return trie_of_strings([answer.split(",") for answer in get_task(task).answers])

"""Programming problems: what is asked for, and the tests that decide a program (Fig. 12).

Knows the project's own problems, written for it, and how to get a program out of a reply. Knows
nothing of models.
"""

import ast
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any

from calib_utils import paths, sandbox
from calib_utils.verdicts import Verdict

_ASKS = (
    "Write a Python function `{signature}`. {prompt} Reply with one Python code block that holds "
    "the complete function, and nothing else."
)
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*[\w+-]*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Problem:
    """A function to be written.

    Args:
        id: short identifier, used in tables and file names.
        signature: name and parameters of the function.
        prompt: what it has to do.
        tests: (arguments, expected value) pairs.
        reference, wrong: a program that passes and one that does not, for tests of the tests.
    """

    id: str
    signature: str
    prompt: str
    tests: tuple[tuple[tuple, Any], ...]
    reference: str = ""
    wrong: str = ""

    @property
    def entry_point(self) -> str:
        """The name of the function."""
        return self.signature.partition("(")[0]

    @property
    def message(self) -> str:
        """The user's message, exactly as the model is to see it."""
        return _ASKS.format(signature=self.signature, prompt=self.prompt)

    def run(self, source: str, isolation: str = "namespaces") -> Verdict:
        """The tests' verdict on a program, see `sandbox.run_tests`."""
        return sandbox.run_tests(source, self.entry_point, self.tests, isolation=isolation)


def read_problems() -> tuple[Problem, ...]:
    """The project's own problems."""
    path = paths.package_data("tasks", "programs.json")
    return tuple(
        Problem(
            record["id"],
            record["signature"],
            record["prompt"],
            tuple((tuple(test["arguments"]), test["expected"]) for test in record["tests"]),
            record["reference"],
            record["wrong"],
        )
        for record in json.loads(path.read_text(encoding="utf-8"))
    )


def extract_code(reply: str) -> str:
    """The program in a reply: its first fenced block, cut off or not, or all of it if none.

    >>> extract_code("Sure!\\n```python\\nx = 1\\n```\\nThis sets x.")
    'x = 1\\n'
    """
    block = _FENCE.search(reply)
    return reply if block is None else block[1]


def normalised(source: str) -> str | None:
    """A program's syntax as text: equal for programs that differ in layout, comments and
    docstrings only. None where it is no Python of this interpreter's version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a model wrote
            tree = ast.parse(source)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and len(body) > 1 and _is_docstring(body[0]):
                del body[0]
        return ast.dump(tree)
    # Deep nesting exhausts the parser's stack or memory; zero bytes are a ValueError.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )

"""Which executed pages a push runs again: `python tests/pages.py [--all]` prints their paths.

The smallest model's, the page of all models, and one of the others, chosen by the commit, so that
every page has its turn within some pushes. A model whose weights are not fetched for the tests has
its turn with `--all`.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from calib_utils.models.registry import CORE

ROOT = Path(__file__).resolve().parents[1]
SMALLEST = "smollm2-135m-instruct"
SHARE = 1


def executed() -> list[Path]:
    """Every executed copy that the book renders, in order."""
    book = ROOT / "book"
    return sorted([*book.glob("results/*/[0-9][0-9]_*.ipynb"), *book.glob("panel/[0-9]*.ipynb")])


def chosen(commit: str) -> list[Path]:
    """The pages of a push."""
    always = [path for path in executed() if path.parent.name in (SMALLEST, "panel")]
    others = [p for p in executed() if p not in always and p.parent.name in CORE]
    turn = sorted(
        others, key=lambda p: hashlib.sha256(f"{commit}/{p.parent.name}/{p.stem}".encode()).digest()
    )
    return always + turn[:SHARE]


if __name__ == "__main__":
    git = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    pages = executed() if "--all" in sys.argv[1:] else chosen(commit)
    print("\n".join(str(path.relative_to(ROOT)) for path in pages))

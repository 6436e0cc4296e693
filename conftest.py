"""What `pytest --nbval PAGE` compares: numbers within a tolerance, words exactly.

The last digits of float32 products differ between processors, so executed pages cannot be repeated
to the byte on another machine. In a cell's text, HTML and glue records every number with a decimal
point, an exponent or a percent sign may therefore differ by `allowed`. Whole numbers are counts and
must be equal, as must everything between the numbers: a verdict, a row, the order of rows. A tag
`tolerance-0.1` gives a cell a relative tolerance of its own, for whole numbers as well. Images are
not compared. `--nbval-differences FILE`, or the variable NBVAL_DIFFERENCES, collects what differs
within the tolerance.
"""

import difflib
import os
import re
import tempfile
from collections import defaultdict
from contextlib import ExitStack

import nbval.kernel
import nbval.plugin
import pytest

RELATIVE, ABSOLUTE = 1e-2, 2e-3
# Neither a part of a word, nor of a version such as 3.11.2; a minus after a word is a hyphen.
NUMBER = re.compile(
    r"(?<![\w.])(?:(?<!\))[-+−])?"
    r"(?:\d{1,3}(?:,\d{3})+(?![\d.])|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)%?(?!\w|\.\d)"
)
_ADDRESS = re.compile("at 0x[0-9a-f]+")
_SKIPPED = ("metadata", "traceback", "prompt_number", "output_type", "name", "execution_count")
_SHOWN = 12  # differences that a failing cell names


def value(printed: str) -> float:
    return float(printed.rstrip("%").replace(",", "").replace("−", "-"))


def unit(printed: str) -> float:
    """What the last printed digit counts.

    A lone digit such as 0.9 or 8e-12 comes from a format that leaves out zeros at the end, so it
    stands for two; 0.05 does not, since two decimals are what is printed most.
    """
    digits, _, exponent = printed.lstrip("-+−").rstrip("%").lower().partition("e")
    size = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    alone = len(digits.replace(".", "").strip("0")) == 1 and not digits.endswith("0")
    return size / 10 if alone and (exponent or size == 0.1) else size


def is_count(printed: str) -> bool:
    return not re.search(r"[.eE%]", printed)


def allowed(old: str, new: str, relative: float | None = None) -> float:
    """The largest difference that two printed numbers may have.

    The relative tolerance; or one unit of the last digit, by which two roundings of nearly the same
    number differ; or the absolute tolerance, where a number is not so small that it would hide all
    of it. Two counts have no tolerance, unless the cell states one.
    """
    size = max(abs(value(old)), abs(value(new)))
    if is_count(old) and is_count(new):
        return (relative or 0.0) * size
    rounding = max(unit(text) for text in (old, new) if not is_count(text))
    small = 0.0 if "e" in (old + new).lower() else min(ABSOLUTE, size / 10)
    return max((relative or RELATIVE) * size, rounding, small)


def differences(old: str, new: str, relative: float | None = None) -> tuple[list[str], list]:
    """What two outputs differ in: what fails, in words; and every pair of numbers that passes."""
    words = [NUMBER.sub("#", text).split() for text in (old, new)]
    if words[0] != words[1]:
        before, after = old.split(), new.split()
        opcodes = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
        return [
            f"words: '{' '.join(before[max(0, a - 3) : b + 2])}' became "
            f"'{' '.join(after[max(0, c - 3) : d + 2])}'"
            for what, a, b, c, d in opcodes
            if what != "equal"
        ], []
    failed, passed = [], []
    for one, other in zip(NUMBER.finditer(old), NUMBER.finditer(new), strict=True):
        if one[0] == other[0]:
            continue
        gap, limit = abs(value(one[0]) - value(other[0])), allowed(one[0], other[0], relative)
        if gap <= limit * (1 + 1e-9):
            passed.append((one[0], other[0], gap))
            continue
        around = old[max(0, one.start() - 60) : one.start()], old[one.end() : one.end() + 20]
        before, after = (" ".join(part.split()) for part in around)
        failed.append(
            f"number: {one[0]} became {other[0]}, a difference of {gap:.3g} where {limit:.3g} is "
            f"allowed, in '{before} [{other[0]}] {after}'"
        )
    return failed, passed


def _by_kind(outputs) -> dict[str, list[str]]:
    """Texts by what they are; a glue record also by its name. Of an image, only that it is one."""
    found = defaultdict(list)
    for output in outputs:
        if output.output_type == "stream":
            found[output.name].append(_ADDRESS.sub("at ADDRESS", output.text))
            continue
        glued = output.get("metadata", {}).get("scrapbook", {}).get("name", "")
        content = output.get("data") or {k: v for k, v in output.items() if k not in _SKIPPED}
        for kind, text in content.items():
            text = "" if kind.startswith("image/") else _ADDRESS.sub("at ADDRESS", str(text))
            found[f"{kind} {glued}".strip()].append(text)
    return found


def compare_outputs(cell, test, ref, skip_compare=None) -> bool:
    """In place of nbval's, which compares to the byte."""
    old, new = _by_kind(ref), _by_kind(test)
    counts = [{kind: len(texts) for kind, texts in found.items()} for found in (old, new)]
    if counts[0] != counts[1]:
        cell.comparison_traceback = [f"outputs: {counts[0]} became {counts[1]}"]
        return False
    tags = cell.cell.metadata.get("tags", [])
    own = [float(t.removeprefix("tolerance-")) for t in tags if t.startswith("tolerance-")]
    failed, passed = [], []
    for kind, texts in old.items():
        for before, after in zip(texts, new[kind], strict=True):
            wrong, close = differences(before, after, *own)
            failed += [f"{kind}: {said}" for said in wrong]
            passed += close
    cell.comparison_traceback = failed[:_SHOWN]
    if len(failed) > _SHOWN:
        cell.comparison_traceback.append(f"and {len(failed) - _SHOWN} more")
    report = cell.config.getoption("--nbval-differences")
    if report and passed and not failed:
        before, after, gap = max(passed, key=lambda pair: pair[2] / (abs(value(pair[0])) or 1.0))
        page = "/".join(cell.path.parts[-2:])
        with open(report, "a", encoding="utf-8") as file:
            file.write(f"{page}\tcell {cell.cell_num}\t{len(passed)} numbers\t")
            file.write(f"{before} became {after}, by {gap:.2g}\n")
    return not failed


_folders = ExitStack()
# Laid out and not written, which takes ten times as long: pictures are not compared.
_PICTURES = """\
import calib_utils.figures
calib_utils.figures.as_svg = lambda figure: figure.draw_without_rendering() or "<svg/>"
"""


class _Manager(nbval.kernel.KernelManager):  # an error where nbval no longer starts kernels by it
    def __init__(self, **options):
        from calib_utils.book.notebooks import KERNEL_ENVIRONMENT, kernel_channels  # loads torch

        os.environ.update(KERNEL_ENVIRONMENT, HF_HUB_OFFLINE="1")
        folder = _folders.enter_context(tempfile.TemporaryDirectory())
        super().__init__(**kernel_channels(folder), **options)

    def start_kernel(self, **options):
        super().start_kernel(extra_arguments=[f"--IPKernelApp.exec_lines={_PICTURES}"], **options)


def pytest_addoption(parser: pytest.Parser):
    parser.addoption(
        "--nbval-differences",
        default=os.environ.get("NBVAL_DIFFERENCES"),
        help="a file: what differs within the tolerance",
    )


def pytest_configure(config):
    if not config.getoption("--nbval"):
        return
    nbval.kernel.KernelManager = _Manager
    nbval.plugin.IPyNbCell.compare_outputs = compare_outputs
    config.option.nbval_current_env = True
    config.option.nbval_cell_timeout = 900


def pytest_unconfigure():
    _folders.close()

"""Golden values: how they are kept, compared and written anew.

A file a canary in `golden/`, with the kind of stored number that it stands for and the convention
of that kind (`calib_utils.results.conventions`) under which its values hold.
"""

import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from calib_utils.results.conventions import CURRENT

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "make canaries"


def holds(tolerance, golden, found) -> bool:
    """Whether a value is the golden one within a tolerance (see `test_canaries.Tolerance`)."""
    if not isinstance(golden, float) or not isinstance(found, int | float):
        return type(golden) is type(found) and golden == found
    if not math.isfinite(golden) or not math.isfinite(found):
        return golden == found or (math.isnan(golden) and math.isnan(found))
    allowed = min(tolerance.relative * abs(golden), tolerance.absolute)
    return abs(golden - found) <= max(allowed, tolerance.floor)


def plain(value, digits: int):
    """Arrays, tuples and numbers as JSON has them, floats rounded to so many digits."""
    if isinstance(value, dict):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    # Minus zero is zero.
    return float(f"{value:.{digits}g}") + 0.0 if isinstance(value, float) else value


def leaves(value, at: str = ""):
    """Every number and word of nested dictionaries and lists, with where it stands."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{at} / {key}" if at else str(key))
        if not value:
            yield at, "nothing"
    else:
        yield at, value


def differences(golden: dict, found: dict, tolerances: dict) -> list[str]:
    """What changed, in words.

    Args:
        tolerances: by the first key of the values; "" for the rest.
    """
    golden, found = dict(leaves(golden)), dict(leaves(found))
    said = []
    for at in golden.keys() | found.keys():
        tolerance = tolerances.get(at.split(" / ")[0], tolerances[""])
        if at not in golden or at not in found:
            said.append(f"{at}: only {'found now' if at in found else 'in the golden file'}")
        elif not holds(tolerance, golden[at], found[at]):
            said.append(f"{at}: {golden[at]!r} became {found[at]!r}")
    return sorted(said)


def _written(values) -> str:
    """JSON with a line for every list that holds no other."""
    if isinstance(values, dict):
        inside = ",\n".join(f"{json.dumps(k)}: {_written(v)}" for k, v in values.items())
        return "{\n" + inside + "\n}"
    return json.dumps(values)


@pytest.fixture(scope="session")
def changes():
    """`changes(canary, values)`: what differs from a canary's golden values. A list of words."""

    def get(canary, values, folder=GOLDEN) -> list[str]:
        golden = json.loads((folder / f"{canary.name}.json").read_text())
        return differences(golden["values"], plain(values, 17), canary.tolerances)

    return get


@pytest.fixture(scope="session")
def require_golden(changes):
    """`require_golden(canary, values)`: fails where they are not the golden ones."""

    def require(canary, values, folder=GOLDEN, now=None):
        path, now = folder / f"{canary.name}.json", now or CURRENT[canary.kind]
        golden = json.loads(path.read_text()) if path.exists() else None
        moved = golden is not None and golden["convention"] != now
        said = ["there is no golden file"] if golden is None else changes(canary, values, folder)
        # New values beside the old ones need no new convention.
        changed = [line for line in said if "only found now" not in line]
        if os.environ.get("CANARIES") == "rewrite" and (golden is None or moved or not changed):
            known = {"kind": canary.kind, "convention": now, "why": canary.why}
            path.write_text(_written(known | {"values": plain(values, canary.digits)}) + "\n")
        elif said:
            pytest.fail(
                f"{len(said)} golden values of {canary.name} changed:\n  "
                + "\n  ".join(said[:12])
                + f"\nTolerance: {canary.why}.\nIf you did not mean to change a number, this is a "
                f"fault. If you meant to change what the number means, bump the integer of "
                f"{canary.kind!r} in results/conventions.py with a line on why, and write the "
                f"golden file anew by `{UPDATE}`. If only the canary's own question is another, "
                f"delete tests/canaries/golden/{path.name} and do the same."
            )
        elif moved:
            pytest.fail(
                f"the golden values of {canary.name} are of convention {golden['convention']} of "
                f"{canary.kind!r}, which is {now} now: write them anew by `{UPDATE}`"
            )

    return require


@pytest.fixture(scope="session")
def canaries():
    """The module of canaries, for tests of what they catch."""
    spec = importlib.util.spec_from_file_location("canaries", GOLDEN.with_name("test_canaries.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

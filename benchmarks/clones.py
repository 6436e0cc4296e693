"""Whether fresh clones of a commit give identical tables: `make determinism`.

Clones the checkout three times, measures the same settings in each by the command line, with
another hash seed in each and two threads in the last, and compares the tables with one another and
with the committed rows. Exit status 1 where a difference exceeds the tolerance of float32.

    python benchmarks/clones.py
"""

import os
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path

import pandas as pd

from calib_utils import paths
from calib_utils.results import storage
from calib_utils.results.storage import KEY

MODEL, TASKS = "smollm2-135m-instruct", ("rng-2", "us-states")
RULES, TEMPERATURES = "none,top_k=50,top_p=0.9,min_p=0.1,oracle_size", "0.3,1.0,2.0"
THREADS = (1, 1, 2)  # of each clone


def measure(clone: Path, task: str, place: int) -> pd.DataFrame:
    """The settings table of a clone's own code in a process of its own."""
    command = [sys.executable, "-m", "calib_utils", "evaluate", "--model", MODEL, "--task", task]
    command += ["--rule", RULES, "--temperature", TEMPERATURES]
    command += ["--device", "cpu", "--results-dir", str(clone / "out")]
    own = {"PYTHONPATH": str(clone), "PYTHONHASHSEED": str(place)}
    own["OMP_NUM_THREADS"] = str(THREADS[place])
    subprocess.run(command, cwd=clone, env=os.environ | own, check=True, stdout=subprocess.DEVNULL)
    return storage.read(next((clone / "out").glob(f"*/{task}"))).settings


def _gap(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """In nats, over the settings of both."""
    both = one[KEY].merge(other[KEY], on=KEY)
    return max(storage.differences(one.merge(both), other.merge(both), KEY).values())


def compare(task: str, clones: list[Path]) -> list[dict]:
    """A row per pair: whose tables, identical to the bit or not, largest difference."""
    tables = {f"clone {i + 1}": measure(clone, task, i) for i, clone in enumerate(clones)}
    tables["committed"] = storage.read(paths.default_results_dir() / MODEL / task).settings
    return [
        {
            "task": task,
            "settings": len(tables[a]),
            "tables": f"{a}, {b}",
            "identical": gap == 0,
            "largest difference": gap,
        }
        for a, b in combinations(tables, 2)
        for gap in [_gap(tables[a], tables[b])]
    ]


def main() -> int:
    """Prints the table; 1 where clones do not agree."""
    with tempfile.TemporaryDirectory() as folder:
        clones = [Path(folder) / str(i) for i in range(len(THREADS))]
        for clone in clones:
            subprocess.run(["git", "clone", "-q", paths.project_root(), clone], check=True)
        rows = [row for task in TASKS for row in compare(task, clones)]
    found = pd.DataFrame(rows)
    found.to_csv(sys.stdout, index=False, float_format="%.2g")
    return int((found["largest difference"] > storage.TOLERANCE["float32"]).any())


if __name__ == "__main__":
    sys.exit(main())

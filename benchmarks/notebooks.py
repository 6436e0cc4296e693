"""Seconds that the notebooks take for the embedded models: `data/panel/seconds.csv`.

    python benchmarks/notebooks.py --model smollm2-135m-instruct --notebook 00_quickstart

A run executes the notebook with an empty results folder and counts the CPU time of its kernel,
start and imports included; other work on the machine does not change that much.
"""

import argparse
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from calib_utils import files, paths
from calib_utils.book import notebooks
from calib_utils.models.loading import load_model
from calib_utils.models.registry import CORE

TABLE = paths.package_data("panel", "seconds.csv")
KEY = ["notebook", "model"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=list(CORE))
    parser.add_argument("--notebook", action="append", choices=notebooks.notebook_names())
    options = parser.parse_args()
    for model in options.model or CORE:
        for notebook in options.notebook or notebooks.notebook_names():
            keep(executed(model, notebook))


def executed(model: str, notebook: str) -> dict:
    """Runs one notebook from nothing and takes the time."""
    load_model(model)  # its file is fetched and converted before the clock starts
    with tempfile.TemporaryDirectory() as folder:
        parameters = {"model": model, "results_dir": folder}
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        notebooks.run(notebook, parameters, Path(folder) / "out" / f"{notebook}.ipynb")
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "notebook": notebook,
        "model": model,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def keep(new: dict) -> None:
    """Puts a row into the table, in place of one of the same notebook and model."""
    rows = [*pd.read_csv(TABLE).to_dict("records"), new]
    table = pd.DataFrame(rows).drop_duplicates(KEY, keep="last").sort_values(KEY)
    files.keep(TABLE, table.to_csv(index=False, lineterminator="\n").encode())
    print(new)


if __name__ == "__main__":
    main()

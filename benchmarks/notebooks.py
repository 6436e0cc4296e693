"""Seconds that the notebooks take for the embedded models: `data/panel/seconds.csv`.

    python benchmarks/notebooks.py --model smollm2-135m-instruct --notebook 00_quickstart
    python benchmarks/notebooks.py --sidecars

A run executes the notebook with an empty results folder and counts the CPU time of its kernel,
start and imports included; other work on the machine does not change that much. `--sidecars` adds
up what the stored tables say instead, wall seconds of whole passes, without start and without what
is not stored; a table that both studies of the controlled tasks use counts for the oracle cutoffs.
It counts the prefixes (nodes) that were forwarded as well.
"""

import argparse
import os
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch

from calib_utils import paths
from calib_utils.book import check, notebooks
from calib_utils.models.loading import load_model
from calib_utils.models.registry import CORE
from calib_utils.results import storage
from calib_utils.studies import controlled_tasks as controlled_tasks_module
from calib_utils.studies import oracle_cutoffs

TABLE = paths.package_data("panel", "seconds.csv")
COLUMNS = ["notebook", "model", "wall_s", "cpu_s", "nodes", "threads", "cores", "source", "date"]
CONTROLLED, CUTOFFS = "02_controlled_tasks", "03_oracle_cutoffs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=list(CORE))
    parser.add_argument("--notebook", action="append", choices=notebooks.notebook_names())
    parser.add_argument("--sidecars", action="store_true")
    options = parser.parse_args()
    for model in options.model or CORE:
        if options.sidecars:
            for new in from_sidecars(model):
                keep(new)
            continue
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
    return row(notebook, model, wall, cpu, torch.get_num_threads(), "run")


def from_sidecars(model: str) -> list[dict]:
    """Wall seconds of the stored tables of the two studies that store theirs."""
    seconds, nodes = (dict.fromkeys((CONTROLLED, CUTOFFS), 0) for _ in range(2))
    controlled_tasks = controlled_tasks_module.task_names((2, 3, 4))
    ends = "" if load_model(model).tokenizer.chat_template else "@end=line"
    for folder in check.stored(paths.default_results_dir(), model):
        own = folder.name in controlled_tasks
        shared = own and not ends and folder.name in oracle_cutoffs.TASKS
        stored, notebook = storage.read(folder), CONTROLLED if own and not shared else CUTOFFS
        seconds[notebook] += stored.record["seconds"]
        nodes[notebook] += int(stored.settings.n_nodes[0])
    return [
        row(name, model, total, None, 2, "sidecars", nodes[name]) for name, total in seconds.items()
    ]


def row(notebook, model, wall, cpu, threads, source, nodes=None) -> dict:
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    cpu = None if cpu is None else round(cpu, 2)
    values = (notebook, model, round(wall, 2), cpu, nodes, threads, os.cpu_count(), source, date)
    return dict(zip(COLUMNS, values, strict=True))


def keep(new: dict) -> None:
    """Puts a row into the table, in place of one of the same notebook, model and source."""
    key = ["notebook", "model", "source"]
    old = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=COLUMNS)
    same = (old[key] == [new[name] for name in key]).all(axis=1)
    rows = [*old[~same].to_dict("records"), new]
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values(key, ignore_index=True)
    draft = TABLE.with_suffix(".draft")
    table.to_csv(draft, index=False, lineterminator="\n")
    os.replace(draft, TABLE)
    print(new)


if __name__ == "__main__":
    main()

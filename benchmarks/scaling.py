"""Time and memory of exact evaluation as the answer set grows tenfold and a hundredfold.

Each task runs in a process of its own, so that no task inherits another's memory. Linux only.
"""

import argparse
import math
import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common
import torch

import calib_utils as cu

TASKS = ("rng-2", "rng-3", "rng-4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    common.add_options(parser)
    options = common.parse(parser)

    record = {"benchmark": "scaling", "model": options.model, **common.describe()}
    record["tasks"] = " ".join(options.tasks)
    found = {}
    for task in options.tasks:
        with ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            torch.set_num_threads,
            (torch.get_num_threads(),),
        ) as process:
            call = process.submit(one_task, options.model, task, options.repeats)
            found[task] = call.result()
        prefix = task.replace("-", "_")
        record |= {f"{prefix}_{key}": value for key, value in found[task].items()}
        print(f"{task}: {found[task]['wall_s']:.1f} s", file=sys.stderr)
    *_, small, large = (found[task] for task in options.tasks)
    nodes = math.log(large["n_nodes"] / small["n_nodes"])
    record["exponent_wall"] = math.log(large["wall_s"] / small["wall_s"]) / nodes
    record["exponent_cpu"] = math.log(large["cpu_s"] / small["cpu_s"]) / nodes
    common.save(record, options.out)


def one_task(model_name: str, task_name: str, repeats: int) -> dict:
    """Times one task and the memory it adds to a loaded model that has run once."""
    model, task = cu.load_model(model_name, device="cpu"), cu.get_task(task_name)
    n_nodes = cu.render_prompt(model, task).trie.n_nodes
    cu.evaluate(model, cu.get_task("rng-1"))
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    timing = common.timed(lambda: cu.evaluate(model, task), repeats)
    vocabulary = model.network.get_output_embeddings().weight.shape[0]
    return {
        "n_answers": len(task.answers),
        "n_nodes": n_nodes,
        **timing.columns(),
        "wall_ms_per_node": 1e3 * timing.wall_s / n_nodes,
        "extra_memory_mb": (_status_bytes("VmHWM") - before) / 1e6,
        "loaded_memory_mb": before / 1e6,
        # What holding every node's logits, or every answer's at every step, would take.
        "node_logits_mb": 4e-6 * n_nodes * vocabulary,
        "answers_times_vocabulary_mb": 4e-6 * len(task.answers) * vocabulary,
    }


def _status_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)[1])


if __name__ == "__main__":
    main()

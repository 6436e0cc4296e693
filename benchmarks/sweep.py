"""What the whole Table 3 grid costs beside the forward pass, and beside transformers' processors.

The grid alone is timed on stored logits: the same code, the forward pass replaced by its result.
The processors run on a sample of those logits, one setting after another, and are extrapolated.
"""

import argparse
from functools import partial
from unittest import mock

import common
import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import calib_utils as cu
from calib_utils.core.rules import (
    MORE_GRIDS,
    TABLE3_TEMPERATURES,
    TABLE3_TOP_P,
    OracleSize,
    TopP,
    table3_rules,
)
from calib_utils.models import scoring
from calib_utils.results.measure import measure

SAMPLE = 32  # nodes for the processors
BATCHES = (1, 8, 32)
TOLERANCE = 1e-6  # nats, with both sides in float64
_WARPER = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="rng-3")
    common.add_options(parser)
    options = common.parse(parser)

    model, task = cu.load_model(options.model, device="cpu"), cu.get_task(options.task)
    prompt = cu.render_prompt(model, task)
    trie = prompt.trie
    settings = [(rule, t) for t in TABLE3_TEMPERATURES for rule in table3_rules()]
    four = {"typical": MORE_GRIDS["typical"], "top_p": tuple(map(TopP, TABLE3_TOP_P[:4]))}
    four = {name: [(r, t) for t in TABLE3_TEMPERATURES for r in own] for name, own in four.items()}
    cu.evaluate(model, cu.get_task("rng-1"), table3_rules(), TABLE3_TEMPERATURES)

    forward = common.timed(lambda: common.forward_only(model, prompt), options.repeats)
    whole = common.timed(lambda: measure(model, prompt, settings), options.repeats)
    stored = list(scoring.score(model, prompt))
    with mock.patch.object(scoring, "score", lambda *_: iter(stored)):
        grid = common.timed(lambda: measure(model, prompt, settings), options.repeats)
        typical = common.timed(lambda: measure(model, prompt, four["typical"]), options.repeats)
        top_p = common.timed(lambda: measure(model, prompt, four["top_p"]), options.repeats)

    sample = common.spread(trie.n_nodes, SAMPLE)
    logits = _rows(stored, sample)
    edges = [np.flatnonzero(trie.edge_node == node) for node in sample]
    tokens = [
        np.where(trie.edge_symbol[e] < 0, trie.end_symbols[0], trie.edge_symbol[e]) for e in edges
    ]
    branching = trie.node_branching[sample]
    tried = {
        size: common.timed(partial(apply, logits, tokens, branching, settings, size), 1)
        for size in BATCHES
        if size <= len(sample)
    }
    size = min(tried, key=lambda size: tried[size].wall_s)
    processors = tried[size].scaled(trie.n_nodes / len(sample))

    few = slice(0, None, 4)
    theirs = np.concatenate(
        apply(logits[few].double(), tokens[few], branching[few], settings, 1), axis=0
    )
    ours = grid.value.edge_log_p[np.concatenate(edges[few])]
    both = np.isfinite(theirs) & np.isfinite(ours)
    difference = float(np.abs(theirs[both] - ours[both]).max())
    disagreements = int((np.isfinite(theirs) != np.isfinite(ours)).sum())
    record = {
        "benchmark": "sweep",
        "model": model.name,
        "task": task.name,
        **common.describe(),
        "n_nodes": trie.n_nodes,
        "n_settings": len(settings),
        **forward.columns("forward"),
        **whole.columns("whole"),
        **grid.columns("grid"),
        "grid_ratio_to_forward_wall": grid.wall_s / forward.wall_s,
        "grid_ratio_to_forward_cpu": grid.cpu_s / forward.cpu_s,
        "grid_wall_us_per_node_and_setting": 1e6 * grid.wall_s / trie.n_nodes / len(settings),
        **typical.columns("typical"),
        **top_p.columns("top_p"),
        "typical_ratio_to_top_p_wall": typical.wall_s / top_p.wall_s,
        **processors.columns("processors"),
        "processors_extrapolated": True,
        "processors_nodes_timed": len(sample),
        "processors_batch_size": size,
        "processors_batch_sizes_tried": " ".join(map(str, tried)),
        "processors_ratio_wall": processors.wall_s / grid.wall_s,
        "processors_ratio_cpu": processors.cpu_s / grid.cpu_s,
        "agreement_values": int(theirs.size),
        "agreement_kept_by_one_only": disagreements,
        "agreement_max_abs_difference_nats": difference,
    }
    common.save(record, options.out)
    assert difference <= TOLERANCE, f"the processors differ from ours by {difference} nat"


@torch.inference_mode()
def apply(logits, tokens, branching, settings, batch_size: int) -> list[np.ndarray]:
    """ln p of every valid token under every setting: a list over nodes of [token, setting].

    Only this; the size of the kept set, which our sweep finds as well, is not even counted.
    """
    found = [np.empty((len(row), len(settings))) for row in tokens]
    for column, (rule, temperature) in enumerate(settings):
        # |G| differs from node to node, and a processor takes one number.
        size = 1 if isinstance(rule, OracleSize) else batch_size
        for start in range(0, len(logits), size):
            chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
            if isinstance(rule, OracleSize):
                chain.append(TopKLogitsWarper(int(branching[start])))
            elif rule.name in _WARPER:
                number = int(rule.parameter) if rule.name == "top_k" else rule.parameter
                chain.append(_WARPER[rule.name](number))
            log_p = chain(None, logits[start : start + size]).log_softmax(-1)
            for row, values in enumerate(log_p, start=start):
                found[row][:, column] = values[torch.as_tensor(tokens[row])]
    return found


def _rows(stored, nodes: np.ndarray) -> torch.Tensor:
    """The stored logits of some nodes. [node, vocab]"""
    rows = {}
    for batch, logits in stored:
        rows |= dict(zip(batch.tolist(), logits, strict=True))
    return torch.stack([rows[node] for node in nodes.tolist()])


if __name__ == "__main__":
    main()

"""Writes the book's speed page from the records in `benchmarks/results`."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "book" / "reference" / "benchmarks.md"
PEERS = {
    "cached_batch": "prompt cached, a batch over answers",
    "sequence": "a forward pass per sequence",
    "lm_eval": "lm-evaluation-harness, `HFLM.loglikelihood`",
    "minicons": "minicons, `conditional_score`",
}


def page() -> str:
    """The page's Markdown."""
    records = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    parts = [
        "# Speed and memory",
        "",
        "Written by `python benchmarks/page.py` from the records in `benchmarks/results`; how each",
        "is taken is in `benchmarks/README.md`. A ratio is the other's time over ours, on the same",
        "(prompt, answer) pairs in one run on one machine.",
    ]
    writers = {"scoring": _scoring, "scaling": _scaling, "sweep": _sweep, "device": _device}
    for record in records:
        parts += ["", *writers[record["benchmark"]](record), "", _run(record)]
    return "\n".join(parts) + "\n"


def _scoring(r: dict) -> list[str]:
    lines = [
        f"## ln p of {r['n_answers']:,} answers: {r['task']} on {r['model']}, {r['machine_cpu']}",
        "",
        f"Ours: {r['ours_wall_s']:.2f} s for {r['n_nodes']:,} nodes; its forward passes alone, "
        f"timed apart, {r['ours_forward_wall_s']:.2f} s. The matrix products of the "
        f"unique nodes alone need {r['bound_wall_s']:.2f} s at the machine's measured peak of "
        f"{r['gemm_peak_gflops']:.0f} GFLOP/s: the forward passes reach "
        f"{r['gemm_share_forward']:.0%} of that limit, the whole {r['gemm_share']:.0%}. The "
        f"project's goals are 60 % of the limit and ratios of 40.",
        "",
        "| against | seconds | ratio, wall | ratio, CPU | batch | largest difference, nats |",
        "|---|---|---|---|---|---|",
    ]
    for key, name in PEERS.items():
        if f"{key}_wall_s" in r:
            star = " (scaled up from a subset)" if r[f"{key}_extrapolated"] else ""
            lines.append(
                f"| {name} | {r[f'{key}_wall_s']:.1f}{star} | {r[f'{key}_ratio_wall']:.1f}× | "
                f"{r[f'{key}_ratio_cpu']:.1f}× | {r[f'{key}_batch_size']} | "
                f"{r[f'{key}_max_abs_difference_nats']:.1e} |"
            )
    return lines


def _scaling(r: dict) -> list[str]:
    lines = [
        f"## From a hundred to ten thousand answers on {r['model']}",
        "",
        f"Time grows as nodes to the power {r['exponent_wall']:.2f}. Memory is the highest "
        "resident set above the loaded model; beside it what all logits would take at once.",
        "",
        "| task | answers | nodes | seconds | ms a node | extra memory | all logits |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in r["tasks"].split():
        k = task.replace("-", "_")
        lines.append(
            f"| {task} | {r[f'{k}_n_answers']:,} | {r[f'{k}_n_nodes']:,} | "
            f"{r[f'{k}_wall_s']:.1f} | {r[f'{k}_wall_ms_per_node']:.1f} | "
            f"{r[f'{k}_extra_memory_mb']:.0f} MB | "
            f"{r[f'{k}_node_logits_mb']:.0f} MB |"
        )
    return lines


def _sweep(r: dict) -> list[str]:
    return [
        f"## The whole grid of Table 3 on {r['model']}",
        "",
        f"204 settings at every node take {r['grid_ratio_to_forward_wall']:.2f} times the forward "
        f"passes, and applying the processors of transformers setting by setting takes "
        f"{r['processors_ratio_wall']:.0f} times as long as that grid (scaled up from a sample of "
        f"nodes). Four settings of typical sampling at every temperature take "
        f"{r['typical_ratio_to_top_p_wall']:.1f} times as long as four of top-p.",
    ]


def _device(r: dict) -> list[str]:
    """Typed in by hand from one visit to a GPU, before the ranking and the generation changed."""
    return [
        f"## On a GPU, {r['model']}: before the ranking was rewritten",
        "",
        f"The forward passes of {r['task']} took {r['forward_wall_s']} s in {r['dtype']} (rng-4: "
        f"{r['rng_4_forward_wall_s']} s), its {r['n_settings']} settings {r['grid_wall_s']} s, "
        f"{r['grid_ratio_to_forward_wall']} times as long, with {r['grid_launches']:,} kernel "
        f"launches and {r['grid_reads']:,} reads by the host. {r['generation_rows']} rows of "
        f"{r['generation_tokens']} tokens took {r['generation_ms_per_step']} ms a step, where "
        f"reading the weights once takes {r['generation_floor_ms_per_step']}. Nobody has measured "
        "the present code on a GPU. Tests hold what can be counted without one: below 5,000 "
        "operations and 50 reads for the same settings.",
    ]


def _run(r: dict) -> str:
    if r["benchmark"] == "device":
        return f"*{r['machine_gpu']}, {r['date']}; not repeated.*"
    return (
        f"*{r['machine_cpu']}, {r['machine_cores']} cores, {r['torch_threads']} threads, "
        f"torch {r['version_torch']}, transformers {r['version_transformers']}, {r['date']}.*"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)

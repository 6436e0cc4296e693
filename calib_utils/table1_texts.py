"""The texts of Table 1: every setting of a plan, the oracle's after its two forced tokens.

Knows models, plans and where texts are kept. Judges nothing.
"""

from pathlib import Path

import pandas as pd

from calib_utils import completions, drawing
from calib_utils.models import Model
from calib_utils.scoring import continue_rows, forward
from calib_utils.starts import Start, start_of
from calib_utils.table1 import ORACLE
from calib_utils.tasks import OpenPrompt


def generate(
    model: Model,
    plan: pd.DataFrame,
    prompts: dict[str, OpenPrompt],
    forced: dict[str, list[tuple]],
    max_tokens: int,
    *,
    end: str = "eos",
    results_dir: str | Path | None = None,
    name: str = "table1",
) -> pd.DataFrame:
    """The texts of a plan, drawn now or taken from where an earlier run kept them.

    Args:
        plan: of `table1_plan.plan_generations`.
        prompts: those of the plan, by id.
        forced: of `table1_plan.forced_tokens`, for each of them.
        max_tokens: of a text, the oracle's forced tokens counted.
        end: what closes a text, as in `sweeps.Sweep`.

    Returns:
        A row per text: prompt_id, category, strategy, parameter, temperature, sample, text, ended.

    Raises:
        ResultsError: the place is held by texts of another request.
    """
    ids = list(dict.fromkeys(plan.prompt_id))
    starts = {key: start_of(model, prompts[key], end) for key in ids}

    def make(prompt_id: str) -> pd.DataFrame:
        parts = []
        for setting in plan[plan.prompt_id == prompt_id].itertuples(index=False):
            oracle = setting.strategy == ORACLE
            # Temperature first, then the cutoff, as in Table 3.
            settings = {"temperature": float(setting.temperature)}
            if setting.strategy in ("top_k", "top_p", "min_p"):
                kind = int if setting.strategy == "top_k" else float
                settings[setting.strategy] = kind(setting.parameter)
            openings = forced[prompt_id][: setting.n_texts] if oracle else [()] * setting.n_texts
            left = max_tokens - len(openings[0])
            settings |= _prompt_once(model, starts[prompt_id], len(openings))
            options = {"settings": settings, "seed": setting.seed}
            drawn = drawing.draw_under(model, starts[prompt_id], openings, left, **options)
            rows = pd.DataFrame(drawn, columns=["text", "ended"])
            rows.insert(0, "sample", range(len(rows)))
            for field in ("temperature", "parameter", "strategy"):
                rows.insert(0, field, getattr(setting, field))
            parts.append(rows)
        texts = pd.concat(parts, ignore_index=True)
        texts.insert(0, "category", prompts[prompt_id].category)
        texts.insert(0, "prompt_id", prompt_id)
        return texts

    asked = {}
    for key in ids:
        own = plan[plan.prompt_id == key]
        listed = [tuple(map(str, row)) for row in own.itertuples(index=False, name=None)]
        asked[key] = [starts[key].ids, starts[key].end_ids, forced[key], listed]
    settings = {"max_tokens": max_tokens, "prompts": ids, "n": int(plan.n_texts.max())}
    record = drawing.record_of(model, asked, settings)
    return drawing.kept(completions.folder_of(results_dir, model.key, name), record, ids, make)


def _prompt_once(model: Model, start: Start, n: int) -> dict:
    """The prompt's keys and values for `n` rows, which `generate` would compute for each row.

    All but its last token, whose logits `generate` has to compute itself.
    """
    import torch

    network = model.network
    device = network.get_input_embeddings().weight.device
    ids = torch.tensor([start.ids[:-1]], device=device)
    if not ids.numel():
        return {}
    with torch.inference_mode():
        _, cache = forward(network, ids, None, keep=1)
        rows = continue_rows(cache, torch.zeros(n, dtype=torch.int64, device=device))
    return {"past_key_values": rows}

"""The texts of Table 1: every setting of a plan, the oracle's after its two forced tokens.

Knows models, plans and where texts are kept. Judges nothing.
"""

from pathlib import Path

import pandas as pd

from calib_utils import completions, drawing
from calib_utils.errors import InvalidRequestError
from calib_utils.models import Model
from calib_utils.openset import OpenPrompt
from calib_utils.scoring import continue_rows, forward
from calib_utils.starts import Start, start_of
from calib_utils.table1 import ORACLE
from calib_utils.table1_plan import oracle_paths


def forced_tokens(candidates: pd.DataFrame, n_texts: int, seed: int = 0) -> dict[str, list[tuple]]:
    """The oracle's first two tokens for each text of each prompt that has a valid pair.

    Args:
        candidates: labelled candidates of depths 1 and 2 (`nodes.node_table`), one seed a prompt.

    Returns:
        prompt_id -> `n_texts` pairs of token ids, in which one pair may occur again.
    """
    ids = candidates.set_index(["prompt_id", "node", "rank"]).token_id
    found: dict[str, list[tuple]] = {}
    for row in oracle_paths(candidates, n_texts, seed).itertuples(index=False):
        first = ids[row.prompt_id, (), row.rank_1]
        second = ids[row.prompt_id, (row.rank_1,), row.rank_2]
        found.setdefault(row.prompt_id, []).append((int(first), int(second)))
    return found


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
        forced: of `forced_tokens`, for each of them.
        max_tokens: of a text, the oracle's forced tokens counted.
        end: what closes a text, as in `sweeps.Sweep`.

    Returns:
        A row per text: prompt_id, category, strategy, parameter, temperature, sample, text, ended.

    Raises:
        InvalidRequestError: a prompt without forced tokens: leave it out of the plan.
        ResultsError: the place is held by texts of another request.
    """
    ids = list(dict.fromkeys(plan.prompt_id))
    if missing := [key for key in ids if not forced.get(key)]:
        raise InvalidRequestError(
            f"prompts {missing} have no valid pair of first tokens: plan without them"
        )
    starts = {key: start_of(model, prompts[key], end) for key in ids}

    def make(prompt_id: str) -> pd.DataFrame:
        parts = []
        for setting in plan[plan.prompt_id == prompt_id].itertuples(index=False):
            oracle = setting.strategy == ORACLE
            openings = forced[prompt_id][: setting.n_texts] if oracle else [()] * setting.n_texts
            left = max_tokens - len(openings[0])
            settings = _settings(setting) | _prompt_once(model, starts[prompt_id], len(openings))
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

    asked = {
        key: [starts[key].ids, starts[key].end_ids, forced[key], _listed(plan, key)] for key in ids
    }
    settings = {"max_tokens": max_tokens, "prompts": ids, "n": int(plan.n_texts.max())}
    record = drawing.record_of(model, asked, settings)
    return drawing.kept(completions.folder_of(results_dir, model.key, name), record, ids, make)


def _settings(setting) -> dict:
    """What `generate` of transformers takes: temperature first, then the cutoff, as in Table 3."""
    found = {"temperature": float(setting.temperature)}
    if setting.strategy in ("top_k", "top_p", "min_p"):
        kind = int if setting.strategy == "top_k" else float
        found[setting.strategy] = kind(setting.parameter)
    return found


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


def _listed(plan: pd.DataFrame, prompt_id: str) -> list[tuple]:
    own = plan[plan.prompt_id == prompt_id]
    return [tuple(map(str, row)) for row in own.itertuples(index=False, name=None)]

"""Drawing answers from a model, to check exact numbers against what it writes.

Knows torch models and prompts. The prompt is forwarded once, the draws share it.
"""

import numpy as np
import pandas as pd
import torch

from calib_utils.errors import whole_number
from calib_utils.evaluation import render_prompt
from calib_utils.models import Model, load_model
from calib_utils.parsing import check_temperatures
from calib_utils.scoring import continue_rows, forward
from calib_utils.tasks import Task, get_task


def sample_answers(
    model: Model | str,
    task: Task | str,
    n: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    **policies: str,
) -> pd.DataFrame:
    """Seeded draws from the model at a temperature, without cutoff.

    Returns:
        One row per draw: `text` as written, and `answer`, the valid answer that the drawn tokens
        spell under the policies of `evaluate`, or None.

    Raises:
        InvalidRequestError: a temperature, a number of draws or a seed out of range.
    """
    (temperature,) = check_temperatures([temperature])
    n, seed = whole_number("n", n), whole_number("seed", seed, 0, 2**63 - 1)
    model = load_model(model)
    task = get_task(task)
    prompt = render_prompt(model, task, **policies)
    longest = max(map(len, prompt.sequences.symbols)) + bool(prompt.end_ids)
    drawn = _draw(model, prompt, n, longest, temperature, seed)
    spelled = dict(zip(prompt.sequences.symbols, prompt.sequences.answer, strict=True))
    rows = []
    for tokens in drawn:
        stops = np.flatnonzero(np.isin(tokens, prompt.end_ids))
        body = tuple(tokens[: stops[0]] if len(stops) else tokens)
        found = spelled.get(body) if len(stops) or not prompt.end_ids else None
        if not prompt.end_ids:
            starts = (spelled[body[:k]] for k in range(1, len(body) + 1) if body[:k] in spelled)
            found = next(starts, None)
        answer = None if found is None else task.answers[found]
        rows.append({"text": model.tokenizer.decode(list(body)), "answer": answer})
    return pd.DataFrame(rows)


def _draw(model: Model, prompt, n: int, length: int, temperature: float, seed: int):
    """Token ids [draw, step], each step drawn from the tempered distribution.

    Draws that agree so far share a row of the forward pass; one that has ended takes no part in it,
    and what stands behind its end token means nothing.
    """
    network = model.network
    device = network.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(seed)
    logits, cache = forward(network, torch.tensor([prompt.ids], device=device), None, keep=1)
    drawn = torch.zeros(n, length, dtype=torch.int64)
    ends = torch.tensor(prompt.end_ids, dtype=torch.int64)
    going, row = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    for step in range(length):
        below = torch.softmax(logits[:, -1].double().cpu() / temperature, dim=-1).cumsum(-1)
        heights = torch.rand(len(going), generator=generator, dtype=torch.float64)
        tokens = torch.empty_like(row)
        for one in row.unique():
            mine, steps = row == one, below[one]
            tokens[mine] = torch.searchsorted(steps, heights[mine] * steps[-1], right=True)
        drawn[going, step] = tokens
        on = ~torch.isin(tokens, ends)
        going = going[on]
        if step == length - 1 or not len(going):
            break
        pairs, row = torch.stack([row[on], tokens[on]], dim=1).unique(dim=0, return_inverse=True)
        parent, token = pairs.to(device).unbind(1)
        logits, cache = forward(network, token[:, None], continue_rows(cache, parent), keep=1)
    return drawn.numpy()


def share_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share, 95 % by default.

    >>> tuple(round(x, 3) for x in share_interval(50, 100))
    (0.404, 0.596)
    """
    share, scale = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return float(centre - half), float(centre + half)

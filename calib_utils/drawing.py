"""Seeded replies of a model to one message, and keeping them so that a kill loses little.

Knows models, messages and files. Knows nothing of what the replies are for.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from calib_utils import completions, conventions, provenance, recorded
from calib_utils.generation import complete
from calib_utils.models import Model, load_model
from calib_utils.starts import Start, start_of
from calib_utils.tasks import OpenPrompt

COLUMNS = ["draw", "text", "n_tokens", "log_p", "ended"]
# Fields of a model's generation settings that change what it writes, and the values that do not.
_NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
_ROWS = 32  # replies at a time under a model's own settings; the draws depend on it


def message_start(model: Model, message: str) -> Start:
    """The tokens of a user's message in the model's chat template, and those that end a reply."""
    return start_of(model, OpenPrompt("message", "drawn", message))


def draw(
    model: Model | str,
    message: str,
    n: int,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Replies to a message, without cutoff. A draw depends on its number, not on `n`.

    Returns:
        One row per draw, columns `COLUMNS`: the text without its end token, the number of tokens
        with it, and `log_p`, the log-probability in nats of these tokens at temperature 1,
        whatever temperature they were drawn at. A reply that had not `ended` is a prefix of one,
        and so is what its `log_p` says.

    Raises:
        InvalidRequestError: a temperature out of range.
    """
    model = load_model(model)
    start = message_start(model, message)
    options = {"n_samples": n, "temperature": temperature, "seed": seed}
    done = complete(model, start.ids, [()], max_tokens, start.end_ids, batch_size, **options)
    rows = []
    for completion in done:
        body = completion.token_ids[: -1 if completion.ended else None]
        rows.append(
            {
                "draw": completion.sample,
                "text": model.tokenizer.decode(list(body)),
                "n_tokens": len(completion.token_ids),
                # Each is at most 0 but for rounding in the last digit.
                "log_p": min(0.0, sum(completion.log_p)),
                "ended": completion.ended,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def own_settings(model: Model) -> dict:
    """Sampling settings that the model's own files give; empty where they give none.

    transformers would fill gaps with its own defaults (top-k 50); here a gap means no cutoff.
    """
    path = Path(model.folder) / "generation_config.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError:  # the file is optional
        return {}
    return {name: given[name] for name in _NEUTRAL if given.get(name) is not None}


def draw_under(
    model: Model,
    start: Start,
    forced: Sequence[tuple[int, ...]],
    max_tokens: int,
    settings: Mapping,
    *,
    seed: int = 0,
) -> list[tuple[str, bool]]:
    """Replies drawn by transformers' `generate` under any of its sampling settings.

    Args:
        forced: the first tokens of every reply, the same number for all; empty where none.
        max_tokens: of a reply, forced ones not counted.
        settings: such as `top_p`; what is not given is off.

    Returns:
        The text of each reply with its forced tokens and without its end token, and whether it
        ended. A reply whose forced tokens hold an end token stops there.
    """
    import torch

    network = model.network
    device = network.get_input_embeddings().weight.device
    ends = start.end_ids
    chosen = _NEUTRAL | dict(settings) | {"do_sample": True, "max_new_tokens": max_tokens}
    chosen |= {"eos_token_id": list(ends), "pad_token_id": ends[0]}
    replies = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        for first in range(0, len(forced), _ROWS):
            ids = [[*start.ids, *tokens] for tokens in forced[first : first + _ROWS]]
            rows = torch.tensor(ids, device=device)
            out = network.generate(rows, attention_mask=torch.ones_like(rows), **chosen)
            replies += out[:, len(start.ids) :].tolist()
    found = []
    for reply in replies:
        stop = next((i for i, token in enumerate(reply) if token in ends), None)
        found.append((model.tokenizer.decode(reply[:stop]), stop is not None))
    return found


def kept(
    folder: Path | None,
    record: dict,
    ids: Iterable[str],
    make: Callable[[str], pd.DataFrame],
) -> pd.DataFrame:
    """The tables of `make` for every id, one after another; those in `folder` are not made again.

    Each is written whole as soon as it is made. A folder of another record is an error.

    Args:
        folder: where to look and to store; None keeps nothing.
        record: of `record_of`.

    Raises:
        ResultsError: the folder holds something else, or cannot be read or written.
    """
    ids = list(ids)
    if folder is None:
        return pd.concat(map(make, ids), ignore_index=True)
    completions.open_folder(folder, record)
    names = [f"{name}.parquet" for name in ids]
    for name, file in zip(ids, names, strict=True):
        if not (folder / file).exists():
            table = pa.Table.from_pandas(make(name), preserve_index=False)
            recorded.write_table(folder / file, table)
    completions.close_folder(folder, names)
    return read(folder)


def read(folder: str | Path) -> pd.DataFrame:
    """What `kept` stored, without a model; see `completions.read_completions`."""
    return completions.read_completions(folder, schema=None)


def record_of(model: Model, asked: dict, settings: dict) -> dict:
    """What stored tables depend on, and what people want to know beside it.

    Args:
        asked: id -> what is asked and how it is judged, as plain content (`conventions.digest`).
        settings: the numbers of the request.
    """
    return {
        **recorded.of_model(model),
        "prompts_sha256": conventions.digest(asked),
        "sweep_sha256": conventions.digest(settings),
        "weights_file": model.weights_file,
        "settings": settings,
        "environment": provenance.environment(model.device),
    }

"""Candidate sweeps over open prompts: what one costs, and running it so that a kill loses little.

Knows the whole chain by name: grows trees with `sweeps`, keeps them with `completions`. Judges and
measures come after.
"""

import time
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from calib_utils import completions, conventions, provenance, recorded
from calib_utils.errors import InvalidRequestError
from calib_utils.generation import Continuations
from calib_utils.models import Model, load_model
from calib_utils.served import Engine
from calib_utils.starts import start_of, vocabulary_size
from calib_utils.sweeps import Sweep, grow

_RATE_TOKENS = 4


def size_of(sweep: Sweep) -> tuple[int, int]:
    """Completions of a sweep and their tokens, forced ones counted, as if no text ended early."""
    n = len(sweep.trees) * sweep.n_completions
    return n, n * (sweep.depth + sweep.max_tokens)


def forecast(model: Model | str, sweep: Sweep) -> dict[str, float]:
    """The cost of a sweep before it runs.

    Returns:
        completions and tokens, at most; rate, in tokens per second of a full batch of the first
        prompt, measured here; seconds, by that rate, which batches that are not full and longer
        contexts do not reach.
    """
    rate = _rate(load_model(model), sweep)
    n, tokens = size_of(sweep)
    return {"completions": n, "tokens": tokens, "rate": rate, "seconds": tokens / rate}


def sweep(
    model: Model | str,
    sweep: Sweep,
    results_dir: str | Path | None = None,
    *,
    batch_size: int | None = None,
    engine: Engine | None = None,
) -> pd.DataFrame:
    """Every completion of a sweep, computed now or taken from where an earlier run stored it.

    Args:
        results_dir: trees are kept under `results_dir/<model>/texts/<sweep.name>`, one file each as
            soon as it is done; a run after a kill goes on from there. Without it nothing is kept.
        batch_size: rows per forward pass; chosen for the device by default.
        engine: a server that completes in place of this process, from `served.connect`. What it
            gives is kept under `<sweep.name>.served`; neither takes up what the other has stored.

    Returns:
        One row per completion, columns `completions.COLUMNS`, trees in the order of `Sweep.trees`.

    Raises:
        CalibUtilsError: a named subclass, before anything is completed wherever possible.
    """
    model = load_model(model)
    _check_ranks(model, sweep)
    name = f"{sweep.name}.served" if engine else sweep.name
    folder = completions.folder_of(results_dir, model.key, name)
    if folder is not None:
        completions.open_folder(folder, _record(model, sweep, engine))
    generator = engine.continuations if engine else Continuations
    names = [completions.chunk_name(prompt.id, seed) for prompt, seed in sweep.trees]
    found: list[dict] = []
    with tqdm(
        total=size_of(sweep)[0], unit="text", desc=f"{model.name}, {sweep.name}", leave=False
    ) as bar:
        for name, (prompt, seed) in zip(names, sweep.trees, strict=True):
            if folder is not None and (folder / name).exists():
                bar.update(sweep.n_completions)
                continue
            rows = grow(model, sweep, prompt, seed, batch_size, bar.update, generator)
            if folder is None:
                found += rows
            else:
                completions.write_chunk(folder / name, rows)
    if folder is None:
        return pd.DataFrame(found, columns=completions.COLUMNS)
    completions.close_folder(folder, names)
    return completions.read_completions(folder)


def _check_ranks(model: Model, sweep: Sweep) -> None:
    size = vocabulary_size(model)
    if sweep.candidates[-1] >= size:
        raise InvalidRequestError(
            f"the sweep forces rank {sweep.candidates[-1]}, but {model.name} has {size} tokens: "
            "choose a smaller max_rank or smaller ranks"
        )


def _record(model: Model, sweep: Sweep, engine: Engine | None = None) -> dict:
    starts = [start_of(model, prompt, sweep.end) for prompt in sweep.prompts]
    return {
        **recorded.of_model(model),
        "prompts_sha256": conventions.digest([[start.ids, start.end_ids] for start in starts]),
        "sweep_sha256": sweep.fingerprint(),
        "weights_file": model.weights_file,
        "sweep": sweep.parameters(),
        "environment": provenance.environment(engine.version if engine else model.device),
        **({"engine": engine.version, "engine_apart": engine.apart} if engine else {}),
    }


def _rate(model: Model, sweep: Sweep) -> float:
    """Tokens per second of a full batch in which no text ends."""
    start = start_of(model, sweep.prompts[0], sweep.end)
    tree = Continuations(model, start.ids)
    n = min(tree.batch_size, sweep.n_completions)
    forced = tree.candidates([()], range(min(n, tree.vocab_size)))[0]
    prefixes = [(int(token),) for token in forced]
    tree.complete(prefixes[:1], 1)  # the first pass also pays for what is set up once
    began = time.perf_counter()
    tree.complete(prefixes, _RATE_TOKENS)
    return len(prefixes) * (1 + _RATE_TOKENS) / (time.perf_counter() - began)

"""Candidate sweeps over open prompts: what one is, running it, and which candidates are valid.

Candidates are forced by rank and their leaves completed; a kill loses one tree at most. Knows
models and where trees are kept (`results.records`). Knows no judge: labels are given.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from calib_utils.core.prompts import exact_text
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import InvalidRequestError, ResultsError, whole_number
from calib_utils.models.generation import Continuations, start_of, vocabulary_size
from calib_utils.models.loading import Model, load_model
from calib_utils.models.served import Engine
from calib_utils.openended.prompts import get_prompt
from calib_utils.results import conventions, records

MAX_DEPTH = 3
_ENDS = ("eos", "line")


@dataclass(frozen=True)
class Sweep:
    """Which candidates to force after which prompts, and how to complete them (Sec. 4, App. A).

    Args:
        prompts: open prompts, or ids of the project's own.
        seeds: one tree per prompt and seed. A seed decides where the tree starts and what is drawn.
        name: of the folder that keeps the completions.
        position: tokens that the model writes, at temperature 1, before the tree starts; fewer
            where it ends earlier. A pair (low, high) draws the number for each prompt and seed.
        depth: candidates forced one after another, 1 to 3.
        ranks: the candidates at every node, from 0, ascending; by default the paper's, every tenth
            of 1,000.
        n_samples: completions drawn per leaf; 0 completes once, greedily.
        max_tokens: of a completion, forced tokens not counted.
        temperature: of the draws; only with n_samples.
        end: what closes a text, `eos` or `line`, as in `prompts.Policies`.

    Raises:
        InvalidRequestError: a value out of range, or two that contradict each other.
    """

    prompts: tuple[OpenPrompt, ...]
    seeds: tuple[int, ...] = (0,)
    name: str = "sweep"
    position: int | tuple[int, int] = 0
    depth: int = 1
    ranks: Sequence[int] = range(0, 1000, 10)
    n_samples: int = 0
    max_tokens: int = 32
    temperature: float | None = None
    end: str = "eos"

    def __post_init__(self):
        given = (self.prompts,) if isinstance(self.prompts, str | OpenPrompt) else self.prompts
        # Frozen for others: what is given as a list is kept as what it is declared to be.
        object.__setattr__(self, "prompts", tuple(map(get_prompt, given)))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "ranks", tuple(map(int, self.ranks)))
        pair = isinstance(self.position, tuple | list)
        position = tuple(self.position) if pair else (self.position, self.position)
        object.__setattr__(self, "position", position)
        _check(self)

    @property
    def trees(self) -> list[tuple[OpenPrompt, int]]:
        """Every prompt with every seed, the seeds of one prompt together."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def n_completions(self) -> int:
        """Of one tree, unless some candidate is an end token."""
        return len(self.ranks) ** self.depth * max(1, self.n_samples)

    def parameters(self) -> dict:
        """All that decides the completions of a given model, for a record."""
        # Who labels a text decides nothing of it.
        asked = [{"id": p.id, "category": p.category, "prompt": p.prompt} for p in self.prompts]
        return {
            **{"prompts": asked, "seeds": list(self.seeds)},
            **{"position": list(self.position), "depth": self.depth},
            **{"candidates": list(self.ranks), "n_samples": self.n_samples},
            **{"max_tokens": self.max_tokens, "temperature": _temperature(self), "end": self.end},
        }

    def fingerprint(self) -> str:
        """SHA-256 of the parameters."""
        return hashlib.sha256(json.dumps(self.parameters()).encode()).hexdigest()


def _temperature(sweep: Sweep) -> float | None:
    return (sweep.temperature or 1.0) if sweep.n_samples else None


def _check(sweep: Sweep) -> None:
    def require(holds: bool, field: str, remedy: str) -> None:
        if not holds:
            raise InvalidRequestError(f"{field}={getattr(sweep, field)!r}: {remedy}")

    ids = [prompt.id for prompt in sweep.prompts]
    seeds, ranks, t = sweep.seeds, sweep.ranks, sweep.temperature
    require(bool(ids), "prompts", "give at least one, for example prompts.open_prompts()")
    require(len(set(ids)) == len(ids), "prompts", "every id must occur once")
    require(bool(seeds), "seeds", "give at least one")
    for seed in seeds:
        whole_number("seeds", seed, 0)
    require(len(set(seeds)) == len(seeds), "seeds", "every seed must occur once")
    require(bool(re.fullmatch(r"\w[\w.-]*", sweep.name)), "name", "use letters, digits and . _ -")
    require(len(sweep.position) == 2, "position", "give a number, or a pair (low, high)")
    low, high = sweep.position
    whole_number("position", high, whole_number("position", low, 0))
    same = f"at 0 tokens the greedy tree is the same for each of the {len(seeds)} seeds"
    differ = low > 0 or len(seeds) == 1 or sweep.n_samples != 0
    require(differ, "position", f"{same}: give one seed, or a position from 1")
    whole_number("depth", sweep.depth, 1, MAX_DEPTH)
    ascending = bool(ranks) and ranks[0] >= 0 and list(ranks) == sorted(set(ranks))
    require(ascending, "ranks", "give different whole numbers from 0, ascending")
    whole_number("n_samples", sweep.n_samples, 0)
    whole_number("max_tokens", sweep.max_tokens)
    require(t is None or sweep.n_samples > 0, "temperature", "leave it out, or set n_samples")
    require(t is None or (math.isfinite(t) and t > 0), "temperature", "must be finite and above 0")
    require(sweep.end in _ENDS, "end", f"choose from {_ENDS}")


def log_ranks(n: int, max_rank: int) -> tuple[int, ...]:
    """`n` different ranks from 0 to max_rank - 1, dense at the top, evenly spaced in log(rank + 1).

    >>> log_ranks(8, 1000)
    (0, 2, 6, 18, 51, 138, 372, 999)
    """
    whole_number("n", n, 1, max_rank)
    wanted = np.expm1(np.linspace(0, math.log(max_rank), n)).round().astype(int)
    # At the top the spacing is below 1: push up what would repeat.
    for i in range(1, n):
        wanted[i] = max(wanted[i], wanted[i - 1] + 1)
    return tuple(np.minimum(wanted, max_rank - n + np.arange(n)).tolist())


def size_of(sweep: Sweep) -> tuple[int, int]:
    """Completions of a sweep and their tokens, forced ones counted, as if no text ended early."""
    n = len(sweep.trees) * sweep.n_completions
    return n, n * (sweep.depth + sweep.max_tokens)


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
        One row per completion, columns `records.COLUMNS`, trees in the order of `Sweep.trees`.
    """
    model = load_model(model)
    if sweep.ranks[-1] >= (size := vocabulary_size(model)):
        raise InvalidRequestError(
            f"the sweep forces rank {sweep.ranks[-1]}, but {model.name} has {size} tokens: choose "
            "smaller ranks"
        )
    name = f"{sweep.name}.served" if engine else sweep.name
    folder = records.folder_of(results_dir, model.key, name)
    generator = engine.continuations if engine else Continuations
    trees = {f"{prompt.id}@{seed}": (prompt, seed) for prompt, seed in sweep.trees}

    def make(tree: str) -> pd.DataFrame:
        rows = grow(model, sweep, *trees[tree], batch_size, bar.update, generator)
        return pd.DataFrame(rows, columns=records.COLUMNS)

    record = {} if folder is None else _record(model, sweep, engine)
    label, total = f"{model.name}, {sweep.name}", size_of(sweep)[0]
    there = 0 if folder is None else sum((folder / f"{tree}.parquet").exists() for tree in trees)
    done = there * sweep.n_completions
    with tqdm(total=total, initial=done, unit="text", desc=label, leave=False) as bar:
        return records.kept(folder, record, trees, make)


def _record(model: Model, sweep: Sweep, engine: Engine | None) -> dict:
    starts = [start_of(model, prompt, sweep.end) for prompt in sweep.prompts]
    return {
        **records.of_model(model),
        "prompts_sha256": conventions.digest([[start.ids, start.end_ids] for start in starts]),
        "sweep_sha256": sweep.fingerprint(),
        "weights_file": model.weights_file,
        "sweep": sweep.parameters(),
        "environment": conventions.environment(engine.version if engine else model.device),
        **({"engine": engine.version, "engine_apart": engine.apart} if engine else {}),
    }


def grow(
    model: Model,
    sweep: Sweep,
    prompt: OpenPrompt,
    seed: int,
    batch_size: int | None,
    advance: Callable[[int], object],
    generator: Callable,
) -> Iterator[dict]:
    """One tree: every completion as a row with the columns of `records.SCHEMA`.

    A candidate that is an end token closes its path early: such a row has fewer forced tokens.

    Args:
        advance: called with the number of completions whenever some are done.
        generator: makes the continuations of a prompt, given what `Continuations` is given.
    """
    start = start_of(model, prompt, sweep.end)
    key = _key(prompt, seed)
    written = _opening(model, sweep, start, key, batch_size, generator)
    tree = generator(model, start.ids + written, batch_size)
    ranks = _leaves(tree, sweep, start.end_ids)
    options = {"n_samples": sweep.n_samples, "temperature": _temperature(sweep) or 1.0}
    options |= {"seed": key, "advance": advance}
    done = tree.complete(ranks, sweep.max_tokens, start.end_ids, **options)
    # Special tokens are shown: one that was forced must not look like nothing to a judge.
    text_of = partial(exact_text, model.tokenizer)
    before = text_of(written)
    for leaf in done:
        tokens = leaf.prefix + leaf.token_ids
        yield {
            **{"prompt_id": prompt.id, "category": prompt.category, "seed": seed},
            **{"position": len(written), "prefix": before, "depth": len(leaf.prefix)},
            "path_ranks": list(ranks[leaf.prefix]),
            "path_ids": list(leaf.prefix),
            "path_log_p": list(leaf.prefix_log_p),
            "sample": leaf.sample,
            "text": text_of(written + (tokens[:-1] if leaf.ended else tokens)),
            "token_ids": list(tokens),
            "log_p": math.fsum(leaf.log_p),
            "ended": leaf.ended,
        }


def _key(prompt: OpenPrompt, seed: int) -> int:
    """From the prompt as well, so that one seed does not draw the same numbers everywhere."""
    return int.from_bytes(hashlib.sha256(f"{prompt.id}/{seed}".encode()).digest()[:8])


def _opening(model, sweep, start, key, batch_size, generator) -> tuple[int, ...]:
    """What the model writes before the tree starts, without an end token."""
    low, high = sweep.position
    length = int(np.random.default_rng(key).integers(low, high + 1))
    if not length:
        return ()
    shared = generator(model, start.ids, batch_size)
    (drawn,) = shared.complete([()], length, start.end_ids, n_samples=1, seed=key)
    return drawn.token_ids[:-1] if drawn.ended else drawn.token_ids


def _leaves(tree: Continuations, sweep: Sweep, end_ids) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The ranks of every path of forced tokens, in the order of the ranks."""
    level: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}
    for _ in range(sweep.depth):
        open_paths = [path for path in level if not path or path[-1] not in end_ids]
        found = tree.candidates(open_paths, sweep.ranks).tolist()
        below, deeper = dict(zip(open_paths, found, strict=True)), {}
        for path, ranks in level.items():
            if path in below:
                pairs = zip(below[path], sweep.ranks, strict=True)
                deeper |= {(*path, token): (*ranks, rank) for token, rank in pairs}
            else:
                deeper[path] = ranks
        level = deeper
    return level


# From judged completions to candidates: tables in, tables out.

_TREE = ["prompt_id", "category", "seed"]
_CANDIDATE = [*_TREE, "depth", "node", "rank"]
COLUMNS = [*_CANDIDATE, "token_id", "valid", "weight", "n_unlabelled"]


def unique_texts(completions: pd.DataFrame) -> pd.DataFrame:
    """Each text once per prompt, in the order of appearance, for judges.

    Beside it `ended`, whether any of its completions was.
    """
    groups = completions.groupby(["prompt_id", "category", "text"], sort=False)
    return groups.ended.any().reset_index()


def node_table(
    completions: pd.DataFrame, labels: pd.DataFrame, min_share: float | None = None
) -> pd.DataFrame:
    """Every candidate at every node, with the paper's rule for its validity (Sec. 4, App. A).

    A leaf is valid if its completion is; with several samples, if at least `min_share` of them
    are, by default one. A candidate is valid if some leaf below it is. Unknown stays unknown: a
    candidate is dropped where missing labels could change its verdict.

    Args:
        completions: columns of `records.COLUMNS`.
        labels: prompt_id, text, valid (True, False or missing); one row per text at most.
        min_share: above 0, at most 1.

    Returns:
        Columns `COLUMNS`, of which depth is the node's level from 1, node the tuple of ranks of the
        path to it, weight the leaves below known to be valid (the sweep's stand-in for N of
        Def. 4.1), n_unlabelled leaves of unknown validity. `attrs["dropped"]` counts what was.

    Raises:
        ResultsError: two labels for one text.
    """
    leaves = _judged_leaves(completions, labels, min_share)
    # A row per forced token of every leaf.
    steps = leaves.assign(rank=leaves.path, token_id=leaves.path_ids)
    steps = steps.explode(["rank", "token_id"]).astype({"rank": int, "token_id": int})
    steps["depth"] = steps.groupby(level=0).cumcount() + 1
    steps["node"] = [path[: d - 1] for path, d in zip(steps.path, steps.depth, strict=True)]
    table = steps.groupby(_CANDIDATE, sort=True).agg(
        token_id=("token_id", "first"),
        weight=("is_valid", "sum"),
        n_unlabelled=("unknown", "sum"),
    )
    table = table.reset_index().assign(valid=table.weight.to_numpy() > 0)
    known = table.valid | (table.n_unlabelled == 0)
    kept = table.loc[known, COLUMNS].reset_index(drop=True)
    kept.attrs["dropped"] = int((~known).sum())
    return kept


def _judged_leaves(completions, labels, min_share) -> pd.DataFrame:
    """One row per path of forced tokens: whether it is valid, or unknown."""
    again = labels.duplicated(["prompt_id", "text"])
    if again.any():
        first = labels[again].iloc[0]
        raise ResultsError(
            f"two labels for one text of {first.prompt_id!r}: {first.text[:60]!r}; give one row "
            "per prompt_id and text"
        )
    verdicts = labels[["prompt_id", "text", "valid"]].astype({"valid": "boolean"})
    rows = completions.merge(verdicts, how="left", on=["prompt_id", "text"])
    rows["path"] = list(map(tuple, rows.path_ranks))
    rows["yes"] = rows.valid.fillna(False).astype(int)
    rows["missing"] = rows.valid.isna().astype(int)
    leaves = rows.groupby([*_TREE, "path"], sort=False).agg(
        path_ids=("path_ids", "first"),
        yes=("yes", "sum"),
        missing=("missing", "sum"),
        n=("yes", "size"),
    )
    # Fewer than one sample is no sample; the rest absorbs a share that is not a binary fraction.
    needed = 1 if min_share is None else (min_share * leaves.n - 1e-9).clip(lower=1)
    leaves["is_valid"] = leaves.yes >= needed
    leaves["unknown"] = ~leaves.is_valid & (leaves.yes + leaves.missing >= needed)
    return leaves.reset_index()

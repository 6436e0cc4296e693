"""Table 1: an oracle validity filter on the first two steps against cutoffs, on equal terms.

Plans the texts, has them drawn, measures how different they are, and compares strategies. Knows no
judge and no embedder: a function embeds, and validity is whatever the labels say.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.helpers import extract_all_word_ngrams

from calib_utils import paths
from calib_utils.core import rules as cutoffs
from calib_utils.core.metrics import best_by_budget, cluster_interval
from calib_utils.core.tasks import OpenPrompt
from calib_utils.errors import InvalidRequestError
from calib_utils.models.generation import Start, start_of
from calib_utils.models.loading import Model
from calib_utils.models.scoring import continue_rows, read_prompt
from calib_utils.openended import programs
from calib_utils.openended.precision_recall import difference
from calib_utils.results import records

Embed = Callable[[Sequence[str]], np.ndarray]
ORACLE = "oracle"
SETTING = ["strategy", "parameter", "temperature"]
# Higher is more diverse in the first; lower in the others.
MEASURES = ("embedding_diversity", "self_bleu", "self_bleu_in_groups")
LEVEL = 0.8  # validity that a setting must have
ROWS = 32  # texts of a setting drawn at a time; the draws depend on it
_TOGETHER = 256  # texts of all settings drawn in one pass a token
_ROUNDING = 1e-9  # a mean of shares that is .8 may come out a hair below


# How different texts are: by the angle between embeddings, and by shared n-grams. Self-BLEU is
# sacrebleu's BLEU; only the counting of references is done here, once for all texts.

_TOKENIZE = BLEU().tokenizer
_GROUP = 4  # texts compared at a time


def embedding_diversity(vectors: np.ndarray) -> float:
    """Mean over pairs of texts of 1 - cosine, in [0, n / (n - 1)]; NaN for fewer than two texts.

    The cosines sum to |sum of unit vectors|^2 - n, at least -n; so the cost is linear in n.

    Args:
        vectors: [text, dimension], finite and none of length 0; need not have unit length.

    >>> embedding_diversity(np.array([[1.0, 0.0], [-2.0, 0.0]]))
    2.0
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    n = len(vectors)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InvalidRequestError(
            f"vectors of length {float(lengths.min()):g}: a cosine needs finite vectors other than "
            "0; leave out the texts behind them"
        )
    if n < 2:
        return float("nan")
    total = (vectors / lengths).sum(axis=0)
    # Equal vectors: rounding in the square must not make the mean negative.
    return max(float(1 - (total @ total - n) / (n * (n - 1))), 0.0)


def self_bleu(texts: Sequence[str], order: int = 4) -> float:
    """Mean BLEU of each text against all others, in [0, 1]: the n-gram order reading of "n = 4".

    It rises with the number of texts, one reference more each: compare equal numbers only. NaN
    for fewer than two texts. Equal to `sacrebleu.BLEU.sentence_score` text by text (`13a` tokens,
    effective order), which would count every reference anew for each text.

    >>> round(self_bleu(["one of the two", "one of the two", "something else"]), 2)
    0.67
    """
    if len(texts) < 2:
        return float("nan")
    counted = [_counted(text, order) for text in texts]
    largest, second = Counter(), Counter()
    for ngrams, _ in counted:
        for ngram, count in ngrams.items():
            second[ngram] = max(second[ngram], min(count, largest[ngram]))
            largest[ngram] = max(largest[ngram], count)
    lengths = Counter(length for _, length in counted)
    scores = []
    for ngrams, length in counted:
        correct, total = [0] * order, [0] * order
        for ngram, count in ngrams.items():
            # The largest count among the other texts: the second where this one has the largest.
            other = second[ngram] if count == largest[ngram] else largest[ngram]
            total[len(ngram) - 1] += count
            correct[len(ngram) - 1] += min(count, other)
        # BLEU's reference length: that of the nearest other text, the shorter of two.
        others = lengths - Counter([length])
        closest = min(others, key=lambda other: (abs(other - length), other))
        score = BLEU.compute_bleu(
            correct, total, length, closest, "exp", effective_order=True, max_ngram_order=order
        )
        scores.append(score.score / 100)
    return float(np.mean(scores))


def self_bleu_in_groups(texts: Sequence[str], rounds: int = 20, seed: int = 0) -> float:
    """Mean self-BLEU of four texts at a time: the other reading of "n = 4".

    The mean over `rounds` seeded shuffles, each cut into groups; the rest sits out. But for
    chance it does not depend on how many texts there are. NaN for fewer than four.
    """
    if len(texts) < _GROUP:
        return float("nan")
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(rounds):
        shuffled = [texts[i] for i in rng.permutation(len(texts))]
        starts = range(0, len(texts) - _GROUP + 1, _GROUP)
        scores += [self_bleu(shuffled[start : start + _GROUP]) for start in starts]
    return float(np.mean(scores))


@lru_cache(maxsize=10_000)  # a text is in one group of every round
def _counted(text: str, order: int) -> tuple[Counter, int]:
    """How often each n-gram up to an order occurs, and the number of tokens."""
    return extract_all_word_ngrams(_TOKENIZE(text.rstrip()), 1, order)


# What the strategies make of it.


def setting_scores(generations: pd.DataFrame, embed: Embed, seed: int = 0) -> pd.DataFrame:
    """Validity and the three diversities (`MEASURES`) of every prompt under every setting.

    Each diversity is over as many texts as the smallest setting has, a seeded sample of others,
    since self-BLEU rises with their number. Invalid texts are among them: the paper does not say.

    Args:
        generations: a row per text: prompt_id, `SETTING`, text, and a boolean valid.
        embed: texts to vectors [text, dimension]; called once.
    """
    cells = list(generations.groupby(["prompt_id", *SETTING], sort=False, dropna=False))
    wanted = min(len(own) for _, own in cells)
    rng = np.random.default_rng(seed)
    samples = [own.text.iloc[rng.permutation(len(own))[:wanted]].tolist() for _, own in cells]
    unique = list(dict.fromkeys(text for sample in samples for text in sample))
    vectors = dict(zip(unique, embed(unique), strict=True))
    rows = []
    for (key, own), sample in zip(cells, samples, strict=True):
        row = dict(zip(["prompt_id", *SETTING], key, strict=True))
        row |= {"n_generated": len(own), "n_texts": len(sample), "validity": own.valid.mean()}
        row["embedding_diversity"] = embedding_diversity([vectors[text] for text in sample])
        row["self_bleu"] = self_bleu(sample)
        row["self_bleu_in_groups"] = self_bleu_in_groups(sample, seed=seed)
        rows.append(row)
    return pd.DataFrame(rows)


def settings_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Every setting's means over prompts, which are valid enough, and which is chosen.

    Chosen is, per strategy, the setting with the largest mean embedding diversity among those whose
    mean validity reaches `LEVEL`: one setting for all prompts. The oracle is held to the level
    where it can be; where no setting of it reaches the level, its most valid one is chosen, and
    `valid_enough` says so. A setting whose diversity is undefined at some prompt is not chosen.
    Settings that were not run on the same prompts are an InvalidRequestError.
    """
    prompts = set(scores.prompt_id)
    rows = []
    for key, own in scores.groupby(SETTING, sort=False, dropna=False):
        if set(own.prompt_id) != prompts or own.prompt_id.duplicated().any():
            raise InvalidRequestError(
                f"setting {dict(zip(SETTING, key, strict=True))} has {len(own)} rows for "
                f"{len(prompts)} prompts: every setting needs each prompt once"
            )
        means = own[["validity", *MEASURES]].mean(skipna=False)
        rows.append(dict(zip(SETTING, key, strict=True)) | means.to_dict())
    table = pd.DataFrame(rows)
    table["valid_enough"] = table.validity >= LEVEL - _ROUNDING
    best = [_best_setting(own) for _, own in table.groupby("strategy", sort=False)]
    return table.assign(chosen=table.index.isin([i for i in best if i is not None]))


def comparison(scores: pd.DataFrame) -> pd.DataFrame:
    """Table 1 from one's own texts: the chosen setting of each strategy, and equal budgets.

    Returns:
        A row per strategy: parameter and temperature chosen, validity, tried (settings), usable
        (settings valid enough), n_prompts, each measure's mean with _sd over prompts and bootstrap
        interval _low and _high over prompts, at the chosen setting; budget, the size of the
        smallest grid beside the oracle's; best_of, the exact expected embedding diversity of the
        best of that many settings drawn from the grid (0 counted where none is valid enough), NaN
        where fewer were tried; held_out, the mean embedding diversity where each prompt's setting
        is chosen on the other prompts. NaN for a strategy without a usable setting.
    """
    table = settings_table(scores)
    sizes = table.groupby("strategy", sort=False).size()
    others = sizes.drop(ORACLE, errors="ignore")
    budget = int((others if len(others) else sizes).min())
    tried = table.rename(columns={"embedding_diversity": "diversity"})
    best = best_by_budget(tried, LEVEL - _ROUNDING, by="strategy")
    best_of = best[best.budget == budget].set_index("strategy")["mean"]
    rows = []
    for strategy, own in table.groupby("strategy", sort=False):
        row = {"strategy": strategy, "tried": len(own), "usable": int(own.valid_enough.sum())}
        chosen = own[own.chosen]
        for name in ("parameter", "temperature", "validity"):
            row[name] = chosen[name].iloc[0] if len(chosen) else np.nan
        at = _at_chosen(scores, chosen)
        row["n_prompts"] = len(at)
        for name in MEASURES:
            found = cluster_interval(at, name, inner=None).columns(name)
            row |= {name: found.pop(name), f"{name}_sd": at[name].std(ddof=1)} | found
        row["held_out"] = _held_out(scores[scores.strategy == strategy])
        row |= {"budget": budget, "best_of": best_of.get(strategy, np.nan)}
        rows.append(row)
    return pd.DataFrame(rows)


def paired_differences(scores: pd.DataFrame) -> pd.DataFrame:
    """The oracle minus each strategy, prompt by prompt at the chosen settings.

    Returns:
        A row per strategy and measure: difference, low, high (bootstrap over prompts), n_prompts,
        in_favour (prompts where the oracle is the more diverse).
    """
    table = settings_table(scores)
    chosen = {s: own[own.chosen] for s, own in table.groupby("strategy", sort=False)}
    oracle = _at_chosen(scores, chosen.pop(ORACLE)).set_index("prompt_id")
    rows = []
    for strategy, setting in chosen.items():
        other = _at_chosen(scores, setting).set_index("prompt_id")
        for name in MEASURES:
            apart = (oracle[name] - other[name]).dropna()
            better = apart > 0 if name == "embedding_diversity" else apart < 0
            row = {"strategy": strategy, "measure": name}
            row |= difference(apart.reset_index(), name, inner=None)
            rows.append(row | {"in_favour": int(better.sum())})
    return pd.DataFrame(rows)


def published_table1() -> pd.DataFrame:
    """Table 1 of the paper, with Table 3's numbers of settings; what ± is, it does not say."""
    return pd.read_csv(paths.package_data("published", "table1.csv"))


def _best_setting(own: pd.DataFrame) -> int | None:
    """Index of the strategy's chosen setting; None where none is valid enough to be compared."""
    usable = own[own.valid_enough].embedding_diversity.dropna()
    if len(usable):
        return usable.idxmax()
    return own.validity.idxmax() if own.strategy.iloc[0] == ORACLE else None


def _at_chosen(scores: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The scores of every prompt at the one chosen setting; no rows where none is chosen."""
    return scores.merge(chosen[SETTING], on=SETTING)


def _held_out(own: pd.DataFrame) -> float:
    """Mean diversity of prompts at the setting that is best on the others."""
    setting = own.groupby(SETTING, sort=False, dropna=False).ngroup()
    prompt = own.groupby("prompt_id", sort=False).ngroup()
    n_prompts = prompt.max() + 1
    if n_prompts < 2:
        return float("nan")
    wide = np.full((2, setting.max() + 1, n_prompts), np.nan)
    wide[:, setting, prompt] = own[["validity", "embedding_diversity"]].to_numpy().T
    validity, diversity = (wide.sum(axis=2, keepdims=True) - wide) / (n_prompts - 1)
    usable = (validity >= LEVEL - _ROUNDING) & np.isfinite(diversity)
    best = np.where(usable, diversity, -np.inf).argmax(axis=0)
    none = ~usable.any(axis=0)
    if own.strategy.iloc[0] == ORACLE:
        best = np.where(none, validity.argmax(axis=0), best)
        none[:] = False
    return float(np.where(none, np.nan, wide[1, best, np.arange(n_prompts)]).mean())


STRATEGIES = ("top_k", "min_p", "top_p", "none")
_GRIDS = {
    name: [rule for rule in cutoffs.table3_rules() if rule.name == name] for name in STRATEGIES
}


def plan_generations(
    prompt_ids: list[str], n_texts: int = 24, budget: int | None = 4, seed: int = 0
) -> pd.DataFrame:
    """The settings to run, the same for every prompt, and the number of texts of each.

    The defaults fit a laptop; `n_texts=1000, budget=None` is the paper's size: 72, 60, 48 and 12
    settings. The paper does not give the temperature after the oracle's two steps; it is 1 here.

    Args:
        budget: settings drawn from each strategy's grid of Table 3, at most 12; None takes all.

    Returns:
        A row per prompt and setting: prompt_id, strategy, rule (as `parse_rule` reads it; "none"
        after the oracle's steps), parameter, temperature, n_texts, seed (its own).
    """
    rng = np.random.default_rng(seed)
    settings = []
    for strategy, rules in _GRIDS.items():
        grid = [(strategy, rule, t) for rule in rules for t in cutoffs.TABLE3_TEMPERATURES]
        kept = range(len(grid)) if budget is None else sorted(rng.permutation(len(grid))[:budget])
        settings += [grid[i] for i in kept]
    settings.append((ORACLE, cutoffs.NoCutoff(), 1.0))
    rows = []
    for prompt in prompt_ids:
        for strategy, rule, t in settings:
            own = _seed_of(seed, prompt, strategy, rule.key, t)
            rows.append((prompt, strategy, rule.key, rule.parameter, t, n_texts, own))
    columns = ["prompt_id", "strategy", "rule", "parameter", "temperature", "n_texts", "seed"]
    return pd.DataFrame(rows, columns=columns)


def forced_tokens(candidates: pd.DataFrame, n_texts: int, seed: int = 0) -> dict[str, list[tuple]]:
    """The oracle's first two tokens for each text of each prompt that has a valid pair.

    The first token is drawn with replacement from those with a valid second token, then the second
    from that one's valid tokens: uniform per step, not over pairs.

    Args:
        candidates: labelled candidates of depths 1 and 2 (`sweeps.node_table`), one seed a prompt.

    Returns:
        prompt_id -> `n_texts` pairs of token ids, in which one pair may occur again.
    """
    ids = candidates.set_index(["prompt_id", "node", "rank"]).token_id
    found: dict[str, list[tuple]] = {}
    for run, own in candidates.groupby(["prompt_id", "category", "seed"], sort=False):
        pairs = own[(own.depth == 2) & own.valid]
        after = {node[0]: np.sort(rows["rank"].to_numpy()) for node, rows in pairs.groupby("node")}
        if not after:
            continue
        rng = np.random.default_rng(_seed_of(seed, *run, "paths"))
        one = rng.choice(sorted(after), size=n_texts)
        two = [rng.choice(after[rank]) for rank in one]
        found[run[0]] = [
            (int(ids[run[0], (), first]), int(ids[run[0], (first,), second]))
            for first, second in zip(one, two, strict=True)
        ]
    return found


def _seed_of(*parts) -> int:
    """A seed of its own for each piece of work, the same whatever else is planned."""
    return zlib.crc32("|".join(map(str, parts)).encode())


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
        plan, forced: of `plan_generations` and `forced_tokens`.
        prompts: those of the plan, by id.
        max_tokens: of a text, the oracle's forced tokens counted.
        end: what closes a text, as in `sweeps.Sweep`.

    Returns:
        A row per text: prompt_id, category, `SETTING`, sample, text, ended.
    """
    ids = list(dict.fromkeys(plan.prompt_id))
    starts = {key: start_of(model, prompts[key], end) for key in ids}
    of_prompt = dict(list(plan.groupby("prompt_id", sort=False)))

    def make(prompt_id: str) -> pd.DataFrame:
        own, rows = of_prompt[prompt_id], []
        for oracle, part in own.groupby(own.strategy == ORACLE):
            first = forced[prompt_id] if oracle else [()] * part.n_texts.iloc[0]
            settings = [_settings_of(*setting) for setting in part[SETTING].itertuples(index=False)]
            left = max_tokens - len(first[0])
            drawn = draw_texts(model, starts[prompt_id], settings, part.seed.tolist(), first, left)
            for key, texts in zip(part[SETTING].itertuples(index=False), drawn, strict=True):
                key = (prompt_id, prompts[prompt_id].category, *key)
                rows += [(*key, sample, *text) for sample, text in enumerate(texts)]
        columns = ["prompt_id", "category", *SETTING, "sample", "text", "ended"]
        return pd.DataFrame(rows, columns=columns)

    asked = {}
    for key, own in of_prompt.items():
        listed = [tuple(map(str, row)) for row in own.itertuples(index=False, name=None)]
        asked[key] = [starts[key].ids, starts[key].end_ids, forced[key], listed]
    settings = {"max_tokens": max_tokens, "prompts": ids, "n": int(plan.n_texts.max())}
    record = programs.record_of(model, asked, settings)
    return records.kept(records.folder_of(results_dir, model.key, name), record, ids, make)


def _settings_of(strategy: str, parameter: float, temperature: float) -> dict:
    cutoff = {"top_k": int, "top_p": float, "min_p": float}.get(strategy)
    return {"temperature": temperature} | ({strategy: cutoff(parameter)} if cutoff else {})


def draw_texts(
    model: Model,
    start: Start,
    settings: Sequence[Mapping],
    seeds: Sequence[int],
    forced: Sequence[tuple[int, ...]],
    max_tokens: int,
) -> list[list[tuple[str, bool]]]:
    """Texts drawn by transformers' `generate` under each of some settings.

    Every setting has a generator of its own. As many settings as fit are drawn in one pass a token,
    which changes no text but for near-ties in the last digits of the logits.

    Args:
        settings: of temperature, top_k, top_p and min_p, applied in this order.
        seeds: of the settings.
        forced: the first tokens of every text of a setting, the same number for all.
        max_tokens: of a text, forced ones not counted.

    Returns:
        Of each setting the texts with their forced tokens and without their end token, each with
        whether it ended. A text whose forced tokens hold an end token stops there.
    """
    device = model.network.get_input_embeddings().weight.device
    found, at_once = [[] for _ in settings], max(1, _TOGETHER // min(len(forced), ROWS))
    fork = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with fork, torch.inference_mode():
        for first in range(0, len(settings), at_once):
            together = slice(first, first + at_once)
            texts = found[together]
            chooser = _chooser(settings[together], seeds[together], device)
            for begun in range(0, len(forced), ROWS):
                openings = forced[begun : begun + ROWS]
                drawn = _generated(model, start, [*openings] * len(texts), max_tokens, chooser)
                for i, own in enumerate(texts):
                    own += drawn[i * len(openings) : (i + 1) * len(openings)]
    return found


def _chain(setting: Mapping):
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as warpers

    kinds = {"temperature": warpers.TemperatureLogitsWarper, "top_k": warpers.TopKLogitsWarper}
    kinds |= {"top_p": warpers.TopPLogitsWarper, "min_p": warpers.MinPLogitsWarper}
    return LogitsProcessorList(make(setting[key]) for key, make in kinds.items() if key in setting)


def _chooser(settings: Sequence[Mapping], seeds: Sequence[int], device: torch.device):
    """Draws under each setting from its own generator, and leaves only what it drew."""
    from transformers import LogitsProcessor

    chains = list(map(_chain, settings))
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    class Chosen(LogitsProcessor):
        def __call__(self, ids, scores):
            out, n = torch.full_like(scores, -torch.inf), len(scores) // len(chains)
            for i, (chain, generator) in enumerate(zip(chains, generators, strict=True)):
                own = slice(i * n, (i + 1) * n)
                p = chain(ids[own], scores[own]).softmax(dim=-1)
                out[own].scatter_(1, torch.multinomial(p, 1, generator=generator), 0.0)
            return out

    return Chosen()


def _generated(
    model: Model, start: Start, forced: list[tuple[int, ...]], max_tokens: int, chooser
) -> list[tuple[str, bool]]:
    """One text after each forced beginning: without the end token, and whether it ended."""
    network, ends = model.network, start.end_ids
    options = programs.NEUTRAL | {"do_sample": True, "max_new_tokens": max_tokens}
    options |= {"eos_token_id": list(ends), "pad_token_id": ends[0], "logits_processor": [chooser]}
    ids = [[*start.ids, *tokens] for tokens in forced]
    rows = torch.tensor(ids, device=network.get_input_embeddings().weight.device)
    shared = _prompt_once(model, start, len(rows))
    out = network.generate(rows, attention_mask=torch.ones_like(rows), **options, **shared)
    found = []
    for text in out[:, len(start.ids) :].tolist():
        stop = next((i for i, token in enumerate(text) if token in ends), None)
        found.append((model.tokenizer.decode(text[:stop]), stop is not None))
    return found


def _prompt_once(model: Model, start: Start, n: int) -> dict:
    """The prompt's keys and values for `n` rows, which `generate` would compute for each row.

    All but its last token, whose logits `generate` has to compute itself.
    """
    if len(start.ids) == 1:
        return {}
    _, state = read_prompt(model.network, start.ids[:-1])
    rows = continue_rows(state, state.ids.new_zeros(n)).cache
    return {"use_cache": False} if rows is None else {"past_key_values": rows}

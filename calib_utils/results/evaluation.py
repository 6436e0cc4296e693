"""One request for numbers: stored rows where they stand for a computation, else a measurement.

Knows the arithmetic in `measure` and the files in `storage`, and puts the two together.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils.core import metrics, prompts
from calib_utils.core import split as steps
from calib_utils.core.processors import Processors, check_rules, check_temperatures, is_known
from calib_utils.core.prompts import Policies, Prompt
from calib_utils.core.rules import Rule, Sampler
from calib_utils.core.split import REPAIRS, require_one_sequence, shapley
from calib_utils.core.tasks import Task, get_task
from calib_utils.core.tries import Sequences, Trie, uniform_over_valid, weighted_by_count
from calib_utils.errors import (
    InvalidRequestError,
    InvalidRuleError,
    ModelFormatError,
    ResultsError,
    whole_number,
)
from calib_utils.models.loading import Model, load_model
from calib_utils.results import conventions, records, storage
from calib_utils.results.conventions import ROWS
from calib_utils.results.measure import Measurement, Settings, measure, untouched
from calib_utils.results.storage import COLUMNS, FRONTIER_COLUMNS, KEY, LOSS_COLUMNS, Tables


@dataclass(frozen=True)
class Request:
    """A model, a task, the conventions, and where rows are kept (None: nowhere)."""

    model: Model
    task: Task
    policies: Policies
    prompt: Prompt
    batch_size: int | None
    folder: Path | None

    def tables(
        self,
        settings: Settings,
        answer_temperatures: Sequence[float] = (),
        losses: bool = False,
        frontier: bool = False,
    ) -> Tables:
        """What is asked for, in that order; measures in one pass whatever is missing.

        Args:
            losses: the step losses of every setting as well.
            frontier: the frontier over adaptive cutoffs as well.

        Raises:
            InvalidRequestError: one of these, where an answer has several token sequences.
        """
        if losses or frontier:
            require_one_sequence(self.prompt.trie)
        have = before = self._stored()
        # A name has to say what the sampler does for its rows to be stored.
        known = np.array([is_known(sampler) for sampler, _ in settings], dtype=bool)
        absent = ~known | _absent(settings, have.settings)
        if losses:
            cuts = np.array([can_be_split(sampler) for sampler, _ in settings], dtype=bool)
            absent |= known & cuts & _absent(settings, have.losses.drop_duplicates(KEY))
        todo = list(compress(settings, absent))
        todo_answers = [t for t in answer_temperatures if t not in set(have.answers.temperature)]
        todo += [pair for pair in untouched(todo_answers) if pair not in todo]
        todo_frontier = frontier and have.frontier.empty
        if todo_frontier and not todo and have.settings.empty:
            todo = untouched([1.0])  # what is stored has settings
        if todo or todo_frontier:
            if self.folder is not None:
                storage.require_writable(self.folder)
            new, record = self._measure(todo, todo_answers, losses, todo_frontier)
            have = _joined(before, new)
            passing = {sampler.name for sampler, _ in compress(settings, ~known)}
            own = {n: t[~t.rule.isin(passing)] for n, t in vars(new).items() if "rule" in t}
            new = replace(new, **own)
            if self.folder is not None and not (new.settings.empty and new.frontier.empty):

                def beside_what_is_stored_now() -> Tables:  # another run may have added some
                    return _joined(_joined(self._stored(), before), new)

                storage.write(self.folder, beside_what_is_stored_now, record)
        wanted = keys(settings)
        answers = [have.answers[have.answers.temperature == t] for t in answer_temperatures]
        return Tables(
            wanted.merge(have.settings, how="left", on=KEY)[COLUMNS],
            pd.concat([*answers, have.answers.iloc[:0]], ignore_index=True),
            wanted.merge(have.losses, on=KEY)[LOSS_COLUMNS] if losses else have.losses.iloc[:0],
            have.frontier if frontier else have.frontier.iloc[:0],
        )

    def identity(self) -> dict:
        """What stored rows must be of to stand for a measurement now (`conventions`)."""
        prompt_ids = repr(self.prompt.ids).encode()
        return {
            "weights_sha256": self.model.weights_sha256,
            "prompt_sha256": hashlib.sha256(prompt_ids).hexdigest(),
            "sequences_sha256": _in_fixed_order(self.prompt.sequences).fingerprint(),
            "dtype": self.model.dtype,
            "convention": conventions.CURRENT[ROWS],
        }

    def _stored(self) -> Tables:
        """Stored rows that stand for a computation now; those of an older convention do not.

        Rows of another model or task raise a ResultsError: they are not overwritten.
        """
        stored = None if self.folder is None else storage.read(self.folder)
        if stored is None:
            return Tables()
        conventions.require_same(self.folder, ROWS, stored.record, self.identity())
        return stored if conventions.is_current(ROWS, stored.record) else Tables()

    def _measure(
        self, settings: Settings, answer_temperatures: list[float], losses: bool, frontier: bool
    ) -> tuple[Tables, dict]:
        began = time.perf_counter()
        _require_room(self.model, self.prompt)
        found = measure(
            self.model,
            self.prompt,
            settings,
            batch_size=self.batch_size,
            ranks=frontier or losses,
            description=f"{self.model.name} on {self.task.name}",
        )
        table = keys(settings).assign(
            model=self.model.name,
            task=self.task.name,
            **{name: getattr(found, name) for name in storage.NUMBERS},
            n_answers=len(self.task.answers),
            n_nodes=self.prompt.trie.n_nodes,
        )[COLUMNS]
        columns = [settings.index(pair) for pair in untouched(answer_temperatures)]
        answers = pd.DataFrame(
            {
                "answer": np.tile(np.array(self.task.answers, dtype=object), len(columns)),
                "temperature": np.repeat(answer_temperatures, len(self.task.answers)),
                "log_p": found.answer_log_p[:, columns].T.ravel(),
            }
        ).astype({"temperature": float, "log_p": float})
        more = {"losses": _loss_table(found, settings)} if losses else {}
        if frontier:
            points = steps.adaptive_frontier(found.steps.tokens, found.steps.rank)
            more["frontier"] = pd.DataFrame(points, columns=FRONTIER_COLUMNS)
        record = {
            **self.identity(),
            **records.of_model(self.model),
            "weights_file": self.model.weights_file,
            "task": self.task.name,
            "prompt": self.task.prompt,
            **({"system": self.task.system} if self.task.system else {}),
            **({"aliases": dict(self.task.aliases)} if self.task.aliases else {}),
            "policies": vars(self.policies),
            "seconds": round(time.perf_counter() - began, 2),
            "environment": conventions.environment(self.model.device),
        }
        return Tables(table, answers, **more), record


def _require_room(model: Model, prompt: Prompt) -> None:
    """Refuses a prompt that the network cannot take, which torch calls an index out of range."""
    largest = max(chain(prompt.ids, prompt.end_ids, *prompt.sequences.symbols))
    known = model.network.get_input_embeddings().weight.shape[0]
    if largest >= known:
        raise ModelFormatError(
            f"{model.name}: its tokenizer writes token {largest}, and the weights have embeddings "
            f"for {known} tokens: they are not of one model"
        )
    length = len(prompt.ids) + max(map(len, prompt.sequences.symbols))
    config = getattr(model.network, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ModelFormatError(
            f"{model.name}: prompt and answer have {length} tokens, and the model takes "
            f"{positions} (max_position_embeddings in its config.json): shorten the prompt"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    turn = rope.get("original_max_position_embeddings") or math.inf
    if rope.get("rope_type") == "longrope" and len(prompt.ids) <= turn < length:
        raise ModelFormatError(
            f"{model.name}: its positions are turned otherwise after {turn} tokens (longrope), "
            f"between the prompt's {len(prompt.ids)} and the answer's end at {length}, so that "
            "every token would have two probabilities: shorten or lengthen the prompt"
        )


def _loss_table(found: Measurement, settings: Settings) -> pd.DataFrame:
    """Step losses of every rank cutoff: a row per setting, repair and step (`LOSS_COLUMNS`)."""
    columns = np.flatnonzero(found.steps.is_rank_cutoff)
    rules = [pair for pair in settings if not isinstance(pair[0], Processors)]
    named, parts = keys([rules[column] for column in columns]), []
    for repair in REPAIRS:
        lost = steps.step_losses(found.steps.tokens.trie, found.steps.edge_log_p(columns, repair))
        n_steps, n_settings = lost.validity.shape
        part = named.loc[named.index.repeat(n_steps)].assign(
            repair=repair,
            step=np.tile(np.arange(1, n_steps + 1), n_settings),
            validity_loss=lost.validity.T.ravel(),
            diversity_loss=lost.diversity.T.ravel(),
        )
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _in_fixed_order(sequences: Sequences) -> Sequences:
    """Several sequences an answer come in no fixed order: a vocabulary is a hash table."""
    if len(sequences.symbols) == sequences.n_answers:
        return sequences
    pairs = sorted(zip(sequences.symbols, sequences.answer, strict=True))
    symbols, answer = zip(*pairs, strict=True)
    return replace(sequences, symbols=symbols, answer=answer)


def keys(settings: Settings) -> pd.DataFrame:
    """What names the row of each setting in a table: `storage.KEY`."""
    rows = [(sampler.name, sampler.parameter, temperature) for sampler, temperature in settings]
    return pd.DataFrame(rows, columns=KEY).astype({"parameter": float, "temperature": float})


def _absent(settings: Settings, table: pd.DataFrame) -> np.ndarray:
    """Which settings have no row in a table. [setting]"""
    here = table[KEY].astype({"parameter": float, "temperature": float})
    found = keys(settings).merge(here, how="left", on=KEY, indicator=True)
    return (found["_merge"] == "left_only").to_numpy()


def _joined(old: Tables, new: Tables) -> Tables:
    """Both measurements' rows; where they have the same ones, the old."""
    found = {"frontier": new.frontier if old.frontier.empty else old.frontier}
    for name in ("settings", "answers", "losses"):
        found[name] = getattr(new, name)
        if parts := [t for t in (getattr(old, name), getattr(new, name)) if not t.empty]:
            both = pd.concat(parts, ignore_index=True)
            found[name] = both.drop_duplicates(storage.ROW_KEYS[name], ignore_index=True)
    return Tables(**found)


# The public way to a number: check what is asked, then have a `Request` reuse it or measure it.


def evaluate(
    model: Model | str,
    task: Task | str,
    rules: Iterable[Sampler | str] = ("none",),
    temperatures: Sequence[float] = (1.0,),
    *,
    answer_temperatures: Sequence[float] = (),
    details: bool = False,
    end: str | None = None,
    tokenizations: str = "canonical",
    surface: str = "exact",
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Exact validity and diversity of a model on a task, for every rule and temperature.

    Args:
        model: a loaded model, or a name for `load_model`.
        task: a task, or a name for `get_task`.
        rules: cutoffs, as objects or as strings such as `"top_k=50"`; or `Processors` around
            logits processors of transformers, whose rows are computed now and never stored.
        temperatures: each above 0; applied before the cutoff.
        answer_temperatures: where to store ln p of every answer as well, in the same pass, for
            `answer_probabilities` to find in `results_dir`.
        details: in the same pass, store also what `step_losses` and `adaptive_frontier` return.
        end, tokenizations, surface: what counts as an answer, see `prompts.Policies`; `end` is
            the task's own by default, which is "eos" unless a task says otherwise.
        batch_size: nodes per forward pass; chosen for the device by default.
        results_dir: where to look for rows of the same weights, task and conventions, and to
            store new ones. Without it everything is computed now and nothing is kept.

    Returns:
        One row per (rule, temperature) with the columns of `storage.COLUMNS`: validity and
        diversity (Def. 3.1), sequence precision and recall (Def. 4.1), |V| and trie nodes.

    Raises:
        CalibUtilsError: a named subclass, before the model runs wherever possible.
    """
    settings = _settings(rules, temperatures)
    none = isinstance(answer_temperatures, Sequence) and not answer_temperatures
    also = [] if none else check_temperatures(answer_temperatures)
    request = request_for(
        model,
        task,
        batch_size=batch_size,
        results_dir=results_dir,
        **{"end": end, "tokenizations": tokenizations, "surface": surface},
    )
    return request.tables(settings, also, losses=details, frontier=details).settings


def answer_probabilities(
    model: Model | str, task: Task | str, temperatures: Sequence[float] = (1.0,), **options
) -> pd.DataFrame:
    """ln p of every valid answer under temperature alone: columns answer, temperature, log_p.

    Answers come in the task's order (Fig. 5 right, 10).

    Args:
        options: end, tokenizations, surface, batch_size and results_dir of `evaluate`, here and in
            the functions below.
    """
    temperatures = check_temperatures(temperatures)
    return request_for(model, task, **options).tables([], temperatures).answers


def step_losses(
    model: Model | str,
    task: Task | str,
    rules: Iterable[Rule | str] = ("none",),
    temperatures: Sequence[float] = (1.0,),
    **options,
) -> pd.DataFrame:
    """What each step of an answer loses of validity and of diversity, as measured and repaired.

    The arguments are those of `evaluate`; rules that keep no top prefix of the ranking are refused.

    Returns:
        One row per setting, repair and step, in nats. Over steps `validity_loss` sums to -ln Val
        and `diversity_loss` to -ln Div of the repaired decoder (`split`, `split.Steps`).

    Raises:
        InvalidRuleError: a sampler whose order cannot be repaired.
        InvalidRequestError: an answer has several token sequences.
    """
    return _with_losses(model, task, rules, temperatures, options).losses


def _with_losses(model, task, rules, temperatures, options) -> Tables:
    settings = _settings(rules, temperatures)
    for sampler, _ in settings:
        if not can_be_split(sampler):
            raise InvalidRuleError(
                f"{sampler.key!r} keeps no top prefix of the ranking, so order and shape are not "
                "told apart for it: leave it out"
            )
    return request_for(model, task, **options).tables(settings, losses=True)


def can_be_split(sampler: Sampler) -> bool:
    """Whether order and shape are told apart for it: it keeps a top prefix of the ranking."""
    return getattr(sampler, "is_rank_cutoff", False)


_LOSSES = ["validity_loss", "diversity_loss"]
PARTS = ["total", "order", "shape", "size"]


def split(
    model: Model | str,
    task: Task | str,
    rules: Iterable[Rule | str] = ("none",),
    temperatures: Sequence[float] = (1.0,),
    **options,
) -> pd.DataFrame:
    """The rows of `evaluate`, and what each loses to order, shape and size, in nats.

    Arguments and errors are those of `step_losses`.

    Returns:
        Its columns and those of `PARTS`: `total` is -ln(Val Div), the sum of the other three. It,
        order and shape are NaN where nothing is valid.
    """
    task = get_task(task)
    found = _with_losses(model, task, rules, temperatures, options)
    parts = split_table(found.losses.assign(task=task.name))
    return found.settings.merge(parts, how="left", on=["task", *KEY])


def split_table(losses: pd.DataFrame) -> pd.DataFrame:
    """The loss -ln(Val Div) of every task and setting between order, shape and size, in nats.

    Of rows of `step_losses` with a column `task`. `size` is what an ordered and reshaped model
    still loses, because the rule keeps more tokens than are valid, or fewer.
    """
    by = ["task", *KEY]
    summed = losses.groupby([*by, "repair"], dropna=False, sort=False)[_LOSSES].sum(min_count=1)
    wide = summed.sum(axis=1, min_count=2).unstack("repair", sort=False)
    parts = shapley({repair: wide[repair].to_numpy() for repair in REPAIRS})
    named = {"total": parts.total, "order": parts.order, "shape": parts.shape, "size": parts.rest}
    return pd.DataFrame(named, index=wide.index).rename_axis(by).reset_index()


def adaptive_frontier(model: Model | str, task: Task | str, **options) -> pd.DataFrame:
    """The best sequence precision and recall that any adaptive rank cutoff reaches (Def. 4.1).

    Returns:
        The supported points, columns sequence_precision and sequence_recall: corners of the convex
        hull, each attained; no temperature changes them.
    """
    return request_for(model, task, **options).tables([], frontier=True).frontier


def render_prompt(model: Model | str, task: Task | str, **policies: str) -> Prompt:
    """The prompt text, its ids and the answers' trie, as `evaluate` uses them."""
    return request_for(model, task, **policies).prompt


def show_prompt(model: Model | str, task: Task | str, **policies: str) -> None:
    """Prints exactly what the model sees for a task, and how its answers become tokens."""
    own = request_for(model, task, **policies)
    tokenizer, why = own.model.tokenizer, own.model.chat_or_why[1]
    print(prompts.describe(tokenizer, own.task, own.prompt, own.policies, why))


def stored_measurement(
    model: Model | str, task: Task | str, results_dir: str | Path, end: str | None = None
) -> storage.Stored:
    """What is stored for a model and task under these conventions, record included.

    Raises:
        ResultsError: nothing is stored, or it is corrupt.
    """
    request = request_for(model, task, results_dir=results_dir, end=end)
    if request.folder is None:
        raise InvalidRequestError(f"results_dir={results_dir!r}: give a folder's path")
    if (stored := storage.read(request.folder)) is None:
        raise ResultsError(
            f"nothing is stored in {request.folder}: run evaluate with this results_dir"
        )
    return stored


def _settings(rules, temperatures) -> Settings:
    """Every rule at every temperature."""
    rules, temperatures = check_rules(rules), check_temperatures(temperatures)
    for rule in rules:
        if isinstance(rule, Processors) and rule.temperature_at is None and temperatures != [1.0]:
            raise InvalidRuleError(
                f"sampler {rule.name!r} leaves temperature to its processors: evaluate it at "
                f"temperature 1.0, not {temperatures}, or set temperature_at"
            )
    return [(rule, temperature) for rule in rules for temperature in temperatures]


def request_for(
    model: Model | str,
    task: Task | str,
    *,
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
    end: str | None = None,
    **others: str,
) -> Request:
    """What the functions of this module ask with, checked; `end` and others as in `Policies`.

    Raises:
        InvalidRequestError: a batch size or a folder that is none.
    """
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size)
    if not isinstance(results_dir, str | Path | None) or results_dir == "":
        raise InvalidRequestError(f"results_dir={results_dir!r}: give a folder's path, or None")
    task = get_task(task)
    policies, model = Policies(task.end if end is None else end, **others), load_model(model)
    folder = None
    if results_dir is not None:
        suffix = policies.suffix + (f"@dtype={model.dtype}" if model.dtype != "float32" else "")
        folder = storage.folder_of(Path(results_dir), model.key, task.name, suffix)
    prompt = prompts.render(model.tokenizer, task, policies)
    return Request(model, task, policies, prompt, batch_size, folder)


def share_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share, 95 % by default.

    >>> tuple(round(x, 3) for x in share_interval(50, 100))
    (0.404, 0.596)
    """
    share, scale = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return float(centre - half), float(centre + half)


# What a task's answer set looks like before any model runs: size, branching, structural ceiling.


def structural_facts(
    model: Model | str, tasks: Iterable[Task | str] | Task | str, *, end: str | None = None
) -> pd.DataFrame:
    """One row per task, or for one task: what is fixed by the answers and the tokenizer alone.

    Columns: task; answers |V|; nodes (prefixes where the model is asked); tokens per answer;
    valid next tokens |G| by step; `uniform_over_g`, the diversity of a model that is perfectly
    ordered, never invalid and uniform over G; `weighted_by_n`, the same for a shape-calibrated
    model (Def. D.1), which is 1.
    """
    rows = []
    for task in [tasks] if isinstance(tasks, Task | str) else tasks:
        task = get_task(task)
        trie = render_prompt(model, task, end=end).trie
        lengths = trie.node_depth[trie.edge_node[trie.sequence_edge]] + 1  # the end token included
        rows.append(
            {
                "task": task.name,
                "answers": trie.n_answers,
                "nodes": trie.n_nodes,
                "tokens per answer": _span(lengths),
                "valid next tokens by step": branching_by_step(trie),
                "uniform_over_g": diversity_of(trie, uniform_over_valid(trie)),
                "weighted_by_n": diversity_of(trie, weighted_by_count(trie)),
            }
        )
    return pd.DataFrame(rows)


def diversity_of(trie: Trie, edge_log_p: np.ndarray) -> float:
    """Div (Def. 3.1) of a model given by its log-probabilities on the trie's edges [edge]."""
    sequences = metrics.sequence_log_probability(trie, edge_log_p[:, None])
    return float(metrics.diversity(metrics.answer_log_probability(trie, sequences))[0])


def branching_by_step(trie: Trie) -> str:
    """|G| at every depth, as `smallest-largest` where it varies."""
    depths = range(int(trie.node_depth.max()) + 1)
    return " · ".join(_span(trie.node_branching[trie.node_depth == depth]) for depth in depths)


def _span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low}–{high}"

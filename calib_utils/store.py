"""One request for numbers: stored rows where they stand for a computation, else a measurement.

Knows the arithmetic in `measure` and the files in `results`, and puts the two together.
"""

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import adaptive, conventions, provenance, results, split
from calib_utils.errors import ModelFormatError
from calib_utils.measure import Measurement, Settings, measure, untouched
from calib_utils.models import Model
from calib_utils.parsing import is_known
from calib_utils.processors import Processors
from calib_utils.prompts import Policies, Prompt
from calib_utils.schema import COLUMNS, FRONTIER_COLUMNS, KEY, LOSS_COLUMNS, Tables
from calib_utils.steps import REPAIRS, require_one_sequence
from calib_utils.tasks import Task
from calib_utils.tries import Sequences


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
        answer_temperatures: list[float] | None = None,
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
        answer_temperatures = answer_temperatures or []
        # A name has to say what the sampler does for its rows to be stored.
        kept = [(s, t) for s, t in settings if is_known(s)]
        passing = [(s, t) for s, t in settings if not is_known(s)]
        stored = self._stored()
        todo, todo_answers, todo_frontier = kept, answer_temperatures, frontier
        if stored is not None:
            absent = _absent(kept, stored.settings)
            if losses:
                cuts = np.array([rule.is_rank_cutoff for rule, _ in kept], dtype=bool)
                absent = absent | (cuts & _absent(kept, stored.losses.drop_duplicates(KEY)))
            todo = [setting for setting, missing in zip(kept, absent, strict=True) if missing]
            present = set(stored.answers.temperature)
            todo_answers = [t for t in answer_temperatures if t not in present]
            todo_frontier = frontier and stored.frontier.empty
        have = stored
        if todo or todo_answers or todo_frontier or passing:
            if self.folder is not None:
                results.require_writable(self.folder)
            todo = list(dict.fromkeys([*todo, *untouched(todo_answers)]))
            if todo_frontier and not todo and stored is None:
                todo = untouched([1.0])  # what is stored has settings
            new, record = self._measure([*todo, *passing], todo_answers, losses, todo_frontier)
            have = new if stored is None else _joined(stored, new)
            if self.folder is not None and (todo or todo_frontier):
                names = {sampler.name for sampler, _ in passing}
                results.update(
                    self.folder, lambda: _without(self._with_stored(new, stored), names), record
                )
        wanted = keys(settings)
        parts = [have.answers[have.answers.temperature == t] for t in answer_temperatures]
        return Tables(
            wanted.merge(have.settings, how="left", on=KEY)[COLUMNS],
            pd.concat(parts, ignore_index=True) if parts else have.answers.iloc[:0],
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
            "convention": conventions.CURRENT[conventions.ROWS],
        }

    def _stored(self) -> results.Stored | None:
        """Stored rows that stand for a computation now; those of an older convention do not.

        Raises:
            ResultsError: rows of another model or task hold the place; they are not overwritten.
        """
        stored = results.read(self.folder) if self.folder is not None else None
        if stored is None:
            return None
        conventions.require_same(self.folder, conventions.ROWS, stored.record, self.identity())
        return stored if conventions.is_current(conventions.ROWS, stored.record) else None

    def _with_stored(self, new: Tables, before: Tables | None) -> Tables:
        """New rows beside those stored now: another run may have added some meanwhile."""
        stored = self._stored() or before
        return new if stored is None else _joined(stored, new)

    def _measure(
        self,
        settings: Settings,
        answer_temperatures: list[float],
        losses: bool,
        frontier: bool,
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
        named = keys(settings)
        table = pd.DataFrame(
            {
                "model": self.model.name,
                "task": self.task.name,
                **named,
                "validity": found.validity,
                "diversity": found.diversity,
                "sequence_precision": found.sequence_precision,
                "sequence_recall": found.sequence_recall,
                "n_answers": len(self.task.answers),
                "n_nodes": self.prompt.trie.n_nodes,
            }
        )
        plain = untouched(answer_temperatures)
        columns = [settings.index(pair) for pair in plain]
        answers = pd.DataFrame(
            {
                "answer": np.tile(np.array(self.task.answers, dtype=object), len(plain)),
                "temperature": np.repeat(answer_temperatures, len(self.task.answers)),
                "log_p": found.answer_log_p[:, columns].T.ravel(),
            }
        ).astype({"temperature": float, "log_p": float})
        points = np.empty((0, 2))
        if frontier:
            points = adaptive.adaptive_frontier(found.steps.tokens, found.steps.rank)
        tables = Tables(
            table,
            answers,
            loss_table(found, settings) if losses else Tables(table).losses,
            pd.DataFrame(points, columns=FRONTIER_COLUMNS),
        )
        record = {
            **self.identity(),
            "model": self.model.name,
            "weights_file": self.model.weights_file,
            "revision": self.model.revision,
            "task": self.task.name,
            "prompt": self.task.prompt,
            "policies": vars(self.policies),
            "seconds": round(time.perf_counter() - began, 2),
            "environment": provenance.environment(self.model.device),
        }
        return tables, record


def _require_room(model: Model, prompt: Prompt) -> None:
    """Refuses a prompt that the network cannot take, which torch calls an index out of range.

    Raises:
        ModelFormatError: a token without an embedding, or more tokens than it has positions.
    """
    tokens = {token for sequence in prompt.sequences.symbols for token in sequence}
    largest = max(tokens.union(prompt.ids))
    known = model.network.get_input_embeddings().weight.shape[0]
    if largest >= known:
        raise ModelFormatError(
            f"{model.name}: its tokenizer writes token {largest}, and the weights have embeddings "
            f"for {known} tokens: they are not of one model"
        )
    length = len(prompt.ids) + max(map(len, prompt.sequences.symbols))
    positions = getattr(getattr(model.network, "config", None), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ModelFormatError(
            f"{model.name}: prompt and answer have {length} tokens, and the model takes "
            f"{positions} (max_position_embeddings in its config.json): shorten the prompt"
        )


def loss_table(found: Measurement, settings: Settings) -> pd.DataFrame:
    """Step losses of every rank cutoff among the settings, as measured and repaired.

    Returns:
        One row per setting, repair and step: `schema.LOSS_COLUMNS`.
    """
    trie, steps = found.steps.tokens.trie, found.steps
    rules = [pair for pair in settings if not isinstance(pair[0], Processors)]
    columns = np.flatnonzero(steps.is_rank_cutoff)
    named, parts = keys([rules[column] for column in columns]), []
    for repair in REPAIRS:
        lost = split.step_losses(trie, steps.edge_log_p(columns, repair))
        n_steps, n_settings = lost.validity.shape
        part = named.loc[np.repeat(np.arange(n_settings), n_steps)].reset_index(drop=True)
        part["repair"] = repair
        part["step"] = np.tile(np.arange(1, n_steps + 1), n_settings)
        part["validity_loss"] = lost.validity.T.ravel()
        part["diversity_loss"] = lost.diversity.T.ravel()
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
    """What names the row of each setting in a table: `schema.KEY`."""
    rows = [(sampler.name, sampler.parameter, temperature) for sampler, temperature in settings]
    return pd.DataFrame(rows, columns=KEY).astype({"parameter": float, "temperature": float})


def _absent(settings: Settings, table: pd.DataFrame) -> np.ndarray:
    """Which settings have no row in a table. [setting]"""
    here = table[KEY].astype({"parameter": float, "temperature": float})
    found = keys(settings).merge(here, how="left", on=KEY, indicator=True)
    return (found["_merge"] == "left_only").to_numpy()


def _joined(old: Tables, new: Tables) -> Tables:
    """Both measurements' rows; where they have the same ones, the old."""

    def joined(name: str, key: list[str]) -> pd.DataFrame:
        parts = [t for t in (getattr(old, name), getattr(new, name)) if not t.empty]
        if not parts:
            return getattr(new, name)
        return pd.concat(parts, ignore_index=True).drop_duplicates(key, ignore_index=True)

    return Tables(
        joined("settings", KEY),
        joined("answers", ["answer", "temperature"]),
        joined("losses", [*KEY, "repair", "step"]),
        new.frontier if old.frontier.empty else old.frontier,
    )


def _without(tables: Tables, samplers: set[str]) -> Tables:
    """The tables without rows of some samplers."""
    settings, losses = (
        table[~table.rule.isin(samplers)].reset_index(drop=True)
        for table in (tables.settings, tables.losses)
    )
    return Tables(settings, tables.answers, losses, tables.frontier)

"""The public way to a number: validate the request, reuse stored rows that match, else measure.

Knows the whole chain; the arithmetic is in `measure`, the files in `results`.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calib_utils import prompts, provenance, results
from calib_utils.errors import InvalidRequestError, ResultsError
from calib_utils.measure import measure, untouched
from calib_utils.models import Model, load_model
from calib_utils.prompts import Policies, Prompt
from calib_utils.rules import Rule, check_rules, check_temperatures
from calib_utils.tasks import Task, get_task


def evaluate(
    model: Model | str,
    task: Task | str,
    rules: Iterable[Rule | str] = ("none",),
    temperatures: Sequence[float] = (1.0,),
    *,
    answer_temperatures: Sequence[float] = (),
    end: str = "eos",
    tokenizations: str = "canonical",
    surface: str = "exact",
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Exact validity and diversity of a model on a task, for every rule and temperature.

    Args:
        model: a loaded model, or a name for `load_model`.
        task: a task, or a name for `get_task`.
        rules: cutoffs, as objects or as strings such as `"top_k=50"`.
        temperatures: each above 0; applied before the cutoff.
        answer_temperatures: where to store ln p of every answer as well, in the same pass, for
            `answer_probabilities` to find in `results_dir`.
        end, tokenizations, surface: what counts as an answer, see `prompts.Policies`.
        batch_size: nodes per forward pass; chosen for the device by default.
        results_dir: where to look for rows of the same weights, task, conventions and code, and
            to store new ones. Without it everything is computed now and nothing is kept.

    Returns:
        One row per (rule, temperature) with the columns of `results.COLUMNS`: validity and
        diversity (Def. 3.1), sequence precision and recall (Def. 4.1), |V| and trie nodes.

    Raises:
        CalibUtilsError: a named subclass, before the model runs wherever possible.
    """
    rules, temperatures = check_rules(rules), check_temperatures(temperatures)
    request = _request(model, task, Policies(end, tokenizations, surface), batch_size, results_dir)
    settings = [(rule, t) for rule in rules for t in temperatures]
    also = check_temperatures(answer_temperatures) if len(answer_temperatures) else []
    return request.tables(settings, also)[0]


def answer_probabilities(
    model: Model | str,
    task: Task | str,
    temperatures: Sequence[float] = (1.0,),
    *,
    end: str = "eos",
    tokenizations: str = "canonical",
    surface: str = "exact",
    batch_size: int | None = None,
    results_dir: str | Path | None = None,
) -> pd.DataFrame:
    """ln p of every valid answer under temperature alone: columns answer, temperature, log_p.

    The arguments are those of `evaluate`. Answers come in the task's order (Fig. 5 right, 10).
    """
    temperatures = check_temperatures(temperatures)
    request = _request(model, task, Policies(end, tokenizations, surface), batch_size, results_dir)
    return request.tables([], temperatures)[1]


def render_prompt(model: Model | str, task: Task | str, **policies: str) -> Prompt:
    """The prompt text, its ids and the answers' trie, as `evaluate` uses them."""
    model, task = load_model(model), get_task(task)
    return prompts.render(model.tokenizer, task, Policies(**policies))


def show_prompt(model: Model | str, task: Task | str, **policies: str) -> None:
    """Prints exactly what the model sees for a task, and how its answers become tokens."""
    model, task = load_model(model), get_task(task)
    prompt = prompts.render(model.tokenizer, task, Policies(**policies))
    print(prompts.describe(model.tokenizer, task, prompt, Policies(**policies)))


def stored_measurement(
    model: Model | str, task: Task | str, results_dir: str | Path
) -> results.Stored:
    """What is stored for a model and task under the default conventions, record included.

    Raises:
        ResultsError: nothing is stored, or it is corrupt.
    """
    folder = results.folder_of(Path(results_dir), load_model(model).key, get_task(task).name)
    stored = results.read(folder)
    if stored is None:
        raise ResultsError(f"nothing is stored in {folder}: run evaluate with this results_dir")
    return stored


def _request(model, task, policies, batch_size, results_dir) -> "_Request":
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InvalidRequestError(f"batch_size={batch_size!r}: must be a whole number, at least 1")
    task, model = get_task(task), load_model(model)
    folder = None
    if results_dir is not None:
        suffix = policies.suffix + (f"@dtype={model.dtype}" if model.dtype != "float32" else "")
        folder = results.folder_of(Path(results_dir), model.key, task.name, suffix)
    prompt = prompts.render(model.tokenizer, task, policies)
    return _Request(model, task, policies, prompt, batch_size, folder)


@dataclass(frozen=True)
class _Request:
    model: Model
    task: Task
    policies: Policies
    prompt: Prompt
    batch_size: int | None
    folder: Path | None

    def tables(self, settings: list[tuple[Rule, float]], answer_temperatures: list[float]):
        """(settings table, answers table), in the order asked for; measures what is missing."""
        wanted = [(rule.name, rule.parameter, t) for rule, t in settings]
        wanted = pd.DataFrame(wanted, columns=results.KEY).astype(
            {"parameter": float, "temperature": float}
        )
        stored = self._stored()
        have, have_answers = (None, None) if stored is None else (stored.settings, stored.answers)
        todo, todo_answers = settings, answer_temperatures
        if stored is not None:
            absent = wanted.merge(have, how="left", on=results.KEY).validity.isna()
            todo = [pair for pair, is_absent in zip(settings, absent, strict=True) if is_absent]
            present = set(have_answers.temperature)
            todo_answers = [t for t in answer_temperatures if t not in present]
        if todo or todo_answers:
            if self.folder is not None:
                results.require_writable(self.folder)
            new, new_answers, record = self._measure(todo, todo_answers)
            have = pd.concat([have, new], ignore_index=True).drop_duplicates(results.KEY)
            have_answers = pd.concat([have_answers, new_answers], ignore_index=True)
            if self.folder is not None:
                results.write(self.folder, have, have_answers, record)
        rows = wanted.merge(have, how="left", on=results.KEY)[results.COLUMNS]
        parts = [have_answers[have_answers.temperature == t] for t in answer_temperatures]
        return rows, pd.concat(parts, ignore_index=True) if parts else have_answers.iloc[:0]

    def _identity(self) -> dict:
        prompt_ids = repr(self.prompt.ids).encode()
        return {
            "weights_sha256": self.model.weights_sha256,
            "prompt_sha256": hashlib.sha256(prompt_ids).hexdigest(),
            "sequences_sha256": self.prompt.sequences.fingerprint(),
            "dtype": self.model.dtype,
            "code_version": provenance.code_version(),
        }

    def _stored(self) -> results.Stored | None:
        """Stored rows that stand for a computation now; older code's rows do not.

        Raises:
            ResultsError: rows of another model or task hold the place; they are not overwritten.
        """
        stored = results.read(self.folder) if self.folder is not None else None
        if stored is None:
            return None
        stale = stored.stale(self._identity())
        if foreign := [name for name in stale if name != "code_version"]:
            raise ResultsError(
                f"{self.folder} holds rows of another measurement (differs in "
                f"{', '.join(foreign)}): use another results_dir, rename the task, or delete it"
            )
        return None if stale else stored

    def _measure(self, settings: list[tuple[Rule, float]], answer_temperatures: list[float]):
        plain = untouched(answer_temperatures)
        settings = list(dict.fromkeys([*settings, *plain]))
        began = time.perf_counter()
        found = measure(
            self.model,
            self.prompt,
            settings,
            batch_size=self.batch_size,
            description=f"{self.model.name} on {self.task.name}",
        )
        table = pd.DataFrame(
            {
                "model": self.model.name,
                "task": self.task.name,
                "rule": [rule.name for rule, _ in settings],
                "parameter": [rule.parameter for rule, _ in settings],
                "temperature": [temperature for _, temperature in settings],
                "validity": found.validity,
                "diversity": found.diversity,
                "sequence_precision": found.sequence_precision,
                "sequence_recall": found.sequence_recall,
                "n_answers": len(self.task.answers),
                "n_nodes": self.prompt.trie.n_nodes,
            }
        )
        columns = [settings.index(pair) for pair in plain]
        answers = pd.DataFrame(
            {
                "answer": np.tile(np.array(self.task.answers, dtype=object), len(plain)),
                "temperature": np.repeat(answer_temperatures, len(self.task.answers)),
                "log_p": found.answer_log_p[:, columns].T.ravel(),
            }
        ).astype({"temperature": float, "log_p": float})
        record = {
            **self._identity(),
            "model": self.model.name,
            "weights_file": self.model.weights_file,
            "revision": self.model.revision,
            "task": self.task.name,
            "prompt": self.task.prompt,
            "policies": vars(self.policies),
            "seconds": round(time.perf_counter() - began, 2),
            "environment": provenance.environment(self.model.device),
        }
        return table, answers, record

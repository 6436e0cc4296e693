"""Programs that a model writes for small problems, and whether they pass (Fig. 12).

Knows the whole chain by name: draws replies, takes the programs out of them, has them tested and
keeps the table. Measures come after.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from calib_utils import completions, drawing, sandbox
from calib_utils.models import Model, load_model
from calib_utils.problems import Problem, extract_code, read_problems
from calib_utils.sandbox import Limits

COLUMNS = ["problem", *drawing.COLUMNS, "outcome", "reason", "n_passed", "n_tests"]
_VERDICT = ("outcome", "reason", "n_passed", "n_tests")


def sample_programs(
    model: Model | str,
    problems: Sequence[Problem] | None = None,
    n: int = 20,
    *,
    temperature: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
    results_dir: str | Path | None = None,
    name: str = "programs",
    isolation: str = "namespaces",
) -> pd.DataFrame:
    """Replies of a model to every problem, each program tested in a sandbox.

    Args:
        problems: by default the project's own.
        n: replies per problem, drawn without cutoff.
        max_tokens: a reply that has not ended by then is tested as it is.
        results_dir: problems are kept under `results_dir/<model>/texts/<name>`, one file each as
            soon as it is done. A run after a kill goes on from there; a finished one needs neither
            the weights nor a sandbox. Without it nothing is kept.
        isolation: see `sandbox`. What it cannot offer here is an error.

    Returns:
        One row per reply, columns `COLUMNS`; `log_p` as in `drawing.draw`.

    Raises:
        CalibUtilsError: a named subclass.
    """
    model = load_model(model)
    chosen = {p.id: p for p in (read_problems() if problems is None else problems)}
    settings = {"n": n, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}

    def make(problem_id: str) -> pd.DataFrame:
        sandbox.require(isolation)  # before minutes of drawing, not after
        problem = chosen[problem_id]
        options = {"temperature": temperature, "seed": seed}
        drawn = drawing.draw(model, problem.message, n, max_tokens, **options)
        table = run_programs(drawn.assign(problem=problem_id), [problem], isolation)
        bar.update(n)
        return table

    folder = completions.folder_of(results_dir, model.key, name)
    asked = {}
    for key, problem in chosen.items():
        start = drawing.message_start(model, problem.message)
        asked[key] = [start.ids, start.end_ids, problem.entry_point, problem.tests]
    settings |= {"isolation": isolation, **vars(Limits())}
    record = drawing.record_of(model, asked, settings)
    with tqdm(total=len(chosen) * n, unit="program", desc=model.name, leave=False) as bar:
        return drawing.kept(folder, record, chosen, make)


def run_programs(
    drawn: pd.DataFrame,
    problems: Sequence[Problem] | None = None,
    isolation: str = "namespaces",
) -> pd.DataFrame:
    """Tests the programs in replies, whoever wrote them; needs no model.

    Args:
        drawn: columns problem and text; a text that occurs again for a problem is run once.

    Returns:
        The rows with the columns of `COLUMNS` that were missing, tests run anew.
    """
    chosen = {p.id: p for p in (read_problems() if problems is None else problems)}
    verdicts = {}
    for key in dict.fromkeys(zip(drawn.problem, drawn.text, strict=True)):
        problem, text = key
        verdicts[key] = chosen[problem].run(extract_code(text), isolation)
    found = [verdicts[key] for key in zip(drawn.problem, drawn.text, strict=True)]
    columns = {name: [getattr(verdict, name) for verdict in found] for name in _VERDICT}
    table = drawn.assign(**columns)
    return table[[column for column in COLUMNS if column in table]].reset_index(drop=True)

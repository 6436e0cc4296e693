"""What one run does: notebooks in turn, only those that do not stand, one run at a time.

Knows the folder of executed copies and its lock. Decides nothing about content (`freshness`) and
executes through `runner`; says on stderr what it does and why.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from calib_utils import files, freshness, runner
from calib_utils.errors import ResultsError

_JOURNAL = ".running.json"
_DRAFT = re.compile(r"\.[0-9a-f]{32}\.(?:ipynb|draft)")
_FORCED = "asked for by --force"


def execute(
    jobs: Mapping[str, Mapping],
    folder: Path,
    *,
    force: bool = False,
    prepare: Callable[[], object] = lambda: None,
) -> list[str]:
    """Executes the notebooks whose copies in `folder` do not stand, and prints the copies written.

    A notebook that fails does not keep the others from running.

    Args:
        jobs: notebook -> parameters, checked.
        folder: of the executed copies of one model, or of all models' notebooks.
        force: executes all of them.
        prepare: called once, before the first is executed.

    Returns:
        The notebooks that failed.
    """
    failed = []
    with _alone(folder):
        _end_killed_run(folder, jobs)
        todo = {}
        for name, parameters in jobs.items():
            why = runner.why_stale(name, parameters, folder / f"{name}.ipynb")
            todo[name] = why or [_FORCED] * force
        if any(todo.values()):
            prepare()
        for name, why in todo.items():
            where = f"{name} on {folder.name}"
            if not why:
                _say(f"{where}: current")
                continue
            _say(f"{where}: {'; '.join(why)}; executing ...")
            with _adding_rows(folder, name, jobs[name]):
                if not _execute(name, jobs[name], folder / f"{name}.ipynb"):
                    failed.append(name)
    return failed


def _execute(name: str, parameters: Mapping, output: Path) -> bool:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        print(runner.run(name, parameters, output), flush=True)
        return True
    except PapermillExecutionError as error:
        kept = output.with_name(f".failed-{output.name}")
        why = f"{error.ename}: {error.evalue}"
        _say(f"{name} failed ({why}); how far it came is in {kept}")
    except OSError as error:
        raise _unwritable(output.parent, error) from error
    except DeadKernelError:
        why = "its process was ended, as when memory runs out; see the forecast"
        _say(f"{name} failed: {why}")
    except RuntimeError as error:  # of jupyter_client; those of cells arrive as the first kind
        _say(f"{name} failed: its kernel did not start ({error}); run it again")
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder of executed copies; it ends with the process, however that ends.

    Where the file system has no locks the run goes on: each file appears whole all the same.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / files.LOCK).touch()
    except OSError as error:
        raise _unwritable(folder, error) from error
    with files.alone(folder, f"run of {folder.name}") as held:
        if not held:
            _say(f"no locks in {folder}: do not start two runs of {folder.name}")
        yield


@contextmanager
def _adding_rows(folder: Path, name: str, parameters: Mapping) -> Iterator[None]:
    """Lets the other copies stand after the rows that this notebook adds, even if it is killed."""
    rows = runner.made_from(name, parameters)["rows"]
    record = {"results_dir": parameters.get("results_dir"), "rows": rows}
    try:
        with files.whole(folder / _JOURNAL) as draft:
            draft.write_text(json.dumps(record), encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        _settle(folder, rows, runner.made_from(name, parameters)["rows"])


def _end_killed_run(folder: Path, jobs: Mapping[str, Mapping]) -> None:
    """Does what a run that was killed in this folder had no time for."""
    for draft in folder.iterdir():
        if _DRAFT.fullmatch(draft.name):
            draft.unlink(missing_ok=True)
    name, parameters = next(iter(jobs.items()))
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        record = json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))
        if record["results_dir"] == parameters.get("results_dir"):
            _settle(folder, dict(record["rows"]), runner.made_from(name, parameters)["rows"])


def _settle(folder: Path, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    freshness.settle(folder.glob("[0-9][0-9]_*.ipynb"), before, after)
    (folder / _JOURNAL).unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> ResultsError:
    return ResultsError(
        f"cannot write pages to {folder} ({error}): choose a writable --book-dir with space"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

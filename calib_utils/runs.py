"""What one run does: notebooks in turn, only those that are not current, one run at a time.

Knows the folder of executed copies and its lock. Asks `runner` what is current, and
executes through it; says on stderr what it does and why.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from calib_utils import files, runner
from calib_utils.errors import ResultsError

_DRAFT = re.compile(r"\.[0-9a-f]{32}\.(?:ipynb|draft)")
_FORCED = "asked for by --force"


def execute(
    jobs: Mapping[str, Mapping],
    folder: Path,
    *,
    force: bool = False,
    prepare: Callable[[], object] = lambda: None,
) -> list[str]:
    """Executes the notebooks whose copies in `folder` are not current, and prints what it wrote.

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
        for draft in folder.iterdir():  # of a run that was killed
            if _DRAFT.fullmatch(draft.name):
                draft.unlink(missing_ok=True)
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


def _unwritable(folder: Path, error: OSError) -> ResultsError:
    return ResultsError(
        f"cannot write pages to {folder} ({error}): choose a writable --book-dir with space"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""Whether an executed copy is current: what it was made from, by content, then and now.

Knows the record in a copy and where stored numbers lie. Executes nothing, loads no weights, reads
no source code, and looks at no date, so that a fresh clone finds what the machine found that
executed it. Whether executing it again gives the same numbers is for nbval to say.
"""

import ast
import hashlib
import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat

from calib_utils import files, paths
from calib_utils.errors import (
    HubUnreachableError,
    ModelFormatError,
    NotebookParameterError,
    ResultsError,
    UnknownNameError,
)
from calib_utils.files import sha256_of_file, sha256_of_folder
from calib_utils.models import loading, weights
from calib_utils.models.registry import EMBEDDED
from calib_utils.results import records

METADATA, RECORD = "calib_utils", "made_from"
# A name for the same model, and a place for the same rows: both are compared by content instead.
_BY_CONTENT = ("model", "results_dir")
_DIGITS, _SHOWN = 16, 3


@dataclass(frozen=True)
class Identity:
    """A model's folder name, and the SHA-256 of its weights; None where they are not here."""

    key: str
    weights_sha256: str | None


def identity(name: str, revision: str | None = None) -> Identity:
    """What `load_model` would identify, from what is on this machine; nothing is fetched.

    The weights of an embedded model are those of the registry. Of a hub model they are those in the
    hub's cache.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED:
        return Identity(name, EMBEDDED[name].sha256)
    if path.suffix == ".gguf" and path.is_file():
        return Identity(loading.file_key(path.stem), sha256_of_file(path))
    try:
        if path.is_dir():
            key = loading.file_key(path.resolve().name)
            return Identity(key, sha256_of_folder(path))
        key = loading.file_key(name.replace("/", "--") + (f"@{revision}" if revision else ""))
        if loading.is_hub_id(name):
            folder = weights.hub_folder(name, revision, local_only=True)
            return Identity(key, sha256_of_folder(folder))
    except (HubUnreachableError, UnknownNameError, ModelFormatError):
        pass  # loading it says what is wrong
    return Identity(key, None)


def made_from(
    parameters: Mapping, sha256: str | None, read: Iterable[str], results_dir: Path
) -> dict:
    """The record of what a page depends on beside its source.

    Args:
        parameters: those that differ from the notebook's own.
        sha256: of the model's weights; None where they are not here, or for no one model.
        read: the paths it read, as `paths.note_read` wrote them.
        results_dir: where its rows are.
    """
    rows, data = set(), set()
    places = ((rows, Path(results_dir).absolute()), (data, paths.project_root() / "data"))
    for path in map(Path, read):
        # Committed results lie below `data`, and are rows of the page that names them.
        names, place = next((p for p in places if path.is_relative_to(p[1])), (None, None))
        if names is not None:
            names.add(path.relative_to(place).as_posix())
    return {
        "parameters": {k: v for k, v in sorted(parameters.items()) if k not in _BY_CONTENT},
        "weights": sha256,
        "rows": _rows(rows, results_dir),
        "data": _data(data),
    }


def why_stale(
    executed: Path,
    source_sha256: str,
    parameters: Mapping,
    sha256: str | None,
    results_dir: Path,
) -> list[str]:
    """Why an executed copy does not stand for an execution now, in words; empty where it does."""
    if not executed.is_file():
        return ["never run"]
    try:
        kept = json.loads(executed.read_text(encoding="utf-8"))["metadata"][METADATA]
        then = kept.get(RECORD)
        if then is None:
            return ["no record of what it was made from"]
        why = [] if kept["source_sha256"] == source_sha256 else ["its source changed"]
        if sha256 is not None and then["weights"] != sha256:
            why.append("the weights changed")
        now = made_from(parameters, sha256, (), results_dir)
        now |= {"rows": _rows(then["rows"], results_dir), "data": _data(then["data"])}
        for part, words in (
            ("parameters", "other parameters: {}"),
            ("data", "data changed: {}"),
            ("rows", "rows of {} changed"),
        ):
            if names := _differing(then[part], now[part]):
                names = ["the list of models" if name == "." else name for name in names]
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                why.append(words.format(", ".join(names[:_SHOWN]) + more))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["the executed copy is unreadable"]
    return why


def _differing(then: Mapping, now: Mapping) -> list[str]:
    absent = object()
    return sorted(n for n in {*then, *now} if then.get(n, absent) != now.get(n, absent))


def _rows(names: Iterable[str], results_dir: Path) -> dict[str, str | None]:
    """Identity of each stored thing, by its name below `results_dir`; None where none stands."""
    found = {name: records.identity_of(Path(results_dir) / name) for name in sorted(names)}
    return {name: digest and digest[:_DIGITS] for name, digest in found.items()}


def _data(names: Iterable[str]) -> dict[str, str | None]:
    """Digest of each file or folder below `data`; what only people read does not count."""
    found = {}
    for name in sorted(names):
        path = paths.project_root() / "data" / name
        files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
        read = [file for file in files if file.name != "README.md" and file.is_file()]
        parts = [[file.relative_to(path).as_posix(), sha256_of_file(file)] for file in read]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS]
        found[name] = digest if parts else None
    return found


# Notebooks as programs: parameters checked, executed by papermill, outputs made reproducible.
#
# A notebook is about one model, or, where its parameters cell also has the tag `all-results`,
# about all that have results.
#
# Knows notebooks and papermill. Knows nothing of what a notebook computes.

COMMON_PARAMETERS = ("model", "revision", "dtype", "device", "seed", "results_dir", "quick")
ALL_RESULTS = "all-results"
_LABEL = re.compile(r"(?m)^\$\$ \(([\w-]+)\)$|^:name: ([\w-]+)$")
PANEL_PARAMETERS = ("results_dir", "seed", "quick")
# What kernels need for outputs without noise: no progress bars, no widget warnings, fixed hashes.
KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}


def notebook_names() -> list[str]:
    """The notebooks about one model, in order, as `NN_topic`."""
    return [name for name in _names() if not is_about_all(name)]


def panel_names() -> list[str]:
    """The notebooks about all models with results, in order, as `NN_topic`."""
    return [name for name in _names() if is_about_all(name)]


def is_about_all(name: str) -> bool:
    """Whether a notebook is about all models with results.

    Raises:
        UnknownNameError: no such notebook.
    """
    return ALL_RESULTS in _parameters_cell(name).metadata["tags"]


def parameters_of(name: str) -> dict:
    """A notebook's parameters and their defaults.

    Raises:
        UnknownNameError: no such notebook.
    """
    found = {}
    for statement in ast.parse(_parameters_cell(name).source).body:
        if isinstance(statement, ast.Assign):
            found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


def _parameters_cell(name: str):
    return next(c for c in _read(name).cells if "parameters" in c.metadata.get("tags", ()))


def check_parameters(name: str, parameters: Mapping) -> dict:
    """The parameters as they are given, if the notebook has them all with these types.

    papermill itself only logs a warning for an unknown one.

    Raises:
        NotebookParameterError: an unknown parameter, or a value of another type.
    """
    known = parameters_of(name)
    for key, value in parameters.items():
        if key not in known:
            near = UnknownNameError("parameter", key, known)
            raise NotebookParameterError(f"notebook {name}: {near}")
        if not isinstance(value, type(known[key])) or (
            isinstance(value, bool) != isinstance(known[key], bool)
        ):
            raise NotebookParameterError(
                f"notebook {name}: {key}={value!r} must be a {type(known[key]).__name__}, like the "
                f"default {known[key]!r}"
            )
    return dict(parameters)


def parse_parameters(name: str, pairs: list[str]) -> dict:
    """Parameters from `key=value` texts, each read as the type of its default.

    Raises:
        NotebookParameterError: not of that form, unknown, or unreadable.
    """
    known, found = parameters_of(name), {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise NotebookParameterError(f"parameter {pair!r}: write key=value")
        if isinstance(known.get(key), str) or key not in known:
            found[key] = text
            continue
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise NotebookParameterError(
                f"notebook {name}: {key}={text!r} does not read as a {type(known[key]).__name__}"
            ) from None
    return check_parameters(name, found)


def why_notebook_is_stale(name: str, parameters: Mapping, executed: Path) -> list[str]:
    """Why an executed copy does not stand for an execution now, in words; empty where it does."""
    sha256, store = _inputs(name, parameters)
    return why_stale(executed, source_sha256(name), parameters, sha256, store)


def _inputs(name: str, parameters: Mapping) -> tuple[str | None, Path]:
    """The SHA-256 of the weights a notebook would use now, and where its rows are."""
    given = {**parameters_of(name), **parameters}
    store = Path(given.get("results_dir") or paths.default_results_dir())
    if is_about_all(name):
        return None, store
    return identity(given["model"], given["revision"] or None).weights_sha256, store


def run(name: str, parameters: Mapping, output: Path) -> Path:
    """Executes a notebook and writes the executed copy to `output`, as a whole or not at all.

    Two runs with equal results on one machine give equal bytes.

    Raises:
        NotebookParameterError, UnknownNameError: before anything runs.
        papermill.PapermillExecutionError: a cell failed; nothing is written to `output`, the
            failed copy stays beside it as `.failed-NN_topic.ipynb`.
        RuntimeError: the kernel did not start, or (nbclient's DeadKernelError) was ended.
    """
    import papermill
    from traitlets.config import Config

    parameters = check_parameters(name, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{uuid.uuid4().hex}.ipynb")
    # A source that is edited while it runs is not what ran; rows and weights come with the run.
    origin = {"source": name, "source_sha256": source_sha256(name)}
    try:
        with tempfile.TemporaryDirectory() as folder, _environment(folder) as log:
            papermill.execute_notebook(
                str(paths.notebooks_dir() / f"{name}.ipynb"),
                str(draft),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                log_output=False,
                # A print may come in two parts, by the moment.
                coalesce_streams=True,
                cwd=str(paths.project_root()),
                start_timeout=300,  # of a dead one it hears at once; a cold network disk is slow
                extra_arguments=["--IPKernelApp.log_level=50"],
                config=Config({"KernelManager": kernel_channels(folder)}),
            )
            read = set(log.read_text(encoding="utf-8").splitlines())
        notebook = nbformat.read(draft, as_version=4)
        sha256, store = _inputs(name, parameters)
        record = made_from(parameters, sha256, read, store)
        clean(notebook, {**origin, RECORD: record})
        if not is_about_all(name):
            model = parameters.get("model") or parameters_of(name)["model"]
            # Of a local folder or file the name alone, so that labels hold no path.
            model = Path(model).name if Path(model).is_absolute() else model
            _own_labels(notebook, re.sub(r"[^\w-]+", "-", model))
        nbformat.write(notebook, draft)
        os.replace(draft, output)
    except papermill.PapermillExecutionError:
        os.replace(draft, output.with_name(f".failed-{output.name}"))
        raise
    finally:
        draft.unlink(missing_ok=True)
    output.with_name(f".failed-{output.name}").unlink(missing_ok=True)
    return output


@contextmanager
def _environment(folder: str) -> Iterator[Path]:
    """Gives kernels their environment, and yields the file in which they note what they read."""
    log = Path(folder) / "read"
    log.touch()
    wanted = KERNEL_ENVIRONMENT | {paths.READ_LOG: str(log)}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield log
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def kernel_channels(folder: str) -> dict[str, str]:
    """Settings of a kernel manager whose kernel is reached by sockets in `folder`, not by ports.

    Jupyter chooses free ports and lets go of them before the kernel takes them seconds later; on a
    busy machine another program is quicker, and the kernel never answers. Nothing where the name of
    the folder is too long for that of a socket, which has about a hundred bytes.
    """
    file = os.path.join(folder, "kernel.json")
    return {"transport": "ipc", "connection_file": file} if len(os.fsencode(file)) < 90 else {}


def clean(notebook, origin: Mapping) -> None:
    """Drops what differs between equal runs, and marks the copy with what it came from."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).pop("papermill", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        METADATA: dict(origin),
    }


def source_sha256(name: str) -> str:
    """SHA-256 over the cells of a notebook, so that a stale executed copy is found unrun."""
    cells = [(cell.cell_type, cell.source, cell.metadata) for cell in _read(name).cells]
    return hashlib.sha256(repr(cells).encode()).hexdigest()


def _own_labels(notebook, model: str) -> None:
    """Labels that carry the model: one book holds a copy of the notebook per model.

    Of figures, and of what the text itself names: `$$ (label)` and `:name: label`.
    """
    figures = [c.metadata.get("mystnb", {}).get("figure", {}) for c in notebook.cells]
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    labels = [figure["name"] for figure in figures if "name" in figure]
    labels += [name for cell in texts for pair in _LABEL.findall(cell.source) for name in pair]
    for figure in figures:
        if "name" in figure:
            figure["name"] += f"-{model}"
    if names := "|".join(re.escape(label) for label in labels if label):
        whole = re.compile(rf"(?<![\w-])({names})(?![\w-])")
        for cell in texts:
            cell.source = whole.sub(rf"\1-{model}", cell.source)


def _names() -> list[str]:
    return sorted(path.stem for path in paths.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))


def _read(name: str):
    if name not in _names():
        raise UnknownNameError("notebook", name, _names())
    return nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", as_version=4)


# What one run does: notebooks in turn, only those that are not current, one run at a time.
#
# Knows the folder of executed copies and its lock. Asks `runner` what is current, and executes
# through it; says on stderr what it does and why.

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
            why = why_notebook_is_stale(name, parameters, folder / f"{name}.ipynb")
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
        print(run(name, parameters, output), flush=True)
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

"""Notebooks as programs: parameters, what a copy was made from, execution of what is not current.

A notebook is about one model or, where its parameters cell has the tag `all-results`, about all
that have results. A copy is compared with its inputs by content, so that a fresh clone finds what
the machine found that executed it. Knows papermill and where stored numbers lie; reads no source
code of the package, loads no weights, and knows nothing of what a notebook computes.
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
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from calib_utils import files, paths
from calib_utils.errors import (
    HubUnreachableError,
    ModelFormatError,
    NotebookParameterError,
    ResultsError,
    UnknownNameError,
)
from calib_utils.files import sha256_of_file, sha256_of_folder, sha256_of_gguf
from calib_utils.models import loading, weights
from calib_utils.models.registry import EMBEDDED
from calib_utils.results import records

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
# Of kernels below a terminal: the bars of long cells are drawn there, and never get into a page.
_BARS = """\
import tqdm.auto
tqdm.auto.tqdm = tqdm.std.tqdm
def drawn(bar, *given, start=tqdm.std.tqdm.__init__, file=open({terminal!r}, "w"), **named):
    # Bars within a bar below it: those that are open, this one among them.
    start(bar, *given, **named, file=file, position=len(bar._instances))
tqdm.std.tqdm.__init__ = drawn
"""
_METADATA = "calib_utils"  # of an executed copy
# A name for the same model, and a place for the same rows: both are compared by content instead.
_BY_CONTENT = ("model", "results_dir")
_DIGITS, _SHOWN = 16, 3
_CHANGED = {
    "parameters": "other parameters: {}",
    "data": "data changed: {}",
    "rows": "rows of {} changed",
}
_LABEL = re.compile(r"(?m)^\$\$ \(([\w-]+)\)$|^:name: ([\w-]+)$")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_DRAFT = re.compile(r"\.[0-9a-f]{32}\.(?:ipynb|draft)")

# Names and parameters


def notebook_names() -> list[str]:
    """The notebooks about one model, in order, as `NN_topic`."""
    return [name for name in _names() if not is_about_all(name)]


def panel_names() -> list[str]:
    """The notebooks about all models with results, in order, as `NN_topic`."""
    return [name for name in _names() if is_about_all(name)]


def is_about_all(name: str) -> bool:
    """Whether a notebook is about all models with results; UnknownNameError where there is none."""
    return "all-results" in _parameters_cell(name).metadata["tags"]


def parameters_of(name: str) -> dict:
    """A notebook's parameters and their defaults; UnknownNameError where there is none."""
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(_parameters_cell(name).source).body
        if isinstance(statement, ast.Assign)
    }


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
        wanted = bool if known[key] is None else type(known[key])  # one that may be left open
        if type(value) is not wanted and (value, known[key]) != (None, None):
            raise NotebookParameterError(
                f"notebook {name}: {key}={value!r} must be a {wanted.__name__}, like the default "
                f"{known[key]!r}"
            )
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise NotebookParameterError(f"notebook {name}: {key}={value!r} is no text in UTF-8")
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
        if key in found:
            raise NotebookParameterError(f"parameter {key!r} is given twice: leave out one")
        found[key] = text
        if not isinstance(known.get(key, text), str):
            try:
                found[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                kind = "bool" if known[key] is None else type(known[key]).__name__
                raise NotebookParameterError(
                    f"notebook {name}: {key}={text!r} does not read as a {kind}"
                ) from None
    return check_parameters(name, found)


def source_sha256(name: str) -> str:
    """SHA-256 over the cells of a notebook, so that a stale executed copy is found unrun."""
    cells = [(cell.cell_type, cell.source, cell.metadata) for cell in _read(name).cells]
    return hashlib.sha256(repr(cells).encode()).hexdigest()


def _parameters_cell(name: str):
    return next(c for c in _read(name).cells if "parameters" in c.metadata.get("tags", ()))


def _names() -> list[str]:
    return sorted(path.stem for path in paths.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))


def _read(name: str):
    if name not in _names():
        raise UnknownNameError("notebook", name, _names())
    import nbformat  # comes with the book's packages

    return nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", as_version=4)


# What a copy was made from


class Identity(NamedTuple):
    """A model's folder name, and the SHA-256 of its weights; None where they are not here."""

    key: str
    weights_sha256: str | None


def identity(name: str, revision: str | None = None) -> Identity:
    """What `load_model` would identify, from the registry and files here; nothing is fetched."""
    loading.check_name(name, revision)
    path, key = Path(name).expanduser(), loading.key_of(name, revision)
    if name in EMBEDDED:
        return Identity(key, EMBEDDED[name].sha256)
    try:
        if path.suffix == ".gguf" and path.is_file():
            return Identity(key, sha256_of_gguf(path))
        if loading.is_hub_id(name) and not path.is_dir():
            path = weights.hub_folder(name, revision, local_only=True)
        if path.is_dir():
            return Identity(key, sha256_of_folder(path))
    except (HubUnreachableError, UnknownNameError, ModelFormatError):
        pass  # loading it says what is wrong
    return Identity(key, None)


def why_stale(name: str, parameters: Mapping, executed: Path) -> list[str]:
    """Why an executed copy does not stand for an execution now, in words; empty where it does.

    Args:
        parameters: those that differ from the notebook's own.
    """
    if not executed.is_file():
        return ["never run"]
    try:
        kept = files.json_of(executed)["metadata"][_METADATA]
        then = kept.get("made_from")
        if then is None:
            return ["no record of what it was made from"]
        why = [] if kept["source_sha256"] == source_sha256(name) else ["its source changed"]
        now = _record(name, parameters, then["rows"], then["data"])
        if now["weights"] not in (None, then["weights"]):
            why.append("the weights changed")
        for part, words in _CHANGED.items():
            either = sorted({*then[part], *now[part]})
            names = [name for name in either if then[part].get(name) != now[part].get(name)]
            names = ["the list of models" if name == "." else name for name in names]
            names[_SHOWN:] = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
            why += [words.format(", ".join(names))] if names else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["the executed copy is unreadable"]
    return why


def _store(name: str, parameters: Mapping) -> Path:
    """Where the rows of a notebook are."""
    given = {**parameters_of(name), **parameters}
    return Path(given.get("results_dir") or paths.default_results_dir())


def _made_from(name: str, parameters: Mapping, read: Iterable[str]) -> dict:
    """The record of what a copy depends on; `read` is what `paths.note_read` was told."""
    rows, data = set(), set()
    # Committed results lie below `data`, and are rows of the page that names them.
    places = ((rows, _store(name, parameters).absolute()), (data, paths.project_root() / "data"))
    for path in map(Path, read):
        names, place = next((p for p in places if path.is_relative_to(p[1])), (None, None))
        if names is not None:
            names.add(path.relative_to(place).as_posix())
    return _record(name, parameters, rows, data)


def _record(name: str, parameters: Mapping, rows: Iterable[str], data: Iterable[str]) -> dict:
    """Contents by name, None where none are: of these rows and files of `data`, and the weights.

    A page about all models shows whatever rows there are, one about a model those that it asks for.
    """
    store, whole = _store(name, parameters), is_about_all(name)
    found = {row: records.identity_of(store / row, whole) for row in sorted(rows)}
    given = {**parameters_of(name), **parameters}
    model = None if whole else identity(given["model"], given["revision"] or None)
    return {
        "parameters": {k: v for k, v in sorted(parameters.items()) if k not in _BY_CONTENT},
        "weights": model and model.weights_sha256,
        "rows": {row: digest and digest[:_DIGITS] for row, digest in found.items()},
        "data": {file: _digest(paths.project_root() / "data" / file) for file in sorted(data)},
    }


def _digest(path: Path) -> str | None:
    """Of a file, or of a folder but for what only people read."""
    inside = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
    read = [file for file in inside if file.name != "README.md" and file.is_file()]
    parts = [[file.relative_to(path).as_posix(), sha256_of_file(file)] for file in read]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_DIGITS] if parts else None


# Executing one


def run(name: str, parameters: Mapping, output: Path) -> Path:
    """Executes a notebook and writes the executed copy to `output`, as a whole or not at all.

    Two runs with equal results on one machine give equal bytes.

    Raises:
        NotebookParameterError, UnknownNameError: before anything runs.
        papermill.PapermillExecutionError: a cell failed; nothing is written to `output`, the
            failed copy stays beside it as `.failed-NN_topic.ipynb`.
        RuntimeError: the kernel did not start, or (nbclient's DeadKernelError) was ended.
    """
    import nbformat
    import papermill

    parameters = check_parameters(name, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{uuid.uuid4().hex}.ipynb")
    failed = output.with_name(f".failed-{output.name}")
    # A source that is edited while it runs is not what ran; rows and weights come with the run.
    origin = {"source": name, "source_sha256": source_sha256(name)}
    try:
        read = execute_file(paths.notebooks_dir() / f"{name}.ipynb", draft, parameters)
        notebook = nbformat.read(draft, as_version=4)
        _clean(notebook, parameters, {**origin, "made_from": _made_from(name, parameters, read)})
        if not is_about_all(name):
            model = parameters.get("model") or parameters_of(name)["model"]
            # Of a local folder or file the name alone, so that labels hold no path.
            _own_labels(notebook, Path(model).name if Path(model).is_absolute() else model)
        _show_roles(notebook)
        nbformat.write(notebook, draft)
        os.replace(draft, output)
    except papermill.PapermillExecutionError:
        os.replace(draft, failed)
        raise
    finally:
        draft.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    return output


def execute_file(source: Path, target: Path, parameters: Mapping) -> set[str]:
    """Executes the notebook in a file, as papermill leaves it, and returns the paths it read."""
    import papermill
    from traitlets.config import Config

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "read"
        log.touch()
        environment, arguments = {**KERNEL_ENVIRONMENT, paths.READ_LOG: str(log)}, []
        if terminal := _terminal():
            environment["TQDM_DISABLE"] = ""
            arguments = [f"--IPKernelApp.exec_lines={_BARS.format(terminal=terminal)}"]
        with mock.patch.dict(os.environ, environment):
            papermill.execute_notebook(
                str(source),
                str(target),
                parameters=dict(parameters),
                kernel_name="python3",
                progress_bar={"leave": False} if terminal else False,
                log_output=False,
                coalesce_streams=True,  # a print may come in two parts, by the moment
                cwd=str(paths.project_root()),
                start_timeout=300,  # of a dead one it hears at once; a cold network disk is slow
                extra_arguments=["--IPKernelApp.log_level=50", *arguments],
                config=Config({"KernelManager": kernel_channels(folder)}),
            )
        return set(log.read_text(encoding="utf-8").splitlines())


def _terminal() -> str | None:
    """The terminal where people read what this command says; None where it is not one."""
    try:
        return os.ttyname(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # also on Windows, and where stderr is captured
        return None


def kernel_channels(folder: str) -> dict[str, str]:
    """Settings of a kernel manager whose kernel is reached by sockets in `folder`, not by ports.

    On a busy machine another program takes a free port before the kernel does. Nothing where the
    name of the folder is too long for that of a socket, which has about a hundred bytes.
    """
    file = os.path.join(folder, "kernel.json")
    return {"transport": "ipc", "connection_file": file} if len(os.fsencode(file)) < 90 else {}


def label_of(name: str, model: str) -> str:
    """The label of a figure, formula or theorem in a model's copy: one book holds many copies."""
    return f"{name}-" + re.sub(r"[^\w-]+", "-", model)


def _clean(notebook, parameters: Mapping, origin: Mapping) -> None:
    """Drops what differs between equal runs and machines; marks what the copy came from."""
    places = [str(parameters[name]) for name in _BY_CONTENT if name in parameters]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]
            for place in filter(os.path.isabs, places):  # of this machine
                cell.source = cell.source.replace(place, os.path.basename(place))
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).pop("papermill", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        _METADATA: dict(origin),
    }


def _own_labels(notebook, model: str) -> None:
    """Gives the model's labels to figures, and to what texts name: `$$ (label)`, `:name: label`."""
    figures = [figure for cell in notebook.cells if "name" in (figure := figure_of(cell))]
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    labels = [figure["name"] for figure in figures]
    labels += [name for cell in texts for pair in _LABEL.findall(cell.source) for name in pair]
    for figure in figures:
        figure["name"] = label_of(figure["name"], model)
    if names := "|".join(re.escape(label) for label in labels if label):
        whole = re.compile(rf"(?<![\w-])({names})(?![\w-])")
        for cell in texts:
            cell.source = whole.sub(lambda found: label_of(found[0], model), cell.source)


# Roles of the book in texts, such as {glue:text}`x`, which Jupyter would show as they are written.
_ROLE = re.compile(r"\{([a-z:]+)\}`([^`]*)`")
_SHOWN_ROLE = re.compile(r'<span data-role="([a-z:]+)" data-of="([^"]*)">[^<]*</span>')


def figure_of(cell) -> dict:
    """What a cell says of its figure, such as `name` and `caption`; empty where it has none."""
    return cell.metadata.get("mystnb", {}).get("figure", {})


def glued(notebook) -> dict[str, str]:
    """What an executed notebook stored for the prose (`glue`), by its name."""
    return {
        output.metadata["scrapbook"]["name"]: ast.literal_eval(next(iter(output.data.values())))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "scrapbook" in output.get("metadata", {})
    }


def _show_roles(notebook) -> None:
    """Gives every role of the book's in a text the words that it stands for, for Jupyter."""
    values = glued(notebook)
    figures = [name for cell in notebook.cells if (name := figure_of(cell).get("name"))]

    def shown(found: re.Match) -> str:
        role, of = found[1], found[2]
        words = {
            "glue:text": lambda: str(values[of.partition(":")[0]]),
            "term": lambda: of.partition(" <")[0],
            "numref": lambda: f"Figure {figures.index(of) + 1} of this page",
            "eq": lambda: f"({of})",  # as the formula is marked
            "cite:p": lambda: f"[{of}]",
        }.get(role)
        if words is None or (role == "numref" and of not in figures):
            return found[0]
        return f'<span data-role="{role}" data-of="{escape(of)}">{escape(words())}</span>'

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _ROLE.sub(shown, cell.source)


def as_roles(text: str) -> str:
    """A text of an executed copy with the book's roles in the place of the words for Jupyter."""
    return _SHOWN_ROLE.sub(lambda found: f"{{{found[1]}}}`{unescape(found[2])}`", text)


# Executing in turn what is not current


def execute(
    jobs: Mapping[str, Mapping],
    folder: Path,
    *,
    force: bool = False,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, bool]:
    """Executes the notebooks whose copies in `folder` are not current, and prints what it wrote.

    A notebook that fails does not keep the others from running. A second run on the same folder
    waits for the first.

    Args:
        jobs: notebook -> parameters, checked.
        folder: of the executed copies of one model, or of all models' notebooks.
        force: executes all of them.
        prepare: called once, before the first is executed.

    Returns:
        The notebooks that were executed, and whether each went well.
    """
    done = {}
    with _alone(folder):
        for draft in folder.iterdir():  # of a run that was killed
            if _DRAFT.fullmatch(draft.name):
                draft.unlink(missing_ok=True)
        todo = reasons(jobs, folder, force)
        if any(todo.values()):
            prepare()
        for name, why in todo.items():
            said = f"{'; '.join(why)}; executing ..." if why else "current"
            _say(f"{name} on {folder.name}: {said}")
            if why:
                done[name] = _execute(name, jobs[name], folder / f"{name}.ipynb")
    return done


def reasons(jobs: Mapping[str, Mapping], folder: Path, force: bool = False) -> dict[str, list[str]]:
    """Why each notebook would be executed, in words; empty for what is current."""
    forced = ["asked for by --force"] * force
    stale = {name: why_stale(name, jobs[name], folder / f"{name}.ipynb") for name in jobs}
    return {name: why or forced for name, why in stale.items()}


def _execute(name: str, parameters: Mapping, output: Path) -> bool:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        with _writing(output.parent):
            print(run(name, parameters, output), flush=True)
        return True
    except PapermillExecutionError as error:
        kept = output.with_name(f".failed-{output.name}")
        why = f"{error.ename}: {error.evalue}"
        _say(f"{name} failed ({why}); how far it came is in {kept}")
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
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / files.LOCK).touch()
    with files.alone(folder, f"run of {folder.name}") as held:
        if not held:
            _say(f"no locks in {folder}: do not start two runs of {folder.name}")
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultsError(
            f"cannot write pages to {folder} ({error}): choose a writable --book-dir with space"
        ) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""Notebooks as programs: parameters checked, executed by papermill, outputs made reproducible.

A notebook is about one model, or, where its parameters cell also has the tag `all-results`, about
all that have results.

Knows notebooks and papermill. Knows nothing of what a notebook computes.
"""

import ast
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nbformat

from calib_utils import freshness, paths
from calib_utils.errors import NotebookParameterError, UnknownNameError

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


def why_stale(name: str, parameters: Mapping, executed: Path) -> list[str]:
    """Why an executed copy does not stand for an execution now, in words; empty where it does."""
    sha256, store = _inputs(name, parameters)
    return freshness.why_stale(executed, source_sha256(name), parameters, sha256, store)


def _inputs(name: str, parameters: Mapping) -> tuple[str | None, Path]:
    """The SHA-256 of the weights a notebook would use now, and where its rows are."""
    given = {**parameters_of(name), **parameters}
    store = Path(given.get("results_dir") or paths.default_results_dir())
    if is_about_all(name):
        return None, store
    return freshness.identity(given["model"], given["revision"] or None).weights_sha256, store


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
        record = freshness.made_from(parameters, sha256, read, store)
        clean(notebook, {**origin, freshness.RECORD: record})
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
        freshness.METADATA: dict(origin),
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

"""The public way to a model: name and folder looked at, then loaded by `models`.

Knows what a name may be and which small files of a folder are read before its weights.
"""

import json
import re
from pathlib import Path

from calib_utils import models, templates
from calib_utils.errors import DeviceError, ModelFormatError, UnknownNameError
from calib_utils.models import Model
from calib_utils.registry import EMBEDDED

_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | dict | None = None,
) -> Model:
    """A model by embedded name, hub id, local folder or GGUF file.

    Args:
        name: see `calib_utils.registry.EMBEDDED` for the embedded names.
        revision: hub commit, branch or tag; only for hub ids.
        dtype: of the forward pass; probabilities are always reduced in float64.
        device: `auto` takes CUDA, then MPS, then the CPU.
        device_map: as in transformers, for models larger than one device (needs accelerate).

    Raises:
        UnknownNameError, HubUnreachableError, HashMismatchError, ModelFormatError, DeviceError
    """
    if isinstance(name, Model):
        return name
    check_name(name)
    if revision is not None and not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        hint = "Give a commit, branch or tag."
        raise UnknownNameError("revision", str(revision), ("main",), hint)
    if not isinstance(device, str):
        raise DeviceError(f"device={device!r} is no name: give 'auto', 'cpu', 'cuda' or 'mps'")
    model = models.load_model(
        name, revision=revision, dtype=dtype, device=device, device_map=device_map
    )
    if str(name) not in EMBEDDED:  # those are known by their hash
        templates.require_bounded(model.folder)
        _require_settings(model.folder / "generation_config.json")
        _require_every_tensor(model)
    return model


def _require_every_tensor(model: Model) -> None:
    """Refuses weights that lack a part: transformers would draw it at random, with a note.

    It is asked to load names and shapes alone; what it cannot load at all is told when it has to.

    Raises:
        ModelFormatError: with the parts' names.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        _, told = AutoModelForCausalLM.from_pretrained(
            model.folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=model.dtype,
            device_map="meta",
            output_loading_info=True,
        )
    except Exception:
        return
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    if missing := sorted(map(str, told["missing_keys"])):
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelFormatError(
            f"{model.name}: {model.folder} lacks {len(missing)} of the model's tensors ({names}): "
            "they would be random. Fetch or save the model again"
        )


def check_name(name: str | Path) -> None:
    """Refuses what can be neither a model's name nor a path on this machine.

    Raises:
        UnknownNameError: naming what a model can be given by.
    """
    try:
        if isinstance(name, str | Path) and str(name).strip():
            Path(name).expanduser().exists()
            return
        problem = "no name"
    except (OSError, RuntimeError, ValueError) as error:
        problem = str(error)
    raise UnknownNameError("model", str(name)[:200], EMBEDDED, f"{problem}. {models._HINT}")


def _require_settings(path: Path) -> None:
    """The end tokens and the model's own sampling settings are read from this file, if it is there.

    Raises:
        ModelFormatError: it is not what it should be.
    """
    try:
        if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(
            f"{path} cannot be read ({type(error).__name__}: {error}): restore or delete it"
        ) from error

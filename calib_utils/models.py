"""Loading causal language models: embedded, from the hub, or local; safetensors or GGUF only.

Knows torch models and tokenizers. Knows nothing of tasks.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from calib_utils import weights
from calib_utils.errors import DeviceError, ModelFormatError, UnknownNameError
from calib_utils.registry import EMBEDDED

_DTYPES = ("float32", "bfloat16", "float16")
_HINT = "Or give a hub id (owner/name), a local folder, or a .gguf file."


@dataclass(frozen=True)
class Model:
    """A model that is identified and verified, with its weights loaded on first use.

    Reusing stored rows needs the identity and the tokenizer only, so those come first.

    Args:
        name: as the user gave it; `key` is its form in file names.
        weights_sha256: of the GGUF file, or of a folder's config and safetensors.
        weights_file: what that hash is of, for people.
    """

    name: str
    key: str
    folder: Path
    weights_sha256: str
    weights_file: str
    revision: str | None
    dtype: str
    device: str
    device_map: str | dict | None = field(default=None, compare=False)

    @cached_property
    def tokenizer(self):
        """The Hugging Face tokenizer."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except Exception as error:
            raise ModelFormatError(
                f"{self.name}: the tokenizer in {self.folder} cannot be loaded "
                f"({type(error).__name__}: {error}); a tokenizer's own code is never run"
            ) from error

    @cached_property
    def network(self):
        """The torch module, in evaluation mode on its device."""
        import torch
        from transformers import AutoModelForCausalLM

        options = {"dtype": getattr(torch, self.dtype), "trust_remote_code": False}
        if self.device_map is not None:
            options["device_map"] = self.device_map
        try:
            network = AutoModelForCausalLM.from_pretrained(
                self.folder, use_safetensors=True, **options
            )
        except ImportError as error:
            raise ModelFormatError(f"{self.name}: {error}") from error
        except Exception as error:
            raise ModelFormatError(
                f"{self.name}: the weights in {self.folder} cannot be loaded "
                f"({type(error).__name__}: {error}); if a file is truncated, delete the folder and "
                "load again; models that need their own code are not run"
            ) from error
        network.eval()
        return network if self.device_map is not None else network.to(self.device)


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | dict | None = None,
) -> Model:
    """As `loading.load_model`, which people call: it refuses more before it comes here."""
    if isinstance(name, Model):
        return name
    if dtype not in _DTYPES:
        raise DeviceError(f"dtype={dtype!r} does not exist: choose from {', '.join(_DTYPES)}")
    device = _resolve_device(device)
    text = str(name)
    settings = {"dtype": dtype, "device": device, "device_map": device_map}
    path = Path(text).expanduser()
    if revision is not None and (path.is_dir() or not _is_hub_id(text)):
        raise UnknownNameError(
            "hub model", f"{text}@{revision}", (), "revision= is for hub ids; drop it here."
        )
    if text in EMBEDDED:
        spec = EMBEDDED[text]
        folder = weights.converted_folder(weights.embedded_file(spec), spec.sha256)
        return Model(text, text, folder, spec.sha256, spec.filename, None, **settings)
    if path.suffix == ".gguf" and path.is_file():
        digest = weights.sha256_of_file(path)
        folder = weights.converted_folder(path, digest)
        return Model(text, _file_key(path.stem), folder, digest, path.name, None, **settings)
    if path.is_dir():
        digest = weights.sha256_of_folder(path)
        key = _file_key(path.resolve().name)
        return Model(text, key, path, digest, f"{path.resolve().name}/", None, **settings)
    if _is_hub_id(text) and path.suffix != ".gguf":
        folder = weights.hub_folder(text, revision)
        digest = weights.sha256_of_folder(folder)
        key = _file_key(text.replace("/", "--") + (f"@{revision}" if revision else ""))
        return Model(text, key, folder, digest, text, revision or folder.name, **settings)
    raise UnknownNameError("model", text, EMBEDDED, _HINT)


def _is_hub_id(text: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text)) and text not in EMBEDDED


def _file_key(text: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", text).strip(".-") or "model"


def _resolve_device(device: str) -> str:
    import torch

    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if device == "auto":
        return available[0]
    try:
        known = torch.device(device)
        if known.type in available and (known.index or 0) < _count(known.type):
            return device
    except RuntimeError:  # not the form of a device
        pass
    raise DeviceError(
        f"device={device!r} is not available here: choose 'auto' or {', '.join(available)}"
    )


def _count(device_type: str) -> int:
    import torch

    return torch.cuda.device_count() if device_type == "cuda" else 1

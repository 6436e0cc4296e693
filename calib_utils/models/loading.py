"""Loading language models and sentence embedders: embedded, from the hub, or local.

Safetensors or GGUF only. Knows torch models and tokenizers, and which models are asked through
their chat template. Knows nothing of tasks.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from calib_utils import files, paths
from calib_utils.core import prompts
from calib_utils.errors import (
    DeviceError,
    HashMismatchError,
    InvalidRequestError,
    ModelFormatError,
    UnknownNameError,
)
from calib_utils.files import sha256_of_folder
from calib_utils.models import weights
from calib_utils.models.registry import DEFAULT_ENCODER, EMBEDDED, ENCODERS, stage_by_name
from calib_utils.models.weights import converted_folder

_DTYPES = ("float32", "bfloat16", "float16")
# Devices that stand for several: how transformers spreads a model over them.
DEVICE_MAPS = ("sequential", "balanced")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
_LONGEST_HUB_ID = 96  # by the rules of the hub
HINT = "Or give a hub id (owner/name), a local folder, or a .gguf file."


@dataclass(frozen=True)
class Model:
    """A model that is identified and verified, with its weights loaded on first use.

    Args:
        name: as the user gave it, of a local folder or file the last part; `key` is its form in
            file names.
        weights_sha256: of the GGUF file, or of everything in a folder that shapes a number.
        weights_file: what that hash is of, for people.
        chat: whether it is asked through its chat template; None lets its stage decide.
        folder_sha256: of a folder that is not a copy of ours; what is loaded must still have it.
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
    chat: bool | None = None
    folder_sha256: str | None = field(default=None, compare=False)

    @cached_property
    def tokenizer(self):
        """The Hugging Face tokenizer, with a chat template only where the model is asked by it."""
        tokenizer = self._whole_tokenizer
        if not self.chat_or_why[0]:
            tokenizer.chat_template = None
        return tokenizer

    @cached_property
    def chat_or_why(self) -> tuple[bool, str]:
        """Whether the model is asked through its chat template, and why.

        Many base checkpoints ship the template of their post-trained sibling, so the stage decides:
        as the registry has it, else by the name, else by whether generation settings or tokenizer
        stop at the template's end of turn.

        Raises:
            ModelFormatError: `chat=True` without a template.
        """
        if not self._whole_tokenizer.chat_template:
            if self.chat:
                raise ModelFormatError(f"{self.name} has no chat template: leave chat=True out")
            return False, "it has no chat template"
        if self.chat is not None:
            return self.chat, f"chat={self.chat} was asked for"
        stage, why = self._stage
        return stage != "base", f"{why}; chat={stage == 'base'} overrides"

    @property
    def _stage(self) -> tuple[str, str]:
        tokenizer = self._whole_tokenizer
        if named := stage_by_name(self.key):
            return named
        told = generation_settings(self.folder).get("eos_token_id")
        told = told if isinstance(told, list) else [told]
        stops = [token for token in tokenizer.all_special_ids if token in told]
        stops = stops or [tokenizer.eos_token_id]
        try:
            turn = prompts.end_of_turn(tokenizer)
        except ModelFormatError:  # rendering a prompt says what is wrong
            turn = None
        if turn is not None and turn not in stops:
            token = tokenizer.decode([turn])
            return "base", f"it generates past {token}, the end of a turn in its chat template"
        return "post-trained", "it has a chat template, and nothing says that it is a base model"

    @cached_property
    def _whole_tokenizer(self):
        return _loaded("AutoTokenizer", f"{self.name}: the tokenizer", self.folder)

    @cached_property
    def network(self):
        """The torch module, in evaluation mode on its device."""
        import torch

        if self.folder_sha256 not in (None, sha256_of_folder(self.folder)):
            raise HashMismatchError(
                f"{self.folder} changed after it was identified: load the model again"
            )
        options = {"dtype": getattr(torch, self.dtype), "use_safetensors": True}
        if self.device_map is not None:
            options["device_map"] = self.device_map
        what = f"{self.name}: the weights"
        network, told = _loaded(
            "AutoModelForCausalLM", what, self.folder, output_loading_info=True, **options
        )
        weights.require_every_tensor(self.folder, told)
        network.eval()
        return network if self.device_map is not None else network.to(self.device)


def _loaded(kind: str, what: str, folder: Path, **options):
    """What transformers makes of a folder, none of whose own code is run."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(
            folder, trust_remote_code=False, **options
        )
    except Exception as error:
        raise ModelFormatError(
            f"{what} in {folder} cannot be loaded ({type(error).__name__}: {error}); if a file is "
            "truncated, delete the folder and load again; code of a model's own is never run"
        ) from error


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | dict | None = None,
    chat: bool | None = None,
) -> Model:
    """A model by embedded name, hub id, local folder or GGUF file; a loaded one is returned as is,
    and refused with another setting than its own, unless that is the default.

    Args:
        name: see `calib_utils.models.registry.EMBEDDED` for the embedded names.
        revision: hub commit, branch or tag; only for hub ids.
        dtype: of the forward pass; probabilities are always reduced in float64.
        device: `auto` takes CUDA, then MPS, then the CPU. `sequential` and `balanced` spread a
            model over all GPUs, as a `device_map` of that name does.
        device_map: as in transformers, for models larger than one device.
        chat: whether to use the chat template; None uses it for post-trained models only
            (`Model.chat_or_why` and `show_prompt` say what was decided).

    Raises:
        InvalidRequestError, UnknownNameError, HubUnreachableError, HashMismatchError,
        ModelFormatError, DeviceError
    """
    if chat not in (None, True, False):
        raise InvalidRequestError(f"chat={chat!r}: give True, False, or None for the default")
    if isinstance(name, Model):
        asked = {"chat": (chat, None), "revision": (revision, None), "dtype": (dtype, "float32")}
        place = "device_map" if device in DEVICE_MAPS else "device"
        asked |= {"device_map": (device_map, None), place: (device, "auto")}
        for what, (value, default) in asked.items():
            if value not in (default, getattr(name, what)):
                raise InvalidRequestError(
                    f"{what}={value} comes too late for a loaded model: load {name.name!r} with it"
                )
        return name
    check_name(name, revision)
    text, path = str(name), Path(name).expanduser()
    if dtype not in _DTYPES:
        raise DeviceError(f"dtype={dtype!r} does not exist: choose from {', '.join(_DTYPES)}")
    if device in DEVICE_MAPS:
        if device_map not in (None, device):
            raise DeviceError(f"device={device!r} with device_map={device_map!r}: give one of them")
        device_map = device
    settings = {"dtype": dtype, "device": resolve_device(device), "device_map": device_map}
    settings |= {"chat": chat, "key": with_chat(key_of(text, revision), chat)}
    if text in EMBEDDED:
        spec = EMBEDDED[text]
        digest, file = spec.sha256, spec.filename
        folder = converted_folder(weights.embedded_file(spec), digest)
    elif path.suffix == ".gguf" and path.is_file():
        digest, text, file = files.sha256_of_gguf(path), path.name, path.name
        folder = converted_folder(path, digest)
        _remember(digest, path)
    else:
        if path.is_dir():
            folder, text = path, _name_of(path)
            file = f"{text}/"
            text = file if text in EMBEDDED else text
        elif is_hub_id(text):
            folder, file = weights.hub_folder(text, revision), text
            revision = revision or folder.name
        else:
            raise UnknownNameError("model", text, EMBEDDED, HINT)
        digest = settings["folder_sha256"] = sha256_of_folder(folder)
        generation_settings(folder)  # refuses what cannot be read
        if folder is path:
            _remember(digest, path)
    own = {"weights_sha256": digest, "weights_file": file, "revision": revision}
    return Model(name=text, folder=folder, **own, **settings)


def recorded_name(record: Mapping) -> str:
    """What `load_model` takes for the model of a record; a local one lies where it lay last."""
    name = str(record["model"])
    with suppress(OSError, ValueError):
        if name in EMBEDDED or is_hub_id(name) or Path(name).exists():
            return name
        return _place(record["weights_sha256"]).read_text(encoding="utf-8")
    return name


def _place(digest: str) -> Path:
    return paths.cache_dir() / "hashes" / f"{file_key(str(digest))[:64]}.place"


def _remember(digest: str, path: Path) -> None:
    """Where a local model lies, for `recorded_name`: no record names a path of this machine."""
    with suppress(OSError):
        files.keep(_place(digest), str(path.resolve()).encode())


def check_name(name: str | Path, revision: str | None = None) -> None:
    """Raises UnknownNameError for what can be neither a model's name nor a path on this machine.

    And for what is no revision, or is given for a model without any.
    """
    try:
        if not str(name).strip():
            raise ValueError("no name")
        Path(name).expanduser().resolve().exists()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UnknownNameError("model", name, EMBEDDED, f"{error}. {HINT}") from error
    if revision is None:
        return
    if not (isinstance(revision, str) and _REVISION.fullmatch(revision) and len(revision) <= 200):
        raise UnknownNameError("revision", revision, ("main",), "Give a commit, branch or tag.")
    if Path(name).expanduser().is_dir() or not is_hub_id(str(name)):
        hint = "revision= is for hub ids; drop it here."
        raise UnknownNameError("hub model", f"{name}@{revision}", (), hint)


def generation_settings(folder: Path) -> dict:
    """End tokens and the model's own sampling settings, if it comes with any."""
    return _json(folder / "generation_config.json")


def _json(path: Path, kind: type = dict):
    """What is in a JSON file of a model folder; empty where there is none."""
    try:
        if not isinstance(found := files.json_of(path), kind):
            raise ValueError(f"no {kind.__name__}")
        return found
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFormatError(
            f"{path} cannot be read ({type(error).__name__}: {error}): restore or delete it"
        ) from error


def is_hub_id(text: str) -> bool:
    """Whether a name has the form owner/name, and is no file's and no embedded model's."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) and len(text) <= _LONGEST_HUB_ID
    return bool(named) and not text.endswith(".gguf") and text not in EMBEDDED


def key_of(name: str | Path, revision: str | None = None) -> str:
    """A model's folder below results, from what `load_model` is given."""
    text, path = str(name), Path(name).expanduser()
    if text in EMBEDDED:
        return text
    if is_hub_id(text) and not path.is_dir():
        return file_key(text.replace("/", "--") + (f"@{revision}" if revision else ""))
    return file_key(path.stem if path.suffix == ".gguf" else _name_of(path))


def _name_of(path: Path) -> str:
    """Of a link its own name, not that of what it leads to: so a folder can be given a name."""
    return Path(os.path.abspath(path)).name


def file_key(text: str) -> str:
    """A name as it becomes part of a path."""
    return re.sub(r"[^\w.@-]+", "-", text).strip(".-") or "model"


def with_chat(key: str, chat: bool | None) -> str:
    """A model's key where its stage does not decide: its numbers lie apart from the usual ones."""
    return key if chat is None else f"{key}@chat={'yes' if chat else 'no'}"


def resolve_device(device: str) -> str:
    """The device of inputs: what "auto" or a device map stands for here; others as they are."""
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [kind for kind, here in has.items() if here]
    if device in ("auto", *DEVICE_MAPS):
        return available[0]
    try:
        known = torch.device(device)
        n = torch.cuda.device_count() if known.type == "cuda" else 1
        if known.type in available and (known.index or 0) < n:
            return device
    except (RuntimeError, TypeError):  # not the form of a device
        pass
    raise DeviceError(
        f"device={device!r} is not available here: choose 'auto' or {', '.join(available)}"
    )


# Sentence embedders (Table 1), in the folder layout of sentence-transformers or plain encoders.

# The names that a pooling config gives its switches; the files of others are refused.
_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_PARTS = {"Transformer", "Pooling", "Normalize"}
_LONGEST = 8192  # tokens, where neither file nor tokenizer names a limit


@dataclass(frozen=True)
class Embedder:
    """A sentence embedder, with its weights loaded on first use."""

    name: str
    folder: Path
    pooling: str

    @cached_property
    def tokenizer(self):
        """The Hugging Face tokenizer."""
        return _loaded("AutoTokenizer", f"{self.name}: the tokenizer", self.folder)

    @cached_property
    def max_tokens(self) -> int:
        """Texts are cut to this many tokens, as the embedder's own files say."""
        named = _json(self.folder / "sentence_bert_config.json").get("max_seq_length")
        return int(named or min(self.tokenizer.model_max_length, _LONGEST))

    @cached_property
    def network(self):
        """The torch module in float32, in evaluation mode."""
        import torch

        options = {"dtype": torch.float32, "use_safetensors": True}
        return _loaded("AutoModel", f"{self.name}: the weights", self.folder, **options).eval()

    def embed(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Unit vectors [text, dimension], float64; equal texts of a call have equal vectors."""
        import torch

        if not len(texts):
            raise InvalidRequestError("0 texts: give at least 1")
        # Texts of like length share a batch, so that little of it is padding.
        unique = sorted(dict.fromkeys(texts), key=len)
        batches = [unique[i : i + batch_size] for i in range(0, len(unique), batch_size)]
        options = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        found = {}
        for batch in tqdm(batches, desc=f"embedding by {self.name}", unit="batch", leave=False):
            inputs = self.tokenizer(batch, return_tensors="pt", **options)
            with torch.inference_mode():
                hidden = self.network(**inputs).last_hidden_state
                pooled = _pool(hidden, inputs["attention_mask"], self.pooling).double()
            vectors = torch.nn.functional.normalize(pooled, dim=-1).numpy()
            found |= zip(batch, vectors, strict=True)
        return np.stack([found[text] for text in texts])


def load_embedder(name: str | Path = DEFAULT_ENCODER) -> Embedder:
    """A sentence embedder by embedded name, hub id or local folder; errors as `load_model`'s.

    `all-MiniLM-L6-v2` comes from a package index and needs no hub. A folder or repository may be in
    the layout of sentence-transformers, whose pooling is followed; a plain encoder is pooled by the
    mean.
    """
    text, folder = str(name), Path(name).expanduser()
    if text in ENCODERS:
        folder = weights.encoder_folder(ENCODERS[text])
    elif not folder.is_dir():
        if "/" not in text:
            hint = "Or give a hub id (owner/name) or a local folder."
            raise UnknownNameError("sentence embedder", text, ENCODERS, hint)
        folder = weights.hub_folder(text, None)
    sha256_of_folder(folder)  # refuses what is not safetensors
    return Embedder(text, folder, _pooling(folder))


def _pooling(folder: Path) -> str:
    """The pooling that the folder's own files ask for."""
    modules = _json(folder / "modules.json", list)
    types = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if extra := set(types) - _PARTS:
        raise ModelFormatError(
            f"{folder}: modules {sorted(extra)} are not supported, only {sorted(_PARTS)}; choose "
            "another embedder"
        )
    if "Pooling" not in types:
        return "mean"
    config = _json(folder / types["Pooling"] / "config.json")
    switched = {key for key, on in config.items() if key.startswith("pooling_mode") and on is True}
    if len(switched) != 1 or not switched <= set(_POOLINGS):
        raise ModelFormatError(
            f"{folder}: pooling {sorted(switched)} is not supported, only one of "
            f"{sorted(_POOLINGS)}; choose another embedder"
        )
    return _POOLINGS[switched.pop()]


def _pool(hidden, mask, pooling: str):
    """[text, dimension] from hidden states [text, token, dimension]; padding on either side."""
    import torch

    if pooling == "mean":
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    place = torch.arange(mask.shape[1], device=mask.device) * mask
    at = place.argmax(dim=1) if pooling == "last" else mask.argmax(dim=1)  # the last or first 1
    return hidden[torch.arange(len(hidden), device=hidden.device), at]

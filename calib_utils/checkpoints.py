"""The checkpoints of the paper's panel (Fig. 8) and the embedded ones: a table, read from data.

Knows names, sizes and pairs. Loads nothing, and says nothing of what a model was measured to do.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from calib_utils import paths
from calib_utils.errors import UnknownNameError

_FILES = ("panel", "checkpoints.csv"), ("panel", "architectures.json")


@dataclass(frozen=True)
class Checkpoint:
    """One row of `data/panel/checkpoints.csv`; its README says where sizes come from.

    `hub` is empty for the embedded models, `base` where the panel has no base checkpoint of it.
    `active` counts the parameters that one token passes through, embeddings included.
    """

    name: str
    hub: str
    panel: str  # "paper" or "embedded"
    family: str
    stage: str  # "post-trained" or "base"
    base: str
    licence: str
    gated: bool
    dtype: str
    parameters: int
    active: int
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
    with open(paths.package_data(*_FILES[1]), encoding="utf-8") as stream:
        architectures = json.load(stream)
    with open(paths.package_data(*_FILES[0]), encoding="utf-8", newline="") as stream:
        return tuple(
            Checkpoint(
                **row
                | {name: int(row[name]) for name in ("parameters", "active")}
                | {"gated": row["gated"] == "yes"}
                | {"architecture": architectures[row["architecture"]]}
            )
            for row in csv.DictReader(stream)
        )


def paper_panel() -> tuple[Checkpoint, ...]:
    """The paper's 21."""
    return tuple(one for one in checkpoints() if one.panel == "paper")


def find(name: str) -> Checkpoint | None:
    """The checkpoint of a short name, a hub id or a results folder; None for any other model."""
    text = str(name)
    own = text.split("@")[0] if "--" in text else text  # a folder's name may end in a revision
    return next((one for one in checkpoints() if own and own in (one.name, one.hub, one.key)), None)


def get_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of a short name, a hub id or a results folder.

    Raises:
        UnknownNameError: none of the panel.
    """
    found = find(name)
    if found is None:
        raise UnknownNameError("checkpoint", str(name), [one.name for one in checkpoints()])
    return found


def pairs() -> list[tuple[Checkpoint, Checkpoint]]:
    """The panel's pairs (base, post-trained), in the panel's order."""
    return [(get_checkpoint(one.base), one) for one in checkpoints() if one.base]

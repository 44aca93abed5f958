"""The folder that ``topiarist prune`` wrote: the pruned network, the one before it, and the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from topiarist.architecture import SHAPE_FILE, load
from topiarist.cli.inputs import Source, check_seed, make_source
from topiarist.errors import TopiaristError
from topiarist.files import read_json, shown

RESULT = "result.json"
OURS = ("zoo", "torchvision", "timm")
"""Names of networks that begin with these run no code but that of the packages."""

REMEDY = "give a folder that `topiarist prune` wrote"


@dataclass(frozen=True, eq=False)
class PrunedFolder:
    """What is in such a folder.

    Attributes:
        model: the pruned network.
        source: the network before pruning, and its data where these are needed.
        result: the values of its ``result.json``.
    """

    model: nn.Module
    source: Source
    result: dict[str, Any]

    @property
    def macs(self) -> int:
        """Returns the MACs of the network that is in the folder."""
        shrunk = self.result.get("shrunk")
        return int(shrunk["macs"] if shrunk else self.result["macs"]["after"])


def read_pruned(
    folder: Path, data: str | None, seed: int = 0, *, shaped: bool, network: str | None = None
) -> PrunedFolder:
    """Reads a folder.

    Args:
        folder: that ``topiarist prune`` wrote.
        data: data set whose examples are the input; by default the one that the network was pruned with.
        seed: of the data's split.
        shaped: the input's shape is given, so that no data is needed.
        network: the name of the network that the user trusts; one of a package of the user's is made of no file's word.

    Raises:
        TopiaristError: a file is missing or damaged, or is not the result of a pruning.
    """
    if not folder.is_dir():
        raise TopiaristError(f"there is no folder {folder}: give one that prune wrote, or a name such as zoo:resnet20")
    for file in (RESULT, SHAPE_FILE):
        if not (folder / file).is_file():
            raise TopiaristError(f"{folder} has no {file}: {REMEDY}, or a network by its name, with its weights")
    check_seed(seed)
    result: Any = read_json(folder / RESULT, "the result of the pruning", REMEDY)
    try:
        name, given = result["model"], data or (None if shaped else result["data"])
        shrunk = result.get("shrunk")
        macs = shrunk["macs"] if shrunk else result["macs"]["after"]
        if not isinstance(name, str) or not isinstance(macs, int) or macs < 0 or not isinstance(given, str | None):
            raise TypeError
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise TopiaristError(f"{folder / RESULT} is not the result of a pruning: {REMEDY}") from error
    if name.partition(":")[0] not in OURS and name != network:
        raise TopiaristError(
            f"{folder / RESULT} names the network {shown(name)}, whose code would run: if you trust it, add --network "
            "with this name"
        )
    source = make_source(name, given, None, seed)
    example = None if source.data is None else source.data.example()
    return PrunedFolder(load(source.make, folder, example), source, result)

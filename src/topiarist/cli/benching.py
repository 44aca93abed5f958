"""The work of ``topiarist bench``: the networks that its words name, and what they are called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from topiarist.cli.folders import read_pruned
from topiarist.cli.inputs import Source, example_inputs, make_source
from topiarist.errors import TopiaristError
from topiarist.graph import Inputs

BEFORE = "before pruning"
ONNX = ".onnx"


@dataclass(frozen=True)
class Named:
    """A network as a word of the command line names it.

    Attributes:
        network: the module, or the path of its ONNX file.
        macs: those that pruning left, in the result of a folder; else they are found by tracing.
        source: the network before pruning, and its data; ``None`` for a file.
    """

    network: nn.Module | Path
    macs: int | None = None
    source: Source | None = None


def named(words: Sequence[str], data: str | None, shape: str | None, network: str | None = None) -> dict[str, Named]:
    """Returns the networks by their words; a folder alone comes behind the network that was pruned.

    The data of a folder are loaded where no shape of the input is given.

    Raises:
        TopiaristError: a word names no network, or two of them are the same.
    """
    if again := [word for number, word in enumerate(words) if word in words[:number]]:
        raise TopiaristError(f"{again[0]} is named twice: name each network once")
    found = {word: _named(word, data, shape, network) for word in words}
    if len(words) == 1 and Path(words[0]).is_dir():
        source = found[words[0]].source
        assert source is not None
        return {BEFORE: Named(source.model(), source=source), **found}
    return found


def inputs_of(networks: dict[str, Named], shape: str | None) -> Inputs:
    """Returns the input of all networks: of the shape that was given, else an example of the data, else as a file says.

    Raises:
        TopiaristError: the shape cannot be read, or is not known.
    """
    from topiarist.deploy import onnx_shapes
    from topiarist.models import ModelFactory

    sources = [each.source for each in networks.values() if each.source is not None]
    known = next((source for source in sources if source.data is not None), None)
    if shape is None and known is None:
        files = [each.network for each in networks.values() if isinstance(each.network, Path)]
        shapes = [onnx_shapes(file) for file in files]
        if len(files) == 1 and len(shapes[0]) == 1 and None not in shapes[0][0][1:]:
            shape = ",".join(str(size or 1) for size in shapes[0][0])
    return example_inputs(known or Source(ModelFactory(""), None, None, 0), shape)


def _named(word: str, data: str | None, shape: str | None, network: str | None) -> Named:
    path = Path(word)
    if path.is_dir():
        pruned = read_pruned(path, data, shaped=shape is not None, network=network)
        return Named(pruned.model, pruned.macs, pruned.source)
    if path.suffix == ONNX:
        from topiarist.deploy import onnx_shapes

        onnx_shapes(path)
        return Named(path)
    if ":" not in word:
        raise TopiaristError(
            f"there is no network {word}: name a model such as zoo:resnet20, a folder that prune wrote, or an ONNX file"
        )
    source = make_source(word, data, None)
    return Named(source.model(), source=source)

"""The command that exports: a network by name, or a folder that ``topiarist prune`` wrote, for a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from topiarist.cli import show
from topiarist.cli.folders import read_pruned
from topiarist.cli.inputs import Source, example_inputs, make_source
from topiarist.errors import TopiaristError
from topiarist.files import locked_file, writable


def export(
    model: str,
    *,
    out: Path,
    target: str = "onnx",
    input: str | None = None,
    data: str | None = None,
    weights: Path | None = None,
    network: str | None = None,
    exporter: str | None = None,
    dynamic_size: bool = False,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Write a network as a file for a runtime, once the file computes what torch does on random inputs.

    The batch is free wherever the network allows it. The file says what was cut, from what, and by which method.

    Args:
        model: the folder that prune wrote; or zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory.
        out: the file, .onnx, .xml (with a .bin beside it) or .pt2.
        target: onnx, openvino or torch-export.
        input: shape of an input, as 1,3,32,32 or 3x32x32, or NAME=SHAPE; by default that of the data.
        data: data set whose examples are the input, instead of a shape; by default the one that it was pruned with.
        weights: file of weights to load (safetensors, or a PyTorch state dict); a folder has its own.
        network: the name that a folder gives its network, where that is package.module:factory, whose code will run.
        exporter: of torch, torchscript or dynamo; by default the first whose file agrees.
        dynamic_size: leave height and width of images free, as well as the batch.
        seed: of the random inputs, and of the weights where no file is given.
        json: print the result as JSON.
    """
    from topiarist.deploy import export as written

    found = find(model, data, weights, seed, shaped=input is not None, network=network)
    writable(out)
    with locked_file(out):
        done = written(
            found.model,
            example_inputs(found.source, input),
            out,
            target,
            exporter=exporter,
            dynamic_size=dynamic_size,
            metadata=found.metadata,
            seed=seed,
        )
    show.result({**done.to_json(), "metadata": found.metadata}, json, lambda: show.exported(done))


@dataclass(frozen=True)
class Network:
    """A network to export.

    Attributes:
        source: how it is made, and its data.
        model: the network itself.
        metadata: what its file says.
    """

    source: Source
    model: nn.Module
    metadata: dict[str, Any]


def find(
    model: str, data: str | None, weights: Path | None, seed: int, *, shaped: bool, network: str | None = None
) -> Network:
    """Returns the network that a folder of ``topiarist prune`` holds, or that a name makes.

    Args:
        model: the folder or the name.
        data: data set that gives the input's shape.
        weights: file of weights, for a name.
        seed: of weights that no file gives.
        shaped: the input's shape is given, so that no data is needed.
        network: the name that a folder gives its network, if the user trusts its code.

    Raises:
        TopiaristError: there is neither, a file is missing or damaged, or weights are given for a folder.
    """
    if ":" not in model or Path(model).is_dir():
        return _in_folder(Path(model), data, weights, seed, shaped, network)
    source = make_source(model, data, weights, seed)
    return Network(source, source.model(), {"network": model})


def _in_folder(
    folder: Path, data: str | None, weights: Path | None, seed: int, shaped: bool, network: str | None
) -> Network:
    if weights is not None:
        raise TopiaristError(f"{folder} has weights of its own: leave --weights out, or name the network")
    pruned = read_pruned(folder, data, seed, shaped=shaped, network=network)
    return Network(pruned.source, pruned.model, _described(pruned.result))


def _described(result: dict[str, Any]) -> dict[str, Any]:
    """Returns what a file says of a pruned network: from what it was pruned, how, and what it keeps."""
    keys = ("pruning", "selectors", "macs", "params", "kept", "shrunk", "accuracy")
    return {"network": result["model"], **{key: result[key] for key in keys if key in result}}

"""The networks of a bench: what they are called with, what they cost, and how they come to a runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from topiarist.budget import cost
from topiarist.deploy.target import Session, Target
from topiarist.errors import TopiaristError
from topiarist.files import import_package, one_line, shortened, shown
from topiarist.graph import Inputs, call_model, named_tensors, tensors_in, trace
from topiarist.measure import mode

SAME = "all networks of a bench take the same inputs"


@dataclass(frozen=True, eq=False)
class Subject:
    """A network of a bench: a module, or the path of an ONNX file."""

    name: str
    network: nn.Module | Path

    @classmethod
    def of(cls, name: str, network: nn.Module | str | Path, inputs: Inputs) -> Subject:
        """Returns a network that was found to take these inputs.

        Raises:
            TopiaristError: it does not, the file is absent, damaged or no ONNX file, or this is no network.
        """
        if isinstance(network, nn.Module):
            _check_module(name, network, inputs)
            return cls(name, network)
        if not isinstance(network, str | Path):
            raise TopiaristError(f"{name} must be a module or the path of an ONNX file, but got {shown(network)}")
        _check_file(name, Path(network), inputs)
        return cls(name, Path(network))

    def macs(self, inputs: Inputs) -> int | None:
        """Returns MACs of one example, where the network can be traced."""
        if isinstance(self.network, Path):
            return None
        try:
            return cost(trace(self.network, inputs)).macs
        except TopiaristError:
            return None

    def session(self, target: Target, inputs: Inputs, folder: Path) -> tuple[Session, int]:
        """Takes the network to a runtime; returns it there, and its bytes.

        Args:
            target: the runtime.
            inputs: of the batch that it will run on.
            folder: for the file of this network, target and batch; what is there is used again.
        """
        file = self.file(target, inputs, folder)
        if file is not None:
            written = [file] if file == self.network else [each for each in folder.iterdir() if each.is_file()]
            return target.load(file), sum(each.stat().st_size for each in written)
        assert isinstance(self.network, nn.Module)
        tensors = named_tensors(self.network).values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return target.prepare(self.network, inputs), size

    def file(self, target: Target, inputs: Inputs, folder: Path) -> Path | None:
        """Returns the file that the runtime reads; ``None`` where it runs the module itself."""
        if isinstance(self.network, Path):
            return self.network
        if not target.suffix:
            return None
        file = folder / f"model{target.suffix}"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            target.export(self.network, inputs, file)
        return file


def _check_module(name: str, model: nn.Module, inputs: Inputs) -> None:
    try:
        with mode(model, training=False), torch.inference_mode():
            call_model(model, inputs)
    except Exception as error:  # the network is the user's code
        raise TopiaristError(
            f"{name} fails on the input {_shapes(inputs)} ({one_line(error)}): {SAME}, so give one that fits each"
        ) from error


def _check_file(name: str, path: Path, inputs: Inputs) -> None:
    given = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
    declared = onnx_shapes(path)
    fits = len(given) == len(declared) and all(map(_fits, given, declared))
    if not fits:
        takes = " and ".join("×".join(str(size or "?") for size in shape) for shape in declared)
        raise TopiaristError(
            f"{name} takes {takes}, but the input is {_shapes(inputs)}: {SAME}, so give one that fits each"
        )


def _fits(given: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    """Returns whether a tensor has the sizes that a file declares; its batch is tried when it runs."""
    if len(given) != len(declared):
        return False
    return all(size in (None, other) for size, other in zip(declared[1:], given[1:], strict=True))


def onnx_shapes(path: Path) -> list[tuple[int | None, ...]]:
    """Returns the shapes of an ONNX file's inputs, ``None`` for sizes that it leaves open.

    Raises:
        TopiaristError: there is no such file, it is damaged or no ONNX file, or the package onnx is missing.
    """
    if not os.path.isfile(path):
        raise TopiaristError(f"there is no file {shortened(path)}: give a module, or the path of an ONNX file")
    onnx = import_package("onnx", "export")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's, which are several packages' own
        raise TopiaristError(f"{path} is damaged or no ONNX file ({one_line(error)}): export it again") from error
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [entry for entry in graph.input if entry.name not in stored]
    if not graph.node or not inputs:
        raise TopiaristError(f"{path} is damaged or no ONNX file (it holds no network): export it again")
    return [
        tuple(size.dim_value if size.HasField("dim_value") else None for size in entry.type.tensor_type.shape.dim)
        for entry in inputs
    ]


def _shapes(inputs: Inputs) -> str:
    return " and ".join("×".join(map(str, tensor.shape)) for tensor in tensors_in(inputs)) or "without tensors"

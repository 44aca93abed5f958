"""What the commands read: the network with its weights, the data, the shape of an input; and where they write."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from topiarist.cli.weights import put_weights
from topiarist.errors import TopiaristError
from topiarist.files import locked, remove_drafts, shown
from topiarist.graph import Inputs

if TYPE_CHECKING:
    from topiarist.data import Data
    from topiarist.models import ModelFactory


@dataclass(frozen=True)
class Source:
    """Names a network, its data, and the file of its weights.

    Attributes:
        make: builds the network with random weights.
        data: the data set, if one was named.
        weights: the file, if one was named.
        seed: of the initial weights.
    """

    make: ModelFactory
    data: Data | None
    weights: Path | None
    seed: int

    def model(self) -> nn.Module:
        """Returns the network, with the weights of the file, or initial ones drawn with the seed."""
        torch.manual_seed(self.seed)
        model = self.make()
        if self.weights is not None:
            put_weights(model, self.weights)
        return model


def check_seed(seed: int) -> None:
    """Raises where a seed is not one that torch takes."""
    if not 0 <= seed < 2**63:
        raise TopiaristError(f"the seed is {seed}: give a whole number from 0 to 2^63 - 1")


def make_source(model: str, data: str | None, weights: Path | None, seed: int = 0) -> Source:
    """Finds a network and data by name; the network gets the channels, image size and classes of the data.

    Raises:
        TopiaristError: a name is unknown.
    """
    from topiarist.data import load_data
    from topiarist.models import fitting_options, make_model

    check_seed(seed)
    loaded = None if data is None else load_data(data, seed=seed)
    options = {} if loaded is None else fitting_options(model, loaded.input_shape, loaded.classes)
    return Source(make_model(model, **options), loaded, weights, seed)


def example_inputs(source: Source, text: str | None) -> Inputs:
    """Returns inputs for tracing and timing: of the shapes that were given, else the data's first example.

    Args:
        source: the network, its data and seed.
        text: ``[NAME=]SHAPE[:VALUES]``; with several of them, separated by semicolons, arguments of these names or in
            this order.

    Raises:
        TopiaristError: the text cannot be read, or there is neither text nor data.
    """
    if text is None:
        if source.data is None:
            raise TopiaristError("the shape of the input is not known: give --input 1,3,224,224, or --data DATA")
        return source.data.example()
    generator = torch.Generator().manual_seed(source.seed)
    named = [_named(entry) for entry in text.split(";")]
    names = [name for name, _ in named]
    tensors = [_drawn(value, generator) for _, value in named]
    if len(tensors) == 1 and names[0] is None:
        return tensors[0]
    if None not in names:
        if len(set(names)) < len(names):
            raise TopiaristError(f"the input {shown(text)} has a name twice: give each argument once")
        return {str(name): tensor for name, tensor in zip(names, tensors, strict=True)}
    if set(names) != {None}:
        raise TopiaristError("some inputs have names and some have none: write NAME=SHAPE for all, or for none")
    return tuple(tensors)


def _named(entry: str) -> tuple[str | None, str]:
    """Returns the name of an argument, where it has one, and the rest."""
    name, equals, rest = entry.partition("=")
    if equals and not name.strip().isidentifier():
        raise TopiaristError(f"the input {shown(entry.strip())} cannot be read: write it as NAME=1x3x224x224")
    return (name.strip(), rest) if equals else (None, entry)


def _drawn(text: str, generator: torch.Generator) -> Tensor:
    """Returns a tensor: ``SHAPE`` of normal numbers, ``SHAPE:N`` of whole numbers below N, ``SHAPE:ones`` of ones."""
    shape, colon, values = (part.strip() for part in text.partition(":"))
    sizes = parse_shape(shape)
    if math.prod(sizes) > 1 << 30:
        raise TopiaristError(f"an input of {math.prod(sizes):,} numbers is too large: give a smaller --input")
    if not colon:
        return torch.randn(sizes, generator=generator)
    if values == "ones":
        return torch.ones(sizes, dtype=torch.int64)
    if not re.fullmatch(r"0*[1-9]\d{0,8}", values):
        raise TopiaristError(
            f"the values {shown(values)} of an input cannot be read: write 1x12:100 for whole numbers below 100, or "
            "1x12:ones"
        )
    return torch.randint(int(values), sizes, generator=generator)


def parse_shape(text: str) -> tuple[int, ...]:
    """Reads a shape: ``1,3,32,32`` of a tensor, ``3x32x32`` and ``784`` of one example, without the batch axis.

    Raises:
        TopiaristError: a size is not a whole number of at least 1.
    """
    words = re.split(r"\s*[,x×]\s*", text.strip("()[] "))
    if not all(re.fullmatch(r"0*[1-9]\d{0,8}", word) for word in words):
        raise TopiaristError(f"the shape {shown(text)} cannot be read: write it as 1,3,224,224 or 3x224x224")
    sizes = tuple(int(word) for word in words)
    one_example = len(sizes) == 1 or (len(sizes) == 3 and "," not in text)
    return (1, *sizes) if one_example else sizes


@contextmanager
def own_folder(path: Path) -> Iterator[None]:
    """Makes a folder for what a command writes, and keeps other runs out of it until the command ends.

    Raises:
        TopiaristError: it cannot be written, or another run is using it.
    """
    writable_folder(path)
    with locked(path):
        remove_drafts(path)
        yield


def writable_folder(path: Path) -> None:
    """Makes a folder and checks that it can be written, before any work is done.

    Raises:
        TopiaristError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        for name in ("result.json", "model.safetensors", "architecture.json"):
            if (path / name).is_dir():
                raise IsADirectoryError(0, f"its {name} is a folder")
    except OSError as error:
        raise TopiaristError(f"cannot write the folder {path} ({error.strerror}): choose another --out") from error

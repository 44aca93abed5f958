"""Networks as compressed files, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from errno import EINVAL
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.compress import shape
from topiarist.compress.binary import Memory, bits_of, varint
from topiarist.compress.coding import Blob, Coding, encode
from topiarist.compress.container import File, default_limit, write
from topiarist.compress.inputs import checked_state, identity
from topiarist.compress.report import Report, Row
from topiarist.compress.shape import SHAPE
from topiarist.errors import TopiaristError
from topiarist.files import allowance, as_path, atomically, shortened, shown, writable
from topiarist.graph import check_finite, unwrapped

_BYTES_OF_A_VALUE = 160
"""What decoding takes for a value of a tensor at most, while it works."""


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    architecture: Architecture | None = None,
    half: bool = False,
) -> Report:
    """Writes a network to one file, in which no bit of any value is lost (but see ``half``).

    Tensors with few distinct values, which sharing gives, become a codebook and entropy-coded symbols; the positions of
    nonzero values are coded in the smallest of four ways. The file is complete or absent.

    Args:
        model: a network, or its state dict.
        path: the file; missing folders are made.
        architecture: the shape of a network that was cut, so that `load_model` can cut a new one to it.
        half: round all values of 32 bits to 16 bits first: codebooks and biases take half the bytes.

    Returns:
        The bytes that each tensor takes.

    Raises:
        TopiaristError: a tensor that no file can hold, an architecture of another network, or a file that cannot
            be written.
    """
    state, target = checked_state(model), writable(path)
    data, report = pack(state, architecture=architecture, half=half)
    atomically(target, lambda temporary: temporary.write_bytes(data))
    return report


def pack(
    state: Mapping[str, Tensor], *, architecture: Architecture | None = None, half: bool = False
) -> tuple[bytes, Report]:
    """Returns the bytes that `save` writes, and the report."""
    state = checked_state(state)
    if architecture is not None:
        if not isinstance(architecture, Architecture):
            raise TopiaristError(
                f"a {type(architecture).__name__} is not an architecture: give that of prune() or Architecture.load()"
            )
        architecture.check(state)
    return assemble(_halved(state) if half else state, encode, architecture)


def assemble(
    state: Mapping[str, Tensor], encode: Callable[[Tensor], Blob], architecture: Architecture | None = None
) -> tuple[bytes, Report]:
    """Returns the bytes of a file, and the report.

    Args:
        state: the tensors, checked.
        encode: encodes one of them; tied tensors are encoded once.
        architecture: the shape of the network, to be stored with it.
    """
    coded: dict[str, tuple[Tensor, Blob]] = {}
    seen: dict[tuple[object, ...], int] = {}
    for name, tensor in state.items():
        same = identity(tensor)
        if same in seen:
            coded[name] = (tensor, Blob(Coding.ALIAS, varint(seen[same]), tensor.numel()))
            continue
        seen[same] = len(coded)
        coded[name] = (tensor, encode(tensor))
    stored = {name: tensor for name, (tensor, _) in coded.items()}
    texts = {} if architecture is None else {SHAPE: shape.to_text(architecture, stored)}
    data, overhead, added = write(coded, texts)
    rows = tuple(Row.of(name, tuple(tensor.shape), blob) for name, (tensor, blob) in coded.items())
    report = Report(rows, overhead, added, 0)
    shapes = {} if architecture is None else architecture.shapes
    return data, replace(report, original=4 * sum(map(prod, shapes.values())) or report.dense)


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounds values of 32 bits to 16; tied tensors stay tied."""
    halves: dict[tuple[object, ...], Tensor] = {}
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or identity(tensor) in halves:
            continue
        half = tensor.detach().half().float()
        if not torch.equal(half.isfinite(), tensor.isfinite()):
            raise TopiaristError(f"{name} has values beyond 65504, which 16 bits cannot hold: leave half out")
        halves[identity(tensor)] = half
    return {name: halves.get(identity(tensor), tensor) for name, tensor in state.items()}


def unpack(data: bytes, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Returns the state dict in a file's bytes, see `load`."""
    return File.read(data, max_bytes).tensors()


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Reads the state dict of a file that `save` wrote. Nothing in a file is ever run.

    Args:
        path: the file.
        max_bytes: memory that reading may take, file and result included; by default 256 MiB (or the environment
            variable ``TOPIARIST_READ_BYTES``) and 512 times the file. A file that asks for more is refused before the
            memory is touched.

    Returns:
        Name → tensor, on the CPU; tied tensors are one object.

    Raises:
        TopiaristError: there is no such file, it is damaged, of an unknown version, or takes too much memory.
    """
    return unpack(_read(path, max_bytes), max_bytes=max_bytes)


def load_architecture(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Architecture | None:
    """Returns the shape of the network in a file, where it was stored with one.

    Raises:
        TopiaristError: as for `load`.
    """
    return load_both(path, max_bytes=max_bytes)[1]


def load_both(
    path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> tuple[dict[str, Tensor], Architecture | None]:
    """Returns the state dict of a file, see `load`, and the shape of the network where it was stored with one."""
    file = File.read(_read(path, max_bytes), max_bytes)
    tensors = file.tensors()
    return tensors, shape.of_file(file, tensors)


def load_model(
    make_model: Callable[[], nn.Module], path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> nn.Module:
    """Restores a network from one file.

    Args:
        make_model: returns a model of the old shape if the file has an architecture, else one of the stored shape.
        path: the file.
        max_bytes: memory that reading may take; by default 256 MiB (or the environment variable
            ``TOPIARIST_READ_BYTES``), the bytes of the model twice, and 160 for each value of its largest tensor.

    Raises:
        TopiaristError: as for `load`; or the file is of another network.
    """
    if not callable(make_model):
        raise TopiaristError(
            f"load_model() takes a function that makes the model: topiarist.make_model({shown(make_model)})"
        )
    model = unwrapped(make_model())
    if not isinstance(model, nn.Module):
        raise TopiaristError(f"make_model() returned a {type(model).__name__}: let it return a torch.nn.Module")
    own = checked_state(model)
    most = _needed(own) + allowance() if max_bytes is None else max_bytes
    file = File.read(_read(path, most), most)
    architecture = shape.of_file(file, None)
    if architecture is not None:
        model = architecture.apply(model)
        own = model.state_dict()
    stored = {entry.name: entry for entry in file.entries}
    for name in [*own, *stored]:
        there, here = stored.get(name), own.get(name)
        shapes = ["missing" if tensor is None else str(tuple(tensor.shape)) for tensor in (there, here)]
        types = [str(tensor.dtype) for tensor in (there, here) if tensor is not None]
        stored_as, wanted = types if shapes[0] == shapes[1] else shapes
        if stored_as != wanted:
            raise TopiaristError(
                f"{path} is of another network, its {name} is {stored_as} and not {wanted}: make the model with "
                "the same options"
            )
    tensors = file.tensors()
    _check_ties(path, own, tensors)
    model.load_state_dict(tensors)
    check_finite(model)
    return model


def _needed(own: Mapping[str, Tensor]) -> int:
    """Returns the bytes that decoding these tensors takes: the file and the tensors, and the work on one of them."""
    largest = max((tensor.numel() for tensor in own.values()), default=0)
    return 2 * sum(tensor.nbytes for tensor in own.values()) + _BYTES_OF_A_VALUE * largest


def _check_ties(path: str | os.PathLike[str], own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises where tensors that are one in a model differ in a file: the last of them would win."""
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in own.items():
        twin = first.setdefault(identity(tensor), name)
        one, other = stored[name], stored[twin]
        if one is not other and not np.array_equal(bits_of(one), bits_of(other)):
            raise TopiaristError(
                f"{path} is of another network, its {twin} and {name} differ and are one tensor in the model: make the "
                "model without tied weights"
            )


def _read(path: str | os.PathLike[str], max_bytes: int | None) -> bytes:
    file = as_path(path)
    try:
        most = Memory(0 if max_bytes is None else max_bytes)
        size = file.stat().st_size
        memory = Memory(default_limit(size)) if max_bytes is None else most
        if not file.is_file():
            raise OSError(EINVAL, "it is not a file")
        memory.need(2 * size, f"the file {path}")
        return file.read_bytes()
    except OSError as error:
        raise TopiaristError(
            f"cannot read {shortened(path)} ({error.strerror}): give a file that topiarist compress wrote"
        ) from error

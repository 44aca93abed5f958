"""Networks as compressed files, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from topiarist.architecture import Architecture, atomically
from topiarist.architecture_file import digest
from topiarist.compress.coding import Blob, Coding, encode
from topiarist.compress.container import MAX_BYTES, File, check_dtype, damaged, write
from topiarist.compress.octets import varint
from topiarist.compress.paper import WIDEST, encode_paper
from topiarist.compress.report import Report, Row
from topiarist.errors import TopiaristError
from topiarist.graph import check_finite

Mode = Literal["ans", "paper"]
_SHAPE = "architecture"
_CONVOLUTION_INDEX, _LINEAR_INDEX = 8, 5


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    mode: Mode = "ans",
    architecture: Architecture | None = None,
    half: bool = False,
    index_bits: int | None = None,
) -> Report:
    """Writes a network into one file, in which no bit of any value is lost (but see ``half``).

    Tensors with few distinct values, which sharing gives, become a codebook and entropy-coded symbols; the positions of
    what is not zero are coded in whatever of four ways is smallest. The file is there as a whole or not at all.

    Args:
        model: a network, or its state dict.
        path: the file; missing folders are made.
        mode: ``"ans"`` is near the entropy of the symbols; ``"paper"`` is the format of Han et al., for comparison.
        architecture: the shape of a network that was cut, so that `load_model` can cut a new one to it.
        half: round all values of 32 bits to 16 bits first: codebooks and biases take half the bytes.
        index_bits: of ``mode="paper"``: bits of a relative index; by default 8 for convolutions, 5 for linear layers.

    Returns:
        What each tensor takes.

    Raises:
        TopiaristError: a tensor that has no place in a file, or a file that cannot be written.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    path = _path(path)
    data, report = pack(state, mode=mode, architecture=architecture, half=half, index_bits=index_bits)
    atomically(path, lambda temporary: temporary.write_bytes(data))
    return report


def pack(
    state: Mapping[str, Tensor],
    *,
    mode: Mode = "ans",
    architecture: Architecture | None = None,
    half: bool = False,
    index_bits: int | None = None,
) -> tuple[bytes, Report]:
    """The bytes that `save` writes, and the report."""
    if mode not in get_args(Mode):
        raise TopiaristError(f"there is no mode {mode!r}: choose ans or paper")
    if index_bits is not None and (type(index_bits) is not int or not 1 <= index_bits <= WIDEST):
        raise TopiaristError(f"a relative index cannot have {index_bits!r} bits: give 1 to {WIDEST}")
    if not isinstance(state, Mapping):
        raise TopiaristError(f"a network or its state dict can be saved, and no {type(state).__name__}")
    if architecture is not None and not isinstance(architecture, Architecture):
        raise TopiaristError(f"architecture must be a topiarist.Architecture, not {type(architecture).__name__}")
    coded: dict[str, tuple[Tensor, Blob]] = {}
    seen: dict[tuple[object, ...], int] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_text(name):
            raise TopiaristError(f"a tensor of the state dict is called {name!r}, which is no name: rename it")
        if not isinstance(tensor, Tensor):
            raise TopiaristError(f"{name} is a {type(tensor).__name__} and no tensor: leave it out of the state dict")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TopiaristError(f"{name} is no dense tensor with values: convert it with .to_dense() or leave it out")
        check_dtype(name, tensor)
        place = _place(tensor)
        if place in seen:
            coded[name] = (tensor, Blob(Coding.ALIAS, varint(seen[place]), tensor.numel()))
            continue
        seen[place] = len(coded)
        coded[name] = _coded(name, tensor.resolve_conj().resolve_neg(), mode, half, index_bits)
    data, overhead = write(coded, {} if architecture is None else {_SHAPE: _plain(architecture)})
    rows = tuple(Row.of(name, tuple(tensor.shape), blob) for name, (tensor, blob) in coded.items())
    report = Report(rows, overhead, 0)
    shapes = {} if architecture is None else architecture.shapes
    return data, replace(report, original=4 * sum(map(prod, shapes.values())) or report.dense)


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same memory seen the same way; empty ones are never the same."""
    where = tensor.data_ptr() if tensor.numel() else id(tensor)
    seen = (tensor.is_conj(), tensor.is_neg(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    return (where, tensor.device, *seen)


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _path(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path):
        raise TopiaristError(f"{path!r} is no path of a file")
    return Path(path)


def _coded(name: str, tensor: Tensor, mode: Mode, half: bool, index_bits: int | None) -> tuple[Tensor, Blob]:
    if half and tensor.dtype == torch.float32:
        rounded = tensor.detach().half().float()
        if not torch.equal(rounded.isfinite(), tensor.isfinite()):
            raise TopiaristError(f"{name} has values beyond 65504, which 16 bits cannot hold: save it with half=False")
        tensor = rounded
    if mode == "ans":
        return tensor, encode(tensor)
    default = _CONVOLUTION_INDEX if tensor.ndim > 2 else _LINEAR_INDEX
    return tensor, encode_paper(tensor, index_bits or default)


def unpack(data: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """The state dict in a file's bytes, see `load`."""
    return File.read(data, max_bytes).tensors()


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Reads the state dict of a file that `save` wrote. Nothing in a file is ever run.

    Args:
        path: the file.
        max_bytes: memory that reading may take, file and result included; a file that asks for more is refused before
            the memory is touched.

    Returns:
        Name → tensor, on the CPU; tied tensors are one object.

    Raises:
        TopiaristError: there is no such file, it is damaged, of an unknown version, or takes too much memory.
    """
    return unpack(_read(path, max_bytes), max_bytes=max_bytes)


def load_architecture(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Architecture | None:
    """The shape of the network in a file, where it was stored with one.

    Raises:
        TopiaristError: as for `load`.
    """
    return _architecture(File.read(_read(path, max_bytes), max_bytes))


def load_model(
    make_model: Callable[[], nn.Module], path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> nn.Module:
    """Restores a network from one file.

    Args:
        make_model: returns a model of the old shape if the file has an architecture, else one of the stored shape.
        path: the file.
        max_bytes: memory that reading may take; by default 160 bytes for each value of the model, and 64 MiB.

    Raises:
        TopiaristError: as for `load`; or the file is of another network.
    """
    if not callable(make_model):
        raise TopiaristError(
            f"load_model() takes a function that makes the model: topiarist.make_model({make_model!r})"
        )
    model = make_model()
    if not isinstance(model, nn.Module):
        raise TopiaristError(f"the function that makes the model gave a {type(model).__name__} and no torch.nn.Module")
    own = model.state_dict()
    most = 160 * sum(t.numel() for t in own.values()) + (1 << 26) if max_bytes is None else max_bytes
    file = File.read(_read(path, most), most)
    architecture = _architecture(file)
    if architecture is not None:
        model = architecture.apply(model)
        own = model.state_dict()
    stored = {entry.name: entry for entry in file.entries}
    for name in [*own, *stored]:
        there, here = stored.get(name), own.get(name)
        if there is None or here is None or there.shape != tuple(here.shape) or there.dtype != here.dtype:
            told = "missing" if there is None else f"{there.shape} of {there.dtype}"
            wanted = "that the model lacks" if here is None else f"and not {tuple(here.shape)} of {here.dtype}"
            raise TopiaristError(
                f"{path} is of another network, its {name} is {told} {wanted}: make the model with the same options"
            )
    values = file.tensors()
    model.load_state_dict(values)
    for name, value in model.state_dict().items():
        if not torch.equal(value.cpu(), values[name]) and bool(values[name].isfinite().all()):
            raise TopiaristError(
                f"{path} is of another network, which has {name} apart from what this model ties it to"
            )
    check_finite(model)
    return model


def _read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    path = _path(path)
    if type(max_bytes) is not int:
        raise TopiaristError(f"max_bytes must be a whole number of bytes, but got {max_bytes!r}")
    try:
        size = os.path.getsize(path)
        if 2 * size > max_bytes:
            raise TopiaristError(
                f"{path} has {size:,} bytes, too many for max_bytes={max_bytes:,}: raise it if you trust it"
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise TopiaristError(
            f"cannot read {path} ({error.strerror}): give a file that topiarist compress wrote"
        ) from error


def _plain(architecture: Architecture) -> str:
    value: dict[str, Any] = architecture.to_json()
    del value["sha256"]  # the file has a checksum of its own
    return json.dumps(value, separators=(",", ":"))


def _architecture(file: File) -> Architecture | None:
    if _SHAPE not in file.texts:
        return None
    try:
        value = json.loads(file.texts[_SHAPE])
    except (ValueError, RecursionError) as error:
        raise damaged(error, _SHAPE) from error
    if isinstance(value, dict):
        value["sha256"] = digest(value)
    return Architecture.from_json(value)

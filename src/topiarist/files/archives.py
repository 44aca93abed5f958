"""What `torch.save` wrote, read without running code in it: its checksums are checked, and what it may make is listed.

Torch alone looks at no checksum, inflates what is compressed, and makes arrays of any length that a file names.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files.limits import check_size
from topiarist.files.sentences import shortened

_MADE = {
    *(f"torch._utils _rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
    *(f"torch._utils _rebuild_{kind}" for kind in ("parameter_with_state", "sparse_tensor", "nested_tensor")),
    *("torch._utils _rebuild_qtensor", "torch per_tensor_affine", "torch per_channel_affine"),
    *("torch.storage UntypedStorage", "torch per_channel_affine_float_qparams"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._tensor _rebuild_from_type_v2"),
    *("torch Size", "torch Tensor", "torch device", "torch.nn.parameter Parameter", "torch.serialization _get_layout"),
    *("collections OrderedDict", "collections Counter", "_codecs encode"),
    *(f"{builtins} {kind}" for builtins in ("builtins", "__builtin__") for kind in ("set", "complex")),
}
"""What state dicts and checkpoints are made of, beside types of numbers; weights that are not dense get a sentence."""
_PARTS = 5
"""Pickles at the beginning of a file of torch before 1.6."""


class ForeignObjectError(ValueError):
    """A file holds what only code can restore; the message is its name."""


def read_archive(path: Path) -> object:
    """Returns the values in a file of `torch.save`, on the CPU; one without checksums gives a warning.

    Raises:
        ForeignObjectError: something in it is neither tensor nor plain value.
        TopiaristError: it takes too much memory, or is no regular file.
        Exception: a checksum is wrong, or torch cannot read it.
    """
    if path.exists() and not path.is_file():  # a device such as /dev/zero has no end
        raise TopiaristError(f"{shortened(path)} is not a regular file: name another one")
    for name in _made(path):
        if name not in _MADE and not _is_type(name):
            raise ForeignObjectError(name.replace(" ", "."))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other formats: the errors say more
        value = torch.load(path, map_location="cpu", weights_only=True)
    size = path.stat().st_size
    check_size(sum(_sizes(value, set())), str(path), honest=size)
    if not zipfile.is_zipfile(path):
        warnings.warn(
            f"{path} has no checksum, for its format is that of torch before 1.6, so that changed bits in it are not "
            "noticed: load it, and write it again with torch.save",
            stacklevel=3,
        )
    return value


def _made(path: Path) -> Iterator[str]:
    """Yields the names of all that reading a file makes, each as module and name with a space between.

    Raises:
        ValueError: a checksum is wrong, something is compressed, or is named in another way than torch does.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(_PARTS):
                yield from _globals(file)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(each.compress_type for each in entries) or sum(e.file_size for e in entries) > path.stat().st_size:
            raise ValueError("it is compressed, which no file of torch.save is")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
        for each in entries:
            if each.filename.endswith(".pkl"):
                with archive.open(each) as file:
                    yield from _globals(file)


def _globals(file: IO[bytes]) -> Iterator[str]:
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif code.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise ForeignObjectError("objects")


def _is_type(name: str) -> bool:
    """Returns whether a name is that of a type of numbers, or of a memory of such numbers."""
    module, _, last = name.partition(" ")
    return module == "torch" and (isinstance(getattr(torch, last, None), torch.dtype) or last.endswith("Storage"))


def _sizes(value: object, known: set[object]) -> Iterator[int]:
    """Yields the bytes of all tensors in a value, where each view of some memory counts once."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and not value.is_nested and not value.is_meta
        view: Any = (value.data_ptr(), value.shape, value.stride(), value.dtype) if dense else id(value)
        if view not in known:
            known.add(view)
            yield value.numel() * value.element_size() if dense else 0
    elif id(value) not in known and isinstance(value, Mapping | list | tuple):
        known.add(id(value))
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _sizes(each, known)

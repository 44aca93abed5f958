"""The file format; written in one piece, read with every size checked before it is used.

4 bytes   ``TPCF``
1 byte    version
varint    bytes of the header, stored
varint    bytes of the header, inflated; 0 where it is stored as it is
header    varint: number of tensors; for each of them
              varint: bytes of its name; the name (UTF-8); byte: type; byte: coding; varint: axes;
              varint: each axis; varint: bytes of its blob
          then, of each further text: varint: bytes of its name; the name; varint: bytes; the text
blobs     of the tensors, in the same order
4 bytes   CRC-32 of all before it, little-endian
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from topiarist.compress.ans import DamagedError
from topiarist.compress.binary import Memory, Source, deflated, varint
from topiarist.compress.coding import Blob, Coding, decode
from topiarist.compress.inputs import DTYPES
from topiarist.errors import TopiaristError
from topiarist.files import IN_WEIGHTS, allowance, shown

MAGIC, VERSION = b"TPCF", 2
READS = (1, VERSION)
"""Version 1 is the same, but for masks of unstructured pruning, which were complete in the architecture."""
_TENSORS, _AXES, _HEADER = 1 << 20, 64, 1 << 28


def default_limit(size: int) -> int:
    """Returns the memory that reading a file of this size may take, in bytes, unless the caller says otherwise."""
    return allowance() + IN_WEIGHTS * size


Decode = Callable[[Source, Coding, torch.dtype, tuple[int, ...], str], Tensor]
"""Decodes a tensor: its bytes, coding, type and shape, and what messages call it."""


@dataclass(frozen=True)
class Entry:
    """A tensor's entry in the header.

    Attributes:
        name: its key in the state dict.
        dtype: of its values.
        shape: its axes.
        coding: how it is stored.
        length: bytes of its blob.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    coding: Coding
    length: int

    @property
    def size(self) -> int:
        """Returns the bytes of the tensor in memory."""
        return 0 if self.coding is Coding.ALIAS else prod(self.shape) * self.dtype.itemsize


def write(tensors: Mapping[str, tuple[Tensor, Blob]], texts: Mapping[str, str]) -> tuple[bytes, int, int]:
    """Returns a file's bytes, how many of them are header and checksum, and how many more the texts take."""
    head = _head(tensors, texts)
    data = head + b"".join(blob.data for _, blob in tensors.values())
    bare = len(_head(tensors, {})) if texts else len(head)
    return data + zlib.crc32(data).to_bytes(4, "little"), bare + 4, len(head) - bare


def _head(tensors: Mapping[str, tuple[Tensor, Blob]], texts: Mapping[str, str]) -> bytes:
    header = bytearray(varint(len(tensors)))
    for name, (tensor, blob) in tensors.items():
        header += _text(name) + bytes([DTYPES.index(tensor.dtype), blob.coding])
        header += b"".join(map(varint, (tensor.ndim, *tensor.shape, len(blob.data))))
    for name, text in texts.items():
        header += _text(name) + _text(text)
    small = deflated(bytes(header))
    kept, size = (bytes(header), 0) if small is None else (small, len(header))
    return MAGIC + bytes([VERSION]) + varint(len(kept)) + varint(size) + kept


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return varint(len(data)) + data


@dataclass(frozen=True)
class File:
    """A file whose header has been read and whose checksum is right; its tensors are not decoded yet.

    Attributes:
        entries: its tensors.
        texts: further texts in it, by name.
        blobs: the bytes of the tensors, by name.
        memory: what decoding may still use.
    """

    entries: tuple[Entry, ...]
    texts: Mapping[str, str]
    blobs: Mapping[str, memoryview]
    memory: Memory

    @classmethod
    def read(cls, data: bytes, max_bytes: int | None = None) -> File:
        """Reads a header and checks everything in it against the data and the memory, see `default_limit`.

        Raises:
            TopiaristError: this is not such a file, it is damaged, of an unknown version, or too large.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)) or data[:4] != MAGIC:
            raise TopiaristError("this is not a compressed network: give a file that topiarist compress wrote")
        if len(data) > 4 and data[4] not in READS:
            raise TopiaristError(
                f"this compressed network has version {data[4]}, this release reads {' and '.join(map(str, READS))}: "
                "upgrade topiarist"
            )
        memory = Memory(default_limit(len(data)) if max_bytes is None else max_bytes)
        memory.need(2 * len(data), "the file")
        try:
            if len(data) < 11 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
                raise DamagedError("its checksum is wrong")
            source = Source(memoryview(data)[5:-4], memory)
            stored, size = source.varint(), source.varint(_HEADER)
            header = source.inflated(stored, size, "the header") if size else source.take(stored)
            memory.need(128 * len(header), "the header", keep=True)  # each byte may become a Python object
            entries, texts = _header(Source(memoryview(header), memory))
            blobs = {entry.name: _slice(source, entry.length) for entry in entries}
            if source.left:
                raise DamagedError("it is longer than its tensors")
        except (DamagedError, UnicodeDecodeError, zlib.error) as error:
            raise damaged(error) from error
        for entry in entries:
            memory.need(entry.size, entry.name, keep=True)
        return cls(entries, texts, blobs, memory)

    def tensors(self, decode: Decode = decode) -> dict[str, Tensor]:
        """Decodes all tensors.

        Args:
            decode: decodes one of them; by default what `topiarist.compress.save` writes.

        Raises:
            TopiaristError: one is damaged, or takes more memory than is allowed.
        """
        tensors: dict[str, Tensor] = {}
        for entry in self.entries:
            try:
                tensors[entry.name] = self._tensor(entry, tensors, decode)
            except (DamagedError, zlib.error) as error:
                raise damaged(error, entry.name) from error
        return tensors

    def _tensor(self, entry: Entry, before: Mapping[str, Tensor], decode: Decode) -> Tensor:
        source = Source(self.blobs[entry.name], self.memory)
        if entry.coding is Coding.ALIAS:
            at = source.varint()
            tensor = before[self.entries[at].name] if at < len(before) else torch.empty(0)
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise DamagedError("it refers to another tensor, which differs")
        else:
            tensor = decode(source, entry.coding, entry.dtype, entry.shape, entry.name)
        if source.left:
            raise DamagedError("it has too many bytes")
        return tensor


def damaged(error: Exception, name: str = "") -> TopiaristError:
    """Returns the sentence for everything that cannot have been written."""
    what = f"the tensor {shown(name)} of this compressed network" if name else "this compressed network"
    return TopiaristError(f"{what} is damaged ({error}): compress it again, or copy the file again")


def _header(source: Source) -> tuple[tuple[Entry, ...], dict[str, str]]:
    entries = tuple(_entry(source) for _ in range(source.varint(_TENSORS)))
    texts = {}
    while source.left:
        name = _read_text(source)
        texts[name] = _read_text(source)
    if len({entry.name for entry in entries}) < len(entries):
        raise DamagedError("two tensors of one name")
    return entries, texts


def _entry(source: Source) -> Entry:
    name, dtype, coding = _read_text(source), source.byte(), source.byte()
    if dtype >= len(DTYPES) or coding not in list(Coding):
        raise DamagedError(f"{shown(name)} has an unknown type or coding")
    shape = tuple(source.varint() for _ in range(source.varint(_AXES)))
    if prod(max(axis, 1) for axis in shape) > 1 << 44:
        raise DamagedError(f"{shown(name)} is too large for any machine")
    return Entry(name, DTYPES[dtype], shape, Coding(coding), source.varint())


def _read_text(source: Source) -> str:
    return source.take(source.varint()).decode("utf-8")


def _slice(source: Source, length: int) -> memoryview:
    start = source.at
    if length > source.left:
        raise DamagedError("it ends too soon")
    source.at += length
    return source.data[start : source.at]

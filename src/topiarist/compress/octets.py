"""Bytes: numbers of variable length, a reader that knows its bounds, the memory it may use, and plain values."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topiarist.compress.ans import DamagedError
from topiarist.compress.inputs import DTYPES, checked_whole
from topiarist.errors import TopiaristError

_NARROWER = {
    torch.float32: (torch.float16, torch.bfloat16),
    torch.float64: (torch.float16, torch.bfloat16, torch.float32),
    torch.int64: (torch.int8, torch.int16, torch.int32),
    torch.int32: (torch.int8, torch.int16),
    torch.int16: (torch.int8,),
}
_WORTH_TRYING = 1 << 20
"""Bytes by which larger data is judged: if these deflate badly, the rest is not tried."""


def varint(number: int) -> bytes:
    """A whole number in groups of seven bits, lowest first."""
    octets = bytearray()
    while number > 127:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes([*octets, number])


@dataclass
class Memory:
    """What decoding may still allocate, in bytes."""

    left: int

    def __post_init__(self) -> None:
        """Sees that there is a limit."""
        checked_whole("max_bytes", self.left)

    def need(self, size: int, what: str, *, keep: bool = False) -> None:
        """Ask for some bytes before they are allocated, for a while or to keep.

        Raises:
            TopiaristError: that is more than is left.
        """
        if size > self.left:
            raise TopiaristError(
                f"decoding {what} takes {size:,} bytes and {self.left:,} are left of max_bytes: raise max_bytes if you "
                "trust the file"
            )
        self.left -= size if keep else 0


@dataclass
class Source:
    """Bytes that are read from front to back, with the memory that reading may use."""

    data: memoryview
    memory: Memory
    at: int = 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            DamagedError: there are fewer.
        """
        if not 0 <= count <= self.left:
            raise DamagedError("it ends too soon")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self, most: int = 1 << 40) -> int:
        """The next number, in the form of `varint`."""
        number = 0
        for shift in range(0, 63, 7):
            octet = self.byte()
            number |= (octet & 127) << shift
            if octet < 128:
                if number > most or (shift and not octet):
                    break
                return number
        raise DamagedError("a number out of its range")

    def inflated(self, count: int, size: int, what: str) -> bytes:
        """The next ``count`` bytes, inflated to just ``size``."""
        self.memory.need(2 * size, what)
        inflater = zlib.decompressobj(wbits=-15)
        data = inflater.decompress(self.take(count), size + 1)
        if len(data) != size or not inflater.eof or inflater.unused_data:
            raise DamagedError("deflated data of another length")
        return data


def deflated(data: bytes) -> bytes | None:
    """The data deflated, where that is shorter."""
    if len(data) > _WORTH_TRYING and len(_deflate(data[:_WORTH_TRYING])) > 0.98 * _WORTH_TRYING:
        return None
    small = _deflate(data)
    return small if len(small) + len(varint(len(small))) < len(data) else None


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9 if len(data) <= _WORTH_TRYING else 6, wbits=-15)
    return deflater.compress(data) + deflater.flush()


def patterns(tensor: Tensor) -> NDArray[Any]:
    """The values of a tensor as unsigned numbers of the same bits, ``(n,)``; of 16-byte ones both halves, ``(2n,)``."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return np.zeros(0, dtype=f"<u{min(flat.element_size(), 8)}")
    return flat.view(torch.uint8).numpy().view(f"<u{min(flat.element_size(), 8)}")


def tensor_of(values: NDArray[Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `patterns`; takes the memory over."""
    if not values.size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(values.view(np.uint8)).view(dtype).reshape(shape)


def pack(tensor: Tensor) -> bytes:
    """All values of a tensor, in the narrowest type that holds them exactly, deflated where that is shorter.

    One byte says the type, and by its highest bit whether a length and deflated data follow.
    """
    narrow = next((n for n in _NARROWER.get(tensor.dtype, ()) if _holds(n, tensor)), tensor.dtype)
    data = patterns(tensor.to(narrow)).tobytes()
    small = deflated(data)
    tag = DTYPES.index(narrow)
    return bytes([tag]) + data if small is None else bytes([tag | 128]) + varint(len(small)) + small


def unpack(source: Source, dtype: torch.dtype, count: int, what: str) -> Tensor:
    """So many values of a type, in the form of `pack`.

    Raises:
        DamagedError: they are not there.
        TopiaristError: they take more memory than is allowed.
    """
    tag = source.byte()
    if tag & 127 not in [DTYPES.index(n) for n in (dtype, *_NARROWER.get(dtype, ()))]:
        raise DamagedError("values of another type")
    stored = DTYPES[tag & 127]
    size = count * stored.itemsize
    source.memory.need(2 * size + count * dtype.itemsize, what)
    data = source.inflated(source.varint(), size, what) if tag & 128 else source.take(size)
    if stored == torch.bool and data.strip(b"\0\1"):
        raise DamagedError("truth values that are neither 0 nor 1")
    return tensor_of(np.frombuffer(bytearray(data), dtype=np.uint8), stored, (count,)).to(dtype)


def _holds(narrow: torch.dtype, tensor: Tensor) -> bool:
    return bool(np.array_equal(patterns(tensor.to(narrow).to(tensor.dtype)), patterns(tensor)))

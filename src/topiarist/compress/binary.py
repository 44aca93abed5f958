"""Bytes: numbers of variable length, a reader with bounds, the memory that it may use, and plain values."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topiarist.compress.ans import DamagedError, Numbers
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
"""Bytes at the start of larger data: where these deflate badly, the rest is not tried."""


def varint(number: int) -> bytes:
    """Returns a whole number in groups of seven bits, lowest first."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


@dataclass
class Memory:
    """What decoding may still allocate, in bytes, and how many symbols it may still read: as many as bytes at first.

    A symbol takes some 20 ns, so that the limit on memory is one on time too.
    """

    left: int

    def __post_init__(self) -> None:
        """Checks that there is a limit."""
        checked_whole("max_bytes", self.left)
        self._symbols = self.left

    def need(self, size: int, what: str, *, keep: bool = False) -> None:
        """Reserves some bytes before they are allocated, for a while or to keep.

        Raises:
            TopiaristError: that is more than may still be allocated.
        """
        if size > self.left:
            raise TopiaristError(
                f"decoding {what} takes {size:,} bytes, but only {self.left:,} of max_bytes remain: raise max_bytes if "
                "you trust the file"
            )
        self.left -= size if keep else 0

    def work(self, symbols: int, what: str) -> None:
        """Reserves the time of some symbols before they are read.

        Raises:
            TopiaristError: they are more than may still be read.
        """
        if symbols > self._symbols:
            raise TopiaristError(
                f"decoding {what} takes as long as {symbols:,} values, but only {self._symbols:,} of max_bytes remain: "
                "raise max_bytes if you trust the file"
            )
        self._symbols -= symbols


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
        """Reads the next byte."""
        return self.take(1)[0]

    def varint(self, most: int = 1 << 40) -> int:
        """Reads the next number, as `varint` writes it."""
        number = 0
        for shift in range(0, 63, 7):
            group = self.byte()
            number |= (group & 127) << shift
            if group < 128:
                if number > most or (shift and not group):
                    break
                return number
        raise DamagedError("a number out of its range")

    def inflated(self, count: int, size: int, what: str) -> bytes:
        """Reads the next ``count`` bytes, inflated to exactly ``size``."""
        self.memory.need(2 * size, what)
        inflater = zlib.decompressobj(wbits=-15)
        data = inflater.decompress(self.take(count), size + 1)
        if len(data) != size or not inflater.eof or inflater.unused_data:
            raise DamagedError("deflated data of another length")
        return data


def deflated(data: bytes) -> bytes | None:
    """Returns the data deflated, where that is shorter."""
    if len(data) > _WORTH_TRYING and len(_deflate(data[:_WORTH_TRYING])) > 0.98 * _WORTH_TRYING:
        return None
    small = _deflate(data)
    return small if len(small) + len(varint(len(small))) < len(data) else None


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9 if len(data) <= _WORTH_TRYING else 6, wbits=-15)
    return deflater.compress(data) + deflater.flush()


def bits_of(tensor: Tensor) -> Numbers:
    """Returns the values of a tensor as unsigned numbers of the same bits, ``(n,)``; 16-byte ones as two, ``(2n,)``."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not flat.numel():
        return np.zeros(0, dtype=f"<u{min(flat.element_size(), 8)}")
    return flat.view(torch.uint8).numpy().view(f"<u{min(flat.element_size(), 8)}")


def from_bits(values: Numbers, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Inverts `bits_of`; the tensor takes over the memory."""
    if not values.size:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(values.view(np.uint8)).view(dtype).reshape(shape)


def pack_values(tensor: Tensor) -> bytes:
    """Returns all values of a tensor, in the narrowest type that holds them exactly, deflated where that is shorter.

    One byte says the type, and by its highest bit whether a length and deflated data follow.
    """
    narrow = next((n for n in _NARROWER.get(tensor.dtype, ()) if _holds(n, tensor)), tensor.dtype)
    data = bits_of(tensor.to(narrow)).tobytes()
    small = deflated(data)
    tag = DTYPES.index(narrow)
    return bytes([tag]) + data if small is None else bytes([tag | 128]) + varint(len(small)) + small


def unpack_values(source: Source, dtype: torch.dtype, count: int, what: str) -> Tensor:
    """Reads so many values of a type, as `pack_values` writes them.

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
    return from_bits(np.frombuffer(bytearray(data), dtype=np.uint8), stored, (count,)).to(dtype)


def _holds(narrow: torch.dtype, tensor: Tensor) -> bool:
    return bool(np.array_equal(bits_of(tensor.to(narrow).to(tensor.dtype)), bits_of(tensor)))

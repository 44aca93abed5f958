"""One tensor as bytes: the codings there are, and the choice of the smallest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topiarist.compress.ans import DamagedError, Histogram, Ints, Reader, Writer, entropy
from topiarist.compress.gaps import Gaps
from topiarist.compress.octets import Source, pack, patterns, tensor_of, unpack, varint
from topiarist.compress.rows import Rows, promising

LARGEST = 1 << 27
"""Larger tensors are stored as they are."""
MOST_CODES = 1 << 12
"""Tensors with more distinct nonzero values than that have no codebook."""
_LOOK = 1 << 16
"""Values that are looked at before a large tensor is sorted."""
_SMALL = 1 << 12
"""Tensors of so many values are always tried without a codebook as well."""
_EACH = 96
"""Bytes that decoding takes at most for each nonzero value, while it works."""
_HASTE = 1.001
"""Zeros as symbols must save more than a thousandth, since gaps decode twice as fast."""


class Coding(IntEnum):
    """How a tensor is stored; the numbers are those in a file."""

    PLAIN = 0
    """All values, see `topiarist.compress.octets.pack`."""
    ALIAS = 1
    """The number of the tensor before it that is the same one (tied weights)."""
    DENSE = 2
    """A codebook, then a symbol for each value, zeros too."""
    GAPS = 3
    """Zeros between the nonzero values, then these."""
    ROWS = 4
    """A mask whose chances follow from earlier rows, then the nonzero values."""
    COLUMNS = 5
    """The same along the columns of the matrix ``(first axis, all others)``."""
    PAPER = 6
    """Relative indices of a fixed width with filler zeros, and Huffman's code."""


@dataclass(frozen=True)
class Blob:
    """A coded tensor and what its bytes are for.

    Attributes:
        coding: how it is coded.
        data: all of its bytes.
        weights: values in it.
        nonzero: those that are not zero.
        codes: distinct nonzero values in the codebook; 0 without one.
        payload: bits that the symbols take, without their model and the codebook; 0 without a codebook.
        bound: the entropy of the symbols, zeros included, in bits: what no code of single symbols goes below.
        codebook: bytes of the codebook.
        extra: further numbers that a coding has to tell, by name.
    """

    coding: Coding
    data: bytes
    weights: int
    nonzero: int = 0
    codes: int = 0
    payload: float = 0.0
    bound: float = 0.0
    codebook: int = 0
    extra: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Sparse:
    """The nonzero values of a tensor.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        positions: of the nonzero values in the flat tensor, ``(n,)``, ascending.
        values: their bits, ``(n,)``.
        book: distinct ones among them, ascending as bits; ``None`` if there are too many for a codebook.
        labels: the place in the book of each value, ``(n,)``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    positions: Ints
    values: NDArray[Any]
    book: NDArray[Any] | None
    labels: NDArray[np.int32]

    @classmethod
    def of(cls, tensor: Tensor) -> Sparse | None:
        """The nonzero values of a tensor; ``None`` where it is too large, or its type has no zeros worth the search."""
        if tensor.element_size() > 8 or not 0 < tensor.numel() <= LARGEST:
            return None
        bits = patterns(tensor)
        positions = np.flatnonzero(bits != 0)
        values = bits if len(positions) == len(bits) else bits[positions]
        return cls(tuple(tensor.shape), tensor.dtype, positions, values, *_book(values))

    @property
    def size(self) -> int:
        """Values of the tensor."""
        return prod(self.shape)

    @cached_property
    def counts(self) -> Ints:
        """How often zero and each value of the book occur."""
        codes = np.bincount(self.labels, minlength=0 if self.book is None else len(self.book))
        return np.concatenate(([self.size - len(self.positions)], codes))

    def symbols(self) -> NDArray[np.int32]:
        """0 for a zero, 1 + place in the book for another value, ``(size,)``."""
        if len(self.labels) == self.size:
            return self.labels + np.int32(1)
        symbols = np.zeros(self.size, dtype=np.int32)
        symbols[self.positions] = self.labels + np.int32(1)
        return symbols

    def mask(self, *, columns: bool = False) -> NDArray[np.bool_]:
        """The matrix ``(first axis, all others)`` of what is not zero, or its transpose."""
        mask = np.zeros(self.size, dtype=np.bool_)
        mask[self.positions] = True
        matrix = mask.reshape(self.shape[0] if self.shape else 1, -1)
        return np.ascontiguousarray(matrix.T) if columns else matrix

    def book_bytes(self) -> bytes:
        """The number of distinct values and these, or all nonzero values where they have no book."""
        if self.book is None:
            return varint(0) + pack(tensor_of(self.values.copy(), self.dtype, (len(self.values),)))
        return varint(len(self.book)) + pack(tensor_of(self.book.copy(), self.dtype, (len(self.book),)))


def _book(values: NDArray[Any]) -> tuple[NDArray[Any] | None, NDArray[np.int32]]:
    """The distinct values, ascending, and the place of each value among them; none where they are too many."""
    most = min(MOST_CODES, max(1, len(values) // 2))
    if len(values) > _LOOK:  # a part of a large tensor has them all, as a rule
        book = np.unique(values[:: len(values) // _LOOK])
        if len(book) > most:
            return None, np.zeros(0, dtype=np.int32)
        labels = _places(values, book)
        if np.array_equal(book[labels], values):
            return book, labels
    book = np.unique(values)
    return (book, _places(values, book)) if len(book) <= most else (None, np.zeros(0, dtype=np.int32))


def _places(values: NDArray[Any], book: NDArray[Any]) -> NDArray[np.int32]:
    """Where each value is in the book: by a table of their leading 16 bits if these tell them apart, else by search."""
    shift = 8 * values.itemsize - 16
    leading = book >> shift if shift > 0 else book
    if len(np.unique(leading)) < len(book):
        return np.minimum(np.searchsorted(book, values), len(book) - 1).astype(np.int32)
    table = np.zeros(1 << 16, dtype=np.int32)
    table[leading] = np.arange(len(book))
    return table[values >> shift if shift > 0 else values]


def encode(tensor: Tensor) -> Blob:
    """The smallest coding of a tensor; every bit of its values is kept, those of NaN and of -0 too."""
    found = Sparse.of(tensor)
    choices = [] if found is None else _choices(found)
    if not choices:
        return _plain(tensor)
    blob = min(choices, key=lambda choice: choice.bits).write()
    if not blob.codes or tensor.numel() <= _SMALL or not tensor.is_floating_point():  # plain may be smaller
        return min(_plain(tensor), blob, key=lambda blob: len(blob.data))
    return blob


def _plain(tensor: Tensor) -> Blob:
    return Blob(Coding.PLAIN, pack(tensor), tensor.numel())


@dataclass(frozen=True)
class _Choice:
    """A coding that can be had, and the bits that it is going to take beside the values or the codebook."""

    bits: float
    write: Callable[[], Blob]


def _choices(found: Sparse) -> list[_Choice]:
    n, counts = len(found.positions), found.counts
    if not n:
        return [_Choice(0, lambda: Blob(Coding.GAPS, varint(0), found.size))]
    choices = []
    values = None if found.book is None else Histogram(counts[1:])
    if found.book is not None:
        whole = Histogram(counts)
        choices.append(_Choice(whole.bits * _HASTE, partial(_dense, found, whole)))
    if n == found.size:
        return choices
    bits = 0 if values is None else values.bits
    gaps = Gaps(found.positions)
    choices.append(_Choice(bits + gaps.bits, partial(_sparse, found, Coding.GAPS, gaps, values)))
    for coding in (Coding.ROWS, Coding.COLUMNS):
        if len(found.shape) > 1 and promising(mask := found.mask(columns=coding is Coding.COLUMNS)):
            rows = Rows(mask)
            choices.append(_Choice(bits + rows.bits, partial(_sparse, found, coding, rows, values)))
    return choices


def _dense(found: Sparse, model: Histogram) -> Blob:
    writer = Writer()
    model.put(writer)
    writer.put(found.symbols(), model.weights)
    return _blob(found, Coding.DENSE, writer, b"")


def _sparse(found: Sparse, coding: Coding, places: Gaps | Rows, model: Histogram | None) -> Blob:
    writer = Writer()
    places.put(writer)
    if model is not None:
        model.put(writer)
        writer.put(found.labels, model.weights)
    return _blob(found, coding, writer, varint(len(found.positions)))


def _blob(found: Sparse, coding: Coding, writer: Writer, head: bytes) -> Blob:
    book = found.book_bytes()
    stream, payload = writer.finish()
    codes = 0 if found.book is None else len(found.book)
    known = (payload, entropy(found.counts), len(book)) if codes else (0.0, 0.0, 0)
    return Blob(coding, head + book + stream, found.size, len(found.positions), codes, *known)


def decode(source: Source, coding: Coding, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> Tensor:
    """The inverse of `encode`.

    Raises:
        DamagedError: the bytes are no such tensor.
        TopiaristError: it takes more memory than is allowed.
    """
    size = prod(shape)
    if coding is Coding.PLAIN:
        return unpack(source, dtype, size, what).reshape(shape)
    if not 0 < size <= LARGEST or dtype.itemsize > 8:
        raise DamagedError("a tensor that cannot be coded so")
    if coding is Coding.DENSE:
        return tensor_of(_decode_dense(source, dtype, size, what), dtype, shape)
    positions, values = _decode_sparse(source, coding, dtype, shape, what)
    flat = np.zeros(size, dtype=values.dtype)
    flat[positions] = values
    return tensor_of(flat, dtype, shape)


def _read_book(source: Source, dtype: torch.dtype, count: int, what: str) -> tuple[int, NDArray[Any]]:
    codes = source.varint(most=min(count, MOST_CODES))
    return codes, patterns(unpack(source, dtype, codes or count, what))


def _decode_dense(source: Source, dtype: torch.dtype, size: int, what: str) -> NDArray[Any]:
    codes, book = _read_book(source, dtype, size, what)
    if not codes:
        raise DamagedError("a codebook without values")
    source.memory.need(source.left * 2 + size * (16 + dtype.itemsize) + 64 * codes, what)
    reader = Reader(source.take(source.left))
    symbols = reader.take(size, Histogram.take(reader, codes + 1))
    reader.finish()
    return np.concatenate((np.zeros(1, dtype=book.dtype), book))[symbols]


def _decode_sparse(
    source: Source, coding: Coding, dtype: torch.dtype, shape: tuple[int, ...], what: str
) -> tuple[Ints, NDArray[Any]]:
    size = prod(shape)
    n = source.varint(most=size)
    if not n:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=f"<u{dtype.itemsize}")
    codes, book = _read_book(source, dtype, n, what)
    masked = coding in (Coding.ROWS, Coding.COLUMNS)
    source.memory.need(_EACH * n + 2 * source.left + (48 * size if masked else 0), what)
    reader = Reader(source.take(source.left))
    positions = _take_mask(reader, shape, n, columns=coding is Coding.COLUMNS) if masked else Gaps.take(reader, n)
    if len(positions) != n or positions[-1] >= size:
        raise DamagedError("weights beyond the tensor")
    values = book[reader.take(n, Histogram.take(reader, codes))] if codes else book
    reader.finish()
    return positions, values


def _take_mask(reader: Reader, shape: tuple[int, ...], n: int, *, columns: bool) -> Ints:
    size = prod(shape)
    if len(shape) < 2:
        raise DamagedError("rows without columns")
    matrix = (size // shape[0], shape[0]) if columns else (shape[0], size // shape[0])
    mask = Rows.take(reader, *matrix, n / size)
    return np.flatnonzero(mask.T if columns else mask)

"""One tensor as bytes: the codings there are, and the choice of the smallest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, partial
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topiarist.compress.ans import DamagedError, Histogram, Ints, Numbers, Reader, Writer, entropy
from topiarist.compress.binary import Source, bits_of, from_bits, pack_values, unpack_values, varint
from topiarist.compress.gaps import Gaps
from topiarist.compress.rows import Rows, promising
from topiarist.errors import TopiaristError

LARGEST = 1 << 27
"""Larger tensors are stored as they are."""
MOST_CODES = 1 << 12
"""Tensors with more distinct nonzero values than that have no codebook."""
_SAMPLE = 1 << 16
"""Values that are sampled before a large tensor is sorted."""
_SMALL = 1 << 12
"""Tensors of at most so many values are always tried without a codebook as well."""
_BYTES_EACH = 96
"""Bytes that decoding takes at most for each nonzero value, while it works."""
_SYMBOLS_A_ROW = 512
"""A row of a mask takes as long as so many symbols, beside its own."""
_DENSE_FACTOR = 1.001
"""Zeros as symbols must save more than a thousandth, since gaps decode twice as fast."""


class Coding(IntEnum):
    """How a tensor is stored; the numbers are those in a file."""

    PLAIN = 0
    """All values, see `topiarist.compress.binary.pack_values`."""
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
    """The format of Han et al. 2016, which older releases could write; it is not read any more."""


@dataclass(frozen=True)
class Blob:
    """An encoded tensor, and what its bytes are for.

    Attributes:
        coding: how it is encoded.
        data: all of its bytes.
        weights: values in it.
        nonzero: those that are not zero.
        codes: distinct nonzero values in the codebook; 0 without one.
        payload: bits that the symbols take, without their model and the codebook; 0 without a codebook.
        bound: the entropy of the symbols, zeros included, in bits: what no code of single symbols goes below.
        codebook: bytes of the codebook.
    """

    coding: Coding
    data: bytes
    weights: int
    nonzero: int = 0
    codes: int = 0
    payload: float = 0.0
    bound: float = 0.0
    codebook: int = 0


@dataclass(frozen=True)
class Sparse:
    """The nonzero values of a tensor.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        positions: of the nonzero values in the flat tensor, ``(n,)``, ascending.
        values: their bits, ``(n,)``.
        book: distinct ones among them, ascending as bits; ``None`` if there are too many for a codebook.
        labels: the index in the book of each value, ``(n,)``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    positions: Ints
    values: Numbers
    book: Numbers | None
    labels: NDArray[np.int32]

    @classmethod
    def of(cls, tensor: Tensor) -> Sparse | None:
        """Returns the nonzero values of a tensor; ``None`` where it is too large, or its values are too wide."""
        if tensor.element_size() > 8 or not 0 < tensor.numel() <= LARGEST:
            return None
        bits = bits_of(tensor)
        positions = np.flatnonzero(bits != 0)
        values = bits if len(positions) == len(bits) else bits[positions]
        return cls(tuple(tensor.shape), tensor.dtype, positions, values, *_book(values))

    @property
    def size(self) -> int:
        """Returns the number of values of the tensor."""
        return prod(self.shape)

    @cached_property
    def counts(self) -> Ints:
        """Returns how often zero and each value of the book occur."""
        codes = np.bincount(self.labels, minlength=0 if self.book is None else len(self.book))
        return np.concatenate(([self.size - len(self.positions)], codes))

    def symbols(self) -> NDArray[np.int32]:
        """Returns 0 for a zero and 1 + index in the book for another value, ``(size,)``."""
        if len(self.labels) == self.size:
            return self.labels + np.int32(1)
        symbols = np.zeros(self.size, dtype=np.int32)
        symbols[self.positions] = self.labels + np.int32(1)
        return symbols

    def mask(self, *, columns: bool = False) -> NDArray[np.bool_]:
        """Returns the matrix ``(first axis, all others)`` of which values are not zero, or its transpose."""
        mask = np.zeros(self.size, dtype=np.bool_)
        mask[self.positions] = True
        matrix = mask.reshape(self.shape[0] if self.shape else 1, -1)
        return np.ascontiguousarray(matrix.T) if columns else matrix

    def book_bytes(self) -> bytes:
        """Returns the number of distinct values and these, or all nonzero values where they have no book."""
        if self.book is None:
            return varint(0) + pack_values(from_bits(self.values.copy(), self.dtype, (len(self.values),)))
        return varint(len(self.book)) + pack_values(from_bits(self.book.copy(), self.dtype, (len(self.book),)))


def _book(values: Numbers) -> tuple[Numbers | None, NDArray[np.int32]]:
    """Returns the distinct values, ascending, and the index of each value; no values where they are too many."""
    most = min(MOST_CODES, max(1, len(values) // 2))
    if len(values) > _SAMPLE:  # a part of a large tensor has them all, as a rule
        book = np.unique(values[:: len(values) // _SAMPLE])
        if len(book) > most:
            return None, np.zeros(0, dtype=np.int32)
        labels = _indices(values, book)
        if np.array_equal(book[labels], values):
            return book, labels
    book = np.unique(values)
    return (book, _indices(values, book)) if len(book) <= most else (None, np.zeros(0, dtype=np.int32))


def _indices(values: Numbers, book: Numbers) -> NDArray[np.int32]:
    """Returns the index of each value in the book: by a table of leading 16 bits if distinct, else by search."""
    shift = 8 * values.itemsize - 16
    leading = book >> shift if shift > 0 else book
    if len(np.unique(leading)) < len(book):
        return np.minimum(np.searchsorted(book, values), len(book) - 1).astype(np.int32)
    table = np.zeros(1 << 16, dtype=np.int32)
    table[leading] = np.arange(len(book))
    return table[values >> shift if shift > 0 else values]


def encode(tensor: Tensor) -> Blob:
    """Returns the smallest coding of a tensor; every bit of its values is kept, those of NaN and -0 too."""
    sparse = Sparse.of(tensor)
    choices = [] if sparse is None else _choices(sparse)
    if not choices:
        return _plain(tensor)
    blob = min(choices, key=lambda choice: choice.bits).write()
    if not blob.codes or tensor.numel() <= _SMALL or not tensor.is_floating_point():  # plain may be smaller
        return min(_plain(tensor), blob, key=lambda blob: len(blob.data))
    return blob


def _plain(tensor: Tensor) -> Blob:
    return Blob(Coding.PLAIN, pack_values(tensor), tensor.numel())


@dataclass(frozen=True)
class _Choice:
    """A possible coding, and the bits that it will take beside the values or the codebook."""

    bits: float
    write: Callable[[], Blob]


def _choices(sparse: Sparse) -> list[_Choice]:
    n, counts = len(sparse.positions), sparse.counts
    if not n:
        return [_Choice(0, lambda: Blob(Coding.GAPS, varint(0), sparse.size))]
    choices = []
    values = None if sparse.book is None else Histogram(counts[1:])
    if sparse.book is not None:
        dense = Histogram(counts)
        choices.append(_Choice(dense.bits * _DENSE_FACTOR, partial(_dense, sparse, dense)))
    if n == sparse.size:
        return choices
    bits = 0 if values is None else values.bits
    gaps = Gaps(sparse.positions)
    choices.append(_Choice(bits + gaps.bits, partial(_sparse, sparse, Coding.GAPS, gaps, values)))
    for coding in (Coding.ROWS, Coding.COLUMNS):
        if len(sparse.shape) > 1 and promising(mask := sparse.mask(columns=coding is Coding.COLUMNS)):
            rows = Rows(mask)
            choices.append(_Choice(bits + rows.bits, partial(_sparse, sparse, coding, rows, values)))
    return choices


def _dense(sparse: Sparse, model: Histogram) -> Blob:
    writer = Writer()
    model.put(writer)
    writer.put(sparse.symbols(), model.weights)
    return _blob(sparse, Coding.DENSE, writer, b"")


def _sparse(sparse: Sparse, coding: Coding, positions: Gaps | Rows, model: Histogram | None) -> Blob:
    writer = Writer()
    positions.put(writer)
    if model is not None:
        model.put(writer)
        writer.put(sparse.labels, model.weights)
    return _blob(sparse, coding, writer, varint(len(sparse.positions)))


def _blob(sparse: Sparse, coding: Coding, writer: Writer, head: bytes) -> Blob:
    book = sparse.book_bytes()
    stream, payload = writer.finish()
    codes = 0 if sparse.book is None else len(sparse.book)
    counts = (payload, entropy(sparse.counts), len(book)) if codes else (0.0, 0.0, 0)
    return Blob(coding, head + book + stream, sparse.size, len(sparse.positions), codes, *counts)


def decode(source: Source, coding: Coding, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> Tensor:
    """Inverts `encode`.

    Raises:
        DamagedError: the bytes are no such tensor.
        TopiaristError: it takes more memory than is allowed, or is in a format that is not read any more.
    """
    size = prod(shape)
    if coding is Coding.PAPER:
        raise TopiaristError(
            f"{what} is in the format of the Deep Compression paper, which this release does not read: compress the "
            "network again"
        )
    if coding is Coding.PLAIN:
        return unpack_values(source, dtype, size, what).reshape(shape)
    if not 0 < size <= LARGEST or dtype.itemsize > 8:
        raise DamagedError("a tensor that cannot be coded so")
    if coding is Coding.DENSE:
        return from_bits(_decode_dense(source, dtype, size, what), dtype, shape)
    positions, values = _decode_sparse(source, coding, dtype, shape, what)
    flat = np.zeros(size, dtype=values.dtype)
    flat[positions] = values
    return from_bits(flat, dtype, shape)


def _read_book(source: Source, dtype: torch.dtype, count: int, what: str) -> tuple[int, Numbers]:
    codes = source.varint(most=min(count, MOST_CODES))
    return codes, bits_of(unpack_values(source, dtype, codes or count, what))


def _decode_dense(source: Source, dtype: torch.dtype, size: int, what: str) -> Numbers:
    codes, book = _read_book(source, dtype, size, what)
    if not codes:
        raise DamagedError("a codebook without values")
    source.memory.need(source.left * 2 + size * (16 + dtype.itemsize) + 64 * codes, what)
    source.memory.work(size, what)
    reader = Reader(source.take(source.left))
    symbols = reader.take(size, Histogram.take(reader, codes + 1))
    reader.finish()
    return np.concatenate((np.zeros(1, dtype=book.dtype), book))[symbols]


def _decode_sparse(
    source: Source, coding: Coding, dtype: torch.dtype, shape: tuple[int, ...], what: str
) -> tuple[Ints, Numbers]:
    size = prod(shape)
    n = source.varint(most=size)
    if not n:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=f"<u{dtype.itemsize}")
    codes, book = _read_book(source, dtype, n, what)
    masked = coding in (Coding.ROWS, Coding.COLUMNS)
    source.memory.need(_BYTES_EACH * n + 2 * source.left + (48 * size if masked else 0), what)
    rows = (size // shape[0] if coding is Coding.COLUMNS else shape[0]) if masked and shape else 0
    source.memory.work(2 * n + (size + _SYMBOLS_A_ROW * rows if masked else 0), what)
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

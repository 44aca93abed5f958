"""The file format of Deep Compression (Han, Mao, Dally, ICLR 2016): relative indices, filler zeros, Huffman's code.

Each stored weight has a code for its value and a step from the stored weight before it; where a step does not fit into
its b bits, zeros are stored as fillers. Values and steps have a Huffman code each, in every tensor. It is here for
comparison: `topiarist.compress` writes smaller files.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from math import ceil, log2
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topiarist.compress import Report
from topiarist.compress.ans import DamagedError, Ints, entropy
from topiarist.compress.binary import Source, bits_of, from_bits, pack_values, unpack_values, varint
from topiarist.compress.coding import LARGEST, MOST_CODES, Blob, Coding, Sparse, decode, encode
from topiarist.compress.container import File
from topiarist.compress.files import assemble
from topiarist.compress.gaps import to_gaps
from topiarist.compress.inputs import checked_state, checked_whole

WIDEST = 12
"""Bits of an index at most."""
LONGEST = 48
"""No code word of less than 2^32 symbols is longer: the counts would have to grow like Fibonacci's numbers."""
_CHUNK = 1 << 13


def pack(state: Mapping[str, Tensor], index_bits: int | None = None) -> tuple[bytes, Report]:
    """Returns a file's bytes and what each tensor takes.

    Args:
        state: the state dict, its weights already shared.
        index_bits: b; by default the paper's 8 for convolutions and 5 for linear layers.
    """
    if index_bits is not None:
        checked_whole("index_bits", index_bits, 1, WIDEST)
    return assemble(
        checked_state(state), lambda tensor: encode_paper(tensor, index_bits or (8 if tensor.ndim > 2 else 5))
    )


def unpack(data: bytes, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Returns the state dict in a file's bytes; errors as of `topiarist.compress.unpack`."""
    return File.read(data, max_bytes).tensors(decode_any)


def encode_paper(tensor: Tensor, index_bits: int) -> Blob:
    """Encodes a tensor with a codebook in the paper's format; any other as `encode` does."""
    sparse = Sparse.of(tensor)
    if sparse is None or sparse.book is None or not len(sparse.positions):
        return encode(tensor)
    steps, codes = stored(sparse, index_bits)
    data = varint(len(steps)) + (book := sparse.book_bytes()) + bytes([index_bits])
    payload = 0
    for symbols, alphabet in ((codes, len(sparse.book) + 1), (steps - 1, 1 << index_bits)):
        sizes = lengths(np.bincount(symbols, minlength=alphabet))
        words = encode_words(symbols, sizes)
        payload += 8 * len(words)
        data += pack_values(torch.from_numpy(sizes.astype(np.uint8))) + varint(len(words)) + words
    counts = (sparse.size, len(sparse.positions), len(sparse.book), float(payload), entropy(sparse.counts), len(book))
    return Blob(Coding.PAPER, data, *counts)


def stored(sparse: Sparse, index_bits: int) -> tuple[Ints, Ints]:
    """Returns the steps and the codes of all stored weights, ``(n,)`` each; a filler has code 0."""
    steps, real = with_fillers(sparse.positions, 1 << index_bits)
    codes = np.zeros(len(steps), dtype=np.int64)
    codes[real] = sparse.labels + 1
    return steps, codes


def bits_of_a_weight(tensor: Tensor, index_bits: int) -> dict[str, float]:
    """Returns what the paper's tables count: stored weights, fillers, and bits of a code and an index."""
    sparse = Sparse.of(tensor)
    assert sparse is not None
    assert sparse.book is not None
    steps, codes = stored(sparse, index_bits)
    words = [encode_words(symbols, lengths(np.bincount(symbols))) for symbols in (codes, steps - 1)]
    return {
        "stored": len(steps),
        "fillers": len(steps) - len(sparse.positions),
        "code_bits": max(1, ceil(log2(len(sparse.book) + 1))),
        "index_bits": index_bits,
        "code_bits_huffman": 8 * len(words[0]) / len(steps),
        "index_bits_huffman": 8 * len(words[1]) / len(steps),
    }


def decode_any(source: Source, coding: Coding, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> Tensor:
    """Decodes a tensor in the paper's format or another; errors as of `topiarist.compress.coding.decode`."""
    if coding is not Coding.PAPER:
        return decode(source, coding, dtype, shape, what)
    size = int(np.prod(shape, dtype=object))
    if not 0 < size <= LARGEST or dtype.itemsize > 8:
        raise DamagedError("a tensor that cannot be coded so")
    count = source.varint(most=size)
    codes = source.varint(most=min(size, MOST_CODES))
    if not codes:
        raise DamagedError("a codebook without values")
    book = bits_of(unpack_values(source, dtype, codes, what))
    index_bits = source.byte()
    if not 1 <= index_bits <= WIDEST:
        raise DamagedError("indices of no known width")
    source.memory.need(128 * count + 3 * source.left + (1 << 21), what)
    labels = _take(source, codes + 1, count, what)
    positions = np.cumsum(_take(source, 1 << index_bits, count, what) + 1) - 1
    if source.left or (count and positions[-1] >= size):
        raise DamagedError("weights beyond the tensor")
    flat = np.zeros(size, dtype=book.dtype)
    flat[positions] = np.concatenate((np.zeros(1, dtype=book.dtype), book))[labels]
    return from_bits(flat, dtype, shape)


def _take(source: Source, alphabet: int, count: int, what: str) -> Ints:
    sizes = unpack_values(source, torch.uint8, alphabet, what).numpy().astype(np.int64)
    if sizes.max() > LONGEST:
        raise DamagedError("words that are too long")
    return decode_words(source.take(source.varint()), count, sizes)


def with_fillers(positions: NDArray[Any], span: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Returns the paper's relative indices: a zero is stored as if it were a weight where a step would be too wide.

    Args:
        positions: of the nonzero weights, ``(n,)``, ascending.
        span: the widest step from one stored weight to the next; an index of b bits has 2^b.

    Returns:
        Steps of all stored weights, 1 to ``span``, and which of them are weights and no fillers. The first step
        counts from the position before the tensor.
    """
    steps = to_gaps(positions) + 1
    fillers = (steps - 1) // span
    last = np.cumsum(fillers + 1) - 1
    wide = np.full(int(last[-1]) + 1 if len(last) else 0, span, dtype=np.int64)
    wide[last] = steps - fillers * span
    real = np.zeros(len(wide), dtype=np.bool_)
    real[last] = True
    return wide, real


def lengths(counts: NDArray[Any]) -> Ints:
    """Returns the length of each symbol's code word, 0 for symbols that do not occur; a single symbol gets one bit.

    Args:
        counts: of each symbol, ``(symbols,)``.
    """
    depths = np.zeros(len(counts), dtype=np.int64)
    heap: list[tuple[int, int, tuple[int, ...]]] = [(int(counts[s]), s, (s,)) for s in np.flatnonzero(counts).tolist()]
    if len(heap) == 1:
        depths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, first, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        depths[[*left, *right]] += 1
        heapq.heappush(heap, (a + b, first, left + right))
    return depths


def codes(word_lengths: Ints) -> Ints:
    """Returns the canonical code words of these lengths: shorter first, equal ones in the order of their symbols."""
    words = np.zeros(len(word_lengths), dtype=np.int64)
    word, length = 0, 0
    for symbol in _order(word_lengths):
        word <<= int(word_lengths[symbol]) - length
        length = int(word_lengths[symbol])
        words[symbol] = word
        word += 1
    return words


def encode_words(symbols: NDArray[Any], word_lengths: Ints) -> bytes:
    """Returns the words of the symbols one after another, first bit first, padded to bytes."""
    if not len(symbols):
        return b""
    words, sizes = codes(word_lengths)[symbols], word_lengths[symbols]
    ends = np.cumsum(sizes)
    bits = np.zeros(int(ends[-1]), dtype=np.uint8)
    for at in range(int(sizes.max())):  # from the last bit of each word to its first
        has = sizes > at
        bits[ends[has] - 1 - at] = (words[has] >> at) & 1
    return np.packbits(bits).tobytes()


def decode_words(data: bytes, count: int, word_lengths: Ints) -> Ints:
    """Inverts `encode_words`: each bit is read as if a word began there, then the words are followed.

    Raises:
        DamagedError: the lengths are no code, or the data is not so many words.
    """
    if not count:
        if data:
            raise DamagedError("words where none belong")
        return np.zeros(0, dtype=np.int64)
    order = _order(word_lengths)
    used = word_lengths[order]
    if not len(order) or sum(1 << (LONGEST - int(n)) for n in used) > 1 << LONGEST:
        raise DamagedError("lengths that are no code")
    starts = codes(word_lengths)[order] << (LONGEST - used)  # each word as the smallest number that begins with it
    padded = np.frombuffer(data + bytes(8), dtype=np.uint8)
    symbols: list[int] = []
    at, total = 0, 8 * len(data)
    while len(symbols) < count:
        if at >= total:
            raise DamagedError("words that end too soon")
        words = np.searchsorted(starts, _windows(padded, at, min(at + _CHUNK, total)), side="right") - 1
        table, sizes = words.tolist(), used[words].tolist()
        offset, end = 0, len(table)
        while offset < end and len(symbols) < count:
            symbols.append(table[offset])
            offset += sizes[offset]
        at += offset
    if (at + 7) // 8 != len(data):
        raise DamagedError("words that end too late" if at < total else "words that end too soon")
    return order[np.array(symbols, dtype=np.int64)]


def _windows(data: NDArray[np.uint8], first: int, last: int) -> Ints:
    """Returns the `LONGEST` bits from each bit of a range on."""
    positions = np.arange(first, last)
    window = data[(positions >> 3)[:, None] + np.arange(7)].astype(np.int64)
    numbers = window @ (1 << np.arange(48, -8, -8, dtype=np.int64))  # 56 bits from the byte on
    return (numbers >> (8 - (positions & 7))) & ((1 << LONGEST) - 1)


def _order(word_lengths: Ints) -> Ints:
    order = np.argsort(word_lengths, kind="stable")
    return order[word_lengths[order] > 0]

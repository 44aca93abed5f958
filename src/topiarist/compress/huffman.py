"""Huffman's code in its canonical form, for the paper's mode: codes of one length are consecutive numbers.

A code is sent as the lengths of its words alone (Huffman 1952; canonical order as in RFC 1951).
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topiarist.compress.ans import DamagedError, Ints

LONGEST = 48
"""No code word of less than 2^32 symbols is longer: the counts would have to grow like Fibonacci's numbers."""
_CHUNK = 1 << 13


def lengths(counts: NDArray[Any]) -> Ints:
    """The length of each symbol's code word, 0 for symbols that do not occur; a single symbol gets one bit.

    Args:
        counts: of each symbol, ``(symbols,)``.
    """
    found = np.zeros(len(counts), dtype=np.int64)
    heap: list[tuple[int, int, tuple[int, ...]]] = [(int(counts[s]), s, (s,)) for s in np.flatnonzero(counts).tolist()]
    if len(heap) == 1:
        found[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, first, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        found[[*left, *right]] += 1
        heapq.heappush(heap, (a + b, first, left + right))
    return found


def codes(word_lengths: Ints) -> Ints:
    """The canonical code words of these lengths: shorter ones first, equal ones in the order of their symbols."""
    words = np.zeros(len(word_lengths), dtype=np.int64)
    word, length = 0, 0
    for symbol in _order(word_lengths):
        word <<= int(word_lengths[symbol]) - length
        length = int(word_lengths[symbol])
        words[symbol] = word
        word += 1
    return words


def encode(symbols: NDArray[Any], word_lengths: Ints) -> bytes:
    """The words of the symbols one after another, first bit first, filled up to whole bytes."""
    if not len(symbols):
        return b""
    words, sizes = codes(word_lengths)[symbols], word_lengths[symbols]
    ends = np.cumsum(sizes)
    bits = np.zeros(int(ends[-1]), dtype=np.uint8)
    for place in range(int(sizes.max())):  # from the last bit of each word to its first
        has = sizes > place
        bits[ends[has] - 1 - place] = (words[has] >> place) & 1
    return np.packbits(bits).tobytes()


def decode(data: bytes, count: int, word_lengths: Ints) -> Ints:
    """The inverse of `encode`: each bit is looked at as if a word began there, then the words are followed.

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
    found: list[int] = []
    at, total = 0, 8 * len(data)
    while len(found) < count:
        if at >= total:
            raise DamagedError("words that end too soon")
        ranks = np.searchsorted(starts, _windows(padded, at, min(at + _CHUNK, total)), side="right") - 1
        table, sizes = ranks.tolist(), used[ranks].tolist()
        offset, end = 0, len(table)
        while offset < end and len(found) < count:
            found.append(table[offset])
            offset += sizes[offset]
        at += offset
    if (at + 7) // 8 != len(data):
        raise DamagedError("words that end too late" if at < total else "words that end too soon")
    return order[np.array(found, dtype=np.int64)]


def _windows(data: NDArray[np.uint8], first: int, last: int) -> Ints:
    """The `LONGEST` bits from each bit of a range on."""
    places = np.arange(first, last)
    octets = data[(places >> 3)[:, None] + np.arange(7)].astype(np.int64)
    whole = octets @ (1 << np.arange(48, -8, -8, dtype=np.int64))  # 56 bits from the octet on
    return (whole >> (8 - (places & 7))) & ((1 << LONGEST) - 1)


def _order(word_lengths: Ints) -> Ints:
    order = np.argsort(word_lengths, kind="stable")
    return order[word_lengths[order] > 0]

"""The paper's own format (Han, Mao, Dally, ICLR 2016): relative indices of a fixed width, fillers, Huffman's code.

Each stored weight has a code of its value and the step from the stored weight before it; where a step is wider than
its b bits allow, zeros are stored as fillers. Values and steps have a Huffman code each, in every tensor.
"""

from __future__ import annotations

from math import ceil, log2

import numpy as np
import torch
from torch import Tensor

from topiarist.compress import huffman
from topiarist.compress.ans import DamagedError, Ints, entropy
from topiarist.compress.coding import LARGEST, MOST_CODES, Blob, Coding, Sparse, encode
from topiarist.compress.gaps import with_fillers
from topiarist.compress.octets import Source, pack, patterns, tensor_of, unpack, varint

WIDEST = 12
"""Bits of an index at most."""


def encode_paper(tensor: Tensor, index_bits: int) -> Blob:
    """A tensor with a codebook in the paper's format; any other as `encode` stores it.

    Args:
        tensor: its values, already shared.
        index_bits: b, of which the paper gives 8 to convolutions and 5 to linear layers (5 to both of the LeNets).
    """
    found = Sparse.of(tensor)
    if found is None or found.book is None or not len(found.positions):
        return encode(tensor)
    steps, real = with_fillers(found.positions, 1 << index_bits)
    codes = np.zeros(len(steps), dtype=np.int64)
    codes[real] = found.labels + 1
    head = varint(len(steps)) + (book := found.book_bytes()) + bytes([index_bits])
    data, words = head, []
    for symbols, alphabet in ((codes, len(found.book) + 1), (steps - 1, 1 << index_bits)):
        lengths = huffman.lengths(np.bincount(symbols, minlength=alphabet))
        words.append(huffman.encode(symbols, lengths))
        data += pack(torch.from_numpy(lengths.astype(np.uint8))) + varint(len(words[-1])) + words[-1]
    stored, width = len(steps), max(1, ceil(log2(len(found.book) + 1)))
    extra = {
        "stored": stored,
        "fillers": stored - len(found.positions),
        "code_bits": width,
        "index_bits": index_bits,
        "code_bits_huffman": 8 * len(words[0]) / stored,
        "index_bits_huffman": 8 * len(words[1]) / stored,
    }
    payload, bound = 8.0 * sum(map(len, words)), entropy(found.counts)
    sizes = (found.size, len(found.positions), len(found.book), payload, bound, len(book))
    return Blob(Coding.PAPER, data, *sizes, tuple(extra.items()))


def decode_paper(source: Source, dtype: torch.dtype, shape: tuple[int, ...], size: int, what: str) -> Tensor:
    """The inverse of `encode_paper`.

    Raises:
        DamagedError: the bytes are no such tensor.
        TopiaristError: it takes more memory than is allowed.
    """
    if not 0 < size <= LARGEST or dtype.itemsize > 8:
        raise DamagedError("a tensor that cannot be coded so")
    stored = source.varint(most=size)
    codes = source.varint(most=min(size, MOST_CODES))
    if not codes:
        raise DamagedError("a codebook without values")
    book = patterns(unpack(source, dtype, codes, what))
    index_bits = source.byte()
    if not 1 <= index_bits <= WIDEST:
        raise DamagedError("indices of no known width")
    source.memory.need(128 * stored + 3 * source.left + (1 << 21), what)
    labels = _take(source, codes + 1, stored, what)
    positions = np.cumsum(_take(source, 1 << index_bits, stored, what) + 1) - 1
    if source.left or (stored and positions[-1] >= size):
        raise DamagedError("weights beyond the tensor")
    flat = np.zeros(size, dtype=book.dtype)
    flat[positions] = np.concatenate((np.zeros(1, dtype=book.dtype), book))[labels]
    return tensor_of(flat, dtype, shape)


def _take(source: Source, alphabet: int, count: int, what: str) -> Ints:
    lengths = unpack(source, torch.uint8, alphabet, what).numpy().astype(np.int64)
    if lengths.max() > huffman.LONGEST:
        raise DamagedError("words that are too long")
    return huffman.decode(source.take(source.varint()), count, lengths)

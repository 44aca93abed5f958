"""Where the nonzero weights are, as the number of zeros before each."""

from __future__ import annotations

import numpy as np

from topiarist.compress.ans import Floats, Histogram, Ints, Numbers, Reader, Writer

EXACT = 4
"""Gaps below 2^EXACT are symbols of their own; above, each octave has 2^(EXACT - 1) of them."""
_SYMBOLS = 200
"""There are no more, since no gap is 2^27."""


def to_gaps(positions: Numbers) -> Ints:
    """Returns the zeros before each nonzero weight: ascending positions ``(n,)`` to gaps ``(n,)``."""
    return np.diff(positions, prepend=-1) - 1


def to_positions(gaps: Numbers) -> Ints:
    """Inverts `to_gaps`."""
    return np.cumsum(gaps.astype(np.int64) + 1) - 1


class Gaps:
    """Unbounded gaps: a symbol for the gap's magnitude, and uniform bits for which gap of that magnitude.

    Args:
        positions: of the nonzero weights, ``(n,)``, ascending, at least one.
    """

    def __init__(self, positions: Numbers) -> None:
        self._symbols, self._remainders, self._widths = _split(to_gaps(positions))
        self.histogram = Histogram(np.bincount(self._symbols))
        self.bits = self.histogram.bits + float(self._widths.sum()) + 8

    def put(self, writer: Writer) -> None:
        """Writes them."""
        alphabet = len(self.histogram.weights)
        writer.put_uniform(np.array([alphabet - 1]), np.array([_SYMBOLS]), side=True)
        self.histogram.put(writer)
        writer.put(self._symbols, self.histogram.weights)
        wide = self._widths > 0
        writer.put_uniform(self._remainders[wide], 1 << self._widths[wide])

    @staticmethod
    def take(reader: Reader, count: int) -> Ints:
        """Reads the positions of so many nonzero weights, without a check of their bounds."""
        weights: Floats = Histogram.take(reader, 1 + int(reader.take_uniform(np.array([_SYMBOLS]))[0]))
        symbols = reader.take(count, weights).astype(np.int64)
        octaves = np.maximum((symbols >> (EXACT - 1)) - 1, 0)
        heads = np.where(octaves > 0, (symbols & ((1 << (EXACT - 1)) - 1)) | (1 << (EXACT - 1)), symbols)
        gaps = heads << octaves
        wide = octaves > 0
        gaps[wide] |= reader.take_uniform(1 << octaves[wide])
        return to_positions(gaps)


def _split(gaps: Ints) -> tuple[Ints, Ints, Ints]:
    """Returns gaps as symbols, remainders and the number of bits of each remainder."""
    octaves = np.maximum(np.frexp(gaps)[1].astype(np.int64) - EXACT, 0)  # frexp's exponent: the number of bits
    symbols = (octaves << (EXACT - 1)) + (gaps >> octaves)
    return symbols, gaps & ((1 << octaves) - 1), octaves

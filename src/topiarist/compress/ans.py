"""Entropy coding: one stream of asymmetric numeral systems for each tensor, and compact histograms.

The coder is constriction's (Bamler 2022), a stack that comes within some bytes of the entropy of its symbols. All
weights of a model are whole numbers or quotients of them, so that every machine computes the same ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from constriction import stream
from numpy.typing import NDArray

AnsCoder = stream.stack.AnsCoder
Bernoulli, Categorical, Uniform = stream.model.Bernoulli, stream.model.Categorical, stream.model.Uniform

Numbers = NDArray[Any]
"""An array of any type of number."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WIDEST = 1 << 23
"""The largest alphabet of a uniform model."""
_EIGHTHS = np.array([round(2 ** (i / 8) * 2**20) for i in range(8)], dtype=np.int64)
"""2^(i/8), times 2^20."""
_FINENESS, _POWERS, _LEVELS = (1, 2, 4, 8), (0, 1, 2, 3), 256


class DamagedError(ValueError):
    """What was read cannot have been written."""


class Writer:
    """Collects symbols with their models, in the order in which a `Reader` returns them."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int32], Any, tuple[Numbers, ...], bool]] = []

    def put(self, symbols: Numbers, weights: Floats, *, side: bool = False) -> None:
        """Adds symbols of one distribution.

        Args:
            symbols: whole numbers ``(n,)`` from 0 to the number of weights.
            weights: proportional to the probabilities of the symbols; an alphabet of one costs nothing.
            side: counts as part of the model, not as payload.
        """
        if len(weights) > 1 and len(symbols):
            self._add(symbols, Categorical(weights, lazy=False, perfect=False), (), side)

    def put_uniform(self, values: Numbers, sizes: Numbers, *, side: bool = False) -> None:
        """Adds values ``(n,)``, each below its own size; sizes are at least 2 and at most `WIDEST`."""
        if len(values):
            self._add(values, Uniform(), (sizes.astype(np.int32),), side)

    def put_flags(self, flags: Numbers, chances: Floats) -> None:
        """Adds booleans ``(n,)``, each with its own probability of being true."""
        if len(flags):
            self._add(flags, Bernoulli(perfect=False), (chances,), False)

    def _add(self, symbols: Numbers, model: Any, parameters: tuple[Numbers, ...], side: bool) -> None:
        self._parts.append((np.ascontiguousarray(symbols, dtype=np.int32), model, parameters, side))

    def finish(self) -> tuple[bytes, float]:
        """Returns the stream, and how many of its bits are payload."""
        coder, payload, before = AnsCoder(), 0, 0
        for symbols, model, parameters, side in reversed(self._parts):  # a stack: what goes in last comes out first
            coder.encode_reverse(symbols, model, *parameters)
            bits = coder.num_valid_bits()
            payload += 0 if side else bits - before
            before = bits
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"), float(payload)


class Reader:
    """Returns what a `Writer` collected.

    Raises:
        DamagedError: the bytes are no stream.
    """

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"\0"):
            raise DamagedError("a stream that ends in zeros")
        words = np.frombuffer(data + bytes(-len(data) % 4), dtype="<u4").astype(np.uint32)
        self._coder = AnsCoder(words) if len(words) else AnsCoder()

    def take(self, count: int, weights: Floats) -> NDArray[np.int32]:
        """Reads so many symbols of one distribution, as in `Writer.put`."""
        if len(weights) < 2 or not count:
            return np.zeros(count, dtype=np.int32)
        return self._coder.decode(Categorical(weights, lazy=False, perfect=False), count)

    def take_uniform(self, sizes: Numbers) -> NDArray[np.int32]:
        """Reads values below these sizes, as in `Writer.put_uniform`."""
        return self._coder.decode(Uniform(), sizes.astype(np.int32)) if len(sizes) else np.zeros(0, dtype=np.int32)

    def take_flags(self, chances: Floats) -> NDArray[np.bool_]:
        """Reads booleans of these probabilities, as in `Writer.put_flags`."""
        if not len(chances):
            return np.zeros(0, dtype=np.bool_)
        return self._coder.decode(Bernoulli(perfect=False), chances).astype(np.bool_)

    def finish(self) -> None:
        """Checks that all symbols were read."""
        if not self._coder.is_empty():
            raise DamagedError("a stream that is longer than its symbols")


class Histogram:
    """The model of symbols from their counts, each rounded to a power of 2^(1/f), f = 1, 2, 4 or 8.

    Level 0 is a symbol that does not occur, level l a count of about 2^((l-1)/f). The levels of neighbours are alike
    (a codebook is sorted), so their differences d are coded, modulo the number of levels, with the distribution
    1 / (1 + |d|)^t, t = 0, 1, 2 or 3. The coarseness costs about 0.03 / f^2 bits a symbol. Both are chosen so that
    model and symbols together become smallest.

    Args:
        counts: of each symbol, ``(symbols,)``; at least one is positive.

    Attributes:
        weights: proportional to the probabilities, ``(symbols,)``.
        payload: bits of the symbols under this model.
        side: bits of the model itself.
    """

    def __init__(self, counts: Ints) -> None:
        logs, total = np.log2(np.maximum(counts, 1)), int(counts.sum())
        self.side, self.payload = np.inf, np.inf
        for f, fineness in enumerate(_FINENESS):
            levels = (np.rint(fineness * logs) + 1).astype(np.int64) * (counts > 0)
            top = int(levels.max())
            weights = _weights(levels, fineness)
            payload = total * (np.log2(weights.sum()) - 20) - float(counts @ np.maximum(levels - 1, 0)) / fineness
            steps = np.concatenate((levels[:1], levels[1:] - levels[:-1])) % (top + 1)
            sides = _closeness_bits(top) @ np.bincount(steps, minlength=top + 1)
            t = int(sides.argmin())
            if payload + sides[t] < self.payload + self.side:
                self.weights, self.payload, self.side = weights, float(payload), float(sides[t])
                self._code = (f, t, top, steps)
        self.side += np.log2(len(_FINENESS) * len(_POWERS) * _LEVELS)

    @property
    def bits(self) -> float:
        """Returns the bits of model and symbols together."""
        return self.payload + self.side

    def put(self, writer: Writer) -> None:
        """Writes the model."""
        f, t, top, steps = self._code
        sizes = np.array([len(_FINENESS), len(_POWERS), _LEVELS])
        writer.put_uniform(np.array([f, t, top]), sizes, side=True)
        writer.put(steps, _closeness(top, _POWERS[t]), side=True)

    @staticmethod
    def take(reader: Reader, symbols: int) -> Floats:
        """Reads a model of so many symbols; returns its weights."""
        f, t, top = (int(v) for v in reader.take_uniform(np.array([len(_FINENESS), len(_POWERS), _LEVELS])))
        steps = reader.take(symbols, _closeness(top, _POWERS[t]))
        levels = np.cumsum(steps, dtype=np.int64) % (top + 1)
        if not levels.any():
            raise DamagedError("a model without symbols")
        return _weights(levels, _FINENESS[f])


def code_length(counts: Numbers, weights: Floats) -> float:
    """Returns the bits of symbols with these counts under probabilities proportional to these weights."""
    seen = counts > 0
    return float(counts[seen] @ (np.log2(weights.sum()) - np.log2(weights[seen])))


def entropy(counts: Numbers) -> float:
    """Returns the bits of symbols with these counts under their own frequencies, a bound for symbol codes."""
    return code_length(counts, counts.astype(np.float64)) if counts.any() else 0.0


def _weights(levels: Ints, fineness: int) -> Floats:
    eighths = np.maximum(levels - 1, 0) * (8 // fineness)
    return np.where(levels > 0, _EIGHTHS[eighths % 8] * 2.0 ** (eighths // 8), 0.0)


@lru_cache(maxsize=1024)
def _closeness(top: int, power: int) -> Floats:
    steps = np.arange(top + 1, dtype=np.float64)
    near = 1 + np.minimum(steps, top + 1 - steps)
    return 1 / np.multiply.reduce([near] * power) if power else np.ones(top + 1)


@lru_cache(maxsize=1024)
def _closeness_bits(top: int) -> Floats:
    """Returns the bits of each step, for each power: ``(powers, steps)``."""
    weights = np.stack([_closeness(top, power) for power in _POWERS])
    return np.log2(weights.sum(axis=1, keepdims=True)) - np.log2(weights)

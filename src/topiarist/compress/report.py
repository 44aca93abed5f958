"""The bytes of a file, tensor by tensor, and their lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from topiarist.compress.coding import Blob, Coding


@dataclass(frozen=True)
class Row:
    """One tensor of a file.

    Attributes:
        name: its key.
        shape: its axes.
        coding: how it is stored.
        bytes: all of its blob: codebook, model, symbols.
        weights: values in it.
        nonzero: those that are not zero; 0 where the tensor is stored as it is.
        codes: distinct nonzero values in its codebook; 0 without one.
        payload: bytes of the symbols alone.
        bound: bytes of their entropy: what no code of single symbols goes below.
        codebook: bytes of the codebook.
    """

    name: str
    shape: tuple[int, ...]
    coding: str
    bytes: int
    weights: int
    nonzero: int
    codes: int
    payload: float
    bound: float
    codebook: int

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], blob: Blob) -> Row:
        """Returns the row of a tensor."""
        payload, bound = blob.payload / 8, blob.bound / 8
        counts = (len(blob.data), blob.weights, blob.nonzero, blob.codes, payload, bound, blob.codebook)
        return cls(name, shape, blob.coding.name.lower(), *counts)


@dataclass(frozen=True)
class Report:
    """The bytes of a complete file.

    Attributes:
        rows: its tensors.
        overhead: bytes of the header and the checksum.
        architecture: bytes that the shape of the network adds; 0 without one.
        original: bytes of the network in 32 bits a value before it was pruned.
    """

    rows: tuple[Row, ...]
    overhead: int
    architecture: int
    original: int

    @property
    def bytes(self) -> int:
        """Returns the bytes of the file."""
        return self.overhead + self.architecture + sum(row.bytes for row in self.rows)

    @property
    def dense(self) -> int:
        """Returns the bytes of the stored network in 32 bits a value, tied tensors once."""
        return 4 * sum(row.weights for row in self.rows if row.coding != Coding.ALIAS.name.lower())

    @property
    def ratio(self) -> float:
        """Returns how many times smaller the file is than the original network in 32 bits a value."""
        return self.original / self.bytes

    @property
    def payload(self) -> float:
        """Returns the bytes of the symbols of all tensors with a codebook."""
        return sum(row.payload for row in self.rows)

    @property
    def bound(self) -> float:
        """Returns the bytes of the entropy of these symbols."""
        return sum(row.bound for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `json`."""
        parts = {"bytes": self.bytes, "overhead": self.overhead, "architecture": self.architecture}
        totals = {**parts, "dense": self.dense, "original": self.original}
        rates = {"ratio": self.ratio, "payload": self.payload, "bound": self.bound}
        return {**totals, **rates, "tensors": [{**vars(row), "shape": list(row.shape)} for row in self.rows]}

    def __str__(self) -> str:
        wide = max([len(row.name) for row in self.rows], default=6)
        lines = [
            f"{'tensor':<{wide}}  {'coding':<7} {'nonzero of values':>23} {'codes':>5} {'bytes':>11} {'entropy':>11}"
        ]
        for row in self.rows:
            counts = f"{row.nonzero:,} of {row.weights:,}" if row.nonzero else f"{row.weights:,}"
            entropy = f"{row.bound:,.0f}" if row.codes else ""
            lines.append(
                f"{row.name:<{wide}}  {row.coding:<7} {counts:>23} {row.codes or '':>5} {row.bytes:>11,} {entropy:>11}"
            )
        shape = f" and {self.architecture:,} the architecture" if self.architecture else ""
        parts = f"{self.bytes:,} bytes, of which {self.overhead:,} are header and checksum{shape}"
        cut = "of the network before pruning, " if self.original != self.dense else ""
        original = f"the {self.original:,} bytes {cut}in 32 bits"
        return "\n".join([*lines, f"{parts}; {self.ratio:.1f} times smaller than {original}"])

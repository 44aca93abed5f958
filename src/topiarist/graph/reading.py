"""What nothing reads: parameters from which no output that counts is computed, such as those of heads for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from math import prod
from typing import NamedTuple


class Unread(NamedTuple):
    """A part of a network that nothing reads in evaluation.

    Attributes:
        parameters: how many it holds.
        in_training: whether outputs in training mode are computed from it.
    """

    parameters: int
    in_training: bool

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters{', read in training' if self.in_training else ''}"


def unread_parts(shapes: Mapping[str, tuple[int, ...]], read: Set[str], in_training: Set[str]) -> dict[str, Unread]:
    """Returns the largest modules whose parameters nothing reads, or parameters alone → how many they hold.

    Args:
        shapes: of every parameter.
        read: names of the tensors that outputs are computed from in evaluation.
        in_training: in training mode.
    """
    states: dict[str, set[tuple[bool, bool]]] = {}
    for name in shapes:
        for part in _within(name):
            states.setdefault(part, set()).add((name in read, name in in_training))
    parts: dict[str, Unread] = {}
    for name, shape in shapes.items():
        if name not in read:
            part = next(part for part in _within(name) if len(states[part]) == 1)
            before = parts[part].parameters if part in parts else 0
            parts[part] = Unread(before + prod(shape), name in in_training)
    return parts


def _within(name: str) -> Iterator[str]:
    """Yields the modules that hold a tensor, the largest first, then its own name."""
    yield from (name[:at] for at, letter in enumerate(name) if letter == ".")
    yield name

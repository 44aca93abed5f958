"""What corrected code calls in the place of a wrong number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.graph import Ratio, Step


def corrected(value: Any, right: Ratio | float) -> Any:
    """Returns ``value × right.right / right.asked``, exact for multiples of what the trace asked for."""
    if not isinstance(right, Ratio):
        return right
    if isinstance(value, int) and value == -1:
        return value  # a size that torch works out
    return value * right.right // right.asked if right.asked else right.right


@dataclass(frozen=True, eq=False)
class Number:
    """Corrects one number."""

    right: Ratio | float

    def __call__(self, value: Any) -> Any:
        """Returns the right number."""
        return corrected(value, self.right)


@dataclass(frozen=True, eq=False)
class Sizes:
    """Corrects the sizes that a call is given, as one value or as positional arguments."""

    values: Mapping[int, Ratio | float]
    at: int

    def __call__(self, given: Any) -> Any:
        """Returns sizes, or a single one, with some of them corrected."""
        if not isinstance(given, (tuple, list)):
            return corrected(given, self.values[0]) if 0 in self.values else given
        return [corrected(size, self.values[slot]) if slot in self.values else size for slot, size in enumerate(given)]

    def arguments(self, given: Sequence[Any]) -> Sequence[Any]:
        """Returns positional arguments with their sizes corrected."""
        before, sizes = given[: self.at], given[self.at :]
        if sizes and isinstance(sizes[0], (tuple, list)):
            return (*before, self(sizes[0]), *sizes[1:])
        return (*before, *self(sizes))


@dataclass(frozen=True, eq=False)
class Guard:
    """Raises where code runs that no example took, and whose sizes a cut made wrong."""

    step: Step

    def __call__(self) -> None:
        """Raises.

        Raises:
            TopiaristError: the code gets here.
        """
        function, line = self.step.function.rpartition(":")[2], self.step.span.line + 1
        raise TopiaristError(
            f"no example took the branch at line {line} of {function}, which computes with sizes that the cut changed; "
            "prune again with an input that takes it among more_inputs"
        )

"""What is known of tensors, for as long as they live."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Generic, TypeVar
from weakref import ref

from torch import Tensor

V = TypeVar("V")


class ByTensor(Generic[V]):
    """Values by tensor, which go with it.

    As torch's `WeakTensorKeyDictionary`, but a tensor is looked up by its id alone: a tensor that has died is gone from
    here before its id can be another one's.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[ref[Tensor], V]] = {}

    def __iter__(self) -> Iterator[int]:
        """Yields the ids of the tensors."""
        return iter(list(self._held))

    def get(self, tensor: Tensor) -> V | None:
        """Returns the value of a tensor."""
        held = self._held.get(id(tensor))
        return None if held is None else held[1]

    def __setitem__(self, tensor: Tensor, value: V) -> None:
        """Sets the value of a tensor."""
        key = id(tensor)
        held = self._held.get(key)
        self._held[key] = (ref(tensor, partial(self._forget, key)) if held is None else held[0], value)

    def change(self, key: int, value: V) -> None:
        """Sets the value of a tensor that has one, by its id."""
        self._held[key] = (self._held[key][0], value)

    def at(self, key: int) -> V:
        """Returns the value of a tensor by its id."""
        return self._held[key][1]

    def _forget(self, key: int, _: object) -> None:
        self._held.pop(key, None)

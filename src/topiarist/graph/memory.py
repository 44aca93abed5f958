"""The memory of activations: what the operators of a run allocate, how long it lives, and the peak that a keep leaves.

Eager torch counts references: a storage lives from the operator that makes it until nobody holds it any more. While the
network is traced, `Lifetimes` sees every new storage and asks before each operator which have gone. What they show is
kept as plain values, and `Timeline` sums it for any keep.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from topiarist.graph.code.places import MACHINERY
from topiarist.graph.inputs import call_model
from topiarist.graph.labels import Vector, bound


class Storage(NamedTuple):
    """Memory that an operator allocated.

    Attributes:
        size: bytes, for the batch that was traced.
        vectors: of the axes that carry labels; the others keep their length.
        born: the operator that made it, counted from 0.
        died: the last operator that began while somebody held it.
    """

    size: int
    vectors: tuple[Vector, ...]
    born: int
    died: int


class Lifetimes:
    """Follows the storages of one run. Parameters, buffers and the inputs are held by others, and are not counted.

    Attributes:
        time: the operator that runs, counted from 0.
        held: by address, what somebody holds, each with a weak reference.
        ended: what is gone.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        self.time = -1
        self.held: dict[int, tuple[StorageWeakRef, Storage]] = {}
        self.ended: list[Storage] = []
        self._own = set(map(_address, own))

    def begin(self) -> None:
        """Notes that an operator begins: what nobody holds by now has died before it."""
        _forget_snapshots()
        for address in [address for address, (reference, _) in self.held.items() if reference.expired()]:
            self._end(address)
        self.time += 1

    def made(self, tensor: Tensor, vectors: Sequence[Vector], given: Iterable[Tensor]) -> None:
        """Notes what an operator returned: memory of its own, where it is none of what the operator was given."""
        address = _address(tensor)
        if address in self.held or address in self._own or any(_address(other) == address for other in given):
            return
        storage = tensor.untyped_storage()
        carried = tuple(vector for vector in vectors if vector is not None)
        self.held[address] = StorageWeakRef(storage), Storage(storage.nbytes(), carried, self.time, self.time)

    def finish(self) -> list[Storage]:
        """Returns all storages, in the order in which they were made; those still held live to the end."""
        for address in list(self.held):
            self._end(address)
        return sorted((storage for storage in self.ended if storage.size), key=lambda storage: storage.born)

    def _end(self, address: int) -> None:
        self.ended.append(self.held.pop(address)[1]._replace(died=self.time))


def _forget_snapshots() -> None:
    """Brings in line what running functions are remembered to hold.

    Whoever looks at the variables of a function, as tracing does, leaves a copy of them behind, and with it tensors
    that the function itself has let go of. Looking again renews the copy.
    """
    frame: FrameType | None = sys._getframe(1).f_back
    while frame is not None and frame.f_code is not call_model.__code__:
        if frame.f_code.co_filename != MACHINERY:  # which holds what it was called with to its end
            frame.f_locals  # noqa: B018
        frame = frame.f_back


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True, eq=False)
class Timeline:
    """Holds the storages of a run as arrays, so that the peak of a keep is a few sums.

    Attributes:
        classes: ``(positions,)`` the class of each position of all distinct vectors, one after the other.
        starts: ``(vectors,)`` where each of them begins.
        lengths: ``(vectors + 1,)`` how long each is; the last is 1.
        axes: ``(storages, axes)`` the vectors of each storage; the last index stands for none.
        units: ``(storages,)`` bytes for each position on these axes.
        born: ``(storages,)`` the operator that made each.
        after: ``(storages,)`` the first operator without it.
    """

    classes: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    axes: np.ndarray
    units: np.ndarray
    born: np.ndarray
    after: np.ndarray

    @staticmethod
    def of(storages: Sequence[Storage], classes: np.ndarray) -> Timeline:
        """Builds the arrays of storages; `classes` gives the class of each label."""
        known = [[vector for each in storage.vectors if (vector := bound(each)) is not None] for storage in storages]
        distinct = list({id(vector): vector for vectors in known for vector in vectors}.values())
        index = {id(vector): k for k, vector in enumerate(distinct)}
        rows = [[index[id(vector)] for vector in vectors] for vectors in known]
        most = max(map(len, rows), default=0)
        axes = np.array([row + [len(distinct)] * (most - len(row)) for row in rows], dtype=np.int64)
        axes = axes.reshape(len(rows), most)
        lengths = np.array([*map(len, distinct), 1], dtype=np.int64)
        sizes = np.array([storage.size for storage in storages], dtype=np.float64)
        return Timeline(
            classes[np.concatenate(distinct)] if distinct else np.zeros(0, dtype=np.int64),
            np.cumsum([0, *lengths[:-2]])[: len(distinct)],
            lengths,
            axes,
            sizes / lengths[axes].prod(1),
            np.array([storage.born for storage in storages], dtype=np.int64),
            np.array([storage.died + 1 for storage in storages], dtype=np.int64),
        )

    def over_time(self, dead: np.ndarray) -> np.ndarray:
        """Returns the bytes that are held while each operator runs, ``(operators,)``.

        Args:
            dead: bool over classes, True where a position is removed.
        """
        kept = self.lengths.copy()
        if len(self.starts):
            kept[:-1] -= np.add.reduceat(dead[self.classes], self.starts, dtype=np.int64)
        sizes = self.units * kept[self.axes].prod(1)
        count = int(self.after.max(initial=0)) + 1
        changes = np.bincount(self.born, sizes, count) - np.bincount(self.after, sizes, count)
        return np.cumsum(changes)[:-1]

    def peak(self, dead: np.ndarray) -> float:
        """Returns the most bytes that are held at any time."""
        return float(self.over_time(dead).max(initial=0.0))

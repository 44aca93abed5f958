"""What is measured on: the training batches of a data set, or batches of any kind with a loss of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.measure import Batch

DataOrBatches = Data | Iterable[Batch]
"""A data set, or batches as `topiarist.collect` takes them: a `DataLoader`, a list."""


class Batches:
    """Yields the training batches of a data set, as often as they are asked for.

    They come in one and the same random order: data on disks often have one class after the other, and some methods
    use the first examples only.

    Args:
        data: the data set.
        batch_size: examples in a batch.
        seed: of the order.
    """

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.data.batches("train", self.batch_size, torch.Generator().manual_seed(self.seed))


def batches_of(data: DataOrBatches | None, batch_size: int, seed: int) -> Iterable[Batch] | None:
    """Returns the batches to measure on: those of a data set, or the given ones as they are."""
    return Batches(data, batch_size, seed) if isinstance(data, Data) else data


def check_data(data: Any, loss: Any, *, trains: bool) -> None:
    """Raises where data are neither a data set nor batches that can be read twice, or cannot be trained on.

    Args:
        data: what the user gave.
        loss: likewise.
        trains: whether the pruning trains the network.
    """
    if loss is not None and not callable(loss):
        raise TopiaristError(f"loss must be a function of the model's output and the targets, but got {shown(loss)}")
    if data is None or isinstance(data, Data):
        return
    kind = type(data).__name__
    if isinstance(data, str | bytes | Tensor) or not hasattr(data, "__iter__"):
        raise TopiaristError(
            f"data must be a topiarist.Data or batches, but got {kind}: use load_data, Data.of with your own tensors, "
            "or a DataLoader or list of pairs (inputs, target)"
        )
    if iter(data) is data:
        raise TopiaristError(f"data are read more than once, and a {kind} only once: give a DataLoader or a list")
    if trains:
        raise TopiaristError(
            f"the pruning trains on a topiarist.Data, but got {kind}: train before and after it with your own loop "
            "(topiarist.attach), or give Data.of"
        )

"""What is measured on: the training batches of a data set, or batches of any kind with a loss of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from topiarist.data import Data
from topiarist.measure import Batch, batches_in, check_function

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
    if data is None or isinstance(data, Data):
        return None if data is None else Batches(data, batch_size, seed)
    return batches_in(data, batch_size)


def check_data(data: Any, loss: Any) -> None:
    """Raises where data are neither a data set nor batches that can be read twice, or the loss is no function."""
    if loss is not None:
        check_function(loss, "loss")
    if data is not None and not isinstance(data, Data):
        batches_in(data, 1)

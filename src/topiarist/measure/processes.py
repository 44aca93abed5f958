"""The processes that torchrun starts: each measures its share of the batches, and the sums of all are added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, distributed

from topiarist.errors import TopiaristError

Batch = TypeVar("Batch")
Key = TypeVar("Key", bound=tuple[str, ...])


def rank_and_world_size() -> tuple[int, int]:
    """Returns the rank of this process, and how many processes there are.

    Raises:
        TopiaristError: there is no process group.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise TopiaristError(
            "there are no processes to share the work with: start them with torchrun and call "
            "torch.distributed.init_process_group() first, or leave distributed out"
        )
    return distributed.get_rank(), distributed.get_world_size()


def batches_of_rank(batches: Iterable[Batch], rank: int, world_size: int) -> Iterator[tuple[Batch, bool]]:
    """Yields every ``world_size``-th batch from number ``rank`` on, and whether it counts.

    Where there are fewer batches than processes, those without a batch get the first one, which does not count: then
    all of them measure the same sums, if only to add zeros.
    """
    first: list[Batch] = []
    index = -1
    for index, batch in enumerate(batches):
        if index == 0:
            first.append(batch)
        if index % world_size == rank:
            yield batch, True
    if index < rank:
        yield from ((batch, False) for batch in first)


def sum_over_processes(sums: dict[Key, Tensor], device: torch.device) -> dict[Key, Tensor]:
    """Returns the sums of all processes: the same float64 numbers in each of them.

    Args:
        sums: of this process, under the same keys and of the same shapes as everywhere.
        device: where the process group can add.
    """
    keys = sorted(sums)
    if not keys:
        return sums
    flat = torch.cat([sums[key].flatten() for key in keys]).to(device)
    distributed.all_reduce(flat)
    parts = flat.cpu().split([sums[key].numel() for key in keys])
    return {key: part.view(sums[key].shape) for key, part in zip(keys, parts, strict=True)}

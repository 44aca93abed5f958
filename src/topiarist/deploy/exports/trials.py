"""Random inputs like an example: other values, another batch, another image size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topiarist.graph import Inputs, map_tensors, tensors_in

Size = tuple[int, int]
"""Height and width of images."""


def examples_in(inputs: Inputs) -> int | None:
    """Returns how many examples inputs hold: the length of the first axis that a tensor has, if one has any."""
    return next((tensor.shape[0] for tensor in tensors_in(inputs) if tensor.ndim), None)


def in_batch(tensor: Tensor, batch: int | None) -> bool:
    """Returns whether the first axis of a tensor counts examples: it is as long as the batch."""
    return batch is not None and tensor.ndim > 0 and tensor.shape[0] == batch


def is_image(tensor: Tensor) -> bool:
    """Returns whether a tensor holds images: floating-point numbers on four axes, ``(N, C, H, W)``."""
    return tensor.ndim == 4 and tensor.is_floating_point()


def size_of(inputs: Inputs) -> Size | None:
    """Returns height and width of the first images in inputs, if there are any."""
    return next(((t.shape[2], t.shape[3]) for t in tensors_in(inputs) if is_image(t)), None)


def trial(inputs: Inputs, seed: int, batch: int | None = None, size: Size | None = None) -> Any:
    """Returns random inputs in the place of an example's, on the CPU.

    Floating-point numbers are drawn from a normal distribution of the example's mean and deviation. Whole numbers and
    truth values are the example's own, each row shuffled: they stay indices, masks and lengths that the network knows.

    Args:
        inputs: the example.
        seed: of the values.
        batch: how many examples; as many as there are without it.
        size: of the images; theirs without it.
    """
    generator = torch.Generator().manual_seed(seed)
    count, own = examples_in(inputs), size_of(inputs)

    def like(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if batch is not None and in_batch(tensor, count):
            shape[0] = batch
        if size is not None and is_image(tensor) and tuple(shape[2:]) == own:
            shape[2:] = size
        values = tensor.detach().cpu()
        return (_drawn if _may_draw(values) else _shuffled)(values, shape, generator)

    return map_tensors(inputs, like)


def _may_draw(values: Tensor) -> bool:
    return values.is_floating_point() and values.numel() > 0 and bool(values.isfinite().all())


def _drawn(values: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    deviation = values.std(correction=0)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(values.dtype)
    return values.mean() + (deviation if deviation > 0 else 1) * noise


def _shuffled(values: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    if not values.ndim or not values.numel():
        return values
    rows = values[torch.arange(shape[0]) % len(values)]
    if rows.ndim == 1:
        return rows
    order = torch.rand(rows.shape, generator=generator).argsort(-1)
    return rows.gather(-1, order)


def other_size(inputs: Inputs, runs: Callable[[Any], object]) -> tuple[Size | None, Exception | None]:
    """Returns another image size at which a network runs, not square, or why it runs at none."""
    own, failure = size_of(inputs), None
    if own is None:
        return None, ValueError("no input has the axes of images (N, C, H, W)")
    height, width = own
    for size in ((height + 32, width + 64), (2 * height, 3 * width), (2 * height, 2 * width)):
        try:
            runs(trial(inputs, 0, size=size))
        except Exception as error:  # the network's own code
            failure = failure or error
        else:
            return size, None
    return None, failure

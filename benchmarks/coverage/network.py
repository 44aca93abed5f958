"""A network of the coverage table, its inputs, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.graph import Inputs, map_floats, tensors_in, twice_the_batch
from topiarist.surgery import non_degenerate

Make = Callable[[], Any]


@dataclass(frozen=True)
class Network:
    """A network by name.

    Attributes:
        name: with its source: ``timm:resnet18``.
        build: makes it.
        inputs: makes an example input.
        other: makes a further one, of another size or length; without it the size is fixed.
        single: whether it takes float32 alone.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Make
    other: Make | None = None
    single: bool = False

    def made(self) -> tuple[nn.Module, Inputs, list[Inputs]]:
        """Returns the network with non-degenerate weights, in float64 where it takes that, and its inputs."""
        torch.manual_seed(0)
        model, example = self.build().eval(), self.inputs()
        more = [] if self.other is None else [self.other()]
        non_degenerate(model)
        _measure_batches(model, example)
        if not self.single:
            example, *more = (map_floats(each, Tensor.double) for each in (example, *more))
            model.double()
        return model.requires_grad_(False), example, more


def run(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, list | tuple) else model(inputs)


def _measure_batches(model: nn.Module, example: Any) -> None:
    """Gives batch norms the statistics of twice the example."""
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        with torch.no_grad():
            for inputs in (twice_the_batch(example), example):
                try:
                    run(model, inputs)
                except Exception:  # a list of images has no batch; one position has no variance
                    continue
                break
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            for statistic in (norm.running_mean, norm.running_var):
                statistic.nan_to_num_(1.0)


# ------------------------------------------------------------------------------------------------------------- inputs


def image(*sides: int, batch: int = 1, channels: int = 3) -> Make:
    shape = (batch, channels, *(sides if len(sides) > 1 else sides * 2))
    return lambda: torch.randn(shape)


def ids(length: int = 12, batch: int = 1, **more: Make) -> Make:
    return lambda: {"input_ids": torch.randint(3, 99, (batch, length)), **{name: make() for name, make in more.items()}}


def named(**tensors: tuple[int, ...]) -> Make:
    """Inputs by name: random numbers of these shapes; whole numbers where the name says ids."""
    return lambda: {
        name: torch.randint(3, 99, shape) if name.endswith("ids") else torch.randn(shape)
        for name, shape in tensors.items()
    }


def answers(model: nn.Module, inputs: Any) -> Any:
    """Runs a network; where it gives logits, hidden states beside them are dropped, whose width may change."""
    found = run(model, inputs)
    if isinstance(found, dict) and "logits" in found:
        return {key: value for key, value in found.items() if "hidden_state" not in key and "past" not in key}
    return found


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Returns the tensors that a network answers with."""
    with torch.no_grad():
        return tensors_in(answers(model, inputs))

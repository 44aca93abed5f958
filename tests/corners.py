"""A small data set of bright corners, a network for it, and a method with all roles in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from topiarist.data import Data
from topiarist.graph import Group, Slice
from topiarist.methods import Method
from topiarist.train import Recipe

QUICK = Recipe(epochs=4, lr=0.05, batch_size=16)


def corners() -> Data:
    """Three kinds of 6x6 images, a bright corner each, with noise."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(131) % 3
    x = 0.3 * torch.randn(131, 1, 6, 6, generator=generator)
    for index, (row, column) in enumerate([(0, 0), (0, 3), (3, 0)]):
        x[y == index, :, row : row + 3, column : column + 3] += 1
    return Data.of("corners", x[:101], y[:101], x[101:], y[101:], augment="crop-flip")


def net(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(36, 3),
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Units:
    """As much of a graph of weights as training reads."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        sizes = {name: model.get_parameter(name).numel() for name in names}
        self.groups = [Group(name, n, (Slice(name, None, torch.arange(n)[:, None]),)) for name, n in sizes.items()]

    def __getitem__(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)


class Factor(nn.Module):
    """A stochastic gate on one layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.factor + 0.1 * torch.randn(1) if self.training else self.factor)


class Gated(Method):
    """All three training-time roles at once."""

    paper = "none"

    def penalty(self, model: nn.Module, graph: object) -> Tensor:
        return 0.1 * model.get_submodule("0.gate").factor.square().sum()

    def proximal(self, model: nn.Module, graph: object, lr: float) -> None:
        model[0].weight.mul_(1 - 0.01 * lr)

    @contextmanager
    def gates(self, model: nn.Module, graph: object) -> Iterator[nn.Module]:
        gate = Factor()
        model[0].add_module("gate", gate)
        handle = model[0].register_forward_hook(lambda module, args, output: gate(output))
        try:
            yield gate
        finally:
            handle.remove()
            model[0].register_buffer("factor", gate.factor.detach(), persistent=False)
            del model[0].gate

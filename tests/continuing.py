"""A network in the middle of a training: its optimisers and averages, and how far two networks are apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from topiarist import Graph, trace

X = torch.randn(12, 1, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
Y = torch.arange(12) % 5


class Net(nn.Module):
    """A convolution, a residual block and a classifier, in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
        self.head = nn.Linear(6 * 16, 5)
        self.recompute = False
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = checkpoint(self.branch, x, use_reentrant=False) if self.recompute else self.branch(x)
        return self.head((x + y).flatten(1))


@cache
def graph() -> Graph:
    return trace(Net(), X[:2])


@cache
def keep() -> dict[str, Tensor]:
    return {group.name: torch.arange(group.units) % 3 != 0 for group in graph().groups}


def step(model: nn.Module, optimizer: Any) -> float:
    loss = cross_entropy(model(X), Y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        step(model, optimizer)


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    assert all(key == other and x.shape == y.shape for (key, x), (other, y) in pairs)
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)


def likewise(optimizer: Optimizer, make: Callable[[Any], Optimizer], model: nn.Module) -> Optimizer:
    """The same optimiser with the same state for another model."""
    other = make(model)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


class Lars(optim.SGD):
    """SGD whose steps are scaled by norms of whole tensors."""

    def step(self) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.grad.mul_(parameter.detach().norm() / (parameter.grad.norm() + 1e-9))
        super().step()


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
    "fused": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: optim.Adadelta(p),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.05),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.05),
    "lars": lambda p: Lars(p, lr=0.02, momentum=0.9),
}


class Deeper(Net):
    """With another block, of which a block can be spared."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(x)
        return self.head((x + self.last(x)).flatten(1))

"""Training mode is traced where a network does something else in it, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import Net, conv, images, random_keep, shaken, tokens
from topiarist import prove, trace

Part = Callable[[], nn.Module]


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm that is written out, as image models have it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        mean = self.running_mean if not self.training or self.track_running_stats else None
        x = F.batch_norm(x, mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.relu(x)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5).div_(0.5) if self.training else x


class Helper(nn.Module):
    """Asks in a function that it calls."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled(self, x)


def scaled(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout2d(x, 0.5, module.training)


class Shuffled(nn.Module):
    """Mixes channels in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(1) if getattr(self, "training") else x  # noqa: B009


class Gain(nn.Module):
    """Reads a parameter in training."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain if self.training else x


class Either(nn.Module):
    """Runs one of two that are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.training else self.other(x)


class Moved(nn.Module):
    """Runs the same operators on other channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :3], x[:, :3]] if self.training else [x[:, :3], x[:, 3:]], 1)


class Noisy(nn.Module):
    """Draws a number for each channel, whose count it states."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(self.shape).bernoulli_(0.5).view(-1, 6, 1, 1) if self.training else x


class Offset(nn.Module):
    """Adds a buffer in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.arange(6.0).view(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset if self.training else x


class Optional(nn.Module):
    """Reads an optional argument in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Skip()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x), skip=x.flip(1))


class Skip(nn.Module):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return x + skip if self.training and skip is not None else x


class Scaled(nn.Module):
    """Scales by a width in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[1] ** -0.5 if self.training else x


class Listed(nn.Module):
    """Two of one class, one of which does something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(Shuffles([]), Shuffles(["here"]))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


class Shuffles(nn.Module):
    def __init__(self, where: list[str]) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(1) if self.training and self.where else x


class OwnDropout(nn.Module):
    """Has a function of its own that is called as torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x, self.training)

    def dropout(self, x: Tensor, training: bool) -> Tensor:
        return x * x.flip(1).sigmoid() if training else x


class Among(nn.Module):
    """Asks for several switches."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(1) if any(getattr(self, name, False) for name in ("training", "forced")) else x


class Switched(nn.Module):
    """Asks for no mode, but `train` changes what it does."""

    flips = False

    def train(self, mode: bool = True) -> Switched:
        self.flips = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(1) if self.flips else x


class Lists(nn.Module):
    """Takes tensors in a list, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Last()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner([self.inner([x, x]), x])


class Last(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] + xs[1].flip(1) if self.training else xs[0]


SAME: dict[str, Part] = {
    "a batch norm": lambda: nn.BatchNorm2d(6),
    "dropout": lambda: nn.Dropout(0.5),
    "a batch norm that is written out": lambda: NormAndActivation(6),
    "drop path": DropPath,
    "dropout in a helper": Helper,
}
OTHER: dict[str, Part] = {
    "channels are mixed": Shuffled,
    "a parameter is read": Gain,
    "a switch": Switched,
    "one of two": Either,
    "other channels": Moved,
    "noise for each channel": lambda: Noisy(1, 6, 1, 1),
    "noise for each channel, and no more": lambda: Noisy(6, 1, 1),
    "noise in a row": lambda: Noisy(6),
    "a buffer is added": Offset,
    "an optional argument is read": Optional,
    "one of a class": Listed,
    "a scale by a width": Scaled,
    "a dropout of its own": OwnDropout,
    "among several": Among,
    "tensors in a list": Lists,
    "statistics of an instance": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
}


def network(part: Part) -> tuple[nn.Module, list[bool]]:
    """A network around a part, and the modes in which its forward ran."""
    modes: list[bool] = []

    def run(net: Any, x: Tensor) -> Tensor:
        return net.b(net.part(net.a(x)).relu())

    model = shaken(Net(run, a=conv(3, 6), part=part(), b=conv(6, 2)))
    model.a.register_forward_hook(lambda module, args, out: modes.append(len(out) > 2))  # twice the batch
    return model, modes


@pytest.mark.parametrize("name", SAME)
def test_a_network_that_is_the_same_in_both_modes_runs_once(name: str) -> None:
    model, modes = network(SAME[name])
    graph = trace(model, images(2))
    assert modes == [False]
    assert [group.units for group in graph.groups] == [6]
    proof = prove(model, graph, random_keep(graph, 0), images(2))
    assert proof.ok
    assert "training mode" in proof.paths


@pytest.mark.parametrize("name", OTHER)
def test_a_network_that_is_another_one_in_training_runs_in_both_modes(name: str) -> None:
    model, modes = network(OTHER[name])
    graph = trace(model, images(2))
    assert modes == [False, True]
    for seed in range(3):
        assert prove(model, graph, random_keep(graph, seed), images(2)).max_rel_diff <= 1e-10


def test_channels_that_meet_in_training_alone_are_removed_together() -> None:
    assert [group.units for group in trace(network(Shuffled)[0], images(2)).groups] == [3]
    assert [group.units for group in trace(network(Switched)[0], images(2)).groups] == [3]


def test_a_batch_norm_over_units_is_seen_in_training() -> None:
    """Its statistics run over the batch and the places, and here the places are units."""
    model = Net(
        lambda net, x: net.b(net.norm(net.a(x).mT).mT), a=nn.Linear(12, 8), norm=nn.BatchNorm1d(8), b=nn.Linear(8, 3)
    )
    across = Net(
        lambda net, x: net.b(net.norm(net.a(x))), a=nn.Linear(12, 8), norm=nn.BatchNorm1d(5), b=nn.Linear(8, 3)
    )
    for net in (model, across):
        shaken(net)
        graph = trace(net, tokens(3))
        assert [group.units for group in graph.groups] == [8]
        for seed in range(3):
            proof = prove(net, graph, random_keep(graph, seed), tokens(3))
            assert proof.max_rel_diff <= 1e-10
            assert "training mode" in proof.paths


def test_a_module_that_runs_in_training_alone_is_cut_with_the_others() -> None:
    def run(net: Any, x: Tensor) -> Any:
        y = net.a(x).relu()
        return (net.b(y), net.c(y)) if net.training else net.b(y)

    model = shaken(Net(run, a=conv(3, 6), b=conv(6, 2), c=conv(6, 4)))
    graph = trace(model, images(2))
    assert [(part.tensor, part.axis) for part in graph.groups[0].slices if part.tensor == "c.weight"] == [
        ("c.weight", 1)
    ]

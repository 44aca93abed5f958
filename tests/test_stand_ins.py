"""Tracing does not compute heavy operators: the units are the same, and a value that is needed is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import topiarist
from networks import Net, conv
from topiarist import TopiaristError, make_model, trace
from topiarist.graph import stand_ins


@pytest.fixture(params=["all stand-ins", "all computed"])
def heavy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "HEAVY", 0 if request.param == "all stand-ins" else 1 << 60)


def described(graph: topiarist.Graph) -> list[Any]:
    groups = [
        (group.name, group.units, group.stage, [s.positions.tolist() for s in group.slices]) for group in graph.groups
    ]
    record = graph.solution.record
    factors = [[f if isinstance(f, int) else f.tolist() for f in c.factors] for c in record.contractions]
    return [groups, factors, [s._replace(vectors=()) for s in record.statistics], topiarist.cost(graph)]


@pytest.mark.parametrize("name", ["zoo:digitsnet", "zoo:resnet20", "zoo:densenet40", "zoo:lenet5"])
def test_the_graph_does_not_depend_on_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make_model(name)()
    side = {"zoo:digitsnet": (1, 8), "zoo:lenet5": (1, 28)}.get(name, (3, 32))
    x = torch.randn(2, side[0], side[1], side[1])
    found = []
    for threshold in (0, 1 << 60):
        monkeypatch.setattr(stand_ins, "HEAVY", threshold)
        state = torch.get_rng_state()
        found.append(described(trace(model, x)))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


class Chooses(nn.Module):
    """Reads a value behind a convolution, in one of many ways."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.high, self.low, self.how = conv(3, 8), conv(8, 6), conv(8, 6), how
        self.last = conv(6, 4)
        with torch.no_grad():
            self.first.bias.fill_(5.0)  # positive, whatever the input: never so by chance

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.relu((self.high if self.how(y) else self.low)(torch.relu(y))))


WAYS = {
    "bool": lambda y: bool((y.mean(dim=(0, 2, 3)) > 3).all()),
    "item": lambda y: y.mean().item() > 3,
    "tolist": lambda y: min(y.mean(dim=(0, 2, 3)).tolist()) > 3,
    "numpy": lambda y: np.min(y.mean(dim=(0, 2, 3)).numpy()) > 3,
    "nonzero": lambda y: len((y.mean(dim=(0, 2, 3)) > 3).nonzero()) == y.shape[1],
    "mask": lambda y: len(y.mean(dim=(2, 3))[y.mean(dim=(2, 3)) > 3]) == y.shape[0] * y.shape[1],
    "unique": lambda y: len((y.mean(dim=(2, 3)) > 3).unique()) == 1,
    "equal": lambda y: torch.equal(y.mean(dim=(0, 2, 3)) > 3, torch.ones(y.shape[1], dtype=torch.bool)),
    "in place": lambda y: torch.zeros(y.shape[1]).add_(y.mean(dim=(0, 2, 3))).min().item() > 3,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_value_that_the_program_asks_for_is_computed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "HEAVY", 0)
    model = Chooses(WAYS[way])
    model.eval()
    graph = trace(model, torch.randn(2, 3, 6, 6))
    tensors = {slice.tensor for group in graph.groups for slice in group.slices}
    assert "high.weight" in tensors
    assert "low.weight" not in tensors


@pytest.mark.usefixtures("heavy")
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 1, 1)])
def test_an_input_that_does_not_fit_is_refused_as_torch_does(shape: tuple[int, ...]) -> None:
    with pytest.raises(TopiaristError, match=r"fails on the example input .*(channels|[Kk]ernel size)"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(shape))


@pytest.mark.usefixtures("heavy")
@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), nn.Conv2d(4, 6, (3, 1), groups=2, bias=False),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2), nn.Conv2d(4, 6, 3, padding="valid"),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
])  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_stand_ins_have_shape_and_layout(layer: nn.Module, layout: torch.memory_format) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(n: Any, x: Tensor) -> Tensor:
        y = n.layer(n.stem(x))
        seen.append((tuple(y.shape), y.stride(), y.dtype))
        return n.last(y.relu())

    net = Net(look, stem=conv(3, 4), layer=layer, last=conv(6, 3)).eval()
    x = torch.randn(2, 3, 9, 9).to(memory_format=layout)
    trace(net, x)
    seen[1:] = []
    with torch.no_grad():
        net(x)
    assert seen[0] == seen[1]

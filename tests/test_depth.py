"""Work is linear in depth: twice the layers take twice the steps, counted by line of code."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topiarist


class ConvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class MlpBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(4), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        out = self.fc2(self.act(self.fc1(self.norm(x))))
        return x + (out if scale is None else out * scale)


def deep(block: Callable[[], nn.Module], layers: int) -> tuple[nn.Module, Tensor]:
    blocks = nn.Sequential(*(block() for _ in range(layers // 2)))
    if block is ConvBlock:
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), blocks, *head), torch.randn(1, 3, 4, 4)
    return nn.Sequential(nn.Linear(5, 4), blocks, nn.Linear(4, 3)), torch.randn(1, 2, 5)


def steps(work: Callable[[], object]) -> int:
    """How many lines and functions of the package run; each turn of a loop counts."""
    count = 0

    def note(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if not frame.f_globals.get("__name__", "").startswith("topiarist."):
            return None
        count += 1
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("block", [ConvBlock, MlpBlock])
@pytest.mark.by_day(1)
def test_trace_and_cut_are_linear_in_depth(block, monkeypatch):
    for watcher in ("operators", "listener"):  # what they do for each operator counts as well
        monkeypatch.setattr(f"topiarist.graph.{watcher}.unwatched", nullcontext)
    counts = []
    for layers in (10, 100, 200):  # the first fills the caches of code
        model, inputs = deep(block, layers)
        graphs = []
        traced = steps(lambda model=model, inputs=inputs, graphs=graphs: graphs.append(topiarist.trace(model, inputs)))
        graph = graphs[0]
        keep = {group.name: torch.arange(group.units) > 0 for group in graph.groups}
        counts.append((traced, steps(lambda m=model, g=graph, k=keep: topiarist.cut(m, g, k))))
        assert len(graph.blocks().groups[0].blocks) == layers // 2
    _, (trace, cut), (trace_of_twice, cut_of_twice) = counts
    assert trace_of_twice <= 2.05 * trace
    assert cut_of_twice <= 2.05 * cut

"""Trains with Network Slimming's penalty in a plain PyTorch loop, prunes half of the MACs, and fine-tunes.

Run it with ``python examples/plain_loop.py``; it takes a few seconds.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import topiarist
from topiarist.methods import make


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: topiarist.Data, epochs: int) -> None:
    """Any loop will do: Topiarist sees the calls of ``optimizer.step()`` and needs nothing else."""
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for x, y in data.batches("train", 64, shuffle):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()


torch.manual_seed(0)
data = topiarist.load_data("digits")
model = nn.Sequential(
    block(1, 16),
    nn.MaxPool2d(2),
    block(16, 32),
    block(32, 32),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)
slimming = make("slimming", lam=1e-2)
graph = topiarist.trace(model, data.example())

optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
with topiarist.attach(slimming, model, optimizer, graph):  # the penalty's gradient joins every step
    train(model, optimizer, data, epochs=10)
print(f"trained:    {topiarist.evaluate(model, data):.1f} % of the test images")

scores = slimming.score(graph, topiarist.collect(model, graph))
keep = topiarist.allocate(graph, scores, topiarist.Budget(macs=0.5), allocation="global")
small = topiarist.cut(model, graph, keep)
print(f"pruned:     {topiarist.evaluate(small, data):.1f} %")

train(small, torch.optim.SGD(small.parameters(), lr=0.01, momentum=0.9), data, epochs=3)  # a new optimiser: new tensors
before, after = topiarist.cost(graph), topiarist.cost(graph, keep)
print(f"fine-tuned: {topiarist.evaluate(small, data):.1f} %")
print(f"{before.macs:,} MACs became {after.macs:,}, {before.params:,} parameters became {after.params:,}")

"""The shape of a network, ``architecture.json``: damaged text, and forged values with a right checksum.

Defended: the checksum, every type and range, the memory that masks and positions take (counted before it is taken), the
place of every slice in the model that it is applied to, and the layers of the result, which fit their own tensors. What
is accepted runs, or is refused with example inputs.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random

import torch
from harness import attack, forge, mutated
from torch import nn

from topiarist import Architecture, trace
from topiarist.architecture import digest


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)).eval()


MODEL, INPUTS = network(), torch.ones(1, 2, 2, 2)
GRAPHS = (trace(MODEL, INPUTS), trace(MODEL, INPUTS).weights())
KEEPS = [{group.name: torch.arange(group.units) > 0 for group in graph.groups} for graph in GRAPHS]
VALUES = [Architecture.of(graph, keep).to_json() for graph, keep in zip(GRAPHS, KEEPS, strict=True)]


def attempt(random: Random, folder: Path) -> None:
    value, file = random.choice(VALUES), folder / "architecture.json"
    if random.random() < 0.7:
        value = copy.deepcopy(value)
        forge(value, random)
        if isinstance(value, dict) and random.random() < 0.9:
            value["sha256"] = digest(value)
        file.write_text(json.dumps(value), encoding="utf-8")
    else:
        file.write_bytes(mutated(json.dumps(value).encode(), random))
    shape = Architecture.load(file)
    shape.check(MODEL.state_dict()) if random.random() < 0.1 else None
    shape.apply(MODEL, INPUTS)(INPUTS)


if __name__ == "__main__":
    attack(attempt, 10_000)

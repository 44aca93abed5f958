"""The state of a training, a file of `torch.save`: damaged bytes, and forged values in a whole archive.

Defended: the checksums of the archive, what may be made of it (tensors and plain values), its settings, names, shapes
and the rows of its epochs. What is accepted trains on; a stored bit that changed is refused.
"""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random

import torch
from harness import attack, forge, mutated
from torch import nn

from topiarist.data import Data
from topiarist.train import Recipe, fit

IMAGES, LABELS = torch.zeros(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1])
DATA = Data.of("lines", IMAGES, LABELS, IMAGES, LABELS)
RECIPE = Recipe(epochs=1, batch_size=6)


def train(file: Path) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    fit(model, DATA, RECIPE, checkpoint=file)
    return model


def attempt(random: Random, folder: Path) -> None:
    whole, file = folder / "whole.pt", folder / "checkpoint.pt"
    if not whole.exists():
        train(whole)
    if random.random() < 0.7:
        file.write_bytes(mutated(whole.read_bytes(), random))
        for ours, theirs in zip(train(file).parameters(), train(whole).parameters(), strict=True):
            assert torch.equal(ours, theirs), "a changed bit was not noticed"
        return
    state = copy.deepcopy(torch.load(whole, weights_only=True))
    forge(state, random)
    torch.save(state, file)
    train(file)


if __name__ == "__main__":
    attack(attempt, 500)

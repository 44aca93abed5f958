"""Golden rows: every method on a case small enough to work out by hand from its paper's formula.

One file for each method, under the method's name. Its function ``row`` returns what the method gives and what it must
give, each a mapping from names to tensors. A method without a row fails the suite.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Answers = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def conv_net() -> nn.Sequential:
    """Three filters of 1 x 2 weights with scales, and a head."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, (1, 2)), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0], [-1.0, 1.0], [0.0, 6.0]]).view(3, 1, 1, 2))
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
    return model.eval()


def rows() -> dict[str, Callable[[], Answers]]:
    """Method → its row."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").row for name in names}

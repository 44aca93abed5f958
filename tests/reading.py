"""What layers read, by brute force: for the tests of methods that watch it."""

from __future__ import annotations

import torch
from torch import nn

import topiarist


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def traced(*layers, shape, seed=0):
    """A network in float64, its graph and a batch."""
    torch.manual_seed(seed)
    model, x = nn.Sequential(*layers).double().eval(), noise(*shape, seed=seed + 1)
    return model, topiarist.trace(model, x[:1]), x


def contributions(model, reader, x, unit_of):
    """``(outputs, units)``: what the reader puts out when a single unit is not zero, less its bias."""
    read = []
    handle = model[reader].register_forward_hook(lambda module, args, output: read.append(args[0]))
    with torch.no_grad():
        model(x)
        handle.remove()
        columns = []
        for unit in range(int(unit_of.max()) + 1):
            alone = torch.where((unit_of == unit).view(1, -1, *[1] * (read[0].ndim - 2)), read[0], 0)
            columns.append((model[reader](alone) - model[reader](0 * alone)).flatten())
    return torch.stack(columns, 1)

"""Small networks for the tests of exports, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from networks import shaken


class Words(nn.Module):
    """A transformer on tokens with a mask, which returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, mask: Tensor, ids: Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = self.block(self.embed(ids), src_key_padding_mask=~mask)
        return {"pooled": scale * self.head((x * mask[..., None]).sum(1)), "none": None, "tokens": (x,)}


class Sign(nn.Module):
    """Branches on a value of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.sum() > 0 else x


class Branching(nn.Module):
    """Has a module that branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate = nn.Linear(4, 4), Sign()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.fc(x))


class TwoRows(nn.Module):
    """Takes two examples only."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Frozen(nn.Module):
    """Knows its batch as a number of Python's, which a trace freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / float(len(x.detach().numpy()))


class Unknown(nn.Module):
    """Ends in an operator that ONNX has not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(4, 4), Bessel()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(x))


class Bessel(nn.Module):
    """Calls an operator that ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def words() -> tuple[nn.Module, dict[str, Tensor]]:
    """The transformer, and keywords in another order than its parameters."""
    torch.manual_seed(0)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return shaken(Words()), {"ids": torch.randint(0, 20, (2, 6)), "mask": mask}

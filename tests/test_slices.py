"""Slices whose borders the code states: a constant, a setting of an object, or arithmetic; they follow a cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import topiarist
from topiarist import Architecture, Budget


class FusedAttention(nn.Module):
    """Queries, keys and values of one layer, parted by slices; the number of heads is a setting, no attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.head_dim = SimpleNamespace(heads=4), 4
        self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        fused, width = self.qkv(x), self.config.heads * self.head_dim
        parts = fused[..., :width], fused[..., width : 2 * width], fused[:, :, -width:]
        q, k, v = (part.view(batch, length, -1, self.head_dim).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(batch, length, -1))


class Constants(nn.Module):
    """Constants, also where a part is assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 24), nn.Linear(8, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        z = y.clone()
        z[..., :8] = z[..., :8] * 2
        return self.left(z[..., :8]) + self.right(y[..., 8:24])


class SharedPlace(nn.Module):
    """One place slices an axis that is cut and one that is not: no correction suits both, so both stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.all = nn.Linear(6, 8), nn.Linear(4, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        every = self.first(x).relu()
        hidden, plain = (value[..., :4] for value in (every, x))
        return self.last(hidden) + self.all(every) + plain.sum()


NETWORKS = {
    "fused attention": (FusedAttention, {"qkv.weight": (12, 6), "out.weight": (3, 4)}),
    "constants": (Constants, {"first.weight": (12, 6), "left.weight": (3, 4), "right.weight": (3, 8)}),
    "one place for two axes": (SharedPlace, {"first.weight": (6, 6), "last.weight": (3, 4), "all.weight": (3, 6)}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_slices_follow_a_cut_at_every_length_in_every_copy(name):
    make, shapes = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    done = topiarist.prune(model, torch.randn(2, 5, 6), topiarist.methods.make("random"), Budget(ratio=0.5))
    assert {key: tuple(p.shape) for key, p in done.model.named_parameters() if p.ndim > 1} == shapes
    masked, small = topiarist.mask(model, done.graph, done.keep).double(), done.model.double()
    longer = torch.randn(3, 9, 6, dtype=torch.float64)
    expected = masked(longer)
    rebuilt = Architecture.from_json(done.architecture.to_json()).build(make).double()
    rebuilt.load_state_dict(small.state_dict())
    exported = torch.export.export(small, (longer,)).module()
    for network in (small, rebuilt.eval(), exported):
        assert torch.allclose(network(longer), expected, rtol=0, atol=1e-12)

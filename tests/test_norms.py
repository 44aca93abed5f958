"""Layers in front of batch norms: which they are, and that filters may have any length there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import trace
from topiarist.methods._filter_norms import filter_norms_kept


class Net(nn.Module):
    """Convolutions and norms, joined in a way of its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 4, 3, bias=way != "no bias")
        self.other = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, affine=way != "no scale", track_running_stats=way != "no memory")
        self.large = nn.BatchNorm2d(9)
        self.head = nn.Linear(4, 2)

    def part(self, y: torch.Tensor) -> torch.Tensor:
        """A norm by parts of a larger one's tensors, or by all in another order."""
        norm, n = self.large, 4
        tensors = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        return F.batch_norm(y, *(each[:n] if self.way == "part of a norm" else each[1:][:n] for each in tensors))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x) if self.way == "transposed" else self.conv(x)
        if self.way == "activation between":
            y = y.relu()
        if self.way == "written in place":
            y.add_(1)
        if self.way == "norm of the batch":
            self.norm.train()
        z = self.part(y) if self.way.startswith("part") else self.norm(y)
        z = {
            "skip": lambda: z + y,
            "weight tied": lambda: z + F.conv_transpose2d(z, self.conv.weight)[:, :1, 1:-1, 1:-1],
            "weight read": lambda: z * self.conv.weight.norm(),
            "layer called twice": lambda: z + self.conv(x),
            "norm called twice": lambda: z + self.norm(self.other(x)),
            "seen outside": lambda: z,
        }.get(self.way, lambda: z)()
        out = self.head(z.relu().mean((2, 3)))
        return (out, y) if self.way == "seen outside" else out


APART = (
    "transposed", "activation between", "written in place", "skip", "layer called twice", "norm called twice",
    "weight tied", "weight read", "seen outside", "no scale", "no memory", "part of a norm", "part in the middle",
    "norm of the batch",
)  # fmt: skip


@pytest.mark.parametrize("way", APART)
def test_what_else_depends_on_an_output_is_in_front_of_no_norm(way):
    assert trace(Net(way), torch.randn(2, 3, 6, 6)).normed == ()


@pytest.mark.parametrize("way", ["plain", "no bias"])
def test_a_layer_and_its_norm_are_found(way):
    (found,) = trace(Net(way), torch.randn(2, 3, 6, 6)).normed
    bias = None if way == "no bias" else "conv.bias"
    assert found[:5] == ("conv.weight", bias, "norm.weight", "norm.running_mean", "norm.running_var")
    assert found.eps == 1e-5


def trained_mlp() -> nn.Sequential:
    """Linear layers behind which batch norms have seen data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4, eps=0.1))
    for _ in range(50):
        model(torch.randn(64, 6))
    return model.double().eval()


def test_filters_keep_their_length_and_the_network_its_outputs():
    model, x = trained_mlp(), torch.randn(32, 6, dtype=torch.float64)
    length, graph = model[3].weight.norm(dim=1).clone(), trace(model, x)
    expected = trained_mlp()
    factor = torch.tensor([0.0, 0.02, 0.05, 0.001, 0.3])
    with torch.no_grad(), filter_norms_kept(model, graph.normed):
        model[3].weight.mul_(factor)
    with torch.no_grad():
        expected[3].weight.mul_(factor)
    torch.testing.assert_close(model[3].weight.norm(dim=1), length)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-10, atol=1e-10)
    # What training sees is the same as well: the statistics that the norms hold are those of their inputs.
    scale = (model[3](model[:3](x)) - model[4].running_mean) / (expected[3](expected[:3](x)) - expected[4].running_mean)
    torch.testing.assert_close((model[4].running_var / expected[4].running_var).sqrt().expand_as(scale), scale)


def test_zero_filters_and_frozen_layers_stay():
    model, x = trained_mlp(), torch.randn(32, 6, dtype=torch.float64)
    model[1].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), filter_norms_kept(model, trace(model, x).normed):
        model[0].weight.mul_(0.1)
        model[3].weight[1] = 0
    torch.testing.assert_close(model[0].weight, 0.1 * state["0.weight"])
    for name in ("1.weight", "1.running_var", "3.bias", "4.weight", "4.running_mean", "4.running_var"):
        torch.testing.assert_close(model.state_dict()[name], state[name])
    assert (model[3].weight[1] == 0).all()


def test_filters_that_would_leave_the_range_of_their_type_stay_short():
    model, x = trained_mlp().half(), torch.randn(32, 6).half()
    expected = trained_mlp().half()
    factor = torch.tensor([1.0, 1.0, 0.5, 1.0]).half()
    with torch.no_grad(), filter_norms_kept(model, trace(model, x).normed):
        model[3].weight.mul_(factor[:, None])
        model[0].weight.mul_(1e-3)
    with torch.no_grad():
        expected[3].weight.mul_(factor[:, None])
        expected[0].weight.mul_(1e-3)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    torch.testing.assert_close(model(x), expected(x), rtol=2e-2, atol=2e-2)

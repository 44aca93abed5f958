"""Sparse weights on a CPU: whatever the shape, the machine and the threads, kernels compute what torch does."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import topiarist
from networks import NIGHT
from topiarist import TopiaristError, sparse
from topiarist.graph import tensors_in
from topiarist.models import zoo
from topiarist.sparse import Machine, host, without
from topiarist.sparse.code import Code, code_of
from topiarist.sparse.kernels.attend import Attend
from topiarist.sparse.kernels.conv import Convolution
from topiarist.sparse.kernels.copies import Copy
from topiarist.sparse.kernels.matvec import MatVec
from topiarist.sparse.kernels.means import Mean
from topiarist.sparse.kernels.norms import Norm
from topiarist.sparse.kernels.pools import Pool
from topiarist.sparse.kernels.walk import Walk
from topiarist.sparse.team import Team
from topiarist.sparse.tuning import Choice, Tuner

MACHINES = {"this": host(), "8 floats": without("avx512"), "4 floats": without("avx512", "avx2", "fma")}


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPIARIST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pruned(model: nn.Module, sparsity: float, seed: int = 0) -> nn.Module:
    """The network in eval mode with this part of each weight zero, and with batch norms that do something."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            weight = module.weight.data
            weight[torch.rand(weight.shape, generator=draw) < sparsity] = 0
    return model.eval()


def differs(compiled: sparse.SparseModule, model: nn.Module, *inputs: Tensor) -> float:
    """The largest difference between kernels and torch, relative to the largest output, or to 0.05; kernels did run."""
    with torch.no_grad():
        got, expected = tensors_in(compiled(*inputs)), tensors_in(model(*inputs))
    assert "kernel" in compiled.report(), compiled.report()
    gaps = []
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.is_contiguous()
        gaps.append(float((a - b).abs().max() / b.abs().max().clamp_min(0.05)) if b.numel() else 0.0)
    return max(gaps)


def check(model: nn.Module, *inputs: Tensor, threads: int = 1, machine: Machine | None = None) -> str:
    """Compiled without measuring, a network computes what it does in torch; returns what runs how."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = sparse.compile(model, inputs, threads, machine=machine, tune=False)
        assert differs(compiled, model, *inputs) <= 1e-5
    return compiled.report()


# one layer of any shape

DRAWS = 400 if NIGHT else 60


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 9)) for _ in range(2))
    kernel = [draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in range(2)]
    stride, dilation = ([draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2)] for _ in range(2))
    padding = [draw(st.integers(0, 3)) for _ in range(2)]
    least = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = [draw(st.integers(max(1, low), max(1, low) + 20)) for low in least]
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    return layer, torch.randn(draw(st.integers(1, 3)), inputs, *size)


@st.composite
def linears(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    inputs, outputs = draw(st.integers(1, 90)), draw(st.integers(1, 40))
    before = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    return nn.Linear(inputs, outputs, bias=draw(st.booleans())), torch.randn(*before, inputs)


FOLLOWED = {
    "nothing": lambda channels: nn.Identity(),
    "batch norm and ReLU": lambda channels: nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
    "ReLU6": lambda channels: nn.ReLU6(),
}


@settings(deadline=None, max_examples=DRAWS)
@given(
    convolutions(),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.sampled_from(list(FOLLOWED)),
    st.sampled_from(list(MACHINES)),
    st.integers(1, 2),
)
def test_convolutions_of_any_shape(drawn, sparsity, followed, machine, threads):
    layer, x = drawn
    note(f"{layer} {tuple(x.shape)}")
    model = nn.Sequential(layer, FOLLOWED[followed](layer.out_channels))
    check(pruned(model, sparsity), x, threads=threads, machine=MACHINES[machine])


@settings(deadline=None, max_examples=DRAWS)
@given(
    linears(), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.booleans(), st.sampled_from(list(MACHINES)), st.integers(1, 2)
)
def test_linear_layers_of_any_shape(drawn, sparsity, followed, machine, threads):
    layer, x = drawn
    note(f"{layer} {tuple(x.shape)}")
    model = nn.Sequential(layer, nn.ReLU() if followed else nn.Identity())
    check(pruned(model, sparsity), x, threads=threads, machine=MACHINES[machine])


# what is between layers


class Between(nn.Module):
    """Convolutions with everything between them that kernels take, and much that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a, self.b = nn.Conv2d(16, 24, 1, bias=False), nn.Conv2d(16, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(48, 48, 5, 2, 2, groups=48)
        self.norm = nn.BatchNorm2d(48)
        self.c, self.d = nn.Conv2d(48, 48, 3, padding=2, dilation=2), nn.Conv2d(48, 48, 1)
        self.mean, self.head = nn.AvgPool2d(2), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.cat([self.a(x).sigmoid(), self.b(x)], 1)
        y = torch.cat([self.a(x[:, :16]), self.b(x[:, 16:32])], 1)
        z = self.depthwise(y)
        z = z + torch.relu(self.norm(z))
        z = self.mean(torch.relu(self.c(z) + self.d(z)) * z.mean((2, 3), keepdim=True))
        return self.head(z.flatten(2).transpose(1, 2)).mean(1)


class Dense(nn.Module):
    """A tensor is joined with others more than once, and read after that."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 * k, 4, 3, padding=1) for k in range(1, 5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 * k) for k in range(1, 5))
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = [self.stem(x)]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            seen.append(layer(torch.relu(norm(torch.cat(seen, 1)))))
        return torch.cat(seen, 1), seen[2]


class Inverted(nn.Module):
    """Wide layers of one pixel each, read by layers with a stride alone: they are computed phase by phase."""

    def __init__(self, stride: int | tuple[int, int] = 2) -> None:
        super().__init__()
        self.wide, self.depthwise = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 3, stride, 1, groups=24)
        self.again, self.five = nn.Conv2d(24, 30, 1), nn.Conv2d(30, 8, 5, stride, 2)
        self.shortcut = nn.Conv2d(30, 8, 1, stride)
        self.narrow = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(nn.functional.relu6(self.wide(x)))
        y = torch.relu(self.again(x))
        return self.narrow(self.five(y) + self.shortcut(y)) - 1


@pytest.mark.parametrize("stride", [2, 3, (1, 2), (2, 3)])
@pytest.mark.parametrize("size", [(8, 8), (13, 22)])
@pytest.mark.by_day(3)
def test_layers_that_are_computed_phase_by_phase(stride, size):
    torch.manual_seed(0)
    check(pruned(Inverted(stride), 0.5), torch.randn(2, 3, *size), threads=2)


@pytest.mark.parametrize("kind", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 5), (1, 3)])
@pytest.mark.parametrize("stride", [(2, 2), (2, 1), (1, 2), (3, 2), (2, 3)])
@pytest.mark.by_day(6)
def test_poolings_of_any_window(kind, window, stride):
    torch.manual_seed(0)
    padding = tuple(n // 2 for n in window)
    for size, rounds_up in (((9, 37), False), ((8, 6), kind is nn.MaxPool2d), ((17, 32), kind is nn.MaxPool2d)):
        pool = kind(window, stride, padding, ceil_mode=rounds_up)
        model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(5, 6, 1))
        report = check(pruned(model, 0.4), torch.randn(3, 3, *size), threads=2)
        assert ("kernel for windows" in report) == (stride[1] < 3)
        assert "torch" not in report


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU(approximate="tanh"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.by_day(6)
def test_activations(name, machine):
    """Small and large, of one vector and of many, and what is no number."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 64).eval()
    x = torch.cat([torch.linspace(-110, 110, 40), torch.linspace(-3, 3, 40)])[:, None] * torch.tensor([1.0, 0, 0, 0])
    with torch.no_grad():
        layer.weight[:, 0], layer.bias[:] = torch.linspace(0.1, 1, 64), 0
    model = nn.Sequential(layer, ACTIVATIONS[name]).eval()
    for inputs in (x, x[36:37], x[60:61], x[78:79]):
        report = check(model, inputs, machine=MACHINES[machine])
        assert "torch" not in report
        compiled = sparse.compile(model, inputs, machine=MACHINES[machine], tune=False)
        exact = copy.deepcopy(model).double()(inputs.double()).float()
        assert torch.allclose(compiled(inputs), exact, rtol=2e-6, atol=4e-7)
    odd = inputs.clone()
    odd[0, 0] = torch.nan
    assert compiled(odd).isnan().all()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(5, 12), (2, 7, 12), (3, 2, 31, 12)])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.by_day(4)
def test_layer_norms_of_what_kernels_compute(affine, shape, machine):
    torch.manual_seed(0)
    norm = nn.LayerNorm(20, eps=1e-3, elementwise_affine=affine)
    model = nn.Sequential(nn.Linear(12, 20), norm, nn.Linear(20, 8), nn.GELU(), nn.LayerNorm(8)).eval()
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    report = check(pruned(model, 0.5), 100 + torch.randn(shape), threads=2, machine=MACHINES[machine])
    assert "torch" not in report


class Heads(nn.Module):
    """Attention as networks write it: how queries, keys and values are taken apart, and from how many layers."""

    def __init__(self, kind: str, heads: int, width: int) -> None:
        super().__init__()
        self.kind, self.heads, self.width = kind, heads, width
        inner = heads * width
        self.qkv = nn.Linear(12, 3 * inner)
        self.q, self.k, self.v = (nn.Linear(12, inner) for _ in range(3))
        self.out = nn.Linear(inner, 12)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, self.width).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        images, tokens, _ = x.shape
        scale = 0.3 if self.kind == "scaled" else None
        if self.kind in ("packed", "scaled"):
            q, k, v = self.qkv(x).reshape(images, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.kind == "interleaved":
            q, k, v = self.qkv(x).view(images, tokens, self.heads, 3 * self.width).transpose(1, 2).chunk(3, -1)
        else:
            q = self.split(self.q(x))
            k, v = (self.split(layer(memory)) for layer in (self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=self.kind == "causal")
        y = self.out(y.transpose(1, 2).reshape(images, tokens, -1))
        return (y, q.sum(), k) if self.kind == "read elsewhere" else y + x


@pytest.mark.parametrize("kind", ["packed", "scaled", "interleaved", "crossed", "causal", "read elsewhere"])
@pytest.mark.parametrize("shape", [(1, 7, 5), (3, 50, 9), (2, 1, 33)])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.by_day(12)
def test_attention(kind, shape, machine):
    torch.manual_seed(0)
    images, tokens, keys = shape
    x, memory = torch.randn(images, tokens, 12), torch.randn(images, tokens if kind == "causal" else keys, 12)
    for heads, width in ((3, 6), (2, 4), (1, 13)):
        model = Heads(kind, heads, width).eval()
        with torch.no_grad():
            model.q.weight *= 8  # far from uniform
        report = check(pruned(model, 0.4), x, memory, threads=2, machine=MACHINES[machine])
        assert ("kernel for attention" in report) == (kind not in ("causal", "read elsewhere"))


class Shortcuts(nn.Module):
    """The shortcuts of networks for small images: fewer pixels, and zeros for the channels that are missing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.stem = kind, nn.Conv2d(3, 8, 3, padding=1)
        self.narrow, self.last = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        if self.kind == "pooled":
            y = nn.functional.avg_pool2d(x, 1, 2, ceil_mode=True)
        else:
            y = x[:, :, ::2, ::2] if self.kind == "sliced" else x[:, :, 1::2, :-1:2]
        return self.last(torch.relu(self.narrow(x) + nn.functional.pad(y, (0, 0, 0, 0, 1, 3))))


@pytest.mark.parametrize("kind", ["pooled", "sliced", "sliced elsewhere"])
@pytest.mark.parametrize("size", [(8, 8), (10, 38)])
def test_shortcuts_by_zeros(kind, size):
    torch.manual_seed(0)
    report = check(pruned(Shortcuts(kind), 0.5), torch.randn(2, 3, *size), threads=2)
    assert ("torch" in report) == (kind == "sliced elsewhere")


def test_two_poolings_read_one_tensor():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 4, 1)
            self.pools = nn.ModuleList([nn.MaxPool2d(5, 2, 2), nn.MaxPool2d(2, 2)])

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(torch.cat([pool(x) for pool in self.pools], 1)) + x[:, :4, ::2, ::2]

    torch.manual_seed(0)
    check(pruned(Both(), 0.5), torch.randn(2, 3, 12, 20))


class Means(nn.Module):
    """Global means, and single pixels, in all shapes in which networks use them."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.head = head
        self.body, self.squeeze, self.excite = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.last, self.out = nn.Conv2d(24, 24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.body(x))
        x = x * self.excite(torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)))).sigmoid()
        y = torch.relu(self.last(x))
        if self.head == "mean":
            return self.out(y.mean((2, 3)))
        if self.head == "flatten":
            return self.out(torch.flatten(nn.functional.adaptive_avg_pool2d(y, (1, 1)), 1))
        if self.head == "pixel":
            return self.out(torch.max_pool2d(y, y.shape[-1]).flatten(1))
        if self.head == "both":
            means = y.mean((-1, -2), keepdim=True)
            return self.out(means.squeeze(-1).squeeze(-1)), means, y - means
        means = nn.functional.dropout(y.mean((2, 3)), 0.5, self.training)
        return self.out(means), means.softmax(1)


@pytest.mark.parametrize("head", ["mean", "flatten", "pixel", "both", "read twice"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sparsity", [0.0, 0.8])
@pytest.mark.by_day(4)
def test_means_of_planes(head, batch, sparsity):
    torch.manual_seed(0)
    report = check(pruned(Means(head), sparsity), torch.randn(batch, 3, 9, 9), threads=2)
    in_torch = {line.partition(":")[0].strip() for line in report.splitlines() if line.endswith("torch")}
    assert "mul" in in_torch
    assert batch > 1 or in_torch.isdisjoint({"adaptive_avg_pool2d", "adaptive_avg_pool2d_1", "flatten"})


@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.by_day(4)
def test_outputs_that_are_computed_together(monkeypatch, blocks, groups, machine):
    """Blocks of outputs have their nonzeros in the same places; every choice of how many together computes the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 16, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            kept = torch.rand(len(layer.weight) // blocks, *layer.weight.shape[1:]) < 0.3
            layer.weight *= kept.repeat_interleave(blocks, 0)
    x = torch.randn(2, 6, 11, 13)
    for together in (1, blocks):
        first = Choice(2, 1, 2, together=together)
        with monkeypatch.context() as patch:
            patch.setattr(Tuner, "choose", lambda *_, first=first: first)
            compiled = sparse.compile(model, x, 2, machine=MACHINES[machine], always=True)
        assert f"of {together} outputs" in compiled.report() or together == 1
        assert differs(compiled, model, x) <= 1e-5


class Odd(nn.Module):
    """One function of layers, as attacks wrote them."""

    def __init__(self, call: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


ADDED = lambda m, x: m.c(m.b(m.a(x).mean((2, 3))).relu()) + m.a(x).mean((2, 3))  # noqa: E731
ODD = {
    "an addition behind a norm": (
        lambda: Odd(lambda m, x: m.n(m.a(x)) + x, a=nn.Linear(8, 8), n=nn.LayerNorm(8)),
        (2, 5, 8),
    ),
    "an activation behind a norm": (
        lambda: Odd(lambda m, x: m.n(m.a(x)).relu(), a=nn.Linear(8, 8), n=nn.LayerNorm(8)),
        (2, 5, 8),
    ),
    "a map that an addition spreads": (
        lambda: Odd(lambda m, x: m.a(x) + x, a=nn.Conv2d(3, 1, 3, padding=1)),
        (2, 3, 6, 6),
    ),
    "a number that an addition spreads": (lambda: Odd(lambda m, x: m.a(x) + x, a=nn.Linear(3, 1)), (2, 4, 3)),
    "a mean that an addition spreads": (
        lambda: Odd(
            lambda m, x: m.a(x) + m.b(m.a(x).mean((2, 3), keepdim=True)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)
        ),
        (2, 3, 6, 6),
    ),
    "a mean that is read with a stride": (
        lambda: Odd(lambda m, x: m.b(m.a(x).mean((2, 3), True)), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1, 2, 1)),
        (2, 3, 6, 6),
    ),
    "a mean that is added": (
        lambda: Odd(ADDED, a=nn.Conv2d(3, 8, 3), b=nn.Linear(8, 9), c=nn.Linear(9, 8)),
        (3, 3, 6, 6),
    ),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("dense", ["none", "all", "the last"])
@pytest.mark.by_day(8)
def test_odd_networks(monkeypatch, name, dense):
    make, shape = ODD[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    if dense != "none":
        monkeypatch.setattr(Tuner, "choose", lambda _, layer, *__: Choice(1, dense=dense == "all" or layer.name == "c"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = [sparse.compile(model, inputs, 2, tune=False, always=True) for inputs in (x, torch.zeros_like(x))]
    for compiled in seen:
        with torch.no_grad():
            assert (compiled(x) - model(x)).abs().max() <= 1e-5


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_no_number_is_forgotten(machine):
    """A NaN in one input says nothing about the next, and stays in the channels that read it."""
    torch.manual_seed(0)
    model = Odd(
        lambda m, x: m.c(torch.cat([m.a(x).relu(), m.b(m.a(x).relu())], 1)),
        a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    x = torch.randn(1, 4, 1, 1)
    compiled = sparse.compile(model.eval(), x, machine=MACHINES[machine], tune=False, always=True)
    for number in (torch.nan, torch.inf):
        compiled(torch.where(torch.arange(4)[:, None, None] == 0, number, x))
        assert differs(compiled, model, x) <= 1e-5
    grouped = nn.Conv2d(3, 3, 1, groups=3, bias=False).eval()
    x = torch.randn(1, 3, 1, 1)
    for choice in (Choice(1, bits=True), Choice(1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tuner, "choose", lambda *_, choice=choice: choice)
            compiled = sparse.compile(grouped, x, machine=MACHINES[machine], always=True)
        for channel in range(3):
            odd = x.clone()
            odd[0, channel] = torch.nan
            assert compiled(odd).isnan().flatten().tolist() == [c == channel for c in range(3)]


def test_defaults_of_torch_do_not_matter():
    model, x = pruned(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 0.5), torch.randn(2, 3, 6, 6)
    compiled = sparse.compile(model, x, tune=False, always=True)
    expected = compiled(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(compiled(x), expected)
        assert torch.equal(sparse.compile(model, x, tune=False, always=True)(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_tap_of_a_phase_may_be_zero():
    torch.manual_seed(0)
    model = Inverted().eval()
    with torch.no_grad():
        model.depthwise.weight[:, :, 1::2, 1::2] = 0
    check(model, torch.randn(1, 3, 16, 16))


def test_inputs_in_any_layout():
    """Inputs are read where they lie, whatever their strides; no gradient is asked of the network."""
    torch.manual_seed(0)
    model = pruned(nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()), 0.5)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    compiled = sparse.compile(model, x.detach(), tune=False, always=True)
    imaginary = torch.complex(torch.randn(2, 4, 9, 9), torch.randn(2, 4, 9, 9)).conj().imag
    layouts = [x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[:, :, :1].expand(2, 4, 9, 9), imaginary]
    for each in layouts:
        assert differs(compiled, model, each) <= 1e-5
        assert not compiled(each).requires_grad


@pytest.mark.parametrize("dense", [False, True])
def test_each_layer_has_its_time_also_where_torch_computes_it(monkeypatch, dense):
    torch.manual_seed(0)
    model, x = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)), 0.5), torch.randn(1, 3, 9, 9)
    monkeypatch.setattr(Tuner, "choose", lambda *_: Choice(2, dense=dense))
    compiled = sparse.compile(model, x, always=True)
    assert ("dense in torch" in compiled.report()) == dense
    seconds = compiled.seconds(x)
    assert seconds["0"] > 0
    assert seconds["2"] > 0


@pytest.mark.parametrize("model", [Between, Dense])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_between_layers(model, sparsity, threads):
    torch.manual_seed(0)
    check(pruned(model(), sparsity), torch.randn(3, 3, 37, 30), threads=threads)


LIKE_ANOTHER = ("resnet110", "preresnet110", "preresnet164", "densenet_bc100", "vgg16", "vgg19")
"""Networks that differ from another one by their depth alone."""


@pytest.mark.parametrize("name", [name for name in zoo.names() if NIGHT or name not in LIKE_ANOTHER])
@pytest.mark.by_day(4)
def test_networks_of_the_zoo(name):
    width = {} if "width" not in inspect.signature(zoo.builder(name)).parameters or NIGHT else {"width": 0.25}
    for sparsity in (0.5, 0.8, 0.95) if NIGHT else (0.9,):
        torch.manual_seed(0)
        model = pruned(zoo.build(name, in_channels=1, input_size=28, **width), sparsity)
        check(model, torch.randn(2, 1, 28, 28), threads=1 + (sparsity == 0.5))


@pytest.mark.nightly
def test_other_batches_and_sizes_are_planned_for_when_they_come():
    model = pruned(topiarist.load_model("zoo:resnet20"), 0.9)
    compiled = sparse.compile(model, torch.randn(1, 3, 32, 32), threads=2, tune=False)
    for batch, size in ((1, 32), (3, 32), (16, 32), (2, 40), (1, 32)):
        assert differs(compiled, model, torch.randn(batch, 3, size, size)) <= 1e-5
    assert len(compiled.report().split("kernel")) > 4


class Attention(nn.Module):
    """A block of a transformer, on tokens."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.project(y)
        return {"hidden": x + self.down(nn.functional.gelu(self.up(x))), "first": x[:, 0]}


@pytest.mark.parametrize("tokens", [(1, 1), (1, 7), (3, 16)])
@pytest.mark.parametrize("sparsity", [0.5, 0.95])
def test_transformers_and_arguments_by_name(tokens, sparsity):
    torch.manual_seed(0)
    model, x = pruned(Attention(), sparsity), torch.randn(*tokens, 24)
    check(model, x, threads=2)
    mask = torch.rand(tokens[1], tokens[1]) > 0.2
    given = {"mask": mask | torch.eye(tokens[1], dtype=torch.bool), "x": x}
    compiled = sparse.compile(model, given, tune=False, always=True)
    with torch.no_grad():
        got, expected = compiled(**given), model(**given)
    assert list(got) == list(expected)
    assert max(float((got[k] - expected[k]).abs().max()) for k in expected) <= 1e-5


@pytest.mark.parametrize("inputs", [33, 70_000])
def test_weights_in_16_bits_are_the_rounded_weights(inputs):
    torch.manual_seed(0)
    model, x = pruned(nn.Linear(inputs, 7), 0.9), torch.randn(1, inputs)
    compiled = sparse.compile(model, x, tune=False, halves=True)
    rounded = copy.deepcopy(model)
    rounded.weight.data = rounded.weight.data.bfloat16().float()
    assert differs(compiled, rounded, x) <= 1e-5


def test_outputs_are_the_caller_s_own():
    model = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0.5)
    compiled = sparse.compile(model, torch.randn(1, 3, 9, 9), tune=False)
    x, y = torch.randn(2, 1, 3, 9, 9)
    first = compiled(x)
    before = first.clone()
    compiled(y)
    assert torch.equal(first, before)


def test_an_input_of_a_convolution_with_a_stride_is_read_anew_each_time():
    model = pruned(nn.Conv2d(3, 8, 3, 2, 1), 0.5)
    compiled = sparse.compile(model, torch.randn(1, 3, 9, 9), tune=False)
    for _ in range(3):
        assert differs(compiled, model, torch.randn(1, 3, 9, 9)) <= 1e-5


def test_it_copies_and_pickles_without_its_kernels():
    model, x = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0.5), torch.randn(1, 3, 9, 9)
    compiled = sparse.compile(model, x, tune=False)
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert differs(other, model, x) <= 1e-5
    assert list(compiled.state_dict()) == [f"model.{name}" for name in model.state_dict()]


# choices, and what is kept of them


def test_measured_choices_compute_the_same_and_are_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("TOPIARIST_CACHE", str(tmp_path))
    model, x = pruned(topiarist.load_model("zoo:resnet20"), 0.9), torch.randn(1, 3, 32, 32)
    compiled = sparse.compile(model, x, always=True)
    assert differs(compiled, model, x) <= 1e-5
    (file,) = (tmp_path / "kernels").glob("choices-*.json")
    kept = file.read_text()
    again = sparse.compile(model, x, always=True)
    assert file.read_text() == kept
    assert again.report() == compiled.report()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"choices": {"a": [1]}, "speeds": 3}', '{"choices": 1}'])
def test_damaged_choices_are_measured_anew(monkeypatch, tmp_path, content):
    monkeypatch.setenv("TOPIARIST_CACHE", str(tmp_path))
    model, x = pruned(nn.Conv2d(3, 8, 3), 0.5), torch.randn(1, 3, 9, 9)
    sparse.compile(model, x, always=True)
    (file,) = (tmp_path / "kernels").glob("choices-*.json")
    file.write_text(content)
    check(model, x)


def test_damaged_kernels_are_compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("TOPIARIST_CACHE", str(tmp_path))
    kernel = Convolution(host().lanes, 3)
    first = Code(host())
    first.address(kernel)
    assert first.compiled == 1
    (file,) = (tmp_path / "kernels").iterdir()
    second = Code(host())
    second.address(kernel)
    assert second.compiled == 0
    for damaged in (b"", file.read_bytes()[:-1], file.read_bytes().replace(b"conv", b"vnoc")):
        file.write_bytes(damaged)
        other = Code(host())
        other.address(kernel)
        assert other.compiled == 1


def test_machine_code_that_others_may_have_written_is_not_run(monkeypatch, tmp_path):
    monkeypatch.setenv("TOPIARIST_CACHE", str(tmp_path))
    kernel = Convolution(host().lanes, 3)
    Code(host()).address(kernel)
    (file,) = (tmp_path / "kernels").iterdir()
    for place in (file, file.parent):
        before = place.stat().st_mode
        place.chmod(before | 0o002)
        other = Code(host())
        other.address(kernel)
        assert other.compiled == 1
        (tmp_path / "kernels" / file.name).chmod(0o600)
        file.parent.chmod(0o700)


def test_one_example_without_a_batch_and_none_at_all():
    model = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0.5)
    compiled = sparse.compile(model, torch.randn(1, 3, 9, 9), tune=False)
    for x in (torch.randn(3, 9, 9), torch.randn(0, 3, 9, 9)):
        with torch.no_grad():
            assert torch.allclose(compiled(x), model(x), atol=1e-5)


def test_a_folder_that_cannot_be_written_costs_a_warning(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOPIARIST_CACHE", str(tmp_path / "file"))
    model, x = pruned(nn.Conv2d(3, 8, 3), 0.5), torch.randn(1, 3, 9, 9)
    code_of.cache_clear()
    with pytest.warns(UserWarning, match="set TOPIARIST_CACHE"):
        compiled = sparse.compile(model, x, always=True)
    assert differs(compiled, model, x) <= 1e-5
    code_of.cache_clear()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_kernels_are_valid_for_other_processors(lanes):
    arm = Machine("generic", "+neon", 4, "aarch64-unknown-linux-gnu")
    wide = Machine("skylake-avx512", "", 16, "x86_64-unknown-linux-gnu")
    other = {4: arm, 8: Machine("haswell", "", 8, "x86_64-unknown-linux-gnu"), 16: wide}[lanes]
    kernels = [
        Walk(pauses=lanes > 4),
        Copy(lanes, 1),
        Copy(lanes, 2),
        Copy(lanes, 3),
        Mean(lanes),
        Norm(lanes, 3),
        Attend(lanes, 2),
        Pool(lanes, (3, 2), (2, 2), largest=True),
        Pool(lanes, (2, 2), (3, 1), largest=False),
        MatVec(lanes),
        MatVec(lanes, wide=True),
    ]
    kernels += [Convolution(lanes, 5, 2, "relu6", True), Convolution(lanes, 3, pools=True)]
    kernels += [Convolution(lanes, 2, 1, name, True, together=4) for name in ("relu", "gelu", "gelu_tanh", "silu")]
    kernels += [MatVec(lanes, activation=name) for name in ("sigmoid", "hardswish")]
    kernels += [MatVec(lanes, bits=True)] if lanes > 4 else []
    for kernel in kernels:
        assert other.machine_code(kernel.ir())[:4] == b"\x7fELF"


# what was once wrong


def follows(model: nn.Module, *inputs: Tensor) -> None:
    """Compiled on zeros, where a comparison shows nothing, a network computes what it does in torch."""
    torch.manual_seed(0)
    compiled = sparse.compile(model.eval(), tuple(torch.zeros_like(x) for x in inputs), tune=False, always=True)
    assert differs(compiled, model, *inputs) <= 1e-5


ONE_POSITION = {
    "a stride": (lambda: nn.Conv2d(8, 8, 2, 2, bias=False), (1, 8, 2, 2)),
    "a longer stride": (lambda: nn.Conv2d(8, 8, 4, 4, bias=False), (1, 8, 4, 4)),
    "a stride in one dimension": (lambda: nn.Conv1d(8, 8, 2, 2, bias=False), (1, 8, 2)),
    "a mean": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.AvgPool2d(2)), (1, 8, 2, 2)),
    "a maximum": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.ReLU(), nn.MaxPool2d(2)), (1, 8, 2, 2)),
    "tokens, then a stride": (
        lambda: nn.Sequential(nn.Linear(50, 16, bias=False), nn.Conv1d(8, 4, 3, 3, 1, bias=False)), (1, 8, 50)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_POSITION)
def test_results_of_one_position(name):
    make, shape = ONE_POSITION[name]
    torch.manual_seed(1)
    follows(make(), torch.randn(shape))


def test_pixels_that_one_reader_lacks_are_zero_for_the_other():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Conv2d(8, 1, 3, 3, 3, dilation=2, bias=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.m(x), self.m(x[:, :, 1:])

    follows(Twice(), torch.randn(2, 8, 12, 12))


VIEWS = {
    "einsum": lambda h: torch.einsum("nchw->nhwc", h),
    "type_as": lambda h: h.type_as(h),
    "sum_to_size": lambda h: h.sum_to_size(*h.shape),
    "atleast_3d": torch.atleast_3d,
    "broadcast_tensors": lambda h: torch.broadcast_tensors(h, h)[0],
    "unsafe_chunk": lambda h: torch.unsafe_chunk(h, 2, 1)[0],
    "as_strided": lambda h: h.as_strided((2, 3), (5, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_outlives_what_it_is_of(name):
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, 1, bias=False)
            self.rest = nn.Sequential(*(nn.Conv2d(6, 6, 1, bias=False) for _ in range(5)))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.first(x)
            view = VIEWS[name](h)
            return self.rest(h), view * 2

    follows(Viewed(), torch.randn(2, 3, 5, 5))


def test_what_is_written_in_place_is_seen_behind_its_other_names():
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 6, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.c(x)
            other = nn.functional.dropout(h, 0.5, self.training)
            nn.functional.relu_(h)
            return other

    falls_back(Behind().eval(), torch.randn(2, 3, 5, 5), "writes over a tensor that dropout may be another name of")


def test_a_kernel_without_a_centre_behind_one_pixel():
    last = nn.Conv2d(8, 8, 3, 2, 1)
    last.weight.data[:, :, 1, 1] = 0
    follows(nn.Sequential(nn.Conv2d(8, 8, 1), last), torch.randn(1, 8, 8, 8))


@pytest.mark.parametrize("after", [nn.Identity(), nn.ReLU(), nn.ReLU6()])
def test_what_is_no_number_stays_so(after):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), after).eval(), torch.randn(1, 3, 6, 6)
    compiled = sparse.compile(model, x, tune=False)
    x[0, 0, 2, 2] = torch.nan
    with torch.no_grad():
        assert torch.equal(compiled(x).isnan(), model(x).isnan())


class Called(nn.Module):
    """Its arguments decide what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(6, 6)

    def forward(self, x: Any, scale: float = 1.0, *, mask: Tensor | None = None, flag: bool = False) -> Tensor:
        if isinstance(x, dict):
            return self.q(x["a"]) - self.q(x["b"])
        h = self.q(x) * scale
        h = h if mask is None else h * mask
        return h + 1 if flag else h


def test_all_arguments_count():
    torch.manual_seed(0)
    model, (x, y) = Called().eval(), torch.randn(2, 4, 6)
    compiled = sparse.compile(model, x, tune=False, always=True)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x,), {}), ((x,), {"flag": True}), ((x, 3.0), {}), ((x,), {"scale": 3.0}), ((x,), {"mask": y}), ((), {"x": y}),
        ((), {"mask": x, "x": y}), (({"a": x, "b": y},), {}), (({"b": y, "a": x},), {}),
        ((x, 2.0), {"flag": True, "mask": y}),
    ]  # fmt: skip
    for args, kwargs in calls * 2:
        with torch.no_grad():
            assert torch.allclose(compiled(*args, **kwargs), model(*args, **kwargs), atol=1e-6)


def test_weights_are_those_of_the_time_when_it_was_compiled():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(1, 3, 6, 6)
    compiled = sparse.compile(model, x, tune=False, always=True)
    before = compiled(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(compiled(x), before)


def test_plans_made_in_inference_mode_serve_outside_too():
    model, x = (
        pruned(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Sigmoid(), nn.Conv2d(4, 4, 1)), 0.5),
        torch.randn(1, 3, 9, 9),
    )
    with torch.inference_mode():
        compiled = sparse.compile(model, x, tune=False)
        compiled(x)
    assert differs(compiled, model, x) <= 1e-5


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.c(x)


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.c(x)


@pytest.mark.parametrize(
    ("model", "match"), [(Writing, "writes to its inputs or its buffers"), (Modes, "torch's modes")]
)
def test_networks_that_do_more_than_compute_run_in_torch(model, match):
    falls_back(model().eval(), torch.randn(1, 3, 6, 6), match)


def test_an_interrupt_leaves_no_thread_waiting(monkeypatch):
    """The interrupt comes where it does most harm: the helper has begun, and this thread has not."""
    model, x = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0.5), torch.randn(1, 3, 9, 9)
    compiled = sparse.compile(model, x, 2, tune=False)
    expected, start = compiled(x), Team.run

    def interrupted(team: Team, call: Any, arguments: Any, keep: Any) -> None:
        def stop(address: int, number: int) -> None:
            if number:
                return call(address, number)
            raise KeyboardInterrupt

        start(team, stop, arguments, keep)

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(Team, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                compiled(x)
        assert torch.equal(compiled(x), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_a_call_runs_too():
    model, x = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 0.5), torch.randn(1, 3, 9, 9)
    compiled = sparse.compile(model, x, 2, tune=False)
    expected = compiled(x)
    compiled._lock.acquire()  # as another thread would hold it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
            child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if torch.equal(compiled(x), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        compiled._lock.release()


# what kernels do not take


def falls_back(model: nn.Module, x: Tensor, match: str) -> None:
    """A sentence, and torch's answer."""
    with pytest.warns(UserWarning, match=match):
        compiled = sparse.compile(model, x, tune=False)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(compiled(x), expected)


def test_what_kernels_do_not_take_runs_in_torch():
    x = torch.randn(2, 3, 9, 9)
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    falls_back(layer.train(), x, "in training mode")
    falls_back(layer.double().eval(), x.double(), "float64 weights")

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    falls_back(nn.Sequential(Branching(), nn.Conv2d(3, 4, 3)).eval(), x, "torch cannot export")


def test_a_model_on_another_device_runs_there():
    model, x = nn.Conv2d(3, 4, 3).to("meta").eval(), torch.randn(1, 3, 9, 9, device="meta")
    with pytest.warns(UserWarning, match="kernels run on the CPU"):
        compiled = sparse.compile(model, x)
    assert compiled(x).device.type == "meta"


def test_without_llvmlite_a_sentence_says_what_to_install(monkeypatch):
    def missing() -> Machine:
        raise TopiaristError("llvmlite is not installed: pip install 'topiarist[sparse]'")

    monkeypatch.setattr("topiarist.sparse.module.host", missing)
    falls_back(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 9, 9), r"pip install 'topiarist\[sparse\]'")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**6])
def test_bad_numbers_of_threads(threads):
    with pytest.raises(TopiaristError, match="threads must be a whole number"):
        sparse.compile(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 9, 9), threads)

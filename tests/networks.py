"""Small networks with known groups, and the checks that every cut must pass."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import topiarist
from topiarist.budget import cost
from topiarist.graph import Graph

TOLERANCE = 1e-10
NIGHT = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
"""Laws are tried on more networks and more keeps at night: see `make nightly`."""

SOME, ONE = (0, 99), (2, 1)
KEEPS = (SOME, (1, 99), ONE) if NIGHT else (SOME, ONE)
"""(seed, most units of a group) of the keeps that every network is cut by."""


class Net(nn.Module):
    """A network in one expression: ``Net(lambda net, x: net.fc(net.conv(x).flatten(1)), conv=..., fc=...)``."""

    def __init__(self, program: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.program = program
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(self, *args, **kwargs)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights without zeros or ones in special places, running statistics as after training; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def random_keep(graph: Graph, seed: int, most: int = 10**9) -> dict[str, Tensor]:
    """Any number of each group's units, from one to all (or `most`), at random."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in graph.groups:
        count = int(torch.randint(1, min(most, group.units) + 1, (1,), generator=generator))
        keep[group.name] = torch.zeros(group.units, dtype=torch.bool)
        keep[group.name][torch.randperm(group.units, generator=generator)[:count]] = True
    return keep


def real(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Inputs with floating-point tensors in another precision."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: real(entry, dtype) for key, entry in value.items()}
    return tuple(real(entry, dtype) for entry in value)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output: nested tuples, dicts and dataclasses."""
    if isinstance(output, Tensor):
        return [output]
    if output is None:
        return []
    if isinstance(output, dict):
        output = list(output.values())
    if hasattr(output, "__dataclass_fields__"):
        output = [getattr(output, name) for name in output.__dataclass_fields__]
    return [tensor for entry in output for tensor in flat(entry)]


def distance(left: Any, right: Any) -> float:
    """Largest relative difference of two outputs; infinite where they hold NaN or other shapes."""
    a, b = flat(left), flat(right)
    if [x.shape for x in a] != [x.shape for x in b]:
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        gap = float(((x - y).abs().max() / y.abs().max().clamp_min(1e-300)).detach())
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def zeroed(model: nn.Module, graph: Graph, keep: Mapping[str, Tensor]) -> nn.Module:
    """The slices' dead positions at zero: all that a mask is where nothing normalises over channels."""
    result = copy.deepcopy(model)
    tensors = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    with torch.no_grad():
        for group in graph.groups:
            for part in group.slices:
                for unit in range(group.units):
                    if not keep[group.name][unit]:
                        for place in part.positions[unit].tolist():
                            tensors[part.tensor].select(part.axis, place).zero_()
    return result


def multiplications(model: nn.Module, inputs: Any) -> int:
    """MACs as torch counts them, over the whole batch."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call(model, inputs)
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class Case:
    """A network, its inputs and what is known of it."""

    make: Callable[[], nn.Module]
    inputs: Any
    other: Any  # of another batch size (and sequence length)
    groups: Mapping[str, int] = field(default_factory=dict)  # name → units
    norms: bool = False  # it normalises over channels, so zeroed parameters alone are not its mask
    counted: bool = True  # torch counts all of its products

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return shaken(self.make())

    @property
    def batch(self) -> int:
        return int(flat(self.inputs)[0].shape[0])


def check_keep(case: Case, model: nn.Module, graph: Graph, keep: Mapping[str, Tensor]) -> float:
    """Asserts what holds for every keep of every network; returns what the mask changed."""
    proof = topiarist.prove(model, graph, keep, case.inputs)
    assert proof.max_rel_diff <= TOLERANCE, proof.reason
    double, inputs, other = copy.deepcopy(model).double(), real(case.inputs), real(case.other)
    masked, smaller = topiarist.mask(double, graph, keep), topiarist.cut(double, graph, keep)
    assert distance(call(smaller, other), call(masked, other)) <= TOLERANCE
    reference = call(masked, inputs)
    if not case.norms:
        assert distance(reference, call(zeroed(double, graph, keep), inputs)) <= TOLERANCE
    assert list(smaller.state_dict()) == list(model.state_dict())
    closed = cost(graph, keep)
    assert closed.params == sum(p.numel() for p in smaller.parameters())
    if case.counted:
        assert abs(closed.macs - multiplications(smaller, inputs) / case.batch) <= 0.5
    return distance(reference, call(double, inputs))


def images(batch: int, channels: int = 3, size: int = 6, dims: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *[size] * dims, generator=generator)


def tokens(batch: int, length: int = 5, width: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def words(batch: int, length: int = 5, vocabulary: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def attention(net: Any, x: Tensor) -> Tensor:
    """Hand-written attention as vision transformers have it, with sizes and scale from the shape."""
    batch, length, width = x.shape
    q, k, v = net.qkv(x).reshape(batch, length, 3, net.heads, width // net.heads).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.transpose(-2, -1) * (width // net.heads) ** -0.5).softmax(-1)
    return net.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


def separate(net: Any, x: Tensor) -> list[Tensor]:
    """Queries, keys and values by three layers, as language models have it: sizes are attributes."""
    batch, length, _ = x.shape
    return [f(x).view(batch, length, net.heads, net.width).transpose(1, 2) for f in (net.q, net.k, net.v)]


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def qkv_parts(**more: Any) -> dict[str, Any]:
    return {"heads": 3, "qkv": nn.Linear(12, 36), "proj": nn.Linear(12, 12), **more}


def separate_parts(**more: Any) -> dict[str, Any]:
    layers = {name: nn.Linear(12, 12) for name in ("q", "k", "v")}
    return {**layers, "heads": 3, "width": 4, "proj": nn.Linear(12, 4), **more}


def shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's channel shuffle."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


def standardised(net: Any, x: Tensor) -> Tensor:
    """A convolution with weight standardisation, as timm computes it."""
    weight = net.c2.weight
    flat_weight = weight.reshape(1, weight.shape[0], -1)
    weight = F.batch_norm(flat_weight, None, None, training=True, eps=1e-6).reshape_as(weight)
    return net.head(F.conv2d(net.c1(x), weight, net.c2.bias, padding=1))


def gated(net: Any, x: Tensor) -> Tensor:
    """Squeeze-and-excitation."""
    x = net.conv(x)
    return net.head(x * net.up(F.relu(net.down(x.mean((2, 3), keepdim=True)))).sigmoid())


def dense(net: Any, x: Tensor) -> Tensor:
    """A dense block: every layer reads all before it."""
    x = net.stem(x)
    for layer in (net.first, net.second):
        x = torch.cat([x, layer(F.relu(x))], 1)
    return net.fc(x.mean((2, 3)))


def residual(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.bn0(net.stem(x)))
    return net.fc((x + net.bn2(net.conv2(F.relu(net.bn1(net.conv1(x)))))).relu().mean((2, 3)))


def chain(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    first, second = (conv(3, 8), norm(8), nn.ReLU()), (conv(8, 6), norm(6), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def line(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(layers))


def net(program: Callable[..., Any], parts: Callable[[], dict[str, Any]]) -> Callable[[], nn.Module]:
    return lambda: Net(program, **parts())


def pictures(make: Callable[[], nn.Module], *, dims: int = 2, **known: Any) -> Case:
    return Case(make, images(2, dims=dims), images(3, dims=dims), known.pop("groups"), **known)


def sentences(make: Callable[[], nn.Module], **known: Any) -> Case:
    return Case(make, tokens(2), tokens(3, 7), known.pop("groups"), **known)


def halves(net: Any, x: Tensor) -> Tensor:
    value, gate = net.conv(x).chunk(2, 1)
    return net.head(value * gate.sigmoid())


def parts(net: Any, x: Tensor) -> Tensor:
    a, b = net.conv(x).split([net.first, net.second], 1)
    return net.left(a.relu()) + net.right(b)


def tied(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.hidden(net.words(x)).relu(), net.words.weight)


def sdpa(scale: float | None) -> Callable[..., Tensor]:
    return lambda net, x: net.proj(joined(F.scaled_dot_product_attention(*separate(net, x), scale=scale)))


def einsums(net: Any, x: Tensor) -> Tensor:
    q, k, v = separate(net, x)
    weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(0.3).softmax(-1)
    return net.proj(torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2))


def literal(net: Any, x: Tensor) -> Tensor:
    """Sizes as plain constants, which only a correction in the code can put right."""
    batch, length, _ = x.shape
    q, k, v = (part.view(batch, length, 3, 4).transpose(1, 2) for part in net.qkv(x).chunk(3, -1))
    weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
    return net.proj((weights @ v).transpose(1, 2).reshape(batch, length, 12))


def products(net: Any, x: Tensor) -> Tensor:
    """Heads folded into the batch, products by bmm."""
    batch, length, _ = x.shape
    q, k, v = (part.reshape(batch * net.heads, length, net.width) for part in separate(net, x))
    out = torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(net.width**-0.5).softmax(-1), v)
    return net.proj(out.view(batch, net.heads, length, -1).transpose(1, 2).reshape(batch, length, -1))


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` between two linear layers."""

    def __init__(self, weights: bool, **options: Any) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.attention, self.weights = nn.MultiheadAttention(12, 3, **options), weights

    def forward(self, x: Tensor, **masks: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x, need_weights=self.weights, **masks)[0])


MHA = {"embed": 12, "attention.out_proj": 12}
INNER = "attention.in_proj_weight"
APART = {**MHA, f"{INNER}:rows": 3, f"{INNER}:columns": 4, f"{INNER}:columns2": 4}  # heads, widths of q and k, of v
ENCODER = {"0": 12, "1.linear1": 20}
ENCODER |= {f"1.self_attn.in_proj_weight:{part}": n for part, n in (("rows", 3), ("columns", 4), ("columns2", 4))}
HEADS = {"q:columns": 4, "q:rows": 3, "v": 4}
QKV = {"qkv:rows": 3, "qkv:columns": 4}
CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])

CASES: dict[str, Case] = {
    "chain": pictures(chain, groups={"0": 8, "3": 6}),
    "residual": pictures(
        net(residual, lambda: {
            "stem": conv(3, 8), "bn0": nn.BatchNorm2d(8), "conv1": conv(8, 6, bias=False), "bn1": nn.BatchNorm2d(6),
            "conv2": conv(6, 8), "bn2": nn.BatchNorm2d(8), "fc": nn.Linear(8, 4)}),
        groups={"stem": 8, "conv1": 6}),
    "dense": pictures(
        net(dense, lambda: {"stem": conv(3, 4), "first": conv(4, 5), "second": conv(9, 3), "fc": nn.Linear(12, 4)}),
        groups={"stem": 4, "first": 5, "second": 3}),
    "chunk": pictures(net(halves, lambda: {"conv": conv(3, 8), "head": conv(4, 4)}), groups={"conv": 4}),
    "split": pictures(
        net(parts, lambda: {"conv": conv(3, 9), "first": 4, "second": 5, "left": conv(4, 4), "right": conv(5, 4)}),
        groups={"conv:rows": 4, "conv:rows2": 5}),
    "grouped": pictures(
        line(conv(3, 12), conv(12, 18, groups=3), conv(18, 4)), groups={"0:rows": 3, "0:columns": 4, "1": 6}),
    "depthwise": pictures(line(conv(3, 9), nn.ReLU6(), conv(9, 9, groups=9), conv(9, 4)), groups={"0": 9}),
    "depthwise multiplied": pictures(line(conv(3, 5), conv(5, 15, groups=5), conv(15, 4)), groups={"0": 5, "1": 3}),
    "1d": pictures(
        line(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3, groups=2), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)), dims=1,
        groups={"0:rows": 2, "0:columns": 4, "1": 4}),
    "3d": pictures(
        line(nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6), nn.Conv3d(6, 12, 3, groups=6), nn.ReLU(),
             nn.ConvTranspose3d(12, 5, 1, bias=False), nn.Conv3d(5, 4, 1)), dims=3, groups={"0": 6, "2": 2, "4": 5}),
    "transposed": pictures(
        line(conv(3, 7), nn.ConvTranspose2d(7, 5, 2, 2), nn.ReLU(), conv(5, 4)), groups={"0": 7, "1": 5}),
    "grouped transposed": pictures(
        line(conv(3, 12), nn.ConvTranspose2d(12, 6, 2, 2, groups=3), conv(6, 4)),
        groups={"0:rows": 3, "0:columns": 4, "1": 2}),
    "grouped transposed 1d": pictures(
        line(nn.Conv1d(3, 6, 3), nn.ConvTranspose1d(6, 12, 2, groups=6), nn.Conv1d(12, 4, 1)), dims=1,
        groups={"0": 6, "1": 2}),
    "channel shuffle": pictures(
        net(lambda n, x: n.d(n.c(shuffle(n.b(n.a(x)), 2))), lambda: {
            "a": conv(3, 12), "b": conv(12, 12, groups=2), "c": conv(12, 12, groups=2), "d": conv(12, 4)}),
        groups={"a:rows": 2, "a:columns": 6, "b:rows": 2, "b:columns": 3, "c": 6}),
    "flatten": pictures(line(conv(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)), groups={"0": 5}),
    "squeeze and excitation": pictures(
        net(gated, lambda: {"conv": conv(3, 12), "down": conv(12, 3, 1), "up": conv(3, 12, 1), "head": conv(12, 4)}),
        groups={"conv": 12, "down": 3}),
    "weight standardisation": pictures(
        net(standardised, lambda: {"c1": conv(3, 8), "c2": conv(8, 6), "head": conv(6, 4)}),
        groups={"c1": 8, "c2": 6}, norms=True),
    "prelu": pictures(line(conv(3, 5), nn.PReLU(5), conv(5, 4)), groups={"0": 5}),
    "pixel shuffle": pictures(line(conv(3, 12), nn.PixelShuffle(2), conv(3, 4)), groups={"0": 3}),
    "pooling and upsampling": pictures(
        line(conv(3, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Upsample(scale_factor=2), conv(7, 5), nn.AvgPool2d(2),
             nn.Dropout(0.3), nn.Upsample(scale_factor=2, mode="bilinear"), conv(5, 4)), groups={"0": 7, "4": 5}),
    "layer norm": sentences(
        line(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)), groups={"0": 8}, norms=True),
    "rms norm": sentences(
        line(nn.Linear(12, 8), nn.RMSNorm(8), nn.GELU(), nn.Linear(8, 4)), groups={"0": 8}, norms=True),
    "group norm": pictures(lambda: chain(lambda n: nn.GroupNorm(2, n)), norms=True,
        groups={"0:rows": 2, "0:columns": 4, "3:rows": 2, "3:columns": 3}),
    "one group norm": pictures(lambda: chain(lambda n: nn.GroupNorm(1, n)), norms=True, groups={"0": 8, "3": 6}),
    "instance norm": pictures(lambda: chain(lambda n: nn.InstanceNorm2d(n, affine=True)), groups={"0": 8, "3": 6}),
    "embedding": Case(
        line(nn.Embedding(11, 12), nn.ReLU(), nn.Linear(12, 4)), words(2), words(3, 7), {"0": 12}),
    "tied weights": Case(
        net(tied, lambda: {"words": nn.Embedding(11, 12), "hidden": nn.Linear(12, 12)}), words(2), words(3, 7),
        {"words": 12}),
    "attention": sentences(net(attention, qkv_parts), groups=QKV),
    "literal attention": sentences(net(literal, qkv_parts), groups=QKV),
    "sdpa": sentences(net(sdpa(None), separate_parts), groups=HEADS),
    "scaled sdpa": sentences(net(sdpa(0.3), separate_parts), groups=HEADS),
    "einsum": sentences(net(einsums, separate_parts), groups=HEADS, counted=False),
    "bmm": sentences(net(products, separate_parts), groups=HEADS),
    "multi-head": sentences(lambda: MultiHead(False, batch_first=True), groups=APART),
    "multi-head, sequence first": sentences(lambda: MultiHead(False), groups=APART),
    "multi-head, weights": sentences(lambda: MultiHead(True, batch_first=True), groups=APART),
    "multi-head, causal": Case(
        lambda: MultiHead(False, batch_first=True), {"x": tokens(2), "attn_mask": CAUSAL},
        {"x": tokens(3), "attn_mask": CAUSAL}, APART),
    "multi-head, padded": Case(
        lambda: MultiHead(True, batch_first=True), {"x": tokens(2), "key_padding_mask": PADDING},
        {"x": tokens(2, seed=1), "key_padding_mask": PADDING.flip(0)}, APART),
    "encoder layer": sentences(
        line(nn.Linear(12, 12), nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), nn.Linear(12, 4)),
        groups=ENCODER, norms=True),
    "encoder layer, norm first": sentences(
        line(nn.Linear(12, 12), nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True),
             nn.Linear(12, 4)), groups=ENCODER, norms=True),
}  # fmt: skip

"""The steps that random networks are made of: each takes and gives a feature map (batch, channels, size, size)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from networks import shuffle

ACTIVATIONS = {"relu": F.relu, "sigmoid": torch.sigmoid, "gelu": F.gelu, "tanh": torch.tanh, "none": lambda x: x}


class Step(nn.Module):
    """One step of a plan; subclasses are found by their names."""

    norms = False

    def __init__(self, channels: int, size: int, *numbers: Any) -> None:
        super().__init__()
        self.out, self.size = channels, size
        self.build(channels, *numbers)

    def build(self, c: int, *numbers: Any) -> None: ...

    @staticmethod
    def draw(draw: Any, c: int, size: int) -> tuple[Any, ...] | None:
        """Numbers for `build`, or None where the step does not fit."""
        return ()


def divisor(draw: Any, *numbers: int, least: int = 1) -> int:
    """A common divisor."""
    return int(draw(st.sampled_from([d for d in range(least, min(numbers) + 1) if all(n % d == 0 for n in numbers)])))


def width(draw: Any, most: int = 12) -> int:
    return int(draw(st.sampled_from([n for n in (4, 6, 8, 9, 12) if n <= most])))


class Conv(Step):
    def build(self, c, out, size, groups, norm, activation, transposed):
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = kind(c, out, size, padding=size // 2, groups=groups, bias=norm != "batch")
        self.norm = {"batch": nn.BatchNorm2d, "instance": lambda n: nn.InstanceNorm2d(n, affine=True)}.get(
            norm, lambda _: nn.Identity()
        )(out)
        self.activation, self.out = activation, out

    def forward(self, x):
        return ACTIVATIONS[self.activation](self.norm(self.conv(x)))

    @staticmethod
    def draw(draw, c, size):
        out = width(draw)
        norm = draw(st.sampled_from(["none", "batch", "instance"] if size > 1 else ["none", "batch"]))
        activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
        kernel = draw(st.sampled_from([1, 3]))
        return out, kernel, divisor(draw, c, out), norm, activation, draw(st.booleans())


class Depthwise(Step):
    def build(self, c, multiplier):
        self.conv, self.out = nn.Conv2d(c, c * multiplier, 3, padding=1, groups=c), c * multiplier

    def forward(self, x):
        return self.conv(x)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.integers(1, 2)),) if c <= 9 else (1,)


class Residual(Step):
    def build(self, c, inner, shortcut):
        self.first, self.second = nn.Conv2d(c, inner, 3, padding=1), nn.Conv2d(inner, c, 1)
        self.shortcut = nn.Conv2d(c, c, 1) if shortcut else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.second(self.first(x).relu())

    @staticmethod
    def draw(draw, c, size):
        return width(draw), draw(st.booleans())


class Concat(Step):
    def build(self, c, growth, order):
        self.conv, self.order, self.out = nn.Conv2d(c, growth, 3, padding=1), order, c + growth

    def forward(self, x):
        return torch.cat([x, self.conv(x)][:: self.order], 1)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.integers(2, 5)), draw(st.sampled_from([1, -1]))) if c <= 9 else None


class Branches(Step):
    """Splits, works on the parts, and joins them in another order."""

    def build(self, c, sizes, turned):
        self.sizes, self.turned = sizes, turned
        self.convs = nn.ModuleList(nn.Conv2d(n, n, 1) for n in sizes)

    def forward(self, x):
        found = [f(part) for f, part in zip(self.convs, x.split(self.sizes, 1), strict=True)]
        return torch.cat(found[::-1] if self.turned else found, 1)

    @staticmethod
    def draw(draw, c, size):
        if c < 3:
            return None
        first = draw(st.integers(1, c - 2))
        second = draw(st.integers(1, c - first - 1))
        return (first, second, c - first - second), draw(st.booleans())


class Chunk(Step):
    def build(self, c, operation):
        self.operation, self.out = operation, c if operation == "swap" else c // 2

    def forward(self, x):
        a, b = x.chunk(2, 1)
        if self.operation == "swap":
            return torch.cat([b, a.sigmoid()], 1)
        return a * b.sigmoid() if self.operation == "gate" else torch.maximum(a, b)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.sampled_from(["gate", "max", "swap"])),) if c % 2 == 0 and c >= 8 else None


class Slices(Step):
    """A part of the channels is worked on, the rest passes by."""

    def build(self, c, border):
        self.border, self.conv = border, nn.Conv2d(border, border, 1)

    def forward(self, x):
        return torch.cat([self.conv(x[:, : self.border]), x[:, self.border :]], 1)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.integers(1, c - 1)),) if c > 1 else None


class Gate(Step):
    def build(self, c, kind):
        self.kind, self.conv = kind, nn.Conv2d(c, c, 1)

    def forward(self, x):
        if self.kind == "tanh":
            return x * self.conv(x).tanh()
        return x + x * self.conv(x).sigmoid() if self.kind == "skip" else x * self.conv(x).sigmoid()

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.sampled_from(["tanh", "skip", "sigmoid"])),)


class Excitation(Step):
    def build(self, c, inner):
        self.down, self.up = nn.Linear(c, inner), nn.Linear(inner, c)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.integers(2, 5)),)


class Context(Step):
    """A global average is added everywhere."""

    def build(self, c):
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        return x + F.adaptive_avg_pool2d(self.conv(x), 1).expand_as(x)


class Resize(Step):
    def build(self, c, kind):
        self.kind = kind
        self.size = self.size * 2 if kind == "up" else self.size // 2

    def forward(self, x):
        if self.kind == "up":
            return F.interpolate(x, scale_factor=2.0)
        return F.max_pool2d(x, 2) if self.kind == "max" else F.avg_pool2d(x, 2)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.sampled_from([*(["max", "avg"] if size > 1 else []), *(["up"] if size < 4 else [])])),)


class Shuffle(Step):
    def build(self, c, groups, module):
        self.groups, self.module = groups, nn.ChannelShuffle(groups) if module else None

    def forward(self, x):
        return shuffle(x, self.groups) if self.module is None else self.module(x)

    @staticmethod
    def draw(draw, c, size):
        return divisor(draw, c), draw(st.booleans())


class Pixels(Step):
    """Pixel unshuffle, a convolution, pixel shuffle."""

    def build(self, c, inner):
        self.conv, self.out = nn.Conv2d(4 * c, 4 * inner, 1), inner

    def forward(self, x):
        return F.pixel_shuffle(self.conv(F.pixel_unshuffle(x, 2)), 2)

    @staticmethod
    def draw(draw, c, size):
        return (width(draw, 8),) if size % 2 == 0 else None


class Maxout(Step):
    def build(self, c, pieces):
        self.pieces, self.out = pieces, c // pieces

    def forward(self, x):
        return x.unflatten(1, (self.out, self.pieces)).amax(2)

    @staticmethod
    def draw(draw, c, size):
        return (divisor(draw, c, least=2),) if c >= 8 and c % 2 == 0 else None


class Twice(Step):
    """One convolution used twice."""

    def build(self, c):
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        return self.conv(self.conv(x).relu())


class Flip(Step):
    def forward(self, x):
        return x.flip(1)


class Stride(Step):
    """Every second channel, as rotary embeddings and interleavers take them."""

    def build(self, c, both):
        self.both, self.out = both, c if both else (c + 1) // 2

    def forward(self, x):
        return torch.cat([x[:, ::2], x[:, 1::2].sigmoid()], 1) if self.both else x[:, ::2]

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.booleans()),) if c >= 4 else None


class Widen(Step):
    """Channels are repeated, or padded with zeros."""

    def build(self, c, how, places):
        self.how, self.places = how, places
        self.out = c + places if how in ("pad", "shift") else 2 * c

    def forward(self, x):
        if self.how == "pad":
            return F.pad(x, (0, 0, 0, 0, 0, self.places))
        if self.how == "shift":
            return torch.cat([x.new_zeros(x.shape[0], self.places, *x.shape[2:]), x], 1)
        return x.repeat_interleave(2, 1) if self.how == "each" else x.repeat(1, 2, 1, 1)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.sampled_from(["pad", "shift", "each", "all"])), draw(st.integers(1, 3))) if c <= 6 else None


class Channelwise(Step):
    """Parameters of one number a channel, in shapes that broadcast."""

    def build(self, c, shape):
        self.shape = shape
        self.bias = nn.Parameter(torch.ones({"vector": (c,), "map": (1, c, self.size, self.size), "one": (1,)}[shape]))

    def forward(self, x):
        if self.shape == "vector":
            return x * self.bias.view(1, -1, 1, 1)
        return x + self.bias if self.shape == "map" else x * self.bias.expand(x.shape[1]).view(1, -1, 1, 1)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.sampled_from(["vector", "map", "one"])),)


class Summed(Step):
    """The sum over the channels gates every place; no other reduction lets them go."""

    def build(self, c, sigmoid):
        self.conv, self.sigmoid = nn.Conv2d(c, c, 1), sigmoid

    def forward(self, x):
        y = self.conv(x)
        return x * (y.sigmoid() if self.sigmoid else y).sum(1, keepdim=True).tanh()

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.booleans()),)


class Folded(Step):
    """Channels are folded into the batch, as depthwise operations on single maps."""

    def build(self, c, literal):
        self.conv, self.literal, self.channels = nn.Conv2d(1, 1, 3, padding=1), literal, c

    def forward(self, x):
        b, c, h, w = x.shape
        y = x.reshape(b * self.channels if self.literal else b * c, 1, h, w)
        return self.conv(y).view(b, -1, h, w)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.booleans()),)


class Composed(Step):
    """A convolution whose weight is computed: a product of factors, scaled."""

    def build(self, c, out, rank):
        self.left, self.right = nn.Parameter(torch.ones(out, rank)), nn.Parameter(torch.ones(rank, c))
        self.gain, self.out = nn.Parameter(torch.ones(out)), out

    def forward(self, x):
        weight = (self.left @ self.right) * self.gain[:, None]
        return F.conv2d(x, weight[:, :, None, None])

    @staticmethod
    def draw(draw, c, size):
        return width(draw), draw(st.integers(2, 4))


class Recall(Step):
    """Adds or joins what an earlier step gave, through a projection where the shapes differ."""

    def build(self, c, index, channels, size, join):
        self.index, self.join = index, join
        self.project = nn.Identity() if join or channels == c else nn.Conv2d(channels, c, 1)
        self.out = c + channels if join else c

    def forward(self, x, earlier):
        y = F.adaptive_avg_pool2d(self.project(earlier), self.size) if earlier.shape[-1] != self.size else earlier
        y = y if self.join or earlier.shape[-1] != self.size else self.project(y)
        return torch.cat([y, x], 1) if self.join else x + y

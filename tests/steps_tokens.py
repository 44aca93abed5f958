"""Steps of random networks that see places as tokens, or normalise over channels (see `steps.py`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from steps import Step, divisor, width


class GroupNorm(Step):
    norms = True

    def build(self, c, groups):
        self.norm = nn.GroupNorm(groups, c)

    def forward(self, x):
        return self.norm(x)

    @staticmethod
    def draw(draw, c, size):
        return (divisor(draw, c),)


class ChannelsLast(Step):
    """ConvNeXt's block: permute, layer norm, two linear layers, layer scale, permute back."""

    norms = True

    def build(self, c, inner, literal):
        self.norm, self.up, self.down = nn.LayerNorm(c), nn.Linear(c, inner), nn.Linear(inner, c)
        self.gamma = nn.Parameter(torch.ones(c))
        self.literal = literal

    def forward(self, x):
        y = x.permute(0, 2, 3, 1)
        y = F.layer_norm(y, y.shape[-1:], self.norm.weight, self.norm.bias) if self.literal else self.norm(y)
        return x + (self.down(F.gelu(self.up(y))) * self.gamma).permute(0, 3, 1, 2)

    @staticmethod
    def draw(draw, c, size):
        return width(draw), draw(st.booleans())


class Attention(Step):
    """Attention over the places of the map, in the styles that people write."""

    def build(self, c, heads, style):
        self.heads, self.width, self.style, self.channels = heads, c // heads, style, c
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x):
        b, c, h, w = x.shape
        t = x.flatten(2).transpose(1, 2)
        if self.style == "shape":
            qkv = self.qkv(t).reshape(b, h * w, 3, self.heads, c // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (p.view(b, h * w, self.heads, self.width).transpose(1, 2) for p in self.qkv(t).chunk(3, -1))
        if self.style == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.width**-0.5).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, h * w, -1)).transpose(1, 2).reshape(b, -1, h, w)

    @staticmethod
    def draw(draw, c, size):
        return divisor(draw, c), draw(st.sampled_from(["shape", "attribute", "fused"]))


class LinearAttention(Step):
    """Products of activations without softmax: (q kᵀ) v over the channels."""

    def build(self, c, inner):
        self.q, self.k, self.v = nn.Conv2d(c, inner, 1), nn.Conv2d(c, inner, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        return (v @ (k.sigmoid().transpose(1, 2) @ q) / 7).reshape(x.shape)

    @staticmethod
    def draw(draw, c, size):
        return (width(draw, 8),)


class Mixer(Step):
    """Linear layers over places and over channels."""

    def build(self, c, norm):
        self.places, self.channels = nn.Linear(self.size**2, self.size**2), nn.Linear(c, c)
        self.norm = nn.LayerNorm([c, self.size, self.size]) if norm else nn.Identity()
        self.norms = norm

    def forward(self, x):
        y = self.places(self.norm(x).flatten(2)).transpose(1, 2)
        return x + self.channels(F.silu(y)).transpose(1, 2).reshape(x.shape)

    @staticmethod
    def draw(draw, c, size):
        return (draw(st.booleans()),)


class Bottleneck(Step):
    """Flatten, a linear layer, and back to a map."""

    def build(self, c, inner, out):
        self.down = nn.Linear(c * self.size**2, inner)
        self.up, self.out = nn.Linear(inner, out * self.size**2), out

    def forward(self, x):
        y = self.up(self.down(x.flatten(1)).relu())
        return y.view(x.shape[0], self.out, *x.shape[2:])

    @staticmethod
    def draw(draw, c, size):
        return (width(draw, 6), width(draw, 6)) if size <= 2 else None


class Heads(Step):
    """Heads with norms of queries and keys, a learned bias and scale for each, and fewer of keys and values."""

    norms = True

    def build(self, c, heads, shared, talking):
        self.heads, self.shared, self.width = heads, shared, c // heads
        keys = heads // shared
        self.q, self.k, self.v = nn.Linear(c, c), nn.Linear(c, keys * self.width), nn.Linear(c, keys * self.width)
        self.norm, self.proj = nn.LayerNorm(self.width), nn.Linear(c, c)
        self.bias = nn.Parameter(torch.ones(heads, self.size**2, self.size**2))
        self.talk = nn.Linear(heads, heads) if talking else None

    def forward(self, x):
        t = x.flatten(2).transpose(1, 2)
        q = self.norm(self.q(t).unflatten(-1, (self.heads, self.width)))
        k = self.norm(self.k(t).unflatten(-1, (self.heads // self.shared, self.width)))
        v = self.v(t).unflatten(-1, (self.heads // self.shared, self.width))
        k, v = (y.repeat_interleave(self.shared, 2) for y in (k, v))
        logits = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + self.bias
        if self.talk is not None:
            logits = self.talk(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = (logits.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)
        return x + self.proj(y.flatten(2)).transpose(1, 2).reshape(x.shape)

    @staticmethod
    def draw(draw, c, size):
        heads = divisor(draw, c)
        return heads, divisor(draw, heads), draw(st.booleans())


class Windows(Step):
    """Attention within windows of two by two, partitioned as Swin does."""

    def build(self, c, heads):
        self.heads, self.qkv, self.proj = heads, nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x):
        b, c, h, w = x.shape
        t = x.permute(0, 2, 3, 1).view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(t).reshape(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        t = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, c))
        t = t.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + t.permute(0, 3, 1, 2)

    @staticmethod
    def draw(draw, c, size):
        return (divisor(draw, c),) if size > 1 else None

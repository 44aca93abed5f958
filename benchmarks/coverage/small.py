"""Networks of one idea each, that the libraries of models do not hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, a head on every step."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.layer = kind(16, 24, batch_first=True, **options)
        self.head = nn.Linear((options.get("proj_size") or 24) * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(torch.tanh(self.embed(x)))[0])


class Translator(nn.Module):
    """A recurrent encoder, a recurrent decoder that attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.encoder = nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(48, 32)
        self.decoder = nn.GRU(16, 32, batch_first=True)
        self.keys, self.head = nn.Linear(48, 32), nn.Linear(80, 50)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.words(source))
        start = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1)))
        states, _ = self.decoder(self.words(target), start[None])
        weights = (states @ self.keys(memory).mT).softmax(-1)
        return self.head(torch.cat([states, weights @ memory], -1))


class Cells(nn.Module):
    """Cells of torch, called step by step."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(8, 16), kind(16, 24), kind(24, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = None, None
        for step in range(x.shape[1]):
            first = self.first(self.embed(x[:, step]), first)
            second = self.second(first[0] if isinstance(first, tuple) else first, second)
        return self.head(second[0] if isinstance(second, tuple) else second)


class HandWritten(nn.Module):
    """An LSTM cell by hand, its gates chunks of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head, self.width = nn.Linear(8 + 24, 4 * 24), nn.Linear(24, 5), 24

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.width)
        for step in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, step], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class MinimalGated(nn.Module):
    """A minimal gated unit, with separate layers."""

    def __init__(self) -> None:
        super().__init__()
        self.forget, self.new, self.head = nn.Linear(8 + 24, 24), nn.Linear(8 + 24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.forget.out_features)
        for step in range(x.shape[1]):
            f = torch.sigmoid(self.forget(torch.cat([x[:, step], h], 1)))
            h = (1 - f) * h + f * torch.tanh(self.new(torch.cat([x[:, step], f * h], 1)))
        return self.head(h)


class Splines(nn.Module):
    """A Kolmogorov-Arnold layer: each edge a weighted sum of radial bases."""

    def __init__(self, inputs: int, outputs: int, bases: int = 6) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2, 2, bases))
        self.coefficients = nn.Parameter(0.3 * torch.randn(outputs, inputs, bases))
        self.base = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-((x[..., None] - self.centres) ** 2))
        return self.base(F.silu(x)) + torch.einsum("bik,oik->bo", bumps, self.coefficients)


class Graphs(nn.Module):
    """Message passing with index_add."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 24), nn.Linear(24, 5)
        self.messages = nn.ModuleList(nn.Linear(48, 24) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.embed(x)
        for message in self.messages:
            sent = F.relu(message(torch.cat([h[:, edges[0, 0]], h[:, edges[0, 1]]], -1)))
            h = h + torch.zeros_like(h).index_add(1, edges[0, 1], sent)
        return self.head(h.mean(1))


class Scattered(nn.Module):
    """Attention over the edges of a graph with scatter_add."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.score, self.head = nn.Linear(8, 24), nn.Linear(48, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.values(x)
        source, target = edges[0]
        weight = torch.exp(torch.tanh(self.score(torch.cat([h[:, source], h[:, target]], -1))))
        index = target[None, :, None].expand_as(weight)
        total = torch.zeros_like(h[..., :1]).scatter_add(1, index, weight)
        sent = h[:, source] * weight / total[:, target]
        gathered = torch.zeros_like(h).scatter_add(1, target[None, :, None].expand_as(sent), sent)
        return self.head(F.elu(gathered + h))


class Experts(nn.Module):
    """A mixture of experts: tokens are taken out by index, computed, and added back."""

    def __init__(self, width: int = 16, hidden: int = 32, count: int = 4) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(8, width), nn.Linear(width, count), nn.Linear(width, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        tokens = h.flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(-1).topk(2, -1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            out.index_add_(0, rows, weights[rows, place, None] * expert(tokens[rows]))
        return self.head(h + out.view_as(h))


class Deformable(nn.Module):
    """A deformable convolution between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.stem, self.offset = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 18, 3, padding=1)
        self.deformed, self.head = DeformConv2d(16, 24, 3, padding=1), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.deformed(x, self.offset(x)))).mean((2, 3))


class Correlated(nn.Module):
    """Two images through one encoder, their correlation looked up as RAFT does, a recurrent update."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1)
        )
        self.context, self.motion = nn.Conv2d(3, 24, 7, 4, 3), nn.Conv2d(9 + 2, 16, 3, padding=1)
        self.gate, self.new = nn.Conv2d(40, 24, 3, padding=1), nn.Conv2d(40, 24, 3, padding=1)
        self.flow = nn.Conv2d(24, 2, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = self.encoder(first), self.encoder(second)
        n, c, h, w = a.shape
        volume = torch.einsum("nchw,ncij->nhwij", a, b).reshape(n * h * w, 1, h, w) / c**0.5
        grid = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1).to(a)
        window = torch.stack(torch.meshgrid(*[torch.arange(-1, 2)] * 2, indexing="xy"), -1).to(a)
        state, flow = torch.tanh(self.context(first)), a.new_zeros(n, 2, h, w)
        for _ in range(2):
            at = (grid + flow.permute(0, 2, 3, 1)).reshape(-1, 1, 1, 2) + window
            at = 2 * at / torch.tensor([w - 1, h - 1]).to(a) - 1
            found = F.grid_sample(volume, at, align_corners=True).view(n, h, w, 9).permute(0, 3, 1, 2)
            x = torch.cat([state, F.relu(self.motion(torch.cat([found, flow], 1)))], 1)
            gate = torch.sigmoid(self.gate(x))
            state = (1 - gate) * state + gate * torch.tanh(self.new(x))
            flow = flow + self.flow(state)
        return flow


class Words(nn.Module):
    """Bags of words."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 24, mode="sum")
        self.head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.bag(words))


class Spectrum(nn.Module):
    """Mixes positions by a Fourier transform, channels by a perceptron."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(8, width), nn.LayerNorm(width)
        self.filter = nn.Parameter(torch.randn(1, 1, width))
        self.mlp = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + torch.fft.irfft(torch.fft.rfft(self.norm(x), dim=1) * self.filter, n=x.shape[1], dim=1)
        return self.head((x + self.mlp(x)).mean(1))


class Bottle(nn.Module):
    """A bottleneck whose halves pass on by a chosen number of inner steps, as in YOLO's C2f."""

    def __init__(self, inputs: int, outputs: int, steps: int) -> None:
        super().__init__()
        self.first, self.width = block(inputs, outputs, 1), outputs // 2
        self.inner = nn.ModuleList(
            nn.Sequential(block(self.width, self.width), block(self.width, self.width)) for _ in range(steps)
        )
        self.last = block((2 + steps) * self.width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).split((self.width, self.width), 1))
        for step in self.inner:
            parts.append(parts[-1] + step(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """Pooling at several sizes, as in YOLO's SPPF."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = block(width, width // 2, 1), block(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """A small detector of YOLO's kind: C2f, SPPF, a path back up, two heads with a distribution over distances."""

    def __init__(self, classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.early = nn.Sequential(block(3, 16, 3, 2), block(16, 32, 3, 2), Bottle(32, 32, 1))
        self.late = nn.Sequential(block(32, 64, 3, 2), Bottle(64, 64, 2), Pyramid(64))
        self.up = Bottle(96, 32, 1)
        self.boxes = nn.ModuleList(nn.Sequential(block(c, 16), nn.Conv2d(16, 4 * bins, 1)) for c in (32, 64))
        self.scores = nn.ModuleList(nn.Sequential(block(c, 16), nn.Conv2d(16, classes, 1)) for c in (32, 64))

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(x)
        late = self.late(early)
        up = self.up(torch.cat([F.interpolate(late, scale_factor=2.0), early], 1))
        found = []
        for level, boxes, scores in zip((up, late), self.boxes, self.scores, strict=True):
            b = boxes(level).flatten(2).unflatten(1, (4, self.bins)).softmax(2)
            distance = (b * torch.arange(self.bins).to(b)[:, None]).sum(2)
            found.append(torch.cat([distance, scores(level).flatten(2).sigmoid()], 1))
        return torch.cat(found, 2)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class Unet(nn.Module):
    """Down, up, and shortcuts that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.middle = block(3, 16), block(16, 32, 3, 2), block(32, 32)
        self.up, self.last, self.head = nn.ConvTranspose2d(32, 16, 2, 2), block(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        up = self.up(self.middle(self.down(first)))
        return self.head(self.last(torch.cat([first, up], 1)))


class Gan(nn.Module):
    """A discriminator with spectral norms, as a parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.spectral_norm
        self.first, self.second = normed(nn.Conv2d(3, 16, 4, 2, 1)), normed(nn.Conv2d(16, 32, 4, 2, 1))
        self.third, self.head = nn.Conv2d(32, 48, 3, padding=1), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)
        return self.head(F.leaky_relu(self.third(x), 0.2).mean((2, 3)))


class Wave(nn.Module):
    """Dilated causal convolutions with gates, as in WaveNet, and weight norm."""

    def __init__(self, width: int = 16, layers: int = 4) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.weight_norm
        self.first = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(normed(nn.Conv1d(width, 2 * width, 2, dilation=2**k)) for k in range(layers))
        self.outs = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(layers))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 24, 1), nn.ReLU(), nn.Conv1d(24, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), 0
        for k, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True)):
            a, b = gate(F.pad(x, (2**k, 0))).chunk(2, 1)
            kept, skipped = out(a.tanh() * b.sigmoid()).chunk(2, 1)
            x, total = x + kept, total + skipped
        return self.last(total)


class Capsules(nn.Module):
    """Capsules with routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.primary = nn.Conv2d(3, 16, 5, 2), nn.Conv2d(16, 32, 5, 2)
        self.votes = nn.Parameter(0.1 * torch.randn(5, 4, 12, 8))

    def forward(self, x: Tensor) -> Tensor:
        u = self.primary(F.relu(self.stem(x))).mean((2, 3)).view(len(x), 4, 8)
        votes = torch.einsum("oidk,bik->boid", self.votes, squash(u))
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(2):
            out = squash((logits.softmax(1)[..., None] * votes).sum(2))
            logits = logits + (votes * out[:, :, None]).sum(-1)
        return out.norm(dim=-1)


def squash(x: Tensor) -> Tensor:
    square = (x * x).sum(-1, keepdim=True)
    return x * square.sqrt() / (1 + square)


class Conditioned(nn.Module):
    """A denoiser: time embedding, scale and shift, group norms, attention over pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 2 * width))
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(8, width)
        self.second, self.qkv = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 3 * width, 1)
        self.out, self.head = nn.Conv2d(width, width, 1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * torch.exp(-torch.arange(8) / 2).to(t)
        scale, shift = self.time(torch.cat([angle.sin(), angle.cos()], 1))[..., None, None].chunk(2, 1)
        x = self.first(x)
        x = x + self.second(F.silu(self.norm(x) * (1 + scale) + shift))
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        x = x + self.out((v @ (q.mT @ k).softmax(-1).mT).view_as(x))
        return self.head(x)


class Recommender(nn.Module):
    """Embeddings that interact pairwise, as in DLRM."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 16) for _ in range(3))
        self.dense = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))
        self.top = nn.Sequential(nn.Linear(16 + 16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, numbers: Tensor, choices: Tensor) -> Tensor:
        dense = self.dense(numbers)
        each = torch.stack([dense, *(table(choices[:, k]) for k, table in enumerate(self.tables))], 1)
        return self.top(torch.cat([dense, (each @ each.mT).flatten(1)], 1))


class Points(nn.Module):
    """A set of points, each through the same layers, then the largest of each channel, as in PointNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU())
        self.each = nn.Sequential(nn.Conv1d(96, 32, 1), nn.ReLU(), nn.Conv1d(32, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        local = self.first(x)
        whole = self.second(local).amax(2, keepdim=True).expand(-1, -1, x.shape[2])
        return self.each(torch.cat([local, whole], 1))


class Subpixels(nn.Module):
    """Super-resolution by pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.PReLU(24), nn.Conv2d(24, 64, 3, padding=1))
        self.shuffle, self.head = nn.PixelShuffle(2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shuffle(self.body(x)))


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape)


def words(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 49, shape)


def graph(nodes: int, edges: int, graphs: int = 1) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(graphs, nodes, 8), torch.randint(0, nodes, (graphs, 2, edges)))


def several(*makes: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(make() for make in makes)


def _transformer() -> nn.Module:
    return nn.Transformer(32, 4, 2, 2, 48, batch_first=True)


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True), 2)


def _kan() -> nn.Module:
    return nn.Sequential(Splines(8, 24), Splines(24, 16), Splines(16, 5))


STEPS, LONGER = floats(1, 6, 8), floats(2, 9, 8)

# name → what builds it, inputs, further inputs
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Callable[[], Any] | None]] = {
    "LSTM": (partial(Recurrent, nn.LSTM), STEPS, LONGER),
    "LSTM, 3 layers": (partial(Recurrent, nn.LSTM, num_layers=3, dropout=0.1), STEPS, LONGER),
    "LSTM, both directions, 2 layers": (partial(Recurrent, nn.LSTM, num_layers=2, bidirectional=True), STEPS, LONGER),
    "LSTM with projection": (partial(Recurrent, nn.LSTM, proj_size=12), STEPS, LONGER),
    "GRU, 2 layers": (partial(Recurrent, nn.GRU, num_layers=2), STEPS, LONGER),
    "GRU, both directions": (partial(Recurrent, nn.GRU, bidirectional=True), STEPS, LONGER),
    "RNN, 2 layers": (partial(Recurrent, nn.RNN, num_layers=2), STEPS, LONGER),
    "GRU translator with attention": (Translator, several(words(1, 6), words(1, 5)), several(words(2, 9), words(2, 4))),
    "LSTM cells": (partial(Cells, nn.LSTMCell), STEPS, LONGER),
    "GRU cells": (partial(Cells, nn.GRUCell), STEPS, LONGER),
    "LSTM cell by hand": (HandWritten, STEPS, LONGER),
    "minimal gated unit by hand": (MinimalGated, STEPS, LONGER),
    "KAN": (_kan, floats(3, 8), floats(7, 8)),
    "graph network, index_add": (Graphs, graph(7, 12), graph(9, 20)),
    "graph attention, scatter_add": (Scattered, graph(7, 12), graph(9, 20)),
    "mixture of experts": (Experts, STEPS, LONGER),
    "deformable convolution": (Deformable, floats(1, 3, 12, 12), floats(2, 3, 16, 14)),
    "correlation as in RAFT": (
        Correlated,
        several(floats(1, 3, 32, 32), floats(1, 3, 32, 32)),
        several(floats(2, 3, 32, 40), floats(2, 3, 32, 40)),
    ),
    "spectral norm": (Gan, floats(2, 3, 16, 16), floats(3, 3, 24, 16)),
    "WaveNet with weight norm": (Wave, floats(1, 1, 40), floats(2, 1, 64)),
    "nn.Transformer": (
        _transformer,
        several(floats(1, 6, 32), floats(1, 5, 32)),
        several(floats(2, 9, 32), floats(2, 4, 32)),
    ),
    "nn.TransformerEncoder": (_encoder, floats(1, 6, 32), floats(2, 9, 32)),
    "embedding bag": (Words, words(2, 6), words(3, 9)),
    "FFT mixer": (Spectrum, STEPS, LONGER),
    "YOLO-like": (Yolo, floats(1, 3, 64, 64), floats(1, 3, 96, 64)),
    "U-Net": (Unet, floats(1, 3, 32, 32), floats(2, 3, 48, 32)),
    "capsules": (Capsules, floats(1, 3, 28, 28), floats(2, 3, 32, 32)),
    "denoiser": (
        Conditioned,
        several(floats(1, 3, 16, 16), floats(1)),
        several(floats(2, 3, 24, 16), floats(2)),
    ),
    "recommender": (
        Recommender,
        several(floats(2, 4), lambda: torch.randint(0, 20, (2, 3))),
        several(floats(3, 4), lambda: torch.randint(0, 20, (3, 3))),
    ),
    "PointNet": (Points, floats(1, 3, 20), floats(2, 3, 30)),
    "pixel shuffle": (Subpixels, floats(1, 3, 16, 16), floats(2, 3, 12, 20)),
}

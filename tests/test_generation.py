"""Generation token by token: a cut traced on whole sequences is right with a cache, and where queries share heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import distance, random_keep
from topiarist import cut, mask, prove, trace
from topiarist.surgery import non_degenerate

WIDTH, QUERIES, KEYS = 8, 6, 3
IDS = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Every key's head serves two queries' heads; with a cache, earlier keys and values are read from it."""

    def __init__(self, fused):
        super().__init__()
        self.fused, self.width = fused, WIDTH
        self.q, self.out = nn.Linear(24, QUERIES * WIDTH), nn.Linear(QUERIES * WIDTH, 24)
        self.k, self.v = nn.Linear(24, KEYS * WIDTH), nn.Linear(24, KEYS * WIDTH)

    def forward(self, x, cache=None):
        q, k, v = (layer(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if cache is not None:
            if self in cache:
                k, v = (torch.cat([old, new], 2) for old, new in zip(cache[self], (k, v), strict=True))
            cache[self] = k, v
        alone = q.shape[2] == 1 < k.shape[2]
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=not alone, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(QUERIES // KEYS, 1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=not alone)
        return self.out(y.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.tokens = nn.Embedding(20, 24)
        self.layers = nn.ModuleList(Attention(fused) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.head = nn.Linear(24, 20)

    def forward(self, ids, cache=None):
        x = self.tokens(ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x), cache)
        return self.head(x)


def generated(model, ids, steps=9):
    """Logits of each step, greedily, with a cache."""
    cache = {}
    logits = [model(ids, cache)[:, -1]]
    for _ in range(steps):
        logits.append(model(logits[-1].argmax(-1, keepdim=True), cache)[:, -1])
    return logits


@pytest.mark.parametrize("fused", [True, False])
def test_generation_with_a_cache(fused):
    torch.manual_seed(0)
    model = non_degenerate(Decoder(fused)).double().eval().requires_grad_(False)
    graph = trace(model, IDS)
    for seed in range(3):
        keep = random_keep(graph, seed)
        assert prove(model, graph, keep, IDS).ok
        smaller, masked = cut(model, graph, keep), mask(model, graph, keep)
        for ids in (IDS, IDS[:1, :3]):
            assert distance(generated(smaller, ids), generated(masked, ids)) < 1e-10


def test_heads_that_queries_share_are_pruned_with_their_queries():
    graph = trace(Decoder(fused=True).eval(), IDS)
    assert not graph.unknown
    rows = [group for group in graph.groups if group.name.endswith(":rows")]
    assert [group.units for group in rows] == [KEYS, KEYS]
    assert {part.tensor for part in rows[0].slices} > {"layers.0.q.weight", "layers.0.k.weight", "layers.0.out.weight"}

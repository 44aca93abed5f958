"""Importance goes back through absolute weights alone, whatever the data, the biases and the scales are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import topiarist
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.methods.nisp import _propagated, inf_fs


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def built(model, seed=0):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return model.double().eval()


def matrix(layer, shape):
    """A linear map as a matrix, column by column."""
    places = torch.eye(shape.numel()).double().view(-1, *shape)
    return layer(places).flatten(1).T


def test_scores_are_products_of_absolute_matrices():
    model = built(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 4, 2, 2),
            nn.Hardswish(inplace=True), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2),
        )
    )  # fmt: skip
    x = data(6, 2, 4, 4)
    graph = topiarist.trace(model, x)
    scores = make("nisp").score(graph, collect(model, graph, [x]))
    s_hidden = model[:-1](x).var(0, correction=0).detach()
    s_flat = model[8].weight.abs().T @ s_hidden
    conv = matrix(lambda z: F.conv2d(z, model[4].weight.abs(), stride=2), torch.Size((3, 2, 2)))
    s_pooled = (conv.T @ s_flat).view(3, 2, 2)
    s_first = torch.zeros(3, 4, 4).double()
    for row in range(2):
        for column in range(2):
            rows, columns = (range(max(2 * at - 1, 0), 2 * at + 2) for at in (row, column))
            for i in rows:
                for j in columns:
                    s_first[:, i, j] += s_pooled[:, row, column].detach() / (len(rows) * len(columns))
    torch.testing.assert_close(scores["8"], s_hidden)
    torch.testing.assert_close(scores["4"], s_flat.detach())
    torch.testing.assert_close(scores["0"], s_first.sum((1, 2)))


class Residual(nn.Module):
    """A stream with one block, whose difference, scale and mean are written by hand."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.scale, self.head = nn.Parameter(torch.ones(4, 1, 1)), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x - self.scale * self.outer(self.inner(x).relu_())
        return self.head(x.mean((2, 3)))


def test_a_stream_adds_what_its_branches_send_back():
    model = built(Residual())
    x = data(5, 2, 3, 3)
    graph = topiarist.trace(model, x)
    s = torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    scores = _propagated(model, graph, x[:1], s)
    inner = model.outer.weight[:, :, 0, 0].abs().T @ (model.scale.abs().flatten() * s)
    torch.testing.assert_close(scores["inner"], inner.detach())
    torch.testing.assert_close(scores["stem"], (s + model.inner.weight[:, :, 0, 0].abs().T @ inner).detach())


class Mixer(nn.Module):
    """Attention in three spellings, gates and norms: everything in which responses meet responses."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.gate, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = self.query(y), self.key(y), self.value(y)
        x = x + F.scaled_dot_product_attention(q, k, v) + ((q @ k.transpose(1, 2)) / 8**0.5).softmax(-1) @ v
        y = x / x.square().mean(-1, keepdim=True).sqrt()
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(self.up(x) * F.silu(self.gate(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize(
    ("make_model", "shape"), [(Mixer, (2, 5, 3)), (Residual, (2, 2, 3, 3))], ids=["mixer", "residual"]
)
def test_importance_knows_neither_data_nor_signs_nor_biases(make_model, shape):
    model = built(make_model())
    x = data(*shape)
    graph = topiarist.trace(model, x)
    final = data(model.head.in_features).abs()
    scores = _propagated(model, graph, x[:1], final)
    assert all((values >= 0).all() and (values > 0).any() for values in scores.values())
    assert scores.keys() in ({"embed", "query", "up"}, {"stem", "inner"})
    other = copy.deepcopy(model)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(other.named_parameters()):
            if name.endswith("bias") or name.startswith("norm"):
                parameter.mul_(-7)
            elif index % 3:
                parameter.neg_()
    again = _propagated(other, graph, 100 * data(1, *shape[1:], seed=1), final)
    for name, values in scores.items():
        torch.testing.assert_close(again[name], values, rtol=1e-9, atol=0)


def test_the_model_stays_as_it_was():
    model = built(Residual()).train()
    x = data(4, 2, 3, 3)
    graph = topiarist.trace(model, x)
    before = copy.deepcopy(model.state_dict())
    make("nisp").score(graph, collect(model, graph, [x]))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_inf_fs_prefers_what_varies_alone():
    x = data(50, 3)
    features = torch.stack([x[:, 0], x[:, 0], x[:, 1], x[:, 2], 0 * x[:, 0]], 1)
    features = features / features.std(0).clamp(min=1e-9)
    scores = inf_fs(features.T.cov(correction=0), alpha=0.0)
    torch.testing.assert_close(scores[0], scores[1])
    assert scores[0] < min(scores[2], scores[3])
    assert scores[4] == 0
    wide = inf_fs(torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()), alpha=1.0)
    assert wide[0] < wide[1] < wide[2]


def test_bad_fields_and_data_are_refused():
    with pytest.raises(TopiaristError, match="'variance' or 'inf-fs'"):
        make("nisp", ranking="inffs")
    with pytest.raises(TopiaristError, match="between 0 and 1"):
        make("nisp", alpha=1.5)
    model = built(Residual())
    x = data(4, 2, 3, 3)
    graph = topiarist.trace(model, x)
    for batches, message in ((None, "pass batches"), ([], "no batch"), ([x[:1]], "do not vary")):
        with pytest.raises(TopiaristError, match=message):
            make("nisp").score(graph, collect(model, graph, batches))
    pooled = nn.Sequential(nn.Conv2d(2, 4, 1), nn.MaxPool2d(2, dilation=2), nn.Flatten(), nn.Linear(4, 2)).double()
    graph = topiarist.trace(pooled, x)
    with pytest.raises(TopiaristError, match="plain max pooling"):
        make("nisp").score(graph, collect(pooled, graph, [x]))

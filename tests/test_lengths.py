"""Sequences of another length than the example: buffers that number, mask or add to positions stay as they are."""

import pytest
import torch
from torch import nn

import topiarist
from networks import Net, distance, random_keep, real, shaken
from topiarist import cut, mask, trace

LONGEST, WIDTH = 16, 24


def embeddings(**others):
    return {"tok": nn.Embedding(20, WIDTH), **others, "fc": nn.Linear(WIDTH, 5)}


def numbered(net, ids):
    return net.fc(torch.tanh(net.tok(ids) + net.pos(net.position_ids[:, : ids.shape[1]])))


def picked(net, ids):
    return net.fc(torch.tanh(net.tok(ids) + net.pos.weight[net.position_ids[0, : ids.shape[1]]]))


def typed(net, ids):
    types = net.token_type_ids[:, : ids.shape[1]].expand(ids.shape)
    return net.fc(torch.tanh(net.tok(ids) + net.kind(types)))


def added(net, ids):
    return net.fc(torch.tanh(net.tok(ids) + net.pos[:, : ids.shape[1]]))


def heads(net, ids):
    x = net.tok(ids)
    b, n, _ = x.shape
    return [layer(x).view(b, n, 4, 6).transpose(1, 2) for layer in (net.q, net.k, net.v)]


def attended(net, ids, change):
    q, k, v = heads(net, ids)
    out = change((q @ k.transpose(-2, -1)) * 0.3, ids.shape[1]).softmax(-1) @ v
    return net.fc(out.transpose(1, 2).flatten(2))


def causal(net, ids):
    return attended(net, ids, lambda a, n: a.masked_fill(~net.before[:, :, :n, :n], float("-inf")))


def relative(net, ids):
    return attended(net, ids, lambda a, n: a + net.table[net.index[:n, :n]].permute(2, 0, 1))


def relative_in_a_row(net, ids):
    def biased(a, n):
        return a + net.table[net.index[:n, :n].reshape(-1)].view(n, n, -1).permute(2, 0, 1)

    return attended(net, ids, biased)


def projections():
    return embeddings(**{name: nn.Linear(WIDTH, WIDTH) for name in "qkv"})


def offsets():
    places = torch.arange(LONGEST)
    return {"table": nn.Parameter(torch.randn(2 * LONGEST - 1, 4)), "index": places[:, None] - places + LONGEST - 1}


POSITIONS = {"pos": nn.Embedding(LONGEST, WIDTH), "position_ids": torch.arange(LONGEST)[None]}
NETWORKS = {
    "position ids": (numbered, lambda: embeddings(**POSITIONS), {"tok"}),
    "position ids as an index": (picked, lambda: embeddings(**POSITIONS), {"tok"}),
    "token types": (
        typed,
        lambda: embeddings(kind=nn.Embedding(2, WIDTH), token_type_ids=torch.zeros(1, LONGEST, dtype=torch.long)),
        {"tok"},
    ),
    "positions in a buffer": (added, lambda: embeddings(pos=torch.randn(1, LONGEST, WIDTH)), {"tok"}),
    "learned positions": (added, lambda: embeddings(pos=nn.Parameter(torch.randn(1, LONGEST, WIDTH))), {"tok"}),
    "causal mask": (
        causal,
        lambda: projections() | {"before": torch.ones(1, 1, LONGEST, LONGEST).tril().bool()},
        {"tok", "q:rows", "q:columns", "v"},
    ),
    "relative positions": (relative, lambda: projections() | offsets(), {"tok", "q:rows", "q:columns", "v"}),
    "relative positions in a row": (
        relative_in_a_row,
        lambda: projections() | offsets(),
        {"tok", "q:rows", "q:columns", "v"},
    ),
}


def made(name):
    program, parts, groups = NETWORKS[name]
    torch.manual_seed(0)
    parts = parts()
    buffers = {key: parts.pop(key) for key in list(parts) if type(parts[key]) is torch.Tensor}
    net = Net(program, **parts)
    for key, buffer in buffers.items():
        net.register_buffer(key, buffer, persistent=False)
    return shaken(net), groups


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("length", [1, 8, LONGEST])
@pytest.mark.by_day(12)
def test_a_cut_works_for_every_length(name, length):
    model, groups = made(name)
    graph = trace(model, torch.arange(8)[None])
    assert {group.name for group in graph.groups} == groups
    keep = random_keep(graph, 0)
    ids = torch.arange(2 * length).view(2, length) % 20
    smaller, masked = cut(model, graph, keep).double(), mask(model, graph, keep).double()
    assert distance(smaller(ids), masked(ids)) < 1e-10
    for buffer, before in zip(smaller.buffers(), model.buffers(), strict=True):
        assert buffer.shape[:2] == before.shape[:2]


def test_whole_numbers_that_no_weight_shares_are_no_units():
    model = Net(
        lambda net, x: net.fc(torch.relu(net.lin(x))) * net.counts.sum(), lin=nn.Linear(6, 8), fc=nn.Linear(8, 3)
    )
    model.register_buffer("counts", torch.arange(1, 9))
    graph = trace(shaken(model), torch.randn(2, 6))
    assert [group.name for group in graph.groups] == ["lin"]
    (pin,) = [pin for pin in graph.pinned if pin.tensor == "counts"]
    assert "whole numbers" in pin.reason


def test_whole_numbers_that_scale_channels_go_with_them():
    model = Net(lambda net, x: net.fc(torch.relu(net.lin(x)) * net.scale), lin=nn.Linear(6, 8), fc=nn.Linear(8, 3))
    model.register_buffer("scale", torch.arange(1, 9))
    x = torch.randn(2, 6)
    result = topiarist.prune(shaken(model), x, "l1", topiarist.Budget(ratio=0.5))
    assert result.proof.ok
    assert len(result.model.scale) == result.model.lin.out_features == 4
    assert distance(real(result.model(x)), real(mask(model, result.graph, result.keep)(x))) < 1e-5

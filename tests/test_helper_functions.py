"""Corrections in functions that a forward calls: decorated, made once, seen through by exporters."""

import functools

import pytest
import torch
from torch import nn

from networks import distance, random_keep
from topiarist import TopiaristError, cut, mask, prove, trace
from topiarist.surgery.size_corrections import editing

X = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))


def attention(qkv, heads):
    """States the width of all heads together by what it is at first: 24."""
    batch, length, _ = qkv.shape
    q, k, v = qkv.reshape(batch, length, 3, heads, 24 // heads).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 24)


without_gradients = torch.no_grad()(attention)


def passing(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


of_ours = passing(attention)
"""Decorated by code of the network's own."""


class Attention(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.qkv, self.out, self.function = nn.Linear(24, 72), nn.Linear(24, 4), function

    def forward(self, x):
        return self.out(self.function(self.qkv(x), 4))


class ByName(Attention):
    def forward(self, x):
        return self.out(attention(self.qkv(x), 4))


class ByMethod(Attention):
    def attend(self, x):
        return attention(self.qkv(x), 4)

    def forward(self, x):
        return self.out(self.attend(x))


NETWORKS = {
    "by name": lambda: ByName(None),
    "by a method": lambda: ByMethod(None),
    "held": lambda: Attention(attention),
    "decorated by torch": lambda: Attention(without_gradients),
    "decorated": lambda: Attention(of_ours),
}


@pytest.fixture(params=NETWORKS)
def halves(request):
    """A network, a cut of it that corrects its code, and its mask."""
    torch.manual_seed(0)
    model = NETWORKS[request.param]().eval()
    graph = trace(model, X)
    keep = random_keep(graph, 0)
    assert graph.solution.corrections(graph.dead(keep))
    assert prove(model, graph, keep, X).ok
    return model, cut(model, graph, keep), mask(model, graph, keep)


def test_functions_are_corrected_however_they_are_called(halves):
    _, smaller, masked = halves
    assert distance(smaller(X), masked(X)) < 1e-5
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in masked.parameters())


def test_copies_of_functions_are_made_once(halves, monkeypatch):
    _, smaller, _ = halves
    smaller(X)
    monkeypatch.setattr(editing, "_edited", None)
    smaller(X)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.by_day(5)
def test_exporters_see_plain_code(halves, strict):
    _, smaller, _ = halves
    smaller(X)
    program = torch.export.export(smaller, (X,), strict=strict)
    assert distance(program.module()(X), smaller(X)) < 1e-5


def test_a_function_that_fx_wraps_is_corrected_in_its_graph(monkeypatch):
    """`torch.fx.wrap` makes it one node of the graph, by another function of its name while it traces."""
    monkeypatch.setitem(torch.fx._symbolic_trace._wrapped_fns_to_patch, (id(globals()), "attention"), globals())
    model = nn.Sequential(NETWORKS["by name"]()).eval()
    graph = trace(model, X)
    smaller = cut(model, graph, random_keep(graph, 0))
    symbolic = torch.fx.symbolic_trace(smaller)
    assert [node.op for node in symbolic.graph.nodes].count("call_function") == 1
    assert distance(symbolic(X), smaller(X)) < 1e-5


def test_gradients_stop_where_they_stopped(halves):
    model, smaller, _ = halves
    for network in (model, smaller):
        network.zero_grad()
        network(X).sum().backward()
    assert (model.qkv.weight.grad is None) == (smaller.qkv.weight.grad is None)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_mask_refuses_to_be_traced():
    model = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 4)).eval()
    graph = trace(model, X)
    masked = mask(model, graph, random_keep(graph, 0))
    with pytest.raises(TopiaristError, match="export the cut one"):
        torch.jit.trace(masked, X)
    with pytest.raises(TopiaristError, match="export the cut one"):
        torch.export.export(masked, (X,), strict=False)

"""Sizes and numbers that code computes: attributes that are solved, corrections where none can be, scales that stay."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from networks import (
    CASES,
    Net,
    attention,
    conv,
    distance,
    images,
    joined,
    literal,
    qkv_parts,
    random_keep,
    real,
    separate,
    separate_parts,
    shaken,
    tokens,
)  # fmt: skip
from topiarist import Architecture, cut, mask, prove, trace

X, OTHER = images(2), images(3)
T, LONGER = tokens(2), tokens(3, 7)


def check(model, inputs, other=None, seeds=6, try_cuts=False):
    """Cut ≡ mask for keeps of any size, on other batches too; returns the graph."""
    shaken(model)
    graph = trace(model, inputs)
    if try_cuts:
        graph = topiarist.check(model, graph, inputs)
    double = model.double()
    for seed in range(seeds):
        for most in (1, 99):
            keep = random_keep(graph, seed, most)
            masked, smaller = mask(double, graph, keep), cut(double, graph, keep)
            with torch.no_grad():
                for given in (inputs, inputs if other is None else other):
                    assert distance(smaller(real(given)), masked(real(given))) <= 1e-10, (seed, most)
    return graph


def widths(graph):
    return {group.name: group.units for group in graph.groups}


def convs(program, reads=8, **parts):
    return Net(
        program,
        **{"a": conv(3, 8), "b": conv(reads, 5, 1), "other": conv(3, 8), "linear": nn.Linear(8, 4), "n": 8, **parts},
    )


# attributes


def test_attributes_follow_the_cut():
    case = CASES["attention"]
    model = case.model()
    graph = trace(model, case.inputs)
    keep = {"qkv:rows": torch.tensor([True, False, True]), "qkv:columns": torch.tensor([True, True, False, True])}
    smaller = cut(model, graph, keep)
    assert (smaller.heads, model.heads) == (2, 3)
    assert type(smaller.heads) is int
    assert (smaller.qkv.out_features, smaller.proj.in_features, smaller.qkv.in_features) == (18, 6, 12)


def test_attributes_of_layers_stay_true():
    model = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.GroupNorm(4, 8), conv(8, 8, groups=4), nn.PReLU(8), nn.InstanceNorm2d(8),
        nn.ConvTranspose2d(8, 6, 1), nn.Flatten(2), nn.Linear(36, 5), nn.LayerNorm([6, 5]), nn.Linear(5, 4),
    )  # fmt: skip
    shaken(model)
    graph = trace(model, X)
    smaller = cut(model, graph, {g.name: torch.arange(g.units) < max(1, g.units - 1) for g in graph.groups})
    for name, module in smaller.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == weight.shape, name
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels // module.groups) == weight.shape[:2], name
        if isinstance(module, nn.ConvTranspose2d):
            assert (module.in_channels, module.out_channels // module.groups) == weight.shape[:2], name
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == weight.numel() == module.running_mean.numel(), name
        if isinstance(module, nn.GroupNorm):
            assert module.num_channels == weight.numel(), name
            assert module.num_channels % module.num_groups == 0, name
        if isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == tuple(weight.shape), name
        if isinstance(module, nn.PReLU):
            assert module.num_parameters == weight.numel(), name
    assert smaller[3].groups == smaller[2].num_groups == 3


def test_tuples_of_sizes_are_solved_entry_by_entry():
    model = Net(
        lambda n, x: n.head(torch.cat([f(y) for f, y in zip(n.fs, n.stem(x).split(n.sizes, 1), strict=True)], 1)),
        stem=conv(3, 12), sizes=(3, 4, 5), fs=nn.ModuleList(conv(k, 2) for k in (3, 4, 5)), head=conv(6, 4),
    )  # fmt: skip
    graph = check(model, X, OTHER)
    assert sorted(widths(graph).values()) == [2, 2, 2, 3, 4, 5]
    first = next(g for g in graph.groups if g.units == 5)
    smaller = cut(model, graph, {first.name: torch.arange(5) < 2})
    assert smaller.sizes == (3, 4, 2)
    assert type(smaller.sizes) is tuple


def test_one_place_that_states_a_size_for_two_layers_ties_it():
    """Both layers keep the same heads, since one expression says how many; widths are worked out, hence free."""

    def program(net, x):
        out = 0
        for qkv, proj in ((net.qkv, net.proj), (net.qkv2, net.proj2)):
            q, k, v = (y.view(*x.shape[:2], net.heads, -1).transpose(1, 2) for y in qkv(x).chunk(3, -1))
            out = out + proj(joined((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v))
        return out

    for heads in (2, 3):
        parts = qkv_parts(heads=heads, qkv2=nn.Linear(12, 36), proj2=nn.Linear(12, 12))
        graph = check(Net(program, **parts), T, LONGER)
        assert sorted(widths(graph).values()) == sorted([heads, 12 // heads, 12 // heads])


# literals, and what only a correction in the code can put right


def test_literal_sizes_are_corrected_in_the_code():
    graph = check(Net(literal, **qkv_parts()), T, LONGER)
    assert widths(graph) == {"qkv:rows": 3, "qkv:columns": 4}


LITERALS = {
    "view to heads": lambda n, x: n.b(n.a(x).view(len(x), 2, 4, 6, 6).flatten(1, 2)),
    "reshape": lambda n, x: n.b(torch.reshape(n.a(x).unflatten(1, (4, 2)), (x.shape[0], 8, 6, 6))),
    "batch times channels": lambda n, x: n.b(n.a(x).view(len(x) * 8, 6, 6).relu().view(len(x), 8, 6, 6)),
    "batch times attribute": lambda n, x: n.b(n.a(x).view(len(x) * n.n, 6, 6).relu().view(len(x), n.n, 6, 6)),
    "expand": lambda n, x: n.b(n.a(x) * n.gain.expand(1, 8, 1, 1)),
    "expand an attribute": lambda n, x: n.b(n.a(x) * n.gain.expand(1, n.n, 1, 1)),
    "expand to the shape": lambda n, x: (lambda h: n.b(h * n.gain.expand(h.shape)))(n.a(x)),
    "repeat": lambda n, x: n.b(n.a(x) * n.gain.repeat(1, 8, 1, 1)),
    "joined expansions": lambda n, x: n.b(n.a(x) * torch.cat([n.gain.expand(1, 4, 1, 1)] * 2, 1)),
    "view as": lambda n, x: n.a(x).flatten(1).view_as(n.other(x)).sum(1),
    "expand as": lambda n, x: n.b(n.a(x) + n.a(x).mean((2, 3), keepdim=True).expand_as(n.a(x))),
    "new zeros": lambda n, x: n.b(n.a(x) + n.a(x).new_zeros(len(x), 8, 1, 1)),
    "split by a literal": lambda n, x: n.b(torch.cat(n.a(x).split([3, 5], 1)[::-1], 1)),
    "equal split": lambda n, x: n.b(torch.cat([p.sigmoid() for p in n.a(x).split(2, 1)], 1)),
    "slices by literals": lambda n, x: n.b(torch.cat([n.a(x)[:, 3:], n.a(x)[:, :3].tanh()], 1)),
    "negative slices": lambda n, x: n.b(torch.cat([n.a(x)[:, -3:], n.a(x)[:, :-3].tanh()], 1)),
    "every second": lambda n, x: n.b(torch.cat([n.a(x)[:, ::2], n.a(x)[:, 1::2].tanh()], 1)),
    "narrow": lambda n, x: n.b(torch.cat([n.a(x).narrow(1, 2, 6), n.a(x).narrow(1, 0, 2)], 1)),
    "pad": lambda n, x: n.b(F.pad(n.a(x)[:, :6], (0, 0, 0, 0, 1, 1))),
    "roll": lambda n, x: n.b(n.a(x).roll(1, 1)),
    "tensor split": lambda n, x: n.b(torch.cat(n.a(x).tensor_split(3, 1)[::-1], 1)),
    "index": lambda n, x: n.b(n.a(x)[:, torch.arange(7, -1, -1)]),
    "movedim": lambda n, x: n.b(
        n.a(x).movedim(1, -1).unflatten(-1, (2, 4)).flatten(3).view(len(x), 6, 6, 8).movedim(-1, 1)
    ),
    "unbind": lambda n, x: n.b(torch.stack(n.a(x).unbind(1), 1)),
    "stack and flatten": lambda n, x: n.b(torch.stack([n.a(x)[:, :4], n.a(x)[:, 4:]], 2).flatten(1, 2)),
    "squeeze": lambda n, x: n.linear(n.a(x).mean((2, 3), keepdim=True).squeeze()),
    "squeeze the rest": lambda n, x: n.linear(n.a(x).mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)),
    "compared": lambda n, x: n.b(n.a(x) + (0 if n.a(x).shape[1] == n.a.out_channels else 1)),
}


@pytest.mark.parametrize("name", LITERALS)
def test_any_way_to_state_a_size_is_cut_right_or_pinned(name):
    check(convs(LITERALS[name], gain=nn.Parameter(torch.ones(1, 1, 1, 1))), X, OTHER)


@pytest.mark.parametrize("name", ["view to heads", "expand", "expand an attribute", "batch times channels"])
def test_a_stated_size_does_not_pin(name):
    graph = trace(convs(LITERALS[name], gain=nn.Parameter(torch.ones(1, 1, 1, 1))), X)
    assert graph.groups


# one place that runs for units, then for what no unit sits on

TWICE = {
    "view": lambda n, two: [(y.view(-1, width // 1, 1) * 2).flatten(1) for y, width in two],
    "unflatten": lambda n, two: [y.unflatten(1, (width, 1)).flatten(1) for y, width in two],
    "expand": lambda n, two: [two[0][0], *(y.mean(1, keepdim=True).expand(-1, 8) for y, _ in two)],
    "repeat": lambda n, two: [two[0][0], *(y.mean(1, keepdim=True).repeat(1, n.n) for y, _ in two)],
    "pad": lambda n, two: [two[0][0], *(F.pad(y[:, :1], (0, 7)) for y, _ in two)],
    "divide": lambda n, two: [y / width for y, width in ((two[0][0], two[0][0].shape[1]), two[1])],
    "scale": lambda n, two: [y * y.shape[1] ** -0.5 for y, _ in two],
    "scale by a number, seen by trial cuts": lambda n, two: [
        y * width**-0.5 for y, width in ((two[0][0], two[0][0].shape[1]), two[1])
    ],
}


@pytest.mark.parametrize("name", TWICE)
def test_a_correction_leaves_other_runs_of_its_place_alone(name):
    def program(net, x):
        *units, fixed = TWICE[name](net, ((net.a(x).mean((2, 3)), 8), (x.mean((2, 3)), 3)))
        return net.linear(sum(units)) + fixed.sum(1, keepdim=True)

    check(convs(program), X, OTHER, try_cuts="trial cuts" in name)


# numbers that come from sizes


def scaled(how):
    def program(net, x):
        q, k, v = separate(net, x)
        return net.proj(joined(how(net, q, k).softmax(-1) @ v))

    return program


def product(q, k):
    return q @ k.transpose(-2, -1)


class Multiplied(nn.Module):
    def forward(self, q, k, scale):
        return product(q * scale, k)


SCALES = {
    "power of an attribute": scaled(lambda n, q, k: product(q, k) * n.width**-0.5),
    "power of a shape": scaled(lambda n, q, k: product(q, k) * q.shape[-1] ** -0.5),
    "root": scaled(lambda n, q, k: product(q, k) / math.sqrt(n.width)),
    "root of a shape": scaled(lambda n, q, k: product(q / math.sqrt(q.size(-1)), k)),
    "tensor": scaled(lambda n, q, k: product(q, k) / torch.sqrt(torch.tensor(n.width, dtype=q.dtype))),
    "tensor of a shape": scaled(lambda n, q, k: product(q, k) / torch.tensor(q.shape[-1], dtype=q.dtype).sqrt()),
    "in place": scaled(lambda n, q, k: product(q, k).div_(n.width**0.5)),
    "both sides": scaled(lambda n, q, k: product(q * n.width**-0.25, k * n.width**-0.25)),
    "einsum": scaled(lambda n, q, k: torch.einsum("bhid,bhjd->bhij", q, k).mul(float(n.width) ** -0.5)),
    "quotient": scaled(lambda n, q, k: product(q, k) / (n.proj.in_features // n.heads) ** 0.5),
    "alpha": scaled(
        lambda n, q, k: torch.baddbmm(
            q.new_zeros(1), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=n.width**-0.5
        ).unflatten(0, q.shape[:2])
    ),
    "handed to a child": scaled(lambda n, q, k: n.child(q, k, n.width**-0.5)),
    "fused": lambda n, x: n.proj(joined(F.scaled_dot_product_attention(*separate(n, x)))),
    "fused and causal": lambda n, x: n.proj(joined(F.scaled_dot_product_attention(*separate(n, x), is_causal=True))),
    "fused with a scale": lambda n, x: n.proj(
        joined(F.scaled_dot_product_attention(*separate(n, x), scale=1 / math.sqrt(n.width)))
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_attention_keeps_the_scale_it_was_trained_with(name):
    graph = check(Net(SCALES[name], **separate_parts(child=Multiplied())), T, LONGER)
    if name not in ("alpha", "handed to a child"):
        assert widths(graph) == {"q:rows": 3, "q:columns": 4, "v": 4}


def test_a_scale_is_kept_where_its_size_would_be_zero():
    """One channel left of twelve, two heads of three: the code computes (1 // 2) ** -0.5."""

    def program(net, x):
        return net.head(attention(net, net.embed(x)))

    model = Net(program, **qkv_parts(embed=nn.Linear(12, 12), head=nn.Linear(12, 4)))
    graph = check(model, T, LONGER)
    assert widths(graph) == {"embed": 12, "qkv:rows": 3, "qkv:columns": 4, "proj": 12}
    keep = {"embed": torch.arange(12) < 1, "qkv:rows": torch.arange(3) < 2}
    longer = LONGER.double()
    small = cut(model, graph, keep)
    again = Architecture.from_json(json.loads(json.dumps(Architecture.of(graph, keep).to_json()))).apply(model)
    assert small(longer).isfinite().all()
    assert torch.equal(again(longer), small(longer))


def test_numbers_that_come_from_the_sequence_still_follow_it():
    def program(net, x):
        return attention(net, x).sum(1) / x.shape[1] * 0.5

    graph = check(Net(program, **qkv_parts()), T, LONGER)
    assert widths(graph) == {"qkv:rows": 3, "qkv:columns": 4}


NUMBERS = {
    "mean by hand": lambda n, x: n.b(n.a(x).sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]) + n.a(x)),
    "number of channels": lambda n, x: n.b(n.a(x) / n.a(x).shape[1]),
    "sum over channels": lambda n, x: n.b(n.a(x)) + n.a(x).sum(1, keepdim=True) / n.a(x).shape[1],
    "range": lambda n, x: n.b(n.a(x) * torch.arange(n.a(x).shape[1]).to(x.dtype).mean()),
    "ones": lambda n, x: n.b(n.a(x) * torch.ones(n.a(x).shape[1], dtype=x.dtype).sum()),
    "full": lambda n, x: n.b(n.a(x) + torch.full((1,), n.a(x).shape[1], dtype=x.dtype)),
    "added": lambda n, x: n.b(n.a(x) + n.a(x).shape[1]),
    "alpha": lambda n, x: n.b(torch.add(n.a(x), n.a(x), alpha=n.a(x).shape[1] ** -0.5)),
    "clamped": lambda n, x: n.b(n.a(x).clamp(max=n.a(x).shape[1] * 0.1)),
    "smallest": lambda n, x: n.b(n.a(x).clamp(min=torch.finfo(torch.float64).tiny)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_stay_as_they_were_traced(name):
    check(convs(NUMBERS[name]), X)


@pytest.mark.parametrize("program", [
    lambda n, x: n.b(n.a(x) * 2 if n.a(x).shape[1] > 4 else n.a(x)),
    lambda n, x: n.b(getattr(n, f"n{n.a(x).shape[1]}")(n.a(x))),
    lambda n, x: n.b(n.a(x) + 1.0 / n.a(x).shape[1]),
    lambda n, x: n.b(n.a(x) / n.a(x).shape.numel()),
    lambda n, x: n.b(n.a(x) / n.a(x)),
], ids=["branch", "name", "added", "numel", "0/0"])  # fmt: skip
def test_what_sizes_decide_otherwise_is_pinned_by_trial_cuts(program):
    model = convs(program, n8=nn.ReLU())
    check(
        Net(lambda n, x: n.last(n.inner(n.first(x))), first=model, inner=conv(5, 6), last=conv(6, 4)), X, try_cuts=True
    )


# forwards that are not the class's


@pytest.mark.parametrize("program", [literal, attention])
def test_a_forward_of_the_instance_s_own_is_respected(program):
    class Patched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in qkv_parts().items():
                setattr(self, name, part)
            self.forward = self.patched

        def forward(self, x):
            raise AssertionError("the forward of the class is called")

        def patched(self, x):
            return program(self, F.layer_norm(self.qkv(x)[..., :12], (12,)))

    check(Patched(), T, LONGER)


def test_modules_called_twice_and_by_their_forward():
    def program(net, x):
        return net.inner(net.inner(x)) + net.inner.forward(x)

    check(Net(program, inner=Net(literal, **qkv_parts())), T, LONGER)
    check(Net(program, inner=Net(attention, **qkv_parts())), T, LONGER)


WIDENED = {
    "broadcast": lambda m, x: x * m.v,
    "plain values": lambda m, x: x * torch.arange(1.0, 9).to(x).view(8, 1, 1),
    "repeated": lambda m, x: x.repeat(1, 8, 1, 1),
    "expanded": lambda m, x: x.expand(-1, 8, -1, -1),
    "expanded as": lambda m, x: x.expand_as(m.other(x.expand(-1, 3, -1, -1))),
    "broadcast to": lambda m, x: torch.broadcast_to(x, (x.shape[0], 8, *x.shape[2:])),
    "product": lambda m, x: torch.einsum("bohw,co->bchw", x, m.v[:, :, 0]),
    "joined": lambda m, x: torch.cat([x] * 8, 1),
    "interleaved": lambda m, x: x.repeat_interleave(8, 1),
    "read again": lambda m, x: (y := x.expand(-1, 8, -1, -1)).reshape(y.shape[0], y.shape[1], *y.shape[2:]),
}


@pytest.mark.parametrize("name", WIDENED)
def test_a_single_channel_that_is_made_many(name):
    def program(m, x):
        return m.last(m.b(WIDENED[name](m, m.a(x))).relu())

    check(convs(program, a=conv(3, 1), v=nn.Parameter(torch.randn(8, 1, 1)), last=conv(5, 3)), X, OTHER)


@pytest.mark.parametrize("name", WIDENED)
def test_a_single_channel_of_the_input_that_is_made_many(name):
    def program(m, x):
        return m.last(m.b(WIDENED[name](m, x[:, :1])).relu())

    check(convs(program, v=nn.Parameter(torch.randn(8, 1, 1)), last=conv(5, 3)), X, OTHER)


class Compared(nn.Module):
    """Says what its input must be, as `torch.nn.Transformer` does, and takes another branch where it is not."""

    def __init__(self):
        super().__init__()
        self.width, self.first, self.last = 8, nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = self.first(x).relu()
        if y.shape[-1] != self.width:
            raise ValueError(f"{y.shape[-1]} features, not {self.width}")
        return self.last(y * 2 if self.width == y.size(2) and y.size(0) == y.shape[0] else y)


def test_a_size_that_is_compared_with_an_attribute_is_an_equation():
    graph = check(Compared(), T, LONGER)
    assert widths(graph) == {"first": 8}
    small = topiarist.prune(Compared(), T, "l1", topiarist.Budget(ratio=0.5)).model
    assert (small.width, small.first.out_features) == (4, 4)


class Shuffled(nn.Module):
    """Picks tokens by an index that is repeated to their width, behind register tokens, of which there are none."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.registers = nn.Linear(12, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(1, 0, 8))

    def forward(self, x):
        y = torch.cat([self.registers.expand(len(x), -1, -1), self.first(x)], 1)
        order = torch.arange(y.shape[1] - 1, -1, -1).repeat(len(x), 1).unsqueeze(-1)
        return self.last(torch.gather(y, 1, order.repeat(1, 1, y.shape[2])).relu())


def test_an_index_repeated_to_a_width_and_an_empty_parameter_follow_the_width():
    graph = check(Shuffled(), T, LONGER)
    assert widths(graph) == {"first": 8}
    small = topiarist.prune(Shuffled(), T, "l1", topiarist.Budget(ratio=0.5)).model
    assert small.registers.shape == (1, 0, 4)


EXPANDED = {
    "slice": lambda x: x.repeat(1, 3)[:, :2],
    "slice in steps": lambda x: x.expand(-1, 3)[:, ::2],
    "split": lambda x: x.repeat(1, 4).split(2, 1)[1],
    "pad": lambda x: torch.nn.functional.pad(x.expand(-1, 2), (1, 0)),
    "concatenation": lambda x: torch.cat([x.expand(-1, 2), x.expand(-1, 3)], 1),
    "two repetitions": lambda x: x.repeat(1, 2).repeat(1, 3),
    "whole": lambda x: x.repeat(1, 3)[:, 0:3],
}


@pytest.mark.parametrize("name", EXPANDED)
def test_parts_of_an_expanded_axis_stay_whole_or_follow(name):
    """One position made several takes what it meets; where only a part of it is used, sizes must be corrected."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.run = nn.Linear(4, 6), EXPANDED[name]
            self.head = nn.Linear(self.run(torch.zeros(1, 1)).shape[1], 3)

        def forward(self, x):
            return self.head(self.run(self.stem(x).relu().amax(1, keepdim=True)))

    model, x = Net().double(), torch.randn(5, 4).double()
    graph = trace(model, x)
    for most in (1, 2):
        keep = {group.name: torch.arange(group.units) < most for group in graph.groups}
        torch.testing.assert_close(cut(model, graph, keep)(x), mask(model, graph, keep)(x))
    if name != "whole":
        assert any("head" in group.name for group in graph.groups) == (name in ("pad", "concatenation"))


def test_one_over_a_width_is_seen_behind_another_number_of_that_width():
    def run(net, x):
        y = net.a(x)
        y = y * y.shape[-1] ** -0.5
        return net.b(y * (1.0 / y.shape[-1]))

    model = shaken(Net(run, a=nn.Linear(12, 8), b=nn.Linear(8, 3)))
    graph = trace(model, tokens(2))
    assert [group.units for group in graph.groups] == [8]
    assert all(prove(model, graph, random_keep(graph, seed), tokens(2)).ok for seed in range(3))

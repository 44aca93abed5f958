"""Residual blocks: found in any code that adds a branch to its input, cut as they are masked, or named as stuck."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import topiarist
from networks import Net, conv, distance, images, random_keep, shaken, tokens
from topiarist import Architecture, Budget, TopiaristError, cut, load, mask, prove, prune, save, trace
from topiarist.budget import cost
from topiarist.graph import removed_blocks
from topiarist.models.zoo.preresnet import preresnet110
from topiarist.models.zoo.resnet import resnet20
from topiarist.models.zoo.resnext import resnext29

X = images(2)


def norm(channels: int = 8) -> nn.Module:
    return nn.BatchNorm2d(channels)


class Plain(nn.Module):
    """``relu(x + norm(conv(relu(conv(x)))))`` with one activation function for all of it."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.n, self.act = conv(8, 6), conv(6, 8), norm(), nn.ReLU(inplace=inplace)
        self.inplace = inplace

    def forward(self, x):
        out = self.n(self.b(self.act(self.a(x))))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.act(out)


class Scaled(nn.Module):
    """A ConvNeXt block: channels last within, a bare scale, stochastic depth and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.n = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))
        self.gamma = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x):
        out = self.mlp(self.n(self.depthwise(x).permute(0, 2, 3, 1))) * self.gamma
        out = out.permute(0, 3, 1, 2)
        if self.training:
            out = out * (torch.rand(len(x), 1, 1, 1) < 0.9).to(out.dtype)
        return x + out


class Excited(nn.Module):
    """Squeeze and excitation within the branch, two paths that are added at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.left, self.right, self.squeeze = conv(8, 8), conv(8, 8), conv(8, 8), conv(8, 8, 1)

    def forward(self, x):
        out = self.a(x)
        out = out * self.squeeze(out.mean((2, 3), keepdim=True)).sigmoid()
        return (self.left(out) + self.right(out)) + x


def around(block: nn.Module) -> nn.Module:
    """Two such blocks between a stem and a head."""
    other = copy.deepcopy(block)
    return shaken(
        Net(
            lambda n, x: n.head(n.two(n.one(n.stem(x).relu())).mean((2, 3))),
            stem=conv(3, 8),
            one=block,
            two=other,
            head=nn.Linear(8, 4),
        )
    )


KINDS = {"plain": Plain, "in place": lambda: Plain(True), "scaled": Scaled, "excited": Excited}
PARTS = {
    "plain": (["a", "b", "n"], {"n"}),
    "in place": (["a", "b", "n"], {"n"}),
    "scaled": (["depthwise", "n", "mlp"], {"mlp.3"}),
    "excited": (["a", "squeeze", "left", "right"], {"left", "right"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_branches_are_found_whatever_the_code_looks_like(kind):
    graph = trace(around(KINDS[kind]()), X).blocks()
    modules, tips = PARTS[kind]
    assert graph.pinned == ()
    (group,) = graph.groups
    assert [block.name for block in group.blocks] == ["one", "two"]
    assert [part.module for part in group.blocks[0].parts] == [f"one.{name}" for name in modules]
    assert set(group.blocks[0].tips) == {f"one.{tip}" for tip in tips}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", [0, 1])
def test_a_cut_is_its_mask_and_what_the_shortcut_computes(kind, gone):
    model = around(KINDS[kind]())
    graph = trace(model, X).blocks()
    keep = {"blocks": torch.arange(2) != gone}
    proof = prove(model, graph, keep, X)
    assert proof.ok, proof.reason
    assert proof.change > 1e-3
    smaller, name = cut(model, graph, keep), ("one", "two")[gone]
    assert distance(smaller(X), mask(model, graph, keep)(X)) <= 1e-6
    bare = copy.deepcopy(model)
    setattr(bare, name, nn.ReLU() if isinstance(getattr(model, name), Plain) else nn.Identity())
    assert distance(smaller(X), bare(X)) <= 1e-6
    assert distance(smaller.train()(X[:1]), smaller(X[:1])) < 10  # and it still trains
    smaller(X).sum().backward()
    left = {key for key in model.state_dict() if not graph["blocks"].blocks[gone].holds(key)}
    assert smaller.state_dict().keys() == left


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_those_of_the_smaller_network(kind):
    model = around(KINDS[kind]())
    graph = trace(model, X).blocks()
    keep = {"blocks": torch.tensor([False, True])}
    smaller = cut(model, graph, keep)
    told = cost(graph, keep)
    assert told.params == sum(p.numel() for p in smaller.parameters()) < cost(graph).params
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        smaller(X)
    assert told.macs == counter.get_total_flops() // 2 // len(X) < cost(graph).macs


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return shaken(Net(lambda n, x: n.head(n.body(x)), body=nn.TransformerEncoder(layer, 2), head=nn.Linear(8, 3)))


def test_attention_and_its_mlp_are_branches_of_their_own():
    """The layer takes element 0 of what attention returns, and in eval mode looks for a fused path."""
    x = tokens(2, width=8)
    model = transformer()
    graph = trace(model, x).blocks()
    names = [f"body.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn", "linear1")]
    assert [block.name for block in graph["blocks"].blocks] == names
    for gone in range(4):
        keep = {"blocks": torch.arange(4) != gone}
        assert prove(model, graph, keep, x).ok
        smaller = cut(model, graph, keep)
        with torch.no_grad():
            expected = smaller(x)
        assert distance(smaller(x), expected) <= 1e-5
        assert distance(smaller(x), mask(model, graph, keep)(x)) <= 1e-5
        smaller.train()(x).sum().backward()


class Forked(Plain):
    """What the branch computes on the way is needed elsewhere too."""

    def forward(self, x):
        inner = self.act(self.a(x))
        out = self.act(self.n(self.b(inner)) + x)
        return out + inner.mean()


class Projected(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.projection = conv(8, 8, 1)

    def forward(self, x):
        return self.act(self.n(self.b(self.act(self.a(x)))) + self.projection(x))


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        return x + self.pool(x)


class Unscaled(Plain):
    """A batch norm without a scale behind the last weight: zero weights do not give zero."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.BatchNorm2d(8, affine=False)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 8)

    def forward(self, x):
        return self.a(x + self.a(x))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Forked, "used elsewhere"),
        (Projected, r"its shortcut is not the identity, \w+.projection is on it"),
        (lambda: nn.Sequential(nn.Conv2d(8, 8, 1), Pooled()), "no parameters"),
        (Twice, "used outside of the branch"),
    ],
)
def test_branches_that_cannot_go_are_named_with_the_reason(kind, reason):
    graph = trace(around(kind()), X).blocks()
    assert graph.groups == ()
    assert len(graph.pinned) == 2
    for pinned in graph.pinned:
        assert pinned.axis is None
        assert pinned.tensor.startswith(("one", "two"))
        assert re.search(reason, pinned.reason)


def test_a_branch_that_zero_does_not_silence_is_refused_by_trial_cuts():
    model = around(Unscaled())
    good = Plain()
    model.one = shaken(good)
    graph = trace(model, X).blocks()
    assert graph["blocks"].units == 2
    proof = prove(model, graph, {"blocks": torch.tensor([True, False])}, X)
    assert not proof.ok
    graph = topiarist.check(model, graph, X)
    assert [block.name for block in graph["blocks"].blocks] == ["one"]
    assert "cannot be proved" in graph.irremovable["two"]


def test_sums_that_are_no_residuals_are_none():
    """A table of positions, a sum of two layers, a bias: nothing there is a branch with a shortcut."""
    model = shaken(
        Net(
            lambda n, x: n.head((n.a(x) + n.table + n.b(x)).flatten(1) + n.bias),
            a=conv(3, 4),
            b=conv(3, 4),
            head=nn.Linear(144, 4),
            table=nn.Parameter(torch.randn(1, 4, 6, 6)),
            bias=nn.Parameter(torch.randn(2, 144)),
        )
    )
    graph = trace(model, X).blocks()
    assert graph.groups == ()
    assert set(graph.irremovable) <= {""}


def test_shared_layers_and_tied_weights_stay():
    tied = around(Plain())
    tied.two.a.weight = tied.one.a.weight
    graph = trace(tied, X).blocks()
    assert graph.groups == ()
    assert all("shares parameters" in reason for reason in graph.irremovable.values())


ZOO = {
    "resnet20": (resnet20, 7, {"layer2.0", "layer3.0"}),
    "preresnet110": (lambda: preresnet110(width=0.25), 33, {"layer1.0", "layer2.0", "layer3.0"}),
    "resnext29": (lambda: resnext29(width=0.125), 6, {"layer1.0", "layer2.0", "layer3.0"}),
}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.by_day(1)
def test_the_papers_networks_lose_any_of_their_identity_blocks(name, tmp_path):
    make, blocks, projected = ZOO[name]
    model, x = shaken(make()), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x).blocks()
    (group,) = graph.groups
    assert group.units == blocks
    assert set(graph.irremovable) == projected
    assert all("not the identity" in reason for reason in graph.irremovable.values())
    for seed in (0, 1):
        keep = random_keep(graph, seed)
        assert prove(model, graph, keep, x).ok
    smaller = cut(model, graph, keep)
    save(smaller, Architecture.of(graph, keep), tmp_path)
    assert torch.equal(load(make, tmp_path).eval()(x), smaller(x))
    built = Architecture.load(tmp_path / "architecture.json").build(make)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in smaller.state_dict().items()}


class Nested(nn.Module):
    """A branch around a block that is a branch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Plain(), conv(8, 8)

    def forward(self, x):
        return x + self.last(self.inner(x))


@pytest.mark.parametrize("stays", [(1, 0, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 0)])
def test_branches_within_branches_go_in_any_combination(stays):
    model = around(Nested())
    graph = trace(model, X).blocks()
    names = ["one.inner", "one", "two.inner", "two"]
    assert [block.name for block in graph["blocks"].blocks] == names
    keep = {"blocks": torch.tensor(stays, dtype=torch.bool)}
    proof = prove(model, graph, keep, X)
    assert proof.ok, proof.reason
    assert cost(graph, keep).params == sum(p.numel() for p in cut(model, graph, keep).parameters())


def test_blocks_and_channels_are_cut_in_turn():
    model = around(Plain())
    graph = trace(model, X).blocks()
    shorter = cut(model, graph, {"blocks": torch.tensor([False, True])})
    again = trace(shorter, X)
    assert [group.name for group in again.groups] == ["stem", "two.a"]
    keep = random_keep(again, 0)
    assert prove(shorter, again, keep, X).ok
    smallest = cut(shorter, again, keep)
    assert cost(again, keep).params == sum(p.numel() for p in smallest.parameters())
    assert len(trace(smallest, X).blocks()["blocks"].blocks) == 1
    other = cut(model, trace(model, X), random_keep(trace(model, X), 1))
    assert len(trace(other, X).blocks()["blocks"].blocks) == 2


def test_the_file_tells_blocks_and_older_files_do_not():
    model = around(Excited())
    graph = trace(model, X).blocks()
    keep = {"blocks": torch.tensor([False, True])}
    shape = Architecture.of(graph, keep)
    stored = json.loads(json.dumps(shape.to_json(), allow_nan=False))
    assert stored["version"] == 2
    again = Architecture.from_json(stored)
    assert again.groups[0].blocks == graph["blocks"].blocks
    assert again.widths == {"blocks": (1, 2)}
    assert torch.equal(again.apply(model)(X), cut(model, graph, keep)(X))
    channels = trace(model, X)
    assert Architecture.of(channels, channels.full()).to_json()["version"] == 1
    for damage in ([], [["one", [], []]], [["one", [["", 0]], []]] * 2, [["one", [["a", -1]], []]] * 2, 3):
        value = copy.deepcopy(stored)
        value["groups"][0]["blocks"] = damage
        del value["sha256"]
        from topiarist.architecture import digest

        with pytest.raises(TopiaristError, match="damaged"):
            Architecture.from_json({**value, "sha256": digest(value)})


def test_a_budget_is_met_by_whole_blocks():
    model = resnet20(width=0.5).eval()
    x = torch.randn(2, 3, 16, 16)
    graph = trace(model, x).blocks()
    scores = {"blocks": torch.arange(7.0)}
    keep = topiarist.allocate(graph, scores, Budget(macs=0.6), "global")
    gone = [block.name for block in removed_blocks(graph.groups, keep)]
    assert gone == ["layer1.0", "layer1.1", "layer1.2", "layer2.1"]
    left = keep["blocks"].clone()
    left[3] = True
    assert cost(graph, keep).macs <= 0.6 * cost(graph).macs < cost(graph, {"blocks": left}).macs


def test_exact_zeros_do_not_blind_a_proof_but_a_blind_network_does():
    model = around(Plain())
    graph = trace(model, X).blocks()
    keep = {"blocks": torch.tensor([True, False])}
    with torch.no_grad():
        for parameter in model.two.n.parameters():
            parameter.zero_()
    proof = prove(model, graph, keep, X)
    assert proof.ok, proof.reason
    assert proof.change > 1e-3
    with torch.no_grad():
        model.head.weight.zero_()
    assert "blind" in prove(model, graph, keep, X).reason


def test_a_network_without_blocks_says_so():
    model = shaken(nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(144, 2)))
    with pytest.raises(TopiaristError, match="nothing in this network can be pruned"):
        prune(model, X, "sss")

"""LASSO: the regression against scikit-learn on its flattened form, least squares, shortcuts, memory, refusals."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as Peer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import topiarist
from reading import contributions, noise, traced
from topiarist import Data, Pruning, TopiaristError, prune
from topiarist.budget import Budget
from topiarist.measure import collect
from topiarist.methods import _reconstruction, lasso, make
from topiarist.methods.lasso import Path
from topiarist.pruning import choose
from topiarist.surgery import mask

EVERY = {"samples": 10_000, "examples": 10_000}


def outputs(model, layer, x):
    """What a layer reads and what it puts out."""
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, y: seen.extend((args[0], y)))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen


@pytest.mark.parametrize("bias", [True, False])
def test_the_regression_is_lasso_on_the_flattened_problem(bias):
    """``Z`` from the network that is pruned before the layer, ``y`` from the original one."""
    model, graph, x = traced(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Conv2d(5, 4, 2, bias=bias), shape=(6, 2, 7, 7)
    )
    stats, method = collect(model, graph, [x[:2], x[2:]]), make("lasso", **EVERY)
    pruned = mask(model, graph, {"0": torch.arange(6) % 2 > 0})
    path = Path(*method.regression(pruned, stats, _reconstruction.readers(graph, model)["2"]))
    z = contributions(pruned, 4, x, torch.arange(5)).unflatten(0, (6, 4, -1))
    y = outputs(model, "4", x)[1].flatten(2)
    if bias:  # least squares will refit it, so every output is free to move
        z, y = z - z.mean((0, 2), keepdim=True), y - y.mean((0, 2), keepdim=True)
    assert path.top == pytest.approx((z.flatten(0, 2).T @ y.flatten()).abs().max().item() / y.numel())
    for share in (0.5, 0.1, 0.01, 1e-4):
        peer = Peer(share * path.top, fit_intercept=False, tol=1e-10, max_iter=100_000)
        expected = peer.fit(z.flatten(0, 2).numpy(), y.flatten().numpy()).coef_
        np.testing.assert_allclose(path.at(share * path.top), expected, atol=1e-4)
        assert ((path.at(share * path.top) != 0) == (expected != 0)).all()


def test_any_number_of_units_can_be_had():
    z, y = noise(50, 12), noise(50, seed=1)
    z[:, 3], z[:, 7], z[:, 9] = 0, z[:, 6], z[:, 6]  # one is silent, three are the same
    path = Path(z.T @ z / 50, z.T @ y / 50)
    counts = range(1, 13)
    supports = [path.support(count) for count in counts]
    assert [int(support.sum()) for support in supports] == list(counts)
    assert not any(support[3] for support in supports[:-1])
    for count, support in zip(counts, supports, strict=True):
        if count in (1, 2, 3):  # no other lambda gives another answer of this size
            sizes = [path.at(share * path.top) for share in np.geomspace(1, 1e-3, 400)]
            fitting = [beta != 0 for beta in sizes if np.count_nonzero(beta) == count]
            assert any((found == support.numpy()).all() for found in fitting)


def test_ties_go_to_the_larger_coefficient():
    gram, cross = torch.diag(torch.tensor([1.0, 4.0, 1.0])).double(), torch.tensor([1.0, 1.0, 0.5]).double()
    path = Path(gram, cross)  # 1 and 1/4: both enter at lambda = 1
    assert path.support(1).tolist() == [True, False, False]
    assert path.support(2).tolist() == [True, True, False]


def test_where_the_data_leave_too_few_those_that_pull_most_are_kept():
    """Three coefficients are 0 at any lambda; the residual is that of the right side, so it says which comes first."""
    path = Path(torch.eye(4).double(), torch.tensor([1.0, 0.0, 1e-8, -5e-7]).double())
    assert path.support(1).tolist() == [True, False, False, False]
    assert path.support(2).tolist() == [True, False, False, True]
    assert path.support(3).tolist() == [True, False, True, True]


def test_least_squares_from_front_to_back():
    """In each layer what is missing is orthogonal to what it reads in the repaired network: no weights do better."""
    model, graph, x = traced(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 3), shape=(300, 2, 6, 6),
    )  # fmt: skip
    method = make("lasso", **EVERY, ridge=1e-12)
    stats = collect(model, graph, [x[:70], x[70:]])
    keep = choose(method, graph, stats, Budget(ratio=0.5))
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {"0": 3, "2": 4}
    masked = mask(model, graph, keep)
    method.repair(repaired := mask(model, graph, keep), graph, keep, stats)
    units = {"2": keep["0"], "6": keep["2"].repeat_interleave(16)}
    live = {"2": keep["2"], "6": torch.ones(3, dtype=torch.bool)}
    for name, layer in (("2", repaired[2]), ("6", repaired[6])):
        read, now = outputs(repaired, name, x)
        missing = (outputs(model, name, x)[1] - now)[:, live[name]]
        patches = nn.functional.unfold(read, 3, padding=1) if name == "2" else read[:, :, None]
        columns = patches.movedim(1, 2).unflatten(2, (len(units[name]), -1))[:, :, units[name]].flatten(2)
        slope = torch.einsum("npc,nop->co", columns, missing.flatten(2) if name == "2" else missing[:, :, None])
        size = torch.einsum("npc,npc->c", columns, columns).sqrt().max() * outputs(model, name, x)[1].norm()
        assert (slope.abs() < 1e-8 * size).all()
        if layer.bias is not None:
            assert (missing.mean(0).abs() < 1e-9).all()
        far = (outputs(model, name, x)[1] - outputs(masked, name, x)[1])[:, live[name]]
        assert missing.norm() < far.norm()
        assert (layer.weight[:, ~units[name]] == 0).all()
        assert (layer.weight[~live[name]] == 0).all()


class Residual(nn.Module):
    """Two blocks whose branches end in a batch norm, or in a convolution with a bias; sums in the user's own ways."""

    def __init__(self, norm):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.first, self.second = (
            nn.ModuleList(
                [nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6) if norm else nn.Identity()]
            )
            for _ in range(2)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.first[2](self.first[1](self.first[0](x).relu()))).relu()
        branch = self.second[2](self.second[1](self.second[0](x).relu()))
        branch += x
        return self.head(branch.relu().mean((2, 3)))


@pytest.mark.parametrize("norm", [True, False])
def test_shortcuts_are_made_up_for_in_the_sum(norm):
    torch.manual_seed(1)
    model = Residual(norm)
    for parameter in (p for name, p in model.named_parameters() if name.endswith("2.weight")):
        nn.init.uniform_(parameter, 0.5, 1.5)
    model = model.double().eval()
    x = noise(20, 2, 5, 5)
    graph = topiarist.trace(model, x[:1])
    method, stats = make("lasso", **EVERY, ridge=1e-12), collect(model, graph, [x])
    keep = choose(method, graph, stats, Budget(ratios={"stem": 0.7, "first.0": 0.5, "second.0": 0.5}))
    method.repair(repaired := mask(model, graph, keep), graph, keep, stats)

    def branch_and_sum(network):
        read = outputs(network, "second.1", x)[0]
        branch = outputs(network, "second.2", x)[1]  # in place, it is the sum when the pass is over
        return read[:, keep["second.0"]], branch[:, keep["stem"]]

    (read, now), (_, wanted) = branch_and_sum(repaired), branch_and_sum(model)
    slope = torch.einsum("nihw,nohw->io", read, wanted - now)
    assert (slope.abs() < 1e-8 * read.norm() * wanted.norm()).all()
    assert ((wanted - now).mean((0, 2, 3)).abs() < 1e-9).all()
    assert (wanted - now).norm() < (wanted - branch_and_sum(mask(model, graph, keep))[1]).norm()


def test_outputs_that_a_batch_norm_silences_stay_as_they_are():
    torch.manual_seed(1)
    model = Residual(norm=True).double().eval()
    with torch.no_grad():
        model.second[2].weight[1] = 1e-12
    x = noise(20, 2, 5, 5)
    graph = topiarist.trace(model, x[:1])
    keep = graph.full() | {"stem": torch.arange(6) != 0, "second.0": torch.arange(6) % 2 > 0}
    make("lasso").repair(repaired := mask(model, graph, keep), graph, keep, collect(model, graph, [x]))
    before = mask(model, graph, keep).second[1]
    assert torch.equal(repaired.second[1].weight[1], before.weight[1])
    assert not torch.equal(repaired.second[1].weight[2], before.weight[2])


def test_units_that_repeat_others_go_without_a_trace():
    model, graph, x = traced(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), shape=(40, 2, 6, 6))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[3:] = tensor[:3] * torch.tensor([0.5, 0.4, 0.3]).double().view(-1, *[1] * (tensor.ndim - 1))
    method = make("lasso", ridge=1e-12)
    stats = collect(model, graph, [x], method.needs)
    keep = choose(method, graph, stats, Budget(ratios={"0": 0.5}))
    assert sorted((keep["0"].nonzero().flatten() % 3).tolist()) == [0, 1, 2]
    method.repair(repaired := mask(model, graph, keep), graph, keep, stats)
    torch.testing.assert_close(repaired(x), model(x))


def test_layers_that_are_too_wide_get_one_scale_a_unit(monkeypatch):
    model, graph, x = traced(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2), shape=(60, 2, 5, 5), seed=3)
    monkeypatch.setattr(lasso, "_WIDE", 17)
    keep = {"0": torch.tensor([True, False, True, False])}
    method, stats = make("lasso", **EVERY, ridge=1e-12), collect(model, graph, [x])
    method.repair(repaired := mask(model, graph, keep), graph, keep, stats)
    z = contributions(model, 3, x, torch.arange(4).repeat_interleave(9)).unflatten(0, (60, 2))
    z = (z - z.mean(0)).flatten(0, 1)
    scales = torch.linalg.lstsq(z[:, keep["0"]], z.sum(1)).solution
    found = (repaired[3].weight / model[3].weight).unflatten(1, (4, 9))[:, keep["0"]]
    torch.testing.assert_close(found, scales[None, :, None].expand_as(found))


def test_attention_stays_whole_and_the_layers_beside_it_are_cut():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model, x = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)).double().eval(), noise(20, 6, 5)
    graph = topiarist.trace(model, x[:1])
    method = make("lasso")
    stats = collect(model, graph, [x], method.needs)
    keep = choose(method, graph, stats, Budget(ratio=0.5))
    assert {name for name, kept in keep.items() if not kept.all()} == {"1.linear1"}
    attention = next(group.name for group in graph.groups if "attn" in group.name)
    with pytest.raises(TopiaristError, match="exclude"):
        choose(method, graph, stats, Budget(ratios={attention: 0.5}))


@pytest.fixture(scope="module")
def vgg():
    """A small VGG trained on digits, its graph and statistics, and test images."""
    data = topiarist.load_data("digits")
    torch.manual_seed(0)
    model = topiarist.load_model("zoo:vgg11?width=0.125&in_channels=1&input_size=8")
    topiarist.fit(model, data, topiarist.Recipe(epochs=4, lr=0.05), seed=0)
    graph = topiarist.trace(model.eval(), data.example())
    stats = collect(model, graph, list(data.batches("train", 64)))
    return model, graph, stats, next(data.batches("test", 500))[0]


def distance(model, pruned, layer, x):
    return (outputs(model, layer, x)[1] - outputs(pruned, layer, x)[1]).norm().item()


@pytest.mark.parametrize("name", ["lasso", "thinet"])
@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.nightly) for share in (0.7, 0.3))])
@pytest.mark.nightly
def test_every_layer_of_a_trained_vgg_stays_nearer_than_with_l1_or_chance(vgg, name, share):
    model, graph, stats, x = vgg
    method = make(name, examples=250)
    for group in graph.groups:
        reader = group.by_role("input")[0].tensor.removesuffix(".weight")
        budget = Budget(ratios={group.name: share})
        kept = choose(method, graph, stats, budget)
        method.repair(repaired := mask(model, graph, kept), graph, kept, stats)
        near = distance(model, repaired, reader, x)
        for other in ("l1", "random"):
            far = distance(model, mask(model, graph, choose(make(other), graph, stats, budget)), reader, x)
            assert near < far, (group.name, other)


@pytest.mark.nightly
def test_the_whole_network_stays_nearer_too(vgg):
    """Errors do not add up: what LASSO leaves of the last layer's error is a small part of what ThiNet leaves."""
    model, graph, stats, x = vgg
    apart = {}
    for name in ("lasso", "thinet", "l1"):
        method = make(name) if name == "l1" else make(name, examples=500)
        keep = choose(method, graph, stats, Budget(ratio=0.5))
        pruned = mask(model, graph, keep)
        if name != "l1":
            method.repair(pruned, graph, keep, stats)
        apart[name] = distance(model, pruned, "classifier", x)
    assert apart["lasso"] < 0.5 * apart["thinet"]
    assert apart["lasso"] < 0.5 * apart["l1"]


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.release, key, size)

    def release(self, key, size):
        self.alive.discard(key)
        self.now -= size


@pytest.mark.parametrize(("width", "limit"), [(256, 2.5e8), pytest.param(512, 1e9, marks=pytest.mark.nightly)])
@pytest.mark.nightly
def test_a_layer_of_512_channels_takes_less_than_a_gigabyte(width, limit):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)).eval()
    x = torch.randn(64, 3, 14, 14)
    graph = topiarist.trace(model, x[:1])
    method, stats = make("lasso"), collect(model, graph, [x])
    keep = {"0": torch.arange(width) > 0}  # nearly all: the largest matrix there can be
    with Peak() as peak:
        parts = _reconstruction.readers(graph, model)["0"]
        Path(*method.regression(model, stats, parts)).support(width - 1)
        method.repair(mask(model, graph, keep), graph, keep, stats)
    assert 2 * ((width - 1) * 9) ** 2 * 8 < peak.most < limit


def test_what_is_missing_is_refused():
    model, graph, x = traced(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), shape=(9, 3))
    method = make("lasso")
    for stats, budget, message in (
        (collect(model, graph), Budget(ratio=0.5), "runs the model on data"),
        (collect(model, graph, []), Budget(ratio=0.5), "no batch"),
        (collect(model, graph, [x / 0]), Budget(ratio=0.5), "not finite"),
        (collect(model, graph, [x]), None, "needs a budget"),
    ):
        with pytest.raises(TopiaristError, match=message):
            choose(method, graph, stats, budget)
    for fields, message in (
        ({"samples": 0}, "at least 1"),
        ({"examples": -1}, "at least 1"),
        ({"ridge": 0}, "positive"),
    ):
        with pytest.raises(TopiaristError, match=message):
            make("lasso", **fields)


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("repair", [False, True])
def test_images_of_one_shade_say_nothing_to_least_squares(shade, repair):
    images, labels = torch.full((32, 1, 8, 8), shade), torch.arange(32) % 4
    data = Data.of("one shade", images, labels, images, labels)
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    model = nn.Sequential(*layers)
    if not repair:
        with pytest.raises(TopiaristError, match="does not vary on this data"):
            prune(model, data.example(), "lasso", 0.5, data)
        return
    done = prune(model, data.example(), Pruning.of("l1", 0.5, repair="lasso"), data=data)
    shown = data.example()
    assert done.proof.ok
    assert torch.allclose(done.model(shown), model.eval()(shown), atol=1e-5)  # the bias alone makes up for it

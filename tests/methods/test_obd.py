"""What Optimal Brain Damage promises, beside the golden row: the diagonal is exact, whatever uses the weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import topiarist
from networks import Net
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make

N = 6


def curvatures(model, x, y, curvature="gauss_newton", loss=F.cross_entropy):
    """``h_kk`` of each weight as the method has it, and the traced weights."""
    graph = topiarist.trace(model, x[:1]).weights()
    method = make("obd", curvature=curvature)
    scores = method.score(graph, collect(model, graph, [(x, y)], method.needs, loss=loss))
    weights = {name: dict(model.named_parameters(remove_duplicate=False))[name].detach() for name in scores}
    return {name: 2 * scores[name].view(w.shape) / w.double().square() for name, w in weights.items()}


def jacobians(model, x, name):
    """``(N, outputs, *weight)``, one example and one output at a time."""
    weight = model.get_parameter(name).detach()
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda w, x=x: functional_call(model, {name: w}, x)[0].flatten(), weight)
            for x in x.split(1)
        ]
    )


def explicit(model, x, name):
    """The diagonal of ``J^T H J`` with the Hessian of the cross entropy by autograd."""
    total = 0
    for x_n, J in zip(x.split(1), jacobians(model, x, name), strict=True):
        z = model(x_n).detach()
        y = torch.zeros(1, *z.shape[2:], dtype=torch.int64)  # the Hessian by the scores is the same for any target
        H = torch.autograd.functional.hessian(lambda z, y=y: F.cross_entropy(z, y), z).view(z.numel(), z.numel())
        J = J.flatten(1)
        total = total + torch.einsum("ik,ij,jk->k", J, H, J)
    return total.view(model.get_parameter(name).shape) / len(x)


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4)).double()


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    return {"layer": layer, "head": nn.Linear(8, 3)}


NETWORKS = {
    "linear": (lambda: {"head": nn.Linear(5, 3)}, lambda n, x: n.head(x), (5,)),
    "two layers": (
        lambda: {"one": nn.Linear(5, 4), "head": nn.Linear(4, 3, bias=False)},
        lambda n, x: n.head(F.gelu(n.one(x))),
        (5,),
    ),
    "convolutions": (
        lambda: {
            "one": nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="circular"),
            "norm": nn.BatchNorm2d(4),
            "two": nn.Conv2d(4, 6, 2, groups=2, dilation=2),
            "head": nn.Linear(6, 3),
        },
        lambda n, x: n.head(n.two(n.norm(n.one(x)).relu_()).relu_().mean((2, 3))),
        (2, 6, 6),
    ),
    "a layer called twice": (
        lambda: {"one": nn.Linear(5, 5), "head": nn.Linear(5, 3)},
        lambda n, x: n.head(n.one(n.one(x).tanh()).tanh()),
        (5,),
    ),
    "a weight used beside its layer": (
        lambda: {"one": nn.Linear(5, 5), "head": nn.Linear(5, 3)},
        lambda n, x: n.head(F.linear(n.one(x).tanh(), n.one.weight)),
        (5,),
    ),
    "sentences, words first": (
        lambda: {"one": nn.Linear(5, 4), "head": nn.Linear(4, 3)},
        lambda n, x: n.head(n.one(x.transpose(0, 1)).tanh().mean(0)),
        (N, 5),  # as many words as examples, so that the shapes do not tell
    ),
    "windows": (
        lambda: {"one": nn.Linear(5, 4), "head": nn.Linear(4, 3)},
        lambda n, x: n.head(n.one(x.flatten(0, 1)).tanh().view(len(x), -1, 4).mean(1)),
        (4, 5),
    ),
    "transposed convolution": (
        lambda: {"up": nn.ConvTranspose1d(2, 3, 2, stride=2)},
        lambda n, x: n.up(x).tanh().sum(2),
        (2, 3),
    ),
    "scores at places": (
        lambda: {"one": nn.Conv1d(2, 4, 3, padding=1), "two": nn.Conv1d(4, 3, 1)},
        lambda n, x: n.two(n.one(x).tanh()),
        (2, 4),
    ),
    "attention": (encoder, lambda n, x: n.head(n.layer(x).mean(1)), (4, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_diagonal_is_that_of_the_gauss_newton_matrix(name):
    parts, forward, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = Net(forward, **parts()).double().eval(), rand(N, *shape)
    y = torch.zeros(model(x)[:, 0].shape, dtype=torch.int64)
    found = curvatures(model, x, y)
    assert found
    for weight, h in found.items():
        torch.testing.assert_close(h, explicit(model, x, weight), msg=lambda text, weight=weight: f"{weight}: {text}")


def test_the_diagonal_is_that_of_the_hessian_where_the_scores_are_linear_in_each_layer():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    x, y = rand(N, 4), torch.arange(N) % 3
    for name, h in curvatures(model, x, y).items():
        weight = model.get_parameter(name).detach()
        hessian = torch.autograd.functional.hessian(
            lambda w, name=name: F.cross_entropy(functional_call(model, {name: w}, x), y), weight
        )
        torch.testing.assert_close(h.flatten(), hessian.view(weight.numel(), -1).diagonal())


@pytest.mark.parametrize("name", ["two layers", "convolutions", "a layer called twice", "attention"])
def test_fisher_is_the_mean_square_of_each_examples_slope(name):
    parts, forward, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = Net(forward, **parts()).double().eval(), rand(N, *shape)
    y = rand(N, 3)
    for weight, h in curvatures(model, x, y, "fisher", F.mse_loss).items():
        slopes = [
            torch.autograd.grad(F.mse_loss(model(x), y), model.get_parameter(weight))[0]
            for x, y in zip(x.split(1), y.split(1), strict=True)
        ]
        torch.testing.assert_close(h, torch.stack(slopes).square().mean(0))


def test_frozen_networks_are_scored_alike_and_stay_frozen():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    x, y = rand(N, 4), torch.arange(N) % 3
    before = curvatures(model, x, y)
    after = curvatures(model.requires_grad_(False), x, y)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, h in before.items():
        torch.testing.assert_close(after[name], h)


def test_weights_are_scored_by_their_own_curvature_after_a_cut():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x, y = rand(N, 4, 1, 1).float(), torch.arange(N) % 3
    data = Data.of("points", x, y, x, y)
    pruned = topiarist.prune(model, data.example(), topiarist.Pruning.of("obd", 0.5, steps=2), data=data)
    first = topiarist.prune(model, data.example(), "obd", 0.75, data)
    gone = torch.cat([~keep for keep in first.keep.values()])
    inputs = data.normalise(x)
    scores = []
    for name in pruned.keep:
        w = first.model.get_parameter(name).detach()
        scores.append((explicit(first.model, inputs, name) * w.square()).flatten())
    scores = torch.cat(scores).masked_fill(gone, -1)
    kept = torch.cat(list(pruned.keep.values()))
    assert int(kept.sum()) == len(kept) // 2
    assert scores[kept].min() > scores[~kept].max()


def test_what_cannot_be_scored_is_refused():
    model = nn.Linear(4, 3)
    graph = topiarist.trace(model, torch.randn(1, 4)).weights()
    method = make("obd")
    with pytest.raises(TopiaristError, match="curvature must be"):
        make("obd", curvature="hutchinson")
    with pytest.raises(TopiaristError, match="gradients need targets"):
        collect(model, graph, [torch.randn(2, 4)], method.needs)
    with pytest.raises(TopiaristError, match="no curvature of any weight"):
        method.score(graph, collect(model, graph))
    data = [(torch.randn(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(TopiaristError, match="no curvature of any weight"):
        make("obd", curvature="fisher").score(graph, collect(model, graph, data, method.needs))

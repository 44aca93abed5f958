"""Network Slimming: its penalty and scores where a norm's channels are shared, and where selectors part them."""

import pytest
import torch
from torch import nn

import topiarist
from networks import Net, conv, images, shaken
from topiarist import Budget, TopiaristError, add_selectors, trace
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.models.zoo.preresnet import PreBasic, PreResNet

X = images(2, size=8)


def preresnet():
    torch.manual_seed(0)
    return shaken(PreResNet(3, 4, [4, 6, 8], 2, PreBasic, 5))


def test_a_stream_has_the_mean_of_its_scales_and_a_selector_its_own_norm():
    """A stem of 3 channels, two norms that read it: gamma (1, -2, 3) and (5, 6, -7)."""
    model = shaken(
        Net(
            lambda n, x: n.c(n.n2(n.b(n.n1(y := n.a(x)).relu()) + y).relu()),
            a=conv(3, 3), n1=nn.BatchNorm2d(3), b=conv(3, 3), n2=nn.BatchNorm2d(3), c=conv(3, 2),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.n1.weight.copy_(torch.tensor([1.0, -2.0, 3.0]))
        model.n2.weight.copy_(torch.tensor([5.0, 6.0, -7.0]))
    method = make("slimming", lam=0.1)
    graph = trace(model, images(1))
    assert {k: v.tolist() for k, v in method.score(graph, collect(model, graph)).items()} == {"a": [3, 4, 5]}
    model = add_selectors(model, "auto", images(1))
    graph = trace(model, images(1))
    scores = method.score(graph, collect(model, graph))
    assert {k: v.tolist() for k, v in scores.items()} == {"n1.selector": [1, 2, 3], "n2.selector": [5, 6, 7]}
    penalty = method.penalty(model, graph)
    assert penalty.item() == pytest.approx(0.1 * 24)
    slopes = torch.autograd.grad(penalty, [model.n1.weight, model.n2.weight])
    assert torch.cat(slopes).tolist() == pytest.approx([0.1, -0.1, 0.1, 0.1, 0.1, -0.1])
    found = topiarist.prune(model, images(1), method, Budget(ratio=0.5))
    assert found.model.n1.selector.indices.tolist() == [2]  # the paper: the mask of a norm selects its layer's inputs
    assert found.model.n2.selector.indices.tolist() == [1, 2]
    assert found.model.n1.weight.tolist() == [1, -2, 3]


def test_scores_after_a_cut_follow_the_indices():
    model = add_selectors(preresnet(), "auto", X)
    graph = trace(model, X)
    name = "layer3.1.bn1.selector"
    kept = torch.arange(8) % 3 != 0
    smaller = topiarist.cut(model, graph, {name: kept})
    rest = trace(smaller, X)
    scores = make("slimming").score(rest, collect(smaller, rest))[name]
    assert torch.equal(scores, model.layer3[1].bn1.weight.detach().abs().double()[kept])


def test_one_threshold_over_all_norms_as_in_the_paper():
    """All scales of all norms compete, each once; the network keeps those above their quantile."""
    model = add_selectors(preresnet(), "auto", X)
    gammas = {n: m.weight.detach().abs() for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    every = torch.cat(list(gammas.values())).sort().values
    found = topiarist.prune(model, X, "slimming", Budget(ratio=0.6))
    threshold = every[len(every) - int(0.6 * len(every) + 1e-9)]
    for name, gamma in gammas.items():
        group = f"{name}.selector" if name in found.graph.selectors else name.replace("bn2", "conv1")
        expected = gamma >= threshold
        assert int(expected.sum()) > 0, "a network in which no layer would lose everything"
        assert torch.equal(found.keep[group], expected), name
    for block in ("layer1.0", "layer2.1"):
        assert f"{block}.conv2" in found.left_alone
        assert "read by number" in found.left_alone[f"{block}.conv2"]
    assert found.proof.ok


def test_networks_without_batch_norms_are_refused():
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2))
    with pytest.raises(TopiaristError, match="no batch norm"):
        topiarist.prune(model, images(1), "slimming", 0.5)

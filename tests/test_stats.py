"""Statistics: known answers by brute force, the same sums however the data comes, and a model left as it was."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import topiarist
from topiarist.errors import TopiaristError
from topiarist.graph import Group, Site, Slice
from topiarist.measure import STATISTICS, Stats, collect, covariance, merge, response_sites

ALL = frozenset({"activations", "gradients", "covariance-max", "covariance-mean"})


class Net(nn.Module):
    """A convolution with batch norm and an in-place ReLU module, one with a ReLU function, and a flattened head."""

    inplace = False

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.fc1 = nn.Linear(54, 7)
        self.fc2 = nn.Linear(7, 3)

    def parts(self, x):
        first = self.act(self.bn1(self.conv1(x)))
        second = self.conv2(first)
        shifted = second.add_(0.5) if self.inplace else second + 0.5
        third = self.fc1(F.relu(shifted).flatten(1))
        return first, second, third, self.fc2(F.relu(third))

    def forward(self, x):
        return self.parts(x)[-1]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net()
    for buffer in (model.bn1.running_mean, model.bn1.running_var):
        buffer.data.uniform_(0.5, 1.5)
    model = model.double().eval()
    return model, topiarist.trace(model, torch.randn(2, 2, 8, 8).double())


def data(n=12, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 8, 8, generator=random).double(), torch.randint(3, (n,), generator=random)


def batches(sizes):
    x, y = data(sum(sizes))
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-12, msg=str(key))


def test_responses_are_measured_after_the_activation(net):
    model, graph = net
    found = {name: (site.module, site.kind) for name, site in response_sites(graph).items()}
    assert found == {"conv1": ("act", "ReLU"), "conv2": ("conv2", "Conv2d"), "fc1": ("fc1", "Linear")}


def test_activations_by_hand(net):
    model, graph = net
    stats = collect(model, graph, batches([12]), {"activations"})
    with torch.no_grad():
        responses = dict(zip(("conv1", "conv2", "fc1"), model.parts(data()[0]), strict=False))
    for name, z in responses.items():
        over = [axis for axis in range(z.ndim) if axis != 1]
        assert stats.sum(name, "activations.count") == z.numel() / z.shape[1]
        torch.testing.assert_close(stats.mean(name, "activations.sum"), z.mean(over))
        torch.testing.assert_close(stats.mean(name, "activations.squares"), z.square().mean(over))
        zeros = (F.relu(z) == 0).double().mean(over)
        torch.testing.assert_close(stats.mean(name, "activations.zeros"), zeros)
        assert 0 < zeros.mean() < 1


def test_taylor_by_one_gradient_per_example(net):
    model, graph = net
    stats = collect(model, graph, batches([5, 7]), {"gradients"})
    expected = [0, 0, 0]
    for x, y in zip(*data(), strict=True):
        # A copy stands for the response, as the in-place ReLU works on the batch norm's output, not on its own.
        *responses, output = model.parts(x[None])
        gradients = torch.autograd.grad(F.cross_entropy(output, y[None]), responses)
        for at, (z, g) in enumerate(zip(responses, gradients, strict=True)):
            effect = (z * g).flatten(2).mean(2) if z.ndim > 2 else z * g
            expected[at] = expected[at] + effect[0].abs().detach() / 12
    for name, taylor in zip(("conv1", "conv2", "fc1"), expected, strict=True):
        torch.testing.assert_close(stats.mean(name, "gradients.taylor"), taylor)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_covariance_of_pooled_responses(net, pool):
    model, graph = net
    stats = collect(model, graph, batches([4, 8]), {f"covariance-{pool}"})
    with torch.no_grad():
        z = model.parts(data()[0])[0]
    pooled = z.amax((2, 3)) if pool == "max" else z.mean((2, 3))
    torch.testing.assert_close(covariance(stats, "conv1", pool), torch.cov(pooled.T, correction=0))


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 7], [1, 2, 3, 6], [2, 2, 2, 2, 2, 2]])
def test_batches_do_not_matter(net, sizes):
    model, graph = net
    close(collect(model, graph, batches(sizes), ALL).sums, collect(model, graph, batches([12]), ALL).sums)


def test_halves_from_two_ranks_merge_in_any_order(net):
    model, graph = net
    parts = [collect(model, graph, [batch], ALL) for batch in batches([3, 4, 5])]
    whole = collect(model, graph, batches([12]), ALL)
    a, b, c = parts
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), merge(c, a, b)):
        close(merged.sums, whole.sums)
        assert merged.model is model
    nothing = collect(model, graph)
    close(nothing.merge(whole).sums, whole.sums)


def test_statistics_measured_together_or_apart_are_the_same(net):
    model, graph = net
    apart = [collect(model, graph, batches([6, 6]), {need}) for need in sorted(ALL)]
    close(merge(*apart).sums, collect(model, graph, batches([6, 6]), ALL).sums)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(net, fails):
    model, graph = copy.deepcopy(net[0]), net[1]
    model.train()
    model.bn1.eval()
    model.conv2.weight.requires_grad_(False)
    model.fc1.weight.grad = torch.ones_like(model.fc1.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    broken = [*batches([6, 6]), (torch.zeros(1, 9, 8, 8).double(), torch.zeros(1).long())]
    if fails:
        with pytest.raises(TopiaristError, match=r"fails on batch 3, inputs of shape .1, 9, 8, 8."):
            collect(model, graph, broken, ALL)
    else:
        collect(model, graph, batches([6, 6]), ALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.fc1.weight.grad, torch.ones_like(model.fc1.weight))
    assert model.conv1.weight.grad is None
    assert not model.conv2.weight.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_functions_that_work_in_place_do_not_matter(net):
    model, graph = copy.deepcopy(net[0]), net[1]
    model.inplace = True
    close(collect(model, graph, batches([12]), ALL).sums, collect(net[0], graph, batches([12]), ALL).sums)


def test_frozen_parameters_have_gradients_too(net):
    model, graph = copy.deepcopy(net[0]), net[1]
    expected = collect(model, graph, batches([12]), ALL).sums
    close(collect(model.requires_grad_(False), graph, batches([12]), ALL).sums, expected)


def test_tensors_of_the_model(net):
    model, graph = net
    stats = collect(model, graph)
    assert torch.equal(stats.tensor("conv1.weight"), model.conv1.weight)
    assert not stats.tensor("conv1.weight").requires_grad
    assert torch.equal(stats.tensor("bn1.running_mean"), model.bn1.running_mean)
    with pytest.raises(TopiaristError, match=r"no tensor 'conv\.weight': did you mean .*conv1\.weight"):
        stats.tensor("conv.weight")


class Shared(nn.Module):
    """One ReLU module for two layers of different width, as in torchvision's bottlenecks."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.out(self.relu(self.two(self.relu(self.one(x)))))


@dataclass(frozen=True, eq=False)
class CalledSite(Site):
    call: int = 0


@dataclass
class Handmade:
    groups: tuple
    shapes: dict

    def __getitem__(self, name):
        return next(group for group in self.groups if group.name == name)


def test_a_module_that_is_called_twice_shows_each_group_its_own_call():
    torch.manual_seed(0)
    model = Shared().double()
    groups = []
    for call, (name, n) in enumerate([("one", 4), ("two", 6)]):
        places = torch.arange(n)[:, None]
        sites = (CalledSite(name, 1, places, "Linear"), CalledSite("relu", 1, places, "ReLU", call))
        groups.append(Group(name, n, (Slice(f"{name}.weight", 0, places, "output"),), find_sites=sites))
    graph = Handmade(tuple(groups), {name: tuple(p.shape) for name, p in model.named_parameters()})
    x, y = torch.randn(8, 3).double(), torch.randint(2, (8,))
    stats = collect(model, graph, [(x[:3], y[:3]), (x[3:], y[3:])], {"activations", "gradients"})
    with torch.no_grad():
        one = F.relu(model.one(x))
        two = F.relu(model.two(one))
    torch.testing.assert_close(stats.mean("one", "activations.sum"), one.mean(0))
    torch.testing.assert_close(stats.mean("two", "activations.sum"), two.mean(0))
    assert stats.sum("two", "gradients.taylor").shape == (6,)


def test_a_trace_tells_the_calls_apart():
    torch.manual_seed(0)
    model, x = Shared().double(), torch.randn(8, 3).double()
    stats = collect(model, topiarist.trace(model, x), [x], {"activations"})
    with torch.no_grad():
        two = F.relu(model.two(F.relu(model.one(x))))
    torch.testing.assert_close(stats.mean("two", "activations.sum"), two.mean(0))


def test_units_of_several_positions_are_summed():
    model = nn.Identity()
    places = torch.tensor([[0, 3], [1, 4], [2, 5]])
    site = CalledSite("", 1, places, "Identity")
    graph = Handmade((Group("g", 3, (Slice("w", 0, places, "output"),), find_sites=(site,)),), {})
    x = torch.randn(5, 6, 2).double()
    weight = torch.randn(5, 6, 2).double()
    batches = [({"input": x}, weight)]
    needs = {"activations", "covariance-max", "gradients"}
    stats = collect(model, graph, batches, needs, loss=lambda output, target: (output * target).sum() / len(output))
    assert stats.sum("g", "activations.count") == 5 * 2 * 2
    torch.testing.assert_close(stats.sum("g", "activations.sum"), x.view(5, 2, 3, 2).sum((0, 1, 3)))
    effect = (x * weight).view(5, 2, 3, 2).mean((1, 3)).abs().mean(0)
    torch.testing.assert_close(stats.mean("g", "gradients.taylor"), effect)
    pooled = x.view(5, 2, 3, 2).amax((1, 3))
    torch.testing.assert_close(covariance(stats, "g"), torch.cov(pooled.T, correction=0))


@dataclass(frozen=True)
class Inputs:
    """A statistic of a method's own: the Gram matrix of what each linear layer reads."""

    name: str = "inputs"
    gradients: bool = False

    def watch(self, model, graph, run):
        for group in graph.groups:
            for part in group.by_role("input"):
                module = model.get_submodule(part.tensor.rpartition(".")[0])
                if isinstance(module, nn.Linear):

                    def see(module, args, group=group.name):
                        run.add(group, "inputs.count", len(args[0]))
                        run.add(group, "inputs.gram", args[0].T @ args[0])

                    yield module.register_forward_pre_hook(see)


def test_a_method_may_bring_its_own_statistic(net):
    model, graph = net
    stats = collect(model, graph, batches([4, 8]), {Inputs(), "activations", "weights", "training"})
    with torch.no_grad():
        hidden = F.relu(model.parts(data()[0])[2])
    torch.testing.assert_close(stats.sum("fc1", "inputs.gram"), hidden.T @ hidden)
    assert stats.sum("fc1", "inputs.count") == 12
    assert ("fc1", "activations.sum") in stats.sums


class Dicts(nn.Module):
    """Takes keyword arguments and gives a dict, as language models do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, left, right):
        return {"hidden": left, "logits": self.b(torch.relu(self.a(left + right)))}


@pytest.mark.parametrize("kind", [dict, tuple])
def test_inputs_of_several_tensors(kind):
    torch.manual_seed(0)
    model, x, y = Dicts(), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    inputs = {"left": x, "right": x} if kind is dict else (x, x)
    graph = topiarist.trace(model, inputs)
    stats = collect(model, graph, [(inputs, y)], {"gradients", "activations"})
    assert stats.sum("a", "gradients.count") == 4
    torch.testing.assert_close(stats.mean("a", "activations.sum"), model.a(2 * x).mean(0).detach().double())


def test_what_cannot_be_measured_is_refused(net):
    model, graph = net
    x, y = data(2)
    with pytest.raises(TopiaristError, match="activations must be measured: give data"):
        collect(model, graph, needs={"activations"})
    with pytest.raises(TopiaristError, match="no statistic 'activation': did you mean activations"):
        collect(model, graph, [x], {"activation"})
    with pytest.raises(TopiaristError, match="need targets"):
        collect(model, graph, [x], {"gradients"})
    with pytest.raises(TopiaristError, match="no batch"):
        collect(model, graph, [], {"activations"})
    with pytest.raises(TopiaristError, match="was not measured"):
        collect(model, graph, [x], {"activations"}).mean("conv1", "gradients.taylor")
    broken = copy.deepcopy(model)
    broken.conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(TopiaristError, match=r"conv2\.weight holds NaN"):
        collect(broken, graph)


def test_weight_graphs_have_no_responses(net):
    model, graph = net
    assert not collect(model, graph.weights(), batches([12]), ALL).sums


def test_stats_are_plain_values():
    stats = Stats({"w": torch.ones(2)})
    assert replace(stats, tensors={}).tensors == {}
    assert sorted(STATISTICS) == ["activations", "covariance-max", "covariance-mean", "gradients"]

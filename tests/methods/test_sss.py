"""What the paper on sparse structure selection promises, beside the golden row."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import topiarist
from networks import Net, conv, distance, shaken
from topiarist import Budget, Recipe, TopiaristError, load_data, prune
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose
from topiarist.train import attach

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


class Block(nn.Module):
    """A ResNeXt bottleneck: three groups of two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = conv(6, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.b, self.nb = conv(6, 6, groups=3, bias=False), nn.BatchNorm2d(6)
        self.c, self.nc = conv(6, 6, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        out = self.nb(self.b(self.na(self.a(x)).relu())).relu()
        return (x + self.nc(self.c(out))).relu()


def network() -> nn.Module:
    torch.manual_seed(0)
    return shaken(
        Net(
            lambda n, x: n.head(n.blocks(n.norm(n.stem(x)).relu()).mean((2, 3))),
            stem=conv(3, 6),
            norm=nn.BatchNorm2d(6),
            blocks=nn.Sequential(Block(), Block(), Block()),
            head=nn.Linear(6, 4),
        )
    )


def gated(structure, **fields):
    """A model in double precision, its method, the units it works on, and an optimiser."""
    model = network().double()
    method = make("sss", structure=structure, **fields)
    graph = method.units(topiarist.trace(model, X.double()))
    return model, method, graph, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X.double()), Y).backward()
    optimizer.step()


STRUCTURES = ("block", "group", "channel")
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


@every_structure
def test_scales_of_one_change_nothing_and_come_off(structure):
    model, method, graph, optimizer = gated(structure)
    before, state = model(X.double()), copy.deepcopy(model.state_dict())
    with attach(method, model, optimizer, graph):
        assert torch.equal(model(X.double()), before)
        assert dict(model.named_parameters()).keys() == {*state, "sss.scales"} - {
            k for k in state if "running" in k or "num" in k
        }
    assert torch.equal(model(X.double()), before)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not any(isinstance(value, torch.Tensor) for module in model.modules() for value in vars(module).values())


@every_structure
def test_the_folded_network_computes_what_the_gated_one_does(structure):
    model, method, graph, optimizer = gated(structure, gamma=0.0)
    with attach(method, model, optimizer, graph), torch.no_grad():
        gates = model.sss
        gates.scales.copy_(torch.rand(len(gates.scales), generator=torch.Generator().manual_seed(1)) * 2)
        gates.scales[1] = 0
        wanted = model(X.double())
        scales = gates.scales.clone()
    assert distance(model(X.double()), wanted) <= 1e-12
    scores = method.score(graph, collect(model, graph))
    assert torch.equal(torch.cat(list(scores.values())), scales)


def test_small_scales_of_channels_leave_filters_their_length_where_a_norm_follows():
    """They would be short for one rate of fine-tuning and long for another, though the network is the same."""
    model, method, graph, optimizer = gated("channel", gamma=0.0)
    lengths = {each.weight: model.get_parameter(each.weight).flatten(1).norm(dim=1) for each in graph.normed}
    assert lengths
    with attach(method, model, optimizer, graph), torch.no_grad():
        model.sss.scales.mul_(0.01)
        wanted = model(X.double())
    assert distance(model(X.double()), wanted) <= 1e-12
    for name, length in lengths.items():
        torch.testing.assert_close(model.get_parameter(name).flatten(1).norm(dim=1), length)


def multiplied(model, structure, scales):
    """The same network with the scales at the outputs, as the paper draws it."""
    other = copy.deepcopy(model)
    for number, block in enumerate(other.blocks):
        if structure == "block":
            block.nc.register_forward_hook(lambda m, a, out, k=number: out * scales[k])
        else:
            groups = scales[3 * number : 3 * number + 3].repeat_interleave(2).view(1, 6, 1, 1)
            block.c.register_forward_pre_hook(lambda m, args, g=groups: (args[0] * g,))
    return other


@pytest.mark.parametrize("structure", ["block", "group"])
def test_the_scales_multiply_the_outputs_of_blocks_and_groups(structure):
    """Value, gradient of the scales and gradients of the weights are those of ``x + lambda F(x)``."""
    model, method, graph, optimizer = gated(structure)
    model.train()
    values = 0.5 + torch.rand(3 if structure == "block" else 9, generator=torch.Generator().manual_seed(2)).double()
    scales = values.clone().requires_grad_()
    other = multiplied(model, structure, scales)
    nn.functional.cross_entropy(wanted := other(X.double()), Y).backward()
    with attach(method, model, optimizer, graph):
        with torch.no_grad():
            model.sss.scales.copy_(values)
        out = model(X.double())
        assert distance(out, wanted) <= 1e-12
        nn.functional.cross_entropy(out, Y).backward()
        torch.testing.assert_close(model.sss.scales.grad, scales.grad)
        for ours, theirs in zip(
            other.parameters(), (p for n, p in model.named_parameters() if n != "sss.scales"), strict=True
        ):
            torch.testing.assert_close(ours.grad, theirs.grad)


@every_structure
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_steps_are_the_papers_whatever_the_optimiser(structure, kind):
    model, method, graph, optimizer = gated(structure, gamma=0.3, momentum=0.8)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    with attach(method, model, optimizer, graph):
        scales = torch.ones_like(model.sss.scales)
        v = torch.zeros_like(scales)
        for _ in range(6):
            step(model, optimizer)
            z = scales - 0.05 * model.sss.scales.grad
            z = torch.where(z.abs() > 0.05 * 0.3, z - z.sign() * 0.05 * 0.3, torch.zeros_like(z))
            v = z - scales + 0.8 * v
            scales = (z + 0.8 * v).clamp(min=0)
            torch.testing.assert_close(model.sss.scales.detach(), scales, rtol=1e-12, atol=1e-15)


@every_structure
@pytest.mark.by_day(1)
def test_a_strong_penalty_gives_exact_zeros_which_are_removed_without_a_budget(structure):
    model, method, graph, optimizer = gated(structure, gamma=0.15)
    with attach(method, model, optimizer, graph):
        scored = method.score(graph, collect(model, graph))
        # From different places, so that some of them, and not all, arrive at 0.
        start = torch.cat([torch.linspace(0.2, 2, group.units) for group in graph.groups if group.name in scored])
        with torch.no_grad():
            model.sss.point.copy_(start)
            model.sss.scales.copy_(start)
        for _ in range(12):
            step(model, optimizer)
        zeros = model.sss.scales == 0
        assert zeros.any()
        assert not zeros.all()
        assert (model.sss.scales >= 0).all()
    wanted = model(X.double())
    done = prune(model, X.double(), method)
    assert done.proof.ok, done.proof.reason  # what was removed is noise for the proof, or it would be blind
    assert done.after.params < done.before.params
    assert all(kept.any() for kept in done.keep.values())
    scores = method.score(done.graph, collect(model, done.graph))
    for name, values in scores.items():
        kept = values > 0
        kept[values.argmax()] = True
        assert torch.equal(done.keep[name], kept)
    assert distance(done.model(X.double()), wanted) <= 1e-10, "what is exactly zero is not missed"


def test_zeros_outlive_a_file_and_scales_do_not():
    model, method, graph, optimizer = gated("block", gamma=0.0)
    with attach(method, model, optimizer, graph), torch.no_grad():
        model.sss.scales.copy_(torch.tensor([0.5, 0.0, 2.0]))
    fresh = network().double()
    fresh.load_state_dict(model.state_dict())
    assert method.score(graph, collect(model, graph))["blocks"].tolist() == [0.5, 0, 2]
    assert method.score(graph, collect(fresh, graph))["blocks"].tolist() == [1, 0, 1]
    assert list(topiarist.trace(model, X.double()).shapes) == list(graph.shapes), (
        "what is left for the score is no layer"
    )


def test_a_budget_goes_by_the_scales():
    model, method, graph, optimizer = gated("block", gamma=0.0)
    with attach(method, model, optimizer, graph), torch.no_grad():
        model.sss.scales.copy_(torch.tensor([0.5, 0.1, 2.0]))
    keep = choose(method, graph, collect(model, graph), Budget(ratio=0.67))
    assert keep["blocks"].tolist() == [True, False, True]
    done = prune(model, X.double(), method, Budget(ratio=0.34))
    assert done.keep["blocks"].tolist() == [False, False, True]
    assert done.proof.ok
    assert "Blocks removed: blocks.0, blocks.1" in str(done)


@pytest.mark.nightly
def test_training_through_the_front_door_prunes_and_loads_again(tmp_path):
    data = load_data("digits")
    make_model = topiarist.make_model("zoo:resnet20?width=0.25", in_channels=1, classes=10, input_size=8)
    torch.manual_seed(0)
    model = make_model()
    method = make("sss", gamma=0.1)
    done = prune(
        model,
        data.example(),
        topiarist.Pruning.of(method, sparse_training=Recipe(epochs=3, lr=0.1, batch_size=64)),
        data=data,
    )
    assert 1 <= int(done.keep["blocks"].sum()) < 7
    assert done.proof.ok
    x, _ = next(iter(data.batches("test", 32)))
    assert distance(done.model.eval()(x), done.trained.eval()(x)) <= 1e-4
    topiarist.save(done.model, done.architecture, tmp_path)
    assert torch.equal(topiarist.load(make_model, tmp_path).eval()(x), done.model(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("sss", gamma=-1), "gamma must be a number from 0 on"),
        (lambda: make("sss", momentum=1), "momentum must be at least 0 and below 1"),
        (lambda: make("sss", structure="layer"), "structure must be one of block, group, channel"),
        (
            lambda: make("sss").proximal(network(), topiarist.trace(network(), X), 0.1),
            "needs its gates in training",
        ),
        (lambda: _scores("group"), "no groups of convolutions or heads"),
        (lambda: _scores("block"), "no residual blocks"),
    ],
)
def test_what_it_cannot_do_is_refused(call, message):
    with pytest.raises(TopiaristError, match=message):
        call()


def _scores(structure):
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.Flatten(), nn.Linear(256, 2))
    graph = topiarist.trace(model, X)
    return make("sss", structure=structure).score(graph, collect(model, graph))

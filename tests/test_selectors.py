"""Channel selectors: what reads a norm loses inputs that others still need, and everything else stays as it was."""

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from networks import KEEPS, Net, conv, distance, images, multiplications, net, random_keep, shaken
from topiarist import Architecture, TopiaristError, add_selectors, cut, mask, prove, trace
from topiarist.budget import cost
from topiarist.graph import ChannelSelector
from topiarist.models.zoo.densenet import DenseNet
from topiarist.models.zoo.preresnet import PreBasic, PreBottleneck, PreResNet
from topiarist.surgery import non_degenerate

X = images(2, size=8)
MAKE = {
    "basic": lambda: PreResNet(3, 4, [4, 6, 8], 2, PreBasic, 5),
    "bottleneck": lambda: PreResNet(3, 4, [8, 8, 12], 2, PreBottleneck, 5),
    "dense": lambda: DenseNet(3, 6, 3, 2, False, 1.0, 5),
    "dense bottleneck": lambda: DenseNet(3, 6, 3, 2, True, 0.5, 5),
}


def declared(name):
    torch.manual_seed(0)
    model = non_degenerate(MAKE[name]()).eval()
    return model, add_selectors(model, "auto", X)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.by_day(2)
def test_cut_is_mask_with_selectors(name):
    _, model = declared(name)
    graph = trace(model, X)
    for seed, most in KEEPS:
        keep = random_keep(graph, seed, most)
        proof = prove(model, graph, keep, X)
        assert proof.max_rel_diff <= 1e-10, proof.reason
        assert proof.change > 1e-8
        smaller = cut(model, graph, keep)
        assert sum(p.numel() for p in smaller.parameters()) == cost(graph, keep).params
        assert multiplications(smaller, X) == 2 * cost(graph, keep).macs
    for group in graph.groups:
        keep = {group.name: torch.arange(group.units) == group.units // 2}
        assert prove(model, graph, keep, X).max_rel_diff <= 1e-10, group.name


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.by_day(1)
def test_nothing_changes_until_a_cut_but_the_declared_keys(name):
    plain, model = declared(name)
    graph = trace(model, X)
    assert torch.equal(model(X), plain(X))
    added = {f"{norm}.selector.indices" for norm in graph.selectors}
    assert set(model.state_dict()) == set(plain.state_dict()) | added
    assert not any(isinstance(module, ChannelSelector) for module in plain.modules())
    smaller = cut(model, graph, random_keep(graph, 1))
    assert list(smaller.state_dict()) == list(model.state_dict())
    assert type(smaller) is type(plain)
    assert cost(graph).params == sum(p.numel() for p in plain.parameters())
    for entry in graph.selectors:  # the norm that a selector follows stays whole
        assert smaller.get_submodule(entry).weight.shape == plain.get_submodule(entry).weight.shape


def test_the_first_norm_of_each_block_and_the_last_one_get_a_selector():
    """And the last convolution of a block, which others add to, is not cut on its outputs."""
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    for name, last in (("basic", "conv2"), ("bottleneck", "conv3")):
        graph = trace(declared(name)[1], X)
        assert list(graph.selectors) == [*(f"{block}.bn1" for block in blocks), "bn"]
        cut_axes = {(part.tensor, part.axis) for group in graph.groups for part in group.slices}
        for block in blocks:
            assert (f"{block}.{last}.weight", 0) not in cut_axes
            assert (f"{block}.conv1.weight", 1) in cut_axes
            assert [part.role for part in graph[f"{block}.bn1.selector"].slices] == ["index", "input"]
        reasons = {pin.reason for pin in graph.pinned if pin.tensor.endswith(f"{last}.weight") and pin.axis == 0}
        assert all("read by number (picked by layer" in reason or "picked by bn." in reason for reason in reasons)
        assert graph["bn.selector"].slices[1].tensor == "fc.weight"


def test_every_norm_that_reads_a_concatenation_gets_one():
    norms = {
        name
        for name, module in MAKE["dense bottleneck"]().named_modules()
        if isinstance(module, nn.BatchNorm2d) and not (name.endswith(".bn") and name != "bn")
    }
    assert set(trace(declared("dense bottleneck")[1], X).selectors) == norms


@pytest.mark.parametrize("make", [
    lambda: topiarist.load_model("zoo:resnet20", width=0.25),
    lambda: topiarist.load_model("zoo:digitsnet", width=0.25, in_channels=3),  # pads a stream with zeros
    lambda: topiarist.load_model("zoo:vgg11", width=0.125, input_size=32),
])  # fmt: skip
def test_plain_and_post_activation_networks_need_none(make):
    with pytest.raises(TopiaristError, match="leave selectors out"):
        add_selectors(make(), "auto", images(1, size=32))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.by_day(1)
def test_a_pruned_network_is_loaded_into_the_plain_one(name, tmp_path):
    plain, model = declared(name)
    graph = trace(model, X)
    keep = random_keep(graph, 3)
    smaller, shape = cut(model, graph, keep), Architecture.of(graph, keep)
    topiarist.save(smaller, shape, tmp_path)
    assert torch.equal(topiarist.load(MAKE[name], tmp_path).eval()(X), smaller(X))
    assert torch.equal(shape.apply(plain)(X), smaller(X))
    assert torch.equal(shape.apply(model)(X), smaller(X))  # one that has the selectors already
    assert not any(isinstance(module, ChannelSelector) for module in plain.modules())
    built = shape.build(MAKE[name])
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in smaller.state_dict().items()}
    for norm in graph.selectors:
        assert torch.equal(
            built.state_dict()[f"{norm}.selector.indices"], smaller.get_buffer(f"{norm}.selector.indices")
        )


def test_the_architecture_file_names_its_selectors():
    _, model = declared("basic")
    graph = trace(model, X)
    shape = Architecture.of(graph, random_keep(graph, 1))
    value = json.loads(json.dumps(shape.to_json()))
    assert Architecture.from_json(value).selectors == graph.selectors
    for wrong in (["fc"], "bn", [3], None, {"bn": 1}):
        with pytest.raises(TopiaristError):
            Architecture.from_json(signed({**value, "selectors": wrong}))


def test_files_from_before_there_were_selectors_still_load():
    model = shaken(MAKE["basic"]())
    graph = trace(model, X)
    keep = random_keep(graph, 1)
    value = Architecture.of(graph, keep).to_json()
    del value["selectors"]
    shape = Architecture.from_json(signed(value))
    assert shape.selectors == ()
    assert torch.equal(shape.apply(model)(X), cut(model, graph, keep)(X))


def signed(value):
    from topiarist.architecture import digest

    return {**value, "sha256": digest(value)}


def test_two_cuts_in_turn_select_among_the_selected():
    _, model = declared("basic")
    graph = trace(model, X)
    name = "layer2.1.bn1.selector"
    first = torch.tensor([True, False, True, True, False, True])
    once = cut(model, graph, {name: first})
    rest = trace(once, X)
    second = torch.tensor([False, True, True, True])
    both = first.clone()
    both[first.nonzero().flatten()[~second]] = False
    assert torch.equal(once.get_buffer(f"{name}.indices"), torch.tensor([0, 2, 3, 5]))
    assert prove(once, rest, {name: second}, X).ok
    twice, direct = cut(once, rest, {name: second}), cut(model, graph, {name: both})
    assert torch.equal(twice.get_buffer(f"{name}.indices"), torch.tensor([2, 3, 5]))
    assert torch.equal(twice(X), direct(X))


@pytest.mark.nightly
def test_a_cut_network_exports_copies_pickles_and_trains():
    _, model = declared("dense bottleneck")
    graph = trace(model, X)
    smaller = cut(model, graph, random_keep(graph, 1))
    program = torch.export.export(smaller, (X,))
    assert distance(program.module()(X), smaller(X)) <= 1e-5
    assert torch.equal(copy.deepcopy(smaller)(X), smaller(X))
    assert torch.equal(pickle.loads(pickle.dumps(smaller))(X), smaller(X))
    assert smaller(images(5, size=8)).shape == (5, 5)
    smaller.train()(X).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in smaller.parameters())


def test_a_selector_that_passes_on_everything_costs_nothing():
    _, model = declared("basic")
    program = torch.export.export(model, (X,))
    assert not any("index_select" in str(node.target) for node in program.graph.nodes)
    selector = ChannelSelector(4)
    x = torch.randn(2, 4, 3)
    assert selector(x) is x
    selector.indices = torch.tensor([1, 3])
    assert torch.equal(selector(x), x[:, [1, 3]])


def test_the_norms_may_be_named():
    plain, _ = declared("basic")
    model = add_selectors(plain, ["layer2.*.bn1", "bn"])
    assert trace(model, X).selectors == ("layer2.0.bn1", "layer2.1.bn1", "bn")
    assert trace(add_selectors(model, "layer3.0.bn1"), X).selectors[-2:] == ("layer3.0.bn1", "bn")


def test_what_cannot_be_selected_for_is_refused():
    plain, _ = declared("basic")
    for wish, told in (("layer9.*", "matches no"), ("fc", "matches no"), ("auto", "example_inputs")):
        with pytest.raises(TopiaristError, match=told) as error:
            add_selectors(plain, wish)
        assert "\n" not in str(error.value)
    with pytest.raises(TopiaristError, match="none"):
        add_selectors(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "*")
    own = nn.BatchNorm2d(4)
    own.selector = nn.Identity()
    with pytest.raises(TopiaristError, match="rename"):
        add_selectors(nn.Sequential(own), "0")


@pytest.mark.parametrize("pick", [lambda x, i: x[:, i], lambda x, i: x.index_select(1, i)])
def test_any_buffer_of_numbers_selects(pick):
    """The rule knows no selector: what a buffer picks goes with its numbers, and what it picks from stays."""
    make = net(
        lambda n, x: n.b(F.relu(pick(n.a(x), n.picked))),
        lambda: {"a": conv(3, 8), "b": conv(5, 4), "picked": nn.Buffer(torch.tensor([6, 1, 1, 0, 3]))},
    )
    model = shaken(make())
    graph = trace(model, images(2))
    (group,) = graph.groups
    assert (group.name, group.units) == ("picked", 5)
    assert [(part.tensor, part.axis, part.role) for part in group.slices] == [
        ("picked", 0, "index"), ("b.weight", 1, "input"),
    ]  # fmt: skip
    assert "read by number (picked by picked)" in next(p.reason for p in graph.pinned if p[:2] == ("a.weight", 0))
    keep = {"picked": torch.tensor([True, False, True, True, False])}
    assert prove(model, graph, keep, images(2)).ok
    assert cut(model, graph, keep).picked.tolist() == [6, 1, 0]


def test_numbers_that_are_computed_select_nothing():
    model = shaken(
        Net(
            lambda n, x: n.b(n.a(x)[:, n.picked + 1]),
            a=conv(3, 8), b=conv(3, 4), picked=nn.Buffer(torch.tensor([-1, 2, 3])),
        )
    )  # fmt: skip
    assert trace(model, images(2)).groups == ()


def test_dead_positions_of_a_selector_reach_nothing():
    """What a mask picks at dead positions does not matter, not even to a sum over the channels."""
    model = shaken(
        Net(
            lambda n, x: n.b(n.a(x).index_select(1, n.picked)) + n.a(x).index_select(1, n.picked).sum(1, keepdim=True),
            a=conv(3, 8), b=conv(3, 4), picked=nn.Buffer(torch.tensor([5, 2, 3])),
        )
    )  # fmt: skip
    graph = trace(model, images(2))
    for seed in range(4):
        assert prove(model, graph, random_keep(graph, seed, 2), images(2)).ok


def test_the_mask_keeps_the_old_size():
    _, model = declared("basic")
    graph = trace(model, X)
    keep = random_keep(graph, 1)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in mask(model, graph, keep).state_dict().items()} == shapes


def test_a_selector_of_the_programs_own_is_a_layer_like_any_other():
    """It is part of the model that makes it, so no architecture declares it."""
    make = net(
        lambda n, x: n.b(n.pick(n.a(x)).relu()), lambda: {"a": conv(3, 8), "pick": ChannelSelector(8), "b": conv(8, 4)}
    )
    model = shaken(make())
    graph = trace(model, images(2))
    assert graph.selectors == ()
    keep = {"pick": torch.arange(8) % 2 == 0}
    smaller = cut(model, graph, keep)
    assert torch.equal(Architecture.of(graph, keep).apply(model)(images(2)), smaller(images(2)))
    assert smaller.pick.indices.tolist() == [0, 2, 4, 6]


def test_a_bias_picked_by_number_stays_as_long_as_the_sequence():
    """Relative positions: a table of biases, picked by a buffer for each pair of places that attend to each other."""

    def program(net, x):
        q, k, v = (part(x).unflatten(-1, (3, 4)).transpose(1, 2) for part in (net.q, net.k, net.v))
        bias = net.table[net.pairs.view(-1)].view(5, 5, 3).permute(2, 0, 1)
        return net.proj(F.scaled_dot_product_attention(q, k, v, bias[None]).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(6, 12) for name in "qkv"}
    pairs = nn.Buffer((torch.arange(5)[:, None] - torch.arange(5)) + 4)
    model = shaken(Net(program, **parts, proj=nn.Linear(12, 6), table=nn.Parameter(torch.randn(9, 3)), pairs=pairs))
    x = torch.randn(2, 5, 6)
    graph = trace(model, x)
    assert not any(part.tensor == "pairs" for group in graph.groups for part in group.slices)
    assert graph.groups
    for seed in range(4):
        assert prove(model, graph, random_keep(graph, seed), x).ok

"""Cutting and masking: cut ≡ mask, two cuts are one, and a cut network is as usable as the one it came from."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from networks import (
    CASES,
    KEEPS,
    NIGHT,
    Net,
    call,
    check_keep,
    conv,
    distance,
    flat,
    images,
    line,
    qkv_parts,
    random_keep,
    real,
    shaken,
    tokens,
    zeroed,
)  # fmt: skip
from topiarist import TopiaristError, cut, mask, prove, trace
from topiarist.graph import fast_path_off
from topiarist.surgery import copied, masked


@pytest.mark.parametrize("name", CASES)
def test_cut_is_mask(name):
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.inputs)
    seen = False
    for seed, most in KEEPS:
        keep = random_keep(graph, seed, most)
        change = check_keep(case, model, graph, keep)
        if not all(bool(kept.all()) for kept in keep.values()):
            assert change > 1e-8, "the mask must do something, or the proof is blind"
            seen = True
    assert seen


@pytest.mark.parametrize("name", CASES)
@pytest.mark.by_day(10)
def test_groups_are_independent(name):
    """Each group alone may keep a single unit, while the others stay whole."""
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.inputs)
    for group in graph.groups:
        keep = {group.name: torch.arange(group.units) == group.units // 2}
        proof = prove(model, graph, keep, case.inputs)
        assert proof.max_rel_diff <= 1e-10, (group.name, proof.reason)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.by_day(10)
def test_a_cut_network_trains(name):
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.inputs)
    smaller = cut(model, graph, random_keep(graph, 3)).train()
    loss = sum(output.square().mean() for output in flat(call(smaller, case.other)))
    loss.backward()
    for parameter_name, parameter in smaller.named_parameters():
        assert parameter.is_leaf
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.shape == parameter.shape
    before = [parameter.clone() for parameter in smaller.parameters()]
    torch.optim.SGD(smaller.parameters(), lr=0.1).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, smaller.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters()), "the given model shares nothing"


SUMS = {
    "of zeros": lambda n, x: n.a(x).relu().sum(1),
    "norm": lambda n, x: torch.linalg.vector_norm(n.a(x), dim=1),
    "largest": lambda n, x: torch.linalg.vector_norm(n.a(x), ord=torch.inf, dim=1),
    "smallest": lambda n, x: torch.linalg.vector_norm(n.a(x), ord=-torch.inf, dim=1),
    "count": lambda n, x: torch.linalg.vector_norm(n.a(x), ord=0, dim=1),
    "of sigmoids": lambda n, x: n.a(x).sigmoid().sum(1),
    "of gated zeros": lambda n, x: (n.a(x) * n.c(x).sigmoid()).sum(1),
    "of cosines": lambda n, x: (n.a(x).cos() - 1).sum(1),
    "of a product's rows": lambda n, x: (n.a(x).sigmoid().flatten(2) @ x.flatten(2).transpose(1, 2)).sum(1),
    "of a norm's shift": lambda n, x: n.norm(n.a(x)).sum(1),
    "of a computed bias": lambda n, x: F.conv2d(x, n.a.weight, n.a.bias.sigmoid(), padding=1).sum(1),
    "of a filled view": lambda n, x: n.filled(n.a(x)).sum(1),
    "of filled zeros": lambda n, x: n.filled(torch.zeros_like(n.a(x))).sum(1),
    "of a copied view": lambda n, x: n.copied(torch.zeros_like(n.a(x)), n.a(x)).sum(1),
    "of ones like it": lambda n, x: torch.ones_like(n.a(x)).sum(1),
    "of powers": lambda n, x: (n.a(x) ** 2 + n.a(x).abs() ** 0.5).sum(1),
    "of a power of zero": lambda n, x: (n.a(x) ** 0).sum(1),
    "of clamped": lambda n, x: n.a(x).clamp(0.1, 0.5).sum(1),
    "of a mean": lambda n, x: n.a(x).mean((2, 3)).sum(1),
    "of an exponential": lambda n, x: n.a(x).exp().sum(1),
    "of where": lambda n, x: torch.where(n.a(x) > 0.2, n.a(x), 1.0).sum(1),
    "of padded": lambda n, x: F.pad(n.a(x), (1, 1), value=2.0).sum(1),
    "product": lambda n, x: n.a(x).prod(1),
    "of a masked fill": lambda n, x: n.a(x).masked_fill(x[:, :1] > 0, 0.3).sum(1),
    "of a lerp": lambda n, x: torch.lerp(n.a(x), n.c(x).sigmoid(), 0.4).sum(1),
    "of addcmul": lambda n, x: torch.addcmul(n.a(x).sigmoid(), n.a(x), n.c(x)).sum(1),
    "of attention's values": lambda n, x: F.scaled_dot_product_attention(
        x.flatten(2).transpose(1, 2), x.flatten(2).transpose(1, 2), n.a(x).sigmoid().flatten(2).transpose(1, 2)
    ).sum(-1),
    "of a loss": lambda n, x: F.mse_loss(n.a(x), n.c(x), reduction="none").sum(1),
}


@pytest.mark.parametrize("name", SUMS)
def test_what_is_summed_over_must_be_zero_where_it_is_dead(name):
    """A sum over channels keeps them cuttable only where dead ones add nothing; else it must pin them."""

    def filled(x):
        x[:, :3].add_(1.0)
        return x

    def copied(x, y):
        x[:, :3].copy_(y[:, :3].sigmoid())
        return x

    model = shaken(Net(SUMS[name], a=conv(3, 8), c=conv(3, 8), norm=nn.LayerNorm(6), filled=filled, copied=copied))
    graph = trace(model, images(2))
    for seed in range(4 if NIGHT else 2):
        proof = prove(model, graph, random_keep(graph, seed), images(2))
        assert proof.max_rel_diff <= 1e-10, proof.reason
    if name in ("of zeros", "norm", "largest", "of gated zeros", "of a mean"):
        assert [group.name for group in graph.groups] == (["a"])


def composed(first, kept, second, kept_of_rest):
    """The keep of `first` that does what its keep and then one of the smaller network's graph do."""
    alive = {}
    for graph, keep in ((first, kept), (second, kept_of_rest)):
        stays = {}
        for group in graph.groups:
            for part in group.slices:
                size = graph.shapes[part.tensor][part.axis]
                axis = stays.setdefault((part.tensor, part.axis), torch.ones(size, dtype=torch.bool))
                axis[part.positions[~keep[group.name]].flatten()] = False
        for key, axis in stays.items():
            whole = alive.setdefault(key, torch.ones(first.shapes[key[0]][key[1]], dtype=torch.bool))
            whole[torch.nonzero(whole).flatten()[~axis]] = False
    return {
        group.name: alive[group.slices[0].tensor, group.slices[0].axis][group.slices[0].positions].any(1)
        for group in first.groups
    }


def fused(net, x):
    """Literal sizes, a scale from a shape, and norms, all in one forward."""
    batch, length, _ = x.shape
    q, k, v = net.qkv(x).reshape(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    x = net.proj(((q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
    x = F.group_norm(net.up(F.layer_norm(x, (12,))).transpose(1, 2), 1).transpose(1, 2)
    return net.down(x.reshape(batch, length, 2, 4).relu().reshape(batch, length, 8))


def corrected():
    return shaken(Net(fused, **qkv_parts(up=nn.Linear(12, 8), down=nn.Linear(8, 3))))


TWICE = ["chain", "residual", "dense", "split", "grouped", "channel shuffle", "grouped transposed", "group norm"]
TWICE += ["attention", "literal attention", "sdpa", "bmm", "multi-head", "encoder layer", "weight standardisation"]


@pytest.mark.parametrize("name", [*TWICE, "fused"])
@pytest.mark.by_day(8)
def test_two_cuts_in_turn_are_one_cut(name):
    model, inputs = (corrected(), tokens(2)) if name == "fused" else (CASES[name].model(), CASES[name].inputs)
    model, inputs = model.double(), real(inputs)
    graph = trace(model, inputs)
    for seed in range(4 if NIGHT else 1):
        first = random_keep(graph, seed)
        once = cut(model, graph, first)
        rest = trace(once, inputs)
        second = random_keep(rest, seed + 10)
        assert prove(once, rest, second, inputs).max_rel_diff <= 1e-10
        twice, direct = cut(once, rest, second), cut(model, graph, composed(graph, first, rest, second))
        assert distance(call(twice, inputs), call(direct, inputs)) <= 1e-12
        for key, tensor in direct.state_dict().items():
            assert torch.equal(tensor, twice.state_dict()[key]), key


def test_a_layer_norm_sees_kept_features_only():
    model = shaken(line(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4))()).double()
    x = tokens(2).double()
    graph = trace(model, x)
    kept = torch.tensor([0, 3, 4, 5, 7])
    masked = mask(model, graph, {"0": torch.isin(torch.arange(8), kept)})
    first, norm, _, last = model
    y = x @ first.weight[kept].T + first.bias[kept]
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    y = F.gelu(y * norm.weight[kept] + norm.bias[kept]) @ last.weight[:, kept].T + last.bias
    assert distance(masked(x), y) <= 1e-12
    assert distance(zeroed(model, graph, {"0": torch.isin(torch.arange(8), kept)})(x), y) > 1e-3


def test_a_group_norm_sees_kept_channels_only():
    model = shaken(nn.Sequential(conv(3, 12, 1), nn.GroupNorm(3, 12), conv(12, 4, 1))).double()
    x = images(2).double()
    graph = trace(model, x)
    groups, widths = torch.tensor([True, False, True]), torch.tensor([True, True, False, True])
    masked = mask(model, graph, {"0:rows": groups, "0:columns": widths})
    first, norm, last = model
    y = first(x).unflatten(1, (3, 4))[:, groups][:, :, widths]
    y = (y - y.mean((2, 3, 4), keepdim=True)) / (y.var((2, 3, 4), unbiased=False, keepdim=True) + norm.eps).sqrt()
    kept = (groups[:, None] & widths[None]).flatten()
    y = y.flatten(1, 2) * norm.weight[kept].view(-1, 1, 1) + norm.bias[kept].view(-1, 1, 1)
    assert distance(masked(x), F.conv2d(y, last.weight[:, kept], last.bias)) <= 1e-12


def test_kept_positions_are_known_by_call_of_a_shared_norm():
    """The same norm, called on two streams of which only one is cut."""
    model = Net(
        lambda n, x: n.c(n.norm(n.a(x)).relu()) + n.d(F.layer_norm(n.b(x), (8,)).relu()) + n.d(n.b(x)),
        a=nn.Linear(12, 8), b=nn.Linear(12, 8), c=nn.Linear(8, 4), d=nn.Linear(8, 4), norm=nn.LayerNorm(8),
    )  # fmt: skip
    graph = trace(shaken(model), tokens(2))
    for seed in range(4):
        proof = prove(model, graph, random_keep(graph, seed), tokens(2))
        assert proof.max_rel_diff <= 1e-10


# what becomes of a model


def test_the_given_model_stays_as_it_is():
    case = CASES["encoder layer"]
    model = case.model()
    before, output = copy.deepcopy(model.state_dict()), call(model, case.inputs)
    graph = trace(model, case.inputs)
    for make in (cut, mask):
        make(model, graph, random_keep(graph, 0))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(call(model, case.inputs), output)
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert type(model[1].self_attn) is nn.MultiheadAttention


def test_class_dtype_grad_and_mode_are_kept():
    model = CASES["residual"].model().bfloat16()
    model.conv1.weight.requires_grad_(False)
    model.bn1.train()
    graph = trace(model, images(1).bfloat16())
    smaller = cut(model, graph, {"stem": torch.arange(8) != 2, "conv1": torch.arange(6) > 2})
    assert type(smaller) is type(model)
    assert {p.dtype for p in smaller.parameters()} == {torch.bfloat16}
    assert not smaller.conv1.weight.requires_grad
    assert smaller.conv2.weight.requires_grad
    assert smaller.bn1.training
    assert not smaller.bn2.training


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Embedding(11, 12), nn.Linear(12, 12), nn.Linear(12, 11, bias=False))
    model[2].weight = model[0].weight
    graph = trace(model, torch.arange(4)[None])
    smaller = cut(model, graph, {"0": torch.arange(12) < 5})
    assert smaller[2].weight is smaller[0].weight
    assert smaller[2].weight.shape == (11, 5)
    assert list(smaller.state_dict()) == list(model.state_dict())


def test_a_graph_cuts_other_weights_of_the_same_architecture():
    case = CASES["grouped"]
    graph = trace(case.model(), case.inputs)
    other = shaken(case.make(), seed=7)
    assert prove(other, graph, random_keep(graph, 1), case.inputs).ok


@pytest.mark.parametrize("name", ["attention", "multi-head", "group norm", "literal attention"])
def test_cut_networks_copy_and_pickle(name):
    case = CASES[name]
    module = case.make if name == "multi-head" else None
    graph = trace(model := case.model(), case.inputs)
    smaller = cut(model, graph, random_keep(graph, 1))
    copied = copy.deepcopy(smaller)
    assert torch.equal(call(copied, case.inputs), call(smaller, case.inputs))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert call(smaller, case.inputs).abs().sum() > 0
    if module:
        assert torch.equal(call(pickle.loads(pickle.dumps(smaller)), case.inputs), call(smaller, case.inputs))


EXPORTED = ["grouped", "literal attention", "multi-head", pytest.param("attention", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.by_day(1)
def test_a_cut_network_exports(name):
    case = CASES[name]
    graph = trace(model := case.model(), case.inputs)
    smaller = cut(model, graph, random_keep(graph, 1))
    program = torch.export.export(smaller, (case.inputs,), strict=False)  # as by default from torch 2.7 on
    assert distance(program.module()(case.inputs), smaller(case.inputs)) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.nightly
def test_a_cut_network_exports_to_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    case = CASES["residual"]
    graph = trace(model := case.model(), case.inputs)
    smaller = cut(model, graph, random_keep(graph, 1))
    torch.onnx.export(smaller, (case.inputs,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    proto = onnx.load(tmp_path / "model.onnx")
    (output,) = ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: case.inputs.numpy()})
    np.testing.assert_allclose(output, smaller(case.inputs).detach().numpy(), atol=1e-4)


# errors


@pytest.mark.parametrize(("keep", "told"), [
    ({"1": torch.ones(8, dtype=torch.bool)}, "no group named '1'"),
    ({"0": torch.ones(7, dtype=torch.bool)}, "8 entries"),
    ({"0": torch.ones(8)}, "bool tensor"),
    ({"0": torch.zeros(8, dtype=torch.bool)}, "keep at least one"),
])  # fmt: skip
def test_keeps_that_do_not_fit(keep, told):
    model = CASES["chain"].model()
    graph = trace(model, images(1))
    for make in (cut, mask, lambda *given: prove(*given, images(1)), topiarist.Architecture.of):
        given = (graph, keep) if make == topiarist.Architecture.of else (model, graph, keep)
        with pytest.raises(TopiaristError, match=told):
            make(*given)


@pytest.mark.parametrize("make", [cut, mask])
def test_models_that_were_not_traced(make):
    graph = trace(CASES["chain"].model(), images(1))
    keep = {"0": torch.arange(8) < 3, "3": torch.arange(6) != 1}
    for other in (CASES["residual"].model(), line(conv(3, 4), nn.BatchNorm2d(4))(), nn.Linear(3, 3)):
        with pytest.raises(TopiaristError, match="traced"):
            make(other, graph, keep)


def test_a_full_keep_changes_nothing():
    case = CASES["multi-head"]
    model = case.model()
    graph = trace(model, case.inputs)
    for keep in ({}, graph.full()):
        assert torch.equal(call(cut(model, graph, keep), case.inputs), call(model, case.inputs))
        assert distance(call(mask(model, graph, keep), case.inputs), call(model, case.inputs)) <= 1e-5


@pytest.mark.parametrize("name", CASES)
@pytest.mark.by_day(10)
def test_masked_for_a_while(name):
    """The mask itself while it lasts, and afterwards the model as it was, bit by bit."""
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.inputs)
    before, output = copy.deepcopy(model.state_dict()), flat(call(model, case.inputs))
    kinds = [type(module) for module in model.modules()]
    for seed in range(2 if NIGHT else 1):
        keep = random_keep(graph, seed)
        with torch.no_grad(), fast_path_off(), masked(model, graph, keep) as seen:
            assert seen is model
            assert distance(call(model, case.inputs), call(mask(copied(model), graph, keep), case.inputs)) == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(*pair) for pair in zip(flat(call(model, case.inputs)), output, strict=True))


def test_two_masks_in_turn_are_one():
    model = CASES["layer norm"].model()
    inputs = CASES["layer norm"].inputs
    graph = trace(model, inputs)
    first, second = (random_keep(graph, seed, 99) for seed in (3, 4))
    both = {name: first[name] & second[name] for name in first}
    both = {name: k if k.any() else first[name] for name, k in both.items()}
    second = {name: both[name] | ~first[name] for name in first}
    twice = call(mask(mask(model, graph, first), graph, second), inputs)
    assert distance(twice, call(mask(model, graph, both), inputs)) == 0


def test_a_mask_for_a_while_ends_with_an_error_too():
    model = CASES["chain"].model()
    graph = trace(model, images(2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError), masked(model, graph, random_keep(graph, 0)):
        model(torch.zeros(1, 7))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with (
        pytest.raises(TopiaristError, match="removes every unit"),
        masked(model, graph, {"0": torch.zeros(8, dtype=torch.bool)}),
    ):
        pass


def test_single_weights_are_masked():
    model = CASES["tied weights"].model()
    inputs = CASES["tied weights"].inputs
    graph = trace(model, inputs).weights()
    assert {group.name: group.units for group in graph.groups} == {"words.weight": 132, "hidden.weight": 144}
    keep = random_keep(graph, 0)
    for make in (cut, mask):
        sparse = make(model, graph, keep)
        for name, kept in keep.items():
            found, whole = sparse.get_parameter(name), model.get_parameter(name)
            assert torch.equal(found, whole * kept.view(whole.shape))


class Tabled(nn.Module):
    """Adds a table of positions that is a plain tensor, neither parameter nor buffer; another one is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        self.table = torch.arange(60.0).view(5, 12).sin()
        self.other = torch.ones(12)
        self.seen = torch.ones(12)

    def forward(self, x):
        hidden = self.first(x) + self.table[None, : x.shape[1]]
        self.seen = hidden.detach().mean((0, 1))
        return self.last(hidden)


def test_constants_lose_what_they_meet():
    model, x = Tabled(), torch.randn(2, 5, 6)
    done = topiarist.prune(model, x, "l1", topiarist.Budget(ratio=0.5))
    assert torch.equal(done.model.table, model.table[:, done.keep["first"]])
    assert done.model.other.shape == (12,)
    fresh = done.architecture.apply(Tabled())
    fresh.load_state_dict(done.model.state_dict())
    assert torch.equal(fresh(x), done.model(x))
    assert fresh.seen.shape == (6,)
    again = topiarist.prune(done.model, x, "l1", topiarist.Budget(ratio=0.5))
    assert again.model.table.shape == (5, 3)

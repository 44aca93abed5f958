"""The front door: from a model and a budget to a smaller model, its shape, its proof and its costs."""

import copy

import pytest
import torch
from torch import nn

import topiarist
from networks import CASES, Net, call, conv, distance, images, shaken, tokens
from topiarist import Architecture, Budget, TopiaristError, cut, prune, trace
from topiarist.budget import cost
from topiarist.methods import make, names

WIDE = ["residual", "dense", "attention", "encoder layer", "channel shuffle", "tied weights"]


@pytest.mark.parametrize("method", ["random", "l1", "slimming", "magnitude"])
@pytest.mark.parametrize("name", ["residual", "chain"])
def test_every_method_goes_all_the_way(name, method):
    case = CASES[name]
    model = case.model()
    before, output = copy.deepcopy(model.state_dict()), call(model, case.inputs)
    found = prune(model, case.inputs, method, 0.5)
    assert found.proof.ok, found.proof.reason
    assert found.before == cost(found.graph)
    assert found.after == cost(found.graph, found.keep)
    if method != "magnitude":  # whose plain number is the fraction of weights
        assert found.after.macs <= found.before.macs / 2
    assert found.after.params == sum(int(p.count_nonzero()) for p in found.model.parameters())
    assert torch.equal(found.architecture.apply(model)(case.inputs), found.model(case.inputs))
    assert torch.equal(cut(model, found.graph, found.keep)(case.inputs), found.model(case.inputs))
    assert found.model(case.inputs).shape == output.shape
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert found.method == make(method)
    assert found.trained is model


@pytest.mark.parametrize("name", WIDE)
def test_a_budget_is_met_on_every_kind_of_network(name):
    case = CASES[name]
    model = case.model()
    found = prune(model, case.inputs, "random", Budget(params=0.6))
    assert found.after.params <= 0.6 * found.before.params
    assert sum(p.numel() for p in found.model.parameters()) == found.after.params
    assert found.proof.max_rel_diff <= 1e-10
    assert distance(call(found.model, case.other), call(found.architecture.apply(model), case.other)) == 0


def test_methods_see_the_training_examples_in_one_random_order():
    """Data on disks have one class after the other; a method that looks at the first examples must see them all."""
    chance = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 4, 4, generator=chance), torch.arange(60) // 20
    data = topiarist.Data.of("sorted", x, y, x[:3], torch.arange(3))
    seen = []

    class Looking(type(make("random"))):
        def score(self, graph, stats):
            seen.append([torch.cat([labels for _, labels in stats.batches]) for _ in range(2)])
            return super().score(graph, stats)

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    for seed in (0, 0, 1):
        prune(model, data.example(), Looking(), 0.5, data, run=topiarist.Run(seed=seed))
    (first, again), (repeated, _), (other, _) = seen
    assert torch.equal(first, again)
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)
    assert first.bincount().tolist() == [20, 20, 20]
    assert len(first[:10].unique()) == 3


def test_l1_removes_the_filters_of_small_norm():
    model = CASES["chain"].model()
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] *= 1e-3
    found = prune(model, images(2), "l1", {"ratios": {"0": 5 / 8}, "exclude": ["4"]})
    assert found.keep["0"].tolist() == [True, False, True, True, False, True, False, True]
    assert found.architecture.widths == {"0": (5, 8), "3": (6, 6)}


def test_budgets_as_number_mapping_and_value():
    model = CASES["chain"].model()
    by_number = prune(model, images(2), "l1", 0.5)
    by_mapping = prune(model, images(2), "l1", {"macs": 0.5})
    by_value = prune(model, images(2), "l1", Budget(macs=0.5))
    for found in (by_mapping, by_value):
        assert {k: v.tolist() for k, v in found.keep.items()} == {k: v.tolist() for k, v in by_number.keep.items()}


def test_the_seed_of_random_decides():
    model = CASES["residual"].model()
    kept = [prune(model, images(2), make("random", seed=seed), 0.5).keep["stem"].tolist() for seed in (0, 0, 1, 2)]
    assert kept[0] == kept[1]
    assert kept[0] != kept[2] or kept[0] != kept[3]


def test_pruned_networks_can_be_pruned_again():
    case = CASES["attention"]
    once = prune(case.model(), case.inputs, "random", Budget(params=0.7))
    twice = prune(once.model, case.inputs, "random", Budget(params=0.7))
    assert twice.before.params == once.after.params
    assert twice.after.params <= 0.49 * once.before.params
    assert twice.proof.max_rel_diff <= 1e-10


def test_single_weights():
    model = CASES["chain"].model()
    found = prune(model, images(2), "magnitude", 0.1)
    weights = torch.cat([model.get_parameter(g.name).flatten().abs() for g in found.graph.groups])
    kept = torch.cat([found.keep[g.name] for g in found.graph.groups])
    assert kept.sum() == int(0.1 * weights.numel())
    assert weights[kept].min() >= weights[~kept].max()
    assert {p.shape for p in found.model.parameters()} == {p.shape for p in model.parameters()}
    graph = trace(model, images(2))
    assert torch.equal(prune(model, images(2), "magnitude", 0.1, graph=graph).model(images(2)), found.model(images(2)))


def test_the_table_names_groups_costs_and_layers_left_alone():
    model = shaken(
        Net(
            lambda n, x: n.out(torch.linalg.qr(n.inner(n.stem(x).mean((2, 3))))[0]),
            stem=conv(3, 8), inner=nn.Linear(8, 6), out=nn.Linear(2, 4),
        )
    )  # fmt: skip
    found = prune(model, images(2), "l1", {"ratio": 0.5})
    text = str(found)
    assert set(found.left_alone) == {"inner", "out"}
    for told in ("stem", "6x6", "50%", "inner", "linalg_qr", "without a rule", "MACs", "parameters", "in float64"):
        assert told in text, told
    assert str(found.before.params) in text.replace(",", "")


def test_layers_that_the_budget_spares_are_named_as_such():
    found = prune(CASES["chain"].model(), images(2), "l1", {"ratios": {"0": 0.5}})
    assert found.left_alone["3"] == "keeps every unit"
    assert "output" in found.left_alone["8"]


def test_what_cannot_be_proved_is_pinned_and_the_rest_pruned():
    inner = Net(lambda n, x: n.b(n.a(x) * 2 if n.a(x).shape[1] > 7 else n.a(x)), a=conv(3, 8), b=conv(8, 5, 1))
    model = shaken(Net(lambda n, x: n.last(n.after(n.inner(x))), inner=inner, after=conv(5, 6), last=conv(6, 4)))
    found = prune(model, images(2), "l1", {"ratio": 0.5})
    assert found.proof.max_rel_diff <= 1e-10
    assert "after" in found.keep
    assert "inner.a" not in found.keep
    assert "cannot be proved" in found.left_alone["inner.a"]


def test_the_graph_may_be_given():
    case = CASES["attention"]
    model = case.model()
    graph = trace(model, case.inputs, rectangles="rows")
    found = prune(model, case.inputs, "l1", {"ratio": 0.4}, graph=graph)
    assert found.graph is graph
    assert set(found.keep) == {"qkv"}
    assert found.model.heads < 3


# errors: one sentence each


def refused(match, *args, **kwargs):
    with pytest.raises(TopiaristError, match=match) as told:
        prune(*args, **kwargs)
    assert "\n" not in str(told.value)


def test_bad_input():
    model = CASES["chain"].model()
    refused("l2", model, images(2), "l2", 0.5)
    refused("the model fails", model, images(2, channels=2), "l1", 0.5)
    refused("the budget has no 'flops'", model, images(2), "l1", {"flops": 0.5})
    for budget in (-0.1, 1.5, {"macs": 2}, {"ratio": -1}, {"params": float("nan")}, {"ratios": {"0": 3}}):
        refused(None, model, images(2), "l1", budget)
    refused("matches no group", model, images(2), "l1", {"ratios": {"nothing*": 0.5}})
    refused(None, model, images(2), "l1")
    refused(None, model, images(2), "l1", {"macs": 1e-9})


def test_weights_that_are_not_finite():
    model = CASES["chain"].model()
    for tensor in (model[3].weight, model[1].running_var):
        good = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[0] = torch.nan
        refused("NaN or infinite", model, images(2), "l1", 0.5)
        with torch.no_grad():
            tensor.copy_(good)
    assert prune(model, images(2), "l1", 0.5).proof.ok


def test_networks_with_nothing_to_prune():
    refused("nothing in this network can be pruned", nn.Linear(12, 4), tokens(2), "l1", 0.5)
    # all that there is cannot be proved
    model = shaken(Net(lambda n, x: n.b(n.a(x) * 2 if n.a(x).shape[1] > 7 else n.a(x)), a=conv(3, 8), b=conv(8, 5)))
    refused(None, model, images(2), "l1", {"ratio": 0.5})


def test_public_names():
    assert topiarist.prune is prune
    assert {"random", "l1", "slimming", "magnitude"} <= set(names())
    assert isinstance(prune(CASES["chain"].model(), images(2), "random", 0.9).architecture, Architecture)

"""N:M sparsity: how many weights of each block are kept, and which."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import door
import topiarist
from networks import Net
from topiarist.budget import Budget, allocate
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.pruning import choose


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.ConvTranspose2d(4, 6, 2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(54, 8), nn.Tanh(), nn.Linear(8, 3))


X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))

AXES = {"2.weight": 1, "3.weight": 0, "7.weight": 1}
"""Of the weights whose inputs four divides, the axis that these lie on."""


@pytest.mark.parametrize("method", ["magnitude", "wanda", "random"])
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (1, 2)])
def test_of_each_block_of_the_inputs_the_highest_scores_stay(method, n, m):
    model = network()
    graph = topiarist.trace(model, X[:1]).weights()
    stats = collect(model, graph, [X], make(method).needs)
    scores = make(method).score(graph, stats)
    keep = choose(make(method), graph, stats, Budget(n_of_m=f"{n}:{m}"))
    for name, kept in keep.items():
        axis = AXES.get(name, 1)
        if graph.shapes[name][axis] % m or name not in scores:
            assert kept.all()
            continue
        values, lines = (
            each.view(graph.shapes[name]).movedim(axis, -1).reshape(-1, m) for each in (scores[name], kept)
        )
        assert (lines.sum(1) == n).all()
        assert (values.masked_fill(~lines, torch.inf).amin(1) > values.masked_fill(lines, -torch.inf).amax(1)).all()
    assert sum(not kept.all() for kept in keep.values()) >= 2


def test_a_block_worked_out_by_hand():
    model = nn.Linear(4, 2)
    graph = topiarist.trace(model, torch.ones(1, 4)).weights()
    scores = {"weight": torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 8.0, 7.0, 10.0])}  # equal ones: the first stays
    assert allocate(graph, scores, Budget(n_of_m="2:4"))["weight"].tolist() == [0, 1, 1, 0, 1, 0, 0, 1]
    assert allocate(graph, scores, Budget(n_of_m="1:2"))["weight"].tolist() == [0, 1, 1, 0, 1, 0, 0, 1]


def test_a_network_is_pruned_to_n_of_m_and_says_what_it_left_alone():
    model = network()
    pruned = topiarist.prune(model, X[:1], "magnitude", {"n_of_m": "2:4", "exclude": ("7.*",)})
    assert pruned.proof.max_rel_diff <= 1e-10
    for layer in (2, 3):
        weight = pruned.model[layer].weight
        assert int(weight.count_nonzero()) == weight.numel() // 2
    for layer in (0, 5, 7):
        assert torch.equal(pruned.model[layer].weight, model[layer].weight)
    assert pruned.left_alone == {
        "0.weight": "has 3 inputs, which 4 does not divide",
        "5.weight": "has 54 inputs, which 4 does not divide",
        "7.weight": "keeps every weight",
    }


def test_the_input_axis_is_the_one_that_is_summed_over():
    parts = {"one": nn.Linear(4, 6), "two": nn.Parameter(torch.randn(6, 5)), "each": nn.Conv1d(5, 5, 1, groups=5)}
    model = Net(lambda net, x: net.each((net.one(x) @ net.two)[:, :, None]), **parts)
    graph = topiarist.trace(model, torch.randn(2, 4))
    axes = {name: graph.input_axis(name) for name in ("one.weight", "two", "each.weight", "one.bias")}
    assert axes == {"one.weight": 1, "two": 0, "each.weight": None, "one.bias": None}


def test_the_command_line_takes_n_of_m(tmp_path, capsys):
    weights = tmp_path / "model.safetensors"
    save_file(topiarist.load_model(door.NET).state_dict(), weights)
    words = ["prune", door.NET, "--method", "magnitude", "--budget.n_of_m", "2:4", "--input", door.SHAPE]
    assert door.run(*words, "--weights", weights, "--out", tmp_path, "--json") == 0
    capsys.readouterr()
    tensors = [t for t in load_file(tmp_path / "model.safetensors").values() if t.ndim > 1 and t.shape[1] % 4 == 0]
    assert len(tensors) > 1
    for tensor in tensors:
        assert (tensor.movedim(1, -1).reshape(-1, 4).count_nonzero(1) == 2).all()


@pytest.mark.parametrize("n_of_m", ["2", "4:2", "0:4", "2:2", "2:4:8", "a:b", "-1:4", "2:99999"])
def test_what_is_not_n_of_m_is_refused(n_of_m):
    with pytest.raises(TopiaristError, match="n_of_m must be N:M"):
        Budget(n_of_m=n_of_m)


def test_a_long_n_of_m_is_not_repeated_and_a_number_needs_quotes():
    with pytest.raises(TopiaristError, match=r"n_of_m must be N:M") as refused:
        Budget(n_of_m="2:" + "9" * 5000)
    assert len(str(refused.value)) < 300
    with pytest.raises(TopiaristError, match=r"n_of_m of the budget must be text .*124: put it in quotes"):
        Budget(n_of_m=124)  # what YAML makes of 2:4


def test_what_does_not_go_with_n_of_m_is_refused():
    for more in ({"ratio": 0.5}, {"macs": 0.5}, {"ratios": {"*": 0.5}}, {"multiple": 8}, {"allocation": "global"}):
        with pytest.raises(TopiaristError, match="nothing beside it but exclude"):
            Budget(n_of_m="2:4", **more)
    model = network()
    for method in ("l1", "thinet", "srinivas_babu"):
        graph = topiarist.trace(model, X[:1])
        with pytest.raises(TopiaristError, match="unstructured: use a method that scores weights"):
            choose(make(method), graph, collect(model, graph, [X]), Budget(n_of_m="2:4"))
    with pytest.raises(TopiaristError, match="leave steps out"):
        topiarist.prune(model, X[:1], topiarist.Pruning.of("magnitude", {"n_of_m": "2:4"}, steps=2))
    with pytest.raises(TopiaristError, match=r"no weight tensor can be 2:5 sparse \(0.weight has 3 inputs, which 5"):
        topiarist.prune(model, X[:1], "magnitude", {"n_of_m": "2:5"})
    with pytest.raises(TopiaristError, match="matches no group"):
        topiarist.prune(model, X[:1], "magnitude", {"n_of_m": "2:4", "exclude": "fc"})

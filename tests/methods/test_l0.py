"""What the paper on L0 regularisation promises, beside the golden row."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import topiarist
from door import NET, run
from networks import distance
from topiarist import Recipe, TopiaristError, load_data, prune
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.train import attach, fit

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).double()
KINDS = ("structure", "weight")
every_kind = pytest.mark.parametrize("granularity", KINDS)


def network(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double()


def gated(granularity="structure", **fields):
    """A model in double precision, its method, its graph, and an optimiser."""
    model = network()
    method = make("l0", granularity=granularity, **{"examples": 64, **fields})
    return model, method, topiarist.trace(model, X), torch.optim.Adam(model.parameters(), lr=0.05)


def logit(p):
    return math.log(p / (1 - p))


@pytest.mark.parametrize("log_alpha", [-3.0, -1.0, 0.0, 1.5, 3.0])
def test_gates_are_distributed_as_the_paper_says(log_alpha):
    model, method, graph, optimizer = gated("weight")
    n = 200_000
    with attach(method, model, optimizer, graph), torch.no_grad():
        gates = model.l0_gates
        gates.log_alpha.copy_(torch.tensor(log_alpha))
        torch.manual_seed(1)
        z = torch.cat([gates.multipliers() for _ in range(-(-n // len(gates.log_alpha)))])[:n]
        expected = method.penalty(model, graph) / method.lam * method.examples / len(gates.log_alpha)
    assert ((z >= 0) & (z <= 1)).all()

    def at_most(t):  # of the stretched concrete distribution, before it is clamped
        s = (t + 0.1) / 1.2
        return 1 / (1 + math.exp(-(2 / 3 * logit(s) - log_alpha)))

    for t in (0.0, 0.2, 0.5, 0.9):
        share = at_most(t)
        assert abs(float((z <= t).double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / n)
    assert abs(float((z == 1).double().mean()) - (1 - at_most(1.0))) < 5e-3
    assert float(expected) == pytest.approx(1 - at_most(0.0), rel=1e-12)
    assert abs(float((z > 0).double().mean()) - float(expected)) < 5e-3
    grid = (torch.arange(10_000).double() + 0.5) / 10_000
    mean = sum(1 - at_most(float(t)) for t in grid) / len(grid)  # E[z] is the integral of P(z > t)
    assert abs(float(z.mean()) - mean) < 5 * float(z.std()) / math.sqrt(n) + 1e-4


@every_kind
def test_the_penalty_s_gradient_is_that_of_differences(granularity):
    model, method, graph, optimizer = gated(granularity, lam=3.0)
    with attach(method, model, optimizer, graph):
        log_alpha = model.l0_gates.log_alpha
        with torch.no_grad():
            log_alpha.copy_(torch.linspace(-4, 4, len(log_alpha)))
        method.penalty(model, graph).backward()
        for index in range(len(log_alpha)):
            assert float(log_alpha.grad[index]) == pytest.approx(
                difference(lambda: method.penalty(model, graph), log_alpha, index), rel=1e-6
            )


def difference(value, tensor, index, step=1e-5):
    """The derivative of a value in one entry of a tensor."""
    with torch.no_grad():
        flat = tensor.view(-1)
        ends = []
        for sign in (1, -1):
            flat[index] += sign * step
            ends.append(float(value()))
            flat[index] -= sign * step
    return (ends[0] - ends[1]) / (2 * step)


@every_kind
def test_the_loss_reaches_gates_and_weights_through_the_sample(granularity):
    model, method, graph, optimizer = gated(granularity)

    def loss():
        torch.manual_seed(5)
        return mse_loss(model(X), X[:, :3])

    with attach(method, model.train(), optimizer, graph):
        loss().backward()
        for tensor in (model.l0_gates.log_alpha, model[0].weight, model[2].weight):
            for index in range(tensor.numel()):
                assert float(tensor.grad.view(-1)[index]) == pytest.approx(
                    difference(loss, tensor, index), rel=1e-4, abs=1e-9
                )


@pytest.mark.parametrize(("weighted", "size"), [(True, [4 + 1 + 3] * 6), (False, [1] * 6)])
def test_a_unit_counts_as_its_parameters_or_as_one(weighted, size):
    model, method, graph, optimizer = gated(weighted=weighted, lam=2.0)
    with attach(method, model, optimizer, graph), torch.no_grad():
        model.l0_gates.log_alpha.fill_(60.0)  # P(z > 0) is 1
        assert float(method.penalty(model, graph)) == pytest.approx(2.0 / 64 * sum(size))


def lenet():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 5), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 10)),
    )


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


CASES = {"mlp": (mlp, (1, 12)), "lenet": (lenet, (1, 1, 28, 28))}
every_case = pytest.mark.parametrize("case", CASES)


def open_penalty(case, **fields):
    """The penalty of a network whose gates are all open, each parameter at a price of one."""
    make_model, shape = CASES[case]
    model, x = make_model().eval(), torch.randn(shape)
    graph = topiarist.trace(model, x)
    method = make("l0", lam=1.0, examples=1, **fields)
    with attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), graph), torch.no_grad():
        model.l0_gates.log_alpha.fill_(60.0)
        return float(method.penalty(model, graph)), model, len(model.l0_gates.log_alpha)


@every_case
@pytest.mark.parametrize("inputs", [False, True])
def test_every_parameter_counts_once(case, inputs):
    """All but the last bias, which no gate removes; many lie between two gated groups."""
    value, model, _ = open_penalty(case, inputs=inputs)
    assert value == sum(parameter.numel() for parameter in model.parameters()) - len(model[-1].bias)


@pytest.mark.parametrize(("case", "gates"), [("mlp", 12 + 9 + 7), ("lenet", 4 + 6 + 96 + 20)])
def test_the_paper_s_gates_are_those_of_maps_inputs_and_flattened_features(case, gates):
    assert open_penalty(case, inputs=True)[2] == gates


@pytest.mark.nightly
def test_the_penalty_is_the_number_of_weights_that_samples_leave():
    """By brute force: with gates on all inputs each weight is multiplied by the gate that it counts behind."""
    model = mlp()
    graph = topiarist.trace(model, torch.randn(1, 12))
    method, runs = make("l0", lam=1.0, examples=1, inputs=True), 4000
    layers = [module for module in model if isinstance(module, nn.Linear)]
    with attach(method, model.train(), torch.optim.SGD(model.parameters(), lr=0.1), graph), torch.no_grad():
        gates = model.l0_gates
        gates.log_alpha.copy_(torch.linspace(-4, 2, len(gates.log_alpha)))
        biases = torch.sigmoid(gates.log_alpha[: 9 + 7] - 2 / 3 * math.log(0.1 / 1.1)).sum()
        left = []
        for _ in range(runs):
            gates.open()
            left.append(sum(int(layer.weight.count_nonzero()) for layer in layers))
            gates.close()
        expected = float(method.penalty(model, graph) - biases)
    left = torch.tensor(left).double()
    assert float(left.mean()) == pytest.approx(expected, abs=5 * float(left.std()) / math.sqrt(runs))


def test_a_convolution_counts_behind_its_own_maps_and_a_linear_layer_behind_its_inputs():
    """The paper's numbers of LeNet-5, here smaller: 25 weights and a bias, a scale, a shift of a map, and so on."""
    model = lenet().eval()
    graph = topiarist.trace(model, torch.randn(1, 1, 28, 28))
    method = make("l0", lam=1.0, examples=1, inputs=True)
    with attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), graph), torch.no_grad():
        gates = model.l0_gates
        for first, last, each in ((0, 4, 25 + 3), (4, 10, 4 * 25 + 1), (10, 30, 1 + 10), (30, 126, 20)):
            gates.log_alpha.fill_(-60.0)
            gates.log_alpha[first:last] = 60.0
            assert float(method.penalty(model, graph)) == pytest.approx((last - first) * each)


def test_shut_inputs_leave_columns_of_zeros_and_maps_without_features_are_pruned():
    model = lenet().eval()
    x = torch.randn(2, 1, 28, 28)
    graph = topiarist.trace(model, x)
    method = make("l0", examples=1, inputs=True)
    with attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1), graph), torch.no_grad():
        gates = model.l0_gates
        assert float(gates.log_alpha.mean()) == pytest.approx(0, abs=0.02)
        gates.log_alpha.fill_(4.0)
        gates.log_alpha[30 : 30 + 16 + 5] = -4.0  # all features of the first map, five of the second
        wanted = model.eval()(x)
    assert int((model[7].weight != 0).any(0).sum()) == 96 - 21
    assert distance(model(x), wanted) <= 1e-6
    done = prune(model, x, method)
    assert [int(kept.sum()) for kept in done.keep.values()] == [4, 5, 20]
    assert done.proof.ok


def test_inputs_of_the_network_start_at_a_rate_of_their_own():
    model = mlp()
    graph = topiarist.trace(model, torch.randn(1, 12))
    with make("l0", examples=1, inputs=True).gates(model, graph) as gates, torch.no_grad():
        assert float(gates.log_alpha[:16].mean()) == pytest.approx(0, abs=0.02)
        assert float(gates.log_alpha[16:].mean()) == pytest.approx(math.log(4), abs=0.02)


@every_kind
def test_training_samples_evaluation_does_not_and_the_end_folds(granularity):
    model, method, graph, optimizer = gated(granularity)
    keys = model.state_dict().keys()
    with attach(method, model, optimizer, graph), torch.no_grad():
        model.l0_gates.log_alpha.copy_(torch.linspace(-4, 4, len(model.l0_gates.log_alpha)))
        assert not torch.equal(model.train()(X), model(X))
        wanted = model.eval()(X)
        assert torch.equal(model(X), wanted)
    assert distance(model(X), wanted) <= 1e-12
    assert model.state_dict().keys() == keys
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@every_kind
def test_gates_start_at_the_rate_and_stay_in_range(granularity):
    model, method, graph, optimizer = gated(granularity, dropout=0.2, lam=1e6)
    with attach(method, model, optimizer, graph) as attached:
        gates = model.l0_gates.log_alpha
        assert attached.parameters == (gates,)
        assert float(gates.mean().detach()) == pytest.approx(math.log(4), abs=0.02)
        for group in optimizer.param_groups:
            group["lr"] = 3.0
        for _ in range(5):
            optimizer.zero_grad()
            mse_loss(model(X), X[:, :3]).backward()
            optimizer.step()
        assert torch.equal(gates, torch.full_like(gates, -math.log(100)))


def trained(granularity, target, **fields):
    """A wide network that learned a target with gates."""
    model = network(width=10)
    method = make("l0", granularity=granularity, examples=len(X), **fields)
    graph = topiarist.trace(model, X)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    torch.manual_seed(0)
    with attach(method, model.train(), optimizer, graph):
        for _ in range(1000):
            optimizer.zero_grad()
            mse_loss(model(X), target).backward()
            optimizer.step()
    return model.eval(), method, graph


@pytest.mark.nightly
def test_units_that_are_not_needed_are_closed_and_cut():
    one = torch.tanh(X @ torch.tensor([1.0, -1.0, 0.5, 0.0]).double()).unsqueeze(1)
    target = torch.cat([one, -one, 2 * one], 1)  # a single unit says it all
    model, method, _ = trained("structure", target, lam=0.2)
    done = prune(model, X, method)
    assert int(done.keep["0"].sum()) <= 2
    assert done.proof.ok
    assert done.model[0].weight.shape[0] == int(done.keep["0"].sum())
    assert float(mse_loss(done.model(X), target).detach()) < 0.05 * float(target.var())
    assert distance(done.model(X), model(X)) <= 1e-10, "closed gates are not missed"


@pytest.mark.nightly
def test_weights_of_inputs_that_are_not_needed_are_closed():
    target = torch.stack([X[:, 1], -X[:, 1], X[:, 1] * 0.5], 1)  # three of four inputs say nothing
    model, method, _ = trained("weight", target, lam=0.05)
    done = prune(model, X, method)
    used = done.model[0].weight != 0
    assert used[:, 1].any()
    assert not used[:, [0, 2, 3]].any()
    assert float(mse_loss(done.model(X), target).detach()) < 0.05 * float(target.var())
    assert done.after.params < 0.65 * done.before.params


@every_kind
def test_scores_are_chances_and_zeros_outlive_a_file(granularity):
    model, method, graph, optimizer = gated(granularity)
    rooms = method.units(graph)
    with attach(method, model, optimizer, graph), torch.no_grad():
        log_alpha = model.l0_gates.log_alpha.copy_(torch.linspace(-4, 4, len(model.l0_gates.log_alpha))).clone()
    chance = torch.sigmoid(log_alpha - 2 / 3 * math.log(0.1 / 1.1))
    scores = torch.cat(list(method.score(graph, collect(model, rooms)).values()))
    closed = (1.2 * log_alpha.sigmoid() - 0.1) <= 0
    assert closed.any()
    torch.testing.assert_close(scores, torch.where(closed, torch.zeros_like(chance), chance))
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(torch.cat(list(method.score(graph, collect(fresh, rooms)).values())), (~closed).double())
    assert list(topiarist.trace(model, X).shapes) == list(graph.shapes), "what is left for the score is no layer"


@every_kind
def test_one_of_a_group_stays(granularity):
    model, method, graph, optimizer = gated(granularity)
    with attach(method, model, optimizer, graph), torch.no_grad():
        model.l0_gates.log_alpha.fill_(-4.0)
        model.l0_gates.log_alpha[3] = -3.0
    keep = method.select(graph, collect(model, method.units(graph)), None)
    assert [int(kept.sum()) for kept in keep.values()] == [1] * len(keep)
    assert next(iter(keep.values()))[3]


@every_kind
@pytest.mark.by_day(1)
def test_it_comes_through_the_front_door(granularity):
    data = load_data("digits").subset(256)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(epochs=40, lr=0.02, optimizer="adam", schedule="constant", batch_size=64, augment=False)
    method = make("l0", granularity=granularity, lam=1.0)
    done = prune(model, data.example(), topiarist.Pruning.of(method, sparse_training=recipe), data=data)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert done.proof.ok
    kept = torch.cat(list(done.keep.values()))
    assert 0 < int(kept.sum()) < 0.8 * len(kept)
    x, _ = next(iter(data.batches("test", 32)))
    assert distance(done.model.eval()(x), done.trained.eval()(x)) <= 1e-4
    half = prune(model, data.example(), topiarist.Pruning.of(method, 0.3, sparse_training=recipe), data=data)
    assert half.after.params <= 0.35 * half.before.params


@pytest.mark.nightly
def test_the_command_line_trains_with_gates(tmp_path, capsys):
    words = ["--method", "l0", "--method.granularity", "weight", "--method.lam", 2, "--data", "digits"]
    words += ["--train.epochs", 2, "--train.optimizer", "adam", "--train.lr", 0.1, "--epochs", 0, "--out", tmp_path]
    assert run("prune", NET, *words, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["params"]["after"] < summary["params"]["before"]


def test_fit_knows_how_many_examples_there_are():
    data = load_data("digits").subset(64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    fit(model, data, Recipe(epochs=1, lr=0.01), method="l0", graph=topiarist.trace(model, data.example()))
    method = make("l0")
    assert method.in_training(64, 10) == make("l0", examples=64)
    assert make("l0", examples=5).in_training(64, 10).examples == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("l0", lam=-1), "lam must be a number from 0 on"),
        (lambda: make("l0", granularity="layer"), "granularity"),
        (lambda: make("l0", dropout=1.0), "dropout must be a rate between 0 and 1"),
        (lambda: make("l0", input_dropout=0.0), "input_dropout must be a rate between 0 and 1"),
        (lambda: make("l0", inputs=True, granularity="weight"), "leave out inputs"),
        (lambda: make("l0", examples=0), "examples must be the number"),
        (lambda: make("l0").penalty(network(), topiarist.trace(network(), X)), "l0 needs its gates in training"),
        (lambda: _penalised(), "say how many, examples="),
        (lambda: _scored(), "no unit that layers read"),
    ],
)
def test_what_it_cannot_do_is_refused(call, message):
    with pytest.raises(TopiaristError, match=message):
        call()


def _penalised():
    model, method, graph, optimizer = gated(examples=None)
    with attach(method, model, optimizer, graph):
        optimizer.step()


def _scored():
    model = nn.Linear(4, 2).double()
    graph = topiarist.trace(model, X)
    make("l0").score(graph, collect(model, graph))

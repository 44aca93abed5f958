"""Shrinking: what sparse weights left dead goes, and the outputs stay as they were."""

import pytest
import torch
from torch import nn

import topiarist
from networks import CASES, call, images, shaken
from topiarist import TopiaristError, shrink

TOLERANCE = 1e-10


def zeroed(model, tensor, index, axis=0):
    with torch.no_grad():
        model.get_parameter(tensor).index_fill_(axis, torch.as_tensor(index), 0)
    return model


def same(found, model, inputs):
    assert found.proof.max_rel_diff <= TOLERANCE
    assert found.drift <= TOLERANCE
    torch.testing.assert_close(call(found.model, inputs), call(model, inputs))


def perceptron(act=nn.Tanh):
    return shaken(nn.Sequential(nn.Linear(6, 8), act(), nn.Linear(8, 7), act(), nn.Linear(7, 3)))


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU, nn.Sigmoid])
def test_neurons_that_nothing_reads_and_neurons_that_read_nothing_go(act):
    model = zeroed(zeroed(perceptron(act), "0.weight", [1, 4]), "2.weight", [6], axis=1)
    x = torch.randn(5, 6)
    found = shrink(model, x)
    same(found, model, x)
    assert found.architecture.widths["0"] == (5, 8)
    # The constants act(b) of the two went into the biases of the next layer, each times its weight.
    constant = act()(model[0].bias[[1, 4]])
    expected = model[2].bias + model[2].weight[:, [1, 4]] @ constant
    torch.testing.assert_close(found.model[2].bias, expected)


def test_the_dead_leave_others_dead():
    model = zeroed(perceptron(), "4.weight", [0, 2, 3], axis=1)  # nothing reads these of the second layer …
    with torch.no_grad():
        model[2].weight[[1, 4, 5, 6], :3] = 0  # … which alone read the first three of the first layer
    x = torch.randn(5, 6)
    found = shrink(model, x)
    same(found, model, x)
    assert found.architecture.widths == {"0": (5, 8), "2": (4, 7)}


def test_one_unit_of_a_dead_layer_stays():
    model = zeroed(perceptron(), "0.weight", range(8))
    found = shrink(model, torch.randn(5, 6))
    same(found, model, torch.randn(9, 6))
    assert found.architecture.widths["0"] == (1, 8)


def test_a_constant_at_a_padded_border_stays_and_one_without_border_goes():
    x = images(2)
    for padding, width in ((1, 4), (0, 3)):
        model = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=padding), nn.Flatten()))
        with torch.no_grad():
            model[0].bias[2] = 1.0
        found = shrink(zeroed(model, "0.weight", [2]), x)
        same(found, model, x)
        assert found.architecture.widths["0"] == (width, 4)
        with torch.no_grad():
            model[0].bias[2] = -1.0  # the ReLU makes it zero, at the border too
        assert shrink(model, x).architecture.widths["0"] == (3, 4)


def test_flattened_maps_are_followed():
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)))
    zeroed(model, "3.weight", range(36, 72), axis=1)
    found = shrink(model, images(2, size=8))
    same(found, model, images(2, size=8))
    assert found.architecture.widths["0"] == (3, 4)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.by_day(10)
def test_any_network_with_dead_units_computes_the_same(name):
    """Half of the units of each group are made by zeros or read by zeros, in turn."""
    case = CASES[name]
    model = case.model()
    graph = topiarist.trace(model, case.inputs)
    with torch.no_grad():
        for number, group in enumerate(graph.groups):
            for part in group.by_role(("output", "input")[number % 2]):
                if part.tensor in graph.parameters:
                    places = part.positions[: group.units // 2].flatten()
                    model.get_parameter(part.tensor).index_fill_(part.axis, places, 0)
    found = shrink(model, case.inputs)
    assert found.proof.max_rel_diff <= TOLERANCE
    assert found.drift <= TOLERANCE
    again = found.architecture.apply(model)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in found.model.state_dict().items()
    }


def test_pruned_weights_shrink_a_lenet():
    torch.manual_seed(0)
    model = topiarist.load_model("zoo:lenet300")
    x = torch.randn(4, 1, 28, 28)
    sparse = topiarist.prune(model, x, "magnitude", 0.003).model
    found = shrink(sparse, x)
    same(found, sparse, x)
    assert found.after.params < 0.9 * found.before.params
    nonzero = [sum(int((p != 0).sum()) for p in m.parameters() if p.ndim > 1) for m in (sparse, found.model)]
    assert nonzero[1] <= nonzero[0]


def test_nothing_dead_changes_nothing():
    model = perceptron()
    found = shrink(model, torch.randn(5, 6))
    assert found.after == found.before
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), model.parameters(), strict=True))


def test_a_graph_of_weights_is_refused():
    model = perceptron()
    with pytest.raises(TopiaristError, match="channels"):
        shrink(model, torch.randn(5, 6), graph=topiarist.trace(model, torch.randn(5, 6)).weights())


class Hidden(nn.Module):
    """A constant meets a padded border, but a ReLU hides it on small inputs."""

    example = staticmethod(lambda: torch.randn(1, 1, 6, 6))

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 2)
        with torch.no_grad():
            self.one.weight[0], self.one.bias[:] = 0, torch.tensor([1.0, 0.0])
            self.two.weight.fill_(0.1)
            self.two.weight[1, 0], self.two.weight[0, 0] = 0.2, 0
            self.two.bias[:] = torch.tensor([0.0, -5.0])

    def forward(self, x):
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


class Small(nn.Module):
    """A padded convolution that sees maps of one place in the example alone."""

    example = staticmethod(lambda: torch.randn(1, 1, 4, 4))

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 2, 3, stride=4, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.one.weight[0], self.one.bias[0], self.two.bias[:] = 0, 1, 3

    def forward(self, x):
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


class Largest(nn.Module):
    """A constant channel that is never the largest on the example."""

    example = staticmethod(lambda: torch.randn(2, 1, 8, 8).abs())

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
        with torch.no_grad():
            self.one.weight.abs_()
            self.one.weight[3], self.one.bias[3] = 0, -1

    def forward(self, x):
        return self.head(self.two(self.one(x).amax(1, keepdim=True)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Hidden, Small, Largest])
def test_what_matters_for_other_inputs_stays(kind):
    torch.manual_seed(0)
    model, x = kind().double(), kind.example().double()
    found = shrink(model, x)
    for other in (x, -x, 10 * x, 100 * x, 10 * torch.ones_like(x), torch.randn(2, 1, 16, 16).double()):
        torch.testing.assert_close(found.model(other), model(other))

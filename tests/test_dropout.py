"""Dropout while sparse networks train: `D = D_0 sqrt(C / C_0)`, and the rates come back."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Data, Recipe, TopiaristError, fit, prune, trace
from topiarist.train import Speed

RATE = 0.4


class Net(nn.Module):
    """Two dropouts, registered in another order than they run in; all copies note their rates in one list."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def __init__(self):
        super().__init__()
        self.late, self.early = nn.Dropout(RATE), nn.Dropout(RATE)
        self.one, self.two, self.three = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.seen.clear()

    def forward(self, x):
        self.seen.append((self.early.p, self.late.p))
        x = self.early(torch.relu(self.one(x.flatten(1))))
        return self.three(self.late(torch.relu(self.two(x))))


def data():
    x = torch.rand(20, 1, 2, 2)
    return Data("small", x, torch.arange(20) % 2, x[:4], torch.arange(4) % 2, 2, (0.0,), (1.0,))


def test_each_rate_follows_the_weights_of_the_layer_behind_it():
    model, x = Net(), data()
    graph = trace(model, x.example()).weights()
    keep = graph.full()
    keep["two.weight"][16:] = False  # a quarter is left
    fit(model, x, Recipe(epochs=1), graph=graph, keep=keep, speed=Speed(evaluate_every=0))
    assert (pytest.approx(RATE / 2), RATE) in model.seen
    assert (model.early.p, model.late.p) == (RATE, RATE)


def test_whole_networks_keep_their_rates():
    model = Net()
    fit(model, data(), Recipe(epochs=1), speed=Speed(evaluate_every=0))
    assert set(model.seen) == {(RATE, RATE)}


def test_the_rates_come_back_when_a_training_fails():
    model, x = Net(), data()
    graph = trace(model, x.example()).weights()
    keep = {name: torch.arange(len(kept)) % 2 == 0 for name, kept in graph.full().items()}
    with pytest.raises(TopiaristError, match="diverged"):
        fit(model, x, Recipe(epochs=3, lr=1e30), graph=graph, keep=keep)
    assert (model.early.p, model.late.p) == (RATE, RATE)


def test_steps_of_magnitude_pruning_train_with_less():
    model = Net()
    found = prune(
        model,
        data().example(),
        topiarist.Pruning.of("magnitude", 0.25, steps=topiarist.Steps(2, training=Recipe(epochs=1, lr=0.01))),
        data=data(),
    )
    assert found.model.early.p == RATE
    assert any(late < RATE for _, late in Net.seen)


@pytest.mark.parametrize("name", ["zoo:lenet300", "zoo:lenet5"])
def test_lenets_have_dropout_where_it_is_asked_for(name):
    model = topiarist.load_model(name, dropout=0.25)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert set(rates) == {0.25}
    x = torch.rand(2, 1, 28, 28)
    assert prune(model.eval(), x, "l1", 0.5).proof.ok
    with pytest.raises(TopiaristError, match="from 0 to below 1"):
        topiarist.load_model(name, dropout=1.0)

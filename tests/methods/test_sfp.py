"""What the paper on soft filter pruning promises, beside the golden row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import topiarist
from topiarist.data import Data
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import make
from topiarist.train import Recipe, fit

QUICK = Recipe(epochs=4, lr=0.05, batch_size=16)
METHOD = make("sfp", rate=0.5)


@pytest.fixture(scope="module")
def data():
    """Three kinds of 4x4 images, a bright quarter each, with noise."""
    y = torch.arange(60) % 3
    x = 0.3 * torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    for index, (row, column) in enumerate([(0, 0), (0, 2), (2, 0)]):
        x[y == index, :, row : row + 2, column : column + 2] += 1
    return Data.of("quarters", x[:48], y[:48], x[48:], y[48:])


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(96, 3)
    )
    nn.init.constant_(model[1].bias, 0.1)  # at 0 the ReLU would pass zeroed filters no gradient
    return model


def train(data, model, **more):
    graph = topiarist.trace(model, data.example())
    return fit(model, data, QUICK, seed=3, method=METHOD, graph=graph, **more)


def zeroed(model):
    return (model[0].weight.flatten(1) == 0).all(1)


def test_the_same_units_are_zero_after_every_epoch_and_may_come_back(data):
    model, seen = net(), []
    with torch.no_grad():
        model[0].weight[:3] *= 0.99 * model[0].weight[3:].flatten(1).norm(dim=1).min() / model[0].weight[:3].norm()
    train(data, model, progress=lambda done, epochs, row: seen.append(zeroed(model).clone()))
    assert [int(mask.sum()) for mask in seen] == [3] * 4
    first = torch.tensor([True] * 3 + [False] * 3)  # zeroed before the first epoch, for their norm
    assert any(not mask[first].all() for mask in seen), "none of the softened filters came back"


def test_filters_train_on_from_zero_with_the_optimiser_untouched(data):
    """One epoch is softening, a plain epoch of the same optimiser, softening; a plain run from there is the same."""
    ours, plain = net(), net()
    graph = topiarist.trace(plain, data.example())
    METHOD.soften(plain, graph, 0, 1)
    one = replace(QUICK, epochs=1)
    fit(ours, data, one, seed=3, method=METHOD, graph=graph)
    fit(plain, data, one, seed=3)
    assert not zeroed(plain).any()
    METHOD.soften(plain, graph, 1, 1)
    assert int(zeroed(plain).sum()) == 3
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("moment", ["in the first epoch", "after an epoch"])
def test_a_stopped_training_resumes_to_the_same_bits(data, tmp_path, moment):
    undisturbed = net()
    whole = train(data, undisturbed)
    model, path = net(), tmp_path / "state.pt"

    def stop(*_):
        raise KeyboardInterrupt

    within = moment == "in the first epoch"

    def stop_within(module, *_):  # not while the network is traced, or its loss is tried
        return stop() if within and module.training and torch.is_grad_enabled() else None

    handle = model[3].register_forward_hook(stop_within)
    with pytest.raises(KeyboardInterrupt):
        train(data, model, checkpoint=path, progress=stop)
    handle.remove()
    assert len(torch.load(path, weights_only=True)["rows"]) == (0 if within else 1)
    model = net()
    with torch.no_grad():
        model[0].weight.neg_()  # what the model holds when it resumes does not matter
    rest = train(data, model, checkpoint=path)
    assert [replace(row, seconds=0) for row in rest.epochs] == [replace(row, seconds=0) for row in whole.epochs]
    assert all(torch.equal(value, undisturbed.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_is_cut_after_training_is_what_was_zero(data):
    pruned = topiarist.prune(
        net(),
        data.example(),
        topiarist.Pruning.of(METHOD, {"ratio": 0.5}, sparse_training=QUICK),
        data=data,
        run=topiarist.Run(seed=3),
    )
    assert torch.equal(pruned.keep["0"], ~zeroed(pruned.trained))


def test_no_epochs_and_a_rate_of_one_change_nothing(data):
    for rate, epochs in ((0.5, 0), (1.0, 1)):
        model, plain = net(), net()
        graph = topiarist.trace(model, data.example())
        recipe = replace(QUICK, epochs=epochs)
        fit(model, data, recipe, method=make("sfp", rate=rate), graph=graph)
        fit(plain, data, recipe)
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_rate_typed_in_decimals_counts_as_typed():
    model = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 2))
    graph = topiarist.trace(model, torch.randn(1, 3))
    make("sfp", rate=0.9).soften(model, graph, 0, 1)
    assert int((model[0].weight == 0).all(1).sum()) == 1  # int(10 * (1 - 0.9)) is 0 in floating point
    assert int((model[0].bias == 0).sum()) == 1


def test_one_filter_stays_at_any_rate(data):
    model = net()
    graph = topiarist.trace(model, data.example())
    largest = int(model[0].weight.flatten(1).norm(dim=1).argmax())
    make("sfp", rate=1e-12).soften(model, graph, 0, 1)
    assert zeroed(model).tolist() == [unit != largest for unit in range(6)]


def test_refusals(data):
    for rate in (0, 1.1, float("nan")):
        with pytest.raises(TopiaristError, match="rate must be"):
            make("sfp", rate=rate)
    with pytest.raises(TopiaristError, match="needs the model's graph"):
        fit(net(), data, QUICK, method="sfp")
    graph = topiarist.trace(net(), data.example())
    with pytest.raises(TopiaristError, match="no filters"):
        METHOD.score(graph.weights(), collect(net(), graph))

"""ThiNet: contributions by brute force, the greedy choice, least squares, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from reading import contributions, noise, traced
from topiarist.budget import Budget
from topiarist.errors import TopiaristError
from topiarist.measure import collect
from topiarist.methods import _reconstruction, make
from topiarist.methods.thinet import greedy, scales
from topiarist.pruning import choose
from topiarist.surgery import mask

EVERY = (10_000, 10_000, 0)  # samples, examples, seed


def grams(graph, stats, samples, examples, seed):
    return _reconstruction.grams(graph, stats, _reconstruction.Locations(samples, examples, seed))


READERS = {
    "linear": ((nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)), (6, 3), 1),
    "flattened": ((nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)), (6, 2, 5, 5), 9),
    "many outputs": ((nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 50, 2)), (6, 2, 4, 4), 1),
    "stride, padding": ((nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, (3, 2), (2, 1), (1, 2))), (3, 2, 6, 5), 1),
    "dilation": ((nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 2, dilation=(1, 3))), (3, 2, 6, 5), 1),
    "reflect": ((nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")), (3, 2, 4, 5), 1),
    "same": ((nn.Conv1d(2, 4, 1), nn.Conv1d(4, 3, 4, padding="same", dilation=2)), (3, 2, 9), 1),
    "3d": ((nn.Conv3d(2, 4, 1), nn.Conv3d(4, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1))), (2, 2, 3, 4, 3), 1),
}


@pytest.mark.parametrize("name", READERS)
def test_contributions_are_those_of_single_units(name):
    layers, shape, width = READERS[name]
    model, graph, x = traced(*layers, shape=shape)
    stats = collect(model, graph, [x[:1], x[:0], x[1:]])
    xhat = contributions(model, len(layers) - 1, x, torch.arange(4).repeat_interleave(width))
    torch.testing.assert_close(grams(graph, stats, *EVERY)["0"], xhat.T @ xhat)


def test_both_ways_to_the_gram_matrix_agree():
    for places, outputs, entries in ((40, 40, 2), (2, 2, 6), (50, 1, 5), (1, 70, 3)):
        x, w = noise(places, 5, entries), noise(outputs, 5, entries, seed=1)
        xhat = torch.einsum("mce,oce->moc", x, w).reshape(-1, 5)
        torch.testing.assert_close(_reconstruction.gram(x, w), xhat.T @ xhat)


class TwoReaders(nn.Module):
    """One layer that two others read, on sequences."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 2)

    def forward(self, x):
        z = self.first(x).relu()
        return self.left(z), self.right(z.flatten(0, 1))  # one of them sees examples and places in one axis


def test_several_readers_are_stacked():
    torch.manual_seed(0)
    model, x = TwoReaders().double().eval(), noise(6, 7, 3)
    graph = topiarist.trace(model, x[:2])
    z = model.first(x).relu().detach().flatten(0, 1)
    w = torch.cat([model.left.weight, model.right.weight]).detach()
    xhat = torch.einsum("mc,oc->moc", z, w).flatten(0, 1)
    found = grams(graph, collect(model, graph, [x]), *EVERY)
    torch.testing.assert_close(found["first"], xhat.T @ xhat)
    few = (2, 5, 3)
    whole, parts, fewer = (
        grams(graph, collect(model, graph, batches), *few)["first"]
        for batches in ([x], [x[:1], x[1:4], x[4:]], [x[:5]])
    )
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(whole, fewer)  # the sixth example is not looked at
    other = grams(graph, collect(model, graph, [x]), 2, 5, 4)["first"]
    assert not torch.allclose(whole, other)


def test_the_greedy_choice_is_the_best_next_unit():
    xhat = noise(30, 9)
    taken = []
    for _ in range(6):
        rest = [unit for unit in range(9) if unit not in taken]
        taken.append(min(rest, key=lambda unit: xhat[:, [*taken, unit]].sum(1).square().sum().item()))
    assert greedy(xhat.T @ xhat, 6) == taken


def test_the_scales_are_the_least_squares_solution():
    xhat = noise(40, 8)
    keep = torch.arange(8) % 3 > 0
    expected = np.linalg.lstsq(xhat[:, keep].numpy(), xhat.sum(1).numpy(), rcond=None)[0]
    w = scales(xhat.T @ xhat, keep)
    torch.testing.assert_close(w[keep], torch.from_numpy(expected))
    assert (w[~keep] == 1).all()


def test_scales_that_the_samples_leave_open_stay_at_one():
    xhat = noise(40, 5)
    xhat[:, 1] = 0  # never fires
    xhat[:, 3] = xhat[:, 2]  # twins
    keep = torch.tensor([True, True, True, True, False])
    w = scales(xhat.T @ xhat, keep)
    assert w[1] == 1
    torch.testing.assert_close(w[2], w[3])
    residual = xhat.sum(1) - xhat[:, keep] @ w[keep]
    torch.testing.assert_close(xhat[:, keep].T @ residual, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)


def twins():
    """Channels in pairs that carry multiples of each other, read by a convolution."""
    model, graph, x = traced(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 2), shape=(40, 2, 6, 6)
    )
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[3:] = tensor[:3] * torch.tensor([0.5, 0.4, 0.3]).double().view(-1, *[1] * (tensor.ndim - 1))
        model[2].weight[:, 3:] = model[2].weight[:, :3]
    return model, graph, x


def test_units_that_repeat_others_go_without_a_trace():
    model, graph, x = twins()
    method = make("thinet")
    stats = collect(model, graph, [x], method.needs)
    keep = choose(method, graph, stats, Budget(ratios={"0": 0.5}))
    kept = keep["0"].nonzero().flatten()
    assert sorted((kept % 3).tolist()) == [0, 1, 2]
    repaired = mask(model, graph, keep)
    assert not torch.allclose(repaired(x), model(x))
    method.repair(repaired, graph, keep, stats)
    torch.testing.assert_close(repaired(x), model(x))


def test_repair_brings_the_next_layer_as_near_as_scales_can():
    layers, shape, _ = READERS["flattened"]
    model, graph, x = traced(*layers, shape=shape, seed=3)
    method = make("thinet")
    stats = collect(model, graph, [x], method.needs)
    keep = {"0": torch.tensor([True, False, True, False])}
    masked, repaired = mask(model, graph, keep), mask(model, graph, keep)
    method.repair(repaired, graph, keep, stats)
    xhat = contributions(model, 3, x, torch.arange(4).repeat_interleave(9))
    best = np.linalg.lstsq(xhat[:, keep["0"]].numpy(), xhat.sum(1).numpy(), rcond=None)[1].item()
    far, near = ((net(x) - model(x)).square().sum().item() for net in (masked, repaired))
    assert near == pytest.approx(best)
    assert near < far
    before = {name: tensor.clone() for name, tensor in masked.state_dict().items()}
    method.repair(masked, graph, graph.full(), stats)  # nothing is gone, so nothing is missing
    assert all(torch.equal(tensor, before[name]) for name, tensor in masked.state_dict().items())


class Scaled(nn.Linear):
    """A linear layer that is not its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_groups_read_in_another_way_stay_whole():
    model, graph, x = traced(
        nn.Linear(3, 4), nn.ReLU(), Scaled(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2), shape=(9, 3)
    )
    method = make("thinet")
    stats = collect(model, graph, [x], method.needs)
    keep = choose(method, graph, stats, Budget(ratio=0.5))
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {"0": 4, "2": 3, "4": 4}
    with pytest.raises(TopiaristError, match="exclude it"):
        choose(method, graph, stats, Budget(ratios={"0": 0.5}))


@pytest.mark.parametrize("reader", [nn.ConvTranspose1d(4, 2, 2), nn.Conv1d(4, 2, 1, groups=2), Scaled(4, 2)])
def test_networks_without_a_reader_are_refused(reader):
    first = nn.Linear(3, 4) if isinstance(reader, nn.Linear) else nn.Conv1d(3, 4, 1)
    model, graph, x = traced(first, reader, shape=(2, 3) if isinstance(reader, nn.Linear) else (2, 3, 5))
    assert graph.groups
    with pytest.raises(TopiaristError, match="use l1"):
        choose(make("thinet"), graph, collect(model, graph, [x]), Budget(ratio=0.5))


def test_what_is_missing_is_refused():
    model, graph, x = traced(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), shape=(9, 3))
    method = make("thinet")
    for stats, budget, message in (
        (collect(model, graph), Budget(ratio=0.5), "runs the model on data"),
        (collect(model, graph, []), Budget(ratio=0.5), "no batch"),
        (collect(model, graph, [x / 0]), Budget(ratio=0.5), "not finite"),
        (collect(model, graph, [x]), None, "needs a budget"),
    ):
        with pytest.raises(TopiaristError, match=message):
            choose(method, graph, stats, budget)
    for fields in ({"samples": 0}, {"examples": -1}):
        with pytest.raises(TopiaristError, match="at least 1"):
            make("thinet", **fields)

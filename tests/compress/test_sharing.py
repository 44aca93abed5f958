"""Weight sharing: k-means against other solutions of it, and centroids that train as one weight."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

import topiarist
from topiarist import TopiaristError, compress


def values(seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=count)


def loss(x: np.ndarray, found: compress.Clusters) -> float:
    return float(((x - found.centroids[found.labels]) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 7, 31])
def test_lloyds_steps_end_where_scikit_learns_do(seed: int, k: int) -> None:
    x = values(seed)
    start = np.quantile(x, (np.arange(k) + 0.5) / k)  # no cluster of these ever empties
    other = KMeans(k, init=start[:, None], n_init=1, max_iter=1000, tol=0).fit(x[:, None])
    found = compress.cluster(x, k, "density")
    assert loss(x, found) == pytest.approx(other.inertia_, rel=1e-9)
    assert found.losses[-1] == pytest.approx(other.inertia_, rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_separate_heaps_are_found_as_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.permutation(np.concatenate([rng.normal(c, 0.3, 4) for c in (-5, 0, 5)]))
    y = np.sort(x)
    cuts = itertools.combinations(range(1, 12), 2)
    best = min(sum(float(part.var() * len(part)) for part in np.split(y, cut)) for cut in cuts)
    assert loss(x, compress.cluster(x, 3)) == pytest.approx(best, rel=1e-9)


@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from(["linear", "density", "random"]))
def test_the_loss_never_rises_and_ends_at_rest(seed: int, k: int, init: str) -> None:
    x = values(seed, 150)
    found = compress.cluster(x, k, init)
    assert all(b <= a * (1 + 1e-12) + 1e-12 for a, b in itertools.pairwise(found.losses))
    assert len(found.centroids) <= k
    assert (np.diff(found.centroids) > 0).all()
    means = [x[found.labels == label].mean() for label in range(len(found.centroids))]
    assert np.allclose(means, found.centroids, atol=1e-12)  # each centroid is the mean of its values,
    distances = np.abs(x[:, None] - found.centroids)
    own = distances[np.arange(len(x)), found.labels]
    assert np.allclose(own, distances.min(1), atol=1e-12)  # and each value belongs to the nearest


def test_the_linear_start_is_even() -> None:
    x = np.array([0.0, 1, 2, 3, 4, 100])
    assert compress.cluster(x, 5, steps=0).centroids.tolist() == [0, 100]  # of 0, 25, 50, 75, 100 two have values
    assert compress.cluster(x, 5, steps=1).centroids.tolist() == [2, 100]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[torch.rand_like(layer.weight) < 0.6] = 0
    return model


def test_share_keeps_zeros_biases_and_the_given_model() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shared = compress.share(model, {"2.*eight": 1, "0.weight": 3})
    after = shared.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, count in (("0.weight", 7), ("2.weight", 1)):
        assert torch.equal(after[name] == 0, before[name] == 0)
        assert len(after[name][after[name] != 0].unique()) == count
        lost = float(((after[name] - before[name]) ** 2).sum())
        assert shared.losses[name] == pytest.approx(lost, rel=1e-4)
    assert torch.equal(after["0.bias"], before["0.bias"])


def test_the_papers_bits_by_default() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 5), nn.Flatten(), nn.LazyLinear(30))
    model(torch.zeros(1, 3, 8, 8))
    shared = compress.share(model)
    assert {name: len(c) for name, c in shared.centroids().items()}["2.weight"] == 31
    assert 200 < len(shared.centroids()["0.weight"]) <= 255  # the linear start leaves some without weights


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_centroids_train_as_single_weights_do(kind: str) -> None:
    """Against a network whose weights are written as a table of centroids, differentiated by autograd."""
    shared = compress.share(network().double(), 3)
    layer, labels = shared.model[0], shared.labels["0.weight"]
    table = nn.Parameter(shared.centroids()["0.weight"].clone())
    bias, rest = layer.bias.detach().clone(), shared.model[2].weight.detach().clone()
    x = torch.randn(30, 6, dtype=torch.float64)
    made = (
        (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01, nesterov=True))
        if kind == "sgd"
        else (lambda p: torch.optim.AdamW(p, lr=0.01))
    )
    ours, theirs = made([layer.weight]), made([table])
    with shared.tied():
        for _ in range(20):
            ours.zero_grad()
            for half in x.split(15):  # gradients may come in parts
                (torch.relu(half @ layer.weight.T + bias) @ rest.T).square().sum().backward()
            ours.step()
            theirs.zero_grad()
            weight = torch.cat([table.new_zeros(1), table])[labels]
            (torch.relu(x @ weight.T + bias) @ rest.T).square().sum().backward()
            theirs.step()
    assert torch.allclose(shared.centroids()["0.weight"], table.detach(), rtol=1e-9)
    assert torch.equal(layer.weight == 0, labels == 0)
    assert len(layer.weight.unique()) == len(table) + 1


@pytest.mark.nightly
def test_fine_tuning_centroids_helps_and_leaves_them_shared() -> None:
    data = topiarist.load_data("digits")
    torch.manual_seed(0)
    model = topiarist.load_model("zoo:digitsnet")
    topiarist.fit(model, data, topiarist.Recipe(epochs=3))
    shared = compress.share(model, 2)
    before = topiarist.evaluate(shared.model, data, "train")
    counts = {name: len(c) for name, c in shared.centroids().items()}
    with shared.tied() as tied:
        topiarist.fit(tied, data, topiarist.Recipe(epochs=2, lr=3e-4, schedule="constant"))
    assert topiarist.evaluate(shared.model, data, "train") > before + 20
    assert {name: len(c.unique()) for name, c in shared.centroids().items()} == counts
    for name, labels in shared.labels.items():
        weights = shared.model.get_parameter(name)
        assert torch.equal(weights == 0, labels == 0)
        assert len(weights.unique()) <= counts[name] + 1


def test_a_stale_optimiser_is_found() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    shared = compress.Shared(model, compress.share(model, 2).labels, {})
    with pytest.raises(TopiaristError, match="optimiser"):
        with shared.tied():
            optimizer.step()


@pytest.mark.parametrize(
    ("bits", "told"), [(0, "from 1 to 12"), (13, "from 1 to 12"), ({"x*": 4}, "matches no parameter"), (True, "whole")]
)
def test_bits_that_cannot_be_are_refused(bits: object, told: str) -> None:
    with pytest.raises(TopiaristError, match=told):
        compress.share(network(), bits)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused() -> None:
    model = network()
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(TopiaristError, match="finite"):
        compress.share(model, 4)
    with pytest.raises(TopiaristError, match="at least 1"):
        compress.cluster(np.ones(3), 0)
    with pytest.raises(TopiaristError, match="linear"):
        compress.cluster(np.ones(3), 2, "even")  # type: ignore[arg-type]

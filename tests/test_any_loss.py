"""Methods that measure take any batches and any loss, in `prune` as in `collect`; images are no classes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import topiarist
from networks import Net, conv, shaken
from small_data import tensors
from topiarist import Pruning, Recipe, TopiaristError
from topiarist.data import Data
from topiarist.measure import cross_entropy

GENERATOR = torch.Generator().manual_seed(0)
X, IMAGES = (torch.randn(12, 3, 8, 8, generator=GENERATOR) for _ in range(2))


def network():
    """Images to images, as for denoising."""
    torch.manual_seed(0)
    net = Net(lambda n, x: n.c(torch.relu(n.b(torch.relu(n.a(x))))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 3))
    return shaken(net)


class WithLoss(nn.Module):
    """Takes keywords and returns its own loss, as transformers do."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, pixels, labels=None):
        images = self.net(pixels)
        return {"images": images} if labels is None else {"loss": F.mse_loss(images, labels), "images": images}


def scores(model, batches, loss):
    graph = topiarist.trace(model, {"pixels": X[:1]} if isinstance(model, WithLoss) else X[:1])
    stats = topiarist.collect(model, graph, batches, {"gradients"}, loss=loss)
    return [stats.mean(group.name, "gradients.taylor") for group in graph.groups]


def test_dicts_pairs_and_lists_of_batches_measure_the_same():
    inner, outer = network(), WithLoss()
    pairs = [(X[:6], IMAGES[:6]), (X[6:], IMAGES[6:])]
    wanted = scores(inner, pairs, F.mse_loss)
    loader = DataLoader(TensorDataset(X, IMAGES), batch_size=6)
    dicts = [{"pixels": x, "labels": y} for x, y in pairs]
    nested = [((x,), {"images": [y]}) for x, y in pairs]
    for found in (
        scores(inner, loader, F.mse_loss),
        scores(outer, dicts, lambda output, _: output["loss"]),
        scores(inner, nested, lambda output, target: F.mse_loss(output, target["images"][0])),
    ):
        for mine, its in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, its)


def test_a_loss_is_the_one_that_is_differentiated():
    model = network()
    squares, edges = (scores(model, [(X, IMAGES)], loss) for loss in (F.mse_loss, F.l1_loss))
    doubled = scores(model, [(X, IMAGES)], lambda output, target: 2 * F.mse_loss(output, target))
    torch.testing.assert_close(doubled[0], 2 * squares[0])
    assert not torch.allclose(squares[0], edges[0])


@pytest.mark.parametrize("method", ["taylor", "fisher", "apoz", "thinet", "lasso", "snip"])
def test_prune_takes_a_loader_and_a_loss(method):
    loader = DataLoader(TensorDataset(X, IMAGES), batch_size=6)
    result = topiarist.prune(network(), X[:1], method, 0.5, loader, loss=F.mse_loss)
    assert result.after.macs < result.before.macs
    assert result.model(X).shape == IMAGES.shape


def test_steps_without_training_take_batches():
    request = Pruning.of("taylor", 0.5, steps=2)
    result = topiarist.prune(network(), X[:1], request, data=[(X, IMAGES)], loss=F.mse_loss)
    assert result.after.macs <= 0.5 * result.before.macs


@pytest.mark.parametrize("target", [
    IMAGES[:4], torch.randint(9, (4, 3, 8, 8), generator=GENERATOR), torch.rand(4, 3, generator=GENERATOR),
    {"images": IMAGES[:4]}, torch.rand(4, 1, 8, 8, generator=GENERATOR),
])  # fmt: skip
def test_images_are_not_taken_for_classes(target):
    with pytest.raises(TopiaristError, match=r"cross entropy takes classes.*give loss="):
        topiarist.prune(network(), X[:1], "taylor", 0.5, [(X[:4], target)])


def test_classes_of_pixels_and_shares_of_classes_are_classes():
    logits = torch.randn(4, 3, 8, 8, generator=GENERATOR)
    labels = logits.argmax(1)
    shares = F.one_hot(labels, 3).movedim(-1, 1).float()
    assert cross_entropy(logits, labels) == F.cross_entropy(logits, labels)
    torch.testing.assert_close(
        cross_entropy(logits, 0.9 * shares + 0.1 / 3), cross_entropy(logits, labels), rtol=1, atol=1
    )


@pytest.mark.parametrize(("data", "loss", "message"), [
    ([(X, IMAGES)], "mse", "loss must be a function"), ([(X, IMAGES)], lambda o, t: (o - t) ** 2, "return one number"),
    ([(X, IMAGES)], lambda o, t: 1.0, "return one number"), (X, None, "use load_data"), (7, None, "use load_data"),
    (iter([(X, IMAGES)]), F.mse_loss, "only once: give a DataLoader or a list"), ([X], None, "gradients need targets"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_in_a_sentence(data, loss, message):
    with pytest.raises(TopiaristError, match=message) as error:
        topiarist.prune(network(), X[:1], "taylor", 0.5, data, loss=loss)
    assert "\n" not in str(error.value)


def test_training_refuses_targets_that_its_loss_does_not_take():
    request = Pruning.of("slimming", 0.5, sparse_training=Recipe(epochs=1))
    with pytest.raises(TopiaristError, match=r"cross entropy takes classes.*give loss="):
        topiarist.prune(network(), X[:1], request, data=[(X, IMAGES)])


@pytest.mark.parametrize("method", ["obd", "lcp"])
def test_methods_of_the_cross_entropy_refuse_another_loss(method):
    data = Data.of("set", **tensors(60))
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    with pytest.raises(TopiaristError, match=r"cross entropy.*leave loss out"):
        topiarist.prune(shaken(net), data.example(), method, 0.5, data, loss=lambda o, t: F.mse_loss(o, o * 0))

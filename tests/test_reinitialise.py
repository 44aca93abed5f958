"""Fresh weights: by seed, as the layers themselves draw them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from corners import Units, equal, net, state
from topiarist.errors import TopiaristError
from topiarist.train import reinitialise


def test_reinitialise_draws_anew_by_seed() -> None:
    model, other = net(1), net(2)
    with torch.no_grad():
        model[1].running_mean.fill_(3)
    before = torch.get_rng_state()
    assert reinitialise(model, seed=4) is model
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(state(model), state(reinitialise(other, seed=4)))
    assert not equal(state(model), state(reinitialise(net(1), seed=5)))


def test_reinitialise_takes_the_network_s_own_initialisation() -> None:
    def make() -> nn.Sequential:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        nn.init.constant_(model[1].weight, 0.5)
        nn.init.normal_(model[0].weight, 0, 7)
        return model

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    reinitialise(model, seed=4, make_model=make)
    torch.manual_seed(4)
    assert equal(state(model), state(make()))
    with pytest.raises(TopiaristError, match="another shape"):
        reinitialise(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)), make_model=make)


@pytest.mark.parametrize(
    ("layer", "inputs"), [(nn.Conv2d(64, 32, 3), 64), (nn.ConvTranspose2d(32, 64, 3), 32)], ids=["conv", "transposed"]
)
def test_masked_convolutions_are_drawn_for_the_weights_that_are_left(layer: nn.Module, inputs: int) -> None:
    model = nn.Sequential(layer)
    kept = torch.rand(layer.weight.numel(), generator=torch.Generator().manual_seed(0)) < 0.1
    reinitialise(model, Units(model, "0.weight"), {"0.weight": kept}, seed=1)
    weight = layer.weight.detach().flatten()
    assert not weight[~kept].any()
    assert weight[kept].std().item() == pytest.approx((2 * inputs / int(kept.sum())) ** 0.5, rel=0.06)


def test_masked_linear_layers_keep_their_own_initialisation() -> None:
    model, whole = nn.Sequential(nn.Linear(20, 5)), nn.Sequential(nn.Linear(20, 5))
    kept = torch.arange(100) % 4 == 0
    reinitialise(model, Units(model, "0.weight"), {"0.weight": kept}, seed=1)
    reinitialise(whole, seed=1)
    assert torch.equal(model[0].weight.flatten(), whole[0].weight.flatten() * kept)


def test_reinitialise_refuses_to_guess() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("token", nn.Parameter(torch.zeros(3)))
    with pytest.raises(TopiaristError, match=r"'token'.*make_model"):
        reinitialise(model)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(TopiaristError, match="make_model"):
        reinitialise(normed)
    with pytest.raises(TopiaristError, match="graph"):
        reinitialise(nn.Sequential(nn.Linear(2, 2)), keep={"0.weight": torch.ones(4, dtype=torch.bool)})

"""The hooks: what attach adds to a loop, that it adds nothing else, and that it takes all of it off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from topiarist.errors import TopiaristError
from topiarist.graph import Group, Slice, trace
from topiarist.train import attach


class Units(SimpleNamespace):
    """As much of a graph as the hooks read."""

    def __init__(self, *groups: Group) -> None:
        super().__init__(groups=groups)

    def __getitem__(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)


def weights(model: nn.Module, *names: str) -> Units:
    """One unit a weight."""
    sizes = {name: model.get_parameter(name).numel() for name in names}
    return Units(
        *(Group(name, n, (Slice(name, None, torch.arange(n)[:, None], "weight"),)) for name, n in sizes.items())
    )


class Ridge:
    """lam / 2 * sum of squares over all parameters, so the gradient is lam * w."""

    lam = 0.3

    def penalty(self, model: nn.Module, graph: object) -> Tensor:
        return self.lam / 2 * sum(p.square().sum() for p in model.parameters())


class Shrink:
    """Records the learning rates and halves the first weight."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def proximal(self, model: nn.Module, graph: object, lr: float) -> None:
        self.rates.append(lr)
        model[0].weight.mul_(0.5)


class Scale:
    """A gate: one factor on the output of the first layer, held by a submodule while it is open."""

    @contextmanager
    def gates(self, model: nn.Module, graph: object) -> Iterator[nn.Module]:
        self.gate = nn.Module()
        self.gate.factor = nn.Parameter(torch.ones(1))
        model.add_module("gate", self.gate)
        handle = model[0].register_forward_hook(lambda module, args, output: output * self.gate.factor)
        try:
            yield self.gate
        finally:
            handle.remove()
            del model.gate


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.ones(16, 2)


def score(model: nn.Module) -> Tensor:
    return model[2](model[1](model[0](X)))  # leaves out what gates have registered


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, extra: float = 0.0) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse_loss(score(model), Y)
        if extra:
            loss = loss + extra / 2 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_penalty_acts_as_if_it_were_in_the_loss(make) -> None:
    hooked, plain = net(), net()
    optimizer = make(hooked.parameters())
    with attach(Ridge(), hooked, optimizer, weights(hooked, "0.weight")):
        train(hooked, optimizer)
    train(plain, make(plain.parameters()), extra=Ridge.lam)
    for a, b in zip(hooked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_penalty_reaches_parameters_without_a_gradient_and_spares_frozen_ones() -> None:
    model = net()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    with attach(Ridge(), model, optimizer, weights(model, "0.weight")):
        optimizer.step()  # no backward has run: every .grad is None
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - Ridge.lam) if parameter.requires_grad else old)
    assert model[2].weight.grad is None


def test_penalty_is_not_scaled_by_a_loss_scaler() -> None:
    def run(fused: bool) -> list[Tensor]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with attach(Ridge(), model, optimizer, weights(model, "0.weight")):
            for _ in range(2):
                optimizer.zero_grad()
                scaler.scale(mse_loss(score(model), Y)).backward()
                scaler.step(optimizer)
                scaler.update()
        return [p.detach() for p in model.parameters()]

    plain = net()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), steps=2, extra=Ridge.lam)
    for fused in (False, True):
        for a, b in zip(run(fused), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b.detach())


def test_penalty_and_keep_work_where_the_step_computes_the_gradient() -> None:
    # min (w - 3)^2 + lam/2 w^2 lies at w = 6 / (2 + lam); the second weight is removed.
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model.w - 3).square().sum()
        loss.backward()
        return loss

    graph = weights(model, "w")
    with attach(Ridge(), model, optimizer, graph, {"w": torch.tensor([True, False])}):
        for _ in range(3):
            optimizer.step(closure)
    torch.testing.assert_close(model.w.detach(), torch.tensor([6 / (2 + Ridge.lam), 0.0]))


def test_proximal_follows_every_step_with_its_learning_rate() -> None:
    model, plain, method = net(), net(), Shrink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with attach(method, model, optimizer, weights(model, "0.weight")):
        train(model, optimizer, steps=1)
        optimizer.param_groups[0]["lr"] = 0.25
        train(model, optimizer, steps=2)
    assert method.rates == [0.5, 0.25, 0.25]
    once = torch.optim.SGD(plain.parameters(), lr=0.5)
    model = net()
    with attach(Shrink(), model, torch.optim.SGD(model.parameters(), lr=0.5), weights(model, "0.weight")):
        pass
    torch.testing.assert_close(model[0].weight, plain[0].weight)  # nothing happens without a step
    train(plain, once, steps=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with attach(Shrink(), model, optimizer, weights(model, "0.weight")):
        train(model, optimizer, steps=1)
    torch.testing.assert_close(model[0].weight, plain[0].weight * 0.5)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_removed_weights_stay_zero_with_their_gradient_and_momentum(make) -> None:
    model = net()
    optimizer = make(model.parameters())
    train(model, optimizer)  # momentum from a time before the mask
    kept = torch.rand(20, generator=torch.Generator().manual_seed(0)) < 0.4
    with attach(None, model, optimizer, weights(model, "0.weight"), {"0.weight": kept}) as attached:
        dead = attached.removed["0.weight"]
        assert torch.equal(dead.flatten(), ~kept)
        for _ in range(3):
            train(model, optimizer, steps=1)
            weight = model[0].weight
            assert not weight[dead].any()
            assert not weight.grad[dead].any()
            for value in optimizer.state[weight].values():
                assert value.shape != weight.shape or not value[dead].any()
            assert weight[~dead].all()


def test_a_mask_equals_training_without_the_removed_weights() -> None:
    masked, plain = net(), net()
    kept = torch.arange(20).remainder(3).ne(0)
    optimizer = torch.optim.SGD(masked.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    with attach(None, masked, optimizer, weights(masked, "0.weight"), {"0.weight": kept}):
        train(masked, optimizer, steps=4)
    mask = kept.view(5, 4).float()
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    with torch.no_grad():
        plain[0].weight.mul_(mask)
    for _ in range(4):
        other.zero_grad()
        mse_loss(plain[2](torch.tanh(X @ (plain[0].weight * mask).T + plain[0].bias)), Y).backward()
        other.step()
    for a, b in zip(masked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_kept_weight_that_is_zero_is_not_lost() -> None:
    model = net()
    kept = torch.zeros(20, dtype=torch.bool)
    kept[:4] = True
    with torch.no_grad():
        model[0].weight[0, 1] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(None, model, optimizer, weights(model, "0.weight"), {"0.weight": kept}):
        train(model, optimizer, steps=1)
    assert model[0].weight[0, 1] != 0


def test_a_removed_weight_with_an_infinite_gradient_stays_zero() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kept = torch.ones(20, dtype=torch.bool)
    kept[7] = False
    with attach(None, model, optimizer, weights(model, "0.weight"), {"0.weight": kept}):
        model[0].weight.grad = torch.zeros(5, 4)
        model[0].weight.grad.view(-1)[7] = torch.inf
        optimizer.step()
    assert model[0].weight.view(-1)[7] == 0
    assert model[0].weight.isfinite().all()


def test_units_of_several_slices_are_held_on_their_axes() -> None:
    model = net()
    places = torch.arange(5)[:, None]
    parts = (Slice("0.weight", 0, places), Slice("0.bias", 0, places), Slice("2.weight", 1, places))
    graph = Units(Group("0", 5, parts))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kept = torch.tensor([True, False, True, True, False])
    with attach(None, model, optimizer, graph, {"0": kept}):
        train(model, optimizer)
    assert not model[0].weight[~kept].any()
    assert not model[0].bias[~kept].any()
    assert not model[2].weight[:, ~kept].any()
    assert model[0].weight[kept].all()
    assert model[2].weight[:, kept].all()


def test_gates_are_entered_trained_without_decay_and_left() -> None:
    model, method = net(), Scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    groups = len(optimizer.param_groups)
    with attach(method, model, optimizer, weights(model, "0.weight")) as attached:
        assert attached.parameters == (method.gate.factor,)
        assert optimizer.param_groups[-1]["weight_decay"] == 0
        assert optimizer.param_groups[-1]["lr"] == 0.1
        train(model, optimizer)
        optimizer.load_state_dict(optimizer.state_dict())  # makes new dicts of the groups
    assert method.gate.factor.item() != 1
    assert len(optimizer.param_groups) == groups
    assert method.gate.factor not in optimizer.state
    assert not model[0]._forward_hooks


def test_everything_is_detached_after_an_exception() -> None:
    class All(Ridge, Shrink, Scale):
        def __init__(self) -> None:
            Shrink.__init__(self)

    def fail() -> None:
        with attach(All(), model, optimizer, weights(model, "0.weight"), kept):
            train(model, optimizer)
            raise KeyError("stop")

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = {"0.weight": torch.arange(20) < 10}
    with pytest.raises(KeyError, match="stop"):
        fail()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert len(optimizer.param_groups) == 1
    train(model, optimizer)
    assert model[0].weight.view(-1)[10:].all()


def test_a_method_without_a_part_in_training_changes_nothing() -> None:
    hooked, plain = net(), net()
    optimizer = torch.optim.SGD(hooked.parameters(), lr=0.1)
    with attach("l1", hooked, optimizer):
        train(hooked, optimizer)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    assert all(torch.equal(a, b) for a, b in zip(hooked.parameters(), plain.parameters(), strict=True))


def test_slimming_and_a_mask_on_a_traced_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    graph = trace(model, torch.randn(2, 1, 6, 6))
    gamma = model[1].weight.detach().copy_(torch.tensor([0.5, -0.5, 0.25, 0.0])).clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with attach("slimming", model, optimizer, graph):
        optimizer.step()
    torch.testing.assert_close(model[1].weight.detach(), gamma - 1e-4 * gamma.sign())

    fine = graph.weights()
    kept = {group.name: torch.arange(group.units) % 2 == 0 for group in fine.groups}
    with attach(None, model, optimizer, fine, kept):
        model(torch.randn(5, 1, 6, 6)).square().mean().backward()
        optimizer.step()
    assert set(kept) == {"0.weight", "4.weight"}
    for name, mask in kept.items():
        assert not model.get_parameter(name).flatten()[~mask].any()
        assert model.get_parameter(name).flatten()[mask].all()


def test_user_errors_name_the_remedy() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    graph = weights(model, "0.weight")

    def refused(match: str, *args: object) -> None:
        with pytest.raises(TopiaristError, match=match), attach(*args):
            pass

    refused("graph=topiarist.trace", Ridge(), model, optimizer)
    refused("graph=topiarist.trace", None, model, optimizer, None, {"0.weight": torch.ones(20, dtype=torch.bool)})
    refused("after the model was cut", None, net(), optimizer, graph)
    refused("20 booleans", None, model, optimizer, graph, {"0.weight": torch.ones(19, dtype=torch.bool)})
    refused("20 booleans", None, model, optimizer, graph, {"0.weight": torch.ones(20)})
    refused("which this graph lacks", None, model, optimizer, graph, {"9.weight": torch.ones(20, dtype=torch.bool)})
    small = nn.Sequential(nn.Linear(4, 2))
    refused(
        "trace this model again",
        None,
        small,
        torch.optim.SGD(small.parameters(), lr=0.1),
        graph,
        {"0.weight": torch.arange(20) < 3},
    )
    refused("no_such_method", "no_such_method", model, optimizer, graph)

"""Pruning in the middle of a training: it continues as the masked model's would, to rounding in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy, layer_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel

import topiarist
from continuing import OPTIMIZERS, Deeper, Net, X, Y, average, distance, graph, keep, likewise, step, train
from topiarist import Graph, TopiaristError, attach, cut, mask, prune, trace


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_training_continues_as_that_of_the_masked_model(kind: str) -> None:
    """With two groups, a schedule, an average, and half of a batch whose gradient is summed up already."""

    def make(model: nn.Module) -> Optimizer:
        optimizer = OPTIMIZERS[kind]([{"params": list(model.stem.parameters())}, {"params": list(rest(model))}])
        optimizer.param_groups[1]["lr"] *= 0.5
        return optimizer

    def rest(model: nn.Module) -> list[nn.Parameter]:
        return [p for name, p in model.named_parameters() if not name.startswith("stem")]

    def go_on(model: nn.Module, optimizer: Optimizer, ema: AveragedModel, schedule: StepLR, steps: int) -> None:
        for _ in range(steps):
            step(model, optimizer)
            schedule.step()
            ema.update_parameters(model)

    model = Net()
    optimizer, ema = make(model), average(model)
    schedule = StepLR(optimizer, 2, 0.7)
    go_on(model, optimizer, ema, schedule, 3)
    cross_entropy(model(X[:5]), Y[:5]).backward()

    masked = mask(model, graph(), keep())
    twin = likewise(optimizer, make, masked)
    masked_ema = copy.deepcopy(ema)
    masked_ema.module = mask(ema.module, graph(), keep())
    masked_schedule = StepLR(twin, 2, 0.7)
    masked_schedule.load_state_dict(schedule.state_dict())
    for parameter, before in zip(masked.parameters(), model.parameters(), strict=True):
        parameter.grad = before.grad.clone()

    small = cut(model, graph(), keep(), optimizer, ema)
    with attach(None, masked, twin, graph(), keep()):
        for steps in (1, 4):
            go_on(small, optimizer, ema, schedule, steps)
            go_on(masked, twin, masked_ema, masked_schedule, steps)
            assert distance(small, cut(masked, graph(), keep())) <= 1e-10
            assert distance(ema.module, cut(masked_ema.module, graph(), keep())) <= 1e-10
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in twin.param_groups]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == set(map(id, small.parameters())) == set(map(id, optimizer.state))


class Norm(nn.LayerNorm):
    """A layer norm over the kept channels alone, where they are named."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            return super().forward(x)
        normed = layer_norm(x[..., self.kept], (int(self.kept.sum()),), self.weight[self.kept], self.bias[self.kept])
        return torch.zeros_like(x).masked_scatter(self.kept.expand_as(x), normed)


class Words(nn.Module):
    """Tokens, a residual stream with norms over its channels, and the embedding once more at the end."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.embedding, self.last = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.last.weight = self.embedding.weight
        self.before, self.inner, self.outer, self.after = Norm(8), nn.Linear(8, 12), nn.Linear(12, 8), Norm(8)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.last(self.after(x + self.outer(torch.tanh(self.inner(self.before(x))))))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_tied_weights_and_norms_over_channels(kind: str) -> None:
    tokens = torch.arange(22).view(2, 11) % 7
    model, masked = Words(), Words()
    traced = trace(model, tokens)
    chosen = {group.name: torch.arange(group.units) % 4 != 1 for group in traced.groups}

    def train(net: nn.Module, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            cross_entropy(net(tokens).flatten(0, 1), tokens.flip(0).flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()

    first, second = (OPTIMIZERS[kind](net.parameters()) for net in (model, masked))
    train(model, first, 3)
    train(masked, second, 3)
    small = cut(model, traced, chosen, first)
    masked.before.kept = masked.after.kept = traced.kept(chosen)["before.weight", 0]
    with attach(None, masked, second, traced, chosen):
        train(small, first, 5)
        train(masked, second, 5)
    assert small.last.weight is small.embedding.weight
    assert distance(small, cut(masked, traced, chosen)) <= 1e-10


@pytest.mark.parametrize("kind", ["adamw", "adagrad"])
def test_two_cuts_in_turn_carry_what_one_does(kind: str) -> None:
    model, twin = Net(), Net()
    first, second = (OPTIMIZERS[kind](net.parameters()) for net in (model, twin))
    for net, optimizer in ((model, first), (twin, second)):
        train(net, optimizer, 2)
    once = {name: kept & (kept.cumsum(0) % 2 == 1) for name, kept in keep().items()}
    small = cut(twin, graph(), once, second)
    model = cut(model, graph(), keep(), first)
    again = {name: once[name][kept] for name, kept in keep().items()}
    model = cut(model, trace(model, X[:2]), again, first)
    train(model, first, 2)
    train(small, second, 2)
    assert distance(model, small) == 0


def test_repaired_weights_stay_and_get_the_state() -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 2)
    momentum = optimizer.state[model.head.weight]["exp_avg"].clone()
    batches = [(X[:6], Y[:6]), (X[6:], Y[6:])]
    result = prune(model, X[:2], topiarist.Pruning.of("l1", 0.5, repair="lasso"), data=batches)
    values = copy.deepcopy(result.model)
    small = result.carry_over(model, optimizer)
    assert distance(small, values) == 0
    assert distance(small, cut(model, result.graph, result.keep)) > 1e-3
    kept = result.graph.kept(result.keep)["head.weight", 1]
    assert torch.equal(optimizer.state[small.head.weight]["exp_avg"], momentum[:, kept])


def test_weights_that_are_pruned_one_by_one() -> None:
    """What a mask does to the optimiser at its first step, the cut does at once."""
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, 2)
    weights = trace(model, X[:2]).weights()
    chosen = {group.name: torch.arange(group.units) % 2 == 0 for group in weights.groups}
    held = copy.deepcopy(model)
    twin = likewise(optimizer, lambda net: OPTIMIZERS["sgd"](net.parameters()), held)
    masked = cut(model, weights, chosen, optimizer)
    assert not optimizer.state[masked.head.weight]["momentum_buffer"].flatten()[~chosen["head.weight"]].any()
    for net, same in ((masked, optimizer), (held, twin)):
        with attach(None, net, same, weights, chosen):
            train(net, same, 3)
    assert distance(masked, held) == 0


def test_parameters_of_a_removed_block_leave_the_optimiser() -> None:
    model = Deeper()
    blocks = trace(model, X[:2]).blocks()
    optimizer = optim.AdamW([{"params": list(m.named_parameters())} for m in (model.branch, model.last)])
    schedule, shadow = StepLR(optimizer, 1), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, optimizer, 2)
    (group,) = blocks.groups
    small = cut(model, blocks, {group.name: torch.tensor([False, True])}, optimizer, shadow)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 4]
    assert [len(group["param_names"]) for group in optimizer.param_groups] == [0, 4]
    assert set(optimizer.state) == set(small.last.parameters())
    assert shadow.keys() == small.state_dict().keys()
    before = copy.deepcopy(small)
    train(small, optimizer, 2)
    schedule.step()
    assert distance(small.last, before.last) > 1e-4
    assert distance(small.head, before.head) == 0


def pair() -> tuple[nn.Linear, Graph, dict[str, Tensor], nn.Sequential]:
    """Two layers, of which the second loses rows and columns."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2)).double()
    traced = trace(model, torch.ones(2, 4, dtype=torch.double))
    return model[2], traced, {group.name: torch.arange(group.units) % 3 != 1 for group in traced.groups}, model


class Factored(Optimizer):
    """Adafactor's estimate with the axes of its factors dropped; it moves nothing."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"] if p.dim() > 1):
            self.state[parameter]["row"] = parameter.grad.square().mean(-1)
            self.state[parameter]["col"] = parameter.grad.square().mean(-2)


def estimate(state: dict[str, Tensor], row: str, col: str) -> Tensor:
    rows, cols = (state[key] for key in (row, col))
    if rows.dim() == 1:
        rows, cols = rows[:, None], cols[None]
    return rows @ cols / rows.mean()


@pytest.mark.parametrize(
    ("make", "keys"),
    [(lambda p: optim.Adafactor(p, lr=0.01), ("row_var", "col_var")), (Factored, ("row", "col"))],
    ids=["sizes of 1", "axes dropped"],
)
def test_factored_second_moments_of_kept_weights_stay_as_they_were(make: Any, keys: tuple[str, str]) -> None:
    layer, traced, chosen, model = pair()
    optimizer = make(model.parameters())
    for _ in range(2):
        model(torch.randn(8, 4, dtype=torch.double)).square().sum().backward()
        optimizer.step()
    before = estimate(optimizer.state[layer.weight], *keys)
    small = cut(model, traced, chosen, optimizer)
    after = estimate(optimizer.state[small[2].weight], *keys)
    torch.testing.assert_close(after, before[chosen["2"]][:, chosen["0"]], rtol=1e-12, atol=0)


def test_adafactor_of_masked_gradients_becomes_that_of_the_smaller_tensors() -> None:
    """The same gradients give the smaller tensors' means, counted over them from the start."""
    _, traced, chosen, model = pair()
    small = cut(model, traced, chosen)
    optimizer, reference = (optim.Adafactor(net.parameters(), lr=0.01, weight_decay=0.0) for net in (model, small))
    removed = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for (name, axis), kept in traced.kept(chosen).items():
        removed[name] *= kept.double().view([-1 if d == axis else 1 for d in range(removed[name].dim())])
    for seed in range(3):
        torch.manual_seed(seed)
        for (name, parameter), smaller in zip(model.named_parameters(), small.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter) * removed[name]
            smaller.grad = parameter.grad[removed[name] > 0].view_as(smaller)
        optimizer.step()
        reference.step()
    made = cut(model, traced, chosen, optimizer)
    for parameter, smaller in zip(made.parameters(), small.parameters(), strict=True):
        state, expected = optimizer.state[parameter], reference.state[smaller]
        assert state.keys() == expected.keys()
        for key in state:
            torch.testing.assert_close(state[key], expected[key], rtol=1e-12, atol=0)
    made.load_state_dict(small.state_dict())
    for net, same in ((made, optimizer), (small, reference)):  # and so the steps that follow are the same
        for _ in range(3):
            net(torch.ones(2, 4, dtype=torch.double)).square().sum().backward()
            same.step()
    assert distance(made, small) <= 1e-12


def test_a_square_matrix_alone_does_not_say_which_axis_is_missing() -> None:
    """Another one that is not square does, also where the square one comes last."""
    for outputs in (6, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, outputs)).double()
        traced = trace(model, torch.ones(2, 6, dtype=torch.double))
        chosen = {group.name: torch.arange(6) % (2 + k) != 0 for k, group in enumerate(traced.groups)}
        optimizer = Factored(list(model.parameters())[::-1])
        model(torch.randn(4, 6, dtype=torch.double)).square().sum().backward()
        optimizer.step()
        if outputs == 6:
            with pytest.raises(TopiaristError, match=r"Factored keeps 'row' .* make a new optimizer"):
                cut(model, traced, chosen, optimizer)
            continue
        before = estimate(optimizer.state[model[2].weight], "row", "col")
        small = cut(model, traced, chosen, optimizer)
        after = estimate(optimizer.state[small[2].weight], "row", "col")
        torch.testing.assert_close(after, before[chosen["2"]][:, chosen["0"]], rtol=1e-12, atol=0)


class Odd(optim.SGD):
    """Keeps something of an odd form."""

    value: Any = None

    def step(self) -> None:
        super().step()
        for parameter in self.param_groups[0]["params"]:
            if parameter.dim() > 1:
                self.state[parameter]["odd"] = self.value(parameter)


@pytest.mark.parametrize(
    "value",
    [lambda p: p.new_zeros(p.numel()), lambda p: [p.detach()], lambda p: p @ p.T if p.dim() == 2 else p],
    ids=["flat", "a list", "square"],
)
def test_state_of_an_unknown_form_is_refused_and_nothing_changes(value: Any) -> None:
    model = Net()
    optimizer, ema = Odd(model.parameters(), lr=0.1, momentum=0.9), average(model)
    optimizer.value = value
    train(model, optimizer, 1)
    state, averaged = dict(optimizer.state), ema.module
    with pytest.raises(TopiaristError, match=r"Odd keeps 'odd' of the parameter '.*weight' .*: make a new optimizer"):
        cut(model, graph(), keep(), ema, optimizer)
    assert optimizer.state == state
    assert ema.module is averaged
    assert not optimizer._optimizer_step_pre_hooks
    train(model, optimizer, 1)


def test_state_that_is_no_mapping_is_refused_and_nothing_changes() -> None:
    model = Net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        optimizer.state[parameter] = [1.0]
    state = dict(optimizer.state)
    with pytest.raises(TopiaristError, match=r"SGD keeps a list of the parameter .*: make a new optimizer"):
        cut(model, graph(), keep(), optimizer)
    assert optimizer.state == state


@pytest.mark.parametrize(("arguments", "message"), [
    ((lambda: ("net", graph(), keep())), r"model must be a torch\.nn\.Module, but got str"),
    ((lambda: (Net(), keep(), graph())), "this is a dict and no graph: give what topiarist.trace returned"),
    ((lambda: (Net(), graph(), None)), "keep must map groups to booleans, .* but got NoneType"),
])  # fmt: skip
def test_arguments_of_other_kinds_are_refused(arguments: Any, message: str) -> None:
    for use in (cut, mask):
        with pytest.raises(TopiaristError, match=message):
            use(*arguments())


def test_other_state_of_parameters_that_stay_whole_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    other = nn.Linear(3, 3).double()
    optimizer = Odd([*model.parameters(), *other.parameters()], lr=0.1, momentum=0.9)
    optimizer.value = lambda p: [p] if p is other.weight else 1.5
    (model(torch.ones(2, 4).double()).sum() + other(torch.ones(2, 3).double()).sum()).backward()
    optimizer.step()
    kept = optimizer.state[other.weight]
    traced = trace(model, torch.ones(2, 4).double())
    small = cut(model, traced, {"0": torch.arange(6) < 3}, optimizer)
    assert optimizer.state[other.weight] is kept
    assert optimizer.state[small[0].weight]["odd"] == 1.5
    assert optimizer.param_groups[0]["params"] == [*small.parameters(), *other.parameters()]

"""What a pruning inside a trainer would refuse at a late cut is refused before the first step; damaged states too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from corners import corners, equal, net, state
from topiarist import Budget, Pruning, TopiaristError
from topiarist.integrations.course import Course
from topiarist.integrations.in_trainer import Length, PruningInTrainer, restore_random

DATA = corners()
X, Y = DATA.normalise(DATA.train_x), DATA.train_y
PAIRS = [(X[:20], Y[:20])]
LENGTH = Length(10, 1000, 101)


def course(method: Any = "l1", budget: Any = 0.5, **options: Any) -> Course:
    plain = {"at": [2, 4], "per": "epoch", "schedule": None, "example_inputs": X[:2], "more_inputs": ()}
    others = {"outputs": None, "data": None, "loss": None, "averages": ()}
    return Course.of(method, budget, **{**plain, **others, **options})


def begun(model: nn.Module, course: Course, optimizer: Any = None) -> PruningInTrainer:
    pruning = PruningInTrainer(course, model)
    pruning.start(optimizer or torch.optim.SGD(model.parameters(), lr=0.1), LENGTH)
    return pruning


@pytest.mark.parametrize(("options", "message"), [
    ({"at": [1], "budget": Budget(params=1e-9)}, "leave at least"),
    ({"at": [1], "budget": Budget(ratio=0.5, exclude=("nope",))}, "'nope' matches no group"),
    ({"averages": [3]}, "int is not known here"),
    ({"averages": [nn.Linear(2, 2)]}, "Linear is not known here"),
    ({"averages": [AveragedModel(nn.Linear(2, 2))]}, "the average is of another network"),
    ({"averages": 3}, r"averages must be a list, but got int"),
    ({"more_inputs": X[:2]}, r"more_inputs must be a list, but got Tensor"),
    ({"example_inputs": X[:2].to("meta")}, "example input is a meta tensor"),
    ({"method": "taylor"}, "a cut by taylor is measured on data: give data="),
    ({"method": "thinet"}, "a cut by thinet is measured on data"),
    ({"method": Pruning.of("l1", 0.5, repair="lasso", steps=2), "budget": None}, "measured on data"),
    ({"method": "taylor", "data": [3]}, "fails on batch 1"),
    ({"method": "taylor", "data": [X[:20]]}, "gradients need targets"),
    ({"method": "taylor", "data": [(X[:20], Y[:20] + 9)]}, "fails on batch 1"),
    ({"method": "taylor", "data": PAIRS, "loss": nn.CrossEntropyLoss}, "loss is the class CrossEntropyLoss"),
    ({"method": "thinet", "data": []}, "no batch in the data"),
])  # fmt: skip
def test_what_a_late_cut_would_refuse_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    model, random = net(), torch.get_rng_state()
    before = state(model)
    with pytest.raises(TopiaristError, match=message) as error:
        begun(model, course(**options))
    assert "\n" not in str(error.value)
    assert equal(state(model), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_numbers_of_numpy_say_when_to_cut() -> None:
    assert course(at=np.arange(1, 7, 2)).at == (1, 3, 5)
    assert course(at=np.arange(1, 7, 2)).identity == course(at=[1, 3, 5]).identity


def test_two_prunings_of_one_network_are_refused() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = PruningInTrainer(course(), model), PruningInTrainer(course("fpgm"), model)
    first.start(optimizer, LENGTH)
    with pytest.raises(TopiaristError, match="two callbacks prune this network: give one"):
        second.start(optimizer, LENGTH)
    first.finish()
    second.start(optimizer, LENGTH)  # one after the other


def changed(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda stored: stored.update(values)


@pytest.mark.parametrize("damage", [
    *(lambda stored, key=key: stored.pop(key) for key in ("done", "softened", "architecture", "steps", "random")),
    *(changed(**{key: 3}) for key in ("architecture", "gates", "steps", "buffers", "random")),
    changed(done="a"), changed(done=-1), changed(done=9), changed(softened=None), changed(random={}),
    changed(buffers={"x.y": torch.zeros(1)}), changed(buffers={"0.gate": 3}),
    lambda stored: stored.clear(),
])  # fmt: skip
def test_a_damaged_state_is_refused(damage: Callable[[dict[str, Any]], Any]) -> None:
    model = net()
    pruning = begun(model, course("l0"))
    pruning.advance(2, 10)
    stored = pruning.state()
    pruning.finish()
    damage(stored)
    with pytest.raises(TopiaristError, match=r"damaged|not an architecture of topiarist"):
        resume(stored)


def resume(stored: dict[str, Any]) -> None:
    model = net()
    pruning = PruningInTrainer(course("l0"), model)
    pruning.reshape(stored)
    restore_random(model, stored)
    pruning.start(torch.optim.SGD(model.parameters(), lr=0.1), LENGTH, stored)

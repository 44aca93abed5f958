"""What the callbacks of all trainers share, without a trainer: refusals, adoption in place, state in files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from topiarist import Budget, Pruning, Steps, TopiaristError, attach, trace
from topiarist.integrations.adopting import adopt
from topiarist.integrations.course import Course
from topiarist.integrations.in_trainer import Length, PruningInTrainer, optimizer_of
from topiarist.integrations.state_files import VALUES, read_state, write_state
from topiarist.methods.l0 import L0

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def course(method: Any = "l1", budget: Any = 0.5, **options: Any) -> Course:
    given: dict[str, Any] = {"at": [2], "per": "step", "schedule": None, "example_inputs": IMAGES, "more_inputs": ()}
    given |= {"outputs": None, "data": None, "loss": None, "averages": ()}
    return Course.of(method, budget, **given | options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": None, "at": []}, "takes no part in training, and no cut is asked for"),
        ({"method": "slimming", "budget": None}, "needs a budget"),
        ({"at": []}, "a budget, and no cut to meet it"),
        ({"example_inputs": None}, "give example_inputs"),
        ({"per": "batch"}, "per must be 'epoch' or 'step'"),
        ({"at": 3}, "at must list after how many"),
        ({"at": [3, 2]}, "whole numbers that rise"),
        ({"at": [-1]}, "whole numbers that rise"),
        ({"method": Pruning.of("l1", 0.5, steps=3), "budget": None}, "has 3 cuts, and at= says when for 1"),
        ({"method": Pruning.of("l1", 0.5)}, "leave budget out"),
        ({"method": Pruning.of("slimming", 0.5, sparse_training={}), "budget": None}, "the trainer trains"),
    ],
)
def test_a_course_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TopiaristError, match=message):
        course(**arguments)


def test_a_cut_after_the_last_step_is_refused() -> None:
    with pytest.raises(TopiaristError, match="the last cut comes after 2 steps, and the training has 2"):
        course().check_length(1, 2)
    course().check_length(1, 3)
    course(per="epoch").check_length(None, 2)


def test_a_request_gets_as_many_cuts_as_there_are_times() -> None:
    assert course(at=range(3, 9, 2), schedule="cubic").request.steps == Steps(3, "cubic")
    assert course(method=Pruning.of("l1", 0.5), budget=None, at=[1, 4]).request.steps.count == 2


def test_a_network_is_refused_before_it_trains() -> None:
    with pytest.raises(TopiaristError, match="the network is wrapped"):
        PruningInTrainer(course(), nn.DataParallel(network()))
    with pytest.raises(TopiaristError, match="l1 needs a budget"):
        PruningInTrainer(course("l1", None), network())


def test_one_optimizer_trains_the_network() -> None:
    one, other = network(), network()
    sgd = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (one, other, one)]
    assert optimizer_of(one, sgd[:2]) is sgd[0]
    with pytest.raises(TopiaristError, match="2 optimizers train the network"):
        optimizer_of(one, sgd)
    with pytest.raises(TopiaristError, match="no optimizers"):
        optimizer_of(one, sgd[1:2])


def test_an_adopted_network_keeps_its_hooks_and_computes_what_the_smaller_one_does() -> None:
    model, calls = network(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    pruning = PruningInTrainer(course(), model)
    smaller = pruning.cuts.next(model, torch.optim.SGD(model.parameters(), lr=0.1))
    expected = smaller(IMAGES)
    calls.clear()
    adopt(model, smaller)
    assert torch.equal(model(IMAGES), expected)
    assert calls == [1]
    assert model[0].out_channels < 6


def test_the_state_survives_its_files_and_names_what_is_missing(tmp_path: Path) -> None:
    model = network()
    pruning = PruningInTrainer(course(L0(), None, at=[1]), model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    pruning.start(optimizer, Length(1, 3, 100))
    model(IMAGES).sum().backward()
    optimizer.step()
    state = pruning.state()
    assert not any("l0" in name for name in model.state_dict())
    write_state(tmp_path, state)
    again = read_state(tmp_path)
    assert again.keys() == state.keys()
    assert torch.equal(again["gates"]["l0_gates"]["log_alpha"], state["gates"]["l0_gates"]["log_alpha"])
    assert torch.equal(again["steps"][0]["exp_avg"], state["steps"][0]["exp_avg"])
    assert bool(state["steps"][0]["exp_avg"].any())
    assert {k: v for k, v in again.items() if k in ("pruning", "architecture", "done")} == {
        k: v for k, v in state.items() if k in ("pruning", "architecture", "done")
    }
    (tmp_path / VALUES).write_text("{}")
    with pytest.raises(TopiaristError, match="holds no state of a pruning"):
        read_state(tmp_path)
    pruning.finish()


def test_gates_with_a_step_of_their_own_take_the_same_way() -> None:
    """Their optimiser takes the steps that one more group of the network's would."""
    ends = []
    for own_step in (False, True):
        model, graph = network(), None
        graph = trace(model, IMAGES)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        groups = len(optimizer.param_groups)
        torch.manual_seed(1)
        with attach(L0(examples=4), model, optimizer, graph, own_step=own_step) as attached:
            assert len(optimizer.param_groups) == groups + (not own_step)
            for _ in range(3):
                model(IMAGES).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            ends.append([p.detach().clone() for p in (*model.parameters(), *attached.parameters)])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, topiarist.integrations; print({'lightning', 'transformers', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_whole_budget_is_that_of_all_cuts() -> None:
    model = network()
    pruning = PruningInTrainer(course("l1", Budget(macs=0.5), at=[1, 2, 3], schedule="cubic"), model)
    pruning.start(torch.optim.SGD(model.parameters(), lr=0.1), Length(1, 5, 10))
    macs = [pruning.metrics()["pruning/macs"]]
    for step in range(5):
        pruning.advance(0, step)
        macs.append(pruning.metrics()["pruning/macs"])
    assert macs[1] == macs[0] > macs[2] > macs[4] == macs[5]
    assert macs[5] <= 0.5 * macs[0]

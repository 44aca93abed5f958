"""What loops of one's own wrap around a training: averages, scalers, compilers, wrappers; and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

import topiarist
from continuing import OPTIMIZERS, Deeper, Net, X, Y, average, distance, graph, keep, likewise, train
from topiarist import TopiaristError, attach, cut, prune, trace
from topiarist.models import import_torchvision


@pytest.mark.filterwarnings("ignore:torchvision was built for another torch")
def test_averages_of_other_kinds() -> None:
    """timm's, and a dict of one's own."""
    import_torchvision()
    timm = pytest.importorskip("timm.utils")
    model = Net()
    ema, shadow = timm.ModelEmaV3(model, decay=0.5), {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    plain = copy.deepcopy(ema)
    plain.module = cut(ema.module, graph(), keep())
    small = cut(model, graph(), keep(), optimizer, ema, shadow)
    train(small, optimizer, 1)
    for each in (ema, plain):
        each.update(small)
    assert distance(ema, plain) == 0
    assert {name: value.shape for name, value in shadow.items()} == {n: p.shape for n, p in small.named_parameters()}
    assert torch.equal(shadow["head.bias"], model.head.bias)


def test_the_loss_of_the_model_before_the_cut_is_refused() -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 1)
    small = cut(model, graph(), keep(), optimizer)
    with pytest.raises(TopiaristError, match="compute it with what the cut returned"):
        train(model, optimizer, 1)
    before = copy.deepcopy(small)
    train(small, optimizer, 1)  # the next loss is of the smaller one
    assert distance(small, before) > 1e-4


@pytest.mark.parametrize("unscaled", [True, False])
def test_mixed_precision_continues_as_after_loading_a_checkpoint(unscaled: bool) -> None:
    """With a gradient scaler, cut before its unscaling or between it and the step, bit by bit."""

    def backward(model: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(x), Y)
        scaler.scale(loss).backward()

    model, x = Net().float(), X.float()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    backward(model)
    scaler.step(optimizer)
    scaler.update()
    backward(model)
    if unscaled:
        scaler.unscale_(optimizer)
    small = cut(model, graph(), keep(), optimizer)
    twin = copy.deepcopy(small)
    other = likewise(optimizer, lambda net: optim.AdamW(net.parameters()), twin)
    for parameter, same in zip(small.parameters(), twin.parameters(), strict=True):
        same.grad = parameter.grad / (1 if unscaled else 256)
    before = copy.deepcopy(small)
    scaler.step(optimizer)
    other.step()
    assert distance(small, twin) == 0
    assert distance(small, before) > 1e-4
    scaler.update()
    assert scaler.get_scale() == 256.0


@pytest.mark.nightly
def test_checkpointed_and_compiled_networks() -> None:
    """What is cut is plain; compiled again, or computed twice to save memory, it trains to the same weights."""
    nets = []
    for kind in ("plain", "checkpointed", "compiled"):
        model = Net()
        model.recompute = kind == "checkpointed"
        wrap = (lambda net: torch.compile(net, backend="aot_eager")) if kind == "compiled" else (lambda net: net)
        wrapped = wrap(model)
        optimizer, ema = OPTIMIZERS["sgd"](model.parameters()), average(wrapped)
        train(wrapped, optimizer, 1)
        small = cut(wrapped, trace(wrapped, X[:2]), keep(), optimizer, ema)
        assert type(small) is type(ema.module) is Net
        train(wrap(small), optimizer, 2)
        ema.update_parameters(small)
        nets.append((small, ema.module))
    for small, averaged in nets[1:]:
        assert distance(small, nets[0][0]) <= 1e-10
        assert distance(averaged, nets[0][1]) <= 1e-10


class Accelerated(Optimizer):
    """Of the shape of Accelerate's wrapper: an optimiser within, and none of the hooks of its own."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Bare(SimpleNamespace):
    """The same without torch's class."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


@pytest.mark.parametrize("wrap", [Accelerated, lambda inner: Bare(optimizer=inner)], ids=["accelerate", "any"])
def test_a_wrapped_optimiser_is_attached_to_and_carried_over(wrap: Any) -> None:
    made = []
    for wrapped in (False, True):
        model = Net()
        inner = OPTIMIZERS["adamw"](model.parameters())
        optimizer = wrap(inner) if wrapped else inner
        with attach("slimming", model, optimizer, graph()):
            train(model, optimizer, 2)
        model = cut(model, graph(), keep(), optimizer)
        train(model, optimizer, 2)
        made.append(model)
    assert distance(*made) == 0


class Within(Optimizer):
    """Of the shape of Lookahead and SAM: steps another optimiser, on the same groups."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.param_groups = base, base.param_groups

    def step(self) -> None:
        self.base.step()
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter]["slow"] = parameter.detach().clone()


def test_an_optimiser_within_another_is_carried_over_with_it() -> None:
    model, plain = Net(), Net()
    outer, alone = Within(OPTIMIZERS["adam"](model.parameters())), OPTIMIZERS["adam"](plain.parameters())
    train(model, outer, 2)
    train(plain, alone, 2)
    model, plain = cut(model, graph(), keep(), outer), cut(plain, graph(), keep(), alone)
    assert all(torch.equal(outer.state[p]["slow"], p) for p in model.parameters())
    train(model, outer, 2)
    train(plain, alone, 2)
    assert distance(model, plain) == 0


def test_what_cannot_be_carried_over_is_named() -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())

    def refused(match: str, *training: Any) -> None:
        with pytest.raises(TopiaristError, match=match):
            cut(model, graph(), keep(), *training)
        assert optimizer.param_groups[0]["params"] == list(model.parameters())

    refused("holds no parameter of this model", optimizer, OPTIMIZERS["adam"](Net().parameters()))
    refused("average is of another network, it differs in 'last.0.weight'", optimizer, average(Deeper()))
    refused("average is of another network", optimizer, {"head.weight": torch.zeros(3)})
    refused("average is of another network", optimizer, optimizer.state_dict())
    refused("StepLR is not known here", optimizer, StepLR(optimizer, 1))
    refused("Net is not known here.*is cut by topiarist.cut", copy.deepcopy(model))
    refused("not known here", None)
    with attach("slimming", model, optimizer, graph()):
        refused("leave its context", optimizer)
    lbfgs = optim.LBFGS(model.parameters())
    lbfgs.step(lambda: cross_entropy(model(X), Y).backward() or torch.zeros(()))
    refused("LBFGS keeps '.*' of the parameter 'stem.0.weight'", lbfgs)
    with pytest.raises(TopiaristError, match="attached to a torch"), attach("l1", model, 0.1):
        pass


def test_a_pruning_that_trains_or_rewinds_needs_a_new_optimiser() -> None:
    model = Net()
    optimizer, initial = OPTIMIZERS["adam"](model.parameters()), copy.deepcopy(model.state_dict())
    train(model, optimizer, 1)
    result = prune(model, X[:2], topiarist.Pruning.of("l1", 0.5, rewind=True), initial=initial)
    with pytest.raises(TopiaristError, match=r"rewound .*: make a new optimizer from result.model.parameters"):
        result.carry_over(model, optimizer)
    with pytest.raises(TopiaristError, match="not the network that was traced"):
        prune(model, X[:2], "l1", 0.5).carry_over(nn.Linear(2, 2), optimizer)


@pytest.fixture
def one_of_many(tmp_path: Path) -> Iterator[DeviceMesh]:
    """One process that is a whole group."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


class Parallel(nn.parallel.DistributedDataParallel):
    """As libraries derive theirs."""


@pytest.mark.parametrize("wrapper", [nn.parallel.DistributedDataParallel, Parallel])
def test_the_optimiser_of_a_wrapper_that_would_stay_behind_is_refused(one_of_many: DeviceMesh, wrapper: Any) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with pytest.raises(TopiaristError, match=r"give the network within, model.module, and wrap the smaller one"):
        cut(wrapper(model), graph(), keep(), optimizer)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_a_sharded_model_is_refused_also_while_it_is_whole(one_of_many: DeviceMesh) -> None:
    result, model = prune(Net(), X[:2], "l1", 0.5), fully_shard(Net(), mesh=one_of_many)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    doors = {
        "cut": lambda: cut(model, graph(), keep()),
        "cut in training": lambda: cut(model, graph(), keep(), optimizer),
        "carry over": lambda: result.carry_over(model, optimizer),
        "prune": lambda: prune(model, X[:2], "l1", 0.5),
        "trace": lambda: trace(model, X[:2]),
    }
    for whole in (False, True):
        if whole:  # as its parameters are between forward and backward
            model(X)
        assert whole == all(type(parameter) is nn.Parameter for parameter in model.parameters())
        for door in doors.values():
            with pytest.raises(TopiaristError, match=r"sharded \(FSDP\).*full_state_dict"):
                door()


def test_parts_of_an_optimiser_or_an_average_are_refused(one_of_many: DeviceMesh) -> None:
    plain, model = Net(), fully_shard(Net(), mesh=one_of_many)
    shadow, parallel = dict(model.named_parameters()), nn.parallel.DistributedDataParallel(plain)
    shared = ZeroRedundancyOptimizer(parallel.parameters(), optim.Adam, lr=0.01)
    for training, match in (
        (OPTIMIZERS["adam"](model.parameters()), r"of this Adam are sharded \(FSDP\).*load get_optimizer_state_dict"),
        (shadow, r"of the average is sharded \(FSDP\): give its full_tensor"),
        (shared, r"ZeroRedundancyOptimizer shares its state .*load its consolidated state_dict"),
    ):
        with pytest.raises(TopiaristError, match=match):
            cut(plain, graph(), keep(), training)
    assert all(held is parameter for held, parameter in zip(shadow.values(), model.parameters(), strict=True))
    assert shared.param_groups[0]["params"] == list(plain.parameters())

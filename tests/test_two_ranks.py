"""Two processes train with a cut in the middle, each on half of every batch, to the parameters of one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

import topiarist
from continuing import OPTIMIZERS, Deeper, X, Y, average, distance
from topiarist import Graph, TopiaristError, cut, prune, trace

pytestmark = pytest.mark.nightly  # two processes take seconds to start

FULL = StateDictOptions(full_state_dict=True)
UNITS: dict[str, Callable[[Graph], Graph]] = {
    "channels": lambda graph: graph,
    "weights": Graph.weights,
    "blocks": Graph.blocks,
}


def as_two(work: Callable[[], None], folder: Path) -> None:
    """Runs a function in two processes at once; raises what one of them raises."""
    torch.multiprocessing.spawn(_rank, (work, f"file://{folder / 'group'}"), nprocs=2)


def _rank(rank: int, work: Callable[[], None], group: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=2, timeout=patience)
    try:
        work()
    finally:
        distributed.destroy_process_group()


def mine() -> slice:
    """The examples of this process."""
    return slice(distributed.get_rank(), None, 2)


def network() -> nn.Module:
    """Its batch norm in evaluation mode: else it sees other batches in two processes."""
    return Deeper().eval()


def units(kind: str) -> tuple[Graph, dict[str, Tensor]]:
    """What is cut: of channels and weights two thirds, of the blocks one."""
    graph = UNITS[kind](trace(network(), X[:2]))
    return graph, {group.name: torch.arange(group.units) % 3 != 0 for group in graph.groups}


def loss(model: nn.Module, examples: slice) -> Tensor:
    return cross_entropy(model(X[examples]), Y[examples])


def train(model: nn.Module, optimizer: Optimizer, examples: slice, steps: int = 3) -> None:
    for _ in range(steps):
        loss(model, examples).backward()
        optimizer.step()
        optimizer.zero_grad()


def alone(kind: str, name: str) -> tuple[nn.Module, Optimizer]:
    """The training of one process on whole batches."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, slice(None))
    model = cut(model, *units(kind), optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, optimizer, slice(None))
    assert max(float((p - b).abs().max()) for p, b in zip(model.parameters(), before, strict=True)) > 1e-3
    return model, optimizer


def check_equal(model: nn.Module, optimizer: Optimizer, other: nn.Module, its: Optimizer) -> None:
    """The same parameters, and the same state of each."""
    assert distance(model, other) <= 1e-12
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        state, expected = optimizer.state.get(parameter, {}), its.state.get(same, {})
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-12)


NAMES = ("sgd", "adamw")


def in_parallel() -> None:
    for kind, name in product(UNITS, NAMES):
        model = DistributedDataParallel(network())
        optimizer = OPTIMIZERS[name](model.parameters())
        train(model, optimizer, mine())
        model = DistributedDataParallel(cut(model.module, *units(kind), optimizer))
        train(model, optimizer, mine())
        check_equal(model.module, optimizer, *alone(kind, name))


def test_in_parallel(tmp_path: Path) -> None:
    """Parameters of removed blocks leave the optimiser, and the new wrapper does not wait for them."""
    as_two(in_parallel, tmp_path)


def between_the_halves_of_a_batch() -> None:
    made = []
    for wrap, examples in ((DistributedDataParallel, mine()), (lambda net: net, slice(None))):
        model = network()
        wrapped, ema = wrap(model), average(model)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        schedule = StepLR(optimizer, 1, 0.7)
        train(wrapped, optimizer, examples, 1)
        with wrapped.no_sync() if wrapped is not model else nullcontext():
            loss(wrapped, examples).backward()
        model = cut(model, *units("channels"), optimizer, ema)
        wrapped = wrap(model)
        for _ in range(2):
            train(wrapped, optimizer, examples, 1)
            schedule.step()
            ema.update_parameters(model)
        made.append((model, optimizer, ema.module))
    (model, optimizer, averaged), (other, its, same) = made
    check_equal(model, optimizer, other, its)
    assert distance(averaged, same) <= 1e-12


def test_between_the_halves_of_a_batch(tmp_path: Path) -> None:
    """Gradients that the processes have not shared yet are cut, and shared after the cut; with schedule and average."""
    as_two(between_the_halves_of_a_batch, tmp_path)


def given_in_its_wrapper() -> None:
    model = network()
    graph, keep = units("channels")
    wrapped = DistributedDataParallel(model)
    assert str(trace(wrapped, X[:2])) == str(graph)
    assert distance(prune(wrapped, X[:2], "l1", 0.5).model, prune(model, X[:2], "l1", 0.5).model) == 0
    assert distance(cut(wrapped, graph, keep), cut(model, graph, keep)) == 0
    optimizer = OPTIMIZERS["adam"](model.parameters())
    result = prune(model, X[:2], "l1", 0.5)
    for carry in (lambda: cut(wrapped, graph, keep, optimizer), lambda: result.carry_over(wrapped, optimizer)):
        with pytest.raises(TopiaristError, match=r"give the network within, model.module, and wrap the smaller one"):
            carry()
        assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_given_in_its_wrapper(tmp_path: Path) -> None:
    """It is read as the network within; its optimiser is not carried over, since the wrapper would stay behind."""
    as_two(given_in_its_wrapper, tmp_path)


def by_own_batches() -> None:
    model = network()
    taylor, graph = topiarist.methods.make("taylor"), trace(model, X[:2])
    scores = taylor.score(graph, topiarist.collect(model, graph, [(X[mine()], Y[mine()])], taylor.needs))
    keep = topiarist.allocate(graph, scores, topiarist.Budget(ratio=0.5))
    assert not alike(keep)
    agreed = [keep]
    distributed.broadcast_object_list(agreed, src=0)
    assert alike(agreed[0])
    batches = [(X[:6], Y[:6]), (X[6:], Y[6:])]
    shared = prune(model, X[:2], "taylor", 0.5, data=batches, run=topiarist.Run(distributed=True)).keep
    assert alike(shared)
    whole = prune(model, X[:2], "taylor", 0.5, data=batches).keep
    assert all(torch.equal(shared[name], kept) for name, kept in whole.items())


def alike(keep: Mapping[str, Tensor]) -> bool:
    """Whether both processes keep the same units."""
    kept = torch.cat([*keep.values()]).byte()
    total = kept.clone()
    distributed.all_reduce(total)
    return torch.equal(total, 2 * kept)


def test_scores_of_own_batches_differ_until_they_are_shared(tmp_path: Path) -> None:
    as_two(by_own_batches, tmp_path)


def with_its_state_shared_out() -> None:
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01, weight_decay=0.01)
    train(model, optimizer, mine())
    with pytest.raises(TopiaristError, match=r"none has all of it: load its consolidated state_dict"):
        cut(model.module, *units("channels"), optimizer)
    optimizer.consolidate_state_dict(to=0)
    state = [optimizer.state_dict() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(state, src=0)
    plain = OPTIMIZERS["adam"](model.module.parameters())
    plain.load_state_dict(state[0])
    model = DistributedDataParallel(cut(model.module, *units("channels"), plain))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01, weight_decay=0.01)
    optimizer.load_state_dict(plain.state_dict())
    train(model, optimizer, mine())
    assert distance(model.module, alone("channels", "adam")[0]) <= 1e-12


def test_with_its_state_shared_out(tmp_path: Path) -> None:
    as_two(with_its_state_shared_out, tmp_path)


def shard(model: nn.Module) -> nn.Module:
    for part in model.children():
        fully_shard(part)
    return fully_shard(model)


def sharded() -> None:
    for kind, name in product(UNITS, NAMES):
        make = OPTIMIZERS[name]
        model = shard(network())
        optimizer = make(model.parameters())
        train(model, optimizer, mine())

        plain = network()
        plain.load_state_dict(get_model_state_dict(model, options=FULL))
        state = get_optimizer_state_dict(model, optimizer, options=FULL)
        set_optimizer_state_dict(plain, whole := make(plain.parameters()), state, options=FULL)
        smaller = cut(plain, *units(kind), whole)
        state = get_optimizer_state_dict(smaller, whole, options=FULL)
        model = shard(smaller)
        set_optimizer_state_dict(model, optimizer := make(model.parameters()), state, options=FULL)
        train(model, optimizer, mine())
        check_gathered(model, optimizer, *alone(kind, name))


def check_gathered(model: nn.Module, optimizer: Optimizer, other: nn.Module, its: Optimizer) -> None:
    """`check_equal` of a sharded training and one of one process."""
    weights = get_model_state_dict(model, options=FULL)
    assert weights.keys() == other.state_dict().keys()
    for name, value in other.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-12)
    state = get_optimizer_state_dict(model, optimizer, options=FULL)["state"]
    for name, parameter in other.named_parameters():
        for key, value in its.state.get(parameter, {}).items():
            torch.testing.assert_close(state[name][key], value, rtol=1e-9, atol=1e-12)


def test_sharded(tmp_path: Path) -> None:
    """Gathered, cut and sharded again."""
    as_two(sharded, tmp_path)


def cut_before_sharding() -> None:
    made, graph, keep = [], *units("channels")
    model, other = (cut(network(), graph, keep) for _ in range(2))
    model = shard(model)
    for net, examples in ((model, mine()), (other, slice(None))):
        made += [net, OPTIMIZERS["adamw"](net.parameters())]
        train(net, made[-1], examples)
    check_gathered(*made)


def test_cut_before_sharding(tmp_path: Path) -> None:
    as_two(cut_before_sharding, tmp_path)


def test_the_example_prints_the_same_with_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "two_ranks.py"
    source = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    printed = []
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        command = [sys.executable, *start, str(script)]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | source, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    one, two = ([re.split(r"loss (\S+)", line) for line in text.splitlines()] for text in printed)
    assert [line[::2] for line in one] == [line[::2] for line in two]
    losses, others = ([float(line[1]) for line in lines if len(line) > 1] for lines in (one, two))
    assert losses == pytest.approx(others, rel=1e-3)
    assert len(losses) == 6

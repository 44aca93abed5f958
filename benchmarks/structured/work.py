"""What fills a cell: training, pruning by either side, fine-tuning, training from scratch."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

import images
import peer
import torch
from plan import PEER, RANKINGS, chooser
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import topiarist
from topiarist import Architecture, Pruned, Recipe, evaluate, fit, methods
from topiarist.budget import Budget, allocate, cost
from topiarist.data import Data
from topiarist.graph import Graph, trace
from topiarist.methods import Rule, Selector
from topiarist.models import fitting_options, make_model
from topiarist.studies import Cell
from topiarist.train import Speed, scratch_b

Result = dict[str, Any]
EXTRAS = "extras.safetensors"  # buffers outside the state dict, in which gates leave what their score needs


class OutOfTimeError(BaseException):
    """A method has used up its CPU time; no `Exception`, lest something on the way takes it for an error of its own."""


@dataclass(frozen=True)
class Worker:
    """Computes cells (see `topiarist.studies.cells.Work`).

    Attributes:
        out: the run's folder.
        threads: of each process.
        limit: CPU seconds that one pruning may take.
    """

    out: Path
    threads: int
    limit: float

    def __call__(self, cell: Cell, folder: Path, needs: tuple[Path, ...]) -> Result:
        torch.set_num_threads(self.threads)
        return STEPS[cell.arm](Bench.of(cell, self), folder, *needs)


@dataclass(frozen=True)
class Bench:
    """A cell's data and network."""

    cell: Cell
    data: Data
    held: Data
    make: Callable[[], nn.Module]
    limit: float

    @staticmethod
    def of(cell: Cell, worker: Worker) -> Bench:
        data, held = images.load(worker.out, cell.data)
        options = fitting_options(cell.network, data.input_shape, data.classes)
        return Bench(cell, data, held, make_model(cell.network, **options), worker.limit)

    @property
    def recipe(self) -> Recipe:
        return Recipe(**self.cell.settings["recipe"])

    def graph(self) -> Graph:
        return trace(self.make(), self.data.example())

    def method(self) -> methods.Method:
        """Our method of this cell; the seed decides what is left to chance."""
        return self._seeded(chooser(self.cell.method), self.cell.settings["fields"])

    def repair(self) -> methods.Method | None:
        """The second of a pair, which repairs what the first one chose."""
        name = self.cell.method.partition("+")[2]
        return self._seeded(name, {}) if name else None

    def _seeded(self, name: str, chosen: Mapping[str, Any]) -> methods.Method:
        chance = {"seed": self.cell.seed} if "seed" in {entry.name for entry in fields(methods.get(name))} else {}
        return methods.make(name, **{**chance, **chosen})

    def train(self, model: nn.Module, recipe: Recipe, *, part: int | None = None, **role: Any) -> dict[str, float]:
        """Trains in place, on ``part`` of the training images; channels last is the quicker layout.

        Returns:
            Accuracy afterwards, as `accuracy` gives it.
        """
        data = self.data if part is None else self.data.subset(part, seed=self.cell.seed)
        _layout(model, torch.channels_last)
        history = fit(model, data, recipe, seed=self.cell.seed, speed=Speed(evaluate_every=0), **role)
        _layout(model, torch.contiguous_format)
        return {"test": history.accuracy, "held": self.score(model, self.held)}

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        """Per cent of the test images, and of the held-out training images."""
        return {"test": self.score(model, self.data), "held": self.score(model, self.held)}

    def score(self, model: nn.Module, data: Data) -> float:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _layout(model, torch.channels_last).to(device)
        value = evaluate(model, data)
        _layout(model, torch.contiguous_format).to("cpu")
        return value


def base(bench: Bench, folder: Path) -> Result:
    """The trained network."""
    torch.manual_seed(bench.cell.seed)
    model = bench.make()
    accuracy = bench.train(model, bench.recipe)
    graph = bench.graph()
    topiarist.save(model, Architecture.of(graph, graph.full()), folder)
    total = cost(graph)
    return {"accuracy": accuracy, "macs": total.macs, "params": total.params}


def sparse(bench: Bench, folder: Path, start: Path) -> Result:
    """The network trained on with what a method adds to training."""
    model, graph, recipe = topiarist.load(bench.make, start), bench.graph(), bench.recipe
    if bench.cell.method.startswith(PEER):
        name = bench.cell.method.removeprefix(PEER)
        # its scripts train without weight decay here
        recipe = Recipe(**{**bench.cell.settings["recipe"], "weight_decay": 0.0})
        method: methods.Method = peer.regulariser(model, bench.data.example(), name)
    else:
        method = bench.method()
    exclude = bench.cell.settings.get("exclude", ())
    if budget := bench.cell.settings.get("budget"):
        method = methods.make(method, rate=rate_of(graph, Budget(**budget, exclude=exclude)))
    accuracy = bench.train(model, recipe, method=method, graph=graph, exclude=exclude)
    topiarist.save(model, Architecture.of(graph, graph.full()), folder)
    stored = model.state_dict()
    extras = {name: buffer.contiguous() for name, buffer in model.named_buffers() if name not in stored}
    if extras:
        save_file(extras, folder / EXTRAS)
    return {"accuracy": accuracy}


def rate_of(graph: Graph, budget: Budget) -> float:
    """The largest rate of soft pruning, in hundredths, at which what may be cut meets the budget's MACs."""
    assert budget.macs is not None
    equal = {group.name: torch.ones(group.units) for group in graph.groups}
    keep = allocate(graph, equal, budget, "uniform")
    cut = {name: len(kept) for name, kept in keep.items() if not kept.all()}
    for rate in (hundredths / 100 for hundredths in range(99, 0, -1)):
        # As many as it zeroes, see `topiarist.methods.sfp`.
        left = {name: torch.arange(n) >= min(n - 1, int(n * (1 - rate) + 1e-9)) for name, n in cut.items()}
        if cost(graph, left).macs <= budget.macs * cost(graph).macs:
            return rate
    raise topiarist.TopiaristError("no rate meets the budget: ask for more MACs")


def pruned(bench: Bench, folder: Path, start: Path) -> Result:
    """The pruned network, before and after fine-tuning; or why the method refuses."""
    smaller, told = _smaller(bench, folder, start)
    if smaller is None:
        return told
    after = {
        "macs": peer.macs(smaller, bench.data.example()),
        "params": sum(parameter.numel() for parameter in smaller.parameters()),
        "before": bench.accuracy(smaller),
    }
    return {**told, **after, "after": bench.train(smaller, bench.recipe, part=bench.cell.settings["tune"])}


def timed(bench: Bench, folder: Path, start: Path) -> Result:
    """CPU seconds of the pruning alone."""
    _smaller(bench, folder, start)  # a first time, for all that is loaded and set up then
    _, told = _smaller(bench, folder, start)
    return {key: told[key] for key in ("prune_seconds", "refused") if key in told}


def _smaller(bench: Bench, folder: Path, start: Path) -> tuple[nn.Module | None, Result]:
    """The pruned network, and what is to be told of it: why there is none, in the worst case."""
    model, budget = _start(bench, start), bench.cell.budget
    measured = bench.data.subset(bench.cell.settings["measure"], seed=bench.cell.seed)
    try:
        with limited(bench.limit):
            if bench.cell.method.startswith(PEER):
                return _by_peer(bench, model, measured, budget["macs"])
            return _by_ours(bench, model, measured, budget, folder)
    except OutOfTimeError:
        return None, {"refused": f"it had not finished after {bench.limit:.0f} CPU seconds"}
    except topiarist.TopiaristError as error:
        return None, {"refused": " ".join(str(error).split())}


def _by_ours(
    bench: Bench, model: nn.Module, measured: Data, budget: Mapping[str, Any], folder: Path
) -> tuple[nn.Module, Result]:
    """The smaller network by the ranking that is better on held-out images right after pruning, local if equal."""
    method, example, run = bench.method(), measured.example(), topiarist.Run(seed=bench.cell.seed)

    def prune(asked: dict[str, Any] | None) -> tuple[Pruned, float]:
        begin = time.process_time()
        request = topiarist.Pruning.of(method, asked, repair=bench.repair())
        done = topiarist.prune(model, example, request, data=measured, run=run)
        return done, time.process_time() - begin

    ways: dict[str, dict[str, Any]] = {
        name: {**budget, "allocation": RANKINGS[name]} for name in bench.cell.settings.get("rankings", ())
    }
    found, own, refusal = [], False, topiarist.TopiaristError("")
    for ranking, asked in (ways or {"": dict(budget)}).items():
        try:
            found.append((*prune(asked), ranking))
        except topiarist.TopiaristError as error:
            refusal = error
    if not found:
        if not isinstance(method, Rule | Selector):
            raise refusal
        own = True  # it may take no budget, but find the widths itself
        found.append((*prune(None), ""))
    # The first of equals; where there is one alone nothing is asked.
    best = max(found, key=lambda one: bench.score(one[0].model, bench.held)) if len(found) > 1 else found[0]
    done, seconds, ranking = best
    done.architecture.save(folder / "architecture.json")
    widths = {name: kept for name, (kept, _) in done.architecture.widths.items()}
    told = {"prune_seconds": seconds, "proof": done.proof.max_rel_diff, "widths": widths, "own": own}
    return done.model, {**told, "ranking": ranking} if ranking else told


def _by_peer(bench: Bench, model: nn.Module, measured: Data, fraction: float) -> tuple[nn.Module, Result]:
    name = bench.cell.method.removeprefix(PEER)

    def score(candidate: nn.Module) -> float:
        return bench.score(candidate, bench.held)

    try:
        smaller, ranking, seconds = peer.prune(model, measured, name, fraction, score)
    except RuntimeError as error:
        raise topiarist.TopiaristError(f"Torch-Pruning fails: {error}") from error
    return smaller, {"prune_seconds": seconds, "ranking": ranking}


def scratch(bench: Bench, folder: Path) -> Result:
    """A shape from random weights: as many epochs as the unpruned network, or as much computation."""
    graph, settings = bench.graph(), bench.cell.settings
    widths = settings["widths"]
    keep = {group.name: torch.arange(group.units) < widths[group.name] for group in graph.groups}
    whole, small = cost(graph), cost(graph, keep)
    recipe = bench.recipe
    if bench.cell.arm == "scratch_b":
        recipe = scratch_b(recipe, max(1.0, whole.macs / small.macs), settings["cap"])
    torch.manual_seed(bench.cell.seed)
    model = Architecture.of(graph, keep).build(bench.make)
    accuracy = bench.train(model, recipe)
    return {"accuracy": accuracy, "macs": small.macs, "params": small.params, "epochs": recipe.epochs}


STEPS = {
    "base": base, "sparse": sparse, "pruned": pruned, "timed": timed, "scratch_e": scratch, "scratch_b": scratch
}  # fmt: skip


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `OutOfTimeError` after so many CPU seconds."""

    def over(signum: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    if not hasattr(signal, "setitimer"):  # no such clock on this system
        yield
        return
    former = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


def _start(bench: Bench, folder: Path) -> nn.Module:
    """The network of a cell, with the buffers that gates have left."""
    model = topiarist.load(bench.make, folder)
    extras: dict[str, Tensor] = load_file(folder / EXTRAS) if (folder / EXTRAS).exists() else {}
    for name, buffer in extras.items():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    return model


def _layout(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    return model.to(memory_format=layout)

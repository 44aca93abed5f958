"""What all arms share: the network and the data of a cell, and its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topiarist import guided, methods
from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture, load, save
from topiarist.data import Data, load_data
from topiarist.errors import TopiaristError
from topiarist.files import write_json
from topiarist.graph import Graph, declare, trace
from topiarist.measure import evaluate
from topiarist.methods import Method
from topiarist.models import fitting_options, make_model
from topiarist.studies.cells import Cell
from topiarist.surgery import add_selectors
from topiarist.train import Recipe, Speed, fit

Result = dict[str, Any]
Folders = tuple[Path, ...]
PATTERN_FILE = "pattern.json"
REHEARSED = 256
"""Training and test examples of a rehearsal, at most."""


@dataclass(frozen=True)
class Bench:
    """What all arms of a cell's network start from.

    Attributes:
        data: what is trained and tested on.
        make: builds the network.
        rehearses: whether this is no more than a rehearsal, with networks that nothing has trained.
    """

    data: Data
    make: Callable[[], nn.Module]
    rehearses: bool = False

    @staticmethod
    def of(cell: Cell, rehearses: bool = False) -> Bench:
        """That of a cell; for a rehearsal a few examples are enough."""
        data = load_data(cell.data)
        make: Callable[[], nn.Module] = make_model(
            cell.network, **fitting_options(cell.network, data.input_shape, data.classes)
        )
        if cell.settings.get("selectors"):
            make = _selecting(make, data.example())
        return Bench(_few(data) if rehearses else data, make, rehearses)

    def start(self, seed: int) -> nn.Module:
        """The network with the initial weights of a seed."""
        torch.manual_seed(seed)
        return self.make()

    def graph(self, cell: Cell) -> Graph:
        """The units of the unpruned network that the cell's method works on."""
        graph = trace(self.make(), self.data.example())
        if cell.method == "none":
            return graph
        return method_of(cell).units(graph)


def _few(data: Data) -> Data:
    """The same data with fewer examples."""
    fewer = data.subset(min(REHEARSED, len(data.train_x)))
    return replace(fewer, test_x=data.test_x[:REHEARSED], test_y=data.test_y[:REHEARSED])


def _selecting(make: Callable[[], nn.Module], example: Tensor) -> Callable[[], nn.Module]:
    """The same networks with channel selectors wherever these free something."""
    names = trace(add_selectors(make(), example_inputs=example), example).selectors

    def selecting() -> nn.Module:
        model = make()
        declare(model, names)
        return model

    return selecting


def train(
    cell: Cell,
    folder: Path,
    data: Data,
    model: nn.Module,
    architecture: Architecture,
    recipe: Recipe,
    shape: Mapping[str, Any],
    **role: Any,
) -> Result:
    """Train a network, going on from the checkpoint that a killed run left in the folder, and keep it.

    Args:
        cell: whose seed orders the examples.
        folder: where the network and its course are kept.
        data: what to train and test on.
        model: the network, trained in place.
        architecture: its shape.
        recipe: how.
        shape: what is known of the shape: MACs, parameters, widths.
        role: method, graph and keep, as `topiarist.fit` takes them.
    """
    checkpoint = folder / "checkpoint.pt"
    speed = Speed(**{**cell.settings.get("speed", {}), "evaluate_every": 0})
    history = fit(model, data, recipe, seed=cell.settings["seed"], checkpoint=checkpoint, speed=speed, **role)
    save(model, architecture, folder)
    write_json(folder / "history.json", asdict(history))
    checkpoint.unlink(missing_ok=True)
    known: Result = {name: shape[name] for name in ("macs", "params", "ratio", "widths") if name in shape}
    accuracy = history.epochs[-1].test_accuracy if history.epochs else evaluate(model, data)
    return {"accuracy": accuracy, **known, "bytes": size_of(folder), "epochs": len(history.epochs)}


@contextmanager
def _read_from(folder: Path) -> Iterator[None]:
    """Says of a finished cell that is damaged how it comes back."""
    try:
        yield
    except TopiaristError as error:
        raise TopiaristError(f"{error}; in a study, delete the folder {folder} and run the study again") from error


def network_in(folder: Path, bench: Bench) -> nn.Module:
    """The network of a finished cell."""
    with _read_from(folder):
        return load(bench.make, folder)


def shape_in(folder: Path) -> Architecture:
    """The shape of a finished cell's network."""
    with _read_from(folder):
        return Architecture.load(folder / SHAPE_FILE)


def pattern_in(folder: Path) -> guided.WidthPattern | guided.KernelPattern:
    """The pattern of a finished cell."""
    with _read_from(folder):
        return guided.load(folder / PATTERN_FILE)


def recipe_of(cell: Cell) -> Recipe:
    """How the cell trains."""
    return Recipe(**cell.settings["recipe"])


def method_of(cell: Cell) -> Method:
    """The cell's method, with the fields of the pruning that it belongs to."""
    told = (each.settings["fields"] for each in (cell, *cell.needs) if "fields" in each.settings)
    return methods.make(cell.method, **next(told, {}))


def mask_of(bench: Bench, cell: Cell, folder: Path) -> dict[str, Any]:
    """What keeps pruned weights at zero in training; nothing for a structure, whose units are gone."""
    if method_of(cell).granularity != "weight":
        return {}
    return {"graph": bench.graph(cell), "keep": shape_in(folder).keep}


def size_of(folder: Path) -> int:
    """Bytes of the weights in a cell's folder."""
    return (folder / WEIGHTS_FILE).stat().st_size

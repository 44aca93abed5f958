"""What an arm has at hand to compute one cell: the network, the data, the cells that it builds on, and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topiarist import guided, methods
from topiarist.architecture import SHAPE_FILE, WEIGHTS_FILE, Architecture, load, save
from topiarist.data import Data, load_data
from topiarist.errors import TopiaristError
from topiarist.files import write_json
from topiarist.graph import Graph, declare_selectors, trace
from topiarist.measure import evaluate
from topiarist.methods import Method
from topiarist.models import fitting_options, make_model
from topiarist.studies.cells import Cell
from topiarist.surgery import add_selectors
from topiarist.train import Recipe, Speed, fit

Result = dict[str, Any]
PATTERN_FILE = "pattern.json"
DRY_RUN_EXAMPLES = 256
"""Training and test examples of a dry run, at most."""


@dataclass(frozen=True)
class Job:
    """One cell to compute.

    Folders hold a network (``model.safetensors`` and ``architecture.json``, which `topiarist.load` reads) and, where
    something was trained, ``history.json``.

    Attributes:
        cell: what is computed.
        folder: where its files are written.
        needs: the folders of the cells that it needs, in their order.
        data: what is trained and tested on.
        make: builds the unpruned network.
        dry_run: whether this only shows that the cell can be computed, with networks that nothing has trained.
    """

    cell: Cell
    folder: Path
    needs: tuple[Path, ...]
    data: Data
    make: Callable[[], nn.Module]
    dry_run: bool = False

    @staticmethod
    def of(cell: Cell, folder: Path, needs: tuple[Path, ...], dry_run: bool = False) -> Job:
        """Returns the job of a cell; for a dry run a few examples are enough."""
        data = load_data(cell.data)
        make: Callable[[], nn.Module] = make_model(
            cell.network, **fitting_options(cell.network, data.input_shape, data.classes)
        )
        if cell.settings.get("selectors"):
            make = _with_selectors(make, data.example())
        return Job(cell, folder, needs, _few(data) if dry_run else data, make, dry_run)

    # ---- what the cell says

    @property
    def recipe(self) -> Recipe:
        """How the cell trains."""
        return Recipe(**self.cell.settings["recipe"])

    @cached_property
    def method(self) -> Method | None:
        """The cell's method, with the fields of the pruning that it belongs to; ``None`` without a pruning."""
        if self.cell.method == "none":
            return None
        for cell in (self.cell, *self.cell.needs):
            plain = cell.settings.get("method", cell.settings.get("pruning", {}).get("method"))
            if plain is not None:
                return methods.make(plain)
        return methods.make(self.cell.method)

    @property
    def unstructured(self) -> bool:
        """Whether individual weights are pruned."""
        return self.method is not None and self.method.granularity == "weight"

    def initial(self, seed: int) -> nn.Module:
        """Returns the network with the initial weights of a seed."""
        torch.manual_seed(seed)
        return self.make()

    def graph(self) -> Graph:
        """Returns the units of the unpruned network that the cell's method works on."""
        graph = trace(self.make(), self.data.example())
        return graph if self.method is None else self.method.units(graph)

    # ---- what the cells say that it needs

    def need(self, arm: str) -> Path:
        """Returns the folder of the cell of this arm that it needs."""
        return next(path for cell, path in zip(self.cell.needs, self.needs, strict=True) if cell.arm == arm)

    def needs_a(self, arm: str) -> bool:
        """Returns whether it needs a cell of this arm."""
        return any(cell.arm == arm for cell in self.cell.needs)

    def network(self, path: Path) -> nn.Module:
        """Returns the network in the folder of a finished cell."""
        with _read_from(path):
            return load(self.make, path, self.data.example())

    def mask(self) -> dict[str, Any]:
        """Returns what keeps pruned weights at zero in training; nothing for a structure, whose units are removed."""
        if not self.unstructured:
            return {}
        return {"graph": self.graph(), "keep": architecture_in(self.need("pruned")).keep}

    # ---- what it does

    def train(
        self, model: nn.Module, architecture: Architecture, recipe: Recipe, size: Mapping[str, Any], **role: Any
    ) -> Result:
        """Trains a network, going on from the checkpoint that a killed run left in the folder, and saves it.

        Args:
            model: the network, trained in place.
            architecture: its shape.
            recipe: how.
            size: what is known of the shape: MACs, parameters, widths.
            role: method, graph, keep and exclude, as `topiarist.fit` takes them.
        """
        checkpoint = self.folder / "checkpoint.pt"
        speed = Speed(**{**self.cell.settings.get("speed", {}), "evaluate_every": 0})
        seed = self.cell.settings["seed"]
        history = fit(model, self.data, recipe, seed=seed, checkpoint=checkpoint, speed=speed, **role)
        save(model, architecture, self.folder)
        write_json(self.folder / "history.json", asdict(history))
        checkpoint.unlink(missing_ok=True)
        known: Result = {name: size[name] for name in ("macs", "params", "ratio", "widths") if name in size}
        accuracy = history.epochs[-1].test_accuracy if history.epochs else evaluate(model, self.data)
        return {"accuracy": accuracy, **known, "bytes": self.bytes(), "epochs": len(history.epochs)}

    def bytes(self) -> int:
        """Returns the size of the file of weights in its folder."""
        return (self.folder / WEIGHTS_FILE).stat().st_size


def architecture_in(path: Path) -> Architecture:
    """Returns the shape of a finished cell's network."""
    with _read_from(path):
        return Architecture.load(path / SHAPE_FILE)


def pattern_in(path: Path) -> guided.WidthPattern | guided.KernelPattern:
    """Returns the design pattern in the folder of a finished cell."""
    with _read_from(path):
        return guided.load(path / PATTERN_FILE)


@contextmanager
def _read_from(path: Path) -> Iterator[None]:
    """Adds to an error about a damaged file how its cell comes back."""
    try:
        yield
    except TopiaristError as error:
        raise TopiaristError(f"{error}; in a study, delete the folder {path} and run the study again") from error


def _few(data: Data) -> Data:
    """Returns the same data with fewer examples."""
    fewer = data.subset(min(DRY_RUN_EXAMPLES, len(data.train_x)))
    return replace(fewer, test_x=data.test_x[:DRY_RUN_EXAMPLES], test_y=data.test_y[:DRY_RUN_EXAMPLES])


def _with_selectors(make: Callable[[], nn.Module], example: Tensor) -> Callable[[], nn.Module]:
    """Returns a factory of the same networks, with channel selectors wherever these free something."""
    names = trace(add_selectors(make(), example_inputs=example), example).selectors

    def make_with_selectors() -> nn.Module:
        model = make()
        declare_selectors(model, names)
        return model

    return make_with_selectors

"""Topiarist cuts trained PyTorch networks into smaller shapes, proves the cut, and measures what the shape was worth.

The public names are imported when they are first used, so that `import topiarist` and the command line start at once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from topiarist import compress as compress
    from topiarist import guided as guided
    from topiarist import integrations as integrations
    from topiarist import methods as methods
    from topiarist import report as report
    from topiarist import sparse as sparse
    from topiarist import studies as studies
    from topiarist import train as train
    from topiarist.architecture import Architecture as Architecture
    from topiarist.architecture import load as load
    from topiarist.architecture import save as save
    from topiarist.budget import Budget as Budget
    from topiarist.budget import allocate as allocate
    from topiarist.budget import cost as cost
    from topiarist.data import Data as Data
    from topiarist.data import load_data as load_data
    from topiarist.deploy import Bench as Bench
    from topiarist.deploy import bench as bench
    from topiarist.errors import TopiaristError as TopiaristError
    from topiarist.graph import Graph as Graph
    from topiarist.graph import Group as Group
    from topiarist.graph import Slice as Slice
    from topiarist.graph import rule as rule
    from topiarist.graph import trace as trace
    from topiarist.measure import collect as collect
    from topiarist.measure import evaluate as evaluate
    from topiarist.measure import latency as latency
    from topiarist.methods import Method as Method
    from topiarist.models import load_model as load_model
    from topiarist.models import make_model as make_model
    from topiarist.pruning import Pruned as Pruned
    from topiarist.pruning import Pruning as Pruning
    from topiarist.pruning import Run as Run
    from topiarist.pruning import Steps as Steps
    from topiarist.pruning import prune as prune
    from topiarist.pruning import sensitivity as sensitivity
    from topiarist.pruning import shrink as shrink
    from topiarist.surgery import Proof as Proof
    from topiarist.surgery import add_selectors as add_selectors
    from topiarist.surgery import check as check
    from topiarist.surgery import check_rule as check_rule
    from topiarist.surgery import cut as cut
    from topiarist.surgery import mask as mask
    from topiarist.surgery import prove as prove
    from topiarist.train import Recipe as Recipe
    from topiarist.train import attach as attach
    from topiarist.train import fit as fit

_PUBLIC = {
    "architecture": ("Architecture", "load", "save"),
    "budget": ("Budget", "allocate", "cost"),
    "data": ("Data", "load_data"),
    "deploy": ("Bench", "bench"),
    "errors": ("TopiaristError",),
    "graph": ("Graph", "Group", "Slice", "rule", "trace"),
    "measure": ("collect", "evaluate", "latency"),
    "methods": ("Method",),
    "models": ("load_model", "make_model"),
    "pruning": ("Pruned", "Pruning", "Run", "Steps", "prune", "sensitivity", "shrink"),
    "surgery": ("Proof", "add_selectors", "check", "check_rule", "cut", "mask", "prove"),
    "train": ("Recipe", "attach", "fit"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

_ROOMS = ("compress", "guided", "integrations", "methods", "report", "sparse", "studies", "train")
"""Modules with names of their own."""

__all__ = ["__version__", *sorted([*_HOME, *_ROOMS])]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

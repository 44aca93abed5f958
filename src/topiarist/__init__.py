"""Topiarist cuts trained PyTorch networks into smaller shapes, proves the cut, and measures what the shape was worth.

The public names are imported when they are first used, so that `import topiarist` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topiarist import compress as compress
    from topiarist import guided as guided
    from topiarist import methods as methods
    from topiarist import report as report
    from topiarist import studies as studies
    from topiarist import train as train
    from topiarist.allocation import allocate as allocate
    from topiarist.architecture import Architecture as Architecture
    from topiarist.architecture import load as load
    from topiarist.architecture import save as save
    from topiarist.budget import Budget as Budget
    from topiarist.costs import Cost as Cost
    from topiarist.costs import cost as cost
    from topiarist.costs import latency as latency
    from topiarist.data import Data as Data
    from topiarist.data import load_data as load_data
    from topiarist.errors import TopiaristError as TopiaristError
    from topiarist.graph import Graph as Graph
    from topiarist.graph import Group as Group
    from topiarist.graph import Slice as Slice
    from topiarist.graph import trace as trace
    from topiarist.methods import Method as Method
    from topiarist.models import load_model as load_model
    from topiarist.models import make_model as make_model
    from topiarist.proof import Proof as Proof
    from topiarist.proof import check as check
    from topiarist.proof import prove as prove
    from topiarist.pruned import Pruned as Pruned
    from topiarist.pruning import prune as prune
    from topiarist.scan import Sensitivity as Sensitivity
    from topiarist.scan import sensitivity as sensitivity
    from topiarist.selectors import add_selectors as add_selectors
    from topiarist.shrinking import Shrunk as Shrunk
    from topiarist.shrinking import shrink as shrink
    from topiarist.stats import Stats as Stats
    from topiarist.stats import collect as collect
    from topiarist.surgery import cut as cut
    from topiarist.surgery import mask as mask
    from topiarist.train import attach as attach
    from topiarist.train import evaluate as evaluate
    from topiarist.train import fit as fit
    from topiarist.training.recipe import Recipe as Recipe

__version__ = "0.1.0"

_PUBLIC = {
    "allocation": ("allocate",),
    "budget": ("Budget",),
    "architecture": ("Architecture", "load", "save"),
    "costs": ("Cost", "cost", "latency"),
    "data": ("Data", "load_data"),
    "errors": ("TopiaristError",),
    "graph": ("Graph", "Group", "Slice", "trace"),
    "methods": ("Method",),
    "models": ("load_model", "make_model"),
    "proof": ("Proof", "check", "prove"),
    "pruned": ("Pruned",),
    "pruning": ("prune",),
    "scan": ("Sensitivity", "sensitivity"),
    "selectors": ("add_selectors",),
    "shrinking": ("Shrunk", "shrink"),
    "stats": ("Stats", "collect"),
    "surgery": ("cut", "mask"),
    "train": ("attach", "evaluate", "fit"),
    "training.recipe": ("Recipe",),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

_ROOMS = ("compress", "guided", "methods", "report", "studies", "train")
"""Modules with names of their own."""

__all__ = ["__version__", *sorted([*_HOME, *_ROOMS])]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

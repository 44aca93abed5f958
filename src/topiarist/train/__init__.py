"""Training: one loop on Lightning Fabric, its recipes, and methods attached to any other loop.

Examples:
    >>> from topiarist.train import Recipe, attach, fit
    >>> fit(model, data, Recipe.finetune()).accuracy  # trains in place # doctest: +SKIP
    >>> with attach("slimming", model, optimizer, graph):  # a method in a loop of your own # doctest: +SKIP
    ...     train(model, optimizer)
"""

from topiarist.train.attaching import Attached, attach
from topiarist.train.history import Epoch, History, Progress
from topiarist.train.initialise import reinitialise
from topiarist.train.loop import fit
from topiarist.train.recipe import Recipe, constant, cosine, linear, scratch_b, scratch_e, step
from topiarist.train.speed import Speed

__all__ = [
    "Attached",
    "Epoch",
    "History",
    "Progress",
    "Recipe",
    "Speed",
    "attach",
    "constant",
    "cosine",
    "fit",
    "linear",
    "reinitialise",
    "scratch_b",
    "scratch_e",
    "step",
]

"""Training: the door to one loop on Lightning Fabric, its recipes, and the hooks for every other loop.

Examples:
    >>> from topiarist.train import Recipe, attach, evaluate, fit
    >>> fit(model, data, Recipe.finetune()).accuracy  # trains in place # doctest: +SKIP
    >>> evaluate(model, data)  # per cent of the test set # doctest: +SKIP
    >>> with attach("slimming", model, optimizer, graph):  # a method's part in a loop of your own # doctest: +SKIP
    ...     train(model, optimizer)
"""

from topiarist.training.accuracy import evaluate
from topiarist.training.history import Epoch, History, Progress
from topiarist.training.hooks import Attached, attach
from topiarist.training.initialise import reinitialise
from topiarist.training.loop import fit
from topiarist.training.recipe import Recipe, constant, cosine, linear, scratch_b, scratch_e, step

__all__ = [
    "Attached",
    "Epoch",
    "History",
    "Progress",
    "Recipe",
    "attach",
    "constant",
    "cosine",
    "evaluate",
    "fit",
    "linear",
    "reinitialise",
    "scratch_b",
    "scratch_e",
    "step",
]

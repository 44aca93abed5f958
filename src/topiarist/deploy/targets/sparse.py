"""This package's kernels for sparse weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar

from torch import nn

from topiarist import sparse
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.graph import Inputs, call_model, tensors_in


@dataclass(frozen=True)
class Sparse(Target):
    """Runs the module by `topiarist.sparse.compile`: kernels for its zeros, written for this processor."""

    name: ClassVar[str] = "sparse"
    package: ClassVar[str | None] = "llvmlite"
    extra: ClassVar[str] = "sparse"
    reads_zeros: ClassVar[bool] = True

    @property
    def version(self) -> str:
        """Returns the package's version with that of llvmlite, which makes the machine code."""
        return f"{version('topiarist')} (llvmlite {self.imported().__version__})"

    def prepare(self, model: nn.Module, example_inputs: Inputs) -> Session:
        """Makes the kernels and measures which are fastest, which takes some seconds the first time.

        Raises:
            TopiaristError: llvmlite is missing.
        """
        self.imported()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a network that is not sparse runs in torch
            compiled = sparse.compile(model.eval(), example_inputs, self.threads)
        return SparseSession(compiled)


class SparseSession(Session):
    """A network that runs by kernels; it sets torch's threads itself, where something of torch runs.

    Args:
        model: the network, compiled.
    """

    def __init__(self, model: sparse.SparseModule) -> None:
        self.model = model

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the network once."""
        return lambda: tensors_in(call_model(self.model, inputs))

"""This package's kernels for sparse weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar

from torch import nn

from topiarist import sparse
from topiarist.deploy.target import Session, Target
from topiarist.deploy.targets.torch import TorchSession
from topiarist.graph import Inputs


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
        return TorchSession(compiled, self.threads)

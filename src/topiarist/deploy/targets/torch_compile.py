"""PyTorch's compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from topiarist.deploy.onnx import quiet
from topiarist.deploy.target import Session, Target
from topiarist.deploy.targets.torch import Torch, TorchSession
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs


@dataclass(frozen=True)
class TorchCompile(Target):
    """Compiles the module for the shapes of its example; other shapes are compiled when they come.

    Attributes:
        backend: of `torch.compile`; the default writes C++ and needs a compiler for it on the machine.
    """

    name: ClassVar[str] = "torch.compile"

    backend: str = "inductor"

    @property
    def of_layers(self) -> Target:
        """Returns torch itself, since each layer would be compiled for seconds."""
        return Torch(self.threads)

    def prepare(self, model: nn.Module, example_inputs: Inputs) -> Session:
        """Compiles the module, which takes seconds to minutes.

        Raises:
            TopiaristError: there is no C++ compiler, or the module does not compile.
        """
        if self.backend == "inductor":
            _check_compiler()
        compiled = cast(nn.Module, torch.compile(model, backend=self.backend, dynamic=False))
        session = TorchSession(compiled, self.threads)
        try:
            with quiet():
                session(example_inputs)
        except Exception as error:  # of the backend, whichever it is
            raise TopiaristError(
                f"torch.compile does not take this network ({one_line(error)}): choose another target"
            ) from error
        return session


def _check_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise TopiaristError(
            "torch.compile needs a C++ compiler, and this machine has none: install one, for example g++"
        ) from error

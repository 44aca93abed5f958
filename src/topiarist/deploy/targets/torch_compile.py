"""PyTorch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn

from topiarist.deploy.onnx import quiet
from topiarist.deploy.target import Outputs, Session, Target
from topiarist.deploy.targets.torch import Torch
from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs, call_model, tensors_in
from topiarist.measure import mode, threads_set


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
        session = CompiledSession(model, self.threads, self.backend)
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


class CompiledSession(Session):
    """A module that torch compiles when it first runs."""

    def __init__(self, model: nn.Module, threads: int, backend: str) -> None:
        self.model, self.threads = model, threads
        self.compiled = cast(nn.Module, torch.compile(model, backend=backend, dynamic=False))

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the module once."""

        def run() -> Outputs:
            with threads_set(self.threads), mode(self.model, training=False), torch.inference_mode():
                return tensors_in(call_model(self.compiled, inputs))

        return run

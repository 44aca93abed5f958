"""PyTorch itself, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch as framework
from torch import nn

from topiarist.deploy.target import Outputs, Session, Target
from topiarist.graph import Inputs, call_model, tensors_in
from topiarist.measure import device_of, mode, threads_set


@dataclass(frozen=True)
class Torch(Target):
    """Runs the module as it is, in eval mode and without gradients."""

    name: ClassVar[str] = "torch"

    def prepare(self, model: nn.Module, example_inputs: Inputs) -> Session:
        """Takes the module itself."""
        return TorchSession(model, self.threads)


class TorchSession(Session):
    """A module that torch runs.

    Args:
        model: the module, perhaps compiled.
        threads: of the CPU.
    """

    def __init__(self, model: nn.Module, threads: int) -> None:
        self.model, self.threads = model, threads

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the module once, and on a GPU waits for it."""
        model, device = self.model, device_of(self.model)

        def run() -> Outputs:
            with threads_set(self.threads), framework.inference_mode():
                outputs = tensors_in(call_model(model, inputs))
                if device.type == "cuda":
                    framework.cuda.synchronize(device)
                return outputs

        def run_in_eval() -> Outputs:
            with mode(model, training=False):
                return run()

        # To set the mode of each module takes as long as a small layer: only where one of them trains.
        return run_in_eval if any(module.training for module in model.modules()) else run

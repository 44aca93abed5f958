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
    """A module that is run by torch."""

    def __init__(self, model: nn.Module, threads: int) -> None:
        self.model, self.threads = model, threads

    def bind(self, inputs: Inputs) -> Callable[[], Outputs]:
        """Returns a function that runs the module once."""
        device = device_of(self.model)

        def run() -> Outputs:
            with threads_set(self.threads), mode(self.model, training=False), framework.inference_mode():
                outputs = tensors_in(call_model(self.model, inputs))
                if device.type == "cuda":
                    framework.cuda.synchronize(device)
                return outputs

        return run

"""The exponential average of the weights in a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Holds ``average = decay * average + (1 - decay) * weight`` of each parameter and floating-point buffer.

    Args:
        model: whose weights they are.
        decay: in (0, 1).

    Paper: Polyak, Juditsky: "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.values: dict[str, Tensor] = {}
        self._model, self._mix = model, get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step; the average begins with those after the first."""
        current = _floating(self._model)
        if not self.values:
            self.values = {name: tensor.clone() for name, tensor in current.items()}
            return
        self._mix(list(self.values.values()), [current[name] for name in self.values], 0)

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Continues from the values of a checkpoint."""
        current = _floating(self._model)
        self.values = {name: value.to(current[name], copy=True) for name, value in values.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the model the average while open, and its own weights back."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Swaps the model's weights with the average."""
        for name, tensor in _floating(self._model).items():
            if name in self.values:
                own = tensor.clone()
                tensor.copy_(self.values[name])
                self.values[name] = own


def _floating(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state of a model that has an average; counters have none."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}

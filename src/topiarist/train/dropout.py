"""Less dropout for sparse layers, which have less to overfit with (Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd as Dropout

from topiarist.graph import call_model
from topiarist.measure import Inputs, mode


@contextmanager
def corrected_dropout(model: nn.Module, example: Inputs, removed: Mapping[str, Tensor]) -> Iterator[None]:
    """Lowers the rate of each dropout while open, by the share of weights that were pruned in the layer behind it.

    ``D = D_0 sqrt(C / C_0)``, with ``C`` of the ``C_0`` weights kept in the layer that runs next after the dropout.

    Args:
        model: the model, whose rates are ``D_0``; they are restored in the end.
        example: inputs, to see which layer runs after which dropout.
        removed: parameter name → bool of its shape, True where it is held at zero.

    Paper: Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015.
    """
    rates = [(dropout, dropout.p) for dropout in model.modules() if isinstance(dropout, Dropout)]
    try:
        for dropout, weight in _next_weights(model, example).items() if rates and removed else ():
            if weight in removed:
                dropout.p *= sqrt(1 - float(removed[weight].double().mean()))
        yield
    finally:
        for dropout, rate in rates:
            dropout.p = rate


def _next_weights(model: nn.Module, example: Inputs) -> dict[Dropout, str]:
    """Returns the weight of the layer that runs first after each dropout."""
    waiting: list[Dropout] = []
    following: dict[Dropout, str] = {}

    def watch(name: str) -> Callable[[nn.Module, object], None]:
        def see(module: nn.Module, _: object) -> None:
            if isinstance(module, Dropout):
                waiting.append(module)
            else:
                following.update(dict.fromkeys(waiting, f"{name}.weight".removeprefix(".")))
                waiting.clear()

        return see

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, Dropout)
        or (isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim > 1)
    ]
    try:
        with mode(model, training=False), torch.no_grad():
            call_model(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return following

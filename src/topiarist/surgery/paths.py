"""Paths: the ways through a network's code on which cut and mask are compared.

A cut that is right on the traced path may be wrong on another one. So cut and mask are compared in evaluation, with
twice the batch, on every further example that the user gives, and in training mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from topiarist.graph import Arguments, Inputs, Keywords, converted, random_state_kept, seed_all, twice_the_batch
from topiarist.surgery.decisions import DOUBLE, Precision

EXAMPLE, TWICE, TRAINING = "the example input", "twice the batch", "training mode"

DROPOUTS: set[Any] = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
DROPOUTS |= {torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout}
RANDOM: dict[Any, tuple[int, str, Any]] = {
    F.scaled_dot_product_attention: (4, "dropout_p", 0.0),
    F.multi_head_attention_forward: (10, "dropout_p", 0.0),
    F.rrelu: (3, "training", False),
    torch.rrelu: (3, "training", False),
    torch.rrelu_: (3, "training", False),
}
"""Functions that draw beside what else they do; position, name and value of the argument that stops it."""
DRAWS: dict[Any, float] = {
    torch.rand: 0.5,
    torch.rand_like: 0.5,
    torch.randn: 1.0,
    torch.randn_like: 1.0,
    torch.bernoulli: 1.0,
    torch.Tensor.bernoulli: 1.0,
    torch.Tensor.bernoulli_: 1.0,
    torch.Tensor.normal_: 1.0,
}
"""Functions that draw numbers; in the place of each number one that does not depend on how many are drawn."""
RECURRENT: set[Any] = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
"""Those whose arguments end with ``dropout, train, bidirectional``, and with ``batch_first`` where it is given."""


@dataclass(frozen=True, eq=False)
class Path:
    """One way through a network's code.

    Attributes:
        name: what messages call it.
        inputs: what the network is called with.
        training: whether it is in training mode.
        given: whether the user gave the inputs, so that the network must accept them.
        precision: of the inputs.
    """

    name: str
    inputs: Any
    training: bool = False
    given: bool = False
    precision: Precision = DOUBLE

    def seed(self) -> None:
        """Seeds the random numbers, of training and of networks that draw in evaluation: every one draws the same."""
        seed_all(0)

    def with_larger_batch(self) -> Path:
        """Returns the path with eight times the batch.

        A batch norm over two numbers divides by their distance, and many of them in a row make rounding large: torch's
        own MobileNetV2 with 1x1 maps moves by 1e-6 then. A wrong cut is wrong with more numbers too.
        """
        return replace(self, inputs=twice_the_batch(twice_the_batch(twice_the_batch(self.inputs))))

    @contextmanager
    def entered(self, *models: nn.Module) -> Iterator[None]:
        """Puts models into the path's mode; in training dropout is off. Random numbers go on as before."""
        for model in models:
            model.train(self.training)
        try:
            with random_state_kept(), _DropoutOff() if self.training else nullcontext():
                yield
        finally:
            for model in models:
                model.eval()


def paths(example_inputs: Inputs, more_inputs: Sequence[Inputs], precision: Precision = DOUBLE) -> list[Path]:
    """Returns the paths that examples show: evaluation first, training last, since it changes running statistics."""
    example_inputs, more = (converted(given, precision.dtype) for given in (example_inputs, list(more_inputs)))
    twice = twice_the_batch(example_inputs)
    further = [(f"further example {k}", inputs) for k, inputs in enumerate(more, 1)]
    return [
        Path(EXAMPLE, example_inputs, given=True, precision=precision),
        Path(TWICE, twice, precision=precision),
        *(Path(name, inputs, given=True, precision=precision) for name, inputs in further),
        Path(TRAINING, twice, training=True, precision=precision),
    ]


class _DropoutOff(TorchFunctionMode):
    """Lets everything pass dropout, and stops what else draws: for other shapes it would draw other numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func in DRAWS:
            return func(*args, **kwargs).fill_(DRAWS[func])
        at, name, value = (_of_recurrent(args), "", 0.0) if func in RECURRENT else RANDOM.get(func, (None, "", None))
        if at is not None and len(args) > at:
            args = (*args[:at], value, *args[at + 1 :])
        elif at is not None:
            kwargs = {**kwargs, name: value}
        return func(*args, **kwargs)


def _of_recurrent(args: Arguments) -> int:
    """Returns the position of the rate of dropout: it is the only float."""
    return next(position for position, value in enumerate(args) if isinstance(value, float))

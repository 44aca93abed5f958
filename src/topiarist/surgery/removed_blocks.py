"""What stands where the modules of a removed branch were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from topiarist.errors import TopiaristError
from topiarist.graph import Block, Part, tensors_in

_PLAIN = (int, float, str, tuple, list, type(None))


class Removed(nn.Module):
    """Nothing, in place of a module: zeros like the first tensor that it gets.

    Zeros throughout the branch, not only at its end: a tensor that was handed on would be the shortcut itself, which
    code that works in place must not touch. It keeps the plain attributes of the module, and ``None`` for its
    parameters, for code that looks at them.
    """

    def __init__(self, module: nn.Module, part: Part) -> None:
        super().__init__()
        usual = vars(self).keys()
        plain = {key: value for key, value in vars(module).items() if key not in usual and isinstance(value, _PLAIN)}
        vars(self).update(plain)
        for name, _ in module.named_parameters(recurse=False):
            self.register_parameter(name, None)
        self.outputs = part.outputs
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns zeros; in a tuple with ``None`` where the module returned a tuple."""
        zeros = torch.zeros_like(tensors_in((args, kwargs))[0])
        return (zeros, *[None] * (self.outputs - 1)) if self.outputs else zeros


def remove_blocks(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Removes branches from a model, in place.

    Raises:
        TopiaristError: the model has no such modules.
    """
    modules = dict(model.named_modules())
    replaced: dict[int, Removed] = {}
    for part in (part for block in blocks for part in block.parts):
        if part.module not in modules:
            raise TopiaristError(f"the model has no module {part.module!r}; it is not the one that was traced")
        replaced[id(modules[part.module])] = Removed(modules[part.module], part)
    for parent in modules.values():
        for name, child in parent._modules.items():
            if id(child) in replaced:
                parent._modules[name] = replaced[id(child)]

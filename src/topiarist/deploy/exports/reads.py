"""Which modules read values of their input, so that a branch or a number of the code depends on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from topiarist.graph import Arguments, Inputs, Keywords, ModuleStack, call_model, fast_path_off, tensors_in

_READS = ("_local_scalar_dense", "equal", "is_nonzero")


class Watched(TorchDispatchMode):
    """Follows what comes from the inputs, and notes who reads a number out of it.

    Attributes:
        readers: names of modules whose code reads such a number; the network itself is ``""``.
        users: operator → the first module that calls it.
    """

    def __init__(self, inputs: Inputs, stack: ModuleStack) -> None:
        super().__init__()
        self.readers: list[str] = []
        self.users: dict[str, str] = {}
        self._stack, self._derived = stack, WeakTensorKeyDictionary()
        for tensor in tensors_in(inputs):
            self._derived[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.users.setdefault(name, self._stack.top)
        given = tensors_in([*args, *(kwargs or {}).values()])
        if any(tensor in self._derived for tensor in given):
            for tensor in [*tensors_in(out), *(given[:1] if name.endswith("_") else [])]:
                self._derived[tensor] = True
            if name in _READS and self._stack.top not in self.readers:
                self.readers.append(self._stack.top)
        return out


def watched(model: nn.Module, inputs: Inputs) -> Watched:
    """Runs a network once and returns what was seen."""
    with ModuleStack(model) as stack, fast_path_off(), torch.no_grad(), Watched(inputs, stack) as seen:
        call_model(model, inputs)
    return seen

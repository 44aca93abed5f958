"""The shape shim: corrects, inside one module's forward, the sizes that its code computes wrongly after a cut.

Some code states a size that no attribute holds (``x.view(B, N, 3, C // 64)``), or computes a scale from a shape
(``q * (C // heads) ** -0.5``). A shimmed module runs its own forward, only that the n-th such call gets the right
sizes, and that numbers keep the values they were trained with. Where a smaller shape could not even be computed with
(fewer channels than heads: ``0 ** -0.5``), it reads its shapes as they were traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import local
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from topiarist.errors import TopiaristError
from topiarist.graph import READS, Arguments, Correction, Keywords, kind_of, with_sizes


class _Correcting(TorchFunctionMode):
    def __init__(self, module: nn.Module, correction: Correction) -> None:
        super().__init__()
        self.module, self.correction = module, correction
        self.call = self.reading = 0

    def __torch_function__(self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None) -> Any:
        kwargs = kwargs or {}
        if func in READS:
            return self._read(func, args, kwargs)
        kind = kind_of(func)
        if kind is None:
            return func(*args, **kwargs)
        self.call += 1
        if running()[-1] is not self.module:
            return func(*args, **kwargs)  # a shimmed module within this one sees to it
        if kind == "sizes" and self.call in self.correction.sizes:
            return with_sizes(func, args, kwargs, self.correction.sizes[self.call])
        if kind == "squeeze":
            dims = self.correction.squeezes.get(self.call)
            return func(*args, **kwargs) if dims is None else func(args[0], dims)
        number = self.correction.numbers.get(self.call)
        if kind == "number" and number is not None:
            args = tuple(number if isinstance(a, (int, float)) and not isinstance(a, bool) else a for a in args)
        elif kind == "scale" and number is not None:
            args, kwargs = args[:6], {**kwargs, "scale": number}
        return func(*args, **kwargs)

    def _read(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Returns a shape in which some lengths are as they were traced."""
        self.reading += 1
        real = func(*args, **kwargs)
        traced = self.correction.reads.get(self.reading) if running()[-1] is self.module else None
        if traced is None:
            return real
        if isinstance(real, int):
            return next(iter(traced.values()))
        return torch.Size([traced.get(axis, length) for axis, length in enumerate(real)])


_LOCAL = local()


def running() -> list[nn.Module]:
    """Returns the shimmed modules whose forward runs in this thread, the innermost one last."""
    return _LOCAL.__dict__.setdefault("running", [])


class Shim:
    """A forward that runs the module's own one with corrections; deep copies and pickles with its module."""

    def __init__(self, module: nn.Module, correction: Correction) -> None:
        self.module, self.correction = module, correction
        self.inner = module.__dict__.get("forward")  # an earlier shim, or a forward of the instance's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward with the corrections."""
        running().append(self.module)
        try:
            with _Correcting(self.module, self.correction):
                return self.__wrapped__(*args, **kwargs)
        finally:
            running().pop()

    @property
    def __wrapped__(self) -> Any:  # what inspect.signature follows
        return self.inner or type(self.module).forward.__get__(self.module)

    @property
    def __code__(self) -> Any:  # what torch.export looks at
        return self.__wrapped__.__code__


def install_shims(model: nn.Module, corrections: Mapping[str, Correction]) -> None:
    """Shims the modules that need it."""
    modules = dict(model.named_modules())
    for name, correction in corrections.items():
        if name not in modules:
            raise TopiaristError(f"the model has no module {name!r}; it is not the model that was pruned")
        module = modules[name]
        module.__dict__["forward"] = Shim(module, correction)

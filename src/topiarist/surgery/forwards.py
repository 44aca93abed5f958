"""What stands in for a module's forward, for one module: it calls the module's own one in another way."""

from __future__ import annotations

from typing import Any

from torch import nn


class Forward:
    """A forward of one module's own, by its attribute ``forward``.

    Attributes:
        module: whose it is.
        inner: the forward that the module had as an attribute before; ``None`` where it had its class's.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inner = module.__dict__.get("forward")

    @property
    def __wrapped__(self) -> Any:  # what inspect.signature follows
        return self.inner or type(self.module).forward.__get__(self.module)

    @property
    def __code__(self) -> Any:  # what torch.export looks at
        return self.__wrapped__.__code__

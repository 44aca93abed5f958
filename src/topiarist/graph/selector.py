"""Channel selectors: where a norm reads channels that others read too, the next layer picks its own among them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import shown

SELECTOR = "selector"
"""What a selector is called within the norm that it follows."""
NORM = nn.modules.batchnorm._BatchNorm
"""What a selector can follow."""


class ChannelSelector(nn.Module):
    """Passes on some channels of its input: ``y[:, k] = x[:, indices[k]]``, with ``indices`` ascending.

    It is declared: before a cut it passes on all channels and changes nothing.

    Args:
        channels: of the input, which keeps its width.
        device: of the indices.

    Attributes:
        indices: int64 ``(kept,)``, a buffer; a cut removes entries of it.
    """

    exposed: ClassVar[bool] = False
    """While a network is traced its selectors select even where they pass on everything."""
    indices: Tensor

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("indices", torch.arange(channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, channels, …)`` to ``(N, kept, …)``."""
        if not ChannelSelector.exposed and len(self.indices) == self.channels:
            return x
        return x.index_select(1, self.indices)

    def extra_repr(self) -> str:
        """Returns what `print` shows."""
        return f"{len(self.indices)} of {self.channels}"


def _selected(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Applies a norm's selector, as a hook; a plain function, so that the norm can be copied and pickled."""
    selector: ChannelSelector = norm.get_submodule(SELECTOR)  # type: ignore[assignment]
    return selector(output)


def declare_selectors(model: nn.Module, norms: Collection[str]) -> None:
    """Lets a selector follow each of these norms, in place; those that have one keep it.

    Raises:
        TopiaristError: there is no such module, or it is no batch norm.
    """
    modules = dict(model.named_modules())
    for name in norms:
        norm = modules.get(name)
        if not is_norm(norm):
            what = "no such module" if norm is None else f"a {type(norm).__name__}"
            raise TopiaristError(f"a channel selector follows a batch norm, but {shown(name)} is {what} in this model")
        own = getattr(norm, SELECTOR, None)
        if not isinstance(own, ChannelSelector):
            if own is not None:
                raise TopiaristError(
                    f"the norm {shown(name)} has a {SELECTOR!r} of its own; rename it to declare a selector"
                )
            device = next((t.device for t in [*norm.parameters(), *norm.buffers()]), None)
            norm.add_module(SELECTOR, ChannelSelector(norm.num_features, device))
            norm.register_forward_hook(_selected)


def is_norm(module: nn.Module | None) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Returns whether a selector can follow a module."""
    return isinstance(module, NORM)


@contextmanager
def selectors_exposed() -> Iterator[None]:
    """Selectors show that they select, for as long as the context lasts."""
    before, ChannelSelector.exposed = ChannelSelector.exposed, True
    try:
        yield
    finally:
        ChannelSelector.exposed = before

"""What counts of what a network returns: the rest may change its shape, and no proof compares it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.files import one_line, shown
from topiarist.graph.inputs import tensors_in

Outputs = str | int | tuple[str | int, ...] | Callable[[Any], Any]
"""What counts: a name, a place, several of them, or a function from what the network returns to tensors."""


def as_outputs(given: Any) -> Outputs | None:
    """Returns what a user counts as outputs; ``None`` for all.

    Raises:
        TopiaristError: it is neither names nor places nor a function.
    """
    if given is None or callable(given) or _is_key(given):
        return given
    if isinstance(given, tuple | list) and given and all(map(_is_key, given)):
        return tuple(given) if len(given) > 1 else given[0]
    raise TopiaristError(
        "outputs must be a name, a place, several of them, or a function of what the network returns, "
        f"but got {shown(given)}: write outputs='logits'"
    )


def _is_key(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def counted(returned: Any, outputs: Outputs | None) -> Any:
    """Returns what counts of what a network returned.

    Raises:
        TopiaristError: there is no such output, it holds no tensor, or the function fails.
    """
    if outputs is None:
        return returned
    if callable(outputs):
        try:
            found = outputs(returned)
        except TopiaristError:
            raise
        except Exception as error:  # whatever the user's function raises
            raise TopiaristError(
                f"the function outputs= fails on what the network returns ({one_line(error)}); "
                f"that has {_listed(returned)}"
            ) from error
    elif isinstance(outputs, tuple):
        found = [_picked(returned, key) for key in outputs]
    else:
        found = _picked(returned, outputs)
    if not tensors_in(found):
        raise TopiaristError(f"outputs={shown(outputs)} holds no tensor: the network returns {_listed(returned)}")
    return found


def _picked(returned: Any, key: str | int) -> Any:
    parts = _parts(returned)
    if key in parts:
        return parts[key]
    if isinstance(key, int) and -len(parts) <= key < len(parts):
        return list(parts.values())[key]
    raise TopiaristError(f"the network returns no output {key!r}: there are {_listed(returned)}")


def _parts(returned: Any) -> dict[Any, Any]:
    """Returns the parts of what a network returned, by their names, or places where they have none."""
    if isinstance(returned, Mapping):
        return dict(returned)
    names = getattr(returned, "_fields", None) or getattr(returned, "__dataclass_fields__", None)
    if names is not None:
        return {name: getattr(returned, name) for name in names}
    return dict(enumerate(returned)) if isinstance(returned, tuple | list) else {}


def _listed(returned: Any) -> str:
    """Returns the names of what a network returned, in words."""
    names = [str(name) for name, value in _parts(returned).items() if tensors_in(value)]
    if names:
        return f"{', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
    return "a single tensor alone, so leave outputs out" if isinstance(returned, Tensor) else type(returned).__name__


class Counting:
    """A hook of a network's forward by which it returns only what counts.

    In training mode a network may return other things, such as losses: where nothing there has that name, all counts.
    """

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs

    def __call__(self, module: nn.Module, args: Any, returned: Any) -> Any:
        """Returns what counts."""
        try:
            return counted(returned, self.outputs)
        except TopiaristError:
            if module.training:
                return returned
            raise


@contextmanager
def counting(model: nn.Module, outputs: Outputs | None) -> Iterator[None]:
    """Context in which a network, and every copy made of it meanwhile, returns only what counts."""
    if outputs is None or any(isinstance(hook, Counting) for hook in model._forward_hooks.values()):
        yield
        return
    handle = model.register_forward_hook(Counting(outputs))
    try:
        yield
    finally:
        handle.remove()

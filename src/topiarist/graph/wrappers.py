"""What a model comes wrapped in: the network within, whose names are those of its own layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import Tensor, nn

from topiarist.errors import TopiaristError

M = TypeVar("M", bound=nn.Module)

INNER = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",  # torch.optim.swa_utils
    "_FabricModule": "_original_module",  # lightning.fabric
}
"""Class of a wrapper → its attribute that is the network. By name, so that none of them has to be imported."""


def unwrapped(model: M) -> M:
    """Returns the network within a model, with the same tensors: not compiled, not parallel, not averaging.

    Compiled parts of it are seen as they were before; the model itself stays as it is. What is no module is returned.

    Raises:
        TopiaristError: the parameters are sharded, so that no process has all of them.
    """
    if not isinstance(model, nn.Module):
        return model
    names = {type(module).__name__ for module in model.modules()}
    if "FullyShardedDataParallel" in names or any(type(p).__name__ == "DTensor" for p in model.parameters()):
        raise TopiaristError(
            "the model's parameters are sharded (FSDP), and no process has all of them; prune before sharding, or load "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) into a plain copy"
        )
    return _plain(model)


def _plain(model: M) -> M:
    """Returns the network itself where nothing in it is wrapped; else one that shares all but the wrapped parts."""
    while (inner := _inner(model)) is not None:
        model = inner
    children = {name: child if child is None else _plain(child) for name, child in model._modules.items()}
    if model._compiled_call_impl is None and all(child is model._modules[name] for name, child in children.items()):
        return model
    made = object.__new__(type(model))
    made.__dict__.update(model.__dict__, _modules=children, _compiled_call_impl=None)
    return made


def _inner(model: nn.Module) -> M | None:
    """Returns what a wrapper holds; ``None`` where the model is none."""
    names = (INNER.get(base.__name__) for base in type(model).__mro__ if not base.__module__.startswith("topiarist"))
    name = next((name for name in names if name is not None), None)
    inner = None if name is None else getattr(model, name, None)
    return inner if isinstance(inner, nn.Module) else None  # type: ignore[return-value]


def unwrapped_names(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Returns a wrapper's state dict under the network's own names; one that has none but those as it is."""
    if all(name in own for name in state):
        return dict(state)
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items() if name != "n_averaged"}
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state

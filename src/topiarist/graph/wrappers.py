"""What a model comes as: wrapped, which is undone, or frozen into a form that cannot be cut, which is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph.inputs import modules_of

M = TypeVar("M", bound=nn.Module)

INNER = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",  # torch.optim.swa_utils
    "_FabricModule": "_original_module",  # lightning.fabric
}
"""Class of a wrapper → its attribute that is the network. By name, so that none of them has to be imported."""

_SHARDING = {"FullyShardedDataParallel", "FSDPModule"}
"""Classes of modules that give each process a part of every parameter, but for the moment of a forward."""


def unwrapped(model: M) -> M:
    """Returns the network within a model, with the same tensors: not compiled, not parallel, not averaging.

    Compiled parts of it are seen as they were before; the model itself stays as it is. What is no module is returned.

    Raises:
        TopiaristError: the parameters are sharded, so that no process has all of them.
    """
    if not isinstance(model, nn.Module):
        return model
    if class_names(model) & _SHARDING or any(map(is_sharded, model.parameters())):
        raise TopiaristError(
            "the model's parameters are sharded (FSDP), and no process has all of them; prune before sharding, or load "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) into a plain copy"
        )
    return _plain(model)


def class_names(model: nn.Module) -> set[str]:
    """Returns the names of the classes of a network's modules, and of the bases of these classes."""
    return {base.__name__ for kind in {type(module) for module in modules_of(model).values()} for base in kind.__mro__}


def is_sharded(value: object) -> bool:
    """Returns whether a value is a tensor of which this process has a part."""
    return type(value).__name__ == "DTensor"


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


QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao", "bitsandbytes")
"""Where the classes of quantised layers and tensors live."""
PREPARED = ("torch.ao.quantization.observer", "torch.ao.quantization.fake_quantize", "torch.ao.nn.qat")
"""Where those live that are put into a network to be quantised later."""


def refuse_frozen(model: object) -> None:
    """Raises where a model is in a form that cannot be cut: exported, scripted, quantised or prepared for it."""
    given = "give the torch.nn.Module that it was made from"
    if type(model).__name__ == "ExportedProgram" or _is_exported(model):
        raise TopiaristError(f"an exported program cannot be cut; {given}, and export the pruned one")
    if not isinstance(model, nn.Module):
        remedy = "call it, and give what it returns" if callable(model) else "give a network"
        raise TopiaristError(f"the model must be a torch.nn.Module, not {type(model).__name__}: {remedy}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TopiaristError(f"a scripted model cannot be cut; {given}")
    for name, module in modules_of(model).items():
        where, held = type(module).__module__, (*module._parameters.values(), *module._buffers.values())
        if isinstance(module, torch.jit.ScriptModule):
            raise TopiaristError(f"the module {shown(name)} is scripted and cannot be cut; {given}")
        if where.startswith(QUANTISED) or any(type(t).__module__.startswith(QUANTISED) for t in held):
            raise TopiaristError(
                f"{name or 'the model'} is quantised, and packed integers cannot be cut; prune the floating-point "
                "model, and quantise the pruned one"
            )
        if where.startswith(PREPARED):
            raise TopiaristError(
                f"the model is prepared for quantisation ({name} is a {type(module).__name__}); prune the model that "
                "it was prepared from, and prepare the pruned one"
            )


def _is_exported(model: object) -> bool:
    """Returns whether a module runs the graph of an exported program: operators with sizes as they were."""
    graph = isinstance(model, torch.fx.GraphModule) and model.graph.nodes
    return any(isinstance(node.target, OpOverload) for node in graph or ())

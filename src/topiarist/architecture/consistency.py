"""Whether a network that was cut as a file says can run: its layers fit their own tensors, and it runs on inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Attribute, Inputs, call_model, modes_restored


def check_sizes(model: nn.Module, sizes: Mapping[Attribute, int]) -> None:
    """Raises where an attribute of a model would grow: a cut makes sizes smaller."""
    modules = dict(model.named_modules())
    for (owner, name, entry), value in sizes.items():
        held = modules[owner].__dict__.get(name) if owner in modules else None
        held = held[entry] if isinstance(held, tuple | list) and entry is not None and entry < len(held) else held
        if type(held) is int and value > held:
            raise _cannot_run(f"{name} in {owner or 'the network'} would grow from {held} to {value}")


def check_layers(model: nn.Module) -> None:
    """Raises where a layer does not fit its own tensors."""
    for name, layer in model.named_modules():
        if any(not fits for fits in _agreements(layer)):
            raise _cannot_run(f"the {type(layer).__name__} {name or 'itself'} does not fit its tensors")


def check_runs(model: nn.Module, inputs: Inputs) -> None:
    """Raises where a network does not run on example inputs; nothing in it changes."""
    try:
        with torch.no_grad(), modes_restored(model):
            call_model(model.eval(), inputs)
    except Exception as error:  # a network fails in any way
        raise _cannot_run(one_line(error)) from error


def _cannot_run(reason: str) -> TopiaristError:
    return TopiaristError(
        f"the architecture gives a network that cannot run ({reason}): give the one that prune() wrote for this network"
    )


def _agreements(layer: nn.Module) -> Iterator[bool]:
    """Yields whether each two sizes of a layer that must agree do."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return
    outputs = weight.shape[:1]
    if isinstance(layer, _ConvNd):
        yield layer.groups > 0 and weight.shape[0] % layer.groups == 0
        yield layer.kernel_size == tuple(weight.shape[2:])
        yield min(layer.stride) > 0
        outputs = torch.Size([weight.shape[1] * layer.groups]) if layer.transposed else outputs
    elif isinstance(layer, nn.GroupNorm):
        yield layer.num_groups > 0 and layer.num_channels % layer.num_groups == 0
    elif isinstance(layer, nn.LayerNorm):
        outputs = torch.Size(layer.normalized_shape)
        yield weight.shape == outputs
    if isinstance(layer, (_ConvNd, nn.Linear, _NormBase, nn.GroupNorm, nn.LayerNorm)):
        others = (getattr(layer, name, None) for name in ("bias", "running_mean", "running_var"))
        yield all(other.shape == outputs for other in others if isinstance(other, Tensor))

"""Fresh random weights for an architecture, dense or with a sparse mask: what training from scratch starts from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Graph, Keep, unwrapped
from topiarist.train.attaching import removed_entries


def reinitialise(
    model: nn.Module,
    graph: Graph | None = None,
    keep: Keep | None = None,
    *,
    seed: int = 0,
    make_model: Callable[[], nn.Module] | None = None,
) -> nn.Module:
    """Gives a model new random weights, in place; what a keep removes stays zero.

    With ``make_model`` all parameters and buffers come from a newly built model, so the network's own initialisation
    holds. Without it every module's ``reset_parameters`` runs. Then each convolution from which the keep removes
    weights is drawn again,

        ``w ~ Normal(0, sqrt(2 / n))``, ``n`` = kept weights / input channels,

    and what the keep removes is set to zero.

    Args:
        model: the model, of any shape that ``make_model`` or its own modules can fill.
        graph: its units; needed with ``keep``.
        keep: group name → bool ``(units,)`` of ``graph.weights()``.
        seed: of the draw; the global random state is left as it was.
        make_model: builds a model of the same shapes.

    Returns:
        The same model.

    Raises:
        TopiaristError: a parameter cannot be initialised, the shapes differ, or the keep does not fit.

    References:
        Liu, Sun, Zhou, Huang, Darrell. Rethinking the Value of Network Pruning. ICLR 2019.
    """
    if keep is not None and graph is None:
        raise TopiaristError("a keep needs the graph that it was allocated on: pass graph= too")
    with torch.random.fork_rng(devices=sorted({p.device.index for p in model.parameters() if p.is_cuda})):
        torch.manual_seed(seed)
        if make_model is None:
            _reset(model)
        else:
            _copy(unwrapped(make_model()), unwrapped(model))
        if graph is not None and keep is not None:
            _draw_masked(unwrapped(model), graph, keep)
    return model


def _reset(model: nn.Module) -> None:
    """Calls each module's ``reset_parameters``, children first; refuses parameters that no module resets."""
    drawn: set[int] = set()
    for module in reversed(list(model.modules())):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
            drawn.update(id(parameter) for parameter in module.parameters(recurse=False))
    for name, parameter in model.named_parameters():
        if id(parameter) not in drawn:
            raise TopiaristError(
                f"no module can initialise the parameter {shown(name)}: pass make_model=, a function that builds the "
                "model"
            )


def _copy(fresh: nn.Module, model: nn.Module) -> None:
    source, target = fresh.state_dict(), model.state_dict()
    for name in [*target, *source]:
        here = tuple(target[name].shape) if name in target else "missing"
        there = tuple(source[name].shape) if name in source else "missing"
        if here != there:
            raise TopiaristError(
                f"make_model builds another shape ({shown(name)} is {there}, here {here}): "
                "use the architecture's build for a model that was cut"
            )
    model.load_state_dict(source)


@torch.no_grad()
def _draw_masked(model: nn.Module, graph: Graph, keep: Keep) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = {part.tensor for name in keep for part in graph[name].slices if part.axis is None}
    for name, removed in removed_entries(model, graph, keep).items():
        weight = parameters[name]
        owner = model.get_submodule(name.rpartition(".")[0])
        if name in weights and isinstance(owner, _ConvNd):
            inputs = weight.shape[0 if isinstance(owner, _ConvTransposeNd) else 1]
            kept = weight.numel() - int(removed.sum())
            weight.normal_(0.0, math.sqrt(2.0 * inputs / max(kept, 1)))
        weight.masked_fill_(removed, 0)

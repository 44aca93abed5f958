"""Gates with an optimiser of their own, for loops whose schedulers and checkpoints hold the network's as it is."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def optimizer_like(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Returns a fresh optimiser of the same class and options over other parameters, without weight decay."""
    made = copy.copy(optimizer)  # with empty hooks, since an optimiser's state has none
    for name, value in vars(optimizer).items():
        if name not in vars(made) and name not in _HOOKS and not callable(value):
            setattr(made, name, value)
    made.state = defaultdict(dict)
    made.param_groups = [{**_options(optimizer), "params": list(parameters)}]
    return made


def step_along(own: Optimizer, optimizer: Optimizer) -> None:
    """Takes a step with the present options of the first group of another optimiser."""
    own.param_groups[0].update(_options(optimizer))
    with torch.enable_grad():
        own.step()


def _options(optimizer: Optimizer) -> dict[str, Any]:
    """Returns what the first group says of all its parameters, without weight decay."""
    options = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "param_names")}
    return options | ({"weight_decay": 0.0} if "weight_decay" in options else {})

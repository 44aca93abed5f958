"""Whether a configuration can state the shape of a pruned network: tried, by building the network that it gives."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from topiarist.files import one_line
from topiarist.graph import Inputs, call_model, converted, map_tensors
from topiarist.integrations.huggingface.library import built
from topiarist.integrations.huggingface.solving import (
    Networks,
    UnsayableError,
    Values,
    numbers_of,
    paths_of,
    solutions,
    unset_fields,
)
from topiarist.surgery import copied, difference

PRECISIONS = ((torch.float64, 1e-10), (torch.float32, 1e-6))
"""In which outputs are compared, and how far apart they may be; the second where a network does not take the first."""


def stated_by_configuration(model: Any, inputs: Inputs | None) -> tuple[Values | None, str]:
    """Returns the numbers with which the configuration gives the network; else ``None``, and why there are none."""
    plain = model.config.to_dict()
    networks = Networks(partial(_on_meta, model))
    stated, reason, unsayable = paths_of(plain), "", ""
    for unset in (dict, partial(unset_fields, plain, networks, model)):
        try:
            for values in solutions(stated, networks, model, unset()):
                objection = _objection(model, values, inputs)
                if not objection:
                    return {path: value for path, value in values.items() if stated.get(path) != value}, ""
                reason = reason or objection
        except UnsayableError as error:
            unsayable = unsayable or str(error)
        else:
            break
    return None, reason or unsayable or "no numbers give all tensors their shapes"


def _on_meta(model: Any, values: Values) -> nn.Module:
    network: nn.Module = built(_config_with(model.config, values), type(model), device="meta")
    return network


def _config_with(config: Any, values: Values) -> Any:
    """Returns a copy of a configuration with other numbers."""
    plain = copy.deepcopy(config.to_dict())
    if plain.get("use_pretrained_backbone"):
        plain["use_pretrained_backbone"] = False  # its weights are in the file
    for path, value in values.items():
        at = plain
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    return type(config).from_dict({**plain, **implementations(config)})


def implementations(config: Any) -> dict[str, str]:
    """Returns which code a network runs where there is a choice; configurations do not say it in their files."""
    names = ("attn_implementation", "experts_implementation")
    return {name: value for name in names if (value := getattr(config, f"_{name}", None)) is not None}


def _objection(model: Any, values: Values, inputs: Inputs | None) -> str:
    """Returns what speaks against the network that a configuration gives; nothing where it computes the same."""
    try:
        made = with_weights(model, values)
    except Exception as error:
        return one_line(error)
    doubts = _doubts(model, made)
    if inputs is not None:
        return (
            ""
            if _agree(model, made, inputs)
            else f"the outputs would differ: {' or '.join(doubts[:1]) or 'unlike code'}"
        )
    return f"{doubts[0]}, and without inputs= it is not known whether that matters" if doubts else ""


def with_weights(model: Any, values: Values) -> Any:
    """Returns the network of a configuration with a model's tensors, which it shares."""
    made = built(_config_with(model.config, values), type(model), model.dtype, model.device)
    made.load_state_dict(model.state_dict(), assign=True)
    made.tie_weights()
    held = dict(model.named_buffers())
    for name, buffer in made.named_buffers():  # those that no file holds, and that the model's owner converted
        buffer.data = buffer.to(held[name].dtype if name in held else buffer.dtype)
    if (generation := getattr(model, "generation_config", None)) is not None:
        made.generation_config = copy.deepcopy(generation)
    return made.eval()


def _doubts(model: Any, made: Any) -> list[str]:
    """Returns in what a network that has a model's tensors may differ from it, in words; numbers like scales first."""
    held, ours = numbers_of(model), dict(model.named_buffers())
    unlike = [
        (place, held[place], value) for place, value in numbers_of(made).items() if held.get(place, value) != value
    ]
    numbers = [(value, f"{place} is {mine:.4g} and not {value:.4g}") for place, mine, value in unlike]
    return [
        *(text for value, text in numbers if isinstance(value, float)),
        *(f"{n} has other values" for n, b in made.named_buffers() if n in ours and not torch.equal(b, ours[n])),
        *(text for value, text in numbers if isinstance(value, int)),
        *(
            f"the code of {name or 'the network'} was corrected"
            for name, m in model.named_modules()
            if "forward" in vars(m)
        ),
    ]


def _agree(model: Any, made: Any, inputs: Inputs) -> bool:
    """Returns whether two networks compute the same in evaluation."""
    for precision, tolerance in PRECISIONS:
        try:
            outputs = [_outputs(each, inputs, precision) for each in (made, model)]
        except Exception:  # a network fails in any way: in this precision, or with these sizes
            continue
        return difference(*outputs) <= tolerance
    return False


def _outputs(model: Any, inputs: Inputs, precision: torch.dtype) -> Any:
    there = map_tensors(converted(inputs, precision), lambda tensor: tensor.to(model.device))
    with torch.no_grad():
        return call_model(copied(model).to(precision).eval(), there)

"""The shape of a network inside its compressed file: masks of single weights are not stored, zeros tell them.

A weight that was pruned is zero and one that was kept is not, as a rule. So in the place of a mask the file says where
this rule holds, ``mask == (weight != 0)``. That is everywhere, which takes a few bytes; exceptions, such as a kept
weight that happens to be zero, cost no more than themselves.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from topiarist.architecture import Architecture, digest, pack_mask, unpack_mask
from topiarist.compress.container import File, damaged

SHAPE = "architecture"
_KEPT, _TOLD = "kept", "told"
"""A group's mask, or the places where the zeros of its tensor tell it."""


def to_text(architecture: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """The JSON of an architecture, but for what the stored tensors tell."""
    value: dict[str, Any] = architecture.to_json()
    del value["sha256"]  # the file has a checksum of its own
    for group, entry in zip(architecture.groups, value["groups"], strict=True):
        if group.kind == "weight" and group.name in tensors:
            del entry[_KEPT]
            entry[_TOLD] = pack_mask(architecture.keep[group.name] == _nonzero(tensors[group.name]))
    return json.dumps(value, separators=(",", ":"))


def of_file(file: File, tensors: Mapping[str, Tensor] | None) -> Architecture | None:
    """The architecture in a file, if there is one.

    Args:
        file: with a header that has been read.
        tensors: all that the file holds; without them the masks that they tell are left out, which cut nothing.

    Raises:
        TopiaristError: it is damaged, of an unknown version, or takes too much memory.
    """
    if SHAPE not in file.texts:
        return None
    try:
        value = json.loads(file.texts[SHAPE])
        told = [entry for entry in value["groups"] if _TOLD in entry]
        if tensors is None:
            value["groups"] = [entry for entry in value["groups"] if entry not in told]
        else:
            for entry in told:
                tensor = tensors[entry["name"]]
                file.memory.need(16 * tensor.numel(), f"the mask of {entry['name']}", keep=True)
                entry[_KEPT] = pack_mask(unpack_mask(entry.pop(_TOLD), tensor.numel()) == _nonzero(tensor))
        value["sha256"] = digest(value)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, zlib.error) as error:
        raise damaged(error) from error
    return Architecture.from_json(value)


def _nonzero(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().flatten() != 0

"""The shape of a network inside its compressed file: masks of unstructured pruning follow from the zeros.

As a rule a pruned weight is zero and a kept one is not. So instead of a mask the file stores where this rule holds,
``mask == (weight != 0)``. Where it holds everywhere, that takes a few bytes; each exception, such as a kept weight that
happens to be zero, takes a little more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from topiarist.architecture import DAMAGE, Architecture, digest, memory_of, pack_mask, unpack_mask
from topiarist.compress.container import File, damaged
from topiarist.files import from_json

SHAPE = "architecture"
_KEPT, _AGREES = "kept", "told"
"""Keys of a group: its mask, or where the mask agrees with the zeros of its tensor."""


def to_text(architecture: Architecture, tensors: Mapping[str, Tensor]) -> str:
    """Returns the JSON of an architecture, without masks that follow from the stored tensors."""
    value: dict[str, Any] = architecture.to_json()
    del value["sha256"]  # the file has a checksum of its own
    for group, entry in zip(architecture.groups, value["groups"], strict=True):
        if group.kind == "weight" and group.name in tensors:
            del entry[_KEPT]
            entry[_AGREES] = pack_mask(architecture.keep[group.name] == _nonzero(tensors[group.name]))
    return json.dumps(value, separators=(",", ":"))


def of_file(file: File, tensors: Mapping[str, Tensor] | None) -> Architecture | None:
    """Returns the architecture in a file, if there is one.

    Args:
        file: with a header that has been read.
        tensors: all that the file holds; without them the masks that follow from them are left out, which cut nothing.

    Raises:
        TopiaristError: it is damaged, of an unknown version, or takes too much memory.
    """
    if SHAPE not in file.texts:
        return None
    try:
        value = from_json(file.texts[SHAPE])
        implied = [entry for entry in value["groups"] if _AGREES in entry]
        if tensors is None:
            value["groups"] = [entry for entry in value["groups"] if entry not in implied]
        else:
            for entry in implied:
                tensor = tensors[entry["name"]]
                file.memory.need(8 * tensor.numel(), f"the mask of {entry['name']}")
                entry[_KEPT] = pack_mask(unpack_mask(entry.pop(_AGREES), tensor.numel()) == _nonzero(tensor))
        value["sha256"] = digest(value)
        file.memory.need(memory_of(value), "the architecture", keep=True)
    except DAMAGE as error:
        raise damaged(error) from error
    return Architecture.from_json(value)


def _nonzero(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().flatten() != 0

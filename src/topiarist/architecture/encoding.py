"""The JSON of an architecture: how it is written, and how it is read from a file that nobody vouches for.

Everything is counted before anything is allocated: a damaged file costs a sentence, not the memory of the machine.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topiarist.errors import TopiaristError
from topiarist.files import IN_WEIGHTS, check_size, one_line, shown
from topiarist.graph import (
    CORRECTIONS,
    GUARD,
    INFERRED,
    SELECTOR,
    Attribute,
    Block,
    Correction,
    Corrections,
    Group,
    Keep,
    Part,
    Ratio,
    Slice,
    Span,
    Step,
)

FORMAT = "topiarist.architecture"
VERSION, WITH_BLOCKS, WITH_PLACES = 1, 2, 3
"""Files without blocks, or without corrected places, stay readable for releases that do not know these."""
LARGEST = 1 << 40
"""No tensor of a network has more elements, no attribute a larger value."""
AXES = 64
"""No tensor has more axes."""
_UNIT, _WEIGHT, _POSITION = 4, 9, 17
"""Bytes that a unit takes in its mask, as an individual weight, and each of its positions on an axis, while reading."""

DEEPEST, SLOTS, CORRECTED = 64, 4096, 10_000
"""Functions on the way to a place, arguments of a call, and corrections of a module, at most."""

DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, zlib.error, binascii.Error)
"""What reading a damaged file raises."""


@dataclass(frozen=True, eq=False)
class Shape:
    """What the file of an architecture holds: the fields of `topiarist.Architecture`."""

    groups: tuple[Group, ...]
    keep: Keep
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[Attribute, int]
    corrections: Corrections
    selectors: tuple[str, ...] = ()


def encode(shape: Shape) -> dict[str, Any]:
    """Returns plain values for `json`; masks as packed bits, positions as runs of (start, count, step)."""
    value: dict[str, Any] = {
        "format": FORMAT,
        "version": _version(shape),
        "groups": [
            {
                "name": g.name,
                "units": g.units,
                "stage": g.stage,
                "kept": pack_mask(shape.keep[g.name]),
                "slices": [
                    [s.tensor, s.axis, s.role, None if s.axis is None else _runs(s.positions)] for s in g.slices
                ],
                **({"blocks": [_plain(block) for block in g.blocks]} if g.blocks else {}),
            }
            for g in shape.groups
        ],
        "shapes": {name: list(lengths) for name, lengths in shape.shapes.items()},
        "sizes": [[*attribute, value] for attribute, value in shape.sizes.items()],
        "corrections": {
            module: [
                {
                    "place": [[step.function, step.source, list(step.span)] for step in c.place],
                    "kind": c.kind,
                    "at": c.at,
                    "values": [[slot, list(v) if isinstance(v, Ratio) else v] for slot, v in c.values.items()],
                }
                for c in made
            ]
            for module, made in shape.corrections.items()
        },
        "selectors": list(shape.selectors),
    }
    return {**value, "sha256": digest(value)}


def _version(shape: Shape) -> int:
    if shape.corrections:
        return WITH_PLACES
    return WITH_BLOCKS if any(group.blocks for group in shape.groups) else VERSION


def _plain(block: Block) -> list[Any]:
    return [block.name, [list(part) for part in block.parts], list(block.tips)]


def digest(value: Mapping[str, Any]) -> str:
    """Returns the checksum of everything but itself, so that a damaged number is noticed."""
    return hashlib.sha256(_text_of(value).encode()).hexdigest()


def _text_of(value: Mapping[str, Any]) -> str:
    return json.dumps({key: entry for key, entry in value.items() if key != "sha256"}, sort_keys=True)


def decode(value: Any) -> Shape:
    """Inverts `encode`.

    Raises:
        TopiaristError: the value is no architecture, damaged, or of a version that this release does not know.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise TopiaristError("this is not an architecture of topiarist; give the JSON file that prune() wrote")
    version = value.get("version")
    if version not in (VERSION, WITH_BLOCKS, WITH_PLACES):
        raise TopiaristError(
            f"the architecture has version {shown(version)}, this release reads {VERSION} to {WITH_PLACES}; "
            "upgrade topiarist"
        )
    if version != WITH_PLACES and value.get("corrections"):
        raise TopiaristError(
            "the architecture corrects calls by their number, as the first release did, which is wrong on other "
            "branches of the code; prune the network again"
        )
    try:
        if value["sha256"] != digest(value):
            raise ValueError("its checksum is wrong")
        shapes = {_text(name): _shape(shape) for name, shape in value["shapes"].items()}
        if not isinstance(value["groups"], list):
            raise TypeError("groups that are no list")
        check_size(memory_of(value), "the architecture", IN_WEIGHTS * len(_text_of(value)))
        masks = [unpack_mask(entry["kept"], _count(entry["units"], 1)) for entry in value["groups"]]
        if not all(mask.any() for mask in masks):
            raise ValueError("a group that keeps nothing")
        groups = tuple(_group(entry, shapes) for entry in value["groups"])
        keep = {group.name: mask for group, mask in zip(groups, masks, strict=True)}
        if len(keep) != len(groups):
            raise ValueError("two groups of one name")
        sizes = {
            Attribute(_text(module), _text(name), None if entry is None else _count(entry)): _count(new, 1)
            for module, name, entry, new in value["sizes"]
        }
        corrections = {_text(m): _corrections(made) for m, made in value["corrections"].items()}
        selectors = _selectors(value.get("selectors", []), shapes)  # older files have none
    except DAMAGE as error:
        raise TopiaristError(f"the architecture is damaged ({one_line(error)}); write it again with prune()") from error
    return Shape(groups, keep, shapes, sizes, corrections, selectors)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} where a name belongs")
    return value


def _count(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= LARGEST:
        raise ValueError(f"{shown(value)} where a count belongs")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if len(value) > AXES:
        raise ValueError("a tensor of too many axes")
    shape = tuple(_count(n) for n in value)
    _count(prod(shape))
    return shape


def memory_of(value: Mapping[str, Any]) -> int:
    """Returns the bytes that decoding takes: masks, positions, and what the plan of a cut says of each position.

    Raises:
        Exception: one of ``DAMAGE``.
    """
    shapes, size = value["shapes"], 0
    for entry in value["groups"]:
        size += _UNIT * _count(entry["units"], 1)
        for tensor, axis, _, runs in entry["slices"]:
            shape = _shape(shapes[_text(tensor)])
            if axis is None:
                size += _WEIGHT * prod(shape)
            else:
                size += shape[_axis(axis, shape)] + _POSITION * sum(_count(count, 1) for _, count, _ in runs)
    return size


def _axis(value: Any, shape: tuple[int, ...]) -> int:
    if _count(value) >= len(shape):
        raise ValueError(f"an axis {value} of a tensor of the shape {shape}")
    return int(value)


def _group(entry: Any, shapes: Mapping[str, tuple[int, ...]]) -> Group:
    units = _count(entry["units"], 1)
    slices = tuple(_slice(part, units, shapes) for part in entry["slices"])
    blocks = tuple(_block(*block) for block in entry.get("blocks", ()))
    if bool(slices) == bool(blocks) or len(blocks) not in (0, units):
        raise ValueError("a group whose units are neither slices nor blocks")
    return Group(_text(entry["name"]), units, slices, _text(entry["stage"]), blocks=blocks)


def _block(name: Any, parts: Any, tips: Any) -> Block:
    modules = tuple(Part(_text(module), _count(outputs)) for module, outputs in parts)
    if not all(part.module for part in modules):
        raise ValueError("a block that is the entire network")
    return Block(_text(name), modules, tuple(map(_text, tips)))


def _slice(part: Any, units: int, shapes: Mapping[str, tuple[int, ...]]) -> Slice:
    tensor, axis, role, runs = part
    shape = shapes[_text(tensor)]
    if axis is None:
        if units != prod(shape):
            raise ValueError(f"{units} units in the {shape} of {tensor}")
        return Slice(tensor, None, torch.arange(units).unsqueeze(1), _text(role))
    size = shape[_axis(axis, shape)]
    total = 0
    for start, count, step in runs:
        total += _count(count, 1)
        if type(step) is not int or not 0 <= _count(start) < size or not 0 <= start + (count - 1) * step < size:
            raise ValueError(f"positions beyond the axis {axis} of {shown(tensor)}")
    if total % units or not units <= total <= size * units:
        raise ValueError(f"{total} positions for {units} units in {tensor}")
    positions = torch.cat([torch.arange(count) * step + start for start, count, step in runs])
    return Slice(tensor, axis, positions.view(units, -1), _text(role))


def _selectors(value: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("selectors that are no list")
    for name in value:
        if f"{_text(name)}.{SELECTOR}.indices".lstrip(".") not in shapes:
            raise ValueError(f"no indices for the selector of {shown(name)}")
    return tuple(value)


def _corrections(value: Any) -> tuple[Correction, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= CORRECTED:
        raise ValueError("a module without corrections, or with too many")
    made = tuple(map(_correction, value))
    if len({(c.place, c.kind, c.at) for c in made}) < len(made) or len({c.place[0][:2] for c in made}) > 1:
        raise ValueError("two corrections of one place, or of two functions")
    return made


def _correction(value: Any) -> Correction:
    place = tuple(Step(_text(name), _text(source), _span(span)) for name, source, span in value["place"])
    if not place or value["kind"] not in CORRECTIONS:
        raise ValueError("a correction of an unknown kind")
    values = {_slot(slot): _right(right) for slot, right in value["values"]}
    if len(place) > DEEPEST or not _fits(value["kind"], list(values.values())):
        raise ValueError(f"a correction of {value['kind']} by other values")
    return Correction(place, value["kind"], _slot(value["at"]), values)


def _slot(value: Any) -> int:
    if _count(value) > SLOTS:
        raise ValueError(f"{shown(value)} where the number of an argument belongs")
    return int(value)


def _fits(kind: str, values: list[Ratio | float]) -> bool:
    """Returns whether values are those of a kind of correction."""
    if kind in ("sizes", "border"):
        return bool(values) and all(isinstance(value, Ratio) for value in values)
    if kind == "scale":
        return len(values) == 1 and isinstance(values[0], float)
    if kind == "squeeze":
        return bool(values) and all(type(value) is int and 0 <= value < SLOTS for value in values)
    return not values if kind == GUARD else len(values) in (1, 2)


def _span(value: Any) -> Span:
    line, column, end_line, end_column = value
    return Span(_count(line), _count(column), _count(end_line), _count(end_column))


def _right(value: Any) -> Ratio | float:
    if isinstance(value, list):
        right, asked = value
        return INFERRED if value == list(INFERRED) else Ratio(_count(right, 1), _count(asked))
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{shown(value)} where a number belongs")
    return value


def pack_mask(mask: Tensor) -> str:
    """Bits ``(units,)`` as text: packed, compressed, base64."""
    return base64.b64encode(zlib.compress(np.packbits(mask.numpy()).tobytes(), 9)).decode("ascii")


def unpack_mask(text: Any, units: int) -> Tensor:
    """Inverts `pack_mask`.

    Raises:
        TypeError: this is no text.
        ValueError: it is no base64, or of another number of bits.
        zlib.error: it is damaged.
    """
    length = (units + 7) // 8
    data = zlib.decompressobj().decompress(base64.b64decode(_text(text), validate=True), length + 1)
    if len(data) != length:
        raise ValueError("a mask of the wrong length")
    return torch.from_numpy(np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=units).astype(bool))


def _runs(positions: Tensor) -> list[list[int]]:
    """Returns positions, row by row, as runs of (start, count, step)."""
    flat = positions.flatten().numpy()
    runs: list[list[int]] = []
    i = 0
    while i < len(flat):
        rest = np.diff(flat[i:])
        step = int(rest[0]) if len(rest) else 1
        breaks = np.flatnonzero(rest != step)
        count = int(breaks[0]) + 1 if len(breaks) else len(rest) + 1
        runs.append([int(flat[i]), count, step])
        i += count
    return runs

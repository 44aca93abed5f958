"""Plain values from YAML: each key once, and nothing that JSON could not hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has already."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                told = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            seen.add(key.value)
        return node


def from_yaml(text: Any) -> Any:
    """The value of a YAML text or open file.

    Raises:
        yaml.YAMLError: it is no YAML, a key stands twice, or a value is none of JSON's.
    """
    value = yaml.load(text, _Loader)
    _check_plain(value)
    return value


def _check_plain(value: Any) -> None:
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_plain(key)
            _check_plain(each)
    elif isinstance(value, list):
        for each in value:
            _check_plain(each)
    elif not isinstance(value, str | int | float | None):
        raise yaml.YAMLError(f"{value!r} is neither text nor number, truth, list or mapping: put it in quotes")

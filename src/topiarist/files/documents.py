"""JSON and YAML files: read with one sentence for whatever is wrong with them, written at once or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

import yaml

from topiarist.errors import TopiaristError
from topiarist.files.atomic import write_text
from topiarist.files.sentences import one_line

MOST_VALUES = 100_000
"""A YAML file holds no more values."""


def read_json(path: Path, what: str, remedy: str) -> Any:
    """Returns the values in a JSON file.

    Args:
        path: the file.
        what: what messages call it.
        remedy: what to do where it cannot be read.

    Raises:
        TopiaristError: there is no such file, it is not JSON, or a number in it is not finite.
    """
    return _read(path, what, remedy, lambda text: json.loads(text, parse_constant=_refuse_constant))


def read_yaml(path: Path, what: str, remedy: str) -> Any:
    """Returns the values in a YAML file; arguments and errors as of `read_json`, and no key may occur twice."""
    return _read(path, what, remedy, from_yaml)


def write_json(path: Path, values: object, *, compact: bool = False) -> None:
    """Writes plain values as JSON, in one step.

    Args:
        path: the file; missing folders are made.
        values: dicts, lists, text, finite numbers, booleans and None.
        compact: leave out line breaks and spaces.

    Raises:
        TopiaristError: the file cannot be written.
        ValueError: a number is not finite.
        TypeError: JSON has no such value.
    """
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    write_text(path, json.dumps(values, allow_nan=False, **layout) + ("" if compact else "\n"))


def from_yaml(text: str | IO[str]) -> Any:
    """Returns the value of a YAML text or open file.

    Raises:
        yaml.YAMLError: it is not YAML, a key occurs twice, it has too many values, or JSON has no such one.
    """
    value = yaml.load(text, _Loader)
    count = sum(1 for _ in islice(_values(value), MOST_VALUES + 1))
    if count > MOST_VALUES:
        raise yaml.YAMLError(f"with its aliases it holds more than {MOST_VALUES:,} values: write less")
    return value


def _read(path: Path, what: str, remedy: str, parse: Callable[[str], Any]) -> Any:
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise OSError("it is not a regular file")
        return parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or one_line(error)
    except UnicodeDecodeError:
        reason = "it is not a text file"
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = line + " ".join(str(error.problem or one_line(error)).split())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = one_line(error)
    raise TopiaristError(f"cannot read {what} {path} ({reason}); {remedy}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has already."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


def _values(value: object) -> Iterator[object]:
    """Yields a value and all values in it; aliases can make them countless.

    Raises:
        yaml.YAMLError: JSON has no such value.
    """
    yield value
    if isinstance(value, Mapping):
        for pair in value.items():
            for each in pair:
                yield from _values(each)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each)
    elif not isinstance(value, str | int | float | None):
        raise yaml.YAMLError(f"{value!r} is not text, number, boolean, list or mapping: put it in quotes")

"""JSON and YAML files: read with one sentence for whatever is wrong with them, written at once or not at all."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import IO, Any

import yaml

from topiarist.errors import TopiaristError
from topiarist.files.atomic import write_text
from topiarist.files.limits import check_size, json_size
from topiarist.files.sentences import one_line, shortened

MOST_VALUES = 100_000
"""A YAML file holds no more values, those that its aliases repeat included."""
DEEPEST = 100
"""Its lists and mappings are nested no deeper."""
MOST_CHARACTERS = 1 << 20
"""A YAML file is no longer, nor are its values together, nor any text that comes through a pipe."""
_TOO_LONG = f"it has more than {MOST_CHARACTERS:,} characters: write less"

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of half a character in JSON."""


def read_json(path: Path, what: str, remedy: str) -> Any:
    """Returns the values in a JSON file.

    Args:
        path: the file.
        what: what messages call it.
        remedy: what to do where it cannot be read.

    Raises:
        TopiaristError: there is no such file, it is not JSON, a number is not finite, or it takes too much memory.
    """

    def parse(text: str) -> Any:
        check_size(json_size(text), f"{what} {path}", honest=len(text))
        return from_json(text)

    return _read(path, what, remedy, parse)


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


def from_json(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: it is not JSON, a number in it is not finite, or half a character stands alone.
        RecursionError: it is too deep.
    """
    value = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def from_yaml(text: str | IO[str]) -> Any:
    """Returns the value of a YAML text or open file.

    Raises:
        yaml.YAMLError: it is not YAML, a key occurs twice, it has too many values, or JSON has no such one.
    """
    text = text if isinstance(text, str) else text.read(MOST_CHARACTERS + 1)
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(_TOO_LONG)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {})
        value = loader.construct_document(node)
    finally:
        loader.dispose()
    _check_value(value)
    return value


def _read(path: Path, what: str, remedy: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(_text(Path(path), f"{what} {path}"))
    except OSError as error:
        reason = error.strerror or one_line(error)
    except UnicodeDecodeError:
        reason = "it is not a text file"
    except UnicodeEncodeError:
        reason = "half a character stands alone in it"
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = line + " ".join(str(error.problem or one_line(error)).split())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = one_line(error)
    raise TopiaristError(f"cannot read {what} {shortened(path)} ({reason}); {remedy}")


def _text(path: Path, what: str) -> str:
    """Returns the text of a file, or of a pipe that a shell has opened, as in ``--config <(COMMAND)``."""
    if path.is_fifo() and str(path).startswith(("/dev/", "/proc/")):  # a named one might wait for its writer forever
        with path.open(encoding="utf-8") as pipe:
            text = pipe.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise ValueError(_TOO_LONG)
        return text
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    check_size(path.stat().st_size, what)
    return path.read_text(encoding="utf-8")


def _number(digits: str) -> float:
    if not isfinite(number := float(digits)):
        raise ValueError(f"{digits[:40]} is not a finite number")
    return number


def _whole(digits: str) -> int:
    _number(digits)  # so that each can be compared with fractions
    return int(digits)


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has already, values that are not what they are called, and more than so many."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.count, self.depth = 0, 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.count, self.depth = self.count + 1, self.depth + 1
        _check_total(self.count, 0)
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep: write less")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value[:100]!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            kind = str(node.tag).rpartition(":")[2]
            problem = f"{str(node.value)[:100]!r} cannot be read as {kind}: put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _check_total(values: int, characters: int) -> None:
    if values > MOST_VALUES or characters > MOST_CHARACTERS:
        raise yaml.YAMLError(
            f"with its aliases it holds more than {MOST_VALUES:,} values or {MOST_CHARACTERS:,} characters: write less"
        )


def _expanded(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Returns how many values and characters a node holds where each alias repeats its own.

    Args:
        node: a node of the composed text.
        known: the answers for nodes that were met, by identity; ``None`` for those that are not finished.
    """
    if id(node) in known:
        if (answer := known[id(node)]) is None:
            raise yaml.YAMLError("an alias stands for what holds it: write it out")
        return answer
    known[id(node)] = None
    values, characters = 1, len(node.value) if isinstance(node, yaml.ScalarNode) else 0
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    inner = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in pairs for each in pair]
    for each in inner:
        more = _expanded(each, known)
        values, characters = values + more[0], characters + more[1]
        _check_total(values, characters)
    known[id(node)] = (values, characters)
    return values, characters


def _check_value(value: object) -> None:
    """Raises where JSON has no such value, or none with such a key."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {str(key)[:100]} is not text: put it in quotes")
            _check_value(key)
            _check_value(each)
    elif isinstance(value, list):
        for each in value:
            _check_value(each)
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise yaml.YAMLError("a number in it is not finite, or too large: correct it")
    elif not isinstance(value, int | float | None):
        raise yaml.YAMLError(f"{value!r} is not text, number, boolean, list or mapping: put it in quotes")

"""The house: its rooms in order, each entered by its face, and no import that points up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import topiarist

SOURCE = Path(topiarist.__file__).parent

ROOMS = (
    "errors",
    "files",
    "graph",
    "models",
    "data",
    "measure",
    "budget",
    "surgery",
    "architecture",
    "guided",
    "methods",
    "train",
    "compress",
    "sparse",
    "deploy",
    "pruning",
    "integrations",
    "studies",
    "report",
    "cli",
)
"""A room imports from those before it only; some of them are still to be built."""

MODULE = re.compile(rf"topiarist\.({'|'.join(ROOMS)})(\.\w+)*")


class Import(NamedTuple):
    """One import of something of this package, wherever in a file it stands."""

    module: str
    name: str
    lazy: bool


def imports(code: str) -> Iterator[Import]:
    """Every import of the package in a file: at the top, in functions, and for type checking alone."""
    tree = ast.parse(code)
    within = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        lazy = id(node) in within
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            yield from (Import(node.module or "", alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, "", lazy) for alias in node.names)
        elif isinstance(node, ast.Constant) and MODULE.fullmatch(str(node.value)):
            yield Import(node.value, "", lazy)  # what importlib may be asked for


def faults(room: str, code: str) -> list[str]:
    """What is wrong with the imports of a file in a room."""
    found = []
    for module, name, lazy in imports(code):
        package, *path = module.split(".")
        if package != "topiarist":
            continue
        path = path or [name]
        if path[0] not in ROOMS:
            found.append(f"{module} {name} is no room")
        elif path[0] == room:
            continue
        elif ROOMS.index(path[0]) > ROOMS.index(room):
            found.append(f"{module} stands above {room}")
        elif len(path) > 1:
            found.append(f"{module} is entered past its face")
        elif lazy and room != "cli":
            found.append(f"{module} is imported late")
    return found


def files() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or path.stem == "errors"]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_import_points_up_or_past_a_face(path: Path) -> None:
    room = path.relative_to(SOURCE).with_suffix("").parts[0]
    assert not faults(room, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "code",
    [
        "from topiarist.pruning import prune",
        "def f():\n    from topiarist.pruning import prune",
        "if TYPE_CHECKING:\n    import topiarist.pruning",
        "def f():\n    importlib.import_module('topiarist.studies')",
        "from topiarist.graph.calls import call_model",
        "def f():\n    from topiarist.graph import trace",
    ],
)
def test_the_check_sees_imports_that_must_not_be(code: str) -> None:
    """Up at the top of a file, late, for types alone and by name; past a face; and late without need."""
    assert faults("budget", code)


def test_the_house_has_the_rooms_of_the_plan() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(ROOMS)
    assert all((SOURCE / room / "__init__.py").is_file() for room in rooms)
    assert len(rooms) <= 24
    assert {path.name for path in SOURCE.iterdir() if path.is_file()} == {
        "__init__.py",
        "__main__.py",
        "errors.py",
        "py.typed",
    }


def test_public_names_are_few_and_there() -> None:
    assert len(topiarist.__all__) <= 48
    assert all(hasattr(topiarist, name) for name in topiarist.__all__)

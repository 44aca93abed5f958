"""Plain values against the types of dataclasses, JSON and YAML files, and files that are complete or absent."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from topiarist.errors import TopiaristError
from topiarist.files import check_fields, from_plain, read_json, read_yaml, suggestion, write_json, write_text


@dataclass(frozen=True)
class Leaf:
    width: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, "the leaf")


@dataclass(frozen=True)
class Tree:
    leaf: Leaf | None = None
    names: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["oak", "elm"] = "oak"
    old: bool = False
    pair: tuple[int, str] = (0, "")
    more: Mapping[str, Any] = field(default_factory=dict)


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 30))
"""Aliases of aliases: a few lines that stand for more values than any memory holds."""

MERGES = "a0: &a0 {x: y}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join(9 * [f'*a{n - 1}'])}]}}\n" for n in range(1, 30))
"""The same of mappings that are merged."""
LONG = f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 50_000}]"
"""Few values, of more text than any memory holds."""

DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


def test_plain_values_become_a_dataclass_with_their_types_untouched() -> None:
    values = {"leaf": {"width": 3, "rate": 1}, "names": ["a", "b"], "shares": {"x": 0.25}, "kind": "elm", "old": True}
    values |= {"pair": [1, "a"], "more": {"any": [None]}}
    tree = from_plain(Tree, values, "the tree")
    assert tree == Tree(Leaf(3, 1), ("a", "b"), {"x": 0.25}, "elm", True, (1, "a"), {"any": [None]})
    assert type(tree.leaf.rate) is int  # nothing is coerced
    assert from_plain(Tree, tree, "the tree") is tree


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": []}, "the tree has no 'name': did you mean names"),
        ({"zzz": 1}, "the tree has no 'zzz': choose from leaf, names"),
        ({1: 1}, "the tree has no 1"),
        ([], "the tree must be a mapping"),
        (None, "the tree must be a mapping"),
        ({"leaf": {}}, "leaf of the tree has no width: add it"),
        (
            {"leaf": {"width": "3"}},
            "width of leaf of the tree must be a whole number, but got '3': leave the quotes out",
        ),
        ({"leaf": {"width": True}}, "must be a whole number, but got True"),
        ({"leaf": {"width": 3.0}}, "must be a whole number"),
        ({"leaf": {"width": 1, "rate": "1e-3"}}, r"YAML takes 1e-3 for text: write 1\.0e-3"),
        ({"leaf": {"width": 1, "rate": float("nan")}}, "must be a finite number"),
        ({"leaf": {"width": 1, "rate": float("inf")}}, "must be a finite number"),
        ({"leaf": {"width": 1, "rate": 10**400}}, "must be a finite number"),
        ({"leaf": {"width": 1, "rate": 10**5000}}, "must be a finite number, but got a value of type int"),
        ({"leaf": DEEP}, r"leaf of the tree must be .*, but got \[\[\["),
        ({"names": "ab"}, "names of the tree must be a list, but got 'ab'"),
        ({"names": ["a", 3]}, "entry 2 of names of the tree must be text"),
        ({"shares": {"x": "half"}}, "'x' of shares of the tree must be a finite number"),
        ({"shares": {3: 0.5}}, "a key of shares of the tree must be text"),
        ({"kind": "ash"}, "kind of the tree must be 'oak' or 'elm', but got 'ash'"),
        ({"pair": [1]}, "pair of the tree must be a list of 2 values"),
        ({"pair": ["a", 1]}, "entry 1 of pair of the tree must be a whole number"),
        ({"old": 1}, "old of the tree must be true or false"),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(values: object, message: str) -> None:
    with pytest.raises(TopiaristError, match=message) as refused:
        from_plain(Tree, values, "the tree")
    assert "\n" not in str(refused.value)


def test_a_dataclass_checks_what_python_gives_it() -> None:
    with pytest.raises(TopiaristError, match="rate of the leaf must be a finite number, but got None"):
        Leaf(1, None)  # type: ignore[arg-type]


def test_suggestions_are_close_names_or_what_there_is() -> None:
    assert suggestion("resnet57", ["resnet56", "vgg"]) == "did you mean resnet56?"
    assert suggestion("zzz", ["resnet56", "vgg"]) == "choose from resnet56, vgg"
    assert suggestion("zzz", ["vgg"], "look elsewhere") == "look elsewhere"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": NaN}', "9" * 5000, "9" * 400, "1e999", '"\\ud800"'])
def test_files_that_are_no_json_get_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(TopiaristError, match=r"cannot read the values .*a\.json \(.*\); write it again") as refused:
        read_json(tmp_path / "a.json", "the values", "write it again")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "[" * 10_000, "a: 1\na: 2\n", "a: 2020-01-01\n", "9" * 5000, "&a [*a]", LAUGHS, LONG, MERGES),
        *("!!timestamp x", "!!bool maybe", "!!int ''", "!!float ''", "2024-13-45", "1" + ":59" * 300, ".inf"),
        *("{1: a, b: c}", "{true: a}", '"\\ud800"', "a: " + "x " * 600_000, "- a\n" * 100_000),
    ],
)
@pytest.mark.by_day(8)
def test_files_that_are_no_yaml_get_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(TopiaristError, match=r"cannot read the values .*a\.yaml \(.*\); write it again") as refused:
        read_yaml(tmp_path / "a.yaml", "the values", "write it again")
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system gives open pipes no names")
def test_a_pipe_that_is_open_is_read_once_and_no_further_than_the_limit(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("epochs: 5\n")
    assert read_yaml(Path(f"/dev/fd/{reading}"), "the values", "") == {"epochs": 5}
    os.close(reading)

    def fill() -> None:
        with suppress(BrokenPipeError):
            while True:
                os.write(writing, b"# without end\n" * 1000)

    reading, writing = os.pipe()
    endless = threading.Thread(target=fill)
    endless.start()
    try:
        with pytest.raises(TopiaristError, match=r"\(it has more than 1,048,576 characters: write less\); send less"):
            read_yaml(Path(f"/dev/fd/{reading}"), "the values", "send less")
    finally:
        os.close(reading)
        endless.join()
        os.close(writing)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(TopiaristError, match=r"it is not a regular file\); write it again"):
        read_yaml(tmp_path / "a.yaml", "the values", "write it again")


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    for name in ("a.json", "b.json", "."):
        with pytest.raises(TopiaristError, match="cannot read the values"):
            read_json(tmp_path / name, "the values", "write it again")


def test_json_comes_back_and_a_failure_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    write_json(file, {"a": [1, 0.5, None, "é"]})
    assert read_json(file, "the values", "") == {"a": [1, 0.5, None, "é"]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})
    assert read_json(file, "the values", "") == {"a": [1, 0.5, None, "é"]}
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_unpaired_surrogates_are_written_as_question_marks(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a\ud800b")
    assert (tmp_path / "a.txt").read_text() == "a?b"

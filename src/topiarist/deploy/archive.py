"""What a ``.pt2`` file may hold: torch would unpickle, evaluate and load whatever else is in one."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_PARTS = re.compile(
    r"[^/]+/(data/(weights|constants)/(weight_\d+|tensor_\d+|\w+_config\.json)|data/sample_inputs/\w+\.pt"
    r"|models/\w+\.json|extra/[^/]+|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)
"""Tensors, a description of the graph, example inputs and notes; no compiled libraries."""

_OPERATOR = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\._?sym_\w+")
"""Functions that a graph may call: registered operators, and arithmetic on sizes."""

# fmt: off
_FUNCTIONS = frozenset((
    "Abs", "Add", "And", "BooleanFalse", "BooleanTrue", "CeilToInt", "CleanDiv", "Equality", "Float", "FloatPow",
    "FloatTrueDiv", "FloorDiv", "FloorToInt", "GreaterThan", "Identity", "IntTrueDiv", "Integer", "LessThan", "Max",
    "Min", "Mod", "ModularIndexing", "Mul", "Not", "Or", "Pow", "PowByNatural", "PythonMod", "Rational",
    "RoundToInt", "StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat", "TruncToInt",
    "Unequality", "Where",
))
# fmt: on
"""Of arithmetic on sizes."""

_NAME = re.compile(r"[suz]\d+|L|oo|int_oo|nan")
"""Sizes by their symbols, and the inputs."""

_SYNTAX = (
    *(ast.Expression, ast.Constant, ast.Call, ast.keyword, ast.Name, ast.Attribute, ast.Subscript, ast.Load),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def what_could_run(path: Path) -> str | None:
    """Returns what in a file could run code while torch loads it, or ``None``.

    Raises:
        Exception: the file is damaged or no such file.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not _PARTS.fullmatch(name):
                return f"the part {name}"
            if name.endswith("_config.json") and '"use_pickle": true' in archive.read(name).decode():
                return f"a pickle ({name})"
            if name.endswith(".pt") and not _only_tensors(archive.read(name)):
                return f"a pickle ({name})"
            if "/models/" in name and (found := next(_suspects(json.loads(archive.read(name))), None)):
                return found
    return None


def _only_tensors(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _suspects(value: Any, key: str = "") -> Iterator[str]:
    """Yields functions and expressions of a graph that are none of torch's own."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _suspects(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from _suspects(entry, key)
    elif isinstance(value, str):
        if key in ("target", "as_operator") and not _OPERATOR.fullmatch(value):
            yield f"a call of {value[:80]}"
        if key in ("expr_str", "guards_code", "as_expr") and not _arithmetic(value):
            yield f"the expression {value[:80]}"


def _arithmetic(text: str) -> bool:
    """Returns whether an expression only computes with sizes of the inputs."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return all(_harmless(node, called=id(node) in called) for node in nodes)


def _harmless(node: ast.AST, *, called: bool) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS if called else bool(_NAME.fullmatch(node.id))
    if isinstance(node, ast.Attribute):
        return node.attr in ("size", "shape", "ndim")
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or node.value.isidentifier()
    return isinstance(node, _SYNTAX) and not (called and isinstance(node, ast.Subscript | ast.Call))

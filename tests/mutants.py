"""Mutants of the methods' formulas: a changed sign, norm or axis that no test notices is a gap in the tests.

    python tests/mutants.py --count 60 --seed 0

Each mutant changes one place of one file in a copy of the package, and runs the tests of the methods that use the file.
Survivors are printed with file, line and change. Exits with 1 where fewer than 58 of 60 are caught.

Not counted are mutants that compute the same values: `places` leaves out what is no formula (checks of fields,
messages, names), what only guards against rounding (`_GUARDS`), and `EQUIVALENT` lists the rest, each with the reason.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
METHODS = ROOT / "src" / "topiarist" / "methods"
WANTED = 58 / 60
SECONDS = 300
"""After which a mutant counts as caught: it does not come to an end."""

_REDUCED = {"sum", "mean", "amax", "amin", "var", "std", "prod", "softmax", "cumsum", "any", "all", "norm", "argmax"}
"""Methods whose first argument is an axis (of ``norm`` it is the order; its axis is ``dim``)."""
_NO_FORMULA = {"__post_init__", "dry_run", "_refuse", "check_trained", "gating", "submodule"}
"""Functions that check, refuse and attach."""

_GUARDS = {"_SLACK", "_SMALL", "_TINY", "tiny", "1e-09"}
"""What is added against rounding: less is as good, and its sign makes no difference."""
_NAMES = {"suffix", "_LEFT"}
"""Texts that names are put together with."""

_MORE = {"l1": "preset or filters", "magnitude": "quality or blocks"}
"""Method without a file of its own → names of its other tests."""
_OTHER = {"_schedules": ("test_steps.py",)}
"""File → further files of tests that concern it."""
_SLOW = "command_line or front_door or digits or refus"
"""Names of tests that train for long or that see no formula."""

EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    ("fpgm", "squares.sqrt().sum(1)", "the matrix of distances is symmetric"),
    ("fpgm", "columns.double() - columns.mean(0", "distances do not change with the origin"),
    ("pfa", "correlation.sum(0)", "correlations are symmetric"),
    ("nisp", "- one).sum(1)", "energies are symmetric"),
    ("lasso", "->  zz.sum(0)", "a Gram matrix is symmetric"),
    ("lasso", "self.scale.abs()", "it tells rounding from numbers, far apart"),
    ("obs", "w.abs()", "squares have the order of absolute values, and this keep is that of a dry run alone"),
    ("_example_gradients", "a - b", "it tells rounding from numbers, far apart"),
    ("_example_gradients", "b.norm()", "it tells rounding from numbers, far apart"),
    ("_inverse_hessian", "len(free) - removed", "leaving out what is removed saves time alone"),
    ("_reconstruction", "locations + outputs", "both ways give the same sum"),
    ("vardrop", "* normal_like(", "the noise is symmetric"),
)
"""File, what a mutant's description has in it, why the values are the same."""


class Mutant(NamedTuple):
    """One change of one file: the text that takes the place of a node's."""

    file: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"


def mutants(path: Path) -> list[Mutant]:
    """Returns every mutant of a file that is worth a run."""
    source = path.read_text()
    made = []
    for node, text in places(ast.parse(source), source):
        before = ast.get_source_segment(source, node)
        assert before is not None
        mutant = Mutant(path.stem, node.lineno, before, text, _replaced(source, node, text))
        if not any(mutant.file == file and code in str(mutant) for file, code, _ in EQUIVALENT):
            made.append(mutant)
    return made


def places(tree: ast.AST, source: str) -> Iterator[tuple[ast.expr, str]]:
    """Yields each expression of a formula that can be changed, and what it becomes."""
    for node in _formulas(tree):
        for change in (_sign, _norm, _axis):
            if isinstance(node, ast.expr) and (text := change(node)) is not None:
                yield node, text


def _formulas(node: ast.AST) -> Iterator[ast.AST]:
    """Walks through what computes, without messages, annotations, checks and what joins texts or lists."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.AnnAssign | ast.arguments):
        return
    if isinstance(node, ast.FunctionDef) and node.name in _NO_FORMULA:
        return
    if isinstance(node, ast.BinOp) and any(isinstance(n, ast.List | ast.Tuple | ast.Set) for n in ast.walk(node)):
        return
    if isinstance(node, ast.Subscript):
        node = node.value  # an index is no formula
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _formulas(child)


def _sign(node: ast.expr) -> str | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        sides = {ast.unparse(node.left), ast.unparse(node.right)}
        if sides & (_GUARDS | _NAMES) or any(re.match(r"_SLACK \*|torch\.finfo", side) for side in sides):
            return None
        op: ast.operator = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        return f"({ast.unparse(ast.BinOp(node.left, op, node.right))})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        return f"({ast.unparse(node.operand)})"
    return None


def _norm(node: ast.expr) -> str | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and ast.unparse(node.right) == "2":
        return f"abs({ast.unparse(node.left)})"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        of, name = ast.unparse(node.func.value), node.func.attr
        if name in ("abs", "square") and not node.args:
            return f"({of}).{'square' if name == 'abs' else 'abs'}()"
        if name == "norm" and not node.args:
            given = ", ".join(f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords if k.arg != "p")
            return f"({of}).norm(p=1{', ' if given else ''}{given})"
    return None


def _axis(node: ast.expr) -> str | None:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _REDUCED):
        return None
    call = ast.parse(ast.unparse(node), mode="eval").body
    assert isinstance(call, ast.Call)
    axes = call.args[:1] if node.func.attr != "norm" else []
    for axis in [*axes, *(keyword.value for keyword in call.keywords if keyword.arg in ("dim", "axis"))]:
        if isinstance(axis, ast.Constant) and type(axis.value) is int:
            axis.value = 1 if axis.value == 0 else axis.value - 1
            return ast.unparse(call)
    return None


def _replaced(source: str, node: ast.expr, text: str) -> str:
    """Returns the source with a node's text replaced, and the lines below it where they were."""
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    whole = source.encode()
    return (whole[:start] + text.encode() + whole[end:]).decode()


def users(file: str) -> list[str]:
    """Returns the methods whose tests concern a file: itself, or those that import it, directly or through another."""
    if not file.startswith("_"):
        return [file]
    importing = {path.stem for path in METHODS.glob("*.py") if re.search(rf"methods\.{file}\b", path.read_text())}
    return sorted({method for other in importing - {"__init__", file} for method in users(other)})


def survives(mutant: Mutant, package: Path) -> bool:
    """Runs the tests of the methods that use the file, up to the first that fails."""
    path = package / "topiarist" / "methods" / f"{mutant.file}.py"
    clean = path.read_text()
    path.write_text(mutant.source)
    try:
        return passes(users(mutant.file), package, _OTHER.get(mutant.file, ()))
    finally:
        path.write_text(clean)


def passes(methods: list[str], package: Path, more: tuple[str, ...] = ()) -> bool:
    """Whether the tests of some methods pass: their golden rows and laws first, then what each paper adds."""
    own = [path for method in methods if (path := ROOT / "tests" / "methods" / f"test_{method}.py").exists()]
    own += [ROOT / "tests" / file for file in more]
    names = [*methods, *(_MORE[method] for method in methods if method in _MORE)]
    names += [file.removesuffix(".py") for file in more]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    command += [
        str(ROOT / "tests" / "test_methods.py"),
        *map(str, own),
        "-k",
        f"({' or '.join(names)}) and not ({_SLOW})",
    ]
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode > 2:  # 1: a test fails; 2: the file cannot be read
        raise SystemExit(f"the tests of {', '.join(methods)} cannot run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def drawn(count: int, seed: int, only: str) -> list[Mutant]:
    """Draws mutants: the file first, so that long files do not crowd out short ones."""
    files = [path for path in sorted(METHODS.glob("*.py")) if path.stem not in ("__init__", "base")]
    by_file = {path.stem: found for path in files if re.search(only, path.stem) and (found := mutants(path))}
    random_ = random.Random(seed)
    for found in by_file.values():
        random_.shuffle(found)
    chosen: list[Mutant] = []
    while by_file and len(chosen) < count:
        file = random_.choice(sorted(by_file))
        chosen.append(by_file[file].pop())
        if not by_file[file]:
            del by_file[file]
    return chosen


def main(say: Callable[[str], object] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="mutants that are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="pattern of the files' names")
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    given = parser.parse_args()
    chosen = drawn(given.count, given.seed, given.only)
    if given.list:
        say("\n".join(map(str, chosen)))
        return 0
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        shutil.copytree(METHODS.parent, package / "topiarist", ignore=shutil.ignore_patterns("__pycache__"))
        for number, mutant in enumerate(chosen, 1):
            lives = survives(mutant, package)
            survivors += [mutant] if lives else []
            say(f"{number}/{len(chosen)} {'SURVIVES' if lives else 'caught'} {mutant}")
    say(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants are caught")
    say("\n".join(f"survivor {mutant}" for mutant in survivors))
    return int(len(chosen) - len(survivors) < WANTED * len(chosen))


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())

"""The module that is running, and the calls in it whose sizes or numbers a shim can correct.

A trace and a shim must count the same calls in the same order, so both count here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.hooks import RemovableHandle

Hook = Callable[[str, int, object], None]


class Ratio(NamedTuple):
    """What a size should be, to what the program asks for (which may be 0), both at the traced batch."""

    right: int
    asked: int


READS = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]
"""How a program reads a shape."""

SIZED = {"view", "reshape", "unflatten", "expand", "broadcast_to", "split", "split_with_sizes", "pad"}
NUMBERS = {"mul", "__mul__", "__rmul__", "div", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "true_divide"}
NUMBERS |= {"multiply", "divide", "mul_", "div_", "__imul__", "__itruediv__", "tensor"}


def kind_of(func: Any) -> str | None:
    """What a shim could correct: ``"sizes"``, ``"number"``, attention's ``"scale"``, the axes of a ``"squeeze"``."""
    if func is F.scaled_dot_product_attention:
        return "scale"
    name = getattr(func, "__name__", "")
    return "sizes" if name in SIZED else "number" if name in NUMBERS else "squeeze" if name == "squeeze" else None


def sizes_argument(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], int]:
    """The sizes that a sized call was given, and the output axis of the first one (for a split: the axis)."""
    name = func.__name__
    if name in ("view", "reshape", "expand", "broadcast_to"):
        given = kwargs.get("shape", kwargs.get("size", args[1:]))
        given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        return list(given), 0
    if name == "unflatten":
        dim, given = kwargs.get("dim", args[1] if len(args) > 1 else 0), kwargs.get("sizes", args[-1])
        return list(given), int(dim) % args[0].ndim
    if name == "pad":
        return list(kwargs.get("pad", args[1] if len(args) > 1 else ())), 0
    given = kwargs.get("split_size_or_sections", kwargs.get("split_size", kwargs.get("split_sizes", None)))
    given = args[1] if given is None else given
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    return list(given) if isinstance(given, (tuple, list)) else [given], int(dim) % args[0].ndim


def with_sizes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], ratios: Sequence[Ratio | None]) -> Any:
    """Runs a sized call with some of its sizes corrected: multiplied by a ratio, so that a batch in them may vary."""
    given, axis = sizes_argument(func, args, kwargs)
    right = list(given)
    for slot, ratio in enumerate(ratios):
        if ratio is not None and given[slot] != -1:
            right[slot] = given[slot] * ratio.right // ratio.asked if ratio.asked else ratio.right
    name = func.__name__
    if name in ("view", "reshape", "expand", "broadcast_to"):
        return func(args[0], right)
    if name == "unflatten":
        return func(args[0], axis, right)
    if name == "pad":
        rest = {key: value for key, value in kwargs.items() if key != "pad"}
        return func(args[0], right, *args[2:], **rest)
    listed = isinstance(args[1] if len(args) > 1 else next(iter(kwargs.values())), (tuple, list))
    return func(args[0], right if listed or name == "split_with_sizes" else right[0], axis)


ALONE = RLock()
"""Held while a model is traced or copied: for that time its modules carry integers that remember."""


class ModuleStack:
    """Follows which module's forward is running, by hooks; counts its calls and the correctable ones inside.

    A context, at whose end the hooks are taken off.
    """

    def __init__(self, model: nn.Module, on_enter: Hook | None = None, on_exit: Hook | None = None) -> None:
        self.names = [""]
        self.calls: Counter[str] = Counter()
        self.kinds: list[list[str]] = [[]]
        self.reads = [0]
        self.mixed: list[Counter[str]] = [Counter()]
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():

            def enter(_: nn.Module, args: Any, name: str = name) -> None:
                if on_enter is not None:
                    on_enter(name, self.calls[name], args)
                self.names.append(name)
                self.kinds.append([])
                self.reads.append(0)
                self.mixed.append(Counter())

            def leave(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if on_exit is not None:
                    on_exit(name, self.calls[name], output)
                self.calls[name] += 1
                self.names.pop()
                self.kinds.pop()
                self.reads.pop()
                self.mixed.pop()

            self._handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    @property
    def top(self) -> str:
        """Name of the innermost running module."""
        return self.names[-1]

    def count(self, kind: str) -> int:
        """Counts a correctable call in every running module; returns its number in the innermost one."""
        for running in self.kinds:
            running.append(kind)
        return len(self.kinds[-1])

    def read(self) -> int:
        """Counts a reading of a shape in every running module; returns its number in the innermost one."""
        self.reads = [number + 1 for number in self.reads]
        return self.reads[-1]

    def mix(self, kind: str) -> None:
        """Counts an operator that mixes positions in every running module."""
        for running in self.mixed:
            running[kind] += 1

    def __enter__(self) -> ModuleStack:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Drops what networks cache for eval mode, before and after, by train() and eval(); restores the modes."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.eval()
    try:
        yield
    finally:
        model.train()
        for module, training in modes:
            module.training = training


def line_of_code() -> str:
    """``file:line`` of the user's code that is running: the innermost frame outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        ours = name.startswith(("topiarist.graph.", "topiarist.surgery."))
        if not ours and not name.startswith("torch.") and name != "torch":
            return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


NORMS = {"native_layer_norm": "layer", "_fused_rms_norm": "layer", "rms_norm": "layer", "native_group_norm": "group"}
REDUCING = {"mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "prod"}
REDUCING |= {"logsumexp"}
PRODUCTS = {"convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "dot", "addmv"}
MIXING = NORMS | dict.fromkeys(REDUCING, "reduction")
MIXING |= dict.fromkeys(PRODUCTS, "product") | {"_weight_norm_interface": "weight norm"}


def mixing_kind(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """How an operator mixes the positions of an axis, where dead ones must be left out; None where it does not."""
    name = func.overloadpacket.__name__
    if "batch_norm" in name:
        names = [argument.name for argument in func._schema.arguments]
        return "batch" if in_training(func, {**dict(zip(names, args, strict=False)), **kwargs}) else None
    return "product" if "scaled_dot_product" in name else MIXING.get(name)


def in_training(func: OpOverload, given: Mapping[str, Any]) -> bool:
    """Whether a batch norm computes its statistics from its input."""
    return bool(given.get("training", given.get("train", "no_update" not in func.overloadpacket.__name__)))

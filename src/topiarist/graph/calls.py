"""The module that is running, and the calls in it whose sizes or numbers a shim can correct.

A trace and a shim must count the same calls in the same order, so both count here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.hooks import RemovableHandle

from topiarist.graph.inputs import Arguments, Keywords, call_model

Hook = Callable[[str, int, object], None]


class Ratio(NamedTuple):
    """What a size should be, to what the program asks for (which may be 0), both at the traced batch."""

    right: int
    asked: int


class SizedCall(NamedTuple):
    """The sizes of a call, the axis of the output that the first is of (or that is split), and how to make the call."""

    sizes: list[Any]
    axis: int
    call: Callable[[list[Any]], Any]


READS = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]
"""How a program reads a shape."""

VIEWS = {"view", "reshape", "expand", "broadcast_to"}
SIZED = VIEWS | {"unflatten", "split", "split_with_sizes", "pad"}
NUMBERS = {"mul", "__mul__", "__rmul__", "div", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "true_divide"}
NUMBERS |= {"multiply", "divide", "mul_", "div_", "__imul__", "__itruediv__", "tensor"}


def kind_of(func: Any) -> str | None:
    """Returns what a shim could correct: sizes, a number, attention's scale, or the axes of a squeeze."""
    if func is F.scaled_dot_product_attention:
        return "scale"
    name = getattr(func, "__name__", "")
    return "sizes" if name in SIZED else "number" if name in NUMBERS else "squeeze" if name == "squeeze" else None


def sized_call(func: Any, args: Arguments, kwargs: Keywords) -> SizedCall:
    """Returns what a sized call was given, and how to make it with other sizes."""
    name, x = func.__name__, args[0]
    if name in VIEWS:
        given = kwargs.get("shape", kwargs.get("size", args[1:]))
        given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        return SizedCall(list(given), 0, lambda sizes: func(x, sizes))
    if name == "unflatten":
        axis = int(kwargs.get("dim", args[1] if len(args) > 1 else 0)) % x.ndim
        return SizedCall(list(kwargs.get("sizes", args[-1])), axis, lambda sizes: func(x, axis, sizes))
    if name == "pad":
        given = kwargs.get("pad", args[1] if len(args) > 1 else ())
        rest = {key: value for key, value in kwargs.items() if key != "pad"}
        return SizedCall(list(given), 0, lambda sizes: func(x, sizes, *args[2:], **rest))
    given = kwargs.get("split_size_or_sections", kwargs.get("split_size", kwargs.get("split_sizes")))
    given = args[1] if given is None else given
    axis = int(kwargs.get("dim", args[2] if len(args) > 2 else 0)) % x.ndim
    if isinstance(given, (tuple, list)):
        return SizedCall(list(given), axis, lambda sizes: func(x, sizes, axis))
    return SizedCall([given], axis, lambda sizes: func(x, sizes[0], axis))


def with_sizes(func: Any, args: Arguments, kwargs: Keywords, ratios: Sequence[Ratio | None]) -> Any:
    """Runs a sized call with some of its sizes corrected: multiplied by a ratio, so that a batch in them may vary."""
    sizes, _, call = sized_call(func, args, kwargs)
    for slot, ratio in enumerate(ratios):
        if ratio is not None and sizes[slot] != -1:
            sizes[slot] = sizes[slot] * ratio.right // ratio.asked if ratio.asked else ratio.right
    return call(sizes)


ALONE = RLock()
"""Held while a model is traced or copied: for that time its modules carry integers that remember."""


@dataclass(eq=False)
class RunningModule:
    """A module whose forward is running: correctable calls, readings of shapes and mixing operators in it so far."""

    name: str
    kinds: list[str] = field(default_factory=list)
    reads: int = 0
    mixed: Counter[str] = field(default_factory=Counter)


class ModuleStack:
    """Follows which module's forward is running, by hooks; counts its calls and the correctable ones inside.

    A context, at whose end the hooks are taken off.
    """

    def __init__(self, model: nn.Module, on_enter: Hook | None = None, on_exit: Hook | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.running = [RunningModule("")]
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():

            def enter(_: nn.Module, args: object, name: str = name) -> None:
                if on_enter is not None:
                    on_enter(name, self.calls[name], args)
                self.running.append(RunningModule(name))

            def leave(_: nn.Module, args: object, output: object, name: str = name) -> None:
                if on_exit is not None:
                    on_exit(name, self.calls[name], output)
                self.calls[name] += 1
                self.running.pop()

            self._handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    @property
    def top(self) -> str:
        """Returns the name of the innermost running module."""
        return self.running[-1].name

    def count(self, kind: str) -> int:
        """Counts a correctable call in every running module; returns its number in the innermost one."""
        for module in self.running:
            module.kinds.append(kind)
        return len(self.running[-1].kinds)

    def read(self) -> int:
        """Counts a reading of a shape in every running module; returns its number in the innermost one."""
        for module in self.running:
            module.reads += 1
        return self.running[-1].reads

    def mix(self, kind: str) -> None:
        """Counts an operator that mixes positions in every running module."""
        for module in self.running:
            module.mixed[kind] += 1

    def __enter__(self) -> ModuleStack:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


class _FastPath:
    """Torch's switch for fused encoder layers, which all threads share: off while any of them needs it off."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = Lock(), 0, True

    def off(self) -> None:
        with self.lock:
            if not self.users:
                self.before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self.users += 1

    def release(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                torch.backends.mha.set_fastpath_enabled(self.before)


_FAST_PATH = _FastPath()


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Switches off torch's fused encoder layers, which bypass the modules' own forward; the last one out restores."""
    _FAST_PATH.off()
    try:
        yield
    finally:
        _FAST_PATH.release()


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
    """Returns ``file:line`` of the model's code that is running: the innermost frame outside torch and here."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not call_model.__code__:
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


def mixing_kind(func: OpOverload, args: Arguments, kwargs: Keywords) -> str | None:
    """Returns how an operator mixes positions, so that dead ones must be left out; ``None`` where it does not."""
    name = func.overloadpacket.__name__
    if "batch_norm" in name:
        names = [argument.name for argument in func._schema.arguments]
        return "batch" if in_training(func, {**dict(zip(names, args, strict=False)), **kwargs}) else None
    return "product" if "scaled_dot_product" in name else MIXING.get(name)


def in_training(func: OpOverload, given: Mapping[str, Any]) -> bool:
    """Returns whether a batch norm computes its statistics from its input."""
    return bool(given.get("training", given.get("train", "no_update" not in func.overloadpacket.__name__)))

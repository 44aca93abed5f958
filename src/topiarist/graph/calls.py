"""The calls whose sizes or numbers a correction can put right, and the modules that are running."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.hooks import RemovableHandle

from topiarist.graph.inputs import Arguments, Keywords, modules_of

Hook = Callable[[str, int, object], None]
Enter = Callable[[str, int, Arguments, Keywords], None]


class SizedCall(NamedTuple):
    """The sizes of a call, the axis of the output that the first is of (or that is split), and where they begin."""

    sizes: list[Any]
    axis: int
    at: int


READS = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]
"""How a program reads a shape."""

VIEWS = {"view", "reshape", "expand", "broadcast_to"}
INFERRING = {"view", "reshape", "unflatten"}
"""Calls that work out one size, given as -1."""
SIZED = VIEWS | {"unflatten", "split", "split_with_sizes", "pad"}
FILLS = {"zeros", "ones", "full", "empty"}
"""Calls that make a tensor of given sizes, all of whose entries are alike; ``x.new_zeros`` and its like too."""
NUMBERS = {"mul", "__mul__", "__rmul__", "div", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "true_divide"}
NUMBERS |= {"multiply", "divide", "mul_", "div_", "__imul__", "__itruediv__", "tensor"}
SIZE_KEYWORDS = {"shape", "size", "sizes", "split_size_or_sections", "split_size", "split_sizes", "pad"}
"""Keywords by which a sized call is given its sizes."""


def kind_of(func: Any) -> str | None:
    """Returns what a correction could put right: sizes, a number, attention's scale, or the axes of a squeeze."""
    if func is F.scaled_dot_product_attention:
        return "scale"
    name = getattr(func, "__name__", "")
    if name.removeprefix("new_") in FILLS:
        return "fill"
    return "sizes" if name in SIZED else "number" if name in NUMBERS else "squeeze" if name == "squeeze" else None


def sized_call(func: Any, args: Arguments, kwargs: Keywords) -> SizedCall:
    """Returns what a sized call was given; its arguments begin with the tensor, if it takes one."""
    name = func.__name__
    at = 0 if name in FILLS else 2 if name == "unflatten" else 1
    given: Any = next((value for key, value in kwargs.items() if key in SIZE_KEYWORDS), None)
    if given is None:
        several = name in VIEWS or name.removeprefix("new_") in FILLS
        given = args[at:] if several and not isinstance(args[at], (tuple, list)) else args[at]
    sizes = list(given) if isinstance(given, (tuple, list)) else [given]
    if name not in ("unflatten", "split", "split_with_sizes"):
        return SizedCall(sizes, 0, at)
    position = 1 if name == "unflatten" else 2
    axis = int(kwargs.get("dim", args[position] if len(args) > position else 0)) % args[0].ndim
    return SizedCall(sizes, axis, at)


ALONE = RLock()
"""Held while a model is traced or copied: for that time its modules carry integers that remember."""


class ModuleStack:
    """Follows which module's forward is running, by hooks, and counts its calls.

    A context, at whose end the hooks are taken off.
    """

    def __init__(self, model: nn.Module, on_enter: Enter | None = None, on_exit: Hook | None = None) -> None:
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.running = [""]
        self._handles: list[RemovableHandle] = []
        for name, module in modules_of(model).items():

            def enter(_: nn.Module, args: Arguments, kwargs: Keywords, name: str = name) -> None:
                if on_enter is not None:
                    on_enter(name, self.calls[name], args, kwargs)
                self.running.append(name)

            def leave(_: nn.Module, args: object, output: object, name: str = name) -> None:
                if on_exit is not None:
                    on_exit(name, self.calls[name], output)
                self.calls[name] += 1
                self.running.pop()

            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave),
            ]

    @property
    def top(self) -> str:
        """Returns the name of the innermost running module."""
        return self.running[-1]

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
def garbage_kept() -> Iterator[None]:
    """Context in which Python looks for no cycles: tracing and copying make many objects and hardly any of these."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Drops what networks cache for eval mode, before and after, by train() and eval(); restores the modes."""
    modes = [(module, module.training) for module in modules_of(model).values()]
    caching = any((type(m).train, type(m).eval) != (nn.Module.train, nn.Module.eval) for m, _ in modes)
    if caching:
        model.train()
    model.eval()
    try:
        yield
    finally:
        if caching:
            model.train()
        for module, training in modes:
            module.training = training


NORMS = {"native_layer_norm": "layer", "_fused_rms_norm": "layer", "rms_norm": "layer", "native_group_norm": "group"}
REDUCING = {"mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "prod"}
REDUCING |= {"logsumexp", "nansum", "count_nonzero", "aminmax", "max", "min", "any", "all", "argmax", "argmin"}
PRODUCTS = {"convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "dot", "vdot", "addmv", "_grouped_mm"}
MIXING = NORMS | dict.fromkeys(REDUCING, "reduction")
MIXING |= dict.fromkeys(PRODUCTS, "product") | {"_weight_norm_interface": "weight norm"}


def mixing_kind(func: OpOverload, args: Arguments, kwargs: Keywords) -> str | None:
    """Returns how an operator mixes positions, so that dead ones must be left out; ``None`` where it does not."""
    if func.namespace != "aten":
        return None
    name = func.overloadpacket.__name__
    if "batch_norm" in name:
        names = [argument.name for argument in func._schema.arguments]
        return "batch" if in_training(func, {**dict(zip(names, args, strict=False)), **kwargs}) else None
    if name in ("max", "min") and len([value for value in args if isinstance(value, Tensor)]) > 1:
        return None  # the larger of two tensors
    return "product" if "scaled_dot_product" in name else MIXING.get(name)


def in_training(func: OpOverload, given: Mapping[str, Any]) -> bool:
    """Returns whether a batch norm computes its statistics from its input."""
    return bool(given.get("training", given.get("train", "no_update" not in func.overloadpacket.__name__)))

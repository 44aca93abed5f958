"""A network made linear, with the absolute values of its weights: how importance is propagated.

While `Linearised` is open, a model's calls are replaced so that the gradient of any response propagates importance: it
is never negative, and it depends on the weights and on the shapes of the data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from topiarist.errors import TopiaristError
from topiarist.graph import tensors_in
from topiarist.measure import Args, Func, FunctionMode, Kwargs

_LAYERS = {"linear", *(f"conv{transposed}{dims}d" for transposed in ("", "_transpose") for dims in (1, 2, 3))}
_PRODUCTS = {"mul", "multiply", "rmul", "matmul", "rmatmul", "mm", "bmm"}
_DIVISIONS = {"div", "divide", "true_divide", "truediv"}
_SUMS = {"sub", "subtract", "rsub"}
_LARGER = {"maximum", "minimum", "fmax", "fmin"}
_WITH_SUM = {"addmm": torch.mm, "addbmm": torch.bmm, "baddbmm": torch.bmm}
_THROUGH = {
    "alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout",
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm", "normalize", "rms_norm",
    "celu", "elu", "erf", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid",
    "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign",
    "tanh", "tanhshrink", "threshold", "log_softmax", "softmax", "softmin",
    "abs", "absolute", "clamp", "clamp_max", "clamp_min", "clip", "cos", "exp", "expm1", "log", "log1p", "neg",
    "negative", "pow", "rdiv", "reciprocal", "rsqrt", "rtruediv", "sin", "sqrt", "square",
}  # fmt: skip


class LastLayer(FunctionMode):
    """Remembers what the last convolution or linear layer that ran was given.

    Attributes:
        response: the layer's input, which may still have a gradient; ``None`` before any layer ran.
        axis: its axis of channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.response: Tensor | None = None
        self.axis = 1

    def call(self, name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """Remembers the call's input, and makes it."""
        if name in _LAYERS:
            self.response = args[0] if args else kwargs["input"]
            dims = 0 if name == "linear" else int(name[-2])
            self.axis = self.response.ndim - dims - 1
        return self.compute(name, func, args, kwargs)

    def compute(self, name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """Makes the call."""
        return func(*args, **kwargs)


class Linearised(LastLayer):
    """Makes every call that depends on the data linear, with weights and constants at their absolute values.

    Layers lose their bias. Activations and normalisations pass through. Pooling, of whatever kind, is a mean over its
    window. A difference is a sum. A product of responses ``a b`` gives its score to both factors, spread uniformly
    over what it contracts: the scores of attention reach values, keys and queries. Other calls are made as they are.
    What depends on the data is what requires a gradient, so the parameters must not.
    """

    def compute(self, name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
        """Makes the call, or its replacement where some argument depends on the data."""
        if name in ("embedding", "embedding_bag"):
            return func(*args, **kwargs).requires_grad_().clone()
        if not any(tensor.requires_grad for tensor in tensors_in([*args, *kwargs.values()])):
            return func(*args, **kwargs)
        result = _replaced(name, func, args, kwargs)
        written = getattr(func, "__name__", "").endswith("_") and not func.__name__.endswith("__")
        return args[0].copy_(result) if written and result is not args[0] else result


def _replaced(name: str, func: Func, args: Args, kwargs: Kwargs) -> Any:
    if name in _LAYERS:
        return _layer(func, args, kwargs)
    if name in _THROUGH:
        return args[0] if args else kwargs["input"]
    if name in _PRODUCTS:
        return _product(torch.mm if name == "mm" else func, *args, *kwargs.values())
    if name in _SUMS:
        return args[0] + args[1]
    if name in _LARGER:
        return (args[0] + args[1]) / 2
    if name in _OTHERS:
        return _OTHERS[name](*args, **kwargs)
    if name in _DIVISIONS:
        return _quotient(*args[:2])
    if name in _WITH_SUM:
        return args[0] + _product(_WITH_SUM[name], *args[1:3])
    return func(*args, **kwargs)


def _layer(func: Func, args: Args, kwargs: Kwargs) -> Tensor:
    """Computes a convolution or linear layer with ``|W|`` and no bias."""
    given = dict(zip(("input", "weight"), args, strict=False)) | dict(kwargs)
    given.pop("bias", None)
    x, weight = given.pop("input"), given.pop("weight")
    return _product(lambda x, weight: func(x, weight, None, *args[3:], **given), x, weight)


def _product(multiply: Callable[..., Tensor], *factors: Any) -> Tensor:
    """Sums over the responses among the factors the product with ones for the others, a mean where it contracts.

    One response alone is multiplied by the constants' absolute values.
    """
    responses = [at for at, factor in enumerate(factors) if _is_response(factor)]
    dtype = factors[responses[0]].dtype
    if len(responses) == 1:
        return multiply(*(f if _is_response(f) else _magnitude(f, dtype) for f in factors))
    ones = [torch.ones_like(f) if _is_response(f) else _magnitude(f, dtype) for f in factors]
    size = multiply(*(torch.ones_like(f) if isinstance(f, Tensor) else 1 for f in ones))
    terms = [multiply(*ones[:at], factors[at], *ones[at + 1 :]) for at in responses]
    return torch.stack(terms).sum(0) / size


def _quotient(upper: Any, lower: Any) -> Any:
    """Divides a response by a constant; divided by a response, which normalises it, it passes through."""
    if not _is_response(lower):
        return upper / _magnitude(lower, upper.dtype)
    return upper + torch.zeros_like(lower) if _is_response(upper) else torch.zeros_like(upper) + lower


def _is_response(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _magnitude(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype).abs() if isinstance(value, Tensor) else abs(value)


def _einsum(equation: str, *operands: Any) -> Tensor:
    factors = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    return _product(lambda *each: torch.einsum(equation, *each), *factors)


def _pool(mean: Callable[..., Tensor]) -> Func:
    """Returns max pooling as a mean over the window's locations, without those of the padding."""

    def pool(
        x: Tensor, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False, **more: Any
    ) -> Any:
        if more.get("return_indices") or {*(dilation if isinstance(dilation, Sequence) else (dilation,))} != {1}:
            raise TopiaristError(
                "nisp propagates scores through plain max pooling only: "
                "use another method for a network that dilates it or needs its indices"
            )
        more = {"padding": padding, "ceil_mode": more.get("ceil_mode", ceil), "count_include_pad": False}
        return mean(x, size, stride or size, **more)

    return pool


def _adaptive(mean: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, size, *_, **__: mean(x, size)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: object, enable_gqa: bool = False, **__: object) -> Tensor:
    """Computes attention without mask, scale and softmax: two products."""
    if enable_gqa:
        times = query.size(-3) // key.size(-3)
        key, value = (x.repeat_interleave(times, -3) for x in (key, value))
    return _product(torch.matmul, _product(torch.matmul, query, key.transpose(-2, -1)), value)


def _multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Computes multi-head attention ``(length, examples, width)`` by its layers and products."""
    given = signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    separate = given.get("use_separate_proj_weight", False)
    weights = [given[f"{x}_proj_weight"] for x in "qkv"] if separate else given["in_proj_weight"].chunk(3)
    qkv = [F.linear(given[x], w.abs()) for x, w in zip(("query", "key", "value"), weights, strict=True)]
    heads = (each.unflatten(-1, (given["num_heads"], -1)).transpose(0, -2) for each in qkv)
    mixed = _attention(*heads).transpose(0, -2).flatten(-2)
    return F.linear(mixed, given["out_proj_weight"].abs()), None


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    left, right = x.chunk(2, dim)
    return left + right


_OTHERS: Mapping[str, Func] = {
    "amax": torch.mean,
    "einsum": _einsum,
    "glu": _glu,
    "multi_head_attention_forward": _multi_head,
    "scaled_dot_product_attention": _attention,
    "max_pool1d": _pool(F.avg_pool1d),
    "max_pool2d": _pool(F.avg_pool2d),
    "max_pool3d": _pool(F.avg_pool3d),
    "adaptive_max_pool1d": _adaptive(F.adaptive_avg_pool1d),
    "adaptive_max_pool2d": _adaptive(F.adaptive_avg_pool2d),
    "adaptive_max_pool3d": _adaptive(F.adaptive_avg_pool3d),
}

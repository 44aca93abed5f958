"""Activations of floats, one or a vector of them: what no library computes inside a kernel.

Exponentials are 2^n · p(r) with n = round(x / ln 2) and a polynomial p for |r| <= ln 2 / 2; the error function is that
of Abramowitz and Stegun, 7.1.26, to 2e-7. What is no number passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from topiarist.sparse.kernels.emit import I32, Kernel

LARGEST = 87.0
"""Of exponents: e to this fits a float, and so does its inverse."""
LN2 = (0.693359375, -2.12194440e-4)
"""The logarithm of 2 in two parts, so that n times it is exact."""
ERF = (0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
TANH = (2 * math.sqrt(2 / math.pi), 0.044715)


def activated(k: Kernel, x: Any, name: str) -> Any:
    """Writes an activation; none where the name is empty."""
    return _WRITTEN[name](k, x) if name else x


def exp(k: Kernel, x: Any) -> Any:
    """Writes e^x; 0 below −87, and e^87 above."""
    b = k.builder
    vanishes = b.fcmp_ordered("<", x, k.like(x, -LARGEST))
    x = k.at_most(k.at_least(x, -LARGEST), LARGEST)
    n = k.intrinsic("rint", b.fmul(x, k.like(x, 1 / math.log(2))))
    for part in LN2:
        x = k.multiply_add(n, k.like(x, -part), x)
    total = k.like(x, 1 / math.factorial(7))
    for power in range(6, -1, -1):
        total = k.multiply_add(total, x, k.like(x, 1 / math.factorial(power)))
    integers = ir.VectorType(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32
    exponent = b.shl(b.add(b.fptosi(n, integers), _integer(integers, 127)), _integer(integers, 23))
    return b.select(vanishes, k.like(x, 0.0), b.fmul(total, b.bitcast(exponent, x.type)))


def _integer(kind: Any, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _relu(k: Kernel, x: Any) -> Any:
    return k.at_least(x, 0.0)


def _relu6(k: Kernel, x: Any) -> Any:
    return k.at_most(k.at_least(x, 0.0), 6.0)


def _sigmoid(k: Kernel, x: Any) -> Any:
    """1 / (1 + e^−x)."""
    one = k.like(x, 1.0)
    return k.builder.fdiv(one, k.builder.fadd(one, exp(k, k.builder.fneg(x))))


def _silu(k: Kernel, x: Any) -> Any:
    """SiLU: x · sigmoid(x)."""
    return k.builder.fmul(x, _sigmoid(k, x))


def _hardswish(k: Kernel, x: Any) -> Any:
    """Hard swish: x · relu6(x + 3) / 6."""
    b = k.builder
    return b.fmul(x, b.fmul(_relu6(k, b.fadd(x, k.like(x, 3.0))), k.like(x, 1 / 6)))


def _gelu(k: Kernel, x: Any) -> Any:
    """GELU: x · (1 + erf(x / √2)) / 2; with h = erfc(|x| / √2) / 2 that is x · (1 − h) or x · h."""
    b, (p, coefficients) = k.builder, ERF
    z = b.fmul(k.intrinsic("fabs", x), k.like(x, math.sqrt(0.5)))
    t = b.fdiv(k.like(x, 1.0), k.multiply_add(z, k.like(x, p), k.like(x, 1.0)))
    total = k.like(x, coefficients[-1] / 2)
    for coefficient in coefficients[-2::-1]:
        total = k.multiply_add(total, t, k.like(x, coefficient / 2))
    half = b.fmul(b.fmul(total, t), exp(k, b.fneg(b.fmul(z, z))))
    negative = b.fcmp_ordered("<", x, k.like(x, 0.0))
    return b.fmul(x, b.select(negative, half, b.fsub(k.like(x, 1.0), half)))


def _gelu_tanh(k: Kernel, x: Any) -> Any:
    """GELU by tanh: x · sigmoid(2 √(2/π) (x + 0.044715 x³))."""
    b, (scale, cubic) = k.builder, TANH
    inner = b.fmul(x, k.multiply_add(b.fmul(x, x), k.like(x, scale * cubic), k.like(x, scale)))
    return b.fmul(x, _sigmoid(k, inner))


_WRITTEN: dict[str, Callable[[Kernel, Any], Any]] = {
    "relu": _relu,
    "relu6": _relu6,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "hardswish": _hardswish,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}

"""Optimal Brain Surgeon's algebra: what removing weights costs by an inverse Hessian, and how the others make up."""

from __future__ import annotations

import torch
from torch import Tensor

from topiarist.errors import TopiaristError

_NUMBERS = 2**25
"""Numbers that may be in memory at once in copies of the inverse."""

_RTOL = 1e-12
"""A direction of less curvature than this, against the strongest, is rounding and not data."""


def damped(H: Tensor, damping: float) -> Tensor:
    """Returns ``H + damping * mean(diag H) I``; the identity where nothing was ever read."""
    scale = H.diagonal().mean()
    eye = torch.eye(len(H), dtype=H.dtype, device=H.device)
    return H + damping * scale * eye if scale > 0 else eye


def inverse(H: Tensor) -> Tensor:
    """Returns ``H^-1``.

    Raises:
        TopiaristError: it is not positive definite.
    """
    return torch.cholesky_inverse(_factor(H))


def removal_costs(w: Tensor, H_inv: Tensor, free: Tensor | None = None) -> Tensor:
    """Removes one weight after the other, each time the one that costs least, and adjusts the others.

    ``q = argmin w_q^2 / (2 [H^-1]_qq)``, ``w -= w_q / [H^-1]_qq H^-1 e_q``, and row and column ``q`` leave the inverse:
    ``H^-1 -= H^-1 e_q e_q^T H^-1 / [H^-1]_qq``.

    Args:
        w: ``(rows, n)``, each row by itself.
        H_inv: ``(n, n)``, of every row.
        free: bool ``(n,)``, what may be removed; all unless given.

    Returns:
        Float64 ``(rows, n)``: what each removal cost, or as much as a costlier one before it, so that ascending numbers
        are the order in which the weights of a row are removed. Infinite where they may not be.
    """
    step = max(1, _NUMBERS // H_inv.numel())
    free = torch.ones(len(H_inv), dtype=torch.bool, device=w.device) if free is None else free
    return torch.cat([_removal_costs(part, H_inv, free) for part in w.split(step)])


def _removal_costs(w: Tensor, H_inv: Tensor, free: Tensor) -> Tensor:
    w, inv = w.clone(), H_inv.repeat(len(w), 1, 1)
    row = torch.arange(len(w), device=w.device)
    column = torch.arange(len(free), device=w.device).repeat(len(w), 1)  # of what the arrays hold
    kept = torch.ones_like(w, dtype=torch.bool)
    cost = torch.full_like(w, torch.inf)
    level = torch.full_like(w[:, 0], -torch.inf)
    for removed in range(int(free.sum())):
        if 2 * (len(free) - removed) <= w.shape[1]:  # half of the rows and columns are removed: leave them out
            rest = kept.nonzero()[:, 1].view(len(w), -1)
            w, column, kept = (values.gather(1, rest) for values in (w, column, kept))
            inv = inv[row[:, None, None], rest[:, :, None], rest[:, None, :]]
        L = torch.where(kept & free[column], w.square() / (2 * inv.diagonal(dim1=1, dim2=2)), torch.inf)
        q = L.argmin(1)
        level = torch.maximum(L[row, q], torch.nextafter(level, torch.full_like(level, torch.inf)))
        cost[row, column[row, q]] = level
        kept[row, q] = False
        H_inv_e = inv[row, :, q]
        scaled = H_inv_e / inv[row, q, q][:, None]
        w -= w[row, q][:, None] * scaled
        inv.baddbmm_(H_inv_e[:, :, None], scaled[:, None, :], alpha=-1)
    return cost


def adjusted(w: Tensor, keep: Tensor, H: Tensor) -> Tensor:
    """Adjusts the kept weights to make up for the others: the exact minimum of ``dw^T H dw`` without these.

    ``w_S + H_SS^-1 H_ST w_T`` with ``S`` the kept and ``T`` the removed ones, which all updates of the removals add up
    to, in whatever order.

    Args:
        w: ``(n,)``.
        keep: bool ``(n,)``.
        H: ``(n, n)``.

    Raises:
        TopiaristError: ``H_SS`` is not positive definite.
    """
    result = torch.zeros_like(w)
    if keep.any():
        change = torch.cholesky_solve((H[keep][:, ~keep] @ w[~keep])[:, None], _factor(H[keep][:, keep]))
        result[keep] = w[keep] + change[:, 0]
    return result


def _factor(H: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(H)
    if int(info) or not factor.diagonal().square().min() > _RTOL * H.diagonal().max():
        raise TopiaristError("the Hessian has no inverse: raise the damping, or use more data, all of it finite")
    return factor

"""Where the nonzero weights are, row by row: earlier rows predict which columns the next one has.

Pruned layers have columns (inputs) that few weights read. The chance of a nonzero in column j of row i is

    P_ij = (a * p + c_ij) / (a + i),    c_ij nonzeros in column j of the i rows before, p their share in the tensor,

which the decoder knows as well when it reaches row i, so only the strength a of the prior has to be stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from topiarist.compress.ans import Floats, Ints, Reader, Writer

STRENGTHS = (1, 4, 16, 64)
_RAREST = 2.0**-20


class Rows:
    """The mask of a matrix, coded row by row.

    Args:
        mask: the nonzero weights, ``(rows, columns)``, neither all nor none of them.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self._mask = mask
        before = np.cumsum(mask, axis=0, dtype=np.int64) - mask
        share = int(mask.sum()) / mask.size
        choices = [_chances(before, np.arange(len(mask))[:, None], share, a) for a in STRENGTHS]
        costs = [-float(np.log2(np.where(mask, p, 1 - p)).sum()) for p in choices]
        self._best = int(np.argmin(costs))
        self._choice = choices[self._best]
        self.bits = costs[self._best] + 2

    def put(self, writer: Writer) -> None:
        """Writes it."""
        writer.put_uniform(np.array([self._best]), np.array([len(STRENGTHS)]), side=True)
        writer.put_flags(self._mask.ravel(), self._choice.ravel())

    @staticmethod
    def take(reader: Reader, rows: int, columns: int, share: float) -> NDArray[np.bool_]:
        """Reads a mask of this shape, of whose entries this share is true."""
        strength = STRENGTHS[int(reader.take_uniform(np.array([len(STRENGTHS)]))[0])]
        mask = np.empty((rows, columns), dtype=np.bool_)
        before = np.zeros(columns, dtype=np.int64)
        for i in range(rows):
            mask[i] = reader.take_flags(_chances(before, i, share, strength))
            before += mask[i]
        return mask


def promising(mask: NDArray[np.bool_]) -> bool:
    """Returns whether columns differ so much that `Rows` may pay: an ideal code for each column, or one for all."""
    rows, columns = mask.shape
    ones = mask.sum(axis=0, dtype=np.int64)
    apart = float((rows * _binary(ones / rows)).sum()) + columns * np.log2(rows + 1) / 2
    return rows > 1 and apart < 0.99 * mask.size * float(_binary(np.array([ones.sum() / mask.size]))[0])


def _chances(before: Ints, row: Ints | int, share: float, strength: int) -> Floats:
    return np.clip((strength * share + before) / (strength + row), _RAREST, 1 - _RAREST)


def _binary(p: Floats) -> Floats:
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return -(q * np.log2(q) + (1 - q) * np.log2(1 - q))

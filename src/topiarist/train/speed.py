"""How a training computes: the same steps, rounded otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from topiarist.errors import TopiaristError
from topiarist.files import check_fields

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Of Lightning Fabric, those that leave the weights as they are: 32 bits."""

_SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Speed:
    """How `topiarist.fit` computes: the same steps, rounded otherwise (in 16 bits by far more).

    Attributes:
        precision: of Lightning Fabric, as ``"bf16-mixed"`` (see `PRECISIONS`).
        channels_last: whether the channels of images lie side by side in memory.
        compiled: whether `torch.compile` makes the network's training step.

    Raises:
        TopiaristError: a value is of a wrong type, or there is no such precision.
    """

    precision: str = "32-true"
    channels_last: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "the speed")
        if _SHORT.get(self.precision, self.precision) not in PRECISIONS:
            raise TopiaristError(f"there is no precision {self.precision!r}: choose from {', '.join(PRECISIONS)}")

"""How a training is computed: where, how precisely, and how often it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from topiarist.errors import TopiaristError
from topiarist.files import check_fields, shown, suggestion

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Of Lightning Fabric, those that leave the weights in 32 bits."""

_SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Speed:
    """How `topiarist.fit` computes: the same steps, but for rounding (in 16 bits by far more).

    Attributes:
        precision: of Lightning Fabric: ``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"``.
        channels_last: hold weights of convolutions and images with their channels side by side in memory, which tensor
            cores and many CPU kernels prefer. Where a method draws noise for each activation (vardrop), which noise
            falls on which activation changes as well.
        compiled: let `torch.compile` make forward and backward, with CUDA graphs on a GPU: small networks spend their
            time on launching kernels.
        accelerator: of Fabric: ``"auto"``, ``"cpu"``, ``"gpu"``, ….
        devices: of Fabric: how many, or which.
        evaluate_every: the test accuracy is measured after every so many epochs, and after the last; 0: after the last.

    Raises:
        TopiaristError: a value is of a wrong type or out of its range.
    """

    precision: str = "32-true"
    channels_last: bool = False
    compiled: bool = False
    accelerator: str = "auto"
    devices: int | str = 1
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "the speed")
        if _SHORT.get(self.precision, self.precision) not in PRECISIONS:
            choice = suggestion(self.precision, PRECISIONS)
            raise TopiaristError(f"there is no precision {shown(self.precision)}: {choice}")
        if self.evaluate_every < 0:
            raise TopiaristError(f"evaluate_every of the speed must be 0 or more, but got {self.evaluate_every}")

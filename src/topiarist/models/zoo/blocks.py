"""What the families share: initialisation, convolutions, the shortcut of zeros, and the checks of options."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from topiarist.errors import TopiaristError
from topiarist.files import shown

Size = int | tuple[int, int]
"""Height and width of the images, one number where they are square."""


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Returns ``channels * width`` rounded to a multiple of ``multiple``, at least one such multiple.

    Args:
        channels: the paper's number of channels.
        width: the width multiplier.
        multiple: the result is divisible by it.
    """
    return max(1, round(channels * width / multiple)) * multiple


def check(in_channels: int, classes: int, width: float, input_size: Size, smallest: int = 4) -> tuple[int, int]:
    """Refuses options that no network can be built from.

    Args:
        in_channels: channels of the images, at least 1.
        classes: outputs of the network, at least 1.
        width: multiplier of all hidden widths, above 0.
        input_size: height and width of the images.
        smallest: the least height and width that the network can take.

    Returns:
        Height and width.

    Raises:
        TopiaristError: an option is out of its range.
    """
    for name, value in (("in_channels", in_channels), ("classes", classes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TopiaristError(f"{name} is {shown(value)}, but must be a whole number of at least 1")
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 64:
        raise TopiaristError(f"width is {shown(width)}, but must be a number above 0 and at most 64 (1 is the paper's)")
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    two_numbers = isinstance(size, tuple | list) and len(size) == 2 and all(type(side) is int for side in size)
    if not two_numbers or min(size) < 1:
        raise TopiaristError(
            f"input_size is {shown(input_size)}, but must be one whole number, or two for height and width"
        )
    if min(size) < smallest:
        raise TopiaristError(
            f"this network takes images of at least {smallest}x{smallest}, not {size[0]}x{size[1]}: "
            "enlarge the images (digits:28 does) or take another network"
        )
    return size[0], size[1]


def check_rate(dropout: float) -> float:
    """Returns the rate of a dropout.

    Raises:
        TopiaristError: it is not from 0 to below 1.
    """
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise TopiaristError(f"dropout is {shown(dropout)}, but must be a rate from 0 to below 1")
    return float(dropout)


class Network(nn.Module):
    """A network of the zoo, which can draw its weights again, after a cut for its new widths (see `initialise`)."""

    gamma: float = 1.0
    linear_std: float | None = None

    def reset_parameters(self) -> None:
        """Draws all weights."""
        initialise(self, self.gamma, self.linear_std)


def initialise(model: nn.Module, gamma: float = 1.0, linear_std: float | None = None) -> None:
    """Draws the convolutions and sets the batch norms as the CIFAR scripts of the pruning papers do.

    Convolutions: ``w ~ N(0, 2 / (k_h k_w n_out))``, biases 0. Batch norm over maps: scale ``gamma``, shift 0. Linear
    layers keep PyTorch's initialisation, or are ``N(0, linear_std^2)`` with biases 0.

    Args:
        model: changed in place.
        gamma: initial scale of every `torch.nn.BatchNorm2d` (0.5 in Network Slimming, 1 in plain ResNets).
        linear_std: standard deviation of linear weights, if they are drawn here.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gamma)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Returns a 3x3 convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Returns a 1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class ZeroShortcut(nn.Module):
    """Shortcut without weights ("option A"): halves the map by a 2x2 average and appends channels of zeros.

    He et al. (2016) subsample; the average is the choice of Li et al. (2017) and of Liu et al. (2019). An odd map is
    rounded up, as a strided 3x3 convolution rounds it.

    Args:
        stride: 2 halves the map, 1 leaves it.
        extra: how many channels of zeros to append.
    """

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C + extra, ceil(H / stride), ceil(W / stride))``."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))

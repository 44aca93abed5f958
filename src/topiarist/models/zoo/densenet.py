"""DenseNets for small images (Huang et al. 2017): every layer appends its maps to all the maps before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topiarist.models.zoo.blocks import Network, Size, check, conv1x1, conv3x3, scaled

_GROWTH = 12


class DenseLayer(nn.Module):
    """``cat(x, conv(relu(bn(x))))``; a bottleneck first narrows to four times the growth by a 1x1 convolution.

    Args:
        inputs: channels of the input.
        growth: channels that the layer appends.
        bottleneck: whether the 1x1 convolution is there.
    """

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        middle = 4 * growth if bottleneck else inputs
        self.squeeze: nn.Module = nn.Identity()
        if bottleneck:
            self.squeeze = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv1x1(inputs, middle))
        self.bn = nn.BatchNorm2d(middle)
        self.relu = nn.ReLU()
        self.conv = conv3x3(middle, growth)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, inputs + growth, H, W)``."""
        out = self.conv(self.relu(self.bn(self.squeeze(x))))
        return torch.cat((x, out), dim=1)


class DenseNet(Network):
    """A 3x3 convolution, three dense stages with transitions between them, batch norm, ReLU, average, linear layer.

    A transition is batch norm, ReLU, a 1x1 convolution and a 2x2 average.

    Args:
        in_channels: channels of the images.
        stem: channels of the first convolution.
        growth: channels that each layer appends.
        layers: dense layers a stage.
        bottleneck: whether they have bottlenecks.
        compression: fraction of its input channels that a transition puts out.
        classes: number of outputs.
    """

    def __init__(
        self, in_channels: int, stem: int, growth: int, layers: int, bottleneck: bool, compression: float, classes: int
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = [conv3x3(in_channels, stem)]
        channels = stem
        for number in range(3):
            if number:
                outputs = max(1, int(channels * compression))
                conv = conv1x1(channels, outputs)
                stages.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv, nn.AvgPool2d(2)))
                channels = outputs
            widths = range(channels, channels + layers * growth, growth)
            stages.append(nn.Sequential(*(DenseLayer(inputs, growth, bottleneck) for inputs in widths)))
            channels += layers * growth
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, classes)``."""
        return self.fc(self.pool(self.relu(self.bn(self.stages(x)))).flatten(1))


def densenet40(
    in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32, stem: int = 16
) -> nn.Module:
    """DenseNet-40 with growth 12 (Huang et al. 2017; Network Slimming, Liu et al. 2017): 12 layers a stage; 1.02 M.

    The scales of the batch norms start at 0.5, as in Network Slimming. Later scripts widened the stem to 24 channels.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the growth and the stem.
        input_size: height and width of the images, at least 4.
        stem: channels of the first convolution before the multiplier.
    """
    check(in_channels, classes, width, input_size)
    model = DenseNet(in_channels, scaled(stem, width), scaled(_GROWTH, width), 12, False, 1.0, classes)
    model.gamma = 0.5
    model.reset_parameters()
    return model


def densenet_bc100(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """DenseNet-BC-100 with growth 12 (Huang et al. 2017): 16 bottleneck layers a stage, compression 0.5; 0.77 M.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the growth; the stem is twice the growth.
        input_size: height and width of the images, at least 4.
    """
    check(in_channels, classes, width, input_size)
    growth = scaled(_GROWTH, width)
    model = DenseNet(in_channels, 2 * growth, growth, 16, True, 0.5, classes)
    model.reset_parameters()
    return model

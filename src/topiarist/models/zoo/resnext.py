"""ResNeXt for small images (Xie et al. 2017): bottlenecks whose 3x3 convolution is grouped."""

from __future__ import annotations

from torch import Tensor, nn

from topiarist.errors import TopiaristError
from topiarist.models.zoo.blocks import Network, Size, check, conv1x1, conv3x3, scaled


class GroupedBottleneck(nn.Module):
    """``relu(x' + F(x))``: 1x1, grouped 3x3 and 1x1 convolutions, each with batch norm.

    Args:
        inputs: channels of the input.
        middle: channels of the grouped convolution.
        outputs: channels of the output.
        groups: number of groups (the paper's cardinality).
        stride: stride of the 3x3 convolution; where sizes change, the shortcut is a 1x1 convolution with batch norm.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(inputs, middle)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(middle, middle, stride, groups)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = conv1x1(middle, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + self.shortcut(x))


class ResNeXt(Network):
    """A 3x3 convolution, three stages of `GroupedBottleneck`, an average over the map and a linear layer.

    Args:
        in_channels: channels of the images.
        stem: channels of the first convolution.
        middle: channels of the grouped convolutions, by stage.
        outputs: channels of the blocks' outputs, by stage.
        groups: number of groups of every grouped convolution.
        blocks: how many blocks a stage has; all stages but the first halve the map.
        classes: number of outputs.
    """

    def __init__(
        self, in_channels: int, stem: int, middle: list[int], outputs: list[int], groups: int, blocks: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        stages = []
        inputs = stem
        for inner, outer, stride in zip(middle, outputs, (1, 2, 2), strict=True):
            rest = [GroupedBottleneck(outer, inner, outer, groups, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(GroupedBottleneck(inputs, inner, outer, groups, stride), *rest))
            inputs = outer
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


def resnext29(
    in_channels: int = 3,
    classes: int = 10,
    width: float = 1.0,
    input_size: Size = 32,
    groups: int = 8,
    group_width: int = 64,
) -> nn.Module:
    """ResNeXt-29, 8x64d (Xie et al. 2017): three blocks a stage, outputs 256-512-1024; 34.4 M parameters.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of all widths; the number of groups stays.
        input_size: height and width of the images, at least 4.
        groups: groups of the 3x3 convolutions.
        group_width: channels of each group in the first stage before the multiplier; it doubles from stage to stage.
    """
    check(in_channels, classes, width, input_size)
    if min(groups, group_width) < 1:
        raise TopiaristError(f"groups is {groups} and group_width {group_width}, but both must be at least 1")
    middle = [scaled(groups * group_width * 2**stage, width, multiple=groups) for stage in range(3)]
    outputs = [scaled(256 * 2**stage, width) for stage in range(3)]
    model = ResNeXt(in_channels, scaled(64, width), middle, outputs, groups, 3, classes)
    model.reset_parameters()
    return model

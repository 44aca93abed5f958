"""Pre-activation ResNets for small images (He et al. 2016, "Identity mappings in deep residual networks")."""

from __future__ import annotations

from torch import Tensor, nn

from topiarist.models.zoo.blocks import Network, Size, check, conv1x1, conv3x3, scaled

_EXPANSION = 4


class PreBasic(nn.Module):
    """``x' + conv(relu(bn(conv(relu(bn(x))))))`` with 3x3 convolutions.

    Args:
        inputs: channels of the input.
        outputs: channels of both convolutions.
        stride: stride of the first convolution; where sizes change, ``x'`` is a strided 1x1 convolution of ``x``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        out = self.conv1(self.relu1(self.bn1(x)))
        out = self.conv2(self.relu2(self.bn2(out)))
        return out + self.shortcut(x)


class PreBottleneck(nn.Module):
    """The same with 1x1, 3x3 and 1x1 convolutions, the last of them four times as wide.

    Args:
        inputs: channels of the input.
        outputs: channels of the output, a multiple of 4.
        stride: stride of the 3x3 convolution; where sizes change, the shortcut is a strided 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // _EXPANSION
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv1x1(inputs, middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(middle, middle, stride)
        self.bn3 = nn.BatchNorm2d(middle)
        self.relu3 = nn.ReLU()
        self.conv3 = conv1x1(middle, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        out = self.conv1(self.relu1(self.bn1(x)))
        out = self.conv2(self.relu2(self.bn2(out)))
        out = self.conv3(self.relu3(self.bn3(out)))
        return out + self.shortcut(x)


class PreResNet(Network):
    """A 3x3 convolution, three stages of pre-activation blocks, batch norm, ReLU, an average and a linear layer.

    Args:
        in_channels: channels of the images.
        stem: channels of the first convolution.
        widths: channels of each stage's output.
        blocks: how many blocks a stage has; all stages but the first halve the map.
        block: `PreBasic` or `PreBottleneck`.
        classes: number of outputs.
    """

    def __init__(
        self,
        in_channels: int,
        stem: int,
        widths: list[int],
        blocks: int,
        block: type[PreBasic] | type[PreBottleneck],
        classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, stem)
        stages = []
        inputs = stem
        for outputs, stride in zip(widths, (1, 2, 2), strict=True):
            rest = [block(outputs, outputs, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(block(inputs, outputs, stride), *rest))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, classes)``."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.pool(self.relu(self.bn(x))).flatten(1))


def _preresnet(
    depth: int, in_channels: int, classes: int, width: float, input_size: Size, bottleneck: bool, gamma: float
) -> PreResNet:
    """``depth = 9 n + 2`` with bottlenecks and ``6 n + 2`` without, for ``n`` blocks a stage."""
    check(in_channels, classes, width, input_size)
    stem, *middle = (scaled(channels, width) for channels in (16, 16, 32, 64))
    if bottleneck:
        widths = [_EXPANSION * channels for channels in middle]
        model = PreResNet(in_channels, stem, widths, (depth - 2) // 9, PreBottleneck, classes)
    else:
        model = PreResNet(in_channels, stem, middle, (depth - 2) // 6, PreBasic, classes)
    model.gamma = gamma
    model.reset_parameters()
    return model


def preresnet110(
    in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32, bottleneck: bool = True
) -> nn.Module:
    """PreResNet-110 of the unstructured experiments of Liu et al. (2019): 12 bottlenecks a stage.

    He et al. (2016) build a network of this name from 18 basic blocks a stage; ``bottleneck=False`` gives it.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of all widths.
        input_size: height and width of the images, at least 4.
        bottleneck: whether the blocks are bottlenecks.
    """
    return _preresnet(110, in_channels, classes, width, input_size, bottleneck, gamma=1.0)


def preresnet164(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """PreResNet-164 of Network Slimming (Liu et al. 2017): 18 bottlenecks a stage, scales start at 0.5; 1.70 M.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of all widths.
        input_size: height and width of the images, at least 4.
    """
    return _preresnet(164, in_channels, classes, width, input_size, bottleneck=True, gamma=0.5)

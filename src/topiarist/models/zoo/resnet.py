"""ResNets for small images (He et al. 2016), their shortcuts without weights."""

from __future__ import annotations

from torch import Tensor, nn

from topiarist.models.zoo.blocks import Network, Size, ZeroShortcut, check, conv3x3, scaled


class BasicBlock(nn.Module):
    """``relu(x' + bn(conv(relu(bn(conv(x))))))``, where ``x'`` is ``x``, or a `ZeroShortcut` of it where sizes change.

    Args:
        inputs: channels of the input.
        outputs: channels of both convolutions.
        stride: stride of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else ZeroShortcut(stride, outputs - inputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class ResNet(Network):
    """A 3x3 convolution, three stages of `BasicBlock`, an average over the map and a linear layer.

    Args:
        in_channels: channels of the images.
        widths: channels of each stage; the first is also the stem's.
        blocks: how many blocks a stage has; all stages but the first halve the map.
        classes: number of outputs.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int], blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = self._stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = self._stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


def _resnet(depth: int, in_channels: int, classes: int, width: float, input_size: Size) -> ResNet:
    """``depth = 6 n + 2`` for ``n`` blocks a stage."""
    check(in_channels, classes, width, input_size)
    widths = (scaled(16, width), scaled(32, width), scaled(64, width))
    model = ResNet(in_channels, widths, (depth - 2) // 6, classes)
    model.reset_parameters()
    return model


def resnet20(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """ResNet-20 (He et al. 2016): 0.27 M parameters.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the widths 16-32-64.
        input_size: height and width of the images, at least 4.
    """
    return _resnet(20, in_channels, classes, width, input_size)


def resnet56(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """ResNet-56 (He et al. 2016): 0.85 M parameters.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the widths 16-32-64.
        input_size: height and width of the images, at least 4.
    """
    return _resnet(56, in_channels, classes, width, input_size)


def resnet110(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """ResNet-110 (He et al. 2016): 1.7 M parameters.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the widths 16-32-64.
        input_size: height and width of the images, at least 4.
    """
    return _resnet(110, in_channels, classes, width, input_size)


def digitsnet(in_channels: int = 1, classes: int = 10, width: float = 1.0, input_size: Size = 8) -> nn.Module:
    """ResNet-8: the family's smallest member, one block a stage, for 8x8 digits; not of any paper, made for the demo.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the widths 16-32-64.
        input_size: height and width of the images, at least 4.
    """
    return _resnet(8, in_channels, classes, width, input_size)

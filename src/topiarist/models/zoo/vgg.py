"""VGG with batch norm for small images (Simonyan & Zisserman 2015, in the form of the pruning papers)."""

from __future__ import annotations

from torch import Tensor, nn

from topiarist.models.zoo.blocks import Network, Size, check, conv3x3, scaled

_STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
_HIDDEN = 512


class VGG(Network):
    """Stages of 3x3 convolutions with batch norm and ReLU, max-pooling between them, an average and a classifier.

    On 32x32 images the average covers the 2x2 maps that the last stage leaves. Pooling rounds up, so smaller images
    pass too: a map of one pixel stays one.

    Args:
        in_channels: channels of the images.
        stages: output channels of every convolution, by stage.
        classes: number of outputs.
        hidden: units of a hidden linear layer with batch norm and ReLU; ``None`` for a single linear layer.
    """

    def __init__(self, in_channels: int, stages: list[list[int]], classes: int, hidden: int | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for number, stage in enumerate(stages):
            if number:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for outputs in stage:
                layers += [conv3x3(channels, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier: nn.Module = nn.Linear(channels, classes)
        if hidden:
            first = nn.Linear(channels, hidden)
            self.classifier = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, classes)``."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def _vgg(depth: int, in_channels: int, classes: int, width: float, input_size: Size, hidden: int | None = None) -> VGG:
    """Builds and initialises; linear weights are ``N(0, 0.01^2)`` and the scales of batch norms over maps 0.5."""
    check(in_channels, classes, width, input_size, smallest=1)
    stages = [[scaled(channels, width) for channels in stage] for stage in _STAGES[depth]]
    model = VGG(in_channels, stages, classes, hidden)
    model.gamma, model.linear_std = 0.5, 0.01
    model.reset_parameters()
    return model


def vgg11(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """VGG-11 with batch norm: 8 convolutions and one linear layer.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the hidden widths.
        input_size: height and width of the images; any will do.
    """
    return _vgg(11, in_channels, classes, width, input_size)


def vgg16(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """VGG-16 with batch norm as in Li et al. (2017): 13 convolutions, a hidden layer of 512 units, a linear layer.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the hidden widths.
        input_size: height and width of the images; any will do.
    """
    return _vgg(16, in_channels, classes, width, input_size, hidden=scaled(_HIDDEN, width))


def vgg19(in_channels: int = 3, classes: int = 10, width: float = 1.0, input_size: Size = 32) -> nn.Module:
    """VGG-19 with batch norm as in Network Slimming (Liu et al. 2017): 16 convolutions and one linear layer.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the hidden widths.
        input_size: height and width of the images; any will do.
    """
    return _vgg(19, in_channels, classes, width, input_size)

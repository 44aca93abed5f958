"""A small pre-activation network, by a name that a study can give: ``preactivated:small``."""

from torch import nn

from topiarist.models.zoo.preresnet import PreBottleneck, PreResNet


def small(in_channels: int = 1, classes: int = 10) -> nn.Module:
    model = PreResNet(in_channels, 8, [16, 32, 32], 2, PreBottleneck, classes)
    model.reset_parameters()
    return model

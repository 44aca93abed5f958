"""The networks of the MNIST experiments: LeNet-300-100, LeNet-5 in Caffe's form, and a batch-normalised MLP."""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from topiarist.models.zoo.blocks import Size, check, check_rate, scaled


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, on flattened images.

    Args:
        sizes: number of inputs, hidden units of each layer, number of outputs.
        norm: whether a batch norm follows each hidden layer.
        dropout: rate of the dropout after each hidden layer.
    """

    def __init__(self, sizes: list[int], norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
        self.norm = norm
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` or ``(N, C * H * W)`` to ``(N, classes)``."""
        return self.layers(x)

    def reset_parameters(self) -> None:
        """Draws all weights: Glorot's normal without batch norm; PyTorch's with it, its scales 0.5."""
        for module in self.layers:
            if isinstance(module, nn.BatchNorm1d):
                nn.init.constant_(module.weight, 0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear) and self.norm:
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)


class LeNet5(nn.Module):
    """Two 5x5 convolutions without padding, each max-pooled, and two linear layers (see `lenet5`)."""

    def __init__(
        self,
        in_channels: int,
        maps: tuple[int, int],
        hidden: int,
        classes: int,
        side: tuple[int, int],
        norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, maps[0], 5)
        self.norm1 = nn.BatchNorm2d(maps[0]) if norm else nn.Identity()
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(maps[0], maps[1], 5)
        self.norm2 = nn.BatchNorm2d(maps[1]) if norm else nn.Identity()
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(maps[1] * side[0] * side[1], hidden)
        self.norm3 = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.relu3 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, classes)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, classes)``."""
        x = self.pool1(self.relu1(self.norm1(self.conv1(x))))
        x = self.pool2(self.relu2(self.norm2(self.conv2(x))))
        return self.fc2(self.dropout(self.relu3(self.norm3(self.fc1(x.flatten(1))))))

    def reset_parameters(self) -> None:
        """Draws all weights: uniform with variance ``1 / fan_in``, biases 0; scales of batch norms 0.5."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = math.sqrt(3 / module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)
                nn.init.zeros_(module.bias)


def lenet300(
    in_channels: int = 1, classes: int = 10, width: float = 1.0, input_size: Size = 28, dropout: float = 0.0
) -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998, as in Han et al. 2015): 784-300-100-10, 266,610 parameters.

    Weights are drawn from Glorot's normal distribution ``N(0, 2 / (fan_in + fan_out))``, biases are 0, as in the
    lottery-ticket experiments (Frankle & Carbin 2019).

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the hidden widths.
        input_size: height and width of the images.
        dropout: rate of the dropout after each hidden layer.
    """
    pixels = in_channels * math.prod(check(in_channels, classes, width, input_size, smallest=1))
    return Perceptron([pixels, scaled(300, width), scaled(100, width), classes], dropout=check_rate(dropout))


def mlp(in_channels: int = 1, classes: int = 10, width: float = 1.0, input_size: Size = 28) -> nn.Module:
    """The MLP of Network Slimming (Liu et al. 2017): 784-500-300-10 with batch norm, whose scales start at 0.5.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the hidden widths.
        input_size: height and width of the images.
    """
    pixels = in_channels * math.prod(check(in_channels, classes, width, input_size, smallest=1))
    return Perceptron([pixels, scaled(500, width), scaled(300, width), classes], norm=True)


def lenet5(
    in_channels: int = 1,
    classes: int = 10,
    width: float = 1.0,
    input_size: Size = 28,
    norm: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """LeNet-5 in Caffe's form (20-50-500, 5x5 convolutions): 431,080 parameters on 28x28 images.

    Caffe's network has no activation between its convolutions and the max-pooling; here a ReLU stands there, as in
    the later papers that prune it (methods that count zero activations need one). Weights are uniform with variance
    ``1 / fan_in`` (Caffe's "xavier"), biases are 0.

    Args:
        in_channels: channels of the images.
        classes: number of outputs.
        width: multiplier of the hidden widths.
        input_size: height and width of the images, at least 16.
        norm: batch norm after each layer but the last, which Network Slimming needs.
        dropout: rate of the dropout before the last layer.
    """
    height, rows = check(in_channels, classes, width, input_size, smallest=16)
    # Two rounds of "a 5x5 convolution takes 4 away, pooling halves".
    side = (((height - 4) // 2 - 4) // 2, ((rows - 4) // 2 - 4) // 2)
    return LeNet5(
        in_channels,
        (scaled(20, width), scaled(50, width)),
        scaled(500, width),
        classes,
        side,
        norm,
        check_rate(dropout),
    )

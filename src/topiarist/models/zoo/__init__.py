"""The networks of the papers, as in the papers: architecture, shortcuts and initialisation.

Every builder takes ``in_channels``, ``classes``, ``width`` (a multiplier of all hidden widths) and ``input_size``
(height and width of the images), and returns a network that maps ``(N, in_channels, H, W)`` to ``(N, classes)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn

from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion
from topiarist.models.zoo.densenet import densenet40, densenet_bc100
from topiarist.models.zoo.lenet import lenet5, lenet300, mlp
from topiarist.models.zoo.preresnet import preresnet110, preresnet164
from topiarist.models.zoo.resnet import digitsnet, resnet20, resnet56, resnet110
from topiarist.models.zoo.resnext import resnext29
from topiarist.models.zoo.vgg import vgg11, vgg16, vgg19

__all__ = [
    "build",
    "builder",
    "densenet40",
    "densenet_bc100",
    "digitsnet",
    "lenet5",
    "lenet300",
    "mlp",
    "names",
    "preresnet110",
    "preresnet164",
    "resnet20",
    "resnet56",
    "resnet110",
    "resnext29",
    "vgg11",
    "vgg16",
    "vgg19",
]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    function.__name__: function
    for function in (
        *(lenet300, lenet5, mlp, digitsnet),
        *(vgg11, vgg16, vgg19),
        *(resnet20, resnet56, resnet110, preresnet110, preresnet164),
        *(densenet40, densenet_bc100, resnext29),
    )
}


def names() -> tuple[str, ...]:
    """Returns the names of all networks, small ones first."""
    return tuple(_BUILDERS)


def builder(name: str) -> Callable[..., nn.Module]:
    """Returns the function that builds the network ``name``.

    Raises:
        TopiaristError: there is none of that name.
    """
    if name not in _BUILDERS:
        raise TopiaristError(f"the zoo has no network {shown(name)}: {suggestion(name.lower(), _BUILDERS)}")
    return _BUILDERS[name]


def build(name: str, **options: object) -> nn.Module:
    """Builds a network with fresh random weights.

    Args:
        name: one of `names`.
        options: what its builder takes, for example ``in_channels=1, classes=10, width=0.25, input_size=28``.

    Raises:
        TopiaristError: no such network, no such option, or a value out of its range.
    """
    function = builder(name)
    accepted = inspect.signature(function).parameters
    for option in options:
        if option not in accepted:
            raise TopiaristError(f"zoo:{name} has no option {shown(option)}: it takes {', '.join(accepted)}")
    return function(**options)

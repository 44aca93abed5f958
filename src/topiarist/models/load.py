"""Models by name: ``zoo:resnet56``, ``torchvision:resnet50``, ``timm:NAME`` and ``package.module:factory``.

Options follow the name as in a web address, ``zoo:vgg11?width=0.25&classes=26``, or are given as keywords, which win.
Every network comes with fresh random weights; nothing is downloaded unless an option asks for it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from topiarist.errors import TopiaristError
from topiarist.files import import_package, one_line, shown, suggestion
from topiarist.models import zoo

MODEL_FORMS = "zoo:NAME, torchvision:NAME, timm:NAME or package.module:factory"
"""How a model can be named, for messages and help texts."""

Options = dict[str, Any]
"""Keyword arguments of a builder."""

Builder = Callable[..., nn.Module]

_NO_DOWNLOAD = {"weights": None, "weights_backbone": None, "pretrained": False}


@dataclass(frozen=True)
class ModelFactory:
    """Makes one architecture with fresh random weights at every call; it can be pickled, printed and compared.

    Attributes:
        spec: the model's name, without options.
        options: the keyword arguments of its builder.
    """

    spec: str
    options: Mapping[str, object] = field(default_factory=dict)

    def __call__(self) -> nn.Module:
        """Returns a new model.

        Raises:
            TopiaristError: the name or an option is wrong, or a package is missing.
        """
        function, defaults = _resolve(self.spec)
        try:
            model = function(**{**defaults, **self.options})
        except TopiaristError:
            raise
        except Exception as error:  # the builder is other people's code: whatever it raises is about this name
            raise TopiaristError(
                f"{self.spec} could not be built ({one_line(error)}): check its name and options"
            ) from error
        if not isinstance(model, nn.Module):
            raise TopiaristError(
                f"{self.spec} gave a {type(model).__name__}: name a function or class that returns a torch.nn.Module"
            )
        return model


def full_name(factory: ModelFactory) -> str:
    """Returns the one name that makes the same model: its options follow it as in a web address."""
    options = "&".join(f"{key}={value}" for key, value in factory.options.items())
    return f"{factory.spec}?{options}" if options else factory.spec


def load_model(spec: str, **options: object) -> nn.Module:
    """Builds the model that ``spec`` names, with random weights.

    Args:
        spec: ``zoo:NAME``; ``torchvision:NAME``, where dots lead into submodules, as in
            ``torchvision:segmentation.fcn_resnet50``; ``timm:NAME``; or ``package.module:factory``, any callable that
            returns a module (the current directory is searched too). ``?key=value&key=value`` may follow.
        options: keyword arguments of the builder; they win over those in the name.

    Raises:
        TopiaristError: the name or an option is wrong, or a package is missing.

    Example:
        >>> load_model("zoo:vgg11?width=0.25", in_channels=1, classes=10)  # doctest: +SKIP
    """
    return make_model(spec, **options)()


def make_model(spec: str, **options: object) -> ModelFactory:
    """Returns a function without arguments that builds what `load_model` builds, at every call.

    Raises:
        TopiaristError: no such model, or a package is missing.
    """
    name, inline = split_options(spec)
    _resolve(name)
    return ModelFactory(name, {**inline, **options})


def fitting_options(spec: str, input_shape: tuple[int, ...], classes: int) -> Options:
    """Returns the options that fit a model to a data set, where its builder takes them and the name does not set them.

    Args:
        spec: the model's name, as for `load_model`.
        input_shape: channels, height and width of the images.
        classes: number of classes.

    Returns:
        For a network of the zoo ``in_channels``, ``classes`` and ``input_size``; for torchvision ``num_classes``; for
        timm ``num_classes`` and ``in_chans``; for any other factory those of these names among its parameters.

    Raises:
        TopiaristError: no such model, or a package is missing.
    """
    name, inline = split_options(spec)
    kind, _, rest = name.partition(":")
    channels, *sides = input_shape
    size = sides[0] if len(set(sides)) == 1 else tuple(sides)
    wanted: Options = {"in_channels": channels, "in_chans": channels, "classes": classes, "num_classes": classes}
    function, _ = _resolve(name)
    parameters = inspect.signature(zoo.builder(rest) if kind == "zoo" else function).parameters
    taken = set(parameters)
    if kind == "zoo":
        wanted["input_size"] = size
    elif kind == "timm":
        taken = {"num_classes", "in_chans"}
    elif kind == "torchvision" and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        taken.add("num_classes")
    return {option: value for option, value in wanted.items() if option in taken and option not in inline}


def import_torchvision() -> ModuleType:
    """Imports torchvision, also where it was built for another torch than the one installed.

    Such a build (for example a CUDA build of torchvision beside a CPU build of torch) fails to import, since two of
    its compiled operators are missing. Call this before ``import torchvision`` and before packages that import it
    (timm, lightning, transformers): it defines the schemas of the two, and warns. The models then work, the compiled
    operators do not.

    Raises:
        TopiaristError: torchvision is not installed, or cannot be imported for another reason.
    """
    return import_package("torchvision", "vision")


def split_options(spec: str) -> tuple[str, Options]:
    """Splits ``NAME?key=value&key=value`` into the name and its options.

    Values are Python literals (``0.25``, ``True``, ``[1, 2]``); ``true``, ``false``, ``none`` and ``null`` are
    understood; anything else is text.

    Raises:
        TopiaristError: a part behind the question mark is not ``key=value``.
    """
    name, _, tail = spec.partition("?")
    options = {}
    for part in filter(None, tail.split("&")):
        key, equals, text = part.partition("=")
        if not equals or not key.isidentifier():
            raise TopiaristError(f"{shown(spec)} has the option {shown(part)}: write options as ?key=value&key=value")
        options[key] = _value(text)
    return name, options


def _value(text: str) -> object:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    return text


def _resolve(spec: str) -> tuple[Builder, Options]:
    """Returns the function that builds a model, and its keyword arguments where none are given."""
    kind, colon, name = spec.partition(":")
    if not (kind and colon and name):
        near = f"did you mean zoo:{spec}?" if spec in zoo.names() else f"name models as {MODEL_FORMS}"
        raise TopiaristError(f"there is no model {shown(spec)}: {near}")
    if kind == "zoo":
        zoo.builder(name)
        return functools.partial(zoo.build, name), {}
    if kind == "torchvision":
        return _from_torchvision(name)
    if kind == "timm":
        return _from_timm(name)
    return _from_module(kind, name), {}


def _from_torchvision(name: str) -> tuple[Builder, Options]:
    import_torchvision()
    owner: Any = importlib.import_module("torchvision.models")
    for part in name.split("."):
        known = [key for key in dir(owner) if not key.startswith("_")]
        if part not in known:
            hint = suggestion(part, known, "see torchvision.models.list_models() for the names")
            raise TopiaristError(f"torchvision.models has no {shown(name)}: {hint}")
        owner = getattr(owner, part)
    if not callable(owner):
        raise TopiaristError(f"torchvision:{name} is not a model: name a function of torchvision.models")
    return owner, _torchvision_defaults(owner)


def _torchvision_defaults(function: Builder) -> Options:
    """Returns arguments with which a function of torchvision builds a network without a download or a warning."""
    signature = inspect.signature(function)
    defaults: Options = {}
    for name, parameter in signature.parameters.items():
        if name in _NO_DOWNLOAD:
            defaults[name] = _NO_DOWNLOAD[name]
        elif parameter.default is parameter.empty and name == "backbone_name":
            mobile = "mobilenet" in getattr(function, "__name__", "")
            defaults[name] = "mobilenet_v3_large" if mobile else "resnet50"
        elif parameter.default is parameter.empty and parameter.annotation in (bool, "bool"):
            defaults[name] = True
    network = signature.return_annotation
    if isinstance(network, type) and issubclass(network, nn.Module):
        undecided = inspect.signature(network).parameters.get("init_weights")
        if undecided is not None and undecided.default is None:  # warns, then draws for half a minute
            defaults["init_weights"] = False
    return defaults


def _from_timm(name: str) -> tuple[Builder, Options]:
    import_torchvision()
    timm = import_package("timm", "vision")
    if not timm.is_model(name):
        hint = suggestion(name, timm.list_models(), "see timm.list_models() for the names")
        raise TopiaristError(f"timm has no model {shown(name)}: {hint}")
    return timm.create_model, {"model_name": name, "pretrained": False}


def _from_module(module_name: str, name: str) -> Builder:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; a console script lacks it
    try:
        owner: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if f"{module_name}.".startswith(f"{error.name}."):
            raise TopiaristError(
                f"there is no model {shown(f'{module_name}:{name}')}: name models as {MODEL_FORMS}"
            ) from error
        raise TopiaristError(f"{module_name} needs the package {error.name}: install it first") from error
    except Exception as error:  # the module is the user's code
        raise TopiaristError(f"{module_name} cannot be imported ({one_line(error)}): fix it first") from error
    for part in name.split("."):
        if not hasattr(owner, part):
            hint = suggestion(part, dir(owner), "name a function or class in it")
            raise TopiaristError(f"{module_name} has no {shown(name)}: {hint}")
        owner = getattr(owner, part)
    if isinstance(owner, nn.Module) or not callable(owner):
        raise TopiaristError(
            f"{module_name}:{name} is a {type(owner).__name__}: name a function or class that returns a fresh model"
        )
    return owner

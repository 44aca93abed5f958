"""What the library itself is asked for: its modules, its classes by name, and how it builds a network."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import ModuleType
from typing import Any

import torch

from topiarist.errors import TopiaristError
from topiarist.files import import_package, one_line
from topiarist.graph import random_state_kept, unwrapped
from topiarist.models import import_torchvision


def transformers() -> ModuleType:
    """Imports transformers, also where torchvision was built for another torch.

    Raises:
        TopiaristError: it is not installed.
    """
    with suppress(TopiaristError):  # transformers asks for it where it is installed, and only there
        import_torchvision()
    return import_package("transformers", "hf")


def checked(model: object) -> Any:
    """Returns a model of transformers without its wrappers.

    Raises:
        TopiaristError: it is none, or one of a class that is not in transformers.
    """
    library, model = transformers(), unwrapped(model)  # type: ignore[type-var]
    kind = type(model)
    if not isinstance(model, library.PreTrainedModel):
        raise TopiaristError(f"this is a {kind.__name__} and no model of transformers: use topiarist.save and .load")
    if getattr(library, kind.__name__, None) is not kind:
        raise TopiaristError(
            f"transformers has no class {kind.__name__}, so that nobody could load it by its name: use topiarist.save, "
            "and topiarist.load with a function that makes your model"
        )
    return model


def class_named(name: object) -> Any:
    """Returns the model's class of that name in transformers; ``None`` where there is none.

    Raises:
        TopiaristError: the class needs a package that is not installed.
    """
    library = transformers()
    try:
        kind = getattr(library, name, None) if isinstance(name, str) and name.isidentifier() else None
    except Exception as error:  # it imports the class's own file, which may need more packages
        raise TopiaristError(f"transformers cannot import {name} ({one_line(error)}): install what it needs") from error
    return kind if isinstance(kind, type) and issubclass(kind, library.PreTrainedModel) else None


def built(config: Any, kind: Any, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
    """Returns the network of a configuration without drawing its weights: they are given to it afterwards.

    Args:
        config: the configuration.
        kind: the model's class.
        dtype: of its weights, and of what its code makes besides.
        device: where they are; ``"meta"`` for a network without memory.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device or "cpu"), _undrawn()(), random_state_kept():
            model = kind(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    return model


def _undrawn() -> Any:
    """Returns the context of transformers in which no weights are drawn, which spares most of the time."""
    transformers()
    for place in ("transformers.initialization", "transformers.modeling_utils"):  # since version 5, and before
        with suppress(ImportError, AttributeError):
            return importlib.import_module(place).no_init_weights
    return nullcontext


@contextmanager
def quietly() -> Iterator[None]:
    """Hides what transformers says about configurations that are only tried, and its progress bars."""
    logging = transformers().utils.logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

"""The runtimes, one file each. The folder is the registry: ``torch_compile.py`` is the target ``torch.compile``."""

from __future__ import annotations

import importlib
import pkgutil

from topiarist.deploy.target import Target
from topiarist.errors import TopiaristError
from topiarist.files import shown, suggestion


def target_names() -> list[str]:
    """Returns the names of all runtimes, in alphabetical order."""
    return sorted(get_target(module.name).name for module in pkgutil.iter_modules(__path__))


def get_target(name: str) -> type[Target]:
    """Returns the class of a runtime.

    Raises:
        TopiaristError: there is no such runtime; close names are given.
    """
    files = [module.name for module in pkgutil.iter_modules(__path__)]
    file = name.replace(".", "_") if isinstance(name, str) else ""
    if file not in files:
        known = [name.replace("torch_", "torch.") for name in files]
        raise TopiaristError(f"there is no target {shown(name)}: {suggestion(str(name), known)}")
    module = importlib.import_module(f"{__name__}.{file}")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Target) and value.__module__ == module.__name__
    )


def make_target(name: str, threads: int = 1) -> Target:
    """Makes a runtime with a number of threads.

    Raises:
        TopiaristError: there is no such runtime, or threads is not a whole number of at least 1.
    """
    return get_target(name)(threads=threads)

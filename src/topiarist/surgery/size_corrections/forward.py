"""A module's forward with corrections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from topiarist.errors import TopiaristError
from topiarist.files import shown
from topiarist.graph import Correction, Corrections
from topiarist.surgery.forwards import Forward
from topiarist.surgery.size_corrections.editing import Callee


class CorrectedForward(Forward):
    """A forward that runs the module's own one with corrections; deep copies and pickles with its module."""

    def __init__(self, module: nn.Module, corrections: Sequence[Correction]) -> None:
        super().__init__(module)
        self.corrections = tuple(corrections)
        if isinstance(self.inner, CorrectedForward):  # cut before
            self.corrections = (*self.inner.corrections, *corrections)
            self.inner = self.inner.inner
        self._run = self._made()

    def _made(self) -> Any:
        """Returns the corrected forward, bound to the module."""
        own = self.__wrapped__
        made = Callee(self.corrections)(own)
        if made is own:
            raise TopiaristError(
                f"the forward of {type(self.module).__name__} is not the one that was traced, "
                f"{self.corrections[0].place[0].function}; give the model that was pruned"
            )
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward with the corrections."""
        return self._run(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the code, which is made anew: no file ever holds code."""
        return {key: value for key, value in self.__dict__.items() if key != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes the code anew."""
        self.__dict__.update(state)
        self._run = self._made()


def install_corrections(model: nn.Module, corrections: Corrections) -> None:
    """Corrects the modules that need it.

    Raises:
        TopiaristError: the model has no such module, or other code than the one that was traced.
    """
    modules = dict(model.named_modules())
    for name, mine in corrections.items():
        if name not in modules:
            raise TopiaristError(f"the model has no module {shown(name)}; it is not the model that was pruned")
        module = modules[name]
        module.__dict__["forward"] = CorrectedForward(module, mine)

"""Random networks with branches, written as source: what a person may write around the sizes that a cut changes.

A network is drawn as a file of Python, so that its expressions have places. `Drawn` holds the source and the paths
through it: inputs, and whether they are for training mode.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import branches_attention  # noqa: F401  (its statements are drawn)
import branches_images  # noqa: F401
import branches_tokens  # noqa: F401
from branches_writer import IN, Network, source_of
from networks import shaken

FOLDER = tempfile.TemporaryDirectory(prefix="branches")


def imported(source: str) -> Any:
    """The module of a source, in a file of its own, which pickles find by its name."""
    name = f"branches_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        path = Path(FOLDER.name) / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@dataclass(frozen=True, eq=False)
class Way:
    """One path: what the network is given, and in which mode."""

    options: tuple[str, ...]
    inputs: dict[str, Any]
    training: bool = False

    @property
    def name(self) -> str:
        return ", ".join([*self.options, *["training"] * self.training]) or "plain"

    def run(self, model: nn.Module) -> Any:
        """What a model answers on this path; its running statistics stay."""
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train(self.training)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")  # of one channel that is kept
                torch.manual_seed(0)
                if "past" not in self.inputs:
                    return model(**self.inputs)
                others = {name: value for name, value in self.inputs.items() if name != "past"}
                _, *kept = model(**others)
                return *model(**self.inputs), *model(**others, past=kept)
        finally:
            model.eval()
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs_of(net: Network, options: tuple[str, ...]) -> dict[str, Any]:
    """Keyword arguments that show the options."""
    kind = net.kind
    batch = 6 if "batch" in options else 3 if "three" in options else 2
    size = 7 if "size" in options else 3 if "smaller" in options else 4 if kind == "tokens" else 5

    def x(size: int) -> Tensor:
        return noise(batch, size, IN) if kind == "tokens" else noise(batch, IN, size, size)

    given: dict[str, Any] = {"x": x(size)}
    if "gain" in options:
        given["gain"] = torch.full((1,), 0.7, dtype=torch.float64)
    if "other" in options:
        given["other"] = x(size) + 1
    if "mask" in options:
        given["mask"] = torch.arange(size).expand(batch, size) >= size - 1
    if "steps" in options:
        given["steps"] = 3
    if "past" in options:
        given["past"] = (noise(batch, 2, 3, net.width // 2), noise(batch, 2, 3, net.width // 2) + 0.1)
    return given


@dataclass(frozen=True, eq=False)
class Drawn:
    """A network that was drawn, with the paths that the examples show, and others."""

    kind: str
    source: str
    example: dict[str, Any]
    shown: tuple[Way, ...]
    hidden: tuple[Way, ...]

    @property
    def more(self) -> list[dict[str, Any]]:
        """Further examples: of the shown paths that are not seen anyhow."""
        return [way.inputs for way in self.shown if way.options not in ((), ("three",))]

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return shaken(imported(self.source).Network(), seed).double()

    def runs(self) -> bool:
        """Whether the network is right itself: some views are of what is not contiguous."""
        model = self.model()
        try:
            for way in (*self.shown, *self.hidden):
                way.run(model)
        except RuntimeError:
            return False
        return True

    def __repr__(self) -> str:
        told = f"shown: {[way.name for way in self.shown]}, hidden: {[way.name for way in self.hidden]}"
        return f"{self.source}\n# {self.kind}, {told}"


def drawn(chance: random.Random) -> Drawn:
    """Draws a network that runs on all of its paths, and which of them examples show."""
    while True:
        network = _drawn(chance)
        if network.runs():
            return network


def _drawn(chance: random.Random) -> Drawn:
    kind = chance.choice(["tokens", "tokens", "images"])
    net = Network(kind, chance.choice([8, 12]), chance)
    source, asked = source_of(net), net.options
    single = [(name,) for name in sorted(asked)]
    several = [tuple(sorted(chance.sample(sorted(asked), 2)))] if len(asked) > 1 else []
    ways = [Way(options, inputs_of(net, options)) for options in [*single, *several]]
    ways += [Way(("smaller",), inputs_of(net, ("smaller",)))]
    training = [
        Way(way.options, way.inputs, True) for way in ways if "self.training" in source and chance.random() < 0.5
    ]
    open_to_all = [chance.random() < 0.5 for _ in ways]
    shown = [way for way, seen in zip(ways, open_to_all, strict=True) if seen]
    hidden = [way for way, seen in zip(ways, open_to_all, strict=True) if not seen]
    always = [Way((), inputs_of(net, ())), Way(("three",), inputs_of(net, ("three",)))]
    trained = Way((), inputs_of(net, ()), True)
    return Drawn(kind, source, inputs_of(net, ()), (*always, *shown, trained), (*hidden, *training))

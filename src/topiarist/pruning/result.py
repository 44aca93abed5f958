"""What pruning gives: the smaller network, what it keeps and why, what it costs, and the proof."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from sysconfig import get_path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.budget import Cost, not_n_of_m, units_of
from topiarist.errors import TopiaristError
from topiarist.files import listed
from topiarist.graph import GUARD, Graph, Keep, Kind, removed_blocks, unwrapped
from topiarist.methods import Method
from topiarist.pruning.choice import Choice
from topiarist.pruning.milliseconds import Latency
from topiarist.pruning.request import Pruning
from topiarist.surgery import Proof, carry_over, check_shapes, plan


class Excluded(NamedTuple):
    """What stays as it is since one name was excluded.

    Attributes:
        groups: that keep every unit; in a graph of blocks, the blocks that stay.
        layers: that keep all of their outputs by that.
    """

    groups: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pruned:
    """Holds the result of a pruning; `print` shows it as a table.

    Attributes:
        model: the smaller model, with the weights that were kept.
        architecture: its shape.
        proof: that the cut computes what the mask does.
        before: MACs, parameters and activation memory of the model that was given.
        after: those of the smaller one (nonzero weights, in unstructured pruning).
        graph: of the model that was given.
        keep: group name → bool ``(units,)``.
        request: what was asked for.
        trained: the model that was cut: the given one, or its copy trained with the method's penalty.
        choice: what the last cut kept of the units that it received, and the scores by which it did.
        latency: what a latency budget came to.
        inputs: the example inputs by which the model was traced.
    """

    model: nn.Module
    architecture: Architecture
    proof: Proof
    before: Cost
    after: Cost
    graph: Graph
    keep: Mapping[str, Tensor]
    request: Pruning
    trained: nn.Module
    choice: Choice | None = None
    latency: Latency | None = None
    inputs: Any = None

    @property
    def method(self) -> Method:
        """Returns the method, with its hyper-parameters."""
        return self.request.method

    @property
    def repair(self) -> Method | None:
        """Returns the method that gave the kept weights new values, if any did."""
        return None if self.request.rewind else self.request.repairer

    def carry_over(self, model: nn.Module, *training: Any) -> nn.Module:
        """Lets what trains the given model continue with the smaller one: pruning in the middle of a training.

        As `topiarist.cut` with optimisers and averages, which says what happens to them, but with the weights of this
        result, which a method may have repaired; an average keeps its own. Call it before the next step.

        Args:
            model: the one that was given to `prune`.
            training: optimisers over its parameters, and averages of it; they are changed in place. Learning-rate
                schedulers and gradient scalers follow their optimiser.

        Returns:
            The smaller model, `model` of this result. Compile it, or wrap it in `DistributedDataParallel`, as the one
            before.

        Raises:
            TopiaristError: as `cut`; or the pruning trained or rewound the network itself, so that the optimiser's
                state is not of these weights.

        Examples:
            >>> model = topiarist.prune(model, images, "l1", 0.5).carry_over(model, optimizer, ema)  # doctest: +SKIP
        """
        if self.request.trains or self.request.rewind:
            raise TopiaristError(
                f"the pruning {'rewound' if self.request.rewind else 'trained'} the network, and the optimizer's state "
                "is of other weights: make a new optimizer from result.model.parameters()"
            )
        check_shapes(unwrapped(model), self.graph.shapes)
        carry_over(model, self.model, plan(self.graph, self.keep), training)
        return self.model

    @property
    def left_alone(self) -> dict[str, str]:
        """Returns layer → why it keeps its width, for those that do; in a graph of blocks, block → why it is kept."""
        if self.graph.kind == "block":
            return dict(self.graph.irremovable)
        full = {place: bool(kept.all()) for place, kept in self.graph.kept(self.keep).items()}
        if self.graph.kind == "weight":
            return self._full_tensors([name for (name, _), is_full in full.items() if is_full])
        reasons = {(pin.tensor, pin.axis): pin.reason for pin in self.graph.pinned}
        excluded = {layer for part in self.excluded.values() for layer in part.layers}
        unchanged: dict[str, str] = {}
        for name in self.graph.parameters:
            shape = self.graph.shapes[name]
            first = next((axis for axis, size in enumerate(shape) if size > 1), None)
            if len(shape) > 1 and first is not None and full.get((name, first), True):
                layer = name.removesuffix(".weight")
                freely = "excluded as asked" if layer in excluded else "keeps every unit"
                unchanged[layer] = reasons.get((name, first), freely)
        return unchanged

    @property
    def excluded(self) -> dict[str, Excluded]:
        """Returns what each name that the budget excludes keeps as it is."""
        budget = self.request.budget
        names = () if budget is None else budget.exclude
        return {str(name): self._excluded(units_of([name], self.graph)) for name in names}

    @property
    def untaken(self) -> dict[str, bool]:
        """Returns the branches that no example took: ``file:line`` → whether the pruned network raises there.

        It raises where the branch computes with sizes that the cut changed. Inputs that take a branch are given as
        ``more_inputs``. Branches of Python's own library are not listed.
        """
        guarded = {
            (module, correction.place)
            for module, made in self.architecture.corrections.items()
            for correction in made
            if correction.kind == GUARD
        }
        lines: dict[str, bool] = {}
        for branch in self.graph.solution.record.branches:
            raises = (branch.module, branch.place) in guarded
            if (raises or not branch.elsewhere) and not _is_of_python(branch.place[-1].function):
                lines[branch.line] = lines.get(branch.line, False) or raises
        return lines

    @property
    def uneven(self) -> dict[str, int]:
        """Returns layer → channels that are left, where 4 divided them before and does not now.

        Runtimes compute such layers slowly, often more slowly than the whole layer.
        """
        if self.graph.kind != "structure":
            return {}
        kept = self.graph.kept(self.keep)
        produced = dict.fromkeys(
            (part.tensor, part.axis) for group in self.graph.groups for part in group.by_role("output")
        )
        left = {tensor.removesuffix(".weight"): kept[tensor, axis] for tensor, axis in produced}
        return {layer: int(k.sum()) for layer, k in left.items() if len(k) % 4 == 0 and int(k.sum()) % 4}

    def _excluded(self, units: Keep) -> Excluded:
        """Returns the groups and layers that some units belong to."""
        groups = [group for group in self.graph.groups if group.name in units]
        if self.graph.kind == "block":
            stay = [b.name for g in groups for b, whole in zip(g.blocks, units[g.name].tolist(), strict=True) if whole]
            return Excluded(tuple(stay), ())
        others = {g.name: torch.zeros(g.units, dtype=torch.bool) for g in self.graph.groups if g.name not in units}
        kept = self.graph.kept(others)
        made = (part for group in groups for part in group.slices if part.role != "input")
        layers = dict.fromkeys(
            part.tensor.removesuffix(".weight")
            for part in made
            if len(self.graph.shapes[part.tensor]) > 1 and kept[part.tensor, part.axis].all()
        )
        return Excluded(tuple(group.name for group in groups), tuple(layers))

    def _full_tensors(self, names: Sequence[str]) -> dict[str, str]:
        """Returns why weight tensors keep every weight."""
        budget = self.request.budget
        n_of_m = None if budget is None else budget.n_of_m
        reasons = not_n_of_m(self.graph, names, n_of_m) if n_of_m else {}
        return {name: reasons.get(name, "keeps every weight") for name in names}

    def __str__(self) -> str:
        text = io.StringIO()
        console = Console(file=text, width=110, highlight=False)
        console.print(self._table())
        for line in self._lines():
            console.print(line, markup=False)
        return text.getvalue().rstrip()

    def _table(self) -> Table:
        table = Table(title=f"{self.method.name}: what each group keeps", title_justify="left")
        for heading in ("group", "feature map", "kept", "of", "share"):
            table.add_column(heading, justify="left" if heading in ("group", "feature map") else "right")
        for group in self.graph.groups:
            kept = int(self.keep[group.name].sum())
            table.add_row(group.name, group.stage, f"{kept:,}", f"{group.units:,}", f"{kept / group.units:.0%}")
        return table

    def _lines(self) -> Iterator[str]:
        """Yields what stands below the table."""
        if removed := removed_blocks(self.graph.groups, self.keep):
            yield f"Blocks removed: {', '.join(block.name for block in removed)}"
        if all(bool(kept.all()) for kept in self.keep.values()):
            trains = "train the network with it for longer or with a stronger penalty, or "
            yield f"No units were pruned: {trains if 'training' in self.method.needs else ''}give a smaller budget"
        if excluded := self.excluded:
            counted = (f"{name} ({_counted(each, self.graph.kind)})" for name, each in excluded.items())
            yield f"excluded as asked: {', '.join(counted)}"
        if unchanged := self.left_alone:
            yield "Layers left alone:"
            yield from (f"  {layer}: {reason}" for layer, reason in unchanged.items())
        if unread := self.graph.unread:
            yield f"nothing reads in evaluation: {', '.join(f'{name} ({each})' for name, each in unread.items())}"
        for operator in self.graph.unknown:
            yield f"Operator without a rule: {operator} (what it touches is pinned; topiarist.rule declares one)"
        for name, old, new in (
            ("MACs", self.before.macs, self.after.macs),
            ("parameters", self.before.params, self.after.params),
            ("peak activation memory in bytes", self.before.memory, self.after.memory),
        ):
            yield f"{name}: {old:,} → {new:,} ({new / max(old, 1):.1%})"
        if self.latency is not None:
            yield str(self.latency)
        if (uneven := self.uneven) and self.latency is None:
            first = ", ".join(f"{layer} {channels}" for layer, channels in list(uneven.items())[:3])
            yield (
                f"runtimes are slow where 4 does not divide the channels, as of {len(uneven)} here "
                f"({first}{', …' if len(uneven) > 3 else ''}): give multiple=8, or a latency budget"
            )
        if self.graph.kind == "weight":
            yield "pruned weights are zero, tensors keep their size: MACs and parameters count nonzeros"
        if self.repair is not None and self.repair != self.method:
            yield f"the kept weights were repaired by {self.repair.name}"
        if raising := [line for line, raises in self.untaken.items() if raises]:
            yield (
                "branches that no example took: if the pruned network takes one, it raises an error (give inputs that "
                f"take it as more_inputs): {', '.join(raising)}"
            )
        if silent := [line for line, raises in self.untaken.items() if not raises]:
            yield f"branches that no example took, which stay as they are: {listed(silent, 5)}"
        verdict = self.proof.reason or f"{self.proof.checked} ({', '.join(self.proof.paths)})"
        if self.graph.kind == "weight":
            yield f"checked: {verdict}"
        else:
            largest = f"largest relative difference {self.proof.max_rel_diff:.1e} in {self.proof.precision}"
            yield f"proof: {verdict}; {largest}"


def _is_of_python(function: str) -> bool:
    """Returns whether ``"module:qualified name"`` is in Python's own library, and no module of the same name."""
    name = function.partition(":")[0]
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.partition(".")[0] in sys.stdlib_module_names and file.startswith(get_path("stdlib"))


def _counted(excluded: Excluded, kind: Kind) -> str:
    """Returns for example ``"5 groups, 12 layers"``."""
    counts = {"block" if kind == "block" else "group": len(excluded.groups), "layer": len(excluded.layers)}
    return ", ".join(f"{n} {noun}{'s' * (n != 1)}" for noun, n in counts.items() if n) or "nothing there can be pruned"

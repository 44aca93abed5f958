"""What pruning gives: the smaller network, what it keeps and why, what it costs, and the proof."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from topiarist.architecture import Architecture
from topiarist.budget import Cost, misfits
from topiarist.graph import Graph, removed_blocks
from topiarist.methods import Method
from topiarist.pruning.choice import Choice
from topiarist.surgery import Proof


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning gave; `print` shows it as a table.

    Attributes:
        model: the smaller model, with the weights that survived.
        architecture: its shape.
        proof: that the cut computes what the mask does.
        before: MACs and parameters of the model that was given.
        after: those of the smaller one (nonzero ones, where single weights were removed).
        graph: of the model that was given.
        keep: group name → bool ``(units,)``.
        method: with its hyper-parameters.
        trained: the model that was cut: the given one, or its copy trained with the method's penalty.
        repair: the method that gave what was left new values, if any did.
        pattern: ``"N:M"``, where the budget asked for one.
        choice: what the last cut kept of the units that it found, and the scores by which it did.
    """

    model: nn.Module
    architecture: Architecture
    proof: Proof
    before: Cost
    after: Cost
    graph: Graph
    keep: Mapping[str, Tensor]
    method: Method
    trained: nn.Module
    repair: Method | None = None
    pattern: str | None = None
    choice: Choice | None = None

    @property
    def left_alone(self) -> dict[str, str]:
        """Layer → why it is as wide as it was; layers whose output shrank are left out. Of blocks, why they stay."""
        if self.graph.kind == "block":
            return dict(self.graph.irremovable)
        known = self.graph.kept(self.keep)
        cut_axes = {place for place, kept in known.items() if not kept.all()}
        reasons = {(p.tensor, p.axis): p.reason for p in self.graph.pinned}
        odd = misfits(self.graph, [name for name, axis in known if axis is None], self.pattern) if self.pattern else {}
        found: dict[str, str] = {}
        for name in self.graph.parameters:
            shape = self.graph.shapes[name]
            if len(shape) < 2:
                continue
            axes = [axis for axis in range(len(shape)) if shape[axis] > 1][:2]
            whole = (name, None)
            if whole in known:
                if whole not in cut_axes:
                    found[name] = odd.get(name, "keeps every weight")
            elif whole not in cut_axes and axes and not any((name, a) in cut_axes for a in axes[:1]):
                axis = axes[0]
                found[name.removesuffix(".weight")] = reasons.get((name, axis), "keeps every unit")
        return found

    def __str__(self) -> str:
        table = Table(title=f"{self.method.name}: what each group keeps", title_justify="left")
        for heading in ("group", "feature map", "kept", "of", "share"):
            table.add_column(heading, justify="left" if heading in ("group", "feature map") else "right")
        for group in self.graph.groups:
            kept = int(self.keep[group.name].sum())
            table.add_row(group.name, group.stage, f"{kept:,}", f"{group.units:,}", f"{kept / group.units:.0%}")
        text = io.StringIO()
        console = Console(file=text, width=110)
        console.print(table)
        if removed := removed_blocks(self.graph.groups, self.keep):
            console.print(f"Blocks removed: {', '.join(block.name for block in removed)}", highlight=False)
        if all(bool(kept.all()) for kept in self.keep.values()):
            trained = (
                " has to train a network before it, longer or harder than this one;" if _trains(self.method) else ""
            )
            console.print(f"Nothing goes: {self.method.name}{trained} a budget says how much shall go", highlight=False)
        if self.left_alone:
            console.print("Layers left alone:")
            for layer, reason in self.left_alone.items():
                console.print(f"  {layer}: {reason}", highlight=False)
        for operator in self.graph.unknown:
            console.print(f"Operator without a rule: {operator} (what it touches is pinned)", highlight=False)
        for name, old, new in (
            ("MACs", self.before.macs, self.after.macs),
            ("parameters", self.before.params, self.after.params),
        ):
            console.print(f"{name}: {old:,} → {new:,} ({new / max(old, 1):.1%})", highlight=False)
        if self.graph.kind == "weight":
            console.print("weights are set to zero, tensors keep their size: MACs and parameters count nonzeros")
        if self.repair is not None and self.repair != self.method:
            console.print(f"what was left was repaired by {self.repair.name}", highlight=False)
        verdict = self.proof.reason or self.proof.checked
        if self.graph.kind == "weight":
            console.print(f"checked: {verdict}")
        else:
            console.print(f"proof: {verdict}; largest relative difference {self.proof.max_rel_diff:.1e} in float64")
        return text.getvalue().rstrip()


def _trains(method: Method) -> bool:
    return "training" in method.needs

"""A network's computation for one shape of inputs: kernels where they can, torch's operators for the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from topiarist.measure import threads_set
from topiarist.sparse.capture import Captured, aten, value_of
from topiarist.sparse.code import Code
from topiarist.sparse.folding import folded
from topiarist.sparse.grids import FLOATS, Grid, Planes, extents
from topiarist.sparse.kernels import conv, matvec
from topiarist.sparse.layers import Layer, inside, passed
from topiarist.sparse.layout import Layout, Place, laid_out
from topiarist.sparse.moves import Mover
from topiarist.sparse.taps import Phase, Taps
from topiarist.sparse.team import Program, Step, Team
from topiarist.sparse.tuning import Candidates, Choice, Tuner, key_of, timed

_TABLE = matvec.table()
Values = dict[Node, Any]
Run = Callable[[Values], object]


class Call(NamedTuple):
    """Something that is not a kernel.

    Attributes:
        name: of the layer that it computes; empty where it computes none.
        run: computes it, and holds what torch's operators read.
    """

    name: str
    run: Run


Action = Program | Call


@dataclass(eq=False)
class Plan:
    """What is done when the network runs.

    Attributes:
        network: what is computed.
        actions: in order.
        lines: what runs how, for people.
        key: names layers, shapes and threads.
        torch_threads: of torch's operators: after one of them its threads stay awake, in the way of the kernels'.
    """

    network: Captured
    actions: list[Action]
    lines: list[str]
    key: str
    torch_threads: int = 1

    def __post_init__(self) -> None:
        self.results = [passed(node) for node in self.network.graph.output_node().args[0]]
        programs = [action for action in self.actions if isinstance(action, Program)]
        self.calls = len(programs) < len(self.actions)
        later = [given for program in programs for step in program.steps for _, given in step.later]
        self.fresh = {given.key for given in later if given.shape is not None}
        read = self.network.constants if self.calls else {given.key for given in later if given.shape is None}
        self.constants = {key: value for key, value in self.network.constants.items() if key in read}

    def run(self, leaves: Sequence[Any]) -> Any:
        """Runs the network; calls must not overlap.

        Args:
            leaves: of its arguments, in order.
        """
        if not self.calls:  # nothing of torch runs: its settings do not matter
            return self._run(leaves)
        with torch.inference_mode(False), torch.no_grad(), threads_set(self.torch_threads):
            return self._run(leaves)

    def _run(self, leaves: Sequence[Any]) -> Any:
        values = self._values(leaves)
        for action in self.actions:
            action(values) if isinstance(action, Program) else action.run(values)
        return self.network.returned([self._result(node, values) for node in self.results])

    def _values(self, leaves: Sequence[Any]) -> Values:
        values: Values = dict(self.constants)
        values.update(zip(self.network.inputs, leaves, strict=True))
        return values

    def _result(self, node: Any, values: Values) -> Any:
        """Returns a result that the next run does not write over."""
        if not isinstance(node, Node):
            return node
        value = values[node] if node in values else self.network.constants[node]
        if node in self.fresh or not isinstance(value, Tensor):
            return value
        return value.detach().clone(memory_format=torch.contiguous_format)

    def seconds(self, leaves: Sequence[Any], runs: int = 9) -> dict[str, float]:
        """Returns how long each layer takes while the network runs, by name; what is no layer under ``""``."""
        values = self._values(leaves)
        pieces: list[tuple[str, Callable[[], object]]] = []
        for action in self.actions:
            if isinstance(action, Program):
                pieces += [
                    (step.name, partial(part, values)) for step, part in zip(action.steps, action.parts, strict=True)
                ]
            else:
                pieces.append((action.name, partial(action.run, values)))
        times = np.array([[timed(run) for _, run in pieces] for _ in range(runs)])
        found: dict[str, float] = {}
        for (name, _), each in zip(pieces, np.median(times, axis=0), strict=True):
            found[name] = found.get(name, 0.0) + float(each)
        return found


def planned(network: Captured, code: Code, threads: int, tuner: Tuner, *, halves: bool = False) -> Plan:
    """Returns a plan.

    Args:
        network: what is computed.
        code: the kernels.
        threads: that walk a program together.
        tuner: chooses how a layer is computed.
        halves: products with one vector hold their weights in 16 bits.
    """
    nodes = list(network.graph.nodes)
    layers = folded(network)
    lanes = code.machine.lanes
    layout = laid_out(layers, nodes, lanes, most=code.machine.registers - 2)
    _hold_still(network, layers)
    maker = _Maker(network, layout, code, threads, tuner, halves)
    for node in nodes:
        maker.add(node)
    return Plan(network, maker.finished(), maker.lines, f"{threads} {digest(maker.keys)}")


def _hold_still(network: Captured, layers: Mapping[Node, Layer]) -> None:
    """Copies the weights that torch's operators read, so that all are those of now."""
    native = {*layers, *(node for layer in layers.values() for node in inside(layer))}
    for node, tensor in network.constants.items():
        if any(user not in native for user in node.users):
            network.constants[node] = tensor.clone()  # type: ignore[index]


class _Maker:
    """Makes the actions of a plan: kernels that follow one another become one program."""

    def __init__(self, network: Captured, layout: Layout, code: Code, threads: int, tuner: Tuner, halves: bool) -> None:
        self.network, self.layout, self.code, self.threads, self.tuner = network, layout, code, threads, tuner
        self.halves = halves
        self.team = Team(threads)
        self.mover = Mover(layout, code.machine.lanes, threads)
        self.results = {passed(node) for node in network.graph.output_node().args[0]}
        self.waiting: set[Node] = set()
        self.actions: list[Action] = []
        self.steps: list[Step] = []
        self.lines: list[str] = []
        self.keys: list[str] = []
        self.copied: set[Place] = set()
        self.folded = {inner for layer in layout.layers.values() for inner in inside(layer)}
        self.folded |= {inner for attention in layout.attentions.values() for inner in attention.inside}

    def finished(self) -> list[Action]:
        """Returns the actions."""
        self._end()
        return self.actions

    def add(self, node: Node) -> None:
        """Adds what computes a node."""
        if node.op != "call_function" or passed(node) is not node:
            return
        if node in self.layout.joins:
            self._join(node)
        elif node in self.layout.layers:
            self._layer(node)
        elif node in self.layout.attentions:
            self.steps.append(self.mover.attended(self.layout.attentions[node]))
            self.lines.append(f"{node.name}: kernel for attention")
            self._hold(node, self.layout.planes[self.layout.computed(node)])
        elif node in self.layout.gathered and node not in self.results:
            self.waiting.add(node)
        elif node not in self.folded:  # a layer that ends later computes it
            self._torch(node)

    def _want(self, node: Any) -> None:
        """Adds what computes a node that torch reads, where that was not sure before."""
        if node in self.waiting:
            self.waiting.remove(node)
            self._torch(node)

    def _end(self) -> None:
        """Ends a program."""
        if self.steps:
            self.actions.append(Program(self.steps, self.code, self.team))
            self.steps = []

    def _act(self, run: Run, name: str = "") -> None:
        self._end()
        self.actions.append(Call(name, run))

    def _torch(self, node: Node) -> None:
        """Adds an operator of torch."""
        views = (aten.view.default, aten._unsafe_view.default)
        target: Any = aten.reshape.default if node.target in views else node.target  # planes are not contiguous
        args, kwargs = node.args, node.kwargs
        strided = node.target is aten.as_strided.default

        def run(values: Values) -> None:
            def get(n: Node) -> Any:
                return values[passed(n)].contiguous() if strided else values[passed(n)]

            values[node] = target(*map_arg(args, get), **map_arg(kwargs, get))

        for operand in node.all_input_nodes:
            self._want(passed(operand))
        self.lines.append(f"{node.name}: torch")
        self._act(run)

    def _join(self, node: Node) -> None:
        """Adds what is joined, where it was not written there."""
        planes = self.layout.planes[Place(node, False)]
        view = planes.view
        for part, first in self.layout.copies.get(node, ()):
            source = self.layout.planes[Place(part, False)].view
            there = view[:, first : first + source.shape[1]]
            self._act(_copying(there, source))
        self._hold(node, planes)

    def _hold(self, node: Node, planes: Planes) -> None:
        """Lets torch's operators read a tensor that kernels write, and copies it out where it is a result."""
        self.network.constants[node] = planes.view  # type: ignore[index]
        if node in self.results:
            self.steps += self.mover.leaving(planes, node)

    def _copy(self, place: Place) -> None:
        """Adds the copy of a tensor into planes."""
        if not place.copied or place in self.copied:
            return
        self.copied.add(place)
        steps = self.mover.entering(place)
        if not steps or any(step.later for step in steps):  # read when a program begins: computed before
            self._want(place.node)
            if place.node in self.network.constants:
                self._end()
        self.steps += steps
        if not steps:
            view = self.layout.planes[place].view
            self._act(lambda values: view.copy_(values[place.node]))

    def _layer(self, node: Node) -> None:
        """Adds a layer, by a kernel or by torch."""
        layer, layout = self.layout.layers[node], self.layout
        result = layout.planes[layout.computed(node)]
        if node in layout.pools or layer.epsilon is not None:
            self._copy(layout.reads[node])
            self.steps.append(self.mover.pooled(layer) if node in layout.pools else self.mover.normed(layer))
            self.lines.append(f"{node.name}: kernel for {'windows' if node in layout.pools else 'norms'}")
            self._hold(node, result)
            return
        choice = self.tuner.choose(layer, result.grid, self._candidates(node, layer))
        self.keys.append(key_of(layer, result.grid))
        self.lines.append(f"{layer.name or node.name}: {_described(layer, choice, result.grid)}")
        if node in layout.adds:
            self._copy(layout.adds[node])
        if choice.dense:
            added = None if layer.added is None else passed(layer.added)
            source, view = passed(layer.source), result.view
            self._want(source)
            self._want(added)

            def dense(values: Values) -> None:
                view.copy_(layer.dense(values[source], None if added is None else values[added]))

            self._act(dense, layer.name)
        else:
            self._copy(layout.reads[node])
            self.steps += [self._kernel(node, layer, choice, phase) for phase in self._parts(node)]
        if node not in layout.split:
            self._hold(node, result)

    def _parts(self, node: Node) -> Sequence[Phase]:
        """Returns the phases by which a layer is computed; one, where it is not split."""
        layout = self.layout
        return layout.phases[layout.computed(node)] if node in layout.split else [(0, 0)]

    def _candidates(self, node: Node, layer: Layer) -> Candidates:
        """Returns the ways to compute a layer, for measuring: on what its planes hold now."""
        layout, source = self.layout, passed(layer.source)
        result = layout.planes[layout.computed(node)].view

        one = self._parts(node)[0]

        def kernel(choice: Choice) -> Callable[[], None]:
            return Program([self._kernel(node, layer, choice, one)], self.code, Team(1))

        def dense() -> None:
            held = self.network.constants.get(source)
            x = torch.zeros(value_of(source).shape, **FLOATS) if held is None else held
            added = layout.planes[layout.adds[node]].view if node in layout.adds else None
            result.copy_(layer.dense(x, added))

        return Candidates(kernel, None if node in layout.split else dense)

    def _kernel(self, node: Node, layer: Layer, choice: Choice, of: Phase) -> Step:
        """Returns the kernel of a layer with its arguments; of a layer that is split, for one phase."""
        if self.layout.planes[self.layout.computed(node)].grid.single:
            return self._product(node, layer, choice)
        layout, taps, result = self.layout, self.layout.taps[node], self.layout.planes[self.layout.computed(node)]
        read = layout.planes[layout.reads[node]]
        grid = result.grid
        known = layout.phases.get(layout.reads[node], [(0, 0)])
        x, y, zeros = read.address, result.address, result.inside
        phase: Any = 0
        if node in layout.split:
            place, size = layout.computed(node), extents(value_of(node).shape, tokens=False)
            x += 4 * known.index(of) * taps.inputs * grid.plane
            y += 4 * layout.phases[place].index(of) * taps.outputs * grid.plane
            zeros = grid.inside(*(-(-(n - d) // s) for n, d, s in zip(size, of, place.stride, strict=True)))
        else:
            phase = _phase(taps, known)
        offsets = (phase * taps.inputs + taps.channel) * grid.plane + taps.row * grid.stride + taps.column
        there, values, starts = taps.arranged(offsets, choice.tile, choice.chains, choice.together)
        blocks, vectors = grid.block(choice.vectors)
        added = layout.planes[layout.adds[node]] if node in layout.adds else None
        shares = taps.shares(self.threads, choice.together)
        given = {
            "x": x, "offsets": there, "values": values, "starts": starts,
            "bias": layer.bias.numpy().astype(np.float32), "zeros": zeros,
            "added": 0 if added is None else added.address, "y": y,
            "ranges": np.column_stack([np.zeros(self.threads), np.full(self.threads, blocks), shares]).astype(np.int64),
            "groups": taps.outputs // choice.together, "tiles": len(starts),
            "added_stride": grid.plane, "y_stride": grid.plane,
            "keep": (read.buffer, result.buffer, None if added is None else added.buffer),
        }  # fmt: skip
        then = layer.activation, layer.added is not None, layer.pooled
        made = conv.Convolution(grid.lanes, vectors, choice.chains, *then, choice.together)
        return Step(made, conv.POINTERS, conv.INTEGERS, given, layer.name)

    def _product(self, node: Node, layer: Layer, choice: Choice) -> Step:
        """Returns the product of a layer's weights with one vector."""
        layout, taps, result = self.layout, self.layout.taps[node], self.layout.planes[self.layout.computed(node)]
        lanes = self.code.machine.lanes
        known = layout.phases.get(layout.reads[node], [(0, 0)])
        places, inputs = _phase(taps, known) * taps.inputs + taps.channel, len(known) * taps.inputs
        bits = choice.bits and lanes > 4 and not self.halves
        packed = taps.marked(places, inputs, lanes) if bits else taps.indexed(places, inputs, halves=self.halves)
        read = layout.planes[layout.reads[node]]
        added = layout.planes[layout.adds[node]] if node in layout.adds else None
        given = {
            "x": read.address, "values": packed.values, "places": packed.places, "starts": packed.starts,
            "table": _TABLE, "bias": layer.bias.numpy().astype(np.float32), "y": result.address,
            "added": 0 if added is None else added.address, "ranges": taps.shares(self.threads),
            "vectors": packed.vectors, "keep": (read.buffer, result.buffer, None if added is None else added.buffer),
        }  # fmt: skip
        made = matvec.MatVec(lanes, packed.bits, packed.wide, packed.halves, layer.activation, layer.added is not None)
        return Step(made, matvec.POINTERS, matvec.INTEGERS, given, layer.name)


def _phase(taps: Taps, known: Sequence[Phase]) -> np.ndarray:
    """Returns for each nonzero which of the phases it reads."""
    return np.asarray(np.array([known.index(phase) for phase in taps.phases])[taps.phase])


def _copying(there: Tensor, source: Tensor) -> Run:
    """Returns what copies a tensor that stays where it is."""
    return lambda values: there.copy_(source)


def _described(layer: Layer, choice: Choice, grid: Grid) -> str:
    """Returns how a layer is computed, for people."""
    zeros = f"{1 - layer.density:.0%} zeros"
    if choice.dense:
        return f"{zeros}, dense in torch"
    if grid.single:
        return (
            f"{zeros}, kernel for one vector, {'a bit for each weight' if choice.bits else 'an index for each nonzero'}"
        )
    blocks = f"blocks of {choice.vectors} vector{'s' * (choice.vectors > 1)}"
    blocks += f" of {choice.together} outputs" * (choice.together > 1)
    tiles = "" if choice.tile >= layer.weight.shape[1] * layer.groups else f", tiles of {choice.tile} channels"
    return f"{zeros}, kernel, {blocks}{tiles}"


def digest(keys: Sequence[str]) -> str:
    """Returns a short name for many keys."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]

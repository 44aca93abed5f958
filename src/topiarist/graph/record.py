"""What one run of a network showed, as plain values: all that grouping, cuts, costs and proofs are computed from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from topiarist.graph.blocks import Block
from topiarist.graph.code.branches import Branch
from topiarist.graph.code.places import Place, Trails
from topiarist.graph.inputs import Form
from topiarist.graph.labels import LabelAlgebra, Labels, Vector
from topiarist.graph.memory import Storage
from topiarist.graph.norms import Normed
from topiarist.graph.outputs import Outputs
from topiarist.graph.sizes import Attribute, Equation


class Source(NamedTuple):
    """The labels of one axis of a parameter or buffer."""

    tensor: str
    axis: int
    labels: Labels


class Traced(NamedTuple):
    """What travels with a tensor.

    Attributes:
        vectors: one for each axis.
        zero: its dead positions hold zeros in the masked network.
        source: the parameter or buffer that it is, or is a part of, perhaps seen with its axes moved.
        scale: the parameter that has just scaled its channels, where a batch norm put it out.
    """

    vectors: tuple[Vector, ...]
    zero: bool = False
    source: str | None = None
    scale: str | None = None


class Contraction(NamedTuple):
    """A product of tensors: its multiplications are the product of the (kept) lengths in `factors`.

    `weight` names the parameter that is multiplied, where there is one: each of its elements is used equally often.
    `stage` is the size of the feature map that comes out, as in `Group`.
    """

    factors: tuple[int | Labels, ...]
    weight: str | None
    module: str
    stage: str = ""


class Statistic(NamedTuple):
    """An operator that mixes positions, so that dead ones must be left out.

    Attributes:
        kind: how it mixes them.
        vectors: of its input, where it runs over them; none where no position on them could be dead.
        module: the module that runs it.
        call: the run, and which call of the module in it.
        trails: where its code is.
    """

    kind: str
    vectors: tuple[Vector, ...]
    module: str
    call: tuple[int, int]
    trails: Trails


class Gather(NamedTuple):
    """Channels picked by the numbers in a buffer: which parameter scales them, and the numbers."""

    scale: str
    picked: Tensor


class Squeeze(NamedTuple):
    """Axes that vanished where the program named none, and the vectors of those that must stay."""

    dims: tuple[int, ...]
    vectors: tuple[Labels, ...]


class Mark(NamedTuple):
    """A role that labels of a parameter play, with the size of the feature map for outputs."""

    labels: Labels
    role: str
    stage: str


@dataclass(eq=False)
class Record:
    """What one run of a network showed, in plain values.

    Attributes:
        algebra: labels, unions and lines.
        types: class of each module.
        sources: the labels of every parameter and buffer.
        shapes: of every parameter and buffer.
        batch: length of the batch that was traced.
        contractions: products, for the costs.
        storages: what the operators of the first run allocated, for the peak of memory.
        statistics: operators that mix positions, in the order of execution.
        runs: what each run of the network was called with; statistics count them from 1.
        counts: what counts of what the network returns; ``None`` for all.
        outputs: what each module's outputs carry, by (module, call).
        aside: the same of the further runs: one for each further example, and the one in training mode.
        vectors: those that equations speak of, by their index.
        equations: sizes that the program asked for.
        attributes: the integers of modules, as they were traced.
        squeezes: by module and place, the axes that vanished where none was named, and the vectors that must not.
        parts: vectors of split axes, which no unit may empty.
        gathers: by the buffer that holds the numbers, what was picked right behind a batch norm.
        marks: roles of labels, in the order of execution.
        held: vectors that tensors carried, by the module that made them.
        unknown: operators without a rule, and how often.
        touched: names of the tensors that an operator used.
        read: of those from which outputs that count are computed, in evaluation (False) and in training mode (True).
        left_out: positions of parameters and buffers that a slice left out, by the tensor.
        numbering: names of the buffers that hold whole numbers or truth values.
        branches: parts of the code that no example took.
        normed: layers whose outputs a batch norm alone reads.
        blocks: residual blocks that can be removed.
        irremovable: module → why the branch that it adds cannot be removed.
    """

    algebra: LabelAlgebra
    types: Mapping[str, type[nn.Module]]
    sources: list[Source] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int = 1
    contractions: list[Contraction] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    runs: list[Form] = field(default_factory=list)
    counts: Outputs | None = None
    outputs: dict[tuple[str, int], list[Traced]] = field(default_factory=dict)
    aside: list[dict[tuple[str, int], list[Traced]]] = field(default_factory=list)
    vectors: list[Labels] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    attributes: Mapping[Attribute, int] = field(default_factory=dict)
    squeezes: dict[tuple[str, Place], Squeeze] = field(default_factory=dict)
    parts: list[Labels] = field(default_factory=list)
    gathers: dict[str, Gather] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    held: dict[str, list[Labels]] = field(default_factory=lambda: defaultdict(list))
    unknown: Counter[str] = field(default_factory=Counter)
    touched: set[str] = field(default_factory=set)
    read: dict[bool, set[str]] = field(default_factory=lambda: {False: set(), True: set()})
    left_out: list[tuple[str, Labels]] = field(default_factory=list)
    numbering: set[str] = field(default_factory=set)
    branches: tuple[Branch, ...] = ()
    normed: tuple[Normed, ...] = ()
    blocks: tuple[Block, ...] = ()
    irremovable: Mapping[str, str] = field(default_factory=dict)

    def axis(self, tensor: str, axis: int) -> Labels | None:
        """Returns the labels of one axis of a parameter or buffer; ``None`` where it has no more than one position."""
        return next((s.labels for s in self.sources if (s.tensor, s.axis) == (tensor, axis)), None)

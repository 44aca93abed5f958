"""What can be removed together: run a network once, follow its labels, solve them into groups of units."""

from topiarist.graph.blocks import Block, Part
from topiarist.graph.calls import (
    ALONE,
    READS,
    ModuleStack,
    Ratio,
    changed,
    converted,
    kind_of,
    mixing_kind,
    modes_restored,
    run,
    tensors_in,
    with_sizes,
)
from topiarist.graph.dropins import describe, swap_in, swapped_in
from topiarist.graph.graph import Graph, checked_keep
from topiarist.graph.groups import (
    Group,
    Keep,
    KeptPositions,
    Kind,
    Pinned,
    Scores,
    Site,
    Slice,
    broadcast_kept,
    kept_positions,
    removed_blocks,
)
from topiarist.graph.norms import Normed
from topiarist.graph.selector import NAME, ChannelSelector, declare, is_norm
from topiarist.graph.sizes import Attribute, assign
from topiarist.graph.solution import Correction
from topiarist.graph.tracing import check_finite, regroup, trace

__all__ = [
    "ALONE",
    "NAME",
    "READS",
    "Attribute",
    "Block",
    "ChannelSelector",
    "Correction",
    "Graph",
    "Group",
    "Keep",
    "KeptPositions",
    "Kind",
    "ModuleStack",
    "Normed",
    "Part",
    "Pinned",
    "Ratio",
    "Scores",
    "Site",
    "Slice",
    "assign",
    "broadcast_kept",
    "changed",
    "check_finite",
    "checked_keep",
    "converted",
    "declare",
    "describe",
    "is_norm",
    "kept_positions",
    "kind_of",
    "mixing_kind",
    "modes_restored",
    "regroup",
    "removed_blocks",
    "run",
    "swap_in",
    "swapped_in",
    "tensors_in",
    "trace",
    "with_sizes",
]

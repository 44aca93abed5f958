"""What can be removed together: run a network once, follow its labels, solve them into groups of units."""

from topiarist.graph.blocks import Block, Part
from topiarist.graph.calls import (
    ALONE,
    READS,
    ModuleStack,
    Ratio,
    fast_path_off,
    kind_of,
    mixing_kind,
    modes_restored,
    with_sizes,
)
from topiarist.graph.dropins import update_descriptions, use_dropins, with_dropins
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
from topiarist.graph.hindrance import hindrance
from topiarist.graph.inputs import (
    Arguments,
    Inputs,
    Keywords,
    call_model,
    converted,
    map_floats,
    named_tensors,
    tensors_in,
)
from topiarist.graph.norms import Normed
from topiarist.graph.selector import SELECTOR, ChannelSelector, declare_selectors, is_norm
from topiarist.graph.sizes import Attribute, assign_attributes
from topiarist.graph.solution import Correction
from topiarist.graph.tracing import check_finite, regroup, trace
from topiarist.graph.wrappers import unwrapped, unwrapped_names

__all__ = [
    "ALONE",
    "READS",
    "SELECTOR",
    "Arguments",
    "Attribute",
    "Block",
    "ChannelSelector",
    "Correction",
    "Graph",
    "Group",
    "Inputs",
    "Keep",
    "KeptPositions",
    "Keywords",
    "Kind",
    "ModuleStack",
    "Normed",
    "Part",
    "Pinned",
    "Ratio",
    "Scores",
    "Site",
    "Slice",
    "assign_attributes",
    "broadcast_kept",
    "call_model",
    "check_finite",
    "checked_keep",
    "converted",
    "declare_selectors",
    "fast_path_off",
    "hindrance",
    "is_norm",
    "kept_positions",
    "kind_of",
    "map_floats",
    "mixing_kind",
    "modes_restored",
    "named_tensors",
    "regroup",
    "removed_blocks",
    "tensors_in",
    "trace",
    "unwrapped",
    "unwrapped_names",
    "update_descriptions",
    "use_dropins",
    "with_dropins",
    "with_sizes",
]

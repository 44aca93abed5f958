"""What can be removed together: run a network once, follow its labels, solve them into groups of units."""

from topiarist.graph.blocks import Block, Part
from topiarist.graph.calls import (
    ALONE,
    SIZE_KEYWORDS,
    VIEWS,
    ModuleStack,
    fast_path_off,
    mixing_kind,
    modes_restored,
)
from topiarist.graph.code.branches import block_span, blocks_of
from topiarist.graph.code.places import Place, Step, Trail, slice_of, trails_here
from topiarist.graph.code.source import Span, Written, compiled, name_of, written
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
    Form,
    Inputs,
    Keywords,
    arguments_of,
    batch_of,
    call_model,
    check_plain,
    converted,
    form_of,
    map_floats,
    map_tensors,
    named_tensors,
    random_state_kept,
    seed_all,
    tensors_in,
    twice_the_batch,
)
from topiarist.graph.labels import labelled
from topiarist.graph.norms import Normed
from topiarist.graph.outputs import Outputs, as_outputs, counted, counting
from topiarist.graph.reading import Unread
from topiarist.graph.record import Contraction
from topiarist.graph.rules import Operation, is_own, rule
from topiarist.graph.selector import SELECTOR, ChannelSelector, declare_selectors, is_norm
from topiarist.graph.sizes import Attribute, assign_attributes
from topiarist.graph.solution import CORRECTIONS, GUARD, INFERRED, Correction, Corrections, Ratio
from topiarist.graph.tracing import check_finite, regroup, trace
from topiarist.graph.wrappers import class_names, is_sharded, unwrapped, unwrapped_names

__all__ = [
    "ALONE",
    "CORRECTIONS",
    "GUARD",
    "INFERRED",
    "SELECTOR",
    "SIZE_KEYWORDS",
    "VIEWS",
    "Arguments",
    "Attribute",
    "Block",
    "ChannelSelector",
    "Contraction",
    "Correction",
    "Corrections",
    "Form",
    "Graph",
    "Group",
    "Inputs",
    "Keep",
    "KeptPositions",
    "Keywords",
    "Kind",
    "ModuleStack",
    "Normed",
    "Operation",
    "Outputs",
    "Part",
    "Pinned",
    "Place",
    "Ratio",
    "Scores",
    "Site",
    "Slice",
    "Span",
    "Step",
    "Trail",
    "Unread",
    "Written",
    "arguments_of",
    "as_outputs",
    "assign_attributes",
    "batch_of",
    "block_span",
    "blocks_of",
    "broadcast_kept",
    "call_model",
    "check_finite",
    "check_plain",
    "checked_keep",
    "class_names",
    "compiled",
    "converted",
    "counted",
    "counting",
    "declare_selectors",
    "fast_path_off",
    "form_of",
    "hindrance",
    "is_norm",
    "is_own",
    "is_sharded",
    "kept_positions",
    "labelled",
    "map_floats",
    "map_tensors",
    "mixing_kind",
    "modes_restored",
    "name_of",
    "named_tensors",
    "random_state_kept",
    "regroup",
    "removed_blocks",
    "rule",
    "seed_all",
    "slice_of",
    "tensors_in",
    "trace",
    "trails_here",
    "twice_the_batch",
    "unwrapped",
    "unwrapped_names",
    "update_descriptions",
    "use_dropins",
    "with_dropins",
    "written",
]

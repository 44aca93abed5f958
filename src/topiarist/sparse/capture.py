"""A network's computation for one shape of inputs: a graph of torch's operators without side effects."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram, export
from torch.export.graph_signature import OutputKind
from torch.fx import Graph, Node
from torch.utils._pytree import TreeSpec, tree_unflatten

from topiarist.errors import TopiaristError
from topiarist.files import one_line

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Captured:
    """What a network computes.

    Attributes:
        graph: its operators in order; the last node is the output, a tuple of the tensors that it returns.
        constants: by placeholder, the parameter, buffer or constant that it stands for.
        names: by placeholder, the name of that.
        inputs: the placeholders of what the network is given: of all leaves of its arguments, in order.
        nesting: of what the network returns.
    """

    graph: Graph
    constants: Mapping[Node, Tensor]
    names: Mapping[Node, str]
    inputs: Sequence[Node]
    nesting: TreeSpec

    def returned(self, outputs: Sequence[Any]) -> Any:
        """Returns what the network returns, nested as it was."""
        return tree_unflatten(outputs, self.nesting)


EXPORTING = RLock()
"""Held while torch exports, which only one thread may do at a time."""


def captured(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captured:
    """Returns a network's computation for arguments of exactly this form.

    Raises:
        TopiaristError: torch cannot export it, or it does more than compute its outputs; the sentence says what.
    """
    try:
        with EXPORTING, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = export(model, tuple(args), dict(kwargs), strict=False)
            if not _functional(program.graph):
                program = program.run_decompositions({})
    except TopiaristError:
        raise
    except Exception as error:  # torch's export fails with many classes
        raise TopiaristError(f"torch cannot export the network ({one_line(error)}): run it in torch") from error
    return _read(program)


def value_of(node: Node) -> Any:
    """Returns a tensor like the one that a node computes, without values; of several the first."""
    value = node.meta["val"]
    return value[0] if isinstance(value, tuple) and node.target in FIRST else value


FIRST = {aten._native_batch_norm_legit_no_training.default}
"""Operators of whose results only the first is read."""


def _read(program: ExportedProgram) -> Captured:
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        raise TopiaristError("the network writes to its inputs or its buffers: run it in torch")
    if any(node.op == "get_attr" or isinstance(node.target, HigherOrderOperator) for node in program.graph.nodes):
        raise TopiaristError(
            "the network changes torch's modes, or has branches that torch exports apart: run it in torch"
        )
    signature, state = program.graph_signature, {**program.state_dict, **program.constants}
    held = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    names = {node: held[node.name] for node in placeholders if node.name in held}
    constants = {node: state[name].detach() for node, name in names.items() if isinstance(state.get(name), Tensor)}
    inputs = [node for node in placeholders if node not in names]
    nesting = program.call_spec.out_spec
    assert nesting is not None
    return Captured(program.graph, constants, names, inputs, nesting)


def _functional(graph: Graph) -> bool:
    """Replaces operators that write in place by those that do not; returns whether that was possible.

    It is where nothing else reads what is written over, neither itself nor by a view.
    """
    seen: list[Node] = []
    for node in list(graph.nodes):
        seen.append(node)
        if node.op != "call_function" or not _mutates(node.target):
            continue
        plain = _plain(node.target)
        target = node.args[0]
        if plain is None or not isinstance(target, Node) or target.op == "placeholder":
            return False
        if hidden := [each for each in (target, *target.users) if _may_be_what_it_was_given(each)]:
            raise TopiaristError(
                f"the network writes over a tensor that {hidden[0].name} may be another name of: run it in torch"
            )
        if any(map(may_view, (target, *target.users))) or any(user not in seen for user in target.users):
            return False
        node.target = plain
    return True


def _mutates(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def may_view(node: Node) -> bool:
    """Returns whether a node's value may share memory with what it was given."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return may_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    name = schema.name.partition("::")[2]
    if name.startswith(FRESH):
        return False
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return aliases or name.startswith(("unsafe_", "_unsafe_", "_reshape_alias")) or _may_be_what_it_was_given(node)


def _may_be_what_it_was_given(node: Node) -> bool:
    """Returns whether an operator may return a view of which its schema says nothing: torch composes it of others."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.name.partition("::")[2].startswith(FRESH):
        return False
    annotated = any(r.alias_info is not None for r in schema.returns)
    composed = node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return composed and not annotated


FRESH = ("conv", "linear", "batch_norm", "layer_norm", "group_norm", "matmul", "max_pool", "avg_pool", "adaptive_")
"""How operators begin that torch composes of others, of which their schema tells no views, and that return none."""


def _plain(target: Any) -> Any:
    """Returns the operator that computes the same without writing over its input."""
    packet, overload = target._schema.name.partition("::")[2], target._schema.overload_name or "default"
    if not packet.endswith("_") or not hasattr(aten, packet[:-1]):
        return None
    return getattr(getattr(aten, packet[:-1]), overload, None)

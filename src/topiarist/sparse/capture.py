"""A network's computation for one shape of inputs: a graph of torch's operators without side effects."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves, tree_unflatten

from topiarist.errors import TopiaristError
from topiarist.files import one_line
from topiarist.graph import Inputs, arguments_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Captured:
    """What a network computes.

    Attributes:
        graph: its operators in order; the last node is the output, a tuple of the tensors that it returns.
        constants: by placeholder, the parameter, buffer or constant that it stands for.
        names: by placeholder, the name of that.
        inputs: the placeholders of what the network is given, in order.
        program: torch's export, which knows how inputs and outputs are nested.
    """

    graph: Graph
    constants: Mapping[Node, Tensor]
    names: Mapping[Node, str]
    inputs: Sequence[Node]
    program: ExportedProgram

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Returns the values of the inputs, of a call of the network."""
        if not kwargs and all(isinstance(value, Tensor) for value in args):
            return list(args)
        order = self.program.call_spec.in_spec.child(1).context  # keywords as they came at first
        return tree_leaves((tuple(args), {name: kwargs[name] for name in order}))

    def returned(self, outputs: Sequence[Any]) -> Any:
        """Returns what the network returns, nested as it was."""
        return tree_unflatten(list(outputs), self.program.call_spec.out_spec)


def captured(model: nn.Module, inputs: Inputs) -> Captured:
    """Returns a network's computation for inputs of exactly these shapes.

    Raises:
        TopiaristError: torch cannot export it; the sentence says why.
    """
    args, kwargs = arguments_of(inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = export(model, tuple(args), dict(kwargs), strict=False)
            if not _functional(program.graph):
                program = program.run_decompositions({})
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
    return Captured(program.graph, constants, names, inputs, program)


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
        if plain is None or not isinstance(target, Node) or target.op == "placeholder" or may_view(target):
            return False
        if any(may_view(user) for user in target.users) or any(user not in seen for user in target.users):
            return False
        node.target = plain
    return True


def _mutates(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def may_view(node: Node) -> bool:
    """Returns whether a node may return what it was given."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return may_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    name = schema.name.partition("::")[2]
    maybe = {"reshape", "flatten", "contiguous", "to", "dropout", "alpha_dropout", "feature_dropout", "unflatten"}
    return name in maybe or any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def _plain(target: Any) -> Any:
    """Returns the operator that computes the same without writing over its input."""
    packet, overload = target._schema.name.partition("::")[2], target._schema.overload_name or "default"
    if not packet.endswith("_") or not hasattr(aten, packet[:-1]):
        return None
    return getattr(getattr(aten, packet[:-1]), overload, None)

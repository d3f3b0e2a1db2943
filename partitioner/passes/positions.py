"""Positions that an export counts become the input ``position_ids`` [users, tokens].

An export counts them once for all users, as [tokens] or [1, tokens, ...]. Everything that is computed from them alone
then gets an axis of users, as under ``torch.vmap``, until it meets a value that has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ir.builder import GraphBuilder
from ir.diagnostics import UnsupportedModelError
from ir.graph import Graph, Node
from ir.ops import ELEMENT_BY_ELEMENT
from ir.types import Dim, DType, Shape, Size, TensorType, product

NAME = "position_ids"
_LOOK_UP = frozenset({"embedding", "gather", "scatter"})
_AXES = ("dim", "dims")


class _NoPositionsError(ValueError):
    """What was counted is used as something else."""


def take_positions(graph: Graph, ids: str, tokens: Dim, past: Dim) -> Graph:
    """``graph`` with an input for its positions, the one that it has or a new one; unchanged where it counts none, or
    uses them as something else.

    ``ids`` is the input of token ids, of the shape that positions will have.
    """
    shape = graph.types[ids].shape
    counted = _counted(graph, tokens, past)
    if (
        not counted
        or len(shape) != 2
        or any(value.name == NAME and value.type.shape != shape for value in graph.inputs)
    ):
        return graph
    try:
        return _lift(graph, counted, shape[0], TensorType(DType.I64, shape))
    except (_NoPositionsError, UnsupportedModelError):
        return graph


def _counted(graph: Graph, tokens: Dim, past: Dim) -> frozenset[str]:
    """Values [tokens] that are the positions of the step's tokens: counted from the number of remembered ones."""
    has_past = any(past in node_type.shape for node_type in graph.types.values())
    counts = {
        node.result.name
        for node in graph.nodes
        if node.op == "arange"
        and (node.result.type.shape, node.attributes["start"], node.attributes["step"]) == ((tokens,), 0, 1)
    }
    if not has_past:
        return frozenset(counts)
    return frozenset(
        node.result.name
        for node in graph.nodes
        if node.op == "add"
        and len(node.inputs) == 2
        and counts.intersection(node.inputs)
        and any(_is_count(graph, name, past) for name in node.inputs)
    )


def _is_count(graph: Graph, name: str, past: Dim) -> bool:
    """Whether a value is the number of remembered tokens: the sum of so many ones."""
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        if node.op == "full":
            return bool(node.attributes["value"] == 1 and node.result.type.shape == (past,))
        if node.op not in ("sum", "reshape"):
            return False
        name = node.inputs[0]
    return False


def _lift(graph: Graph, counted: frozenset[str], users: Size, type_: TensorType) -> Graph:
    builder = GraphBuilder(graph.name)
    for value in graph.inputs:
        builder.input(value.name, value.type)
    if not any(value.name == NAME for value in graph.inputs):
        builder.input(NAME, type_)
    for parameter in graph.parameters:
        builder.parameter(parameter.name, parameter.type, parameter.encoding)
    work = _Lifting(graph, builder, users, dict.fromkeys(counted, NAME))
    for node in graph.nodes:
        if not counted.intersection(value.name for value in node.results):
            work.add(node)
    return builder.finish(graph.outputs)


class _Lifting:
    """One pass over a graph. ``lifted`` names, for each value that got an axis of users before its own, the new one."""

    def __init__(self, graph: Graph, builder: GraphBuilder, users: Size, lifted: dict[str, str]) -> None:
        self._graph, self._builder, self._users, self._lifted = graph, builder, users, lifted

    def add(self, node: Node) -> None:
        """Add ``node`` to the new graph."""
        if not any(name in self._lifted for name in node.inputs):
            self._emit(self._led(node), node.inputs)
        elif node.op == "reshape":
            shape: Shape = node.attributes["shape"]
            settled = shape[:1] == (1,)
            self._emit(
                replace(node, attributes={"shape": (self._users, *(shape[1:] if settled else shape))}),
                (self._lifted[node.inputs[0]],),
                lifted=not settled,
            )
        elif node.op in ELEMENT_BY_ELEMENT:
            self._elementwise(node)
        elif node.op == "embedding" and node.inputs[0] in self._graph.parameter:
            self._emit(node, (node.inputs[0], self._lifted[node.inputs[1]]), lifted=True)
        else:
            raise _NoPositionsError(node.op)

    def _led(self, node: Node) -> Node:
        """A node whose operand may have users now where it had one for all; a stated shape follows."""
        if node.op not in ("reshape", "expand"):
            return node
        shape: Shape = node.attributes["shape"]
        before, now = self._graph.types[node.inputs[0]].shape, self._builder.type(node.inputs[0]).shape
        if before == now or shape[:1] != (1,):
            return node
        return replace(node, attributes={"shape": (self._users, *shape[1:])})

    def _elementwise(self, node: Node) -> None:
        """Operands of fewer axes are aligned at the last; where an axis of one stands first, it becomes the users'."""
        rank = len(node.result.type.shape)
        shapes = [(1,) * (rank - len(s)) + tuple(s) for s in (self._graph.types[n].shape for n in node.inputs)]
        is_lifted = [name in self._lifted for name in node.inputs]
        settled = all(shape[0] == 1 for shape, lifted in zip(shapes, is_lifted, strict=True) if lifted)
        names = []
        for name, shape in zip(node.inputs, shapes, strict=True):
            if name in self._lifted:
                wanted = (self._users, *(shape[1:] if settled else shape))
                names.append(self._reshaped(self._lifted[name], wanted, node.origin))
            else:
                names.append(name)
        self._emit(node, tuple(names), lifted=not settled)

    def _reshaped(self, name: str, shape: Shape, origin: str) -> str:
        if self._builder.type(name).shape == shape:
            return name
        if self._builder.type(name).elements != product(shape):
            raise _NoPositionsError("reshape")
        return self._builder.add("reshape", (name,), origin, shape=shape)

    def _emit(self, node: Node, inputs: Iterable[str], *, lifted: bool = False) -> None:
        names = [value.name for value in node.results]
        self._builder.add(node.op, tuple(inputs), node.origin, names, **node.attributes)
        if lifted:
            self._lifted |= {name: name for name in names}

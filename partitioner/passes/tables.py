"""Small weights that are multiplied by positions alone, such as rotary frequencies, are constants of the computation.

A model computes them when it is built, and its checkpoint does not hold them; exporters store them beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ir.graph import Graph, Node, Value
from ir.ops import ELEMENT_BY_ELEMENT, OPS, Kind
from ir.types import Dim

_COMBINES = frozenset({"mul", "div", "matmul", "linear"})
_MOST_ELEMENTS = 4096


def position_tables(graph: Graph) -> tuple[str, ...]:
    """Parameters that meet nothing but positions."""
    positions = _position_only(graph)
    return tuple(
        parameter.name
        for parameter in graph.parameters
        if parameter.type.dtype.is_float and parameter.elements <= _MOST_ELEMENTS
        if _meets_only(graph, parameter.name, positions)
    )


def hold_tables(graph: Graph, values: Mapping[str, tuple[float, ...]]) -> Graph:
    """``graph`` with constants in the place of the parameters in ``values``."""
    parameters = tuple(p for p in graph.parameters if p.name not in values)
    constants = tuple(
        Node(
            "constant",
            (),
            (Value(p.name, p.type),),
            {"values": values[p.name], "shape": p.type.shape, "dtype": p.type.dtype},
            p.name,
        )
        for p in graph.parameters
        if p.name in values
    )
    nodes = tuple(item for node in graph.nodes for item in _without_weight(node, values, graph))
    return replace(graph, parameters=parameters, nodes=(*constants, *nodes))


def _without_weight(node: Node, values: Mapping[str, Any], graph: Graph) -> list[Node]:
    """A product with a constant is no product with a weight."""
    if node.op != "linear" or node.inputs[1] not in values:
        return [node]
    x, weight = node.inputs
    if node.attributes["transposed"]:
        return [replace(node, op="matmul", attributes={})]
    type_ = graph.types[weight]
    flipped = Value(f"{node.result.name}.table", type_.with_shape(type_.shape[::-1]))
    turn = Node("transpose", (weight,), (flipped,), {"permutation": (1, 0)}, node.origin)
    return [turn, replace(node, op="matmul", inputs=(x, flipped.name), attributes={})]


def _position_only(graph: Graph) -> frozenset[str]:
    """Values computed from counted or given positions, and from no weight: all that depends on integer inputs alone."""
    found = {v.name for v in graph.inputs if not v.type.dtype.is_float}
    constant: set[str] = set()
    for node in graph.nodes:
        names = {value.name for value in node.results}
        if node.op == "arange" and any(isinstance(size, Dim) for size in node.result.type.shape):
            found |= names
        elif not node.inputs or constant.issuperset(node.inputs):
            constant |= names
        elif all(name in found or name in constant for name in node.inputs):
            found |= names
    return frozenset(found)


def _meets_only(graph: Graph, name: str, positions: frozenset[str]) -> bool:
    """Whether every reader multiplies the weight, or a view of it, by positions."""
    readers = graph.consumers.get(name, ())
    return (
        bool(readers) and name not in graph.outputs and all(_is_table_for(graph, name, r, positions) for r in readers)
    )


def _is_table_for(graph: Graph, name: str, reader: int, positions: frozenset[str]) -> bool:
    node = graph.nodes[reader]
    if OPS[node.op].kind is Kind.VIEW or node.op == "cast" or (node.op in ELEMENT_BY_ELEMENT and len(node.inputs) == 1):
        return _meets_only(graph, node.result.name, positions)
    others = [operand for operand in node.inputs if operand != name]
    return node.op in _COMBINES and len(node.inputs) == 2 and len(others) == 1 and others[0] in positions

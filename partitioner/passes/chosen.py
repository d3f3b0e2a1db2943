"""Products with the experts' weights that each row looked up are products by expert.

A model may gather a matrix for every row out of a stack [experts, in, out] and multiply each row with its own. Done so,
every token would copy its experts' weights; ``grouped_linear`` names the stack and the choice instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ir.graph import Graph, Node, Value
from ir.types import Shape


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A stack of matrices, and which of them each row takes; ``flipped``: each is turned before it is used."""

    stack: str
    indices: str
    flipped: bool


def group_chosen(graph: Graph) -> Graph:
    """A graph with the same outputs in which such products are ``grouped_linear``."""
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _by_expert(graph, node) if node.op == "matmul" else [node]
    return replace(graph, nodes=tuple(nodes))


def _by_expert(graph: Graph, node: Node) -> list[Node]:
    """Rows [n, 1, in] times looked-up matrices [n, in, out], or matrices [n, out, in] times columns [n, in, 1]."""
    left, right = node.inputs
    shape = node.result.type.shape
    if len(shape) != 3 or any(len(graph.types[name].shape) != 3 for name in node.inputs):
        return [node]
    chosen = _chosen(graph, right)
    if chosen is not None and graph.types[left].shape[1] == 1:
        return _product(graph, node, left, replace(chosen, flipped=not chosen.flipped), shape)
    chosen = _chosen(graph, left)
    if chosen is not None and graph.types[right].shape[2] == 1:
        return _product(graph, node, right, chosen, (shape[0], 1, shape[1]))
    return [node]


def _product(graph: Graph, node: Node, x: str, chosen: _Chosen, shape: Shape) -> list[Node]:
    name, origin = node.result.name, node.origin
    rows = Value(f"{name}.rows", graph.types[x].with_shape((shape[0], 1, _width(graph.types[x].shape))))
    picks = Value(f"{name}.choice", graph.types[chosen.indices].with_shape((shape[0], 1)))
    products = Value(f"{name}.by_expert", node.result.type.with_shape(shape))
    return [
        Node("reshape", (x,), (rows,), {"shape": rows.type.shape}, origin),
        Node("reshape", (chosen.indices,), (picks,), {"shape": picks.type.shape}, origin),
        Node(
            "grouped_linear",
            (rows.name, chosen.stack, picks.name),
            (products,),
            {"transposed": chosen.flipped},
            origin,
        ),
        Node("reshape", (products.name,), node.results, {"shape": node.result.type.shape}, origin),
    ]


def _width(shape: Shape) -> int:
    """The inputs of rows [n, 1, in] or columns [n, in, 1]."""
    width = shape[2] if shape[1] == 1 else shape[1]
    assert isinstance(width, int)
    return width


def _chosen(graph: Graph, name: str) -> _Chosen | None:
    """How the matrices [n, ...] of ``name`` were looked up in a stack among the parameters."""
    flipped = False
    shape = graph.types[name].shape[1:]
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        if node.op == "transpose" and node.attributes["permutation"] == (0, 2, 1):
            flipped = not flipped
            shape = shape[::-1]
        elif node.op == "embedding":
            return _looked_up(graph, node, shape, flipped)
        elif node.op != "reshape":
            return None
        name = node.inputs[0]
    return None


def _looked_up(graph: Graph, node: Node, shape: Shape, flipped: bool) -> _Chosen | None:
    table, indices = node.inputs
    while table in graph.producer and graph.nodes[graph.producer[table]].op == "reshape":
        table = graph.nodes[graph.producer[table]].inputs[0]
    if table not in graph.parameter or graph.types[table].shape[1:] != shape:
        return None
    return _Chosen(table, indices, flipped)

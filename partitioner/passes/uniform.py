"""Values whose elements are all one number, such as a mask that hides nothing, become that number.

Exports compute with masks of padding even where nothing is padded. Once such a mask is known to be ones, everything
that it decides is known too, and the rest of the graph does not depend on it any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from ir.graph import Graph, Node, Value
from ir.interpret import interpret
from ir.ops import ELEMENT_BY_ELEMENT, OPS, Kind
from ir.types import DType, TensorType

Number = bool | int | float
_CHOOSES = frozenset({"embedding", "gather"})
_NEUTRAL: dict[str, Number] = {
    "logical_and": True,
    "bitwise_and": True,
    "logical_or": False,
    "bitwise_or": False,
    "add": 0,
    "sub": 0,
    "mul": 1,
    "div": 1,
}
"""Second operands that change nothing; of the first operand too where order does not matter."""
_ORDERED = frozenset({"sub", "div"})


def fold_uniform(graph: Graph) -> Graph:
    """A graph with the same outputs in which such values are ``full``, and what they leave unchanged is skipped."""
    numbers: dict[str, Number] = {}
    counts: set[str] = set()
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        same = _unchanged(node, numbers, graph.types)
        if _is_count(node, counts):
            counts |= {value.name for value in node.results[-1:]}
        number = _number(node, numbers, graph.types) if len(node.results) == 1 else None
        if node.op == "lt" and node.inputs[0] in counts and node.attributes.get("scalar") == 0:
            number = False
        if number is not None:
            numbers[node.result.name] = number
            nodes.append(_full(node, number))
        elif same is not None:
            renamed[node.result.name] = same
        elif node.op == "sum" and graph.types[node.inputs[0]].elements == node.result.type.elements:
            shaped = {"shape": node.result.type.shape}
            nodes.append(replace(node, op="reshape", attributes=shaped) if _keeps_dtype(node, graph) else node)
        elif node.op == "cumsum" and numbers.get(node.inputs[0]) == 1 and not node.result.type.dtype.is_float:
            nodes += _counted(node)
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), outputs=tuple(renamed.get(name, name) for name in graph.outputs))


def _keeps_dtype(node: Node, graph: Graph) -> bool:
    return graph.types[node.inputs[0]].dtype is node.result.type.dtype


def _is_count(node: Node, counts: set[str]) -> bool:
    """Whether a node's last result is never negative: indices, what is counted up from zero, and views of these."""
    if node.op in ("topk", "argmax"):
        return True
    if node.op == "arange":
        return bool(node.attributes["start"] >= 0 and node.attributes["step"] > 0)
    views = OPS[node.op].kind is Kind.VIEW or node.op in _CHOOSES or node.op == "cast"
    return views and node.inputs[0] in counts


def _full(node: Node, number: Number) -> Node:
    type_ = node.result.type
    if node.op == "full" or (node.op == "constant" and not type_.shape):
        return node
    value: Number = (
        float(number) if type_.dtype.is_float else bool(number) if type_.dtype is DType.BOOL else int(number)
    )
    return replace(node, op="full", inputs=(), attributes={"dtype": type_.dtype, "shape": type_.shape, "value": value})


def _number(node: Node, numbers: dict[str, Number], types: dict[str, TensorType]) -> Number | None:
    """The number that every element of the node's result is."""
    if node.op == "full":
        value: Number = node.attributes["value"]
        return value
    if node.op == "constant":
        return _only(node.attributes["values"])
    if not node.inputs:
        return None
    if OPS[node.op].kind is Kind.VIEW or node.op in _CHOOSES:
        return numbers.get(node.inputs[0])
    if node.op == "concat":
        return _only(numbers.get(name) for name in node.inputs)
    if node.op in ("logical_and", "bitwise_and") and any(numbers.get(name) is False for name in node.inputs):
        return False
    if node.op == "sum" and node.inputs[0] in numbers:
        count = math.prod(types[node.inputs[0]].shape[dim] for dim in node.attributes["dims"])
        return numbers[node.inputs[0]] * count if isinstance(count, int) else None
    if node.op in ELEMENT_BY_ELEMENT and all(name in numbers for name in node.inputs):
        return _computed(node, numbers, types)
    return None


def _only(items: Iterable[Number | None]) -> Number | None:
    """The one item that all are."""
    found = list(items)
    return found[0] if found and all(item is not None and item == found[0] for item in found) else None


def _computed(node: Node, numbers: dict[str, Number], types: dict[str, TensorType]) -> Number | None:
    fills = [
        Node("full", (), (Value(n, types[n]),), {"dtype": types[n].dtype, "shape": (), "value": numbers[n]}, "")
        for n in dict.fromkeys(node.inputs)
    ]
    result = node.result.name
    number: Number = interpret(Graph("number", (), (), (*fills, node), (result,)), {})[result].item()
    return number if number == number else None


def _unchanged(node: Node, numbers: dict[str, Number], types: dict[str, TensorType]) -> str | None:
    """The operand that the node's result equals."""
    candidates: list[str] = []
    if node.op == "where" and node.inputs[0] in numbers:
        candidates = [node.inputs[1 if numbers[node.inputs[0]] else 2]]
    elif node.op == "masked_fill" and numbers.get(node.inputs[1]) is False:
        candidates = [node.inputs[0]]
    elif node.op in _NEUTRAL and len(node.inputs) == 2:
        left, right = node.inputs
        neutral = _NEUTRAL[node.op]
        if numbers.get(right) == neutral:
            candidates.append(left)
        if numbers.get(left) == neutral and node.op not in _ORDERED:
            candidates.append(right)
    return next((name for name in candidates if types[name] == node.result.type), None)


def _counted(node: Node) -> list[Node]:
    """The running sum of ones: 1, 2, 3 and so on along its axis."""
    name, type_, dim = node.result.name, node.result.type, node.attributes["dim"]
    size = type_.shape[dim]
    flat = Value(f"{name}.counted", TensorType(type_.dtype, (size,)))
    row = tuple(size if axis == dim else 1 for axis in range(len(type_.shape)))
    shaped = Value(f"{name}.row", TensorType(type_.dtype, row))
    counting = {"dtype": type_.dtype, "shape": (size,), "start": 1, "step": 1}
    return [
        Node("arange", (), (flat,), counting, node.origin),
        Node("reshape", (flat.name,), (shaped,), {"shape": row}, node.origin),
        Node("expand", (shaped.name,), node.results, {"shape": type_.shape}, node.origin),
    ]

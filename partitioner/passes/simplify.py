"""Canonical form: what only renames, undoes or is never read goes away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ir.graph import Graph, Node


def simplify(graph: Graph) -> Graph:
    """A graph with the same outputs: views of parts that were just joined read the parts, operations that change
    nothing are skipped, a weight's transposition becomes the product's own, and dead nodes are dropped.

    Joining and taking apart matters: DeepSeek's keys are assembled by writing into slices of an empty tensor.
    """
    renamed: dict[str, str] = {}
    defined: dict[str, Node] = {}
    nodes: list[Node] = []
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        node = _take_from_parts(_absorb_transpose(node, graph, defined), defined, graph)
        same = _same_as(node, graph)
        if same is not None:
            renamed[node.result.name] = same
            continue
        defined.update((value.name, node) for value in node.results)
        nodes.append(node)
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=live_nodes(nodes, outputs), outputs=outputs)


def _same_as(node: Node, graph: Graph) -> str | None:
    """The operand that ``node`` merely repeats."""
    if not node.inputs:
        return None
    operand = node.inputs[0]
    keeps_type = len(node.results) == 1 and graph.types[operand] == node.result.type
    neutral = {"mul": 1, "div": 1, "add": 0, "sub": 0, "pow": 1}
    if keeps_type and node.op in neutral:
        return operand if node.attributes.get("scalar") == neutral[node.op] else None
    if keeps_type and node.op == "slice":
        return operand if node.attributes["step"] == 1 else None
    if keeps_type and node.op == "transpose":
        order = node.attributes["permutation"]
        return operand if order == tuple(range(len(order))) else None
    if keeps_type and (node.op in ("cast", "reshape", "expand") or (node.op == "concat" and len(node.inputs) == 1)):
        return operand
    return None


def _take_from_parts(node: Node, defined: dict[str, Node], graph: Graph) -> Node:
    """A slice of joined parts as a slice of one part, which may be joined itself, or as the joining of those parts
    that it covers.
    """
    source = defined.get(node.inputs[0]) if node.op == "slice" else None
    if source is None or source.op != "concat" or node.attributes["step"] != 1:
        return node
    dim, start, end = (node.attributes[name] for name in ("dim", "start", "end"))
    if source.attributes["dim"] != dim:
        return node
    covered: list[str] = []
    offset = 0
    for part in source.inputs:
        size = graph.types[part].shape[dim]
        if not isinstance(size, int):
            return node
        if offset <= start and end <= offset + size:
            inside = {"dim": dim, "start": start - offset, "end": end - offset, "step": 1}
            return _take_from_parts(replace(node, inputs=(part,), attributes=inside), defined, graph)
        if start <= offset and offset + size <= end:
            covered.append(part)
        elif start < offset + size and offset < end:
            return node
        offset += size
    return replace(node, op="concat", inputs=tuple(covered), attributes={"dim": dim})


def _absorb_transpose(node: Node, graph: Graph, defined: dict[str, Node]) -> Node:
    """A product with a transposed weight as one that transposes the weight itself."""
    weight = defined.get(node.inputs[1]) if node.op in ("linear", "matmul") else None
    if weight is None or weight.op != "transpose" or weight.inputs[0] not in graph.parameter:
        return node
    if len(weight.result.type.shape) != 2:
        return node
    inputs = (node.inputs[0], weight.inputs[0], *node.inputs[2:])
    as_stored = node.op == "matmul" or bool(node.attributes["transposed"])
    return replace(node, op="linear", inputs=inputs, attributes={"transposed": not as_stored})


def live_nodes(nodes: Sequence[Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    """Those of ``nodes`` that ``outputs`` depend on."""
    read = set(outputs)
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(value.name in read for value in node.results):
            read.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))

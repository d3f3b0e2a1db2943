"""The contents of small values that the graph computes from constants alone, by its own reference meaning."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ir.graph import Node
from ir.ops import OPS, evaluate
from ir.types import Dim, TensorType
from partitioner.frontends.builder import GraphBuilder
from partitioner.frontends.onnx_file.arrays import to_numpy, to_torch
from partitioner.frontends.onnx_file.constants import LARGEST_ELEMENTS, Known
from partitioner.frontends.onnx_file.reading import Weight


def evaluated(name: str, builder: GraphBuilder, weights: Mapping[str, Weight]) -> Known | None:
    """The contents of ``name``; ``None`` where an input, a symbol, or a large or external weight has a part in it."""
    needed = _ancestors(name, builder, weights)
    if needed is None:
        return None
    import torch

    values: dict[str, Any] = {}
    for node in needed:
        values |= {read: to_torch(torch, weights[read].array()) for read in node.inputs if read not in values}
        values |= _results(torch, node, values)
    if name not in values:
        values[name] = to_torch(torch, weights[name].array())
    dtype = builder.type(name).dtype
    return Known.from_array(dtype, to_numpy(torch, values[name], dtype))


def _results(torch: ModuleType, node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
    types = [value.type for value in node.results]
    found = evaluate(OPS[node.op], torch, [values[read] for read in node.inputs], node.attributes, types)
    return dict(zip((value.name for value in node.results), found, strict=True))


def _ancestors(name: str, builder: GraphBuilder, weights: Mapping[str, Weight]) -> list[Node] | None:
    """The nodes that ``name`` is computed by, in order, if all is small and none reads an input of the graph."""
    wanted, nodes = {name}, []
    for node in reversed(builder.nodes):
        if any(value.name in wanted for value in node.results):
            if not all(_is_small(value.type) for value in node.results) or _is_symbolic(node):
                return None
            nodes.append(node)
            wanted -= {value.name for value in node.results}
            wanted |= set(node.inputs)
    small = all(read in weights and not weights[read].is_external and _is_small(builder.type(read)) for read in wanted)
    return nodes[::-1] if small else None


def _is_small(type_: TensorType) -> bool:
    elements = type_.elements
    return isinstance(elements, int) and elements <= LARGEST_ELEMENTS


def _is_symbolic(node: Node) -> bool:
    return any(
        isinstance(item, Dim)
        for value in node.attributes.values()
        for item in (value if isinstance(value, tuple) else (value,))
    )

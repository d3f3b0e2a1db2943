"""The contents of small values that the graph computes from constants alone, by its own reference meaning."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ir.builder import GraphBuilder
from ir.graph import Node
from ir.ops import OPS, evaluate
from ir.types import Dim, TensorType
from partitioner.frontends.onnx_file.arrays import to_numpy, to_torch
from partitioner.frontends.onnx_file.constants import LARGEST_ELEMENTS, Known, UnfoldableError
from partitioner.frontends.onnx_file.reading import Stored, Weight


def evaluated(name: str, builder: GraphBuilder, weights: Mapping[str, Weight | Stored]) -> Known | None:
    """The contents of ``name``; ``None`` where an input, a symbol, or a large or external weight has a part in it.

    Raises:
        UnfoldableError: torch cannot compute it, for example because an index lies outside.
    """
    needed = _ancestors(name, builder, weights)
    if needed is None:
        return None
    import torch

    values: dict[str, Any] = {}
    for node in needed:
        values |= {read: to_torch(torch, weights[read].array()) for read in node.inputs if read not in values}
        try:
            values |= _results(torch, node, values)
        except (RuntimeError, IndexError) as error:
            raise UnfoldableError(f"{node.op} cannot be computed: {str(error).splitlines()[0]}") from None
    if name not in values:
        values[name] = to_torch(torch, weights[name].array())
    dtype = builder.type(name).dtype
    return Known.from_array(dtype, to_numpy(torch, values[name], dtype))


def _results(torch: ModuleType, node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
    types = [value.type for value in node.results]
    found = evaluate(OPS[node.op], torch, [values[read] for read in node.inputs], node.attributes, types)
    return dict(zip((value.name for value in node.results), found, strict=True))


def _ancestors(name: str, builder: GraphBuilder, weights: Mapping[str, Weight | Stored]) -> list[Node] | None:
    """The nodes that ``name`` is computed by, in order, if all is small and none reads an input of the graph."""
    waiting, needed = [name], set[int]()
    while waiting:
        read = waiting.pop()
        index = builder.producer(read)
        if not _is_small(builder.type(read)):
            return None
        if index is None:
            weight = weights.get(read)
            if not isinstance(weight, Weight) or weight.is_external:
                return None
        elif index not in needed:
            if _is_symbolic(builder.nodes[index]):
                return None
            needed.add(index)
            waiting += builder.nodes[index].inputs
    return [builder.nodes[index] for index in sorted(needed)]


def _is_small(type_: TensorType) -> bool:
    elements = type_.elements
    return isinstance(elements, int) and elements <= LARGEST_ELEMENTS


def _is_symbolic(node: Node) -> bool:
    return any(
        isinstance(item, Dim)
        for value in node.attributes.values()
        for item in (value if isinstance(value, tuple) else (value,))
    )

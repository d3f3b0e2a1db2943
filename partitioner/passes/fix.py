"""Fixed sizes: numbers in the place of a graph's symbols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph, Value
from ir.types import Dim, Shape, Size, TensorType, product, symbols_of


def fix_sizes(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph with numbers in the place of the symbols that ``sizes`` names.

    Raises:
        UsageError: W0109, the graph has no such symbol.
    """
    known = {name for value in graph.inputs for size in value.type.shape for name in symbols_of(size)}
    unknown = sorted(sizes.keys() - known)
    if unknown:
        has = f"it has {', '.join(sorted(known))}" if known else "all its sizes are fixed"
        fault = f"the model has no size of the name {', '.join(unknown)}: {has}"
        raise UsageError(Diagnostic("W0109", fault, "--fix"))
    if not sizes:
        return graph
    nodes = tuple(
        replace(
            node,
            results=tuple(_fix_value(value, sizes) for value in node.results),
            attributes={name: _fix_attribute(value, sizes) for name, value in node.attributes.items()},
        )
        for node in graph.nodes
    )
    return replace(graph, inputs=tuple(_fix_value(value, sizes) for value in graph.inputs), nodes=nodes)


def _fix_value(value: Value, sizes: Mapping[str, int]) -> Value:
    return Value(value.name, TensorType(value.type.dtype, _fix_shape(value.type.shape, sizes)))


def _fix_shape(shape: Shape, sizes: Mapping[str, int]) -> Shape:
    return tuple(_fix_size(size, sizes) for size in shape)


def _fix_attribute(attribute: Any, sizes: Mapping[str, int]) -> Any:
    return tuple(_fix_size(item, sizes) for item in attribute) if isinstance(attribute, tuple) else attribute


def _fix_size(size: Any, sizes: Mapping[str, int]) -> Any:
    if not isinstance(size, Dim):
        return size
    total: Size = 0
    for symbols, coefficient in size.terms:
        total = total + product((coefficient, *(sizes.get(name, Dim.symbol(name)) for name in symbols)))
    return total

"""The reference meaning of a graph: run it in torch, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ir.graph import Attribute, Graph
from ir.ops import OPS
from ir.ops import evaluate as evaluate_op
from ir.types import Dim, Size, TensorType, evaluate


def interpret(graph: Graph, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of ``graph`` for the inputs and parameters in ``tensors`` (name -> torch tensor)."""
    import torch

    bindings = bind_symbols({value.name: value.type for value in graph.inputs}, tensors)
    values = dict(tensors)
    for node in graph.nodes:
        operands = [values[name] for name in node.inputs]
        types = [value.type for value in node.results]
        results = evaluate_op(OPS[node.op], torch, operands, bind_attributes(node.attributes, bindings), types)
        values.update(zip((value.name for value in node.results), results, strict=True))
    return values


def bind_symbols(types: Mapping[str, TensorType], tensors: Mapping[str, Any]) -> dict[str, int]:
    """The symbols' values, read off the shapes of ``tensors``, whose types are plain symbols in symbolic axes.

    Raises:
        ValueError: two shapes disagree on a symbol.
    """
    bindings: dict[str, int] = {}
    for name, type_ in types.items():
        for size, actual in zip(type_.shape, tensors[name].shape, strict=True):
            if isinstance(size, Dim):
                known = bindings.setdefault(str(size), int(actual))
                if known != actual:
                    raise ValueError(f"{size} is {known} and {actual} in one call")
    return bindings


def bind_attributes(attributes: Mapping[str, Attribute], bindings: Mapping[str, int]) -> dict[str, Any]:
    """``attributes`` with every symbolic size replaced by its value."""
    return {
        name: tuple(_bind(item, bindings) for item in value) if isinstance(value, tuple) else value
        for name, value in attributes.items()
    }


def _bind(item: Size | float, bindings: Mapping[str, int]) -> int | float:
    return evaluate(item, bindings) if isinstance(item, Dim) else item

"""A step's inputs: held against the graph's, and each user's part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph
from ir.interpret import bind_symbols
from ir.ops import torch_dtype
from ir.types import TensorType, evaluate, symbols_of

Tensor = torch.Tensor


def bind(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """What the graph's symbols stand for in a step with ``inputs``.

    Raises:
        UsageError: W0609, they are not the graph's.
    """
    try:
        bindings = bind_symbols({value.name: value.type for value in graph.inputs}, inputs)
        unknown = inputs.keys() - {value.name for value in graph.inputs}
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]} is no input")
        if empty := [name for name in ("users", "tokens") if bindings.get(name) == 0]:
            raise ValueError(f"there are no {empty[0]}")
        for value in graph.inputs:
            wanted = tuple(evaluate(size, bindings) for size in value.type.shape)
            if tuple(inputs[value.name].shape) != wanted:
                raise ValueError(f"{value.name} is {tuple(inputs[value.name].shape)}, not {wanted}")
            if inputs[value.name].dtype != torch_dtype(torch, value.type.dtype):
                raise ValueError(f"{value.name} is of {inputs[value.name].dtype}, not {value.type.dtype}")
    except (KeyError, ValueError) as error:
        names = ", ".join(f"{value.name}: {value.type}" for value in graph.inputs)
        raise UsageError(Diagnostic("W0609", f"the step takes {names}", graph.name, {"fault": str(error)})) from None
    return bindings


def part_of(value: Tensor, type_: TensorType, user: int, users: int) -> Tensor:
    """The part of ``value`` that belongs to one of ``users``; all of it if it has no users."""
    axis = _user_axis(type_)
    return value if axis is None else torch.unflatten(value, axis, (users, -1)).select(axis, user)


def joined(parts: Sequence[Tensor], type_: TensorType) -> Tensor:
    """The value whose part for each user in turn is one of ``parts``: the inverse of :func:`part_of`."""
    axis = _user_axis(type_)
    return parts[0] if axis is None or len(parts) == 1 else torch.cat([*parts], dim=axis)


def _user_axis(type_: TensorType) -> int | None:
    """The axis along which users lie, each with all that is its own."""
    return next((axis for axis, size in enumerate(type_.shape) if "users" in symbols_of(size)), None)

"""Operators that make constants, or move elements without computing on them."""

from __future__ import annotations

from typing import Any

from ir.graph import Attributes
from ir.ops.definition import (
    Axes,
    Kind,
    OpDef,
    Tensors,
    Types,
    attribute,
    follow_broadcast,
    follow_except,
    require,
    torch_dtype,
)
from ir.types import DType, Size, TensorType, product


def axis(attributes: Attributes, rank: int, name: str = "dim") -> int:
    """The attribute ``name`` as an axis of a tensor of ``rank`` dimensions."""
    dim: int = attributes[name]
    require(0 <= dim < rank, f"{name} {dim} is outside a tensor of {rank} dimensions")
    return dim


def _shape(attributes: Attributes) -> tuple[Size, ...]:
    return tuple(attributes["shape"])


def _constant(_operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    values = attributes["values"]
    require(isinstance(values, tuple) and len(values) == product(_shape(attributes)), "one value for each element")
    return (TensorType(DType(attributes["dtype"]), _shape(attributes)),)


def _reference_constant(torch: Any, _tensors: Tensors, attributes: Attributes) -> Any:
    dtype = torch_dtype(torch, attributes["dtype"])
    return torch.tensor(attributes["values"], dtype=dtype).reshape(attributes["shape"])


def _filled(_operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    attribute(attributes, "value", bool, int, float)
    return (TensorType(DType(attributes["dtype"]), _shape(attributes)),)


def _counted(_operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    for name in ("start", "step"):
        attribute(attributes, name, int, float)
    require(len(_shape(attributes)) == 1, "a range has one axis")
    return (TensorType(DType(attributes["dtype"]), _shape(attributes)),)


def _reference_full(torch: Any, _tensors: Tensors, attributes: Attributes) -> Any:
    dtype = torch_dtype(torch, attributes["dtype"])
    return torch.full(attributes["shape"], attributes["value"], dtype=dtype)


def _reference_arange(torch: Any, _tensors: Tensors, attributes: Attributes) -> Any:
    (count,) = attributes["shape"]
    dtype = torch_dtype(torch, attributes["dtype"])
    return torch.arange(count, dtype=dtype) * attributes["step"] + attributes["start"]


def _reshape(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    shape = _shape(attributes)
    require(operands[0].elements == product(shape), f"{operands[0]} has not the elements of {shape}")
    return (operands[0].with_shape(shape),)


def _transpose(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    order = attributes["permutation"]
    rank = len(operands[0].shape)
    require(isinstance(order, tuple) and sorted(order) == list(range(rank)), f"{order} permutes no {rank} axes")
    return (operands[0].with_shape(tuple(operands[0].shape[i] for i in order)),)


def _expand(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    shape, old = _shape(attributes), operands[0].shape
    kept = shape[len(shape) - len(old) :]
    fits = len(shape) >= len(old) and all(a in (b, 1) for a, b in zip(old, kept, strict=True))
    require(fits, f"{operands[0]} does not expand to {shape}")
    return (operands[0].with_shape(shape),)


def _slice(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    shape = list(operands[0].shape)
    dim = axis(attributes, len(shape))
    start, end, step = (attributes[name] for name in ("start", "end", "step"))
    require(isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step > 0, "bad bounds")
    assert isinstance(start, int) and isinstance(end, int) and isinstance(step, int)
    size = shape[dim]
    # Of an axis of any length, its first element is the only one that is there for certain.
    most = size if isinstance(size, int) else 1
    require(0 <= start <= end <= most, f"bounds {start}:{end} are outside {size}")
    shape[dim] = -(-(end - start) // step)
    return (operands[0].with_shape(tuple(shape)),)


def _reference_slice(_torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    index = [slice(None)] * tensors[0].dim()
    index[attributes["dim"]] = slice(attributes["start"], attributes["end"], attributes["step"])
    return tensors[0][tuple(index)]


def _flip(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    axis(attributes, len(operands[0].shape))
    return (operands[0],)


def _concat(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    shape = list(operands[0].shape)
    dim = axis(attributes, len(shape))
    for operand in operands[1:]:
        require(len(operand.shape) == len(shape), "operands differ in rank")
        others = all(a == b for i, (a, b) in enumerate(zip(shape, operand.shape, strict=True)) if i != dim)
        require(others and operand.dtype is operands[0].dtype, f"{operands[0]} and {operand} do not join on {dim}")
        shape[dim] = shape[dim] + operand.shape[dim]
    return (operands[0].with_shape(tuple(shape)),)


def _follow_permutation(_operands: Types, _results: Types, attributes: Attributes) -> Axes:
    order = attributes["permutation"]
    return (tuple(order.index(axis) for axis in range(len(order))),)


LAYOUT = (
    OpDef("constant", _constant, _reference_constant, (0, 0)),
    OpDef("full", _filled, _reference_full, (0, 0)),
    OpDef("arange", _counted, _reference_arange, (0, 0)),
    OpDef("reshape", _reshape, lambda _torch, ts, a: ts[0].reshape(a["shape"]), (1, 1), kind=Kind.VIEW),
    OpDef(
        "transpose",
        _transpose,
        lambda _torch, ts, a: ts[0].permute(a["permutation"]),
        (1, 1),
        kind=Kind.VIEW,
        follow=_follow_permutation,
    ),
    OpDef(
        "expand",
        _expand,
        lambda _torch, ts, a: ts[0].expand(a["shape"]),
        (1, 1),
        kind=Kind.VIEW,
        follow=follow_broadcast,
    ),
    OpDef("slice", _slice, _reference_slice, (1, 1), kind=Kind.VIEW, follow=follow_except("dim")),
    OpDef(
        "flip",
        _flip,
        lambda torch, ts, a: torch.flip(ts[0], (a["dim"],)),
        (1, 1),
        kind=Kind.VIEW,
        follow=follow_except("dim"),
    ),
    OpDef(
        "concat",
        _concat,
        lambda torch, ts, a: torch.cat(list(ts), a["dim"]),
        (1, None),
        follow=follow_except("dim"),
    ),
)

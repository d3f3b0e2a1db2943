"""Operators along axes: reductions, normalisations, sorting and indexing."""

from __future__ import annotations

from typing import Any

from ir.graph import Attributes
from ir.ops.definition import Axes, Infer, OpDef, Reference, Tensors, Types, attribute, follow_except, require
from ir.ops.layout import axis
from ir.types import DType, TensorType


def _reduce(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    dims, rank = attributes["dims"], len(operands[0].shape)
    require(isinstance(dims, tuple) and all(isinstance(d, int) and 0 <= d < rank for d in dims), f"bad axes {dims}")
    # Torch takes no axes for all axes.
    require(bool(dims) or not rank, "no axes to reduce")
    kept = [(i in dims, size) for i, size in enumerate(operands[0].shape)]
    if attributes["keepdim"]:
        return (operands[0].with_shape(tuple(1 if reduced else size for reduced, size in kept)),)
    return (operands[0].with_shape(tuple(size for reduced, size in kept if not reduced)),)


def _sum(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    (result,) = _reduce(operands, attributes)
    return (result if result.dtype.is_float else result.with_dtype(DType.I64),)


def _reference_prod(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    (x,), keepdim = tensors, attributes["keepdim"]
    for dim in sorted(attributes["dims"], reverse=True):
        x = torch.prod(x, dim, keepdim)
    return x if x.is_floating_point() else x.to(torch.int64)


def _mean(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    require(operands[0].dtype.is_float, f"{operands[0].dtype} has no mean; cast it first")
    return _reduce(operands, attributes)


def _argmax(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    require(len(attributes["dims"]) == 1, "takes one axis")
    (result,) = _reduce(operands, attributes)
    return (result.with_dtype(DType.I64),)


def _along(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    axis(attributes, len(operands[0].shape))
    return (operands[0],)


def _cumsum(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    (result,) = _along(operands, attributes)
    return (result if result.dtype.is_float else result.with_dtype(DType.I64),)


def _norm(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    attribute(attributes, "epsilon", float)
    width = operands[0].shape[-1:]
    require(all(operand.shape == width for operand in operands[1:]), "scale and shift must be as long as the last axis")
    return (operands[0],)


def _reference_layer_norm(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    x, *affine = tensors
    return torch.nn.functional.layer_norm(x, x.shape[-1:], *affine, eps=attributes["epsilon"])


def _reference_rms_norm(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    x, *scale = tensors
    return torch.nn.functional.rms_norm(x, x.shape[-1:], *scale, eps=attributes["epsilon"])


def _topk(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    shape = list(operands[0].shape)
    dim, count = axis(attributes, len(shape)), attributes["k"]
    size = shape[dim]
    require(isinstance(count, int) and isinstance(size, int) and 0 < count <= size, f"top {count} of {size}")
    require(isinstance(attributes.get("largest", True), bool), "largest must be a boolean")
    shape[dim] = count
    values = operands[0].with_shape(tuple(shape))
    return values, values.with_dtype(DType.I64)


def _reference_topk(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    """Largest first, or smallest first where ``largest`` (default true) is not set; equal values by their lowest
    index, so that every machine chooses the same experts.
    """
    largest = attributes.get("largest", True)
    values, indices = torch.sort(tensors[0], dim=attributes["dim"], descending=largest, stable=True)
    return (
        values.narrow(attributes["dim"], 0, attributes["k"]),
        indices.narrow(attributes["dim"], 0, attributes["k"]),
    )


def _gather(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    data, indices = operands
    require(len(data.shape) == len(indices.shape) and not indices.dtype.is_float, "indices do not fit the data")
    axis(attributes, len(data.shape))
    return (data.with_shape(indices.shape),)


def _from_front(torch: Any, indices: Any, size: int) -> Any:
    """Indices counted from the front: those below zero count from the end."""
    return torch.where(indices < 0, indices + size, indices).long()


def _reference_gather(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    data, indices = tensors
    dim = attributes["dim"]
    return torch.gather(data, dim, _from_front(torch, indices, data.shape[dim]))


def _scatter(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    reduce = attributes.get("reduce", "none")
    require(reduce in ("none", "sum", "prod", "amax", "amin"), f"there is no reduction {reduce}")
    require(reduce == "none" or len(operands) == 3, "a reduction takes a source")
    if len(operands) == 2:
        attribute(attributes, "value", bool, int, float)
    require(len(operands[0].shape) == len(operands[1].shape), "indices do not fit the data")
    return _along(operands, attributes)


def _reference_scatter(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    """``data`` with elements along ``dim`` replaced, or combined by ``reduce`` with those that were there."""
    data, indices, *source = tensors
    dim, reduce = attributes["dim"], attributes.get("reduce", "none")
    indices = _from_front(torch, indices, data.shape[dim])
    if reduce != "none":
        return torch.scatter_reduce(data, dim, indices, source[0], reduce, include_self=True)
    return torch.scatter(data, dim, indices, source[0] if source else attributes["value"])


def _reference_embedding(torch: Any, tensors: Tensors, _attributes: Attributes) -> Any:
    table, indices = tensors
    return torch.nn.functional.embedding(_from_front(torch, indices, table.shape[0]), table)


def _embedding(operands: Types, _attributes: Attributes) -> tuple[TensorType, ...]:
    table, indices = operands
    require(len(table.shape) == 2 and not indices.dtype.is_float, "takes a table [rows, width] and integer indices")
    return (table.with_shape((*indices.shape, table.shape[1])),)


def _follow_reduction(operands: Types, _results: Types, attributes: Attributes) -> Axes:
    dims, kept = attributes["dims"], attributes["keepdim"]
    axes: list[int | None] = []
    for dim in range(len(operands[0].shape)):
        gone = 0 if kept else sum(other < dim for other in dims)
        axes.append(None if dim in dims else dim - gone)
    return (tuple(axes),)


def _follow_gather(operands: Types, _results: Types, attributes: Attributes) -> Axes:
    (data, _) = follow_except("dim")(operands, (), attributes)
    return (data, tuple(range(len(data))))


def _follow_scatter(operands: Types, _results: Types, attributes: Attributes) -> Axes:
    (data, *written) = follow_except("dim")(operands, (), attributes)
    return (tuple(range(len(data))), *written)


def _follow_norm(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    """The last axis meets; scale and shift belong to it."""
    rank = len(operands[0].shape)
    return ((*range(rank - 1), None), *((None,),) * (len(operands) - 1))


def _follow_embedding(operands: Types, _results: Types, _attributes: Attributes) -> Axes:
    rank = len(operands[1].shape)
    return ((None, rank), tuple(range(rank)))


def _reduction(name: str, infer: Infer, reference: Reference) -> OpDef:
    return OpDef(name, infer, reference, (1, 1), follow=_follow_reduction)


_follow_others = follow_except("dim")

REDUCE = (
    _reduction("sum", _sum, lambda torch, ts, a: torch.sum(ts[0], a["dims"], a["keepdim"])),
    _reduction("mean", _mean, lambda torch, ts, a: torch.mean(ts[0], a["dims"], a["keepdim"])),
    _reduction("amax", _reduce, lambda torch, ts, a: torch.amax(ts[0], a["dims"], a["keepdim"])),
    _reduction("amin", _reduce, lambda torch, ts, a: torch.amin(ts[0], a["dims"], a["keepdim"])),
    _reduction("argmax", _argmax, lambda torch, ts, a: torch.argmax(ts[0], a["dims"][0], a["keepdim"])),
    _reduction("argmin", _argmax, lambda torch, ts, a: torch.argmin(ts[0], a["dims"][0], a["keepdim"])),
    _reduction("prod", _sum, _reference_prod),
    OpDef("cumsum", _cumsum, lambda torch, ts, a: torch.cumsum(ts[0], a["dim"]), (1, 1), follow=_follow_others),
    OpDef("cumprod", _cumsum, lambda torch, ts, a: torch.cumprod(ts[0], a["dim"]), (1, 1), follow=_follow_others),
    OpDef("softmax", _along, lambda torch, ts, a: torch.softmax(ts[0], a["dim"]), (1, 1), follow=_follow_others),
    OpDef(
        "log_softmax", _along, lambda torch, ts, a: torch.log_softmax(ts[0], a["dim"]), (1, 1), follow=_follow_others
    ),
    OpDef("layer_norm", _norm, _reference_layer_norm, (1, 3), follow=_follow_norm),
    OpDef("rms_norm", _norm, _reference_rms_norm, (1, 2), follow=_follow_norm),
    OpDef("topk", _topk, _reference_topk, (1, 1), follow=_follow_others),
    OpDef("gather", _gather, _reference_gather, (2, 2), follow=_follow_gather),
    OpDef("scatter", _scatter, _reference_scatter, (2, 3), follow=_follow_scatter),
    OpDef("embedding", _embedding, _reference_embedding, (2, 2), follow=_follow_embedding),
)

"""Operators along axes: reductions, softmax, sorting and cumulative sums."""

from __future__ import annotations

import math

from partitioner.frontends.onnx_file.constants import UnfoldableError, normal_axis
from partitioner.frontends.onnx_file.lowering import Operand, Results, Site
from partitioner.frontends.onnx_file.table import operator

_REDUCTIONS = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin"}


def _reduced_axes(site: Site) -> tuple[int, ...]:
    """Axes to reduce, from the front; none where the node does nothing."""
    rank = len(site.shape(0))
    given = site.ints("axes", 1)
    if not given:
        return () if site.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({normal_axis(axis, rank) for axis in given})) if rank else ()


@operator(*_REDUCTIONS)
def _reduce(site: Site) -> Operand:
    op, dtype, axes = _REDUCTIONS[site.node.op_type], site.type(0).dtype, _reduced_axes(site)
    if op == "mean" and not dtype.is_float:
        raise UnfoldableError(f"the mean of {dtype} is not supported")
    if not axes:
        return site.operand(0)
    keepdim = bool(site.attribute("keepdims", 1))
    return site.emit(op, [site.tensor(0)], as_dtype=dtype, dims=axes, keepdim=keepdim)


@operator("ReduceProd")
def _reduce_product(_site: Site) -> Operand:
    raise UnfoldableError("products are supported for shapes only")


@operator("ReduceSumSquare", "ReduceL2")
def _reduce_squares(site: Site) -> Operand:
    x, dtype, axes = site.tensor(0), site.type(0).dtype, _reduced_axes(site)
    square = site.step("mul", [x, x])
    keepdim = bool(site.attribute("keepdims", 1))
    is_root = site.node.op_type == "ReduceL2"
    if is_root and not dtype.is_float:
        raise UnfoldableError(f"the norm of {dtype} is not supported")
    if axes and not is_root:
        return site.emit("sum", [square], as_dtype=dtype, dims=axes, keepdim=keepdim)
    total = site.step("sum", [square], dims=axes, keepdim=keepdim) if axes else square
    return site.emit("sqrt", [total]) if is_root else total


@operator("Softmax", "LogSoftmax")
def _softmax(site: Site) -> Operand:
    axis = site.axis(-1 if site.opset >= 13 else 1)
    if site.opset < 13 and axis != len(site.shape(0)) - 1:
        raise UnfoldableError("before opset 13 it joins several axes, which is not supported")
    return site.emit("softmax" if site.node.op_type == "Softmax" else "log_softmax", [site.tensor(0)], dim=axis)


@operator("ArgMax")
def _argmax(site: Site) -> Operand:
    if site.attribute("select_last_index", 0):
        raise UnfoldableError("select_last_index = 1 is not supported")
    keepdim = bool(site.attribute("keepdims", 1))
    return site.emit("argmax", [site.tensor(0)], dims=(site.axis(0),), keepdim=keepdim)


@operator("CumSum")
def _cumsum(site: Site) -> Operand:
    if site.attribute("reverse", 0):
        raise UnfoldableError("reverse = 1 is not supported")
    x, dtype = site.tensor(0), site.type(0).dtype
    (axis,) = site.demanded(1).ints()
    dim = normal_axis(axis, len(site.shape(0)))
    if not site.attribute("exclusive", 0):
        return site.emit("cumsum", [x], as_dtype=dtype, dim=dim)
    return site.emit("sub", [site.step("cumsum", [x], dim=dim), x], as_dtype=dtype)


@operator("TopK")
def _topk(site: Site) -> Results:
    counts = site.ints("k", 1)
    if counts is None or len(counts) != 1:
        raise UnfoldableError("k must be one number")
    attributes = {"dim": site.axis(-1), "k": counts[0]}
    if site.attribute("largest", 1):
        return site.emit_all("topk", [site.tensor(0)], 2, **attributes)
    if not site.type(0).dtype.is_float:
        raise UnfoldableError("the smallest of integers are not supported")
    largest, indices = site.emit_all("topk", [site.step("neg", [site.tensor(0)])], 2, **attributes)
    return site.step("neg", [largest]), indices


@operator("GatherElements")
def _gather_elements(site: Site) -> Operand:
    return site.emit("gather", [site.tensor(0), site.tensor(1)], dim=site.axis(0))


@operator("LayerNormalization")
def _layer_norm(site: Site) -> Operand:
    return _normalise(site, "layer_norm")


@operator("RMSNormalization")
@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain="com.microsoft")
def _rms_norm(site: Site) -> Operand:
    """Also onnxruntime's name for it."""
    return _normalise(site, "rms_norm")


def _normalise(site: Site, op: str) -> Operand:
    """Normalise the axes from ``axis`` on, which the graph wants as one."""
    shape, axis = site.shape(0), site.axis(-1)
    width = math.prod(shape[axis:])
    flat = (*shape[:axis], width)
    x = site.reshape(site.tensor(0), flat, last=False)
    epsilon = float(site.attribute("epsilon", 1e-5))
    affine = [index for index in (1, 2) if site.has(index)]
    if any(site.shape(index) != shape[axis:] for index in affine):
        return _normalise_then_scale(site, op, x)
    operands = [x, *(site.reshape(site.tensor(index), (width,), last=False) for index in affine)]
    if flat == shape:
        return site.emit(op, operands, epsilon=epsilon)
    return site.reshape(site.step(op, operands, epsilon=epsilon), shape)


def _normalise_then_scale(site: Site, op: str, x: str) -> Operand:
    """For a scale that is broadcast."""
    normal = site.step(op, [x], epsilon=float(site.attribute("epsilon", 1e-5)))
    normal = site.reshape(normal, site.shape(0), last=False)
    if not site.has(2):
        return site.emit("mul", [normal, site.tensor(1)])
    return site.emit("add", [site.step("mul", [normal, site.tensor(1)]), site.tensor(2)])

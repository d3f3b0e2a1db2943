"""Operators along axes: reductions, softmax, sorting and cumulative sums."""

from __future__ import annotations

import math

from ir.types import DType, Shape
from partitioner.frontends.onnx_file.constants import UnfoldableError, normal_axis
from partitioner.frontends.onnx_file.functions import call
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand, Results
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, counting, fixed, full, join, term

_REDUCTIONS = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod"}


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
    if op in ("amax", "amin") and any(site.shape(0)[axis] == 0 for axis in axes):
        kept = ((1 if axis in axes else size) for axis, size in enumerate(site.shape(0)) if keepdim or axis not in axes)
        return site.emit("full", [], dtype=dtype, shape=tuple(kept), value=_least(dtype, is_greatest=op == "amin"))
    return site.emit(op, [site.tensor(0)], as_dtype=dtype, dims=axes, keepdim=keepdim)


def _least(dtype: DType, *, is_greatest: bool) -> bool | int | float:
    """The least or greatest value of a type: what the reduction of no elements yields."""
    if dtype is DType.BOOL:
        return is_greatest
    return (math.inf if is_greatest else -math.inf) if dtype.is_float else dtype.integer_range[is_greatest]


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


@operator("Hardmax")
def _hardmax(site: Site) -> Operand:
    """One at the first of the largest elements along an axis, zero elsewhere."""
    x, axis = term(site, 0), site.axis(-1 if site.opset >= 13 else 1)
    if site.opset < 13 and axis != len(x.shape) - 1:
        raise UnfoldableError("before opset 13 it joins several axes, which is not supported")
    places = counting(site, x.shape[axis]).reshape(*_along(x, axis))
    return places.with_("eq", x.reduce("argmax", [axis], keepdim=True)).cast(x.dtype).name


def _along(x: Term, axis: int) -> Shape:
    """The shape of a vector that lies along an axis of ``x``."""
    return tuple(size if i == axis else 1 for i, size in enumerate(x.shape))


@operator("ArgMax", "ArgMin")
def _argmax(site: Site) -> Operand:
    x, axis = term(site, 0), site.axis(0)
    op, keepdim = site.node.op_type.lower(), bool(site.attribute("keepdims", 1))
    if not site.attribute("select_last_index", 0):
        return x.reduce(op, [axis], keepdim).name
    found = x.apply("flip", dim=axis).reduce(op, [axis], keepdim)
    return (-found + (fixed(x.shape[axis]) - 1)).name


@operator("CumSum", "CumProd")
def _cumulative(site: Site) -> Operand:
    (axis,) = site.demanded(1).list() if site.has(1) else (0,)
    x, dtype, dim = term(site, 0), site.type(0).dtype, normal_axis(int(axis), len(site.shape(0)))
    op = site.node.op_type.lower()
    if site.attribute("reverse", 0):
        x = x.apply("flip", dim=dim)
    if site.attribute("exclusive", 0):
        first = full(
            site, dtype, tuple(1 if i == dim else size for i, size in enumerate(x.shape)), int(op == "cumprod")
        )
        x = join([first, x.cut(dim, 0, fixed(x.shape[dim]) - 1)], dim)
    result = x.apply(op, dim=dim).cast(dtype)
    return (result.apply("flip", dim=dim) if site.attribute("reverse", 0) else result).name


@operator("LpNormalization")
def _lp_normalisation(site: Site) -> Operand:
    x, axis = term(site, 0), site.axis(-1)
    norm = x.apply("abs") if site.attribute("p", 2) == 1 else x * x
    norm = norm.reduce("sum", [axis], keepdim=True)
    norm = norm if site.attribute("p", 2) == 1 else norm.apply("sqrt")
    # A vector of zeros stays one.
    return (x / norm.apply("masked_fill", norm.with_("eq", 0), value=1.0)).name


@operator("TopK")
def _topk(site: Site) -> Results:
    counts = site.ints("k", 1)
    if counts is None or len(counts) != 1:
        raise UnfoldableError("k must be one number")
    smallest = {} if site.attribute("largest", 1) else {"largest": False}
    return site.emit_all("topk", [site.tensor(0)], 2, dim=site.axis(-1), k=counts[0], **smallest)


@operator("LayerNormalization")
def _layer_norm(site: Site) -> Results:
    if any(site.node.outputs[1:]):
        # The mean and the deviation are asked for, which training does.
        return call(site)
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

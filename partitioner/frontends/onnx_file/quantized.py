"""Numbers in few bits with scales and zero points: to them, from them, and products of them."""

from __future__ import annotations

from ir.types import DType
from partitioner.frontends.onnx_file.constants import UnfoldableError, normal_axis
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand
from partitioner.frontends.onnx_file.spatial import convolved
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, fixed, optional, term


def _spread(scale: Term, x: Term, axis: int, block: int) -> Term:
    """Scales or zero points in a shape that broadcasts to ``x``: one for all, one for each element of an axis, or one
    for each block of an axis.
    """
    if not scale.shape or scale.elements() == 1:
        return scale.reshape()
    axis = normal_axis(axis, len(x.shape))
    if len(scale.shape) == 1 and not block:
        return scale.reshape(*(size if i == axis else 1 for i, size in enumerate(x.shape)))
    if block < 1 or len(scale.shape) != len(x.shape):
        raise UnfoldableError(f"scales of shape {scale.shape} do not fit {x.shape}")
    before, after = scale.shape[: axis + 1], scale.shape[axis + 1 :]
    spread = scale.reshape(*before, 1, *after).expand(*before, block, *after)
    whole = spread.reshape(*before[:-1], before[-1] * block, *after)
    return whole.cut(axis, 0, fixed(x.shape[axis]))


@operator("QuantizeLinear")
def _quantize(site: Site) -> Operand:
    x, zero = term(site, 0), optional(site, 2)
    axis, block = site.attribute("axis", 1), site.attribute("block_size", 0)
    dtype = zero.dtype if zero is not None else site.element_type("output_dtype", DType.U8)
    scale = _spread(term(site, 1), x, axis, block)
    precision = site.element_type("precision", scale.dtype)
    scaled = x.cast(precision) / scale.cast(precision)
    zero = None if zero is None else _spread(zero, x, axis, block)
    if dtype.is_float:
        keeps = {} if site.attribute("saturate", 1) else {"saturate": False}
        return scaled.apply("cast", dtype=dtype, **keeps).name
    return _rounded(scaled, zero, dtype).name


def _rounded(x: Term, zero: Term | None, dtype: DType) -> Term:
    """To the nearest integer, halves to the even one, plus the zero point, within the range of ``dtype``."""
    # Half floats do not hold all integers of 16 bits.
    whole = x.cast(DType.F32).apply("round")
    if zero is not None:
        whole = whole + zero.cast(DType.F32)
    least, greatest = dtype.integer_range
    return whole.apply("clamp", min=least, max=greatest).cast(dtype)


@operator("DequantizeLinear")
def _dequantize(site: Site) -> Operand:
    x, scale, zero = term(site, 0), term(site, 1), optional(site, 2)
    axis, block = site.attribute("axis", 1), site.attribute("block_size", 0)
    dtype = site.element_type("output_dtype", scale.dtype)
    value = x.cast(DType.F32)
    if zero is not None and not zero.dtype.is_float:
        value = value - _spread(zero, x, axis, block).cast(DType.F32)
    return (value * _spread(scale, x, axis, block).cast(DType.F32)).cast(dtype).name


def _centred(x: Term, zero: Term | None, dtype: DType) -> Term:
    """Quantised numbers less their zero point, which is one for all, one a row, or broadcasts as it is."""
    return x.cast(dtype) if zero is None else x.cast(dtype) - zero.cast(dtype)


def _of_rows(zero: Term | None, x: Term) -> Term | None:
    """A zero point or scale for each row of a matrix."""
    if zero is None or len(zero.shape) != 1 or zero.shape == (1,):
        return zero if zero is None or len(zero.shape) != 1 else zero.reshape()
    return zero.reshape(*zero.shape, 1) if zero.shape[0] == x.shape[-2] else zero


@operator("MatMulInteger")
def _integer_product(site: Site) -> Operand:
    a, b = term(site, 0), term(site, 1)
    left = _centred(a, _of_rows(optional(site, 2), a), DType.I32)
    return (left @ _centred(b, optional(site, 3), DType.I32)).name


@operator("QLinearMatMul")
def _quantised_product(site: Site) -> Operand:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (term(site, index) for index in range(8))
    product = _centred(a, _of_rows(a_zero, a), DType.I32) @ _centred(b, b_zero, DType.I32)
    rows = _of_rows(a_scale, a)
    assert rows is not None
    scale = rows.cast(DType.F32) * b_scale.cast(DType.F32) / y_scale.cast(DType.F32)
    scale = scale.reshape() if scale.shape == (1,) else scale
    return _rounded(product.cast(DType.F32) * scale, y_zero, y_zero.dtype).name


@operator("ConvInteger")
def _integer_convolution(site: Site) -> Operand:
    # 64-bit floats hold the sums of products of 8-bit numbers exactly.
    x = _centred(term(site, 0), optional(site, 2), DType.F64)
    zero = _of_outputs(optional(site, 3), len(x.shape))
    return convolved(site, x, _centred(term(site, 1), zero, DType.F64), None).cast(DType.I32).name


def _of_outputs(zero: Term | None, rank: int) -> Term | None:
    if zero is None or not zero.shape:
        return zero
    return zero.reshape() if zero.shape == (1,) else zero.reshape(*zero.shape, *[1] * (rank - 1))


@operator("QLinearConv")
def _quantised_convolution(site: Site) -> Operand:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (term(site, index) for index in range(8))
    rank = len(x.shape)
    kernel = _centred(w, _of_outputs(w_zero, rank), DType.F64)
    bias = optional(site, 8)
    product = convolved(site, _centred(x, x_zero, DType.F64), kernel, None if bias is None else bias.cast(DType.F64))
    of_kernel = w_scale.reshape(*w_scale.shape, *[1] * (rank - 2)) if w_scale.shape not in ((), (1,)) else w_scale
    scale = x_scale.cast(DType.F64) * of_kernel.cast(DType.F64) / y_scale.cast(DType.F64)
    return _rounded(product * (scale.reshape() if scale.shape == (1,) else scale), y_zero, y_zero.dtype).name

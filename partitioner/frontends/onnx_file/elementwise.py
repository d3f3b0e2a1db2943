"""Operators that treat each element alone."""

from __future__ import annotations

import math
from typing import Any

from ir.types import DType
from partitioner.frontends.onnx_file.constants import Items, Known, UnfoldableError
from partitioner.frontends.onnx_file.functions import call
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand, Results
from partitioner.frontends.onnx_file.reading import DTYPES
from partitioner.frontends.onnx_file.table import Lower, operator
from partitioner.frontends.onnx_file.terms import term

_UNARY = {
    "Neg": "neg",
    "Abs": "abs",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Reciprocal": "reciprocal",
    "Erf": "erf",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Softplus": "softplus",
    "HardSwish": "hardswish",
    "Mish": "mish",
    "Not": "logical_not",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Sign": "sign",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "asin",
    "Acos": "acos",
    "Atan": "atan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Asinh": "asinh",
    "Acosh": "acosh",
    "Atanh": "atanh",
    "IsNaN": "isnan",
    "BitwiseNot": "bitwise_not",
}

_BINARY = {
    "Add": ("add", "add"),
    "Sub": ("sub", None),
    "Mul": ("mul", "mul"),
    "Equal": ("eq", "eq"),
    "Less": ("lt", "gt"),
    "LessOrEqual": ("le", "ge"),
    "Greater": ("gt", "lt"),
    "GreaterOrEqual": ("ge", "le"),
    "BitwiseAnd": ("bitwise_and", "bitwise_and"),
    "BitwiseOr": ("bitwise_or", "bitwise_or"),
    "BitwiseXor": ("bitwise_xor", "bitwise_xor"),
}
"""Operators whose second operand may be a number, with the operator that takes the operands in reverse."""


def _unary(op: str) -> Lower:
    def lower(site: Site) -> Operand:
        return site.emit(op, [site.tensor(0)])

    return lower


def _binary(op: str, reverse: str | None) -> Lower:
    return lambda site: _lower_binary(site, op, reverse)


def _lower_binary(site: Site, op: str, reverse: str | None = None) -> str:
    second, first = site.scalar(1, beside=0), site.scalar(0, beside=1)
    if second is not None:
        return site.emit(op, [site.tensor(0)], scalar=second)
    if reverse is not None and first is not None:
        return site.emit(reverse, [site.tensor(1)], scalar=first)
    return site.emit(op, [site.tensor(0), site.tensor(1)])


for _op_type, _op in _UNARY.items():
    operator(_op_type)(_unary(_op))
for _op_type, (_op, _reverse) in _BINARY.items():
    operator(_op_type)(_binary(_op, _reverse))


@operator("And", "Or", "Xor")
def _logic(site: Site) -> Operand:
    names = {"And": "logical_and", "Or": "logical_or", "Xor": "ne"}
    return site.emit(names[site.node.op_type], [site.tensor(0), site.tensor(1)])


@operator("Div")
def _div(site: Site) -> Operand:
    dtype = site.type(0).dtype
    if dtype.is_float:
        return _lower_binary(site, "div")
    # ONNX rounds quotients of integers towards zero, and so does a cast. 64-bit floats hold what sizes need.
    wide = [site.step("cast", [site.tensor(index)], dtype=DType.F64) for index in (0, 1)]
    return site.emit("cast", [site.step("div", wide)], dtype=dtype)


@operator("Mod")
def _mod(site: Site) -> Operand:
    return _lower_binary(site, "fmod" if site.attribute("fmod", 0) else "remainder")


@operator("BitShift")
def _bit_shift(site: Site) -> Operand:
    return _lower_binary(site, f"bitwise_{site.attribute('direction').lower()}_shift")


@operator("IsInf")
def _is_infinite(site: Site) -> Operand:
    signs = [sign for name, sign in (("positive", 1), ("negative", -1)) if site.attribute(f"detect_{name}", 1)]
    x = term(site, 0)
    if len(signs) == 2:
        return x.apply("isinf").name
    if not signs:
        return site.emit("full", [], dtype=DType.BOOL, shape=site.shape(0), value=False)
    return x.with_("eq", signs[0] * math.inf).name


@operator("Sum", "Mean")
def _sum(site: Site) -> Operand:
    total = term(site, 0)
    for index in range(1, len(site.node.inputs)):
        total = total + term(site, index)
    if site.node.op_type == "Mean" and len(site.node.inputs) > 1:
        total = total / len(site.node.inputs)
    return total.name


@operator("Pow")
def _pow(site: Site) -> Operand:
    dtype = site.type(0).dtype
    scalar = site.scalar(1, beside=0)
    if scalar is not None:
        return site.emit("pow", [site.tensor(0)], as_dtype=dtype, scalar=scalar)
    return site.emit("pow", [site.tensor(0), site.tensor(1)], as_dtype=dtype)


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def _gelu(site: Site) -> Operand:
    return site.emit("gelu", [site.tensor(0)], approximate=site.attribute("approximate", "none"))


@operator("Swish")
def _swish(site: Site) -> Results:
    if site.attribute("alpha", 1.0) != 1:
        return call(site)
    return site.emit("silu", [site.tensor(0)])


@operator("Clip")
def _clip(site: Site) -> Operand:
    limits: dict[str, Any] = {}
    tensors: list[tuple[str, str]] = []
    for index, (name, op) in enumerate((("min", "maximum"), ("max", "minimum")), start=1):
        number = site.attribute(name) if not site.has(index) else site.scalar(index, beside=0)
        if number is not None:
            limits[name] = number
        elif site.has(index):
            tensors.append((op, site.tensor(index)))
    result = site.tensor(0)
    for op, limit in tensors:
        result = site.step(op, [result, limit])
    return site.emit("clamp", [result], **limits) if limits else result


@operator("Min", "Max")
def _extremum(site: Site) -> Operand:
    op, limit = ("minimum", "max") if site.node.op_type == "Min" else ("maximum", "min")
    result = site.tensor(0)
    for index in range(1, len(site.node.inputs)):
        add = site.emit if index == len(site.node.inputs) - 1 else site.step
        attributes: dict[str, Any] = {limit: site.scalar(index, beside=0)}
        if attributes[limit] is None:
            result = add(op, [result, site.tensor(index)])
        else:
            result = add("clamp", [result], **attributes)
    return result


@operator("Where")
def _where(site: Site) -> Operand:
    return site.emit("where", site.tensors())


@operator("BitCast")
def _bit_cast(site: Site) -> Operand:
    dtype = DTYPES.get(site.attribute("to"))
    if dtype is None:
        raise UnfoldableError(f"the graph has no element type {site.attribute('to')}")
    return site.emit("bitcast", [site.tensor(0)], dtype=dtype)


@operator("Cast")
def _cast(site: Site) -> Results:
    dtype = DTYPES.get(site.attribute("to"))
    if dtype is None:
        raise UnfoldableError(f"the graph has no element type {site.attribute('to')}")
    known = site.known(0)
    if known is not None and (not dtype.is_float or dtype.bits > 8):
        return Known.of(dtype, _cast_items(known.items, dtype))
    if site.type(0).dtype is dtype:
        return site.operand(0)
    return site.emit("cast", [site.tensor(0)], dtype=dtype, **_cast_options(site, dtype))


def _cast_options(site: Site, dtype: DType) -> dict[str, Any]:
    """What a cast to a narrow float does with numbers out of range or between two others."""
    if dtype is DType.F8E8M0:
        return {"rounding": site.attribute("round_mode", "up")}
    return {"saturate": False} if dtype.value.startswith("f8") and not site.attribute("saturate", 1) else {}


def _cast_items(items: Items, dtype: DType) -> Items:
    convert = float if dtype.is_float else bool if dtype is DType.BOOL else int
    result = items.copy()
    flat = result.reshape(-1)
    for index, item in enumerate(flat):
        if isinstance(item, int | float):
            flat[index] = convert(item)
        elif dtype not in (DType.I64, DType.I32):
            raise UnfoldableError("a size that depends on the model's inputs is computed with as data")
    return result


@operator("Identity", "Dropout")
def _identity(site: Site) -> Results:
    """Also Dropout, which does nothing outside training."""
    if site.has(2) and any(site.demanded(2).list()) and (not site.has(1) or any(site.demanded(1).list())):
        raise UnfoldableError("training mode is not supported")
    operand = site.operand(0)
    if len(site.node.outputs) < 2 or not site.node.outputs[1]:
        return operand
    mask = site.emit("full", [], output=1, dtype=DType.BOOL, shape=site.shape(0), value=True)
    return operand, mask

"""Rules for operators that treat each element alone."""

from __future__ import annotations

import math

from ir.types import DType
from partitioner.frontends.aten.registry import Translator, cast, part, rank, reshape, rule

for _name in (
    *("neg", "abs", "floor", "ceil", "round", "sign", "relu", "bitwise_not", "exp", "log", "sqrt", "rsqrt"),
    *("reciprocal", "sin", "cos", "tanh", "sigmoid", "erf", "silu", "mish", "hardswish", "hardsigmoid", "logical_not"),
):
    rule(_name)(lambda t, x, _name=_name: t.add(_name, x))


@rule("gelu")
def _gelu(t: Translator, x: str, approximate: str = "none") -> str:
    return t.add("gelu", x, approximate=approximate)


rule("square")(lambda t, x: t.add("mul", x, x))
rule("expm1")(lambda t, x: t.add("sub", t.add("exp", x), scalar=1))
rule("log1p")(lambda t, x: t.add("log", t.add("add", x, scalar=1)))
rule("relu6")(lambda t, x: t.add("clamp", x, min=0, max=6))


@rule("softplus")
def _softplus(t: Translator, x: str, beta: float = 1, threshold: float = 20) -> str:
    if threshold != 20:
        raise NotImplementedError("softplus with a threshold of its own")
    if beta == 1:
        return t.add("softplus", x)
    return t.add("div", t.add("softplus", t.add("mul", x, scalar=beta)), scalar=beta)


def _operate(t: Translator, op: str, x: str, y: str | float) -> str:
    """A binary operator whose second operand may be a number."""
    return t.add(op, x, y) if isinstance(y, str) else t.add(op, x, scalar=y)


for _op, _aliases in {
    "mul": ("mul",),
    "pow": ("pow.Tensor_Scalar", "pow.Tensor_Tensor"),
    "maximum": ("maximum", "max.other"),
    "minimum": ("minimum", "min.other"),
    "eq": ("eq",),
    "ne": ("ne",),
    "lt": ("lt",),
    "le": ("le",),
    "gt": ("gt",),
    "ge": ("ge",),
    "logical_and": ("logical_and",),
    "logical_or": ("logical_or",),
    "bitwise_and": ("bitwise_and", "__and__"),
    "bitwise_or": ("bitwise_or", "__or__"),
    "remainder": ("remainder",),
    "floor_divide": ("floor_divide",),
}.items():
    rule(*_aliases)(lambda t, x, y, _op=_op: _operate(t, _op, x, y))


@rule("pow.Scalar")
def _pow_of_number(t: Translator, base: float, exponent: str) -> str:
    return t.add("pow", t.add("full", shape=(), value=base, dtype=t.result.dtype), exponent)


@rule("add")
def _add(t: Translator, x: str, y: str | float, alpha: float = 1, op: str = "add") -> str:
    if alpha != 1:
        y = t.add("mul", y, scalar=alpha) if isinstance(y, str) else y * alpha
    return _operate(t, op, x, y)


rule("sub")(lambda t, x, y, alpha=1: _add(t, x, y, alpha, "sub"))


@rule("rsub")
def _rsub(t: Translator, x: str, y: str | float, alpha: float = 1) -> str:
    negative = t.add("neg", x if alpha == 1 else t.add("mul", x, scalar=alpha))
    return _operate(t, "add", negative, y)


@rule("div")
def _div(t: Translator, x: str, y: str | float, rounding_mode: str | None = None) -> str:
    if rounding_mode == "trunc":
        if not t.result.dtype.is_float:
            raise NotImplementedError("division of integers that rounds towards zero")
        ratio = _operate(t, "div", x, y)
        return t.add("mul", t.add("sign", ratio), t.add("floor", t.add("abs", ratio)))
    return _operate(t, "floor_divide" if rounding_mode == "floor" else "div", x, y)


@rule("clamp", "clamp_min")
def _clamp(t: Translator, x: str, min: float | None = None, max: float | None = None) -> str:  # noqa: A002
    if isinstance(min, str) or isinstance(max, str):
        low = t.add("maximum", x, min) if isinstance(min, str) else x
        return t.add("minimum", low, max) if isinstance(max, str) else low
    bounds = {name: bound for name, bound in (("min", min), ("max", max)) if bound is not None}
    return t.add("clamp", x, **bounds)


rule("clamp_max")(lambda t, x, bound: _clamp(t, x, None, bound))


@rule("where")
def _where(t: Translator, condition: str, x: str | float, y: str | float) -> str:
    x, y = (v if isinstance(v, str) else t.add("full", shape=(), value=v, dtype=t.result.dtype) for v in (x, y))
    return t.add("where", condition, x, y)


@rule("masked_fill.Scalar")
def _masked_fill(t: Translator, x: str, mask: str, value: float) -> str:
    return t.add("masked_fill", x, mask, value=value)


@rule("masked_fill.Tensor")
def _masked_fill_tensor(t: Translator, x: str, mask: str, value: str) -> str:
    return t.add("where", mask, cast(t, value, t.type(x).dtype), x)


@rule("index_put")
def _index_put(t: Translator, x: str, indices: list[str | None], value: str, accumulate: bool = False) -> str:
    """``x[mask] = scalar``; other forms have no functional meaning of their own here."""
    mask, *others = indices
    is_mask = mask is not None and not others and t.type(mask).dtype is DType.BOOL
    if mask is None or not is_mask or accumulate or t.type(value).shape:
        raise NotImplementedError("writing by index, other than a scalar under a mask")
    missing = (1,) * (rank(t, x) - rank(t, mask))
    mask = reshape(t, mask, (*t.type(mask).shape, *missing))
    return t.add("where", mask, cast(t, value, t.type(x).dtype), x)


@rule("elu", "leaky_relu")
def _elu(t: Translator, x: str, alpha: float = 1.0, scale: float = 1, input_scale: float = 1) -> str:
    if (scale, input_scale) != (1, 1):
        raise NotImplementedError("a scaled elu")
    return _bent(t, x, t.add("sub", t.add("exp", x), scalar=1), alpha)


rule("leaky_relu")(lambda t, x, slope=0.01: _bent(t, x, x, slope))


def _bent(t: Translator, x: str, below: str, slope: float) -> str:
    """``x`` where it is positive, and ``slope * below`` elsewhere."""
    return t.add("where", t.add("gt", x, scalar=0), x, t.add("mul", below, scalar=slope))


@rule("prelu")
def _prelu(t: Translator, x: str, slope: str) -> str:
    shape, slopes = t.type(x).shape, t.type(slope).shape
    if len(slopes) == 1 and slopes != (1,) and len(shape) > 1:
        slope = t.add("reshape", slope, shape=(*slopes, *(1,) * (len(shape) - 2)))
    return t.add("where", t.add("gt", x, scalar=0), x, t.add("mul", x, slope))


@rule("hardtanh")
def _hardtanh(t: Translator, x: str, low: float = -1, high: float = 1) -> str:
    return t.add("clamp", x, min=low, max=high)


@rule("log_sigmoid")
def _log_sigmoid(t: Translator, x: str) -> str:
    return t.add("neg", t.add("softplus", t.add("neg", x)))


@rule("glu")
def _glu(t: Translator, x: str, dim: int = -1) -> str:
    dim %= len(t.type(x).shape)
    size = t.type(x).shape[dim]
    if not isinstance(size, int):
        raise NotImplementedError("halving a symbolic axis")
    half = size // 2
    return t.add("mul", part(t, x, dim, 0, half), t.add("sigmoid", part(t, x, dim, half, size)))


rule("isnan")(lambda t, x: t.add("ne", x, x))
rule("isinf")(lambda t, x: t.add("eq", t.add("abs", x), scalar=math.inf))
rule("tan")(lambda t, x: t.add("div", t.add("sin", x), t.add("cos", x)))
rule("exp2")(lambda t, x: t.add("exp", t.add("mul", x, scalar=math.log(2))))
rule("log2")(lambda t, x: t.add("mul", t.add("log", x), scalar=1 / math.log(2)))
rule("log10")(lambda t, x: t.add("mul", t.add("log", x), scalar=1 / math.log(10)))
rule("trunc", "fix")(lambda t, x: t.add("mul", t.add("sign", x), t.add("floor", t.add("abs", x))))
rule("logical_xor")(lambda t, x, y: t.add("ne", *(cast(t, v, DType.BOOL) for v in (x, y))))


@rule("lerp.Scalar")
def _lerp(t: Translator, x: str, y: str, weight: float) -> str:
    return t.add("add", x, t.add("mul", t.add("sub", y, x), scalar=weight))


@rule("lerp.Tensor")
def _lerp_tensor(t: Translator, x: str, y: str, weight: str) -> str:
    return t.add("add", x, t.add("mul", t.add("sub", y, x), weight))


@rule("addcmul", "addcdiv")
def _addcmul(t: Translator, x: str, y: str, z: str, value: float = 1, op: str = "mul") -> str:
    both = t.add(op, y, z)
    return t.add("add", x, both if value == 1 else t.add("mul", both, scalar=value))


rule("addcdiv")(lambda t, x, y, z, value=1: _addcmul(t, x, y, z, value, "div"))

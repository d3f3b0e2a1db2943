"""Operators that treat each element alone, with numpy's broadcasting and torch's promotion of types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ir.graph import Attributes
from ir.ops.definition import OpDef, Tensors, Types, attribute, follow_broadcast, require
from ir.types import DType, TensorType, broadcast_shapes, promote, promote_scalar


def _same(operands: Types, _attributes: Attributes) -> tuple[TensorType, ...]:
    return (operands[0],)


def _to_float(operands: Types, _attributes: Attributes) -> tuple[TensorType, ...]:
    dtype = operands[0].dtype
    return (operands[0].with_dtype(dtype if dtype.is_float else DType.F32),)


def _to_bool(operands: Types, _attributes: Attributes) -> tuple[TensorType, ...]:
    return (operands[0].with_dtype(DType.BOOL),)


def _broadcast(operands: Types, dtype: DType) -> tuple[TensorType, ...]:
    shape = broadcast_shapes(operand.shape for operand in operands)
    require(shape is not None, f"shapes do not broadcast: {', '.join(map(str, operands))}")
    assert shape is not None
    return (TensorType(dtype, shape),)


def _with_scalar(operands: Types, attributes: Attributes) -> DType:
    """The common type of the operands and the attribute ``scalar``, which takes a second operand's place."""
    require((len(operands) == 2) != ("scalar" in attributes), "takes two operands, or one and a scalar")
    if "scalar" not in attributes:
        return promote(operands)
    return promote_scalar(operands[0].dtype, attributes["scalar"])


def _arithmetic(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    return _broadcast(operands, _with_scalar(operands, attributes))


def _quotient(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    dtype = _with_scalar(operands, attributes)
    return _broadcast(operands, dtype if dtype.is_float else DType.F32)


def _comparison(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    _with_scalar(operands, attributes)
    return _broadcast(operands, DType.BOOL)


def _where(operands: Types, _attributes: Attributes) -> tuple[TensorType, ...]:
    require(operands[0].dtype is DType.BOOL, "the condition must be boolean")
    return _broadcast(operands, promote(operands[1:]))


def _masked_fill(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    attribute(attributes, "value", bool, int, float)
    require(operands[1].dtype is DType.BOOL, "the mask must be boolean")
    return _broadcast(operands, operands[0].dtype)


def _clamp(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    dtype = operands[0].dtype
    for limit in (attributes[name] for name in ("min", "max") if name in attributes):
        dtype = promote_scalar(dtype, limit)
    return (operands[0].with_dtype(dtype),)


def _shift(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    (result,) = _arithmetic(operands, attributes)
    require(not result.dtype.is_float and result.dtype is not DType.BOOL, "only integers have bits to shift")
    return (result,)


def _unary(name: str, infer: Callable[..., tuple[TensorType, ...]], home: str = "torch") -> OpDef:
    def reference(torch: Any, tensors: Tensors, _attributes: Attributes) -> Any:
        functions = torch if home == "torch" else torch.nn.functional
        return getattr(functions, name)(tensors[0])

    return OpDef(name, infer, reference, (1, 1), follow=follow_broadcast)


def _binary(name: str, infer: Callable[..., tuple[TensorType, ...]], torch_name: str | None = None) -> OpDef:
    def reference(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
        second = attributes["scalar"] if "scalar" in attributes else tensors[1]
        if name in _TENSORS_ONLY and "scalar" in attributes:
            second = torch.tensor(second, dtype=torch.result_type(tensors[0], second))
        return getattr(torch, torch_name or name)(tensors[0], second)

    return OpDef(name, infer, reference, (1, 2), follow=follow_broadcast)


_TRIGONOMETRIC = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")

_TENSORS_ONLY = frozenset({"maximum", "minimum", "logical_and", "logical_or"})
"""Functions of torch that take no number in a tensor's place."""


def _gelu(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    require(attributes["approximate"] in ("none", "tanh"), "gelu is approximated by none or tanh")
    return _same(operands, attributes)


def _reference_gelu(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    return torch.nn.functional.gelu(tensors[0], approximate=attributes["approximate"])


def _reference_clamp(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    return torch.clamp(tensors[0], attributes.get("min"), attributes.get("max"))


ELEMENTWISE = (
    *(_unary(name, _same) for name in ("neg", "abs", "floor", "ceil", "round", "sign", "relu", "bitwise_not")),
    *(
        _unary(name, _to_float)
        for name in ("exp", "log", "sqrt", "rsqrt", "reciprocal", "tanh", "sigmoid", "erf", *_TRIGONOMETRIC)
    ),
    *(
        _unary(name, _same, "torch.nn.functional")
        for name in ("silu", "softplus", "mish", "hardsigmoid", "hardswish", "elu", "leaky_relu")
    ),
    *(_unary(name, _to_bool) for name in ("logical_not", "isnan", "isinf")),
    OpDef("gelu", _gelu, _reference_gelu, (1, 1), follow=follow_broadcast),
    OpDef("clamp", _clamp, _reference_clamp, (1, 1), follow=follow_broadcast),
    *(_binary(name, _arithmetic) for name in ("add", "sub", "mul", "pow", "remainder", "fmod", "floor_divide")),
    *(_binary(name, _arithmetic) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")),
    *(_binary(f"bitwise_{side}_shift", _shift) for side in ("left", "right")),
    _binary("maximum", _arithmetic),
    _binary("minimum", _arithmetic),
    _binary("div", _quotient),
    *(_binary(name, _comparison) for name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or")),
    OpDef("where", _where, lambda torch, ts, _a: torch.where(*ts), (3, 3), follow=follow_broadcast),
    OpDef(
        "masked_fill",
        _masked_fill,
        lambda _torch, ts, a: ts[0].masked_fill(ts[1], a["value"]),
        (2, 2),
        follow=follow_broadcast,
    ),
)
